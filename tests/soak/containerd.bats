# Under a real container runtime: containerd with its CRI plugin and runc, which crictl drives as a kubelet would.
# LAB_CONTAINERD is a directory with another containerd than the distribution's.

load ../helpers
load ../lb
load runtime

setup_file() {
  suite_needs_lab || return 0
  [ -z "${LAB_CONTAINERD-}" ] || export PATH=$LAB_CONTAINERD:$PATH
  runtime_needs containerd containerd containerd-shim-runc-v2 ctr runc busybox || return 0
  CRICTL=$("$LAB_REPO/tests/tools/build" --where crictl) ||
    suite_skips 'crictl is not built: run scripts/setup --containerd (needs Go)' || return 0
  export CRICTL
  runtime_lab
  runtime
  printf '# %s\n' "$(containerd --version)" "$(runc --version | head -n 1)" >&3
}

teardown() { cri_clean; }

# runtime: containerd on node1, with an image for sandboxes and containers.
runtime() {
  network net .
  network refused '.plugins[1].mode = "sideways"'
  network silent '.plugins[1] += {detectGateway: true, detectOptions: {retries: 30, interval: "100ms"}} |
    .plugins[0].ipam.ranges[0][0].gateway = "10.6.0.99"'
  lab_in node1 tee /run/containerd.toml >/dev/null <<'EOF'
version = 2
root = "/run/containerd-root"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/lab:1"
  restrict_oom_score_adj = true # as far as the lab may
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/run/cni/bin"
    conf_dir = "/run/cni/net"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
    runc = {runtime_type = "io.containerd.runc.v2"}
    refused = {runtime_type = "io.containerd.runc.v2", cni_conf_dir = "/run/cni/refused"}
    silent = {runtime_type = "io.containerd.runc.v2", cni_conf_dir = "/run/cni/silent"}
EOF
  without runc .linux.resources
  lab_in node1 mkdir /sys/fs/cgroup/containerd /sys/fs/cgroup/k8s.io
  cri_at /run/containerd/containerd.sock
  start
  runtime_image | lab_in node1 ctr --namespace k8s.io images import - >/dev/null
  lab_until 10 cri inspecti --quiet localhost/lab:1 >/dev/null
}

# network NAME FILTER: the lab's chain, changed by a jq filter, as the network of the runtime handler NAME.
# shellcheck disable=SC2016 # expanded by the inner shell
network() {
  lab_network_json "$1" 46 "$(lab_coordinator_json 46)" eth0 1 0 | jq "$2" |
    lab_in node1 sh -c 'mkdir -p "/run/cni/$0" && cat >"/run/cni/$0/net.conflist"' "$1"
}

# start: starts containerd, and again after lab_stop containerd KILL.
start() {
  in_cgroup lab_spawn containerd node1 env --unset=UNDERPASS_LIBEXEC PATH="/run/bin:$PATH" unshare --cgroup \
    sh -c 'printf "0\n" >/sys/fs/cgroup/containerd/cgroup.procs && exec containerd --config /run/containerd.toml'
  lab_until 20 ready || lab_fail "containerd: $(tail -n 5 "$LAB/log/containerd")"
}

# sandbox NAME [HANDLER]: a pod sandbox; prints its id.
sandbox() {
  describe "$1"
  cri runp --runtime "${2:-runc}" "/run/$1.json"
}

# describe NAME: what runp is told of a sandbox.
describe() {
  jq -n --arg name "$1" '{metadata: {$name, uid: $name, namespace: "lab"}, linux: {}}' |
    lab_in node1 tee "/run/$1.json" >/dev/null
}

# begin NAME: begins a sandbox, and returns in the last step of its ADD, which waits three seconds for a gateway.
begin() {
  describe "$1"
  lab_spawn runp node1 "$CRICTL/crictl" runp --runtime silent "/run/$1.json"
  lab_until 10 has_rule
}

has_rule() { [ -n "$(lab_in node1 ip rule show pref 85)" ]; }

# inside SANDBOX: its network namespace, for lab_in.
inside() {
  cri inspectp "$1" | jq -r '.info.runtimeSpec.linux.namespaces[] | select(.type == "network").path | "node1/\(split("/")[-1])"'
}

# address SANDBOX 4|6: as the runtime knows it.
address() {
  cri inspectp "$1" | jq -r --arg family "$2" '.status.network | if $family == "4" then .ip else .additionalIps[0].ip end'
}

# assert_served SANDBOX, assert_container_served CONTAINER 4_SEEN 6_SEEN: the Service answers over TCP and UDP, IPv4 and IPv6.
assert_served() {
  local where
  where=$(inside "$1")
  assert_answer "$where" "$(lab_cluster_ip web 4)" 80 server 10.6.212.101 &&
    assert_answer "$where" "$(lab_cluster_ip web 6)" 80 server fd00:6::101
}

assert_container_served() {
  local protocol
  for protocol in tcp udp; do
    expect 0 cri exec --sync "$1" "$LAB_SOURCE/identify" ask $protocol "$(lab_cluster_ip web 4)" 80
    assert_equal "$output" "server $2"
    expect 0 cri exec --sync "$1" "$LAB_SOURCE/identify" ask $protocol "$(lab_cluster_ip web 6)" 80
    assert_equal "$output" "server $3"
  done
}

