# The node agent: its parts, and who takes part in the socket path. A real kube-apiserver, and pods of several networks.

load helpers
load lb

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd || return 0
  lab_up
  lab_kubernetes
  settings
  lab_cgroup node1 >"$LAB/host/node1/cgroup"
  lab_network_config node1 all 46 '{"mode": "auto"}'
  lab_network_config node1 out 46 '{"mode": "auto", "socketPath": false}'
  lab_pod node2 backend plain46
  lab_serve node2/backend 8080
  objects web 10.233.64.20
  agent_start
  lab_until 20 agent --ready
}

teardown() {
  [ -n "${LAB-}" ] || return 0
  # bats says so of a test that failed: it may have left anything, and the next one begins as the first did.
  [ -n "${BATS_TEST_COMPLETED-}" ] || anew
  [ -e "$LAB/pid/agent" ] || agent_start
}

anew() {
  local name
  for name in agent first looks refuse serve taker; do [ ! -e "$LAB/pid/$name" ] || lab_stop $name; done
  [ -e "$LAB/pid/apiserver" ] || lab_apiserver
  lab_in node1 sh -c 'umount /run/underpass; rmdir /run/underpass/node-agent.parts; rm -rf /run/cgroup /run/underpass/cluster.json
    sysctl -qw net.ipv6.bindv6only=0' 2>/dev/null
  settings
  pod no '"underpass.io/socket-path": "true"'
  agent --uninstall
  agent_start
  lab_until 30 agent --ready
}

# settings: the cluster's, as they are at the beginning of each test.
settings() {
  jq -n '{apiVersion: "v1", kind: "ConfigMap", metadata: {name: "underpass", namespace: "kube-system"},
    data: {settings: "podCIDRType: none\n"}}' | lab_kubectl apply --filename - >/dev/null
}

# objects NAME ADDRESS: a Service with one endpoint, which no rule of the node translates: who reaches it does so by the socket path.
objects() {
  jq -n --arg address "$(lab_address node2/backend 4)" --arg name "$1" --arg ip "$2" '{apiVersion: "v1", kind: "List", items: [
    {apiVersion: "v1", kind: "Service", metadata: {name: $name, namespace: "default"},
      spec: {clusterIP: $ip, ports: [{port: 80}]}},
    {apiVersion: "discovery.k8s.io/v1", kind: "EndpointSlice", addressType: "IPv4",
      metadata: {name: $name, namespace: "default", labels: {"kubernetes.io/service-name": $name}},
      endpoints: [{addresses: [$address], conditions: {ready: true}}], ports: [{port: 8080}]}]}' |
    lab_kubectl apply --filename - >/dev/null
}

# agent_start [USER]: with the parts that are in PARTS, all by default.
agent_start() {
  # shellcheck disable=SC2086 # a list
  lab_spawn agent node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" UNDERPASS_CGROUP="${CGROUP:-$(<"$LAB/host/node1/cgroup")}" \
    UNDERPASS_LOAD_FLAGS="${LOAD_FLAGS-}" UNDERPASS_SCOPE_FLAGS="${SCOPE_FLAGS-}" UNDERPASS_END_FLAGS="${END_FLAGS-}" \
    UNDERPASS_FOLLOW_FLAGS="${FOLLOW_FLAGS-}" UNDERPASS_PATHS="${PATHS-}" "$LAB_REPO/scripts/node-agent" ${PARTS-} --kubeconfig "$LAB/kubernetes/${1:-admin}.conf" \
    --node node1
}

# agent FLAG: asks the agent on node1.
agent() {
  lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" "$1" 2>&1
}

# pod NAME ANNOTATIONS: the object of a pod on node1.
pod() {
  lab_kubectl apply --filename - >/dev/null <<END
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "$1", "namespace": "default", "annotations": {$2}},
 "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "c"}]}}
END
}

# named POD: what a runtime says of it in a CNI call.
named() {
  printf 'IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=%s\n' "$1"
}

# asked POD [ADDRESS]: whether the backend answers by the Service's address.
asked() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in "node1/$1" sh -c 'printf "0\n" >"$0/cgroup.procs" && exec "$@"' "$(<"$LAB/host/node1/cgroup")" \
    "$LAB_SOURCE/identify" ask tcp "${2:-10.233.64.20}" 80 2
}

not_asked() { ! asked "$@" >/dev/null 2>&1; }

@test "a pod reaches a Service by the socket path as soon as the agent has followed" {
  lab_pod node1 plain all
  lab_until 10 asked plain
}

@test "a network's setting leaves its pods out" {
  lab_pod node1 left out
  sleep 1
  not_asked left
}

@test "a pod's annotation leaves it out, or lets it in where its network leaves pods out" {
  pod no '"underpass.io/socket-path": "false"'
  pod yes '"underpass.io/socket-path": "true"'
  LAB_CNI_ARGS=$(named no) lab_pod node1 no all
  LAB_CNI_ARGS=$(named yes) lab_pod node1 yes out
  lab_until 5 not_asked no
  lab_until 5 asked yes
  pod no '"underpass.io/socket-path": "true"'
  lab_until 5 asked no
}

@test "an annotation that says neither true nor false is named once, and of no account" {
  pod no '"underpass.io/socket-path": "False"'
  lab_until 5 logged 'pod default/no: its annotation underpass.io/socket-path is \"False\", neither'
  pod no '"underpass.io/socket-path": "False", "a": "b"'
  pod no '"underpass.io/socket-path": "off"'
  lab_until 5 logged 'socket-path is \"off\"'
  assert_equal "$(grep -c 'socket-path is ..False' "$LAB/log/agent")" 1
  asked no
  pod no '"underpass.io/socket-path": "true"'
}

