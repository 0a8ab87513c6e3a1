# Which addresses are the node's and the pod's, and what their links inherit.

load helpers

setup_file() {
  suite_lab || return 0
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080
  lab_service echo 80:8080 node2/backend
  lab_serve node1 9090 node1
}

teardown() {
  [ -n "${LAB-}" ] || return 0
  [ ! -e "$LAB/pid/agent" ] || lab_stop agent
  [ ! -e "$LAB/defaults" ] || lab_in node1 sysctl -qe -p - <"$LAB/defaults"
  lab_in node1 sysctl -qw net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.default.accept_ra=1 \
    net.ipv4.conf.default.forwarding=1 net.ipv6.conf.default.forwarding=1
}

agent_start() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn agent node1 env PATH="$(lab_libexec):$PATH" bash -c 'exec keep-pods < <(exec sleep infinity)'
}

# add POD FILTER: our ADD behind macvlan's, for a pod of lab_pod, with a changed configuration.
add() {
  lab_plugin node1 coordinator ADD "$1" eth0 <<<"$(lab_chained node1 "$1" underlay46 | jq -c "$2")"
  [ "$lab_status" = 0 ] || fail "$lab_stdout" "$lab_stderr"
}

check() {
  lab_plugin node1 coordinator CHECK "$1" eth0 <<<"$(lab_chained node1 "$1" underlay46 | jq -c "${2:-.}")"
  [ "$lab_status" = 0 ] || fail "$lab_stdout" "$lab_stderr"
}

# served POD FAMILY...: it reaches Services and its node, and its node reaches it.
served() {
  local pod=$1 family
  shift
  for family in "$@"; do
    assert_answer "node1/$pod" "$(lab_cluster_ip echo "$family")" 80 backend || return
    assert_answer "node1/$pod" "$(lab_address node1 "$family" "${NODE_NIC:-eth0}")" 9090 node1 || return
    expect 0 lab_in node1 ping -c 1 -W 2 "$(lab_address "node1/$pod" "$family")" || return
  done
}

has_route() { lab_in "node1/$1" ip -6 route show table all | grep -q "^$2 "; }

@test "a bridge with the node's address is the node's, whatever it is called, and one with containers is not" {
  local name
  lab_in node1 ip link add office0 type bridge
  lab_in node1 ip link set office0 up
  lab_in node1 ip address add 172.30.0.1/16 dev office0
  lab_overlay_pod node1 contained flannel
  for name in br-ex br-mgmt docker9; do
    move_addresses "$name" eth0
    lab_network_config node1 "$name" 46 "$(lab_coordinator_json 46)" eth0
    lab_in node1 sed -i "s/\"master\": \"eth0\"/\"master\": \"$name\"/" "/etc/cni/net.d/$name.conflist"
    lab_pod node1 "on-$name" "$name"
    NODE_NIC=$name served "on-$name" 4 6
    expect 1 grep -q '172.30.0.1\|10.233.1.1 ' <(lab_in "node1/on-$name" ip route)
    lab_cnitool node1 check "$name" "on-$name"
    lab_pod_delete node1 "on-$name" "$name"
    lab_in node1 ip link set eth0 nomaster
    move_addresses eth0 "$name"
    lab_in node1 ip link delete "$name"
  done
}

# move_addresses TO FROM: the node's, with its default routes; to a bridge that has FROM as a port, or back.
move_addresses() {
  lab_in node1 ip link show "$1" >/dev/null 2>&1 || lab_in node1 ip link add "$1" type bridge
  lab_in node1 ip address flush dev "$2"
  [ "$1" = eth0 ] || lab_in node1 ip link set eth0 master "$1"
  lab_in node1 ip link set "$1" up
  lab_in node1 ip address add 10.6.212.101/16 dev "$1"
  lab_in node1 ip address add fd00:6::101/64 dev "$1" nodad
  lab_in node1 ip route replace default via 10.6.0.1
  lab_in node1 ip -6 route replace default via fd00:6::1
}

