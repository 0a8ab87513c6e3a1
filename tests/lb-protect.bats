# The socket load balancer: node ports that are protected in the node's network namespace, where that is asked for.

load helpers
load lb

setup_file() {
  lb_suite || return 0
  lab_lb node1 unload
  # Somebody else has reserved some ports before.
  lab_in node1 sysctl -qw net.ipv4.ip_local_reserved_ports=8080,30004-30009
  lab_reload node1 --protect-node-ports 30000-32767 2>"$BATS_FILE_TMPDIR/said"
  lb_services \
    "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"nodePort\": 30080, \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\"], \"nodePort\": 30080,
      \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service tcp "{\"clusterIps\": [\"10.96.0.2\"], \"nodePort\": 30090, \"backends\": $(lb_backends 127.0.0.2)}")"
}

@test "a node's process cannot bind a protected node port by any name of the node's addresses, a pod's can" {
  lab_in node1 ip address add fd01::9/128 dev lo nodad
  lab_sockets node1 <<'PY'
MPTCP, LITE = 262, 136
def bound(address, port, kind, protocol=0, family=None):
    made = socket.socket(family or family_of(address), kind, protocol)
    if made.family == AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    with made:
        return errno_of(made.bind, (address, port))
for kind, protocol in (SOCK_STREAM, 0), (SOCK_STREAM, MPTCP), (SOCK_DGRAM, 0):
    for address in "0.0.0.0", "::", "127.9.9.9", "fd01::9", "::ffff:127.9.9.9", "::ffff:0.0.0.0":
        equal(bound(address, 30080, kind, protocol), "EADDRINUSE", f"{address} {kind} {protocol}")
    for address in "127.0.0.1", "::1", "::ffff:127.0.0.1":
        equal(bound(address, 30080, kind, protocol), None, f"{address} is not the node's")
    equal(bound("0.0.0.0", 30081, kind, protocol), None, "no node port")
equal(bound("0.0.0.0", 30090, SOCK_DGRAM), None, "another protocol's node port")
equal(bound("0.0.0.0", 30080, SOCK_DGRAM, LITE), None, "no protocol of node ports")
PY
  lab_sockets node1/pod <<'PY'
for kind in SOCK_STREAM, SOCK_DGRAM:
    equal(errno_of(new(kind, AF_INET).bind, ("", 30080)), None)
PY
}

@test "bind to port 0 never fails for a protected node port, even where hardly another port is left" {
  lab_in node1 sysctl -qw net.ipv4.ip_local_port_range='29998 30082'
  lab_sockets node1 <<'PY'
for kind in SOCK_STREAM, SOCK_DGRAM:
    for _ in range(100):
        with new(kind, AF_INET) as made:
            made.bind(("0.0.0.0", 0))
            equal(made.getsockname()[1] in (29998, 29999), True, "a port that is not reserved")
PY
  lab_in node1 sysctl -qw net.ipv4.ip_local_port_range='32768 60999'
}

@test "load says which ports it reserves, and unload gives back these and no others" {
  assert_contains "$(<"$BATS_FILE_TMPDIR/said")" '30000-30003,30010-32767'
  assert_equal "$(lab_in node1 sysctl -n net.ipv4.ip_local_reserved_ports)" 8080,30000-32767
  # A second time, with other ports; then without any.
  lab_reload node1 --protect-node-ports 31000-31001
  assert_equal "$(lab_in node1 sysctl -n net.ipv4.ip_local_reserved_ports)" 8080,30004-30009,31000-31001
  lab_reload node1
  assert_equal "$(lab_in node1 sysctl -n net.ipv4.ip_local_reserved_ports)" 8080,30004-30009
  lab_sockets node1 <<'PY'
equal(errno_of(new(SOCK_STREAM, AF_INET).bind, ("", 30080)), None, "not protected any more")
PY
  lab_reload node1 --protect-node-ports
  lab_lb node1 unload
  assert_equal "$(lab_in node1 sysctl -n net.ipv4.ip_local_reserved_ports)" 8080,30004-30009
  lab_reload node1
}

@test "ports that are protected later are so, whether the cgroup is named again or not" {
  lab_lb node1 unload
  lab_reload node1
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"nodePort\": 30080, \"backends\": $(lb_backends 127.0.0.2)}")"
  expect 0 lab_lb node1 load --protect-node-ports 30000-32767
  # shellcheck disable=SC2154 # set by expect
  [[ $stderr != *lacks* ]] || fail "$stderr"
  lab_sockets node1 <<'PY'
equal(errno_of(new(SOCK_STREAM, AF_INET).bind, ("", 30080)), "EADDRINUSE")
PY
}

@test "where /proc/sys is read-only, as in a container, ports are reserved and given back by what UNDERPASS_SYSCTL names" {
  local reserved
  lab_lb node1 unload
  reserved=$(lab_in node1 sysctl -n net.ipv4.ip_local_reserved_ports)
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 unshare --mount sh -euc '
    mkdir -p /run/sysctl
    mount --bind /proc/sys /run/sysctl
    mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
    export UNDERPASS_SYSCTL=/run/sysctl
    "$0" load --cgroup "$1" --protect-node-ports 31000-31001
    cat /proc/sys/net/ipv4/ip_local_reserved_ports
    "$0" unload' "$(lab_lb_program)" "$(<"$LAB/host/node1/cgroup")"
  # shellcheck disable=SC2154 # set by expect
  assert_contains "$output" 31000-31001
  assert_equal "$(lab_in node1 sysctl -n net.ipv4.ip_local_reserved_ports)" "$reserved"
  lab_reload node1
}
