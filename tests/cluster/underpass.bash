# Part of the cluster (see cluster.bash): Underpass, as an operator installs it.

# cluster_underpass [HELM FLAG...]: the chart, with the image that scripts/image makes; run again, an upgrade. Without kube-proxy
# it is the socket path alone.
cluster_underpass() {
  # The node's hierarchy is the machine's below its own cgroup, which bpf-lb-load takes for its root only when it is told.
  local flags=(--set-json 'node.env=[{"name": "UNDERPASS_CGROUP", "value": "/sys/fs/cgroup/unified"}]')
  [ "${CLUSTER_PROXY:-iptables}" != none ] || flags+=(--set paths=socket --set api.host=10.6.0.10)
  cluster_helm upgrade --install underpass "$LAB_REPO/deploy/chart" --namespace kube-system "${flags[@]}" "$@" >"$LAB/log/helm" 2>&1 ||
    lab_fail "helm: $(tail -n 5 "$LAB/log/helm")" || return
  lab_kubectl rollout status -n kube-system daemonset/underpass-node --timeout 90s >>"$LAB/log/helm" 2>&1 ||
    lab_fail "the node agent: $(lab_kubectl logs -n kube-system daemonset/underpass-node --all-containers --tail 10 2>&1)"
}

# cluster_helm ARGUMENT...
cluster_helm() {
  local helm
  helm=$("$LAB_REPO/tests/tools/build" --where helm) || return
  lab_in control env KUBECONFIG="$LAB/kubernetes/admin.conf" HELM_CACHE_HOME="$LAB/helm" HELM_CONFIG_HOME="$LAB/helm" \
    HELM_DATA_HOME="$LAB/helm" "$helm/helm" "$@"
}
