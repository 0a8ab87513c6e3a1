# Part of the cluster (see cluster.bash): the control plane, on a host of its own, and DNS.

# cluster_control: etcd, API server, controller manager, scheduler, and the objects that a cluster has before its first pod.
cluster_control() {
  local tools user node directory=$LAB/kubernetes
  tools=$("$LAB_REPO/tests/tools/build" --where kubernetes etcd) || return
  PATH=${tools//$'\n'/:}:$PATH
  mkdir "$directory"
  lab_host control
  lab_plug control eth0 6 0.10 10
  for node in $(lab_nodes); do cluster_overlay_route control "$node"; done
  openssl genrsa -out "$directory/sa.key" 2048 2>/dev/null
  cluster_users | while IFS=, read -r user identity groups; do
    printf '%s-token,%s,%s%s\n' "$user" "$identity" "$user" "${groups:+,$groups}" >>"$directory/tokens"
    lab_kubeconfig "$user-token" >"$directory/$user.conf"
  done
  lab_etcd
  lab_apiserver_with --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
    --kubelet-preferred-address-types InternalIP --default-not-ready-toleration-seconds 1 \
    --default-unreachable-toleration-seconds 1 || return
  lab_spawn kube-controller-manager control kube-controller-manager --kubeconfig "$directory/kcm.conf" --leader-elect=false \
    --use-service-account-credentials --service-account-private-key-file "$directory/sa.key" \
    --root-ca-file "$directory/apiserver.crt" --allocate-node-cidrs=false \
    --node-monitor-grace-period "${CLUSTER_GRACE:-6s}" --node-monitor-period 1s
  lab_spawn kube-scheduler control kube-scheduler --kubeconfig "$directory/scheduler.conf" --leader-elect=false
  lab_kubectl apply --server-side --filename "$CLUSTER_SOURCE/objects/multus.yaml" >/dev/null || return
  lab_kubectl wait --for condition=Established crd --all --timeout 20s >/dev/null || return
  lab_kubectl apply --server-side --filename "$CLUSTER_SOURCE/objects/networks.yaml" \
    --filename "$CLUSTER_SOURCE/objects/dns.yaml" --filename "$CLUSTER_SOURCE/objects/kubeadm.yaml" >/dev/null
}

# Who has a token: its name in the lab, the user that Kubernetes' own roles know, and the groups.
cluster_users() {
  local node
  cat <<'END'
admin,admin,system:masters
proxy,system:kube-proxy,
kcm,system:kube-controller-manager,
scheduler,system:kube-scheduler,
multus,multus,
END
  for node in $(lab_nodes); do printf '%s,system:node:%s,system:nodes\n' "$node" "$node"; done
}
