# Part of the lab (see lab.bash): a real Kubernetes API (kube-apiserver with etcd, on a host of its own) and real kube-proxies.

# lab_kubernetes [FLAG...]: starts the API, with more flags for the API server. lab_kubectl talks to it;
# $LAB/kubernetes/admin.conf is an administrator's kubeconfig, and a program in any host of the lab can use it. LAB_APISERVER
# is the module of tests/tools that has the API server.
# shellcheck disable=SC2120 # suites give flags
lab_kubernetes() {
  local tools
  tools=$("$LAB_REPO/tests/tools/build" --where "${LAB_APISERVER:-kubernetes}" kubernetes etcd) || return
  PATH=${tools//$'\n'/:}:$PATH
  mkdir "$LAB/kubernetes"
  lab_host control
  lab_plug control eth0 6 0.10 10
  lab_kubernetes_credentials
  lab_etcd
  lab_apiserver "$@"
  lab_nodes_json | lab_kubectl apply --filename - >/dev/null
  lab_nodes_json | lab_kubectl replace --subresource status --filename - >/dev/null
}

# Tokens for users that Kubernetes' own roles know, and a key to sign ServiceAccounts' tokens with.
lab_kubernetes_credentials() {
  local directory=$LAB/kubernetes
  openssl genrsa -out "$directory/sa.key" 2048 2>/dev/null
  printf '%s\n' 'admin-token,admin,admin,system:masters' 'proxy-token,system:kube-proxy,proxy' >"$directory/tokens"
  lab_kubeconfig admin-token >"$directory/admin.conf"
  lab_kubeconfig proxy-token >"$directory/proxy.conf"
}

# lab_kubeconfig TOKEN: a kubeconfig for the bearer of a token.
lab_kubeconfig() {
  jq -n --arg token "$1" --arg ca "$LAB/kubernetes/apiserver.crt" '{
    apiVersion: "v1", kind: "Config", "current-context": "lab",
    contexts: [{name: "lab", context: {cluster: "lab", user: "lab"}}],
    clusters: [{name: "lab", cluster: {server: "https://10.6.0.10:6443", "certificate-authority": $ca}}],
    users: [{name: "lab", user: {token: $token}}]
  }'
}

lab_etcd() {
  lab_spawn etcd control etcd --data-dir /run/etcd --unsafe-no-fsync --log-level warn \
    --listen-peer-urls http://127.0.0.1:2380
}

# lab_compact: etcd forgets all history, and with it the API server.
lab_compact() {
  local revision
  revision=$(lab_etcd_gateway kv/range '{"key": "AA=="}' | jq -er .header.revision)
  lab_etcd_gateway kv/compaction "{\"revision\": \"$revision\", \"physical\": true}" | jq -e .header >/dev/null
}

# lab_etcd_gateway PATH JSON: a call of etcd's API.
lab_etcd_gateway() {
  lab_in control /usr/bin/python3 -c 'import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:2379/v3/" + sys.argv[1], sys.argv[2].encode(), 5).read().decode())' "$@"
}

# lab_apiserver [FLAG...]: starts the API server; after lab_stop apiserver, again. Nothing in the lab makes ServiceAccounts.
lab_apiserver() {
  lab_apiserver_with --authorization-mode RBAC --disable-admission-plugins ServiceAccount "$@"
}

# lab_apiserver_with FLAG...: the same, with its own choice of who may what.
lab_apiserver_with() {
  local directory=$LAB/kubernetes
  rm -rf "$directory/cache"
  lab_spawn apiserver control env GOGC=400 kube-apiserver --etcd-servers http://127.0.0.1:2379 --cert-dir "$directory" \
    --bind-address 0.0.0.0 --advertise-address 10.6.0.10 --service-cluster-ip-range 10.233.64.0/18,fd00:233:64::/108 \
    --token-auth-file "$directory/tokens" --service-account-issuer https://lab \
    --service-account-key-file "$directory/sa.key" --service-account-signing-key-file "$directory/sa.key" "$@"
  lab_until 60 lab_apiserver_ready || lab_fail "the API server did not start: $(tail -n 5 "$LAB/log/apiserver")"
}

lab_apiserver_ready() {
  lab_in control curl --silent --fail --output /dev/null --max-time 5 --cacert "$LAB/kubernetes/apiserver.crt" \
    --oauth2-bearer admin-token https://10.6.0.10:6443/readyz
}

