# Numbers that others use too: routing tables, marks and the places of rules, in the pod and on the node.

# shellcheck disable=SC2154 # lab_status and lab_stdout are set by lab_plugin
load helpers

setup_file() {
  suite_lab 2 || return 0
  lab_network 7 eth1
  lab_network_config node1 second46 46 "$(lab_coordinator_json 46)" eth1
  lab_network_config node1 behind46 46 '' eth1
  lab_in node1 sh -c 'jq ".name = \"sbr46\" | .plugins += [{type: \"sbr\"}]" /etc/cni/net.d/behind46.conflist >/run/sbr && cp /run/sbr /etc/cni/net.d/sbr46.conflist'
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080
  lab_service web 80:8080 node2/backend
  lab_masquerade all
  lab_serve client 8080
  lab_snapshot node1 >"$LAB/node.clean"
}

setup() {
  own_pod
  PREFER=.
}

teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  lab_plugin node1 coordinator DEL "$POD" net1 <<<"$CONFIG"
  lab_plugin node1 coordinator DEL "$POD" eth0 <<<"$CONFIG"
  lab_in node1 ip netns delete "$POD"
}

# call COMMAND [IFNAME]: which succeeds.
call() {
  lab_plugin node1 coordinator "$1" "$POD" "${2:-eth0}" <<<"$(jq -c "$PREFER" <<<"$CONFIG")"
  assert_equal "$lab_status" 0 || fail "$lab_stdout" "$lab_stderr"
}

# further NETWORK: a second NIC of the pod by this network, which has not our plugin, and then our plugin's ADD for it.
further() {
  lab_attach node1 "$POD" "$1" net1 2>/dev/null
  NET1=$(lab_chained node1 "$POD" second46 net1)
  lab_plugin node1 coordinator ADD "$POD" net1 <<<"$NET1"
  assert_equal "$lab_status" 0 || fail "$lab_stdout" "$lab_stderr"
}

# ours WHERE 4|6: priority, mark and table of each rule of ours.
ours() {
  lab_in "$1" ip "-$2" -json rule show | jq -r '.[] | select(.protocol == "85") | "\(.priority) \(.fwmark // "-") \(.table)"'
}

# serves: the pod is reached by its node and by the data centre, and reaches a Service, in both families.
serves() {
  local family address
  for family in 4 6; do
    address=$(lab_address "node1/$POD" $family)
    assert_answer node1 "$address" 8080 "$POD" ''
    assert_answer client "$address" 8080 "$POD" ''
    assert_answer "node1/$POD" "$(lab_cluster_ip web $family)" 80 backend ''
  done
}

ambient() {
  lab_in "node1/$POD" "$LAB_REPO/tests/fixtures/istio/ambient" pod
}

# from_mesh ADDRESS PORT SOURCE: what ztunnel does with a connection that it has taken over: one to the pod from the
# client's own address, with its mark.
from_mesh() {
  lab_in "node1/$POD" timeout 5 /usr/bin/python3 - "$@" <<'PYTHON'
import socket, sys
address, port, source = sys.argv[1:]
made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
made.settimeout(2)
made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x539)
made.setsockopt(*((socket.IPPROTO_IPV6, 75) if ":" in address else (socket.IPPROTO_IP, 19)), 1)  # IPV6_TRANSPARENT, IP_TRANSPARENT
made.bind((source, 0))
made.connect((address, int(port)))
print(made.recv(100).decode().strip())
PYTHON
}

# assert_mesh: what Istio's ambient mode needs of the pod's network, in both families.
assert_mesh() {
  local family address where
  for family in 4 6; do
    address=$(lab_address "node1/$POD" $family)
    # A probe: the node gives it an address by which the mesh lets it pass.
    expect 0 lab_ask node1 tcp "$address" 8080
    assert_equal "$output" "$POD $([ $family = 4 ] && printf 169.254.7.127 || printf fd16:9254:7127:1337:ffff:ffff:ffff:ffff)"
    # Every other connection is the mesh's, and its answer gets back to who asked; so does an answer over UDP.
    expect 0 lab_ask client tcp "$address" 8080
    assert_equal "${output% *}" mesh
    for where in node1 client; do
      expect 0 lab_ask "$where" udp "$address" 8080
      assert_equal "${output% *}" "$POD"
    done
    expect 0 from_mesh "$address" 8080 "$(lab_address client $family)"
    assert_equal "$output" "$POD $(lab_address client $family)"
    # The pod's own: TCP is the mesh's, UDP goes to the Service.
    expect 0 lab_ask "node1/$POD" tcp "$(lab_cluster_ip web $family)" 80
    assert_equal "${output% *}" outbound
    expect 0 lab_ask "node1/$POD" udp "$(lab_cluster_ip web $family)" 80
    assert_equal "${output% *}" backend
  done
}

