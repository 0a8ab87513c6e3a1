# Pods with several macvlan NICs, in two networks with a gateway each. Each answer leaves by the NIC on which the question
# came, podDefaultRouteNic says which NIC has the default route, and NICs come and go in any order.

load helpers

# owner NAME NIC MASTER: a network NAME-for-NIC behind MASTER, whose podDefaultRouteNic is NIC.
owner() {
  lab_network_config node1 "$1-for-$2" 46 "$(lab_coordinator_json 46 | jq -c --arg nic "$2" '.podDefaultRouteNic = $nic')" "$3"
}

setup_file() {
  suite_lab || return 0
  lab_network 7 eth1
  lab_network 8 eth2
  # The client answers in network 6 alone: to reach it from a NIC in network 7, packets pass the gateway.
  lab_serve client 8080
  lab_network_config node1 second46 46 "$(lab_coordinator_json 46)" eth1
  lab_network_config node1 third46 46 "$(lab_coordinator_json 46)" eth2
  owner first eth0 eth0
  owner second net1 eth1
  owner third net2 eth2
  owner absent nosuch eth1
  owner later net2 eth1
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080
  lab_service web 80:8080 node2/backend
  lab_pod node1 pair underlay46
  lab_attach node1 pair second46 net1
  lab_serve node1/pair 8080
}

# pod [NETWORK]: a pod of the test's own with its eth0 on a network.
pod() {
  POD=pod$BATS_TEST_NUMBER-$((PODS += 1))
  lab_pod node1 "$POD" "${1:-underlay46}"
}

# by_hand: the same, but all calls of our plugin are the test's own (attempt).
by_hand() {
  pod plain46
  attempt ADD underlay46 eth0
  lab_attach node1 "$POD" plain46 net1
}

# default_nic 4|6: whose default routes the main table has.
default_nic() {
  lab_in "node1/$POD" ip -json "-$1" route show default | jq -r '[.[] | .dev // .nexthops[].dev] | join(" ")'
}

# attempt COMMAND NETWORK IFNAME: macvlan has made the NIC; one call of our plugin alone, with the network's configuration.
attempt() {
  lab_plugin node1 coordinator "$1" "$POD" "$3" < <(lab_chained node1 "$POD" "$2" "$3")
}

# symmetric DEFAULT: questions to each of the pod's addresses are answered by the NIC on which they came, and the pod's own
# go out by the NIC that has the default route. The pod has eth0 (network 6) and net1 (network 7).
symmetric() {
  local family default=$1 other
  [ "$default" = eth0 ] && other=net1 || other=eth0
  lab_serve "node1/$POD" 8080 2>/dev/null || true
  for family in 4 6; do
    assert_equal "$(default_nic $family)" "$default"
    leaves_by "node1/$POD" eth0 net1 veth0 -- \
      assert_answer client "$(lab_address "node1/$POD" $family)" 8080 "$POD" "$(lab_address client $family)"
    leaves_by "node1/$POD" net1 eth0 veth0 -- \
      assert_answer client "$(lab_address "node1/$POD" $family net1)" 8080 "$POD" "$(lab_address client $family eth1)"
    # From the other network, through the gateway of the one that was asked.
    leaves_by "node1/$POD" net1 eth0 veth0 -- \
      lab_ask client tcp "$(lab_address "node1/$POD" $family net1)" 8080 1 "$(lab_address client $family)"
    leaves_by "node1/$POD" eth0 net1 veth0 -- \
      lab_ask client tcp "$(lab_address "node1/$POD" $family)" 8080 1 "$(lab_address client $family eth1)"
    # Beyond both networks: by the default route.
    leaves_by "node1/$POD" "$default" "$other" veth0 -- \
      lab_ask "node1/$POD" tcp "$(lab_address client $family eth2)" 8080
    leaves_by "node1/$POD" veth0 eth0 net1 -- \
      assert_answer "node1/$POD" "$(lab_cluster_ip web $family)" 80 backend ''
    leaves_by "node1/$POD" veth0 eth0 net1 -- assert_answer node1 "$(lab_address "node1/$POD" $family)" 8080 "$POD" ''
    leaves_by "node1/$POD" veth0 eth0 net1 -- assert_answer node1 "$(lab_address "node1/$POD" $family net1)" 8080 "$POD" ''
    assert_answer "node1/$POD" "$(lab_address node1 $family eth1)" 9090 node1 ''
  done
  assert_tables "node1/$POD"
}

