# The agent's care for running pods: whatever somebody else does to what ADD made is undone.

load helpers
load care

setup_file() {
  suite_lab || return 0
  lab_network 7 eth1
  # Without addresses of the node's: the tests give it some.
  lab_network 8 eth2
  lab_in node1 ip address flush dev eth2
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080
  lab_service echo 80:8080 node2/backend
  lab_pod node1 web underlay46
  lab_serve node1/web 8080
  agent_start
}

teardown() {
  [ -n "${BATS_TEST_COMPLETED-}${SUITE_SKIP-}" ] || [ ! -e "$LAB/pid/undoer" ] || lab_stop undoer
}

@test "any single object that ADD made, removed or altered by somebody else while the pod runs, is put right within a second" {
  altered_each web eth0
  lab_cnitool node1 check underlay46 web
  assert_answer node1/web "$(lab_cluster_ip echo 4)" 80 backend
  assert_answer node1/web "$(lab_cluster_ip echo 6)" 80 backend
  grep -q 'put right what somebody else has changed' "$LAB/log/agent"
  metric 'repairs_total{object="route"}' '[1-9][0-9]*'
  # What closes a socket for the agent leaves nothing.
  lab_until 5 no_zombies
}

no_zombies() { ! lab_in node1 pgrep --runstates Z -x keep-pods; }

@test "what a restart of systemd-networkd removes is put right within a second, and so are links that are renamed and settings" {
  local where change host
  POD=web before=$(everything web) host=$(link web)
  while IFS='|' read -r where change <&4; do altered "$where" "${change//HOST/$host}" || return; done 4<<'EOF'
node1|ip route flush table 500; ip -6 route flush table 500; ip rule delete pref 85; ip -6 rule delete pref 85
node1|ip link set HOST name other0
node1/web|ip link set veth0 name other0
node1/web|sysctl -qw net.ipv4.conf.all.rp_filter=1
node1/web|sysctl -qw net.ipv4.conf.eth0.rp_filter=1
node1/web|sysctl -qw net.ipv4.conf.veth0.rp_filter=2
EOF
  lab_cnitool node1 check underlay46 web
}

@test "what takes the place of one of ours and refuses or stops packets, a route or a table's state, gives way within a second" {
  local where change
  # shellcheck disable=SC2034 # is_as_before's
  POD=web before=$(everything web)
  while IFS='|' read -r where change <&4; do altered "$where" "$change" || return; done 4<<EOF
node1/web|ip route replace blackhole 10.233.64.0/18
node1/web|ip -6 route replace prohibit fd00:233:64::/108
node1/web|ip route replace unreachable default table 8500
node1/web|ip route replace 10.233.64.0/18 via 10.6.0.1 proto bird
node1|ip route replace unreachable $(lab_address node1/web 4) table 500
node1|ip -6 route replace blackhole $(lab_address node1/web 6) table 500
node1/web|nft 'add table inet underpass { flags dormant; }'
node1/web|nft 'chain inet underpass output { policy drop; }'
node1|nft 'add table inet underpass { flags dormant; }'
node1|nft 'chain inet underpass prerouting { policy drop; }'
EOF
  expect 0 lab_cnitool node1 check underlay46 web
}

@test "attachments whose networks differ in what they share, or are not served, leave each other alone: nothing is put right, and CHECK passes" {
  lab_network_config node1 off46 46 "$(lab_coordinator_json 46 | jq -c '.mode = "disable"')" eth1
  lab_network_config node1 own46 46 "$(lab_coordinator_json 46 | jq -c '.podRPFilter = 1 | .hijackCIDR = ["198.51.100.0/24"]
    | .podDefaultRouteNic = "eth0" | .policyRoutes = [{"dst": "10.9.0.0/16", "gw": "10.6.0.7"}]')"
  lab_network_config node1 other46 46 "$(lab_coordinator_json 46 | jq -c '.podDefaultRouteNic = "net1"')" eth1
  lab_pod node1 differing own46
  lab_attach node1 differing other46 net1
  lab_overlay_pod node1 overlaid calico
  lab_attach node1 overlaid other46 net1
  lab_attach node1 overlaid own46 net2
  lab_pod node1 partly underlay46
  lab_attach node1 partly off46 net1
  lab_until 10 metric 'attachments{state="current"}' 7
  # It looks at a pod again after it has changed something there. The first time an ADD may have been under way.
  rests differing overlaid partly
  lab_cnitool node1 check own46 differing
  lab_cnitool node1 check other46 differing net1
  lab_cnitool node1 check other46 overlaid net1
  lab_cnitool node1 check own46 overlaid net2
  lab_cnitool node1 check underlay46 partly
  lab_cnitool node1 check off46 partly net1
}

