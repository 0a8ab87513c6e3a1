# The socket load balancer and pods on the data-centre network, by macvlan.

load helpers
load lb

setup_file() {
  suite_needs_lab || return 0
  lb_needs_program || return 0
  lab_up 2
  lab_pod node1 pod plain46
  lab_pod node1 both underlay46
  lab_pod node2 backend plain46
  lab_serve node2/backend 8080
  lab_serve node1/pod 8080
  lab_service far 80:8080 node2/backend
  lab_service own 80:8080 node1/pod
  lab_balancer node1
  lab_lb_services node1
}

teardown() {
  [ ! -e "$LAB/pid/follow" ] || lab_stop follow KILL
}

# lb_ask POD PROTOCOL ADDRESS: as lab_ask, by a process that the load balancer serves.
lb_ask() {
  lab_served "node1/$1" "$LAB_SOURCE/identify" ask "$2" "$3" 80
}

@test "a macvlan pod's SYN to a ClusterIP leaves its eth0 addressed to the backend pod, and getpeername shows the ClusterIP" {
  local family service backend
  for family in 4 6; do
    service=$(lab_cluster_ip far $family) backend=$(lab_address node2/backend $family)
    lab_capture syn node1/pod eth0 "tcp"
    lab_sockets node1/pod "$service" <<'PY'
with connect(SOCK_STREAM, sys.argv[1]) as connected:
    equal(connected.getpeername()[:2], (sys.argv[1], 80))
PY
    lab_captured syn >"$BATS_TEST_TMPDIR/packets"
    assert_contains "$(grep -F 'Flags [S],' "$BATS_TEST_TMPDIR/packets")" " > $backend.8080:"
    expect 1 grep -F "$service" "$BATS_TEST_TMPDIR/packets"
  done
}

@test "a macvlan pod without a host path reaches a Service over TCP and UDP, and the backend sees the pod itself" {
  local family protocol
  for family in 4 6; do
    for protocol in tcp udp; do
      assert_equal "$(lb_ask pod $protocol "$(lab_cluster_ip far $family)")" "backend $(lab_address node1/pod $family)"
    done
    # The same pod, by a process that is not served.
    assert_no_answer node1/pod "$(lab_cluster_ip far $family)" 80
  done
}

@test "a macvlan pod reaches itself through its own Service" {
  local family protocol
  for family in 4 6; do
    for protocol in tcp udp; do
      assert_equal "$(lb_ask pod $protocol "$(lab_cluster_ip own $family)")" "pod $(lab_address node1/pod $family)"
    done
  done
}

@test "what the socket path does not see takes the host path" {
  lab_capture served node1/both veth0 'tcp port 80'
  assert_equal "$(lb_ask both tcp "$(lab_cluster_ip far 4)")" "backend $(lab_address node1/both 4)"
  assert_equal "$(lab_captured served)" ''
  lab_capture host node1/both veth0 'tcp port 80'
  expect 0 lab_ask node1/both tcp "$(lab_cluster_ip far 4)" 80
  assert_contains "$output" 'backend '
  assert_contains "$(lab_captured host)" "$(lab_cluster_ip far 4).80"
}

@test "where nobody follows any more, a pod with both paths takes the host path as soon as the table has expired, and the socket path with the next who follows" {
  local family table stale
  table=$(lab_lb node1 show | jq -c .)
  # Its backend has gone since.
  stale=$(jq -c '(.services[] | select(.name == "far").backends[].address) |= if contains(":") then "fd00:6::9999" else "10.6.99.99" end' <<<"$table")
  lb_follow --lease 5
  lb_tell "{\"table\": $stale}" >/dev/null
  expect 1 lb_ask both tcp "$(lab_cluster_ip far 4)"
  lab_stop follow KILL
  lab_until 10 lb_has_expired
  for family in 4 6; do
    lab_capture host node1/both veth0 'tcp port 80'
    assert_equal "$(lb_ask both tcp "$(lab_cluster_ip far $family)")" "backend $(lab_address node1 $family)"
    assert_contains "$(lab_captured host)" " > $(lab_cluster_ip far $family).80: Flags [S],"
  done
  lb_follow --lease 5
  lb_tell "{\"table\": $table}" >/dev/null
  for family in 4 6; do
    assert_equal "$(lb_ask both tcp "$(lab_cluster_ip far $family)")" "backend $(lab_address node1/both $family)"
  done
  lab_stop follow KILL
  lb_apply "$table"
}

