# Who reaches whom: underlay pods, overlay pods and nodes, on the same and on another node, over TCP and UDP, IPv4 and IPv6,
# directly, by Service on the host path, and by Service on the socket path. 216 questions for each kind of overlay.

load helpers
load matrix

setup_file() {
  suite_lab 12 || return 0
  matrix_pairs
  lab_provide
}

@test "everyone reaches everyone beside a Calico-like overlay with natOutgoing" { everyone calico nat; }
@test "everyone reaches everyone beside a Calico-like overlay without natOutgoing" { everyone calico no; }
@test "everyone reaches everyone beside a Cilium-like overlay with natOutgoing" { everyone cilium nat; }
@test "everyone reaches everyone beside a Cilium-like overlay without natOutgoing" { everyone cilium no; }
@test "everyone reaches everyone beside a Flannel-like overlay with natOutgoing" { everyone flannel nat; }
@test "everyone reaches everyone beside a Flannel-like overlay without natOutgoing" { everyone flannel no; }
