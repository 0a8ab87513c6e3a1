# Part of the lab (see lab.bash): pods, and the CNI calls that connect them.

# lab_network_config NODE NAME FAMILIES COORDINATOR [MASTER]: writes the node's CNI configuration for a network. FAMILIES
# is 4, 6 or 46; COORDINATOR the configuration of our plugin as JSON without "type" ('' leaves our plugin out); MASTER the
# node's NIC for macvlan (eth0). Pod addresses of network K on node N are 10.6.(10N+K).0/24 and fd00:6::N:K:0/112.
lab_network_config() {
  local node=$1 name=$2 families=$3 coordinator=$4 master=${5:-eth0} number
  local directory="$LAB/host/$node/networks"
  mkdir -p "$directory"
  [ -e "$directory/$name" ] || printf '%s\n' "$(find "$directory" -type f | wc -l)" >"$directory/$name"
  read -r number <"$directory/$name"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_network_json "$name" "$families" "$coordinator" "$master" "${node#node}" "$number" |
    lab_in "$node" sh -c 'mkdir -p /etc/cni/net.d && cat >"/etc/cni/net.d/$0.conflist"' "$name"
}

# The conflist itself. The network's second octet follows from the NIC: 6 behind eth0, 7 behind eth1.
lab_network_json() {
  jq -n --arg name "$1" --arg families "$2" --argjson coordinator "${3:-null}" --arg master "$4" \
    --argjson node "$5" --argjson number "$6" --arg version "${LAB_CNI_VERSION:-1.0.0}" '
    ($master | ltrimstr("eth") | tonumber + 6) as $net
    | "10.\($net).\($node * 10 + $number)" as $v4
    | "fd00:\($net)::\($node):\($number)" as $v6
    | {
        "4": {
          range: {subnet: "10.\($net).0.0/16", rangeStart: "\($v4).1", rangeEnd: "\($v4).254", gateway: "10.\($net).0.1"},
          route: {dst: "0.0.0.0/0"}
        },
        "6": {
          range: {subnet: "fd00:\($net)::/64", rangeStart: "\($v6):1", rangeEnd: "\($v6):ffff", gateway: "fd00:\($net)::1"},
          route: {dst: "::/0"}
        }
      } as $known
    | [$families | split("") | .[] | $known[.]] as $chosen
    | {
        cniVersion: $version, name: $name, plugins: ([{
          type: "macvlan", master: $master, mode: "bridge",
          ipam: {type: "host-local", ranges: [$chosen[] | [.range]], routes: [$chosen[].route]}
        }] + if $coordinator then [{type: "coordinator"} + $coordinator] else [] end)
      }'
}

# The CIDRs of the lab's cluster, as our plugin is told them, for the families 4, 6 or 46.
lab_coordinator_json() {
  jq -nc --arg families "$1" '
    {
      "4": {service: "10.233.64.0/18", overlay: "10.233.0.0/18"},
      "6": {service: "fd00:233:64::/108", overlay: "fd00:233::/48"}
    } as $known
    | [$families | split("") | .[] | $known[.]]
    | {mode: "auto", serviceCIDR: map(.service), overlayPodCIDR: map(.overlay)}'
}

# The networks that need no lab_network_config: plain4, plain6 and plain46 (macvlan alone), underlay4, underlay6 and
# underlay46 (macvlan, then our plugin).
lab_known_network() {
  local families=${2##*[a-z]}
  [ ! -e "$LAB/host/$1/networks/$2" ] || return 0
  case $2 in
    plain4 | plain6 | plain46) lab_network_config "$1" "$2" "$families" '' ;;
    underlay4 | underlay6 | underlay46) lab_network_config "$1" "$2" "$families" "$(lab_coordinator_json "$families")" ;;
  esac
}

# lab_sandbox NODE POD: what a container runtime makes before it calls CNI: a network namespace with lo up. The lab turns
# duplicate address detection off, which costs a second and a half for each pod; LAB_DAD=1 leaves it on.
lab_sandbox() {
  lab_in "$1" ip netns add "$2"
  mkdir -p "$LAB/host/$1/pod/$2"
  lab_in "$1/$2" sysctl -qw "net.ipv6.conf.default.accept_dad=${LAB_DAD:-0}"
  lab_in "$1/$2" ip link set lo up
}

