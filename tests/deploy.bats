# What deploy/ has: the chart, the manifests that are rendered from it, and the image.

load helpers

setup_file() {
  suite_needs_tools helm || return 0
  HELM=$("$LAB_REPO/tests/tools/build" --where helm)/helm
  export HELM
  ! command -v busybox >/dev/null || "$LAB_REPO/scripts/image" >"$BATS_FILE_TMPDIR/image"
}

# chart [FLAG...]: what the chart renders.
chart() {
  "$HELM" template underpass "$LAB_REPO/deploy/chart" --namespace kube-system --kube-version 1.34.0 "$@"
}

# objects [FLAG...]: the same as JSON, a list.
objects() {
  chart "$@" | /usr/bin/python3 -c '
import json, sys, yaml
print(json.dumps([document for document in yaml.safe_load_all(sys.stdin) if document]))'
}

@test "the chart is one that helm has nothing to say against" {
  expect 0 "$HELM" lint --strict "$LAB_REPO/deploy/chart"
}

@test "the manifests are what the chart renders" {
  mkdir "$BATS_TEST_TMPDIR/deploy"
  # A directory that is named from where the caller stands.
  env -C "$BATS_TEST_TMPDIR" "$LAB_REPO/scripts/render" deploy
  local file
  for file in "$BATS_TEST_TMPDIR"/deploy/*.yaml "$BATS_TEST_TMPDIR"/deploy/*/*.yaml; do
    file=${file#"$BATS_TEST_TMPDIR/"}
    assert_same "$(<"$BATS_TEST_TMPDIR/$file")" "$(<"$LAB_REPO/$file")" || fail "run scripts/render: $file"
  done
}

@test "a value that the chart does not know, or that is not allowed, is refused and named" {
  expect 1 chart --set paths=sideways
  assert_contains "$stderr" paths
  expect 1 chart --set sockets=true
  assert_contains "$stderr" sockets
  expect 1 chart --set metrics.port=70000
  assert_contains "$stderr" port
  # What scripts/install refuses, or YAML would read as something else.
  local key directory
  for key in bin conf; do
    for directory in opt/cni '/opt/cni/a b' '/opt/cni]'; do
      expect 1 chart --set "cni.$key=$directory"
      assert_contains "$stderr" "$key"
    done
  done
  # What the API itself would refuse.
  expect 1 chart --set-json 'node.env=[{"name": "A", "value": 1}]'
  assert_contains "$stderr" 'node'
}

@test "a chart that has this one below it may decide by a value of it whether it is there" {
  local above=$BATS_TEST_TMPDIR/above enabled
  mkdir -p "$above/charts"
  ln -s "$LAB_REPO/deploy/chart" "$above/charts/underpass"
  printf '%s\n' 'apiVersion: v2' 'name: above' 'version: 1.0.0' 'dependencies:' \
    '  - {name: underpass, version: "*", condition: underpass.enabled}' >"$above/Chart.yaml"
  for enabled in true false; do
    expect 0 "$HELM" template above "$above" --kube-version 1.34.0 --set underpass.enabled=$enabled
    assert_equal "$([[ $output == *underpass-node* ]] && printf true || printf false)" $enabled
  done
}

@test "without kube-proxy the chart wants to know where the API server is, and the agent asks there" {
  expect 1 chart --set paths=socket
  assert_contains "$stderr" api.host
  assert_json "$(objects --set paths=socket --set api.host=10.6.0.10)" '.[] | select(.kind == "DaemonSet")
    | .spec.template.spec.containers[0].env[] | select(.name | startswith("KUBERNETES")).value' $'10.6.0.10\n6443'
}

@test "an API server at the node's own loopback address is asked there by who has the node's network, and by nobody else" {
  local host found asks='[.[] | select(.kind == env.KIND).spec.template.spec.containers[0].env[] | select(.name == "KUBERNETES_SERVICE_HOST").value]'
  for host in localhost 127.0.0.1 ::1 '[::1]'; do
    found=$(objects --set "status.enabled=true,api.host=$host")
    KIND=DaemonSet assert_json "$found" "$asks" "[\"$host\"]"
    KIND=Deployment assert_json "$found" "$asks" '[]'
  done
  KIND=Deployment assert_json "$(objects --set status.enabled=true,api.host=127-0.example)" "$asks" '["127-0.example"]'
}

@test "what the agent does otherwise without kube-proxy it does itself, whatever flags node.env has" {
  local names='.[] | select(.kind == "DaemonSet").spec.template.spec.containers[0].env | map(select(.name | test("PATHS|_FLAGS")) | [.name, .value])'
  assert_json "$(objects)" "$names" '[]'
  assert_json "$(objects --set paths=socket,api.host=10.6.0.10 --set-json 'node.env=[{"name": "UNDERPASS_SERVICES_FLAGS", "value": "--node-port-addresses=primary"}]')" \
    "$names" '[["UNDERPASS_PATHS","socket"],["UNDERPASS_SERVICES_FLAGS","--node-port-addresses=primary"]]'
}

@test "check-node is told with the plugin's installation whether there is another path than sockets" {
  local paths
  for paths in both host socket; do
    assert_json "$(objects --set paths=$paths,api.host=10.6.0.10)" '.[] | select(.kind == "DaemonSet").spec.template.spec.initContainers[0].env' \
      "[{\"name\":\"UNDERPASS_PATHS\",\"value\":\"$([ $paths = socket ] && printf socket || printf both)\"}]"
  done
}

@test "the table of Services expires where pods have another way to them, and not where the chart's settings leave them none" {
  local flags='.[] | select(.kind == "DaemonSet").spec.template.spec.containers[0].env | map(select(.name == "UNDERPASS_FOLLOW_FLAGS").value)'
  local values wanted expires stays
  while IFS='|' read -r values wanted expires stays; do
    # shellcheck disable=SC2086 # a list
    assert_json "$(objects $values)" "$flags" "$wanted" || fail "$values"
    # shellcheck disable=SC2086 # a list
    assert_equal "$(notes $values | grep -c 'after ten minutes') $(notes $values | grep -c 'stays in force')" "$expires $stays" || fail "$values"
  done <<'END'
|[]|1|0
--set settings.podCIDRType=cilium|[]|1|0
--set settings.podCIDRType=none|["--lease 0"]|0|1
--set settings.podCIDRType=none,settings.serviceCIDR[0]=10.96.0.0/12|[]|1|0
--set settings.podCIDRType=none,paths=host|[]|0|0
--set settings.podCIDRType=none,paths=socket,api.host=10.6.0.10|[]|0|1
--set settings.podCIDRType=none,node.env[0].name=UNDERPASS_FOLLOW_FLAGS,node.env[0].value=--lease=600|["--lease=600"]|0|0
--set settings.podCIDRType=none,node.env[0].name=OTHER,node.env[0].value=UNDERPASS_FOLLOW_FLAGS|["--lease 0"]|0|1
END
}

# notes [FLAG...]: what helm says after the installation, as an object's annotation, for it says nothing where there is no API server.
notes() {
  local chart=$BATS_TEST_TMPDIR/chart
  [ -e "$chart" ] || {
    cp -R "$LAB_REPO/deploy/chart" "$chart"
    { printf '{{- define "notes" -}}' && cat "$chart/templates/NOTES.txt" && printf '{{- end }}\nnotes: {{ include "notes" . | toJson }}\n'; } \
      >"$chart/templates/notes.yaml"
  }
  "$HELM" template underpass "$chart" --kube-version 1.34.0 --show-only templates/notes.yaml "$@"
}

@test "who takes all off the nodes is told of that, and not that it comes up there" {
  assert_contains "$(notes)" 'comes up on every node'
  assert_contains "$(notes --set remove=true)" 'is taken off every node'
  [[ $(notes --set remove=true) != *'comes up'* ]]
}

@test "on OpenShift whoever has directories of the node may have them, and elsewhere nothing is said of that" {
  local found flags openshift='[.[] | select(.metadata.name == "underpass-openshift")]'
  assert_json "$(objects --set status.enabled=true)" "$openshift" '[]'
  for flags in status.enabled=true status.enabled=false remove=true; do
    found=$(objects --api-versions security.openshift.io/v1 --set $flags)
    # No other allows a seccomp profile in all versions.
    assert_json "$found" "$openshift | [.[0].rules[0].resourceNames, .[0].rules[0].verbs]" '[["privileged"],["use"]]'
    assert_same "$(jq -r "$openshift | .[1].subjects[].name" <<<"$found")" \
      "$(jq -r '[.[].spec.template.spec | select(.volumes[]?.hostPath).serviceAccountName] | unique[]' <<<"$found")"
  done
}

@test "sizes of the maps are given to the agent as it gives them to the loader, and without any nothing is" {
  local flags='.[] | select(.kind == "DaemonSet") | .spec.template.spec.containers[0].env[] | select(.name == "UNDERPASS_LOAD_FLAGS").value'
  assert_json "$(objects --set maps.backends=1048576,maps.clients=70000)" "$flags" '--max-backends 1048576 --max-clients 70000'
  assert_json "$(objects)" "$flags" ''
  expect 1 chart --set maps.backends=0
  assert_contains "$stderr" backends
  expect 1 chart --set maps.pods=5
  assert_contains "$stderr" pods
  local own='node.env=[{"name": "UNDERPASS_LOAD_FLAGS", "value": "--protect-node-ports"}]'
  assert_json "$(objects --set-json "$own")" "$flags" --protect-node-ports
  expect 1 chart --set-json "$own" --set maps.clients=70000
  assert_contains "$stderr" UNDERPASS_LOAD_FLAGS
}

@test "a variable of the agent that the chart sets is refused in node.env, with what to set instead" {
  local name instead
  while read -r name instead; do
    expect 1 chart --set api.host=10.6.0.10 --set-json "node.env=[{\"name\": \"HTTPS_PROXY\", \"value\": \"p\"}, {\"name\": \"$name\", \"value\": \"1\"}]"
    assert_contains "$stderr" "node.env has $name, which the chart sets: $instead"
  done <<'END'
NODE_NAME it is
UNDERPASS_LISTEN set metrics.port
UNDERPASS_SYSCTL it is
UNDERPASS_PATHS set paths
KUBERNETES_SERVICE_HOST set api.host
KUBERNETES_SERVICE_PORT set api.port
END
  # Whatever the chart gives the agent is on that list.
  assert_same "$(objects --set paths=socket,api.host=10.6.0.10,maps.clients=70000 |
    jq -r '.[] | select(.kind == "DaemonSet").spec.template.spec.containers[0].env[].name' | sort)" \
    "$(sed -n 's/.*"\([A-Z_]*\)" "\(set\|it is\) .*/\1/p' "$LAB_REPO/deploy/chart/templates/_helpers.tpl" | sort)"
}