@test "addresses that only the node's way to the pods tells for the node's stay so: when ADD comes again, for further NICs, for the agent" {
  local config pod
  move_addresses br-mgmt eth0
  lab_in node1 ip route delete default
  lab_in node1 ip -6 route delete default
  lab_network_config node1 mgmt46 46 '' eth0
  lab_in node1 sed -i 's/"master": "eth0"/"master": "br-mgmt"/' /etc/cni/net.d/mgmt46.conflist
  lab_pod node1 managed mgmt46
  config=$(lab_chained node1 managed underlay46 | jq -c 'del(.prevResult.ips[].gateway, .prevResult.routes)')
  for _ in 1 2; do
    lab_plugin node1 coordinator ADD managed eth0 <<<"$config"
    reaches_node managed
  done
  lab_attach node1 managed mgmt46 net1
  further managed
  reaches_node managed
  lab_overlay_pod node1 overlaid calico
  lab_attach node1 overlaid mgmt46 net1
  for _ in 1 2; do
    further overlaid
    reaches_node overlaid
  done
  agent_start
  lab_in node1/managed ip route delete 10.6.212.101
  for pod in managed overlaid; do lab_until 5 reaches_node $pod; done
  lab_stop agent
  ! grep 'the node has no' "$LAB/log/agent" || fail "$(cat "$LAB/log/agent")"
  for pod in managed overlaid; do lab_pod_delete node1 $pod mgmt46; done
  lab_in node1 ip link set eth0 nomaster
  move_addresses eth0 br-mgmt
  lab_in node1 ip link delete br-mgmt
}

# further POD: our ADD for its net1, whose network names no gateway.
further() {
  lab_plugin node1 coordinator ADD "$1" net1 <<<"$(lab_chained node1 "$1" underlay46 net1)"
  [ "$lab_status" = 0 ] || fail "$lab_stdout" "$lab_stderr"
}

# reaches_node POD: by the way into it.
reaches_node() {
  local family dev
  for family in 4 6; do
    dev=$(lab_in "node1/$1" ip -json "-$family" route get "$(lab_address node1 $family br-mgmt)" | jq -r '.[0].dev')
    [[ "$1 $dev" == @(managed veth0|overlaid eth0) ]] || return
  done
}

@test "the node's address on a link that leads nowhere is the node's where routes have it as their source, as FRR's do" {
  # With the kernel's dummy links it would be on one of these.
  lab_in node1 ip link add anycast type veth peer name nowhere
  lab_in node1 ip link set nowhere up
  lab_in node1 ip link set anycast up
  lab_in node1 ip address add 10.66.0.1/32 dev anycast
  lab_in node1 ip route change 10.6.0.0/16 dev eth0 src 10.66.0.1
  lab_pod node1 routed underlay4
  expect 0 lab_ask node1/routed tcp 10.66.0.1 9090
  lab_cnitool node1 check underlay4 routed
  lab_pod_delete node1 routed underlay4
  lab_in node1 ip route change 10.6.0.0/16 dev eth0 src 10.6.212.101
  lab_in node1 ip link delete anycast
}

@test "an IPv6 address that the pod's NIC found itself is served beside an IPv4 IPAM, and CHECK and DEL know it" {
  lab_pod node1 own6 plain4
  lab_in node1/own6 sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0
  lab_until 5 finds_itself own6
  add own6 .
  served own6 4 6
  check own6
  lab_plugin node1 coordinator DEL own6 eth0 <<<"$(lab_chained node1 own6 underlay46)"
  assert_equal "$(lab_in node1 ip -6 route show table 500)" ''
}

# finds_itself POD: after another advertisement.
finds_itself() { advertise net6 fd00:6:: && sleep 0.2 && advertised "$1" eth0; }

@test "what cannot be a source is none: a link-local address among ips, and an address twice counts once" {
  lab_pod node1 odd plain46
  lab_in node1/odd ip address add "$(lab_address node1/odd 4)/24" dev eth0
  lab_in node1/odd ip address add 169.254.7.7/16 dev eth0 scope link
  add odd '.prevResult.ips = [{address: "fe80::1234/64", interface: 0}, {address: "169.254.7.7/16", interface: 0}] + .prevResult.ips'
  served odd 4 6
  expect 1 grep -q 'src fe80\|src 169.254' <(lab_in node1/odd ip route show table all proto 85; lab_in node1/odd ip -6 route show table all proto 85)
  check odd
  add odd .
}

@test "an address that comes after ADD leaves CHECK good, and the agent gives it its way" {
  local address
  lab_pod node1 late plain4
  add late .
  address=$(formed late fd00:6:0:0)
  lab_in node1/late ip -6 address add "$address/64" dev eth0 nodad
  lab_in node1/late ip -6 route replace default via fd00:6::1
  check late
  agent_start
  lab_until 5 has_route late fd00:233:64::/108
  served late 4 6
  check late
  lab_in node1/late ip -6 address delete "$address/64" dev eth0
  lab_until 5 gone_from_node "$address"
  check late
}

# formed POD PREFIX: the address that the kernel makes of a router advertisement's prefix, four groups of it, and the MAC address.
formed() {
  local a b c d e f
  IFS=: read -r a b c d e f < <(lab_in "node1/$1" ip -json link show eth0 | jq -r '.[0].address')
  /usr/bin/python3 -c 'import ipaddress, sys; print(ipaddress.ip_address(sys.argv[1]))' \
    "$2:$(printf '%02x' $((0x$a ^ 2)))$b:${c}ff:fe$d:$e$f"
}

