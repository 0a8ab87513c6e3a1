# check-node, and the case for which it is there: kube-proxy without masquerade.

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

# says NAME OK: what check-node says of one thing, whether it is told the underlay's subnets or has to look at the pods that run.
says() {
  local subnets
  for subnets in '' '--subnet 10.6.0.0/16'; do
    # shellcheck disable=SC2086 # two words
    run --separate-stderr lab_in node1 "$(lab_libexec)/check-node" $subnets
    assert_equal "$status" "$([ "$2" = true ] && printf 0 || printf 1)" || return
    assert_json "$output" ".checks[] | select(.name == \"$1\").ok" "$2" || return
  done
}

@test "without masquerade a backend on the pods' own network cannot answer, and check-node says so" {
  lab_masquerade none
  assert_no_answer node1/pod "$(lab_cluster_ip web 4)" 80
  says kube-proxy false
  assert_contains "$output" masqueradeAll
}

@test "with masqueradeAll it answers, and check-node is content" {
  lab_masquerade all
  assert_answer node1/pod "$(lab_cluster_ip web 4)" 80 backend ''
  assert_answer node1/pod "$(lab_cluster_ip web 6)" 80 backend ''
  says kube-proxy true
}

@test "with a clusterCIDR that has not the underlay's subnet it answers, and check-node is content" {
  lab_masquerade cluster
  assert_answer node1/pod "$(lab_cluster_ip web 4)" 80 backend ''
  says kube-proxy true
}

@test "check-node names forwarding that is off" {
  lab_in node1 sysctl -qw net.ipv6.conf.all.forwarding=0
  run --separate-stderr lab_in node1 "$(lab_libexec)/check-node"
  lab_in node1 sysctl -qw net.ipv6.conf.all.forwarding=1
  assert_equal "$status" 1
  assert_json "$output" '[.checks[] | select(.name == "forwarding") | .ok]' '[true,false]'
}

@test "IPv6 forwarding counts where the node or its pods have IPv6, and nowhere else" {
  local more count
  while read -r count more; do
    # shellcheck disable=SC2016,SC2086 # expanded by that shell; a list
    run --separate-stderr lab_in node1 unshare -n sh -c 'ip link set lo up
      if [ "$1" = address ]; then shift && ip address add fd00:9::1 dev lo; fi
      exec "$0" "$@"' "$(lab_libexec)/check-node" $more
    assert_json "$output" '[.checks[] | select(.name == "forwarding")] | length' "$count" || fail "$more"
  done <<'EOF'
1
1 --subnet 10.6.0.0/16
2 --subnet fd00:6::/64
2 address
EOF
}

@test "without kube-proxy check-node is content where the agent was told that sockets are the only path" {
  local parts=/run/underpass/node-agent.parts proxy='.checks[] | select(.name == "kube-proxy").ok'
  run --separate-stderr lab_in client env UNDERPASS_PATHS=socket "$(lab_libexec)/check-node"
  assert_json "$output" "$proxy" true
  assert_contains "$output" 'a node port'
  printf 'cidrs services scope metrics paths=socket\n' | lab_in client sh -c "mkdir -p ${parts%/*} && cat >$parts"
  run --separate-stderr lab_in client "$(lab_libexec)/check-node"
  assert_json "$output" "$proxy" true
  run --separate-stderr lab_in client env UNDERPASS_PATHS=both "$(lab_libexec)/check-node"
  assert_json "$output" "$proxy" false
  lab_in client rm $parts
}

@test "check-node says when there is no kube-proxy" {
  run --separate-stderr lab_in client "$(lab_libexec)/check-node"
  assert_equal "$status" 1
  assert_json "$output" '.checks[] | select(.name == "kube-proxy").ok' false
}

# proxy FLAG...: the first node's kube-proxy is another, with these flags.
proxy() {
  lab_stop kube-proxy-node1
  lab_in node1 sh -c 'iptables-save -t nat | grep -v KUBE | iptables-restore; ip6tables-save -t nat | grep -v KUBE | ip6tables-restore' || :
  lab_spawn kube-proxy-node1 node1 kube-proxy --kubeconfig "$LAB/kubernetes/proxy.conf" --hostname-override node1 \
    --proxy-mode iptables --iptables-min-sync-period 0 --iptables-localhost-nodeports=false --oom-score-adj 0 \
    --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 "$@"
  lab_until 20 lab_proxy_healthy node1
  lab_until 20 lab_in node1 sh -c 'iptables-save -t nat | grep -q KUBE-SVC'
}

