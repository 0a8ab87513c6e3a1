# The agent's care on a node with 250 pods, and for everything that pods of every kind have.

load ../helpers
load ../care

PODS=250
AT_ONCE=8

setup_file() {
  suite_lab 1 || return 0
  local worker workers=()
  lab_known_network node1 underlay46
  for ((worker = 1; worker <= AT_ONCE; worker++)); do
    add_each_nth $worker 3>&- &
    workers+=($!)
  done
  for worker in "${workers[@]}"; do wait "$worker"; done
  agent_start
  lab_until 60 metric 'attachments{state="current"}' $PODS
}

add_each_nth() {
  local number
  for ((number = $1; number <= PODS; number += AT_ONCE)); do lab_pod node1 "pod$number" underlay46 || return; done
}

@test "among 250 pods, any single object that ADD made is put right within a second" {
  altered_each pod125 eth0
}

@test "what all 250 pods have on the node, a whole table, its rules, the node's nftables table, is put right within a second" {
  local change
  POD=pod125 before=$(everything pod125)
  while read -r change <&4; do altered node1 "$change" || return; done 4<<'EOF'
ip route flush table 500
ip -6 route flush table 500
ip route flush table 500; ip -6 route flush table 500; ip rule delete pref 85; ip -6 rule delete pref 85
ip rule delete pref 85; ip -6 rule delete pref 85
nft delete table inet underpass
EOF
}

@test "what is removed in each of 250 pods is put right within a second" {
  local change pid before after
  read -r pid <"$LAB/pid/agent"
  before=$(each_pod)
  for change in 'ip route flush table 8500' 'ip -6 rule delete pref 85' 'ip route delete 10.233.64.0/18' 'nft delete table inet underpass' \
    'ip link set veth0 down'; do
    lab_in node1 ip -all netns exec sh -c "$change" >/dev/null
    sleep 1
    # What is not right by now does not become so while it is looked at.
    kill -STOP "$pid"
    after=$(each_pod)
    # nsenter, which runs it, has stopped itself with it.
    kill -CONT "$pid" "$(ps -o ppid= -p "$pid")"
    assert_same "$before" "$after" || fail "$change"
  done
}

# each_pod: what each pod has.
each_pod() {
  lab_in node1 ip -all netns exec sh -c 'ip route show table all; ip -6 route show table all; ip rule; ip -6 rule
    ip neighbour show nud permanent; nft list ruleset'
}

@test "any single object of pods with several interfaces, an overlay and every setting is put right within a second" {
  lab_network 7 eth1
  lab_network_config node1 every 46 "$(lab_coordinator_json 46 |
    jq -c '. + {txQueueLen: 500, podMACPrefix: "02:ab", podRPFilter: 2, overlayMasquerade: true}')"
  lab_network_config node1 seven 46 "$(lab_coordinator_json 46)" eth1
  lab_pod node1 every every
  lab_attach node1 every seven net1
  lab_overlay_pod node1 over calico 46
  lab_attach node1 over seven net1
  lab_until 10 metric 'attachments{state="current"}' $((PODS + 3))
  altered_each every eth0
  altered_each every net1
  altered_each over net1
}

@test "settings of which the kernel does not tell are found within a minute" {
  local change host
  host=$(link every)
  lab_in node1 sysctl -qw "net.ipv6.conf.$host.accept_ra=1" "net.ipv6.conf.$host.use_oif_addrs_only=1"
  lab_in node1/every sysctl -qw net.ipv6.conf.net1.accept_ra_defrtr=1
  for change in "node1 $host.accept_ra=0" "node1 $host.use_oif_addrs_only=0" 'node1/every net1.accept_ra_defrtr=0'; do
    lab_until 70 is_set "${change% *}" "${change#* }"
  done
}

is_set() { [ "$(lab_in "$1" sysctl -n "net.ipv6.conf.${2%=*}")" = "${2#*=}" ]; }