# udp_connected: the error with which a pod connects a UDP socket to a Service without backends.
udp_connected() {
  lab_sockets node1/plain <<<'print(errno_of(connect, SOCK_DGRAM, "10.233.64.23"))'
}

is_udp_connected() { [ "$(udp_connected)" = "$1" ]; }

@test "UDP to a Service without backends is left to the host path where there is one, and refused where there is none" {
  jq -n '{apiVersion: "v1", kind: "Service", metadata: {name: "none", namespace: "default"},
    spec: {clusterIP: "10.233.64.23", ports: [{port: 80, protocol: "UDP"}]}}' | lab_kubectl apply --filename - >/dev/null
  lab_until 10 lab_lb_has none
  assert_equal "$(udp_connected)" None
  lab_stop agent
  PATHS=socket agent_start
  lab_until 10 is_udp_connected ECONNREFUSED
  lab_stop agent
  # What is given by hand is not given twice.
  LOAD_FLAGS=--host-path agent_start
  lab_until 10 is_udp_connected None
}

# has_address POD ADDRESS: the API learns where it is.
has_address() {
  jq -n --arg ip "$2" '{status: {podIP: $ip, podIPs: [{ip: $ip}]}}' |
    lab_kubectl patch pod "$1" --subresource status --type merge --patch-file /dev/stdin >/dev/null
}

@test "a pod of another plugin is left out by its annotation too" {
  lab_pod node1 other plain46
  lab_until 5 asked other
  pod other '"underpass.io/socket-path": "false"'
  has_address other "$(lab_address node1/other 4)"
  lab_until 5 not_asked other
}

@test "a pod of another plugin is left out before the API has its address, from its first process on" {
  local uid cgroup name driver=0
  for name in early late; do
    lab_pod node1 $name plain46
    lab_until 5 asked $name
    pod $name '"sidecar.istio.io/status": "{}"'
    uid=$(lab_kubectl get pod $name --output 'jsonpath={.metadata.uid}')
    # With kubelet's two drivers of cgroups.
    [ $((driver++)) = 0 ] && cgroup=pod$uid || cgroup=kubepods-besteffort-pod${uid//-/_}.slice
    cgroup=$(<"$LAB/host/node1/cgroup")/$cgroup
    mkdir "$cgroup"
    sleep 0.3
    asked $name
    # shellcheck disable=SC2016 # expanded by the inner shell
    lab_spawn $name "node1/$name" sh -c 'printf "0\n" >"$0/cgroup.procs" && exec sleep 1000' "$cgroup"
    # Sooner than all is looked at again.
    lab_until 2 not_asked $name
    # It is the same when its address is known.
    has_address $name "$(lab_address "node1/$name" 4)"
    sleep 0.5
    not_asked $name
    lab_stop $name
    lab_kubectl delete pod $name --force --grace-period 0 >/dev/null 2>&1
    lab_until 5 asked $name
    lab_until 5 rmdir "$cgroup"
  done
}

@test "a pod of a service mesh is left out, whoever made its interface, unless its own annotation lets it in" {
  local name mesh
  LAB_CNI_ARGS=$(named meshed) lab_pod node1 meshed all
  for name in meshed other; do
    for mesh in '"sidecar.istio.io/status": "{}"' '"linkerd.io/proxy-version": "edge-25.1.1"' '"ambient.istio.io/redirection": "enabled"'; do
      pod $name '"a": "b"'
      lab_until 5 asked $name
      pod $name "$mesh"
      lab_until 5 not_asked $name
    done
    pod $name "$mesh, \"underpass.io/socket-path\": \"true\""
    lab_until 5 asked $name
    pod $name "$mesh"
    lab_until 5 not_asked $name
  done
  pod meshed '"ambient.istio.io/redirection": "disabled"'
  lab_until 5 asked meshed
}

@test "where nobody else translates, pods of a service mesh take part too, node ports answer on all nodes, and the table never expires" {
  lab_stop agent
  # The flag that is there already is not given twice.
  PATHS=socket SCOPE_FLAGS=--with-meshes END_FLAGS='--tcp never' agent_start
  lab_until 10 asked other
  lab_until 10 lab_in node1 pgrep -f 'end-sockets --tcp never' >/dev/null
  lab_until 10 lab_in node1 pgrep -f 'watch-services --watch --all-node-ports' >/dev/null
  lab_until 10 lab_in node1 pgrep -fx 'bpf-lb-load follow' >/dev/null
  lab_stop agent
  agent_start
  lab_until 10 not_asked other
  lab_until 10 lab_in node1 pgrep -fx 'bpf-lb-load follow --lease 600' >/dev/null
}

@test "a pod that has ended has no say on whoever has its address now" {
  lab_kubectl patch pod other --subresource status --type merge --patch '{"status": {"phase": "Succeeded"}}' >/dev/null
  lab_until 5 asked other
}

# moved_asked: the same of the pod whose network namespace has no name where runtimes keep them.
moved_asked() {
  lab_served node1 nsenter --net=/run/elsewhere/moved "$LAB_SOURCE/identify" ask tcp 10.233.64.20 80 2 >/dev/null 2>&1
}

moved_not_asked() { ! moved_asked; }

@test "a pod is found by its processes where its runtime keeps no name of its network namespace, and is named once where it is not found" {
  local address
  lab_pod node1 moved plain46
  address=$(lab_address node1/moved 4)
  lab_spawn moved node1/moved sleep 1000
  lab_in node1 sh -c 'mkdir -p /run/elsewhere && : >/run/elsewhere/moved && mount --bind /run/netns/moved /run/elsewhere/moved &&
    umount /run/netns/moved && rm /run/netns/moved'
  lab_until 5 moved_asked
  pod moved '"underpass.io/socket-path": "false"'
  has_address moved "$address"
  lab_until 5 moved_not_asked
  lab_in node1 grep -qx 'underpass_scope_unfound 0' /run/underpass/scope-pods.prom

  pod nowhere '"linkerd.io/proxy-version": "edge-25.1.1"'
  has_address nowhere 192.0.2.77
  lab_until 20 logged 'pod default/nowhere: no network namespace of this node has its address'
  lab_until 5 lab_in node1 grep -qx 'underpass_scope_unfound 1' /run/underpass/scope-pods.prom
  pod other '"a": "c"'
  sleep 6
  assert_equal "$(grep -c 'pod default/nowhere: no network' "$LAB/log/agent")" 1
  assert_equal "$(grep -c 'pod default/moved: no network' "$LAB/log/agent")" 0
  lab_kubectl delete pod nowhere --now --wait=false >/dev/null
  lab_until 10 lab_in node1 grep -qx 'underpass_scope_unfound 0' /run/underpass/scope-pods.prom
  lab_stop moved
  lab_kubectl delete pod moved --now --wait=false >/dev/null
  lab_in node1 sh -c 'umount /run/elsewhere/moved && rm -r /run/elsewhere'
}

@test "an agent that starts while the API server is away leaves pods as their annotations said" {
  pod no '"underpass.io/socket-path": "false"'
  lab_until 5 not_asked no
  lab_stop agent
  expect 124 lab_in node1 timeout 2 "$(lab_libexec)/scope-pods" --node node1 --kubeconfig /dev/stdin <<<'{"apiVersion": "v1",
    "kind": "Config", "current-context": "away", "contexts": [{"name": "away", "context": {"cluster": "away"}}],
    "clusters": [{"name": "away", "cluster": {"server": "http://127.0.0.1:9"}}]}'
  assert_equal "$(jq -r .level <<<"$stderr")" error
  not_asked no
  agent_start
  pod no '"underpass.io/socket-path": "true"'
  lab_until 10 asked no
}