@test "what check-node says of each way to tell local traffic is what a real kube-proxy does" {
  local flags answers
  while IFS='|' read -r answers flags; do
    # shellcheck disable=SC2086 # several flags
    proxy $flags
    if [ "$answers" = true ]; then
      lab_until 5 lab_ask node1/pod tcp "$(lab_cluster_ip web 4)" 80 || fail "no answer: $flags"
    else
      assert_no_answer node1/pod "$(lab_cluster_ip web 4)" 80
    fi
    says kube-proxy "$answers" || fail "$flags"
  done <<'EOF'
true|--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=cali
false|--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=veth
true|--detect-local-mode=BridgeInterface --pod-bridge-interface=cbr0
true|--masquerade-all=T
true|--masquerade_all
false|--masquerade-all=F
false|--masquerade-all=0
EOF
}

@test "a clusterCIDR that has the pods' own network, or none of their family, is named" {
  proxy --cluster-cidr=10.0.0.0/8,fd00::/16
  says kube-proxy false
  # Of the pods that run; the subnet that check-node is told of elsewhere is IPv4.
  proxy --cluster-cidr=10.233.64.0/18
  run --separate-stderr lab_in node1 "$(lab_libexec)/check-node"
  assert_json "$output" '.checks[] | select(.name == "kube-proxy").ok' false
  assert_contains "$output" fd00:6
}

@test "what systemd-networkd is configured to do is read where it runs, which may not be where check-node does, as it reads it itself" {
  local own ok command
  # networkd OK: what check-node says of it.
  networkd() {
    run --separate-stderr lab_in node1 "$(lab_libexec)/check-node"
    assert_json "$output" '.checks[] | select(.name == "networkd").ok' "$1"
  }
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn networkd node1 unshare -m sh -c 'for directory in /etc /run/systemd /usr/local/lib; do
      mkdir -p $directory && mount -t tmpfs none $directory || exit
    done
    mkdir -p /run/systemd/networkd.conf.d /etc/systemd/networkd.conf.d /usr/local/lib/systemd/networkd.conf.d
    ln -sf "$(command -v sleep)" /run/systemd-network && exec /run/systemd-network 60'
  own=/proc/$(<"$LAB/pid/networkd")
  lab_until 5 grep -qx systemd-network "$own/comm"
  printf '[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n' >"$BATS_TEST_TMPDIR/no"
  printf '[Network]\nManageForeignRoutes=yes\n' >"$BATS_TEST_TMPDIR/yes"
  while IFS='|' read -r ok command; do
    (cd "$own/root" && eval "$command")
    networkd "$ok" || fail "$command"
  done <<'EOF2'
false|true
true|cp "$BATS_TEST_TMPDIR/no" run/systemd/networkd.conf.d/own.conf
false|: >etc/systemd/networkd.conf.d/own.conf
false|ln -sf /dev/null etc/systemd/networkd.conf.d/own.conf
true|rm etc/systemd/networkd.conf.d/own.conf
false|cp "$BATS_TEST_TMPDIR/yes" usr/local/lib/systemd/networkd.conf.d/zone.conf
false|rm usr/local/lib/systemd/networkd.conf.d/zone.conf run/systemd/networkd.conf.d/own.conf
true|cp "$BATS_TEST_TMPDIR/no" usr/local/lib/systemd/networkd.conf
false|: >run/systemd/networkd.conf
true|cp "$BATS_TEST_TMPDIR/no" etc/systemd/networkd.conf
EOF2
  lab_stop networkd
}

@test "a state directory that is there and cannot be written, as on a read-only file system, is named" {
  # shellcheck disable=SC2016 # expanded by the inner shell
  run --separate-stderr lab_in node1 unshare -m sh -c 'mkdir -p /run/underpass && mount -t tmpfs -o ro none /run/underpass && exec "$0"' \
    "$(lab_libexec)/check-node"
  assert_json "$output" '.checks[] | select(.name == "state").ok' false
}

@test "what two processes say of a kube-proxy is said once, as while it is about to start another program" {
  proxy --masquerade-all=0
  lab_spawn about-to-start node1 bash -c 'exec -a kube-proxy bash -c "read -rt 60 <> <(:)" - --masquerade-all=0'
  lab_until 5 grep -q ^kube-proxy "/proc/$(<"$LAB/pid/about-to-start")/cmdline"
  says kube-proxy false
  lab_stop about-to-start
}

@test "check-node says which rule gets ahead of ours, and which does not" {
  local rule
  rules() {
    run --separate-stderr lab_in node1 "$(lab_libexec)/check-node"
    assert_json "$output" '.checks[] | select(.name == "rules").ok' "$1"
  }
  rules true
  while read -r rule; do
    lab_in node1 sh -c "ip rule add $rule"
    rules "$([[ $rule == *fwmark* ]] && printf true || printf false)" || fail "$rule"
    [[ $rule == *fwmark* ]] || assert_contains "$output" "pref ${rule:5:2}"
    lab_in node1 sh -c "ip rule del $rule"
  done <<'EOF'
pref 10 lookup main
pref 20 from 10.6.0.0/16 lookup 77
pref 30 fwmark 0x200/0xf00 lookup 77
pref 40 goto 32766
pref 41 unreachable
EOF
  rules true
}
