# check-node, and the case for which it is there: kube-proxy without masquerade (peer finding 14).

load helpers

setup_file() {
  suite_needs_tools kubernetes etcd || return 0
  suite_lab 2 || return 0
  lab_pod node1 pod underlay46
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080
  lab_kube_proxy iptables
  lab_service web 80:8080 node2/backend
}

# says NAME OK: what check-node says of one thing.
says() {
  run --separate-stderr lab_in node1 "$(lab_libexec)/check-node" --subnet 10.6.0.0/16
  assert_equal "$status" "$([ "$2" = true ] && printf 0 || printf 1)"
  assert_json "$output" ".checks[] | select(.name == \"$1\").ok" "$2"
}

@test "without masquerade a backend on the pods' own network cannot answer, and check-node says so (peer finding 14)" {
  lab_masquerade none
  assert_no_answer node1/pod "$(lab_cluster_ip web 4)" 80
  says masquerade false
  assert_contains "$output" masqueradeAll
}

@test "with masqueradeAll it answers, and check-node is content (peer finding 14)" {
  lab_masquerade all
  assert_answer node1/pod "$(lab_cluster_ip web 4)" 80 backend ''
  assert_answer node1/pod "$(lab_cluster_ip web 6)" 80 backend ''
  says masquerade true
}

@test "with a clusterCIDR that has not the underlay's subnet it answers, and check-node is content" {
  lab_masquerade cluster
  assert_answer node1/pod "$(lab_cluster_ip web 4)" 80 backend ''
  says masquerade true
}

@test "check-node names forwarding that is off" {
  lab_in node1 sysctl -qw net.ipv6.conf.all.forwarding=0
  run --separate-stderr lab_in node1 "$(lab_libexec)/check-node"
  lab_in node1 sysctl -qw net.ipv6.conf.all.forwarding=1
  assert_equal "$status" 1
  assert_json "$output" '[.checks[] | select(.name == "forwarding") | .ok]' '[true,false]'
}

@test "check-node says when there is no kube-proxy" {
  run --separate-stderr lab_in client "$(lab_libexec)/check-node"
  assert_equal "$status" 1
  assert_json "$output" '.checks[] | select(.name == "kube-proxy").ok' false
}
