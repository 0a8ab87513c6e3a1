# Backends that go: the sockets that were translated to them are ended, in every network namespace of the node.

load helpers
load lb

setup_file() {
  lb_suite || return 0
  lb_pod second
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
  lb_services
  FOLLOW=$BATS_TEST_TMPDIR/follow
  mkfifo "$FOLLOW"
  # shellcheck disable=SC2086 # a list
  es_starts "$(es_program)" ${END_SOCKETS_FLAGS-}
}

teardown() {
  [ -n "${SUITE_SKIP-}" ] || es_stops
}

# es_starts COMMAND...: who follows, and end-sockets by that command.
es_starts() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn agent node1 sh -c 'follow=$1 && shift && "$0" follow <"$follow" | "$@"' "$(lab_lb_program)" "$FOLLOW" "$@" 3>&-
  exec 5>"$FOLLOW"
}

# They end by themselves with their input, of which they would not see the end if the pipe was opened again before.
es_stops() {
  local pid
  exec 5>&-
  [ -e "$LAB/pid/agent" ] || return 0
  read -r pid <"$LAB/pid/agent"
  lab_until 5 test ! -d "/proc/$pid" || true
  lab_stop agent 2>/dev/null || true
}

# es_loads [LOAD OPTION...]: the programs anew, with maps of their own, while nobody follows.
es_loads() {
  es_stops
  lab_until 5 lab_lb node1 unload
  lab_reload node1 "$@"
}

# es_traced OPTION...: end-sockets starts anew, under strace.
es_traced() {
  es_stops
  es_starts strace --quiet=all -f "$@" "$(es_program)"
}

# es_told_of COUNT: whether so many sockets were ended, by what the agent says.
es_told_of() { jq -se "([.[].ended[].ended] | add) == $1" "$LAB/log/agent" >/dev/null; }

es_program() {
  printf '%s\n' "${END_SOCKETS:-$LAB_REPO/target/release/end-sockets}"
}

# es_line NAME JSON: a line for follow, printed.
es_line() { printf '{"set": %s}\n' "$(lb_service "$1" "$2")"; }

# es_set NAME JSON: the same, told.
es_set() { es_line "$@" >&5; }

# es_both JSON: a line for each protocol, printed.
es_both() {
  local protocol
  for protocol in TCP UDP; do es_line "${protocol,,}" "$(jq -c ".protocol = \"$protocol\"" <<<"$1")"; done
}

# es_udp NAME JSON [FILTER]: the same of UDP, changed by jq.
es_udp() { es_set "$1" "$(jq -c ".protocol = \"UDP\" | ${3:-.}" <<<"$2")"; }

# es_client NAME [POD] <PROGRAM: a Python program in the background. It says that it is ready, then the backend goes.
es_client() {
  cat >"$BATS_TEST_TMPDIR/$1.py"
  lab_sockets "node1/${2:-pod}" "$BATS_TEST_TMPDIR/$1.ready" >"$BATS_TEST_TMPDIR/$1.out" 2>&1 5>&- <"$BATS_TEST_TMPDIR/$1.py" &
  printf '%s' $! >"$BATS_TEST_TMPDIR/$1.pid"
  lab_until 20 test -e "$BATS_TEST_TMPDIR/$1.ready" || fail "$(<"$BATS_TEST_TMPDIR/$1.out")"
}

# es_one_told KIND SECONDS: a client with one connection, which is told within that time.
es_one_told() {
  es_client client <<PY
hold("127.0.0.2")
until_connects($1, "10.96.0.1")
one = connect($1, "10.96.0.1")
ready()
equal(told([one], $2), ["ECONNABORTED"])
PY
}

# es_ends_well NAME...: the programs end, and none of them has anything to complain of.
es_ends_well() {
  local name
  for name in "$@"; do
    lab_until 30 test ! -d "/proc/$(<"$BATS_TEST_TMPDIR/$name.pid")" || fail "$name does not end" || return
    assert_equal "$(<"$BATS_TEST_TMPDIR/$name.out")" '' || return
  done
}

ES_ALL='{"clusterIps": ["10.96.0.1", "fd02::1"], "backends": [{"address": "127.0.0.2", "port": 8080}, {"address": "fd01::2", "port": 8080}]}'
ES_OTHERS='{"clusterIps": ["10.96.0.1", "fd02::1"], "backends": [{"address": "127.0.0.3", "port": 8080}, {"address": "fd01::3", "port": 8080}]}'

@test "every socket that is connected to a backend which goes is told, TCP and UDP, of both families, mapped or not, idle or not" {
  es_set tcp "$ES_ALL"
  es_udp udp "$ES_ALL"
  es_udp other "$ES_OTHERS" '.clusterIps = ["10.96.0.2", "fd02::2"]'
  for pod in pod second; do
    es_client "$pod" "$pod" <<'PY'
hold("127.0.0.2", "fd01::2", "127.0.0.3", "fd01::3")
until_connects(SOCK_DGRAM, "10.96.0.2")
to = ("10.96.0.1", AF_INET), ("fd02::1", AF_INET6), ("::ffff:10.96.0.1", AF_INET6)
sockets = [connect(kind, address, 80, family) for kind in (SOCK_STREAM, SOCK_DGRAM) for address, family in to for _ in range(3)]
# These stay: they were connected to the pod's own address.
direct = [connect(kind, address, PORT) for kind in (SOCK_STREAM, SOCK_DGRAM) for address in ("127.0.0.2", "fd01::2", "127.0.0.3")]
# These asked another Service first, or this one too.
for address, family in to:
    other = {"10.96.0.1": "10.96.0.2", "fd02::1": "fd02::2"}.get(address, "::ffff:10.96.0.2")
    for first in [other], [other, address], [address]:
        asked = new(SOCK_DGRAM, family)
        for one in first:
            ask(asked, one)
        asked.connect((address, 80))
        equal(answer(asked) in ("127.0.0.2", "fd01::2"), True)
        sockets.append(asked)
ready()
equal(told(sockets), ["ECONNABORTED"] * len(sockets))
equal([error_of(one) for one in direct], [None] * len(direct))
for one in direct[3:]:
    one.send(b"?"); one.recv(64)
# And it can go on with another backend.
equal(reach(SOCK_DGRAM, "10.96.0.1"), "127.0.0.3")
PY
  done
  es_set tcp "$ES_OTHERS"
  es_udp udp "$ES_OTHERS"
  es_ends_well pod second
  lab_until 5 es_told_of 54 || fail "$(<"$LAB/log/agent")"
}

