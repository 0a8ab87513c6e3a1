# What a pod sees of what cannot be had: by the host path through a real kube-proxy, in iptables and in nftables mode, and by the socket
# path where there is no kube-proxy. Deliberate differences stand in bins/watch-services/README.md.

load helpers
load lb

setup_file() {
  local node
  suite_needs_lab && suite_needs_tools kubernetes etcd && lb_needs_program || return 0
  lab_up
  lab_kubernetes
  # So many refusals at once are more than a node tells one client of.
  for node in $(lab_nodes); do lab_in "$node" sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0; done
  lab_pod node2 backend underlay46
  lab_spawn backend node2/backend /usr/bin/python3 "$LAB_SOURCE/reach.py" serve 8080
  lab_until 10 grep -q serving "$LAB/log/backend"
  # Objects in the API, and no rules.
  LAB_HOLD=1 lab_service full 80:8080 --node-port 30080 --local node2/backend
  LAB_HOLD=1 lab_service near 80:8080 node2/backend
  LAB_HOLD=1 lab_service empty 80:8080 --node-port 30081
  lab_objects_write
  lab_kubectl patch service near --patch '{"spec": {"internalTrafficPolicy": "Local"}}' >/dev/null
  lab_pod node1 pod underlay46
  lab_balancer node1
}

# Each case, and what the pod sees of it: through kube-proxy in iptables mode, in nftables mode, and by the socket path alone. What is
# lost is not answered, or a router says that it knows no way.
CASES='a ClusterIP with endpoints|full 80|reached|reached|reached
a ClusterIP without endpoints|empty 80|refused|refused|refused
a ClusterIP that has no endpoints here, internalTrafficPolicy Local|near 80|lost|lost|refused
a port that no Service has, on a ClusterIP|full 81|lost|refused|refused
a ClusterIP that no Service has|none 80|lost|lost|lost
a node port without endpoints, on this node|node1 30081|refused|refused|refused
a node port without endpoints, on another node|node2 30081|refused|refused|refused
a node port without endpoints here, externalTrafficPolicy Local|node1 30080|lost|lost|reached
the same on the node that has the endpoint|node2 30080|reached|reached|reached
a node port that no Service has|node1 30082|refused|refused|refused'

# address NAME 4|6
address() {
  case $1 in
    node?) lab_address "$1" "$2" ;;
    none) [ "$2" = 4 ] && printf '10.233.65.99\n' || printf 'fd00:233:64::999\n' ;;
    *) lab_cluster_ip "$1" "$2" ;;
  esac
}

# each_frontend: the name of each case, and an address of it: in each family, over each protocol.
each_frontend() {
  local case where name port family protocol address
  while IFS='|' read -r case where _; do
    read -r name port <<<"$where"
    for family in 4 6; do
      address=$(address "$name" $family)
      [ $family = 4 ] || address="[$address]"
      for protocol in tcp udp; do printf '%s|%s %s:%s\n' "$case" $protocol "$address" "$port"; done
    done
  done <<<"$CASES"
}

# seen COLUMN WHO...: fails where the pod sees anything else than what that column of the table says. WHO runs what asks.
seen() {
  local column=$1 frontends
  shift
  frontends=$(each_frontend)
  # Linux hears only by its second SYN, after a second, that an IPv6 address refuses.
  expect 0 "$@" /usr/bin/python3 "$LAB_SOURCE/reach.py" ask 1 2.5 8 < <(cut -d'|' -f2 <<<"$frontends")
  assert_same "$(while IFS='|' read -r case where; do
    printf '%s: %s: %s\n' "$case" "$where" "$(grep -F "$case|" <<<"$CASES" | head -n 1 | cut -d'|' -f"$column")"
  done <<<"$frontends")" "$(while IFS='|' read -r case where; do
    printf '%s: %s: %s\n' "$case" "$where" "$(jq -r --arg where "$where" '.[$where] | if type == "array" then "reached" elif . == "refused" then . else "lost" end' <<<"$output")"
  done <<<"$frontends")"
}

@test "what cannot be had is refused by the socket path at once, where there is no kube-proxy" {
  lab_in node1 env KUBECONFIG="$LAB/kubernetes/admin.conf" "$(lab_libexec)/watch-services" --node node1 --all-node-ports |
    lab_lb node1 apply >/dev/null
  seen 5 lab_served node1/pod
}

@test "what cannot be had is seen by the host path as a real kube-proxy in iptables mode has it" {
  lab_kube_proxy iptables
  seen 3 lab_in node1/pod
}

@test "what cannot be had is seen by the host path as a real kube-proxy in nftables mode has it" {
  local node
  for node in $(lab_nodes); do
    lab_stop "kube-proxy-$node"
    # shellcheck disable=SC2016 # expanded by the inner shell
    lab_in "$node" sh -c 'for table in nat filter mangle; do
      iptables -t $table -F; iptables -t $table -X; ip6tables -t $table -F; ip6tables -t $table -X; done; conntrack -F 2>/dev/null || :'
  done
  lab_kube_proxy nftables
  seen 4 lab_in node1/pod
}
