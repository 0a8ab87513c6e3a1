# The cluster's CIDRs, from a real kube-apiserver. What the objects look like is in tests/fixtures/cluster; the Rust tests
# of sync-cidrs-kube try each without a cluster.

load helpers

setup_file() {
  suite_needs_lab && suite_needs_tools kubernetes etcd crds || return 0
  lab_up 1
  lab_kubernetes
  lab_crds
}

teardown() {
  local name
  [ ! -d "${LAB-/none}/pid" ] || [ -e "$LAB/pid/apiserver" ] || lab_apiserver
  for name in follow first second proxy; do
    [ ! -e "${LAB-/none}/pid/$name" ] || lab_stop "$name"
  done
  [ -z "${CREATED-}" ] || lab_kubectl delete --ignore-not-found --wait=false --filename - <<<"$CREATED" >/dev/null
  [ -z "${EMULATED-}" ] || restart_api
  [ -n "${SUITE_SKIP-}" ] || lab_in node1 nft delete table inet silent 2>/dev/null || :
}

# restart_api [FLAG...]: at once, without waiting for its clients to leave.
restart_api() {
  lab_stop apiserver KILL
  lab_apiserver "$@"
}

# sync FLAG...: sync-cidrs on the node, as the administrator unless KUBECONFIG says otherwise, each test with a state of its
# own. Without --cni-directory the node has no CNI configuration.
sync() {
  lab_in node1 env KUBECONFIG="${KUBECONFIG:-$LAB/kubernetes/admin.conf}" UNDERPASS_STATE="$(state)" \
    "$(lab_libexec)/sync-cidrs" --cni-directory "${CNI_DIRECTORY:-/none}" "$@"
}

state() { printf '/run/state-%s\n' "$BATS_TEST_NUMBER"; }

# follow FLAG...: the same with --watch, in the background, until the test ends.
follow() {
  lab_spawn follow node1 env KUBECONFIG="${KUBECONFIG:-$LAB/kubernetes/admin.conf}" UNDERPASS_STATE="$(state)" \
    "$(lab_libexec)/sync-cidrs" --watch --node "${NODE:-node1}" --cni-directory "${CNI_DIRECTORY:-/none}" "$@"
}

# has FILTER: whether the file that ADD reads satisfies a jq filter.
has() {
  lab_in node1 jq -e "$1" "$(state)/cluster.json" >/dev/null 2>&1
}

# within SECONDS FILTER: the file satisfies a jq filter so soon.
within() {
  lab_until "$1" has "$2" || fail "$2" "$(lab_in node1 cat "$(state)/cluster.json")" "$(cat "$LAB/log/follow")"
}

# logged TEXT: what the follower has said.
logged() { grep -qF -- "$1" "$LAB/log/follow"; }

# metric NAME: its value now.
metric() {
  lab_in node1 sed -n "s/^underpass_$1 //p" "$(state)/sync-cidrs.prom"
}

has_metric() { [ "$(metric "$1")" = "$2" ]; }

# create OBJECT...: objects as JSON, for this test.
create() {
  CREATED=$(printf '%s\n' "${CREATED-}" "$@")
  printf '%s\n' "$@" | lab_kubectl apply --filename - >/dev/null
}

config_map() {
  jq -nc --arg name "$1" --arg key "$2" --arg value "$3" '{
    apiVersion: "v1", kind: "ConfigMap", metadata: {name: $name, namespace: "kube-system"}, data: {($key): $value}
  }'
}

kubeadm_config() {
  config_map kubeadm-config ClusterConfiguration "$(printf 'networking:\n  podSubnet: %s\n  serviceSubnet: 10.96.0.0/12\n' "$1")"
}

# pool NAME CIDR [DISABLED]
pool() {
  jq -nc --arg name "$1" --arg cidr "$2" --argjson disabled "${3:-false}" '{
    apiVersion: "crd.projectcalico.org/v1", kind: "IPPool", metadata: {name: $name}, spec: {
      cidr: $cidr, disabled: $disabled, blockSize: 26, allowedUses: ["Workload", "Tunnel"], nodeSelector: "all()",
      ipipMode: "Never", vxlanMode: "Always", natOutgoing: true
    }
  }'
}

# block CIDR [ORDINAL...]: a /26 in which these addresses are in use, as Calico's IPAM writes it.
block() {
  jq -nc --arg cidr "$1" --args '($ARGS.positional | map(tonumber)) as $used | {
    apiVersion: "crd.projectcalico.org/v1", kind: "IPAMBlock", metadata: {name: ($cidr | gsub("[./]"; "-"))},
    spec: {
      cidr: $cidr, affinity: "host:node1", deleted: false, strictAffinity: false, sequenceNumber: 1,
      allocations: [range(64) | if IN($used[]) then 0 else null end], unallocated: ([range(64)] - $used),
      attributes: [$used[:1][] | {handle_id: "k8s-pod-network.c1", secondary: {namespace: "default", node: "node1", pod: "web-0"}}],
      sequenceNumberForAllocation: [$used[] | {key: "\(.)", value: 0}] | from_entries
    }
  }' "${@:2}"
}

# service_cidr NAME CIDR [VERSION]: ready, as the controller manager makes it.
service_cidr() {
  create "$(jq -nc --arg name "$1" --arg cidr "$2" --arg version "${3:-v1}" '{
    apiVersion: "networking.k8s.io/\($version)", kind: "ServiceCIDR", metadata: {name: $name}, spec: {cidrs: [$cidr]}
  }')"
  lab_kubectl patch servicecidr "$1" --subresource status --type merge --patch '{"status": {"conditions": [
    {"type": "Ready", "status": "True", "reason": "", "message": "", "lastTransitionTime": "2025-01-01T00:00:00Z"}]}}' >/dev/null
}

coordinator() {
  jq -nc --argjson spec "$1" '{
    apiVersion: "spiderpool.spidernet.io/v2beta1", kind: "SpiderCoordinator", metadata: {name: "default"}, spec: $spec
  }'
}

@test "one shot prints settings, CIDRs and their sources, or the plain cidrs section" {
  create "$(kubeadm_config 10.244.0.0/16)"
  expect 0 sync --kube --node node1
  assert_json "$output" .cidrs '{"service":["10.233.64.0/18","fd00:233:64::/108"],"pod":["10.244.0.0/16"]}'
  assert_json "$output" '.sources["10.244.0.0/16"][0]' 'kubeadm-config, podSubnet'
  assert_json "$output" '.sources["10.233.64.0/18"][0]' 'ServiceCIDR kubernetes'
  expect 0 sync --kube --cidrs
  assert_json "$output" 'keys' '["pod","service"]'
}

