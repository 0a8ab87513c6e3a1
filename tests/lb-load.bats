# The socket load balancer: loading, replacing, unloading.

load helpers
load lb

setup_file() {
  lb_suite || return 0
}

# What setup_file loaded, and a table that the tests look for.
setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
  lab_reload node1 2>/dev/null
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")"
}

lb_reaches() {
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2")
equal([reach(kind, "10.96.0.1") for kind in (SOCK_STREAM, SOCK_DGRAM)], ["127.0.0.2"] * 2)
PY
}

# The kernel itself puts two files into each BPF file system.
lb_no_pins() {
  expect 0 lab_in node1 find /sys/fs/bpf -mindepth 1 -not -name '*.debug'
  assert_equal "$output" ''
}

@test "loading again replaces the programs and keeps the table" {
  local table
  table=$(lab_lb node1 show)
  lab_reload node1
  assert_equal "$(lab_lb node1 show)" "$table"
  lb_reaches
  expect 0 lab_in node1 ls /sys/fs/bpf/underpass/links
  assert_equal "${#lines[@]}" 9
}

@test "everything goes on while no loader runs" {
  lb_reaches
  assert_equal "$(lab_in node1 pgrep -x bpf-lb-load || true)" ''
}

@test "a new build takes over while clients connect without pause, and none of them fails" {
  lab_sockets node1/pod >"$BATS_TEST_TMPDIR/clients" 2>&1 <<'PY' &
serve("127.0.0.2")
end, count = time.monotonic() + 8, 0
sender = new(SOCK_DGRAM, AF_INET)
while time.monotonic() < end:
    all_reach(sender, "10.96.0.1", "127.0.0.2")
    count += 1
print("went on" if count > 100 else f"only {count}")
PY
  local client=$!
  # Another file of the same contents is as good as another build: the kernel gets new programs from it.
  cp "$(lab_lb_program)" "$LAB/bin/bpf-lb-load.new"
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    lab_in node1 "$LAB/bin/bpf-lb-load.new" load --cgroup "$(<"$LAB/host/node1/cgroup")"
  done
  wait "$client"
  assert_equal "$(<"$BATS_TEST_TMPDIR/clients")" 'went on'
}

@test "sockets that were translated before an upgrade are known after it" {
  lab_sockets node1/pod "$BATS_TEST_TMPDIR/is" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<'PY' &
serve("127.0.0.2")
connected, sender = connect(SOCK_DGRAM, "10.96.0.1"), new(SOCK_DGRAM, AF_INET)
sender.sendto(b"?", ("10.96.0.1", 80))
ready("-before")
wait_for(sys.argv[1] + "-upgraded")
equal(connected.getpeername(), ("10.96.0.1", 80))
equal(sender.recvfrom(64), (b"127.0.0.2", ("10.96.0.1", 80)))
print("known")
PY
  local client=$!
  lab_until 20 test -e "$BATS_TEST_TMPDIR/is-before" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  lab_reload node1
  : >"$BATS_TEST_TMPDIR/is-upgraded"
  wait "$client"
  assert_equal "$(<"$BATS_TEST_TMPDIR/client")" known
}

