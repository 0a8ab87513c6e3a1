# Part of the cluster (see cluster.bash): a node and its daemons.

# cluster_machine NODE: what a machine has before anything runs on it.
cluster_machine() {
  local node=$1
  cluster_cgroups "$node" && cluster_mounts "$node"
}

# The node's cgroup in each hierarchy, below the one in which we are; "HIERARCHY PATH" a line in $LAB/host/NODE/cgroups.
cluster_cgroups() {
  local node=$1 id controllers path name mount cgroup
  while IFS=: read -r id controllers path; do
    name=${controllers#name=}
    [ "$id" != 0 ] || name=unified
    mount=/sys/fs/cgroup/$name
    [ -d "$mount" ] || continue
    cgroup=${mount}${path%/}/$LAB_PREFIX-${LAB##*.}-$node
    mkdir "$cgroup" || return
    # A new cpuset is empty, and takes no process before it has processors and memory.
    if [ "$name" = cpuset ]; then
      cat "${cgroup%/*}/cpuset.cpus" >"$cgroup/cpuset.cpus"
      cat "${cgroup%/*}/cpuset.mems" >"$cgroup/cpuset.mems"
    fi
    printf '%s\n' "$cgroup" >>"$LAB/cgroups"
    printf '%s %s\n' "$name" "$cgroup"
  done </proc/self/cgroup >"$LAB/host/$node/cgroups"
}

# cluster_enter NODE COMMAND...: runs a command in the node's cgroups.
cluster_enter() {
  local node=$1
  shift
  (
    while read -r _ cgroup; do printf '%s\n' "$BASHPID" >"$cgroup/cgroup.procs" || exit; done <"$LAB/host/$node/cgroups"
    "$@"
  )
}

# The node's /sys/fs/cgroup, with its own cgroups as roots: mounted from within a cgroup namespace. Then directories that the
# kubelet and containerd want to themselves, and copies of sysctls that the kubelet would write and that are the machine's.
cluster_mounts() {
  local hierarchies
  mapfile -t hierarchies < <(cut -d' ' -f1 "$LAB/host/$1/cgroups")
  # shellcheck disable=SC2016 # expanded by the inner shell
  cluster_enter "$1" lab_in "$1" unshare --cgroup bash -euc '
    umount -R /sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    for name; do
      mkdir "/sys/fs/cgroup/$name"
      case $name in
        unified) mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
        systemd) mount -t cgroup -o none,name=systemd cgroup "/sys/fs/cgroup/$name" ;;
        *) mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name" ;;
      esac
    done
    rm -rf /etc/cni /opt/cni # of the machine
    mkdir -p /etc/cni/net.d /etc/cni/multus.d /opt/cni/bin
    mkdir -p /run/plugins /run/pod-logs /run/sysctl /var/lib/kubelet /var/lib/cni
    mount -t tmpfs tmpfs /var/lib/kubelet
    mount -t tmpfs tmpfs /var/log
    while read -r name value; do
      printf "%s\n" "$value" >"/run/sysctl/${name//\//.}"
      mount --bind "/run/sysctl/${name//\//.}" "/proc/sys/$name"
    done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END
    mount --make-rshared /
  ' cluster_mounts "${hierarchies[@]}"
}

# cluster_daemon NAME NODE COMMAND...: lab_spawn in the node's cgroups, of which it sees nothing but what is below.
cluster_daemon() {
  local name=$1 node=$2 tools
  shift 2
  tools=$("$LAB_REPO/tests/tools/build" --where kubernetes) || return
  cluster_enter "$node" lab_spawn "$name" "$node" env --unset=UNDERPASS_LIBEXEC PATH="$tools:$PATH" unshare --cgroup "$@"
}