@test "a sandbox and a container in it have an underlay address and reach a Service, and stopp and rmp leave nothing" {
  local before pod container
  before=$(node_state)
  pod=$(sandbox web)
  assert_equal "$(address "$pod" 4)" "$(lab_address "$(inside "$pod")" 4)"
  [[ $(address "$pod" 4) == 10.6.10.* && $(address "$pod" 6) == fd00:6::1:0:* ]] || fail "$(cri inspectp "$pod")"
  assert_served "$pod"
  lab_in node1 ping -c 1 -W 2 "$(address "$pod" 4)"
  container=$(container "$pod" web)
  assert_container_served "$container" 10.6.212.101 fd00:6::101
  remove "$pod"
  assert_same "$before" "$(node_state)"
}

@test "the socket path, attached to the sandboxes' cgroup, serves a container: the backend sees the pod's own address" {
  local pod container before
  lb_needs_program || skip "$SUITE_SKIP"
  before=$(node_state)
  lab_lb node1 load --cgroup /sys/fs/cgroup
  lab_lb_services node1
  pod=$(sandbox sockets)
  container=$(container "$pod" sockets)
  assert_container_served "$container" "$(address "$pod" 4)" "$(address "$pod" 6)"
  remove "$pod"
  lab_lb node1 unload
  assert_same "$before" "$(node_state)"
}

@test "ten sandboxes at once, of which each reaches a Service, leave nothing when they are removed at once" {
  local before number workers=() pods=()
  before=$(node_state)
  for number in {1..10}; do
    sandbox "pod$number" >"$BATS_TEST_TMPDIR/$number" 2>"$BATS_TEST_TMPDIR/$number.log" 3>&- &
    workers+=($!)
  done
  for number in {1..10}; do
    wait "${workers[number - 1]}" || fail "$(<"$BATS_TEST_TMPDIR/$number.log")" || return
    pods+=("$(<"$BATS_TEST_TMPDIR/$number")")
  done
  assert_equal "$(for number in {0..9}; do address "${pods[number]}" 4; done | sort -u | wc -l)" 10
  for number in {0..9}; do assert_served "${pods[number]}"; done
  workers=()
  for number in {0..9}; do
    remove "${pods[number]}" 3>&- &
    workers+=($!)
  done
  for number in {0..9}; do wait "${workers[number]}"; done
  assert_same "$before" "$(node_state)"
}

@test "a sandbox whose processes and shim were killed is cleaned up by stopp and rmp" {
  local before pod pid
  before=$(node_state)
  pod=$(sandbox killed)
  pid=$(cri inspectp "$pod" | jq .info.pid)
  lab_in node1 kill -KILL "$(lab_in node1 ps -o ppid= "$pid" | tr -d ' ')" "$pid"
  lab_until 5 not_ready "$pod"
  remove "$pod"
  assert_same "$before" "$(node_state)"
}

not_ready() { [ "$(cri inspectp "$1" | jq -r .status.state)" = SANDBOX_NOTREADY ]; }

@test "a sandbox outlives a containerd that was killed, and the next one cleans it up" {
  local before pod
  before=$(node_state)
  pod=$(sandbox outlives)
  lab_stop containerd KILL
  start
  assert_served "$pod"
  remove "$pod"
  assert_same "$before" "$(node_state)"
}

@test "an ADD that is refused, or fails at its last step, is told by the runtime in our words, and leaves nothing" {
  local before
  before=$(node_state)
  expect 1 sandbox refused refused
  assert_contains "${stderr//\\\"/\"}" 'plugin type="coordinator" failed (add): setting mode: "sideways" is not allowed'
  assert_contains "$stderr" 'not allowed; cni-request: allowed: auto, underlay, overlay or disable'
  assert_same "$before" "$(node_state)"
  expect 1 sandbox silent silent
  assert_contains "${stderr//\\\"/\"}" 'plugin type="coordinator" failed (add):'
  assert_contains "$stderr" 'set detectGateway to false'
  assert_same "$before" "$(node_state)"
}

@test "an ADD that is given up half-way is taken back, as soon as its last process has ended" {
  local before
  before=$(node_state)
  begin "given-up"
  lab_stop runp KILL
  lab_until 20 is_as "$before" || assert_same "$before" "$(node_state)"
}

@test "what a containerd leaves that was killed half-way in ADD is cleaned up by stopp and rmp" {
  local before
  before=$(node_state)
  begin half-way
  lab_stop containerd KILL
  start
  remove "$(cri pods --quiet)"
  lab_stop runp
  assert_same "$before" "$(node_state)"
}

is_as() { [ "$1" = "$(node_state)" ]; }

@test "a node on which ADD would fail is not ready, as STATUS says, and is when that is mended" {
  [[ $(containerd --version) == *'/v2 '* && ${LAB_CNI_VERSION-} == 1.1.0 ]] ||
    skip 'STATUS is called by containerd 2 for CNI 1.1.0: see LAB_CONTAINERD and LAB_CNI_VERSION in tests/README.md'
  lab_in node1 cp /run/cni/net/net.conflist /run/good
  lab_in node1 jq 'del(.plugins[1].serviceCIDR, .plugins[1].overlayPodCIDR)' /run/good |
    lab_in node1 tee /run/cni/net/net.conflist >/dev/null
  lab_until 10 says_why
  lab_in node1 cp /run/good /run/cni/net/net.conflist
  lab_until 10 ready
}

says_why() {
  cri info | jq -e '.status.conditions[] | select(.type == "NetworkReady" and (.status | not)) |
    .message | contains("the cluster\u0027s Service CIDRs are not known yet")' >/dev/null
}