@test "asked by a person at a terminal, the API gives a table" {
  create "$(kubeadm_config 10.244.0.1/16)"
  : >"$LAB/stdin"
  at_terminal env KUBECONFIG="$LAB/kubernetes/admin.conf" "$(lab_libexec)/sync-cidrs" --kube --cni-directory /none
  assert_equal "$status" 0
  assert_contains "$output" 'KIND     CIDR               SOURCE'
  assert_contains "$output" 'Service  10.233.64.0/18     ServiceCIDR kubernetes'
  assert_contains "$output" 'pod      10.244.0.0/16      kubeadm-config, podSubnet (10.244.0.1/16, its host bits masked)'
  assert_contains "$output" 'podCIDRType'
  at_terminal env -u KUBECONFIG HOME=/none "$(lab_libexec)/sync-cidrs" --kube
  assert_equal "$status" 1
  assert_equal "$(wc -l <<<"$output")" 1 || fail "$output"
}

@test "kubectl's output gives offline what the API gives" {
  create "$(kubeadm_config 10.244.0.0/16)"
  lab_kubectl get configmaps,nodes,pods,servicecidrs,ippools --all-namespaces --output json >"$BATS_TEST_TMPDIR/objects"
  expect 0 "$(lab_libexec)/sync-cidrs" --from "$BATS_TEST_TMPDIR/objects" --cni-directory /none
  assert_same "$(sync --kube)" "$output"
  expect 0 "$(lab_libexec)/sync-cidrs" --from - --cni-directory /none <"$BATS_TEST_TMPDIR/objects"
  assert_same "$(sync --kube)" "$output"
}

@test "in a pod the ServiceAccount's credentials are used, as kubectl does it" {
  local account=/var/run/secrets/kubernetes.io/serviceaccount
  as_node_agent
  lab_in node1 mkdir -p "$account"
  jq -j ".users[0].user.token" "$KUBECONFIG" | lab_in node1 sh -c "cat >$account/token"
  lab_in node1 cp "$LAB/kubernetes/apiserver.crt" "$account/ca.crt"
  lab_in node1 sh -c "printf kube-system >$account/namespace"
  expect 0 lab_in node1 env -u KUBECONFIG HOME=/none KUBERNETES_SERVICE_HOST=10.6.0.10 KUBERNETES_SERVICE_PORT=6443 \
    "$(lab_libexec)/sync-cidrs" --kube --cni-directory /none
  assert_json "$output" .cidrs.service '["10.233.64.0/18","fd00:233:64::/108"]'
  lab_in node1 rm "$account/token"
  expect 1 lab_in node1 env -u KUBECONFIG HOME=/none KUBERNETES_SERVICE_HOST=10.6.0.10 KUBERNETES_SERVICE_PORT=6443 \
    "$(lab_libexec)/sync-cidrs" --kube --cni-directory /none
}

@test "the objects of real clusters give from the API what they give offline" {
  local name file objects offline
  lab_kubectl create namespace kube-flannel >/dev/null
  for name in kubeadm flannel k3s rke2 calico cilium-cluster-pool cilium-multi-pool cilium-kubernetes canal calico-v3 kops \
    openshift k0s; do
    file=$BATS_TEST_DIRNAME/fixtures/cluster/$name.json
    expect 0 "$(lab_libexec)/sync-cidrs" --from "$file" --cni-directory /none
    offline=$(of_pods <<<"$output")
    objects=$(jq -c 'del(.items[].metadata | .uid, .resourceVersion)' "$file")
    CREATED=$objects
    lab_kubectl create --validate=false --filename - <<<"$objects" >/dev/null
    expect 0 sync --kube
    assert_same "$offline" "$(of_pods <<<"$output")" || fail "$name"
    assert_contains "$offline" source
    lab_kubectl delete --filename - <<<"$objects" >/dev/null
  done
}

# What a document says of the pods' CIDRs, each with its sources.
of_pods() {
  jq '.podCIDRType, (.sources as $sources | .cidrs.pod[] | {cidr: ., source: $sources[.]})'
}

@test "the definitions of Calico, Cilium and Spiderpool are theirs: what they refuse is refused" {
  local object
  for object in '{"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "a"}, "spec": {}}' \
    "$(block 10.50.3.64/26 | jq -c 'del(.spec.attributes)')" \
    '{"apiVersion": "cilium.io/v2alpha1", "kind": "CiliumPodIPPool", "metadata": {"name": "a"}, "spec": {"ipv4": {"cidrs": ["10.30.0.0/33"], "maskSize": 24}}}' \
    "$(coordinator '{"podCIDRType": "flannel"}')"; do
    expect 1 lab_kubectl create --dry-run=server --filename - <<<"$object"
    assert_contains "$stderr" 'is invalid'
  done
}

@test "podCIDRType cluster: a real kubeadm's control plane pods count, and before these its ClusterConfiguration" {
  lab_kubeadm_config '10.245.0.0/16,fd00:10:245::/56' '10.96.0.0/16,fd00:10:96::/112' |
    lab_in node1 sh -c 'cat >/run/kubeadm.yaml'
  expect 0 lab_in node1 kubeadm init phase control-plane all --config /run/kubeadm.yaml
  lab_mirror_pod node1 /etc/kubernetes/manifests/kube-apiserver.yaml
  lab_mirror_pod node1 /etc/kubernetes/manifests/kube-controller-manager.yaml
  expect 0 sync --kube
  assert_json "$output" .cidrs.pod '["10.245.0.0/16","fd00:10:245::/56"]'
  assert_json "$output" '.sources["10.245.0.0/16"]' '["pod kube-controller-manager-node1, --cluster-cidr"]'
  expect 0 lab_in node1 kubeadm init phase upload-config kubeadm --config /run/kubeadm.yaml --kubeconfig "$LAB/kubernetes/admin.conf"
  expect 0 sync --kube
  assert_json "$output" '.sources["10.245.0.0/16"]' '["kubeadm-config, podSubnet"]'
  lab_kubectl delete configmap/kubeadm-config pod/kube-apiserver-node1 pod/kube-controller-manager-node1 \
    --namespace kube-system --force >/dev/null 2>&1
}

@test "podCIDRType cilium: cluster-pool, multi-pool and kubernetes" {
  create "$(kubeadm_config 10.244.0.0/16)"
  create "$(jq -nc '{apiVersion: "v1", kind: "ConfigMap", metadata: {name: "cilium-config", namespace: "kube-system"},
    data: {ipam: "cluster-pool", "cluster-pool-ipv4-cidr": "10.20.0.0/16", "cluster-pool-ipv6-cidr": "fd00:20::/104"}}')"
  create '{"apiVersion": "cilium.io/v2alpha1", "kind": "CiliumPodIPPool", "metadata": {"name": "blue"},
    "spec": {"ipv4": {"cidrs": ["10.30.0.0/16"], "maskSize": 24}}}'
  follow
  within 5 '.cidrs.pod == ["10.20.0.0/16", "fd00:20::/104"]'
  lab_kubectl patch configmap cilium-config --namespace kube-system --patch '{"data": {"ipam": "multi-pool"}}' >/dev/null
  within 5 '.cidrs.pod == ["10.30.0.0/16"]'
  lab_kubectl patch configmap cilium-config --namespace kube-system --patch '{"data": {"ipam": "kubernetes"}}' >/dev/null
  within 5 '.cidrs.pod == ["10.244.0.0/16"]'
}

