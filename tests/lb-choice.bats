# The socket load balancer: which backend a connection gets.

load helpers
load lb

setup_file() {
  lb_suite || return 0
  lb_pod second
  lab_in node1/pod ip -6 route add local fd00:9::/64 dev lo
}

# seven NAME PROTOCOL: a Service of that protocol with seven backends, IPv4 and IPv6.
seven() {
  lb_services "$(lb_service "$1" "{\"protocol\": \"$2\", \"clusterIps\": [\"10.96.0.1\", \"fd00:96::1\"],
    \"backends\": $(lb_backends 127.0.0.{2,3,4,5,6,7,8} fd00:9::{2,3,4,5,6,7,8})}")"
}

# even COUNT: each family's seven backends had their share of so many connections.
even() {
  # Chi square with six degrees of freedom: more than 38.3 happens once in a million runs.
  # shellcheck disable=SC2016 # a variable of jq
  lb_stat '.[0].backends | to_entries | group_by(.key | startswith("[")) | map([.[].value.connections] | (add / 7) as $mean
    | {count: length, sum: add, even: ((map(. - $mean | . * .) | add / $mean) < 38.3)})' >"$BATS_TEST_TMPDIR/shares"
  assert_json "$(<"$BATS_TEST_TMPDIR/shares")" "all(. == {count: 7, sum: $1, even: true})" true
}

@test "each of seven backends gets its share of 70,000 connections of one socket" {
  seven one UDP
  lab_sockets node1/pod <<'PY'
for address in "10.96.0.1", "fd00:96::1":
    udp = new(SOCK_DGRAM, address)
    for _ in range(70_000):
        udp.connect((address, 80))
PY
  even 70000
}

@test "each of seven backends gets its share of the connections of 21,000 sockets, whatever other sockets there are between" {
  seven many UDP
  lab_sockets node1/pod <<'PY'
for address, none in ("10.96.0.1", "127.0.0.1"), ("fd00:96::1", "fd00:9::1"):
    for between in 0, 1, 6:
        for _ in range(7_000):
            new(SOCK_DGRAM, address).connect((address, 80))
            for _ in range(between):
                new(SOCK_DGRAM, none).connect((none, 9))
PY
  even 21000
}

@test "a socket that asks again may get another backend: it gets away from one that does not answer" {
  seven again TCP
  lab_sockets node1/pod <<'PY'
for address in "10.96.0.1", "fd00:96::1":
    for protocol in 0, 262:  # TCP, Multipath TCP
        tcp = socket.socket(family_of(address), SOCK_STREAM, protocol)
        for _ in range(20):
            equal(errno_of(tcp.connect, (address, 80)), "ECONNREFUSED", protocol)
PY
  # Of each family, that forty draws out of seven are of fewer than three never happens.
  lb_stat '.[0].backends | to_entries | group_by(.key | startswith("[")) | map([.[].value.connections])' >"$BATS_TEST_TMPDIR/shares"
  assert_json "$(<"$BATS_TEST_TMPDIR/shares")" 'map([add, (map(select(. > 0)) | length > 2)])' '[[40,true],[40,true]]'
}

# A service with affinity, TCP and UDP, and 50 backends.
lb_sticky() {
  local more
  more="{\"clusterIps\": [\"10.96.0.1\"], \"sessionAffinity\": {\"timeoutSeconds\": $1},
    \"backends\": $(lb_backends 127.0.1.{1..50})}"
  lb_services "$(lb_service sticky "$more")" "$(lb_service sticky-udp "$(jq -c '.protocol = "UDP"' <<<"$more")")"
}

serve_50='
serve(*(f"127.0.1.{host}" for host in range(1, 51)))
'

