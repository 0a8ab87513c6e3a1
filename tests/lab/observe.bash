# Part of the lab (see lab.bash): servers, clients, captures, sysctls, and what is left behind.

# lab_serve HOST[/POD] PORT [NAME]: a server on TCP and UDP, IPv4 and IPv6, that answers "NAME PEER_ADDRESS". NAME is the
# host or pod by default.
lab_serve() {
  local name=${3:-${1##*/}}
  lab_spawn "serve-$name-$2" "$1" "$LAB_SOURCE/identify" serve "$name" "$2"
  lab_until 5 grep -q ready "$LAB/log/serve-$name-$2" || lab_fail "no server on $1: $(cat "$LAB/log/serve-$name-$2")"
}

# lab_ask HOST[/POD] tcp|udp ADDRESS PORT [SECONDS] [SOURCE]: one question; prints the answer, or fails (within 1 s).
lab_ask() {
  local where=$1
  shift
  lab_in "$where" "$LAB_SOURCE/identify" ask "$@"
}

# lab_capture NAME HOST[/POD] NIC FILTER...: starts a capture. Once this returns, every packet is seen.
lab_capture() {
  local name=$1 where=$2 nic=$3
  shift 3
  lab_spawn "$name" "$where" tcpdump -nntel --immediate-mode -i "$nic" "$*"
  lab_until 5 grep -q 'listening on' "$LAB/log/$name" || lab_fail "no capture on $where: $(cat "$LAB/log/$name")"
}

# lab_captured NAME: ends a capture and prints a line for each packet.
lab_captured() {
  sleep 0.1 # what the kernel has already handed over must be printed first
  lab_stop "$1"
  sed '1,/listening on/d; /packets\? \(captured\|received by filter\|dropped by kernel\)$/d; /^$/d' "$LAB/log/$1"
}

# lab_rp_filter NODE VALUE: sets reverse path filtering for all interfaces, for those to come, and for each one there is.
lab_rp_filter() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "$1" sh -c 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do printf %s "$0" >"$f"; done' "$2"
}

# lab_snapshot HOST[/POD]: all network configuration there, and our files, as text that stays the same as long as they do.
lab_snapshot() {
  lab_in "$1" sh "$LAB_SOURCE/snapshot"
}
