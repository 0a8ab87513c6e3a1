# The socket load balancer: tables and lines that are wrong, in whole or in part.

load helpers
load lb

setup_file() {
  lb_suite --max-services 64 --max-backends 64 || return 0
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
  lb_apply '{}'
  lb_apply "{\"services\": [$(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")]}"
  KEPT=$(lab_lb node1 show)
}

# lb_refuses DOCUMENT: apply refuses it, and follow a line with it; nothing has changed.
lb_refuses() {
  expect 1 lab_lb node1 apply <<<"$1"
  # shellcheck disable=SC2154 # set by expect
  assert_json "$stderr" '[.level, .tool]' '["error","bpf-lb-load"]'
  assert_equal "$(lab_lb node1 show)" "$KEPT" || fail "by: $1"
  expect 0 lab_lb node1 follow <<<"{\"table\": $1}"
  assert_json "$output" '[has("error"), .set]' '[true,null]' || fail "line: $1"
  assert_equal "$(lab_lb node1 show)" "$KEPT" || fail "by the line: $1"
}

# lb_holders FILTER: which services have an address that the filter picks.
lb_who() {
  lab_lb node1 show | jq -rc --arg address "$1" \
    '[.services[] | select([.clusterIps, .externalIps, .loadBalancerIps] | flatten | index($address)) | .name]'
}

@test "what is an array where the schema wants an object is refused, and changes nothing" {
  local document
  for document in '[]' '[[],[]]' 'null' '"x"' '1' '{"services": [["t","x","","TCP",80]]}' '{"services": {}}' \
    '{"services": [{"namespace": "t", "name": "x", "port": 80, "backends": [["127.0.0.2", 80]]}]}' \
    '{"services": [{"namespace": "t", "name": "x", "port": 80, "sessionAffinity": [7]}]}' \
    '{"nodes": [["n", []]]}'; do
    lb_refuses "$document"
  done
}

@test "addresses that no host has are refused, wherever they stand and however they are written" {
  local address
  for address in 0.0.0.0 0.1.2.3 224.0.0.1 239.255.255.255 255.255.255.255 :: 0:0:0:0:0:0:0:0 ff02::1 ::ffff:0.0.0.0 \
    ::ffff:0:0 ::FFFF:224.0.0.1 0:0:0:0:0:ffff:ffff:ffff ::ffff:255.255.255.255 fe80::1 10.96.0.2/32 010.96.0.2 10.96.2 ''; do
    lb_refuses "{\"services\": [$(lb_service x "{\"clusterIps\": [\"$address\"]}")]}"
    lb_refuses "{\"services\": [$(lb_service x "{\"externalIps\": [\"$address\"]}")]}"
    lb_refuses "{\"services\": [$(lb_service x "{\"backends\": [{\"address\": \"$address\", \"port\": 80}]}")]}"
  done
  lb_refuses '{"nodeAddresses": ["::ffff:0.0.0.0"]}'
  lb_apply "{\"services\": [$(lb_service x '{"clusterIps": ["::ffff:10.96.0.7"]}')]}"
  assert_equal "$(lb_who 10.96.0.7)" '["x"]'
}

@test "a line that is not UTF-8, not JSON, or more than one change is answered with an error, and the next one is done" {
  printf '%b\n' '\xff\xfe' 'x' '' '[]' '{}' '{"set":null}' '\xef\xbb\xbf{}' '{"remove":{"namespace":"test","name":"\xff"}}' \
    '{"remove":{"namespace":"test","name":"keep"},"table":{}}' '{"remove":{"namespace":"test","name":"keep"},"colour":1}' \
    "{\"set\": $(lb_service new '{"clusterIps": ["10.96.0.3"]}'), \"triggered\": \"yesterday\"}" \
    "{\"set\": $(lb_service new '{"clusterIps": ["10.96.0.3"]}'), \"triggered\": \"2026-11-25T17:00:00.123Z\"}" \
    >"$BATS_TEST_TMPDIR/lines"
  expect 0 lab_lb node1 follow <"$BATS_TEST_TMPDIR/lines"
  assert_json "$(jq -s . <<<"$output")" '[.[] | has("error")] | [length, (.[:-1] | all), .[-1]]' '[12,true,false]'
  assert_json "$(lab_lb node1 show)" '[.services[].name]' '["keep","new"]'
}

