# What suites under a real container runtime share. It runs on node1 of the lab: all that it keeps is in the node's /run, its
# processes are the lab's, and a cgroup of the lab is all that it knows of cgroups. A suite says how a command is run in a
# container: enter CONTAINER COMMAND...

# runtime_needs OPTION PROGRAM...: programs that scripts/setup --OPTION installs.
runtime_needs() {
  local option=$1 program
  for program in "${@:2}"; do
    command -v "$program" >/dev/null || suite_skips "no $program: run scripts/setup --$option" || return
  done
}

# runtime_lab: two nodes, a Service with a server on the second, and on the first our plugin as a node has it, and a cgroup. A machine may
# have cgroup v1 beside v2, which not every runtime wants.
runtime_lab() {
  lab_up 2
  lab_pod node2 server underlay46
  lab_serve node2/server 8080
  lab_service web 80:8080 node2/server
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'mkdir -p /run/cni/bin /run/cni/net /run/bin /var/lib/cni && cd /run/cni/bin && ln -s /usr/lib/cni/* . &&
    ln -sf "$0"/* . && ln -s "$1/coordinator" . && ln -s "$2" underpass.d' \
    "${LAB_CNI_PLUGINS:-/usr/lib/cni}" "$LAB_REPO/scripts" "$(lab_libexec)"
  lab_cgroup runtime >"$LAB/host/node1/runtime"
  in_cgroup lab_in node1 unshare --cgroup mount -t cgroup2 cgroup2 /sys/fs/cgroup
}

# in_cgroup COMMAND...: in the lab's cgroup; a cgroup namespace that is made there has it as its root.
in_cgroup() {
  (printf '%s\n' "$BASHPID" >"$(<"$LAB/host/node1/runtime")/cgroup.procs" && "$@")
}

# without PROGRAM KEY...: /run/bin/PROGRAM on node1, which is the machine's runc or crun, but for keys of a container's configuration:
# limits, say. A machine with cgroup v1 beside v2 has no controllers for v2.
without() {
  {
    printf '#!/bin/sh\nruntime=%s keys=%s\n' "$(command -v "$1")" "$(IFS=, && printf '%s' "${*:2}")"
    cat <<'EOF'
before=
for now; do
  [ "$before" != --bundle ] || { jq "del($keys)" "$now/config.json" >"$now/new" && mv "$now/new" "$now/config.json"; }
  before=$now
done
exec "$runtime" "$@"
EOF
  } | lab_in node1 install -m 755 /dev/stdin "/run/bin/$1"
}

# runtime_image: localhost/lab:1 as an archive: a static program to sleep, and links for who mounts the machine's /usr.
runtime_image() {
  local root=$BATS_FILE_TMPDIR/root
  mkdir -p "$root/usr" "$root/tmp"
  cp "$(command -v busybox)" "$root"
  ln -s usr/bin usr/lib usr/lib64 "$root"
  "$LAB_REPO/scripts/pack-image" localhost/lab:1 "$root" /busybox sleep 86400
}

# asks CONTAINER ADDRESS ANSWER: over TCP, from within the container.
# shellcheck disable=SC2154 # output is set by expect
asks() {
  expect 0 enter "$1" "$LAB_SOURCE/identify" ask tcp "$2" 80 2
  assert_equal "${output%% *}" "$3"
}

# assert_by_sockets CONTAINER: it reaches an address that no rule of the node translates as soon as the socket path does.
assert_by_sockets() {
  expect 1 enter "$1" "$LAB_SOURCE/identify" ask tcp 10.233.64.99 80 1
  lab_lb node1 load --cgroup /sys/fs/cgroup
  lb_apply "{\"services\": [$(lb_service web "{\"clusterIps\": [\"10.233.64.99\"],
    \"backends\": [{\"address\": \"$(lab_address node2/server 4)\", \"port\": 8080}]}")]}"
  asks "$1" 10.233.64.99 server
}

# pod_state: all that a pod could leave on the node: network, namespaces, addresses in use, cached results.
pod_state() {
  lab_snapshot node1
  lab_in node1 find /run/netns /var/lib/cni -type f ! -name 'last_reserved_ip.*' ! -name lock
}

# ---- runtimes with the CRI ------------------------------------------------------------------------------------------

# cri_at SOCKET: where crictl finds the runtime.
cri_at() {
  printf 'runtime-endpoint: unix://%s\ntimeout: 30\n' "$1" | lab_in node1 tee /etc/crictl.yaml >/dev/null
}

cri() { lab_in node1 "$CRICTL/crictl" "$@"; }

enter() { cri exec --sync "$@"; }

ready() { [ "$(cri info 2>/dev/null | jq '[.status.conditions[].status] | all')" = true ]; }

# container SANDBOX NAME: a container in the sandbox NAME, whose description is in /run/NAME.json; prints its id.
container() {
  local id
  jq -n --arg source "$LAB_SOURCE" '{
    metadata: {name: "container"}, image: {image: "localhost/lab:1"}, linux: {},
    mounts: ["/usr", $source | {host_path: ., container_path: ., readonly: true}]
  }' | lab_in node1 tee "/run/$2.container.json" >/dev/null
  id=$(cri create "$1" "/run/$2.container.json" "/run/$2.json") && cri start "$id" >/dev/null && printf '%s\n' "$id"
}

remove() {
  cri stopp "$1" >/dev/null && cri rmp "$1" >/dev/null
}

# cri_clean: for a teardown. The next test finds no sandbox and no balancer, whatever became of this one's.
cri_clean() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  local pod
  for pod in $(cri pods --quiet); do remove "$pod" || :; done
  lab_lb node1 unload 2>/dev/null || :
}

# node_state: the same as pod_state, with the sandboxes and cgroups that there are.
node_state() {
  pod_state
  cri pods --quiet
  lab_in node1 find /sys/fs/cgroup -type d
}
