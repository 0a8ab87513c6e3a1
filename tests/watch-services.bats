# Services from a real kube-apiserver, in the kernel: watch-services --watch | bpf-lb-load follow. Which endpoints are chosen is
# in the Rust tests and in proxied-services.bats.

load helpers
load lb

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd && lb_needs_program || return 0
  lab_up 1
  lab_kubernetes
  lab_balancer node1 --max-backends 64
}

teardown() {
  [ ! -d "${LAB-/none}/pid" ] || [ -e "$LAB/pid/apiserver" ] || lab_apiserver
  [ ! -e "${LAB-/none}/pid/follow" ] || stop_following
  [ -z "${CREATED-}" ] || lab_kubectl delete --ignore-not-found --wait=false --filename - <<<"$CREATED" >/dev/null
}

# services FLAG...: watch-services on the node, as the administrator unless KUBECONFIG says otherwise.
services() {
  lab_in node1 env KUBECONFIG="${KUBECONFIG:-$LAB/kubernetes/admin.conf}" UNDERPASS_STATE="$(state)" \
    "$(lab_libexec)/watch-services" --node node1 "$@"
}

state() { printf '/run/services-%s\n' "$BATS_TEST_NUMBER"; }

# follow FLAG...: the pipeline, in the background, until the test ends. What watch-services prints is in lines, and READER reads what
# bpf-lb-load prints.
follow() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn follow node1 env KUBECONFIG="${KUBECONFIG:-$LAB/kubernetes/admin.conf}" UNDERPASS_STATE="$(state)" \
    FOLLOW="$(lab_lb_program)" READER="${READER:-cat}" CGROUP="${CGROUP-}" sh -c '
      [ -z "$CGROUP" ] || echo 0 >"$CGROUP/cgroup.procs"
      sh -c "echo \$\$ >$UNDERPASS_STATE.pid; exec \"\$0\" \"\$@\"" "$0" --watch --node node1 "$@" |
        tee "$UNDERPASS_STATE.lines" | "$FOLLOW" follow | "$READER"' "$(lab_libexec)/watch-services" "$@"
}

# Ends watch-services, and waits for what reads from it.
stop_following() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'kill -CONT "$(cat "$0")"; kill "$(cat "$0")"' "$(state).pid" 2>/dev/null || :
  lab_until 10 nobody_follows || fail 'the loader does not end'
  lab_stop follow
}

nobody_follows() { ! lab_in node1 pgrep --runstates D,R,S -x bpf-lb-load >/dev/null; }

# kernel FILTER: what a jq filter finds in the kernel's table.
kernel() { lab_lb node1 show | jq -c "$1"; }

