# A small data centre made of network namespaces. Source this file; every function that it and the files beside it define
# starts with lab_.
#
# Everything lives in one pid namespace and one private mount namespace of the lab's own, whose first process is the lab's
# root: when that is killed, the kernel removes every process, link, rule and mount of the lab. Nothing is ever created
# in the namespaces of the machine, so nothing can be left there, and labs run side by side without knowing of each other.
#
# A "host" (fabric, gateway, client, node1, ...) is a process with a network, mount and UTS namespace of its own. Its
# /run and /sys/fs/bpf are fresh, its /etc, /opt and /var/lib are the machine's with whatever it writes kept for itself.
#
# LAB, the lab's directory, is the only state; it is exported, so bats' setup_file can bring up what its tests share.

LAB_SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LAB_REPO=$(cd "$LAB_SOURCE/../.." && pwd)
# What names of a lab begin with: its directory, its processes' titles, its cgroups.
LAB_PREFIX=${LAB_PREFIX:-underpass-lab}

# shellcheck source=pods.bash
source "$LAB_SOURCE/pods.bash"
# shellcheck source=overlay.bash
source "$LAB_SOURCE/overlay.bash"
# shellcheck source=services.bash
source "$LAB_SOURCE/services.bash"
# shellcheck source=kubernetes.bash
source "$LAB_SOURCE/kubernetes.bash"
# shellcheck source=balancer.bash
source "$LAB_SOURCE/balancer.bash"
# shellcheck source=observe.bash
source "$LAB_SOURCE/observe.bash"

lab_fail() {
  printf 'lab: %s\n' "$*" >&2
  return 1
}

# lab_require: prints what is missing for a lab, and fails then.
lab_require() {
  local program
  if [ "$(id -u)" != 0 ]; then
    printf 'the lab needs root (network namespaces)\n'
    return 1
  fi
  for program in ip unshare nsenter nft iptables-restore tcpdump jq /usr/lib/cni/macvlan /usr/bin/python3; do
    if ! command -v "$program" >/dev/null; then
      printf 'the lab needs %s: run scripts/setup\n' "$program"
      return 1
    fi
  done
}

# lab_up [NODES]: the fabric with its gateway and client, and nodes (two by default) on it. With LAB_KEEP set the lab
# outlives the shell that made it; else it goes when that shell does, and after LAB_LIFETIME seconds (1800) in any case.
lab_up() {
  local number client hosts=(fabric gateway client)
  LAB=$(mktemp -d "${TMPDIR:-/tmp}/$LAB_PREFIX.XXXXXX")
  export LAB
  mkdir "$LAB/host" "$LAB/proc" "$LAB/pid" "$LAB/ready" "$LAB/log" "$LAB/bin"
  ln -s "$LAB_REPO/scripts/coordinator" "$LAB/bin/coordinator"
  # The CNI project's own client, or without Go the lab's.
  client=$("$LAB_REPO/tests/tools/build" --where cnitool 2>/dev/null) && client+=/cnitool || client=$LAB_SOURCE/cni-client
  ln -s "$client" "$LAB/bin/cnitool"
  lab_root
  [ -n "${LAB_KEEP-}" ] || lab_watch
  for ((number = 1; number <= ${1:-2}; number++)); do hosts+=("node$number"); done
  lab_host "${hosts[@]}"
  lab_in fabric sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 2>/dev/null || true
  lab_in gateway sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  for host in "${hosts[@]:3}"; do lab_node_sysctls "$host"; done
  lab_network 6 eth0
}

# The lab's first process. It keeps the machine's /proc at $LAB/proc, where a process of the lab reads its outer pid.
lab_root() {
  mkfifo "$LAB/ready/root"
  # shellcheck disable=SC2016 # expanded by the inner shell
  unshare --mount --pid --fork --propagation private bash -c '
    read -r pid _ </proc/self/stat
    mount --bind /proc "$LAB/proc"
    mount -t proc proc /proc
    printf "%s\n" "$pid" >"$LAB/ready/root"
    exec -a "$0" sleep infinity
  ' "$LAB_PREFIX ${LAB##*.} root" </dev/null >>"$LAB/log/root" 2>&1 3>&- &
  disown
  lab_await root >"$LAB/root"
}

