# Part of the cluster (see cluster.bash): what a node has in /opt/cni/bin and /etc/cni before Underpass comes.

# cluster_networks NODE: Multus is all that containerd sees; the cluster's default network is CLUSTER_NETWORK, by default
# an overlay, a bridge on each node with routes between them. host-local's ranges belong to a node, so each has files of its own:
#   overlay   a bridge
#   plain     macvlan alone
#   underlay  macvlan, then our plugin with the CIDRs of the lab, then host ports
#   followed  macvlan, then our plugin without CIDRs: those that the node agent finds
cluster_networks() {
  local node=$1 number=${1#node} other tools
  tools=$("$LAB_REPO/tests/tools/build" --where multus) || return
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "$node" sh -c 'cp -s /usr/lib/cni/* "$0/multus" /opt/cni/bin' "$tools" || return
  jq -n --arg kubeconfig "$LAB/kubernetes/multus.conf" --arg network "${CLUSTER_NETWORK:-overlay}" '{
    cniVersion: "1.0.0", name: "multus", type: "multus", kubeconfig: $kubeconfig, confDir: "/etc/cni/multus.d",
    cniDir: "/var/lib/cni/multus", binDir: "/opt/cni/bin", clusterNetwork: $network, capabilities: {portMappings: true}
  }' | lab_in "$node" tee /etc/cni/net.d/00-multus.conf >/dev/null
  jq -n --arg n "$number" '{
    cniVersion: "1.0.0", name: "overlay", plugins: [{
      type: "bridge", bridge: "cni0", isGateway: true, isDefaultGateway: true, hairpinMode: true,
      ipam: {type: "host-local", ranges: [[{subnet: "10.233.\($n).0/24"}], [{subnet: "fd00:233::\($n):0/112"}]]}
    }, {type: "portmap", capabilities: {portMappings: true}}]
  }' | cluster_network "$node" overlay
  lab_network_json plain 46 '' eth0 "$number" 1 | cluster_network "$node" plain
  lab_network_json underlay 46 "$(lab_coordinator_json 46)" eth0 "$number" 0 |
    jq '.plugins += [{type: "portmap", capabilities: {portMappings: true}}]' | cluster_network "$node" underlay
  lab_network_json followed 46 '{"mode": "auto"}' eth0 "$number" 2 | cluster_network "$node" followed
  for other in $(lab_nodes); do
    [ "$other" != "$node" ] || continue
    cluster_overlay_route "$node" "$other"
  done
  lab_nat_outgoing "$node"
}

# cluster_overlay_route HOST NODE: that host's way to the overlay pods of the node.
cluster_overlay_route() {
  local number=${2#node}
  lab_in "$1" ip route replace "10.233.$number.0/24" via "10.6.212.$((100 + number))"
  lab_in "$1" ip -6 route replace "fd00:233::$number:0/112" via "fd00:6::$((100 + number))"
}

# cluster_network NODE NAME <CONFLIST
cluster_network() {
  lab_in "$1" tee "/etc/cni/multus.d/$2.conflist" >/dev/null
}