# cluster_containerd NODE: starts it, and gives it the images.
cluster_containerd() {
  local node=$1 image
  lab_in "$node" tee /run/containerd.toml >/dev/null <<'END'
version = 2
root = "/run/containerd-root"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/lab:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
END
  cluster_daemon "containerd-$node" "$node" containerd --config /run/containerd.toml
  lab_until 20 lab_in "$node" test -S /run/containerd/containerd.sock ||
    lab_fail "containerd: $(tail -n 5 "$LAB/log/containerd-$node")" || return
  for image in "$LAB"/images/*.tar; do cluster_import "$node" "$image" || return; done
}

# cluster_import NODE ARCHIVE: an image for the node's kubelet.
cluster_import() {
  lab_until 60 cluster_import_once "$@" || lab_fail "import of $2: $(cat "$LAB/log/import-$1")"
}

cluster_import_once() {
  lab_in "$1" ctr --namespace k8s.io images import --digests=false "$2" >"$LAB/log/import-$1" 2>&1
}

# cluster_kubelet NODE
cluster_kubelet() {
  local node=$1
  lab_in "$node" tee /run/kubelet.yaml >/dev/null <<'END'
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
protectKernelDefaults: true
oomScoreAdj: 0
maxOpenFiles: 20000
evictionHard: {memory.available: 100Mi, nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 4
syncFrequency: 10s
podLogsDir: /run/pod-logs
volumePluginDir: /run/plugins
resolvConf: ""
clusterDomain: cluster.local
clusterDNS: [10.233.64.10]
END
  cluster_daemon "kubelet-$node" "$node" kubelet --config /run/kubelet.yaml --kubeconfig "$LAB/kubernetes/$node.conf" \
    --hostname-override "$node" --node-labels "topology.kubernetes.io/zone=zone$((${node#node} % 3))" \
    --node-ip "10.6.212.$((100 + ${node#node})),fd00:6::$((100 + ${node#node}))"
}

# cluster_reboot NODE: the node's power goes and comes back: of what ran, and of its namespaces, nothing is left.
cluster_reboot() {
  local node=$1 cgroup
  cluster_power_off "$node" || return
  while read -r _ cgroup; do
    lab_until 10 lab_remove_cgroup "$cgroup" || lab_fail "left: $cgroup" || return
    grep -vxF "$cgroup" "$LAB/cgroups" >"$LAB/cgroups.new"
    mv "$LAB/cgroups.new" "$LAB/cgroups"
  done <"$LAB/host/$node/cgroups"
  rm -r "$LAB/host/$node"
  rm -f "$LAB/pid/containerd-$node" "$LAB/pid/kubelet-$node" "$LAB/ready/host-$node"
  lab_host "$node"
  lab_node_sysctls "$node"
  lab_plug "$node" eth0 6 "212.$((100 + ${node#node}))" "$((100 + ${node#node}))"
  cluster_machine "$node" && cluster_networks "$node" && cluster_containerd "$node" && cluster_kubelet "$node" || return
  [ "${CLUSTER_PROXY:-iptables}" = none ] || lab_kube_proxy_on "$node" "${CLUSTER_PROXY:-iptables}"
}

# cluster_power_off NODE: kills every process in its cgroups, and then the one that holds its namespaces.
cluster_power_off() {
  local pid
  [ ! -e "$LAB/pid/kube-proxy-$1" ] || lab_stop "kube-proxy-$1" KILL
  lab_until 10 cluster_kill "$1" || lab_fail "processes on $1 do not end" || return
  read -r pid <"$LAB/host/$1/pid"
  kill -KILL "$pid"
  lab_until 10 lab_in fabric sh -c "! ip link show $1.6 >/dev/null 2>&1"
}

# Fails until no process is left.
cluster_kill() {
  local cgroup pids
  read -r _ cgroup <"$LAB/host/$1/cgroups"
  mapfile -t pids < <(find "$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null)
  [ ${#pids[@]} != 0 ] || return 0
  kill -KILL "${pids[@]}" 2>/dev/null
  return 1
}