@test "with two underlay NICs each question is answered by the NIC on which it came, and eth0 keeps the default route" {
  lab_serve node1 9090
  POD=pair
  symmetric eth0
}

@test "a further NIC gets no second veth pair, and its own table and rule" {
  expect 0 lab_in node1/pair ip -json link show
  assert_json "$output" '[.[].ifname] | sort' '["eth0","lo","net1","veth0"]'
  local family
  for family in 4 6; do
    assert_equal "$(rule_tables node1/pair $family)" \
      "$(lab_address node1/pair $family net1) 8501
$(lab_address node1/pair $family) 8502"
  done
}

@test "an address that a NIC was not given counts for no attachment of its pod" {
  local command nic
  by_hand
  attempt ADD underlay46 net1
  lab_in "node1/$POD" ip address add 10.99.0.1/32 dev eth0
  lab_in "node1/$POD" ip -6 address add fd00:99::1/128 dev eth0 nodad
  for command in ADD CHECK; do
    for nic in eth0 net1; do
      attempt $command underlay46 $nic
      [ "$lab_status" = 0 ] || fail "$command $nic: $lab_stdout" "$lab_stderr"
    done
  done
  expect 1 grep -E '10.99.0.1|fd00:99::1' <(lab_in "node1/$POD" ip rule && lab_in "node1/$POD" ip -6 rule)
}

@test "a NIC whose IPAM names a gateway and no routes has a default route in its own table, and none in the main one, also after a second look" {
  local family _
  by_hand
  for _ in 1 2; do
    lab_plugin node1 coordinator ADD "$POD" net1 < <(lab_chained node1 "$POD" underlay46 net1 | jq -c 'del(.prevResult.routes)')
    assert_equal "$lab_status" 0
    for family in 4 6; do
      assert_equal "$(default_nic $family)" eth0
      expect 0 lab_in "node1/$POD" ip -json -$family route show table 8501 default
      assert_json "$output" '.[0] | [.dev, .gateway]' "[\"net1\",\"$([ $family = 4 ] && echo 10.6.0.1 || echo fd00:6::1)\"]"
      expect 0 lab_in "node1/$POD" ip route get "$(lab_address client $family eth2)" from "$(lab_address "node1/$POD" $family net1)"
      assert_contains "$output" ' dev net1 '
    done
  done
}

@test "a connection from net1's own address to a ClusterIP goes through the node too" {
  local family
  for family in 4 6; do
    leaves_by node1/pair veth0 eth0 net1 -- \
      lab_ask node1/pair tcp "$(lab_cluster_ip web $family)" 80 1 "$(lab_address node1/pair $family net1)"
  done
}

@test "podDefaultRouteNic=eth0 leaves the default route where it is" {
  pod first-for-eth0
  lab_attach node1 "$POD" second46 net1
  symmetric eth0
}

@test "podDefaultRouteNic=net1 moves the default route to net1, and DEL of net1 gives it back" {
  local before
  pod
  before=$(lab_snapshot "node1/$POD")
  lab_attach node1 "$POD" second-for-net1 net1
  symmetric net1
  lab_cnitool node1 check underlay46 "$POD" eth0
  lab_cnitool node1 check second-for-net1 "$POD" net1
  lab_cnitool node1 del second-for-net1 "$POD" net1
  assert_same "$(sed '/attachments/d' <<<"$before")" "$(lab_snapshot "node1/$POD" | sed '/attachments/d')"
}

