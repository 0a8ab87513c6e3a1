# Under podman, which calls CNI plugins through libcni: a container reaches a Service by both paths, and its end leaves nothing.
# All that podman keeps is in the node's /run.

load ../helpers
load ../lb

setup_file() {
  suite_needs_lab && lb_needs_program || return 0
  local program
  for program in podman conmon crun busybox; do
    command -v $program >/dev/null || suite_skips "no $program: run scripts/setup --podman" || return 0
  done
  lab_up 2
  lab_pod node2 server underlay46
  lab_serve node2/server 8080
  lab_service web 80:8080 node2/server
  lab_cgroup runtime >"$LAB/host/node1/runtime"
  runtime
  printf '# %s\n' "$(podman --version)" >&3
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
}

teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  pod rm --force --time 0 --all >/dev/null || :
  lab_lb node1 unload 2>/dev/null || :
}

# What podman is told, and a root for containers: a static program, and links for who mounts the machine's /usr.
runtime() {
  # A machine may have cgroup v1 beside v2, which crun does not want.
  in_cgroup lab_in node1 unshare --cgroup mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'mkdir -p /run/cni/bin /run/cni/net /run/root/usr /run/root/tmp /run/root/proc /run/root/sys /run/root/dev /run/root/etc /run/root/run &&
    cp "$(command -v busybox)" /run/root && ln -s usr/bin usr/lib usr/lib64 /run/root && cd /run/cni/bin && ln -s /usr/lib/cni/* . &&
    ln -sf "$0"/* . && ln -s "$1/coordinator" . && ln -s "$2" underpass.d' \
    "${LAB_CNI_PLUGINS:-/usr/lib/cni}" "$LAB_REPO/scripts" "$(lab_libexec)"
  lab_network_json underlay 46 "$(lab_coordinator_json 46)" eth0 1 0 | lab_in node1 tee /run/cni/net/underlay.conflist >/dev/null
  lab_in node1 tee /run/containers.conf >/dev/null <<'EOF'
[network]
network_backend = "cni"
cni_plugin_dirs = ["/run/cni/bin"]
network_config_dir = "/run/cni/net"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
tmp_dir = "/run/libpod"
static_dir = "/run/podman-static"
volume_path = "/run/podman-volumes"
EOF
  printf '[storage]\ndriver = "vfs"\ngraphroot = "/run/podman-storage"\nrunroot = "/run/podman-run"\n' |
    lab_in node1 tee /run/storage.conf >/dev/null
}

# in_cgroup COMMAND...: in the lab's cgroup; a cgroup namespace that is made there has it as its root.
in_cgroup() {
  (printf '%s\n' "$BASHPID" >"$(<"$LAB/host/node1/runtime")/cgroup.procs" && "$@")
}

# pod ARGUMENT...: podman on node1, in the lab's cgroup.
pod() {
  in_cgroup lab_in node1 unshare --cgroup env --unset=UNDERPASS_LIBEXEC CONTAINERS_CONF=/run/containers.conf \
    CONTAINERS_STORAGE_CONF=/run/storage.conf podman "$@"
}

# container NAME: starts one.
container() {
  pod run --detach --name "$1" --network underlay --cgroups disabled --volume /usr:/usr:ro --volume "$LAB_SOURCE:$LAB_SOURCE:ro" \
    --rootfs /run/root /busybox sleep 86400 >/dev/null
}

# asks NAME ADDRESS ANSWER: over TCP, from within the container.
asks() {
  expect 0 pod exec "$1" "$LAB_SOURCE/identify" ask tcp "$2" 80 2
  assert_equal "${output%% *}" "$3"
}

node_state() {
  lab_snapshot node1
  lab_in node1 find /run/netns /var/lib/cni -type f ! -name 'last_reserved_ip.*' ! -name lock
}

@test "a container reaches a Service by the host path" {
  container host
  asks host "$(lab_cluster_ip web 4)" server
  asks host "$(lab_cluster_ip web 6)" server
}

@test "a container reaches a Service by the socket path, which no rule of the node translates" {
  container socket
  expect 1 pod exec socket "$LAB_SOURCE/identify" ask tcp 10.233.64.99 80 1
  lab_lb node1 load --cgroup /sys/fs/cgroup
  lb_apply "{\"services\": [$(lb_service web "{\"clusterIps\": [\"10.233.64.99\"],
    \"backends\": [{\"address\": \"$(lab_address node2/server 4)\", \"port\": 8080}]}")]}"
  asks socket 10.233.64.99 server
}

@test "a container's end leaves nothing on the node" {
  container first
  pod rm --force --time 0 first >/dev/null
  local before
  before=$(node_state)
  container second
  [ "$(node_state)" != "$before" ] || fail 'the container is not seen'
  pod rm --force --time 0 second >/dev/null
  assert_same "$before" "$(node_state)"
}
