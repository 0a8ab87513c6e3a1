# Part of the cluster (see cluster.bash): Kubernetes' own end-to-end tests.

# cluster_e2e DIRECTORY FOCUS SKIP: runs them; the report goes to the directory.
cluster_e2e() {
  local tools
  tools=$("$LAB_REPO/tests/tools/build" --where e2e kubernetes) || return
  tools=${tools//$'\n'/:}
  lab_in control env PATH="$tools:$PATH" e2e.test --kubeconfig "$LAB/kubernetes/admin.conf" \
    --kubectl-path "${tools#*:}/kubectl" --provider skeleton --num-nodes "$(lab_nodes | wc -l)" --allowed-not-ready-nodes 0 --report-dir "$1" \
    --disable-log-dump --ginkgo.no-color --ginkgo.timeout "${E2E_TIMEOUT:-60m}" --ginkgo.focus "$2" --ginkgo.skip "$3" \
    >"$1/log" 2>&1
}

# cluster_e2e_results DIRECTORY: what became of each test that was run, a line each.
cluster_e2e_results() {
  /usr/bin/python3 - "$1"/junit*.xml <<'END'
import sys
import xml.etree.ElementTree as xml
for file in sys.argv[1:]:
    for case in xml.parse(file).iter('testcase'):
        state = case.get('status')
        if state != 'skipped' and case.get('name').startswith('[It]'):
            print(state, case.get('name').removeprefix('[It] '))
END
}

# What the tests run in their pods.
CLUSTER_E2E_PROGRAMS=curl,dnsutils,iperf,iproute2,iputils-ping,netcat-openbsd,wget

# cluster_e2e_images: the images of the tests' pods, on every node, under the names that the tests have for them: Kubernetes'
# programs, one of them on Debian's smallest system with what the tests run there; and the lab's own, for what only sleeps or
# is a shell.
cluster_e2e_images() {
  local e2e coredns names name agnhost cache node
  e2e=$("$LAB_REPO/tests/tools/build" --where e2e) && coredns=$("$LAB_REPO/tests/tools/build" --where coredns) || return
  names=$("$e2e/e2e.test" --list-images 2>/dev/null | grep -E '/pause:|e2e-test-images/')
  agnhost=$(grep e2e-test-images/agnhost: <<<"$names")
  cache=${e2e%/*}/agnhost-$({ printf '%s' "$CLUSTER_E2E_PROGRAMS$e2e$coredns" && declare -f cluster_e2e_build; } | sha256sum | cut -c 1-16).tar
  [ -e "$cache" ] || cluster_e2e_build "$agnhost" "$cache" "$e2e" "$coredns" || return
  mkdir -p "$LAB/images/.root/boom"
  cp "$e2e/regression-issue-74839" "$LAB/images/.root/boom"
  "$LAB_REPO/scripts/pack-image" "$(grep regression-issue-74839: <<<"$names")" "$LAB/images/.root/boom" \
    /regression-issue-74839 >"$LAB/images/boom.tar"
  for node in $(lab_nodes); do
    # The last one that is imported tells whether both were.
    [ -n "$(lab_in "$node" ctr --namespace k8s.io images list --quiet "name==$agnhost")" ] ||
      { cluster_import "$node" "$LAB/images/boom.tar" && cluster_import "$node" "$cache"; } || return
    while read -r name; do
      case $name in
        */pause:* | */busybox:* | */nginx:*) cluster_tag "$node" localhost/lab:1 "$name" ;;
        */jessie-dnsutils:*) cluster_tag "$node" "$agnhost" "$name" ;;
      esac || return
    done <<<"$names"
  done
}

# cluster_tag NODE IMAGE NAME: another name for an image.
cluster_tag() {
  lab_in "$1" ctr --namespace k8s.io images tag --force "$2" "$3" >/dev/null
}

# cluster_e2e_build NAME ARCHIVE E2E COREDNS: it is kept, because Debian's packages come from far. What is in it beside the
# programs is in Kubernetes' own: a DNS server, and a key for a server of HTTPS.
cluster_e2e_build() {
  local root
  root=$(mktemp -d)
  # shellcheck disable=SC2016 # expanded in the pod
  mmdebstrap --quiet --variant=minbase --include="$CLUSTER_E2E_PROGRAMS" bookworm "$root" >&2 &&
    cp "$3/agnhost" "$4/coredns" "$root/" &&
    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout "$root/localhost.key" -out "$root/localhost.crt" 2>/dev/null &&
    mkdir "$root/uploads" &&
    "$LAB_REPO/scripts/pack-image" "$1" "$root" /bin/sh -c 'exec /agnhost "${@:-pause}"' agnhost >"$2.new" && mv "$2.new" "$2"
  rm -rf "$root"
  [ -e "$2" ]
}