@test "maps grow while sockets are open: these are known and counted, flows keep their backends, and what found no room finds it" {
  local least='"lbAlgorithm": "least-connections"' table stats step
  local -a four
  lab_lb node1 unload
  lab_reload node1 --max-services 4 --max-backends 6
  four=("$(lb_service web "{\"clusterIps\": [\"10.96.0.1\", \"fd02::1\"], $least, \"backends\": $(lb_backends 127.0.0.2 fd01::2)}")"
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\"], $least, \"backends\": $(lb_backends 127.0.0.2 127.0.0.3)}")"
    "$(lb_service wide "{\"clusterIps\": [\"10.96.0.2\"], \"backends\": $(lb_backends 127.0.0.2 127.0.0.3 127.0.0.4)}")")
  expect 1 lb_services "${four[@]}"
  assert_contains "$stderr" 'test/wide: no room for a backend; load with a larger --max-backends'
  table=$(lab_lb node1 show)
  lab_sockets node1/pod "$BATS_TEST_TMPDIR/is" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<'PY' &
serve("127.0.0.2", "127.0.0.3", "fd01::2")
held = [connect(SOCK_STREAM, address) for address in ("10.96.0.1", "fd02::1")] + [connect(SOCK_DGRAM, "10.96.0.1")]
senders = [new(SOCK_DGRAM, AF_INET) for _ in range(8)]
before = [ask(sender, "10.96.0.1") for sender in senders]
for step in "some", "more":
    ready("-before-" + step)
    wait_for(sys.argv[1] + "-has-" + step)
    equal([connected.getpeername()[0] for connected in held], ["10.96.0.1", "fd02::1", "10.96.0.1"])
    equal([ask(sender, "10.96.0.1") for sender in senders], before)
print("known")
PY
  local client=$!
  lab_until 20 test -e "$BATS_TEST_TMPDIR/is-before-some" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  local counts='[.[] | [.name, .backends[].connections, ([.backends[].open] | add)]]'
  stats=$(lb_stat "$counts")
  # More backends alone, then more of both.
  local -A sizes=([some]='--max-backends 64' [more]='--max-backends 200 --max-services 100')
  for step in some more; do
    lab_until 20 test -e "$BATS_TEST_TMPDIR/is-before-$step" || fail "$(<"$BATS_TEST_TMPDIR/client")"
    # shellcheck disable=SC2086 # a list
    lab_reload node1 ${sizes[$step]}
    assert_equal "$(lab_lb node1 show)" "$table"
    assert_equal "$(lb_stat "$counts")" "$stats"
    : >"$BATS_TEST_TMPDIR/is-has-$step"
  done
  wait "$client"
  assert_equal "$(<"$BATS_TEST_TMPDIR/client")" known
  assert_equal "$(lb_stat '[.[].backends[].open] | add')" 0
  lb_services "${four[@]}"
  assert_json "$(lab_lb node1 show)" '[.services[].backends | length]' '[2,2,3]'
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3", "127.0.0.4", "fd01::2")
equal({reach(SOCK_STREAM, "10.96.0.2") for _ in range(60)}, {"127.0.0.2", "127.0.0.3", "127.0.0.4"})
equal((reach(SOCK_STREAM, "fd02::1"), reach(SOCK_STREAM, "10.96.0.1")), ("fd01::2", "127.0.0.2"))
PY
  assert_equal "$(lab_in node1 ls /sys/fs/bpf/underpass)" $'links\nmaps'
}

@test "maps grow while clients connect without pause, and none of them fails" {
  local size
  lab_lb node1 unload
  lab_reload node1 --max-services 8 --max-backends 8
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")"
  lab_sockets node1/pod "$BATS_TEST_TMPDIR" >"$BATS_TEST_TMPDIR/clients" 2>&1 3>&- <<'PY' &
serve("127.0.0.2")
count, sender = 0, new(SOCK_DGRAM, AF_INET)
while not os.path.exists(sys.argv[1] + "/grown"):
    all_reach(sender, "10.96.0.1", "127.0.0.2")
    count += 1
print(count)
PY
  local client=$!
  for size in 16 32 64 128 256 512 1024 2048; do lab_reload node1 --max-services $size --max-backends $size; done
  : >"$BATS_TEST_TMPDIR/grown"
  wait "$client"
  # Not one connection is left out of the counts: two a turn, and the one flow.
  assert_equal "$(lb_stat '[.[].backends[].connections] | add')" "$((2 * $(<"$BATS_TEST_TMPDIR/clients") + 1))"
}

# lb_grows [STRACE OPTION...]: maps grow, under strace, which counts these system calls.
lb_grows() {
  lab_in node1 strace --quiet=all --trace=bpf,mkdir,rename,rmdir,unlink --output="$BATS_TEST_TMPDIR/calls" "$@" \
    "$(lab_lb_program)" load --cgroup "$(<"$LAB/host/node1/cgroup")" --max-services 100 --max-backends 100
}