@test "whoever loads or unloads has /proc/sys where it can be written" {
  local remove
  for remove in true false; do
    assert_json "$(objects --set remove=$remove)" '[.[] | select(.kind == "DaemonSet") | .spec.template.spec | (.initContainers, .containers)[]
      | select((.command | join(" ") | test("node-agent")))
      | [(.env[] | select(.name == "UNDERPASS_SYSCTL").value), (.volumeMounts[] | select(.name == "sysctl").mountPath)]] | unique' '[["/run/sysctl","/run/sysctl"]]'
  done
}

@test "for the host path alone no right on Services is asked for, and no eBPF" {
  local found
  found=$(objects --set paths=host)
  # The API server's own Service says the first ClusterIP, where nothing else says the Service CIDR.
  assert_json "$found" '[.[].rules[]? | select(.resources[] == "services" or .resources[] == "endpointslices") | [.resources, .resourceNames]]' \
    '[[["services"],["kubernetes"]]]'
  assert_json "$found" '.[] | select(.kind == "DaemonSet") | .spec.template.spec.containers[0].securityContext.capabilities.add' \
    '["NET_ADMIN","NET_BROADCAST","SYS_ADMIN","DAC_OVERRIDE","SYS_PTRACE"]'
}

@test "nothing is privileged, and every container drops what it does not name" {
  local flag
  for flag in status.enabled=true remove=true; do
    assert_json "$(objects --set $flag)" '[.[].spec.template.spec | select(.) | (.initContainers[]?, .containers[])
      | .securityContext | [.privileged, .allowPrivilegeEscalation, .capabilities.drop, .readOnlyRootFilesystem]] | unique' \
      '[[null,false,["ALL"],true]]'
  done
}

