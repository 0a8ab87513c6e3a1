# The agent's care for running pods: whatever somebody else does to what ADD made is undone.

load helpers

setup_file() {
  suite_lab || return 0
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080
  lab_service echo 80:8080 node2/backend
  lab_pod node1 web underlay46
  lab_serve node1/web 8080
  agent_start
}

agent_start() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn agent node1 env PATH="$(lab_libexec):$PATH" bash -c 'exec keep-pods < <(exec sleep infinity)'
  lab_until 10 metric 'attachments{state="current"}' '[1-9][0-9]*'
}

# metric NAME VALUE: whether a metric has a value (a regular expression).
# shellcheck disable=SC2001 # a replacement that repeats what it replaces
metric() { lab_in node1 grep -Eqx "underpass_$(sed 's/[{}]/\\&/g' <<<"$1") $2" /run/underpass/keep-pods.prom 2>/dev/null; }

# link POD: name of the node's link to a pod.
link() { lab_in node1 cat "/run/underpass/attachments/$(container "$1")@eth0.json" | jq -r .veth.host; }

# container POD: its id.
container() { printf 'cnitool-%s' "$(printf '/run/netns/%s' "$1" | sha512sum | cut -c 1-20)"; }

# everything POD: the node's configuration and a pod's, to compare. A link that is made anew has another index.
everything() {
  { lab_snapshot node1 && lab_snapshot "node1/$1"; } | sed '/^== files/,/^==/d; s/^[0-9]*: //; s/@if[0-9]*:/:/'
}

is_as_before() { [ "$(everything web)" = "$before" ] && lab_cnitool node1 check underlay46 web >/dev/null 2>&1; }

