# The agent's care on a node with 250 pods.

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

# a_second_after COMMAND -- LOOK...: runs a command on the node, and prints what LOOK shows a second later. What is not right by
# then does not become so while it is looked at: the agent is stopped.
a_second_after() {
  lab_in node1 sh -c "$1" >/dev/null
  sleep 1
  lab_pause agent
  "${@:3}"
  lab_resume agent
}

@test "what all 250 pods have on the node, a whole table, its rules, the node's nftables table, is put right within a second" {
  local change before
  before=$(everything pod125)
  while read -r change <&4; do
    assert_same "$before" "$(a_second_after "$change" -- everything pod125)" || fail "$change"
  done 4<<'EOF'
ip route flush table 500
ip -6 route flush table 500
ip route flush table 500; ip -6 route flush table 500; ip rule delete pref 85; ip -6 rule delete pref 85
ip rule delete pref 85; ip -6 rule delete pref 85
nft delete table inet underpass
EOF
}

@test "what is removed in each of 250 pods is put right within a second" {
  local change before
  before=$(each_pod)
  for change in 'ip route flush table 8500' 'ip -6 rule delete pref 85' 'ip route delete 10.233.64.0/18' 'nft delete table inet underpass' \
    'ip link set veth0 down'; do
    assert_same "$before" "$(a_second_after "ip -all netns exec $change" -- each_pod)" || fail "$change"
  done
}

# each_pod: what each pod has.
each_pod() {
  lab_in node1 ip -all netns exec sh -c 'ip route show table all; ip -6 route show table all; ip rule; ip -6 rule
    ip neighbour show nud permanent; nft list ruleset'
}