@test "Canal has its pods from its own configuration, not from the pool that Calico makes and does not use" {
  CREATED=$(jq -c .items[] "$BATS_TEST_DIRNAME/fixtures/cluster/canal.json")
  create "$CREATED"
  CNI_DIRECTORY=/run/cni-canal
  lab_in node1 mkdir "$CNI_DIRECTORY"
  lab_in node1 sh -c 'printf "%s" "{\"name\": \"k8s-pod-network\", \"plugins\": [{\"type\": \"calico\", \"ipam\": {\"type\": \"host-local\"}}]}" \
    >/run/cni-canal/10-canal.conflist'
  follow
  within 5 '.cidrs.pod == ["10.42.0.0/16", "2001:cafe:42::/56"]'
  has '.podCIDRType.chosenBy == "plugin calico with ipam host-local in 10-canal.conflist"'
}

@test "in place of a CIDR that contains the nodes, what the own node was given is followed" {
  create "$(config_map cilium-config ignored '' | jq -c '.data = {ipam: "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/8"}')"
  create '{"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": "node1"}, "spec": {"ipam": {"podCIDRs": ["10.0.1.0/24"]}}}'
  create '{"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": "node2"}, "spec": {"ipam": {"podCIDRs": ["10.0.2.0/24"]}}}'
  follow
  within 5 '.cidrs.pod == ["10.0.1.0/24"] and (.problems | map(select(contains("10.0.0.0/8 contains the node'"'"'s own address"))) | length == 1)'
  has '.problems | map(select(startswith("CiliumNode node1: the pods'"'"' CIDRs of this node only"))) | length == 1'
  lab_kubectl patch ciliumnode node1 --type merge --patch '{"spec": {"ipam": {"podCIDRs": ["10.0.1.0/24", "10.0.9.0/24"]}}}' >/dev/null
  within 5 '.cidrs.pod == ["10.0.1.0/24", "10.0.9.0/24"]'
}

@test "kube-proxy's configuration says the pods' CIDR where nobody else does, and what the own node was given is the last" {
  create "$(config_map kube-proxy config.conf "$(printf 'kind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n')")"
  follow
  within 5 '.cidrs.pod == ["10.244.0.0/16"] and .sources["10.244.0.0/16"] == ["kube-proxy, clusterCIDR"]'
  # node1 has not been given any.
  lab_kubectl delete configmap kube-proxy --namespace kube-system >/dev/null
  within 5 '.cidrs.pod == []'
}

@test "an agent lists and watches the control plane's nodes and its own, and no others" {
  local requests
  lab_stop apiserver KILL
  EMULATED=1
  printf '{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata", "omitStages": ["RequestReceived"]}]}' |
    lab_in control sh -c 'cat >/run/audit.json'
  lab_apiserver --audit-policy-file /run/audit.json --audit-log-path "$LAB/kubernetes/audit.log"
  create '{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "server1", "labels": {"node-role.kubernetes.io/control-plane": "true"},
    "annotations": {"k3s.io/node-args": "[\"server\",\"--cluster-cidr\",\"10.52.0.0/16\"]"}}}'
  create '{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "agent1",
    "annotations": {"k3s.io/node-args": "[\"server\",\"--cluster-cidr\",\"10.53.0.0/16\"]"}}}'
  as_node_agent
  follow
  within 5 '.cidrs.pod == ["10.52.0.0/16"]'
  requests=$(jq -r 'select(.user.username == "system:serviceaccount:kube-system:underpass-node") | .requestURI' "$LAB/kubernetes/audit.log")
  assert_contains "$requests" 'nodes?'
  expect 1 grep '/nodes?' <(printf '%s\n' "$requests" | grep -v 'labelSelector=node-role.kubernetes.io%2Fcontrol-plane\|fieldSelector=metadata.name%3Dnode1')
  # Pods: those of the control plane, and kube-proxy's of this node.
  expect 1 grep '/pods?' <(printf '%s\n' "$requests" | grep -v 'labelSelector=')
}

@test "podCIDRType calico: a pool added, disabled with addresses in use, emptied, and deleted" {
  create "$(pool first 10.50.0.0/16)"
  follow
  within 5 '.cidrs.pod == ["10.50.0.0/16"]'
  create "$(pool second 10.52.0.0/16)"
  within 5 '.cidrs.pod == ["10.50.0.0/16", "10.52.0.0/16"]'
  create "$(block 10.50.3.64/26 1)"
  create "$(pool first 10.50.0.0/16 true)"
  within 5 '.sources["10.50.0.0/16"] == ["IPPool first (disabled, with addresses in use)"]'
  create "$(block 10.50.3.64/26)"
  within 5 '.cidrs.pod == ["10.52.0.0/16"]'
  create "$(block 10.50.3.64/26 1)"
  within 5 '.cidrs.pod == ["10.50.0.0/16", "10.52.0.0/16"]'
  lab_kubectl delete ippool first >/dev/null
  within 5 '.cidrs.pod == ["10.52.0.0/16"]'
}

@test "podCIDRType auto goes by the node's CNI configuration, also when that changes" {
  create "$(kubeadm_config 10.244.0.0/16)"
  create "$(pool a 10.50.0.0/16)"
  CNI_DIRECTORY=/run/cni-auto
  lab_in node1 mkdir "$CNI_DIRECTORY"
  lab_in node1 sh -c 'printf "%s" "{\"type\": \"flannel\"}" >/run/cni-auto/10-flannel.conf'
  follow
  within 5 '.cidrs.pod == ["10.244.0.0/16"]'
  lab_in node1 sh -c 'printf "%s" "{\"name\": \"c\", \"plugins\": [{\"type\": \"calico\"}]}" >/run/cni-auto/05-calico.conflist'
  within 10 '.cidrs.pod == ["10.50.0.0/16"] and .podCIDRType.chosenBy == "plugin calico in 05-calico.conflist"'
  lab_in node1 sh -c 'printf "%s" "{\"type\": \"multus-shim\", \"clusterNetwork\": \"/host/etc/cni/net.d/10-flannel.conf\"}" >/run/cni-auto/00-multus.conf'
  within 10 '.cidrs.pod == ["10.244.0.0/16"] and .podCIDRType.chosenBy == "plugin flannel in 10-flannel.conf"'
}

