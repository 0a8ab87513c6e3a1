# A whole Kubernetes: two nodes with containerd, kubelet and kube-proxy, all real (tests/cluster), with pods on macvlan by Multus.
# Each test goes on from where the one before left the cluster.

load ../helpers
load ../cluster/cluster

setup_file() {
  SUITE_SKIP=$(cluster_require) || suite_skips "$SUITE_SKIP" || return 0
  # A daemon that is down for some seconds makes no node NotReady, whose pods would be evicted at once.
  export LAB_LIFETIME=3600 CLUSTER_GRACE=20s
  cluster_up 2
  client underlay node1
  client underlay node2
  client overlay node1
  client overlay node2
  lab_kubectl apply --filename - < <(pod both '"k8s.v1.cni.cncf.io/networks": "underlay"' node1) >/dev/null
  deployment web underlay
  lab_kubectl wait pod --for condition=Ready underlay-node1 underlay-node2 overlay-node1 overlay-node2 both --timeout 60s
  # A test may be the only one that runs, and asks at once.
  rolled_out web
}

# pod NAME ANNOTATIONS [NODE]: one that sleeps, as JSON.
pod() {
  cat <<END
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "$1", "labels": {"app": "$1"}, "annotations": {$2}},
 "spec": {"nodeName": "${3-}", "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "localhost/lab:1",
  "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"]}]}}
END
}

# on NETWORK: the annotation that makes it a pod's default network.
on() {
  printf '"v1.multus-cni.io/default-network": "kube-system/%s"\n' "$1"
}

# client NETWORK NODE: the pod NETWORK-NODE, which asks.
client() {
  pod "$1-$2" "$(on "$1")" "$2" | lab_kubectl apply --filename - >/dev/null
}

# deployment NAME NETWORK: web servers on that network, with probes by the kubelet, a Service, and a PodDisruptionBudget.
deployment() {
  sed "s/NAME/$1/g; s/NETWORK/$2/g" "$LAB_REPO/tests/cluster/objects/deployment.yaml" | lab_kubectl apply --filename - >/dev/null
}

rolled_out() {
  lab_kubectl rollout status "deployment/$1" --timeout "${2:-60s}" >/dev/null
}

# service_ip NAME 0|1: the ClusterIP, IPv4 or IPv6.
service_ip() {
  lab_kubectl get service "$1" -o json | jq -r ".spec.clusterIPs[$2]"
}

# ask POD ADDRESS: who answers there, and whom it saw.
ask() {
  lab_kubectl exec "$1" -- sh -c "$(request "$2")"
}

# request ADDRESS: a shell command that succeeds with an answer. Not busybox' wget, which in Debian's static build crashes with -T.
request() {
  printf 'printf "GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n" | nc -w 5 %s 80 | tail -n 1 | grep .' "$1"
}

# under_load POD SERVICE COMMAND...: runs a command while a pod asks all the time. Fails if a question had no answer.
under_load() {
  local address questions status=0 pod=$1
  address=$(service_ip "$2" 0)
  shift 2
  lab_kubectl exec "$pod" -- sh -c "rm -f /tmp/stop; n=0; bad=0; while [ ! -e /tmp/stop ]; do n=\$((n+1))
    { $(request "$address"); } >/dev/null 2>&1 || bad=\$((bad+1)); done; echo \$n asked, \$bad failed" >"$BATS_TEST_TMPDIR/load" &
  questions=$!
  sleep 1
  "$@" || status=$?
  sleep 1
  lab_kubectl exec "$pod" -- touch /tmp/stop
  wait $questions
  printf '# %s\n' "$(<"$BATS_TEST_TMPDIR/load")" >&3
  [[ $(<"$BATS_TEST_TMPDIR/load") == *' asked, 0 failed' ]] && return $status
}

# first_pod APP: one of its pods that stay.
first_pod() {
  lab_kubectl get pods -l "app=$1" -o json |
    jq -r '[.items[] | select(.metadata.deletionTimestamp == null)] | sort_by(.spec.nodeName)[0].metadata.name'
}