# some_of POINTS: a third of them, each run other ones: all of them take five minutes, and are for EVERY_POINT=1.
some_of() {
  [ -z "${EVERY_POINT-}" ] || set -- "$1" all
  awk -v "turn=$((RANDOM % 3))" -v "all=${2-}" 'all || NR % 3 == turn' <<<"$1"
}

@test "a load that is killed at any point while maps grow harms nobody, and the next one goes on with it or forgets it" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  local point points client refused=0
  local -a services
  services=("$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"lbAlgorithm\": \"least-connections\", \"backends\": $(lb_backends 127.0.0.2 127.0.0.3)}")"
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\"], \"lbAlgorithm\": \"least-connections\", \"backends\": $(lb_backends 127.0.0.2 127.0.0.3)}")")
  lab_lb node1 unload
  lab_reload node1 --max-services 8 --max-backends 8
  expect 0 lb_grows
  # Those calls that change something, each as name:number: it is killed at each.
  points=$(awk -F '(' '{ n[$1]++ } $1 != "bpf" || /BPF_OBJ_PIN|BPF_LINK_UPDATE/ { print $1 ":" n[$1] }' "$BATS_TEST_TMPDIR/calls")
  [ "$(wc -w <<<"$points")" -ge 24 ] || fail "$points"
  for point in $(some_of "$points"); do
    lab_lb node1 unload
    lab_reload node1 --max-services 8 --max-backends 8
    lb_services "${services[@]}"
    rm -f "$BATS_TEST_TMPDIR"/{ready,over}
    lab_sockets node1/pod "$BATS_TEST_TMPDIR" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<'PY' &
serve("127.0.0.2", "127.0.0.3", "127.0.0.4")
held = [connect(kind, "10.96.0.1") for kind in (SOCK_STREAM, SOCK_DGRAM)]
sender, count = new(SOCK_DGRAM, AF_INET), 0
before = ask(sender, "10.96.0.1")
open(sys.argv[1] + "/ready", "w").close()
while not os.path.exists(sys.argv[1] + "/over"):
    held += [connect(kind, "10.96.0.1") for kind in (SOCK_STREAM, SOCK_DGRAM)]
    equal(ask(sender, "10.96.0.1"), before)
    for one in held[2:-8]:
        one.close()
    del held[2:-8]
    count += 1
equal({one.getpeername() for one in held}, {("10.96.0.1", 80)})
print(count)
PY
    client=$!
    lab_until 10 test -e "$BATS_TEST_TMPDIR/ready" || fail "$(<"$BATS_TEST_TMPDIR/client")"
    expect 137 lb_grows --inject="${point%:*}:signal=KILL:when=${point#*:}"
    # Who writes the table is told if not all programs use the same maps.
    run --separate-stderr lb_services "${services[@]}"
    if [ "$status" != 0 ]; then
      assert_contains "$stderr" 'run bpf-lb-load load again'
      refused=$((refused + 1))
    fi
    expect 0 lab_reload node1
    assert_equal "$(lab_in node1 ls /sys/fs/bpf/underpass)" $'links\nmaps'
    expect 0 lab_in node1 ls /sys/fs/bpf/underpass/links
    assert_equal "${#lines[@]}" 9
    : >"$BATS_TEST_TMPDIR/over"
    wait "$client"
    # Two a turn, two that were there before, and the flow.
    assert_equal "$(lb_stat '[.[].backends[].connections] | add')" "$((2 * $(<"$BATS_TEST_TMPDIR/client") + 3))" || fail "killed at $point"
    # What is there by now tells a socket that was counted late from one that is lost.
    assert_equal "$(lb_stat '[.[].backends[].open] | add')" 0 || fail "killed at $point, and now $(lb_stat .)"
    # What is written now, programs read.
    lb_services "${services[@]//127.0.0.2/127.0.0.4}"
    lab_sockets node1/pod <<'PY'