@test "a CNI configuration that is there and cannot be read is named, and so is a directory of them" {
  local directory=/run/cni-closed objects=$LAB_REPO/tests/fixtures/cluster/calico.json
  # without_rights: as the status's writer, who is not root.
  without_rights() {
    lab_in node1 setpriv --bounding-set=-dac_override,-dac_read_search "$(lab_libexec)/sync-cidrs" --from - --cni-directory "$directory" <"$objects"
  }
  lab_in node1 sh -c "mkdir $directory && cd $directory && printf '{\"type\": \"flannel\"}' | tee 05-closed.conf >10-flannel.conf &&
    ln -s /none 20-nowhere.conf && chown 65532 05-closed.conf . && chmod 600 05-closed.conf"
  expect 0 without_rights
  assert_json "$output" '[.podCIDRType.chosenBy, (.problems[] | select(contains("cannot be read")))]' \
    "[\"plugin flannel in 10-flannel.conf\",\"$directory/05-closed.conf cannot be read: Permission denied (os error 13); podCIDRType auto goes without it\"]"
  lab_in node1 chmod 700 "$directory"
  expect 0 without_rights
  assert_json "$output" '[.podCIDRType.chosenBy, (.problems[] | select(contains("cannot be read")))]' \
    "[\"the API has IPPools\",\"$directory cannot be read: Permission denied (os error 13); podCIDRType auto goes without it\"]"
  # Who may read it goes by what is in there.
  expect 0 lab_in node1 "$(lab_libexec)/sync-cidrs" --from - --cni-directory "$directory" <"$objects"
  assert_json "$output" '[.podCIDRType.chosenBy, (.problems[] | select(contains("cannot be read")))]' '["plugin flannel in 05-closed.conf"]'
}

@test "a CNI configuration that is being written counts from when it is whole" {
  local n
  create "$(kubeadm_config 10.244.0.0/16)"
  create "$(pool a 10.50.0.0/16)"
  CNI_DIRECTORY=/run/cni-written
  lab_in node1 mkdir "$CNI_DIRECTORY"
  lab_in node1 sh -c 'printf "%s" "{\"type\": \"flannel\"}" >/run/cni-written/10-flannel.conf'
  follow
  within 5 '.cidrs.pod == ["10.244.0.0/16"]'
  lab_in node1 ln "$(state)/cluster.json" "$(state)/before"
  # Longer than from one look to the next.
  for n in 1 2 3 4 5 6; do
    lab_in node1 sh -c "printf '{\"some%s\"' $n >/run/cni-written/10-flannel.conf"
    sleep 0.5
  done
  lab_in node1 sh -c 'printf "%s" "{\"type\": \"flannel\", \"whole\": true}" >/run/cni-written/10-flannel.conf'
  sleep 3
  lab_in node1 test "$(state)/cluster.json" -ef "$(state)/before" || fail "$(lab_in node1 cat "$(state)/cluster.json")"
}

@test "podCIDRType none: neither Services' CIDRs nor pods', as a SpiderCoordinator or our own ConfigMap says" {
  create "$(kubeadm_config 10.244.0.0/16)"
  create "$(config_map underpass settings 'podCIDRType: none')"
  follow
  within 5 '.cidrs == {service: [], pod: []} and .podCIDRType.value == "none"'
  create "$(coordinator '{"podCIDRType": "cluster", "podDefaultRouteNIC": "net1", "hijackCIDR": ["169.254.20.10/32"]}')"
  # What it does not say has its definition's defaults.
  within 5 '.cidrs.pod == ["10.244.0.0/16"] and .settings == {podDefaultRouteNic: "net1", hijackCIDR: ["169.254.20.10/32"],
    mode: "auto", hostRuleTable: 500, podRPFilter: 0, tunePodRoutes: true, txQueueLen: 0}'
  # The plugin's own configuration comes first, then the cluster's, then what is built in.
  expect 0 lab_in node1 env UNDERPASS_STATE="$(state)" CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS=/proc/1/ns/net \
    "$(lab_libexec)/cni-request" <<<'{"cniVersion": "1.0.0", "name": "n", "type": "coordinator", "hijackCIDR": ["10.9.0.0/16"], "prevResult": {
      "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/proc/1/ns/net"}], "ips": [{"address": "10.6.0.9/16", "interface": 0}]}}'
  assert_json "$output" '.settings | [.hijackCIDR[0], .podDefaultRouteNic, .podDefaultCniNic]' '["10.9.0.0/16","net1","eth0"]'
  lab_kubectl delete spidercoordinator default >/dev/null
  within 5 '.cidrs.pod == [] and .settings == {}'
}

@test "a ServiceCIDR counts from when it is ready until it is gone, also while Kubernetes holds it back for Services that use it" {
  follow
  within 5 '.cidrs.service == ["10.233.64.0/18", "fd00:233:64::/108"]'
  # Another name for the file as it is now.
  lab_in node1 ln "$(state)/cluster.json" "$(state)/before"
  service_cidr more 10.77.0.0/16
  within 5 '.cidrs.service == ["10.77.0.0/16", "10.233.64.0/18", "fd00:233:64::/108"]'
  # The file was replaced, not written into: whoever reads the old one has all of it.
  expect 0 lab_in node1 jq -c .cidrs.service "$(state)/before"
  assert_equal "$output" '["10.233.64.0/18","fd00:233:64::/108"]'
  # As the controller manager does it: its finalizer stays until no Service has an address of it.
  lab_kubectl patch servicecidr more --type merge --patch '{"metadata": {"finalizers": ["networking.k8s.io/service-cidr-finalizer"]}}' >/dev/null
  lab_kubectl delete servicecidr more --wait=false >/dev/null
  lab_kubectl patch servicecidr more --subresource status --type merge --patch '{"status": {"conditions": [
    {"type": "Ready", "status": "False", "reason": "Terminating", "message": "", "lastTransitionTime": "2025-01-01T00:00:00Z"}]}}' >/dev/null
  within 5 '.sources["10.77.0.0/16"] == ["ServiceCIDR more (being deleted)"]'
  # What is not ready for another reason does not count: it gives no addresses yet.
  create '{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "new"}, "spec": {"cidrs": ["10.78.0.0/16"]}}'
  lab_kubectl patch servicecidr more --type merge --patch '{"metadata": {"finalizers": null}}' >/dev/null
  within 5 '.cidrs.service == ["10.233.64.0/18", "fd00:233:64::/108"]'
  # A line for each change, the last of them as the file is, and counted.
  printed=$(grep '^{"settings"' "$LAB/log/follow")
  assert_equal "$(jq -c .cidrs.service <<<"$printed" | sed 's/"//g')" "$(printf '%s\n' '[10.233.64.0/18,fd00:233:64::/108]' \
    '[10.77.0.0/16,10.233.64.0/18,fd00:233:64::/108]' '[10.77.0.0/16,10.233.64.0/18,fd00:233:64::/108]' '[10.233.64.0/18,fd00:233:64::/108]')"
  lab_until 5 has_metric cidrs_changes_total 4
  assert_equal "$(metric 'cidrs{of="service"}')" 2
  assert_equal "$(metric 'cidrs_source{cidr="10.233.64.0\/18",source="ServiceCIDR kubernetes"}')" 1
}

