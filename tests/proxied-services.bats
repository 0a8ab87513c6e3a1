# The table of cases, tests/fixtures/services.json, through real kube-proxies: whom a client on the node reaches by the host
# path, which is kube-proxy's, and by the socket path, which is watch-services'.

load helpers
load lb

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd && lb_needs_program || return 0
  lab_up 1
  lab_kubernetes
  lab_kubectl label node node1 topology.kubernetes.io/zone=a >/dev/null
  lab_balancer node1
  backends
  objects | lab_kubectl create --filename - >/dev/null
  objects | jq '.items |= map(select(.status))' | lab_kubectl replace --subresource status --filename - >/dev/null
  export TABLE=$LAB/table.json
  lab_in node1 env KUBECONFIG="$LAB/kubernetes/admin.conf" "$(lab_libexec)/watch-services" --node node1 >"$TABLE"
  lab_lb node1 apply <"$TABLE" >/dev/null
}

# A host that has every address of the cases' endpoints.
backends() {
  lab_host backends
  lab_plug backends eth0 6 0.60 60
  lab_in backends ip route add local 10.50.0.0/16 dev lo
  lab_in backends ip -6 route add local fd00:50::/32 dev lo
  lab_spawn backends backends /usr/bin/python3 "$LAB_SOURCE/reach.py" serve 8080 8081
  lab_until 10 grep -q serving "$LAB/log/backends"
  lab_in node1 ip route add 10.50.0.0/16 via 10.6.0.60
  lab_in node1 ip -6 route add fd00:50::/32 via fd00:6::60
}

# Those that the API server takes.
cases() { jq -c '.[] | select(.offline | not)' "$BATS_TEST_DIRNAME/fixtures/services.json"; }

objects() { cases | jq -s '{apiVersion: "v1", kind: "List", items: [.[].objects[]]}'; }

frontends() { cases | jq -r '.expect | keys[]'; }

# by_host_path, by_socket_path: whom a process on the node reaches.
by_host_path() {
  frontends | lab_in node1 /usr/bin/python3 "$LAB_SOURCE/reach.py" ask 40 0.5
}

by_socket_path() {
  frontends | lab_served node1 /usr/bin/python3 "$LAB_SOURCE/reach.py" ask 40 0.5
}

# What differs of two results, one line a case. Whom nobody answers is refused or left waiting: in the node's own namespace the
# real kube-proxy does not reject everything that it rejects for pods.
differences() {
  jq -nr --slurpfile cases <(cases) --slurpfile host "$1" --slurpfile socket "$2" '
    def answers: if type == "array" then . else [] end;
    $cases[] | . as $case | .expect | keys[] | . as $to
    | ($host[0][$to] | answers) as $host | ($socket[0][$to] | answers) as $socket
    | if $case.sticky then select([$host, $socket] | any(.[]; length != 1 or (. - $case.expect[$to]) != []))
      elif $case.kubeProxy // "" | test("chance") then empty
      else select($host != $socket) end
    | "\($case.name): \($to): host path \($host), socket path \($socket)"'
}

# What the socket path leads to and the case does not expect, one line a case. What is left to the host path is as there.
unexpected() {
  jq -nr --slurpfile cases <(cases) --slurpfile socket "$1" '
    $cases[] | . as $case | .expect | to_entries[] | select(.value != null and ($case.sticky | not))
    | (if .value == [] then "refused" else .value | sort end) as $expected
    | select($socket[0][.key] != $expected)
    | "\($case.name): \(.key): expected \($expected), found \($socket[0][.key])"'
}

# equals_kube_proxy MODE
equals_kube_proxy() {
  local address
  lab_kube_proxy "$1"
  address=$(cases | jq -rs 'last.objects[0].spec.clusterIP')
  lab_until 20 has_rules "$address"
  by_socket_path >"$BATS_TEST_TMPDIR/socket"
  by_host_path >"$BATS_TEST_TMPDIR/host"
  assert_equal "$(unexpected "$BATS_TEST_TMPDIR/socket")" ''
  assert_equal "$(differences "$BATS_TEST_TMPDIR/host" "$BATS_TEST_TMPDIR/socket")" ''
}

has_rules() {
  { lab_in node1 iptables-save && lab_in node1 nft list ruleset; } 2>/dev/null | grep -qF "$1"
}

@test "a client reaches by the socket path whom it reaches through a real kube-proxy in iptables mode, case by case" {
  equals_kube_proxy iptables
}

@test "a client reaches by the socket path whom it reaches through a real kube-proxy in nftables mode, case by case" {
  lab_stop kube-proxy-node1
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'for table in nat filter mangle; do iptables -t $table -F; iptables -t $table -X; ip6tables -t $table -F; ip6tables -t $table -X; done'
  lab_in node1 conntrack -F 2>/dev/null || :
  equals_kube_proxy nftables
}