# lab_await NAME: the outer pid of a process that was just started, which it writes to the fifo $LAB/ready/NAME.
lab_await() {
  local pid
  read -r -t 10 pid <>"$LAB/ready/$1" || lab_fail "$1 did not start: $(cat "$LAB/log/$1")" || return
  printf '%s\n' "$pid"
}

# Ends the lab when the shell that owns it is gone, or the lab is too old.
lab_watch() {
  (
    end=$((SECONDS + ${LAB_LIFETIME:-1800}))
    while [ -d "/proc/$$" ] && [ -d "$LAB" ] && [ $SECONDS -lt $end ]; do sleep 1; done
    lab_down
  ) </dev/null >/dev/null 2>&1 3>&- &
  disown
}

# lab_down: ends every process of the lab and removes its directory. Safe to call twice, and without a lab.
lab_down() {
  local root cgroup file
  [ -d "${LAB-}" ] || return 0
  read -r root <"$LAB/root" || root=
  if [ -n "$root" ]; then
    # Whoever is paused does not see its program's end, for which the kernel waits.
    for file in "$LAB"/pid/*; do lab_resume "${file##*/}" 2>/dev/null || :; done
    kill -KILL "$root" 2>/dev/null || true
    while [ -d "/proc/$root" ]; do sleep 0.02; done
  fi
  [ ! -e "$LAB/cgroups" ] || while read -r cgroup; do
    lab_until 5 lab_remove_cgroup "$cgroup" || lab_fail "left: $cgroup" || :
  done <"$LAB/cgroups"
  rm -rf --one-file-system "$LAB"
}

# lab_remove_cgroup DIRECTORY: with those that were made in it. What has just been killed may still be in one.
lab_remove_cgroup() {
  find "$1" -depth -type d -exec rmdir {} \; 2>/dev/null
  [ ! -d "$1" ]
}

# lab_leaks: whatever is there of any lab with this LAB_PREFIX, one a line; nothing when all are gone.
lab_leaks() {
  local file title
  for file in /proc/[0-9]*/cmdline; do
    IFS= read -r -d '' title 2>/dev/null <"$file" || continue
    [[ $title != "$LAB_PREFIX "* ]] || printf 'process %s: %s\n' "${file//[!0-9]/}" "$title"
  done
  find "${TMPDIR:-/tmp}" -maxdepth 1 -name "$LAB_PREFIX.*"
  find "$(lab_cgroup_mount)" -maxdepth 1 -name "$LAB_PREFIX-*"
}

# lab_host NAME...: new hosts, started side by side.
lab_host() {
  local host root
  read -r root <"$LAB/root"
  for host in "$@"; do
    mkdir "$LAB/host/$host"
    mkfifo "$LAB/ready/host-$host"
    nsenter --target "$root" --mount --pid unshare --net --mount --uts --propagation private \
      bash "$LAB_SOURCE/host" "$LAB" "$host" "$LAB_PREFIX ${LAB##*.} $host" </dev/null >>"$LAB/log/host-$host" 2>&1 3>&- &
    disown
  done
  for host in "$@"; do lab_await "host-$host" >"$LAB/host/$host/pid"; done
}

# lab_in HOST[/POD] COMMAND...: runs a command on a host, or on it but in the network namespace of one of its pods.
lab_in() {
  local host=${1%%/*} pid net
  read -r pid <"$LAB/host/$host/pid" || lab_fail "no such host: $host" || return
  net="/proc/$pid/ns/net"
  [ "$1" = "$host" ] || net="/proc/$pid/root/run/netns/${1#*/}"
  shift
  nsenter --target "$pid" --mount --uts --pid --net="$net" -- "$@"
}

# lab_spawn NAME HOST[/POD] COMMAND...: the same in the background. Output goes to $LAB/log/NAME.
lab_spawn() {
  local name=$1 where=$2
  shift 2
  rm -f "$LAB/ready/$name"
  mkfifo "$LAB/ready/$name"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "$where" bash -c '
    read -r pid _ <"$LAB/proc/self/stat"
    printf "%s\n" "$pid" >"$0"
    exec "$@"
  ' "$LAB/ready/$name" "$@" </dev/null >"$LAB/log/$name" 2>&1 3>&- &
  disown
  lab_await "$name" >"$LAB/pid/$name" || { rm "$LAB/pid/$name"; return 1; }
  rm "$LAB/ready/$name"
}

