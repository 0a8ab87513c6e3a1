# A firewall on the node that drops forwarded packets, as Docker's policy and firewalld's last rule do: Services work, the
# ways that need no translation do not, and check-node says so. With its remedy they work, and it is content.

load helpers

setup_file() {
  suite_lab || return 0
  lab_pod node1 pod underlay46
  lab_serve node1/pod 8080
  lab_overlay_pod node1 overlay calico
  lab_serve node1/overlay 8080
  lab_pod node2 backend underlay46
  lab_serve node2/backend 8080
  lab_service web 80:8080 node2/backend
  lab_service local 80:8080 --node-port 30080 --local node1/pod
}

teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  lab_in node1 sh -c 'iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT; iptables -F TEST; ip6tables -F TEST
    nft delete table inet firewall; nft delete table ip firewall' 2>/dev/null || true
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'for program in iptables-legacy ip6tables-legacy; do $program -P FORWARD ACCEPT; $program -F; $program -X; done' \
    2>/dev/null || true
  remedy -D 2>/dev/null || true
}

# says OK: what check-node says of forwarded packets, whether it is told the underlay's subnets or has to look at the pods that run; the checks are in
# $output.
says() {
  local subnets
  for subnets in '--subnet 10.6.0.0/16 --subnet fd00:6::/64' ''; do
    # shellcheck disable=SC2086 # several words
    run --separate-stderr lab_in node1 "$(lab_libexec)/check-node" $subnets
    output=$(jq -c '[.checks[] | select(.name == "forward")]' <<<"$output")
    assert_json "$output" 'all(.ok)' "$1" || fail "$subnets" || return
  done
}

# The ways through the node that need no translation, or keep the client's address: by answer, one of assert_answer's.
ways() {
  "$1" node1/pod "$(lab_address node1/overlay "$2")" 8080 ${3+overlay ''}
  "$1" client "$(lab_address node1 "$2")" 30080 ${3+pod ''}
}

pass() { ways assert_answer "$1" yes; }
drop() { ways assert_no_answer "$1"; }

# remedy -I|-D: what check-node advises, for iptables.
remedy() {
  local program side
  for program in iptables ip6tables; do
    for side in src dst; do lab_in node1 $program "$1" FORWARD -m devgroup --$side-group 85 -j ACCEPT; done
  done
}

@test "where the node drops no forwarded packet, check-node is content" {
  pass 4
  pass 6
  says true
}

@test "with overlayMasquerade it is the next link group that has to pass, and check-node names that one" {
  local settings='{"settings": {"overlayMasquerade": true, "linkGroup": 90}, "cidrs": {"service": [], "pod": []}}'
  lab_in node1 sh -c 'iptables -P FORWARD DROP; ip6tables -P FORWARD DROP'
  remedy -I
  says true
  lab_in node1 sh -c 'cat >/run/underpass/cluster.json' <<<"$settings"
  says false
  lab_in node1 rm /run/underpass/cluster.json
  assert_contains "$output" '--src-group 91 '
}

@test "a rule by the address of any pod that runs is named once, whichever subnet the pod is in" {
  local subnet
  lab_network 7 eth1
  lab_network_config node1 farther46 46 "$(lab_coordinator_json 46)" eth1
  lab_pod node1 farther farther46
  for subnet in 10.6.0.0/16 10.7.0.0/16; do
    lab_in node1 iptables -A FORWARD -s $subnet -j DROP
    run --separate-stderr lab_in node1 "$(lab_libexec)/check-node"
    lab_in node1 iptables -D FORWARD -s $subnet -j DROP
    assert_json "$output" '[.checks[] | select(.name == "forward").msg]' \
      '["chain FORWARD of table ip filter drops what goes from a pod to an overlay pod over IPv4"]'
  done
  lab_pod_delete node1 farther farther46
}

@test "with iptables' policy DROP a Service still works, but what is not translated does not, and check-node says so" {
  lab_in node1 iptables -P FORWARD DROP
  assert_answer node1/pod "$(lab_cluster_ip web 4)" 80 backend ''
  drop 4
  pass 6
  says false
  assert_json "$output" '[.[].msg]' \
    '["chain FORWARD of table ip filter drops what goes from a pod to an overlay pod over IPv4, to a pod from an overlay pod over IPv4, to a pod from a client of its NodePort over IPv4"]'
  assert_contains "$output" DOCKER-USER
}

@test "with ip6tables' policy DROP it is IPv6 that check-node names" {
  lab_in node1 ip6tables -P FORWARD DROP
  drop 6
  pass 4
  says false
  assert_contains "$output" 'chain FORWARD of table ip6 filter drops what goes from a pod to an overlay pod over IPv6'
}

@test "with the advised rules what was dropped passes, and check-node is content" {
  lab_in node1 iptables -P FORWARD DROP
  lab_in node1 ip6tables -P FORWARD DROP
  remedy -I
  pass 4
  pass 6
  says true
}

@test "an nftables chain whose policy is to drop is named, whatever iptables says, until the advised rules are in it" {
  lab_in node1 nft -f - <<'EOF2'
table inet firewall {
  chain guard {
    type filter hook forward priority filter + 10; policy drop;
    ct state established,related accept
  }
}
EOF2
  drop 4
  drop 6
  says false
  assert_contains "$output" 'chain guard of table inet firewall'
  lab_in node1 nft -f - <<'EOF2'
add rule inet firewall guard iifgroup 85 accept
add rule inet firewall guard oifgroup 85 accept
EOF2
  pass 4
  pass 6
  says true
}