# leads NAME ADDRESS...: whether the kernel's Service has exactly these backends.
leads() {
  local wanted
  wanted=$(jq -nc '$ARGS.positional | sort' --args "${@:2}")
  [ "$(kernel "[.services[] | select(.name == \"$1\").backends[].address] | sort")" = "$wanted" ]
}

absent() { [ "$(kernel "[.services[] | select(.name == \"$1\")] | length")" = 0 ]; }

# within SECONDS COMMAND...
within() {
  lab_until "$@" || fail "${*:2}" "$(kernel .)" "$(tail -n 5 "$LAB/log/follow")"
}

logged() { grep -qF -- "$1" "$LAB/log/follow"; }

metric() { lab_in node1 sed -n "s/^underpass_$1 //p" "$(state)/watch-services.prom"; }

has_metric() { [ "$(metric "$1")" = "$2" ]; }

# create OBJECT...: objects as JSON, for this test.
create() {
  CREATED=$(printf '%s\n' "${CREATED-}" "$@")
  printf '%s\n' "$@" | lab_kubectl apply --filename - >/dev/null
}

# service NAME [SPEC]
service() {
  jq -nc --arg name "$1" --argjson spec "${2:-{\}}" '{apiVersion: "v1", kind: "Service", metadata: {name: $name, namespace: "default"},
    spec: ({ports: [{port: 80, protocol: "TCP"}]} + $spec)}'
}

# slice NAME SERVICE ADDRESS...
slice() {
  jq -nc --arg name "$1" --arg service "$2" '{apiVersion: "discovery.k8s.io/v1", kind: "EndpointSlice", addressType: "IPv4",
    metadata: {name: $name, namespace: "default", labels: {"kubernetes.io/service-name": $service}},
    ports: [{name: "", protocol: "TCP", port: 8080}],
    endpoints: [$ARGS.positional[] | {addresses: [.], conditions: {ready: true}}]}' --args "${@:3}"
}

# web: a Service with a slice, in the API, and the pipeline that has brought it into the kernel.
web() {
  create "$(service web)" "$(slice web-1 web 10.0.0.1)"
  follow "$@"
  within 20 leads web 10.0.0.1
}

restart_api() {
  lab_stop apiserver KILL
  lab_apiserver "$@"
}

@test "kubectl's output gives offline what the API gives" {
  create "$(service web '{"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81, "protocol": "UDP"}]}')" "$(slice web-1 web 10.0.0.1)"
  expect 0 services
  online=$output
  assert_json "$online" '[.services[] | select(.name == "web").portName]' '["a","b"]'
  lab_kubectl get services,endpointslices,nodes --all-namespaces --output json >"$BATS_TEST_TMPDIR/objects"
  expect 0 "$(lab_libexec)/watch-services" --node node1 --from - <"$BATS_TEST_TMPDIR/objects"
  assert_same "$online" "$output"
}

@test "of nothing, as a kubectl that failed prints it, no table is made that would take all Services away" {
  expect 1 "$(lab_libexec)/watch-services" --node node1 --from - </dev/null
  assert_json "$output" .error.msg 'cannot read -: it is empty, and no cluster is: whoever was to print its objects failed'
  expect 1 lab_lb node1 apply <<<"$output"
  expect 0 "$(lab_libexec)/watch-services" --node node1 --from - <<<'{"kind": "List", "items": []}'
}

@test "objects that are created, changed and deleted show up in the kernel" {
  web
  create "$(slice web-2 web 10.0.0.2 10.0.0.3)"
  within 5 leads web 10.0.0.1 10.0.0.2 10.0.0.3
  create "$(slice web-1 web 10.0.0.4)"
  within 5 leads web 10.0.0.2 10.0.0.3 10.0.0.4
  lab_kubectl delete endpointslice web-2 >/dev/null
  within 5 leads web 10.0.0.4
  lab_kubectl patch service web --type merge --patch '{"spec": {"externalIPs": ["203.0.113.7"]}}' >/dev/null
  within 5 test_kernel '.services[] | select(.name == "web").externalIps == ["203.0.113.7"]'
  lab_kubectl patch service web --type merge --patch '{"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}}}' >/dev/null
  within 5 absent web
  lab_kubectl patch service web --type merge --patch '{"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": null}}}' >/dev/null
  within 5 leads web 10.0.0.4
  lab_kubectl delete service web >/dev/null
  within 5 absent web
}

test_kernel() { [ "$(kernel "$1")" = true ]; }

@test "connections stay when endpoints change their EndpointSlices by one call to the API after the other" {
  local address
  lab_sandbox node1 pod
  for address in 10.0.0.1 10.0.0.2; do lab_in node1/pod ip address add "$address/32" dev lo; done
  create "$(service web)" "$(slice web-1 web 10.0.0.1)" "$(slice web-2 web 10.0.0.2)"
  READER=$(lab_libexec)/end-sockets follow
  within 20 leads web 10.0.0.1 10.0.0.2
  address=$(lab_kubectl get service web --output jsonpath='{.spec.clusterIP}')
  lab_sockets node1/pod "$BATS_TEST_TMPDIR/ready" "$address" >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- <<'PY' &
hold("10.0.0.1", "10.0.0.2")
ones = [connect(SOCK_STREAM, sys.argv[2]) for _ in range(20)]
equal({answer(one) for one in ones}, {"10.0.0.1", "10.0.0.2"})
ready()
wait_for(sys.argv[1] + "moved")
equal(told(ones, 3), [None] * len(ones))
PY
  local client=$!
  lab_until 20 test -e "$BATS_TEST_TMPDIR/ready" || fail "$(<"$BATS_TEST_TMPDIR/out")"
  slice web-1 web 10.0.0.2 | lab_kubectl replace --filename - >/dev/null 3>&- &
  local first=$!
  sleep 0.02
  slice web-2 web 10.0.0.1 | lab_kubectl replace --filename - >/dev/null
  wait "$first"
  : >"$BATS_TEST_TMPDIR/readymoved"
  wait "$client" || fail "$(<"$BATS_TEST_TMPDIR/out")" "$(<"$LAB/log/follow")"
  leads web 10.0.0.1 10.0.0.2
}