@test "beside a host path, UDP sockets that ask a Service without backends are refused by datagram, and served as soon as there is a backend" {
  local family client
  lab_reload node1 --host-path
  lab_service late 80:8080
  lab_lb_services node1
  lab_sockets node1/both "$BATS_TEST_TMPDIR/is" "$(lab_cluster_ip late 4)" "$(lab_cluster_ip late 6)" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<'PY' &
def error_told(connected):
    for _ in range(50):
        # The error comes after the datagram.
        if error := errno_of(connected.send, b"?") or error_of(connected):
            return error
        time.sleep(0.1)

def answer_heard(connected):
    connected.settimeout(0.2)
    for _ in range(50):
        try:
            return answer(connected).split()[0]
        except OSError:
            pass

four, six = sys.argv[2:]
connected = [connect(SOCK_DGRAM, four), connect(SOCK_DGRAM, six), connect(SOCK_DGRAM, "::ffff:" + four, family=AF_INET6)]
equal([error_told(one) for one in connected], ["ECONNREFUSED"] * 3)
senders = {address: new(SOCK_DGRAM, address) for address in (four, six)}
equal([errno_of(sender.sendto, b"?", (address, 80)) for address, sender in senders.items()], [None] * 2)
ready("-refused")
wait_for(sys.argv[1] + "-there")
equal([answer_heard(one) for one in connected], ["backend"] * 3)
equal([one.getpeername()[:2] for one in connected], [(four, 80), (six, 80), ("::ffff:" + four, 80)])
equal([ask(sender, address)[1] for address, sender in senders.items()], [(four, 80), (six, 80)])
print("served")
PY
  client=$!
  lab_until 20 test -e "$BATS_TEST_TMPDIR/is-refused" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  lab_service late 80:8080 node2/backend
  lab_lb_services node1
  : >"$BATS_TEST_TMPDIR/is-there"
  wait "$client" || fail "$(<"$BATS_TEST_TMPDIR/client")"
  assert_equal "$(<"$BATS_TEST_TMPDIR/client")" served
  # A new one takes the socket path.
  for family in 4 6; do
    assert_equal "$(lb_ask both udp "$(lab_cluster_ip late $family)")" "backend $(lab_address node1/both $family)"
  done
  lab_reload node1
}

@test "a pod whose own rules spare the Service CIDR alone reaches Services by the host path, and not by the socket path: it is to be left out" {
  lab_pod node1 walled underlay46
  lab_in node1/walled nft -f - <<<'table inet wall { chain output { type filter hook output priority 0; policy drop; ip daddr 10.233.64.0/18 accept; }; }'
  expect 1 lb_ask walled tcp "$(lab_cluster_ip far 4)"
  # What the annotation comes to.
  lab_reload node1 --scope all-but
  lab_lb node1 register /run/netns/walled
  assert_equal "$(lb_ask walled tcp "$(lab_cluster_ip far 4)")" "backend $(lab_address node1 4)"
  lab_lb node1 unregister /run/netns/walled
  lab_reload node1 --scope all
}

@test "a macvlan network of mode private keeps the socket path from a backend on the same node, which the host path reaches: it wants socketPath false" {
  local family
  lab_network_config node1 private 46 "$(lab_coordinator_json 46)"
  lab_in node1 sed -i 's/"mode": "bridge"/"mode": "private"/' /etc/cni/net.d/private.conflist
  for pod in asks answers; do lab_pod node1 $pod private; done
  assert_contains "$(lab_in node1/asks ip -d link show eth0)" 'macvlan mode private'
  lab_serve node1/answers 8080
  lab_service beside 80:8080 node1/answers
  lab_lb_services node1
  for family in 4 6; do
    expect 1 lb_ask asks tcp "$(lab_cluster_ip beside $family)"
    assert_answer node1/asks "$(lab_cluster_ip beside $family)" 80 answers "$(lab_address node1 $family)"
  done
}

# lb_watched FILTER: gives the load balancer what watch-services says of the objects, as jq makes them.
lb_watched() {
  lab_objects_json <"$LAB/services.json" | jq -c "$1" | lab_in node1 "$(lab_libexec)/watch-services" --from - --node node1 |
    lab_lb node1 apply >/dev/null
}

@test "a backend that only nodes reach is reached by the host path: from an underlay that is not routed to them, the Service is to be left to it" {
  local family protocol address
  lab_network 7 eth1
  for family in iptables ip6tables; do lab_in gateway $family -I FORWARD -i net7 -o net6 -j DROP; done
  lab_network_config node1 apart46 46 "$(lab_coordinator_json 46)" eth1
  lab_network_config node1 led46 46 \
    "$(lab_coordinator_json 46 | jq -c '.hijackCIDR = ["10.6.0.0/16", "fd00:6::/64"] | .overlayMasquerade = true')" eth1
  lab_pod node1 apart apart46
  lab_pod node1 led led46
  lab_serve node2 9090 node2
  lab_service server 80:9090 node2
  # asks POD: who answers, and whom it has seen, for each protocol and family; nothing where nobody does.
  asks() {
    for family in 4 6; do
      address=$(lab_cluster_ip server $family)
      for protocol in tcp udp; do lb_ask "$1" $protocol "$address" 2>/dev/null || printf 'nobody\n'; done
    done
  }
  local by_node nobody=$'nobody\nnobody\nnobody\nnobody'
  by_node=$(for family in 4 4 6 6; do printf 'node2 %s\n' "$(lab_address node1 $family)"; done)
  lb_watched .
  assert_equal "$(asks apart)" "$nobody"
  # The same pod by the host path.
  assert_answer node1/apart "$(lab_cluster_ip server 4)" 80 node2 "$(lab_address node1 4)"
  assert_answer node1/apart "$(lab_cluster_ip server 6)" 80 node2 "$(lab_address node1 6)"
  # With the nodes' network led through the node the socket path is good.
  assert_equal "$(asks led)" "$by_node"
  lb_watched '(.items[] | select(.kind == "Service" and .metadata.name == "server")).metadata.annotations = {"underpass.io/socket-path": "false"}'
  assert_equal "$(asks apart)" "$by_node"
  lab_lb_services node1
}