@test "attachments whose networks are on different links of the node agree on its addresses, also where only the way to one tells of them" {
  local family
  lab_in node1 ip link add br8 type bridge
  lab_in node1 ip link set eth2 master br8
  lab_in node1 ip link set br8 up
  lab_in node1 ip address add 10.8.212.101/16 dev br8
  lab_in node1 ip address add fd00:8::101/64 dev br8 nodad
  lab_network_config node1 bridged46 46 "$(lab_coordinator_json 46)" eth2
  lab_in node1 sed -i 's/"master": "eth2"/"master": "br8"/' /etc/cni/net.d/bridged46.conflist
  lab_pod node1 both underlay46
  lab_attach node1 both bridged46 net1
  lab_overlay_pod node1 between calico
  lab_attach node1 between underlay46 net1
  lab_attach node1 between bridged46 net2
  for family in 4 6; do
    lab_until 5 by both veth0 "$(lab_address node1 $family br8)"
    lab_until 5 by between eth0 "$(lab_address node1 $family br8)"
  done
  rests both between
  lab_cnitool node1 check underlay46 both
  lab_cnitool node1 check bridged46 both net1
  lab_cnitool node1 check underlay46 between net1
  lab_cnitool node1 check bridged46 between net2
  lab_cnitool node1 del bridged46 both net1
  lab_pod_delete node1 both underlay46
  lab_cnitool node1 del bridged46 between net2
  lab_cnitool node1 del underlay46 between net1
  lab_in node1 ip netns delete between
  lab_in node1 ip link delete br8
}

# by POD DEV ADDRESS: how the pod reaches it.
by() { [[ $(lab_in "node1/$1" ip route get "$3") == *" dev $2 "* ]]; }

# rests POD...: the agent looks at them again and again, and has nothing to put right.
rests() {
  local repairs
  looked_at "$@"
  repairs=$(repairs)
  looked_at "$@"
  assert_same "$repairs" "$(repairs)" || fail "$(grep 'put right' "$LAB/log/agent")" || return
  metric contests_total 0
}

@test "which of the node's addresses comes first is the same for ADD and for the agent, whether and where a network names its router" {
  local pod filter
  # The pods' network is not the node's, and another of its NICs comes before the one that leads there.
  lab_in node1 ip address add 10.99.0.101/24 dev eth2
  lab_in node1 ip address add fd00:99::101/64 dev eth2 nodad
  lab_in node1 ip route add 10.8.0.0/16 dev eth2
  lab_in node1 ip -6 route add fd00:8::/64 dev eth2
  lab_network_config node1 apart46 46 '' eth2
  while IFS='|' read -r pod filter <&4; do
    lab_pod node1 "$pod" apart46
    plugin ADD "$pod" eth0 "$filter"
    lab_attach node1 "$pod" plain46 net1
    plugin ADD "$pod" net1 .
    comes_first "$pod"
  done 4<<'EOF'
named|.
routed|del(.prevResult.ips[].gateway) | .prevResult.routes = [{dst: "0.0.0.0/0", gw: "10.8.0.1"}, {dst: "::/0", gw: "fd00:8::1"}]
silent|del(.prevResult.ips[].gateway, .prevResult.routes)
EOF
  rests named routed silent
  for pod in named routed silent; do
    comes_first $pod
    plugin CHECK $pod net1 .
    plugin DEL $pod net1 .
    plugin DEL $pod eth0 .
    lab_in node1 ip netns delete $pod
  done
  lab_in node1 ip address flush dev eth2
}

# plugin COMMAND POD IFNAME FILTER: one call of ours for a pod of lab_pod, with a changed configuration.
plugin() {
  lab_plugin node1 coordinator "$1" "$2" "$3" <<<"$(lab_chained node1 "$2" underlay46 "$3" | jq -c "$4")"
  [ "$lab_status" = 0 ] || fail "$lab_stdout" "$lab_stderr"
}