serve("127.0.0.3", "127.0.0.4")
equal({reach(kind, "10.96.0.1") for kind in (SOCK_STREAM, SOCK_DGRAM) for _ in range(30)}, {"127.0.0.3", "127.0.0.4"})
PY
  done
  [ "$refused" -ge 3 ] || fail "refused $refused times"
}

@test "a size that is not to be had is named, and what is there stays" {
  local table
  table=$(lab_lb node1 show)
  expect 0 lab_reload node1 --max-services 1 --max-backends 1 --max-sockets 1 --max-clients 1
  assert_equal "$(grep -oE -- '--max-[a-z]+ is [0-9]+, and 1 only after unload' <<<"$stderr" | sed 's/ is.*//')" \
    $'--max-services\n--max-backends\n--max-sockets\n--max-clients'
  assert_equal "$(lab_lb node1 show)" "$table"
  lb_reaches
}

@test "unload detaches everything and leaves no pin" {
  lab_lb node1 unload
  lb_no_pins
  lab_sockets node1/pod <<'PY'
equal(errno_of(connect, SOCK_STREAM, "10.96.0.1"), "ENETUNREACH")
PY
  expect 1 lab_lb node1 show
  # shellcheck disable=SC2154 # set by expect
  assert_contains "$stderr" 'load first'
  expect 1 lab_lb node1 unload
}

@test "who looks while load makes the maps sees none, or whole ones" {
  lab_lb node1 unload
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 sh -c 'for _ in 1 2 3 4 5 6 7 8 9 10; do
      "$0" load --cgroup "$1" 2>/dev/null &
      while kill -0 $! 2>/dev/null; do "$0" show 2>&1 >/dev/null || :; done
      wait $!
      "$0" unload
    done' "$(lab_lb_program)" "$(<"$LAB/host/node1/cgroup")"
  assert_contains "$output" 'load first'
  assert_equal "$(grep '"error"' <<<"$output" | grep -v 'load first')" ''
}

@test "who looks while unload takes the maps away sees whole ones, or none" {
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 sh -c 'for _ in 1 2 3 4 5 6 7 8 9 10; do
      "$0" load --cgroup "$1" 2>/dev/null
      "$0" unload &
      while kill -0 $! 2>/dev/null; do "$0" show 2>&1 >/dev/null || :; done
      wait $!
    done' "$(lab_lb_program)" "$(<"$LAB/host/node1/cgroup")"
  assert_equal "$(grep '"error"' <<<"$output" | grep -v 'load first')" ''
  expect 1 lab_lb node1 register /proc/self/ns/net
  assert_contains "$stderr" 'load first'
}

# lb_load_alone [ARGUMENT...]: loads without naming a cgroup, where the node's is all that there is: not even a wrong program gets to the
# machine's own.
lb_load_alone() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_served node1 unshare --cgroup --mount sh -c '
    umount "$1" 2>/dev/null; mount -t cgroup2 none "$1" && shift && exec "$0" load "$@"' "$(lab_lb_program)" \
    "$(awk '$3 == "cgroup2" {print $2; exit}' /proc/self/mounts)" "$@"
}

# lb_cgroups: how many links are pinned, and to how many cgroups they are attached.
lb_cgroups() {
  lb_pinned /sys/fs/bpf/underpass/links <<'PY'
links, cgroups = os.listdir(sys.argv[1]), set()
for link in links:
    info = ctypes.create_string_buffer(32)
    bpf(15, struct.pack("=IIQ", opened(f"{sys.argv[1]}/{link}"), 32, ctypes.addressof(info)))  # BPF_OBJ_GET_INFO_BY_FD
    cgroups.add(struct.unpack_from("=Q", info, 16))
print(len(links), len(cgroups))
PY
}

# lb_is_whole: all that a load attaches is, to one cgroup, and Services are reached from it.
lb_is_whole() {
  assert_equal "$(lb_cgroups)" '9 1' || return
  expect 0 lab_lb node1 show
  assert_equal "$stderr" '' || return
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")" || return
  lb_reaches
}

# has_links: whether any is where it is looked for; what ends with _new is not there yet.
has_links() {
  lab_in node1 sh -c 'ls /sys/fs/bpf/underpass/links 2>/dev/null' | grep -qv _new
}