@test "with session affinity a pod keeps its backend, TCP and UDP each its own, and another pod has another" {
  local pod
  lb_sticky 60
  for pod in pod second; do
    lab_sockets node1/$pod <<<"$serve_50"'
found = {kind: {reach(kind, "10.96.0.1") for _ in range(20)} for kind in (SOCK_STREAM, SOCK_DGRAM)}
equal([len(backends) for backends in found.values()], [1, 1])
found[SOCK_DGRAM].add(ask(new(SOCK_DGRAM, AF_INET), "10.96.0.1")[0])
equal(len(found[SOCK_DGRAM]), 1, "an unconnected socket")
'
  done
  # Two processes of a pod are one client; two pods, and two protocols, are different ones. Three draws out of 50.
  lab_sockets node1/pod <<<"$serve_50"'
reach(SOCK_STREAM, "10.96.0.1")
'
  assert_equal "$(lb_stat '[.[0].backends[].connections | select(. > 0)] | length | . == 1 or . == 2')" true
  assert_equal "$(lb_stat '[.[].backends[].connections] | add')" 83
}

@test "session affinity ends when the pod stays away for longer than the timeout, and not before" {
  lb_sticky 4
  lab_sockets node1/pod <<<"$serve_50"'
first = reach(SOCK_STREAM, "10.96.0.1")
for _ in range(4):
    # Less than the timeout each, more than that together.
    time.sleep(1.2)
    equal(reach(SOCK_STREAM, "10.96.0.1"), first, "still there")
found = set()
for _ in range(3):
    time.sleep(4.2)
    found.add(reach(SOCK_STREAM, "10.96.0.1"))
# That three draws out of 50 all are the first one happens once in 125,000 runs.
equal(found == {first}, False, "still there after the timeout")
'
}

@test "with session affinity a pod whose backend goes gets another one and keeps that" {
  lb_sticky 60
  local first
  first=$(lab_sockets node1/pod <<<"$serve_50"'
print(reach(SOCK_STREAM, "10.96.0.1"))
')
  lab_lb node1 show | jq -c --arg first "$first" '.services[].backends |= map(select(.address != $first))' |
    lab_lb node1 apply
  lab_sockets node1/pod "$first" <<<"$serve_50"'
found = {reach(SOCK_STREAM, "10.96.0.1") for _ in range(20)}
equal((len(found), sys.argv[1] in found), (1, False))
'
}

@test "with session affinity a pod keeps its backend while other backends come and go" {
  lb_sticky 60
  local first
  first=$(lab_sockets node1/pod <<<"$serve_50"'
print(reach(SOCK_STREAM, "10.96.0.1"))
')
  lab_lb node1 show | jq -c --arg first "$first" '
    .services[].backends |= (map(select(.address == $first or (.address | endswith("7")))) + [{address: "127.0.0.9", port: 8080}])' |
    lab_lb node1 apply
  lab_sockets node1/pod "$first" <<<"$serve_50"'
equal({reach(SOCK_STREAM, "10.96.0.1") for _ in range(20)}, {sys.argv[1]})
'
}

lb_least() {
  local more
  more="{\"clusterIps\": [\"10.96.0.1\", \"fd02::1\"], \"lbAlgorithm\": \"least-connections\",
    \"backends\": $(lb_backends "$@")}"
  lb_services "$(lb_service least "$more")" "$(lb_service least-udp "$(jq -c '.protocol = "UDP"' <<<"$more")")"
}

# How many sockets are open to each backend of a service, IPv4 first.
lb_open() {
  lb_stat ".[] | select(.name == \"$1\") | .backends | [.[].open]"
}

@test "with least-connections the backend with fewer open connections gets the next one" {
  lb_least 127.0.0.2 127.0.0.3 fd01::2 fd01::3
  choice_client <<'PY'
serve("127.0.0.2", "127.0.0.3", "fd01::2", "fd01::3")
held = [connect(SOCK_STREAM, address) for address in ("10.96.0.1", "fd02::1") for _ in range(50)]
held += [connect(SOCK_DGRAM, "10.96.0.1") for _ in range(30)]
ready()
wait_for(sys.argv[1] + "-goes-on")
PY
  # Of two backends both are drawn each time, so they are level after each pair.
  assert_equal "$(lb_open least)" '[25,25,25,25]'
  assert_equal "$(lb_open least-udp)" '[15,15,0,0]'
  choice_goes_on
  assert_equal "$(lb_open least)" '[0,0,0,0]'
}

@test "with random the open connections do not matter" {
  lb_services "$(lb_service random "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2 127.0.0.3)}")"
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3")
# Level to the last connection happens by chance once in 25 turns, six times in a row once in 250 million; least-connections does it each time.
turns = [Counter(answer(connect(SOCK_STREAM, "10.96.0.1")) for _ in range(400)) for _ in range(6)]
equal(all(min(found.values()) == 200 for found in turns), False)
PY
}

