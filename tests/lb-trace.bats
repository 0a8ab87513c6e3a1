# The socket load balancer: each translation as it happens.
# shellcheck disable=SC2030,SC2031,SC2094 # a trace's file is its test's own

load helpers
load lb

setup_file() {
  lb_suite || return 0
  lb_pod second
  local protocol
  lb_services "$(for protocol in TCP UDP; do
    lb_service "web-${protocol,,}" "{\"protocol\": \"$protocol\", \"portName\": \"www\", \"clusterIps\": [\"10.96.0.1\", \"fd02::1\"],
      \"backends\": $(lb_backends 127.0.0.2 fd01::2)}"
    lb_service "none-${protocol,,}" "{\"protocol\": \"$protocol\", \"clusterIps\": [\"10.96.0.2\", \"fd02::2\"]}"
  done | paste -sd,)"
  cat >"$BATS_FILE_TMPDIR/calls" <<'PY'
serve("127.0.0.2", "fd01::2")
for address in "10.96.0.1", "fd02::1":
    reach(SOCK_STREAM, address)
    reach(SOCK_DGRAM, address)
    ask(new(SOCK_DGRAM, address), address)
reach(SOCK_STREAM, "::ffff:10.96.0.1", family=AF_INET6)
for address in "10.96.0.2", "fd02::2":
    equal(errno_of(connect, SOCK_STREAM, address), "ECONNREFUSED")
    equal(errno_of(ask, new(SOCK_DGRAM, address), address), "ECONNREFUSED")
# What is no Service's.
reach(SOCK_STREAM, "127.0.0.2", 8080)
ask(new(SOCK_DGRAM, "fd01::2"), "fd01::2", 8080)
PY
}

teardown() {
  [ -z "${tracer-}" ] || trace_ends || :
}

# trace_begins [ARGUMENT...]: traces into $trace from here on, and does not return before it does.
trace_begins() {
  trace=$BATS_TEST_TMPDIR/trace
  : >"$trace.err"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'printf "%s\n" $$ >"$0.pid" && exec "$@"' "$trace" "$(lab_lb_program)" trace "$@" >"$trace" 2>"$trace.err" 3>&- &
  tracer=$!
  lab_until 30 grep -q tracing "$trace.err" || fail "$(<"$trace.err")"
}

enough() {
  (($(wc -l <"$trace") >= $1))
}

# trace_has COUNT: once there are so many lines, and three times as long as a batch takes has passed, there are no more.
trace_has() {
  lab_until 10 enough "$1" || true
  sleep 0.3
  assert_equal "$(wc -l <"$trace")" "$1" || fail "$(<"$trace")" "$(<"$trace.err")"
}

# trace_ends [SIGNAL]: by that, and not before it by itself.
trace_ends() {
  local ended=0
  lab_in node1 kill "-${1:-TERM}" "$(<"$trace.pid")" || true
  wait "$tracer" 2>/dev/null || ended=$?
  tracer=
  assert_equal "$ended" $((128 + $(kill -l "${1:-TERM}"))) || fail "$(<"$trace.err")"
}

# trace_of_calls COUNT [ARGUMENT...]: a trace of all the calls has so many lines.
trace_of_calls() {
  trace_begins "${@:2}"
  lab_sockets node1/pod <"$BATS_FILE_TMPDIR/calls"
  trace_has "$1"
  trace_ends
}