@test "the page of security names each container on a node, its capabilities, and what it may write to" {
  local name wanted rights remove
  for remove in true false; do
    objects --set remove=$remove | jq -r '.[] | select(.kind == "DaemonSet").spec.template.spec | (.volumes | map({(.name): .hostPath.path}) | add) as $paths
      | (.initContainers, .containers)[] | [.name, (.securityContext.capabilities.add[] | "CAP_\(.)"), (.volumeMounts[] | select(.readOnly | not) | $paths[.name])] | join(" ")'
  done >"$BATS_TEST_TMPDIR/containers"
  assert_equal "$(wc -l <"$BATS_TEST_TMPDIR/containers")" 5
  while read -r name wanted; do
    # shellcheck disable=SC2016 # what it looks for
    rights=$(grep "^|[^|]*\`$name\`" "$LAB_REPO/deploy/security.md" | cut -d '|' -f 4 | grep -oE 'CAP_[A-Z_]+|`/[a-z/]+`' | tr -d '`')
    assert_same "$(sort <<<"$rights")" "$(tr ' ' '\n' <<<"$wanted" | sort)" || fail "$name"
  done <"$BATS_TEST_TMPDIR/containers"
}

@test "the plugin is kept in its place where the chart puts it there, and nowhere else" {
  containers() {
    objects "$@" | jq -c '.[] | select(.kind == "DaemonSet").spec.template.spec | [(.initContainers[]?, .containers[]).name]'
  }
  assert_equal "$(containers)" '["install","node-agent","plugin"]'
  assert_equal "$(containers --set cni.install=false)" '["node-agent"]'
  assert_equal "$(containers --set remove=true)" '["remove","rest"]'
  # One directory for both, and the same node's.
  assert_json "$(objects --set cni.bin=/usr/lib/cni)" '.[] | select(.kind == "DaemonSet").spec.template.spec
    | (.initContainers[0].command == .containers[1].command - ["--keep"] + ["--with-agent"]), .containers[1].volumeMounts' \
    $'true\n[{"name":"bin","mountPath":"/host/usr/lib/cni"}]'
}