@test "the cluster's setting leaves all out but those who say otherwise, and takes effect in pods that run" {
  lab_kubectl patch configmap underpass -n kube-system --type merge \
    --patch '{"data": {"settings": "podCIDRType: none\nsocketPath: false\n"}}' >/dev/null
  lab_until 10 not_asked plain
  lab_until 5 asked yes
  settings
  lab_until 10 asked plain
}

@test "an agent that does not know the cluster's settings yet, or cannot read them, lets nobody in" {
  lab_stop agent
  expect 0 agent --uninstall
  lab_kubectl patch configmap underpass -n kube-system --type merge \
    --patch '{"data": {"settings": "podCIDRType: none\nsocketPath: false\n"}}' >/dev/null
  # What is to find them out ends before it has.
  mkdir "$BATS_TEST_TMPDIR/tools"
  ln -s "$(lab_libexec)"/* "$BATS_TEST_TMPDIR/tools/"
  ln -sf "$(command -v false)" "$BATS_TEST_TMPDIR/tools/sync-cidrs"
  UNDERPASS_LIBEXEC=$BATS_TEST_TMPDIR/tools agent_start
  lab_until 10 logged "the cluster's settings are not known yet"
  assert_equal "$(grep 'not known yet' "$LAB/log/agent" | jq -r .level | sort -u)" info
  lab_until 10 lab_lb_has web
  sleep 1
  not_asked plain
  printf 'no JSON' | lab_in node1 tee /run/underpass/cluster.json >/dev/null
  lab_until 10 logged "cannot read the cluster's settings"
  not_asked plain
  lab_stop agent
  agent_start
  lab_until 10 asked yes
  not_asked plain
  settings
  lab_until 10 asked plain
}

@test "an agent that does not know which pods take part is not ready, whatever keeps it from knowing, and says so" {
  local tools=$BATS_TEST_TMPDIR/tools
  lab_stop agent
  expect 0 agent --uninstall
  mkdir "$tools"
  ln -s "$(lab_libexec)"/* "$tools/"
  # It asks where nobody answers.
  rm "$tools/scope-pods"
  printf '#!/bin/sh\nexec %s/scope-pods --node node1 --kubeconfig /run/away\n' "$(lab_libexec)" >"$tools/scope-pods"
  chmod +x "$tools/scope-pods"
  printf '%s' '{"apiVersion": "v1", "kind": "Config", "current-context": "away", "contexts": [{"name": "away", "context": {"cluster": "away"}}],
    "clusters": [{"name": "away", "cluster": {"server": "http://127.0.0.1:9"}}]}' | lab_in node1 tee /run/away >/dev/null
  UNDERPASS_LIBEXEC=$tools agent_start
  lab_until 10 lab_lb_has web
  lab_until 10 lab_in node1 grep -qx 'underpass_scope_known 0' /run/underpass/scope-pods.prom
  not_asked plain
  lab_until 10 unready 'it is not known yet which pods take part in the socket path'
  # It ends at once, from some moment on.
  ln -sf "$(lab_libexec)/scope-pods" "$tools/scope-pods"
  lab_in node1 pkill -x scope-pods
  lab_until 10 agent --ready || fail "$(cat "$LAB/log/agent")"
  ln -sf "$(command -v false)" "$tools/scope-pods"
  lab_in node1 pkill -x scope-pods
  lab_until 10 unready 'scope-pods is not running'
  lab_stop agent
  agent_start
  lab_until 10 asked plain
  lab_until 10 agent --ready
}

# unready WORDS: whether the agent is not ready, for this reason.
unready() { [ "$(agent --ready)" = "node-agent: $1" ]; }

logged() { grep -qF "$1" "$LAB/log/agent"; }

@test "each tool of the agent that is killed is started again, and meanwhile the data path stands" {
  local tool before
  for tool in watch-services bpf-lb-load end-sockets scope-pods keep-pods sync-cidrs-kube serve-metrics; do
    lab_until 10 pids $tool >/dev/null || fail "$tool does not run"
    before=$(pids $tool)
    lab_in node1 xargs -n 1 kill -KILL <<<"$before"
    asked plain >/dev/null
    lab_until 10 another $tool "$before"
  done
  lab_until 10 asked plain
}

@test "a part of the agent that is killed is started again, with all of its tools" {
  local name before count
  for name in cidrs services scope metrics; do
    before=$(part $name)
    count=$(starts $name)
    lab_in node1 kill -KILL "$before"
    lab_until 10 another_part $name "$before" || fail "$name is not started again"
    lab_until 10 more_starts $name "$count" || fail "$name: $count starts, and then $(starts $name)"
  done
  for tool in watch-services bpf-lb-load end-sockets scope-pods keep-pods sync-cidrs-kube serve-metrics; do
    lab_until 10 pids $tool >/dev/null || fail "$tool does not run"
  done
  lab_until 10 asked plain
}

# part NAME: the shell of that part.
part() {
  lab_in node1 pgrep -f -- "node-agent --part $1 "
}

# starts NAME: how often that part was started, as its metric says.
starts() {
  lab_in node1 sed -n "s/^underpass_part_starts_total{part=\"$1\"} //p" "/run/underpass/node-agent.starts.$1.prom"
}

more_starts() { [ "$(starts "$1")" -gt "$2" ]; }

another_part() {
  local now
  now=$(part "$1") && [ "$now" != "$2" ]
}

@test "larger maps that the agent is told of take the place of those that there are, and Services stay in the kernel" {
  local table
  lab_stop agent
  table=$(lab_lb node1 show)
  LOAD_FLAGS='--max-backends 262144' agent_start
  lab_until 20 agent --ready
  asked plain
  assert_equal "$(lab_lb node1 show)" "$table"
  lab_stop agent
  expect 0 lab_lb node1 load --max-backends 1
  assert_contains "$stderr" '--max-backends is 262144, and 1 only after unload'
  asked plain
}

@test "with a full state directory Services and settings are followed and pods are cared for, and what cannot be written is said once" {
  lab_stop agent
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'cp -a /run/underpass /run/copy && rm -f /run/copy/*.prom && mount -t tmpfs -o size=256k none /run/underpass &&
    cp -a /run/copy/. /run/underpass && rm -r /run/copy && ! cat /dev/zero 2>/dev/null >/run/underpass/zeros'
  agent_start
  objects full 10.233.64.22
  lab_until 20 asked plain 10.233.64.22
  lab_kubectl patch configmap underpass -n kube-system --type merge --patch '{"data": {"settings": "podCIDRType: cluster\n"}}' >/dev/null
  lab_until 10 has_route plain
  lab_in node1/plain ip route del 10.233.64.0/18
  lab_until 10 has_route plain
  assert_equal "$(grep -c 'cannot write .*/watch-services.prom: No space left' "$LAB/log/agent")" 1
  assert_equal "$(grep -c 'cannot write .*/cluster.json: No space left' "$LAB/log/agent")" 1
  assert_equal "$(grep -c 'starting again' "$LAB/log/agent")" 0
  # Nobody takes them for dead, and ends what could not begin again without room.
  lab_in node1 sh -c 'cd /run/underpass && touch --date "3 minutes ago" sync-cidrs.prom watch-services.prom scope-pods.prom'
  lab_until 10 lab_in node1 curl -fsS http://localhost:10266/livez
  expect 0 agent --live

  lab_in node1 rm /run/underpass/zeros
  lab_until 10 lab_in node1 grep -q '10.233.64.0/18' /run/underpass/cluster.json
  for name in watch-services sync-cidrs keep-pods; do lab_until 10 lab_in node1 test -s "/run/underpass/$name.prom"; done
  settings
  lab_stop agent
  lab_in node1 umount /run/underpass
}

