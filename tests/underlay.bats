# A pod whose first NIC is a macvlan reaches Services through its node, and is reached. Every test runs on three pairs of
# nodes, whose rp_filter is 0, 1 and 2, over TCP and UDP, and over IPv4 and IPv6.

load helpers

# The pair for an rp_filter value: near node (where the pod is) and far node.
near() { printf 'node%d' $(($1 * 2 + 1)); }
far() { printf 'node%d' $(($1 * 2 + 2)); }

setup_file() {
  suite_lab 6 || return 0
  local rp node
  for rp in 0 1 2; do
    for node in "$(near $rp)" "$(far $rp)"; do
      lab_rp_filter "$node" $rp
      lab_pod "$node" backend underlay46
      lab_serve "$node/backend" 8080 "$node-backend"
      lab_serve "$node" 9090 "$node"
      lab_overlay_pod "$node" overlay calico
      lab_serve "$node/overlay" 8080 "$node-overlay"
    done
    lab_pod "$(near $rp)" pod underlay46
    lab_serve "$(near $rp)/pod" 8080 "$(near $rp)-pod"
    lab_service "far$rp" 80:8080 --node-port 3008$rp "$(far $rp)/backend"
    lab_service "near$rp" 80:8080 --node-port 3018$rp --local "$(near $rp)/backend"
    lab_service "self$rp" 80:8080 "$(near $rp)/pod"
    lab_service "overlay$rp" 80:8080 "$(far $rp)/overlay"
    lab_service "host$rp" 80:9090 "$(near $rp)" "$(far $rp)"
  done
}

# each CASE: calls CASE RP NEAR FAR FAMILY for every rp_filter value and IP family.
each() {
  local rp family
  for rp in 0 1 2; do
    for family in 4 6; do
      printf 'with rp_filter %s, IPv%s:\n' $rp $family
      "$1" $rp "$(near $rp)" "$(far $rp)" $family
    done
  done
}

@test "the nodes are as the suite says: rp_filter is 0, 1 and 2 on every interface, veths included" {
  local rp
  for rp in 0 1 2; do
    expect 0 lab_in "$(near $rp)" sh -c 'cat /proc/sys/net/ipv4/conf/*/rp_filter | sort -u'
    assert_equal "$output" $rp
  done
}

@test "the pod whose connections to a ClusterIP fail reaches it once our plugin's ADD has run" {
  local rp node
  for rp in 0 1 2; do
    node=$(near $rp)
    lab_pod "$node" twice plain46
    assert_no_answer "$node/twice" "$(lab_cluster_ip "far$rp" 4)" 80
    assert_no_answer "$node/twice" "$(lab_cluster_ip "far$rp" 6)" 80
    lab_plugin "$node" coordinator ADD twice eth0 < <(lab_chained "$node" twice underlay46)
    assert_equal "$lab_status" 0
    assert_answer "$node/twice" "$(lab_cluster_ip "far$rp" 4)" 80 "$(far $rp)-backend" "$(lab_address "$node" 4)"
    assert_answer "$node/twice" "$(lab_cluster_ip "far$rp" 6)" 80 "$(far $rp)-backend" "$(lab_address "$node" 6)"
  done
}

@test "a pod reaches a ClusterIP whose backend is on another node" {
  backend_far() {
    assert_answer "$2/pod" "$(lab_cluster_ip "far$1" "$4")" 80 "$3-backend" "$(lab_address "$2" "$4")"
  }
  each backend_far
}

@test "a pod reaches a ClusterIP whose backend is on its own node" {
  backend_near() {
    assert_answer "$2/pod" "$(lab_cluster_ip "near$1" "$4")" 80 "$2-backend" ''
  }
  each backend_near
}

@test "a pod reaches a ClusterIP whose backend is the pod itself" {
  backend_self() {
    assert_answer "$2/pod" "$(lab_cluster_ip "self$1" "$4")" 80 "$2-pod" ''
  }
  each backend_self
}

@test "a pod reaches a ClusterIP whose backends are the nodes themselves" {
  local seen address turn
  backend_host() {
    address=$(lab_cluster_ip "host$1" "$4")
    seen=$(for turn in {1..30}; do printf 'tcp %s 80 %s\n' "$address" "$turn"; done | lab_in "$2/pod" "$LAB_SOURCE/identify" each)
    assert_contains "$seen" "$2 "
    assert_contains "$seen" "$3 "
  }
  each backend_host
}

