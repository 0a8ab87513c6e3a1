# Part of the lab (see lab.bash): the socket load balancer on a node, and processes that it serves.

# lab_balancer NODE [LOAD OPTION...]: loads it for the processes that lab_served starts there.
lab_balancer() {
  local node=$1
  shift
  lab_cgroup "$node" >"$LAB/host/$node/cgroup" || return
  lab_reload "$node" "$@"
}

# lab_reload NODE [LOAD OPTION...]: loads it again.
lab_reload() {
  local node=$1
  shift
  lab_lb "$node" load --cgroup "$(<"$LAB/host/$node/cgroup")" "$@"
}

# lab_lb NODE ARGUMENT...: bpf-lb-load on a node. Each node has a BPF file system of its own.
lab_lb() {
  local node=$1
  shift
  lab_in "$node" "$(lab_lb_program)" "$@"
}

lab_lb_program() {
  printf '%s\n' "${BPF_LB_LOAD:-$LAB_REPO/target/release/bpf-lb-load}"
}

# lab_served NODE[/POD] COMMAND...: runs a command, as lab_in does, in the cgroup that the load balancer is attached to.
lab_served() {
  local where=$1
  shift
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "$where" sh -c 'printf "0\n" >"$0/cgroup.procs" && exec "$@"' "$(<"$LAB/host/${where%%/*}/cgroup")" "$@"
}

# lab_sockets NODE[/POD] [ARGUMENT...]: runs the Python program on stdin there, with the names of sockets.py.
lab_sockets() {
  local where=$1
  shift
  { printf 'from sockets import *\n' && cat; } |
    lab_served "$where" env PYTHONPATH="$LAB_SOURCE" PYTHONDONTWRITEBYTECODE=1 timeout "${LAB_TIMEOUT:-60}" /usr/bin/python3 - "$@"
}

# lab_lb_services NODE: gives the load balancer there the Services that lab_service made.
lab_lb_services() {
  jq -c --arg node "$1" '
    {services: [.[] as $service | $service.protocols[] | {
      namespace: "lab", name: $service.name, portName: ascii_downcase, protocol: ., port: $service.port,
      clusterIps: $service.ips,
      backends: [$service.backends[] | . as $backend | .ips[] | {address: ., port: $backend.port, local: ($backend.node == $node)}]
    }]}' "$LAB/services.json" | lab_lb "$1" apply >/dev/null
}