@test "a load that is killed at any point, the first one or one to another cgroup, is made whole by a load that names none" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  local points point cgroup other killed=0
  local -a traced
  cgroup=$(<"$LAB/host/node1/cgroup") other=$(lab_cgroup other)
  traced=(strace --quiet=all --output="$BATS_TEST_TMPDIR/calls")
  lab_lb node1 unload
  expect 0 lab_in node1 "${traced[@]}" --trace=bpf,rename "$(lab_lb_program)" load --cgroup "$cgroup"
  # Before each link takes its place.
  points=$(awk -F '(' '$1 == "rename" { n++ } /BPF_LINK_CREATE/ { links = 1 } links && $1 == "rename" { print n }' "$BATS_TEST_TMPDIR/calls")
  for point in $points; do
    lab_lb node1 unload
    expect 137 lab_in node1 "${traced[@]}" --inject="rename:signal=KILL:when=$point" "$(lab_lb_program)" load --cgroup "$cgroup"
    has_links || continue
    expect 0 lb_load_alone
    lb_is_whole || fail "killed at $point"
    killed=$((killed + 1))
  done
  # Here none but the links are renamed. What was there last stays where it was, and so does all.
  for point in 1 2 3 4 5 6 7 8 9; do
    expect 137 lab_in node1 "${traced[@]}" --inject="rename:signal=KILL:when=$point" "$(lab_lb_program)" load --cgroup "$other"
    expect 0 lb_load_alone
    lb_is_whole || fail "killed at $point on the way to another cgroup"
    killed=$((killed + 1))
  done
  assert_equal "$killed" 17
}

@test "who takes away one link is noticed by follow, and the next load makes it whole" {
  local link
  for link in connect6 sendmsg4 sock_release; do
    mkfifo "$BATS_TEST_TMPDIR/$link"
    lab_lb node1 follow <"$BATS_TEST_TMPDIR/$link" >"$BATS_TEST_TMPDIR/answers" 2>"$BATS_TEST_TMPDIR/said" 3>&- &
    exec 5>"$BATS_TEST_TMPDIR/$link"
    printf '{"remove": {"namespace": "nobody", "name": "nothing"}}\n' >&5
    lab_until 5 grep -q line "$BATS_TEST_TMPDIR/answers"
    lab_in node1 rm "/sys/fs/bpf/underpass/links/$link"
    lab_until 10 grep -q 'somebody took away' "$BATS_TEST_TMPDIR/said" || fail "no word of $link"
    exec 5>&-
    wait $! && fail 'follow should have failed'
    expect 0 lab_lb node1 stats --format prometheus
    assert_contains "$output" 'underpass_lb_attached 0'
    expect 0 lb_load_alone
    lb_is_whole
  done
}

@test "an unload that is killed at any point leaves what the next load takes the place of" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  local points point
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 strace --quiet=all --trace=rename,rmdir,unlink --output="$BATS_TEST_TMPDIR/calls" "$(lab_lb_program)" unload
  points=$(awk -F '(' '{ print $1 ":" ++n[$1] }' "$BATS_TEST_TMPDIR/calls")
  [ "$(wc -w <<<"$points")" -ge 27 ] || fail "$points"
  expect 0 lab_reload node1
  for point in $(some_of "$points"); do
    expect 137 lab_in node1 strace --quiet=all --trace="${point%:*}" --inject="${point%:*}:signal=KILL:when=${point#*:}" --output=/dev/null \
      "$(lab_lb_program)" unload
    # One that names no cgroup stays where anything is left.
    if has_links; then expect 0 lb_load_alone; else expect 0 lab_reload node1; fi || fail "killed at $point"
    lb_is_whole || fail "killed at $point"
    lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")"
  done
}

@test "pins are for root only" {
  expect 0 lab_in node1 sh -c 'stat --format %a /sys/fs/bpf/underpass /sys/fs/bpf/underpass/*; find /sys/fs/bpf/underpass -type f -perm /077'
  assert_equal "$output" $'700\n700\n700'
}

