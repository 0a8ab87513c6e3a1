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

teardown_file() {
  lab_down
}

agent_start() {
  lab_spawn agent node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" \
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

@test "a running pod reaches a Service in a new ServiceCIDR within 2 s, while a connection to an old one loses nothing" {
  local counter before
  before=$(routes pod)
  expect 1 lab_ask node1/pod tcp 10.77.0.9 80
  lab_in node1/pod "$LAB_SOURCE/identify" count "$(lab_cluster_ip old 4)" 80 12 >"$BATS_TEST_TMPDIR/count" &
  counter=$!
  service_cidr more 10.77.0.0/16
  lab_until 2 has_route pod 10.77.0.0/16 || fail "$(routes pod)" "$(cat "$LAB/log/agent")"
  # A Service there, of which no kube-proxy need know for the packets to arrive at the node: one that does.
  lab_kubectl create service clusterip newer --clusterip 10.77.0.9 --tcp 80:8080 >/dev/null
  slice newer "$(lab_address node2/backend 4)"
  lab_until 2 lab_ask node1/pod tcp 10.77.0.9 80 0.3
  no_service_cidr more
  lab_until 2 has_no_route pod 10.77.0.0/16
  assert_same "$before" "$(routes pod)"
  wait "$counter"
  [ "$(cat "$BATS_TEST_TMPDIR/count")" -gt 400 ]
  lab_kubectl delete service newer >/dev/null
}

# slice SERVICE ADDRESS: an EndpointSlice with one backend.
slice() {
  jq -n --arg name "$1" --arg address "$2" '{
    apiVersion: "discovery.k8s.io/v1", kind: "EndpointSlice", addressType: "IPv4",
    metadata: {name: $name, namespace: "default", labels: {"kubernetes.io/service-name": $name}},
    endpoints: [{addresses: [$address], conditions: {ready: true}}], ports: [{name: "80-8080", port: 8080}]
  }' | lab_kubectl apply --filename - >/dev/null
}
