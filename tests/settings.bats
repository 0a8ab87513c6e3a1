# Every setting of the plugin configuration: what it does in the kernel or on the wire, and what happens without it.

load helpers

setup_file() {
  suite_lab || return 0
  lab_network 7 eth1
  lab_network_config node1 second46 46 "$(lab_coordinator_json 46)" eth1
  lab_network_config node1 behind46 46 '' eth1
  lab_snapshot node1 >"$LAB/node.clean"
}

setup() {
  own_pod
  POD_BEFORE=$(lab_snapshot "node1/$POD")
}

# The next test starts on a clean node, whatever this one did.
teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  lab_plugin node1 coordinator DEL "$POD" net1 <<<"$CONFIG"
  lab_plugin node1 coordinator DEL "$POD" eth0 <<<"$CONFIG"
  lab_in node1 ip netns delete "$POD"
  lab_in node1 rm -f /run/underpass/cluster.json
  gateway_back
  # What a test that failed leaves is not the fault of the next.
  [ -n "${BATS_TEST_COMPLETED-}" ] || lab_snapshot node1 >"$LAB/node.clean"
  assert_same "$(cat "$LAB/node.clean")" "$(lab_snapshot node1)"
}

# gateway_back: the gateway has the addresses that it had.
gateway_back() {
  lab_in gateway ip address replace 10.6.0.1/16 dev net6
  lab_in gateway ip address replace fd00:6::1/64 dev net6 nodad
}

# coordinator COMMAND FILTER [IFNAME]: one call with the configuration, changed by jq from here on; leaves lab_status and lab_stdout.
coordinator() {
  CONFIG=$(jq -c "$2" <<<"$CONFIG")
  lab_plugin node1 coordinator "$1" "$POD" "${3:-eth0}" <<<"$CONFIG"
}

# added FILTER: ADD, which succeeds.
added() {
  coordinator ADD "$1"
  assert_equal "$lab_status" 0 || fail "$lab_stdout" "$lab_stderr"
}

# further [FILTER]: a second NIC of the pod, behind eth1, if it is not there, and our plugin's ADD for it.
further() {
  lab_in "node1/$POD" ip link show net1 >/dev/null 2>&1 || lab_attach node1 "$POD" behind46 net1
  NET1=$(lab_chained node1 "$POD" second46 net1 | jq -c "${1:-.}")
  lab_plugin node1 coordinator ADD "$POD" net1 <<<"$NET1"
  assert_equal "$lab_status" 0 || fail "$lab_stdout" "$lab_stderr"
}

# checked IFNAME CONFIGURATION: CHECK, which passes.
checked() {
  lab_plugin node1 coordinator CHECK "$POD" "$1" <<<"$2"
  assert_equal "$lab_status" 0 || fail "$1: $lab_stdout"
}

# refused FILTER CODE PART...: ADD fails with a CNI error of this code that contains the parts, and nothing has changed.
refused() {
  local config=$CONFIG code=$2 filter=$1 part
  shift 2
  coordinator ADD "$filter"
  CONFIG=$config
  assert_equal "$lab_status" 1 || fail "accepted: $filter"
  assert_json "$lab_stdout" .code "$code"
  for part in "$@"; do assert_contains "$(jq -r '.msg + " " + .details' <<<"$lab_stdout")" "$part"; done
  assert_same "$POD_BEFORE" "$(lab_snapshot "node1/$POD")"
  assert_same "$(cat "$LAB/node.clean")" "$(lab_snapshot node1)"
}

pod_ip() {
  lab_in "node1/$POD" ip -json "$@"
}

@test "a configuration written for Spiderpool's coordinator is accepted as it is" {
  local written net
  written=$(jq -c '{cniVersion, name, type, prevResult}' <<<"$CONFIG")
  CONFIG=$(jq -c --argjson written "$written" '. + $written' <<'EOF2'
{
  "mode": "auto", "tunePodRoutes": true, "podDefaultRouteNic": "", "podDefaultCniNic": "eth0", "detectGateway": false,
  "detectIPConflict": false, "podMACPrefix": "0a:1b", "overlayPodCIDR": ["10.233.0.0/18", "fd00:233::/48"],
  "serviceCIDR": [" 10.233.64.1/18 ", "fd00:233:64::/108"], "hijackCIDR": ["169.254.20.10/32"], "hostRuleTable": 500,
  "hostRPFilter": 0, "podRPFilter": 0, "txQueueLen": 0, "vethLinkAddress": "169.254.100.1", "vethMTU": 0,
  "policyRoutes": [{"dst": "10.9.0.0/16", "gw": "10.6.0.1"}], "multusNicPrefix": "net",
  "detectOptions": {"retries": 3, "interval": "1s", "timeout": "1s"},
  "logOptions": {"logLevel": "debug", "logFile": "/run/spidernet/coordinator.log", "logMaxSize": 100, "logMaxAge": 30, "logMaxCount": 10}
}
EOF2
  )
  added .
  coordinator CHECK ".prevResult = $lab_stdout"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  for net in 169.254.20.10 10.233.64.0/18; do
    expect 0 pod_ip route show $net
    assert_json "$output" '.[0].dev' veth0
  done
  added '.serviceCIDR = [] | .overlayPodCIDR = [] | .hijackCIDR = [] | .policyRoutes = [] | .serviceCIDR = ["10.96.0.0/12"]'
  lab_in node1 rm -r /run/spidernet
}