# comes_first POD: the node's address on eth2 is the next hop of all CIDRs.
comes_first() {
  lab_in "node1/$1" ip route show table all 10.233.64.0/18 | grep . >"$BATS_TEST_TMPDIR/ways"
  lab_in "node1/$1" ip -6 route show table all fd00:233:64::/108 | grep . >>"$BATS_TEST_TMPDIR/ways"
  ! grep -v 'via 10.99.0.101 \|via fd00:99::101 ' "$BATS_TEST_TMPDIR/ways" || fail "$1"
}

@test "what somebody keeps undoing is left alone for longer and longer, loudly, and is put right when that has ended" {
  # shellcheck disable=SC2034 # is_as_before's
  POD=web before=$(everything web)
  lab_spawn undoer node1/web sh -c 'while :; do ip rule delete pref 85 2>/dev/null; sleep 0.05; done'
  lab_until 15 metric 'attachments{state="contested"}' 1
  grep -q 'somebody keeps undoing this; leaving it alone for 1 s: rule pref 85' "$LAB/log/agent" || fail "$(cat "$LAB/log/agent")"
  # The pod's other objects are cared for meanwhile.
  lab_in node1/web ip route delete 10.233.64.0/18
  lab_until 5 has_route web 10.233.64.0/18
  lab_until 10 grep -q 'leaving it alone for 4 s' "$LAB/log/agent"
  lab_stop undoer
  lab_until 20 is_as_before
  lab_until 20 metric 'attachments{state="contested"}' 0
  metric contests_total '[1-9][0-9]*'
}

# looked_at POD...: the agent has changed something in each of them, and looked again.
looked_at() {
  local pod
  lab_in node1 ip address add 10.6.0.98/32 dev eth0
  for pod; do lab_until 10 has_route "$pod" 10.6.0.98; done
  lab_in node1 ip address delete 10.6.0.98/32 dev eth0
  for pod; do lab_until 10 has_no_route "$pod" 10.6.0.98; done
  sleep 2
}

repairs() { lab_in node1 sed -n '/^underpass_repairs_total/p' /run/underpass/keep-pods.prom; }

has_route() { lab_in "node1/$1" ip route show table all | grep -q "^$2 "; }
has_no_route() { ! has_route "$@"; }

@test "a VIP is reached by running pods while it is on their node, after it has left, and when it has come back" {
  lab_serve node1 6443 node1
  lab_serve node2 6443 node2
  for _ in 1 2; do
    vip add node1
    lab_until 5 reaches 10.6.0.99 node1
    lab_until 5 reaches fd00:6::99 node1
    has_route web 10.6.0.99
    vip del node1
    vip add node2
    lab_until 5 reaches 10.6.0.99 node2
    lab_until 5 reaches fd00:6::99 node2
    has_no_route web 10.6.0.99
    [ -z "$(lab_in node1/web ip neighbour show 10.6.0.99 dev veth0)" ]
    expect 0 lab_cnitool node1 check underlay46 web
    vip del node2
  done
}

# vip add|del NODE: as kube-vip and keepalived do it.
vip() {
  lab_in "$2" ip address "$1" 10.6.0.99/32 dev eth0
  lab_in "$2" ip -6 address "$1" fd00:6::99/128 dev eth0 nodad 2>/dev/null || lab_in "$2" ip -6 address "$1" fd00:6::99/128 dev eth0
}

# reaches ADDRESS NODE: over TCP.
reaches() { [[ $(lab_ask node1/web tcp "$1" 6443 1) == "$2 "* ]]; }

@test "the node's own address changes: pods reach it, it reaches them, and Services work" {
  lab_serve node1 9090 node1
  lab_in node1 ip address add 10.6.212.201/16 dev eth0
  lab_in node1 ip address delete 10.6.212.101/16 dev eth0
  lab_in node1 ip address replace 10.6.212.201/16 dev eth0
  lab_in node1 ip route replace default via 10.6.0.1
  lab_until 5 has_route web 10.6.212.201
  lab_until 5 has_no_route web 10.6.212.101
  assert_answer node1/web 10.6.212.201 9090 node1
  assert_answer node1/web "$(lab_cluster_ip echo 4)" 80 backend
  assert_answer node1 "$(lab_address node1/web 4)" 8080 web
  expect 0 lab_cnitool node1 check underlay46 web
  lab_in node1 ip address add 10.6.212.101/16 dev eth0
  lab_in node1 ip address delete 10.6.212.201/16 dev eth0
  lab_in node1 ip address replace 10.6.212.101/16 dev eth0
  lab_in node1 ip route replace default via 10.6.0.1
  lab_until 5 has_route web 10.6.212.101
}