# lab_kubectl ARGUMENT...
lab_kubectl() {
  # Its cache of what the API has is by address, and in every lab that is the same.
  lab_in control env GOGC=off kubectl --kubeconfig "$LAB/kubernetes/admin.conf" --cache-dir "$LAB/kubernetes/cache" "$@"
}

# lab_proxied_kubeconfig PORT: an administrator's kubeconfig for a proxy before the API server on the own host.
lab_proxied_kubeconfig() {
  jq --arg server "https://127.0.0.1:$1" '.clusters[0].cluster |= . + {server: $server, "tls-server-name": "10.6.0.10"}' \
    "$LAB/kubernetes/admin.conf"
}

# lab_connections: the local ends of node1's connections to the API server.
lab_connections() { lab_in node1 ss -Htn state established dst 10.6.0.10 dport = 6443 | awk '{print $3}' | sort; }

# lab_refuse HOST [CODE PART]: a proxy before the API server that answers requests with PART in their path or query by CODE, in
# place of the one before. For programs on HOST $LAB/kubernetes/refused.conf leads through it.
lab_refuse() {
  local directory=$LAB/kubernetes
  [ ! -e "$LAB/pid/refuse" ] || lab_stop refuse
  lab_spawn refuse "$1" "$LAB_SOURCE/refusing-proxy" 7444 10.6.0.10 6443 "$directory/apiserver.crt" "$directory/apiserver.key" "${@:2}"
  lab_until 5 grep -qx listening "$LAB/log/refuse" || lab_fail "$(cat "$LAB/log/refuse")"
  lab_proxied_kubeconfig 7444 >"$directory/refused.conf"
}

# lab_crds: the CustomResourceDefinitions of Calico, Cilium, Spiderpool and others whose objects sync-cidrs reads.
lab_crds() {
  local definitions
  definitions=$("$LAB_REPO/tests/tools/build" --where crds) || return
  lab_kubectl apply --filename "$definitions" --filename "$LAB_SOURCE/spidercoordinators.yaml" \
    --filename "$LAB_SOURCE/definitions.yaml" >/dev/null
  lab_kubectl wait --for condition=Established --all crd --timeout 20s >/dev/null
}

# lab_kubeadm_config POD_SUBNET SERVICE_SUBNET: a configuration for kubeadm on node1.
lab_kubeadm_config() {
  cat <<EOF
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 10.6.212.101}
nodeRegistration: {name: node1, criSocket: unix:///run/containerd/containerd.sock}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: $(command kubeadm version --output short)
networking: {podSubnet: "$1", serviceSubnet: "$2"}
EOF
}

# lab_mirror_pod NODE FILE: makes in the API what a kubelet makes there of the node's static pod in FILE.
lab_mirror_pod() {
  lab_in "$1" cat "$2" | lab_kubectl create --dry-run=client --output json --filename - | jq --arg node "$1" '
    .metadata.name += "-\($node)" | .spec.nodeName = $node
    | .metadata.annotations += {"kubernetes.io/config.source": "file", "kubernetes.io/config.mirror": "0"}
  ' | lab_kubectl create --filename - >/dev/null
}

# The lab's nodes as Kubernetes sees them.
lab_nodes_json() {
  lab_nodes | jq -R '{
    apiVersion: "v1", kind: "Node", metadata: {name: .},
    status: {addresses: [
      {type: "InternalIP", address: "10.6.212.\(100 + (ltrimstr("node") | tonumber))"},
      {type: "InternalIP", address: "fd00:6::\(100 + (ltrimstr("node") | tonumber))"}
    ]}
  }' | jq -s '{apiVersion: "v1", kind: "List", items: .}'
}

# lab_kube_proxy [iptables|nftables]: a real kube-proxy on every node; from here on lab_service creates real objects.
lab_kube_proxy() {
  local node
  # shellcheck disable=SC2119 # none of ours
  [ -e "$LAB/kubernetes" ] || lab_kubernetes
  for node in $(lab_nodes); do lab_kube_proxy_on "$node" "${1:-iptables}"; done
  printf '%s\n' "${1:-iptables}" >"$LAB/proxy"
  for node in $(lab_nodes); do
    lab_until 20 lab_proxy_healthy "$node" || lab_fail "kube-proxy on $node: $(tail -n 5 "$LAB/log/kube-proxy-$node")"
  done
  lab_provide
}

