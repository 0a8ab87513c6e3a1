# Under CRI-O with crun, which crictl drives as a kubelet would: a container reaches a Service by both paths, and a sandbox's
# end leaves nothing. This CRI-O (1.23) calls ADD, then CHECK, and DEL; GC it does not know.

load ../helpers
load ../lb
load runtime

setup_file() {
  suite_needs_lab && lb_needs_program || return 0
  runtime_needs crio podman conmon crun busybox || return 0
  CRICTL=$("$LAB_REPO/tests/tools/build" --where crictl) && CRIO=$("$LAB_REPO/tests/tools/build" --where crio) ||
    suite_skips 'crictl or CRI-O is not built: run scripts/setup --crio (needs Go)' || return 0
  export CRICTL CRIO
  runtime_lab
  runtime
  printf '# %s\n' "$("$CRIO/crio" --version | head -n 1)" "$(crun --version | head -n 1)" >&3
}

teardown() { cri_clean; }

# runtime: CRI-O on node1, with an image for sandboxes and containers, and without what the lab may not.
runtime() {
  lab_network_json net 46 "$(lab_coordinator_json 46)" eth0 1 0 | lab_in node1 tee /run/cni/net/net.conflist >/dev/null
  lab_in node1 tee /run/crio.conf >/dev/null <<CONF
[crio]
root = "/run/storage"
runroot = "/run/storage-run"
storage_driver = "vfs"
log_dir = "/run/crio/log"
version_file = "/run/crio/version"
version_file_persist = "/run/crio/version-persist"
clean_shutdown_file = "/run/crio/clean.shutdown"
[crio.api]
listen = "/run/crio/crio.sock"
[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
container_exits_dir = "/run/crio/exits"
container_attach_socket_dir = "/run/crio"
namespaces_dir = "/run"
pinns_path = "$CRIO/pinns"
drop_infra_ctr = false
pids_limit = 0
default_runtime = "crun"
[crio.runtime.runtimes.crun]
runtime_path = "/run/bin/crun"
runtime_root = "/run/crun"
[crio.image]
pause_image = "localhost/lab:1"
pause_command = ""
signature_policy = "/run/policy.json"
[crio.network]
network_dir = "/run/cni/net"
plugin_dirs = ["/run/cni/bin"]
CONF
  printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' | lab_in node1 tee /run/policy.json >/dev/null
  cri_at /run/crio/crio.sock
  without crun .linux.resources .process.oomScoreAdj
  runtime_image |
    lab_in node1 podman --root /run/storage --runroot /run/storage-run --tmpdir /run/libpod --storage-driver vfs \
      --cgroup-manager cgroupfs --events-backend none load --signature-policy /run/policy.json >/dev/null
  in_cgroup lab_spawn crio node1 env --unset=UNDERPASS_LIBEXEC unshare --cgroup "$CRIO/crio" --config /run/crio.conf --config-dir ''
  lab_until 20 ready || lab_fail "CRI-O: $(tail -n 5 "$LAB/log/crio")"
}

# sandbox NAME: a pod sandbox; prints its id.
sandbox() {
  jq -n --arg name "$1" '{metadata: {$name, uid: $name, namespace: "lab"}, linux: {cgroup_parent: "/pods"}}' |
    lab_in node1 tee "/run/$1.json" >/dev/null
  cri runp "/run/$1.json"
}

@test "a container reaches a Service by the host path, after CHECK" {
  local pod container
  pod=$(sandbox host)
  container=$(container "$pod" host)
  asks "$container" "$(lab_cluster_ip web 4)" server
  asks "$container" "$(lab_cluster_ip web 6)" server
  assert_contains "$(<"$LAB/log/crio")" 'Checking CNI network net'
}

@test "a container reaches a Service by the socket path, which no rule of the node translates" {
  local pod container
  pod=$(sandbox socket)
  container=$(container "$pod" socket)
  assert_by_sockets "$container"
}

@test "a sandbox's end leaves nothing on the node" {
  local before pod
  remove "$(sandbox first)"
  before=$(node_state)
  pod=$(sandbox second)
  container "$pod" second
  [ "$(node_state)" != "$before" ] || fail 'the sandbox is not seen'
  remove "$pod"
  assert_same "$before" "$(node_state)"
}
