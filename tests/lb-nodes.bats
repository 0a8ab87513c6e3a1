# The socket load balancer: node ports, on the node's own addresses and on those of other nodes.

load helpers
load lb

setup_file() {
  lb_suite || return 0
}

NODES='{"nodeAddresses": ["127.9.9.9", "fd01::9"], "nodes": [{"name": "node2", "addresses": ["127.9.9.2", "fd01::7"]},
  {"name": "node3", "addresses": ["127.9.9.3"]}, {"name": "node4", "addresses": []}]}'

# On this node, on node2, on node3, and one on node2 that serves where nobody else does.
BACKENDS='[{"address": "127.0.0.2", "port": 8080, "local": true}, {"address": "fd01::2", "port": 8080, "local": true},
  {"address": "127.0.0.3", "port": 8080, "node": "node2"}, {"address": "fd01::3", "port": 8080, "node": "node2"},
  {"address": "127.0.0.4", "port": 8080, "node": "node3"}]'

# lb_nodes SERVICE...: the table with these nodes and services.
lb_nodes() {
  lb_apply "$(jq -c '. + {services: $ARGS.positional | map(fromjson)}' --args "$@" <<<"$NODES")"
}

# lb_node_port NAME JSON: a Service with a node port and these backends.
lb_node_port() {
  lb_service "$1" "$(jq -nc --argjson more "$2" --argjson backends "$BACKENDS" \
    '{clusterIps: ["10.96.0.1", "fd02::1"], nodePort: 30080, backends: $backends} + $more')"
}