@test "CAP_BPF and CAP_NET_ADMIN are enough to load, apply and show" {
  lab_lb node1 unload
  local cgroup program
  cgroup=$(<"$LAB/host/node1/cgroup") program=$(lab_lb_program)
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 setpriv --bounding-set -all,+bpf,+net_admin --inh-caps -all,+bpf,+net_admin sh -c '
    grep -q "CapEff:.0*8000001000$" /proc/self/status || { grep CapEff /proc/self/status; exit 3; }
    "$0" load --cgroup "$1" && printf "{\"services\": []}\n" | "$0" apply && "$0" show' "$program" "$cgroup"
  assert_contains "$stderr" 'lacks bpf_rdonly_cast'
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")"
  lb_reaches
}

@test "maps of another layout are refused with a word about what to do, and go on working" {
  lb_of_another_layout
  for command in load\ --cgroup\ "$(<"$LAB/host/node1/cgroup")" show stats follow; do
    # shellcheck disable=SC2086 # a list of arguments
    expect 1 lab_lb node1 $command </dev/null
    assert_contains "$stderr" 'layout 4711'
    assert_contains "$stderr" 'unload, load and apply'
  done
  lb_reaches
  lab_lb node1 unload
}

@test "a cgroup that is none, and a pin directory on another file system, are errors that leave nothing" {
  lab_lb node1 unload
  expect 1 lab_lb node1 load --cgroup /proc
  assert_contains "$stderr" cgroup
  expect 1 lab_lb node1 load --cgroup /nowhere
  assert_contains "$stderr" /nowhere
  expect 1 lab_lb node1 --pin-dir /run/underpass-pins load --cgroup "$(<"$LAB/host/node1/cgroup")"
  assert_contains "$stderr" 'mount -t bpf'
  lb_no_pins
}

# The loader's programs, the first instruction of connect4 replaced by one that reads a register that nobody wrote.
lb_spoilt_object() {
  /usr/bin/python3 - "$(lab_lb_program)" <<'PY'
import re, struct, sys
loader = open(sys.argv[1], "rb").read()
EM_BPF = struct.pack("<HH", 1, 247)
start = next(at.start() for at in re.finditer(b"\x7fELF", loader) if loader[at.start() + 16:][:4] == EM_BPF)
image = loader[start:]
sections, (size, count, names) = struct.unpack_from("<Q", image, 40)[0], struct.unpack_from("<HHH", image, 58)
image = bytearray(image[:sections + size * count])
headers = [struct.unpack_from("<IIQQQQ", image, sections + size * index) for index in range(count)]
name = lambda header: bytes(image[headers[names][4] + header[0]:]).split(b"\0")[0]
offset = next(header[4] for header in headers if name(header) == b"cgroup/connect4")
image[offset:offset + 8] = bytes([0xbf, 0x90, 0, 0, 0, 0, 0, 0])  # r0 = r9
sys.stdout.buffer.write(image)
PY
}

@test "programs that the kernel refuses are an error with the verifier's log, and what was loaded goes on as it was" {
  local before
  before=$(lab_lb node1 show)
  # The reason comes before anything changes, be it the programs or the cgroup.
  expect 1 lab_lb node1 load --cgroup /proc --scope only
  assert_contains "$stderr" 'not a directory of cgroup v2'
  assert_equal "$(lab_lb node1 show)" "$before"
  lb_spoilt_object >"$BATS_TEST_TMPDIR/object"
  expect 1 lab_reload node1 --object "$BATS_TEST_TMPDIR/object" --scope only
  assert_equal "$(lab_lb node1 show)" "$before"
  expect 1 lab_reload node1 --object "$BATS_TEST_TMPDIR/object"
  assert_contains "$stderr" 'load connect4'
  assert_contains "$stderr" 'R9 !read_ok'
  assert_contains "$stderr" CAP_PERFMON
  lb_reaches
  lab_lb node1 unload
  expect 1 lab_reload node1 --object "$BATS_TEST_TMPDIR/object"
  lb_no_pins
}

