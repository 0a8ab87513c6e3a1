# The lab itself: what it builds behaves like a data centre, and leaves the machine as it was.

load helpers

setup_file() {
  suite_lab || return 0
  local node
  for node in node1 node2; do
    lab_pod "$node" pod plain46
    lab_serve "$node/pod" 8080 "$node-pod"
  done
  lab_pod node2 neighbour plain46
  lab_serve node2/neighbour 8080
  lab_service remote 80:8080 node2/pod
}

machine_state() {
  sh "$LAB_SOURCE/snapshot"
  ls /run/netns 2>/dev/null || true
  findmnt --noheadings --output TARGET,FSTYPE
}

@test "pods on two nodes reach each other over IPv4 and IPv6, and see each other's address" {
  local family
  for family in 4 6; do
    assert_answer node1/pod "$(lab_address node2/pod $family)" 8080 node2-pod "$(lab_address node1/pod $family)"
  done
}

@test "pods on one node reach each other over IPv4 and IPv6" {
  local family
  for family in 4 6; do
    assert_answer node2/pod "$(lab_address node2/neighbour $family)" 8080 neighbour "$(lab_address node2/pod $family)"
  done
}

@test "a pod reaches its gateway and the client beyond the switch" {
  expect 0 lab_in node1/pod ping -c 1 -W 1 10.6.0.1
  expect 0 lab_in node1/pod ping -c 1 -W 1 fd00:6::1
  expect 0 lab_in node1/pod ping -c 1 -W 1 10.6.0.50
  expect 0 lab_in node1/pod ping -c 1 -W 1 fd00:6::50
}

@test "a macvlan pod and its own node do not reach each other without us" {
  expect 1 lab_in node1/pod ping -c 1 -W 1 10.6.212.101
  expect 1 lab_in node1 ping -c 1 -W 1 "$(lab_address node1/pod 4)"
  expect 1 lab_in node1 ping -c 1 -W 1 "$(lab_address node1/pod 6)"
}

@test "a macvlan pod's connection to a ClusterIP is lost at the gateway without us" {
  assert_no_answer node1/pod "$(lab_cluster_ip remote 4)" 80
  assert_no_answer node1/pod "$(lab_cluster_ip remote 6)" 80
}

@test "a node reaches a ClusterIP whose backend is on another node" {
  assert_answer node1 "$(lab_cluster_ip remote 4)" 80 node2-pod 10.6.212.101
  assert_answer node1 "$(lab_cluster_ip remote 6)" 80 node2-pod fd00:6::101
}

@test "a Service spreads connections over its backends" {
  lab_service both 80:8080 node2/pod node2/neighbour
  local seen=
  for _ in {1..20}; do
    seen+=$(lab_ask node1 tcp "$(lab_cluster_ip both 4)" 80)
  done
  assert_contains "$seen" node2-pod
  assert_contains "$seen" neighbour
}

@test "a Service without backends refuses" {
  lab_service empty 80:8080
  expect 1 lab_ask node1 tcp "$(lab_cluster_ip empty 4)" 80
  assert_contains "$stderr" refused
  # The first refusal finds the socket locked by its own connect(), so IPv6 is refused at the first retransmission (1 s).
  expect 1 lab_ask node1 tcp "$(lab_cluster_ip empty 6)" 80 3
  assert_contains "$stderr" refused
}

@test "overlay pods of each kind reach each other, the nodes and a ClusterIP" {
  local kind family
  for kind in calico cilium flannel; do
    lab_overlay_pod node1 "$kind" "$kind"
    lab_overlay_pod node2 "$kind" "$kind"
    lab_serve "node2/$kind" 8080
    lab_service "$kind" 80:8080 "node2/$kind"
    for family in 4 6; do
      assert_answer "node1/$kind" "$(lab_address "node2/$kind" $family)" 8080 "$kind" "$(lab_address "node1/$kind" $family)"
      assert_answer "node1/$kind" "$(lab_cluster_ip "$kind" $family)" 80 "$kind" "$(lab_address "node1/$kind" $family)"
      assert_answer node1 "$(lab_address "node2/$kind" $family)" 8080 "$kind" ''
      expect 0 lab_in "node1/$kind" ping -c 1 -W 1 "$(lab_address node1 $family)"
    done
  done
}