@test "a Service whose annotation leaves it to the host path leaves the kernel, comes back without it, and is named where it says neither" {
  web
  lab_kubectl annotate service web underpass.io/socket-path=false >/dev/null
  within 5 absent web
  expect 0 services --why default/web
  assert_json "$output" .notServed 'its annotation underpass.io/socket-path leaves it to the host path'
  lab_kubectl annotate --overwrite service web underpass.io/socket-path=true >/dev/null
  within 5 leads web 10.0.0.1
  lab_kubectl annotate --overwrite service web underpass.io/socket-path=off >/dev/null
  lab_until 5 logged 'Service default/web: annotation underpass.io/socket-path: \"off\" is neither'
  leads web 10.0.0.1
  lab_kubectl annotate --overwrite service web underpass.io/socket-path=false >/dev/null
  within 5 absent web
  lab_kubectl annotate service web underpass.io/socket-path- >/dev/null
  within 5 leads web 10.0.0.1
}

@test "only what is this proxy's is fetched, by three watches, and of Nodes the own one" {
  lab_in control sh -c 'printf "%s\n" "apiVersion: audit.k8s.io/v1" "kind: Policy" "omitStages: [ResponseComplete]" "rules: [{level: Metadata}]" >/run/audit'
  restart_api --audit-policy-file /run/audit --audit-log-path /run/audit.log --audit-log-mode blocking
  web
  asked=$(lab_in control cat /run/audit.log | jq -r 'select(.verb == "watch" and (.sourceIPs | index("10.6.212.101"))).requestURI' | sed 's/&resourceVersion[^&]*//g; s/&\(timeoutSeconds\|sendInitialEvents\|allowWatchBookmarks\)=[^&]*//g' | sort -u)
  restart_api
  assert_equal "$(grep -c . <<<"$asked")" 3 || fail "$asked"
  assert_contains "$(grep /endpointslices <<<"$asked")" 'labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name'
  assert_contains "$(grep /services <<<"$asked")" 'labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name'
  assert_contains "$(grep /services <<<"$asked")" 'fieldSelector=spec.clusterIP%21%3DNone'
  assert_contains "$(grep /nodes <<<"$asked")" 'fieldSelector=metadata.name%3Dnode1'
}

@test "with --all-node-ports the addresses of all nodes are known, and follow" {
  create "$(service web)" "$(jq -nc '{apiVersion: "v1", kind: "Node", metadata: {name: "node9"}}')"
  lab_kubectl patch node node9 --subresource status --type merge --patch '{"status": {"addresses": [{"type": "InternalIP", "address": "10.6.212.109"}]}}' >/dev/null
  expect 0 services --all-node-ports
  assert_json "$output" .nodes '[{"name":"node9","addresses":["10.6.212.109"]}]'
  expect 0 services
  assert_json "$output" .nodes null
  follow --all-node-ports
  lab_until 10 printed '.table.nodes | length == 1'
  lab_kubectl delete node node9 >/dev/null
  lab_until 5 printed '.nodes.nodes == []'
}

# printed FILTER: whether watch-services has printed a line like this.
printed() { lab_in node1 sh -c "cat $(state).lines" | jq -e "select($1)" >/dev/null 2>&1; }

