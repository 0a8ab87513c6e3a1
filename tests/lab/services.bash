# Part of the lab (see lab.bash): Services. lab_service works the same with either of two providers:
#   rules  the lab writes the iptables rules that kube-proxy would write (the default: no processes, 50 ms)
#   real   the lab creates Service and EndpointSlice objects, and real kube-proxies act on them (after lab_kube_proxy)

# lab_service NAME PORT:TARGET [OPTION...] BACKEND...: creates or replaces a Service on TCP and UDP. A BACKEND is NODE/POD,
# or NODE itself (host network). Its ClusterIPs are printed by lab_cluster_ip. OPTIONs:
#   --number N      the Service gets 10.233.64.N and fd00:233:64::N (by default, the next number that is free from 10)
#   --node-port P   also a NodePort
#   --local         externalTrafficPolicy: Local
lab_service() {
  local name=$1 port=${2%:*} target=${2#*:} number='' node_port=null local=false backends=()
  shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      --number) number=$2 && shift ;;
      --node-port) node_port=$2 && shift ;;
      --local) local=true ;;
      *) backends+=("$1") ;;
    esac
    shift
  done
  [ -e "$LAB/services.json" ] || printf '[]\n' >"$LAB/services.json"
  lab_backends "$target" ${backends[@]+"${backends[@]}"} |
    jq --slurpfile services "$LAB/services.json" --arg name "$name" --argjson port "$port" \
      --argjson node_port "$node_port" --argjson local "$local" --arg number "$number" '
      $services[0] as $all
      | (first($all[] | select(.name == $name).number) // (($all | map(.number) | max // 9) + 1)) as $free
      | (if $number == "" then $free else ($number | tonumber) end) as $n
      | ($all | map(select(.name != $name))) + [{
          name: $name, number: $n, ips: ["10.233.64.\($n)", "fd00:233:64::\($n)"], protocols: ["TCP", "UDP"],
          port: $port, nodePort: $node_port, local: $local, backends: .
        }]' >"$LAB/services.new"
  mv "$LAB/services.new" "$LAB/services.json"
  lab_provide
}

# The backends as JSON, with every global address that they have on eth0.
lab_backends() {
  local target=$1 backend
  shift
  for backend in "$@"; do
    lab_in "$backend" ip -json address show dev eth0 scope global |
      jq --arg node "${backend%%/*}" --argjson target "$target" \
        '{node: $node, ips: [.[0].addr_info[].local | strings], port: $target}'
  done | jq -s .
}

# lab_masquerade all|none|cluster: whose connections to a ClusterIP get the node's address as source. cluster (the default)
# spares those from the overlay pods' CIDRs, which is what most clusters have: pods of the underlay are masqueraded.
lab_masquerade() {
  printf '%s\n' "$1" >"$LAB/masquerade"
  if [ -e "$LAB/proxy" ]; then
    lab_kube_proxy "$(cat "$LAB/proxy")"
  else
    lab_provide
  fi
}

# lab_provide: makes the nodes translate what $LAB/services.json says. With LAB_HOLD set, it is put off until one is made
# without.
lab_provide() {
  [ -z "${LAB_HOLD-}" ] || return 0
  if [ -e "$LAB/proxy" ]; then
    lab_objects_apply
  else
    lab_rules_apply
  fi
}

lab_rules_apply() {
  local node
  [ -e "$LAB/services.json" ] || return 0
  for node in $(lab_nodes); do lab_rules "$node" "$node"; done
}

# lab_rules NODE HOST: writes on a host the rules that a node has for the Services.
lab_rules() {
  local masquerade=cluster
  [ ! -e "$LAB/masquerade" ] || read -r masquerade <"$LAB/masquerade"
  "$LAB_SOURCE/service-rules" 4 "$1" "${masquerade/cluster/10.233.0.0/18}" <"$LAB/services.json" |
    lab_in "$2" iptables-restore
  "$LAB_SOURCE/service-rules" 6 "$1" "${masquerade/cluster/fd00:233::/48}" <"$LAB/services.json" |
    lab_in "$2" ip6tables-restore
}

# lab_cluster_ip NAME 4|6: a Service's ClusterIP.
lab_cluster_ip() {
  jq -er --arg name "$1" --arg family "$2" \
    '.[] | select(.name == $name).ips[] | select(contains(":") == ($family == "6"))' "$LAB/services.json"
}