has_route() { lab_in "node1/$1" ip route show 10.233.64.0/18 | grep -q .; }

@test "what somebody takes away of the socket path is loaded again" {
  local taken before
  lab_until 10 asked plain
  for taken in underpass underpass/links/connect4; do
    before=$(pin)
    lab_in node1 rm -r "/sys/fs/bpf/$taken"
    lab_until 15 pinned_since "$before"
    lab_until 15 asked plain
  done
  logged 'somebody took away what was loaded'
}

# pin: the number of a pin's file, which no other one gets.
pin() { lab_in node1 stat -c %i /sys/fs/bpf/underpass/links/connect4 2>/dev/null; }

pinned_since() {
  local now
  now=$(pin) && [ "$now" != "$1" ]
}

@test "scope-pods that looks in the very moment in which maps come finds none yet, and has no error to tell of" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  local round
  lab_stop agent
  expect 0 agent --uninstall
  printf '{"settings": {}}' | lab_in node1 tee /run/underpass/cluster.json >/dev/null
  # What it asks the kernel for it hears late: what is there by then was not when it asked.
  lab_spawn looks node1 strace --interruptible=waiting --follow-forks --quiet=all --trace=bpf --inject=bpf:delay_exit=700000 \
    --output=/dev/null "$(lab_libexec)/scope-pods" --node node1 --kubeconfig "$LAB/kubernetes/admin.conf"
  for round in 1 2 3 4; do
    lab_until 10 looked 'load first' "$round"
    lab_lb node1 load --cgroup "$(<"$LAB/host/node1/cgroup")" --scope only
    lab_until 30 looked 'are exceptions now' "$round"
    lab_lb node1 unload
  done
  lab_stop looks
  assert_equal "$(grep '"error"' "$LAB/log/looks")" ''
}