@test "with the default route taken off eth0 for net1, as by Multus' default-route, each NIC answers by its own gateway" {
  local family
  pod
  lab_serve node1 9090 2>/dev/null || true
  for family in 4 6; do lab_in "node1/$POD" ip -$family route delete default dev eth0; done
  lab_attach node1 "$POD" second46 net1
  symmetric net1
  lab_cnitool node1 check second46 "$POD" net1
  lab_cnitool node1 del second46 "$POD" net1
  assert_equal "$(default_nic 4) $(default_nic 6)" 'eth0 eth0'
}

@test "podDefaultRouteNic=net2 works although net2 comes after net1" {
  pod
  lab_attach node1 "$POD" later-for-net2 net1
  assert_equal "$(default_nic 4) $(default_nic 6)" 'eth0 eth0'
  lab_attach node1 "$POD" third-for-net2 net2
  assert_equal "$(default_nic 4) $(default_nic 6)" 'net2 net2'
  lab_serve "node1/$POD" 8080
  local family nic network=6 others
  for family in 4 6; do
    for nic in eth0 net1 net2; do
      case $nic in eth0) others='net1 net2' network=eth0 ;; net1) others='eth0 net2' network=eth1 ;; *) others='eth0 net1' network=eth2 ;; esac
      # shellcheck disable=SC2086 # words
      leaves_by "node1/$POD" $nic $others -- assert_answer client "$(lab_address "node1/$POD" $family $nic)" 8080 "$POD" \
        "$(lab_address client $family $network)"
    done
  done
  assert_tables "node1/$POD"
  lab_cnitool node1 check later-for-net2 "$POD" net1
  lab_cnitool node1 check third-for-net2 "$POD" net2
}

@test "CHECK of each NIC goes by what another's podDefaultRouteNic has decided, in the families that the NIC which it names has, and while that is there" {
  lab_network_config node1 single-for-eth0 4 "$(lab_coordinator_json 4 | jq -c '.podDefaultRouteNic = "eth0"')" eth0
  pod single-for-eth0
  lab_attach node1 "$POD" second46 net1
  assert_equal "$(default_nic 4) $(default_nic 6)" 'eth0 net1'
  lab_cnitool node1 check single-for-eth0 "$POD" eth0
  lab_cnitool node1 check second46 "$POD" net1
  owner before net1 eth2
  pod
  lab_attach node1 "$POD" second46 net1
  lab_attach node1 "$POD" before-for-net1 net2
  assert_equal "$(default_nic 4) $(default_nic 6)" 'net1 net1'
  lab_cnitool node1 check underlay46 "$POD" eth0
  lab_cnitool node1 check second46 "$POD" net1
  lab_cnitool node1 check before-for-net1 "$POD" net2
  lab_cnitool node1 del second46 "$POD" net1
  assert_equal "$(default_nic 4) $(default_nic 6)" 'eth0 eth0'
  lab_cnitool node1 check underlay46 "$POD" eth0
  lab_cnitool node1 check before-for-net1 "$POD" net2
}

@test "podDefaultRouteNic with a NIC that is not there and cannot come is refused, and nothing has changed" {
  local before
  pod
  lab_attach node1 "$POD" plain46 net1
  before=$(lab_snapshot "node1/$POD" && lab_snapshot node1)
  # The NIC that macvlan made is in another network; what counts is our plugin's configuration.
  attempt ADD absent-for-nosuch net1
  assert_equal "$lab_status" 1
  assert_json "$lab_stdout" .code 7
  assert_contains "$lab_stdout" podDefaultRouteNic
  assert_contains "$lab_stdout" nosuch
  assert_contains "$lab_stdout" 'eth0, net1'
  assert_same "$before" "$(lab_snapshot "node1/$POD" && lab_snapshot node1)"
}

