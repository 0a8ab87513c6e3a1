# Beside somebody else's socket load balancer: a stand-in with the name of Cilium's program, on the cgroup of ours.

load helpers
load lb

setup_file() {
  suite_lab 2 && lb_needs_program || return 0
  lab_pod node1 pod plain46
  lab_pod node2 ours plain46
  lab_serve node2/ours 8080
  lab_pod node2 theirs plain46
  lab_serve node2/theirs 8080
  lab_cgroup node1 >"$LAB/host/node1/cgroup"
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
  lab_reload node1
  CGROUP=$(<"$LAB/host/node1/cgroup")
}

teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  local name
  for name in theirs agent; do [ ! -e "$LAB/pid/$name" ] || lab_stop $name; done
  lab_lb node1 unload 2>/dev/null || :
}

table() {
  lb_apply "{\"services\": [$(lb_service web "{\"clusterIps\": [\"10.233.64.20\"], \"backends\": [{\"address\": \"$(lab_address node2/ours 4)\", \"port\": 8080}]}")]}"
}

# theirs: translates the same Service, to another backend.
theirs() {
  lab_spawn theirs node1 "$LAB_SOURCE/translate.py" cil_sock4_connect "$CGROUP" 10.233.64.20 80 "$(lab_address node2/theirs 4)" 8080
  lab_until 20 grep -q ready "$LAB/log/theirs" || fail "$(cat "$LAB/log/theirs")"
}

# says OK TEXT: what check-node says of those who translate.
says() {
  run --separate-stderr lab_in node1 "$(lab_libexec)/check-node" --cgroup "$CGROUP"
  assert_json "$output" '.checks[] | select(.name == "balancers").ok' "$1"
  assert_contains "$output" "$2"
}

answers() { expect 0 lab_served node1/pod "$LAB_SOURCE/identify" ask tcp 10.233.64.20 80 2 && assert_equal "${output%% *}" "$1"; }

@test "ours alone is no finding" {
  says true 'ours alone'
}

@test "Cilium's beside ours is named, and which of the two should go" {
  theirs
  says false 'ours and Cilium'"'"'s (cil_sock4_conne)'
  assert_contains "$output" 'socketLB.enabled=false'
  lab_stop theirs
  says true 'ours alone'
}

@test "the agent says it too, whose installation must not look" {
  lab_lb node1 unload
  theirs
  lab_spawn agent node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" UNDERPASS_CGROUP="$CGROUP" \
    "$LAB_REPO/scripts/node-agent" services --kubeconfig /nowhere
  lab_until 30 grep -q "ours and Cilium's (cil_sock4_conne)" "$LAB/log/agent"
  lab_stop agent
}

# counted NUMBER: how many others the metrics have.
counted() { lab_in node1 grep -qx "underpass_lb_others $1" /run/underpass/bpf-lb-load.prom; }

@test "Cilium's that comes while the agent runs is named too, and counted, and so is its end; meanwhile nothing is translated twice" {
  table
  mkfifo "$BATS_TEST_TMPDIR/lines"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn agent node1 sh -c 'exec "$0" follow <"$1"' "$(lab_lb_program)" "$BATS_TEST_TMPDIR/lines"
  exec 5>"$BATS_TEST_TMPDIR/lines"
  lab_until 10 counted 0
  answers ours
  theirs 5>&-
  lab_until 10 counted 1
  assert_contains "$(<"$LAB/log/agent")" "ours and Cilium's (cil_sock4_conne)"
  assert_contains "$(<"$LAB/log/agent")" 'socketLB.enabled=false'
  answers ours
  lab_stop theirs
  lab_until 10 counted 0
  assert_equal "$(grep -c "Cilium's (cil_sock4_conne)" "$LAB/log/agent")" 1
  assert_contains "$(<"$LAB/log/agent")" 'nobody else translates'
  exec 5>&-
  lab_stop agent
}

@test "Cilium's without ours is no finding" {
  lab_lb node1 unload
  theirs
  says true 'and ours does not'
}

@test "what Cilium's attached later would translate too is translated once, by ours" {
  table
  answers ours
  theirs
  answers ours
}

@test "what Cilium's attached before has translated is not translated again" {
  lab_lb node1 unload
  theirs
  answers theirs
  lab_reload node1
  table
  answers theirs
  lab_stop theirs
  answers ours
}