@test "Istio's ambient mode and ours leave each other's way alone in a pod, whichever comes first" {
  local order before
  lab_serve "node1/$POD" 8080
  lab_serve "node1/$POD" 15006 mesh
  lab_serve "node1/$POD" 15001 outbound
  lab_in node1 "$LAB_REPO/tests/fixtures/istio/ambient" node "$P4" "$P6"
  for order in before after; do
    [ "$order" = after ] || ambient
    before=$(lab_in "node1/$POD" sh -c 'ip rule; ip -6 rule; ip route show table 100; ip -6 route show table 100')
    call ADD
    [ "$order" = before ] || ambient
    assert_mesh
    call CHECK
    call DEL
    [ "$order" = after ] || assert_same "$before" "$(lab_in "node1/$POD" sh -c 'ip rule; ip -6 rule; ip route show table 100; ip -6 route show table 100')"
    if [ "$order" = before ]; then
      lab_in "node1/$POD" sh -c 'ip rule del pref 32764; ip -6 rule del pref 32764; ip route flush table 100; ip -6 route flush table 100
        iptables-save | grep -v ISTIO | iptables-restore; ip6tables-save | grep -v ISTIO | ip6tables-restore'
    fi
  done
}

@test "a table, a mark and a place that somebody uses in the pod are his, whatever he uses them for" {
  local used table mark first
  lab_serve "node1/$POD" 8080
  while IFS='|' read -r used table mark first; do
    lab_in "node1/$POD" sh -c "$used"
    POD_BEFORE=$(lab_snapshot "node1/$POD")
    call ADD
    assert_equal "$(ours "node1/$POD" 4)" "$first $mark $table" || fail "$used"
    serves
    call CHECK
    call DEL
    assert_same "$POD_BEFORE" "$(lab_snapshot "node1/$POD")" || fail "$used"
    # shellcheck disable=SC2016 # expanded by the inner shell
    lab_in "node1/$POD" sh -c 'for f in 4 6; do for p in 50 70 85 2000; do ip -$f rule del pref $p; done; ip -$f route flush table 8500; done' 2>/dev/null || :
  done <<'EOF'
:|8500|0x1000|85
ip route add 192.0.2.0/24 dev eth0 table 8500|8501|0x1000|85
ip route add local default dev lo table 8500|8501|0x1000|85
ip -6 route add default via fd00:6::1 table 8500|8501|0x1000|85
ip route add blackhole 192.0.2.0/24 table 8500|8501|0x1000|85
ip rule add pref 2000 fwmark 9/0xff lookup 8500|8501|0x1000|85
ip rule add pref 2000 fwmark 0x1000/0x3000 lookup 77|8500|0x1|85
ip rule add pref 50 lookup 77|8500|0x1000|48
ip rule add pref 70 from 10.6.0.0/16 lookup main|8500|0x1000|68
ip rule add pref 70 not fwmark 0xca6c lookup 77|8500|0x1000|68
ip rule add pref 70 fwmark 0x200/0xf00 lookup 77|8500|0x1000|85
ip rule add pref 85 fwmark 0x200/0xf00 lookup 77|8500|0x1000|83
EOF
}

@test "each number begins where its setting says" {
  lab_serve "node1/$POD" 8080
  PREFER='.podRuleTable = 700 | .hostRuleTable = 600 | .rulePriority = 30 | .podMark = "0x40000000"'
  call ADD
  assert_equal "$(ours "node1/$POD" 4)" '30 0x40000000 700'
  assert_contains "$(ours node1 4)" '30 - 600'
  serves
  call CHECK
}

@test "on the node a rule that would get ahead of ours does not, whether it was there before or comes between two ADDs" {
  local rule
  lab_serve "node1/$POD" 8080
  while read -r rule; do
    lab_in node1 sh -c "ip rule add $rule; ip -6 rule add ${rule//10.6.0.0\/16/fd00:6::/64}"
    call ADD
    assert_equal "$(ours node1 4 | wc -l)" 1 || fail "$rule"
    assert_equal "$(ours node1 6 | wc -l)" 1 || fail "$rule"
    printf '%s:\n' "$rule"
    serves
    call CHECK
    lab_in node1 sh -c "ip rule del $rule; ip -6 rule del ${rule//10.6.0.0\/16/fd00:6::/64}"
  done <<'EOF'
pref 100 lookup main
pref 80 lookup main
pref 60 from 10.6.0.0/16 lookup main
pref 50 to 10.6.0.0/16 lookup main
lookup main
pref 40 not fwmark 0xca6c lookup main
EOF
}

