# The socket load balancer: a table that expires where nobody follows, so that Services take the host path.

load helpers
load lb

setup_file() {
  lb_suite --protect-node-ports || return 0
  lab_serve node1/pod 8080
  export TABLE
  TABLE=$(jq -nc --argjson backends "$(lb_backends 127.0.0.2)" '{nodeAddresses: ["127.9.9.9"], refuse: ["10.96.0.0/16"],
    services: [{name: "web", nodePort: 30080, clusterIps: ["10.96.0.1"], $backends},
      {name: "dns", protocol: "UDP", clusterIps: ["10.96.0.1"], $backends}, {name: "none", clusterIps: ["10.96.0.2"]}]
      | map({namespace: "test", port: 80} + .)}')
}

# A table made by hand.
setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
  lb_apply "$TABLE"
}

teardown() {
  [ ! -e "$LAB/pid/follow" ] || lab_stop follow KILL
}

# met: with which errors a pod meets Services: over TCP, by a connected UDP socket and by another one; one without backends, and a port that
# none has. Then with which the node binds a node port.
met() {
  lab_sockets node1/pod <<'PY'
print(errno_of(reach, SOCK_STREAM, "10.96.0.1"), errno_of(reach, SOCK_DGRAM, "10.96.0.1"),
      errno_of(ask, new(SOCK_DGRAM, AF_INET), "10.96.0.1"), errno_of(connect, SOCK_STREAM, "10.96.0.2"),
      errno_of(connect, SOCK_STREAM, "10.96.0.1", 81))
PY
  lab_sockets node1 <<'PY'
print(errno_of(new(SOCK_STREAM, AF_INET).bind, ("127.9.9.9", 30080)))
PY
}

TRANSLATED='None None None ECONNREFUSED ECONNREFUSED
EADDRINUSE'
# There is no route in the pod.
LEFT='ENETUNREACH ENETUNREACH ENETUNREACH ENETUNREACH ENETUNREACH
None'

@test "where nobody follows any more the table expires: nothing is translated, refused or kept from anybody, and what was translated before is known" {
  local client
  lb_follow --lease 5
  assert_json "$(lb_tell "{\"table\": $TABLE}")" .unchanged 3
  # Longer than the lease, which follow renews.
  sleep 7
  assert_equal "$(met)" "$TRANSLATED"
  lab_sockets node1/pod "$BATS_TEST_TMPDIR/is" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<'PY' &
tcp, udp, sender = connect(SOCK_STREAM, "10.96.0.1"), connect(SOCK_DGRAM, "10.96.0.1"), new(SOCK_DGRAM, AF_INET)
sender.sendto(b"?", ("10.96.0.1", 80))
ready("-connected")
wait_for(sys.argv[1] + "-expired")
equal([one.getpeername() for one in (tcp, udp)], [("10.96.0.1", 80)] * 2)
equal([answer(tcp), answer(udp)], ["pod 127.0.0.1\n"] * 2)
equal(sender.recvfrom(64), (b"pod 127.0.0.1\n", ("10.96.0.1", 80)))
print("known")
PY
  client=$!
  lab_until 20 test -e "$BATS_TEST_TMPDIR/is-connected" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  lab_stop follow KILL
  assert_equal "$(met)" "$TRANSLATED"
  lab_until 10 lb_has_expired
  assert_equal "$(met)" "$LEFT"
  # Whatever the program before it saw a moment ago.
  lab_sockets node1/pod <<<'equal({errno_of(connect, SOCK_STREAM, "10.96.0.1") for _ in range(1000)}, {"ENETUNREACH"})'
  : >"$BATS_TEST_TMPDIR/is-expired"
  wait "$client"
  assert_equal "$(<"$BATS_TEST_TMPDIR/client")" known
}