@test "what takes the plugin away goes on until no pod needs it, and a node that has pods keeps none of the others waiting" {
  local commands command
  commands=$(objects --set remove=true,cni.bin=/usr/lib/cni | jq -c '.[] | select(.kind == "DaemonSet").spec.template.spec | (.initContainers, .containers)[].command')
  # try NUMBER STATUS...: what becomes of the container's command where install exits with these, one after the other.
  try() {
    mkdir -p "$BATS_TEST_TMPDIR/bin"
    command=$(sed -n "$1p" <<<"$commands")
    shift
    printf '%s\n' "$@" >"$BATS_TEST_TMPDIR/statuses"
    : >"$BATS_TEST_TMPDIR/done"
    cat >"$BATS_TEST_TMPDIR/bin/any" <<'END'
#!/bin/sh
here=${0%/bin/*}
printf '%s\n' "${0##*/} $*" >>"$here/done"
[ "${0##*/}" = install ] || exit 0
read -r status <"$here/statuses"
sed -i 1d "$here/statuses"
exit "$status"
END
    chmod +x "$BATS_TEST_TMPDIR/bin/any"
    for name in install node-agent sleep; do ln -sf any "$BATS_TEST_TMPDIR/bin/$name"; done
    run env PATH="$BATS_TEST_TMPDIR/bin:$PATH" timeout 20 sh -c "$(jq -r '.[2]' <<<"$command")"
  }
  local install='install --root /host --cni-bin /usr/lib/cni' installer wanted
  while read -r installer wanted; do
    try 1 "$installer"
    assert_equal "$status" "$wanted"
    assert_equal "$(<"$BATS_TEST_TMPDIR/done")" "node-agent --uninstall"$'\n'"$install --uninstall"
  done <<'END'
0 0
3 0
1 1
END
  try 2 3 1 0
  assert_equal "$(<"$BATS_TEST_TMPDIR/done")" "$(printf '%s\n' "$install --finish" 'sleep 60' "$install --finish" 'sleep 60' "$install --finish" 'sleep infinity')"
}

@test "everything is taken off the nodes of a label alone, where the agent is not, while the others keep it" {
  local found flags nodes='.[] | select(.kind == "DaemonSet") | [.metadata.name, .spec.selector.matchLabels["app.kubernetes.io/component"],
    (.spec.template.spec | .nodeSelector.underpass, .containers[0].name)]'
  found=$(objects --set node.nodeSelector.underpass=yes,removeFrom.underpass=no)
  assert_json "$found" "$nodes" $'["underpass-node","node","yes","node-agent"]\n["underpass-remove","remove","no","rest"]'
  assert_json "$found" '[.[] | select(.kind == "DaemonSet") | .spec.selector.matchLabels == .spec.template.metadata.labels] | unique' '[true]'
  assert_json "$found" '[.[] | select(.kind == "DaemonSet").spec.template.spec.nodeSelector["kubernetes.io/os"]] | unique' '["linux"]'
  # Taken off all nodes after that, they are all of them.
  assert_json "$(objects --set remove=true,node.nodeSelector.underpass=yes,removeFrom.underpass=no)" "$nodes" \
    $'["underpass-node","node","yes","rest"]\n["underpass-remove","remove","no","rest"]'
  # Who went on would load again what was taken away, and the other way round.
  for flags in removeFrom.underpass=no node.nodeSelector.underpass=no,removeFrom.underpass=no remove=true,removeFrom.underpass=no; do
    expect 1 chart --set "$flags"
    assert_contains "$stderr" 'node.nodeSelector chooses these nodes too'
  done
}

@test "what is mounted on the node after the agent's start is seen in its container" {
  assert_json "$(objects)" '[.[] | select(.kind == "DaemonSet").spec.template.spec.containers[0].volumeMounts[]
    | select(.mountPropagation == "HostToContainer").mountPath]' '["/run/netns","/var/run/netns","/sys/fs/bpf","/sys/fs/cgroup"]'
}

@test "a node at work has five seconds for an answer of the agent's, and the next question comes later" {
  assert_json "$(objects)" '[.[] | select(.kind == "DaemonSet").spec.template.spec.containers[0] | .readinessProbe, .livenessProbe
    | .timeoutSeconds >= 5 and .timeoutSeconds < .periodSeconds]' '[true,true]'
}