# looked WORDS COUNT: whether it has said that so many times.
looked() { [ "$(grep -cF "$1" "$LAB/log/looks")" -ge "$2" ]; }

# pids TOOL: of the agent on node1, without what has ended and is not waited for.
pids() {
  lab_in node1 pgrep --runstates D,R,S -x "$1"
}

another() {
  local now
  now=$(pids "$1") && [ "$now" != "$2" ]
}

@test "a socket path that cannot be loaded is tried again less and less often, its reason is said once, and metric and readiness tell of it" {
  lab_stop agent
  expect 0 agent --uninstall
  lab_in node1 rm -rf /run/cgroup
  CGROUP=/run/cgroup PATHS=socket agent_start
  lab_until 20 logged 'services: starting again in 2 s'
  # Another reason is said as well.
  lab_in node1 mkdir /run/cgroup
  lab_until 20 logged 'services: starting again in 8 s'
  assert_equal "$(grep -c 'cgroup /run/cgroup: No such file' "$LAB/log/agent")" 1
  assert_equal "$(grep -c '/run/cgroup is not a directory of cgroup v2' "$LAB/log/agent")" 1
  expect 1 agent --ready
  assert_equal "$output" 'node-agent: the socket path does not work yet'
  lab_in node1 curl -fsS http://localhost:10266/metrics | grep -qx 'underpass_lb_attached 0'
  # Whoever starts again an agent that is not well leaves this one alone: the rest of it works.
  lab_in node1 touch --date '10 minutes ago' /run/underpass/watch-services.prom
  lab_until 30 lab_in node1 curl -fsS http://localhost:10266/livez
  lab_in node1 grep -qx 'underpass_cidrs_known 1' /run/underpass/sync-cidrs.prom
  lab_in node1 rmdir /run/cgroup
  lab_in node1 ln -s "$(<"$LAB/host/node1/cgroup")" /run/cgroup
  lab_until 60 agent --ready
  lab_in node1 curl -fsS http://localhost:10266/metrics | grep -qx 'underpass_lb_attached 1'
  lab_stop agent
}

@test "where pods have the host path an agent is ready without the socket path, unless programs of before serve by a table that nobody follows" {
  lab_until 20 agent --ready
  lab_stop agent
  PATHS=both CGROUP=/run/nowhere agent_start
  lab_until 10 logged 'cgroup /run/nowhere: No such file'
  lab_until 10 unready 'the socket path does not work yet'
  lab_stop agent
  expect 0 agent --uninstall
  CGROUP=/run/nowhere agent_start
  lab_until 20 agent --ready
  expect 0 agent --ready
  assert_equal "$output" 'node-agent: the socket path does not work: pods take the host path'
  lab_stop agent
}