@test "what iptables-legacy has, as an old Docker writes it, is named too, until the advised rules are in it" {
  local program
  lab_in node1 iptables-legacy -S >/dev/null 2>&1 || skip 'this kernel has no tables for iptables-legacy'
  for program in iptables-legacy ip6tables-legacy; do
    lab_in node1 sh -c "
      $program -N DOCKER-USER; $program -N DOCKER; $program -P FORWARD DROP
      $program -A FORWARD -j DOCKER-USER
      $program -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment docker -j ACCEPT
      $program -A FORWARD -o docker0 -g DOCKER
      $program -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
      $program -A DOCKER-USER -p tcp -j RETURN
      $program -A DOCKER-USER"
  done
  drop 4
  drop 6
  says false
  assert_json "$output" '[.[].msg[:58]]' '["chain FORWARD of table ip filter (iptables-legacy) drops w","chain FORWARD of table ip6 filter (iptables-legacy) drops "]'
  for program in iptables-legacy ip6tables-legacy; do
    lab_in node1 sh -c "
      $program -I DOCKER-USER -m devgroup --src-group 85 -j ACCEPT
      $program -I DOCKER-USER -m devgroup --dst-group 85 -j ACCEPT"
  done
  pass 4
  pass 6
  says true
}

@test "iptables-legacy's rules by address and by link count as they are: a subnet, all but a subnet, a chain that is left again" {
  lab_in node1 iptables-legacy -S >/dev/null 2>&1 || skip 'this kernel has no tables for iptables-legacy'
  local ok rule
  while IFS='|' read -r ok rule; do
    lab_in node1 sh -c "iptables-legacy -F; iptables-legacy -N PODS 2>/dev/null; iptables-legacy -P FORWARD ACCEPT; $rule"
    says "$ok" || fail "$rule"
  done <<'EOF2'
true|iptables-legacy -A FORWARD -s 10.7.0.0/16 -j DROP
false|iptables-legacy -A FORWARD -s 10.6.0.0/16 -j DROP
false|iptables-legacy -A FORWARD ! -s 10.7.0.0/16 -j REJECT
true|iptables-legacy -A FORWARD ! -s 10.6.0.0/16 -d 10.6.0.0/17 -i lo -j DROP
false|iptables-legacy -A FORWARD -d 10.6.0.0/16 -j PODS; iptables-legacy -A PODS -j DROP
true|iptables-legacy -A FORWARD -j PODS; iptables-legacy -A PODS -j RETURN; iptables-legacy -A PODS -j DROP
true|iptables-legacy -A FORWARD -g PODS; iptables-legacy -A FORWARD -j DROP
false|iptables-legacy -A FORWARD ! -i eth0 -j DROP
false|iptables-legacy -A FORWARD -o veth+ -j DROP
true|iptables-legacy -A FORWARD -i eth0 -j DROP; iptables-legacy -A FORWARD -i docker0 ! -o docker0 -j DROP
EOF2
}

@test "a rule by the name of a link is named where pods' own links make it drop, and only there" {
  local answer ok rule family
  while IFS='|' read -r answer ok rule; do
    lab_in node1 nft -f - <<EOF2
table inet firewall
delete table inet firewall
table inet firewall {
  chain guard { type filter hook forward priority filter + 10; $rule
  }
}
EOF2
    for family in 4 6; do
      "$answer" node1/pod "$(lab_address node1/overlay $family)" 8080 overlay || fail "$rule"
    done
    says "$ok" || fail "$rule"
  done <<'EOF2'
assert_no_answer|false|iifname != "eth0" drop
assert_no_answer|false|iifname "veth*" drop
assert_no_answer|false|oifname "veth*" drop
assert_answer|true|iifname "docker0" oifname != "docker0" drop
assert_answer|true|oifname "docker0" iifname != "docker0" drop
EOF2
}

@test "check-node makes no table of iptables-legacy's by looking for one" {
  lab_host looked
  expect 1 lab_in looked "$(lab_libexec)/check-node"
  assert_json "$output" '[.checks[] | select(.name == "forward")] | length > 0' true
  assert_equal "$(lab_in looked cat /proc/net/ip_tables_names /proc/net/ip6_tables_names)" ''
}

# firewalld's chains for forwarded packets, without its zones' own; SOURCE is a source of the zone trusted.
firewalld() {
  lab_in node1 nft -f - <<EOF2
table inet firewall {
  chain filter_FWD_trusted { accept
  }
  chain filter_FWD_public { reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES {
    ${1:+ip saddr $1 goto filter_FWD_trusted}
    goto filter_FWD_public
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_FORWARD_ZONES
    reject with icmpx admin-prohibited
  }
}
EOF2
}

@test "a last rule that rejects, as firewalld has it, is named, and a trusted source takes it away" {
  firewalld
  assert_no_answer node1/pod "$(lab_address node1/overlay 4)" 8080
  says false
  assert_contains "$output" 'chain filter_FORWARD of table inet firewall drops what goes from a pod to an overlay pod over IPv4'
  [[ $output != *"client of its NodePort"* ]] || fail "$output"
  lab_in node1 nft delete table inet firewall
  firewalld 10.6.0.0/16
  assert_answer node1/pod "$(lab_address node1/overlay 4)" 8080 overlay ''
  says false
  [[ $output != *"from a pod to an overlay pod over IPv4"* ]] || fail "$output"
}