@test "overlayPodCIDR: pods in the pod's own subnet are reached directly, and with a larger CIDR too" {
  local pods name number=0
  lab_serve client 8085
  for pods in '["10.6.0.0/16", "fd00:6::/64"]' '["10.6.50.0/24", "fd00:6::/80"]' '["10.6.0.0/15", "fd00:6::/63"]'; do
    name=own$((number += 1))
    lab_network_config node1 "$name" 46 "$(jq -nc --argjson pods "$pods" \
      '{mode: "auto", serviceCIDR: ["10.233.64.0/18", "fd00:233:64::/108"], overlayPodCIDR: $pods}')"
    lab_pod node1 "$name" "$name"
    expect 0 lab_in "node1/$name" ip -j route get 10.6.50.9
    assert_json "$output" '.[0].dev' eth0
    expect 0 lab_in "node1/$name" ip -j route get fd00:6::50
    assert_json "$output" '.[0].dev' eth0
    expect 0 lab_ask "node1/$name" tcp 10.6.0.50 8085
    expect 0 lab_cnitool node1 check "$name" "$name"
    lab_pod_delete node1 "$name" "$name"
  done
}

@test "podDefaultCniNic: the pod's first NIC may have another name" {
  lab_in "node1/$POD" ip link set eth0 name lan0
  coordinator ADD '(.prevResult.interfaces[] | select(.name == "eth0").name) = "lan0"' lan0
  assert_equal "$lab_status" 1
  assert_contains "$lab_stdout" podDefaultCniNic
  coordinator ADD '.podDefaultCniNic = "lan0"' lan0
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  expect 0 pod_ip link show veth0
  coordinator DEL . lan0
}

@test "tunePodRoutes: a further NIC's routes stay where they are when it is false" {
  added .
  further '.tunePodRoutes = false'
  assert_equal "$(rule_tables "node1/$POD" 4)$(rule_tables "node1/$POD" 6)" ''
  expect 0 pod_ip -6 route show default
  assert_json "$output" '[.[] | .dev // .nexthops[].dev] | sort' '["eth0","net1"]'
  lab_plugin node1 coordinator CHECK "$POD" net1 <<<"$NET1"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  lab_plugin node1 coordinator DEL "$POD" net1 <<<"$NET1"
  further .
  [ -n "$(rule_tables "node1/$POD" 4)" ]
}

@test "serviceCIDR and overlayPodCIDR: exactly these are routed through the node" {
  added '.serviceCIDR = ["10.96.0.0/12"] | .overlayPodCIDR = ["10.244.0.0/16", "fd00:244::/56"]'
  expect 0 pod_ip route show dev veth0
  assert_json "$output" '[.[].dst | select(. != "10.6.212.101" and . != "10.7.212.101")] | sort' '["10.244.0.0/16","10.96.0.0/12"]'
  expect 0 pod_ip -6 route show dev veth0
  assert_contains "$output" fd00:244::/56
}

# cluster_with TYPE: what the node agent tells ADD of a cluster with this podCIDRType.
cluster_with() {
  local said
  said=$(jq --arg settings "podCIDRType: $1" '.items += [{apiVersion: "v1", kind: "ConfigMap",
    metadata: {name: "underpass", namespace: "kube-system"}, data: {settings: $settings}}]' \
    "$LAB_REPO/tests/fixtures/cluster/service-cidrs-v1.json" | lab_in node1 "$(lab_libexec)/sync-cidrs" --from -)
  lab_in node1 sh -c 'mkdir -p /run/underpass && cat >/run/underpass/cluster.json' <<<"$said"
}

# through_node: the CIDRs that the pod reaches by its veth, without the node's own addresses.
through_node() {
  lab_in "node1/$POD" sh -c 'ip -4 route show table all dev veth0; ip -6 route show table all dev veth0' |
    sed -nE 's,^([0-9a-f.:]+/[0-9]+) .*,\1,p' | grep -vE '^(fe80::|ff00::)' | sort
}

