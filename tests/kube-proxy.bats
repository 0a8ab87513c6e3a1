# Real kube-proxies, fed by a real kube-apiserver: the lab's Services are what a cluster would have.

load helpers

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd || return 0
  lab_up
  lab_pod node2 pod plain46
  lab_overlay_pod node1 overlay calico
  lab_overlay_pod node2 overlay calico
  lab_serve node2/pod 8080
  lab_serve node1/overlay 8080 overlay1
  lab_serve node2/overlay 8080 overlay2
  lab_pod node1 under underlay46
  lab_pod node2 under underlay46
  lab_serve node2/under 8080 under2
  lab_kube_proxy
}

# Between an underlay pod and an overlay pod on another node, the underlay pod's node sees half of a connection.
halves_pass() {
  local family
  for family in 4 6; do
    assert_answer node1/under "$(lab_address node2/overlay $family)" 8080 overlay2 "$(lab_address node1/under $family)"
    assert_answer node1/overlay "$(lab_address node2/under $family)" 8080 under2 "$(lab_address node1/overlay $family)"
  done
}

@test "the API server has the Services, their EndpointSlices and the nodes" {
  lab_service api 80:8080 node2/pod
  expect 0 lab_kubectl get service api --output json
  assert_json "$output" .spec.clusterIPs "[\"$(lab_cluster_ip api 4)\",\"$(lab_cluster_ip api 6)\"]"
  expect 0 lab_kubectl get endpointslices --selector kubernetes.io/service-name=api --output json
  assert_json "$output" '[.items[].endpoints[].addresses[0]] | sort' \
    "[\"$(lab_address node2/pod 4)\",\"$(lab_address node2/pod 6)\"]"
  expect 0 lab_kubectl get nodes --output name
  assert_equal "$output" $'node/node1\nnode/node2'
}

@test "a node reaches a ClusterIP through the real kube-proxy's rules, over IPv4 and IPv6" {
  lab_service web 80:8080 node2/pod
  assert_answer node1 "$(lab_cluster_ip web 4)" 80 pod 10.6.212.101
  assert_answer node1 "$(lab_cluster_ip web 6)" 80 pod fd00:6::101
}

@test "a NodePort with externalTrafficPolicy Local keeps the client's address through the real kube-proxy's rules" {
  lab_service local 80:8080 --node-port 30080 --local node1/overlay
  assert_answer client 10.6.212.101 30080 overlay1 10.6.0.50
  assert_answer client fd00:6::101 30080 overlay1 fd00:6::50
  assert_no_answer client 10.6.212.102 30080
}

@test "a Service follows when its backends change" {
  lab_service moving 80:8080 node1/overlay
  assert_answer node1 "$(lab_cluster_ip moving 4)" 80 overlay1 ''
  lab_service moving 80:8080 node2/overlay
  assert_answer node1 "$(lab_cluster_ip moving 4)" 80 overlay2 ''
}

# The rules that Services make, with what differs by nature left out: comments, the API server's own Service.
service_rules() {
  { lab_in "$1" iptables-save && lab_in "$1" ip6tables-save; } |
    sed -n '/^-A/{s/ -m comment --comment "[^"]*"//; /^-A KUBE-\(SVC\|SVL\|SEP\|EXT\|MARK\|POST\|SERV\|NODE\|EXTERN\)/p}' |
    grep -v -e '10\.233\.64\.1/' -e '10\.6\.0\.10' -e NPX46M4PTMTKRN6Y | sort
}

@test "the lab's own rules for Services are exactly the real kube-proxy's, with each masquerade setting" {
  local masquerade node
  lab_service one 80:8080 node2/pod
  lab_service several 81:8080 node1/overlay node2/overlay node2/pod
  lab_service cluster 82:8080 --node-port 30082 node1/overlay node2/overlay
  lab_service local 83:8080 --node-port 30083 --local node1/overlay node2/overlay
  lab_service elsewhere 84:8080 --node-port 30084 --local node2/overlay
  lab_service empty 85:8080
  lab_host scratch
  for masquerade in cluster all none; do
    lab_masquerade "$masquerade"
    for node in node1 node2; do
      lab_rules "$node" scratch
      assert_same "$(service_rules "$node")" "$(service_rules scratch)"
    done
  done
}

@test "what a real kube-proxy calls invalid and drops is not what an underlay pod sends to an overlay pod on another node" {
  expect 0 lab_in node1 iptables-save
  assert_contains "$output" '-A KUBE-FORWARD -m conntrack --ctstate INVALID'
  halves_pass
}

@test "with kube-proxy in nftables mode a node reaches a ClusterIP too" {
  lab_service nft 80:8080 node2/pod
  lab_kube_proxy nftables
  assert_answer node1 "$(lab_cluster_ip nft 4)" 80 pod 10.6.212.101
  assert_answer node1 "$(lab_cluster_ip nft 6)" 80 pod fd00:6::101
  expect 0 lab_in node1 sh -c 'iptables-save; ip6tables-save'
  [[ $output != *10.233.64.* ]] || fail "$output"
  halves_pass
}
