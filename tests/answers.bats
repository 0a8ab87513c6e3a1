# The node sees one half of a connection between an underlay pod and an overlay pod on another node (the other half goes
# straight over the network). It must not matter: to no protocol, to no rule for forwarded packets, to no network policy.

load helpers

setup_file() {
  suite_lab || return 0
  local node
  for node in node1 node2; do
    lab_pod "$node" under underlay46
    lab_overlay_pod "$node" over calico
    lab_serve "$node/under" 8080 "$node-under"
    lab_serve "$node/over" 8080 "$node-over"
  done
  lab_service over 80:8080 node2/over
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
}

# both_families CASE: calls CASE 4 and CASE 6.
both_families() {
  "$1" 4
  "$1" 6
}

own_addresses() {
  assert_answer node1/under "$(lab_address node2/over "$1")" 8080 node2-over "$(lab_address node1/under "$1")"
  assert_answer node1/over "$(lab_address node2/under "$1")" 8080 node2-under "$(lab_address node1/over "$1")"
}

@test "each side sees the other's own address" {
  both_families own_addresses
}

pings() {
  expect 0 lab_in node1/under ping -c 1 -W 1 "$(lab_address node2/over "$1")"
  expect 0 lab_in node1/over ping -c 1 -W 1 "$(lab_address node2/under "$1")"
}

@test "either side's ping is answered" {
  both_families pings
}

refused() {
  expect 1 lab_ask node1/under tcp "$(lab_address node2/over "$1")" 9999
  # shellcheck disable=SC2154 # set by run
  assert_contains "$stderr" refused
  expect 1 lab_ask node1/over tcp "$(lab_address node2/under "$1")" 9999
  assert_contains "$stderr" refused
  expect 1 lab_ask node1/over udp "$(lab_address node2/under "$1")" 9999
  assert_contains "$stderr" refused
}

@test "a port without a server refuses at once, over UDP too" {
  both_families refused
}

much() {
  expect 0 lab_in node1/under "$LAB_SOURCE/identify" bulk "$(lab_address node2/over "$1")" 8080
  expect 0 lab_in node1/over "$LAB_SOURCE/identify" bulk "$(lab_address node2/under "$1")" 8080
}

@test "a megabyte comes back, also where connection tracking takes up no connection in its middle" {
  local node
  both_families much
  for node in node1 node2; do lab_in "$node" sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0; done
  both_families much
  for node in node1 node2; do lab_in "$node" sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1; done
}

# policy NODE RULE...: a firewall as an overlay's network policies are: what is known passes, what is invalid is dropped, and
# for what is new the rules decide.
policy() {
  local node=$1
  shift
  {
    printf '%s\n' 'table inet cni-policy { chain forward { type filter hook forward priority filter;'
    printf '%s\n' 'ct state established,related accept' 'ct state invalid drop'
    printf '%s\n' "${@//CALI/\"cali*\"}" '}' '}'
  } | lab_in "$node" nft -f -
}

no_policy() {
  lab_in "$1" nft delete table inet cni-policy
}

@test "a policy on the overlay pod's node that allows this underlay pod alone is in force" {
  local v4 v6
  v4=$(lab_address node1/under 4) v6=$(lab_address node1/under 6)
  policy node2 "oifname CALI ip saddr $v4 accept" "oifname CALI ip6 saddr $v6 accept" 'oifname CALI drop'
  both_families own_answers
  assert_no_answer node2/under "$(lab_address node2/over 4)" 8080
  assert_no_answer node2/under "$(lab_address node2/over 6)" 8080
  no_policy node2
}

own_answers() {
  assert_answer node1/under "$(lab_address node2/over "$1")" 8080 node2-over ''
}

no_answers() {
  assert_no_answer node1/under "$(lab_address node2/over "$1")" 8080
}

@test "a policy on the overlay pod's node that keeps this underlay pod out is in force" {
  policy node2 "oifname CALI ip saddr $(lab_address node1/under 4) drop" "oifname CALI ip6 saddr $(lab_address node1/under 6) drop"
  both_families no_answers
  no_policy node2
  both_families own_answers
}

towards_underlay() {
  assert_answer node1/over "$(lab_address node2/under "$1")" 8080 node2-under ''
}

no_way_towards_underlay() {
  assert_no_answer node1/over "$(lab_address node2/under "$1")" 8080
}

@test "a policy for what an overlay pod may send is in force on its node, and answers to what it may send pass" {
  policy node1 'iifname CALI tcp dport 8080 accept' 'iifname CALI udp dport 8080 accept' 'iifname CALI drop' \
    'oifname CALI drop'
  both_families towards_underlay
  no_policy node1
  policy node1 'iifname CALI drop'
  both_families no_way_towards_underlay
  no_policy node1
}