@test "when another of the node's addresses comes first, each route is there by that before it goes by the other" {
  local family
  lab_in node1 ip -6 route change fd00:6::/64 dev eth0 metric 256 src fd00:6::101
  lab_in node1 ip address add 10.6.212.201/16 dev eth0
  lab_in node1 ip address add fd00:6::201/64 dev eth0 nodad
  for family in 4 6; do lab_until 5 has_route web "$(second $family)"; done
  lab_spawn monitor node1/web ip monitor route
  lab_until 5 monitored
  lab_in node1 ip route change 10.6.0.0/16 dev eth0 src 10.6.212.201
  lab_in node1 ip -6 route change fd00:6::/64 dev eth0 metric 256 src fd00:6::201
  for family in 4 6; do lab_until 5 goes_by "$family" "$(second $family)"; done
  lab_stop monitor
  # What is told of a destination in a table first is not that it has gone.
  # shellcheck disable=SC2016 # expanded by awk
  awk '/192\.0\.2\.1/ { delete told; next }
    /^[[:space:]]/ { next }
    { gone = sub(/^Deleted /, ""); place = $1 (match($0, / table [0-9]+/) ? substr($0, RSTART, RLENGTH) : "") }
    gone && !(place in told) { print; failed = 1 }
    { told[place] }
    END { exit failed || length(told) < 6 }' "$LAB/log/monitor" || fail "$(cat "$LAB/log/monitor")"
  lab_in node1 ip -6 route change fd00:6::/64 dev eth0 metric 256
  lab_in node1 ip route change 10.6.0.0/16 dev eth0 src 10.6.212.101
  lab_in node1 ip address delete 10.6.212.201/16 dev eth0
  lab_in node1 ip address delete fd00:6::201/64 dev eth0
  lab_until 5 has_no_route web fd00:6::201
}