@test "ServiceCIDRs of networking.k8s.io/v1beta1 count where the API has no v1, also when that changes under way" {
  follow
  within 5 '.cidrs.service == ["10.233.64.0/18", "fd00:233:64::/108"]'
  # The API as Kubernetes 1.32 has it. (What allocates ClusterIPs from ServiceCIDRs is off there, and does not work emulated.)
  EMULATED=1
  restart_api --emulated-version 1.32 --runtime-config networking.k8s.io/v1beta1=true
  expect 1 lab_kubectl get --raw /apis/networking.k8s.io/v1/servicecidrs
  service_cidr beta 10.83.0.0/16 v1beta1
  within 20 '.cidrs.service == ["10.83.0.0/16", "10.233.64.0/18", "fd00:233:64::/108"]'
  lab_kubectl delete servicecidr beta --timeout 10s >/dev/null
  CREATED=
  within 5 '.cidrs.service == ["10.233.64.0/18", "fd00:233:64::/108"]'
}

@test "wrong CIDRs are refused and named in the file, the log and the metrics, and the rest is served" {
  create "$(pool good 10.50.0.0/16)"
  create "$(pool unparsable 10.50.0.0/33)"
  create "$(pool loopback 127.0.0.0/16)"
  create "$(pool everything 0.0.0.0/0)"
  create "$(pool nodes 10.6.0.0/16)"
  follow
  within 5 '.cidrs.pod == ["10.50.0.0/16"] and (.problems | length) == 4'
  for problem in 'IPPool unparsable: "10.50.0.0/33" is not a CIDR' \
    'IPPool loopback: 127.0.0.0/16 overlaps 127.0.0.0/8, which is reserved' \
    'IPPool everything: 0.0.0.0/0 is every address' "IPPool nodes: 10.6.0.0/16 contains the node's own address 10.6.212.101"; do
    grep -qF -- "${problem//\"/\\\"}" "$LAB/log/follow" || fail "$problem" "$(cat "$LAB/log/follow")"
    lab_in node1 grep -qF -- "${problem//\"/\\\"}" "$(state)/sync-cidrs.prom" || fail "$problem"
  done
}

@test "while the own Node is not there, no CIDR can be checked against its addresses: what is known stands, and it is said why" {
  create "$(kubeadm_config 10.0.0.0/8)"
  NODE=node7
  expect 0 sync --kube --node "$NODE"
  assert_json "$output" '.problems[0]' "there is no Node node7 (--node): no CIDR can be checked against the node's own addresses"
  follow
  lab_until 10 lab_in node1 grep -qF 'there is no Node node7' "$(state)/cluster.pending" || fail "$(cat "$LAB/log/follow")"
  logged 'there is no Node node7 (--node)'
  expect 1 lab_in node1 test -e "$(state)/cluster.json"
  create '{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node7"}}'
  lab_until 10 lab_in node1 grep -qF 'Node node7 has no address' "$(state)/cluster.pending" || fail "$(cat "$LAB/log/follow")"
  lab_kubectl patch node node7 --subresource status --type merge --patch '{"status": {"addresses": [{"type": "InternalIP", "address": "10.7.0.7"}]}}' >/dev/null
  within 10 '.cidrs.pod == [] and (.problems | map(select(contains("10.0.0.0/8 contains the node'"'"'s own address 10.7.0.7"))) | length == 1)'
  expect 1 lab_in node1 test -e "$(state)/cluster.pending"
  lab_kubectl delete node node7 >/dev/null
  lab_until 10 has_metric 'cidrs_problems{problem="there is no Node node7 (--node): no CIDR can be checked against the node'"'"'s own addresses"}' 1
  logged "addresses; what was known stands"
  service_cidr late 10.86.0.0/16
  sleep 2
  has '.cidrs.pod == [] and (.cidrs.service | length == 2)'
}

@test "the watch survives a restart of the API server; meanwhile what is known stands, and its age is shown" {
  follow
  within 5 '.cidrs.service | length == 2'
  lab_stop apiserver KILL
  lab_until 10 has_metric cidrs_in_contact 0
  lab_until 10 logged 's ago stands'
  lab_until 10 age_grows
  has '.cidrs.service | length == 2'
  assert_equal "$(metric cidrs_known)" 1
  [ "$(metric cidrs_errors_total)" -ge 1 ]
  [ "$(metric cidrs_last_sync_timestamp_seconds)" -le "$(($(date +%s) - 2))" ]
  lab_apiserver
  service_cidr after 10.78.0.0/16
  within 20 '.cidrs.service | index("10.78.0.0/16")'
  lab_until 20 has_metric cidrs_in_contact 1
}

age_grows() { [ "$(metric cidrs_age_seconds)" -ge 2 ]; }

@test "the watch survives a resource version that has expired" {
  service_cidr before 10.79.0.0/16
  follow
  within 5 '.cidrs.service | index("10.79.0.0/16")'
  lab_pause follow
  lab_kubectl delete servicecidr before --timeout 10s >/dev/null
  service_cidr later 10.80.0.0/16
  lab_compact
  restart_api
  lab_resume follow
  within 20 '.cidrs.service | index("10.80.0.0/16") and (index("10.79.0.0/16") | not)'
  lab_until 20 has_metric cidrs_in_contact 1
}

@test "the watch survives a lost connection" {
  local before
  follow
  within 5 '.cidrs.service | length == 2'
  before=$(lab_connections)
  [ -n "$before" ]
  lab_in node1 ss -K dst 10.6.0.10 dport = 6443 >/dev/null
  service_cidr behind 10.81.0.0/16
  within 20 '.cidrs.service | index("10.81.0.0/16")'
  assert_equal "$(comm -12 <(printf '%s\n' "$before") <(lab_connections))" ''
}

@test "who answers 404 for ConfigMaps, which every API has, is not the API server: it is an error, and what is known stands" {
  KUBECONFIG=$LAB/kubernetes/refused.conf
  lab_refuse node1
  create "$(kubeadm_config 10.244.0.0/16)"
  follow
  within 10 '.cidrs.pod == ["10.244.0.0/16"]'
  lab_refuse node1 404 /configmaps
  lab_until 20 logged '(404)' || fail "$(cat "$LAB/log/follow")"
  lab_until 30 has_errors "$(($(metric cidrs_errors_total) + 8))" || fail "$(cat "$LAB/log/follow")"
  has_metric cidrs_in_contact 0
  has '.cidrs.pod == ["10.244.0.0/16"]'
  expect 1 sync --kube
  assert_contains "$stderr" '(404)'
}

has_errors() { [ "$(metric cidrs_errors_total)" -ge "$1" ]; }

@test "a connection that dies silently is noticed, and what has changed meanwhile is known within 30 s" {
  local port
  follow
  within 5 '.cidrs.service | length == 2'
  # Nothing passes over the connections that there are, and nobody says so. New ones work.
  lab_in node1 nft add table inet silent
  for hook in input output; do
    lab_in node1 nft "add chain inet silent $hook { type filter hook $hook priority filter; }"
    for port in $(lab_in node1 ss -Htn state established dst 10.6.0.10 | sed -E 's/.*:([0-9]+) +10\.6.*/\1/'); do
      lab_in node1 nft add rule inet silent "$hook" tcp "$([ "$hook" = input ] && printf dport || printf sport)" "$port" counter drop
    done
  done
  service_cidr silent 10.84.0.0/16
  sleep 1
  has '.cidrs.service | length == 2'
  within 30 '.cidrs.service | index("10.84.0.0/16")'
}