@test "a pod reaches a ClusterIP whose backend is an overlay pod on another node, and overlay pods of its own node" {
  overlay() {
    assert_answer "$2/pod" "$(lab_cluster_ip "overlay$1" "$4")" 80 "$3-overlay" "$(lab_address "$2" "$4")"
    assert_answer "$2/pod" "$(lab_address "$2/overlay" "$4")" 8080 "$2-overlay" "$(lab_address "$2/pod" "$4")"
    assert_answer "$2/overlay" "$(lab_address "$2/pod" "$4")" 8080 "$2-pod" "$(lab_address "$2/overlay" "$4")"
  }
  each overlay
}

@test "a pod and its own node reach each other, under their own addresses" {
  own_node() {
    assert_answer "$2/pod" "$(lab_address "$2" "$4")" 9090 "$2" "$(lab_address "$2/pod" "$4")"
    assert_answer "$2" "$(lab_address "$2/pod" "$4")" 8080 "$2-pod" "$(lab_address "$2" "$4")"
  }
  each own_node
}

@test "a pod and another node reach each other, under their own addresses" {
  other_node() {
    assert_answer "$2/pod" "$(lab_address "$3" "$4")" 9090 "$3" "$(lab_address "$2/pod" "$4")"
    assert_answer "$3" "$(lab_address "$2/pod" "$4")" 8080 "$2-pod" "$(lab_address "$3" "$4")"
  }
  each other_node
}

@test "a pod and a host of the data centre reach each other over the pod's own NIC, not through the node" {
  data_centre() {
    lab_capture veth "$2/pod" veth0 "port 8080 or port 9090"
    assert_answer client "$(lab_address "$2/pod" "$4")" 8080 "$2-pod" "$(lab_address client "$4")"
    assert_answer "$2/pod" "$(lab_address client "$4")" 9090 client "$(lab_address "$2/pod" "$4")"
    assert_equal "$(lab_captured veth)" ''
  }
  lab_serve client 9090
  each data_centre
}

@test "two pods of one node, and of two nodes, reach each other straight over the network" {
  pods() {
    lab_capture veth "$2/pod" veth0 port 8080
    assert_answer "$2/pod" "$(lab_address "$2/backend" "$4")" 8080 "$2-backend" "$(lab_address "$2/pod" "$4")"
    assert_answer "$2/pod" "$(lab_address "$3/backend" "$4")" 8080 "$3-backend" "$(lab_address "$2/pod" "$4")"
    assert_equal "$(lab_captured veth)" ''
  }
  each pods
}

@test "a NodePort connection whose client address is kept is answered, and its packets stay off the pod's own NIC" {
  node_port_local() {
    lab_capture eth0 "$2/backend" eth0 port 8080
    assert_answer client "$(lab_address "$2" "$4")" "3018$1" "$2-backend" "$(lab_address client "$4")"
    assert_equal "$(lab_captured eth0)" ''
  }
  each node_port_local
}

@test "a NodePort connection whose client address is replaced is answered, by way of either node" {
  node_port_cluster() {
    assert_answer client "$(lab_address "$2" "$4")" "3008$1" "$3-backend" "$(lab_address "$2" "$4")"
    assert_answer client "$(lab_address "$3" "$4")" "3008$1" "$3-backend" ''
  }
  each node_port_cluster
}

@test "a pod reaches a NodePort on its own node" {
  node_port_from_pod() {
    assert_answer "$2/pod" "$(lab_address "$2" "$4")" "3008$1" "$3-backend" ''
    assert_answer "$2/pod" "$(lab_address "$2" "$4")" "3018$1" "$2-backend" ''
  }
  each node_port_from_pod
}

@test "a pod with one IP family alone reaches Services and its node in it, and has nothing of the other" {
  local rp node family other
  for rp in 0 1 2; do
    node=$(near $rp)
    for family in 4 6; do
      other=$((10 - family))
      lab_pod "$node" "only$family" "underlay$family"
      assert_answer "$node/only$family" "$(lab_cluster_ip "far$rp" $family)" 80 "$(far $rp)-backend" ''
      assert_answer "$node/only$family" "$(lab_address "$node" $family)" 9090 "$node" "$(lab_address "$node/only$family" $family)"
      expect 0 lab_in "$node/only$family" ip "-$other" route show table all proto 85
      assert_equal "$output" ''
    done
  done
}

@test "a pod with duplicate address detection on, as runtimes leave it, reaches Services at once" {
  LAB_DAD=1 lab_pod node1 detection underlay46
  assert_answer node1/detection "$(lab_cluster_ip far0 6)" 80 node2-backend ''
  assert_answer node1/detection "$(lab_cluster_ip far0 4)" 80 node2-backend ''
}

@test "a megabyte goes to a Service and back, and a datagram that needs fragments arrives" {
  large() {
    expect 0 lab_in "$2/pod" "$LAB_SOURCE/identify" bulk "$(lab_cluster_ip "far$1" "$4")" 80
    assert_equal "$output" "1048576 bytes, 4000 in one datagram"
  }
  each large
}
