# From Spiderpool's coordinator: pods whose way to Services the other plugin made keep it while ours takes its place, and its
# configuration is taken as it is.

load helpers

setup_file() {
  suite_lab || return 0
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080 backend
  lab_service web 80:8080 node2/backend
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
  OLD=old$BATS_TEST_NUMBER NEW=new$BATS_TEST_NUMBER
  lab_pod node1 "$OLD" plain46
  lab_serve "node1/$OLD" 8080 "$OLD"
  made_by_the_other "$OLD"
}

# made_by_the_other POD: what the other plugin makes for a pod's first interface, in underlay mode (cmd/coordinator/cmd/utils.go of
# its commit a7fbd3b29: setupVeth, setupNeighborhood, setupHostRoutes, setupHijackRoutes, makeReplyPacketViaVeth).
made_by_the_other() {
  local pod=$1 veth=vethlab-$1 family node address cidrs mac_node mac_pod
  lab_in node1 ip link add "$veth" type veth peer name veth0 netns "/run/netns/$pod"
  lab_in node1 ip link set "$veth" up
  lab_in "node1/$pod" ip link set veth0 up
  mac_node=$(lab_in node1 cat "/sys/class/net/$veth/address")
  mac_pod=$(lab_in "node1/$pod" ip -json link show veth0 | jq -r '.[0].address')
  for family in 4 6; do
    node=$(lab_address node1 $family) address=$(lab_address "node1/$pod" $family)
    lab_in node1 ip "-$family" neighbour replace "$address" lladdr "$mac_pod" dev "$veth" nud permanent
    lab_in "node1/$pod" ip "-$family" neighbour replace "$node" lladdr "$mac_node" dev veth0 nud permanent
    # No protocol is given to a rule by its netlink library.
    [ -n "$(lab_in node1 ip "-$family" rule show pref 1000)" ] || lab_in node1 ip "-$family" rule add pref 1000 table 500
    lab_in node1 ip "-$family" route replace "$address" dev "$veth" table 500
    lab_in "node1/$pod" ip "-$family" route add "$node" dev veth0
    lab_in "node1/$pod" ip "-$family" route add "$node" dev veth0 table 101
    cidrs=$(lab_coordinator_json $family | jq -r '.serviceCIDR[], .overlayPodCIDR[]')
    for cidr in $cidrs; do lab_in "node1/$pod" ip "-$family" route add "$cidr" via "$node" dev veth0; done
    lab_in "node1/$pod" ip "-$family" rule add fwmark 1 table 100
    lab_in "node1/$pod" ip "-$family" route add default via "$node" dev veth0 table 100
    in_mangle "$pod" $family PREROUTING -i veth0 -m conntrack --ctstate NEW -j MARK --set-xmark 0x1
    in_mangle "$pod" $family PREROUTING -m mark --mark 0x1 -j CONNMARK --save-mark
    in_mangle "$pod" $family OUTPUT -j CONNMARK --restore-mark
  done
  lab_in "node1/$pod" sysctl -qw net.ipv4.conf.all.rp_filter=0
}

in_mangle() {
  local pod=$1 iptables=iptables
  [ "$2" = 4 ] || iptables=ip6tables
  shift 2
  lab_in "node1/$pod" $iptables -t mangle -A "$@"
}

# is_served POD: it reaches a Service and its node, and its node reaches it.
is_served() {
  local family
  for family in 4 6; do
    assert_answer "node1/$1" "$(lab_cluster_ip web $family)" 80 backend '' || return
    assert_answer node1 "$(lab_address "node1/$1" $family)" 8080 "$1" "$(lab_address node1 $family)" || return
  done
}

new_pod() {
  lab_pod node1 "$NEW" underlay46
  lab_serve "node1/$NEW" 8080 "$NEW"
}

no_link() {
  ! lab_in node1 ip link show "$1" >/dev/null 2>&1
}

@test "a pod that the other plugin served keeps its way while pods of ours come and go on its node" {
  is_served "$OLD"
  local before
  before=$(lab_snapshot "node1/$OLD")
  new_pod
  is_served "$NEW"
  is_served "$OLD"
  lab_pod_delete node1 "$NEW" underlay46
  is_served "$OLD"
  assert_same "$before" "$(lab_snapshot "node1/$OLD")"
}

@test "a pod of the other plugin and one of ours on the same node reach each other" {
  new_pod
  local family
  for family in 4 6; do
    assert_answer "node1/$NEW" "$(lab_address "node1/$OLD" $family)" 8080 "$OLD" ''
    assert_answer "node1/$OLD" "$(lab_address "node1/$NEW" $family)" 8080 "$NEW" ''
  done
  lab_pod_delete node1 "$NEW" underlay46
}

@test "our GC leaves a pod of the other plugin alone" {
  local before
  before=$(lab_snapshot "node1/$OLD"; lab_snapshot node1)
  lab_plugin node1 coordinator GC '' '' < <(lab_chained node1 "$OLD" underlay46 | jq -c 'del(.prevResult) + {cniVersion: "1.1.0", "cni.dev/valid-attachments": []}')
  assert_equal "$lab_status" 0
  assert_same "$before" "$(lab_snapshot "node1/$OLD"; lab_snapshot node1)"
  is_served "$OLD"
}

@test "DEL of a pod that the other plugin served succeeds and, with the end of its sandbox, leaves nothing of it" {
  lab_plugin node1 coordinator DEL "$OLD" eth0 < <(lab_chained node1 "$OLD" underlay46)
  assert_equal "$lab_status$lab_stdout" 0
  lab_stop "serve-$OLD-8080"
  lab_cnitool node1 del plain46 "$OLD"
  lab_in node1 ip netns delete "$OLD"
  lab_until 5 no_link "vethlab-$OLD"
  assert_equal "$(lab_in node1 sh -c 'ip route show table 500; ip -6 route show table 500; ip neighbour; ip -6 neighbour' 2>/dev/null | grep "vethlab-$OLD")" ''
}

@test "ADD for a pod that the other plugin has served already is refused, and changes nothing" {
  local before
  before=$(lab_snapshot "node1/$OLD"; lab_snapshot node1)
  lab_plugin node1 coordinator ADD "$OLD" eth0 < <(lab_chained node1 "$OLD" underlay46)
  assert_equal "$lab_status" 1
  assert_json "$lab_stdout" .code 100
  assert_contains "$lab_stdout" veth0
  lab_plugin node1 coordinator DEL "$OLD" eth0 < <(lab_chained node1 "$OLD" underlay46)
  assert_same "$before" "$(lab_snapshot "node1/$OLD"; lab_snapshot node1)"
  is_served "$OLD"
}