@test "a burst of changes comes as one line for each Service, with its oldest trigger" {
  local pid oldest later
  create "$(service web)" "$(slice web-1 web 10.0.0.1)" "$(service other)" "$(slice other-1 other 10.0.1.1)"
  follow
  within 20 leads web 10.0.0.1
  pid=$(lab_in node1 cat "$(state).pid")
  lab_in node1 kill -STOP "$pid"
  # As they are printed, without zeros at their end.
  oldest=$(date -u +%Y-%m-%dT%H:%M:%S.%3N1Z) later=$(date -u +%Y-%m-%dT%H:%M:%S.%3N2Z)
  create "$(slice web-2 web 10.0.0.2 | triggered "$later")" "$(slice web-3 web 10.0.0.3 | triggered "$oldest")" \
    "$(slice other-2 other 10.0.1.2 | triggered "$later")" "$(slice web-4 web 10.0.0.4 | triggered "$later")"
  # The API server tells of a change a moment after it has answered.
  sleep 1
  lab_in node1 kill -CONT "$pid"
  within 5 leads web 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4
  within 5 leads other 10.0.1.1 10.0.1.2
  assert_equal "$(lab_in node1 cat "$(state).lines" | jq -r 'select(.set) | "\(.set.name) \(.triggered)"' | sort)" \
    "$(printf '%s\n' "other $later" "web $oldest")"
}

# triggered TIME: an object of standard input that follows from what happened then.
triggered() { jq -c --arg time "$1" '.metadata.annotations = {"endpoints.kubernetes.io/last-change-trigger-time": $time}'; }

@test "the watch survives a restart of the API server; meanwhile the table stands" {
  web
  lab_stop apiserver KILL
  lab_until 10 has_metric services_in_contact 0
  leads web 10.0.0.1
  lab_apiserver
  create "$(slice web-2 web 10.0.0.2)"
  within 20 leads web 10.0.0.1 10.0.0.2
  lab_until 20 has_metric services_in_contact 1
}

@test "the watch survives a resource version that has expired, and what went meanwhile goes" {
  local pid
  web
  create "$(slice web-2 web 10.0.0.2)"
  within 5 leads web 10.0.0.1 10.0.0.2
  pid=$(lab_in node1 cat "$(state).pid")
  lab_in node1 kill -STOP "$pid"
  lab_kubectl delete endpointslice web-2 >/dev/null
  create "$(slice web-3 web 10.0.0.3)"
  lab_compact
  restart_api
  lab_in node1 kill -CONT "$pid"
  within 20 leads web 10.0.0.1 10.0.0.3
}

@test "the watch survives a lost connection" {
  local before
  web
  before=$(lab_connections)
  [ -n "$before" ]
  lab_in node1 ss -K dst 10.6.0.10 dport = 6443 >/dev/null
  create "$(slice web-2 web 10.0.0.2)"
  within 20 leads web 10.0.0.1 10.0.0.2
  assert_equal "$(comm -12 <(printf '%s\n' "$before") <(lab_connections))" ''
}

@test "401 and 403 are named with the missing right, and the table stands" {
  web
  stop_following
  lab_kubeconfig no-such-token >"$LAB/kubernetes/nobody.conf"
  KUBECONFIG=$LAB/kubernetes/nobody.conf expect 1 services
  # shellcheck disable=SC2154 # set by expect
  assert_contains "$stderr" 'does not accept our credentials (401)'
  KUBECONFIG=$LAB/kubernetes/nobody.conf follow
  lab_until 10 logged 'does not accept our credentials (401)'
  leads web 10.0.0.1
}

@test "who answers 404 for Services or EndpointSlices is not the API server: it is an error, and the table stands" {
  local part
  KUBECONFIG=$LAB/kubernetes/refused.conf
  lab_refuse node1
  web
  for part in /api/v1/services /endpointslices; do
    lab_refuse node1 404 "$part"
    gets_404
    leads web 10.0.0.1
    # And for who begins then.
    stop_following
    lab_in node1 rm "$(state)/watch-services.prom"
    follow
    gets_404
    leads web 10.0.0.1
    lab_refuse node1
    lab_until 20 has_metric services_in_contact 1
    leads web 10.0.0.1
  done
}

