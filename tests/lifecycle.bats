# One underlay NIC through its life: ADD, CHECK, DEL and GC, in every order, interrupted, and with things missing. What
# counts is the kernel's state before and after, compared as text.

load helpers

setup_file() {
  suite_lab || return 0
  # The node's state before any pod, from which nothing may differ in the end.
  lab_snapshot node1 >"$LAB/node1.clean"
}

setup() {
  own_pod
  POD_BEFORE=$(lab_snapshot "node1/$POD")
}

# The next test starts on a clean node, whatever this one did.
teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  coordinator DEL
  lab_in node1 ip netns delete "$POD" 2>/dev/null || true
  # What a test that failed leaves is not the fault of the next.
  [ -n "${BATS_TEST_COMPLETED-}" ] || lab_snapshot node1 >"$LAB/node1.clean"
  assert_node_clean
}

# coordinator COMMAND [VARIABLE=VALUE...]: one call for the test's pod, with the test's configuration.
coordinator() {
  local command=$1
  shift
  lab_plugin node1 coordinator "$command" "$POD" eth0 "$@" <<<"$CONFIG"
}

# configure FILTER: changes the configuration by jq.
configure() {
  CONFIG=$(jq -c "$1" <<<"$CONFIG")
}

# succeeds COMMAND... / fails CODE COMMAND...: with the right exit status, and the answer that the specification asks for.
succeeds() {
  coordinator "$@"
  [ "$lab_status" = 0 ] || fail "$1: $lab_stdout" "$lab_stderr"
  [ "$1" = ADD ] || assert_equal "$lab_stdout" ''
}

fails() {
  local code=$1
  shift
  coordinator "$@"
  assert_equal "$lab_status" 1
  assert_json "$lab_stdout" .code "$code"
  assert_json "$lab_stdout" '(.msg | length > 0) and (.details | length > 0) and (.cniVersion | length > 0)' true
}

assert_node_clean() {
  assert_same "$(cat "$LAB/node1.clean")" "$(lab_snapshot node1)"
}

assert_pod_clean() {
  assert_same "$POD_BEFORE" "$(lab_snapshot "node1/$POD")"
}

# Node and pod reach each other, over both families.
assert_reachable() {
  local family
  for family in 4 6; do
    expect 0 lab_in node1 ping -c 1 -W 1 "$(lab_address "node1/$POD" $family)"
    expect 0 lab_in "node1/$POD" ping -c 1 -W 1 "$(lab_address node1 $family)"
  done
}

@test "DEL takes away all that ADD made, on the node and in the pod" {
  succeeds ADD
  [ "$POD_BEFORE" != "$(lab_snapshot "node1/$POD")" ]
  succeeds DEL
  assert_node_clean
  assert_pod_clean
}

@test "ADD a second time changes nothing, answers the same, and node and pod still reach each other" {
  local node pod answer
  succeeds ADD
  answer=$lab_stdout node=$(lab_snapshot node1) pod=$(lab_snapshot "node1/$POD")
  succeeds ADD
  assert_same "$answer" "$lab_stdout"
  assert_same "$node" "$(lab_snapshot node1)"
  assert_same "$pod" "$(lab_snapshot "node1/$POD")"
  assert_reachable
}

@test "the result is prevResult with both ends of the veth pair appended, as they are in the kernel" {
  local host
  succeeds ADD
  assert_json "$lab_stdout" '[.interfaces[].name] | .[0], .[2]' $'eth0\nveth0'
  assert_json "$lab_stdout" '[.interfaces[] | has("sandbox")]' '[true,false,true]'
  assert_json "$lab_stdout" '.interfaces[2].mac' "$(lab_in "node1/$POD" cat /sys/class/net/veth0/address 2>/dev/null ||
    lab_in "node1/$POD" ip -json link show veth0 | jq -r '.[0].address')"
  host=$(jq -r '.interfaces[1].name' <<<"$lab_stdout")
  assert_json "$lab_stdout" '.interfaces[1].mac' "$(lab_in node1 ip -json link show "$host" | jq -r '.[0].address')"
  assert_json "$lab_stdout" 'del(.interfaces[1,2])' "$(jq -c .prevResult <<<"$CONFIG")"
}

@test "DEL succeeds a second time, and for a container that was never added" {
  succeeds DEL
  succeeds ADD
  succeeds DEL
  succeeds DEL
  assert_node_clean
  assert_pod_clean
}