@test "a UDP socket that is connected once and only written to goes on with another backend, of both families, mapped or not, also with a port and an address of its own, and a child's" {
  # With the rights that the chart gives.
  local rights='-all,+net_admin,+net_broadcast,+sys_admin,+dac_override,+sys_ptrace,+bpf,+perfmon'
  es_stops
  es_starts setpriv --bounding-set "$rights" --inh-caps "$rights" "$(es_program)"
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
until_connects(SOCK_DGRAM, "10.96.0.1")
# A process that has it from another one, which has closed it, and is another user's.
passed_on = connect(SOCK_DGRAM, "10.96.0.1")
child = os.fork()
if not child:
    os.setuid(1337)
    os._exit(goes_on(passed_on, "127.0.0.3", 20) is None)
passed_on.close()
hold("127.0.0.2", "fd01::2", "127.0.0.3", "fd01::3")
to = ("10.96.0.1", AF_INET, "127.0.0.3"), ("fd02::1", AF_INET6, "fd01::3"), ("::ffff:10.96.0.1", AF_INET6, "127.0.0.3")
own = (None, ("", 7001), ("127.0.0.4", 7006)), (None, ("", 7002), ("fd01::4", 7003)), (None, ("", 7004), ("::ffff:127.0.0.4", 7005))
ones = []
for (address, family, backend), names in zip(to, own):
    for name in names:
        one = new(SOCK_DGRAM, family)
        if name:
            one.bind(name)
        one.connect((address, 80))
        ones.append((one, address, backend, name))
ready()
for one, address, backend, name in ones:
    errors = goes_on(one, backend)
    # Who asks and waits is told once, and asks again. Meanwhile there is a moment in which it is not connected.
    equal([error for error in errors or [] if error != "EDESTADDRREQ"], ["ECONNABORTED"], (address, name))
    equal(one.getpeername()[:2], (address, 80))
    host, port = one.getsockname()[:2]
    equal(name in (None, ("", port), (host, port)), True, (name, host, port))
equal(os.waitpid(child, 0)[1], 0, "the child's")
PY
  es_udp udp "$ES_OTHERS"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
  metrics end-sockets sockets_ended_total 10 sockets_reconnected_total 10
  assert_equal "$(jq -s '[.[].ended[].reconnected] | add' "$LAB/log/agent")" 10
}

@test "a UDP socket stays ended if it was bound to an interface, and as long as its Service has no backend; and somebody's own connect() stands" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  es_traced --trace=pidfd_getfd --inject=pidfd_getfd:delay_enter=1000000 --output=/dev/null
  local service
  for service in 1 2; do
    es_udp "udp$service" "$ES_ALL" ".clusterIps = [\"10.96.0.$service\"]"
  done
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3", "127.0.0.4")
until_connects(SOCK_DGRAM, "10.96.0.2")
elsewhere, none, bound = (connect(SOCK_DGRAM, address) for address in ("10.96.0.1", "10.96.0.2", "10.96.0.1"))
bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
ready()
equal(told([elsewhere]), ["ECONNABORTED"])
elsewhere.connect(("127.0.0.4", PORT))
equal(told([none, bound]), ["ECONNABORTED"] * 2)
time.sleep(3)
equal([errno_of(one.send, b"?") for one in (none, bound)], ["EDESTADDRREQ"] * 2)
ready("seen")
equal(set(goes_on(none, "127.0.0.3", 10) or []), {"EDESTADDRREQ"})
equal(none.getpeername(), ("10.96.0.2", 80))
equal(errno_of(bound.send, b"?"), "EDESTADDRREQ")
equal((elsewhere.getpeername(), answer(elsewhere)), (("127.0.0.4", PORT), "127.0.0.4"))
PY
  es_udp udp1 "$ES_OTHERS"
  es_set udp2 '{"protocol": "UDP", "clusterIps": ["10.96.0.2"]}'
  lab_until 20 test -e "$BATS_TEST_TMPDIR/client.readyseen" || fail "$(<"$BATS_TEST_TMPDIR/client.out")"
  es_udp udp2 "$ES_OTHERS" '.clusterIps = ["10.96.0.2"]'
  es_ends_well client || fail "$(<"$LAB/log/agent")"
  metrics end-sockets sockets_ended_total 3 sockets_reconnected_total 1
}