@test "each call to a Service is told of with pod, process, Service and backend, or why it got none; others are not" {
  trace_of_calls 11
  assert_same "$(jq -r '[.call, .family, .protocol, .frontend, .service, .backend // .outcome, .errno // 0] | join(" ")' "$trace")" \
    'connect IPv4 TCP 10.96.0.1:80 test/web-tcp:www 127.0.0.2:8080 0
connect IPv4 UDP 10.96.0.1:80 test/web-udp:www 127.0.0.2:8080 0
sendmsg IPv4 UDP 10.96.0.1:80 test/web-udp:www 127.0.0.2:8080 0
connect IPv6 TCP [fd02::1]:80 test/web-tcp:www [fd01::2]:8080 0
connect IPv6 UDP [fd02::1]:80 test/web-udp:www [fd01::2]:8080 0
sendmsg IPv6 UDP [fd02::1]:80 test/web-udp:www [fd01::2]:8080 0
connect IPv6 TCP 10.96.0.1:80 test/web-tcp:www 127.0.0.2:8080 0
connect IPv4 TCP 10.96.0.2:80 test/none-tcp no-backends 111
sendmsg IPv4 UDP 10.96.0.2:80 test/none-udp no-backends 111
connect IPv6 TCP [fd02::2]:80 test/none-tcp no-backends 111
sendmsg IPv6 UDP [fd02::2]:80 test/none-udp no-backends 111'
  assert_equal "$(jq -r '[.netns, .process, (.pid > 1), (.netnsCookie > 0), (.cgroup > 0)] | join(" ")' "$trace" | sort -u)" \
    'pod python3 true true true'
  # The time is that of now.
  assert_equal "$(jq -s --argjson now "$(date +%s)" 'all(.[].time; sub("\\.[0-9]+Z"; "Z") | fromdate | $now - . | . >= -1 and . < 60)' "$trace")" true
}

@test "every line fits the JSON Schema" {
  /usr/bin/python3 -c 'import jsonschema' 2>/dev/null || skip 'python3-jsonschema is not installed: run scripts/setup'
  trace_of_calls 11
  printf '{"lost":3}\n' >>"$trace"
  lab_lb node1 schema trace >"$trace.schema"
  /usr/bin/python3 - "$trace" "$trace.schema" <<'PY'
import json, jsonschema, sys
schema = json.load(open(sys.argv[2]))
lines = [json.loads(line) for line in open(sys.argv[1])]
assert len(lines) == 12
for line in lines:
    jsonschema.validate(line, schema)
try:
    jsonschema.validate({**lines[0], "outcome": "another"}, schema)
    sys.exit("the schema lets everything through")
except jsonschema.ValidationError:
    pass
PY
}

@test "filters: by Service, by pod and by address; one of each has to fit" {
  trace_of_calls 3 --service test/web-tcp --service test/none-udp:nobody --service test/none-tcp --address 10.96.0.1 --address fd02::2
  trace_of_calls 4 --service test/web-udp:www --address 127.0.0.2 --address '[fd02::1]:80' --pod pod --pod nobody
  trace_of_calls 0 --service test/web-tcp --address 10.96.0.1:81
  trace_of_calls 0 --pod second
  trace_of_calls 11 --pod "$(jq -r '.netnsCookie' <(trace_of_calls 11 && head -n 1 "$trace"))"
}

@test "by address one is told of calls to what is no Service's, too" {
  trace_of_calls 9 --address 127.0.0.2:8080 --address '[fd01::2]:8080'
  assert_equal "$(jq -r 'select(.outcome == "no-service") | [.call, .frontend, .service, .backend] | join(" ")' "$trace")" \
    'connect 127.0.0.2:8080  
sendmsg [fd01::2]:8080  '
}

@test "who takes no part, and who asks for a port that no Service has, is told why" {
  lab_lb node1 show | jq -c '.refuse = ["10.96.0.0/16"]' | lab_lb node1 apply >/dev/null
  trace_begins
  lab_sockets node1/pod <<'PY'
equal(errno_of(connect, SOCK_STREAM, "10.96.0.1", 81), "ECONNREFUSED")
PY
  lab_reload node1 --scope all-but
  lab_lb node1 register /run/netns/second
  lab_sockets node1/second <<'PY'
equal(errno_of(connect, SOCK_STREAM, "10.96.0.1"), "ENETUNREACH")
PY
  trace_has 2
  assert_equal "$(jq -r '[.netns, .frontend, .outcome, .errno // 0] | join(" ")' "$trace")" \
    'pod 10.96.0.1:81 no-such-port 111
second 10.96.0.1:80 takes-no-part 0'
  lab_lb node1 unregister /run/netns/second
  lab_reload node1 --scope all
  lab_lb node1 show | jq -c '.refuse = []' | lab_lb node1 apply >/dev/null
}