@test "two load balancers live side by side, each with its own pins" {
  local cgroup
  cgroup=$(lab_cgroup second)
  lab_lb node1 --pin-dir /sys/fs/bpf/second load --cgroup "$cgroup" --max-services 16 --max-backends 16
  assert_json "$(lab_lb node1 --pin-dir /sys/fs/bpf/second show)" '.services | length' 0
  assert_json "$(lab_lb node1 show)" '.services | length' 2
  lab_lb node1 --pin-dir /sys/fs/bpf/second unload
  lb_reaches
}

@test "a second writer is told that another one is at work" {
  mkfifo "$BATS_TEST_TMPDIR/changes"
  lab_lb node1 follow <"$BATS_TEST_TMPDIR/changes" >"$BATS_TEST_TMPDIR/answers" 3>&- &
  local client=$!
  exec 5>"$BATS_TEST_TMPDIR/changes"
  printf '{"remove": {"namespace": "nobody", "name": "nothing"}}\n' >&5
  lab_until 5 grep -q line "$BATS_TEST_TMPDIR/answers"
  expect 1 lab_lb node1 apply <<<'{}'
  assert_contains "$stderr" 'another loader'
  expect 0 lab_lb node1 show
  exec 5>&-
  wait "$client"
}

@test "sockets beyond --max-sockets are translated and remembered as well" {
  lab_lb node1 unload
  lab_reload node1 --max-sockets 1
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\", \"fd02::1\"], \"lbAlgorithm\": \"least-connections\",
      \"backends\": $(lb_backends 127.0.0.2 fd01::2)}")" \
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\", \"fd02::1\"],
      \"lbAlgorithm\": \"least-connections\", \"backends\": $(lb_backends 127.0.0.2 fd01::2)}")"
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "fd01::2")
for address, backend in ("10.96.0.1", "127.0.0.2"), ("fd02::1", "fd01::2"), ("::ffff:10.96.0.1", "127.0.0.2"):
    held = [connect(kind, address) for kind in (SOCK_STREAM, SOCK_DGRAM) for _ in range(5)]
    for connected in held:
        equal((connected.getpeername()[:2], answer(connected)), ((address, 80), backend))
    udp = held[-1]
    udp.connect((backend if "ffff" not in address else "::ffff:127.0.0.2", PORT))
    equal(udp.getpeername()[1], PORT, "connected to the backend itself")
    senders = [new(SOCK_DGRAM, address) for _ in range(5)]
    for sender in senders * 2:
        equal(ask(sender, address), (backend, (address, 80)))
PY
  assert_equal "$(lb_stat '[.[].backends[].open] | add')" 0
}

@test "an IPv6 socket that is made an IPv4 one (IPV6_ADDRFORM) gives back at its end what it held in both families" {
  lab_sockets node1/pod <<'PY' 2>/dev/null || skip 'this kernel has no IPV6_ADDRFORM'
probe = new(SOCK_DGRAM, AF_INET6)
probe.connect(("::ffff:127.0.0.1", 9))
probe.setsockopt(socket.IPPROTO_IPV6, 1, AF_INET)
PY
  lb_services "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\", \"fd02::1\"],
      \"lbAlgorithm\": \"least-connections\", \"backends\": $(lb_backends 127.0.0.2 fd01::2)}")"
  lab_sockets node1/pod "$BATS_TEST_TMPDIR" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<'PY' &
serve("127.0.0.2", "fd01::2")
IPV6_ADDRFORM = 1
for mapped in "::ffff:10.96.0.1", "::ffff:127.0.0.2":
    sender = new(SOCK_DGRAM, AF_INET6)
    equal(ask(sender, "fd02::1"), ("fd01::2", ("fd02::1", 80)))
    sender.connect((mapped, 80))
    sender.setsockopt(socket.IPPROTO_IPV6, IPV6_ADDRFORM, AF_INET)
    equal(sender.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN), AF_INET)
    if mapped == "::ffff:127.0.0.2":
        ready("/ready")
        wait_for(sys.argv[1] + "/over")
    sender.close()
