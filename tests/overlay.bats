# Pods whose eth0 comes from an overlay plugin and whose further NICs are macvlans of ours. Each answer leaves by the NIC on
# which the question came, and Services are reached through eth0: for Calico-, Cilium- and Flannel-like NICs, over TCP and
# UDP, IPv4 and IPv6.

load helpers

KINDS='calico cilium flannel'

setup_file() {
  suite_lab || return 0
  local kind
  lab_network 7 eth1
  lab_snapshot node1 >"$LAB/node1.clean"
  for node in node1 node2; do
    lab_serve $node 9090
    lab_network_config $node second46 46 "$(lab_coordinator_json 46)" eth1
  done
  lab_overlay_pod node2 backend calico
  lab_serve node2/backend 8080
  lab_serve client 8080
  lab_service web 80:8080 node2/backend
  for kind in $KINDS; do
    lab_overlay_pod node1 "$kind" "$kind"
    lab_overlay_pod node1 "near-$kind" "$kind"
    lab_attach node1 "$kind" underlay46 net1
    lab_serve "node1/$kind" 8080
  done
  # One pod with two further NICs, in two networks.
  lab_overlay_pod node1 both calico
  lab_attach node1 both underlay46 net1
  lab_attach node1 both second46 net2
  lab_serve node1/both 8080
}

# each CASE: calls CASE POD FAMILY for a pod of each kind, over both families.
each() {
  local kind family
  for kind in $KINDS; do
    for family in 4 6; do
      printf '%s, IPv%s:\n' "$kind" $family
      "$1" "node1/$kind" $family
    done
  done
}

# sandbox KIND [FAMILIES]: a pod of the test's own with its eth0.
sandbox() {
  POD=pod$BATS_TEST_NUMBER-$((SANDBOXES += 1))
  lab_overlay_pod node1 "$POD" "$1" "${2:-46}"
  POD_BEFORE=$(lab_snapshot "node1/$POD")
  NODE_BEFORE=$(node_state)
}

# node_state: what ADD can leave on the node. (Links come and go with the pods' namespaces, and their routes with them.)
node_state() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'for f in -4 -6; do
      ip $f route show table all proto 85; ip $f rule show; ip $f neighbour show nud permanent
    done; nft list tables; find /run/underpass -mindepth 1' 2>/dev/null | sort
}

node_is_as_before() {
  [ "$NODE_BEFORE" = "$(node_state)" ]
}

# detached NETWORK IFNAME: after CNI's DEL of the last NIC, pod and node are as they were.
detached() {
  lab_cnitool node1 del "$1" "$POD" "$2"
  assert_same "$POD_BEFORE" "$(lab_snapshot "node1/$POD")"
  assert_same "$NODE_BEFORE" "$(node_state)"
}

# chained: macvlan's ADD of net1, then the configuration that our plugin gets for it, in $CONFIG.
chained() {
  lab_attach node1 "$POD" plain46 net1
  CONFIG=$(lab_chained node1 "$POD" underlay46 net1)
}