@test "UDP that is left to the host path for want of a backend is told of as such, and TCP as refused" {
  lab_reload node1 --host-path
  trace_begins
  lab_sockets node1/pod <<'PY'
equal(errno_of(connect, SOCK_DGRAM, "10.96.0.2"), "ENETUNREACH")
equal(errno_of(ask, new(SOCK_DGRAM, "fd02::2"), "fd02::2"), "ENETUNREACH")
equal(errno_of(connect, SOCK_STREAM, "10.96.0.2"), "ECONNREFUSED")
PY
  trace_has 3
  assert_equal "$(jq -r '[.call, .frontend, .service, .outcome, .errno // 0] | join(" ")' "$trace")" \
    'connect 10.96.0.2:80 test/none-udp host-path 0
sendmsg [fd02::2]:80 test/none-udp host-path 0
connect 10.96.0.2:80 test/none-tcp no-backends 111'
  trace_ends
  lab_reload node1
}

@test "what an IPv6 socket sends on a connection is no call to the Service of the IPv4 address that it is connected to, with backends or without" {
  lab_reload node1 --host-path
  trace_begins
  lab_sockets node1/pod "$(lab_lb_program)" <<'PY'
name = {"namespace": "test", "name": "late"}
late = {**name, "protocol": "UDP", "port": PORT, "externalIps": ["127.0.0.5"]}
serve("127.0.0.2", "127.0.0.5")
before = connect(SOCK_DGRAM, "::ffff:127.0.0.5", PORT, AF_INET6)
follow(set=late)
none = connect(SOCK_DGRAM, "::ffff:127.0.0.5", PORT, AF_INET6)
equal([answer(one) for one in (before, none)], ["127.0.0.5"] * 2)
follow(set={**late, "backends": [{"address": "127.0.0.2", "port": PORT}]})
equal([answer(one) for one in (before, none)], ["127.0.0.5"] * 2)
none.connect(("::ffff:127.0.0.5", PORT))
equal(answer(none), "127.0.0.2")
# By another name the same backend is asked for anew.
follow(set={**late, "name": "other", "externalIps": ["127.0.0.6"], "backends": [{"address": "127.0.0.2", "port": PORT}]})
equal(none.sendto(b"?", ("::ffff:127.0.0.6", PORT)), 1)
for one in "late", "other":
    follow(remove={**name, "name": one})
PY
  trace_has 3
  assert_equal "$(jq -r '[.call, .frontend, .backend // .outcome] | join(" ")' "$trace")" \
    'connect 127.0.0.5:8080 host-path
connect 127.0.0.5:8080 127.0.0.2:8080
sendmsg 127.0.0.6:8080 127.0.0.2:8080'
  trace_ends
  lab_reload node1
}

@test "of an IPv4-mapped Service without backends that the kernel refuses to a socket for IPv6 alone, just that is told" {
  trace_begins
  lab_sockets node1/pod <<'PY'
for kind in SOCK_STREAM, SOCK_DGRAM:
    alone = new(kind, AF_INET6)
    alone.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    equal(errno_of(alone.connect, ("::ffff:10.96.0.2", 80)), "ENETUNREACH")
PY
  trace_has 2
  assert_equal "$(jq -r '[.protocol, .frontend, .service, .outcome, .errno // 0] | join(" ")' "$trace")" \
    'TCP 10.96.0.2:80 test/none-tcp ipv6-only 0
UDP 10.96.0.2:80 test/none-udp ipv6-only 0'
}

@test "a pod that the plugin made a way for is called by its name, and the node's own processes are the node's" {
  local state=/run/underpass/attachments
  lab_in node1 mkdir -p "$state"
  jq -n '{version: 1, request: {command: "ADD", containerId: "c", ifname: "eth0", netns: "/run/netns/pod", config: {},
    args: "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"}}' | lab_in node1 tee "$state/c@eth0.json" >/dev/null
  trace_of_calls 11 --pod shop/web-0
  assert_equal "$(jq -r .pod "$trace" | sort -u)" shop/web-0
  lab_in node1 rm "$state/c@eth0.json"
  trace_begins --pod node
  lab_sockets node1 <<'PY'
equal(errno_of(connect, SOCK_STREAM, "10.96.0.2"), "ECONNREFUSED")
PY
  trace_has 1
}