clients='
serve("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "fd01::2", "fd01::3")
ALL, ALL6 = {"127.0.0.2", "127.0.0.3", "127.0.0.4"}, {"fd01::2", "fd01::3"}
KINDS = SOCK_STREAM, SOCK_DGRAM

def leads(kind, address, backends, port=30080):
    equal({reach(kind, address, port) for _ in range(60)}, backends, f"{address} {kind}")

def refused(kind, address, port=30080):
    equal(errno_of(connect, kind, address, port), "ECONNREFUSED", f"{address} {kind}")
'

@test "a node port leads to all backends on the addresses of every node, and on no other" {
  lb_nodes "$(lb_node_port tcp '{}')" "$(lb_node_port udp '{"protocol": "UDP", "clusterIps": ["10.96.0.2", "fd02::2"]}')"
  lab_sockets node1/pod <<<"$clients"'
for kind in KINDS:
    for address in "127.9.9.9", "127.9.9.2", "127.9.9.3", "::ffff:127.9.9.2":
        leads(kind, address, ALL)
    for address in "fd01::9", "fd01::7":
        leads(kind, address, ALL6)
    leads(kind, "10.96.0.1" if kind == SOCK_STREAM else "10.96.0.2", ALL, 80)
for address in "127.9.9.4", "127.0.0.1":
    refused(SOCK_STREAM, address)
refused(SOCK_STREAM, "127.9.9.2", 30081)
refused(SOCK_STREAM, "127.9.9.2", 80)
with connect(SOCK_STREAM, "127.9.9.2", 30080) as connected:
    equal(connected.getpeername(), ("127.9.9.2", 30080))
sender = new(SOCK_DGRAM, AF_INET)
for address in "127.9.9.2", "127.9.9.9":
    equal(ask(sender, address, 30080)[1], (address, 30080))
'
}

@test "what means a node in the maps is no address that a process can ask for" {
  lb_nodes "$(lb_node_port tcp '{"externalTrafficPolicy": "Local"}')"
  lab_sockets node1/pod <<<"$clients"'
# To connect to the unspecified address is to connect to the host itself.
listener = new(SOCK_STREAM, AF_INET6)
listener.bind(("::", 30080))
listener.listen()
for address in "0.0.0.0", "::", "::1":
    with connect(SOCK_STREAM, address, 30080) as connected:
        equal(connected.getpeername()[0] in ("127.0.0.1", "::1"), True, f"{address}: {connected.getpeername()}")
for address in "0.0.0.1", "0.0.0.2", "::2":
    equal(errno_of(connect, SOCK_STREAM, address, 30080) in ("ENETUNREACH", "EHOSTUNREACH", "EINVAL", "ECONNREFUSED"), True, address)
'
}

@test "with the external traffic policy Local another node's address leads to that node's backends, or is refused" {
  local backends
  backends=$(jq -c '. + [{address: "127.0.0.5", port: 8080, node: "node2", scope: "node"}] | map(select(.node != "node3"))' <<<"$BACKENDS")
  lb_nodes "$(lb_node_port tcp "{\"externalTrafficPolicy\": \"Local\", \"backends\": $backends}")" \
    "$(lb_node_port udp "{\"protocol\": \"UDP\", \"externalTrafficPolicy\": \"Local\", \"clusterIps\": [\"10.96.0.2\", \"fd02::2\"], \"backends\": $backends}")"
  lab_sockets node1/pod <<<"$clients"'
for kind in KINDS:
    leads(kind, "127.9.9.9", {"127.0.0.2", "127.0.0.3"})
    leads(kind, "fd01::9", ALL6)
    leads(kind, "127.9.9.2", {"127.0.0.3", "127.0.0.5"})
    leads(kind, "fd01::7", {"fd01::3"})
    refused(kind, "127.9.9.3")
leads(SOCK_STREAM, "10.96.0.1", {"127.0.0.2", "127.0.0.3"}, 80)
# One flow of an unconnected socket stays with its backend, as long as that is ready.
sender = new(SOCK_DGRAM, AF_INET)
while ask(sender, "127.9.9.2", 30080)[0] != "127.0.0.3":
    sender = new(SOCK_DGRAM, AF_INET)
equal({ask(sender, "127.9.9.2", 30080) for _ in range(20)}, {("127.0.0.3", ("127.9.9.2", 30080))})
'
  assert_json "$(lab_lb node1 stats)" '[.[] | select(.name == "tcp").backends["127.0.0.5:8080"].connections > 0]' '[true]'
}

@test "an unconnected socket keeps its backend on another node while all of that node's terminate, and leaves it by its own node's port" {
  # backends FIRST SECOND THIRD: those on node2, each with its scope.
  backends() {
    jq -nc '[{address: "127.0.0.2", port: 8080, local: true}] + ($ARGS.positional | map(split("/") | {address: .[0], port: 8080, node: "node2"}
      + if .[1] then {scope: .[1]} else {} end))' --args "$@"
  }
  # shellcheck disable=SC2016 # a variable of jq
  local change='{protocol: "UDP", externalTrafficPolicy: "Local", backends: $backends}' given counted
  local counts='[.[].backends["127.0.0.3:8080", "127.0.0.4:8080"].connections]'
  put() { lb_nodes "$(lb_node_port udp "$(jq -nc --argjson backends "$(backends "$@")" "$change")")"; }
  mkfifo "$BATS_TEST_TMPDIR/ready" "$BATS_TEST_TMPDIR/go"
  put 127.0.0.3 127.0.0.4 127.0.0.5
  lab_sockets node1/pod "$BATS_TEST_TMPDIR" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<<"$clients"'
def step():
    open(sys.argv[1] + "/ready", "w").close()
    open(sys.argv[1] + "/go").read()

def sender_to(address, backend):
    while True:
        sender = new(SOCK_DGRAM, AF_INET)
        if ask(sender, address, 30080)[0] == backend:
            return sender

def asked(sender, address):
    return {ask(sender, address, 30080)[0] for _ in range(20)}

