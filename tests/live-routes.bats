# Routes that follow: pods that are running when the cluster's CIDRs change. A real kube-apiserver, real kube-proxies.

load helpers

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd || return 0
  lab_up
  lab_kubernetes
  for node in node1 node2; do lab_network_config "$node" follows 46 '{"mode": "auto"}'; done
  lab_pod node2 backend plain46
  lab_serve node2/backend 8080
  lab_kube_proxy
  lab_service old 80:8080 node2/backend
  agent_start
  lab_until 20 agent ready
  lab_pod node1 pod follows
}

# What a test that failed may have left.
teardown() {
  [ -n "${LAB-}" ] || return 0
  [ -e "$LAB/pid/apiserver" ] || lab_apiserver
  [ -e "$LAB/pid/agent" ] || agent_start
  [ ! -e "$LAB/pid/holder" ] || lab_stop holder KILL
  no_service_cidr more
}

agent_start() {
  lab_spawn agent node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" cidrs \
    --kubeconfig "$LAB/kubernetes/admin.conf" --node node1
}

# agent ready|metrics
agent() {
  lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" "--$1" 2>&1
}

# metric NAME: its value.
metric() {
  agent metrics | sed -n "s/^underpass_$1 //p"
}

# has_metric NAME VALUE
has_metric() { [ "$(metric "$1")" = "$2" ]; }

# service_cidr NAME CIDR: a ServiceCIDR that is ready, as the controller manager would make it.
service_cidr() {
  jq -n --arg name "$1" --arg cidr "$2" '{
    apiVersion: "networking.k8s.io/v1", kind: "ServiceCIDR", metadata: {name: $name}, spec: {cidrs: [$cidr]}
  }' | lab_kubectl apply --filename - >/dev/null
  lab_kubectl patch servicecidr "$1" --subresource status --type merge --patch '{"status": {"conditions": [
    {"type": "Ready", "status": "True", "reason": "", "message": "", "lastTransitionTime": "2025-01-01T00:00:00Z"}]}}' >/dev/null
}

no_service_cidr() {
  lab_kubectl patch servicecidr "$1" --type merge --patch '{"metadata": {"finalizers": null}}' >/dev/null 2>&1 || true
  lab_kubectl delete servicecidr "$1" --ignore-not-found --timeout 10s >/dev/null
}

# routes POD: the pod's routes of ours, without what a change of others does to them.
routes() {
  lab_in "node1/$1" sh -c 'ip -4 route show table all proto 85; ip -6 route show table all proto 85' | sort
}

has_route() { routes "$1" | grep -q "^$2 "; }
has_no_route() { ! has_route "$@"; }

# slice SERVICE ADDRESS: an EndpointSlice with one backend.
slice() {
  jq -n --arg name "$1" --arg address "$2" '{
    apiVersion: "discovery.k8s.io/v1", kind: "EndpointSlice", addressType: "IPv4",
    metadata: {name: $name, namespace: "default", labels: {"kubernetes.io/service-name": $name}},
    endpoints: [{addresses: [$address], conditions: {ready: true}}], ports: [{name: "80-8080", port: 8080}]
  }' | lab_kubectl apply --filename - >/dev/null
}
@test "a running pod reaches a Service in a new ServiceCIDR within 2 s, while a connection to an old one loses nothing" {
  local counter before
  before=$(routes pod)
  expect 1 lab_ask node1/pod tcp 10.77.0.9 80
  lab_in node1/pod "$LAB_SOURCE/identify" count "$(lab_cluster_ip old 4)" 80 12 >"$BATS_TEST_TMPDIR/count" &
  counter=$!
  service_cidr more 10.77.0.0/16
  lab_until 2 has_route pod 10.77.0.0/16 || fail "$(routes pod)" "$(cat "$LAB/log/agent")"
  lab_kubectl create service clusterip newer --clusterip 10.77.0.9 --tcp 80:8080 >/dev/null
  slice newer "$(lab_address node2/backend 4)"
  # The rules that translate it are not ours.
  lab_until 20 lab_ask node1 tcp 10.77.0.9 80
  expect 0 lab_ask node1/pod tcp 10.77.0.9 80
  no_service_cidr more
  lab_until 2 has_no_route pod 10.77.0.0/16
  assert_same "$before" "$(routes pod)"
  wait "$counter"
  [ "$(cat "$BATS_TEST_TMPDIR/count")" -gt 100 ]
  lab_kubectl delete service newer >/dev/null
}

