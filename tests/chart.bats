# The chart and the manifests under a real API server.

load helpers

setup_file() {
  suite_needs_lab && suite_needs_tools helm kubernetes etcd crds || return 0
  lab_up 1
  lab_kubernetes
  lab_crds
}

# helm ARGUMENT...
helm() {
  lab_in control env KUBECONFIG="$LAB/kubernetes/admin.conf" HELM_CACHE_HOME="$LAB/helm" HELM_CONFIG_HOME="$LAB/helm" \
    HELM_DATA_HOME="$LAB/helm" "$("$LAB_REPO/tests/tools/build" --where helm)/helm" "$@"
}

# object KIND NAME: as the API has it.
object() { lab_kubectl get -n kube-system "$1" "$2" --output json; }

@test "the API takes every manifest, and does not warn" {
  local file
  for file in "$LAB_REPO"/deploy/*.yaml "$LAB_REPO"/deploy/remove/*.yaml; do
    [ "${file##*/}" != kustomization.yaml ] || continue
    expect 0 lab_kubectl apply --server-side --dry-run=server --filename "$file"
    assert_equal "$stderr" ''
  done
}

@test "the API takes what kubectl makes of the directory" {
  expect 0 lab_kubectl apply --dry-run=server --kustomize "$LAB_REPO/deploy"
  assert_contains "$output" 'daemonset.apps/underpass-node created (server dry run)'
}

@test "an overlay with an image of its own has it on the nodes, and when all is taken off them" {
  local directory
  for directory in deploy deploy/remove; do
    rm -rf "$BATS_TEST_TMPDIR/overlay"
    mkdir "$BATS_TEST_TMPDIR/overlay"
    cp -R "$LAB_REPO/deploy" "$BATS_TEST_TMPDIR/overlay/deploy"
    printf '%s\n' "resources: [$directory]" 'images: [{name: underpass, newName: registry.example/underpass, newTag: "7"}]' \
      >"$BATS_TEST_TMPDIR/overlay/kustomization.yaml"
    expect 0 lab_kubectl kustomize "$BATS_TEST_TMPDIR/overlay"
    assert_equal "$(grep ' image: ' <<<"$output" | sort -u | xargs)" 'image: registry.example/underpass:7'
  done
}

@test "the API takes the chart with each choice of paths, and with the status" {
  local paths
  for paths in both host socket; do
    expect 0 helm install underpass "$LAB_REPO/deploy/chart" -n kube-system --dry-run=server \
      --set "paths=$paths,api.host=10.6.0.10,status.enabled=true"
    assert_contains "$output" underpass-node
    assert_contains "$output" 'Uninstalling begins with remove=true'
    # Who has no kube-proxy is told whom nobody serves, and what stays if the first step of uninstalling is left out.
    case $paths in
      both) assert_contains "$output" 'leave Services to kube-proxy after ten minutes' ;;
      socket) assert_contains "$output" 'Clients from outside of the cluster are not served' && assert_contains "$output" 'stays in force' ;;
    esac
  done
}

@test "the API takes the chart that takes everything off the nodes" {
  local paths
  for paths in both host socket; do
    expect 0 helm install underpass "$LAB_REPO/deploy/chart" -n kube-system --dry-run=server --set "paths=$paths,api.host=10.6.0.10,remove=true"
    assert_contains "$output" 'node-agent --uninstall && { install'
  done
}

@test "the API takes the chart that takes everything off some nodes" {
  local remove
  for remove in false true; do
    expect 0 helm install underpass "$LAB_REPO/deploy/chart" -n kube-system --dry-run=server \
      --set "remove=$remove,node.nodeSelector.underpass=yes,removeFrom.underpass=no"
    assert_contains "$output" 'name: underpass-remove'
  done
}

@test "the API takes the chart that is rendered for a version that knows AppArmor by annotations" {
  local flag
  for flag in remove=false remove=true cni.install=false; do
    helm template underpass "$LAB_REPO/deploy/chart" -n kube-system --kube-version 1.29.4 --set "$flag" >"$BATS_TEST_TMPDIR/manifest"
    grep -q apparmor.security "$BATS_TEST_TMPDIR/manifest"
    expect 0 lab_kubectl apply --dry-run=server --filename "$BATS_TEST_TMPDIR/manifest"
    assert_contains "$output" 'daemonset.apps/underpass-node created (server dry run)'
  done
}

@test "helm upgrades from the version before, and goes back to it" {
  local chart=$BATS_TEST_TMPDIR/before before revision command
  # The version before: the chart before its last change, with another number, something that went, and without a value that came.
  revision=$(git -C "$LAB_REPO" log -1 --skip 1 --format=%H -- deploy/chart)
  [ -n "$revision" ] || skip 'git has no earlier version of the chart'
  mkdir "$chart"
  git -C "$LAB_REPO" archive "$revision" deploy/chart | tar -x -C "$chart" --strip-components 2
  sed -i 's/^version: .*/version: 0.0.1/; s/^appVersion: .*/appVersion: 0.0.1/' "$chart/Chart.yaml"
  sed -i '/priorityClassName/d' "$chart/values.yaml"
  printf '%s\n' 'apiVersion: v1' 'kind: ConfigMap' 'metadata: {name: of-before, namespace: kube-system}' >"$chart/templates/of-before.yaml"
  expect 0 helm install underpass "$chart" -n kube-system --set settings.podCIDRType=calico
  before=$(object daemonset underpass-node | jq -c .spec.selector)
  command=$(sed -n '/^helm upgrade/{p;q}' "$LAB_REPO/deploy/upgrade.md")
  expect 0 eval "${command/ deploy\/chart/ $LAB_REPO/deploy/chart}"
  # A selector cannot change.
  assert_same "$before" "$(object daemonset underpass-node | jq -c .spec.selector)"
  assert_equal "$(object daemonset underpass-node | jq -r '.spec.template.spec.containers[0].image')" \
    "underpass:$(sed -n 's/^appVersion: //p' "$LAB_REPO/deploy/chart/Chart.yaml")"
  assert_contains "$(object configmap underpass | jq -r .data.settings)" 'podCIDRType: calico'
  assert_equal "$(object daemonset underpass-node | jq -r .spec.template.spec.priorityClassName)" system-node-critical
  expect 1 object configmap of-before
  expect 0 helm rollback underpass -n kube-system
  assert_equal "$(object daemonset underpass-node | jq -r '.spec.template.spec.containers[0].image')" underpass:0.0.1
  expect 0 helm uninstall underpass -n kube-system
  assert_equal "$(lab_kubectl get -A --ignore-not-found daemonset,deployment,serviceaccount,clusterrole,clusterrolebinding,role,rolebinding,configmap \
    -o name | grep underpass)" ''
}
