# The matrix: who reaches whom, by which path. A pair of nodes has an underlay pod, an overlay pod and a process of its own
# on each, and each of the six is a server and the only backend of a Service of its name. Loaded beside helpers.

# matrix_pair KIND nat|no NEAR FAR: the servers and their Services; KIND is an overlay's (lab_overlay_pod).
matrix_pair() {
  local node
  for node in "$3" "$4"; do
    lab_pod "$node" under underlay46
    lab_overlay_pod "$node" over "$1"
    [ "$2" = no ] || lab_nat_outgoing "$node"
    lab_serve "$node/under" 8080 "$node-under"
    lab_serve "$node/over" 8080 "$node-over"
    lab_serve "$node" 8080 "$node-host"
    LAB_HOLD=1 lab_service "$node-under" 80:8080 "$node/under"
    LAB_HOLD=1 lab_service "$node-over" 80:8080 "$node/over"
    LAB_HOLD=1 lab_service "$node-host" 80:8080 "$node"
  done
}

# matrix_questions PATH NEAR FAR: for each server of the pair, family and protocol a question to it: `direct` to its own
# address, `host` and `socket` to its Service.
matrix_questions() {
  jq -r --arg path "$1" --arg near "$2" --arg far "$3" '
    .[] | .backends[0] as $backend | select($backend.node == ($near, $far))
    | (if $path == "direct" then [$backend.ips[], $backend.port] else [.ips[], .port] end) as [$v4, $v6, $port]
    | "tcp \($v4) \($port) \(.name)", "udp \($v4) \($port) \(.name)", "tcp \($v6) \($port) \(.name)", "udp \($v6) \($port) \(.name)"
  ' "$LAB/services.json"
}

# matrix_ask PATH CLIENT NEAR FAR: asks them all at once; a line for each, and what came back.
matrix_ask() {
  local run=lab_in
  [ "$1" != socket ] || run=lab_served
  matrix_questions "$1" "$3" "$4" | "$run" "$2" "$LAB_SOURCE/identify" each
}

# matrix_misses NEAR FAR: the questions from the near node's clients to which not the right server answered.
matrix_misses() {
  local path client count=0
  for path in direct host socket; do
    for client in "$1/under" "$1/over" "$1"; do
      matrix_ask "$path" "$client" "$1" "$2" | sed "s|^|$path $client: |" &
    done
  done >"$LAB/matrix"
  wait
  # $4 to $6: address, port, and who was asked; then who answered.
  awk '$6 != $7' "$LAB/matrix"
  count=$(wc -l <"$LAB/matrix")
  [ "$count" = 216 ] || printf '%s questions instead of 216\n' "$count"
}

# assert_everyone_reaches_everyone NEAR FAR
assert_everyone_reaches_everyone() {
  assert_equal "$(matrix_misses "$1" "$2")" ''
}

KINDS=(calico cilium flannel)

# pair KIND nat|no: the pair of an overlay KIND with (nat) or without (no) natOutgoing.
pair() {
  local kind number=1
  for kind in "${KINDS[@]}"; do
    [ "$kind" = "$1" ] || number=$((number + 4))
    [ "$kind" != "$1" ] || break
  done
  [ "$2" = nat ] || number=$((number + 2))
  printf 'node%d node%d\n' "$number" "$((number + 1))"
}

# matrix_pairs: a pair of the nodes 1 to 12 for each kind of overlay, with and without natOutgoing; the socket path on its
# near one.
matrix_pairs() {
  local kind nat near far
  for kind in "${KINDS[@]}"; do
    for nat in nat no; do
      read -r near far < <(pair "$kind" "$nat")
      matrix_pair "$kind" "$nat" "$near" "$far"
      lab_balancer "$near"
      lab_lb_services "$near"
    done
  done
}

# everyone KIND nat|no
everyone() {
  local near far
  read -r near far < <(pair "$@")
  assert_everyone_reaches_everyone "$near" "$far"
}