# alter WHERE COMMAND: by somebody else. Prints how long it took until all was right again, in ms.
alter() {
  local begin where=${1/POD/web} command=${2//HOST/$(link web)}
  command=${command//POD4/$(lab_address node1/web 4)} command=${command//POD6/$(lab_address node1/web 6)}
  lab_in "$where" sh -c "$command"
  begin=${EPOCHREALTIME/./}
  lab_until 8 is_as_before || fail "after: $command" "$(diff <(printf '%s\n' "$before") <(everything web))" \
    "$(lab_cnitool node1 check underlay46 web 2>&1)" "$(tail -3 "$LAB/log/agent")"
  printf '%6d ms after %s\n' $(((${EPOCHREALTIME/./} - begin) / 1000)) "$command" >&3
}

@test "any single object that ADD made, removed or altered by somebody else while the pod runs, is put right" {
  local where change
  before=$(everything web)
  while IFS='|' read -r where change; do alter "$where" "$change"; done <<'EOF'
node1/POD|ip route delete 10.233.64.0/18
node1/POD|ip route delete 10.233.0.0/18
node1/POD|ip route change 10.233.64.0/18 via 10.6.0.1 dev eth0 proto 85
node1/POD|ip route delete 10.6.212.101
node1/POD|ip route delete default table 8500
node1/POD|ip -6 route delete fd00:233:64::/108
node1/POD|ip -6 route delete fd00:233::/48
node1/POD|ip -6 route delete fd00:6::101
node1/POD|ip -6 route delete default table 8500
node1/POD|ip rule delete pref 85
node1/POD|ip -6 rule delete pref 85
node1/POD|ip neighbour delete 10.6.212.101 dev veth0
node1/POD|ip neighbour change 10.6.212.101 dev veth0 lladdr 02:00:00:00:00:99 nud permanent
node1/POD|ip neighbour delete fd00:6::101 dev veth0
node1/POD|ip neighbour change fd00:6::101 dev veth0 lladdr 02:00:00:00:00:99 nud permanent
node1/POD|ip neighbour change 10.6.212.101 dev veth0 nud stale
node1/POD|nft delete table inet underpass
node1/POD|nft flush chain inet underpass output
node1/POD|nft add rule inet underpass prerouting counter
node1/POD|ip link set veth0 down
node1/POD|ip link set veth0 mtu 1400
node1/POD|ip link set veth0 address 02:00:00:00:00:98
node1/POD|ip address delete 169.254.200.1/32 dev veth0
node1/POD|ip address delete fe80::a9fe:c801/128 dev veth0
node1/POD|ip link delete veth0
node1/POD|sysctl -qw net.ipv4.conf.all.rp_filter=1
node1/POD|sysctl -qw net.ipv4.conf.eth0.rp_filter=1
node1/POD|sysctl -qw net.ipv4.conf.veth0.rp_filter=2
node1/POD|sysctl -qw net.ipv6.conf.veth0.disable_ipv6=1
node1|ip rule delete pref 85
node1|ip -6 rule delete pref 85
node1|ip route delete POD4 table 500
node1|ip route change POD4 dev eth0 table 500 proto 85
node1|ip -6 route delete POD6 table 500
node1|ip route flush table 500; ip -6 route flush table 500; ip rule delete pref 85; ip -6 rule delete pref 85
node1|ip neighbour delete POD4 dev HOST
node1|ip neighbour change POD4 dev HOST lladdr 02:00:00:00:00:99 nud permanent
node1|ip neighbour delete POD6 dev HOST
node1|ip link set HOST address 02:00:00:00:00:99
node1|ip link set HOST alias mine
node1|ip link set HOST mtu 1400
node1|ip link set HOST down
node1|ip link delete HOST
node1|ip link set HOST group 0
node1|nft delete table inet underpass
node1|nft flush chain inet underpass prerouting
node1|nft add rule inet underpass prerouting counter
node1|sysctl -qw net.ipv4.conf.HOST.forwarding=0
node1|sysctl -qw net.ipv6.conf.HOST.disable_ipv6=1
EOF
  assert_answer node1/web "$(lab_cluster_ip echo 4)" 80 backend
  assert_answer node1/web "$(lab_cluster_ip echo 6)" 80 backend
  grep -q 'put right what somebody else has changed' "$LAB/log/agent"
  metric 'repairs_total{object="route"}' '[1-9][0-9]*'
}

@test "what somebody keeps undoing is left alone for longer and longer, loudly, and is put right when that has ended" {
  before=$(everything web)
  lab_spawn undoer node1/web sh -c 'while :; do ip rule delete pref 85 2>/dev/null; sleep 0.05; done'
  lab_until 15 metric 'attachments{state="contested"}' 1
  grep -q 'somebody keeps undoing this; leaving it alone for 1 s: rule pref 85' "$LAB/log/agent" || fail "$(cat "$LAB/log/agent")"
  # The pod's other objects are cared for meanwhile.
  lab_in node1/web ip route delete 10.233.64.0/18
  lab_until 5 has_route web 10.233.64.0/18
  lab_until 10 grep -q 'leaving it alone for 4 s' "$LAB/log/agent"
  lab_stop undoer
  lab_until 20 is_as_before
  lab_until 20 metric 'attachments{state="contested"}' 0
  metric contests_total '[1-9][0-9]*'
}

has_route() { lab_in "node1/$1" ip route show table all | grep -q "^$2 "; }
has_no_route() { ! has_route "$@"; }

@test "a VIP is reached by running pods while it is on their node, after it has left, and when it has come back" {
  lab_serve node1 6443 node1
  lab_serve node2 6443 node2
  for _ in 1 2; do
    vip add node1
    lab_until 5 reaches 10.6.0.99 node1 && lab_until 5 reaches fd00:6::99 node1
    has_route web 10.6.0.99
    vip del node1
    vip add node2
    lab_until 5 reaches 10.6.0.99 node2 && lab_until 5 reaches fd00:6::99 node2
    has_no_route web 10.6.0.99
    [ -z "$(lab_in node1/web ip neighbour show 10.6.0.99 dev veth0)" ]
    expect 0 lab_cnitool node1 check underlay46 web
    vip del node2
  done
}

# vip add|del NODE: as kube-vip and keepalived do it.
vip() {
  lab_in "$2" ip address "$1" 10.6.0.99/32 dev eth0
  lab_in "$2" ip -6 address "$1" fd00:6::99/128 dev eth0 nodad 2>/dev/null || lab_in "$2" ip -6 address "$1" fd00:6::99/128 dev eth0
}

# reaches ADDRESS NODE: over TCP.
reaches() { [[ $(lab_ask node1/web tcp "$1" 6443 1) == "$2 "* ]]; }

@test "the node's own address changes: pods reach it, it reaches them, and Services work" {
  lab_serve node1 9090 node1
  lab_in node1 ip address add 10.6.212.201/16 dev eth0
  lab_in node1 ip address delete 10.6.212.101/16 dev eth0
  lab_in node1 ip address replace 10.6.212.201/16 dev eth0
  lab_in node1 ip route replace default via 10.6.0.1
  lab_until 5 has_route web 10.6.212.201
  lab_until 5 has_no_route web 10.6.212.101
  assert_answer node1/web 10.6.212.201 9090 node1
  assert_answer node1/web "$(lab_cluster_ip echo 4)" 80 backend
  assert_answer node1 "$(lab_address node1/web 4)" 8080 web
  expect 0 lab_cnitool node1 check underlay46 web
  lab_in node1 ip address add 10.6.212.101/16 dev eth0
  lab_in node1 ip address delete 10.6.212.201/16 dev eth0
  lab_in node1 ip address replace 10.6.212.101/16 dev eth0
  lab_in node1 ip route replace default via 10.6.0.1
  lab_until 5 has_route web 10.6.212.101
}
