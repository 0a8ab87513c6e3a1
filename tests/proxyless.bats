# A node without kube-proxy and without any of its rules: its pods and processes reach Services by the socket path alone, which the
# node agent feeds from a real kube-apiserver, and no route to a Service is in its pods (podCIDRType none).

load helpers
load lb

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd && lb_needs_program || return 0
  lab_up
  lab_kubernetes
  jq -n '{apiVersion: "v1", kind: "ConfigMap", metadata: {name: "underpass", namespace: "kube-system"},
    data: {settings: "podCIDRType: none\n"}}' | lab_kubectl apply --filename - >/dev/null
  lab_overlay_pod node1 over calico
  lab_overlay_pod node2 inner calico
  lab_pod node2 outer plain46
  for pod in inner outer; do lab_serve "node2/$pod" 8080; done
  # Objects in the API, and no rules.
  export LAB_HOLD=1
  lab_service outer 80:8080 node2/outer
  lab_service inner 80:8080 node2/inner
  lab_service dns 53:53 node2
  lab_objects_write
  lab_cgroup node1 >"$LAB/host/node1/cgroup"
  lab_spawn agent node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" UNDERPASS_CGROUP="$(<"$LAB/host/node1/cgroup")" \
    "$LAB_REPO/scripts/node-agent" --kubeconfig "$LAB/kubernetes/admin.conf" --node node1
  lab_until 20 ready
  lab_network_config node1 underlay 46 '{"mode": "auto"}'
  lab_pod node1 under underlay
  lab_until 10 ask node1 tcp "$(lab_cluster_ip inner 6)"
}

ready() {
  lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" --ready 2>/dev/null
}

# Who asks, and the Service whose backend has a way back to him.
CLIENTS='node1/under outer
node1/over inner
node1 outer
node1 inner'

# ask CLIENT PROTOCOL ADDRESS: by a process that is served. lab_ask is by one that is not.
ask() {
  lab_served "$1" "$LAB_SOURCE/identify" ask "$2" "$3" 80 2
}

# ruleset: all that the node's netfilter does.
ruleset() {
  lab_in node1 sh -c 'nft list ruleset; iptables-save; ip6tables-save' 2>/dev/null
}

@test "without kube-proxy pods and processes of the node reach Services, and their backends see who they are" {
  local client service family protocol rules
  rules=$(ruleset)
  [[ ! $rules =~ KUBE-|DNAT|dnat|10\.233\.64\.|fd00:233:64: ]] || fail "$rules"
  while read -r client service; do
    for family in 4 6; do
      for protocol in tcp udp; do
        expect 0 ask "$client" $protocol "$(lab_cluster_ip "$service" $family)"
        assert_equal "$output" "$service $(lab_address "$client" $family)"
        # And by nothing else.
        expect 1 lab_ask "$client" $protocol "$(lab_cluster_ip "$service" $family)" 80 0.3
      done
    done
  done <<<"$CLIENTS"
}

@test "without kube-proxy a node port answers the cluster's own pods and processes, and nobody from outside of the cluster" {
  local client
  lab_service port 81:8080 --node-port 30080 node2/inner
  lab_objects_write
  lab_until 10 by_node_port node1
  by_node_port node1/over
  for client in client gateway; do expect 1 lab_ask "$client" tcp "$(lab_address node1 4)" 30080; done
}

# by_node_port CLIENT: whether a process that is served is answered on its node's port.
by_node_port() {
  lab_served "$1" "$LAB_SOURCE/identify" ask tcp "$(lab_address node1 4)" 30080 2 >/dev/null
}

# captured CLIENT COMMAND...: the packets, on the client's links and on the node's, that go to a Service or to a backend.
captured() {
  local client=$1 filter='net 10.233.64.0/18 or net fd00:233:64::/108 or port 8080'
  shift
  lab_capture here "$client" any "$filter"
  lab_capture node node1 any "$filter"
  "$@" >/dev/null 2>&1 || :
  lab_captured here
  lab_captured node
}

@test "a SYN leaves already addressed to the backend, and no packet to a ClusterIP is on any link" {
  local client service family address packets
  while read -r client service; do
    for family in 4 6; do
      address=$(lab_cluster_ip "$service" $family)
      packets=$(captured "$client" ask "$client" tcp "$address")
      assert_contains "$(grep -F 'Flags [S],' <<<"$packets")" " > $(lab_address "node2/$service" $family).8080:"
      [[ $packets != *"$address"* ]] || fail "$packets"
      packets=$(captured "$client" ask "$client" udp "$address")
      assert_contains "$packets" " > $(lab_address "node2/$service" $family).8080: UDP"
      [[ $packets != *"$address"* ]] || fail "$packets"
      # Who is not served shows what would be seen.
      assert_contains "$(captured "$client" lab_ask "$client" tcp "$address" 80 0.3)" " > $address.80: Flags [S],"
    done
  done <<<"$CLIENTS"
}

@test "no route to a Service is in the pod, and the veth by which the node probes it stays" {
  local family
  lab_serve node1/under 8080
  for family in 4 6; do
    expect 0 lab_in node1/under ip -$family route show table all
    [[ $output != *233:64* && $output != *233.64* ]] || fail "$output"
    expect 0 lab_in node1/under ip -$family -json route get "$(lab_cluster_ip outer $family)"
    assert_json "$output" '.[0].dev' eth0
    assert_answer node1 "$(lab_address node1/under $family)" 8080 under ''
    expect 0 lab_in node1 ip -$family -json route get "$(lab_address node1/under $family)"
    assert_json "$output" '.[0].dev | startswith("eth")' false
  done
}

