# The socket load balancer: the service table, from JSON to the kernel and back.

load helpers
load lb

setup_file() {
  lb_suite --max-services 32768 --max-backends 131072 || return 0
}

# A table with something of everything.
lb_rich_table() {
  jq -c . <<'EOT'
{"nodeAddresses": ["127.9.9.9", "fd01::9"], "services": [
  {"namespace": "a", "name": "all", "portName": "http", "protocol": "TCP", "port": 80,
   "clusterIps": ["10.96.0.1", "fd02::1"], "externalIps": ["192.0.2.1"], "loadBalancerIps": ["192.0.2.2"],
   "nodePort": 30080, "externalTrafficPolicy": "Local", "sessionAffinity": {"timeoutSeconds": 77},
   "lbAlgorithm": "least-connections", "backends": [
     {"address": "127.0.0.2", "port": 8080, "local": true}, {"address": "127.0.0.3", "port": 8081},
     {"address": "127.0.0.4", "port": 8080, "scope": "external"}, {"address": "fd01::2", "port": 8080}],
   "created": "2026-11-25T17:00:00Z"},
  {"namespace": "a", "name": "dns", "protocol": "UDP", "port": 53, "clusterIps": ["10.96.0.2"],
   "internalTrafficPolicy": "Local", "backends": [{"address": "127.0.0.2", "port": 53, "local": true}]},
  {"namespace": "b", "name": "empty", "protocol": "TCP", "port": 443, "clusterIps": ["10.96.0.3"], "backends": []}
]}
EOT
}

# lb_many SERVICES BACKENDS: a table of that many TCP services with that many backends each.
lb_many() {
  jq -nc --argjson services "$1" --argjson backends "$2" '
    def address($net; $n): "\($net).\($n / 65536 | floor % 256).\($n / 256 | floor % 256).\($n % 256)";
    {services: [range($services) as $s | {namespace: "many", name: "s\($s)", port: 80, clusterIps: [address(10; $s)],
      backends: [range($backends) | {address: address(127; $s * $backends + . + 65536), port: 8080}]}]}'
}

@test "show prints the table that was applied, and applying that again changes nothing" {
  local table
  table=$(lb_rich_table)
  assert_equal "$(lab_lb node1 apply <<<"$table")" '{"set":3,"removed":0,"unchanged":0}'
  assert_equal "$(lab_lb node1 show | jq -c .)" "$table"
  assert_equal "$(lab_lb node1 show | lab_lb node1 apply)" '{"set":0,"removed":0,"unchanged":3}'
}

@test "apply changes what is different, and nothing else" {
  lb_rich_table | lab_lb node1 apply >/dev/null
  assert_equal "$(lb_rich_table | jq -c '.services |= (map(select(.name != "empty")) | .[1].backends = [])' |
    lab_lb node1 apply)" '{"set":1,"removed":1,"unchanged":1}'
  # The counts of what stays go on.
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.9\"], \"protocol\": \"UDP\", \"backends\": $(lb_backends 127.0.0.2)}")"
  lab_sockets node1/pod <<<'for _ in range(10): connect(SOCK_DGRAM, "10.96.0.9")'
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.9\"], \"protocol\": \"UDP\", \"backends\": $(lb_backends 127.0.0.{2,3})}")"
  assert_equal "$(lb_stat '.[0].backends | map_values(.connections)')" '{"127.0.0.2:8080":10,"127.0.0.3:8080":0}'
}

@test "follow makes one change a line, says what it did, and goes on after a line that makes no sense" {
  lb_rich_table | lab_lb node1 apply >/dev/null
  expect 0 lab_lb node1 follow <<'LINES'
{"remove": {"namespace": "b", "name": "empty"}}
{"remove": {"namespace": "b", "name": "empty"}}
not JSON
{"set": {"namespace": "b", "name": "new", "port": 0}}
{"set": {"namespace": "b", "name": "new", "port": 443, "clusterIps": ["10.96.0.3"]}}
{"set": {"namespace": "b", "name": "new", "port": 443, "clusterIps": ["10.96.0.3"]}}
{"table": {"services": []}}
LINES
  assert_equal "$(jq -c '[.line, .set, .removed, .unchanged, has("error")]' <<<"$output")" '[1,0,1,0,false]
[2,0,0,0,false]
[3,null,null,null,true]
[4,null,null,null,true]
[5,1,0,0,false]
[6,0,0,1,false]
[7,0,3,0,false]'
  assert_json "$(lab_lb node1 show)" '.services' '[]'
}