@test "an agent whose tool ends after a while ends nobody who has got the number of a process that is gone" {
  local first last before others
  lab_stop agent
  # shellcheck disable=SC2016 # expanded by the inner shell
  first=$(lab_in node1 sh -c 'echo $$')
  PARTS=metrics agent_start
  lab_until 10 pids serve-metrics
  sleep 5
  before=$(pids serve-metrics)
  # shellcheck disable=SC2016 # expanded by the inner shell
  last=$(lab_in node1 sh -c 'echo $$')
  # shellcheck disable=SC2016 # expanded by the inner shell
  others=$(lab_in node1 sh -c 'for pid in $(seq "$0" "$1"); do
      [ -e "/proc/$pid" ] || { echo $((pid - 1)) >/proc/sys/kernel/ns_last_pid; sleep 30 >/dev/null & echo $!; }
    done' "$first" "$last")
  [ "$(wc -w <<<"$others")" -ge 5 ] || fail "$others, from $first to $last"
  lab_in node1 kill "$before"
  lab_until 10 another serve-metrics "$before"
  assert_equal "$(lab_in node1 pgrep -fxc 'sleep 30')" "$(wc -w <<<"$others")"
  lab_stop agent
}

# tools_with NAME <PROGRAM: a directory of all tools, in which a program of a shell takes the place of that one.
tools_with() {
  [ -d "$BATS_TEST_TMPDIR/tools" ] || { mkdir "$BATS_TEST_TMPDIR/tools" && ln -s "$(lab_libexec)"/* "$BATS_TEST_TMPDIR/tools/"; }
  rm "$BATS_TEST_TMPDIR/tools/$1"
  { printf '#!/bin/sh\n' && cat; } >"$BATS_TEST_TMPDIR/tools/$1"
  chmod +x "$BATS_TEST_TMPDIR/tools/$1"
}

@test "an agent one of whose tools ended before another ends nobody who has got its number since" {
  local first other
  lab_stop agent
  tools_with sync-cidrs <<<"echo \$\$ >>'$BATS_TEST_TMPDIR/first'"
  tools_with keep-pods <<<'exec sleep 1000'
  PARTS=cidrs UNDERPASS_LIBEXEC=$BATS_TEST_TMPDIR/tools agent_start
  lab_until 10 test -s "$BATS_TEST_TMPDIR/first"
  first=$(<"$BATS_TEST_TMPDIR/first")
  lab_until 10 lab_in node1 test ! -e "/proc/$first"
  # Somebody else may get the number first, and end.
  lab_until 10 again "$first"
  other=$first
  lab_in node1 pkill -fx 'sleep 1000'
  lab_until 10 several "$BATS_TEST_TMPDIR/first"
  assert_equal "$(lab_in node1 pgrep -fx 'sleep 40')" "$other"
  lab_stop agent
}

several() { [ "$(wc -l <"$1")" -ge 2 ]; }

# again PID: whether a process with this number begins.
again() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'echo $(($0 - 1)) >/proc/sys/kernel/ns_last_pid; sleep 40 >/dev/null & [ $! = "$0" ] || { kill $!; exit 1; }' "$1"
}

@test "a second agent on a node waits for the end of the first, and serves as soon as that is killed" {
  local before
  lab_until 20 agent --ready
  mv "$LAB/pid/agent" "$LAB/pid/first"
  mv "$LAB/log/agent" "$LAB/log/first"
  agent_start
  lab_until 10 logged 'waiting for the end of another agent'
  expect 0 agent --ready
  before=$(part metrics)
  lab_stop first KILL
  lab_until 20 another_part metrics "$before"
  lab_until 20 agent --ready
  assert_equal "$(grep -cE 'starting again in ([4-9]|.[0-9])' "$LAB/log/agent")" 0
}

@test "nobody is served where maps of another version gave way and loading anew fails, and that is said at once" {
  lab_stop agent
  tools_with bpf-lb-load <<END
[ "\$1" = load ] || exit 0
printf 'x\n' >>'$BATS_TEST_TMPDIR/loads'
case \$(wc -l <'$BATS_TEST_TMPDIR/loads') in
  1) echo 'the pinned maps have layout 4711' >&2 ;;
  2) echo 'no room' >&2 ;;
  *) until [ -e '$BATS_TEST_TMPDIR/end' ]; do sleep 0.1; done ;;
esac
exit 1
END
  PARTS=services UNDERPASS_LIBEXEC=$BATS_TEST_TMPDIR/tools agent_start
  lab_until 10 lab_in node1 grep -qx 'underpass_lb_attached 0' /run/underpass/bpf-lb-load.prom || fail "$(cat "$LAB/log/agent")"
  logged 'no room'
  # Until a version loads again, the node is not ready with the host path alone: nothing is to follow it.
  lab_in node1 test -e /run/underpass/node-agent.unloaded
  : >"$BATS_TEST_TMPDIR/end"
  lab_stop agent
}

@test "maps of another version give way to new ones, and pods that take part reach Services by the socket path again" {
  lab_stop agent
  lb_of_another_layout
  agent_start
  lab_until 20 agent --ready
  logged 'the maps are of another version'
  lab_until 5 asked plain
  not_asked left
  lab_in node1 test ! -e /run/underpass/node-agent.unloaded
}

@test "nothing starts whose parent was gone before it could ask for its end" {
  # shellcheck disable=SC2016 # expanded by those shells
  lab_in node1 sh -c '(until ! kill -0 $$ 2>/dev/null; do sleep 0.1; done; "$0" $$ touch "$1/started"; : >"$1/done") >/dev/null 2>&1 3>&- &' \
    "$(lab_libexec)/lifeline" "$BATS_TEST_TMPDIR"
  lab_until 10 test -e "$BATS_TEST_TMPDIR/done"
  [ ! -e "$BATS_TEST_TMPDIR/started" ] || fail 'it started'
}

@test "what an agent says to --ready of its parts is written as soon as it can be" {
  lab_stop agent
  lab_in node1 sh -c 'cd /run/underpass && rm -f node-agent.parts && mkdir node-agent.parts'
  PARTS=metrics agent_start
  lab_until 10 logged 'cannot write /run/underpass/node-agent.parts'
  expect 1 agent --ready
  assert_equal "$output" 'node-agent: no agent was started'
  lab_in node1 rmdir /run/underpass/node-agent.parts
  lab_until 20 agent --ready
  assert_equal "$(grep -c 'cannot write' "$LAB/log/agent")" 1
  lab_stop agent
}

served_as_written() { [ "$(agent --metrics)" = "$(lab_in node1 curl -fsS http://localhost:10266/metrics)" ]; }

@test "metrics of all parts and the health of those that follow are served over HTTP" {
  lab_until 20 agent --ready
  expect 0 lab_in node1 curl -fsS http://localhost:10266/metrics
  assert_contains "$output" underpass_cidrs_known
  # Prometheus' text format has these lines once for each metric, before all of its series.
  assert_equal "$(grep -E '^# (HELP|TYPE)' <<<"$output" | cut -d ' ' -f 2,3 | sort | uniq -d)" ''
  assert_equal "$(grep -A 4 '^# TYPE underpass_part_starts_total' <<<"$output" | sed -n 's/^underpass_part_starts_total{part="\([a-z]*\)"} [1-9].*/\1/p')" \
    $'cidrs\nmetrics\nscope\nservices'
  # Written every two seconds; nothing is added, and nothing left out.
  lab_until 20 served_as_written || fail "$(lab_in node1 curl -fsS http://localhost:10266/metrics)"
  expect 0 lab_in node1 curl -fsS http://localhost:10266/healthz
  assert_json "$output" 'keys' '["currentTime","lastUpdated"]'
  expect 0 lab_in node1 curl -fsS http://localhost:10266/livez
  expect 22 lab_in node1 curl -fsS http://localhost:10266/other
  expect 22 lab_in node1 curl -fsS -X POST http://localhost:10266/metrics
}

@test "an agent whose tool hangs is not said to live, and one that lacks only the port of its metrics is, and serves Services" {
  lab_until 20 agent --ready
  expect 0 agent --live
  local hangs
  hangs=$(pids sync-cidrs-kube)
  lab_in node1 kill -STOP "$hangs"
  lab_in node1 touch --date '3 minutes ago' /run/underpass/sync-cidrs.prom
  run agent --live
  lab_in node1 kill -CONT "$hangs"
  assert_equal "$status $output" '1 node-agent: sync-cidrs has written nothing for two minutes'
  lab_until 5 agent --live
  lab_stop agent
  lab_spawn taker node1 socat TCP6-LISTEN:10266,reuseaddr,fork /dev/null
  agent_start
  lab_until 10 logged 'cannot listen on'
  lab_until 20 agent --ready
  expect 0 agent --live
  asked plain
  lab_stop taker
  lab_until 40 another_answers
}

# serve COMMAND...: serve-metrics on node1, started by that command, with metrics of its own.
serve() {
  lab_spawn serve node1 env UNDERPASS_STATE=/run/served "$@" "$(lab_libexec)/serve-metrics" --listen '[::]:10299'
}

served() { lab_in node1 curl -fsS "http://$1:10299/livez" >/dev/null 2>&1; }

@test "both families are served whatever bindv6only says, and IPv4 on a node that has no IPv6" {
  lab_in node1 sysctl -qw net.ipv6.bindv6only=1
  serve env
  lab_until 5 served '[::1]'
  served 127.0.0.1
  lab_stop serve
  lab_in node1 sysctl -qw net.ipv6.bindv6only=0
  # socket(AF_INET6, ...) fails as with ipv6.disable=1 on the kernel's command line.
  serve /usr/bin/python3 -c '
import ctypes, os, struct, sys
number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 10), (0x06, 0, 0, 0x50061), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])'
  lab_until 5 served 127.0.0.1
  lab_stop serve
}