@test "a least-connections count falls when a socket is closed, refused, connected elsewhere or its process is killed" {
  lb_least 127.0.0.2 127.0.0.3
  lab_sockets node1/pod <<'PY'
serve("127.0.0.3")
for _ in range(20):
    errno_of(reach, SOCK_STREAM, "10.96.0.1")
udp = new(SOCK_DGRAM, AF_INET)
for _ in range(20):
    udp.connect(("10.96.0.1", 80))
udp.connect(("127.0.0.3", PORT))
sender = new(SOCK_DGRAM, AF_INET)
for _ in range(20):
    sender.sendto(b"?", ("10.96.0.1", 80))
sender.close()
PY
  assert_equal "$(lb_open least)" '[0,0]'
  assert_equal "$(lb_open least-udp)" '[0,0]'
  lab_sockets node1/pod <<'PY' || true
serve("127.0.0.2", "127.0.0.3")
held = [connect(kind, "10.96.0.1") for kind in (SOCK_STREAM, SOCK_DGRAM) for _ in range(200)]
os.kill(os.getpid(), 9)
PY
  assert_equal "$(lb_open least)" '[0,0]'
  assert_equal "$(lb_open least-udp)" '[0,0]'
}

@test "a least-connections count is exact while eight processes connect and die" {
  lb_services
  lb_least 127.0.0.2 127.0.0.3 127.0.0.4 127.0.0.5
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
children = []
for child in range(8):
    pid = os.fork()
    if pid == 0:
        held = []
        for turn in range(200 + child):
            held.append(connect(SOCK_DGRAM, "10.96.0.1"))
            if turn % 3 == 0:
                held.pop(0).close()
        os.kill(os.getpid(), 9)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
PY
  assert_equal "$(lb_open least-udp)" '[0,0,0,0]'
  assert_equal "$(lb_stat '[.[] | select(.name == "least-udp") | .backends[].connections] | add')" 1628
}

# lb_held LB_LEAST_ARGUMENT...: with six connections open, three to each backend, makes a table of each line on stdin (the
# backends), and prints the counts after each; the last time with all connections closed.
lb_held() {
  mkfifo "$BATS_TEST_TMPDIR/ready" "$BATS_TEST_TMPDIR/go"
  lb_services
  lb_least 127.0.0.2 127.0.0.3
  lab_sockets node1/pod "$BATS_TEST_TMPDIR" 3>&- <<'PY' &
serve("127.0.0.2", "127.0.0.3", "127.0.0.4")
held = [connect(SOCK_STREAM, "10.96.0.1") for _ in range(6)]
print(file=open(sys.argv[1] + "/ready", "w"))
open(sys.argv[1] + "/go").readline()
PY
  local client=$! backends
  # Opened for both, so that neither side waits for one that has died.
  exec 6<>"$BATS_TEST_TMPDIR/go"
  read -r -t 10 <>"$BATS_TEST_TMPDIR/ready" || fail 'the client died'
  lb_open least
  while read -r backends; do
    # shellcheck disable=SC2086 # a list
    lb_least $backends
    lb_open least
  done
  printf '\n' >&6
  exec 6>&-
  wait "$client"
  lb_open least
}

@test "a least-connections count goes on when its backend goes and comes back, and its place is given to no other" {
  run lb_held <<'TABLES'
127.0.0.2
127.0.0.2 127.0.0.4
127.0.0.2 127.0.0.3 127.0.0.4
TABLES
  assert_equal "$output" $'[3,3]\n[3]\n[3,0]\n[3,3,0]\n[0,0,0]'
}

