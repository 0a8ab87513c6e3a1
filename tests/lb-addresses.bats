# The socket load balancer: which addresses are translated, and what a process sees of it.

load helpers
load lb

setup_file() {
  lb_suite || return 0
  local backends
  backends=$(lb_backends 127.0.0.2 127.0.0.3 fd01::2 fd01::3)
  lb_services \
    "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\", \"fd02::1\"], \"externalIps\": [\"192.0.2.1\", \"fd02::e\"],
      \"loadBalancerIps\": [\"192.0.2.2\", \"fd02::f\"], \"nodePort\": 30080, \"backends\": $backends}")" \
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\", \"fd02::1\"], \"nodePort\": 30080,
      \"externalIps\": [\"192.0.2.1\", \"fd02::e\"], \"loadBalancerIps\": [\"192.0.2.2\", \"fd02::f\"],
      \"backends\": $backends}")" \
    "$(lb_service other "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.2\", \"fd02::2\"],
      \"backends\": $(lb_backends 127.0.0.4 fd01::4)}")" \
    "$(lb_service single "{\"clusterIps\": [\"10.96.0.3\"], \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service single-udp "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.3\"],
      \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service none '{"clusterIps": ["10.96.0.9", "fd02::9"]}')" \
    "$(lb_service none-udp '{"protocol": "UDP", "clusterIps": ["10.96.0.9", "fd02::9"]}')"
}

# Reaching each address often enough that a backend which is not chosen is seen.
reaches_both='
def both(kind, address, port=80, family=None, backends=None):
    found = {reach(kind, address, port, family) for _ in range(60)}
    expected = {"fd01::2", "fd01::3"} if ":" in address and "ffff" not in address else {"127.0.0.2", "127.0.0.3"}
    equal(found, expected, f"{address} {kind}")

serve("127.0.0.2", "127.0.0.3", "fd01::2", "fd01::3")
'

@test "TCP and UDP connections to a ClusterIP reach its backends, over IPv4 and IPv6" {
  lab_sockets node1/pod <<<"$reaches_both"'
for kind in SOCK_STREAM, SOCK_DGRAM:
    both(kind, "10.96.0.1")
    both(kind, "fd02::1")
'
}

@test "TCP and UDP connections to external and load balancer addresses reach the backends" {
  lab_sockets node1/pod <<<"$reaches_both"'
for kind in SOCK_STREAM, SOCK_DGRAM:
    for address in "192.0.2.1", "192.0.2.2", "fd02::e", "fd02::f":
        both(kind, address)
'
}

@test "a node port answers on the node's own addresses, and on no other" {
  lab_sockets node1/pod <<<"$reaches_both"'
for kind in SOCK_STREAM, SOCK_DGRAM:
    both(kind, "127.9.9.9", 30080)
    both(kind, "fd01::9", 30080)
equal(errno_of(connect, SOCK_STREAM, "127.0.0.1", 30080), "ECONNREFUSED", "loopback")
equal(errno_of(connect, SOCK_STREAM, "127.9.9.8", 30080), "ECONNREFUSED", "an address of nobody")
equal(errno_of(connect, SOCK_STREAM, "127.9.9.9", 80), "ECONNREFUSED", "the service port on a node address")
'
}

@test "an IPv6 socket reaches IPv4 Services through IPv4-mapped addresses" {
  lab_sockets node1/pod <<<"$reaches_both"'
for kind in SOCK_STREAM, SOCK_DGRAM:
    both(kind, "::ffff:10.96.0.1", family=AF_INET6)
    with connect(kind, "::ffff:10.96.0.1", family=AF_INET6) as connected:
        equal(connected.getpeername()[:2], ("::ffff:10.96.0.1", 80))
'
}

@test "an unconnected dual-stack socket gets answers from the Service it asked, IPv6 or IPv4-mapped" {
  lab_sockets node1/pod <<<"$reaches_both"'
sender = new(SOCK_DGRAM, AF_INET6)
for _ in range(3):
    for address, backends in ("fd02::1", ("fd01::2", "fd01::3")), ("::ffff:10.96.0.1", ("127.0.0.2", "127.0.0.3")):
        backend, source = ask(sender, address)
        equal(source, (address, 80))
        equal(backend in backends, True, f"{address} led to {backend}")
'
}