# lab_kube_proxy_on NODE iptables|nftables: starts it there, instead of one that runs.
lab_kube_proxy_on() {
  local node=$1 masquerade=cluster flags=()
  [ ! -e "$LAB/masquerade" ] || read -r masquerade <"$LAB/masquerade"
  case $masquerade in
    all) flags=(--masquerade-all) ;;
    cluster) flags=(--cluster-cidr '10.233.0.0/18,fd00:233::/48') ;;
  esac
  [ ! -e "$LAB/pid/kube-proxy-$node" ] || lab_stop "kube-proxy-$node"
  # Conntrack limits belong to the whole machine, so they are left alone.
  lab_spawn "kube-proxy-$node" "$node" kube-proxy --kubeconfig "$LAB/kubernetes/proxy.conf" --hostname-override "$node" \
    --proxy-mode "$2" --iptables-min-sync-period 0 --iptables-localhost-nodeports=false --oom-score-adj 0 \
    --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 "${flags[@]}"
}

# lab_proxy_healthy NODE: whether kube-proxy has written its rules since it started.
lab_proxy_healthy() {
  lab_in "$1" bash -c 'exec 9<>/dev/tcp/127.0.0.1/10256; printf "GET /healthz HTTP/1.0\r\n\r\n" >&9; grep -q "^HTTP.* 200" <&9' 2>/dev/null
}

# lab_objects_write: writes $LAB/services.json to the API. On the server's side: kubectl's own patch takes two ports of one number, TCP and
# UDP, for one.
lab_objects_write() {
  lab_objects_json <"$LAB/services.json" | lab_kubectl apply --server-side --force-conflicts --filename - >/dev/null
}

# Writes $LAB/services.json to the API, and waits until every kube-proxy has it.
lab_objects_apply() {
  local node
  [ -e "$LAB/services.json" ] || return 0
  lab_objects_write
  for node in $(lab_nodes); do
    lab_until 20 lab_proxied "$node" || lab_fail "kube-proxy on $node did not follow: $(tail -n 5 "$LAB/log/kube-proxy-$node")"
  done
}

# Services and their EndpointSlices, one for each family, as Kubernetes' own controller would make them.
lab_objects_json() {
  jq '
    def v6: contains(":");
    [.[] | . as $service
      | [.protocols[] | {name: ascii_downcase, protocol: .}] as $ports
      | {
          apiVersion: "v1", kind: "Service", metadata: {name, namespace: "default"},
          spec: ({
            type: (if .nodePort then "NodePort" else "ClusterIP" end),
            clusterIP: .ips[0], clusterIPs: .ips, ipFamilyPolicy: "RequireDualStack", ipFamilies: ["IPv4", "IPv6"],
            ports: [$ports[] + {port: $service.port} + (if $service.nodePort then {nodePort: $service.nodePort} else {} end)]
          } + if .nodePort then {externalTrafficPolicy: (if .local then "Local" else "Cluster" end)} else {} end)
        },
        ("IPv4", "IPv6" | . as $family | {
          apiVersion: "discovery.k8s.io/v1", kind: "EndpointSlice", addressType: $family,
          metadata: {
            name: "\($service.name)-\($family | ascii_downcase)", namespace: "default",
            labels: {"kubernetes.io/service-name": $service.name}
          },
          endpoints: [$service.backends[] | {
            addresses: [.ips[] | select(v6 == ($family == "IPv6"))][:1], nodeName: .node, conditions: {ready: true}
          } | select(.addresses != [])],
          ports: [$ports[] + {port: ($service.backends[0].port // 1)}]
        })
    ] | {apiVersion: "v1", kind: "List", items: .}'
}

# lab_proxied NODE: whether the node's rules know every ClusterIP and exactly the backends that there are.
lab_proxied() {
  local rules address wanted found
  # shellcheck disable=SC2016 # expanded by the inner shell
  rules=$(lab_in "$1" sh -c 'iptables-save; ip6tables-save; [ "$0" = iptables ] || nft list ruleset' "$(cat "$LAB/proxy")")
  while read -r address; do
    [[ $rules == *" $address"[/\ ]* ]] || return
  done < <(jq -r '.[].ips[]' "$LAB/services.json")
  wanted=$(jq -r '.[].backends[] | .port as $port | .ips[] | if contains(":") then "[\(.)]:\($port)" else "\(.):\($port)" end' \
    "$LAB/services.json" | sort -u)
  found=$(sed -nE 's/.*(--to-destination|dnat to) ([^ ]+).*/\2/p' <<<"$rules" | grep -v ':6443$' | sort -u)
  [ "$wanted" = "$found" ]
}