# gets_404: some more times, and says so.
gets_404() {
  lab_until 20 logged '(404)' || fail "$(cat "$LAB/log/follow")"
  lab_until 10 has_errors 1
  lab_until 30 has_errors "$(($(metric services_errors_total) + 3))" || fail "$(cat "$LAB/log/follow")"
  has_metric services_in_contact 0
}

has_errors() { [ "$(metric services_errors_total)" -ge "$1" ]; }

# API servers before Kubernetes 1.31 do not know the field by which headless Services are left out.
@test "an API server that does not know the field of the selector is followed without it, and what went meanwhile goes" {
  KUBECONFIG=$LAB/kubernetes/refused.conf
  lab_refuse node1
  create "$(service gone)" "$(slice gone-1 gone 10.0.0.9)" "$(service headless '{"clusterIP": "None"}')"
  web
  within 5 leads gone 10.0.0.9
  # Another server, while nobody can be asked.
  lab_stop refuse
  lab_kubectl delete service gone >/dev/null
  lab_refuse node1 400 fieldSelector=spec.clusterIP
  within 20 absent gone
  leads web 10.0.0.1
  absent headless
  logged 'does not know the fields of services'
  lab_until 20 has_metric services_in_contact 1
  create "$(slice web-2 web 10.0.0.2)"
  within 5 leads web 10.0.0.1 10.0.0.2
  expect 0 services
  assert_json "$output" '[.services[] | select(.namespace == "default" and .name != "kubernetes").name]' '["web"]'
}

# as_node_agent: a kubeconfig of the ServiceAccount in deploy/.
as_node_agent() {
  lab_kubectl apply --filename - <"$LAB_REPO/deploy/rbac.yaml" >/dev/null
  lab_kubectl apply --filename - <"$LAB_REPO/deploy/services-rbac.yaml" >/dev/null
  lab_kubeconfig "$(lab_kubectl create token underpass-node --namespace kube-system)" >"$LAB/kubernetes/node.conf"
  KUBECONFIG=$LAB/kubernetes/node.conf
}