@test "the agent is ended when a tool of it hangs, and not when somebody else has the port of its metrics" {
  assert_json "$(objects)" '[.[] | select(.kind == "DaemonSet").spec.template.spec.containers[].livenessProbe | select(.) | .exec.command, .httpGet]' \
    '[["node-agent","--live"],null]'
}

@test "each container has the resources of the values" {
  local remove
  for remove in true false; do
    assert_json "$(objects --set remove=$remove,status.enabled=true,node.resources.limits.memory=1Gi,cni.resources.limits.memory=1Gi,status.resources.limits.memory=1Gi)" \
      '[.[].spec.template.spec | select(.) | (.initContainers[]?, .containers[]).resources.limits.memory] | unique' '["1Gi"]'
  done
}

@test "no pod goes to a node with another system than Linux" {
  assert_json "$(objects --set status.enabled=true)" '[.[].spec.template.spec | select(.) | .nodeSelector["kubernetes.io/os"]]' '["linux","linux"]'
}

@test "AppArmor's profile for containers, which denies /sys/fs/bpf, is off in the words of the cluster's version" {
  # What the DaemonSet of these flags says by the pod, and by each container; and which containers it has.
  said() {
    objects "$@" | jq -c '.[] | select(.kind == "DaemonSet").spec.template | [.spec.securityContext.appArmorProfile.type,
      [.metadata.annotations // {} | to_entries[] | select(.value == "unconfined").key | sub("^container.apparmor.security.beta.kubernetes.io/"; "")],
      [.spec | (.initContainers[]?, .containers[]).name]] | map(if type == "array" then sort else . end)'
  }
  assert_json "$(said)" '.[:2]' '["Unconfined",[]]'
  local paths remove install
  for paths in both host socket; do for remove in true false; do for install in true false; do
    assert_json "$(said --kube-version 1.29.4 --set "paths=$paths,api.host=10.6.0.10,remove=$remove,cni.install=$install")" \
      '[.[0], .[1] == .[2]]' '[null,true]'
  done; done; done
  assert_json "$(objects)" '.[] | select(.kind == "DaemonSet").spec.template.spec.securityContext.seLinuxOptions.type' spc_t
}

@test "a network of the values is a chain that ends with the plugin" {
  local found
  found=$(objects --set-json 'networks=[{"name": "fast", "resource": "intel.com/vf", "plugin": {"type": "sriov"}, "coordinator": {"mode": "underlay"}}]')
  assert_json "$found" '.[] | select(.kind == "NetworkAttachmentDefinition") | .metadata.annotations[]' intel.com/vf
  assert_json "$found" '.[] | select(.kind == "NetworkAttachmentDefinition") | .spec.config | fromjson | .plugins' \
    '[{"type":"sriov"},{"mode":"underlay","type":"coordinator"}]'
}

@test "two builds of the image give the same bytes" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  "$LAB_REPO/scripts/image" | cmp - "$BATS_FILE_TMPDIR/image"
}

# program MACHINE FILE: what looks like a program for amd64 (3e) or arm64 (b7).
program() {
  mkdir -p "${2%/*}"
  # shellcheck disable=SC2059 # a format
  printf "\\177ELF\\2\\1\\1\\0\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0\\x$1\\0" >"$2"
  chmod +x "$2"
}

# architecture IMAGE
architecture() {
  local config
  config=$(tar -xO -f "$1" ./manifest.json | jq -r '.[0].Config')
  tar -xO -f "$1" "./$config" | jq -r .architecture
}

@test "an image is of its programs' architecture, whoever makes it, and what has programs of two is refused" {
  local root=$BATS_TEST_TMPDIR/root image=$BATS_TEST_TMPDIR/image machine architecture
  while read -r machine architecture; do
    program "$machine" "$root/bin/one"
    "$LAB_REPO/scripts/pack-image" localhost/one:1 "$root" >"$image"
    assert_equal "$(architecture "$image")" "$architecture"
  done <<'END'
3e amd64
b7 arm64
END
  program 3e "$root/bin/other"
  expect 1 "$LAB_REPO/scripts/pack-image" localhost/one:1 "$root"
  assert_contains "$stderr" 'not all for amd64'
}