# endpoints SERVICE FILTER: what a jq filter says of the list of its endpoints.
endpoints() {
  lab_kubectl get endpointslices -l "kubernetes.io/service-name=$1" -o json | jq -e "[.items[].endpoints[]?] | $2" >/dev/null
}

no_pods() {
  [ -z "$(lab_kubectl get pods --no-headers 2>/dev/null)" ]
}

@test "a Deployment on the underlay becomes Ready by the kubelet's own probes" {
  rolled_out web
}

@test "without our plugin the kubelet cannot reach a macvlan pod of its own node" {
  deployment plain plain
  ! rolled_out plain 8s || fail 'it became Ready'
  lab_kubectl delete deployment,service,pdb plain --wait=false
}

@test "underlay and overlay pods on both nodes reach a Service of underlay pods, over IPv4 and IPv6" {
  local client family
  for client in underlay-node1 underlay-node2 overlay-node1 overlay-node2 both; do
    for family in 0 1; do
      expect 0 ask "$client" "$(service_ip web $family)"
      assert_contains "$output" web-
    done
  done
}

@test "an underlay pod resolves the Service's name by the cluster's DNS" {
  lab_kubectl rollout status -n kube-system deployment/coredns --timeout 60s
  expect 0 lab_kubectl exec underlay-node1 -- nslookup web.default.svc.cluster.local
  assert_contains "$output" "$(service_ip web 0)"
}

@test "a rolling update loses no request of an underlay pod" {
  under_load underlay-node1 web restart web
}

restart() {
  lab_kubectl rollout restart "deployment/$1" && rolled_out "$1"
}

@test "a pod that fails its readiness probe leaves the Service and comes back" {
  local pod
  pod=$(first_pod web)
  lab_kubectl exec "$pod" -- mv /tmp/www/healthz /tmp/www/away
  lab_until 15 endpoints web 'any(.[]; .conditions.ready == false)'
  lab_kubectl exec "$pod" -- mv /tmp/www/away /tmp/www/healthz
  lab_until 15 endpoints web 'all(.[]; .conditions.ready)'
}

@test "a container that fails its liveness probe starts again in its sandbox" {
  local pod address
  pod=$(first_pod web)
  address=$(pod_ip "$pod")
  lab_kubectl exec "$pod" -- rm /tmp/www/healthz
  lab_until 60 started_again "$pod"
  lab_kubectl wait --for condition=Ready "pod/$pod" --timeout 20s
  assert_equal "$(pod_ip "$pod")" "$address"
}

pod_ip() {
  lab_kubectl get pod "$1" -o json | jq -r .status.podIP
}

started_again() {
  [ "$(lab_kubectl get pod "$1" -o json | jq '.status.containerStatuses[0].restartCount')" -ge 1 ]
}

@test "exec and TCP probes work over the veth as HTTP probes do" {
  pod probed "$(on underlay)" node1 | jq '.spec.containers[0] += {
    command: ["/bin/sh", "-c", "httpd -p 8080 -h /www; while :; do sleep 1; done"],
    startupProbe: {exec: {command: ["true"]}, periodSeconds: 1}, readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
  }' | lab_kubectl apply --filename -
  lab_kubectl wait pod probed --for condition=Ready --timeout 20s
  lab_kubectl delete pod probed
}

@test "an underlay pod reaches the API server by its Service, with its own ServiceAccount" {
  lab_kubectl create rolebinding view --clusterrole view --serviceaccount default:default
  pod api "$(on underlay)" node1 | jq --arg kubectl "$(dirname "$(command -v kubectl)")" '
    .spec += {restartPolicy: "Never", volumes: [{name: "kubectl", hostPath: {path: $kubectl}}]}
    | .spec.containers[0] += {
        volumeMounts: [{name: "kubectl", mountPath: "/kubectl"}],
        command: ["/kubectl/kubectl", "--cache-dir", "/tmp/cache", "get", "pods", "--no-headers"]
      }' | lab_kubectl apply --filename -
  lab_kubectl wait pod api --for jsonpath='{.status.phase}'=Succeeded --timeout 30s
  lab_kubectl delete pod api
}