@test "podCIDRType none: no route to a Service is put into the pod, and the veth with the way to the node and back stays" {
  local ours='del(.serviceCIDR, .overlayPodCIDR)'
  lab_serve node1 9092 node1
  cluster_with cluster
  added "$ours"
  [ -n "$(through_node)" ]
  coordinator DEL .
  cluster_with none
  added "$ours"
  assert_equal "$(through_node)" ''
  coordinator CHECK ".prevResult = $lab_stdout"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  expect 0 pod_ip link show veth0
  local family
  for family in 4 6; do
    assert_answer "node1/$POD" "$(lab_address node1 $family)" 9092 node1
    expect 0 lab_in node1 ping -c 1 -W 2 "$(lab_address "node1/$POD" $family)"
    expect 0 lab_in node1 ip -$family -json route get "$(lab_address "node1/$POD" $family)"
    assert_json "$output" '.[0].dev | startswith("eth")' false
  done
  # What the network's own configuration says counts.
  added '.serviceCIDR = ["10.96.0.0/12"]'
  assert_equal "$(through_node)" 10.96.0.0/12
}

@test "CHECK keeps the cluster's part of the CIDRs while nothing is known of the cluster, where the configuration has the other part" {
  lab_in node1 sh -c 'mkdir -p /run/underpass && cat >/run/underpass/cluster.json' <<<'{"settings": {}, "cidrs": {"service": [], "pod": ["10.233.0.0/18"]}}'
  added 'del(.overlayPodCIDR)'
  CONFIG=$(jq -c ".prevResult = $lab_stdout" <<<"$CONFIG")
  lab_in node1 rm /run/underpass/cluster.json
  checked eth0 "$CONFIG"
}

@test "CHECK and DEL go by the cluster's settings that ADD found, as the agent does, and CHECK by its CIDRs of today, or the last ones that it knew" {
  local pods='{"settings": {}, "cidrs": {"service": ["10.233.64.0/18"], "pod": ["10.233.0.0/18"]}}' changed
  changed='.settings = {podRPFilter: 1, linkGroup: 90, overlayMasquerade: true, txQueueLen: 7, podMACPrefix: "0a:1b", vethMTU: 1400, rulePriority: 70}'
  cluster_says() { lab_in node1 sh -c 'mkdir -p /run/underpass && cat >/run/underpass/cluster.json' <<<"$1"; }
  cluster_says "$(jq -c '.settings.podRPFilter = -1' <<<"$pods")"
  added 'del(.serviceCIDR, .overlayPodCIDR)'
  CONFIG=$(jq -c ".prevResult = $lab_stdout" <<<"$CONFIG")
  cluster_says "$(jq -c "$changed" <<<"$pods")"
  checked eth0 "$CONFIG"
  cluster_says "$(jq -c "$changed | .cidrs.service += [\"10.77.0.0/16\"]" <<<"$pods")"
  coordinator CHECK .
  assert_json "$lab_stdout" .code 101
  assert_equal "$(jq -r .details <<<"$lab_stdout" | grep -vc 10.77.0.0/16)" 0
  lab_in node1 rm /run/underpass/cluster.json
  checked eth0 "$CONFIG"
  cluster_says "$pods"
  further 'del(.serviceCIDR, .overlayPodCIDR) | .podDefaultRouteNic = "net1"'
  assert_json "$(pod_ip route show default)" '[.[].dev]' '["net1"]'
  cluster_says "$(jq -c '.settings.podDefaultCniNic = "lan0"' <<<"$pods")"
  lab_plugin node1 coordinator DEL "$POD" net1 <<<"$NET1"
  assert_json "$(pod_ip route show default)" '[.[].dev]' '["eth0"]'
}

@test "hijackCIDR: addresses and CIDRs, and their packets leave by the way into the node" {
  added '.hijackCIDR = ["169.254.20.10", "198.51.100.0/24", "2001:db8::1"]'
  local address
  for address in 169.254.20.10 198.51.100.7 2001:db8::1; do
    lab_capture veth "node1/$POD" veth0 "udp port 53"
    lab_capture nic "node1/$POD" eth0 "udp port 53"
    expect 1 lab_ask "node1/$POD" udp $address 53 0.3
    assert_contains "$(lab_captured veth)" "> $address.53"
    assert_equal "$(lab_captured nic)" ''
  done
  added '.hijackCIDR = []'
  expect 0 pod_ip route get 198.51.100.7
  assert_json "$output" '.[0].dev' eth0
}

@test "hijackCIDR: the two halves of a family lead all through the node, beside the default route" {
  local family address
  added '.hijackCIDR = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]'
  checked eth0 "$CONFIG"
  for family in 4 6; do
    expect 0 pod_ip -$family route show default
    assert_json "$output" '[.[].dev]' '["eth0"]'
  done
  for address in 198.51.100.7 9.9.9.9 2001:db8::1 fd00:99::1; do
    expect 0 pod_ip route get $address
    assert_json "$output" '.[0].dev' veth0
  done
}