other, own = sender_to("127.9.9.2", "127.0.0.3"), sender_to("127.9.9.9", "127.0.0.3")
step()
equal(asked(other, "127.9.9.2"), {"127.0.0.3"}, "ready before, and terminates")
equal(asked(own, "127.9.9.9"), {"127.0.0.2"}, "by the own node only what is ready")
late = [sender_to("127.9.9.2", backend) for backend in ("127.0.0.3", "127.0.0.4", "127.0.0.5")]
equal([asked(sender, "127.9.9.2") for sender in late], [{"127.0.0.3"}, {"127.0.0.4"}, {"127.0.0.5"}])
step()
equal(asked(other, "127.9.9.2"), {"127.0.0.3"}, "another one is gone")
equal(asked(late[2], "127.9.9.2") < {"127.0.0.3", "127.0.0.4"}, True, "its own is gone")
step()
equal(asked(other, "127.9.9.2"), {"127.0.0.3"}, "it is ready again")
print("kept")
' &
  local client=$!
  for given in '127.0.0.3/node 127.0.0.4/node 127.0.0.5/node' '127.0.0.3/node 127.0.0.4/node' '127.0.0.3 127.0.0.4'; do
    timeout 20 cat "$BATS_TEST_TMPDIR/ready" || fail "$(<"$BATS_TEST_TMPDIR/client")"
    counted=$(lb_stat "$counts")
    # shellcheck disable=SC2086 # a list
    put $given
    # What begins to terminate takes what it counted by this node's port with it; else nothing is lost, nor counted twice.
    [[ $given == *127.0.0.5* ]] || assert_equal "$(lb_stat "$counts")" "$counted"
    : >"$BATS_TEST_TMPDIR/go"
  done
  wait "$client"
  assert_equal "$(<"$BATS_TEST_TMPDIR/client")" kept
}

@test "with affinity each node's port keeps a client to a backend of that node" {
  lb_nodes "$(lb_node_port tcp '{"externalTrafficPolicy": "Local", "sessionAffinity": {},
    "backends": [{"address": "127.0.0.2", "port": 8080, "local": true}, {"address": "127.0.0.3", "port": 8080, "node": "node2"},
      {"address": "127.0.0.5", "port": 8080, "node": "node2"}, {"address": "127.0.0.4", "port": 8080, "node": "node3"}]}')"
  lab_sockets node1/pod <<<"$clients"'
first, second = reach(SOCK_STREAM, "127.9.9.9", 30080), reach(SOCK_STREAM, "127.9.9.2", 30080)
equal(second in ("127.0.0.3", "127.0.0.5"), True, second)
for _ in range(30):
    leads(SOCK_STREAM, "127.9.9.9", {first})
    leads(SOCK_STREAM, "127.9.9.2", {second})
    leads(SOCK_STREAM, "127.9.9.3", {"127.0.0.4"})
'
}

@test "with affinity a client of another node's port keeps its backend while all of that node's terminate" {
  local scope backends
  for scope in '{}' '{"scope": "node"}' '{"scope": "node"}' '{}'; do
    backends=$(jq -nc --argjson scope "$scope" '[{address: "127.0.0.2", port: 8080, local: true}]
      + ([3, 4, 5] | map({address: "127.0.0.\(.)", port: 8080, node: "node2"} + $scope))')
    lb_nodes "$(lb_node_port tcp "{\"externalTrafficPolicy\": \"Local\", \"sessionAffinity\": {}, \"backends\": $backends}")"
    lab_sockets node1/pod "$BATS_TEST_TMPDIR/kept" "$scope" <<<"$clients"'
kept = reach(SOCK_STREAM, "127.9.9.2", 30080)
leads(SOCK_STREAM, "127.9.9.2", {kept})
if sys.argv[2] != "{}":
    leads(SOCK_STREAM, "127.9.9.9", {"127.0.0.2"})
with open(sys.argv[1], "a+", encoding="utf-8") as file:
    file.seek(0)
    equal(file.read() or kept, kept)
    file.truncate(0)
    file.write(kept)
'
  done
}

@test "a node port of a Service of one family answers in that family alone" {
  lb_nodes "$(lb_node_port four '{"clusterIps": ["10.96.0.1"]}')"
  lab_sockets node1/pod <<<"$clients"'
leads(SOCK_STREAM, "127.9.9.2", ALL)
server = new(SOCK_STREAM, AF_INET6)
server.bind(("fd01::9", 30080))
server.listen()
with connect(SOCK_STREAM, "fd01::9", 30080) as connected:
    equal(connected.getpeername()[0], "fd01::9")
'
}

@test "a node port whose protocol changes is served by the new one" {
  local protocol
  lb_nodes
  for protocol in TCP UDP TCP; do
    lab_lb node1 follow >/dev/null <<<"{\"set\": $(lb_service turns "{\"protocol\": \"$protocol\", \"clusterIps\": [\"10.96.0.77\"], \"nodePort\": 30777,
      \"backends\": $(lb_backends 127.0.0.2)}")}"
    assert_json "$(lab_lb node1 show)" '.services[] | select(.name == "turns") | .protocol' "$protocol"
    lab_sockets node1/pod <<PY
serve("127.0.0.2")
equal(reach({"TCP": SOCK_STREAM, "UDP": SOCK_DGRAM}["$protocol"], "127.9.9.9", 30777), "127.0.0.2")
PY
  done
  lab_lb node1 follow >/dev/null <<<'{"remove": {"namespace": "test", "name": "turns"}}'
}