@test "podDefaultRouteNic=net1 gives net1 the default route also where its IPAM has a gateway and no routes, and DEL of net1 gives it back" {
  local command config family
  bare '.podDefaultRouteNic = "net1"'
  for command in ADD CHECK ADD CHECK; do
    lab_plugin node1 coordinator $command "$POD" net1 <<<"$config"
    assert_equal "$lab_status" 0 || fail "$command: $lab_stdout"
    for family in 4 6; do
      expect 0 lab_in "node1/$POD" ip -json -$family route show default
      assert_json "$output" 'map([.dev, .gateway])' "[[\"net1\",\"$([ $family = 4 ] && echo 10.6.0.1 || echo fd00:6::1)\"]]"
    done
  done
  lab_plugin node1 coordinator DEL "$POD" net1 <<<"$config"
  assert_equal "$(default_nic 4) $(default_nic 6)" 'eth0 eth0'
}

@test "podDefaultRouteNic with a NIC that has neither a default route nor a gateway is refused, and nothing has changed" {
  local before config
  bare '.podDefaultRouteNic = "net1" | del(.prevResult.ips[].gateway)'
  before=$(lab_snapshot "node1/$POD" && lab_snapshot node1)
  lab_plugin node1 coordinator ADD "$POD" net1 <<<"$config"
  assert_equal "$lab_status" 1
  assert_json "$lab_stdout" .code 7
  assert_contains "$lab_stdout" 'podDefaultRouteNic: net1 has no default route'
  assert_same "$before" "$(lab_snapshot "node1/$POD" && lab_snapshot node1)"
}

# bare FILTER: a pod whose net1 has no default route by its IPAM; config is our plugin's for it, changed by jq.
bare() {
  local family
  by_hand
  for family in 4 6; do lab_in "node1/$POD" ip -$family route delete default dev net1 2>/dev/null || true; done
  config=$(lab_chained node1 "$POD" underlay46 net1 | jq -c "del(.prevResult.routes) | $1")
}

@test "IPv6 multipath default routes are split up: each NIC's gateway is in its own table alone" {
  pod plain46
  lab_attach node1 "$POD" plain46 net1
  lab_attach node1 "$POD" plain46 net2
  lab_in "node1/$POD" ip -6 route show default | grep -q nexthop || fail 'the three NICs share no multipath route'
  attempt ADD underlay46 eth0
  attempt ADD underlay46 net1
  attempt ADD underlay46 net2
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  assert_equal "$(default_nic 6) $(default_nic 4)" 'eth0 eth0'
  local nic table
  for nic in net1 net2; do
    table=$(rule_tables "node1/$POD" 6 | sed -n "s/^$(lab_address "node1/$POD" 6 $nic) //p")
    expect 0 lab_in "node1/$POD" ip -6 -json route show table "$table" default
    assert_json "$output" '[.[] | .dev // .nexthops[].dev]' "[\"$nic\"]"
  done
}

@test "a default route without a next hop, as the CNI library makes it, leaves the main table too" {
  by_hand
  # First in the table, and with the scope of one that has a next hop.
  lab_in "node1/$POD" ip route prepend default dev net1 scope global
  attempt ADD second46 net1
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  assert_equal "$(default_nic 4)" eth0
  attempt CHECK second46 net1
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
}

@test "NICs that all exist before the first call get a table each" {
  pod plain46
  lab_attach node1 "$POD" plain46 net1
  lab_attach node1 "$POD" plain46 net2
  local nic
  for nic in eth0 net1 net2; do
    attempt ADD underlay46 $nic
    assert_equal "$lab_status" 0 || fail "$lab_stdout"
  done
  assert_tables "node1/$POD"
  assert_equal "$(rule_tables "node1/$POD" 4 | wc -l)" 3
}

@test "a NIC unplugged and another one plugged never share a table" {
  pod
  lab_attach node1 "$POD" second46 net1
  lab_attach node1 "$POD" third46 net2
  lab_cnitool node1 del second46 "$POD" net1
  assert_tables "node1/$POD"
  lab_attach node1 "$POD" second46 net3
  assert_tables "node1/$POD"
  lab_attach node1 "$POD" second46 net1
  assert_tables "node1/$POD"
  assert_equal "$(rule_tables "node1/$POD" 4 | cut -d' ' -f2 | sort | tr '\n' ' ')" '8501 8502 8503 8504 '
  lab_serve "node1/$POD" 8080
  leaves_by "node1/$POD" net2 eth0 net1 net3 -- \
    assert_answer client "$(lab_address "node1/$POD" 4 net2)" 8080 "$POD" "$(lab_address client 4 eth2)"
}