@test "one unconnected socket that asks twelve Services gets each answer from the right one" {
  local services=() number
  for number in 1 2 3 4 5 6 7 8 9 10 11 12; do
    services+=("$(lb_service "many-$number" "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.97.0.$number\"],
      \"backends\": $(lb_backends "127.1.0.$number")}")")
  done
  for service in "${services[@]}"; do printf '{"set": %s}\n' "$service"; done | lab_lb node1 follow >/dev/null
  lab_sockets node1/pod <<'PY'
numbers = range(1, 13)
serve(*(f"127.1.0.{number}" for number in numbers))
sender = new(SOCK_DGRAM, AF_INET)
for _ in range(3):
    for number in numbers:
        equal(ask(sender, f"10.97.0.{number}"), (f"127.1.0.{number}", (f"10.97.0.{number}", 80)))
# And when all questions are asked before the first answer is read.
for number in numbers:
    sender.sendto(b"?", (f"10.97.0.{number}", 80))
answers = {sender.recvfrom(64) for _ in numbers}
equal(answers, {(f"127.1.0.{number}".encode(), (f"10.97.0.{number}", 80)) for number in numbers})
PY
}

@test "an unconnected socket's flow to a Service keeps its backend" {
  lab_sockets node1/pod <<<"$reaches_both"'
for _ in range(10):
    sender = new(SOCK_DGRAM, AF_INET)
    equal(len({ask(sender, "10.96.0.1")[0] for _ in range(20)}), 1)
'
}

@test "a connected UDP socket can be connected to another Service, and its answers come from there" {
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3", "127.0.0.4")
socket = connect(SOCK_DGRAM, "10.96.0.1")
for address, backends in (("10.96.0.2", {"127.0.0.4"}), ("10.96.0.1", {"127.0.0.2", "127.0.0.3"})) * 3:
    socket.connect((address, 80))
    equal(socket.getpeername(), (address, 80))
    socket.send(b"?")
    data, source = socket.recvfrom(64)
    equal((data.decode() in backends, source), (True, (address, 80)), data)
PY
}

@test "what a connected UDP socket sends goes to its backend, also where that is an address of another Service" {
  lab_lb node1 follow >/dev/null <<<"{\"set\": $(lb_service outer "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.6\"],
    \"backends\": $(lb_backends 127.0.0.2)}")}
{\"set\": $(lb_service inner "{\"protocol\": \"UDP\", \"port\": 8080, \"clusterIps\": [\"10.96.0.7\"],
    \"externalIps\": [\"127.0.0.2\"], \"backends\": $(lb_backends 127.0.0.3)}")}"
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3")
for address, family in ("10.96.0.6", AF_INET), ("::ffff:10.96.0.6", AF_INET6):
    socket = connect(SOCK_DGRAM, address, family=family)
    for _ in range(3):
        socket.send(b"?")
        equal(socket.recv(64), b"127.0.0.2", address)
# By its own address it is the other Service.
equal(ask(new(SOCK_DGRAM, AF_INET), "127.0.0.2", 8080), ("127.0.0.3", ("127.0.0.2", 8080)))
PY
  for name in outer inner; do printf '{"remove": {"namespace": "test", "name": "%s"}}\n' $name; done | lab_lb node1 follow >/dev/null
}

@test "a UDP socket that was connected to an address before that was a Service's keeps its peer, in either family" {
  lab_sockets node1/pod "$(lab_lb_program)" <<'PY'
name = {"namespace": "test", "name": "late"}
serve("127.0.0.2", "127.0.0.5")
connected = [connect(SOCK_DGRAM, "127.0.0.5", PORT), connect(SOCK_DGRAM, "::ffff:127.0.0.5", PORT, AF_INET6)]
equal([answer(one) for one in connected], ["127.0.0.5"] * 2)
follow(set={**name, "protocol": "UDP", "port": PORT, "externalIps": ["127.0.0.5"], "backends": [{"address": "127.0.0.2", "port": PORT}]})
equal(reach(SOCK_DGRAM, "127.0.0.5", PORT), "127.0.0.2")
equal([answer(one) for one in connected], ["127.0.0.5"] * 2)
follow(remove=name)
PY
}

@test "getpeername shows the Service for TCP and UDP, over IPv4 and IPv6" {
  lab_sockets node1/pod <<<"$reaches_both"'
for kind in SOCK_STREAM, SOCK_DGRAM:
    for address in "10.96.0.1", "fd02::1", "192.0.2.1", "fd02::f":
        with connect(kind, address) as connected:
            equal(connected.getpeername()[:2], (address, 80))
    with connect(kind, "127.9.9.9", 30080) as connected:
        equal(connected.getpeername(), ("127.9.9.9", 30080))
'
}

