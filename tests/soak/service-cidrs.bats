# ServiceCIDRs of an API that is older than the one in the lab. Its API server is built here, not by scripts/setup: that takes
# minutes, for one test.

load ../helpers

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd || return 0
  "$LAB_REPO/tests/tools/build" kubernetes-1.30 ||
    suite_skips 'the API server of Kubernetes 1.30 cannot be built: it takes Go and its modules' || return 0
  lab_up 1
  LAB_APISERVER=kubernetes-1.30 lab_kubernetes --feature-gates MultiCIDRServiceAllocator=true \
    --runtime-config networking.k8s.io/v1alpha1=true
}

@test "ServiceCIDRs of networking.k8s.io/v1alpha1 count where the API has neither v1 nor v1beta1" {
  for version in v1 v1beta1; do
    expect 1 lab_kubectl get --raw "/apis/networking.k8s.io/$version/servicecidrs"
  done
  lab_spawn follow node1 env KUBECONFIG="$LAB/kubernetes/admin.conf" "$(lab_libexec)/sync-cidrs" --watch --node node1 \
    --cni-directory /none
  lab_until 10 services '["10.233.64.0/18", "fd00:233:64::/108"]' || fail "$(cat "$LAB/log/follow")"
  lab_kubectl create --filename - >/dev/null <<'CIDR'
{"apiVersion": "networking.k8s.io/v1alpha1", "kind": "ServiceCIDR", "metadata": {"name": "alpha"}, "spec": {"cidrs": ["10.85.0.0/16"]}}
CIDR
  lab_kubectl patch servicecidr alpha --subresource status --type merge --patch '{"status": {"conditions": [
    {"type": "Ready", "status": "True", "reason": "", "message": "", "lastTransitionTime": "2025-01-01T00:00:00Z"}]}}' >/dev/null
  lab_until 5 services '["10.85.0.0/16", "10.233.64.0/18", "fd00:233:64::/108"]' || fail "$(cat "$LAB/log/follow")"
  lab_kubectl delete servicecidr alpha --timeout 10s >/dev/null
  lab_until 5 services '["10.233.64.0/18", "fd00:233:64::/108"]' || fail "$(cat "$LAB/log/follow")"
}

# services CIDRS: whether these are what ADD finds.
services() {
  lab_in node1 jq -e ".cidrs.service == $1" /run/underpass/cluster.json >/dev/null 2>&1
}