@test "an image's files are put into no directory that has others" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  # A link in there would lead out of it.
  mkdir -p "$BATS_TEST_TMPDIR/root/var" "$BATS_TEST_TMPDIR/out"
  ln -s "$BATS_TEST_TMPDIR/out" "$BATS_TEST_TMPDIR/root/var/run"
  expect 1 "$LAB_REPO/scripts/image" --root "$BATS_TEST_TMPDIR/root"
  assert_contains "$stderr" "$BATS_TEST_TMPDIR/root is not empty"
  assert_equal "$(ls -A "$BATS_TEST_TMPDIR/out")" ''
  mkdir "$BATS_TEST_TMPDIR/empty"
  expect 0 "$LAB_REPO/scripts/image" --root "$BATS_TEST_TMPDIR/empty"
}

@test "an archive of scripts/release makes the image of its tools, with a BusyBox of their architecture and no other" {
  local archive=$BATS_TEST_TMPDIR/archive tool
  mkdir -p "$archive/deploy"
  ln -s "$LAB_REPO/deploy/chart" "$archive/deploy/chart"
  for tool in "$LAB_REPO"/bins/*; do program b7 "$archive/bin/underpass.d/${tool##*/}"; done
  # As scripts/release copies them.
  # shellcheck disable=SC2016,SC2046 # a list, and what it looks for
  (cd "$LAB_REPO" && cp $(sed -n 's|^ *cp \(scripts/.*\) "$directory/bin"$|\1|p' scripts/release) "$archive/bin")
  program b7 "$BATS_TEST_TMPDIR/busybox"
  env -C / "$archive/bin/image" --busybox "$BATS_TEST_TMPDIR/busybox" >"$BATS_TEST_TMPDIR/image"
  assert_equal "$(architecture "$BATS_TEST_TMPDIR/image")" arm64
  program 3e "$BATS_TEST_TMPDIR/busybox"
  expect 1 "$archive/bin/image" --busybox "$BATS_TEST_TMPDIR/busybox"
  assert_contains "$stderr" "not of the tools' architecture"
}

@test "what the README in an archive of scripts/release names is in there" {
  local archive=$BATS_TEST_TMPDIR/archive path
  mkdir -p "$archive/bin"
  # As scripts/release copies and writes it.
  # shellcheck disable=SC2016,SC2046 # a list, and what it looks for
  (cd "$LAB_REPO" && cp $(sed -n 's|^ *cp \(scripts/.*\) "$directory/bin"$|\1|p' scripts/release) "$archive/bin" &&
    eval "$(sed -n '/^documents() {$/,/^}$/p' scripts/release)" && documents "$archive")
  grep -oE '(^|[^[:alnum:]/.-])(bin|bins|common|deploy|scripts|target|tests)/[[:alnum:]_./-]*' "$archive/README.md" |
    sed 's/^[^[:alnum:]]//; s/\.$//' | sort -u >"$BATS_TEST_TMPDIR/named"
  [ "$(wc -l <"$BATS_TEST_TMPDIR/named")" -ge 15 ] || fail "$(cat "$BATS_TEST_TMPDIR/named")"
  while read -r path; do [ -e "$archive/$path" ] || fail "there is no $path"; done <"$BATS_TEST_TMPDIR/named"
}

@test "chart, tools and image have one version" {
  assert_same "$(sed -n 's/^\(appVersion\|version\): //p' "$LAB_REPO/deploy/chart/Chart.yaml" | sort -u)" \
    "$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' "$LAB_REPO/Cargo.toml")"
}

@test "no tool on the way of an ADD is linked with Kubernetes, TLS or eBPF" {
  expect 0 cargo tree --quiet --locked --offline --edges normal --prefix none --manifest-path "$LAB_REPO/Cargo.toml" \
    --package={cni-request,detect-mode,sync-cidrs,mk-veth,set-routes,set-rules,tune-pod,cni-result}
  assert_contains "$output" common
  [[ ! $output =~ (^|$'\n')(kube|k8s-openapi|rustls|openssl|hyper|aya)[\ -] ]] || fail "${BASH_REMATCH[0]}"
}

@test "no image is written to a terminal" {
  expect 1 /usr/bin/python3 -c 'import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))' \
    "$LAB_REPO/scripts/image" </dev/null
  assert_contains "$output" 'scripts/image >underpass.tar'
}