@test "what is unchanged is not touched: the kernel tells of the one route that comes and goes, in each family" {
  lab_spawn monitor node1/pod ip monitor route rule neigh
  lab_until 5 monitored
  service_cidr six fd00:77::/112
  service_cidr four 10.77.0.0/16
  lab_until 5 has_route pod fd00:77::/112
  lab_until 5 has_route pod 10.77.0.0/16
  no_service_cidr six
  no_service_cidr four
  lab_until 5 has_no_route pod 10.77.0.0/16
  lab_until 5 has_no_route pod fd00:77::/112
  lab_until 5 monitor_saw '^Deleted fd00:77::/112 ' || fail "$(cat "$LAB/log/monitor")"
  lab_stop monitor
  # Reachability of neighbours is the kernel's own business; routes and rules are ours.
  expect 1 grep -vE '^Terminated|^(Deleted )?(10\.77\.0\.0/16|fd00:77::/112|192\.0\.2\.1) |lladdr|FAILED|INCOMPLETE' "$LAB/log/monitor"
}

# A route of the test's own shows that the monitor sees.
monitored() {
  lab_in node1/pod ip route add 192.0.2.1 dev lo
  lab_in node1/pod ip route delete 192.0.2.1 dev lo
  monitor_saw '192\.0\.2\.1'
}

monitor_saw() { grep -q "$1" "$LAB/log/monitor"; }

@test "an overlay pod's routes follow too, through its overlay interface, and the routing of its further interface stays" {
  local before
  lab_overlay_pod node1 overlay calico
  lab_attach node1 overlay follows net1
  before=$(lab_in node1/overlay sh -c 'ip rule; ip -6 rule; ip route show table all; ip -6 route show table all')
  service_cidr more 10.77.0.0/16
  lab_until 5 has_route overlay 10.77.0.0/16
  assert_contains "$(lab_in node1/overlay ip route show 10.77.0.0/16)" 'dev eth0'
  expect 0 lab_cnitool node1 check follows overlay net1
  no_service_cidr more
  lab_until 5 has_no_route overlay 10.77.0.0/16
  assert_same "$before" "$(lab_in node1/overlay sh -c 'ip rule; ip -6 rule; ip route show table all; ip -6 route show table all')"
  lab_cnitool node1 del follows overlay net1
}

@test "CHECK passes after the CIDRs have changed, and DEL leaves nothing" {
  lab_pod node1 changed follows
  service_cidr more 10.77.0.0/16
  lab_until 5 has_route changed 10.77.0.0/16
  expect 0 lab_cnitool node1 check follows changed
  no_service_cidr more
  lab_until 5 has_no_route changed 10.77.0.0/16
  expect 0 lab_cnitool node1 check follows changed
  lab_cnitool node1 del follows changed
  assert_equal "$(routes changed)" ''
  lab_in node1 ip netns delete changed
}

@test "a pod that cannot be done holds nobody up, is named, and is done when it can be" {
  lab_pod node1 broken follows
  # Somebody else's route stands where ours must be. What else there is to do is done, and put right.
  lab_in node1/broken ip route add 10.77.0.0/16 dev lo
  service_cidr more 10.77.0.0/16
  service_cidr others 10.78.0.0/16
  lab_until 5 has_route pod 10.77.0.0/16
  lab_until 5 has_route broken 10.78.0.0/16
  lab_in node1/broken ip route delete 10.78.0.0/16
  lab_until 5 has_route broken 10.78.0.0/16
  lab_until 5 has_metric 'attachments{state="failing"}' 1
  grep -q '/eth0: .*10.77.0.0/16.*is in the way' "$LAB/log/agent" || fail "$(cat "$LAB/log/agent")"
  lab_in node1/broken ip route delete 10.77.0.0/16 dev lo
  lab_until 10 has_route broken 10.77.0.0/16
  lab_until 5 has_metric 'attachments{state="failing"}' 0
  no_service_cidr others
  no_service_cidr more
  lab_until 5 has_no_route broken 10.78.0.0/16
  lab_until 5 has_no_route broken 10.77.0.0/16
  lab_pod_delete node1 broken follows
}