@test "DEL without prevResult takes all away" {
  succeeds ADD
  configure 'del(.prevResult)'
  succeeds DEL
  assert_node_clean
  assert_pod_clean
}

@test "DEL without our state file takes all away" {
  succeeds ADD
  lab_in node1 sh -c 'rm -r /run/underpass'
  succeeds DEL
  assert_node_clean
  assert_pod_clean
}

@test "DEL takes all away also where somebody has renamed the node's end of the pair" {
  local host
  succeeds ADD
  host=$(jq -r '.interfaces[1].name' <<<"$lab_stdout")
  lab_in node1 ip link set "$host" name other0
  [ -n "$(lab_in node1 ip route show table 500 dev other0)" ]
  succeeds DEL
  assert_node_clean
  assert_pod_clean
}

@test "DEL after the network namespace has gone takes all away from the node" {
  succeeds ADD
  lab_in node1 ip netns delete "$POD"
  succeeds DEL
  assert_node_clean
}

@test "DEL after the namespace's path has gone, while a process still holds it, takes all away from the node" {
  succeeds ADD
  lab_spawn "holder-$POD" "node1/$POD" sleep 60
  lab_in node1 ip netns delete "$POD"
  succeeds DEL
  assert_node_clean
  lab_stop "holder-$POD"
}

@test "DEL with the namespace's path gone and our state file lost, while a process holds it, takes all away from the node" {
  succeeds ADD
  lab_spawn "holder-$POD" "node1/$POD" sleep 60
  lab_in node1 ip netns delete "$POD"
  lab_in node1 rm -r /run/underpass
  succeeds DEL
  assert_node_clean
  lab_stop "holder-$POD"
}

@test "DEL without CNI_NETNS takes all away from the node" {
  succeeds ADD
  succeeds DEL CNI_NETNS=
  assert_node_clean
}

@test "DEL succeeds when CNI_NETNS is a plain file or a FIFO" {
  local file
  lab_in node1 sh -c 'touch /run/plain && mkfifo /run/fifo'
  for file in plain fifo; do
    succeeds ADD
    succeeds DEL CNI_NETNS=/run/$file
    assert_node_clean
  done
}

@test "DEL succeeds when the configuration has become invalid" {
  local change valid
  for change in '.mode = "nonsense"' '.serviceCIDR = ["10.233.64.0/99"]' '.hostRuleTable = "many"' '.prevResult = 7'; do
    succeeds ADD
    valid=$CONFIG
    configure "$change"
    succeeds DEL
    assert_node_clean
    assert_pod_clean
    CONFIG=$valid
  done
}

@test "an interface with the name of our pair's end is refused, and its DEL takes nothing from the pod" {
  local before
  succeeds ADD
  before=$(lab_snapshot "node1/$POD" && lab_snapshot node1)
  fails 7 ADD CNI_IFNAME=veth0
  assert_contains "$lab_stdout" 'give the interface another'
  assert_same "$before" "$(lab_snapshot "node1/$POD" && lab_snapshot node1)"
  # The plugin that makes such an interface fails, and the runtime asks for a DEL all the same.
  configure 'del(.prevResult)'
  succeeds DEL CNI_IFNAME=veth0
  assert_same "$before" "$(lab_snapshot "node1/$POD" && lab_snapshot node1)"
  assert_reachable
}

@test "the node's rule stays while any pod needs it, and goes with the last one" {
  succeeds ADD
  lab_pod node1 other underlay46
  succeeds DEL
  [ -n "$(lab_in node1 ip rule show pref 85)" ]
  [ -n "$(lab_in node1 ip -6 rule show pref 85)" ]
  lab_pod_delete node1 other underlay46
  assert_node_clean
}

@test "a changed hostRuleTable serves old and new pods, and leaves nothing when they go" {
  succeeds ADD
  lab_network_config node1 changed 46 "$(lab_coordinator_json 46 | jq -c '.hostRuleTable = 600')"
  lab_pod node1 changed changed
  assert_reachable
  POD=changed assert_reachable
  succeeds DEL
  POD=changed assert_reachable
  lab_pod_delete node1 changed changed
  assert_node_clean
}

