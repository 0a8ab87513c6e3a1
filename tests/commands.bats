# Every command that README and pages show is run as it stands there: fenced blocks of sh, what tables say to type on a
# node (NODE$) or in a pod (POD$), and the commands with which a line of a table begins.

load helpers
load lb

setup_file() {
  suite_needs_lab && lb_needs_program && suite_needs_tools kubernetes etcd helm crds || return 0
  lab_up 2
  lab_kube_proxy
  lab_crds
  lab_kubectl create configmap kubeadm-config -n kube-system \
    --from-literal "ClusterConfiguration=networking: {podSubnet: 10.233.0.0/18, serviceSubnet: 10.233.64.0/18}" >/dev/null
  lab_cgroup node1 >"$LAB/host/node1/cgroup"
  lab_pod node2 backend plain46
  lab_serve node2/backend 8080
  lab_service web 80:8080 node2/backend
  lab_pod node1 pod1 plain46
  lab_pod node1 pod plain46
  DESK=$BATS_FILE_TMPDIR/desk
  export DESK
  desk
  # Services are done by hand here, by one loader at a time.
  lab_spawn agent node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" cidrs \
    --kubeconfig "$LAB/kubernetes/admin.conf" --node node1
  lab_until 20 lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/node-agent" --ready
}

# A directory to work in, with the files that commands read and the programs as a node has them.
desk() {
  local tools
  mkdir -p "$DESK/bin"
  ln -s "$LAB_REPO/scripts" "$LAB_REPO/deploy" "$DESK"
  lab_chained node1 pod1 underlay46 >"$DESK/conf.json"
  lab_lb_table >"$DESK/services.json"
  jq -c '.services[] | {set: .}' "$DESK/services.json" >"$DESK/changes.ndjson"
  # In a lab no program is on the cgroup of the whole machine.
  # shellcheck disable=SC2016 # expanded by that shell
  printf '#!/bin/sh\n[ "$1" != load ] || { shift && set -- load --cgroup "%s" "$@"; }\nexec "%s" "$@"\n' \
    "$(<"$LAB/host/node1/cgroup")" "$(lab_lb_program)" >"$DESK/bin/bpf-lb-load"
  chmod +x "$DESK/bin/bpf-lb-load"
  tools=$("$LAB_REPO/tests/tools/build" --where kubernetes helm)
  printf '%s' "${tools//$'\n'/:}:$LAB_REPO/scripts:$(lab_libexec)" >"$DESK/path"
}

lab_lb_table() {
  lab_in node1 env KUBECONFIG="$LAB/kubernetes/admin.conf" "$(lab_libexec)/watch-services" --node node1
}

# not_here FILE COMMAND: what is not run here, and where it is.
not_here() {
  case $1:$2 in
    deploy/start.md:*) printf 'where pods start: tests/soak/cluster.bats' ;;
    *:scripts/demo) printf 'tests/demo.bats' ;;
    *:scripts/test) printf 'this is it' ;;
    *:'scripts/build && scripts/image >underpass.tar') printf 'before each test; tests/deploy.bats' ;;
    *:'ctr '*) printf 'where containerd runs: tests/cluster/node.bash' ;;
    deploy/upgrade.md:*remove=true | deploy/upgrade.md:'helm uninstall '*) printf 'where nodes are: tests/soak/cluster.bats' ;;
    *:'kubectl label node '*) printf 'where nodes are: tests/deploy.bats' ;;
    *:'kubectl -n kube-system rollout status '*) printf 'where pods start: tests/soak/cluster.bats' ;;
    *) return 1 ;;
  esac
}

# blocks: each command in a fenced block of sh, as FILE<tab>node<tab>COMMAND. A line that ends with | or \ goes on.
blocks() {
  local file
  for file in README.md bins/*/README.md deploy/*.md; do
    awk -v file="$file" '
      /^```/ { inside = $0 == "```sh"; next }
      !inside { next }
      { sub(/  +# .*/, ""); sub(/[ \t]+$/, "") }
      $0 == "" { next }
      { command = command $0 }
      /[|]$/ { command = command " "; next }
      /\\$/ { sub(/\\$/, "", command); next }
      { print file "\tnode\t" command; command = "" }' "$file"
  done
}

# inline: what tables and text say to type.
inline() {
  # shellcheck disable=SC2016 # what it looks for
  grep -oHE '`(NODE|POD)\$ [^`]*`|^\| `(kubectl|watch-services) [^`]*`' deploy/*.md | sed -E 's/:\| `/:`NODE$ /
    s/^([^:]*):`NODE\$ (.*)`$/\1\tnode\t\2/; s/^([^:]*):`POD\$ (.*)`$/\1\tpod\t\2/; s/\\\|/|/g'
}

# try node|pod COMMAND: as an operator types it. What goes on until it is stopped is stopped.
try() {
  local where=node1 command=$2
  [ "$1" = node ] || where=node1/pod1
  lab_in node1 test -e /sys/fs/bpf/underpass || lab_reload node1
  command=${command//CLUSTER_IP/$(lab_cluster_ip web 4)}
  command=${command//POD_IP/$(lab_address node1/pod1 4)}
  command=${command//NAMESPACE\/NAME/default\/web}
  run lab_in "$where" env -C "$DESK" PATH="$DESK/bin:$(<"$DESK/path"):$PATH" KUBECONFIG="$LAB/kubernetes/admin.conf" NODE_NAME=node1 \
    HELM_CACHE_HOME="$DESK/helm" HELM_CONFIG_HOME="$DESK/helm" HELM_DATA_HOME="$DESK/helm" UNDERPASS_LIBEXEC="$(lab_libexec)" \
    CNI_COMMAND=ADD CNI_CONTAINERID=pod1 CNI_NETNS=/run/netns/pod1 CNI_IFNAME=eth0 \
    timeout 10 bash -o pipefail -c "$command" <"$DESK/conf.json"
  case $status:$command in
    0:*) ;;
    # It watches until it is stopped.
    124:*--watch* | 124:*' trace '*) ;;
    # It found something to change on the node, and grep -c found nothing: that is what it is asked for.
    1:check-node* | 1:*'grep '*) ;;
    *) return 1 ;;
  esac
}

@test "every command that a page shows works" {
  cd "$LAB_REPO"
  local file where command count=0 wrong=()
  while IFS=$'\t' read -r file where command <&4; do
    count=$((count + 1))
    ! not_here "$file" "$command" >/dev/null || continue
    try "$where" "$command" || wrong+=("$file: $command: exit $status: ${output:0:400}")
  done 4< <(blocks; inline)
  [ "$count" -gt 30 ] || fail "only $count commands were found"
  [ "${#wrong[@]}" = 0 ] || fail "$(printf '%s\n' "${wrong[@]}")"
}

@test "a command that is shown and does not exist would be found" {
  ! try node 'watch-services --no-such-flag' || fail 'it was not'
}

@test "the list of suites in tests/README.md has each of them, and no other" {
  cd "$LAB_REPO/tests"
  # shellcheck disable=SC2016 # what it looks for
  assert_same "$(sed -n '/^| suite/,/^$/p' README.md | grep -oE '`[a-z/-]+[.]bats`' | tr -d '`' | sort)" "$(printf '%s\n' *.bats soak/*.bats | sort)"
}