@test "a connection that cannot be translated, or goes on to the other family, is not counted" {
  local services=() number
  for number in {1..18}; do
    services+=("$(lb_service "s$number" "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.$number\", \"fd02::$number\"],
      \"lbAlgorithm\": \"least-connections\", \"backends\": $(lb_backends 127.0.0.2 fd01::2)}")")
  done
  lb_services "${services[@]}"
  lab_sockets node1/pod "$(lab_lb_program)" <<'PY'
import json, subprocess
def counts():
    stats = json.loads(subprocess.run([sys.argv[1], "stats"], check=True, capture_output=True).stdout)
    return {service["name"]: [backend["open"] for backend in service["backends"].values()] for service in stats}
serve("127.0.0.2", "fd01::2")
sender = new(SOCK_DGRAM, AF_INET)
for _ in range(3):
    for number in range(1, 18):
        sender.sendto(b"?", (f"10.96.0.{number}", 80))
    equal(errno_of(sender.sendto, b"?", ("10.96.0.18", 80)), "ENETUNREACH", "what is not translated has no route")
equal(sum(count[0] for count in counts().values()), 17)
sender.close()
equal(sum(count[0] for count in counts().values()), 0)
dual = new(SOCK_DGRAM, "fd02::1")
for address, expected in ("fd02::1", [0, 1]), ("::ffff:10.96.0.1", [1, 0]), ("fd02::1", [0, 1]):
    dual.connect((address, 80))
    equal(counts()["s1"], expected, address)
PY
}

@test "room for a backend comes before the count of one that is gone" {
  lab_lb node1 unload
  # The two services have two backends each, and are changed one after the other.
  lab_reload node1 --max-backends 6
  run lb_held <<<'127.0.0.4 127.0.0.5'
  lab_lb node1 unload
  lab_reload node1
  assert_equal "$output" $'[3,3]\n[0,0]\n[0,0]'
}

@test "sockets that are closed while their least-connections backend is away do not count when it comes back" {
  run lb_held <<<127.0.0.2
  assert_equal "$output" $'[3,3]\n[3]\n[0]'
  lb_least 127.0.0.2 127.0.0.3
  assert_equal "$(lb_open least)" '[0,0]'
}

@test "with the internal traffic policy Local a ClusterIP leads to local backends only" {
  lb_services "$(lb_service local '{"clusterIps": ["10.96.0.1"], "externalIps": ["192.0.2.1"], "nodePort": 30080,
    "internalTrafficPolicy": "Local", "backends": [{"address": "127.0.0.2", "port": 8080, "local": true},
    {"address": "127.0.0.3", "port": 8080}]}')" \
    "$(lb_service remote "{\"clusterIps\": [\"10.96.0.2\"], \"internalTrafficPolicy\": \"Local\",
      \"backends\": $(lb_backends 127.0.0.2)}")"
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3")
equal({reach(SOCK_STREAM, "10.96.0.1") for _ in range(40)}, {"127.0.0.2"})
equal({reach(SOCK_STREAM, "127.9.9.9", 30080) for _ in range(40)}, {"127.0.0.2", "127.0.0.3"}, "the node port")
equal(errno_of(connect, SOCK_STREAM, "10.96.0.2"), "ECONNREFUSED", "no local backend")
PY
}

@test "with the external traffic policy Local the node's own node port and external addresses lead to all backends, as for kube-proxy's clients in the cluster" {
  lb_services "$(lb_service local '{"clusterIps": ["10.96.0.1"], "externalIps": ["192.0.2.1"],
    "loadBalancerIps": ["192.0.2.2"], "nodePort": 30080,
    "externalTrafficPolicy": "Local", "backends": [{"address": "127.0.0.2", "port": 8080, "local": true},
    {"address": "127.0.0.3", "port": 8080}]}')"
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3")
equal({reach(SOCK_STREAM, "127.9.9.9", 30080) for _ in range(40)}, {"127.0.0.2", "127.0.0.3"})
for address in "10.96.0.1", "192.0.2.1", "192.0.2.2":
    equal({reach(SOCK_STREAM, address) for _ in range(40)}, {"127.0.0.2", "127.0.0.3"}, address)
PY
}