@test "hijackCIDR: the pod's own subnet is reached directly all the same, also where a further interface has come" {
  added '.hijackCIDR = ["10.6.0.0/16", "fd00:6::/64"]'
  checked eth0 "$CONFIG"
  further
  added '.hijackCIDR = ["10.6.0.0/16", "fd00:6::/64"]'
  checked eth0 "$CONFIG"
  expect 0 pod_ip route get 10.6.0.50
  assert_json "$output" '.[0].dev' eth0
}

@test "an address that each node has for its own pods, as node-local DNS has, is reached through the node without any setting" {
  local hijack
  # With the kernel's dummy links it would be on nodelocaldns.
  lab_in node1 ip address add 169.254.20.10/32 dev lo
  lab_serve node1 53 nodelocal
  for hijack in '[]' '["169.254.20.10"]' '["169.254.0.0/16"]'; do
    added ".hijackCIDR = $hijack"
    assert_answer "node1/$POD" 169.254.20.10 53 nodelocal "$P4"
    coordinator CHECK .
    assert_equal "$lab_status" 0 || fail "$lab_stdout"
  done
  # The rest, such as a cloud's metadata, stays where the pod's own network has it.
  added '.hijackCIDR = []'
  expect 0 pod_ip route get 169.254.169.254
  assert_json "$output" '.[0].dev' eth0
  lab_stop serve-nodelocal-53
  lab_in node1 ip address delete 169.254.20.10/32 dev lo
}

@test "policyRoutes: the interface's own routes, in the main table and in its own" {
  added '.policyRoutes = [{"dst": "10.9.0.0/16", "gw": "10.6.0.7"}, {"dst": "fd00:9::/64", "gw": "fd00:6::7"}]'
  expect 0 pod_ip route show 10.9.0.0/16
  assert_json "$output" '[.[] | [.gateway, .dev]]' '[["10.6.0.7","eth0"]]'
  expect 0 pod_ip -6 route show fd00:9::/64
  assert_json "$output" '[.[] | [.gateway, .dev]]' '[["fd00:6::7","eth0"]]'
  further '.policyRoutes = [{"dst": "10.10.0.0/16", "gw": "10.7.0.7"}]'
  expect 0 pod_ip route show table all 10.10.0.0/16
  assert_json "$output" '[.[] | [.gateway, .dev, .table]]' '[["10.7.0.7","net1","8501"],["10.7.0.7","net1",null]]'
  added '.policyRoutes = []'
  expect 0 pod_ip route show table all 10.9.0.0/16
  assert_equal "$(jq -c . <<<"$output")" '[]'
}

@test "policyRoutes: a pod without an address of a family has none of that family, and ADD and CHECK succeed" {
  local config nic number
  lab_pod node1 single plain4
  lab_attach node1 single plain4 net1
  for nic in eth0 net1; do
    [ $nic = eth0 ] && number=9 || number=19
    config=$(lab_chained node1 single underlay4 $nic | jq -c --arg number $number \
      '.policyRoutes = [{dst: "10.\($number).0.0/16", gw: "10.6.0.7"}, {dst: "fd00:\($number)::/64", gw: "fd00:6::7"}]')
    lab_plugin node1 coordinator ADD single $nic <<<"$config"
    assert_equal "$lab_status" 0 || fail "$nic: $lab_stdout"
    POD=single checked $nic "$config"
    assert_equal "$(lab_in node1/single ip -6 route show table all fd00:$number::/64)" ''
    expect 0 lab_in node1/single ip -json route show table all 10.$number.0.0/16
    assert_json "$output" 'map(.dev) | unique' "[\"$nic\"]"
  done
  for nic in net1 eth0; do lab_plugin node1 coordinator DEL single $nic <<<"$config"; done
  lab_in node1 ip netns delete single
}

@test "a further interface leaves the first one's own connections their policyRoutes and hijackCIDR, which its network has not" {
  local filter='.hijackCIDR = ["169.254.169.254"] | .policyRoutes = [{"dst": "10.9.0.0/16", "gw": "10.6.0.7"}]' net1
  for filter in "$filter" '.podDefaultRouteNic = "eth0"'; do
    added "$filter"
    further
    net1=$(lab_address "node1/$POD" 4 net1)
    expect 0 pod_ip route get 10.9.0.1 from "$P4"
    assert_json "$output" '.[0] | [.gateway, .dev]' '["10.6.0.7","eth0"]'
    expect 0 pod_ip route get 169.254.169.254 from "$P4"
    assert_json "$output" '.[0].dev' veth0
    expect 0 pod_ip route get 10.9.0.1 from "$net1"
    assert_json "$output" '.[0] | [.gateway, .dev]' '["10.7.0.1","net1"]'
    expect 0 pod_ip route get 169.254.169.254 from "$net1"
    assert_json "$output" '.[0] | [.gateway, .dev]' '["10.7.0.1","net1"]'
    checked eth0 "$CONFIG"
    checked net1 "$NET1"
  done
}

