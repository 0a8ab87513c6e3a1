# Part of the lab (see lab.bash): pods whose eth0 comes from an overlay plugin. Node N's overlay pods have the addresses
# 10.233.N.10 and up, fd00:233::N:10 and up; the nodes route these blocks to each other.

# lab_overlay_pod NODE POD calico|cilium|flannel|terway [FAMILIES]: a sandbox with an eth0 as that plugin leaves it (4, 6 or 46).
lab_overlay_pod() {
  local node=$1 pod=$2 kind=$3 families=${4:-46} number
  lab_overlay_routes "$node"
  lab_sandbox "$node" "$pod"
  number=$((10 + $(find "$LAB/host/$node/pod" -name overlay | wc -l)))
  printf '%s\n' "$kind" >"$LAB/host/$node/pod/$pod/overlay"
  "lab_overlay_$kind" "$node" "$pod" "$families" "$number"
}

# The other nodes' blocks are reached through the other nodes, as Calico's BGP or Flannel's host-gw do it.
lab_overlay_routes() {
  local node=$1 other number
  [ ! -e "$LAB/host/$node/overlay" ] || return 0
  : >"$LAB/host/$node/overlay"
  for other in $(lab_nodes); do
    [ "$other" != "$node" ] || continue
    number=${other#node}
    lab_in "$node" ip route add "10.233.$number.0/24" via "10.6.212.$((100 + number))" proto 80
    lab_in "$node" ip -6 route add "fd00:233::$number:0/112" via "fd00:6::$((100 + number))" proto 80
    lab_overlay_routes "$other"
  done
}

# lab_overlay_veth NODE POD HOST_END: the pod's eth0 with its other end on the node, both up.
lab_overlay_veth() {
  local pid
  read -r pid <"$LAB/host/$1/pid"
  lab_in "$1/$2" ip link add eth0 type veth peer name "$3" netns "$LAB/proc/$pid/ns/net"
  lab_in "$1/$2" ip link set eth0 up
  lab_in "$1" ip link set "$3" up
}

# lab_overlay_point NODE POD HOST_END NUMBER FAMILY GATEWAY [WORD...]: a /32 or /128 in the pod, everything by way of a
# gateway that is on the link, with more words for its default route, and the node's route to the pod.
lab_overlay_point() {
  local address length=32
  case $5 in
    4) address="10.233.${1#node}.$4" ;;
    6) address="fd00:233::${1#node}:$4" length=128 ;;
  esac
  lab_in "$1/$2" ip "-$5" address add "$address/$length" dev eth0
  case "$6 ${*:7}" in
    fe80:* | *onlink*) ;;
    *) lab_in "$1/$2" ip "-$5" route add "$6/$length" dev eth0 scope link ;;
  esac
  lab_in "$1/$2" ip "-$5" route add default via "$6" dev eth0 "${@:7}"
  lab_in "$1" ip "-$5" route add "$address/$length" dev "$3" scope link
}

# Calico: the gateway 169.254.1.1 is nobody's address, the node's end answers for it (proxy ARP); for IPv6 it is that
# end's link-local address, which follows from the MAC that all of Calico's host ends share.
lab_overlay_calico() {
  local node=$1 pod=$2 end="${5-cali}$4"
  lab_overlay_veth "$node" "$pod" "$end"
  lab_in "$node" ip link set "$end" address ee:ee:ee:ee:ee:ee
  lab_in "$node" sysctl -qw "net.ipv4.conf.$end.proxy_arp=1" "net.ipv4.neigh.$end.proxy_delay=0"
  lab_in "$node" ip address add fe80::ecee:eeff:feee:eeee/64 dev "$end" nodad 2>/dev/null || true
  [[ $3 != *4* ]] || lab_overlay_point "$node" "$pod" "$end" "$4" 4 169.254.1.1 "${@:6}"
  [[ $3 != *6* ]] || lab_overlay_point "$node" "$pod" "$end" "$4" 6 fe80::ecee:eeff:feee:eeee "${@:6}"
}

# Terway (policy_router_linux.go): as Calico's, but that no route says that the gateway is on the link.
lab_overlay_terway() {
  lab_overlay_calico "$@" hostcali onlink
}

# Cilium: the gateway is the node's address in the overlay, on cilium_host. (The real one answers ARP from eBPF.) The MTU of its
# tunnel is that of the pod's default route (RouteMTU), the link has the node's.
lab_overlay_cilium() {
  local node=$1 pod=$2 end="lxc$4" number=${1#node}
  if ! lab_in "$node" ip link show cilium_host >/dev/null 2>&1; then
    lab_in "$node" ip link add cilium_host type veth peer name cilium_net
    lab_in "$node" ip link set cilium_net up
    lab_in "$node" ip link set cilium_host up
    lab_in "$node" ip address add "10.233.$number.1/32" dev cilium_host
    lab_in "$node" ip address add "fd00:233::$number:1/128" dev cilium_host
  fi
  lab_overlay_veth "$node" "$pod" "$end"
  if [[ $3 == *4* ]]; then
    lab_in "$node" sysctl -qw "net.ipv4.conf.$end.proxy_arp=1" "net.ipv4.neigh.$end.proxy_delay=0"
    lab_overlay_point "$node" "$pod" "$end" "$4" 4 "10.233.$number.1" mtu 1450
  fi
  if [[ $3 == *6* ]]; then
    lab_in "$node" sysctl -qw "net.ipv6.conf.$end.proxy_ndp=1" "net.ipv6.neigh.$end.proxy_delay=0"
    lab_in "$node" ip -6 neighbour add proxy "fd00:233::$number:1" dev "$end"
    lab_overlay_point "$node" "$pod" "$end" "$4" 6 "fd00:233::$number:1" mtu 1450
  fi
}

# Flannel: a bridge on the node with the block's first address, and pods on it. Each port is in hairpin mode, so that a pod
# reaches itself through a Service (`hairpinMode` in Flannel's own CNI configuration).
lab_overlay_flannel() {
  local node=$1 pod=$2 end="veth$4" number=${1#node}
  if ! lab_in "$node" ip link show cni0 >/dev/null 2>&1; then
    lab_in "$node" ip link add cni0 type bridge
    lab_in "$node" ip link set cni0 up
    lab_in "$node" ip address add "10.233.$number.1/24" dev cni0
    lab_in "$node" ip address add "fd00:233::$number:1/112" dev cni0
  fi
  lab_overlay_veth "$node" "$pod" "$end"
  lab_in "$node" ip link set "$end" master cni0
  lab_in "$node" ip link set "$end" type bridge_slave hairpin on
  if [[ $3 == *4* ]]; then
    lab_in "$node/$pod" ip address add "10.233.$number.$4/24" dev eth0
    lab_in "$node/$pod" ip route add default via "10.233.$number.1"
  fi
  if [[ $3 == *6* ]]; then
    lab_in "$node/$pod" ip address add "fd00:233::$number:$4/112" dev eth0
    lab_in "$node/$pod" ip -6 route add default via "fd00:233::$number:1"
  fi
}

# lab_nat_outgoing NODE: what an overlay pod sends out of the overlay gets the node's address as source, as Calico's
# natOutgoing does it. Without it the answer to an overlay pod on another node takes another way than the question, and
# kube-proxy's rules drop it as invalid.
lab_nat_outgoing() {
  lab_in "$1" nft -f - <<'EOF'
table inet nat-outgoing {
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr 10.233.0.0/18 ip daddr != 10.233.0.0/18 masquerade
    ip6 saddr fd00:233::/48 ip6 daddr != fd00:233::/48 masquerade
  }
}
EOF
}
