# Under CRI-O with crun, which crictl drives as a kubelet would: a container reaches a Service by both paths, and a sandbox's
# end leaves nothing. This CRI-O (1.23) calls ADD, then CHECK, and DEL; GC it does not know. All that it keeps is in the node's /run.

load ../helpers
load ../lb

setup_file() {
  suite_needs_lab && lb_needs_program || return 0
  local program
  for program in podman conmon crun busybox; do
    command -v $program >/dev/null || suite_skips "no $program: run scripts/setup --crio" || return 0
  done
  CRICTL=$("$LAB_REPO/tests/tools/build" --where crictl) && CRIO=$("$LAB_REPO/tests/tools/build" --where crio) ||
    suite_skips 'crictl or CRI-O is not built: run scripts/setup --crio (needs Go)' || return 0
  export CRICTL CRIO
  lab_up 2
  lab_pod node2 server underlay46
  lab_serve node2/server 8080
  lab_service web 80:8080 node2/server
  lab_cgroup runtime >"$LAB/host/node1/runtime"
  runtime
  printf '# %s\n' "$("$CRIO/crio" --version | head -n 1)" "$(crun --version | head -n 1)" >&3
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
}

# The next test finds no sandbox and no balancer, whatever became of this one's.
teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  local pod
  for pod in $(cri pods --quiet); do remove "$pod" || :; done
  lab_lb node1 unload 2>/dev/null || :
}

# runtime: CRI-O on node1, with an image for sandboxes and containers, and our plugin as a node has it.
runtime() {
  # A machine may have cgroup v1 beside v2, which crun does not want.
  in_cgroup lab_in node1 unshare --cgroup mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'mkdir -p /run/cni/bin /run/cni/net /var/lib/cni && cd /run/cni/bin && ln -s /usr/lib/cni/* . &&
    ln -sf "$0"/* . && ln -s "$1/coordinator" . && ln -s "$2" underpass.d' \
    "${LAB_CNI_PLUGINS:-/usr/lib/cni}" "$LAB_REPO/scripts" "$(lab_libexec)"
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
  printf 'runtime-endpoint: unix:///run/crio/crio.sock\ntimeout: 30\n' | lab_in node1 tee /etc/crictl.yaml >/dev/null
  crun_without_limits | lab_in node1 install -D -m 755 /dev/stdin /run/bin/crun
  image
  in_cgroup lab_spawn crio node1 env --unset=UNDERPASS_LIBEXEC unshare --cgroup "$CRIO/crio" --config /run/crio.conf --config-dir ''
  lab_until 20 ready || lab_fail "CRI-O: $(tail -n 5 "$LAB/log/crio")"
}

# in_cgroup COMMAND...: in the lab's cgroup; a cgroup namespace that is made there has it as its root.
in_cgroup() {
  (printf '%s\n' "$BASHPID" >"$(<"$LAB/host/node1/runtime")/cgroup.procs" && "$@")
}

# crun, but for limits, which a machine with cgroup v1 beside v2 has no controllers for, and for what the lab may not.
crun_without_limits() {
  printf '#!/bin/sh\ncrun=%s\n' "$(command -v crun)"
  cat <<'SCRIPT'
before=
for now; do
  [ "$before" != --bundle ] ||
    { jq 'del(.linux.resources, .process.oomScoreAdj)' "$now/config.json" >"$now/new" && mv "$now/new" "$now/config.json"; }
  before=$now
done
exec "$crun" "$@"
SCRIPT
}

ready() { [ "$(cri info 2>/dev/null | jq '[.status.conditions[].status] | all')" = true ]; }

# image: a static program to sleep, and links for who mounts the machine's /usr, brought into CRI-O's storage.
image() {
  local root=$BATS_FILE_TMPDIR/root
  mkdir -p "$root/usr" "$root/tmp"
  cp "$(command -v busybox)" "$root"
  ln -s usr/bin usr/lib usr/lib64 "$root"
  "$LAB_REPO/scripts/pack-image" localhost/lab:1 "$root" /busybox sleep 86400 |
    lab_in node1 podman --root /run/storage --runroot /run/storage-run --tmpdir /run/libpod --storage-driver vfs \
      --cgroup-manager cgroupfs --events-backend none load --signature-policy /run/policy.json >/dev/null
}

cri() { lab_in node1 "$CRICTL/crictl" "$@"; }

# sandbox NAME: a pod sandbox; prints its id.
sandbox() {
  jq -n --arg name "$1" '{metadata: {$name, uid: $name, namespace: "lab"}, linux: {cgroup_parent: "/pods"}}' |
    lab_in node1 tee "/run/$1.json" >/dev/null
  cri runp "/run/$1.json"
}

# container SANDBOX NAME: a container in the sandbox NAME; prints its id.
container() {
  local id
  jq -n --arg source "$LAB_SOURCE" '{
    metadata: {name: "container"}, image: {image: "localhost/lab:1"}, linux: {},
    mounts: ["/usr", $source | {host_path: ., container_path: ., readonly: true}]
  }' | lab_in node1 tee "/run/$2.container.json" >/dev/null
  id=$(cri create "$1" "/run/$2.container.json" "/run/$2.json") && cri start "$id" >/dev/null && printf '%s\n' "$id"
}

# asks CONTAINER ADDRESS ANSWER: over TCP, from within the container.
asks() {
  expect 0 cri exec --sync "$1" "$LAB_SOURCE/identify" ask tcp "$2" 80 2
  assert_equal "${output%% *}" "$3"
}

remove() {
  cri stopp "$1" >/dev/null && cri rmp "$1" >/dev/null
}

# node_state: all that a sandbox could leave there: network, pods, namespaces, addresses in use, cached results, cgroups.
node_state() {
  lab_snapshot node1
  cri pods --quiet
  lab_in node1 find /run/netns /var/lib/cni -type f ! -name 'last_reserved_ip.*' ! -name lock
  lab_in node1 find /sys/fs/cgroup -type d
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
  expect 1 cri exec --sync "$container" "$LAB_SOURCE/identify" ask tcp 10.233.64.99 80 1
  lab_lb node1 load --cgroup /sys/fs/cgroup
  lb_apply "{\"services\": [$(lb_service web "{\"clusterIps\": [\"10.233.64.99\"],
    \"backends\": [{\"address\": \"$(lab_address node2/server 4)\", \"port\": 8080}]}")]}"
  asks "$container" 10.233.64.99 server
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