# lab_cnitool NODE COMMAND NETWORK POD [IFNAME]: one CNI call through the whole chain. COMMAND is add, check, del, gc or
# status.
lab_cnitool() {
  lab_known_network "$1" "$3"
  lab_in "$1" env CNI_PATH="$(lab_cni_path)" CNI_IFNAME="${5:-eth0}" CNI_ARGS="${LAB_CNI_ARGS-}" NETCONFPATH=/etc/cni/net.d \
    UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB/bin/cnitool" "$2" "$3" "/run/netns/$4"
}

# Where the runtime finds plugins: ours, then newer ones than the distribution's when LAB_CNI_PLUGINS says so.
lab_cni_path() {
  printf '%s\n' "$LAB/bin:${LAB_CNI_PLUGINS:-/usr/lib/cni}"
}

# Where our plugin finds its tools.
lab_libexec() {
  printf '%s\n' "${UNDERPASS_LIBEXEC:-$LAB_REPO/target/release}"
}

# lab_pod NODE POD NETWORK [IFNAME]: a pod with one NIC. The CNI result stays in $LAB/host/NODE/pod/POD/IFNAME.json.
lab_pod() {
  lab_sandbox "$1" "$2"
  lab_attach "$@"
}

# lab_attach NODE POD NETWORK [IFNAME]: a NIC for a pod that exists.
lab_attach() {
  lab_cnitool "$1" add "$3" "$2" "${4:-eth0}" >"$LAB/host/$1/pod/$2/${4:-eth0}.json"
}

# lab_pod_delete NODE POD NETWORK [IFNAME]: CNI DEL, then the end of the sandbox.
lab_pod_delete() {
  lab_cnitool "$1" del "$3" "$2" "${4:-eth0}"
  lab_in "$1" ip netns delete "$2"
  rm -r "$LAB/host/$1/pod/$2"
}

# lab_address HOST[/POD] 4|6 [IFNAME]: the global address there.
lab_address() {
  local address=
  read -r _ _ _ address _ < <(lab_in "$1" ip -oneline "-$2" address show dev "${3:-eth0}" scope global)
  [ -n "$address" ] && printf '%s\n' "${address%/*}"
}

# lab_plugin NODE PLUGIN COMMAND POD IFNAME [VARIABLE=VALUE...] <configuration: one call of one plugin, by hand, as the
# CNI specification describes it, with container id "lab-POD". Leaves stdout, stderr and exit status in lab_stdout, lab_stderr
# and lab_status, and fails only when stdout is neither empty nor exactly one JSON document.
lab_plugin() {
  local node=$1 plugin=$2 command=$3 pod=$4 ifname=$5
  local path output="$LAB/plugin.stdout" errors="$LAB/plugin.stderr"
  shift 5
  path=$(lab_cni_path)
  lab_status=0
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "$node" env CNI_COMMAND="$command" CNI_CONTAINERID="lab-$pod" CNI_NETNS="/run/netns/$pod" CNI_IFNAME="$ifname" \
    CNI_PATH="$path" UNDERPASS_LIBEXEC="$(lab_libexec)" "$@" \
    sh -c 'PATH="$CNI_PATH:$PATH"; exec "$(command -v "$0")"' "$plugin" >"$output" 2>"$errors" || lab_status=$?
  lab_stdout=$(cat "$output") lab_stderr=$(cat "$errors")
  export lab_stdout lab_stderr lab_status
  [ ! -s "$output" ] || [ "$(jq -s length "$output" 2>/dev/null)" = 1 ] ||
    lab_fail "$plugin $command printed something that is not one JSON document: $lab_stdout"
}

# lab_chained NODE POD NETWORK [IFNAME]: the configuration that a runtime gives our plugin on a network, after the plugins
# before it have made the NIC (lab_pod NODE POD plain...), for lab_plugin.
lab_chained() {
  lab_known_network "$1" "$3"
  lab_in "$1" cat "/etc/cni/net.d/$3.conflist" |
    jq -c --slurpfile result "$LAB/host/$1/pod/$2/${4:-eth0}.json" '.plugins[-1] + {name, cniVersion, prevResult: $result[0]}'
}