@test "a table that somebody else uses is left alone" {
  pod
  lab_in "node1/$POD" ip route add 192.0.2.0/24 dev eth0 table 8501
  lab_in "node1/$POD" ip rule add pref 2000 to 192.0.2.1 lookup 8502
  lab_attach node1 "$POD" second46 net1
  assert_equal "$(rule_tables "node1/$POD" 4)" "$(lab_address "node1/$POD" 4 net1) 8503
$(lab_address "node1/$POD" 4) 8504"
  lab_cnitool node1 del second46 "$POD" net1
  expect 0 lab_in "node1/$POD" ip route show table 8501
  assert_equal "$output" '192.0.2.0/24 dev eth0 scope link '
}

@test "NICs removed in any order leave nothing, whichever has the default route" {
  local order nic before
  for order in 'eth0 net1 net2' 'net2 net1 eth0' 'net1 eth0 net2' 'net2 eth0 net1'; do
    before=$(lab_snapshot node1 | sed -n '/^== addresses/,$p')
    pod
    lab_attach node1 "$POD" second-for-net1 net1
    lab_attach node1 "$POD" third46 net2
    assert_equal "$(default_nic 4) $(default_nic 6)" 'net1 net1'
    for nic in eth0 net1 net2; do lab_cnitool node1 check "$(network $nic)" "$POD" $nic; done
    for nic in $order; do lab_cnitool node1 del "$(network "$nic")" "$POD" "$nic"; done
    assert_equal "$(lab_snapshot "node1/$POD" | grep -e 'proto 85' -e 'table inet')" '' || fail "$order"
    assert_same "$before" "$(lab_snapshot node1 | sed -n '/^== addresses/,$p')" || fail "$order"
  done
}

network() {
  case $1 in eth0) printf underlay46 ;; net1) printf second-for-net1 ;; net2) printf third46 ;; esac
}

@test "DEL of net1 leaves eth0 its veth pair, its Services and its node" {
  local before
  pod
  before=$(lab_snapshot "node1/$POD" && lab_snapshot node1)
  lab_attach node1 "$POD" second46 net1
  lab_cnitool node1 del second46 "$POD" net1
  assert_same "$before" "$(lab_snapshot "node1/$POD" && lab_snapshot node1)"
  assert_answer "node1/$POD" "$(lab_cluster_ip web 4)" 80 backend ''
  assert_answer "node1/$POD" "$(lab_cluster_ip web 6)" 80 backend ''
  # And the next one is not taken for overlay.
  lab_attach node1 "$POD" second46 net1
  assert_equal "$(lab_in node1 ip route show table 500 dev eth0)$(lab_in node1 ip neighbour show nud permanent dev eth0)" ''
}

@test "DEL of net1 takes away what it has on the node's end of the pair, and nothing else, also where somebody has renamed that" {
  local before host
  # shellcheck disable=SC2016 # expanded by the inner shell
  on_pair() { lab_in node1 sh -c 'for f in -4 -6; do ip $f route show table 500 dev "$0"; ip $f neighbour show nud permanent dev "$0"; done' "$1"; }
  by_hand
  host=$(jq -r '.interfaces[1].name' <<<"$lab_stdout")
  before=$(on_pair "$host")
  attempt ADD underlay46 net1
  lab_in node1 ip link set "$host" name other0
  [ "$before" != "$(on_pair other0)" ]
  attempt DEL underlay46 net1
  assert_same "$before" "$(on_pair other0)"
}