@test "a UDP socket that waits for a backend is tried again as long as its process has it" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  es_traced --trace=pidfd_getfd --output="$BATS_TEST_TMPDIR/calls"
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
until_connects(SOCK_DGRAM, "10.96.0.1")
kept, closed, replaced = (connect(SOCK_DGRAM, "10.96.0.1") for _ in range(3))
ready()
equal(told([kept, closed, replaced]), ["ECONNABORTED"] * 3)
time.sleep(3)
closed.close()
other = new(SOCK_DGRAM, AF_INET)
os.dup2(other.fileno(), replaced.fileno())
ready("closed")
wait_for(sys.argv[1] + "back")
hold("127.0.0.3")
equal(goes_on(kept, "127.0.0.3", 10) is None, False)
equal(errno_of(other.getpeername), "ENOTCONN")
PY
  es_set udp '{"protocol": "UDP", "clusterIps": ["10.96.0.1"]}'
  lab_until 20 test -e "$BATS_TEST_TMPDIR/client.readyclosed" || fail "$(<"$BATS_TEST_TMPDIR/client.out")"
  sleep 3
  : >"$BATS_TEST_TMPDIR/calls"
  sleep 5
  # es_copied: how often a descriptor was, since.
  es_copied() { grep -c pidfd_getfd "$BATS_TEST_TMPDIR/calls"; }
  [[ $(es_copied) == [1-3] ]] || fail "$(<"$BATS_TEST_TMPDIR/calls")"
  es_udp udp "$ES_OTHERS"
  : >"$BATS_TEST_TMPDIR/client.readyback"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
  metrics end-sockets sockets_ended_total 3 sockets_reconnected_total 1
}

@test "a UDP socket whose Service is left to the host path goes on by it" {
  # As if the node answered.
  lab_in node1/second ip address add 10.96.0.1/32 dev lo
  es_udp udp "$ES_ALL"
  es_client client second <<'PY'
hold("127.0.0.2")
serve("10.96.0.1", port=80)
while reach(SOCK_DGRAM, "10.96.0.1") != "127.0.0.2":
    time.sleep(.01)
one = connect(SOCK_DGRAM, "10.96.0.1")
ready()
equal("ECONNABORTED" in (goes_on(one, "10.96.0.1") or []), True)
PY
  printf '{"remove": {"namespace": "test", "name": "udp"}}\n' >&5
  es_ends_well client || fail "$(<"$LAB/log/agent")"
  lab_in node1/second ip address delete 10.96.0.1/32 dev lo
}

@test "that a kernel gives no copy of a process' socket is said once, and the sockets are ended" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  es_traced --trace=pidfd_getfd --inject=pidfd_getfd:error=ENOSYS --output=/dev/null
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
until_connects(SOCK_DGRAM, "10.96.0.1")
# The first one stays open, for its copy to be asked for.
held = []
for step in "", "later":
    held.append(connect(SOCK_DGRAM, "10.96.0.1"))
    ready(step)
    equal(told(held[-1:]), ["ECONNABORTED"], step)
    equal(errno_of(held[-1].send, b"?"), "EDESTADDRREQ", step)
PY
  es_udp udp "$ES_OTHERS"
  lab_until 10 test -e "$BATS_TEST_TMPDIR/client.readylater" || fail "$(<"$BATS_TEST_TMPDIR/client.out")"
  es_udp udp "$ES_ALL"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
  metrics end-sockets sockets_ended_total 2 sockets_reconnected_total 0
  assert_equal "$(grep -c pidfd_getfd "$LAB/log/agent")" 1
}

@test "processes' descriptors are looked at where UDP sockets were ended, once for all of these, and for no others" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  es_traced --trace=%file --output="$BATS_TEST_TMPDIR/calls"
  # es_looked: into which processes.
  es_looked() { sed -n 's|.*"/proc/\([0-9]*\)/fd".*|\1|p' "$BATS_TEST_TMPDIR/calls" | sort; }
  es_set tcp "$ES_ALL"
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
until_connects(SOCK_DGRAM, "10.96.0.1")
tcp, udp = ([connect(kind, "10.96.0.1") for _ in range(5)] for kind in (SOCK_STREAM, SOCK_DGRAM))
ready()
equal(told(tcp), ["ECONNABORTED"] * 5)
ready("told")
equal([goes_on(one, "127.0.0.3") is None for one in udp], [False] * 5)
PY
  es_set tcp "$ES_OTHERS"
  lab_until 10 test -e "$BATS_TEST_TMPDIR/client.readytold" || fail "$(<"$BATS_TEST_TMPDIR/client.out")"
  lab_until 5 es_told_of 5 || fail "$(<"$LAB/log/agent")"
  assert_equal "$(es_looked)" ''
  es_udp udp "$ES_OTHERS"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
  lab_until 5 es_told_of 10 || fail "$(<"$LAB/log/agent")"
  [ -n "$(es_looked)" ] || fail "$(<"$BATS_TEST_TMPDIR/calls")"
  assert_equal "$(es_looked | uniq -d)" ''
}

@test "who searches never has the maps mapped as a whole" {
  es_set tcp "$ES_ALL"
  es_one_told SOCK_STREAM 5
  es_set tcp "$ES_OTHERS"
  es_ends_well client
  # In KiB. The maps of the table and of sockets are 38 MiB.
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 sh -c 'sed -n "s/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$(pgrep -nx end-sockets)/status"'
  # shellcheck disable=SC2154 # set by expect
  [ "$output" -lt 10240 ] || fail "$output KiB"
}

@test "sockets that asked for a node port, on this node's address or on another node's, end with their backend" {
  printf '{"nodes": {"nodeAddresses": ["127.9.9.9"], "nodes": [{"name": "node2", "addresses": ["127.9.9.2"]}]}}\n' >&5
  local service='{"clusterIps": ["10.96.0.1"], "nodePort": 30080, "externalTrafficPolicy": "Local", "backends": [
    {"address": "127.0.0.2", "port": 8080, "node": "node2"}, {"address": "127.0.0.3", "port": 8080, "local": true}]}'
  es_set node-port "$service"
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
until_connects(SOCK_STREAM, "127.9.9.2", 30080)
other = [connect(SOCK_STREAM, "127.9.9.2", 30080) for _ in range(3)]
own = [connect(SOCK_STREAM, "127.9.9.9", 30080) for _ in range(20)]
gone = [one for one in own if one.recv(64) == b"127.0.0.2"]
kept = [one for one in own if one not in gone]
equal(bool(gone and kept), True)
ready()
equal(told(other + gone), ["ECONNABORTED"] * len(other + gone))
equal([error_of(one) for one in kept], [None] * len(kept))
equal(errno_of(connect, SOCK_STREAM, "127.9.9.2", 30080), "ECONNREFUSED")
PY
  es_set node-port "$(jq -c '.backends |= .[1:]' <<<"$service")"
  es_ends_well client
}