@test "with podDefaultRouteNic=net1 net1's policyRoutes stay net1's" {
  added .
  further '.podDefaultRouteNic = "net1" | .policyRoutes = [{"dst": "10.10.0.0/16", "gw": "10.7.0.7"}]'
  local table
  table=$(rule_tables "node1/$POD" 4 | sed -n "s/^$P4 //p")
  expect 0 pod_ip route show table "$table"
  [[ $output != *10.10.0.0* ]] || fail "in eth0's table: $output"
  expect 0 pod_ip route get 10.10.0.1
  assert_json "$output" '.[0] | [.gateway, .dev]' '["10.7.0.7","net1"]'
}

@test "hostRuleTable: the node's routes to its pods are in this table, 500 by default" {
  added .
  expect 0 lab_in node1 ip -json route show table 500
  assert_json "$output" '[.[].dst]' "[\"$P4\"]"
  added '.hostRuleTable = 777'
  expect 0 lab_in node1 ip -json route show table 777
  assert_json "$output" '[.[].dst]' "[\"$P4\"]"
  expect 0 lab_in node1 ip -json rule show
  assert_json "$output" '[.[] | select(.table == "500" or .table == "777").table]' '["777"]'
}

@test "podRPFilter: 0 by default, and what is asked for" {
  local value
  lab_rp_filter "node1/$POD" 2
  for value in 0 1 2; do
    added "$([ $value = 0 ] && printf . || printf '.podRPFilter = %d' $value)"
    expect 0 lab_in "node1/$POD" sh -c 'cd /proc/sys/net/ipv4/conf && cat all/rp_filter default/rp_filter eth0/rp_filter veth0/rp_filter | sort -u'
    assert_equal "$output" $value
  done
}

# effective_rp_filter: each interface, and the greater of its own value and that of all, which is the one that counts.
effective_rp_filter() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "node1/$POD" sh -c 'cd /proc/sys/net/ipv4/conf; for dev; do
    [ ! -d "$dev" ] || printf "%s %s " "$dev" "$(cat all/rp_filter "$dev/rp_filter" | sort -n | tail -n 1)"
  done' sh eth0 veth0 net1
}

@test "podRPFilter of two networks: each interface has its own's in whichever order they come, one's DEL leaves the other's, and the last one's gives back what was there" {
  local values order
  added .
  further
  lab_plugin node1 coordinator DEL "$POD" net1 <<<"$NET1"
  lab_plugin node1 coordinator DEL "$POD" eth0 <<<"$CONFIG"
  while read -r values order; do
    lab_rp_filter "node1/$POD" 2
    added ".podRPFilter = ${values%-*}"
    further ".podRPFilter = ${values#*-}"
    for _ in 1 2; do
      assert_equal "$(effective_rp_filter)" "eth0 ${values%-*} veth0 ${values%-*} net1 ${values#*-} "
      checked eth0 "$CONFIG"
      checked net1 "$NET1"
      added .
    done
    lab_plugin node1 coordinator DEL "$POD" "${order%-*}" <<<"$CONFIG"
    if [ "${order%-*}" = net1 ]; then
      checked eth0 "$CONFIG"
      [[ $(effective_rp_filter) == "eth0 ${values%-*} veth0 ${values%-*} "* ]] || fail "$values: $(effective_rp_filter)"
    else
      [[ $(effective_rp_filter) == *" net1 ${values#*-} " ]] || fail "$values: $(effective_rp_filter)"
    fi
    lab_plugin node1 coordinator DEL "$POD" "${order#*-}" <<<"$CONFIG"
    assert_equal "$(lab_in "node1/$POD" sh -c 'cd /proc/sys/net/ipv4/conf && cat all/rp_filter default/rp_filter eth0/rp_filter net1/rp_filter | sort -u')" 2
  done <<'EOF2'
1-0 net1-eth0
1-0 eth0-net1
0-1 net1-eth0
2-1 eth0-net1
0-0 net1-eth0
0-0 eth0-net1
EOF2
}

