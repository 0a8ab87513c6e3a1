# A whole Kubernetes in the lab: two nodes, each with containerd, kubelet and kube-proxy (or none), and a control plane. Source
# after lab/lab.bash; every function that this file and those beside it define starts with cluster_.
#
# A node is a host of the lab that has, besides, a cgroup of its own in each hierarchy of the machine, which is the root of
# the cgroup namespace of the node's daemons. What only the long tests need is not in the lab, but here.

CLUSTER_SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# shellcheck source=node.bash
source "$CLUSTER_SOURCE/node.bash"
# shellcheck source=control.bash
source "$CLUSTER_SOURCE/control.bash"
# shellcheck source=images.bash
source "$CLUSTER_SOURCE/images.bash"
# shellcheck source=networks.bash
source "$CLUSTER_SOURCE/networks.bash"
# shellcheck source=e2e.bash
source "$CLUSTER_SOURCE/e2e.bash"
# shellcheck source=underpass.bash
source "$CLUSTER_SOURCE/underpass.bash"

# cluster_require: prints what is missing for a cluster, and fails then.
cluster_require() {
  local program
  lab_require || return
  for program in containerd containerd-shim-runc-v2 ctr runc busybox /usr/lib/cni/bridge; do
    command -v "$program" >/dev/null || { printf 'the cluster needs %s: run scripts/setup --cluster\n' "$program" && return 1; }
  done
  "$LAB_REPO/tests/tools/build" --where etcd kubernetes multus coredns helm >/dev/null 2>&1 || {
    printf 'the cluster needs real Kubernetes programs: run scripts/setup --cluster --tools (needs Go)\n'
    return 1
  }
  [ -d /sys/fs/cgroup/memory ] || {
    printf 'the cluster needs the memory controller in a hierarchy of cgroup v1\n'
    return 1
  }
}

# cluster_up [NODES]: the whole of it, until pods can be made. CLUSTER_PROXY is iptables (the default), nftables or none.
cluster_up() {
  local node
  CLUSTER_START=${EPOCHREALTIME/./}
  lab_up "${1:-2}" || return
  : >"$LAB/cluster"
  cluster_say 'hosts'
  cluster_images || return
  cluster_say 'images'
  for node in $(lab_nodes); do
    cluster_machine "$node" && cluster_containerd "$node" || return
  done
  cluster_say 'containerd runs'
  cluster_control || return
  cluster_say 'the API server answers; the controller manager and the scheduler run'
  for node in $(lab_nodes); do
    cluster_networks "$node" && cluster_kubelet "$node" || return
  done
  [ "${CLUSTER_PROXY:-iptables}" = none ] || lab_kube_proxy "${CLUSTER_PROXY:-iptables}" || return
  lab_until 60 cluster_ready || lab_fail "nodes: $(lab_kubectl get nodes -o wide 2>&1)" || return
  lab_until 30 cluster_has_account || lab_fail 'no ServiceAccount for pods' || return
  cluster_say 'the nodes are Ready'
  # shellcheck disable=SC2119 # nothing more
  cluster_underpass || return
  cluster_say 'Underpass is installed'
}

# cluster_kept: the directory of a cluster that tests/cluster/up left; prints it.
cluster_kept() {
  local mark
  for mark in "${TMPDIR:-/tmp}/$LAB_PREFIX".*/cluster; do
    [ -e "$mark" ] || lab_fail 'no cluster is up (tests/cluster/up)' || return
    dirname "$mark"
    return
  done
}

cluster_say() {
  local ms=$(((${EPOCHREALTIME/./} - CLUSTER_START) / 1000))
  printf '%4d.%03d s  %s\n' $((ms / 1000)) $((ms % 1000)) "$*" >&2
}

# Whether all nodes are Ready.
cluster_ready() {
  [ "$(lab_kubectl get nodes -o json 2>/dev/null |
    jq '[.items[].status.conditions[]? | select(.type == "Ready" and .status == "True")] | length')" = "$(lab_nodes | wc -l)" ]
}

cluster_has_account() {
  lab_kubectl get serviceaccount default >/dev/null 2>&1
}