@test "a table of the node that somebody uses is not taken, and one that pods have is used again" {
  local family
  lab_serve "node1/$POD" 8080
  PREFER='.hostRuleTable = 610'
  lab_in node1 ip route add default via 10.6.0.1 table 610
  lab_in node1 ip -6 rule add pref 9000 lookup 611
  call ADD
  for family in 4 6; do
    assert_contains "$(ours node1 $family)" ' - 612'
    assert_contains "$(lab_in node1 "ip" "-$family" route show table 612)" "$(lab_address "node1/$POD" $family)"
  done
  serves
  lab_in node1 ip route flush table 610
  call ADD
  call CHECK
  call DEL
  lab_in node1 ip -6 rule del pref 9000
}

@test "the sbr plugin before ours keeps its table, and a further interface is answered by the way of the question" {
  local family
  lab_serve "node1/$POD" 8080
  call ADD
  further sbr46
  for family in 4 6; do
    # sbr's rule has no priority of its own: the kernel puts it before all others.
    [ "$(lab_in "node1/$POD" ip "-$family" -json rule show | jq '[.[] | select(.protocol != "85" and .src != "all").priority][0]')" -gt \
      "$(ours "node1/$POD" $family | sed -n '1s/ .*//p')" ] || fail "$(lab_in "node1/$POD" ip "-$family" rule)"
    assert_equal "$(lab_in "node1/$POD" ip "-$family" route show table all default dev net1 | grep -cE "table 10[01] ")" 1
    leaves_by "node1/$POD" veth0 net1 -- assert_answer node1 "$(lab_address "node1/$POD" $family net1)" 8080 "$POD" ''
    leaves_by "node1/$POD" net1 veth0 -- assert_answer client "$(lab_address "node1/$POD" $family net1)" 8080 "$POD" ''
  done
  serves
  call CHECK
}

# first_version: makes of the pod what the first version of the tools would have made, which noted no numbers.
first_version() {
  PREFER='.podRuleTable = 100 | .rulePriority = 1000'
  call ADD
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "node1/$POD" sh -c 'for f in 4 6; do ip -$f rule del pref 1000; ip -$f rule add pref 1000 fwmark 1 lookup 100 protocol 85; done
    nft -f -' <<'NFT'
delete table inet underpass
add table inet underpass
add chain inet underpass prerouting { type filter hook prerouting priority mangle; }
add chain inet underpass output { type route hook output priority mangle; }
add rule inet underpass prerouting iifname veth0 ct state new ct mark set 1
add rule inet underpass prerouting ct direction reply ct mark 1 meta mark set 1
add rule inet underpass output ct direction reply ct mark 1 meta mark set 1
NFT
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'for f in 4 6; do ip -$f rule del pref 1000 2>/dev/null; ip -$f rule del protocol 85; ip -$f rule add pref 1000 lookup 500 protocol 85; done
    cd /run/underpass/attachments && jq -c "del(.numbers, .places) | .settings |= del(.podRuleTable, .rulePriority, .podMark)
      | .applied |= map(select(tostring | test(\"rule|marks\") | not))" "$0@eth0.json" >/run/saved && cp /run/saved "$0@eth0.json"' "lab-$POD"
  PREFER=.
}

@test "a pod of the version before keeps its numbers in CHECK, a second ADD and a further interface, and DEL removes them" {
  local family before
  lab_serve "node1/$POD" 8080
  before=$(lab_snapshot "node1/$POD")
  first_version
  serves
  before_numbers=$(lab_snapshot "node1/$POD")
  call CHECK
  call ADD
  assert_same "$before_numbers" "$(lab_snapshot "node1/$POD")"
  further behind46
  for family in 4 6; do
    assert_equal "$(ours "node1/$POD" $family | head -n 1)" '1000 0x1 100'
    assert_contains "$(ours node1 $family)" '1000 - 500'
    leaves_by "node1/$POD" veth0 net1 -- assert_answer node1 "$(lab_address "node1/$POD" $family net1)" 8080 "$POD" ''
  done
  serves
  call CHECK
  lab_plugin node1 coordinator DEL "$POD" net1 <<<"$NET1"
  lab_cnitool node1 del behind46 "$POD" net1
  call DEL
  assert_same "$before" "$(lab_snapshot "node1/$POD")"
}

@test "DEL finds the pod's numbers in the kernel when its document is lost, ours and the version before's" {
  local before kind
  before=$(lab_snapshot "node1/$POD")
  for kind in first_version 'call ADD' ; do
    $kind
    lab_in node1 rm "/run/underpass/attachments/lab-$POD@eth0.json"
    call DEL
    assert_same "$(grep -v rp_filter <<<"$before")" "$(lab_snapshot "node1/$POD" | grep -v rp_filter)"
  done
}