# A list that streams takes the right to watch alone; that to list is for API servers that have none, and without --watch.
@test "the rights in deploy/ are enough, each is needed, and one that is missing is named" {
  local role resource group
  as_node_agent
  expect 0 services --all-node-ports
  web --all-node-ports
  stop_following
  for resource in underpass-services:services: underpass-services:endpointslices:.discovery.k8s.io underpass-node:nodes:; do
    role=${resource%%:*} group=${resource##*:} resource=${resource#*:} resource=${resource%%:*}
    lab_kubectl get clusterrole "$role" --output json | jq 'del(.metadata | .resourceVersion, .uid)' >"$BATS_TEST_TMPDIR/role"
    without list "$resource" "$group"
    expect 1 services
    assert_contains "$stderr" "not allowed to list $resource"
    assert_contains "$stderr" 'verbs [list]'
    without watch "$resource" "$group"
    follow
    lab_until 10 logged "not allowed to watch $resource" || fail "$resource" "$(cat "$LAB/log/follow")"
    logged 'verbs [watch]'
    # Nothing is taken from the kernel because it cannot be read.
    leads web 10.0.0.1
    stop_following
    lab_kubectl replace --filename "$BATS_TEST_TMPDIR/role" >/dev/null
  done
}

# without VERB RESOURCE GROUP: the role in the test's file lacks this right.
without() {
  jq --arg resource "$2" --arg verb "$1" '.rules |= map(if .resources | index($resource) then .verbs -= [$verb] else . end)' \
    "$BATS_TEST_TMPDIR/role" | lab_kubectl replace --filename - >/dev/null
  lab_until 5 denied "$1" "$2$3"
}

denied() { [ "$(lab_kubectl auth can-i "$1" "$2" --all-namespaces --as system:serviceaccount:kube-system:underpass-node 2>/dev/null)" = no ]; }

@test "what is wrong with an object is named in the log and the metrics, and the rest is served" {
  web
  create "$(slice lost web 10.0.0.9 | jq -c 'del(.metadata.labels)')" "$(slice portless web 10.0.0.8 | jq -c '.ports = [{name: "", protocol: "TCP"}]')"
  lab_until 5 logged 'EndpointSlice default/lost: its label kubernetes.io/service-name names no Service'
  lab_until 5 logged 'EndpointSlice default/portless: port'
  lab_until 5 has_metric 'services_problems{problem="EndpointSlice default\/lost: its label kubernetes.io\/service-name names no Service"}' 1
  leads web 10.0.0.1
  # That is said once, however often the object changes.
  lab_kubectl annotate endpointslice lost changed=1 >/dev/null
  create "$(slice web-2 web 10.0.0.2)"
  within 5 leads web 10.0.0.1 10.0.0.2
  assert_equal "$(grep -c 'EndpointSlice default/lost' "$LAB/log/follow")" 1
}

# events FILTER: what a jq filter finds in our Events about what is called wrong. The API server's own repairs leave some, too.
events() {
  lab_kubectl get events --all-namespaces --output json | jq -c \
    "[.items[] | select(.involvedObject.name == \"wrong\" and .reportingComponent == \"underpass.io/watch-services\")] | $1"
}

event_there() { [ "$(events "$1")" = true ]; }

@test "what is wrong is an Event on the Service, which is counted when it comes back" {
  local wrong right
  as_node_agent
  wrong=$(service wrong | jq -c '.metadata.annotations = {"underpass.io/lb-algorithm": "fastest"}')
  right=$(jq -c '.metadata.annotations["underpass.io/lb-algorithm"] = "random"' <<<"$wrong")
  create "$wrong" "$(slice wrong-1 wrong 10.0.0.8 | jq -c '.ports = [{name: "", protocol: "TCP"}]')"
  follow
  lab_until 20 event_there 'map([.involvedObject.kind, .involvedObject.name, .reason, .type]) | sort
    == [["Service", "wrong", "InvalidEndpointSlice", "Warning"], ["Service", "wrong", "InvalidService", "Warning"]]' || fail "$(events .)" "$(cat "$LAB/log/follow")"
  expect 0 lab_kubectl events --for service/wrong
  assert_contains "$output" 'unknown variant'
  lab_kubectl apply --filename - <<<"$right" >/dev/null
  lab_until 10 logged 'Service default/wrong: nothing is wrong any more'
  sleep 3
  lab_kubectl apply --filename - <<<"$wrong" >/dev/null
  lab_until 10 event_there 'map(select(.reason == "InvalidService")) | length == 1 and .[0].series.count == 2' || fail "$(events .)"
  ! logged 'not allowed' || fail "$(cat "$LAB/log/follow")"
}

@test "a Service that the kernel has no room for is named in an Event on it" {
  lab_kubectl delete events --all >/dev/null
  as_node_agent
  # shellcheck disable=SC2046 # a list
  create "$(service wrong)" "$(slice wrong-1 wrong $(seq -f 10.1.0.%g 100))"
  follow
  lab_until 20 event_there 'map([.involvedObject.kind, .involvedObject.name, .reason, .type]) == [["Service", "wrong", "NotServed", "Warning"]]' ||
    fail "$(events .)" "$(cat "$LAB/log/follow")"
  expect 0 lab_kubectl events --for service/wrong
  assert_contains "$output" 'no room for a backend; load with a larger --max-backends'
  # Who describes a Service sees the Events with its UID.
  assert_equal "$(events '.[0].involvedObject.uid' | jq -r .)" "$(lab_kubectl get service wrong --output 'jsonpath={.metadata.uid}')"
}

@test "who may not write Events is told once, with the missing right, the rest goes on, and they come when there is the right" {
  lab_kubectl delete events --all >/dev/null
  as_node_agent
  lab_kubectl get clusterrole underpass-services --output json | jq 'del(.metadata | .resourceVersion, .uid)' >"$BATS_TEST_TMPDIR/role"
  without create events .events.k8s.io
  create "$(service wrong | jq -c '.metadata.annotations = {"underpass.io/lb-algorithm": "fastest"}')" "$(slice portless wrong 10.0.0.8 | jq -c '.ports = [{name: "", protocol: "TCP"}]')"
  web
  lab_until 10 logged 'not allowed to create events.events.k8s.io (403): it takes a ClusterRole'
  logged 'resources [events], verbs [create]'
  create "$(slice web-2 web 10.0.0.2)"
  within 5 leads web 10.0.0.1 10.0.0.2
  sleep 3
  assert_equal "$(grep -c 'not allowed' "$LAB/log/follow")" 1
  lab_kubectl replace --filename "$BATS_TEST_TMPDIR/role" >/dev/null
  lab_until 20 event_there 'map(.reason) | sort == ["InvalidEndpointSlice", "InvalidService"]' || fail "$(events .)"
}

@test "to count an Event that comes back takes the right to patch, which is named where it is missing" {
  local wrong
  lab_kubectl delete events --all >/dev/null
  as_node_agent
  lab_kubectl get clusterrole underpass-services --output json | jq 'del(.metadata | .resourceVersion, .uid)' >"$BATS_TEST_TMPDIR/role"
  without patch events .events.k8s.io
  wrong=$(service wrong | jq -c '.metadata.annotations = {"underpass.io/lb-algorithm": "fastest"}')
  create "$wrong"
  follow
  lab_until 20 event_there 'map(.reason) == ["InvalidService"]' || fail "$(events .)"
  lab_kubectl annotate service wrong underpass.io/lb-algorithm- >/dev/null
  lab_until 10 logged 'Service default/wrong: nothing is wrong any more'
  sleep 3
  lab_kubectl annotate service wrong underpass.io/lb-algorithm=fastest >/dev/null
  lab_until 10 logged 'not allowed to patch events.events.k8s.io (403): it takes a ClusterRole' || fail "$(cat "$LAB/log/follow")"
  logged 'resources [events], verbs [patch]'
  lab_kubectl replace --filename "$BATS_TEST_TMPDIR/role" >/dev/null
}

# by_service: kube-proxy on node1, and a kubeconfig that leads to the API server by the ClusterIP of default/kubernetes, as a pod's does.
# From here on what is followed is in the cgroup that the load balancer serves, as the agent is.
by_service() {
  [ -e "$LAB/pid/kube-proxy-node1" ] || lab_kube_proxy_on node1 iptables
  jq '.clusters[0].cluster.server = "https://10.233.64.1:443"' "$LAB/kubernetes/admin.conf" >"$LAB/kubernetes/service.conf"
  KUBECONFIG=$LAB/kubernetes/service.conf
  lab_until 20 lab_in node1 curl -sk -o /dev/null https://10.233.64.1/ || fail "$(tail -n 5 "$LAB/log/kube-proxy-node1")"
  CGROUP=$(<"$LAB/host/node1/cgroup")
}

# through ADDRESS: whether the kernel's table leads from the API server's ClusterIP to this endpoint alone.
through() {
  [ "$(lab_lb node1 show | jq -c '[.services[] | select(.name == "kubernetes" and .clusterIps == ["10.233.64.1"]).backends[].address]')" = "[\"$1\"]" ]
}

# elsewhere: the loader is told of an endpoint of the API server where nobody is, by who follows an older cluster.
elsewhere() {
  lab_lb node1 show | jq -c '{set: (.services[] | select(.name == "kubernetes") | .clusterIps = ["10.233.64.1"]
    | .backends = [{address: "10.6.0.11", port: 6443}])}' | lab_lb node1 follow >/dev/null
  through 10.6.0.11
}