@test "a service with more backends than there is room for is named, and all others are updated" {
  local big table
  big=$(jq -nc '[range(100) | {address: "10.9.0.\(.)", port: 8080}]')
  table="{\"services\": [
    $(lb_service a "{\"clusterIps\": [\"10.96.0.2\"], \"backends\": $(lb_backends 127.0.0.3)}"),
    $(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $big}"),
    $(lb_service z "{\"clusterIps\": [\"10.96.0.4\"], \"backends\": $(lb_backends 127.0.0.4)}")]}"
  expect 1 lab_lb node1 apply <<<"$table"
  assert_json "$output" '[.set, [.refused[].service]]' '[2,["test/keep"]]'
  assert_contains "$stderr" 'test/keep'
  assert_contains "$stderr" '--max-backends'
  # The one that is refused has lost what is gone.
  assert_json "$(lab_lb node1 show)" '[.services[] | [.name, .backends[].address]]' '[["a","127.0.0.3"],["keep"],["z","127.0.0.4"]]'
  expect 0 lab_lb node1 follow <<<"{\"set\": $(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $big}")}
{\"set\": $(lb_service a "{\"clusterIps\": [\"10.96.0.2\"], \"backends\": $(lb_backends 127.0.0.5)}")}"
  assert_json "$(jq -s . <<<"$output")" '[.[] | [has("error"), .set]]' '[[true,0],[false,1]]'
  assert_json "$(lab_lb node1 show)" '.services[0].backends[0].address' 127.0.0.5
}

@test "a service that found no room is set by the line that makes room" {
  many() { jq -nc --arg net "$1" --argjson count "$2" '[range($count) | {address: "\($net).\(.)", port: 8080}]'; }
  expect 0 lab_lb node1 follow <<<"{\"set\": $(lb_service a "{\"clusterIps\": [\"10.96.0.2\"], \"backends\": $(many 10.9.1 40)}")}
{\"set\": $(lb_service big "{\"clusterIps\": [\"10.96.0.4\"], \"backends\": $(many 10.9.2 100)}")}
{\"set\": $(lb_service b "{\"clusterIps\": [\"10.96.0.3\"], \"backends\": $(many 10.9.3 30)}")}
{\"set\": $(lb_service a "{\"clusterIps\": [\"10.96.0.2\"], \"backends\": $(many 10.9.1 20)}")}"
  assert_json "$(jq -s . <<<"$output")" '[.[] | [.set, .refused[]?.service]]' '[[1],[0,"test/big"],[0,"test/b"],[2]]'
  assert_json "$(lab_lb node1 show)" '[.services[] | [.name, (.backends | length)]]' '[["a",20],["b",30],["keep",1]]'
  assert_json "$(lab_in node1 cat /run/underpass/unfit.json)" '[.[].service]' '["test/big"]'
}

# lb_many NET COUNT: backends.
lb_many() { jq -nc --arg net "$1" --argjson count "$2" '[range($count) | {address: "\($net).\(.)", port: 8080}]'; }

# lb_left ERRNO|BACKENDS...: where 10.96.0.1 leads in a pod without routes.
lb_left() {
  lab_sockets node1/pod "$@" <<'PY'
serve("127.0.0.2", "127.0.0.3")
if sys.argv[1].startswith("E"):
    equal(errno_of(connect, SOCK_STREAM, "10.96.0.1"), sys.argv[1])
else:
    equal({reach(SOCK_STREAM, "10.96.0.1") for _ in range(20)}, set(sys.argv[1:]))
PY
}