# resolver FAMILY [OPTIONS]: what a kubelet writes for a pod, for all on the node.
resolver() {
  lab_in node1 sh -c 'rm -f /etc/resolv.conf && printf "%s\n" "$@" >/etc/resolv.conf' sh \
    "nameserver $(lab_cluster_ip dns "$1")" 'search default.svc.cluster.local' "options ${2-}"
}

@test "names of Services are resolved by CoreDNS, which is a Service itself, over UDP and TCP, IPv4 and IPv6" {
  local tools client service family option
  tools=$("$LAB_REPO/tests/tools/build" --where coredns 2>/dev/null) || skip 'coredns is not built: run scripts/setup --cluster (needs Go)'
  printf '.:53 {\n errors\n kubernetes cluster.local {\n kubeconfig %s\n }\n}\n' "$LAB/kubernetes/admin.conf" >"$LAB/Corefile"
  lab_spawn coredns node2 "$tools/coredns" -conf "$LAB/Corefile"
  resolver 4
  lab_until 20 lab_served node1 getent ahosts outer >/dev/null || fail "$(cat "$LAB/log/coredns")"
  while read -r client service; do
    for family in 4 6; do
      for option in '' use-vc; do
        resolver $family $option
        expect 0 lab_served "$client" getent ahosts "$service"
        assert_equal "$(cut -d' ' -f1 <<<"$output" | sort -u)" "$(printf '%s\n' "$(lab_cluster_ip "$service" 4)" "$(lab_cluster_ip "$service" 6)" | sort)"
        expect 0 ask "$client" tcp "$service"
        assert_equal "${output%% *}" "$service"
      done
    done
  done <<<"$CLIENTS"
  resolver 4 'timeout:1 attempts:1'
  expect 2 lab_in node1/over getent ahosts inner
}

# conntrack FAMILY [FILTER...]: the node's entries.
conntrack() {
  lab_in node1 conntrack --dump --family "ipv$1" "${@:2}" 2>/dev/null
}

# translations CLIENT FAMILY COMMAND...: the entries that a command leaves in which an address was replaced by a backend's.
translations() {
  lab_in node1 conntrack --flush 2>/dev/null
  expect 0 "${@:3}" || return
  conntrack "$2" --dst-nat
}

proxied() {
  lab_ask node1 tcp "$(lab_cluster_ip outer 4)" 80 && lab_ask node1 tcp "$(lab_cluster_ip outer 6)" 80
}

@test "beside a real kube-proxy, in iptables and nftables mode, nothing is translated twice" {
  local mode client service family protocol address backend found
  for mode in iptables nftables; do
    lab_kube_proxy_on node1 $mode
    lab_until 20 lab_proxy_healthy node1 && lab_until 20 proxied || fail "$(tail -n 5 "$LAB/log/kube-proxy-node1")"
    while read -r client service; do
      for family in 4 6; do
        address=$(lab_cluster_ip "$service" $family) backend=$(lab_address "node2/$service" $family)
        for protocol in tcp udp; do
          found=$(translations "$client" $family ask "$client" $protocol "$address")
          assert_equal "$found" ''
          [ "$client" = node1/under ] && continue
          # The node has seen the connection, and not that it is to a Service; by the host path it does.
          assert_contains "$(conntrack $family)" " dst=$backend "
          found=$(translations "$client" $family lab_ask "$client" $protocol "$address" 80)
          assert_contains "$found" " dst=$address "
        done
      done
    done <<<"$CLIENTS"
  done
}

@test "beside a real kube-proxy a UDP client that was there before its Service had a backend is served as soon as it has, by the same socket" {
  local mode client
  for mode in iptables nftables; do
    lab_kube_proxy_on node1 $mode
    lab_service "late-$mode" 80:8080
    lab_objects_write
    lab_until 20 rejects "$(lab_cluster_ip "late-$mode" 4)" || fail "$(tail -n 5 "$LAB/log/kube-proxy-node1")"
    lab_until 10 lab_lb_has "late-$mode"
    lab_sockets node1/over "$BATS_TEST_TMPDIR/is-$mode" "$(lab_cluster_ip "late-$mode" 4)" >"$BATS_TEST_TMPDIR/client" 2>&1 3>&- <<'PY' &
connected = connect(SOCK_DGRAM, sys.argv[2])
connected.settimeout(0.1)
ready()
end, errors = time.monotonic() + 40, set()
while time.monotonic() < end:
    try:
        print(answer(connected).split()[0], *sorted(errors))
        break
    except OSError as error:
        errors.add(errno.errorcode.get(error.errno, "timed out"))
        time.sleep(0.2)
PY
    client=$!
    lab_until 20 test -e "$BATS_TEST_TMPDIR/is-$mode" || fail "$(<"$BATS_TEST_TMPDIR/client")"
    sleep 1
    lab_service "late-$mode" 80:8080 node2/inner
    lab_objects_write
    wait "$client"
    assert_contains "$(<"$BATS_TEST_TMPDIR/client")" 'inner ECONNREFUSED'
  done
}

# rejects ADDRESS: whether the node's rules know it, and reject what goes there.
rejects() {
  { lab_in node1 iptables-save && lab_in node1 nft list ruleset; } 2>/dev/null | grep -F "$1" | grep -qiE 'reject|no-endpoint'
}

lab_lb_has() { lab_lb node1 show --json | grep -q "\"$1\""; }
