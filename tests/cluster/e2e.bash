# Part of the cluster (see cluster.bash): Kubernetes' own end-to-end tests.

# cluster_e2e DIRECTORY FOCUS SKIP: runs them; the report goes to the directory.
cluster_e2e() {
  local tools
  tools=$("$LAB_REPO/tests/tools/build" --where e2e kubernetes) || return
  tools=${tools//$'\n'/:}
  lab_in control env PATH="$tools:$PATH" e2e.test --kubeconfig "$LAB/kubernetes/admin.conf" \
    --kubectl-path "${tools#*:}/kubectl" --provider skeleton --num-nodes 2 --allowed-not-ready-nodes 0 --report-dir "$1" \
    --disable-log-dump --ginkgo.no-color --ginkgo.timeout "${E2E_TIMEOUT:-60m}" --ginkgo.focus "$2" --ginkgo.skip "$3" \
    >"$1/log" 2>&1
}

# cluster_e2e_results DIRECTORY: what became of each test that was run, a line each.
cluster_e2e_results() {
  python3 - "$1"/junit*.xml <<'END'
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
CLUSTER_E2E_PROGRAMS=curl,dnsutils,iproute2,iputils-ping,netcat-openbsd,wget

# cluster_e2e_images: the images of the tests' pods, on every node, under the names that the tests have for them: Kubernetes'
# program on Debian's smallest system with what the tests run there; and the lab's own, for what only sleeps or is a shell.
cluster_e2e_images() {
  local tools names name cache node
  tools=$("$LAB_REPO/tests/tools/build" --where e2e) || return
  names=$("$tools/e2e.test" --list-images 2>/dev/null)
  cache=${tools%/*}/agnhost-${tools##*-}-$(cksum <<<"$CLUSTER_E2E_PROGRAMS" | cut -d" " -f1).tar
  [ -e "$cache" ] || cluster_e2e_build "$tools" "$(grep e2e-test-images/agnhost: <<<"$names")" "$cache" || return
  for node in $(lab_nodes); do
    cluster_import "$node" "$cache" || return
    while read -r name; do
      lab_in "$node" ctr --namespace k8s.io images tag --force localhost/lab:1 "$name" >/dev/null || return
    done < <(grep -E '/pause:|e2e-test-images/busybox:' <<<"$names")
  done
}

# cluster_e2e_build TOOLS NAME ARCHIVE: it is kept, because Debian's packages come from far.
cluster_e2e_build() {
  local root
  root=$(mktemp -d)
  mmdebstrap --quiet --variant=minbase --include="$CLUSTER_E2E_PROGRAMS" bookworm "$root" >&2 &&
    cp "$1/agnhost" "$root/" &&
    "$LAB_REPO/scripts/pack-image" "$2" "$root" /agnhost >"$3.new" && mv "$3.new" "$3"
  rm -rf "$root"
  [ -e "$3" ]
}