@test "a service that finds no room loses the endpoints that are gone, keeps those that stay, and is left to the host path without any" {
  local kept="[{\"address\": \"127.0.0.3\", \"port\": 8080}]" gone='[.gone[]? | [.backend, .why]]' table
  lb_apply "{\"services\": [$(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2 127.0.0.3)}")]}"
  lb_left 127.0.0.2 127.0.0.3
  expect 0 lab_lb node1 follow <<<"{\"set\": $(lb_service keep "{\"clusterIps\": [\"10.96.0.1\", \"10.96.0.8\"], \"backends\": $(
    lb_many 10.9.0 100 | jq -c ". + $kept")}")}"
  assert_json "$output" "[[.refused[].error | contains(\"--max-backends\")], $gone]" '[[true],[["127.0.0.2:8080","left"]]]'
  lb_left 127.0.0.3
  # An address that it did not have is the host path's too: nobody is to be led to one backend of a hundred by a new one.
  assert_json "$(lab_lb node1 show)" '.services | map([.clusterIps, .backends[].address])' '[[["10.96.0.1"],"127.0.0.3"]]'
  table="{\"services\": [$(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_many 10.9.0 100)}")]}"
  expect 0 lab_lb node1 follow <<<"{\"table\": $table}
$(jq -c '{set: .services[0]}' <<<"$table")
{\"set\": $(lb_service thief '{"clusterIps": ["10.96.0.7"], "externalIps": ["10.96.0.1"]}')}"
  assert_json "$(jq -s . <<<"$output")" "[.[] | [[.refused[]?.service], $gone]]" \
    '[[["test/keep"],[["127.0.0.3:8080","left"]]],[["test/keep"],[]],[[],[]]]'
  lb_left ENETUNREACH
  # By lines alone it is the same, and with fewer endpoints it is served again.
  expect 0 lab_lb node1 follow <<<"{\"set\": $(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")}
$(jq -c '{set: .services[0]}' <<<"$table")"
  assert_json "${lines[1]}" "$gone" '[["127.0.0.2:8080","left"]]'
  lb_left ENETUNREACH
  lb_apply "{\"services\": [$(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")]}"
  lb_left 127.0.0.2
}

@test "a service whose endpoints are all replaced finds room where those were that are gone" {
  expect 0 lab_lb node1 follow <<<"{\"set\": $(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_many 10.9.1 40)}")}
{\"set\": $(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_many 10.9.2 40)}")}
{\"table\": {\"services\": [$(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_many 10.9.3 40)}")]}}"
  assert_json "$(jq -s . <<<"$output")" '[.[] | [.set, has("error"), (.gone // [] | length)]]' '[[1,false,1],[1,false,40],[1,false,40]]'
  assert_json "$(lab_lb node1 show)" '[.services[].backends | length, .[0].address]' '[40,"10.9.3.0"]'
}

@test "a service without room keeps no node port of which some nodes' would be refused" {
  local service='"clusterIps": ["10.96.0.1"], "nodePort": 30080, "externalTrafficPolicy": "Local", "backends":'
  local two='{"address": "127.0.0.2", "port": 8080, "node": "node2"}' three='{"address": "127.0.0.3", "port": 8080, "node": "node3"}'
  local many nodes
  many=$(jq -nc '[range(100) | {address: "10.9.0.\(.)", port: 8080, node: "node2"}]')
  nodes='{"nodes": {"nodeAddresses": ["127.9.9.9"], "nodes": [{"name": "node2", "addresses": ["127.9.9.2"]},
    {"name": "node3", "addresses": ["127.9.9.3"]}]}}'
  expect 0 lab_lb node1 follow <<<"$(jq -c . <<<"$nodes")
{\"set\": $(lb_service keep "{$service [$two, $three]}")}
{\"set\": $(lb_service keep "{$service $(jq -c ". + [$three]" <<<"$many")}")}"
  assert_json "${lines[2]}" '[.refused[].service]' '["test/keep"]'
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3")
equal(reach(SOCK_STREAM, "10.96.0.1"), "127.0.0.3")
# The host path: in this pod, its own listeners.
serve("127.9.9.2", "127.9.9.3", port=30080)
for node in "127.9.9.2", "127.9.9.3":
    equal(reach(SOCK_STREAM, node, 30080), node)
PY
  assert_json "$(lab_lb node1 show)" '.services[0].backends | map(.address)' '["127.0.0.3"]'
}

@test "services without room wait for running programs once where something was freed, and not at all where nothing was" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  local wide
  wide=$(lb_many 10.9.0 100)
  # waits LINES: how often follow waits: by an update of a map of maps.
  waits() {
    expect 0 lab_in node1 strace --quiet=all -f --trace=bpf --output="$BATS_TEST_TMPDIR/calls" "$(lab_lb_program)" follow <<<"$1"
    grep -c 'BPF_MAP_UPDATE_ELEM' "$BATS_TEST_TMPDIR/calls"
  }
  local none some
  none=$(waits '{"remove": {"namespace": "test", "name": "none"}}')
  some=$(waits "$(jq -nc --argjson wide "$wide" 'range(50) | {set: {namespace: "test", name: "wide-\(.)", port: 80,
    clusterIps: ["10.96.1.\(.)"], backends: $wide}}')")
  [ "$((some - none))" -le 1 ] || fail "$some waits for 50 services, $none for none"
  some=$(waits "$(jq -nc --argjson wide "$wide" '{table: {services: [range(50) | {namespace: "test", name: "wide-\(.)", port: 80,
    clusterIps: ["10.96.1.\(.)"], backends: $wide}]}}')")
  [ "$((some - none))" -le 2 ] || fail "$some waits for a table of 50 services, $none for none"
}

