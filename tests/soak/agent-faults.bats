# The node agent's Services while its processes are killed, and its credentials change. A real kube-apiserver.

load ../helpers

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd || return 0
  export LAB_LIFETIME=1800
  lab_up 1
  lab_kubernetes
  jq -n '{apiVersion: "v1", kind: "ConfigMap", metadata: {name: "underpass", namespace: "kube-system"},
    data: {settings: "podCIDRType: none\n"}}' | lab_kubectl apply --filename - >/dev/null
  lab_cgroup node1 >"$LAB/host/node1/cgroup"
  lab_network_config node1 all 46 '{"mode": "auto"}'
}

teardown() {
  [ -z "${LAB-}" ] || [ ! -e "$LAB/pid/agent" ] || lab_stop agent
}

# agent KUBECONFIG: the agent, and what starts it again as a kubelet does.
agent() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn agent node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" UNDERPASS_CGROUP="$(<"$LAB/host/node1/cgroup")" sh -c '
    echo $$ >/run/supervisor
    trap "kill \$pid; exit" TERM
    while :; do "$@" & pid=$!; wait $pid; sleep 0.5; done' sh "$LAB_REPO/scripts/node-agent" --kubeconfig "$1" --node node1
  lab_until 20 ready
}

ready() {
  lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" --ready >/dev/null 2>&1
}

# What the API's objects come to, by kubectl and jq alone: each port of a Service with its backends.
of_api() {
  lab_kubectl get services,endpointslices --all-namespaces --output json | jq -c '
    [.items[] | select(.kind == "EndpointSlice")] as $slices
    | [.items[] | select(.kind == "Service" and .spec.clusterIP != "None") | .metadata as $of | .spec as $spec | $spec.ports[] | . as $port
      | {name: "\($of.namespace)/\($of.name):\(.name // "")", ips: $spec.clusterIPs, port, backends: [
          $slices[] | select(.metadata.namespace == $of.namespace and .metadata.labels["kubernetes.io/service-name"] == $of.name)
          | (.ports[] | select((.name // "") == ($port.name // "") and .protocol == $port.protocol).port) as $number
          | .endpoints[] | select(.conditions.ready != false) | "\(.addresses[0]) \($number)"] | sort}] | sort'
}

of_kernel() {
  lab_lb node1 show | jq -c '[.services[] | {name: "\(.namespace)/\(.name):\(.portName // "")", ips: .clusterIps, port,
    backends: [.backends[] | "\(.address) \(.port)"] | sort}] | sort'
}

same() { [ "$(of_api)" = "$(of_kernel)" ]; }

faults() { timeout 1000 "$LAB_SOURCE/faults.py" "$@"; }

# FAULTS_SECONDS is how long it goes on. FAULTS_DELAY is how late a connection may be, in milliseconds, when nothing was killed in the
# last four seconds, FAULTS_RECOVERY how late after a kill: a part starts again, lists all, and compares it with the kernel.
@test "no connection is lost or late while each process of the agent is killed in turn, and the table is right at the end" {
  local seconds=${FAULTS_SECONDS:-300} pids=() pid
  export LAB
  "$LAB_SOURCE/faults.py" make | lab_kubectl apply --filename - >/dev/null
  agent "$LAB/kubernetes/admin.conf"
  lab_pod node1 client all
  lab_in node1/client ip route add local 10.200.0.0/13 dev lo
  lab_until 10 same
  lab_served node1/client timeout 1000 "$LAB_SOURCE/faults.py" ask "$seconds" >>"$BATS_TEST_TMPDIR/answers" 2>"$BATS_TEST_TMPDIR/errors" 3>&- &
  pids+=($!)
  lab_in control "$LAB_SOURCE/faults.py" change "$seconds" 20 >"$BATS_TEST_TMPDIR/changes" 2>>"$BATS_TEST_TMPDIR/errors" 3>&- &
  pids+=($!)
  lab_in node1 "$LAB_SOURCE/faults.py" kill "$((seconds - 5))" 6 >"$BATS_TEST_TMPDIR/kills" 2>>"$BATS_TEST_TMPDIR/errors"
  for pid in "${pids[@]}"; do wait "$pid"; done
  lab_until 20 same || fail "$(of_api)" "$(of_kernel)" "$(tail -n 20 "$LAB/log/agent")"
  expect 0 faults judge "$BATS_TEST_TMPDIR"/{changes,answers,kills} 4
  # shellcheck disable=SC2154 # set by expect
  printf '# %s\n' "$output" >&3
  assert_json "$output" .wrong '{}'
  assert_json "$output" ".late.calm[1] <= ${FAULTS_DELAY:-50}" true
  assert_json "$output" ".late.afterKill[1] <= ${FAULTS_RECOVERY:-3000}" true
  assert_json "$output" ".connections > 20 * $seconds and .changes > 10 * $seconds and .kills >= $seconds / 8" true
}

# A token file is read again within a minute.
@test "credentials that change are taken up from their file, and meanwhile the table stands" {
  printf 'no-such-token' >"$LAB/kubernetes/token"
  lab_kubeconfig none | jq --arg file "$LAB/kubernetes/token" '.users[0].user = {tokenFile: $file}' >"$LAB/kubernetes/file.conf"
  lab_spawn watch node1 env UNDERPASS_STATE=/run/watch "$(lab_libexec)/watch-services" --watch --node node1 \
    --kubeconfig "$LAB/kubernetes/file.conf"
  lab_until 10 grep -q '(401)' "$LAB/log/watch"
  printf 'admin-token' >"$LAB/kubernetes/token"
  lab_until 90 grep -q '^{"table"' "$LAB/log/watch"
  lab_until 10 grep -q 'in contact again' "$LAB/log/watch"
  lab_stop watch
}