@test "a pod on which an ADD or DEL works is left alone until that has ended, and the others are not" {
  lab_pod node1 busy follows
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn holder node1 env PATH="$(lab_libexec):$PATH" CNI_COMMAND=CHECK CNI_CONTAINERID="$(container_id busy)" \
    CNI_NETNS=/run/netns/busy CNI_IFNAME=eth0 bash -c 'exec 9>>/run/underpass/lock
      jq .request.config "/run/underpass/attachments/$CNI_CONTAINERID@eth0.json" | cni-request --lock-fd 9 >/dev/null
      printf "held\n"; exec sleep 60'
  lab_until 5 grep -q held "$LAB/log/holder"
  service_cidr more 10.77.0.0/16
  lab_until 5 has_route pod 10.77.0.0/16
  lab_until 5 has_metric 'attachments{state="locked"}' 1
  has_no_route busy 10.77.0.0/16
  lab_stop holder KILL
  lab_until 5 has_route busy 10.77.0.0/16
  no_service_cidr more
  lab_until 5 has_no_route busy 10.77.0.0/16
  lab_pod_delete node1 busy follows
}

# container_id POD: the id that the CNI client gave it.
container_id() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'grep -l "/run/netns/$0\"" /run/underpass/attachments/*.json' "$1" | sed 's,.*/\(.*\)@.*,\1,'
}

@test "a pod whose sandbox is gone without a DEL is no failure" {
  lab_pod node1 gone follows
  lab_in node1 ip netns delete gone
  service_cidr more 10.77.0.0/16
  lab_until 5 has_route pod 10.77.0.0/16
  lab_until 5 has_metric 'attachments{state="gone"}' 1
  assert_equal "$(metric 'attachments{state="failing"}')" 0
  no_service_cidr more
  lab_until 5 has_no_route pod 10.77.0.0/16
  lab_cnitool node1 del follows gone
}

@test "a pod that is there, and whose namespace the agent does not find at its path, is named and counted as failing" {
  lab_pod node1 hidden follows
  lab_serve node1/hidden 8080
  lab_in node1 umount /run/netns/hidden
  service_cidr more 10.77.0.0/16
  lab_until 5 has_metric 'attachments{state="failing"}' 1
  grep -q "cannot open the network namespace /run/netns/hidden\|/run/netns/hidden is not a network namespace" "$LAB/log/agent"
  no_service_cidr more
  lab_in node1 rm /run/netns/hidden
  lab_stop serve-hidden-8080 KILL
  lab_cnitool node1 del follows hidden
  lab_until 5 has_metric 'attachments{state="failing"}' 0
}

@test "what changes while the agent is down, pods catch up with when it is back" {
  lab_stop agent
  service_cidr more 10.77.0.0/16
  agent_start
  lab_until 10 has_route pod 10.77.0.0/16 || fail "$(cat "$LAB/log/agent")"
  no_service_cidr more
  lab_until 5 has_no_route pod 10.77.0.0/16
}

@test "podCIDRType none takes the routes to Services off a pod that runs, and the way between it and its node stays" {
  local before
  before=$(routes pod)
  lab_serve node1 9092 node1
  lab_kubectl create configmap underpass --namespace kube-system --from-literal 'settings=podCIDRType: none' >/dev/null
  lab_until 5 has_no_route pod 10.233.64.0/18
  has_no_route pod fd00:233:64::/108
  assert_answer node1/pod "$(lab_address node1 4)" 9092 node1
  expect 0 lab_in node1 ping -c 1 -W 2 "$(lab_address node1/pod 4)"
  lab_kubectl delete configmap underpass --namespace kube-system >/dev/null
  lab_until 5 has_route pod 10.233.64.0/18
  lab_until 5 has_route pod fd00:233:64::/108
  assert_same "$before" "$(routes pod)"
}