@test "an image whose loader has no eBPF programs is said to have the host path alone, and no other is" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  local repo=$BATS_TEST_TMPDIR/repo words='built without its kernel side'
  # No cgroup is opened by a loader that has nothing to load.
  [[ $("$LAB_REPO/target/release/bpf-lb-load" load --cgroup /nowhere 2>&1) != *"$words"* ]] ||
    skip 'no eBPF programs are built here: run scripts/setup'
  mkdir -p "$repo/target/release"
  ln -s "$LAB_REPO"/{scripts,bins,deploy} "$repo"
  ln -s "$LAB_REPO"/target/release/* "$repo/target/release"
  expect 0 env -C "$BATS_TEST_TMPDIR" "$repo/scripts/image" --root whole
  [ -x "$BATS_TEST_TMPDIR/whole/usr/local/bin/node-agent" ]
  assert_equal "$stderr" ''
  rm "$repo/target/release/bpf-lb-load"
  grep -F "$words" "$LAB_REPO/bins/bpf-lb-load/src/load.rs" >"$repo/target/release/bpf-lb-load"
  chmod +x "$repo/target/release/bpf-lb-load"
  expect 0 "$repo/scripts/image" --root "$BATS_TEST_TMPDIR/half"
  assert_contains "$stderr" 'paths=host'
}

@test "a command of a page that chooses pods chooses ours alone" {
  # shellcheck disable=SC2016 # what it looks for
  assert_equal "$(grep -onE '(-l|--selector)[ =][^\`]*component[^\`]*' "$LAB_REPO"/deploy/*.md | grep -v app.kubernetes.io/name=underpass)" ''
}

@test "a script that is asked for help says how it is used, and does nothing" {
  local script name help
  for script in "$LAB_REPO"/scripts/*; do
    name=${script##*/}
    # A runtime calls it, and nobody else.
    [ "$name" != coordinator ] || continue
    for help in --help -h; do
      expect 0 "$script" $help </dev/null
      [[ $output =~ ^'Usage: '(scripts/)?"$name"' ' ]] || fail "$name: $output"
    done
  done
}

@test "a script whose option has no value, or is none, says which one, shows its usage and does nothing" {
  local script arguments said
  while read -r script arguments; do
    said=${arguments#*: } arguments=${arguments%%: *}
    # shellcheck disable=SC2086 # a list
    UNDERPASS_LIBEXEC=/nowhere expect 2 "$LAB_REPO/scripts/$script" $arguments </dev/null
    assert_contains "$stderr" 'Usage: '
    [ "$said" = "$arguments" ] || assert_equal "${stderr%%$'\n'*}" "$script: $said"
    assert_equal "$output" ''
  done <<'END'
install --root: --root wants a value
install --uninstall --cni-bin: --cni-bin wants a value
install --away: there is no --away
image --name: --name wants a value
image --busybox: --busybox wants a value
image --name one --root: --root wants a value
image one: there is no one
release --output: --output wants a value
release --input one: there is no --input
node-agent --node: --node wants a value
node-agent cidrs --kubeconfig: --kubeconfig wants a value
node-agent --no-such-flag: there is no --no-such-flag
node-agent cidr: there is no cidr
bench add --against
bench lb --against
END
  expect 2 env UNDERPASS_PATHS=sideways UNDERPASS_LIBEXEC=/nowhere "$LAB_REPO/scripts/node-agent"
  assert_contains "$stderr" 'UNDERPASS_PATHS is sideways: both or socket'
  assert_contains "$stderr" 'Usage: '
}

@test "an image's command may have options, which jq does not take for its own" {
  mkdir "$BATS_TEST_TMPDIR/root"
  "$LAB_REPO/scripts/pack-image" localhost/shell:1 "$BATS_TEST_TMPDIR/root" /bin/sh -c true | tar -x -C "$BATS_TEST_TMPDIR"
  assert_json "$(<"$BATS_TEST_TMPDIR/$(jq -r '.[0].Config' "$BATS_TEST_TMPDIR/manifest.json")")" '.config.Entrypoint' '["/bin/sh","-c","true"]'
}

@test "the Dockerfile makes what scripts/image makes" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  local dockerfile
  tar -x -C "$BATS_TEST_TMPDIR" -f "$BATS_FILE_TMPDIR/image"
  dockerfile=$(<"$LAB_REPO/deploy/Dockerfile")
  # Its files are those of scripts/image --root; what is besides them stands in two lines.
  assert_contains "$dockerfile" 'scripts/image --root /image'
  local config
  config=$(jq -c .config "$BATS_TEST_TMPDIR/$(jq -r '.[0].Config' "$BATS_TEST_TMPDIR/manifest.json")")
  assert_json "$config" '.Env[]' "$(sed -n 's/^ENV //p' <<<"$dockerfile")"
  assert_json "$config" '.Entrypoint' "$(sed -n 's/^ENTRYPOINT //p' <<<"$dockerfile")"
}

@test "every metric that an alert or the dashboard names is one that is documented, and every alert is documented" {
  local name
  # shellcheck disable=SC2013 # words
  for name in $(grep -ohE 'underpass_[a-z_]+' "$LAB_REPO/deploy/chart/dashboard.json" "$LAB_REPO/deploy/chart/templates/metrics.yaml" | sort -u); do
    grep -q "^| \`${name%_bucket}\` |" "$LAB_REPO/deploy/metrics.md" || fail "there is no $name"
  done
  assert_same "$(sed -n 's/^| \(Underpass[^ ]*\) |.*/\1/p' "$LAB_REPO/deploy/metrics.md" | sort)" \
    "$(objects --set metrics.alerts=true,metrics.podMonitor=true | jq -r '.[] | select(.kind == "PrometheusRule").spec.groups[].rules[].alert' | sort)"
}