# lab_stop NAME [SIGNAL]: ends what lab_spawn started, and waits for its end. Fails if it has to be killed: whoever works for it may
# be left then.
lab_stop() {
  local pid
  read -r pid <"$LAB/pid/$1"
  rm "$LAB/pid/$1"
  kill -"${2:-TERM}" "$pid" 2>/dev/null || true
  lab_until 30 test ! -d "/proc/$pid" && return
  kill -KILL "$pid" 2>/dev/null || true
  lab_fail "$1 did not end by SIG${2:-TERM}"
}

# lab_pause NAME...: stops what lab_spawn started, until lab_resume. nsenter, which runs it, then stops itself.
lab_pause() {
  local name
  for name; do kill -STOP "$(<"$LAB/pid/$name")"; done
}

# lab_resume NAME...
lab_resume() {
  local name pid
  for name; do
    read -r pid <"$LAB/pid/$name" || return
    kill -CONT "$pid" "$(ps -o ppid= -p "$pid" | tr -d ' ')"
  done
}

# lab_until SECONDS COMMAND...: repeats a command until it succeeds; the longer that takes, the less often, for a look costs more of
# the processor than most of what is waited for.
lab_until() {
  local begin=${EPOCHREALTIME/./} limit=$(($1 * 1000000)) waited pause
  shift
  until "$@"; do
    waited=$((${EPOCHREALTIME/./} - begin))
    [ "$waited" -lt "$limit" ] || return 1
    pause=$((waited / 8))
    [ $pause -gt 50000 ] || pause=50000
    [ $pause -lt 500000 ] || pause=500000
    printf -v pause '0.%06d' $pause
    sleep "$pause"
  done
}

# lab_nodes: the names of the nodes.
lab_nodes() {
  local node
  for node in "$LAB"/host/node*; do printf '%s\n' "${node##*/}"; done
}

# What kubeadm's preflight checks and common distributions set on a node.
lab_node_sysctls() {
  lab_in "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  lab_in "$1" sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1 2>/dev/null || true
}

# lab_network NUMBER NIC: a layer-2 network 10.NUMBER.0.0/16, fd00:NUMBER::/64, whose router is the gateway at .1, with the
# client at .50, and every node at 10.NUMBER.212.10x on its NIC. The first one is everybody's default route.
lab_network() {
  local number=$1 nic=$2 node
  lab_in fabric ip link add "net$number" type bridge
  lab_in fabric ip link set "net$number" up
  lab_plug gateway "net$number" "$number" 0.1 1
  lab_plug client "$nic" "$number" 0.50 50
  for node in $(lab_nodes); do
    lab_plug "$node" "$nic" "$number" "212.$((100 + ${node#node}))" "$((100 + ${node#node}))"
  done
}

# lab_plug HOST NIC NUMBER IPV4_REST IPV6_REST: a cable from a host to a network, with addresses.
lab_plug() {
  local host=$1 nic=$2 number=$3 pid port
  read -r pid <"$LAB/host/$host/pid"
  port="$host.$number"
  lab_in fabric ip link add "$port" type veth peer name "$nic" netns "$LAB/proc/$pid/ns/net"
  lab_in fabric ip link set "$port" master "net$number" up
  lab_in "$host" ip link set "$nic" up
  lab_in "$host" ip address add "10.$number.$4/16" dev "$nic"
  lab_in "$host" ip address add "fd00:$number::$5/64" dev "$nic" nodad
  [ "$host" != gateway ] || return 0
  lab_in "$host" ip route add default via "10.$number.0.1" 2>/dev/null || true
  lab_in "$host" ip -6 route add default via "fd00:$number::1" 2>/dev/null || true
}

# lab_cgroup_mount: where the machine has its cgroup v2 hierarchy, alone or beside v1.
lab_cgroup_mount() {
  local mount
  mount=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) || lab_fail 'no cgroup v2 mount' || return
  printf '%s\n' "$mount"
}

# lab_cgroup NAME: a cgroup of the lab's own, removed with it. Prints its path.
lab_cgroup() {
  local cgroup
  cgroup=$(lab_cgroup_mount)/$LAB_PREFIX-${LAB##*.}-$1 || return
  mkdir "$cgroup"
  # Removed from the last to the first.
  touch "$LAB/cgroups"
  { printf '%s\n' "$cgroup" && cat "$LAB/cgroups"; } >"$LAB/cgroups.new"
  mv "$LAB/cgroups.new" "$LAB/cgroups"
  printf '%s\n' "$cgroup"
}