@test "an API server without streaming lists is followed by pages" {
  EMULATED=1
  restart_api --feature-gates WatchList=false
  create "$(pool a 10.50.0.0/16)"
  follow
  within 10 '.cidrs.pod == ["10.50.0.0/16"]'
  create "$(pool b 10.52.0.0/16)"
  within 5 '.cidrs.pod == ["10.50.0.0/16", "10.52.0.0/16"]'
  assert_equal "$(metric cidrs_errors_total)" 0 || fail "$(cat "$LAB/log/follow")"
}

# a_proxy [OPTION...]: a proxy on the client's host, which says where it is asked to connect to.
a_proxy() {
  lab_spawn proxy client /usr/bin/python3 -u "$BATS_TEST_DIRNAME/lab/connect-proxy" 3128 "$@"
  lab_until 5 grep -q listening "$LAB/log/proxy"
}

@test "a proxy of the environment leads to the API server, but for what NO_PROXY has" {
  local proxy=http://10.6.0.50:3128 connections exempt
  a_proxy
  expect 0 with_proxy "$proxy" '' --kube
  assert_json "$output" .cidrs.service '["10.233.64.0/18","fd00:233:64::/108"]'
  connections=$(grep -cx 'CONNECT 10.6.0.10:6443' "$LAB/log/proxy")
  [ "$connections" -ge 1 ]
  for exempt in '10.6.0.0/16' '10.6.0.10' '*'; do
    expect 0 with_proxy "$proxy" "$exempt" --kube
  done
  assert_equal "$(grep -c CONNECT "$LAB/log/proxy")" "$connections"
  expect 1 with_proxy http://10.6.0.50:1 '' --kube
  assert_contains "$stderr" 'Connection refused'
}

# with_proxy PROXY EXEMPT FLAG...
with_proxy() {
  HTTPS_PROXY=$1 NO_PROXY=$2 sync "${@:3}"
}

@test "a SOCKS5 proxy leads to the API server, and one of another kind is an error that says which there are" {
  a_proxy socks5
  expect 0 with_proxy socks5://10.6.0.50:3128 '' --kube
  assert_json "$output" .cidrs.service '["10.233.64.0/18","fd00:233:64::/108"]'
  grep -qx 'CONNECT 10.6.0.10:6443' "$LAB/log/proxy"
  expect 1 with_proxy socks4://10.6.0.50:3128 '' --kube
  assert_contains "$stderr" 'none of http, https and socks5'
}

@test "a proxy that speaks TLS leads to the API server if its certificate is one of the kubeconfig's authorities" {
  local key=$BATS_TEST_TMPDIR/key certificate=$BATS_TEST_TMPDIR/certificate
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$key" -out "$certificate" -days 1 \
    -subj /CN=proxy -addext subjectAltName=IP:10.6.0.50 -addext basicConstraints=critical,CA:FALSE 2>/dev/null
  a_proxy "$certificate" "$key"
  expect 1 with_proxy https://10.6.0.50:3128 '' --kube
  assert_contains "$stderr" 'invalid peer certificate'
  cat "$LAB/kubernetes/apiserver.crt" "$certificate" >"$BATS_TEST_TMPDIR/authorities"
  jq --arg file "$BATS_TEST_TMPDIR/authorities" '.clusters[0].cluster."certificate-authority" = $file' \
    "$LAB/kubernetes/admin.conf" >"$BATS_TEST_TMPDIR/proxied.conf"
  KUBECONFIG=$BATS_TEST_TMPDIR/proxied.conf
  expect 0 with_proxy https://10.6.0.50:3128 '' --kube
  assert_json "$output" .cidrs.service '["10.233.64.0/18","fd00:233:64::/108"]'
  grep -qx 'CONNECT 10.6.0.10:6443' "$LAB/log/proxy"
}

@test "a kubeconfig's proxy-url leads to the API server, whatever NO_PROXY has" {
  a_proxy
  jq '.clusters[0].cluster."proxy-url" = "http://10.6.0.50:3128"' "$LAB/kubernetes/admin.conf" >"$LAB/kubernetes/proxied.conf"
  KUBECONFIG=$LAB/kubernetes/proxied.conf
  NO_PROXY='*' follow
  within 5 '.cidrs.service | length == 2'
  assert_contains "$(cat "$LAB/log/proxy")" 'CONNECT 10.6.0.10:6443'
  service_cidr proxied 10.85.0.0/16
  within 5 '.cidrs.service | index("10.85.0.0/16")'
}

@test "where there is no way to the API server, one line says what was looked for, each thing once" {
  expect 1 lab_in node1 env -i HOME=/none PATH="$PATH" "$(lab_libexec)/sync-cidrs" --kube --cni-directory /none
  assert_equal "$(grep -o 'No such file or directory' <<<"$stderr" | wc -l)" 1
  assert_contains "$stderr" /none/.kube/config
  assert_contains "$stderr" 'ServiceAccount'
}

@test "401 says that the credentials are not accepted, and what is known stands" {
  lab_kubeconfig no-such-token >"$LAB/kubernetes/nobody.conf"
  KUBECONFIG=$LAB/kubernetes/nobody.conf expect 1 sync --kube
  assert_contains "$stderr" 'does not accept our credentials (401)'
  follow
  within 5 '.cidrs.service | length == 2'
  lab_stop follow
  KUBECONFIG=$LAB/kubernetes/nobody.conf follow
  lab_until 10 logged 'does not accept our credentials (401)'
  has '.cidrs.service | length == 2'
  assert_equal "$(metric cidrs_in_contact) $(metric cidrs_known)" '0 1'
  # As whoever renews a certificate or a token does it.
  cp "$LAB/kubernetes/admin.conf" "$LAB/kubernetes/nobody.conf"
  lab_until 40 has_metric cidrs_in_contact 1
}