@test "by either monitor a metric keeps its own labels, also those that the operator gives to what it reads" {
  assert_json "$(objects --set metrics.podMonitor=true,metrics.serviceMonitor=true)" \
    '[.[] | select(.kind | endswith("Monitor")) | (.spec.podMetricsEndpoints // .spec.endpoints)[].honorLabels]' '[true,true]'
}

@test "alerts and the dashboard ask for no label but those that a metric is documented with, and the monitors' node" {
  objects --set metrics.alerts=true,metrics.podMonitor=true,metrics.dashboard=true >"$BATS_TEST_TMPDIR/objects"
  assert_same "$(/usr/bin/python3 - "$BATS_TEST_TMPDIR/objects" "$LAB_REPO/deploy/metrics.md" <<'PYTHON'
import json, re, sys

# Prometheus' own of whom it asks.
labels = {"up": {"node", "job"}}
for line in open(sys.argv[2]):
    if found := re.match(r"\| `(underpass_\w+)` \| \w+ \| ([\w, ]*)\|", line):
        labels[found[1]] = {"node", *re.findall(r"\w+", found[2])}

asked = []
for found in json.load(open(sys.argv[1])):
    if found["kind"] == "PrometheusRule":
        for rule in (rule for group in found["spec"]["groups"] for rule in group["rules"]):
            asked.append((rule["expr"], re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))))
    elif "underpass.json" in found.get("data", {}):
        for panel in json.loads(found["data"]["underpass.json"])["panels"]:
            for target in panel.get("targets", []):
                asked.append((target["expr"], re.findall(r"{{(\w+)}}", target["legendFormat"])))
if len(asked) < 20:
    print("only", len(asked), "expressions were found")
for expression, names in asked:
    metric = re.search(r"\bup\b|underpass_\w+", expression)[0].removesuffix("_bucket")
    for group in re.findall(r"by \(([^)]*)\)", expression):
        names = names + re.findall(r"\w+", group)
    names = names + re.findall(r"[{,]\s*(\w+)\s*[=!]", expression)
    for name in set(names) - labels[metric]:
        print(f"{name}: {expression}")
PYTHON
  )" ''
}

@test "without a monitor of the chart's nobody is told that no metrics are asked for" {
  assert_json "$(objects --set metrics.alerts=true)" '[.[] | select(.kind == "PrometheusRule").spec.groups[].rules[].alert | select(test("AgentDown|Absent"))]' \
    '["UnderpassAgentDown"]'
}

@test "where all is taken off the nodes nothing asks for metrics, has their port, or alerts" {
  local found
  found=$(objects --set remove=true,metrics.podMonitor=true,metrics.serviceMonitor=true,metrics.dashboard=true,metrics.alerts=true)
  assert_json "$found" '[.[].kind | select(test("Monitor|Rule$|^Service$"))]' '[]'
  assert_json "$found" '[.[].spec.template.spec | select(.) | (.initContainers[]?, .containers[]).ports | select(.)]' '[]'
}

@test "the monitors choose what the chart makes" {
  local found up
  found=$(objects --set metrics.podMonitor=true,metrics.serviceMonitor=true,metrics.dashboard=true,metrics.alerts=true)
  # shellcheck disable=SC2016 # variables of jq
  assert_json "$found" '(.[] | select(.kind == "DaemonSet").spec.template.metadata.labels) as $pod
    | (.[] | select(.kind == "Service")) as $service
    | [(.[] | select(.kind == "PodMonitor").spec.selector.matchLabels), $service.spec.selector | inside($pod)]
      + [.[] | select(.kind == "ServiceMonitor").spec.selector.matchLabels | inside($service.metadata.labels)]' '[true,true,true]'
  # The operator's jobs: a PodMonitor's namespace and name, and the Service's name. Who is not there at all has no series that could be 0.
  up="up{job=~\"$(jq -r '[(.[] | select(.kind == "PodMonitor").metadata | "\(.namespace)/\(.name)"), (.[] | select(.kind == "Service").metadata.name)]
    | join("|")' <<<"$found")\"}"
  assert_json "$found" '.[] | select(.kind == "PrometheusRule").spec.groups[].rules[] | select(.alert | test("AgentDown|Absent")).expr' \
    "$up == 0"$'\n'"absent($up == 1)"
  assert_json "$found" '.[] | select(.kind == "ConfigMap").data["underpass.json"] | select(.) | fromjson.title' Underpass
}