@test "on a terminal a call is a line for people, whatever the process calls itself" {
  trace=$BATS_TEST_TMPDIR/trace
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 script --quiet --flush --return --command "echo \$\$ >$trace.pid; exec $(lab_lb_program) trace 2>$trace.err" /dev/null \
    >"$trace" </dev/null 3>&- &
  tracer=$!
  lab_until 30 grep -q tracing "$trace.err" || fail "$(<"$trace.err")"
  lab_sockets node1/pod <"$BATS_FILE_TMPDIR/calls"
  lab_sockets node1/pod <<'PY'
PR_SET_NAME = 15
ctypes.CDLL(None).prctl(PR_SET_NAME, b"a\x1b[2J\nb")
serve("127.0.0.2")
reach(SOCK_STREAM, "10.96.0.1")
PY
  trace_has 12
  trace_ends
  assert_same "$(tr -d '\r' <"$trace" | sed -n -E '1p;8p;12p' | sed -E 's/^[0-9:.]{15} /TIME /; s/\[[0-9]+\] /[PID] /')" \
    'TIME pod python3[PID] connect 10.96.0.1:80/TCP (test/web-tcp:www) -> 127.0.0.2:8080
TIME pod python3[PID] connect 10.96.0.2:80/TCP (test/none-tcp) refused: the Service has no backends: Connection refused (os error 111)
TIME pod a?[2J; b[PID] connect 10.96.0.1:80/TCP (test/web-tcp:www) -> 127.0.0.2:8080'
}

@test "what does not fit before it is read is counted, and said" {
  trace_begins --buffer 4
  lab_sockets node1/pod <<'PY'
udp = new(SOCK_DGRAM, AF_INET)
for _ in range(20_000):
    udp.connect(("10.96.0.1", 80))
PY
  # shellcheck disable=SC2016 # a variable of jq
  all() { [ "$(jq -s '[.[] | .lost // 1] | add' "$trace")" = 20000 ]; }
  lab_until 10 all || fail "$(wc -l <"$trace") lines" "$(grep lost "$trace")"
  assert_equal "$(jq -s 'any(.[]; .lost > 0) and any(.[]; .backend)' "$trace")" true
}

# lb_attached: how many programs are attached to the node's cgroup on the hooks of connect() and sendmsg(), and how many of trace's
# own there are in the kernel, programs and maps.
lb_attached() {
  /usr/bin/python3 - "$(<"$LAB/host/node1/cgroup")" <<'PY'
import ctypes, os, platform, struct, sys
call = {"x86_64": 321, "aarch64": 280}[platform.machine()]
libc = ctypes.CDLL(None)

def bpf(command, attr):
    return libc.syscall(call, command, attr, len(attr))

def named(next_id, open_id, size, at):
    """How many programs or maps have a name that begins with trace_."""
    found, attr = 0, ctypes.create_string_buffer(12)
    while bpf(next_id, attr) == 0:
        number = struct.unpack_from("=I", attr, 4)[0]
        opened = bpf(open_id, ctypes.create_string_buffer(struct.pack("=I", number), 12))
        if opened >= 0:
            info = ctypes.create_string_buffer(size)
            # BPF_OBJ_GET_INFO_BY_FD
            bpf(15, ctypes.create_string_buffer(struct.pack("=IIQ", opened, size, ctypes.addressof(info)), 16))
            found += info.raw[at : at + 6] == b"trace_"
            os.close(opened)
        attr = ctypes.create_string_buffer(struct.pack("=I", number), 12)
    return found

cgroup, count = os.open(sys.argv[1], os.O_RDONLY), 0
for hook in 10, 11, 14, 15:  # BPF_CGROUP_INET4_CONNECT and its like
    ids = (ctypes.c_uint32 * 64)()
    # BPF_PROG_QUERY
    attr = ctypes.create_string_buffer(struct.pack("=IIIIQI", cgroup, hook, 0, 0, ctypes.addressof(ids), 64), 64)
    if bpf(16, attr) != 0:
        sys.exit("BPF_PROG_QUERY")
    count += struct.unpack_from("=I", attr, 24)[0]
print(count, "programs and", named(11, 13, 80, 64), "of trace, which has", named(12, 14, 40, 24), "maps")
PY
}

@test "a trace that is killed leaves no program, map or link behind, and Services answer" {
  local before='4 programs and 0 of trace, which has 0 maps'
  now() { [ "$(lb_attached)" = "$1" ]; }
  # A loader elsewhere makes the maps for a moment.
  lab_until 60 now "$before" || fail "$(lb_attached)"
  trace_begins
  lab_until 60 now '8 programs and 4 of trace, which has 2 maps' || fail "$(lb_attached)"
  lab_sockets node1/pod <"$BATS_FILE_TMPDIR/calls"
  trace_has 11
  trace_ends KILL
  lab_until 60 now "$before" || fail "$(lb_attached)"
  lab_sockets node1/pod <"$BATS_FILE_TMPDIR/calls"
}

@test "it goes on when the maps grow, and when another load balancer has taken the place of the one that is traced" {
  local services change cgroup
  cgroup=$(lab_cgroup tracer)
  services=$(lab_lb node1 show)
  lab_lb node1 unload
  lab_reload node1 --max-services 16 --max-backends 32
  lab_lb node1 apply <<<"$services" >/dev/null
  trace_begins
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'printf "%s\n" "$1" >"$0/cgroup.procs"' "$cgroup" "$(<"$trace.pid")"
  for change in '--max-backends 100' '--max-services 100' unload; do
    : >"$trace.err"
    # It sees what was before and what is after.
    printf '1\n' >"$cgroup/cgroup.freeze"
    if [ "$change" = unload ]; then
      lab_lb node1 unload
      change=
    fi
    # shellcheck disable=SC2086 # a list
    lab_reload node1 $change
    lab_lb node1 apply <<<"$(jq -c '(.services[] | select(.name == "web-tcp")) as $web
      | .services += [range(8) as $n | $web | .name = "more-\($n)" | .clusterIps = ["10.96.2.\($n)"]]' <<<"$services")" >/dev/null
    printf '0\n' >"$cgroup/cgroup.freeze"
    lab_until 30 grep -q tracing "$trace.err" || fail "no word after load $change"
    : >"$trace"
    lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "fd01::2")
for address in "10.96.0.1", "10.96.2.7":
    reach(SOCK_STREAM, address)
PY
    trace_has 2
    assert_same "$(tr -d '\0' <"$trace" | jq -r '[.frontend, .service, .backend] | join(" ")')" \
      '10.96.0.1:80 test/web-tcp:www 127.0.0.2:8080
10.96.2.7:80 test/more-7:www 127.0.0.2:8080'
  done
  lab_lb node1 unload
  lab_reload node1
  lab_lb node1 apply <<<"$services" >/dev/null
}