same_node() {
  assert_answer node1/under "$(lab_address node1/over "$1")" 8080 node1-over "$(lab_address node1/under "$1")"
}

@test "on one node the connection is known from its first packet to its last, so a policy for questions is enough" {
  policy node1 'oifname CALI tcp dport 8080 accept' 'oifname CALI udp dport 8080 accept' 'oifname CALI drop' 'iifname CALI drop'
  both_families same_node
  no_policy node1
}

@test "a packet of no connection is still dropped where it goes to a Service, or does not come from a pod of ours" {
  local target
  lab_in node1 nft -f - <<'EOF2'
table inet seen {
  chain forward {
    type filter hook forward priority filter - 10
    ct state untracked counter
    ct state invalid counter
  }
}
EOF2
  # An answer to nothing: a segment with SYN and ACK, by hand.
  target=$(lab_cluster_ip over 4)
  stray node1/under "$(lab_address node1/under 4)" "$target"
  assert_equal "$(counted)" '[0,1]'
  stray node1/over "$(lab_address node1/over 4)" "$(lab_address node2/over 4)"
  assert_equal "$(counted)" '[0,2]'
  stray node1/under "$(lab_address node1/under 4)" "$(lab_address node2/over 4)"
  assert_equal "$(counted)" '[1,2]'
  lab_in node1 nft delete table inet seen
}

# How many packets were forwarded outside connection tracking, and how many as invalid.
counted() {
  lab_in node1 nft -j list table inet seen | jq -c '[.nftables[].rule.expr[]?.counter.packets | numbers]'
}

# stray WHERE SOURCE DESTINATION: a TCP segment with SYN and ACK that belongs to nothing.
stray() {
  lab_in "$1" /usr/bin/python3 - "$2" "$3" <<'PYTHON'
import socket, struct, sys
source, destination = (socket.inet_aton(text) for text in sys.argv[1:])
segment = struct.pack("!HHIIBBHHH", 8080, 4321, 1, 1, 5 << 4, 0x12, 1024, 0, 0)
pseudo = source + destination + struct.pack("!BBH", 0, 6, len(segment)) + segment
total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
total = (total & 0xFFFF) + (total >> 16)
checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
segment = segment[:16] + struct.pack("!H", checksum) + segment[18:]
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
    raw.sendto(segment, (sys.argv[2], 0))
PYTHON
}

masqueraded() {
  assert_answer node1/masked "$(lab_address node2/over "$1")" 8080 node2-over "$(lab_address node1 "$1")"
  assert_answer node1/under "$(lab_address node2/over "$1")" 8080 node2-over "$(lab_address node1/under "$1")"
}

@test "with overlayMasquerade an overlay pod sees the node's address, and other pods of the node keep theirs" {
  lab_network_config node1 masked 46 "$(lab_coordinator_json 46 | jq -c '.overlayMasquerade = true')"
  lab_pod node1 masked masked
  both_families masqueraded
  lab_cnitool node1 check masked masked
  lab_pod_delete node1 masked masked
}

@test "what goes to a hijackCIDR may be answered straight over the network too" {
  lab_in client ip address add 10.77.0.1/32 dev lo
  lab_in node1 ip route add 10.77.0.0/16 via 10.6.0.50
  lab_serve client 8080
  lab_network_config node1 hijack4 4 "$(lab_coordinator_json 4 | jq -c '.hijackCIDR = ["10.77.0.0/16"]')"
  lab_pod node1 hijack hijack4
  assert_answer node1/hijack 10.77.0.1 8080 client "$(lab_address node1/hijack 4)"
  lab_pod_delete node1 hijack hijack4
}

@test "another's table, chains and links are as they were, and with the last pod ours is gone" {
  lab_in node2 nft -f - <<'EOF2'
table inet mine {
  chain prerouting {
    type filter hook prerouting priority mangle
    iifgroup 85 counter
  }
}
EOF2
  lab_in node2 ip link add other type veth peer name rehto
  lab_in node2 ip link set other group 85
  lab_pod_delete node2 under underlay46
  expect 0 lab_in node2 nft list tables
  [[ $output != *underpass* ]] || fail "$output"
  expect 0 lab_in node2 nft list table inet mine
  assert_contains "$output" 'iifgroup 85 counter'
  expect 0 lab_in node2 ip link show group 85
  assert_contains "$output" other
}