@test "TCP connections to a backend that drains stay until it has left, UDP sockets while it serves; then they end" {
  es_set tcp "$ES_ALL"
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2")
until_connects(SOCK_DGRAM, "10.96.0.1")
tcp, udp = connect(SOCK_STREAM, "10.96.0.1"), connect(SOCK_DGRAM, "10.96.0.1")
ready()
wait_for(sys.argv[1] + "drains")
equal([error_of(one) for one in (tcp, udp)], [None, None], "drains")
ready("seen")
equal(told([udp]), ["ECONNABORTED"], "does not serve")
equal(error_of(tcp), None)
ready("told")
equal(told([tcp]), ["ECONNABORTED"], "has left")
PY
  local drains protocol
  # Another one serves meanwhile.
  drains=$(jq -c '. + {draining: [.backends[0] + {serving: true}], backends: (.backends[1:] + [{address: "127.0.0.3", port: 8080}])}' <<<"$ES_ALL")
  for protocol in TCP UDP; do es_set "${protocol,,}" "$(jq -c ".protocol = \"$protocol\"" <<<"$drains")"; done
  sleep 2
  : >"$BATS_TEST_TMPDIR/client.readydrains"
  lab_until 5 test -e "$BATS_TEST_TMPDIR/client.readyseen" || fail "$(<"$BATS_TEST_TMPDIR/client.out")"
  for protocol in TCP UDP; do es_set "${protocol,,}" "$(jq -c ".protocol = \"$protocol\" | .draining[0].serving = false" <<<"$drains")"; done
  lab_until 5 test -e "$BATS_TEST_TMPDIR/client.readytold" || fail "$(<"$BATS_TEST_TMPDIR/client.out")"
  for protocol in TCP UDP; do es_set "${protocol,,}" "$(jq -c ".protocol = \"$protocol\" | .draining = []" <<<"$drains")"; done
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "a UDP socket stays with the last backend of its family while that does not serve, until another one does" {
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2")
until_connects(SOCK_DGRAM, "10.96.0.1")
udp = connect(SOCK_DGRAM, "10.96.0.1")
ready()
wait_for(sys.argv[1] + "unready")
equal(error_of(udp), None)
equal(answer(udp), "127.0.0.2")
ready("seen")
equal(told([udp]), ["ECONNABORTED"])
PY
  local unready
  unready=$(jq -c '. + {protocol: "UDP", draining: [.backends[0] + {serving: false}], backends: .backends[1:]}' <<<"$ES_ALL")
  es_set udp "$unready"
  sleep 2
  : >"$BATS_TEST_TMPDIR/client.readyunready"
  lab_until 5 test -e "$BATS_TEST_TMPDIR/client.readyseen" || fail "$(<"$BATS_TEST_TMPDIR/client.out")"
  es_set udp "$(jq -c '.backends += [{address: "127.0.0.3", port: 8080}]' <<<"$unready")"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "a socket that reached the same backend by another Service stays, and so does one that goes on elsewhere" {
  es_udp one "$ES_ALL"
  es_udp two "$ES_ALL" '.clusterIps = ["10.96.0.2"]'
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
until_connects(SOCK_DGRAM, "10.96.0.2")
one, two, gone_on = (connect(SOCK_DGRAM, address) for address in ("10.96.0.1", "10.96.0.2", "10.96.0.1"))
gone_on.connect(("127.0.0.2", PORT))
ready()
equal(told([one]), ["ECONNABORTED"])
equal([answer(two), answer(gone_on)], ["127.0.0.2"] * 2)
PY
  es_udp one "$ES_OTHERS"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

# es_moves INHERITS: an external address moves from one Service to another, which claimed it all the time, or asks for it afterwards.
es_moves() {
  local blue green
  blue='{"clusterIps": ["10.96.0.1"], "externalIps": ["10.97.0.1"], "created": "2026-01-01T00:00:00Z", "backends": [{"address": "127.0.0.2", "port": 8080}]}'
  green='{"clusterIps": ["10.96.0.2"], "externalIps": ["10.97.0.1"], "created": "2026-02-01T00:00:00Z", "backends": [{"address": "127.0.0.3", "port": 8080}]}'
  for protocol in TCP UDP; do
    es_set "blue-$protocol" "$(jq -c ".protocol = \"$protocol\"" <<<"$blue")"
    es_set "green-$protocol" "$(jq -c ".protocol = \"$protocol\" | if $1 then . else .externalIps = [] end" <<<"$green")"
  done
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
until_connects(SOCK_DGRAM, "10.96.0.2")
moved, stays = connect(SOCK_DGRAM, "10.97.0.1"), connect(SOCK_DGRAM, "10.96.0.1")
tcp = connect(SOCK_STREAM, "10.97.0.1")
equal([answer(moved), answer(stays)], ["127.0.0.2"] * 2)
ready()
equal(told([moved]), ["ECONNABORTED"])
equal([error_of(tcp), answer(stays)], [None, "127.0.0.2"])
equal(answer(connect(SOCK_DGRAM, "10.97.0.1")), "127.0.0.3")
PY
  for protocol in TCP UDP; do
    es_set "blue-$protocol" "$(jq -c ".protocol = \"$protocol\" | .externalIps = []" <<<"$blue")"
    es_set "green-$protocol" "$(jq -c ".protocol = \"$protocol\"" <<<"$green")"
  done
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "when an external address moves to another Service, UDP sockets that led to the old one's backend end, as conntrack's entries do; TCP stays" {
  es_moves true
}