@test "an address that moves to another service goes over without a gap" {
  lb_services "$(lb_service old "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")"
  lab_sockets node1/pod >"$BATS_TEST_TMPDIR/client" 2>&1 <<'PY' &
serve("127.0.0.2", "127.0.0.3")
found, end = Counter(), time.monotonic() + 4
while time.monotonic() < end:
    found[reach(SOCK_STREAM, "10.96.0.1")] += 1
equal(set(found), {"127.0.0.2", "127.0.0.3"})
PY
  local client=$!
  local turn name=(old new)
  for turn in 1 0 1 0 1 0; do
    sleep 0.4
    lb_services "$(lb_service "${name[turn]}" "{\"clusterIps\": [\"10.96.0.1\"],
      \"backends\": $(lb_backends 127.0.0.$((turn + 2)))}")"
  done
  wait "$client"
  assert_equal "$(<"$BATS_TEST_TMPDIR/client")" ''
  # Taken from one that stays.
  lab_lb node1 follow >/dev/null <<<"{\"set\": $(lb_service older '{"clusterIps": ["10.96.0.1"], "created": "2020-01-01T00:00:00Z"}')}"
  assert_json "$(lab_lb node1 show)" '[.services[] | {name, clusterIps}]' \
    '[{"name":"old","clusterIps":null},{"name":"older","clusterIps":["10.96.0.1"]}]'
}

@test "counters are printed for Prometheus too" {
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"protocol\": \"UDP\", \"lbAlgorithm\": \"least-connections\",
    \"backends\": $(lb_backends 127.0.0.2)}")" "$(lb_service none '{"clusterIps": ["10.96.0.2"]}')"
  lab_sockets node1/pod <<'PY'
for _ in range(7):
    connect(SOCK_DGRAM, "10.96.0.1")
errno_of(connect, SOCK_STREAM, "10.96.0.2")
PY
  expect 0 lab_lb node1 stats --format prometheus
  assert_equal "$(grep -v '^#' <<<"$output")" 'underpass_lb_refused_total{namespace="test",service="none",port=""} 1
underpass_lb_refused_total{namespace="test",service="web",port=""} 0
underpass_lb_connections_total{namespace="test",service="web",port="",backend="127.0.0.2:8080"} 7
underpass_lb_open_sockets{namespace="test",service="web",port="",backend="127.0.0.2:8080"} 0'
}

@test "show prints a table for people on a terminal" {
  lb_rich_table | lab_lb node1 apply >/dev/null
  expect 0 lab_in node1 script --quiet --command "$(lab_lb_program) show" /dev/null
  assert_contains "$output" 'a/all:http  least-connections  affinity 77s'
  assert_contains "$output" '10.96.0.1:80/TCP'
  assert_contains "$output" '-> 127.0.0.3:8081'
}

@test "stats prints a table for people on a terminal, and JSON where that is asked for" {
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"lbAlgorithm\": \"least-connections\",
    \"backends\": $(lb_backends 127.0.0.2 127.0.0.3)}")" "$(lb_service none '{"clusterIps": ["10.96.0.2"]}')"
  expect 0 lab_in node1 script --quiet --command "$(lab_lb_program) stats" /dev/null
  assert_equal "$(tr -d '\r' <<<"$output")" 'SERVICE    REFUSED  BACKEND         CONNECTIONS  OPEN
test/none  0        none
test/web   0        127.0.0.2:8080  0            0
                    127.0.0.3:8080  0            0'
  expect 0 lab_in node1 script --quiet --command "$(lab_lb_program) stats --format json" /dev/null
  assert_json "$output" 'length' 2
}

@test "the schema describes what apply and follow read and what stats prints" {
  assert_json "$(lab_lb node1 schema)" '[.title, (.properties | keys)]' '["ServiceTable",["nodeAddresses","nodes","refuse","services"]]'
  assert_json "$(lab_lb node1 schema line)" '[.oneOf[].required[0]]' '["set","remove","table","nodes","refuse","leave","renew"]'
  assert_json "$(lab_lb node1 schema stats)" '.type' array
}