@test "a backend that is for one scope serves only the addresses of that scope" {
  lb_services "$(lb_service scoped '{"clusterIps": ["10.96.0.1"], "externalIps": ["192.0.2.1"], "nodePort": 30080,
    "backends": [{"address": "127.0.0.2", "port": 8080, "scope": "internal"},
    {"address": "127.0.0.3", "port": 8080, "scope": "external"}, {"address": "127.0.0.4", "port": 8080}]}')"
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3", "127.0.0.4")
equal({reach(SOCK_STREAM, "10.96.0.1") for _ in range(40)}, {"127.0.0.2", "127.0.0.4"})
equal({reach(SOCK_STREAM, "192.0.2.1") for _ in range(40)}, {"127.0.0.3", "127.0.0.4"})
equal({reach(SOCK_STREAM, "127.9.9.9", 30080) for _ in range(40)}, {"127.0.0.3", "127.0.0.4"})
PY
  assert_json "$(lab_lb node1 show)" '[.services[0].backends[].scope]' '["internal","external",null]'
}

# choice_client <PROGRAM: a Python program in the background. It says that it is ready, then the table changes.
choice_client() {
  cat >"$BATS_TEST_TMPDIR/client.py"
  lab_sockets node1/pod "$BATS_TEST_TMPDIR/client" >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- <"$BATS_TEST_TMPDIR/client.py" &
  client=$!
  lab_until 20 test -e "$BATS_TEST_TMPDIR/client" || fail "$(<"$BATS_TEST_TMPDIR/out")"
}

# choice_goes_on: the table has changed; the program ends well.
choice_goes_on() {
  : >"$BATS_TEST_TMPDIR/client-goes-on"
  wait "$client" || fail "$(<"$BATS_TEST_TMPDIR/out")"
}

@test "a UDP socket's datagrams go to one backend when that of its connection has gone, whether it is still connected or not" {
  lb_services "$(lb_service udp "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\", \"fd00:96::1\"],
    \"backends\": $(lb_backends 127.0.0.2 fd01::2)}")"
  choice_client <<'PY'
serve(*[f"127.0.0.{n}" for n in range(2, 9)], *[f"fd01::{n}" for n in range(2, 9)])
addresses = "10.96.0.1", "fd00:96::1"
sockets = [(connect(SOCK_DGRAM, address), address) for address in addresses for _ in range(2)]
for one, _ in sockets[::2]:
    disconnect(one)
ready()
wait_for(sys.argv[1] + "-goes-on")
for one, address in sockets:
    for _ in range(30):
        one.sendto(b"?", (address, 80))
# The others hear the one only to which they were connected.
equal(len({sockets[0][0].recv(64) for _ in range(30)}), 1)
PY
  lb_services "$(lb_service udp "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\", \"fd00:96::1\"],
    \"backends\": $(lb_backends 127.0.0.{3,4,5,6,7,8} fd01::{3,4,5,6,7,8})}")"
  choice_goes_on
  # Of each family two: a flow each.
  assert_equal "$(lb_stat '[.[].backends[].connections] | add')" 4
}

@test "a socket that has asked as many Services as are remembered asks another one when those are gone" {
  local number
  local -a services=()
  for number in {1..17}; do
    services+=("$(lb_service "s$number" "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.$number\"], \"lbAlgorithm\": \"least-connections\",
      \"backends\": $(lb_backends 127.0.0.2)}")")
  done
  lb_services "${services[@]}"
  choice_client <<'PY'
serve("127.0.0.2", "127.0.0.3")
udp = new(SOCK_DGRAM, AF_INET)
for number in range(1, 18):
    equal(ask(udp, f"10.96.0.{number}"), ("127.0.0.2", (f"10.96.0.{number}", 80)))
ready()
wait_for(sys.argv[1] + "-goes-on")
for number in range(101, 117):
    equal(ask(udp, f"10.96.0.{number}"), ("127.0.0.3", (f"10.96.0.{number}", 80)))
equal(errno_of(ask, udp, "10.96.0.117"), "ENETUNREACH", "one too many")
equal(ask(udp, "10.96.0.101")[0], "127.0.0.3")
PY
  services=()
  for number in {101..117}; do
    services+=("$(lb_service "s$number" "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.$number\"], \"lbAlgorithm\": \"least-connections\",
      \"backends\": $(lb_backends 127.0.0.3)}")")
  done
  lb_services "${services[@]}"
  choice_goes_on
  assert_equal "$(lb_stat '[.[].backends[].open] | add')" 0
}