@test "the agent works in BusyBox' shell, with its own commands" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  lab_stop agent
  mkdir "$BATS_TEST_TMPDIR/bin"
  local applet
  for applet in $(busybox --list); do ln -s "$(command -v busybox)" "$BATS_TEST_TMPDIR/bin/$applet"; done
  lab_spawn agent node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" UNDERPASS_CGROUP="$(<"$LAB/host/node1/cgroup")" \
    PATH="$BATS_TEST_TMPDIR/bin" busybox sh "$LAB_REPO/scripts/node-agent" --kubeconfig "$LAB/kubernetes/admin.conf"
  lab_until 20 agent --ready
  lab_until 10 another_answers
  # It was told of no node: it is the one that the host is called.
  pod no '"underpass.io/socket-path": "false"'
  lab_until 5 not_asked no
  pod no '"underpass.io/socket-path": "true"'
  lab_until 5 asked no
  lab_stop agent
}

another_answers() { lab_in node1 curl -fsS http://localhost:10266/healthz >/dev/null 2>&1; }

@test "the agent is ready only when the first table is in the kernel" {
  lab_stop agent
  lab_kubectl apply --filename - <"$LAB_REPO/deploy/rbac.yaml" >/dev/null
  lab_kubeconfig "$(lab_kubectl create token underpass-node --namespace kube-system)" >"$LAB/kubernetes/node.conf"
  # It may read CIDRs, and no Services.
  # What the agent before has written is no news of this one.
  lab_in node1 sh -c 'rm -f /run/underpass/*.prom'
  agent_start node
  lab_until 20 nothing_but_the_table_is_missing || fail "$(cat "$LAB/log/agent")"
  expect 1 agent --ready
  assert_equal "$output" 'node-agent: the socket path does not work yet'
  lab_kubectl apply --filename - <"$LAB_REPO/deploy/services-rbac.yaml" >/dev/null
  lab_until 20 agent --ready
  lab_stop agent
}

nothing_but_the_table_is_missing() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'cd /run/underpass && [ -e watch-services.prom ] && grep -qx "underpass_cidrs_known 1" sync-cidrs.prom &&
    grep -qx "underpass_lb_attached 1" bpf-lb-load.prom'
}

@test "an agent that ends leaves the data path, and --uninstall takes it away" {
  asked plain
  lab_stop agent
  asked plain
  expect 0 agent --uninstall
  not_asked plain
  assert_equal "$(lab_in node1 find /sys/fs/bpf -mindepth 1 -path '*underpass*')" ''
  # Once more there is nothing to take away.
  : | lab_in node1 tee /run/underpass/a.prom
  expect 0 agent --uninstall
  assert_equal "$(lab_in node1 find /run/underpass -name '*.prom')" ''
}

@test "an agent that is killed with all of its parts, even as it writes, leaves nothing after --uninstall but the pods' own" {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'kill -KILL $(pgrep -f "[n]ode-agent --")'
  lab_until 30 gone agent
  rm "$LAB/pid/agent"
  : | lab_in node1 tee /run/underpass/a.prom.new /run/underpass/cluster.json.new
  [ -n "$(lab_in node1 find /run/underpass -name 'node-agent.services.*')" ] || fail 'no part has left anything'
  expect 0 agent --uninstall
  assert_equal "$(lab_in node1 find /run/underpass -mindepth 1 ! -name lock ! -path '*/attachments*')" ''
}

gone() { [ ! -d "/proc/$(<"$LAB/pid/$1")" ]; }

@test "the table of an agent that is gone expires where there is another path, and the next agent brings it back" {
  lab_stop agent
  FOLLOW_FLAGS='--lease 5' agent_start
  lab_until 20 agent --ready
  lab_stop agent KILL
  asked plain
  lab_until 10 not_asked plain
  agent_start
  lab_until 20 agent --ready
  asked plain
}

@test "the table of an agent that the API server denies Services expires where there is another path; while it does not answer the table stands" {
  local code
  lab_stop agent
  lab_refuse node1
  FOLLOW_FLAGS='--lease 5' agent_start refused
  lab_until 20 agent --ready
  lab_stop refuse
  sleep 10
  asked plain
  for code in 401 403; do
    lab_refuse node1 "$code" services
    lab_until 20 not_asked plain || fail "$code"
    # It was denied once, whoever does not answer now.
    lab_stop refuse
    sleep 3
    not_asked plain
    lab_refuse node1
    lab_until 20 asked plain || fail "$code"
  done
  # Also one that is denied from its beginning.
  lab_stop agent
  FOLLOW_FLAGS='--lease 15' agent_start refused
  lab_until 20 agent --ready
  lab_stop agent
  lab_stop refuse
  lab_refuse node1 403 endpointslices
  FOLLOW_FLAGS='--lease 15' agent_start refused
  lab_until 10 grep -q 'the table is not renewed' "$LAB/log/agent"
  asked plain
  lab_until 30 not_asked plain
  lab_stop agent
  lab_stop refuse
}

