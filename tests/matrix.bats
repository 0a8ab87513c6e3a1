# Who reaches whom: underlay pods, overlay pods and nodes, on the same and on another node, over TCP and UDP, IPv4 and IPv6,
# directly, by Service on the host path, and by Service on the socket path. 216 questions for each kind of overlay.

load helpers
load matrix

KINDS=(calico cilium flannel)

# The pair of an overlay KIND with (nat) or without (no) natOutgoing.
pair() {
  local kind number=1
  for kind in "${KINDS[@]}"; do
    [ "$kind" = "$1" ] || number=$((number + 4))
    [ "$kind" != "$1" ] || break
  done
  [ "$2" = nat ] || number=$((number + 2))
  printf 'node%d node%d\n' "$number" "$((number + 1))"
}

setup_file() {
  suite_lab 12 || return 0
  local kind nat near far
  for kind in "${KINDS[@]}"; do
    for nat in nat no; do
      read -r near far < <(pair "$kind" "$nat")
      matrix_pair "$kind" "$nat" "$near" "$far"
      lab_balancer "$near"
      lab_lb_services "$near"
    done
  done
  lab_provide
}

# everyone KIND nat|no
everyone() {
  local near far
  read -r near far < <(pair "$@")
  assert_everyone_reaches_everyone "$near" "$far"
}

@test "everyone reaches everyone beside a Calico-like overlay with natOutgoing" { everyone calico nat; }
@test "everyone reaches everyone beside a Calico-like overlay without natOutgoing" { everyone calico no; }
@test "everyone reaches everyone beside a Cilium-like overlay with natOutgoing" { everyone cilium nat; }
@test "everyone reaches everyone beside a Cilium-like overlay without natOutgoing" { everyone cilium no; }
@test "everyone reaches everyone beside a Flannel-like overlay with natOutgoing" { everyone flannel nat; }
@test "everyone reaches everyone beside a Flannel-like overlay without natOutgoing" { everyone flannel no; }