@test "so it is when the other Service asks for the address after the first has given it up" {
  es_moves false
}

@test "an address that is left to the host path ends no connection and goes to nobody else, and with its Service set again who led to what went is told" {
  local both='{"clusterIps": ["10.96.0.1"], "created": "2026-01-01T00:00:00Z", "backends": [{"address": "127.0.0.2", "port": 8080}, {"address": "127.0.0.3", "port": 8080}]}'
  es_set api "$both"
  es_set thief '{"clusterIps": ["10.96.0.2"], "externalIps": ["10.96.0.1"], "created": "2026-02-01T00:00:00Z", "backends": [{"address": "127.0.0.4", "port": 8080}]}'
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
until_connects(SOCK_STREAM, "10.96.0.1")
ones = {}
while len(ones) < 2:
    one = connect(SOCK_STREAM, "10.96.0.1")
    ones[answer(one)] = one
ready()
equal(told([ones["127.0.0.2"]], 20), ["ECONNABORTED"])
equal(error_of(ones["127.0.0.3"]), None)
equal(answer(connect(SOCK_STREAM, "10.96.0.1")), "127.0.0.3")
PY
  printf '{"leave": {"address": "10.96.0.1", "port": 80}}\n' >&5
  lab_until 5 es_leads '[]'
  # Nor to one that is set again meanwhile.
  es_set thief '{"clusterIps": ["10.96.0.2"], "externalIps": ["10.96.0.1"], "created": "2026-02-01T00:00:00Z", "backends": [{"address": "127.0.0.5", "port": 8080}]}'
  sleep 2
  es_leads '[]'
  ! grep '"ended"' "$LAB/log/agent" || fail 'a socket was ended'
  es_set api "$(jq -c 'del(.backends[0])' <<<"$both")"
  lab_until 5 es_leads '["api"]'
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

# es_leads NAMES: which Services have 10.96.0.1.
es_leads() { [ "$(lab_lb node1 show | jq -c '[.services[] | select(.clusterIps + .externalIps | index("10.96.0.1")).name]')" = "$1" ]; }

@test "the sockets of a Service that is removed and made again by another name are told, also when both come at once" {
  for protocol in TCP UDP; do es_set "old-$protocol" "$(jq -c ".protocol = \"$protocol\"" <<<"$ES_ALL")"; done
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
until_connects(SOCK_DGRAM, "10.96.0.1")
ones = [connect(SOCK_STREAM, "10.96.0.1"), connect(SOCK_DGRAM, "10.96.0.1")]
ready()
equal(told(ones), ["ECONNABORTED"] * 2)
PY
  {
    for protocol in TCP UDP; do
      printf '{"remove": {"namespace": "test", "name": "old-%s"}}\n' "$protocol"
      printf '{"set": %s}\n' "$(lb_service "new-$protocol" "$(jq -c ".protocol = \"$protocol\"" <<<"$ES_OTHERS")")"
    done
  } >"$BATS_TEST_TMPDIR/lines"
  cat "$BATS_TEST_TMPDIR/lines" >&5
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

# es_stays SECONDS [ADDRESS]: a client's connections to 10.96.0.1 over both protocols, which are told nothing for so long; made when ADDRESS
# answers too.
es_stays() {
  es_client client <<PY
hold("127.0.0.2")
until_connects(SOCK_DGRAM, "10.96.0.1")
until_connects(SOCK_STREAM, "${2:-10.96.0.1}")
ones = [connect(kind, "10.96.0.1") for kind in (SOCK_STREAM, SOCK_DGRAM)]
ready()
equal(told(ones, $1), [None] * 2)
PY
}

@test "connections to an endpoint that is away for a moment stay, as when it moves from one EndpointSlice to another" {
  es_both "$ES_ALL" >&5
  es_stays 3
  # Made before: a machine with other work may take longer for it than an endpoint may be away.
  local away back
  away=$(es_both "$ES_OTHERS")
  back=$(es_both "$ES_ALL")
  printf '%s\n' "$away" >&5
  sleep 0.05
  printf '%s\n' "$back" >&5
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "connections to an endpoint that drains stay too when it is away for a moment" {
  local drains away
  drains=$(es_both "$(jq -c '.draining = [{"address": "127.0.0.2", "port": 8080, "serving": true}]' <<<"$ES_OTHERS")")
  away=$(es_both "$ES_OTHERS")
  es_both "$ES_ALL" >&5
  es_stays 4
  printf '%s\n' "$drains" >&5
  sleep 0.2
  printf '%s\n' "$away" >&5
  sleep 0.05
  printf '%s\n' "$drains" >&5
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "an endpoint has a second to come back from when it went itself, whoever went shortly before" {
  local away back
  away=$(es_both "$ES_OTHERS")
  back=$(es_both "$ES_ALL")
  es_both "$ES_ALL" >&5
  es_set other "$(jq -c '.clusterIps = ["10.96.0.9"]' <<<"$ES_ALL")"
  es_stays 3 10.96.0.9
  es_set other "$(jq -c '.clusterIps = ["10.96.0.9"]' <<<"$ES_OTHERS")"
  sleep 0.85
  printf '%s\n' "$away" >&5
  sleep 0.4
  printf '%s\n' "$back" >&5
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "connections to a Service's port that gets another name stay" {
  es_set port "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2", "fd01::2")
until_connects(SOCK_STREAM, "10.96.0.1")
before = [connect(SOCK_STREAM, "10.96.0.1"), connect(SOCK_STREAM, "fd02::1", 80, AF_INET6)]
ready()
until_connects(SOCK_STREAM, "10.96.0.9")
time.sleep(2)
equal([error_of(one) for one in before + [connect(SOCK_STREAM, "10.96.0.1")]], [None] * 3)
PY
  # As watch-services says it: the new one first. A Service after it says when both were done.
  printf '{"set": %s}\n{"remove": {"namespace": "test", "name": "port"}}\n' "$(lb_service port "$(jq -c '.portName = "http"' <<<"$ES_ALL")")" >&5
  es_set after "$(jq -c '.clusterIps = ["10.96.0.9"]' <<<"$ES_ALL")"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "a Multipath TCP socket whose server speaks plain TCP is told as well; one by another Service stays" {
  local one='{"clusterIps": ["10.96.0.1"], "backends": [{"address": "127.0.0.2", "port": 8080}]}'
  es_set one "$one"
  es_set two "$(jq -c '.clusterIps = ["10.96.0.2"]' <<<"$one")"
  es_client client <<'PY'
def connected(address):
    made = socket.socket(AF_INET, SOCK_STREAM, 262)
    made.settimeout(5)
    made.connect((address, 80))
    return made

hold("127.0.0.2")
until_connects(SOCK_STREAM, "10.96.0.2")
one, two = connected("10.96.0.1"), connected("10.96.0.2")
ready()
equal(told([one]), ["ECONNABORTED"])
equal(error_of(two), None)
PY
  es_set one "$(jq -c '.backends = []' <<<"$one")"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "sockets of a backend that went while no writer ran are ended with the first table" {
  es_udp udp "$ES_ALL"
  es_one_told SOCK_DGRAM 10
  es_stops
  # The kernel's table changes, and nobody is there to read what follow says.
  lab_until 5 lab_lb node1 follow </dev/null
  lb_services "$(lb_service udp "$(jq -c '.protocol = "UDP"' <<<"$ES_OTHERS")")"
  printf '{"table": {"services": [%s]}}\n' "$(lb_service udp "$(jq -c '.protocol = "UDP"' <<<"$ES_OTHERS")")" |
    lab_lb node1 follow >"$BATS_TEST_TMPDIR/answer"
  assert_json "$(<"$BATS_TEST_TMPDIR/answer")" '[.gone[] | .service, .backend, .why]' '["test/udp","127.0.0.2:8080","left"]'
  expect 0 lab_in node1 "$(es_program)" <"$BATS_TEST_TMPDIR/answer"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

# es_begins_anew SERVICE: follow gets a table with it first; the answer is in $BATS_TEST_TMPDIR/answer.
es_begins_anew() {
  printf '{"table": {"nodeAddresses": ["127.9.9.9", "fd01::9"], "services": [%s]}}\n' "$1" | lab_lb node1 follow >"$BATS_TEST_TMPDIR/answer"
  expect 0 lab_in node1 "$(es_program)" <"$BATS_TEST_TMPDIR/answer"
}

@test "a first table ends no connection to an endpoint that its Service still has for who comes another way" {
  local service now
  service='{"clusterIps": ["10.96.0.1"], "nodePort": 30080, "backends": [
    {"address": "127.0.0.2", "port": 8080}, {"address": "127.0.0.3", "port": 8080, "local": true}]}'
  es_stops
  for now in '.internalTrafficPolicy = "Local"' '.backends[0].scope = "external"'; do
    lab_until 5 lb_services "$(lb_service web "$service")"
    es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
ones = [connect(SOCK_STREAM, "10.96.0.1") for _ in range(20)]
equal({one.recv(64) for one in ones}, {b"127.0.0.2", b"127.0.0.3"})
ready()
wait_for(sys.argv[1] + "ended")
equal([error_of(one) for one in ones], [None] * len(ones))
PY
    es_begins_anew "$(lb_service web "$(jq -c "$now" <<<"$service")")"
    assert_json "$(<"$BATS_TEST_TMPDIR/answer")" '[.gone[] | .backend, .why]' '["127.0.0.2:8080","draining"]'
    : >"$BATS_TEST_TMPDIR/client.readyended"
    es_ends_well client
    rm "$BATS_TEST_TMPDIR"/client.ready*
  done
}

@test "a first table ends no TCP connection by an address that has moved to another Service, or to nobody, while the endpoint serves" {
  local blue green
  blue='{"clusterIps": ["10.96.0.1"], "created": "2026-01-01T00:00:00Z", "backends": [{"address": "127.0.0.2", "port": 8080}]}'
  green='{"clusterIps": ["10.96.0.2"], "created": "2026-02-01T00:00:00Z", "backends": [{"address": "127.0.0.3", "port": 8080}]}'
  es_stops
  lab_until 5 lb_services "$(lb_service blue "$(jq -c '.externalIps = ["10.97.0.1", "10.97.0.2"]' <<<"$blue")")" "$(lb_service green "$green")"
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
ones = [connect(SOCK_STREAM, address) for address in ("10.97.0.1", "10.97.0.2")]
ready()
wait_for(sys.argv[1] + "ended")
equal([error_of(one) for one in ones], [None, None])
PY
  es_begins_anew "$(lb_service blue "$blue"), $(lb_service green "$(jq -c '.externalIps = ["10.97.0.1"]' <<<"$green")")"
  assert_json "$(<"$BATS_TEST_TMPDIR/answer")" '[.gone[] | .service, .backend, .why]' '["test/green","127.0.0.2:8080","unready"]'
  : >"$BATS_TEST_TMPDIR/client.readyended"
  es_ends_well client || fail "$(<"$BATS_TEST_TMPDIR/answer")"
}

@test "an IPv6 socket that was translated in both families is told when the backend goes to which it is connected" {
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2", "fd01::2")
until_connects(SOCK_DGRAM, "10.96.0.1")
both = []
for first, last in ("fd02::1", "::ffff:10.96.0.1"), ("::ffff:10.96.0.1", "fd02::1"):
    one = connect(SOCK_DGRAM, first, family=AF_INET6)
    disconnect(one)
    one.connect((last, 80))
    both.append(one)
ready()
equal(told(both), ["ECONNABORTED"] * 2)
PY
  es_udp udp "$ES_OTHERS"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

# es_injects WHEN: the agent's end-sockets hears EOPNOTSUPP from the kernel at these calls of each thread: the first two ask for the lists of
# TCP's sockets, what follows is to end one.
es_injects() {
  # So that none has found its place taken: what few sockets keep is asked for too.
  es_loads
  es_traced --trace=sendto --inject="sendto:error=EOPNOTSUPP:when=$1" --output=/dev/null
}

@test "one socket that the kernel cannot end does not keep the others from being told, nor those of later" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  es_injects 3
  es_set tcp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
until_connects(SOCK_STREAM, "10.96.0.1")
for step in "", "later":
    ones = [connect(SOCK_STREAM, "10.96.0.1") for _ in range(5)]
    ready(step)
    equal(sorted(map(str, told(ones, 10, 4))), ["ECONNABORTED"] * 4 + ["None"], step)
PY
  es_set tcp "$ES_OTHERS"
  lab_until 10 test -e "$BATS_TEST_TMPDIR/client.readylater" || fail "$(<"$BATS_TEST_TMPDIR/client.out")"
  es_set tcp "$ES_ALL"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "a kernel that can end none is named once" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  es_injects 3+
  es_set tcp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2")
until_connects(SOCK_STREAM, "10.96.0.1")
ones = [connect(SOCK_STREAM, "10.96.0.1") for _ in range(2)]
ready()
equal(told(ones, 3), [None] * 2)
PY
  es_set tcp "$ES_OTHERS"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
  metrics end-sockets sockets_endable 0
  assert_equal "$(grep -c CONFIG_INET_DIAG_DESTROY "$LAB/log/agent")" 1
}

@test "a search that fails is made again, until the sockets are told" {
  es_set tcp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2")
until_connects(SOCK_STREAM, "10.96.0.1")
one = connect(SOCK_STREAM, "10.96.0.1")
ready()
equal(told([one], 15), ["ECONNABORTED"])
PY
  # No file can be opened any more.
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'prlimit --nofile=3: --pid "$(pgrep -nx end-sockets)"'
  es_set tcp "$ES_OTHERS"
  lab_until 10 grep -q 'Too many open files' "$LAB/log/agent"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'prlimit --nofile=1024: --pid "$(pgrep -nx end-sockets)"'
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "a search that fails for good is made five times, its error said once, and then that sockets may stay" {
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2")
until_connects(SOCK_DGRAM, "10.96.0.1")
one = connect(SOCK_DGRAM, "10.96.0.1")
ready()
equal(told([one]), ["ECONNABORTED"])
# It has its place in the maps until it is closed.
wait_for(sys.argv[1] + "over")
PY
  # A name that is no namespace's, and cannot be opened.
  lab_in node1 mkdir -p /run/netns
  lab_in node1 /usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/run/netns/none")'
  # No other backend takes its place.
  es_udp udp "$ES_ALL" '.backends = []'
  lab_until 45 grep -q 'may stay' "$LAB/log/agent" || fail "$(<"$LAB/log/agent")"
  sleep 5
  lab_in node1 rm /run/netns/none
  : >"$BATS_TEST_TMPDIR/client.readyover"
  es_ends_well client
  assert_equal "$(grep -c 'open a network namespace' "$LAB/log/agent")" 1
  metrics end-sockets sockets_errors_total 5
}

@test "a set of 8 backends is replaced while 8 TCP clients, 8 long-lived ones and 8 UDP clients run: all go on, none waits" {
  local all=() step protocol
  for step in {2..9}; do all+=("127.0.0.$step"); done
  for protocol in TCP UDP; do
    es_set "${protocol,,}" "{\"protocol\": \"$protocol\", \"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends "${all[@]}")}"
  done
  es_client clients <<'PY'
first, last = [f"127.0.0.{n}" for n in range(2, 10)], [f"127.0.1.{n}" for n in range(2, 10)]
for address in first + last:
    hold(address)
until_connects(SOCK_DGRAM, "10.96.0.1")
until_connects(SOCK_STREAM, "10.96.0.1")
over, failed, waits = threading.Event(), [], []
def one_by_one():
    while not over.is_set():
        if error := errno_of(reach, SOCK_STREAM, "10.96.0.1"):
            failed.append(error)
        time.sleep(.05)
def for_long(kind):
    """Keeps a socket until it is told, and goes on with another."""
    while True:
        kept = connect(kind, "10.96.0.1"); backend = answer(kept)
        if backend in last:
            over.wait(); return
        while not error_of(kept):
            if over.is_set():
                failed.append(f"{kind} never told of {backend}"); return
            time.sleep(.05)
        waits.append(time.time() - float(open(sys.argv[1] + backend).read()))
        kept.close()
threads = [threading.Thread(target=one_by_one) for _ in range(8)] + [
    threading.Thread(target=for_long, args=(kind,)) for kind in (SOCK_STREAM, SOCK_DGRAM) for _ in range(8)]
[thread.start() for thread in threads]
time.sleep(.5)
ready()
wait_for(sys.argv[1] + "over")
time.sleep(3)
over.set()
[thread.join() for thread in threads]
equal(failed, [])
equal(len(waits) >= 16, True, waits)
with open(sys.argv[1] + "waits", "w") as file:
    print(f"{sorted(waits)[len(waits) // 2]:.3f} {max(waits):.3f}", file=file)
PY
  for step in {2..9}; do
    all[step - 2]=127.0.1.$step
    date +%s.%N >"$BATS_TEST_TMPDIR/clients.ready127.0.0.$step"
    for protocol in TCP UDP; do
      es_set "${protocol,,}" "{\"protocol\": \"$protocol\", \"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends "${all[@]}")}"
    done
    sleep 0.2
  done
  : >"$BATS_TEST_TMPDIR/clients.readyover"
  es_ends_well clients
  printf '# told after, median and longest, in s: %s\n' "$(<"$BATS_TEST_TMPDIR/clients.readywaits")" >&3
}

# has_metric TOOL NAME VALUE: whether the tool's file says so. It is written every two seconds.
has_metric() {
  [ "$(lab_in node1 sed -n "s/^underpass_$2 //p" "/run/underpass/$1.prom")" = "$3" ]
}

# metrics TOOL NAME VALUE...
metrics() {
  local tool=$1
  shift
  while [ $# -gt 0 ]; do
    lab_until 10 has_metric "$tool" "$1" "$2" || fail "no $1 $2" "$(lab_in node1 cat "/run/underpass/$tool.prom")"
    shift 2
  done
}

@test "the metrics count connections and refusals of each Service, changes, errors, delays and ended sockets, also when backends go" {
  local of='namespace="test",service' begin sync
  begin=$(date +%s)
  printf '{"set": %s, "triggered": "%s"}\n' "$(lb_service web "$ES_ALL")" "$(date -u -d '100 seconds ago' +%Y-%m-%dT%H:%M:%SZ)" >&5
  es_set none '{"clusterIps": ["10.96.0.9"]}'
  printf 'nonsense\n' >&5
  es_client client <<'PY'
hold("127.0.0.2", "127.0.0.3")
while errno_of(connect, SOCK_STREAM, "10.96.0.9") != "ECONNREFUSED":
    time.sleep(.01)
before = [connect(SOCK_STREAM, "10.96.0.1") for _ in range(3)]
equal([errno_of(connect, SOCK_STREAM, "10.96.0.9") for _ in range(2)], ["ECONNREFUSED"] * 2)
ready()
equal(told(before), ["ECONNABORTED"] * 3)
after = [connect(SOCK_STREAM, "10.96.0.1") for _ in range(2)]
PY
  es_set web "$ES_OTHERS"
  es_ends_well client
  # The first series of a Service's backends went with them.
  metrics bpf-lb-load "lb_service_connections_total{$of=\"web\",port=\"\"}" 5 "lb_service_refused_total{$of=\"none\",port=\"\"}" 3 \
    lb_changes_total 3 lb_errors_total 1 lb_services 2 lb_endpoints 2 lb_attached 1 lb_incomplete_services 0 \
    lb_network_programming_duration_seconds_count 1 'lb_network_programming_duration_seconds_bucket{le="95"}' 0 \
    'lb_network_programming_duration_seconds_bucket{le="300"}' 1
  sync=$(lab_in node1 sed -n 's/^underpass_lb_last_sync_timestamp_seconds //p' /run/underpass/bpf-lb-load.prom)
  [ "$sync" -ge "$begin" ] && [ "$sync" -le "$(date +%s)" ] || fail "the last sync was at $sync, not since $begin"
  metrics end-sockets sockets_ended_total 3 sockets_errors_total 0 sockets_endable 1
}

@test "TCP sockets that found no place in the maps are told as well" {
  es_loads --max-sockets 1
  es_starts "$(es_program)"
  es_set tcp "$ES_ALL"
  es_udp udp "$ES_ALL"
  es_client client <<'PY'
hold("127.0.0.2", "fd01::2")
until_connects(SOCK_DGRAM, "10.96.0.1")
sockets = [connect(SOCK_STREAM, address) for address in ("10.96.0.1", "fd02::1", "::ffff:10.96.0.1") for _ in range(3)]
ready()
equal(told(sockets), ["ECONNABORTED"] * len(sockets))
PY
  es_set tcp "$ES_OTHERS"
  es_udp udp "$ES_OTHERS"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
}

@test "where sockets found no place, namespaces are entered for a backend that somebody used, and for no other" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  es_loads --max-sockets 1
  es_traced --trace=setns --output="$BATS_TEST_TMPDIR/calls"
  # es_entered: how often a namespace was entered.
  es_entered() { grep -c setns "$BATS_TEST_TMPDIR/calls"; }
  es_set tcp "$ES_ALL"
  es_udp udp "$ES_ALL"
  es_set idle '{"clusterIps": ["10.96.0.7"], "backends": [{"address": "127.0.0.4", "port": 8080}]}'
  es_client client <<'PY'
hold("127.0.0.2")
until_connects(SOCK_DGRAM, "10.96.0.1")
sockets = [connect(SOCK_STREAM, "10.96.0.1") for _ in range(3)]
# And one whose socket is closed already.
connect(SOCK_DGRAM, "10.96.0.1").close()
ready()
equal(told(sockets, 20), ["ECONNABORTED"] * len(sockets))
PY
  # The kernel lists to nobody what UDP sockets keep themselves.
  es_udp udp "$ES_OTHERS"
  sleep 1
  es_set idle '{"clusterIps": ["10.96.0.7"], "backends": [{"address": "127.0.0.5", "port": 8080}]}'
  sleep 1
  printf '{"remove": {"namespace": "test", "name": "idle"}}\n' >&5
  sleep 2
  assert_equal "$(es_entered)" 0
  es_set tcp "$ES_OTHERS"
  es_ends_well client || fail "$(<"$LAB/log/agent")"
  [ "$(es_entered)" -gt 0 ] || fail "$(<"$BATS_TEST_TMPDIR/calls")"
}