PY
  local client=$!
  lab_until 10 test -e "$BATS_TEST_TMPDIR/ready" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  # Also where other programs see its end than saw it connect.
  lab_reload node1
  : >"$BATS_TEST_TMPDIR/over"
  wait "$client" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  assert_equal "$(lb_stat '[.[].backends[].open] | add')" 0
}

@test "a service table that makes no sense changes nothing" {
  local before bad web
  before=$(lab_lb node1 show)
  web=$(lb_service web '{"clusterIps": ["10.96.0.5"]}')
  for bad in "$(jq -c '.port = 0' <<<"$web")" "$(jq -c '.clusterIps = ["0.0.0.0"]' <<<"$web")" \
    "$(jq -c '.sessionAffinity = {timeoutSeconds: 0}' <<<"$web")" "$(jq -c '.colour = "red"' <<<"$web")" \
    "$(jq -c '.backends = [{address: "10.0.0.1", port: 0}]' <<<"$web")" "$web, $web"; do
    expect 1 lab_lb node1 apply <<<"{\"services\": [$bad]}"
    assert_equal "$(lab_lb node1 show)" "$before"
  done
}

# lb_served_from CGROUP: what a connection by a process in that cgroup says.
lb_served_from() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  { printf 'from sockets import *\n' && cat; } <<<'serve("127.0.0.2"); print(errno_of(reach, SOCK_STREAM, "10.96.0.1"))' |
    lab_in node1/pod sh -c 'printf "0\n" >"$0/cgroup.procs" && exec "$@"' "$1" \
      env PYTHONPATH="$LAB_SOURCE" PYTHONDONTWRITEBYTECODE=1 timeout 30 /usr/bin/python3 -
}

@test "load --cgroup serves that cgroup from then on, and no longer the one from before" {
  local first second
  first=$(<"$LAB/host/node1/cgroup") second=$(lab_cgroup moved)
  assert_equal "$(lb_served_from "$first") $(lb_served_from "$second")" 'None ENETUNREACH'
  expect 0 lab_lb node1 load --cgroup "$second"
  assert_equal "$(lb_served_from "$first") $(lb_served_from "$second")" 'ENETUNREACH None'
  # Without --cgroup it stays where it is.
  expect 0 lab_lb node1 load
  assert_equal "$(lb_served_from "$second")" None
  expect 0 lab_in node1 ls /sys/fs/bpf/underpass/links
  assert_equal "$(grep -c new <<<"$output")" 0
}

is_said_to_serve_nobody() { lab_lb node1 show 2>&1 >/dev/null | grep -q 'nobody is served'; }

@test "a cgroup that was removed is said to serve nobody, and load serves again" {
  local first gone
  first=$(<"$LAB/host/node1/cgroup") gone=$(lab_cgroup gone)
  lab_lb node1 load --cgroup "$gone"
  rmdir "$gone"
  # The kernel cuts a removed cgroup's links when it comes to it.
  lab_until 5 is_said_to_serve_nobody
  expect 0 lab_lb node1 show
  expect 0 lab_lb node1 apply <<<"$output"
  assert_contains "$stderr" 'nobody is served'
  expect 0 lab_lb node1 stats --format prometheus
  assert_contains "$output" 'underpass_lb_attached 0'
  expect 0 lab_lb node1 load --cgroup "$first"
  assert_equal "$(lb_served_from "$first")" None
  expect 0 lab_lb node1 show
  assert_equal "$stderr" ''
}

@test "in a cgroup namespace of its own, load refuses to take that namespace's root for the hierarchy's" {
  lab_lb node1 unload
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 1 lab_served node1 unshare --cgroup --mount sh -c '
    umount "$1" 2>/dev/null; mount -t cgroup2 none "$1" && exec "$0" load' "$(lab_lb_program)" \
    "$(awk '$3 == "cgroup2" {print $2; exit}' /proc/self/mounts)"
  assert_contains "$stderr" 'cgroup namespace'
  lb_no_pins
}
