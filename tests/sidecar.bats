# A pod with a sidecar that redirects what comes in and what goes out, as Istio's does: rules as istio-init writes them for
# a pod of which nothing is left out but the sidecar's own ports (facts from istio/istio,
# tools/istio-iptables/pkg/capture/testdata/inbound-ports-wildcard.golden and ipv6-uid-gid.golden). They are there before
# our ADD (pod `early`) or after it (`late`, where the sandbox's ADD has long been done).

load helpers
load lb

# sidecar_rules LOOPBACK PASSTHROUGH: for iptables-restore. PASSTHROUGH is the source of what the sidecar hands to the
# application.
sidecar_rules() {
  local port owner
  printf '%s\n' '*nat' ':ISTIO_INBOUND - [0:0]' ':ISTIO_REDIRECT - [0:0]' ':ISTIO_IN_REDIRECT - [0:0]' ':ISTIO_OUTPUT - [0:0]'
  printf '%s\n' '-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001' '-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006'
  printf '%s\n' '-A PREROUTING -p tcp -j ISTIO_INBOUND'
  for port in 15008 15090 15021 15020; do printf -- '-A ISTIO_INBOUND -p tcp --dport %s -j RETURN\n' $port; done
  printf '%s\n' '-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT' '-A OUTPUT -p tcp -j ISTIO_OUTPUT'
  printf -- '-A ISTIO_OUTPUT -o lo -s %s -j RETURN\n' "$2"
  for owner in uid gid; do
    printf -- '-A ISTIO_OUTPUT -o lo ! -d %s -p tcp ! --dport 15008 -m owner --%s-owner 1337 -j ISTIO_IN_REDIRECT\n' "$1" $owner
    printf -- '-A ISTIO_OUTPUT -o lo -m owner ! --%s-owner 1337 -j RETURN\n' $owner
    printf -- '-A ISTIO_OUTPUT -m owner --%s-owner 1337 -j RETURN\n' $owner
  done
  printf '%s\n' "-A ISTIO_OUTPUT -d $1 -j RETURN" '-A ISTIO_OUTPUT -j ISTIO_REDIRECT' COMMIT
}

# sidecar POD: its rules, and its two listeners.
sidecar() {
  sidecar_rules 127.0.0.1/32 127.0.0.6/32 | lab_in "node1/$1" iptables-restore
  sidecar_rules ::1/128 ::6/128 | lab_in "node1/$1" ip6tables-restore
  lab_serve "node1/$1" 15006 "$1-inbound"
  lab_serve "node1/$1" 15001 "$1-outbound"
}

setup_file() {
  suite_lab || return 0
  lab_pod node1 early plain46
  sidecar early
  lab_plugin node1 coordinator ADD early eth0 < <(lab_chained node1 early underlay46)
  lab_pod node1 late underlay46
  sidecar late
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080
  lab_service backend 80:8080 node2/backend
  lab_service early 80:8080 --node-port 30081 --local node1/early
  lab_service late 80:8080 --node-port 30082 --local node1/late
}

# each CASE: calls CASE POD FAMILY for the pods and both families.
each() {
  local pod family
  for pod in early late; do
    for family in 4 6; do
      printf 'pod %s, IPv%s:\n' "$pod" "$family"
      "$1" "$pod" "$family"
    done
  done
}

# assert_tcp FROM ADDRESS PORT WHO SEEN
assert_tcp() {
  expect 0 lab_ask "$1" tcp "$2" "$3"
  assert_equal "$output" "$4 $5"
}

from_the_node() {
  assert_tcp node1 "$(lab_address "node1/$1" "$2")" 8080 "$1-inbound" "$(lab_address node1 "$2")"
}

@test "what the pod's node asks, by the veth pair, is redirected to the sidecar" {
  each from_the_node
}

from_the_network() {
  assert_tcp client "$(lab_address "node1/$1" "$2")" 8080 "$1-inbound" "$(lab_address client "$2")"
}

@test "what a host of the data centre asks, by the pod's own NIC, is redirected to the sidecar" {
  each from_the_network
}

by_node_port() {
  local port=30081
  [ "$1" = early ] || port=30082
  assert_tcp client "$(lab_address node1 "$2")" $port "$1-inbound" "$(lab_address client "$2")"
}

@test "what comes by a NodePort with the client's own address is redirected to the sidecar" {
  each by_node_port
}

from_the_application() {
  expect 0 lab_ask "node1/$1" tcp "$(lab_cluster_ip backend "$2")" 80
  assert_equal "${output%% *}" "$1-outbound"
}

@test "what the application asks of a Service is redirected to the sidecar" {
  each from_the_application
}

from_the_sidecar() {
  expect 0 lab_in "node1/$1" setpriv --reuid 1337 --regid 1337 --clear-groups "$LAB_SOURCE/identify" ask tcp \
    "$(lab_cluster_ip backend "$2")" 80
  assert_equal "${output%% *}" backend
}

@test "what the sidecar asks of a Service reaches a backend" {
  each from_the_sidecar
}

# original POD FAMILY: where the sidecar is told that a question of the application's was to go (SO_ORIGINAL_DST).
original() {
  lab_in "node1/$1" conntrack -F 2>/dev/null
  lab_served "node1/$1" "$LAB_SOURCE/identify" ask tcp "$(lab_cluster_ip backend "$2")" 80 >/dev/null
  lab_in "node1/$1" conntrack -L -f "ipv$2" -p tcp --reply-port-src 15001 2>/dev/null |
    sed -n 's/^[^=]*src=[^ ]* dst=\([^ ]*\) sport=[^ ]* dport=\([^ ]*\) .*/\1 \2/p'
}

told_of_the_service() {
  assert_equal "$(original "$1" "$2")" "$(lab_cluster_ip backend "$2") 80"
}

told_of_the_backend() {
  assert_equal "$(original "$1" "$2")" "$(lab_address node2/backend "$2") 8080"
}

@test "the sidecar is told of the Service where the socket path leaves the pod out, and of a backend where it does not" {
  lb_needs_program || skip "$SUITE_SKIP"
  local pod
  lab_balancer node1 --scope all-but
  lb_apply "{\"services\": [$(lb_service backend "$(jq -nc --arg s4 "$(lab_cluster_ip backend 4)" --arg s6 "$(lab_cluster_ip backend 6)" \
    --arg b4 "$(lab_address node2/backend 4)" --arg b6 "$(lab_address node2/backend 6)" \
    '{clusterIps: [$s4, $s6], backends: [{address: $b4, port: 8080}, {address: $b6, port: 8080}]}')")]}"
  each told_of_the_backend
  for pod in early late; do lab_lb node1 register "/run/netns/$pod"; done
  each told_of_the_service
  lab_lb node1 unload
}