@test "an IPv6 route of which somebody has changed the source alone is put right in one step: the old one does not go first" {
  local route source other
  # shellcheck disable=SC2034 # is_as_before's
  POD=web
  route=$(lab_in node1/web ip -6 route show fd00:233:64::/108)
  route=${route%% pref*} source=${route#* src }
  other="${route% src *} ${source#* }"
  lab_spawn monitor node1/web ip monitor route
  lab_until 5 monitored
  before=$(everything web)
  altered node1/web "ip -6 route change $other"
  lab_stop monitor
  [ "$(grep -c '^fd00:233:64::/108' "$LAB/log/monitor")" -ge 2 ] || fail "$(cat "$LAB/log/monitor")"
  expect 1 grep '^Deleted fd00:233:64::/108' "$LAB/log/monitor"
}

# second 4|6: the address that comes to the node.
second() { [ "$1" = 4 ] && printf 10.6.212.201 || printf fd00:6::201; }

# goes_by 4|6 ADDRESS: all that web sends through the node.
goes_by() {
  local ways
  ways=$(lab_in node1/web ip "-$1" route show table all proto 85 | grep ' via ') && ! grep -v " via $2 " <<<"$ways"
}

# A route of the test's own shows that the monitor sees.
monitored() {
  lab_in node1/web ip route add 192.0.2.1 dev lo
  lab_in node1/web ip route delete 192.0.2.1 dev lo
  grep -q '192\.0\.2\.1' "$LAB/log/monitor"
}

@test "a line that is no UTF-8 is named, and does not end keep-pods" {
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 sh -c 'printf "\\377\\n{}\\n" | UNDERPASS_STATE=$1 "$0/keep-pods"' "$(lab_libexec)" "$BATS_TEST_TMPDIR"
  assert_equal "$(jq -r .msg <<<"${stderr:?}" | grep -c 'a line on standard input is not JSON')" 1
}

@test "without descriptors keep-pods says what it cannot do, and does not die of it" {
  local limit state=$BATS_TEST_TMPDIR/state
  mkdir "$state"
  lab_in node1 cp -r /run/underpass/attachments "$state"
  for limit in 4 5 6 7 8 9 10 12 14 16; do
    # shellcheck disable=SC2016 # expanded by the inner shell
    expect 0 lab_in node1 sh -c 'printf "{}\\n" | UNDERPASS_STATE=$2 prlimit --nofile="$1" "$0/keep-pods"' "$(lab_libexec)" $limit "$state"
    jq -es 'all(.msg != "")' <<<"$stderr" >/dev/null || fail "$stderr"
    [ $limit -gt 5 ] || assert_contains "$stderr" 'Too many open files'
  done
}

@test "a pod keeps the default route that it has when its further NIC goes, whichever had it" {
  local network family
  lab_network_config node1 taking46 46 "$(lab_coordinator_json 46 | jq -c '.podDefaultRouteNic = "net1"')" eth1
  lab_network_config node1 further46 46 "$(lab_coordinator_json 46)" eth1
  for network in further46 taking46; do
    lab_pod node1 "lone-$network" underlay46
    lab_attach node1 "lone-$network" $network net1
    lab_until 10 decided "lone-$network"
    lab_cnitool node1 del $network "lone-$network" net1
    # More than once: what one look does another may undo.
    looked_at "lone-$network"
    looked_at "lone-$network"
    for family in 4 6; do
      assert_equal "$(lab_in "node1/lone-$network" ip -json -$family route show default | jq -r '.[].dev')" eth0
    done
    lab_cnitool node1 check underlay46 "lone-$network"
  done
}

# decided POD: whether its first NIC's document says which default route stays.
decided() { lab_in node1 jq -e '.routing.stays != []' "/run/underpass/attachments/$(container_of "$1")@eth0.json"; }

@test "a rule that somebody puts before the node's, with which pods would not be reached, is behind it within a second" {
  local family action pref=60
  # shellcheck disable=SC2086 # several words
  for action in 'lookup main' 'goto 32766' unreachable blackhole prohibit; do
    # Ours goes to the place before this one, and the next rule before that.
    ((pref -= 2))
    for family in 4 6; do lab_in node1 ip -$family rule add pref $pref $action; done
    for family in 4 6; do lab_until 5 is_ahead $family; done
    expect 0 lab_cnitool node1 check underlay46 web
    expect 0 lab_ask node1 tcp "$(lab_address node1/web 4)" 8080
    expect 0 lab_ask node1 tcp "$(lab_address node1/web 6)" 8080
    for family in 4 6; do lab_in node1 ip -$family rule delete pref $pref; done
  done
}

# is_ahead FAMILY: whether the node's rule comes before all others but that of the local table.
is_ahead() { [[ $(lab_in node1 ip "-$1" rule show | grep -v 'lookup local' | head -1) =~ proto(col)?\ (85|underpass) ]]; }

@test "what somebody removes of a rule that has moved is put right, said and counted as at its first place" {
  local before lines
  lab_in node1 ip rule add pref 50 lookup main
  lab_until 5 is_ahead 4
  looked_at web
  before=$(rule_repairs) lines=$(grep -c 'put right.*missing: rule pref 49' "$LAB/log/agent") || true
  lab_in node1 ip rule delete pref 49
  lab_until 5 is_ahead 4
  lab_until 5 is_counted "$before"
  [ "$(grep -c 'put right.*missing: rule pref 49' "$LAB/log/agent")" -gt "$lines" ] || fail "$(tail -5 "$LAB/log/agent")"
  lab_in node1 ip rule delete pref 50
}

# shellcheck disable=SC2016 # expanded by awk
rule_repairs() { lab_in node1 awk '/^underpass_repairs_total{object="rule"}/ {n = $2} END {print n + 0}' /run/underpass/keep-pods.prom; }
is_counted() { [ "$(rule_repairs)" -gt "$1" ]; }

@test "a pod whose addresses its sandbox has taken, as gVisor does, keeps its way from the node" {
  local family before after
  lab_pod node1 stolen underlay46
  looked_at web stolen
  before=$(ways_to stolen)
  for family in 4 6; do lab_in node1/stolen ip -$family address flush dev eth0 scope global; done
  # Whatever the agent does about it, it has done when others have changed.
  looked_at web
  after=$(ways_to stolen)
  assert_same "$before" "$after"
  ! grep 'eth0 has no address yet' "$LAB/log/agent" || fail 'the agent has looked for a way without an address'
  lab_pod_delete node1 stolen underlay46
}

@test "a pod with two interfaces of which its sandbox takes one's addresses after the other's keeps the ways to both" {
  local nic family before after
  lab_network_config node1 further46 46 "$(lab_coordinator_json 46)" eth1
  lab_pod node1 stolen2 underlay46
  lab_attach node1 stolen2 further46 net1
  looked_at web stolen2
  before=$(ways_to stolen2)
  for nic in eth0 net1; do
    for family in 4 6; do lab_in node1/stolen2 ip -$family address flush dev $nic scope global; done
    looked_at web
  done
  after=$(ways_to stolen2)
  assert_same "$before" "$after"
  lab_pod_delete node1 stolen2 underlay46
}

@test "a dual-stack pod whose NIC was down and up, and so has lost its IPv6 address, is looked after as before" {
  lab_pod node1 flapping underlay46
  looked_at flapping
  lab_in node1/flapping ip link set eth0 down
  lab_in node1/flapping ip link set eth0 up
  lab_in node1/flapping ip route delete 10.233.64.0/18
  lab_until 5 has_route flapping 10.233.64.0/18
  lab_in node1/flapping ip route replace default via 10.6.0.1
  assert_answer node1/flapping "$(lab_cluster_ip echo 4)" 80 backend
  lab_pod_delete node1 flapping underlay46
}

@test "a pod whose address is replaced by another is reached at that one" {
  local old
  lab_pod node1 moving underlay4
  old=$(lab_address node1/moving 4)
  lab_in node1/moving ip address add 10.6.66.67/16 dev eth0
  lab_in node1/moving ip address delete "$old/16" dev eth0
  lab_in node1/moving ip address replace 10.6.66.67/16 dev eth0
  lab_until 5 leads_to 10.6.66.67 moving
  lab_until 5 has_no_way "$old" moving
  lab_pod_delete node1 moving underlay4
}

# has_no_way ADDRESS POD: no longer by the node's routes.
has_no_way() { ! leads_to "$@"; }

# network_of POD: its namespace without the node's files.
network_of() { lab_snapshot "node1/$1" | sed '/^== files/,$d'; }

@test "a pod whose path names another network namespace than at ADD is gone: the agent and DEL leave that one alone" {
  local before address
  lab_pod node1 reused underlay46
  address=$(lab_address node1/reused 4)
  looked_at reused
  # Its namespace stays, so that no other gets its inode.
  lab_serve node1/reused 8080
  lab_pod node1 stranger plain46
  lab_in node1/stranger ip route add 192.0.2.0/24 dev eth0 proto 85
  before=$(network_of stranger)
  lab_in node1 mount --bind /run/netns/stranger /run/netns/reused
  lab_in node1 ip route delete "$address" table 500
  looked_at web
  lab_plugin node1 coordinator CHECK reused eth0 CNI_CONTAINERID="$(container_of reused)" < <(lab_chained node1 reused underlay46)
  assert_contains "$lab_stdout" 'another network namespace'
  lab_plugin node1 coordinator DEL reused eth0 CNI_CONTAINERID="$(container_of reused)" < <(lab_chained node1 reused underlay46)
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  assert_same "$before" "$(network_of stranger)"
  lab_in node1 umount /run/netns/reused
  lab_in node1 ip netns delete reused
  lab_in node1 ip netns delete stranger
}

@test "an address that two pods have stays with the one that had it first, and the other is named, until that gives it up" {
  local shared=10.6.66.66
  lab_pod node1 first underlay46
  lab_pod node1 second underlay46
  lab_in node1/first ip address add $shared/32 dev eth0
  lab_until 5 leads_to $shared first
  lab_in node1/second ip address add $shared/32 dev eth0
  lab_until 5 grep -q "another pod of this node, $(container_of first)/eth0" "$LAB/log/agent"
  looked_at first second
  leads_to $shared first
  lab_in node1/first ip address delete $shared/32 dev eth0
  lab_until 5 leads_to $shared second
  lab_pod_delete node1 first underlay46
  lab_pod_delete node1 second underlay46
}

# leads_to ADDRESS POD: by the node's routes.
leads_to() { [[ $(lab_in node1 ip route get "$1") == *" dev $(link "$2") "* ]]; }

# ways_to POD: the node's routes to it.
ways_to() { local link; link=$(link "$1") && lab_in node1 ip route show table 500 dev "$link" && lab_in node1 ip -6 route show table 500 dev "$link"; }