@test "a pod that was added with what was known before the change follows soon after" {
  service_cidr more 10.77.0.0/16
  lab_until 5 has_route pod 10.77.0.0/16
  lab_in node1 sh -c 'jq -c ".cidrs.service -= [\"10.77.0.0/16\"]" /run/underpass/cluster.json >/run/old.json'
  lab_in node1 env UNDERPASS_STATE=/run/other mkdir -p /run/other/attachments
  lab_in node1 cp /run/old.json /run/other/cluster.json
  lab_sandbox node1 late
  lab_cnitool_with /run/other node1 add follows late
  has_no_route late 10.77.0.0/16
  # Its document is saved where the agent looks: the ADD has ended.
  lab_in node1 sh -c 'mv /run/other/attachments/*.json /run/underpass/attachments/'
  lab_until 5 has_route late 10.77.0.0/16
  no_service_cidr more
  lab_until 5 has_no_route late 10.77.0.0/16
  lab_cnitool node1 del follows late
}

# lab_cnitool_with STATE ARGUMENT...: the same with a state directory of its own.
lab_cnitool_with() {
  local UNDERPASS_STATE=$1
  shift
  export UNDERPASS_STATE
  lab_cnitool "$@" >/dev/null
}

@test "the agent starts a tool again that has died, and ends without leaving one behind, however it ends" {
  local pid
  lab_until 5 tools_running
  pid=$(running keep-pods)
  lab_in node1 kill -KILL "$pid"
  lab_until 10 other_than keep-pods "$pid"
  pid=$(running sync-cidrs-kube)
  lab_in node1 kill -KILL "$pid"
  lab_until 10 other_than sync-cidrs-kube "$pid"
  lab_until 10 agent ready
  service_cidr more 10.77.0.0/16
  lab_until 10 has_route pod 10.77.0.0/16
  no_service_cidr more
  lab_until 10 has_no_route pod 10.77.0.0/16
  for signal in TERM INT KILL; do
    lab_stop agent "$signal"
    lab_until 10 tools_gone || fail "after SIG$signal: $(lab_in node1 ps -e)"
    agent_start
    lab_until 20 agent ready
  done
}

tools_running() { running keep-pods >/dev/null && running sync-cidrs-kube >/dev/null; }
tools_gone() { ! running keep-pods >/dev/null && ! running sync-cidrs-kube >/dev/null; }

# running NAME: the process of that name. (The lab's first process does not wait for those that lose their parent.)
running() { lab_in node1 pgrep --runstates R,S,D -x "$1"; }

# other_than NAME PID: one of this name runs, and it is another process.
other_than() {
  local pid
  pid=$(running "$1") && [ "$pid" != "$2" ]
}

@test "with the API server gone a new pod is added from the file, and readiness stays" {
  lab_stop apiserver KILL
  lab_pod node1 offline follows
  has_route offline 10.233.64.0/18
  agent ready
  lab_pod_delete node1 offline follows
  lab_apiserver
  lab_until 20 has_metric cidrs_in_contact 1
}

@test "before the first answer of the API server ADD fails with code 11, STATUS with 50, and --ready says why" {
  lab_stop agent
  lab_in node1 mv /run/underpass/cluster.json /run/kept.json
  lab_stop apiserver KILL
  agent_start
  lab_until 10 pending
  expect 1 agent ready
  assert_contains "$output" 'cannot watch'
  lab_pod node1 early plain46
  jq --argjson previous "$(cat "$LAB/host/node1/pod/early/eth0.json")" '.plugins[1] + {name, cniVersion: "1.1.0", prevResult: $previous}' \
    <(lab_in node1 cat /etc/cni/net.d/follows.conflist) >"$BATS_TEST_TMPDIR/conf"
  lab_plugin node1 coordinator STATUS early eth0 <"$BATS_TEST_TMPDIR/conf"
  assert_equal "$lab_status" 1
  assert_json "$lab_stdout" .code 50
  assert_contains "$lab_stdout" 'cannot watch'
  lab_plugin node1 coordinator ADD early eth0 <"$BATS_TEST_TMPDIR/conf"
  assert_json "$lab_stdout" .code 11
  lab_apiserver
  lab_until 20 agent ready
  lab_pod_delete node1 early plain46
}

pending() { lab_in node1 grep -q 'cannot watch' /run/underpass/cluster.pending; }
