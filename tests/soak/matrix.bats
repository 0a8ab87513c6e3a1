# The matrix with real kube-proxies, in each of their modes.

load ../helpers
load ../matrix

setup_file() {
  suite_needs_tools kubernetes etcd || return 0
  suite_lab 12 || return 0
  matrix_pairs
  lab_kube_proxy iptables
}

everyone_of_all() {
  local kind nat
  for kind in "${KINDS[@]}"; do
    for nat in nat no; do everyone "$kind" "$nat" || fail "$kind, natOutgoing: $nat" || return; done
  done
}

@test "everyone reaches everyone with a real kube-proxy in iptables mode" { everyone_of_all; }
@test "everyone reaches everyone with a real kube-proxy in nftables mode" {
  lab_kube_proxy nftables
  everyone_of_all
}