@test "a table that has expired is said to have, by show, by metrics and by a trace of who meets it" {
  lb_follow --lease 5
  lb_tell "{\"table\": $TABLE}" >/dev/null
  expect 0 lab_lb node1 show
  # shellcheck disable=SC2154 # set by expect
  assert_equal "$stderr" ''
  expect 0 lab_lb node1 stats --format prometheus
  [[ $output != *underpass_lb_expired* ]] || fail "$output"
  lab_stop follow KILL
  lab_until 10 lb_has_expired
  expect 0 lab_lb node1 show
  assert_contains "$stderr" 'the table has expired'
  assert_json "$output" '[.services[].backends | length] | add' 2
  lab_spawn trace node1 "$(lab_lb_program)" trace
  lab_until 30 grep -q tracing "$LAB/log/trace"
  assert_equal "$(met)" "$LEFT"
  lab_until 5 grep -q '"frontend":"10.96.0.2:80"' "$LAB/log/trace" || fail "$(<"$LAB/log/trace")"
  lab_stop trace
  assert_equal "$(sed -n 's/.*"frontend":"10.96.0.2:80".*"outcome":"\([^"]*\)".*/\1/p' "$LAB/log/trace")" expired
}

@test "a table that has expired may lead to backends that went: who follows by a lease again brings it back with the cluster's table, and not before" {
  lb_follow --lease 5
  lb_tell "{\"table\": $TABLE}" >/dev/null
  lab_stop follow KILL
  lab_until 10 lb_has_expired
  lb_follow --lease 5
  lb_tell '{"remove": {"namespace": "nobody", "name": "nothing"}}' >/dev/null
  sleep 3
  assert_equal "$(met)" "$LEFT"
  lb_tell "{\"table\": $TABLE}" >/dev/null
  is_translated
}

is_translated() { [ "$(met)" = "$TRANSLATED" ]; }

@test "one that has not expired yet is renewed before the cluster is known if that is asked for, and else by nobody who only begins to follow" {
  lb_follow --lease 5
  lb_tell "{\"table\": $TABLE}" >/dev/null
  lab_stop follow KILL
  lb_follow --lease 5
  lb_tell '{"renew": true}' >/dev/null
  sleep 7
  assert_equal "$(met)" "$TRANSLATED"
  lab_stop follow KILL
  lb_follow --lease 5
  lab_until 10 lb_has_expired
  assert_equal "$(met)" "$LEFT"
}

@test "one that was made by hand has an end as soon as somebody follows by a lease" {
  lb_follow --lease 5
  lab_until 10 lb_has_expired
  assert_equal "$(met)" "$LEFT"
}

@test "a table expires too while who follows says that it is not to be renewed, and is there again as soon as it is" {
  lb_follow --lease 5
  lb_tell "{\"table\": $TABLE}" >/dev/null
  assert_json "$(lb_tell '{"renew": false}')" '[.line,.error]' '[2,null]'
  # What changes meanwhile renews nothing.
  lb_tell '{"remove": {"namespace": "nobody", "name": "nothing"}}' >/dev/null
  lab_until 10 lb_has_expired
  assert_equal "$(met)" "$LEFT"
  lb_tell '{"renew": true}' >/dev/null
  is_translated
  # Before the first table, that of the writer before may be old.
  lb_tell '{"renew": false}' >/dev/null
  lab_stop follow KILL
  lb_follow --lease 5
  lb_tell '{"renew": false}' >/dev/null
  lab_until 10 lb_has_expired
  lb_tell '{"renew": true}' >/dev/null
  assert_equal "$(met)" "$LEFT"
  lb_tell "{\"table\": $TABLE}" >/dev/null
  is_translated
}

@test "nothing expires without a lease: what is applied by hand, or followed by hand, stays, also after one who had a lease" {
  local how
  for how in apply follow 'follow --lease 600 --lease 0'; do
    lb_follow --lease 5
    lb_tell "{\"table\": $TABLE}" >/dev/null
    lab_stop follow KILL
    lab_until 10 lb_has_expired
    # The programs alone bring nothing back.
    lab_reload node1 --protect-node-ports
    assert_equal "$(met)" "$LEFT"
    if [ "$how" = apply ]; then
      lb_apply "$TABLE"
    else
      # shellcheck disable=SC2086 # a list
      lb_follow ${how#follow}
      lab_until 5 is_translated
      lab_stop follow KILL
    fi
    sleep 7
    assert_equal "$(met)" "$TRANSLATED" || fail "$how"
  done
}

@test "a lease that would be over before it is renewed is refused" {
  local lease
  for lease in 4 1 -1 ten; do
    expect 2 lab_lb node1 follow "--lease=$lease"
    assert_contains "$stderr" 'no number of seconds from 5 on'
  done
}