@test "the table stands where the API server does not answer from an agent's beginning, and expires where none ever follows, however often it begins" {
  lab_stop agent
  lab_refuse node1
  FOLLOW_FLAGS='--lease 20' agent_start refused
  lab_until 20 agent --ready
  lab_stop agent
  lab_stop refuse
  FOLLOW_FLAGS='--lease 20' agent_start refused
  sleep 25
  asked plain
  lab_stop agent
  # It ends each time before it asks anybody.
  printf 'users: 1\n' >"$LAB/kubernetes/broken.conf"
  FOLLOW_FLAGS='--lease 20' agent_start broken
  lab_until 40 not_asked plain || fail "$(cat "$LAB/log/agent")"
  lab_stop agent
}

@test "--uninstall waits for the end of an agent that runs, which would load again what it takes away" {
  lab_until 20 agent --ready
  lab_spawn removal node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" --uninstall
  lab_until 10 grep -q 'waiting for the end of the agent' "$LAB/log/removal"
  asked plain
  lab_stop agent
  lab_until 10 lab_in node1 test ! -e /sys/fs/bpf/underpass
  not_asked plain
}

@test "--uninstall that waits ends when it is told to, also as the first process of a container" {
  lab_until 20 agent --ready
  lab_spawn removal node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" unshare --pid --fork "$LAB_REPO/scripts/node-agent" --uninstall
  lab_until 10 grep -q 'waiting for the end of the agent' "$LAB/log/removal"
  kill "$(pgrep --parent "$(<"$LAB/pid/removal")")"
  lab_until 3 test ! -d "/proc/$(<"$LAB/pid/removal")"
  asked plain
}

@test "an agent that has Services no longer takes the socket path of the one before away, and no other's" {
  lab_until 20 agent --ready
  lab_stop agent
  lab_in node1 test -e /sys/fs/bpf/underpass
  PARTS='cidrs metrics' agent_start
  lab_until 20 agent --ready
  lab_in node1 test ! -e /sys/fs/bpf/underpass
  lab_stop agent
  lab_lb node1 load --cgroup "$(<"$LAB/host/node1/cgroup")"
  PARTS=metrics agent_start
  lab_until 20 agent --ready
  lab_in node1 test -e /sys/fs/bpf/underpass
  lab_stop agent
  lab_lb node1 unload
}

# note_metrics: adds what is served now to a file. A metric without any series is not served at all.
note_metrics() {
  { lab_in node1 curl -fsS http://localhost:10266/metrics && lab_lb node1 stats --format prometheus; } >>"$BATS_TEST_TMPDIR/metrics"
}

noted() { note_metrics && grep -q "^underpass_$1[{ ]" "$BATS_TEST_TMPDIR/metrics"; }

# The last test: after it there is no API.
@test "every metric is on the page of metrics in its own words, with its labels, and no other is" {
  # A repair, a Service that is reached and one without endpoints that somebody asks for, an EndpointSlice of nobody's, and CIDRs, of which those of pods are not found.
  lab_pod node1 watched all
  lab_in node1/watched ip route del "$(lab_in node1/watched ip -4 route show proto 85 | sed -n '1s/ .*//p')"
  jq -n '{apiVersion: "v1", kind: "List", items: [
    {apiVersion: "v1", kind: "Service", metadata: {name: "empty", namespace: "default"},
      spec: {clusterIP: "10.233.64.21", ports: [{port: 80}]}},
    {apiVersion: "discovery.k8s.io/v1", kind: "EndpointSlice", addressType: "IPv4",
      metadata: {name: "lost", namespace: "default"}, endpoints: [], ports: []}]}' | lab_kubectl apply --filename - >/dev/null
  lab_kubectl patch configmap underpass -n kube-system --type merge \
    --patch '{"data": {"settings": "podCIDRType: cluster\n"}}' >/dev/null
  lab_until 20 lab_lb_has empty
  not_asked watched 10.233.64.21
  lab_until 5 asked watched
  local name labels
  for name in repairs_total services_problems cidrs_problems cidrs_source lb_service_refused_total lb_service_connections_total; do
    lab_until 10 noted $name || fail "no underpass_$name is served"
  done
  lab_stop apiserver KILL
  for name in cidrs_failing services_failing scope_failing; do lab_until 20 noted $name || fail "no underpass_$name is served"; done

  assert_same "$(sed -n 's/^\(| `underpass_[^|]*|[^|]*|\)[^|]*|/\1/p' "$LAB_REPO/deploy/metrics.md" | sort)" \
    "$(awk '/^# HELP / { name = $3; help = $0; sub(/^# HELP [^ ]+ /, "", help); sub(/\.$/, "", help) }
      /^# TYPE / && $3 == name { print "| `" name "` | " $4 " | " help " |" }' "$BATS_TEST_TMPDIR/metrics" | sort -u)"
  sed -n 's/^\(underpass_[a-z_]*\){\(.*\)} .*/\1 \2/p' "$BATS_TEST_TMPDIR/metrics" | sed 's/="\([^"\\]\|\\.\)*"//g' | sort -u |
    while read -r name labels; do
      case $name in *_bucket) continue ;; esac
      grep -q "^| \`$name\` |[^|]*| ${labels//,/, } |" "$LAB_REPO/deploy/metrics.md" || fail "$name has the labels $labels"
    done
}

lab_lb_has() { lab_lb node1 show --json | grep -q "\"$1\""; }