@test "a certificate that the API server does not accept any more, and an authority that is not its own, are read anew from their files" {
  local directory=$LAB/kubernetes name
  for name in old new; do
    openssl req -x509 -newkey rsa:2048 -nodes -subj "/CN=$name" -days 1 -keyout "$directory/$name.key" -out "$directory/$name.crt" 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -subj /O=system:masters/CN=admin -keyout "$directory/of-$name.key" 2>/dev/null |
      openssl x509 -req -CA "$directory/$name.crt" -CAkey "$directory/$name.key" -days 1 -extfile <(echo extendedKeyUsage=clientAuth) \
        -out "$directory/of-$name.crt" 2>/dev/null
  done
  lab_stop apiserver KILL
  lab_apiserver --client-ca-file "$directory/new.crt"
  take old old
  jq --arg directory "$directory" '.clusters[0].cluster["certificate-authority"] = $directory + "/authority.crt"
    | .users[0].user = {"client-certificate": ($directory + "/client.crt"), "client-key": ($directory + "/client.key")}' \
    "$directory/admin.conf" >"$directory/certificate.conf"
  KUBECONFIG=$directory/certificate.conf follow
  lab_until 10 logged 'certificate'
  lab_until 5 has_metric cidrs_in_contact 0 2>/dev/null
  take apiserver old
  lab_until 40 logged 'does not accept our credentials (401)'
  has_metric cidrs_in_contact 0
  take apiserver new
  lab_until 40 has_metric cidrs_in_contact 1
}

# take AUTHORITY CLIENT: whose certificates are in the files that the kubeconfig names.
take() {
  cp "$LAB/kubernetes/$1.crt" "$LAB/kubernetes/authority.crt"
  cp "$LAB/kubernetes/of-$2.crt" "$LAB/kubernetes/client.crt"
  cp "$LAB/kubernetes/of-$2.key" "$LAB/kubernetes/client.key"
}

@test "with nothing known yet ADD fails with code 11 and STATUS with 50, and says what the node agent waits for" {
  lab_kubeconfig proxy-token >"$LAB/kubernetes/proxy-only.conf"
  KUBECONFIG=$LAB/kubernetes/proxy-only.conf follow
  lab_until 10 logged 'not allowed to list'
  for command in STATUS:50 ADD:11; do
    document "${command%:*}" >"$BATS_TEST_TMPDIR/document"
    run lab_in node1 env UNDERPASS_STATE="$(state)" "$(lab_libexec)/sync-cidrs" <"$BATS_TEST_TMPDIR/document" 2>/dev/null
    assert_equal "$status" 1
    output=$(grep '^{"version"' <<<"$output")
    assert_json "$output" .error.code "${command#*:}"
    assert_contains "$(jq -r .error.details <<<"$output")" 'not allowed to list'
  done
}

document() {
  jq -nc --arg command "$1" '{version: 1, request: {command: $command, containerId: "c", ifname: "eth0", config: {name: "n"}}}'
}

# as_node_agent: a kubeconfig of the ServiceAccount in deploy/.
as_node_agent() {
  lab_kubectl apply --filename - <"$LAB_REPO/deploy/rbac.yaml" >/dev/null
  lab_kubeconfig "$(lab_kubectl create token underpass-node --namespace kube-system)" >"$LAB/kubernetes/node.conf"
  KUBECONFIG=$LAB/kubernetes/node.conf
}

# What asks for everything that the node agent may ever read: each podCIDRType, with the objects that lead furthest.
everything_there() {
  create "$(pool gone 10.50.0.0/16 true)"
  create "$(jq -nc '{apiVersion: "v1", kind: "ConfigMap", metadata: {name: "cilium-config", namespace: "kube-system"}, data: {ipam: "multi-pool"}}')"
}

@test "the rights in deploy/ are enough for every podCIDRType" {
  as_node_agent
  everything_there
  for type in auto cluster calico cilium none; do
    expect 0 sync --kube --node node1 --pod-cidr-type "$type"
    [ "$type" = auto ] || assert_json "$output" .podCIDRType.value "$type"
  done
}

@test "each right in deploy/ is needed, and one that is missing is named" {
  local role resource verb type name
  as_node_agent
  everything_there
  for role in clusterrole role; do
    lab_kubectl get "$role" underpass-node --namespace kube-system --output json |
      jq 'del(.metadata | .resourceVersion, .uid)' >"$BATS_TEST_TMPDIR/$role"
  done
  while read -r role resource name type; do
    lead_to "$resource"
    without "$role" "$resource" "$name" list | lab_kubectl replace --filename - >/dev/null
    lab_until 5 denied list "$resource" "$name"
    # (What is watched needs it where the API server has no streaming lists.)
    expect 1 sync --kube --node node1 --pod-cidr-type "$type"
    assert_contains "$stderr" "not allowed to list $resource"
    assert_contains "$stderr" 'verbs [list]'
    without "$role" "$resource" "$name" watch | lab_kubectl replace --filename - >/dev/null
    lab_until 5 denied watch "$resource" "$name"
    follow --pod-cidr-type "$type"
    lab_until 10 logged "not allowed to watch $resource" || fail "$resource $name" "$(cat "$LAB/log/follow")"
    logged 'verbs [watch]'
    lab_stop follow
    lab_in node1 rm -r "$(state)"
    lab_kubectl replace --filename "$BATS_TEST_TMPDIR/$role" >/dev/null
  done <<'RIGHTS'
clusterrole nodes - none
clusterrole configmaps kube-flannel-cfg cluster
clusterrole servicecidrs.networking.k8s.io - cluster
clusterrole ippools.crd.projectcalico.org - calico
clusterrole ipamblocks.crd.projectcalico.org - calico
clusterrole ciliumpodippools.cilium.io - cilium
clusterrole networks.config.openshift.io cluster cluster
clusterrole spidercoordinators.spiderpool.spidernet.io default none
role configmaps kubeadm-config cluster
role configmaps cilium-config cilium
role configmaps underpass none
role configmaps kube-proxy cluster
role configmaps canal-config cluster
role configmaps rke2-canal-config cluster
role clusterconfigs.k0s.k0sproject.io k0s cluster
role pods - cluster
clusterrole ippools.projectcalico.org - calico
clusterrole ciliumnodes.cilium.io - cilium
RIGHTS
}

# lead_to RESOURCE: makes it needed, where that takes more than everything_there.
lead_to() {
  case $1 in
    ippools.projectcalico.org) lab_kubectl delete ippools.crd.projectcalico.org --all >/dev/null ;;
    ciliumnodes.cilium.io)
      lab_kubectl patch configmap cilium-config --namespace kube-system --type merge \
        --patch '{"data": {"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/8"}}' >/dev/null
      ;;
  esac
}