@test "10,000 services with 10 backends each are loaded, shown, changed and removed" {
  lab_lb node1 apply <<<'{}' >/dev/null
  lb_many 10000 10 >"$BATS_TEST_TMPDIR/table"
  assert_equal "$(lab_lb node1 apply <"$BATS_TEST_TMPDIR/table")" '{"set":10000,"removed":0,"unchanged":0}'
  assert_json "$(lab_lb node1 show)" '[(.services | length), ([.services[].backends | length] | add)]' '[10000,100000]'
  assert_equal "$(jq -c '.services[5000].backends[3].port = 9' "$BATS_TEST_TMPDIR/table" | lab_lb node1 apply)" \
    '{"set":1,"removed":0,"unchanged":9999}'
  lab_sockets node1/pod <<'PY'
# Backend 0 of service 5000 is number 5000 * 10 + 65536.
serve(*(f"127.1.195.{80 + number}" for number in range(10)))
found = {errno_of(reach, SOCK_STREAM, "10.0.19.136") for _ in range(200)}
# The fourth has another port now, on which nobody listens.
equal(found, {None, "ECONNREFUSED"})
PY
  assert_equal "$(lab_lb node1 apply <<<'{}')" '{"set":0,"removed":10000,"unchanged":0}'
}

@test "100 services with 1,000 backends each are loaded, shown, changed and removed" {
  lab_lb node1 apply <<<'{}' >/dev/null
  lb_many 100 1000 >"$BATS_TEST_TMPDIR/table"
  assert_equal "$(lab_lb node1 apply <"$BATS_TEST_TMPDIR/table")" '{"set":100,"removed":0,"unchanged":0}'
  assert_json "$(lab_lb node1 show)" '[(.services | length), ([.services[].backends | length] | add)]' '[100,100000]'
  assert_equal "$(jq -c 'del(.services[50].backends[500])' "$BATS_TEST_TMPDIR/table" | lab_lb node1 apply)" \
    '{"set":1,"removed":0,"unchanged":99}'
  assert_json "$(lab_lb node1 show)" '[.services[].backends | length] | add' 99999
  assert_equal "$(lab_lb node1 apply <<<'{}')" '{"set":0,"removed":100,"unchanged":0}'
}

@test "a port's name is as long as Kubernetes lets it be, and names too long together are refused, and named" {
  local port long
  port=$(printf 'p%.0s' {1..63}) long=$(printf 's%.0s' {1..63})
  lb_services "$(lb_service web "{\"portName\": \"$port\", \"clusterIps\": [\"10.96.0.5\"]}")"
  assert_equal "$(lab_lb node1 show | jq -r '.services[].portName')" "$port"
  expect 1 lb_services "$(lb_service "$long" "{\"namespace\": \"$long\", \"portName\": \"$port\", \"clusterIps\": [\"10.96.0.5\"]}")"
  # shellcheck disable=SC2154 # set by expect
  assert_contains "$stderr" "the name takes more than 144 bytes"
}

@test "what does not fit is refused by name, and what was there stays" {
  local cgroup small=/sys/fs/bpf/small
  cgroup=$(lab_cgroup small)
  lab_lb node1 --pin-dir $small load --cgroup "$cgroup" --max-services 4 --max-backends 12
  lb_many 4 2 | lab_lb node1 --pin-dir $small apply >/dev/null
  expect 1 lab_lb node1 --pin-dir $small apply <<<"$(lb_many 4 4)"
  assert_contains "$stderr" '--max-backends'
  expect 1 lab_lb node1 --pin-dir $small apply <<<"$(lb_many 5 1)"
  assert_contains "$stderr" '--max-services'
  assert_json "$(lab_lb node1 --pin-dir $small show)" '[.services[].backends | length > 0] | all' true
  # And the room is there again when it is needed.
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    lb_many 4 1 | lab_lb node1 --pin-dir $small apply >/dev/null
    lb_many 4 2 | lab_lb node1 --pin-dir $small apply >/dev/null
    lab_lb node1 --pin-dir $small apply <<<'{}' >/dev/null
  done
  lab_lb node1 --pin-dir $small unload
}