@test "DEL of a further NIC takes all away when the namespace has gone, our state file is lost, or there is no prevResult" {
  local lost before config
  for lost in namespace state prevResult all; do
    by_hand
    before=$(lab_snapshot node1 | sed -n '/^== routes -4/,$p')
    config=$(lab_chained node1 "$POD" underlay46 net1)
    lab_plugin node1 coordinator ADD "$POD" net1 <<<"$config"
    assert_equal "$lab_status" 0 || fail "$lab_stdout"
    case $lost in prevResult | all) config=$(jq 'del(.prevResult)' <<<"$config") ;; esac
    case $lost in state | all) lab_in node1 sh -c "rm /run/underpass/attachments/lab-$POD@net1.json" ;; esac
    case $lost in namespace | all) lab_in node1 ip netns delete "$POD" ;; esac
    lab_plugin node1 coordinator DEL "$POD" net1 <<<"$config"
    assert_equal "$lab_status" 0 || fail "$lab_stdout"
    [ $lost = prevResult ] || [ $lost = state ] || continue
    assert_same "$before" "$(lab_snapshot node1 | sed -n '/^== routes -4/,$p')" || fail "$lost"
    # The first NIC's by mark is still there, and nothing else.
    assert_equal "$(lab_in "node1/$POD" ip rule | grep -c 'proto 85')" 1
  done
}

@test "CHECK names any single object of a further NIC's that is missing or altered, and ADD puts it right" {
  local where what change config veth
  by_hand
  config=$(lab_chained node1 "$POD" underlay46 net1 | jq -c '.podDefaultRouteNic = "net1"')
  lab_plugin node1 coordinator ADD "$POD" net1 <<<"$config"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  veth=$(lab_in node1 ip -json route show table 500 "$(lab_address "node1/$POD" 4)" | jq -r '.[0].dev')
  while IFS='|' read -r where change what; do
    [ "$where" != pod ] || where=node1/$POD
    lab_in "$where" sh -c "$change"
    lab_plugin node1 coordinator CHECK "$POD" net1 <<<"$config"
    assert_equal "$lab_status" 1 || fail "CHECK passes after: $change"
    assert_json "$lab_stdout" .code 101
    assert_contains "$lab_stdout" "$what"
    lab_plugin node1 coordinator ADD "$POD" net1 <<<"$config"
    assert_equal "$lab_status" 0 || fail "$lab_stdout"
    lab_plugin node1 coordinator CHECK "$POD" net1 <<<"$config"
    assert_equal "$lab_status" 0 || fail "after $change, ADD: $lab_stdout"
  done <<EOF2
pod|ip rule del from $(lab_address "node1/$POD" 4) lookup 8502|from $(lab_address "node1/$POD" 4)/32 lookup 8502
pod|ip -6 rule del from $(lab_address "node1/$POD" 6) lookup 8502|from $(lab_address "node1/$POD" 6)/128 lookup 8502
pod|ip route del default table 8502|0.0.0.0/0 via 10.6.0.1 dev eth0 table 8502
pod|ip -6 route del default table 8502|::/0 via fd00:6::1 dev eth0 table 8502
pod|ip rule del from $(lab_address "node1/$POD" 4 net1) lookup 8501|from $(lab_address "node1/$POD" 4 net1)/32 lookup 8501
pod|ip route del 10.6.0.0/16 table 8501|10.6.0.0/16 dev net1
pod|ip route del 10.233.64.0/18 table 8501|10.233.64.0/18 via 10.6.212.101 dev veth0 table 8501
pod|ip route append default via 10.6.0.1 dev eth0|not wanted: route 0.0.0.0/0 via 10.6.0.1 dev eth0
pod|ip route del default|missing: route 0.0.0.0/0 via 10.6.0.1 dev net1
pod|ip -6 route del default|missing: route ::/0 via fd00:6::1 dev net1
node1|ip route del table 500 $(lab_address "node1/$POD" 4 net1)|route $(lab_address "node1/$POD" 4 net1)/32
node1|ip neighbour del $(lab_address "node1/$POD" 4 net1) dev $veth|neighbour $(lab_address "node1/$POD" 4 net1)
EOF2
}

