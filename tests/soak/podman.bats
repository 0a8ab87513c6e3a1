# Under podman, which calls CNI plugins through libcni: a container reaches a Service by both paths, and its end leaves nothing.

load ../helpers
load ../lb
load runtime

setup_file() {
  suite_needs_lab && lb_needs_program || return 0
  runtime_needs podman podman conmon crun busybox || return 0
  runtime_lab
  runtime
  printf '# %s\n' "$(podman --version)" >&3
}

teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  pod rm --force --time 0 --all >/dev/null || :
  lab_lb node1 unload 2>/dev/null || :
}

# What podman is told, and a root for containers: a static program, and links for who mounts the machine's /usr.
runtime() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'mkdir -p /run/root/usr /run/root/tmp /run/root/proc /run/root/sys /run/root/dev /run/root/etc /run/root/run &&
    cp "$(command -v busybox)" /run/root && ln -s usr/bin usr/lib usr/lib64 /run/root'
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

enter() { pod exec "$@"; }

@test "a container reaches a Service by the host path" {
  container host
  asks host "$(lab_cluster_ip web 4)" server
  asks host "$(lab_cluster_ip web 6)" server
}

@test "a container reaches a Service by the socket path, which no rule of the node translates" {
  container socket
  assert_by_sockets socket
}

@test "a container's end leaves nothing on the node" {
  container first
  pod rm --force --time 0 first >/dev/null
  local before
  before=$(pod_state)
  container second
  [ "$(pod_state)" != "$before" ] || fail 'the container is not seen'
  pod rm --force --time 0 second >/dev/null
  assert_same "$before" "$(pod_state)"
}