@test "txQueueLen is set on the pod's NIC and not on the node's of the same name; 0 leaves it" {
  local node before
  node=$(lab_in node1 cat /sys/class/net/eth0/tx_queue_len)
  before=$(pod_ip link show eth0 | jq .[0].txqlen)
  added '.txQueueLen = 0'
  assert_equal "$(pod_ip link show eth0 | jq .[0].txqlen)" "$before"
  added '.txQueueLen = 4321'
  assert_equal "$(pod_ip link show eth0 | jq .[0].txqlen)" 4321
  assert_equal "$(lab_in node1 cat /sys/class/net/eth0/tx_queue_len)" "$node"
  further '.txQueueLen = 1234'
  assert_equal "$(pod_ip link show net1 | jq .[0].txqlen)" 1234
  coordinator CHECK '.txQueueLen = 4322'
  assert_contains "$lab_stdout" 'txqueuelen 4321'
  coordinator DEL .
  assert_equal "$(pod_ip link show eth0 | jq .[0].txqlen)" "$before"
}

# mac_of PREFIX ADDRESS: the prefix and the last four bytes of the address.
mac_of() {
  /usr/bin/python3 -c 'import ipaddress, sys
print(":".join([sys.argv[1]] + ["%02x" % b for b in ipaddress.ip_address(sys.argv[2]).packed[-4:]]))' "$1" "$2"
}

@test "podMACPrefix: prefix and address make the MAC address, which the network is told at once" {
  local before mac seen
  before=$(pod_ip link show eth0 | jq -r .[0].address)
  mac=$(mac_of 0a:1b "$P4")
  lab_capture told client eth0 arp or icmp6
  added '.podMACPrefix = "0a:1b"'
  assert_equal "$(pod_ip link show eth0 | jq -r .[0].address)" "$mac"
  seen=$(lab_captured told)
  assert_contains "$seen" "$mac > ff:ff:ff:ff:ff:ff, ethertype ARP (0x0806), length 42: Request who-has $P4 tell $P4"
  assert_contains "$seen" "$mac > 33:33:00:00:00:01"
  assert_contains "$seen" "neighbor advertisement, tgt is $P6"
  coordinator DEL .
  assert_equal "$(pod_ip link show eth0 | jq -r .[0].address)" "$before"
}

@test "podMACPrefix: without it the MAC address stays and nobody is told; an IPv6 pod's last four bytes count" {
  local before
  before=$(pod_ip link show eth0 | jq -r .[0].address)
  lab_capture told client eth0 "arp and arp[6:2] = 1 and arp[14:4] = arp[24:4]"
  added .
  assert_equal "$(lab_captured told)" ''
  assert_equal "$(pod_ip link show eth0 | jq -r .[0].address)" "$before"
  coordinator DEL .
  added '.podMACPrefix = "0A-1B" | .prevResult.ips |= map(select(.address | contains(":")))'
  assert_equal "$(pod_ip link show eth0 | jq -r .[0].address)" "$(mac_of 0a:1b "$P6")"
}

@test "with podMACPrefix the result has the new MAC address, and macvlan's own CHECK passes on it" {
  added '.podMACPrefix = "0a:1b"'
  local result=$lab_stdout
  assert_json "$result" '.interfaces[] | select(.name == "eth0" and .sandbox).mac' "$(mac_of 0a:1b "$P4")"
  assert_json "$result" '.ips' "$(jq -c .prevResult.ips <<<"$CONFIG")"
  coordinator CHECK ".prevResult = $result"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  lab_network_config node1 prefixed46 46 "$(lab_coordinator_json 46 | jq -c '.podMACPrefix = "0a:1b"')"
  lab_pod node1 prefixed prefixed46
  lab_cnitool node1 check prefixed46 prefixed
  lab_pod_delete node1 prefixed prefixed46
}

# The link-local addresses of the pod's end of the veth pair.
veth_addresses() {
  pod_ip address show dev veth0 | jq -c '[.[].addr_info[] | select(.scope == "link") | "\(.local)/\(.prefixlen)"]'
}

@test "vethLinkAddress: the pod's end of the veth pair has it, 169.254.200.1 by default, beside an IPv6 one" {
  added .
  assert_equal "$(veth_addresses)" '["169.254.200.1/32","fe80::a9fe:c801/128"]'
  added '.vethLinkAddress = "169.254.100.1"'
  assert_equal "$(veth_addresses | jq -c sort)" '["169.254.100.1/32","fe80::a9fe:c801/128"]'
  added '.vethLinkAddress = "none"'
  assert_equal "$(veth_addresses)" '["fe80::a9fe:c801/128"]'
}

@test "linkGroup: the node's end of the veth pair is in it, and the node's nftables rules are for it" {
  added '.linkGroup = 4242'
  expect 0 lab_in node1 ip -json link show group 4242
  assert_json "$output" '[.[] | select(.ifalias // "" | startswith("underpass "))] | length' 1
  assert_contains "$(lab_in node1 nft list table inet underpass)" 'iifgroup 4242 ip daddr 10.233.0.0/18 ct state invalid notrack'
}