@test "it does not go on with a load balancer of another layout" {
  local cgroup services
  cgroup=$(lab_cgroup tracer)
  services=$(lab_lb node1 show)
  trace_begins
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'printf "%s\n" "$1" >"$0/cgroup.procs"' "$cgroup" "$(<"$trace.pid")"
  printf '1\n' >"$cgroup/cgroup.freeze"
  lab_lb node1 unload
  lab_reload node1
  lb_of_another_layout
  printf '0\n' >"$cgroup/cgroup.freeze"
  lab_until 10 grep -q 'layout 4711' "$trace.err" || fail "$(<"$trace.err")"
  wait "$tracer" && fail 'it should have failed'
  tracer=
  lab_lb node1 unload
  lab_reload node1
  lab_lb node1 apply <<<"$services" >/dev/null
}

@test "it ends when nobody reads any more, and when the load balancer is unloaded, and says so where there is none" {
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 timeout 10 sh -c '"$0" trace --service none | true' "$(lab_lb_program)"
  trace_begins
  lab_lb node1 unload
  wait "$tracer" && fail 'it should have failed'
  tracer=
  assert_contains "$(<"$trace.err")" 'unloaded'
  expect 1 lab_lb node1 trace
  # shellcheck disable=SC2154 # set by expect
  assert_contains "$stderr" 'run bpf-lb-load load first'
}