@test "a service that found no room is still wanted when the nodes change, not as it was before" {
  local big few node_port nodes
  big=$(jq -nc '[range(100) | {address: "10.9.0.\(.)", port: 8080, node: "node2"}]')
  few='[{"address": "127.0.0.3", "port": 8080, "node": "node2"}]'
  node_port='"clusterIps": ["10.96.0.2"], "nodePort": 30080, "externalTrafficPolicy": "Local", "backends":'
  nodes='{"nodes": {"nodeAddresses": ["127.9.9.9"], "nodes": [{"name": "node2", "addresses": ["127.9.9.2"]}]}}'
  expect 0 lab_lb node1 follow <<<"$nodes
{\"set\": $(lb_service big "{$node_port $few}")}
{\"set\": $(lb_service big "{$node_port $big}")}
$nodes
{\"set\": $(lb_service big "{$node_port $few}")}
$nodes"
  assert_json "$(jq -s . <<<"$output")" '[.[] | [.refused[]?.service]]' '[[],[],["test/big"],["test/big"],[],[]]'
}

@test "nobody gets a ClusterIP by naming it as an external address, and the rest of the table is updated" {
  local thief
  thief=$(lb_service a-thief "{\"clusterIps\": [\"10.96.0.9\"], \"externalIps\": [\"10.96.0.1\"], \"loadBalancerIps\": [\"10.96.0.1\"],
    \"created\": \"2001-01-01T00:00:00Z\", \"backends\": $(lb_backends 127.0.0.9)}")
  expect 1 lab_lb node1 apply <<<"{\"services\": [$thief,
    $(lb_service keep "{\"clusterIps\": [\"10.96.0.1\"], \"created\": \"2020-01-01T00:00:00Z\", \"backends\": $(lb_backends 127.0.0.3)}"),
    $(lb_service z "{\"clusterIps\": [\"10.96.0.4\"]}")]}"
  assert_json "$output" .conflicts '[{"frontend":"10.96.0.1:80/TCP","service":"test/a-thief","owner":"test/keep"}]'
  assert_equal "$(lb_who 10.96.0.1) $(lb_who 10.96.0.9)" '["keep"] ["a-thief"]'
  assert_json "$(lab_lb node1 show)" '[.services[].name]' '["a-thief","keep","z"]'
  # The same by lines, the thief first.
  lb_apply '{}'
  expect 0 lab_lb node1 follow <<<"{\"set\": $thief}
{\"set\": $(lb_service keep '{"clusterIps": ["10.96.0.1"]}')}"
  assert_json "$(tail -n 1 <<<"$output")" '[.conflicts[].service]' '["test/a-thief"]'
  # Once in the log, and where its owner is told of it.
  assert_json "$(jq -sc '[.[] | select(.msg | startswith("test/a-thief")) | .msg]' <<<"$stderr")" . \
    '["test/a-thief: 10.96.0.1:80/TCP belongs to test/keep; all others are as they are to be"]'
  assert_json "$(lab_in node1 cat /run/underpass/unfit.json)" . '[{"service":"test/a-thief","error":"10.96.0.1:80/TCP belongs to test/keep"}]'
  assert_equal "$(lb_who 10.96.0.1)" '["keep"]'
}

@test "of two services that claim an address the older has it, and the younger gets it when the older goes" {
  local old young
  old=$(lb_service z-old "{\"externalIps\": [\"192.0.2.1\"], \"created\": \"2020-01-01T00:00:00Z\", \"backends\": $(lb_backends 127.0.0.2)}")
  young=$(lb_service a-young "{\"externalIps\": [\"192.0.2.1\"], \"created\": \"2021-01-01T00:00:00Z\", \"backends\": $(lb_backends 127.0.0.3)}")
  expect 1 lab_lb node1 apply <<<"{\"services\": [$young, $old]}"
  assert_equal "$(lb_who 192.0.2.1)" '["z-old"]'
  expect 0 lab_lb node1 apply <<<"{\"services\": [$young]}"
  assert_equal "$(lb_who 192.0.2.1)" '["a-young"]'
  # By lines, in either order; the kernel knows how old a service is, also after a restart.
  expect 0 lab_lb node1 follow <<<"{\"set\": $old}"
  assert_equal "$(lb_who 192.0.2.1)" '["z-old"]'
  expect 0 lab_lb node1 follow <<<"{\"set\": $young}
{\"remove\": {\"namespace\": \"test\", \"name\": \"z-old\"}}"
  assert_json "$(head -n 1 <<<"$output")" '[.conflicts[] | .service, .owner]' '["test/a-young","test/z-old"]'
  assert_equal "$(lb_who 192.0.2.1)" '["a-young"]'
  # It also goes over when the older one only gives up the address.
  expect 0 lab_lb node1 follow <<<"{\"set\": $old}
{\"set\": $young}
{\"set\": $(jq -c 'del(.externalIps)' <<<"$old")}"
  assert_equal "$(lb_who 192.0.2.1)" '["a-young"]'
  # And when the one that has it was made anew since: then it is the younger one.
  expect 0 lab_lb node1 follow <<<"{\"set\": $old}
{\"set\": $young}
{\"set\": $(jq -c '.created = "2022-01-01T00:00:00Z"' <<<"$old")}"
  assert_json "$(tail -n 1 <<<"$output")" '[.conflicts[] | .service, .owner]' '["test/z-old","test/a-young"]'
  assert_equal "$(lb_who 192.0.2.1)" '["a-young"]'
}

@test "an address goes over to the younger service without a gap" {
  local old young
  old=$(lb_service old "{\"clusterIps\": [\"10.96.0.5\"], \"created\": \"2020-01-01T00:00:00Z\", \"backends\": $(lb_backends 127.0.0.2)}")
  young=$(lb_service young "{\"clusterIps\": [\"10.96.0.5\"], \"created\": \"2021-01-01T00:00:00Z\", \"backends\": $(lb_backends 127.0.0.3)}")
  lab_sockets node1/pod >"$BATS_TEST_TMPDIR/client" 2>&1 <<'PY' &
serve("127.0.0.2", "127.0.0.3")
while errno_of(reach, SOCK_STREAM, "10.96.0.5"):
    pass
found, end = Counter(), time.monotonic() + 3
while time.monotonic() < end:
    found[reach(SOCK_STREAM, "10.96.0.5")] += 1
equal(set(found), {"127.0.0.2", "127.0.0.3"})
PY
  local client=$!
  { for _ in {1..10}; do
    printf '{"set": %s}\n{"set": %s}\n' "$old" "$young" && sleep 0.2
    printf '{"remove": {"namespace": "test", "name": "old"}}\n' && sleep 0.2
  done; } | lab_lb node1 follow >/dev/null
  wait "$client" || fail "$(<"$BATS_TEST_TMPDIR/client")"
}

@test "a port takes the addresses of another of its Service over without a gap, and nothing is said of it" {
  port() { lb_service web "{\"portName\": \"$1\", \"clusterIps\": [\"10.96.0.5\"], \"backends\": $(lb_backends 127.0.0.2)}"; }
  local client a z
  a=$(port a) z=$(port z)
  { for _ in {1..100}; do
    printf '{"set": %s}\n{"remove": {"namespace": "test", "name": "web", "portName": "z"}}\n' "$a"
    printf '{"set": %s}\n{"remove": {"namespace": "test", "name": "web", "portName": "a"}}\n' "$z"
  done; } >"$BATS_TEST_TMPDIR/lines"
  printf '{"set": %s}\n' "$z" | lab_lb node1 follow >/dev/null
  lab_sockets node1/pod "$BATS_TEST_TMPDIR/over" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<'PY' &
serve("127.0.0.2")
reach(SOCK_STREAM, "10.96.0.5")
print("reached", flush=True)
while not os.path.exists(sys.argv[1]):
    equal(reach(SOCK_STREAM, "10.96.0.5"), "127.0.0.2")
PY
  client=$!
  lab_until 20 grep -q reached "$BATS_TEST_TMPDIR/client" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  expect 0 lab_lb node1 follow <"$BATS_TEST_TMPDIR/lines"
  : >"$BATS_TEST_TMPDIR/over"
  wait "$client" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  assert_json "$(jq -s . <<<"$output")" '[(map(.set) | add), (map(.conflicts[]?) | length)]' '[200,0]'
  assert_equal "$stderr" ''
  assert_json "$(lab_lb node1 show)" '[.services[] | [.name, .portName]]' '[["keep",null],["web","z"]]'
}

@test "names are read back as they were written, whatever is in them" {
  local service
  for service in '{"namespace": "a/b", "name": "c"}' '{"namespace": "a", "name": "b:c", "portName": "d"}' '{"namespace": "", "name": ""}' \
    '{"namespace": "a", "name": "dienst-ä-☃"}' '{"namespace": "a", "name": "b\nc"}'; do
    lb_apply "{\"services\": [$(jq -c '. + {port: 80}' <<<"$service")]}"
    assert_json "$(lab_lb node1 show)" ".services[0] | {namespace, name, portName} | map_values(select(.))" "$(jq -c . <<<"$service")"
    assert_json "$(lab_lb node1 show | lab_lb node1 apply)" .unchanged 1
  done
}

@test "apply --dry-run says what would change, and changes nothing" {
  local table
  table="{\"services\": [$(lb_service keep "{\"clusterIps\": [\"10.96.0.1\", \"10.96.0.8\"], \"backends\": $(lb_backends 127.0.0.3)}"),
    $(lb_service new '{"clusterIps": ["10.96.0.2"]}')]}"
  expect 0 lab_lb node1 apply --dry-run <<<"$table"
  assert_equal "$output" '[{"service":"test/keep","change":"change","addedAddresses":["10.96.0.8:80/TCP"],"addedBackends":["127.0.0.3:8080"],"removedBackends":["127.0.0.2:8080"]},{"service":"test/new","change":"add","addedAddresses":["10.96.0.2:80/TCP"]}]'
  assert_equal "$(lab_lb node1 show)" "$KEPT"
  expect 0 lab_lb node1 apply --dry-run <<<"$(jq -c '.refuse = ["10.96.0.0/12"]' <<<"$KEPT")"
  assert_equal "$output" '[{"service":"refuse","change":"change","addedAddresses":["10.96.0.0/12"]}]'
  expect 0 lab_lb node1 apply --dry-run <<<"$KEPT"
  assert_equal "$output" '[]'
}

@test "in the Service CIDRs that the table names, a port that no Service has on a ClusterIP is refused at once, and nothing else" {
  lb_apply "{\"refuse\": [\"10.96.0.0/12\", \"fd02::/108\"], \"services\": [
    $(lb_service a "{\"clusterIps\": [\"10.96.0.1\", \"fd02::1\"], \"backends\": $(lb_backends 127.0.0.2 fd01::2)}"),
    $(lb_service b "{\"clusterIps\": [\"10.200.0.1\"], \"externalIps\": [\"10.96.0.7\"]}")]}"
  assert_json "$(lab_lb node1 show)" .refuse '["10.96.0.0/12","fd02::/108"]'
  assert_json "$(lab_lb node1 show | lab_lb node1 apply)" .unchanged 2
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "fd01::2")
for address in "10.96.0.1", "fd02::1", "::ffff:10.96.0.1":
    for kind in SOCK_STREAM, SOCK_DGRAM:
        equal(errno_of(connect, kind, address, 81), "ECONNREFUSED", address)
    equal(errno_of(ask, new(SOCK_DGRAM, address), address, 81), "ECONNREFUSED", address)
equal(reach(SOCK_STREAM, "10.96.0.1"), "127.0.0.2")
# There is no route in this pod, so what is not refused fails otherwise.
for address in "10.96.0.2", "10.200.0.1", "10.96.0.7", "192.0.2.1", "fd02::2":
    equal(errno_of(connect, SOCK_STREAM, address, 81), "ENETUNREACH", address)
PY
  # The address goes with its Service, and comes back with it.
  printf '{"remove": {"namespace": "test", "name": "a"}}\n' | lab_lb node1 follow >/dev/null
  lab_sockets node1/pod <<<'equal(errno_of(connect, SOCK_STREAM, "10.96.0.1", 81), "ENETUNREACH")'
  printf '{"set": %s}\n' "$(lb_service a '{"clusterIps": ["10.96.0.1"]}')" | lab_lb node1 follow >/dev/null
  lab_sockets node1/pod <<<'equal(errno_of(connect, SOCK_STREAM, "10.96.0.1", 81), "ECONNREFUSED")'
  lb_apply '{}'
  lab_sockets node1/pod <<<'equal(errno_of(connect, SOCK_STREAM, "10.96.0.1", 81), "ENETUNREACH")'
}

@test "a line changes the CIDRs of refuse, and a port of a Service that found no room is none that no Service has" {
  local pair few
  few=$(lb_service pair "{\"clusterIps\": [\"10.96.0.1\"], \"portName\": \"a\", \"backends\": $(lb_backends 127.0.0.2)}")
  pair=$(jq -c '. + {portName: "b", port: 81, backends: [range(100) | {address: "10.0.0.\(.)", port: 8080}]}' <<<"$few")
  # errno PORT NAME: what connect() says; there is no route in this pod.
  errno() { lab_sockets node1/pod <<<"equal(errno_of(connect, SOCK_STREAM, '10.96.0.1', $1), '$2', $1)"; }
  lb_apply "{\"services\": [$few]}"
  errno 82 ENETUNREACH
  expect 0 lab_lb node1 follow <<<'{"refuse": ["10.96.0.0/31"]}'
  errno 82 ECONNREFUSED
  # Also where others fit: that the address is known by its port alone would say that there is no other.
  expect 0 lab_lb node1 follow <<<"{\"refuse\": [\"10.96.0.0/24\"]}
{\"set\": $pair}"
  assert_json "${lines[1]}" '.refused | map(.service)' '["test/pair:b"]'
  errno 81 ENETUNREACH
  errno 82 ENETUNREACH
  expect 1 lab_lb node1 apply <<<"{\"refuse\": [\"10.96.0.0/24\"], \"services\": [$few, $pair]}"
  errno 81 ENETUNREACH
  # A table that makes no sense changes nothing of that.
  expect 0 lab_lb node1 follow <<<"{\"table\": {\"refuse\": [\"10.96.0.0/24\"], \"services\": [$few, $pair]}}
{\"table\": {\"services\": [$few, $few]}}
{\"refuse\": [\"10.96.0.0/25\"]}"
  errno 81 ENETUNREACH
  expect 0 lab_lb node1 follow <<<"{\"table\": {\"refuse\": [\"10.96.0.0/24\"], \"services\": [$few, $pair]}}
{\"remove\": {\"namespace\": \"test\", \"name\": \"pair\", \"portName\": \"b\"}}"
  errno 81 ECONNREFUSED
  expect 0 lab_lb node1 follow <<<'{"refuse": []}'
  errno 82 ENETUNREACH
}

# lb_wide COUNT: a line for follow that gives a service so many endpoints.
lb_wide() {
  jq -nc --argjson count "$1" '{set: {namespace: "test", name: "wide", port: 80, clusterIps: ["10.96.9.1"],
    backends: [range($count) | {address: "10.\(100 + (. / 65536 | floor)).\(. / 256 | floor % 256).\(. % 256)", port: 8080}]}}'
}

lb_shows() { [ "$(lab_lb node1 "${@:2}" show | jq -c '[.services[] | select(.name == "wide").backends | length]')" = "$1" ]; }

# lb_has JSON: which services there are, and how many backends each has.
lb_has() { [ "$(lab_lb node1 show | jq -c '[.services[] | [.name, (.backends | length)]]')" = "$1" ]; }

lb_incomplete() { [ "$(lab_in node1 sed -n 's/^underpass_lb_incomplete_services //p' /run/small/bpf-lb-load.prom)" = "$1" ]; }

@test "that nothing can be written to the state directory is said once of each file, however often the Services without room change" {
  {
    lb_wide 100
    lb_wide 100 | jq -c '.set.name = "other"'
    printf '{"remove": {"namespace": "test", "name": "other"}}\n'
  } >"$BATS_TEST_TMPDIR/changes"
  expect 0 lab_in node1 env UNDERPASS_STATE=/proc/nowhere "$(lab_lb_program)" follow <"$BATS_TEST_TMPDIR/changes"
  assert_equal "$(grep -c 'no room' <<<"$stderr")" 2
  assert_equal "$(grep -o 'cannot write /proc/nowhere/[a-z.-]*' <<<"$stderr" | sort)" \
    $'cannot write /proc/nowhere/bpf-lb-load.prom\ncannot write /proc/nowhere/unfit.json'
}

@test "what a full state directory did not take of the tools of Services is written as soon as there is room, without a change" {
  local pipe=$BATS_TEST_TMPDIR/pipe file
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'mkdir -p /run/full && mount -t tmpfs -o size=64k none /run/full && ! cat /dev/zero 2>/dev/null >/run/full/zeros'
  mkfifo "$pipe"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn full node1 env UNDERPASS_STATE=/run/full sh -c '"$0" follow <"$2" | "$1"' "$(lab_lb_program)" \
    "$(lab_libexec)/end-sockets" "$pipe"
  exec 6>"$pipe"
  lb_wide 100000 >&6
  for file in bpf-lb-load.prom unfit.json end-sockets.prom; do
    lab_until 10 grep -q "cannot write /run/full/$file: No space left" "$LAB/log/full" || fail "$file: $(cat "$LAB/log/full")"
  done
  lab_in node1 rm /run/full/zeros
  for file in bpf-lb-load.prom unfit.json end-sockets.prom; do
    lab_until 10 lab_in node1 test -s "/run/full/$file" || fail "$file is not there"
  done
  assert_json "$(lab_in node1 cat /run/full/unfit.json)" '[.[].service]' '["test/wide"]'
  assert_equal "$(grep -c 'cannot write' "$LAB/log/full")" 3
  exec 6>&-
  lab_stop full
  lab_in node1 umount /run/full
}

@test "a Service of 100,000 endpoints is served, and where there is no room it is named once in the log and counted until it fits; others are served" {
  local large=/sys/fs/bpf/large pipe=$BATS_TEST_TMPDIR/pipe
  lab_lb node1 --pin-dir $large load --cgroup "$(lab_cgroup large)"
  lb_wide 100000 | lab_lb node1 --pin-dir $large follow >/dev/null
  lb_shows '[100000]' --pin-dir $large
  lab_lb node1 --pin-dir $large unload

  mkfifo "$pipe"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn small node1 env UNDERPASS_STATE=/run/small sh -c 'exec "$0" follow <"$1"' "$(lab_lb_program)" "$pipe"
  exec 6>"$pipe"
  lb_wide 100000 >&6
  lb_wide 100000 >&6
  printf '{"set": %s}\n' "$(lb_service other "{\"clusterIps\": [\"10.96.9.2\"], \"backends\": $(lb_backends 127.0.0.2)}")" >&6
  lab_until 10 lb_incomplete 1
  # The metrics may be of the moment before the last line.
  lab_until 10 lb_has '[["keep",1],["other",1]]' || fail "$(lab_lb node1 show)"
  assert_equal "$(grep -c 'test/wide: .*--max-backends.*all others' "$LAB/log/small")" 1 || fail "$(cat "$LAB/log/small")"
  lb_wide 3 >&6
  lab_until 10 lb_incomplete 0
  lb_shows '[3]'
  exec 6>&-
  lab_stop small
}