@test "a Service without backends refuses TCP and UDP at once, connected or not" {
  lab_sockets node1/pod <<'PY'
start = time.monotonic()
for address in "10.96.0.9", "fd02::9":
    equal(errno_of(connect, SOCK_STREAM, address), "ECONNREFUSED", address)
    equal(errno_of(connect, SOCK_DGRAM, address), "ECONNREFUSED", address)
    equal(errno_of(new(SOCK_DGRAM, address).sendto, b"?", (address, 80)), "ECONNREFUSED", address)
mapped = new(SOCK_DGRAM, AF_INET6)
equal(errno_of(mapped.sendto, b"?", ("::ffff:10.96.0.9", 80)), "ECONNREFUSED")
equal(time.monotonic() - start < 1, True, "at once")
PY
  assert_equal "$(lb_stat '[.[] | select(.name | startswith("none"))] | sort_by(.name) | map(.refused)')" '[2,5]'
}

@test "beside a host path, UDP to a Service without backends, or to a port that none has, is left to it, and TCP is refused" {
  lab_reload node1 --host-path
  lab_lb node1 show | jq -c '.refuse = ["10.96.0.0/16", "fd02::/112"]' | lab_lb node1 apply >/dev/null
  lab_sockets node1/pod <<'PY'
# There is no route in this pod, so what is left alone fails otherwise.
for address, port in ("10.96.0.9", 80), ("fd02::9", 80), ("10.96.0.9", 81), ("fd02::9", 81):
    equal(errno_of(connect, SOCK_STREAM, address, port), "ECONNREFUSED", address)
    equal(errno_of(connect, SOCK_DGRAM, address, port), "ENETUNREACH", address)
    equal(errno_of(new(SOCK_DGRAM, address).sendto, b"?", (address, port)), "ENETUNREACH", address)
PY
  lab_lb node1 show | jq -c '.refuse = []' | lab_lb node1 apply >/dev/null
  lab_reload node1
}

@test "what is no Service is left alone" {
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "fd01::2")
for kind in SOCK_STREAM, SOCK_DGRAM:
    for address in "127.0.0.2", "fd01::2":
        with connect(kind, address, PORT) as connected:
            equal(connected.getpeername()[:2], (address, PORT))
            equal(answer(connected), address)
for address in "127.0.0.2", "fd01::2":
    equal(ask(new(SOCK_DGRAM, address), address, PORT), (address, (address, PORT)))
# A Service's address on another port or protocol is none of ours.
serve("127.0.0.5", port=80)
equal(reach(SOCK_STREAM, "127.0.0.5"), "127.0.0.5")
equal(errno_of(connect, SOCK_STREAM, "10.96.0.2"), "ENETUNREACH", "UDP only")
PY
}

@test "a socket that goes from a Service straight to its backend shows the backend" {
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2")
for _ in range(3):
    udp = connect(SOCK_DGRAM, "10.96.0.3")
    equal(udp.getpeername(), ("10.96.0.3", 80))
    udp.connect(("127.0.0.2", PORT))
    equal(udp.getpeername(), ("127.0.0.2", PORT))
    udp.send(b"?")
    equal(udp.recvfrom(64), (b"127.0.0.2", ("127.0.0.2", PORT)))
PY
}

@test "a TCP socket that was refused by a Service can connect elsewhere" {
  lab_sockets node1/pod <<'PY'
tcp = new(SOCK_STREAM, AF_INET)
tcp.settimeout(None)
equal(errno_of(tcp.connect, ("10.96.0.3", 80)), "ECONNREFUSED", "nobody listens")
serve("127.0.0.2")
tcp.connect(("127.0.0.2", PORT))
equal(tcp.getpeername(), ("127.0.0.2", PORT))
equal(answer(tcp), "127.0.0.2")
PY
}

@test "a node's process can bind a node port, as with kube-proxy" {
  lab_sockets node1 <<'PY'
for kind in SOCK_STREAM, SOCK_DGRAM:
    equal(errno_of(new(kind, AF_INET).bind, ("127.9.9.9", 30080)), None)
    equal(errno_of(new(kind, AF_INET6).bind, ("::", 30080)), None)
PY
}