@test "a NodePort with externalTrafficPolicy Local keeps the client's address and serves from its own node alone" {
  lab_overlay_pod node1 local calico
  lab_serve node1/local 8080
  lab_service local 80:8080 --node-port 30080 --local node1/local
  assert_answer client 10.6.212.101 30080 local 10.6.0.50
  assert_answer client fd00:6::101 30080 local fd00:6::50
  assert_no_answer client 10.6.212.102 30080
}

@test "a NodePort with externalTrafficPolicy Cluster serves from any node under the node's address" {
  lab_overlay_pod node1 cluster calico
  lab_serve node1/cluster 8080
  lab_service cluster 80:8080 --node-port 30081 node1/cluster
  assert_answer client 10.6.212.102 30081 cluster 10.6.212.102
  assert_answer client fd00:6::102 30081 cluster fd00:6::102
}

@test "masquerade none leaves the source of a connection to a ClusterIP, masquerade all replaces even an overlay pod's" {
  lab_overlay_pod node1 source calico 4
  lab_service masquerade 80:8080 node2/pod
  lab_masquerade all
  assert_answer node1/source "$(lab_cluster_ip masquerade 4)" 80 node2-pod 10.6.212.101
  lab_masquerade cluster
  lab_in node2 ip route add "$(lab_address node2/pod 4)" dev eth0
  lab_overlay_pod node2 target calico 4
  lab_serve node2/target 8080
  lab_service masquerade 80:8080 node2/target
  assert_answer node1/source "$(lab_cluster_ip masquerade 4)" 80 target "$(lab_address node1/source 4)"
}

@test "rp_filter is set for every interface, present and to come" {
  lab_rp_filter node1 2
  expect 0 lab_in node1 sh -c 'cat /proc/sys/net/ipv4/conf/*/rp_filter | sort -u'
  assert_equal "$output" 2
  lab_in node1 ip link add new type veth peer name peer
  expect 0 lab_in node1 cat /proc/sys/net/ipv4/conf/new/rp_filter
  assert_equal "$output" 2
  lab_in node1 ip link delete new
  lab_rp_filter node1 0
}

@test "a snapshot stays the same while traffic flows, and shows every kind of change" {
  local before change
  before=$(lab_snapshot node1)
  lab_ask node1 tcp "$(lab_cluster_ip remote 4)" 80
  assert_same "$before" "$(lab_snapshot node1)"
  while read -r change; do
    lab_in node1 sh -c "$change"
    [ "$before" != "$(lab_snapshot node1)" ] || fail "not in the snapshot: $change"
    read -r change
    lab_in node1 sh -c "$change"
    assert_same "$before" "$(lab_snapshot node1)"
  done <<'EOF'
ip link add extra type veth peer name extra2
ip link delete extra
ip address add 10.6.212.9/32 dev eth0
ip address delete 10.6.212.9/32 dev eth0
ip -6 route add fd00:9::/64 dev eth0 table 500
ip -6 route delete fd00:9::/64 dev eth0 table 500
ip rule add pref 1000 lookup 500
ip rule delete pref 1000
ip neighbour add 10.6.0.99 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
ip neighbour delete 10.6.0.99 dev eth0
nft add table inet underpass
nft delete table inet underpass
mkdir -p /run/underpass && touch /run/underpass/left
rm -r /run/underpass
EOF
}

@test "a capture shows the packets that pass and no others" {
  lab_capture seen node2 eth0 tcp port 8080
  lab_capture unseen node2 eth0 udp port 8080
  lab_ask node1/pod tcp "$(lab_address node2/pod 4)" 8080
  assert_contains "$(lab_captured seen)" "> $(lab_address node2/pod 4).8080"
  assert_equal "$(lab_captured unseen)" ''
}

@test "cnitool's ADD, CHECK and DEL run the real macvlan plugin" {
  local cached
  cached=$(lab_in node1 ls /var/lib/cni/results)
  [ -n "$cached" ]
  lab_pod node1 cni plain46
  expect 0 lab_cnitool node1 check plain46 cni
  lab_in node1/cni ip link set eth0 name moved
  expect 1 lab_cnitool node1 check plain46 cni
  lab_in node1/cni ip link set moved name eth0
  lab_pod_delete node1 cni plain46
  assert_equal "$(lab_in node1 ls /var/lib/cni/results)" "$cached"
}