# coordinator COMMAND [IFNAME [VARIABLE=VALUE...]]: one call for the test's pod with $CONFIG.
coordinator() {
  local command=$1 ifname=${2:-net1}
  shift $(($# < 2 ? $# : 2))
  lab_plugin node1 coordinator "$command" "$POD" "$ifname" "$@" <<<"$CONFIG"
  [ "$lab_status" = 0 ] || fail "$command $ifname: $lab_stdout" "$lab_stderr"
}

@test "auto mode chooses overlay for a further NIC, and makes no veth pair" {
  local kind
  for kind in $KINDS; do
    expect 0 lab_in "node1/$kind" ip -json link show
    assert_json "$output" '[.[].ifname]' '["lo","eth0","net1"]'
  done
}

@test "an overlay pod's connection to a ClusterIP goes out by eth0 and its answer comes back there" {
  cluster_ip() {
    leaves_by "$1" eth0 net1 -- assert_answer "$1" "$(lab_cluster_ip web "$2")" 80 backend "$(lab_address "$1" "$2")"
  }
  each cluster_ip
}

@test "a connection from net1's own address to a ClusterIP goes through the node too" {
  bound() {
    local protocol source
    source=$(lab_address "$1" "$2" net1)
    for protocol in tcp udp; do
      expect 0 lab_ask "$1" $protocol "$(lab_cluster_ip web "$2")" 80 1 "$source"
      assert_equal "${output%% *}" backend
    done
  }
  each bound
}

@test "a client in the underlay reaches net1's address, and the answer leaves by net1" {
  underlay_client() {
    leaves_by "$1" net1 eth0 -- \
      assert_answer client "$(lab_address "$1" "$2" net1)" 8080 "${1#*/}" "$(lab_address client "$2")"
  }
  each underlay_client
}

@test "a client in the overlay reaches eth0's address, and the answer leaves by eth0" {
  overlay_client() {
    leaves_by "$1" eth0 net1 -- \
      assert_answer node2/backend "$(lab_address "$1" "$2")" 8080 "${1#*/}" "$(lab_address node2/backend "$2")"
  }
  each overlay_client
}

@test "a pod of the same node's overlay reaches eth0's address, and the answer leaves by eth0" {
  overlay_neighbour() {
    leaves_by "$1" eth0 net1 -- assert_answer "${1/\//\/near-}" "$(lab_address "$1" "$2")" 8080 "${1#*/}" ''
  }
  each overlay_neighbour
}

@test "the node reaches both of the pod's addresses through eth0" {
  own_node() {
    leaves_by "$1" eth0 net1 -- assert_answer node1 "$(lab_address "$1" "$2")" 8080 "${1#*/}" ''
    leaves_by "$1" eth0 net1 -- assert_answer node1 "$(lab_address "$1" "$2" net1)" 8080 "${1#*/}" ''
  }
  each own_node
}

@test "the pod reaches its node's addresses through eth0, of every network that the node is in" {
  to_the_node() {
    assert_answer "$1" "$(lab_address node1 "$2")" 9090 node1 "$(lab_address "$1" "$2")"
    assert_answer "$1" "$(lab_address node1 "$2" eth1)" 9090 node1 "$(lab_address "$1" "$2")"
  }
  each to_the_node
}

@test "the pod's own connections into net1's network go straight out by net1" {
  into_the_network() {
    leaves_by "$1" net1 eth0 -- \
      assert_answer "$1" "$(lab_address client "$2")" 8080 client "$(lab_address "$1" "$2" net1)"
  }
  each into_the_network
}

@test "an unmasqueraded NodePort connection to net1's address is answered through the node, not out of net1" {
  node_port() {
    local tables=iptables address rule protocol
    address=$(lab_address "$1" "$2" net1)
    [ "$2" = 4 ] || tables=ip6tables address="[$address]"
    for protocol in tcp udp; do
      rule="PREROUTING -i eth0 -p $protocol --dport 30099 -j DNAT --to-destination $address:8080"
      # shellcheck disable=SC2086 # words
      lab_in node1 $tables -t nat -I $rule
    done
    leaves_by "$1" eth0 net1 -- \
      assert_answer client "$(lab_address node1 "$2")" 30099 "${1#*/}" "$(lab_address client "$2")"
    for protocol in tcp udp; do
      # shellcheck disable=SC2086 # words
      lab_in node1 $tables -t nat -D ${rule/-p udp/-p $protocol}
    done
  }
  each node_port
}

@test "with two further NICs each question is answered by the NIC on which it came" {
  local family
  for family in 4 6; do
    leaves_by node1/both net1 eth0 net2 -- \
      assert_answer client "$(lab_address node1/both $family net1)" 8080 both "$(lab_address client $family)"
    leaves_by node1/both net2 eth0 net1 -- \
      assert_answer client "$(lab_address node1/both $family net2)" 8080 both "$(lab_address client $family eth1)"
    # From another network the question comes through the gateway, and so must the answer.
    leaves_by node1/both net2 eth0 net1 -- \
      lab_ask client tcp "$(lab_address node1/both $family net2)" 8080 1 "$(lab_address client $family)"
    leaves_by node1/both eth0 net1 net2 -- \
      assert_answer node2/backend "$(lab_address node1/both $family)" 8080 both "$(lab_address node2/backend $family)"
    leaves_by node1/both eth0 net1 net2 -- \
      assert_answer node1/both "$(lab_cluster_ip web $family)" 80 backend "$(lab_address node1/both $family)"
    leaves_by node1/both eth0 net1 net2 -- assert_answer node1 "$(lab_address node1/both $family net2)" 8080 both ''
    assert_equal "$(rule_tables node1/both $family | cut -d' ' -f2 | sort | tr '\n' ' ')" '8500 8501 8502 '
  done
  assert_tables node1/both
}

@test "ADD twice for net1 is the same as once, and so is its answer" {
  local kind before first
  for kind in $KINDS; do
    POD=$kind
    CONFIG=$(lab_chained node1 "$kind" underlay46 net1 | jq 'del(.prevResult.routes[].table)')
    before=$(lab_snapshot "node1/$kind" | sed '/attachments/d' && node_state | sed '/attachments/d')
    coordinator ADD
    first=$lab_stdout
    coordinator ADD
    assert_same "$(jq -S . <<<"$first")" "$(jq -S . <<<"$lab_stdout")"
    assert_same "$before" "$(lab_snapshot "node1/$kind" | sed '/attachments/d' && node_state | sed '/attachments/d')"
  done
}

@test "DEL takes away all that ADD made for an overlay pod, in the pod and on the node" {
  local kind
  for kind in $KINDS; do
    sandbox "$kind"
    chained
    coordinator ADD
    [ "$NODE_BEFORE" != "$(node_state)" ]
    coordinator DEL
    assert_equal "$(lab_snapshot "node1/$POD" | grep -e 'proto 85' -e 'table inet')" ''
    coordinator DEL
    detached plain46 net1
  done
}

@test "an overlay's own routes to the cluster's CIDRs and to its own block do for ours, and stay when ADD, CHECK and DEL are over" {
  local before cidr
  sandbox flannel
  for cidr in 10.233.0.0/18 10.233.64.0/18; do lab_in "node1/$POD" ip route add $cidr via 10.233.1.1 dev eth0; done
  before=$(lab_in "node1/$POD" ip route show | sort)
  lab_network_config node1 block46 46 "$(lab_coordinator_json 46 | jq -c '.overlayPodCIDR = ["10.233.1.0/24"]')"
  lab_attach node1 "$POD" underlay46 net1
  lab_attach node1 "$POD" block46 net2
  assert_answer "node1/$POD" "$(lab_cluster_ip web 4)" 80 backend ''
  lab_cnitool node1 check underlay46 "$POD" net1
  lab_cnitool node1 check block46 "$POD" net2
  # As in a sandbox of which the overlay has forgotten one.
  lab_in "node1/$POD" ip route delete 10.233.64.0/18
  expect 1 lab_cnitool node1 check underlay46 "$POD" net1
  assert_contains "$stderr" 'missing: route 10.233.64.0/18'
  lab_in "node1/$POD" ip route add 10.233.64.0/18 via 10.233.1.1 dev eth0
  lab_cnitool node1 del block46 "$POD" net2
  lab_cnitool node1 del underlay46 "$POD" net1
  assert_same "$before" "$(lab_in "node1/$POD" ip route show | sort)"
}

@test "a further NIC whose network counts the subnet of another one to the overlay's pods is added, and that stays reached directly" {
  lab_network_config node1 counting46 46 "$(lab_coordinator_json 46 | jq -c '.overlayPodCIDR = ["10.6.0.0/16"]')" eth1
  sandbox calico
  lab_attach node1 "$POD" underlay46 net1
  lab_attach node1 "$POD" counting46 net2
  lab_cnitool node1 check underlay46 "$POD" net1
  lab_cnitool node1 check counting46 "$POD" net2
  assert_json "$(lab_in "node1/$POD" ip -json route get 10.6.0.50)" '.[0].dev' net1
}

@test "DEL leaves the overlay pod's way to Services as long as another NIC needs it, in either order" {
  local first last
  network() { [ "$1" = net1 ] && printf underlay46 || printf second46; }
  for first in net1 net2; do
    last=net$((3 - ${first#net}))
    sandbox calico
    lab_attach node1 "$POD" underlay46 net1
    lab_attach node1 "$POD" second46 net2
    lab_serve "node1/$POD" 8080
    lab_cnitool node1 del "$(network $first)" "$POD" $first
    assert_answer "node1/$POD" "$(lab_cluster_ip web 4)" 80 backend ''
    assert_answer "node1/$POD" "$(lab_cluster_ip web 6)" 80 backend ''
    expect 0 lab_ask client tcp "$(lab_address "node1/$POD" 4 $last)" 8080
    expect 0 lab_ask node1 tcp "$(lab_address "node1/$POD" 6 $last)" 8080
    lab_cnitool node1 check "$(network $last)" "$POD" $last
    detached "$(network $last)" $last
  done
}

@test "two further NICs whose networks differ have what both ask for, in either order, and DEL takes away what the other does not" {
  local first last nic
  network() { [ "$1" = net1 ] && printf apart46 || printf second46; }
  lab_network_config node1 apart46 46 "$(lab_coordinator_json 46 | jq -c '.podRPFilter = 1 | .hijackCIDR = ["198.51.100.0/24"]')"
  for first in net1 net2; do
    last=net$((3 - ${first#net}))
    sandbox calico
    lab_rp_filter "node1/$POD" 2
    POD_BEFORE=$(lab_snapshot "node1/$POD")
    lab_attach node1 "$POD" "$(network $first)" $first
    lab_attach node1 "$POD" "$(network $last)" $last
    for nic in net1 net2; do lab_cnitool node1 check "$(network $nic)" "$POD" $nic; done
    expect 0 lab_in "node1/$POD" ip -json route get 198.51.100.7
    assert_json "$output" '.[0].dev' eth0
    expect 0 lab_in "node1/$POD" ip -json route get 198.51.100.7 from "$(lab_address "node1/$POD" 4 net2)"
    assert_json "$output" '.[0].dev' net2
    lab_cnitool node1 del "$(network $first)" "$POD" $first
    lab_cnitool node1 check "$(network $last)" "$POD" $last
    assert_equal "$(lab_in "node1/$POD" ip -json route show 198.51.100.0/24 | jq length)" "$([ $last = net1 ] && echo 1 || echo 0)"
    detached "$(network $last)" $last
  done
}

# collected NETWORK: a GC of the network by which none of its attachments is valid.
collected() {
  lab_in node1 cat "/etc/cni/net.d/$1.conflist" |
    jq -c '.plugins[-1] + {name, cniVersion: "1.1.0", "cni.dev/valid-attachments": []}' >"$LAB/gc"
  lab_plugin node1 coordinator GC '' '' <"$LAB/gc"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
}

@test "GC takes away what is on the node of an overlay pod's attachment, whether the pod is there or not" {
  local kind gone
  lab_network_config node1 collected46 46 "$(lab_coordinator_json 46)"
  for kind in $KINDS; do
    for gone in '' pod; do
      sandbox "$kind"
      lab_attach node1 "$POD" collected46 net1
      [ -z "$gone" ] || lab_in node1 ip netns delete "$POD"
      collected collected46
      lab_until 5 node_is_as_before || assert_same "$NODE_BEFORE" "$(node_state)" || fail "$kind, $gone"
    done
  done
}

# A Flannel-like pod's route leads through the bridge that all pods share: with both lost, nothing tells whose it is, and
# the next ADD with its address replaces it.
@test "DEL takes away what is on the node when the network namespace has gone, or our state file, or both" {
  local kind lost
  while read -r kind lost; do
    sandbox "$kind"
    chained
    coordinator ADD
    [ "$lost" = namespace ] || lab_in node1 sh -c "rm /run/underpass/attachments/lab-$POD@net1.json"
    [ "$lost" = state ] || lab_in node1 ip netns delete "$POD"
    coordinator DEL
    lab_until 5 node_is_as_before || assert_same "$NODE_BEFORE" "$(node_state)" || fail "$kind, $lost"
  done <<'EOF2'
calico namespace
calico state
calico both
cilium namespace
cilium state
cilium both
flannel namespace
flannel state
EOF2
}

@test "DEL takes away what an ADD that was killed has made for a further NIC, also where no prevResult says its addresses" {
  local kind tools=$BATS_TEST_TMPDIR/tools tool
  mkdir "$tools"
  for tool in cni-request detect-mode sync-cidrs mk-veth set-routes set-rules cni-result; do ln -s "$(lab_libexec)/$tool" "$tools/"; done
  # shellcheck disable=SC2016 # expanded by the inner shell
  printf '#!/bin/sh\nkill -KILL $$\n' >"$tools/tune-pod"
  chmod +x "$tools/tune-pod"
  for kind in $KINDS; do
    sandbox "$kind"
    chained
    lab_plugin node1 coordinator ADD "$POD" net1 UNDERPASS_LIBEXEC="$tools" <<<"$CONFIG"
    assert_equal "$lab_status" 1
    [ "$NODE_BEFORE" != "$(node_state)" ]
    CONFIG=$(jq -c 'del(.prevResult)' <<<"$CONFIG")
    coordinator DEL
    assert_same "$NODE_BEFORE" "$(node_state)"
    assert_equal "$(lab_snapshot "node1/$POD" | grep -e 'proto 85' -e 'table inet')" ''
  done
}

@test "CHECK names any single object of an overlay pod's that is missing or altered, and ADD puts it right" {
  sandbox calico
  chained
  coordinator ADD
  CONFIG=$(jq --argjson result "$lab_stdout" '.prevResult = $result' <<<"$CONFIG")
  coordinator CHECK
  local where what change
  while IFS='|' read -r where change what; do
    [ "$where" != pod ] || where=node1/$POD
    lab_in "$where" sh -c "$change"
    lab_plugin node1 coordinator CHECK "$POD" net1 <<<"$CONFIG"
    assert_equal "$lab_status" 1 || fail "CHECK passes after: $change"
    assert_json "$lab_stdout" .code 101
    assert_contains "$lab_stdout" "$what"
    coordinator ADD
    coordinator CHECK
  done <<EOF2
pod|ip rule del pref 85|fwmark 0x1000/0x1000 lookup 8500
pod|ip -6 rule del pref 85|fwmark 0x1000/0x1000 lookup 8500
pod|ip rule del from $(lab_address "node1/$POD" 4) lookup 8500|from $(lab_address "node1/$POD" 4)/32 lookup 8500
pod|ip rule del from $(lab_address "node1/$POD" 4 net1) lookup 8501|from $(lab_address "node1/$POD" 4 net1)/32 lookup 8501
pod|ip route del default table 8500|0.0.0.0/0 via 169.254.1.1 dev eth0 table 8500
pod|ip route del default table 8501|0.0.0.0/0 via 10.6.0.1 dev net1 table 8501
pod|ip -6 route del default table 8501|::/0 via fd00:6::1 dev net1 table 8501
pod|ip route del 10.6.0.0/16 table 8501|10.6.0.0/16 dev net1
pod|ip route del 10.233.64.0/18|10.233.64.0/18 via 169.254.1.1 dev eth0
pod|ip -6 route append default via fd00:6::1 dev net1|not wanted: route ::/0 via fd00:6::1 dev net1
pod|nft delete table inet underpass|nftables table inet underpass
pod|nft flush chain inet underpass output|nftables table inet underpass
node1|ip route del table 500 $(lab_address "node1/$POD" 4 net1)|$(lab_address "node1/$POD" 4 net1)/32 via $(lab_address "node1/$POD" 4)
node1|ip -6 route del table 500 $(lab_address "node1/$POD" 6 net1)|$(lab_address "node1/$POD" 6 net1)/128 via
EOF2
}

@test "an overlay pod with one IP family is served in it, and one whose NICs differ in what both have" {
  local families
  for families in 4 6; do
    sandbox calico $families
    lab_attach node1 "$POD" underlay$families net1
    assert_answer "node1/$POD" "$(lab_cluster_ip web $families)" 80 backend ''
    lab_serve "node1/$POD" 8080 one
    leaves_by "node1/$POD" net1 eth0 -- assert_answer client "$(lab_address "node1/$POD" $families net1)" 8080 one ''
    assert_equal "$(rule_tables "node1/$POD" $((10 - families)))" ''
    lab_cnitool node1 check underlay$families "$POD" net1
    detached underlay$families net1
  done
  # eth0 has IPv4 alone, net1 both: IPv6 has nobody else's default route to give way to.
  sandbox calico 4
  lab_attach node1 "$POD" underlay46 net1
  assert_answer "node1/$POD" "$(lab_cluster_ip web 4)" 80 backend ''
  expect 0 lab_in "node1/$POD" ip -json -6 route show default
  assert_json "$output" '[.[].dev]' '["net1"]'
  lab_serve "node1/$POD" 8080 mixed
  leaves_by "node1/$POD" net1 eth0 -- assert_answer client "$(lab_address "node1/$POD" 6 net1)" 8080 mixed ''
  lab_cnitool node1 check underlay46 "$POD" net1
  detached underlay46 net1
}

@test "an overlay whose default route alone says that its gateway is on the link, as Terway's, is served through it" {
  local family
  sandbox terway
  lab_attach node1 "$POD" underlay46 net1
  for family in 4 6; do
    assert_answer "node1/$POD" "$(lab_cluster_ip web $family)" 80 backend ''
  done
  lab_cnitool node1 check underlay46 "$POD" net1
  detached underlay46 net1
}

# mtus 4|6: the MTU, if its route says one, from the test's pod to a ClusterIP, to an overlay pod of the other node, to the
# node and, from eth0's address, to the rest.
mtus() {
  local to mtus=''
  for to in "$(lab_cluster_ip web "$1")" "$(lab_address node2/backend "$1")" "$(lab_address node1 "$1")" \
    "$(lab_address client "$1") from $(lab_address "node1/$POD" "$1")"; do
    # shellcheck disable=SC2086 # words
    mtus+=" $(lab_in "node1/$POD" ip -json route get $to | jq '.[0] | [.dev, .metrics[]?.mtu]' -c)"
  done
  printf '%s\n' "${mtus# }"
}

@test "what goes through the overlay has the MTU of its default route, also where that one moves, and CHECK names another" {
  local family all='["eth0",1450] ["eth0",1450] ["eth0",1450] ["eth0",1450]'
  sandbox cilium
  chained
  CONFIG=$(jq -c '.podDefaultRouteNic = "net1"' <<<"$CONFIG")
  coordinator ADD
  CONFIG=$(jq --argjson result "$lab_stdout" '.prevResult = $result' <<<"$CONFIG")
  for family in 4 6; do
    assert_equal "$(mtus $family)" "$all"
  done
  coordinator CHECK
  lab_in "node1/$POD" ip route change 10.233.64.0/18 via 10.233.1.1 dev eth0 src "$(lab_address "node1/$POD" 4)" proto 85 mtu 1480
  lab_plugin node1 coordinator CHECK "$POD" net1 <<<"$CONFIG"
  assert_equal "$lab_status" 1
  assert_contains "$lab_stdout" '10.233.64.0/18 via 10.233.1.1 dev eth0'
  assert_contains "$lab_stdout" 'mtu 1450'
  coordinator ADD
  assert_equal "$(mtus 4)" "$all"
  coordinator DEL
  detached plain46 net1
}

@test "podDefaultRouteNic=net1 moves the default route to net1, answers stay symmetric, and DEL gives it back" {
  local family
  lab_network_config node1 owner46 46 "$(lab_coordinator_json 46 | jq -c '.podDefaultRouteNic = "net1"')"
  sandbox calico
  lab_attach node1 "$POD" owner46 net1
  lab_serve "node1/$POD" 8080 owner
  for family in 4 6; do
    expect 0 lab_in "node1/$POD" ip -json -$family route show default
    assert_json "$output" '[.[].dev]' '["net1"]'
    leaves_by "node1/$POD" net1 eth0 -- \
      assert_answer client "$(lab_address "node1/$POD" $family net1)" 8080 owner "$(lab_address client $family)"
    leaves_by "node1/$POD" eth0 net1 -- \
      assert_answer node2/backend "$(lab_address "node1/$POD" $family)" 8080 owner "$(lab_address node2/backend $family)"
    leaves_by "node1/$POD" eth0 net1 -- \
      assert_answer "node1/$POD" "$(lab_cluster_ip web $family)" 80 backend "$(lab_address "node1/$POD" $family)"
    leaves_by "node1/$POD" net1 eth0 -- \
      assert_answer "node1/$POD" "$(lab_address client $family eth1)" 8080 client "$(lab_address "node1/$POD" $family net1)"
  done
  lab_cnitool node1 check owner46 "$POD" net1
  detached owner46 net1
}

# without_default NIC: as Multus takes default routes off a NIC.
without_default() {
  local family
  for family in 4 6; do lab_in "node1/$POD" ip -$family route delete default dev "$1" 2>/dev/null || true; done
}

@test "with tunePodRoutes false CHECK of a NIC leaves all default routes as they are, also where another NIC's podDefaultRouteNic names one" {
  local config
  config=$(lab_coordinator_json 46 | jq -c '.tunePodRoutes = false')
  lab_network_config node1 untuned46 46 "$config" eth0
  lab_network_config node1 untuned-owner 46 "$(jq -c '.podDefaultRouteNic = "net2"' <<<"$config")" eth1
  sandbox calico
  lab_attach node1 "$POD" untuned46 net1
  lab_attach node1 "$POD" untuned-owner net2
  assert_json "$(lab_in "node1/$POD" ip -6 -j route show default)" '[.[].nexthops[].dev] | sort' '["eth0","net1","net2"]'
  lab_cnitool node1 check untuned46 "$POD" net1
  lab_cnitool node1 check untuned-owner "$POD" net2
}

@test "an overlay whose default route Multus has taken away, for its default-route names net1, leads to Services all the same" {
  local kind family
  for kind in $KINDS; do
    sandbox "$kind"
    without_default eth0
    lab_attach node1 "$POD" underlay46 net1
    without_default net1
    lab_in "node1/$POD" ip route add default via 10.6.0.1 dev net1
    lab_in "node1/$POD" ip -6 route add default via fd00:6::1 dev net1
    lab_serve "node1/$POD" 8080 "$POD"
    for family in 4 6; do
      leaves_by "node1/$POD" eth0 net1 -- \
        assert_answer "node1/$POD" "$(lab_cluster_ip web $family)" 80 backend "$(lab_address "node1/$POD" $family)"
      leaves_by "node1/$POD" eth0 net1 -- \
        assert_answer node2/backend "$(lab_address "node1/$POD" $family)" 8080 "$POD" "$(lab_address node2/backend $family)"
      # To an address of which only a default route knows.
      expect 0 lab_in "node1/$POD" ip route get "$(lab_address client $family)" from "$(lab_address "node1/$POD" $family)"
      assert_contains "$output" ' dev eth0 '
      leaves_by "node1/$POD" net1 eth0 -- \
        assert_answer client "$(lab_address "node1/$POD" $family net1)" 8080 "$POD" "$(lab_address client $family)"
    done
    lab_cnitool node1 check underlay46 "$POD" net1
    lab_cnitool node1 del underlay46 "$POD" net1
    expect 0 lab_in "node1/$POD" ip -json route show default
    assert_json "$output" '[.[].dev]' '["eth0"]'
    assert_same "$NODE_BEFORE" "$(node_state)"
  done
}

@test "an overlay interface that its own chain leaves alone keeps what a further one's ADD made, and both pass CHECK" {
  local left made
  sandbox calico
  chained
  left=$(jq -c '.mode = "disable" | .prevResult |= (.interfaces = [] | .ips = [] | .routes = [])' <<<"$CONFIG")
  CONFIG=$left coordinator ADD eth0
  coordinator ADD
  made=$(lab_snapshot "node1/$POD")
  CONFIG=$left coordinator ADD eth0
  assert_same "$made" "$(lab_snapshot "node1/$POD")"
  CONFIG=$left coordinator CHECK eth0
  coordinator CHECK
  coordinator DEL
  CONFIG=$left coordinator DEL eth0
  detached plain46 net1
}

@test "an overlay interface by which nothing leads out is refused, and nothing has changed" {
  sandbox calico 4
  chained
  lab_in "node1/$POD" ip route flush dev eth0
  local before
  before=$(lab_snapshot "node1/$POD")
  lab_plugin node1 coordinator ADD "$POD" net1 <<<"$CONFIG"
  assert_json "$lab_stdout" .code 7
  assert_contains "$lab_stdout" default-route
  assert_same "$before" "$(lab_snapshot "node1/$POD")"
  assert_same "$NODE_BEFORE" "$(node_state)"
}

@test "a mode that an interface cannot have is refused with what to change" {
  sandbox calico
  chained
  local config=$CONFIG
  CONFIG=$(jq '.mode = "underlay"' <<<"$config")
  lab_plugin node1 coordinator ADD "$POD" net1 <<<"$CONFIG"
  assert_json "$lab_stdout" .code 7
  assert_contains "$lab_stdout" 'set mode to auto or overlay'
  CONFIG=$(jq '.mode = "overlay" | .podDefaultCniNic = "eth9"' <<<"$config")
  lab_plugin node1 coordinator ADD "$POD" net1 <<<"$CONFIG"
  assert_json "$lab_stdout" .code 7
  assert_contains "$lab_stdout" podDefaultCniNic
  CONFIG=$(jq '.mode = "overlay"' <<<"$config")
  coordinator ADD
  assert_answer "node1/$POD" "$(lab_cluster_ip web 4)" 80 backend ''
}

@test "an eth0 that is no overlay's is refused, and nothing has changed" {
  local before mode
  POD=mistaken
  lab_pod node1 $POD plain46
  lab_attach node1 $POD plain46 net1
  before=$(lab_snapshot node1/$POD)
  for mode in auto overlay; do
    lab_plugin node1 coordinator ADD $POD net1 < <(lab_chained node1 $POD underlay46 net1 | jq -c ".mode = \"$mode\"")
    assert_json "$lab_stdout" .code 7
    assert_contains "$lab_stdout" 'first interface eth0 is a macvlan'
    assert_same "$before" "$(lab_snapshot node1/$POD)"
  done
  lab_pod_delete node1 $POD plain46
}

# strange POD ADDRESS...: a sandbox with an eth0 of which no link of the node's tells whether an overlay has it, as of a virtual function.
strange() {
  local pod=$1 address family
  shift
  if [ ! -e "$LAB/host/node1/pod/$pod" ]; then
    lab_sandbox node1 "$pod"
    lab_in "node1/$pod" ip link add eth0 type bridge
  fi
  lab_in "node1/$pod" ip link set eth0 up
  for address; do
    [[ $address == *:* ]] && family=6 || family=4
    lab_in "node1/$pod" ip -$family address add "$address" dev eth0
    lab_in "node1/$pod" ip -$family route add default via "$([ $family = 4 ] && echo "${address%.*.*}.0.1" || echo "${address%::*}::1")"
  done
  lab_attach node1 "$pod" plain46 net1
}

@test "an eth0 that does not say whether it is an overlay's is none where the node reaches it as other hosts, if the configuration does not say otherwise" {
  local before mode
  POD=virtual
  strange $POD 10.6.77.7/16 fd00:6::77:7/64
  before=$(lab_snapshot node1/$POD)
  CONFIG=$(lab_chained node1 $POD underlay46 net1)
  lab_plugin node1 coordinator ADD $POD net1 <<<"$CONFIG"
  assert_json "$lab_stdout" .code 7
  assert_contains "$lab_stdout" "behind the node's eth0"
  assert_same "$before" "$(lab_snapshot node1/$POD)"
  CONFIG=$(jq -c '.mode = "overlay"' <<<"$CONFIG")
  coordinator ADD
  coordinator DEL
  lab_pod_delete node1 $POD plain46 net1
}

@test "a pair's other end is not taken for one on the node of another pair, whose ends have the same indices in other namespaces" {
  POD=crossed
  lab_in node1 ip netns add beyond
  lab_sandbox node1 $POD
  lab_in node1/$POD ip link add eth0 index 7001 type veth peer name one index 7002 netns beyond
  lab_in node1 ip link add other0 index 7002 type veth peer name two index 7001 netns beyond
  lab_in node1 ip -netns beyond link set one up
  strange $POD 10.6.77.8/16
  CONFIG=$(lab_chained node1 $POD underlay46 net1)
  lab_plugin node1 coordinator ADD $POD net1 <<<"$CONFIG"
  assert_json "$lab_stdout" .code 7
  assert_contains "$lab_stdout" "behind the node's eth0"
  lab_pod_delete node1 $POD plain46 net1
  lab_in node1 ip netns delete beyond
}

# offloaded POD: the same in an overlay that the node reaches by ovn0.
offloaded() {
  lab_in node1 ip link add ovn0 type veth peer name ovn1
  lab_in node1 ip link set ovn1 up
  lab_in node1 ip link set ovn0 up
  lab_in node1 ip address add 10.233.60.2/24 dev ovn0
  strange "$1" 10.233.60.7/16
}

@test "an eth0 that the node reaches in an overlay is the overlay's, whatever it is" {
  POD=offloaded
  offloaded $POD
  CONFIG=$(lab_chained node1 $POD underlay46 net1)
  coordinator ADD
  assert_json "$(lab_in node1 cat "/run/underpass/attachments/lab-$POD@net1.json")" .mode.mode overlay
  coordinator DEL
  lab_pod_delete node1 $POD plain46 net1
  lab_in node1 ip link delete ovn0
}

# twice_served NETWORK: DEL of one of the pod's net1 and net2, which are there, leaves the other its way to Services; DEL of both leaves nothing.
twice_served() {
  local first last nic
  NODE_BEFORE=$(node_state)
  on() { CONFIG=$(lab_chained node1 "$POD" "$network" "$2") coordinator "$1" "$2"; }
  local network=$1
  for first in net1 net2; do
    last=net$((3 - ${first#net}))
    for nic in net1 net2; do on ADD $nic; done
    on DEL $first
    on CHECK $last
    on DEL $last
    assert_equal "$(lab_snapshot "node1/$POD" | grep -e 'proto 85' -e 'table inet')" ''
    assert_same "$NODE_BEFORE" "$(node_state)"
  done
}

@test "DEL leaves the pod's way to Services to another NIC also where the node has no route to the pod by the overlay, as to a virtual function" {
  POD=functional
  offloaded $POD
  lab_attach node1 $POD plain46 net2
  twice_served underlay46
  lab_in node1 ip netns delete $POD
  lab_in node1 ip link delete ovn0
}

@test "DEL leaves the pod's way to Services to another NIC also where both have a family alone that the overlay has not" {
  lab_network_config node1 six6 6 "$(lab_coordinator_json 46)"
  sandbox calico 4
  lab_attach node1 "$POD" plain6 net1
  lab_attach node1 "$POD" plain6 net2
  twice_served six6
}

@test "a pod to which no route of the node leads needs no rule there, and passes CHECK when the last pod that did has gone" {
  local before
  before=$(lab_in node2 ip -6 rule show)
  lab_network_config node2 six6 6 "$(lab_coordinator_json 46)"
  lab_overlay_pod node2 led-nowhere calico 4
  lab_attach node2 led-nowhere six6 net1
  assert_same "$before" "$(lab_in node2 ip -6 rule show)"
  lab_pod node2 passing underlay46
  lab_pod_delete node2 passing underlay46
  assert_same "$before" "$(lab_in node2 ip -6 rule show)"
  lab_cnitool node2 check six6 led-nowhere net1
  lab_pod_delete node2 led-nowhere six6 net1
}

@test "an overlay pod's result is prevResult as it was; in CNI 1.1.0 the default route that moved names its table" {
  local version
  for version in 0.4.0 1.0.0 1.1.0; do
    sandbox calico
    chained
    CONFIG=$(jq --arg version $version '.cniVersion = $version' <<<"$CONFIG")
    coordinator ADD
    assert_json "$lab_stdout" '.interfaces' "$(jq -c .prevResult.interfaces <<<"$CONFIG")"
    assert_json "$lab_stdout" '.ips' "$(jq -c .prevResult.ips <<<"$CONFIG")"
    if [ $version = 1.1.0 ]; then
      assert_json "$lab_stdout" '[.routes[].table]' '[8501,8501]'
    else
      assert_json "$lab_stdout" '.routes' "$(jq -c .prevResult.routes <<<"$CONFIG")"
    fi
    CONFIG=$(jq --argjson result "$lab_stdout" '.prevResult = $result' <<<"$CONFIG")
    coordinator CHECK
    coordinator DEL
    detached plain46 net1
  done
}

@test "macvlan's own CHECK passes on an overlay pod's final result, with the distribution's plugin and with newer ones" {
  local plugins version
  plugins=$("$LAB_REPO/tests/tools/build" --where plugins) || skip 'no newer plugins: needs Go'
  for version in 0.4.0 1.0.0 1.1.0; do
    LAB_CNI_VERSION=$version lab_network_config node1 "v${version//./}n46" 46 "$(lab_coordinator_json 46)"
    [ $version != 1.1.0 ] || export LAB_CNI_PLUGINS=$plugins
    sandbox calico
    lab_attach node1 "$POD" "v${version//./}n46" net1
    lab_cnitool node1 check "v${version//./}n46" "$POD" net1
    detached "v${version//./}n46" net1
  done
}

@test "a pod whose gateway is one of the node's own addresses, as with Flannel, gets its further interface over both families" {
  lab_overlay_pod node1 bridged flannel
  lab_attach node1 bridged underlay46 net1
  local gateway
  gateway=$(lab_in node1/bridged ip -json -6 route show default | jq -r '[.. | .gateway? // empty][0]')
  assert_equal "$(lab_in node1/bridged ip -6 route show table all "$gateway/128")" ''
}