@test "a pod becomes Ready by macvlan alone and with our plugin: the time of each, in turn" {
  local network
  for _ in {1..10}; do
    for network in plain underlay; do becomes_ready "$network" >>"$BATS_TEST_TMPDIR/$network"; done
  done
  for network in plain underlay; do
    sort -n "$BATS_TEST_TMPDIR/$network" | jq -s --arg network "$network" -r \
      '"# \($network): Ready after \((.[4] + .[5]) / 2) ms, median of \(length) pods (\(first) to \(last))"' >&3
  done
}

# becomes_ready NETWORK: makes a pod there, and prints how many milliseconds it took until it was Ready.
becomes_ready() {
  local start
  pod timed "$(on "$1")" node1 >"$BATS_TEST_TMPDIR/pod"
  start=${EPOCHREALTIME/./}
  lab_kubectl create --filename "$BATS_TEST_TMPDIR/pod" >/dev/null
  lab_kubectl wait pod timed --for condition=Ready --timeout 20s >/dev/null
  printf '%s\n' $(((${EPOCHREALTIME/./} - start) / 1000))
  lab_kubectl delete pod timed >/dev/null
}

@test "the words of an ADD that is refused stand in the pod's events" {
  local node
  for node in $(lab_nodes); do
    lab_network_json refused 46 '{"mode": "sideways"}' eth0 "${node#node}" 3 | cluster_network "$node" refused
  done
  printf '{"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "refused", "namespace": "kube-system"}}' |
    lab_kubectl apply --filename -
  pod refused "$(on refused)" node1 | lab_kubectl apply --filename -
  lab_until 20 has_event refused 'setting mode'
  lab_kubectl delete pod refused
}

# has_event POD TEXT
has_event() {
  lab_kubectl get events --field-selector "involvedObject.name=$1" -o json | jq -e --arg text "$2" \
    'any(.items[].message; contains($text))' >/dev/null
}

@test "Multus finds both networks of a pod in what our plugin answered" {
  local status
  status=$(lab_kubectl get pod both -o json | jq -c '.metadata.annotations["k8s.v1.cni.cncf.io/network-status"] | fromjson')
  assert_json "$status" '[.[].interface]' '["eth0","net1"]'
  assert_json "$status" '[.[].ips | length]' '[2,2]'
}

@test "twenty replicas come and go" {
  lab_kubectl scale deployment web --replicas 20
  rolled_out web 120s
  lab_until 20 endpoints web '[.[] | select(.conditions.ready)] | length == 40'
  lab_kubectl scale deployment web --replicas 2
  lab_until 60 endpoints web 'length == 4'
}

@test "the node agent is restarted on every node under load, and no request is lost" {
  under_load underlay-node1 web agent_restarts
}

agent_restarts() {
  lab_kubectl rollout restart -n kube-system daemonset/underpass-node >/dev/null &&
    lab_kubectl rollout status -n kube-system daemonset/underpass-node --timeout 90s >/dev/null
}

@test "the installation says what it finds of kube-proxy, and the agent who else translates Services" {
  local agent
  agent=$(lab_kubectl get pods -n kube-system -l app.kubernetes.io/name=underpass,app.kubernetes.io/component=node --field-selector spec.nodeName=node1 -o name)
  expect 0 lab_kubectl logs -n kube-system "$agent" -c install
  assert_contains "$output" 'kube-proxy masquerades every pod that is not of 10.233.0.0/18'
  lab_spawn theirs node1 "$LAB_SOURCE/translate.py" cil_sock4_connect /sys/fs/cgroup/unified 10.233.64.250 80 10.233.64.250 81
  lab_until 10 agent_names "$agent" "ours and Cilium's (cil_sock4_conne)"
  lab_stop theirs
  lab_until 10 agent_names "$agent" 'nobody else translates Services'
}

# agent_names POD TEXT
agent_names() {
  lab_kubectl logs -n kube-system "$1" | grep -qF "$2"
}