@test "an external address with the number of a node port is the external address" {
  lb_nodes "$(lb_node_port web '{}')" "$(lb_service external "{\"clusterIps\": [\"10.96.0.3\"], \"port\": 30080,
    \"externalIps\": [\"127.9.9.2\"], \"backends\": $(lb_backends 127.0.0.5)}")"
  lab_sockets node1/pod <<<"$clients"'
leads(SOCK_STREAM, "127.9.9.2", {"127.0.0.5"})
leads(SOCK_STREAM, "127.9.9.3", ALL)
'
}

@test "node ports follow the nodes, without a word about the services" {
  lb_nodes "$(lb_node_port all '{}')" "$(lb_node_port local '{"nodePort": 30090, "externalTrafficPolicy": "Local", "clusterIps": ["10.96.0.2"]}')"
  expect 0 lab_lb node1 follow <<'LINES'
{"nodes": {"nodeAddresses": ["127.9.9.8", "fd01::9"], "nodes": [{"name": "node3", "addresses": ["127.9.9.2", "127.9.9.4"]}]}}
LINES
  assert_json "$output" '[.removed, has("refused"), has("error")]' '[0,false,false]'
  assert_json "$(lab_lb node1 show)" '[.nodeAddresses, .nodes]' \
    '[["127.9.9.8","fd01::9"],[{"name":"node3","addresses":["127.9.9.2","127.9.9.4"]}]]'
  lab_sockets node1/pod <<<"$clients"'
for address in "127.9.9.8", "127.9.9.2", "127.9.9.4":
    leads(SOCK_STREAM, address, ALL)
for address in "127.9.9.9", "127.9.9.3":
    refused(SOCK_STREAM, address)
    refused(SOCK_STREAM, address, 30090)
leads(SOCK_STREAM, "127.9.9.2", {"127.0.0.4"}, 30090)
'
  # A node that is known again has its backends again, though nothing was said of them.
  expect 0 lab_lb node1 apply <<<"$(lab_lb node1 show)"
  assert_json "$output" '[.set, .removed]' '[0,0]'
  lb_nodes "$(lb_node_port local '{"nodePort": 30090, "externalTrafficPolicy": "Local", "clusterIps": ["10.96.0.2"]}')"
  expect 0 lab_lb node1 follow <<<"{\"table\": $(jq -c --argjson local "$(lb_node_port local '{"nodePort": 30090, "externalTrafficPolicy": "Local", "clusterIps": ["10.96.0.2"]}')" \
    '. + {services: [$local]}' <<<"$NODES")}
{\"nodes\": {\"nodeAddresses\": [\"127.9.9.9\"]}}
{\"nodes\": $(jq -c . <<<"$NODES")}"
  lab_sockets node1/pod <<<"$clients"'
leads(SOCK_STREAM, "127.9.9.2", {"127.0.0.3"}, 30090)
leads(SOCK_STREAM, "127.9.9.3", {"127.0.0.4"}, 30090)
'
}

@test "what was counted on the address of a node that goes stays counted" {
  lb_follow
  lb_tell "{\"table\": $(jq -c --argjson web "$(lb_node_port web '{"externalTrafficPolicy": "Local"}')" '. + {services: [$web]}' <<<"$NODES")}" >/dev/null
  # They are written every two seconds: the next time after all of this.
  lab_until 5 metrics_have 'underpass_lb_services 1'
  lab_in node1 rm "$METRICS"
  lab_until 5 metrics_have 'underpass_lb_services 1'
  lab_sockets node1/pod <<<"$clients"'
for _ in range(3):
    reach(SOCK_STREAM, "127.9.9.2", 30080)
'
  lb_tell '{"nodes": {"nodeAddresses": ["127.9.9.9"]}}' >/dev/null
  lab_until 5 metrics_have 'underpass_lb_service_connections_total{namespace="test",service="web",port=""} 3' || fail "$(lab_in node1 cat "$METRICS")"
  lab_stop follow KILL
}

METRICS=/run/underpass/bpf-lb-load.prom

metrics_have() { lab_in node1 grep -qxF -- "$1" "$METRICS"; }

@test "show prints the nodes that were applied and whose each backend is, and a dry run names what would change of them" {
  local table
  table=$(jq -c '. + {services: $ARGS.positional | map(fromjson)} | del(.nodes[2])' --args \
    "$(lb_node_port local '{"externalTrafficPolicy": "Local", "protocol": "TCP"}')" <<<"$NODES")
  lb_apply "$table"
  assert_json "$(lab_lb node1 show)" '[.nodeAddresses, .nodes, (.services[0].backends | map([.address, .node]) | sort)]' \
    "$(jq -c '[.nodeAddresses, .nodes, (.services[0].backends | map([.address, .node]) | sort)]' <<<"$table")"
  assert_json "$(lab_lb node1 show | lab_lb node1 apply)" '[.set, .unchanged]' '[0,1]'
  expect 0 lab_lb node1 apply --dry-run <<<"$table"
  assert_equal "$output" '[]'
  expect 0 lab_lb node1 apply --dry-run <<<"$(jq -c '.nodes[0].addresses = ["127.9.9.7"] | .nodes[1].name = "node5"' <<<"$table")"
  assert_json "$output" '.[0]' '{"service":"nodes","change":"change","addedAddresses":["127.9.9.3 of node5","127.9.9.7 of node2"],"removedAddresses":["127.9.9.2 of node2","127.9.9.3 of node3","fd01::7 of node2"]}'
}

@test "with more addresses of nodes than there is room for, this is said, and the rest is served" {
  local table
  table=$(jq -nc --argjson service "$(lb_node_port web '{}')" '{nodeAddresses: ["127.9.9.9"], services: [$service],
    nodes: [range(170) as $n | {name: "n\($n)", addresses: [range(100) | "10.\($n).0.\(.)"]}]}')
  expect 1 lab_lb node1 apply <<<"$table"
  assert_contains "$output" 'no room for 617 of their addresses: node ports do not answer there'
  lab_sockets node1/pod <<<"$clients"'leads(SOCK_STREAM, "127.9.9.9", ALL)'
}

@test "nodes whose names take more bytes than there is room for are said to have none, and none is taken for another" {
  local name
  name=$(printf 'é%.0s' {1..128})
  # One of the addresses was another node's.
  expect 0 lab_lb node1 apply <<<'{"nodes": [{"name": "n1", "addresses": ["127.9.9.3"]}]}'
  expect 1 lab_lb node1 apply <<<"$(jq -nc --arg name "$name" --argjson service "$(lb_node_port web '{}')" '{nodeAddresses: ["127.9.9.9"],
    services: [$service], nodes: [{name: $name, addresses: ["127.9.9.2"]}, {name: "\($name)a", addresses: ["127.9.9.3"]},
    {name: "\($name)b", addresses: ["127.9.9.4"]}]}')"
  assert_contains "$output" 'no room for 2 of their addresses: node ports do not answer there'
  assert_json "$(lab_lb node1 show)" .nodes "[{\"name\":\"$name\",\"addresses\":[\"127.9.9.2\"]}]"
}