@test "one plugin run by hand gives its exit status, one JSON document, and messages apart from it" {
  lab_sandbox node1 hand
  lab_plugin node1 macvlan ADD hand eth0 <<<'{"cniVersion":"1.0.0","name":"hand","type":"macvlan","master":"eth0"}'
  assert_equal "$lab_status" 0
  assert_json "$lab_stdout" '.interfaces[0].name' eth0
  lab_plugin node1 macvlan ADD hand eth0 <<<'{"cniVersion":"9.9.9","name":"hand","type":"macvlan"}'
  assert_equal "$lab_status" 1
  assert_json "$lab_stdout" .code 1
  printf '#!/bin/sh\nprintf "%%s\\n" "{}" "{}"\n' >"$LAB/bin/talkative"
  chmod +x "$LAB/bin/talkative"
  expect 1 lab_plugin node1 talkative ADD hand eth1 <<<'{}'
}

@test "a second network gives the nodes a further NIC, and a pod a NIC in each" {
  local node
  lab_network 7 eth1
  for node in node1 node2; do
    lab_network_config "$node" storage 46 '' eth1
    lab_pod "$node" multi plain46
    lab_attach "$node" multi storage net1
    lab_serve "$node/multi" 8080 "$node-multi"
  done
  assert_answer node1/multi "$(lab_address node2/multi 4 net1)" 8080 node2-multi "$(lab_address node1/multi 4 net1)"
  assert_answer node1/multi "$(lab_address node2/multi 6 net1)" 8080 node2-multi "$(lab_address node1/multi 6 net1)"
  expect 0 lab_in client ping -c 1 -W 1 10.7.212.101
  expect 0 lab_in node1/pod ping -c 1 -W 1 10.7.212.102
}

@test "a cgroup is made where the machine has version 2, and goes with the lab" {
  lab_cgroup_mount || skip 'no cgroup v2 mount'
  local cgroup mine=$LAB
  LAB_PREFIX=underpass-cgroup-$$
  lab_up 1
  cgroup=$(lab_cgroup node1)
  lab_cgroup node1/pod
  [ -e "$cgroup/pod/cgroup.procs" ]
  lab_down
  LAB=$mine
  [ ! -e "$cgroup" ]
}

@test "a second lab beside this one neither sees it nor disturbs it, and goes without a trace" {
  local mine=$LAB
  LAB_PREFIX=underpass-second-$$
  lab_up 1
  [ -n "$(lab_leaks)" ]
  expect 1 lab_in node1 ping -c 1 -W 1 "$(LAB=$mine lab_address node2/pod 4)"
  lab_down
  assert_equal "$(lab_leaks)" ''
  LAB=$mine
  assert_answer node1/pod "$(lab_address node2/pod 4)" 8080 node2-pod ''
}

@test "a lab goes when the shell that made it is killed" {
  export LAB_PREFIX=underpass-killed-$$
  expect 137 bash -c "source '$LAB_SOURCE/lab.bash' && lab_up 1 && echo made && kill -KILL \$\$"
  assert_equal "$output" made
  lab_until 5 no_leaks
}

@test "a lab in which no program was started goes with a strict shell as well" {
  export LAB_PREFIX=underpass-strict-$$
  expect 0 bash -euo pipefail -c "source '$LAB_SOURCE/lab.bash' && trap lab_down EXIT && lab_up 1 && lab_cgroup bare"
  assert_equal "$(lab_leaks)" ''
}

no_leaks() {
  [ -z "$(lab_leaks)" ]
}

@test "a lab changes nothing in the machine's own namespaces" {
  local before mine=$LAB
  before=$(machine_state)
  lab_up 2
  lab_pod node1 pod plain46
  lab_service web 80:8080 --node-port 30080 node1/pod
  lab_rp_filter node1 2
  assert_same "$before" "$(machine_state)"
  lab_down
  LAB=$mine
  assert_same "$before" "$(machine_state)"
}