@test "vethMTU: the NIC's own by default, jumbo frames included, else what is asked for" {
  lab_in node1 ip link set eth0 mtu 9000
  lab_in "node1/$POD" ip link set eth0 mtu 9000
  added .
  assert_equal "$(pod_ip link show veth0 | jq .[0].mtu)" 9000
  added '.vethMTU = 1400'
  assert_equal "$(pod_ip link show veth0 | jq .[0].mtu)" 1400
  expect 0 lab_in node1 ip -json link show
  assert_json "$output" '[.[] | select(.ifalias // "" | startswith("underpass ")).mtu]' '[1400]'
  lab_in node1 ip link set eth0 mtu 1500
}

@test "vethMTU: less than IPv6 takes serves a pod of IPv4, also where the pod's NIC has no more" {
  lab_in "node1/$POD" ip link set eth0 mtu 1200
  added '.serviceCIDR = ["10.233.64.0/18"] | .overlayPodCIDR = ["10.233.0.0/18"]'
  assert_equal "$(pod_ip link show veth0 | jq .[0].mtu)" 1200
  added '.vethMTU = 68'
  assert_equal "$(pod_ip link show veth0 | jq .[0].mtu)" 68
  expect 0 lab_in node1 ping -c 1 -W 1 -s 8 "$P4"
}

@test "detectIPConflict: another host with one of the addresses fails ADD, which names its MAC address" {
  local address mac
  mac=$(lab_in client cat /sys/class/net/eth0/address)
  for address in "$P4/16" "$P6/64"; do
    lab_in client ip address add "$address" dev eth0 nodad
    refused '.detectIPConflict = true' 103 "${address%/*}" "$mac"
    # Off, which is the default, nobody asks.
    added 'del(.detectIPConflict)'
    coordinator DEL .
    lab_in client ip address delete "$address" dev eth0
  done
  added '.detectIPConflict = true'
}

@test "detectIPConflict: the node itself with one of the addresses fails ADD too, though it does not hear its own macvlan pods" {
  local address
  for address in "$P4/32" "$P6/128"; do
    lab_in node1 ip address add "$address" dev eth1 nodad
    cp "$LAB/node.clean" "$LAB/node.without"
    lab_snapshot node1 >"$LAB/node.clean"
    refused '.detectIPConflict = true' 103 "the node itself has the address ${address%/*}"
    added 'del(.detectIPConflict)'
    coordinator DEL .
    lab_in node1 ip address delete "$address" dev eth1
    mv "$LAB/node.without" "$LAB/node.clean"
  done
}

@test "detectIPConflict: a pod with two NICs on one network is not in conflict with itself" {
  added '.detectIPConflict = true'
  lab_attach node1 "$POD" plain46 net1
  lab_plugin node1 coordinator ADD "$POD" net1 < <(lab_chained node1 "$POD" underlay46 net1 | jq -c '.detectIPConflict = true')
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
}

@test "detectGateway: a gateway that does not answer fails ADD, which names it" {
  added '.detectGateway = true'
  coordinator DEL .
  lab_in gateway ip address delete 10.6.0.1/16 dev net6
  refused '.detectGateway = true' 104 10.6.0.1 'set detectGateway to false'
  # As where only a route names it.
  refused '.detectGateway = true | del(.prevResult.ips[].gateway) | .prevResult.routes = [{"dst": "0.0.0.0/0", "gw": "10.6.0.1"}]' 104 10.6.0.1
  # Off, which is the default, nobody asks.
  added 'del(.detectGateway)'
  coordinator DEL .
  # Nor for a pod that is left alone.
  added '.detectGateway = true | .mode = "disable"'
  coordinator DEL '.mode = "auto"'
  gateway_back
  lab_in gateway ip address delete fd00:6::1/64 dev net6
  refused '.detectGateway = true' 104 fd00:6::1
  gateway_back
  added '.detectGateway = true'
}

@test "detectGateway: asks from the interface's own address, over IPv6 from its link-local one, and only when no other host has it" {
  local question="(arp and src host $P4 and dst host 10.6.0.1) or (icmp6 and ip6[40] = 135 and src host fe80::7)" asked
  lab_in "node1/$POD" ip -6 address flush dev eth0 scope link
  lab_in "node1/$POD" ip address add fe80::7/64 dev eth0 nodad
  POD_BEFORE=$(lab_snapshot "node1/$POD")
  lab_capture asked gateway net6 "$question"
  added '.detectGateway = true'
  asked=$(lab_captured asked)
  assert_contains "$asked" "who-has 10.6.0.1 tell $P4"
  assert_contains "$asked" 'who has fd00:6::1'
  coordinator DEL .
  lab_in client ip address add "$P4/16" dev eth0
  lab_capture asked gateway net6 "ether src $(pod_ip link show eth0 | jq -r .[0].address) and ($question)"
  refused '.detectIPConflict = true' 103 "$P4"
  lab_in client ip address delete "$P4/16" dev eth0
  assert_equal "$(lab_captured asked)" ''
}