@test "ADD twice for net1 is the same as once, whichever NIC has the default route" {
  local owner before first config
  for owner in eth0 net1; do
    by_hand
    config=$(lab_chained node1 "$POD" underlay46 net1 | jq -c --arg owner $owner '.podDefaultRouteNic = $owner')
    lab_plugin node1 coordinator ADD "$POD" net1 <<<"$config"
    assert_equal "$lab_status" 0 || fail "$lab_stdout"
    first=$lab_stdout before=$(lab_snapshot "node1/$POD" && lab_snapshot node1)
    lab_plugin node1 coordinator ADD "$POD" net1 <<<"$config"
    assert_same "$first" "$lab_stdout"
    assert_same "$before" "$(lab_snapshot "node1/$POD" && lab_snapshot node1)"
  done
}

@test "a route of prevResult that names the metric or the table which it has anyway is as it should be" {
  local config
  by_hand
  config=$(lab_chained node1 "$POD" underlay46 net1 | jq -c '.cniVersion = "1.1.0" | .prevResult.cniVersion = "1.1.0"
    | .prevResult.routes = [{dst: "0.0.0.0/0", priority: 0, table: 254}, {dst: "::/0", priority: 1024}]')
  # As the CNI library has it, where another interface has such a route already.
  lab_in "node1/$POD" ip route delete default dev net1
  lab_plugin node1 coordinator ADD "$POD" net1 <<<"$config"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  assert_json "$lab_stdout" '[.routes[].table]' '[8501,8501]'
  lab_plugin node1 coordinator CHECK "$POD" net1 <<<"$config"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
}

@test "GC of a further NIC's attachment takes the node's routes to it away, and leaves the pod the others" {
  local family
  pod
  lab_attach node1 "$POD" second46 net1
  lab_plugin node1 coordinator GC '' '' < <(lab_chained node1 "$POD" second46 net1 | jq -c --arg pair "$(container_of pair)" \
    'del(.prevResult) | .cniVersion = "1.1.0" | ."cni.dev/valid-attachments" = [{containerID: $pair, ifname: "net1"}]')
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  for family in 4 6; do
    assert_equal "$(lab_in node1 ip "-$family" route show table 500 "$(lab_address "node1/$POD" $family net1)")" ''
    [ -n "$(lab_in node1 ip "-$family" route show table 500 "$(lab_address "node1/$POD" $family)")" ]
    [ -n "$(lab_in node1 ip "-$family" route show table 500 "$(lab_address node1/pair $family net1)")" ]
  done
  lab_cnitool node1 check underlay46 "$POD" eth0
  lab_cnitool node1 del second46 "$POD" net1
}

@test "a pod with one IP family on two NICs is served in it, and has nothing of the other" {
  local families
  for families in 4 6; do
    pod underlay$families
    lab_attach node1 "$POD" underlay$families net1
    assert_answer "node1/$POD" "$(lab_cluster_ip web $families)" 80 backend ''
    assert_equal "$(rule_tables "node1/$POD" $families | wc -l)" 2
    assert_equal "$(lab_in "node1/$POD" ip "-$((10 - families))" rule | grep -c 'proto 85')" 0
    assert_equal "$(lab_in "node1/$POD" ip "-$((10 - families))" route show table all proto 85)" ''
    lab_cnitool node1 check underlay$families "$POD" net1
  done
}

@test "the result of a further NIC names the table of its default route in CNI 1.1.0, and macvlan's own CHECK passes on it" {
  local plugins version name
  plugins=$("$LAB_REPO/tests/tools/build" --where plugins) || skip 'no newer plugins: needs Go'
  for version in 0.4.0 1.0.0 1.1.0; do
    name=v${version//./}m46
    LAB_CNI_VERSION=$version lab_network_config node1 "$name" 46 "$(lab_coordinator_json 46)"
    [ $version != 1.1.0 ] || export LAB_CNI_PLUGINS=$plugins
    pod "$name"
    lab_attach node1 "$POD" "$name" net1
    assert_json "$(cat "$LAB/host/node1/pod/$POD/net1.json")" '[.interfaces[] | select(.sandbox) | .name]' '["net1"]'
    [ $version != 1.1.0 ] ||
      assert_json "$(cat "$LAB/host/node1/pod/$POD/net1.json")" '[.routes[].table]' '[8501,8501]'
    lab_cnitool node1 check "$name" "$POD" net1
    lab_cnitool node1 check "$name" "$POD" eth0
  done
}

@test "what a routing daemon learns on either NIC stays its own: it is neither copied nor moved, and ADD, CHECK and DEL work" {
  local clean before nic
  clean=$(lab_snapshot node1)
  by_hand
  attempt ADD second46 net1
  before=$(ours)
  # More than a document can hold, and a default route that cannot be removed by its next hop.
  awk 'BEGIN {for (i = 0; i < 12000; i++) printf "route add 20.0.%d.%d/32 via 10.6.0.1 dev eth0 proto bird\n", i / 256, i % 256}' |
    lab_in "node1/$POD" ip -batch -
  lab_in "node1/$POD" ip nexthop add id 7 via 10.6.0.1 dev net1
  lab_in "node1/$POD" ip route add default nhid 7 metric 20 proto bgp
  attempt ADD second46 net1
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  assert_same "$before" "$(ours)"
  attempt CHECK second46 net1
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  attempt CHECK underlay46 eth0
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  for nic in net1 eth0; do
    attempt DEL underlay46 $nic
    assert_equal "$lab_status" 0 || fail "$lab_stdout"
    assert_equal "$(lab_in "node1/$POD" ip route show proto bird | wc -l)" 12000
    lab_in "node1/$POD" ip route show proto bgp | grep -q '^default nhid 7 '
  done
  assert_equal "$(ours)" ''
  assert_same "$clean" "$(lab_snapshot node1)"
}

@test "a NIC of a network with mode disable leaves the pod's other NICs and the node what they have, and all pass CHECK" {
  local before
  lab_network_config node1 off46 46 "$(lab_coordinator_json 46 | jq -c '.mode = "disable"')" eth1
  POD=pod$BATS_TEST_NUMBER
  lab_sandbox node1 "$POD"
  lab_rp_filter "node1/$POD" 1
  lab_attach node1 "$POD" underlay46
  # The node's rule has to give way to nobody for this NIC's sake.
  lab_in node1 ip rule add from 192.0.2.1 lookup main
  before=$(made)
  lab_attach node1 "$POD" off46 net1
  assert_same "$before" "$(made)"
  lab_cnitool node1 check underlay46 "$POD" eth0
  lab_cnitool node1 check off46 "$POD" net1
  lab_cnitool node1 del off46 "$POD" net1
  assert_same "$before" "$(made)"
  lab_cnitool node1 check underlay46 "$POD" eth0
  lab_in node1 ip rule delete from 192.0.2.1 lookup main
}

# made: what we made in the test's pod and on the node.
made() { { lab_snapshot "node1/$POD" && lab_snapshot node1; } | grep -e 'proto 85' -e 'table inet'; }

# ours: the test's pod's routes of ours, in all tables.
ours() { lab_in "node1/$POD" ip route show table all proto 85 && lab_in "node1/$POD" ip -6 route show table all proto 85; }

@test "DEL works with a saved document that says more of the routing than another tool takes" {
  by_hand
  attempt ADD second46 net1
  local nic saved
  for nic in net1 eth0; do
    saved=$LAB/saved-$nic
    lab_in node1 cat "/run/underpass/attachments/lab-$POD@$nic.json" >"$saved"
    jq -c '{destination: "20.0.0.0/32", dev: "eth0", table: 254, protocol: 3} as $route
      | .routing.leaves = [range(20000) | $route]' "$saved" |
      lab_in node1 sh -c "cat >/run/underpass/attachments/lab-$POD@$nic.json"
    attempt DEL underlay46 $nic
    assert_equal "$lab_status" 0 || fail "$lab_stdout"
  done
  assert_equal "$(ours)" ''
}