# without clusterrole|role RESOURCE NAME VERB: the role without that one right.
without() {
  local group=''
  [ "${2%%.*}" = "$2" ] || group=${2#*.}
  jq --arg resource "${2%%.*}" --arg group "$group" --arg name "$3" --arg verb "$4" '
    def concerns: .apiGroups == [$group] and (.resources | index($resource)) and ($name == "-" or (.resourceNames // [] | index($name)));
    .rules |= [.[] | if concerns then
        (. + {resources: (.resources - [$resource])}),
        (. + {resources: [$resource], verbs: (.verbs - [$verb])}),
        (. + {resources: [$resource], resourceNames: (.resourceNames // [] | . - [$name])} | select(.resourceNames != []))
      else . end | select(.resources != [] and .verbs != [])]' "$BATS_TEST_TMPDIR/$1"
}

# denied VERB RESOURCE NAME: whether the API server knows the changed role.
denied() {
  [ "$(review "$@" | jq .status.allowed)" = false ]
}

# review VERB RESOURCE NAME: asks the API server whether the node agent may.
review() {
  local group=''
  [ "${2%%.*}" = "$2" ] || group=${2#*.}
  jq -n --arg verb "$1" --arg resource "${2%%.*}" --arg group "$group" --arg name "${3#-}" '{
    apiVersion: "authorization.k8s.io/v1", kind: "SubjectAccessReview",
    spec: {user: "system:serviceaccount:kube-system:underpass-node", resourceAttributes:
      ({namespace: "kube-system", verb: $verb, resource: $resource, group: $group} + if $name == "" then {} else {name: $name} end)}
  }' | lab_kubectl create --filename - --output json
}

@test "where the API has no ServiceCIDRs and nobody says the Services' CIDR, it is assumed around the API server's address" {
  EMULATED=1
  restart_api --emulated-version 1.32
  expect 1 lab_kubectl get servicecidrs
  as_node_agent
  follow
  within 10 '.cidrs.service == ["10.233.64.0/18"] and (.problems | map(select(contains("is assumed"))) | length == 1)'
  lab_stop follow
  lab_kubectl get clusterrole underpass-node --output json | jq 'del(.rules[] | select(.resources == ["services"]))' |
    lab_kubectl replace --filename - >/dev/null
  lab_until 5 no_services
  follow
  lab_until 10 logged 'not allowed to list services kubernetes in namespace default'
}

no_services() {
  local node=system:serviceaccount:kube-system:underpass-node
  [ "$(lab_kubectl auth can-i list services/kubernetes --namespace default --as "$node" 2>/dev/null)" = no ]
}

@test "the manifests in deploy/ are what the API server takes" {
  expect 0 lab_kubectl apply --dry-run=server --kustomize "$LAB_REPO/deploy"
  assert_contains "$output" 'daemonset.apps/underpass-node created'
  expect 0 lab_kubectl apply --dry-run=server --filename "$LAB_REPO/deploy/status.yaml"
  assert_contains "$output" 'deployment.apps/underpass-status created'
}

# as_status_writer: a kubeconfig of the ServiceAccount in deploy/status.yaml.
as_status_writer() {
  lab_kubectl apply --filename "$LAB_REPO/deploy/rbac.yaml" --filename "$LAB_REPO/deploy/status.yaml" >/dev/null
  lab_kubeconfig "$(lab_kubectl create token underpass-status --namespace kube-system)" >"$LAB/kubernetes/status.conf"
  lab_kubectl delete lease underpass --namespace kube-system --ignore-not-found >/dev/null
}

# writer NAME: a replica of the status's writer.
writer() {
  lab_spawn "$1" node1 env KUBECONFIG="$LAB/kubernetes/status.conf" UNDERPASS_STATE="$(state)-$1" \
    "$(lab_libexec)/sync-cidrs" --watch --write-status --node node1 --cni-directory /none
}

# status_is FILTER: whether the SpiderCoordinator's status satisfies a jq filter.
status_is() {
  lab_kubectl get spidercoordinator default --output json | jq -e ".status | $1" >/dev/null
}

holder() {
  lab_kubectl get lease underpass --namespace kube-system --output 'jsonpath={.spec.holderIdentity}'
}

# The writer whose process holds the Lease. Its pid there is that within the lab.
leading() {
  local name pid inner
  for name in first second; do
    [ -e "$LAB/pid/$name" ] || continue
    read -r pid <"$LAB/pid/$name"
    inner=$(sed -n 's/^NSpid:.*\t//p' "/proc/$pid/status")
    [ "$(holder)" != "node1_$inner" ] || printf '%s\n' "$name"
  done
}

@test "a SpiderCoordinator's status is kept by the one writer that holds the Lease, and by the other when that is gone" {
  local leader
  as_status_writer
  create "$(coordinator '{"podCIDRType": "calico"}')" "$(pool good 10.50.0.0/16)" "$(pool bad 127.0.0.0/16)"
  writer first
  lab_until 10 status_is '.phase == "Synced" and .overlayPodCIDR == ["10.50.0.0/16"]'
  status_is '.serviceCIDR == ["10.233.64.0/18", "fd00:233:64::/108"]'
  status_is '.reason == "IPPool bad: 127.0.0.0/16 overlaps 127.0.0.0/8, which is reserved"'
  writer second
  lab_until 10 second_knows
  leader=$(leading)
  assert_equal "$leader" first
  service_cidr more 10.82.0.0/16
  lab_until 10 status_is '.serviceCIDR | index("10.82.0.0/16")'
  assert_equal "$(leading)" first
  lab_stop "$leader" KILL
  lab_kubectl delete servicecidr more --timeout 10s >/dev/null
  lab_until 40 status_is '.serviceCIDR | index("10.82.0.0/16") | not' || fail "$(cat "$LAB/log/second")"
  assert_equal "$(leading)" second
}

second_knows() { lab_in node1 test -e "$(state)-second/cluster.json"; }

@test "a writer of the status needs each of its rights in deploy/, and says which one is missing" {
  local role resource verb
  create "$(coordinator '{"podCIDRType": "none"}')"
  while read -r role resource verb; do
    as_status_writer
    lab_kubectl patch spidercoordinator default --subresource status --type merge --patch '{"status": null}' >/dev/null
    # To renew a Lease there must be one.
    [ "$verb" != update ] || lab_kubectl create --filename - >/dev/null <<'LEASE'
{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "underpass", "namespace": "kube-system"}}
LEASE
    lab_kubectl get "$role" underpass-status --namespace kube-system --output json |
      jq --arg resource "$resource" --arg verb "$verb" \
        '.rules |= [.[] | if .resources == [$resource] then .verbs -= [$verb] else . end | select(.verbs != [])]' |
      lab_kubectl replace --filename - >/dev/null
    lab_until 5 refused "$verb" "$resource"
    writer first
    lab_until 10 grep -qF "cannot $verb resource \\\"$resource\\\"" "$LAB/log/first" || fail "$verb $resource" "$(cat "$LAB/log/first")"
    expect 1 status_is '.phase == "Synced"'
    lab_stop first
  done <<'RIGHTS'
clusterrole spidercoordinators get
clusterrole spidercoordinators/status patch
role leases create
role leases get
role leases update
RIGHTS
}

# refused VERB RESOURCE: whether the API server knows the changed role.
refused() {
  local name=() kind=${2%%/*} group=coordination.k8s.io
  [ "$1" = create ] || name=(underpass)
  [ "$kind" = leases ] || group=spiderpool.spidernet.io name=(default)
  local flags=(--as system:serviceaccount:kube-system:underpass-status --namespace kube-system)
  [ "$2" = "$kind" ] || flags+=(--subresource "${2#*/}")
  [ "$(lab_kubectl auth can-i "$1" "$kind.$group${name[0]+/${name[0]}}" "${flags[@]}" 2>/dev/null)" = no ]
}