@test "a table takes the place of another one that filled all there is" {
  local cgroup full=/sys/fs/bpf/full
  cgroup=$(lab_cgroup full)
  lab_lb node1 --pin-dir $full load --cgroup "$cgroup" --max-services 8 --max-backends 8
  lb_many 8 1 | lab_lb node1 --pin-dir $full apply >/dev/null
  expect 0 lab_lb node1 --pin-dir $full apply <<<"$(lb_many 8 1 |
    jq -c '.services[] |= (.namespace = "others" | .clusterIps[0] |= sub("^10"; "11"))')"
  assert_json "$output" . '{"set":8,"removed":8,"unchanged":0}'
  lab_lb node1 --pin-dir $full unload
}

@test "a backend that becomes local and ceases to be takes no more room than it had" {
  local cgroup small=/sys/fs/bpf/local changes
  cgroup=$(lab_cgroup local)
  lab_lb node1 --pin-dir $small load --cgroup "$cgroup" --max-services 8 --max-backends 8
  lab_lb node1 --pin-dir $small apply >/dev/null <<<'{"nodeAddresses": ["127.9.9.9"], "services": []}'
  changes=$(jq -nc '[range(20)] | .[] | {set: {namespace: "test", name: "flips", port: 80, clusterIps: ["10.96.0.1"], nodePort: 30080,
    backends: [{address: "127.0.0.2", port: 8080, local: (. % 2 == 0)}]}}')
  expect 0 lab_lb node1 --pin-dir $small follow <<<"$changes"
  assert_json "$(jq -s . <<<"$output")" '[.[] | select(.set == 1)] | length' 20
  lab_lb node1 --pin-dir $small unload
}

# lb_name_record NAMESPACE/NAME OFFSET BYTE: writes into what `names` says of a service, as a writer that is killed has.
lb_name_record() {
  lb_pinned "$@" <<'PY'
names = values("/sys/fs/bpf/underpass/maps/names")
record = names.find(b"\x01" + sys.argv[1].replace("/", "\0").encode() + b"\0")
assert record >= 0 and record % 160 == 0
names[record + int(sys.argv[2])] = int(sys.argv[3])
PY
}

@test "a change of algorithm or affinity that a killed writer has only begun is made by the next one" {
  local plain
  plain="{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}"
  lb_services "$(lb_service begun "$plain")"
  # The flags say least connections, ...
  lb_name_record test/begun 150 4
  expect 0 lab_lb node1 apply <<<"{\"nodeAddresses\": [\"127.9.9.9\", \"fd01::9\"], \"services\": [
    $(lb_service begun "$(jq -c '.lbAlgorithm = "least-connections"' <<<"$plain")")]}"
  assert_json "$output" .set 1
  # ... and here the timeout is 7 s.
  lb_name_record test/begun 152 7
  expect 0 lab_lb node1 apply <<<"{\"nodeAddresses\": [\"127.9.9.9\", \"fd01::9\"], \"services\": [
    $(lb_service begun "$(jq -c '. += {lbAlgorithm: "least-connections", sessionAffinity: {timeoutSeconds: 7}}' <<<"$plain")")]}"
  assert_json "$output" .set 1
}

@test "all maps together take less than 50 MB with the default sizes" {
  local cgroup
  cgroup=$(lab_cgroup sizes)
  lab_lb node1 --pin-dir /sys/fs/bpf/sizes load --cgroup "$cgroup"
  lb_pinned /sys/fs/bpf/sizes/maps >"$BATS_TEST_TMPDIR/bytes" <<'PY'
print(sum(about(opened(f"{sys.argv[1]}/{name}"), "memlock") for name in os.listdir(sys.argv[1])))
PY
  printf '# maps: %s bytes\n' "$(<"$BATS_TEST_TMPDIR/bytes")" >&3
  [ "$(<"$BATS_TEST_TMPDIR/bytes")" -gt 1000000 ]
  [ "$(<"$BATS_TEST_TMPDIR/bytes")" -lt 50000000 ]
  lab_lb node1 --pin-dir /sys/fs/bpf/sizes unload
}