gone_from_node() { ! lab_in node1 ip -6 route show table 500 | grep -q "$1"; }

@test "a pod whose NIC has its addresses without any ips in prevResult is served with what it has at ADD, and with none that it takes later" {
  lab_pod node1 dhcp plain46
  add dhcp '.prevResult.ips = []'
  served dhcp 4 6
  lab_sandbox node1 bare
  lab_in node1 ip link add bare0 link eth0 type macvlan mode bridge
  lab_in node1 ip link set bare0 netns bare name eth0
  lab_in node1/bare ip link set eth0 up
  lab_in node1 sh -c 'cat >/run/bare.json' <<<"$(lab_chained node1 dhcp underlay46 | jq -c '.prevResult |= {cniVersion, interfaces: [{name: "eth0", sandbox: "/run/netns/bare"}], ips: []}')"
  lab_plugin node1 coordinator ADD bare eth0 <<<"$(lab_in node1 cat /run/bare.json)"
  assert_equal "$lab_status" 0
  agent_start
  lab_in node1/bare ip address add 10.6.99.99/16 dev eth0
  lab_until 5 grep -q 'lead 10.6.99.99 to' "$LAB/log/agent"
  ! led | grep -q 10.6.99.99 || fail "$(led)"
  served dhcp 4 6
  # What it had then is its own also when it comes back.
  local four six address
  four=$(lab_address node1/dhcp 4) six=$(lab_address node1/dhcp 6)
  lab_in node1/dhcp ip address flush dev eth0 scope global
  for address in "$four" "$six"; do lab_until 5 gone_from_node4 "$address"; done
  lab_in node1/dhcp ip address add "$four/16" dev eth0
  lab_in node1/dhcp ip address add "$six/64" dev eth0 nodad
  for address in "$four" "$six"; do lab_until 5 leads "$address" || fail "$address: $(led)"; done
}

# led: what the node leads to its pods.
led() { lab_in node1 ip route show table 500; lab_in node1 ip -6 route show table 500; }

@test "an address that a pod gives itself is led to it if it is free in its own subnet or formed of its MAC address, and else is not: it is said in the log" {
  local theirs='10.99.0.1 10.6.0.1 10.6.212.101 10.233.1.77 fd00:99::1 fd00:6::1 fd00:233:64::9' address mac
  lab_pod node1 taker plain46
  mac=$(formed taker fd00:99:0:0)
  add taker .
  agent_start
  for address in $theirs 10.6.66.66 fd00:6::bbbb "$mac"; do
    case $address in
      *:*) lab_in node1/taker ip -6 address add "$address/128" dev eth0 nodad ;;
      *) lab_in node1/taker ip address add "$address/32" dev eth0 ;;
    esac
  done
  for address in 10.6.66.66 fd00:6::bbbb "$mac"; do
    lab_until 5 leads "$address" || fail "$address: $(led)"
  done
  # An ADD of a pod that runs sees the same.
  add taker .
  for address in $theirs; do
    lab_until 5 grep -q "lead $address to" "$LAB/log/agent"
    ! leads "$address" || fail "$address: $(led)"
  done
  check taker
  # Other changes in the pod are no reason to say it again.
  lab_in node1/taker ip route delete 10.6.212.101 2>/dev/null || :
  lab_in node1/taker ip address delete 10.6.66.66/32 dev eth0
  lab_until 5 gone_from_node4 10.6.66.66
  assert_equal "$(grep -c 'lead 10.99.0.1 to' "$LAB/log/agent")" 1
  lab_plugin node1 coordinator DEL taker eth0 <<<"$(lab_chained node1 taker underlay46)"
  lab_pod_delete node1 taker plain46
}

leads() { led | grep -q "^$1 "; }
gone_from_node4() { ! leads "$1"; }

@test "a default route by a router advertisement to a further NIC leaves CHECK good, and the agent moves it to that NIC's table" {
  lab_network 7 eth1
  lab_network_config node1 seven 46 "$(lab_coordinator_json 46)" eth1
  lab_network_config node1 seven4 4 "$(lab_coordinator_json 46)" eth1
  lab_pod node1 two underlay46
  lab_attach node1 two seven4 net1
  advertise net7 fd00:7::
  lab_until 5 advertised two net1
  lab_cnitool node1 check seven4 two net1
  agent_start
  lab_until 5 moved two
  assert_equal "$(lab_in node1/two sysctl -n net.ipv6.conf.net1.accept_ra_defrtr)" 0
  lab_cnitool node1 check seven4 two net1
  lab_cnitool node1 check underlay46 two
  served two 4 6
}