@test "who asks the API server by its Service hears of its endpoints again after all of them were gone" {
  by_service
  web
  within 5 through 10.6.0.10
  # The next watches are by the table.
  restart_api
  lab_until 20 has_metric services_in_contact 1
  lab_kubectl delete endpointslice kubernetes >/dev/null
  # As end-sockets does with those that the table led there. (What is closed already cannot be: that is no matter.)
  lab_in node1 ss -K dport = 6443 >/dev/null 2>&1
  within 60 through 10.6.0.10
  lab_until 20 has_metric services_in_contact 1
  create "$(slice web-2 web 10.0.0.2)"
  within 5 leads web 10.0.0.1 10.0.0.2
}

@test "who begins with a table in which the API server is where it was before asks by the host path, and mends it" {
  by_service
  web
  stop_following
  elsewhere
  create "$(slice web-2 web 10.0.0.2)"
  follow
  within 60 through 10.6.0.10
  leads web 10.0.0.1 10.0.0.2
  logged 'connections to 10.233.64.1:443 take the host path'
}

@test "while the API server does not answer its address is left to the host path, and none of its endpoints is said to be gone" {
  by_service
  web
  within 5 through 10.6.0.10
  lab_stop apiserver KILL
  lab_until 40 logged 'connections to 10.233.64.1:443 take the host path'
  lab_until 5 printed '.leave == {address: "10.233.64.1", port: 443}'
  lab_until 5 logged '"service":"default/kubernetes:https","protocol":"TCP","backend":"10.6.0.10:6443","why":"draining"'
  lab_apiserver
  lab_until 40 logged 'connections to 10.233.64.1:443 take the socket path again'
  within 5 through 10.6.0.10
  ! grep 'default/kubernetes.*"why":"left"' "$LAB/log/follow" || fail "$(cat "$LAB/log/follow")"
}