@test "an upgrade and a downgrade of plugin and agent lose no request, and pods start with either" {
  local before
  other_version
  before=$(lab_in node1 readlink /opt/cni/bin/underpass.d)
  under_load underlay-node1 web cluster_underpass --set image.tag=0.1.1
  [ "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" != "$before" ] || fail 'the plugin is still the old one'
  restart web
  under_load underlay-node1 web cluster_underpass
  assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" "$before"
  restart web
}

# other_version: an image of the same with other bytes, as version 0.1.1.
other_version() {
  local root=$BATS_TEST_TMPDIR/root node
  "$LAB_REPO/scripts/image" --root "$root"
  printf '\n' >>"$root/usr/local/bin/cni-result"
  "$LAB_REPO/scripts/pack-image" docker.io/library/underpass:0.1.1 "$root" node-agent >"$BATS_TEST_TMPDIR/underpass.tar"
  for node in $(lab_nodes); do cluster_import "$node" "$BATS_TEST_TMPDIR/underpass.tar"; done
}

@test "another vendor's plugin that is put on a node in place of ours gives way to it, and is kept and told of" {
  local agent
  agent=$(lab_kubectl get pods -n kube-system -l app.kubernetes.io/name=underpass,app.kubernetes.io/component=node --field-selector spec.nodeName=node1 -o name)
  lab_in node1 sh -c 'rm /opt/cni/bin/coordinator && printf theirs >/opt/cni/bin/coordinator'
  lab_until 15 lab_in node1 test -L /opt/cni/bin/coordinator
  assert_equal "$(lab_in node1 cat /opt/cni/bin/coordinator.before)" theirs
  expect 0 lab_kubectl logs -n kube-system "$agent" -c plugin
  assert_contains "$output" 'in place of ours'
  lab_in node1 rm /opt/cni/bin/coordinator.before
}

@test "taken off the nodes and out of the cluster, pods that run lose no request and keep their host path and the plugin, and put in again it goes on" {
  local node
  under_load underlay-node1 web taken_out
  for node in $(lab_nodes); do assert_equal "$(lab_in "$node" find /sys/fs/bpf -name '*underpass*')" ''; done
  lab_in node1 test -e /opt/cni/bin/.underpass/leaving
  under_load underlay-node1 web sleep 1
  cluster_underpass
}

# As deploy/upgrade.md has it.
taken_out() {
  cluster_helm upgrade underpass "$LAB_REPO/deploy/chart" --namespace kube-system --reset-then-reuse-values --set remove=true >/dev/null &&
    lab_kubectl rollout status -n kube-system daemonset -l app.kubernetes.io/name=underpass --timeout 90s >/dev/null &&
    lab_until 10 pods_are_left && cluster_helm uninstall underpass --namespace kube-system --wait
}

pods_are_left() {
  lab_kubectl logs -n kube-system -l 'app.kubernetes.io/name=underpass,app.kubernetes.io/component in (node,remove)' --prefix --tail=1 |
    grep -q 'interfaces of running pods'
}

@test "the commands of deploy/start.md lead from a cluster without Underpass to the first Service" {
  local tools command count=0 start node config=$BATS_TEST_TMPDIR/config values=$BATS_TEST_TMPDIR/values
  # As in cluster_underpass.
  printf '{"node": {"env": [{"name": "UNDERPASS_CGROUP", "value": "/sys/fs/cgroup/unified"}]}}' >"$values"
  tools=$("$LAB_REPO/tests/tools/build" --where kubernetes helm)
  cluster_helm uninstall underpass --namespace kube-system --wait
  for node in $(lab_nodes); do
    lab_in "$node" env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/install" --uninstall || [ $? = 3 ]
    lab_in "$node" ctr --namespace k8s.io images tag --force localhost/lab:1 docker.io/library/busybox:1.36
  done
  lab_kubectl create namespace first
  jq '.contexts[0].context.namespace = "first"' <(lab_kubectl config view --raw --output json) >"$config"
  start=${EPOCHREALTIME/./}
  # shellcheck disable=SC2016 # what it looks for
  while read -r command <&3; do
    count=$((count + 1))
    expect 0 lab_in control env -C "$LAB_REPO" PATH="${tools//$'\n'/:}:$PATH" KUBECONFIG="$config" HELM_CONFIG_HOME="$LAB/helm" \
      KUBECACHEDIR="$LAB/kubernetes/cache" HELM_CACHE_HOME="$LAB/helm" HELM_DATA_HOME="$LAB/helm" \
      bash -c "${command/ deploy\/chart/ deploy\/chart --values $values}"
  done 3< <(sed -n '/^```sh$/,/^```$/{/^```$/q; /^```sh$/!p}' "$LAB_REPO/deploy/start.md")
  # The page's last command asks for the file that names the backend.
  assert_contains "$output" web-
  printf '# %s commands, %s ms\n' "$count" $(((${EPOCHREALTIME/./} - start) / 1000)) >&3
  lab_kubectl delete namespace first
  cluster_underpass
}