@test "an ADD that finds something of another's in its way names it and takes back what it did" {
  local way undo named
  while IFS='|' read -r way undo named; do
    lab_in "node1/$POD" sh -c "$way"
    POD_BEFORE=$(lab_snapshot "node1/$POD")
    fails 100 ADD
    assert_contains "$(jq -r '.msg + .details' <<<"$lab_stdout")" "$named"
    assert_pod_clean
    assert_node_clean
    lab_in "node1/$POD" sh -c "$undo"
  done <<'EOF'
ip link add veth0 type veth peer name foreign|ip link delete veth0|veth0
ip route add 10.233.64.0/18 via 10.6.0.1|ip route delete 10.233.64.0/18|10.233.64.0/18
EOF
}

@test "another's rule beside ours, at the same preference, is left alone" {
  lab_in "node1/$POD" ip rule add pref 85 lookup 77
  lab_in node1 ip rule add pref 85 lookup 77
  POD_BEFORE=$(lab_snapshot "node1/$POD")
  succeeds ADD
  assert_reachable
  succeeds ADD
  succeeds CHECK
  succeeds DEL
  assert_pod_clean
  lab_in node1 ip rule delete pref 85
}

# A libexec directory in which tools are replaced: broken_libexec TOOL SCRIPT [TOOL SCRIPT...].
broken_libexec() {
  local directory=$BATS_TEST_TMPDIR/libexec tool
  rm -rf "$directory"
  mkdir "$directory"
  for tool in "$(lab_libexec)"/*; do [ -d "$tool" ] || ln -s "$tool" "$directory/"; done
  while [ $# -gt 0 ]; do
    rm "$directory/$1"
    [ -z "$2" ] || printf '#!/bin/sh\nreal=%s\n%s\n' "$(lab_libexec)/$1" "$2" >"$directory/$1"
    [ -z "$2" ] || chmod +x "$directory/$1"
    shift 2
  done
}

# The tools that our plugin runs, as its script names them.
tools() {
  printf '%s\n' cni-request detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod cni-result
}

@test "an ADD in which a tool is missing, dies before, or dies after its work is an error and leaves nothing" {
  local tool script
  for tool in $(tools); do
    # shellcheck disable=SC2016 # expanded by the broken tool
    for script in '' 'kill -KILL $$' '"$real" "$@" >/dev/null; kill -KILL $$' '"$real" "$@" | head -c 20; exit 1'; do
      # What the last tool has printed nobody can take back.
      [[ $tool != cni-result || $script != *head* ]] || continue
      broken_libexec "$tool" "$script"
      coordinator ADD UNDERPASS_LIBEXEC="$BATS_TEST_TMPDIR/libexec"
      assert_equal "$lab_status" 1
      assert_json "$lab_stdout" '(.code > 0) and (.msg | length > 0)' true
      coordinator DEL
      assert_equal "$lab_status" 0
      assert_node_clean
      assert_pod_clean
    done
  done
}

@test "an ADD whose answer cannot be written leaves nothing, be it a result or an error" {
  local ends
  # shellcheck disable=SC2016 # expanded by the broken tools
  for ends in '"$real" "$@"' '[ "$CNI_COMMAND" != ADD ] || exit 1; "$real" "$@"'; do
    broken_libexec tune-pod "$ends" cni-result '"$real" "$@" >/dev/full'
    coordinator ADD UNDERPASS_LIBEXEC="$BATS_TEST_TMPDIR/libexec"
    assert_equal "$lab_status" 1
    assert_equal "$lab_stdout" ''
    assert_node_clean
    assert_pod_clean
  done
}

@test "a DEL in which a tool is missing or dies is an error, and the next DEL takes the rest away" {
  local tool script
  for tool in $(tools); do
    for script in '' 'kill -KILL $$'; do
      succeeds ADD
      broken_libexec "$tool" "$script"
      coordinator DEL UNDERPASS_LIBEXEC="$BATS_TEST_TMPDIR/libexec"
      succeeds DEL
      assert_node_clean
      assert_pod_clean
    done
  done
}

@test "an ADD killed at any moment, with everything that it started, leaves nothing after DEL" {
  local try
  for try in {1..30}; do
    # From before the first tool to after the last one, 2 ms apart.
    coordinator_killed_after "0.$(printf '%03d' $((try * 2)))"
    succeeds DEL
    assert_node_clean
    assert_pod_clean
  done
  succeeds ADD
  assert_reachable
}

# timeout leads a process group of its own, and its KILL goes to all of it.
coordinator_killed_after() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 env CNI_COMMAND=ADD CNI_CONTAINERID="lab-$POD" CNI_NETNS="/run/netns/$POD" CNI_IFNAME=eth0 \
    CNI_PATH="$(lab_cni_path)" UNDERPASS_LIBEXEC="$(lab_libexec)" \
    timeout --signal KILL "$1" "$LAB/bin/coordinator" <<<"$CONFIG" >/dev/null 2>&1 || true
}

@test "CHECK passes after ADD, and fails before it and after DEL" {
  succeeds ADD
  local added=$lab_stdout
  succeeds DEL
  configure ".prevResult = $added"
  coordinator CHECK
  assert_equal "$lab_status" 1
  succeeds ADD
  succeeds CHECK
}

# A link that was made anew has another index.
without_indexes() {
  sed 's/^[0-9]*: //; s/@if[0-9]*:/:/'
}

@test "CHECK names any single object of ours that is missing or altered, and ADD puts it right" {
  local host node pod where change named
  succeeds ADD
  host=$(jq -r '.interfaces[1].name' <<<"$lab_stdout")
  node=$(lab_snapshot node1 | without_indexes) pod=$(lab_snapshot "node1/$POD" | without_indexes)
  while IFS='|' read -r where change named; do
    change=${change//HOST/$host} change=${change//POD4/$(lab_address "node1/$POD" 4)}
    change=${change//POD6/$(lab_address "node1/$POD" 6)}
    named=${named/POD4/$(lab_address "node1/$POD" 4)} named=${named/POD6/$(lab_address "node1/$POD" 6)}
    lab_in "${where/POD/$POD}" sh -c "$change"
    printf 'after: %s\n' "$change"
    fails 101 CHECK
    assert_contains "$(jq -r '.msg + .details' <<<"$lab_stdout")" "${named/HOST/$host}"
    succeeds ADD
    succeeds CHECK
    assert_same "$node" "$(lab_snapshot node1 | without_indexes)"
    assert_same "$pod" "$(lab_snapshot "node1/$POD" | without_indexes)"
  done <<'EOF'
node1/POD|ip route delete 10.233.64.0/18|10.233.64.0/18
node1/POD|ip route delete 10.233.0.0/18|10.233.0.0/18
node1/POD|ip route change 10.233.64.0/18 via 10.6.0.1 dev eth0 proto 85|10.233.64.0/18
node1/POD|ip route delete 10.6.212.101|10.6.212.101
node1/POD|ip route delete default table 8500|table 8500
node1/POD|ip -6 route delete fd00:233:64::/108|fd00:233:64::/108
node1/POD|ip -6 route delete fd00:233::/48|fd00:233::/48
node1/POD|ip -6 route delete fd00:6::101|fd00:6::101
node1/POD|ip -6 route delete default table 8500|table 8500
node1/POD|ip route replace blackhole 10.233.64.0/18 proto 85|blackhole 10.233.64.0/18
node1/POD|ip -6 route replace prohibit fd00:233:64::/108 proto 85|prohibit fd00:233:64::/108
node1/POD|ip route replace unreachable default table 8500|unreachable 0.0.0.0/0
node1|ip route replace prohibit POD4 table 500|prohibit POD4/32 table 500
node1|ip -6 route replace blackhole POD6 table 500|blackhole POD6/128 table 500
node1/POD|nft 'add table inet underpass { flags dormant; }'|nftables
node1/POD|nft 'chain inet underpass output { policy drop; }'|nftables
node1|nft 'add table inet underpass { flags dormant; }'|nftables
node1|nft 'chain inet underpass prerouting { policy drop; }'|nftables
node1/POD|ip rule delete pref 85|pref 85
node1/POD|ip -6 rule delete pref 85|pref 85
node1/POD|ip neighbour delete 10.6.212.101 dev veth0|10.6.212.101
node1/POD|ip neighbour change 10.6.212.101 dev veth0 lladdr 02:00:00:00:00:99 nud permanent|10.6.212.101
node1/POD|ip neighbour delete fd00:6::101 dev veth0|fd00:6::101
node1/POD|nft delete table inet underpass|nftables
node1/POD|nft flush chain inet underpass output|nftables
node1/POD|nft add rule inet underpass output drop|nftables
node1/POD|nft flush chain inet underpass output; nft add rule inet underpass output ct direction reply ct mark and 0x1000 == 0x1000 limit rate 1/hour meta mark set meta mark or 0x1000|nftables
node1/POD|nft flush chain inet underpass output; nft add rule inet underpass output ct direction reply ct mark and 0x1000 == 0x1000 meta mark set meta mark or 0x1000 drop|nftables
node1/POD|ip link set veth0 down|veth0
node1/POD|ip link set veth0 mtu 1400|veth0
node1/POD|ip address delete 169.254.200.1/32 dev veth0|169.254.200.1
node1/POD|ip address delete fe80::a9fe:c801/128 dev veth0|fe80::a9fe:c801
node1|ip rule delete pref 85|pref 85
node1|ip -6 rule delete pref 85|pref 85
node1|ip route delete POD4 table 500|table 500
node1|ip -6 route delete POD6 table 500|table 500
node1|ip neighbour delete POD4 dev HOST|neigh
node1|ip neighbour delete POD6 dev HOST|neigh
node1|ip link set HOST address 02:00:00:00:00:99|HOST
node1|ip link set HOST mtu 1400|HOST
node1|ip link set HOST group 0|HOST
node1|nft delete table inet underpass|notrack from group 85 to 10.233.0.0/18
node1|nft flush chain inet underpass prerouting|notrack from group 85 to fd00:233::/48
node1|nft insert rule inet underpass prerouting iifgroup 85 ip daddr 10.233.0.0/18 ct state invalid notrack drop|notrack from group 85 to 10.233.0.0/18
node1|ip link set HOST down|HOST
node1|ip link delete HOST|HOST
EOF
}

@test "macvlan's own CHECK passes on our final result, in every CNI version from 0.4.0" {
  local version
  export LAB_CNI_PLUGINS=/usr/lib/cni
  for version in 0.4.0 1.0.0 1.1.0; do
    if [ $version = 1.1.0 ]; then
      LAB_CNI_PLUGINS=$("$LAB_REPO/tests/tools/build" --where plugins) || skip 'no macvlan for cniVersion 1.1.0 without Go'
    fi
    LAB_CNI_VERSION=$version lab_network_config node1 "chain${version//./}" 46 "$(lab_coordinator_json 46)"
    lab_pod node1 chain "chain${version//./}"
    expect 0 lab_cnitool node1 check "chain${version//./}" chain
    lab_in node1/chain ip link delete veth0
    expect 1 lab_cnitool node1 check "chain${version//./}" chain
    lab_pod_delete node1 chain "chain${version//./}"
  done
}

@test "GC removes what belongs to attachments that are not in its list, of its own network alone" {
  local keep=kept gone=removed other=elsewhere
  configure '.cniVersion = "1.1.0"'
  lab_pod node1 $keep underlay46
  lab_pod node1 $gone underlay46
  lab_network_config node1 network2 46 "$(lab_coordinator_json 46)"
  lab_pod node1 $other network2
  configure ".\"cni.dev/valid-attachments\" = [{containerID: \"$(container_of $keep)\", ifname: \"eth0\"}]"
  succeeds GC
  POD=$keep assert_reachable
  POD=$other assert_reachable
  expect 1 lab_in node1/$gone ip link show veth0
  configure '."cni.dev/valid-attachments" = []'
  succeeds GC
  expect 1 lab_in node1/$keep ip link show veth0
  POD=$other assert_reachable
  lab_in node1 ip netns delete $keep
  lab_in node1 ip netns delete $gone
  lab_pod_delete node1 $other network2
}

@test "GC leaves alone the pods of networks whose long names begin like that of its own" {
  local network=macvlan-vlan100-production-europe own other
  lab_pod node1 other plain46
  own=$(jq -c --arg name $network-1 '.name = $name | .cniVersion = "1.1.0"' <<<"$CONFIG")
  other=$(lab_chained node1 other underlay46 | jq -c --arg name $network-2 '.name = $name | .cniVersion = "1.1.0"')
  CONFIG=$own succeeds ADD
  POD=other CONFIG=$other succeeds ADD
  CONFIG=$(jq -c '."cni.dev/valid-attachments" = []' <<<"$own") succeeds GC
  expect 1 lab_in "node1/$POD" ip link show veth0
  POD=other assert_reachable
  POD=other CONFIG=$other succeeds CHECK
  POD=other CONFIG=$other succeeds DEL
  lab_in node1 ip netns delete other
}

@test "GC removes what an attachment left whose state file and namespace are gone" {
  succeeds ADD
  lab_spawn "holder-$POD" "node1/$POD" sleep 60
  lab_in node1 ip netns delete "$POD"
  lab_in node1 rm -r /run/underpass
  configure '.cniVersion = "1.1.0" | ."cni.dev/valid-attachments" = []'
  succeeds GC
  assert_node_clean
  lab_stop "holder-$POD"
}

@test "ADD works on a node that has no route to the pod's address" {
  lab_in node1 ip route delete default
  lab_in node1 ip route delete 10.6.0.0/16
  coordinator ADD
  lab_in node1 ip route add 10.6.0.0/16 dev eth0 proto kernel scope link src 10.6.212.101
  lab_in node1 ip route add default via 10.6.0.1
  assert_equal "$lab_status" 0
  assert_reachable
}

@test "ADD works on a node whose route for the pod's address is one that refuses packets" {
  local type
  for type in unreachable blackhole prohibit; do
    lab_in node1 ip route replace "$type" 10.6.0.0/16
    lab_in node1 ip -6 route delete fd00:6::/64 dev eth0
    lab_in node1 ip -6 route add "$type" fd00:6::/64
    coordinator ADD
    lab_in node1 ip route replace 10.6.0.0/16 dev eth0 proto kernel scope link src 10.6.212.101
    lab_in node1 ip -6 route delete "$type" fd00:6::/64
    lab_in node1 ip -6 route add fd00:6::/64 dev eth0 proto kernel metric 256
    assert_equal "$lab_status" 0 || fail "$type: $lab_stdout"
    assert_reachable
    succeeds DEL
  done
}

@test "ADD waits for an IPv6 address that is still tentative, and names one that another host has" {
  local taken
  taken=$(lab_address client 6)
  lab_in "node1/$POD" sysctl -qw net.ipv6.conf.eth0.accept_dad=1
  # Without a gateway no plugin before ours has waited for it.
  configure '.prevResult.ips |= map(if .address | contains(":") then del(.gateway) else . end)'
  tentative "$(lab_address "node1/$POD" 6)"
  succeeds ADD
  assert_reachable
  succeeds DEL
  tentative "$taken"
  configure ".prevResult.ips |= map(if .address | contains(\":\") then .address = \"$taken/64\" else . end)"
  fails 103 ADD
  assert_json "$lab_stdout" ".msg | contains(\"$taken\")" true
}

# tentative ADDRESS: the test's pod has it in place of its IPv6 address, with duplicate address detection under way.
tentative() {
  lab_in "node1/$POD" ip -6 address flush dev eth0 scope global
  lab_in "node1/$POD" ip -6 address add "$1/64" dev eth0
  [ -n "$(lab_in "node1/$POD" ip -6 address show dev eth0 scope global tentative)" ]
}

@test "an address that another pod of the node has, as in an isolated network of the same range, is refused, and it keeps its way" {
  local twin=twin first=$POD
  succeeds ADD
  lab_sandbox node1 $twin
  lab_in node1/$twin ip link add eth0 type veth peer name nowhere
  lab_in node1/$twin ip address add "$(lab_address "node1/$POD" 4)/16" dev eth0
  lab_in node1/$twin ip address add "$(lab_address "node1/$POD" 6)/64" dev eth0 nodad
  lab_in node1/$twin ip link set nowhere up
  lab_in node1/$twin ip link set eth0 up
  POD=$twin fails 103 ADD
  assert_contains "$lab_stdout" "lab-$first/eth0"
  assert_reachable
  succeeds CHECK
  expect 1 lab_in node1/$twin ip link show veth0
  # Once it has gone without a DEL, its address is free.
  lab_in node1 ip netns delete "$first"
  POD=$twin succeeds ADD
  POD=$twin assert_reachable
  POD=$twin succeeds DEL
  lab_in node1 ip netns delete $twin
}

@test "mode disable and mode disabled pass prevResult on and do nothing" {
  local mode
  for mode in disable disabled; do
    configure ".mode = \"$mode\""
    succeeds ADD
    assert_json "$lab_stdout" . "$(jq -c .prevResult <<<"$CONFIG")"
    assert_same "$(kernel_part "$(cat "$LAB/node1.clean")")" "$(kernel_part "$(lab_snapshot node1)")"
    assert_same "$(kernel_part "$POD_BEFORE")" "$(kernel_part "$(lab_snapshot "node1/$POD")")"
    succeeds DEL
  done
}

# cidrs COUNT: as many of pods, of which no two are one.
cidrs() { jq -nc --argjson count "$1" '[range($count) | "20.\(. / 128 | floor).\(. % 128 * 2).0/24"]'; }

@test "a thousand CIDRs of pods are led through the node, CHECK finds all of them, and DEL takes them away" {
  configure ".overlayPodCIDR = $(cidrs 1024)"
  succeeds ADD
  assert_equal "$(lab_in node1 nft list table inet underpass | grep -c notrack)" 1024
  assert_equal "$(lab_in "node1/$POD" ip route show proto 85 | grep -c '^20\.')" 1024
  succeeds CHECK
  succeeds ADD
  succeeds DEL
  assert_node_clean
  assert_pod_clean
}

@test "thousands of CIDRs are led through the node, and DEL, whose document has the operations of ADD too, takes them away" {
  configure ".hijackCIDR = $(cidrs 2500)"
  succeeds ADD
  assert_equal "$(lab_in "node1/$POD" ip route show proto 85 | grep -c '^20\.')" 2500
  succeeds DEL
  assert_node_clean
  assert_pod_clean
}

@test "what the kernel refuses of the node's nftables table fails ADD, however many CIDRs of pods there are" {
  local count
  # A chain of ours that is no base chain.
  lab_in node1 nft 'add table inet underpass; add chain inet underpass prerouting'
  for count in 1 60 300; do
    configure ".overlayPodCIDR = $(cidrs $count)"
    fails 100 ADD
    assert_pod_clean
  done
  lab_in node1 nft delete table inet underpass
}

@test "an address of a pod that is left alone may be another one's" {
  local twin=twin
  configure '.mode = "disable"'
  succeeds ADD
  # What an earlier pod of that address may have left.
  lab_in node1 ip rule add pref 85 lookup 500 protocol 85
  lab_in node1 ip route add "$(lab_address "node1/$POD" 4)" dev eth0 table 500 proto 85
  lab_sandbox node1 $twin
  lab_in node1/$twin ip link add eth0 type veth peer name nowhere
  lab_in node1/$twin ip address add "$(lab_address "node1/$POD" 4)/16" dev eth0
  lab_in node1/$twin ip link set eth0 up
  configure '.mode = "auto"'
  POD=$twin succeeds ADD
  POD=$twin succeeds DEL
  lab_in node1 ip netns delete $twin
}

# A snapshot without our state files: an attachment that is left alone is known nevertheless.
kernel_part() {
  sed '/^== files/,$d' <<<"$1"
}

@test "twenty pods added and deleted at once: no failure, nothing left" {
  local number
  for number in {1..20}; do lab_pod node1 "many$number" plain46; done
  at_once ADD
  for number in {1..20}; do
    expect 0 lab_in node1 ping -c 1 -W 1 "$(lab_address "node1/many$number" 4)"
  done
  at_once DEL
  for number in {1..20}; do lab_in node1 ip netns delete "many$number"; done
}

# at_once COMMAND: our plugin for many1 to many20, all started together; all must succeed.
at_once() {
  local number pids=()
  for number in {1..20}; do
    lab_chained node1 "many$number" underlay46 >"$BATS_TEST_TMPDIR/many$number"
  done
  for number in {1..20}; do
    lab_in node1 env CNI_COMMAND="$1" CNI_CONTAINERID="lab-many$number" CNI_NETNS="/run/netns/many$number" CNI_IFNAME=eth0 \
      CNI_PATH="$(lab_cni_path)" UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB/bin/coordinator" \
      <"$BATS_TEST_TMPDIR/many$number" >"$BATS_TEST_TMPDIR/many$number.out" 2>&1 3>&- &
    pids+=($!)
  done
  for number in {1..20}; do
    wait "${pids[number - 1]}" || fail "many$number $1: $(cat "$BATS_TEST_TMPDIR/many$number.out")" || return
  done
}