@test "a slow API server is followed as it answers, without an error" {
  local begin
  create "$(service web)" "$(slice web-1 web 10.0.0.1)"
  lab_spawn slow node1 "$LAB_SOURCE/slow-proxy" 7443 10.6.0.10 6443 1
  lab_until 5 grep -qx listening "$LAB/log/slow"
  lab_proxied_kubeconfig 7443 >"$LAB/kubernetes/slow.conf"
  KUBECONFIG=$LAB/kubernetes/slow.conf follow
  within 80 leads web 10.0.0.1
  begin=${EPOCHREALTIME/./}
  create "$(slice web-2 web 10.0.0.2)"
  within 20 leads web 10.0.0.1 10.0.0.2
  [ $((${EPOCHREALTIME/./} - begin)) -gt 1000000 ] || fail 'nothing is slow'
  ! logged 'cannot' || fail "$(cat "$LAB/log/follow")"
  lab_until 10 has_metric services_in_contact 1
  stop_following
  lab_stop slow
}

@test "--why says where each backend is from and why an endpoint is none, as JSON and for a person" {
  create "$(service web)" "$(slice web-1 web 10.0.0.1 10.0.0.2 | jq -c '.endpoints[1].conditions.ready = false')"
  expect 0 services --why default/web
  assert_json "$output" '[.ports[0].endpoints[] | [.address, .backend, .slice, .why]]' \
    '[["10.0.0.1:8080",true,"web-1","ready"],["10.0.0.2:8080",false,"web-1","not ready"]]'
  expect 0 services --why default/none
  assert_json "$output" .notServed 'there is no Service of this name'
  expect 2 services --why web
}

@test "it ends when nobody reads any more" {
  create "$(service web)" "$(slice web-1 web 10.0.0.1)"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn follow node1 env KUBECONFIG="$LAB/kubernetes/admin.conf" UNDERPASS_STATE="$(state)" \
    sh -c '"$0" --watch --node node1 | head -n 1 | jq -c ".table.services | length"; echo ended' "$(lab_libexec)/watch-services"
  lab_until 10 grep -q '^[0-9]' "$LAB/log/follow"
  create "$(slice web-2 web 10.0.0.2)"
  lab_until 10 grep -qx ended "$LAB/log/follow"
}