moved() {
  [ "$(lab_in "node1/$1" ip -6 route show default | grep -c net1)" = 0 ] &&
    lab_in "node1/$1" ip -6 route show table all | grep -q '^default via fe80::.* dev net1 table'
}

# advertise NIC PREFIX: a router advertisement by the gateway.
advertise() {
  lab_in gateway sysctl -qw "net.ipv6.conf.$1.forwarding=1"
  lab_in gateway /usr/bin/python3 - "$1" "$2" <<'EOF'
import socket, struct, sys

nic, prefix = sys.argv[1], socket.inet_pton(socket.AF_INET6, sys.argv[2])
wire = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(nic))
router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + prefix
wire.sendto(router + option, ("ff02::1", 0))
EOF
}

# advertised POD NIC: it has an address by advertisement, and a default route.
advertised() {
  lab_in "node1/$1" ip -6 address show dev "$2" dynamic | grep -q 'scope global' &&
    lab_in "node1/$1" ip -6 route show default | grep -q "dev $2 proto ra"
}

@test "IPv6 is off by default in the sandbox, or on the node: pods are served all the same" {
  lab_sandbox node1 docker
  lab_in node1/docker sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
  lab_attach node1 docker underlay46
  served docker 4 6
  lab_cnitool node1 check underlay46 docker
  lab_in node1 sysctl -qw net.ipv6.conf.default.disable_ipv6=1
  lab_pod node1 hardened underlay46
  served hardened 4 6
}

@test "a further NIC's IPv6 address that has no host path, for the first NIC has IPv4 only, stops no ADD where the pair's node end has no IPv6" {
  local mtu disabled
  while read -r mtu disabled; do
    lab_in node1 sysctl -qw "net.ipv6.conf.default.disable_ipv6=$disabled"
    lab_network_config node1 underlay4 4 "$(lab_coordinator_json 4 | jq -c ".vethMTU = $mtu")"
    lab_pod node1 "only$mtu" underlay4
    lab_attach node1 "only$mtu" underlay46 net1
    served "only$mtu" 4
    expect 0 lab_in node1 ping -c 1 -W 2 "$(lab_address "node1/only$mtu" 4 net1)"
    lab_cnitool node1 check underlay46 "only$mtu" net1
    lab_cnitool node1 check underlay4 "only$mtu"
    lab_cnitool node1 del underlay46 "only$mtu" net1
    lab_pod_delete node1 "only$mtu" underlay4
  done <<'EOF2'
1200 0
0 1
EOF2
}

@test "new links of the node do not forward by default, or take router advertisements: pods are served, and are no routers" {
  local host
  lab_in node1 sysctl -qw net.ipv4.conf.default.forwarding=0 net.ipv6.conf.default.forwarding=0 net.ipv6.conf.default.accept_ra=2
  lab_pod node1 plainly underlay46
  served plainly 4 6
  host=$(lab_in node1 cat "/run/underpass/attachments/$(container_of plainly)@eth0.json" | jq -r .veth.host)
  assert_equal "$(lab_in node1 sysctl -n "net.ipv6.conf.$host.accept_ra")" 0
}

# hostile WHERE VALUE|most: gives links that come there every setting that the kernel takes, whatever it means. What eth0 has
# stays. Not mtu and hop_limit: they are lengths, not conditions, and eth0 has the same.
hostile() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "$1" sh -c '
    for file in /proc/sys/net/ipv[46]/conf/default/*; do
      case ${file##*/} in mtu | hop_limit) continue ;; esac
      if [ "$0" != most ]; then values=$0; else values="255 8 3 2 1"; fi
      for value in $values; do ! echo "$value" >"$file" || break; done 2>/dev/null
    done' "$2"
}

@test "whatever new links of the node and the sandbox inherit, by any setting that a link has, pods are served" {
  local value pod
  lab_in node1 sysctl -a --pattern '^net.ipv[46].conf.default' >"$LAB/defaults" 2>/dev/null
  [ "$(grep -c . "$LAB/defaults")" -gt 80 ]
  for value in 0 1 most; do
    pod=swept$value
    lab_pod node1 "$pod" plain46
    hostile "node1/$pod" $value
    hostile node1 $value
    [ $value = 0 ] || [ "$(lab_in "node1/$pod" sysctl -n net.ipv6.conf.default.disable_ipv6)" != 0 ]
    add "$pod" '.podRPFilter = -1'
    served "$pod" 4 6
    check "$pod" '.podRPFilter = -1'
    lab_in node1 sysctl -qe -p - <"$LAB/defaults"
  done
}