@test "detectIPConflict and detectGateway ask nobody on an interface without ARP, which the log says" {
  lab_in "node1/$POD" ip link set eth0 arp off
  added '.detectIPConflict = true | .detectGateway = true'
  assert_contains "$lab_stderr" 'eth0 is no Ethernet interface on which hosts ask for each other'
}

# milliseconds COMMAND...: how long it takes, in took.
milliseconds() {
  local start=${EPOCHREALTIME/./}
  "$@"
  took=$(((${EPOCHREALTIME/./} - start) / 1000))
}

@test "detectOptions: as many probes as retries say, interval apart, then timeout" {
  local took
  lab_capture probes client eth0 "arp and ether src $(pod_ip link show eth0 | jq -r .[0].address) and arp[14:4] = 0"
  milliseconds added '.detectIPConflict = true | .detectOptions = {"retries": 4, "interval": "200ms", "timeout": "500ms"}'
  [ "$took" -ge 1100 ] || fail "took $took ms"
  assert_equal "$(lab_captured probes | wc -l)" 4
}

@test "detectOptions: addresses of both families are waited for at once, and so are then gateways" {
  local took
  lab_in gateway ip address delete 10.6.0.1/16 dev net6
  lab_in gateway ip address delete fd00:6::1/64 dev net6
  milliseconds refused '.detectIPConflict = true | .detectGateway = true
    | .detectOptions = {"retries": 1, "timeout": "5s"}' 104 10.6.0.1 fd00:6::1
  [ "$took" -ge 10000 ] && [ "$took" -lt 19000 ] || fail "took $took ms"
}

@test "detectOptions: an answer ends the wait for a gateway, and a conflict ends it at once" {
  local took
  milliseconds added '.detectGateway = true | .detectOptions = {"retries": 3, "interval": "20s", "timeout": "20s"}'
  [ "$took" -lt 10000 ] || fail "took $took ms"
  coordinator DEL .
  lab_in client ip address add "$P4/16" dev eth0
  milliseconds refused '.detectIPConflict = true | .detectOptions = {"retries": 3, "interval": "20s", "timeout": "20s"}' 103 "$P4"
  lab_in client ip address delete "$P4/16" dev eth0
  [ "$took" -lt 10000 ] || fail "took $took ms"
}

@test "detectOptions: an answer that has come in time counts for a tool that had to wait for the processor until later" {
  local add
  lab_in gateway ip address delete 10.6.0.1/16 dev net6
  added '.detectGateway = true | .detectOptions = {"retries": 1, "timeout": "3s"}' >"$BATS_TEST_TMPDIR/added" 2>&1 3>&- &
  add=$!
  lab_until 10 asks
  sleep 0.5
  lab_in node1 pkill -STOP -x tune-pod
  gateway_back
  # What it says of itself, to all.
  lab_in gateway /usr/bin/python3 - net6 <<'PY'
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((sys.argv[1], 0x0806))
mac, address = wire.getsockname()[4], socket.inet_aton("10.6.0.1")
wire.send(b"\xff" * 6 + mac + bytes.fromhex("08060001080006040002") + mac + address + b"\xff" * 6 + address)
PY
  sleep 3
  lab_in node1 pkill -CONT -x tune-pod
  wait "$add" || fail "$(<"$BATS_TEST_TMPDIR/added")"
}

# asks: whether a tool listens to what the pod's network says.
asks() { lab_in "node1/$POD" sed 1d /proc/net/packet | grep -q .; }

@test "logOptions: messages go to the file, its directory is made, and the level chooses" {
  local log=/run/logs/deep/underpass.log
  added '.logOptions = {"logLevel": "debug", "logFile": "'$log'"}'
  expect 0 lab_in node1 cat $log
  assert_equal "$(jq -r .tool <<<"$output" | sort -u | grep -c -e set-routes -e set-rules -e mk-veth)" 3
  assert_equal "$(jq -r .attachment <<<"$output" | sort -u)" "lab-$POD/eth0"
  lab_in node1 rm $log
  coordinator DEL '.logOptions.logLevel = "error"'
  added '.logOptions.logLevel = "error"'
  expect 0 lab_in node1 sh -c "cat $log 2>/dev/null | grep -v '\"level\":\"error\"' || :"
  assert_equal "$output" ''
  # A log that cannot be written fails no pod.
  lab_in node1 rm -r /run/logs
  added '.logOptions = {"logFile": "/proc/nowhere/underpass.log"}'
  assert_contains "$lab_stderr" /proc/nowhere/underpass.log
}