@test "a node is drained under load, and no request is lost" {
  under_load underlay-node1 web drain
}

drain() {
  lab_kubectl drain node2 --ignore-daemonsets --force --delete-emptydir-data --timeout 60s >/dev/null || return
  rolled_out web && lab_kubectl uncordon node2 && client underlay node2
}

@test "containerd and the kubelet are killed and started again, and pods go on" {
  local before
  before=$(web_pods)
  lab_kubectl wait pod underlay-node2 --for condition=Ready --timeout 60s
  under_load underlay-node2 web runtime_dies
  assert_same "$before" "$(web_pods)"
}

web_pods() {
  lab_kubectl get pods -l app=web -o json |
    jq -c '[.items[] | [.metadata.name, .status.podIP, .status.containerStatuses[0].restartCount]] | sort[]'
}

runtime_dies() {
  lab_stop kubelet-node1 KILL
  lab_stop containerd-node1 KILL
  cluster_containerd node1 && cluster_kubelet node1 && lab_until 30 cluster_ready && sleep 3
}

@test "a node that is rebooted gets its pods again" {
  restart web
  cluster_reboot node2
  lab_until 60 cluster_ready
  lab_kubectl wait pod underlay-node2 --for condition=Ready --timeout 60s
  rolled_out web
  lab_until 30 ask underlay-node2 "$(service_ip web 0)"
  lab_until 30 ask underlay-node1 "$(service_ip web 0)"
}

@test "a node that dies loses its pods, which come up on the other one" {
  lab_stop kubelet-node2 KILL
  lab_in fabric ip link set node2.6 down
  lab_until 120 endpoints web '[.[] | select(.conditions.ready)] | length == 4 and all(.[]; .nodeName == "node1")'
  lab_in fabric ip link set node2.6 up
  cluster_kubelet node2
  lab_until 60 cluster_ready
}

@test "without kube-proxy and its rules, Services, DNS and the API server are reached by the socket path alone" {
  local node client family
  for node in $(lab_nodes); do
    lab_stop "kube-proxy-$node"
    lab_in "$node" kube-proxy --cleanup
    assert_equal "$(lab_in "$node" iptables-save | grep KUBE-SVC)" ''
  done
  export CLUSTER_PROXY=none
  cluster_underpass
  client underlay node1
  client overlay node2
  lab_kubectl wait pod --for condition=Ready underlay-node1 overlay-node2 --timeout 60s
  for client in underlay-node1 overlay-node2; do
    for family in 0 1; do expect 0 lab_until 10 ask "$client" "$(service_ip web $family)"; done
    expect 0 lab_kubectl exec "$client" -- nslookup web.default.svc.cluster.local
  done
  under_load underlay-node1 web restart web
}

@test "when all pods are deleted, the nodes are as before" {
  lab_kubectl delete deployment,service,pdb web
  lab_kubectl delete pods --all --timeout 60s
  lab_until 40 no_pods
  local node
  for node in $(lab_nodes); do
    assert_equal "$(lab_in "$node" ip -json link | jq -r '.[] | select(.ifalias // "" | startswith("underpass")) | .ifname')" ''
    assert_equal "$(lab_in "$node" ip route show table all proto 85; lab_in "$node" ip -6 route show table all proto 85)" ''
    assert_equal "$(lab_in "$node" ip -details -json rule | jq -r '.[] | select(.protocol == "underpass" or .protocol == "85")')" ''
  done
}
