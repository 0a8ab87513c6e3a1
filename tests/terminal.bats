# What a person reads at a terminal, and a program in a pipe.

load helpers

setup_file() {
  suite_lab 1 || return 0
  lab_pod node1 pod plain46
  lab_chained node1 pod underlay46 >"$LAB/config"
}

tool() {
  printf '%s/%s' "$(lab_libexec)" "$1"
}

request() {
  printf '%s\n' env CNI_COMMAND=ADD CNI_CONTAINERID=lab-pod CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 UNDERPASS_LIBEXEC="$(lab_libexec)"
}

@test "check-node prints a table at a terminal, with what to change, and JSON in a pipe" {
  : >"$LAB/stdin"
  at_terminal "$(tool check-node)"
  assert_equal "$status" 1
  assert_equal "$(head -n 1 <<<"$output")" 'CHECK       OK   WHAT'
  assert_contains "$output" 'forwarding  yes  net/ipv4/ip_forward is 1'
  assert_contains "$output" 'kube-proxy  NO   no kube-proxy runs in this network namespace'
  assert_contains "$output" '                 -> the host path needs kube-proxy'
  run --separate-stderr lab_in node1 "$(tool check-node)"
  assert_json "$output" '.checks | length > 4' true
}

@test "an error is one readable line at a terminal, in each tool, and JSON in a pipe" {
  local name
  for name in cni-request detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod cni-result; do
    printf 'not\n  JSON' >"$LAB/stdin"
    at_terminal env CNI_COMMAND=ADD "$(tool $name)"
    assert_equal "$status" "$([ $name = cni-result ] && printf 3 || printf 1)"
    assert_equal "$(wc -l <<<"$output")" 1 || fail "$name" "$output"
    assert_contains "$output" "$name: error: "
    [[ $output != *'{'* ]] || fail "$output"
    run --separate-stderr lab_in node1 env CNI_COMMAND=ADD "$(tool $name)" <"$LAB/stdin"
    [ "$(jq -r '.error.msg // .msg' <<<"$output")" != null ] || fail "$name: $output"
  done
  : >"$LAB/stdin"
  at_terminal "$(tool bpf-lb-load)" show
  assert_equal "$(wc -l <<<"$output")" 1 || fail "$output"
  assert_contains "$output" 'bpf-lb-load: error: no load balancer is pinned'
}

# What prints something to a person, with the file that it reads.
PRINTING='cni-request --schema
check-node
bpf-lb-load schema table
watch-services --node node1 --from OBJECTS
watch-services --node node1 --from OBJECTS --why default/web
sync-cidrs --cidrs --from OBJECTS'

# to_nowhere FILE|closed COMMAND...: with standard output there, or a pipe that nobody reads any more.
to_nowhere() {
  printf '{"service": ["10.96.0.0/12"]}' >"$LAB/cidrs"
  jq -n '[{apiVersion: "v1", kind: "Node", metadata: {name: "node1"}},
    {apiVersion: "v1", kind: "Service", metadata: {namespace: "default", name: "web"}, spec: {clusterIP: "10.96.0.9", ports: [{port: 80}]}}]
    | {kind: "List", items: .}' >"$LAB/objects"
  local objects=$LAB/objects
  [ "$2" != sync-cidrs ] || objects=$LAB/cidrs
  run --separate-stderr lab_in node1 /usr/bin/python3 - "$1" "$(tool "$2")" "${@:3}" <<PYTHON
import os, sys
if sys.argv[1] == "closed":
    unread, to = os.pipe()
    os.close(unread)
else:
    to = os.open(sys.argv[1], os.O_WRONLY)
os.dup2(to, 1)
os.execv(sys.argv[2], [word if word != "OBJECTS" else "$objects" for word in sys.argv[2:]])
PYTHON
}

@test "what cannot be written is an error, said in one line" {
  local -a call
  while read -ra call; do
    to_nowhere /dev/full "${call[@]}"
    assert_equal "$status" 1 || fail "${call[*]}"
    assert_json "${stderr:?}" '[.level, (.msg | contains("No space left"))]' '["error",true]' || fail "${call[*]}"
  done <<<"$PRINTING"
}

@test "who reads no further, as head does, hears nothing of it" {
  local -a call
  local code
  while read -ra call; do
    to_nowhere /dev/null "${call[@]}"
    code=$status
    to_nowhere closed "${call[@]}"
    assert_equal "$status $stderr" "$code " || fail "${call[*]}"
  done <<<"$PRINTING"
}

# written COMMAND...: what a tool that gets no JSON writes to standard error, each write as a line of JSON.
written() {
  lab_in node1 /usr/bin/python3 - "$@" <<'PYTHON'
import json, socket, subprocess, sys
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
ours.settimeout(0)
subprocess.run(sys.argv[1:], input=b"not JSON\n", stdout=subprocess.DEVNULL, stderr=theirs, timeout=10)
try:
    while True:
        print(json.dumps(ours.recv(1 << 20).decode()))
except BlockingIOError:
    pass
PYTHON
}

@test "each message is one write, so that those of tools with one log do not mix" {
  local name call
  for name in cni-request detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod 'bpf-lb-load show' \
    'bpf-lb-load apply' end-sockets 'watch-services --from /nowhere' 'sync-cidrs-kube --kubeconfig /nowhere' \
    'scope-pods --node node1 --kubeconfig /nowhere' 'serve-metrics --listen 192.0.2.1:1'; do
    read -ra call <<<"$name"
    expect 0 written env CNI_COMMAND=ADD "$(tool "${call[0]}")" "${call[@]:1}"
    [ -n "$output" ] || fail "$name says nothing"
    assert_equal "$(jq -r 'select((endswith("\n") and (try (rtrimstr("\n") | fromjson | .tool) catch false)) | not)' <<<"$output")" '' || fail "$name: $output"
  done
}

@test "an error of several lines and several settings is one line at a terminal" {
  jq -c '.mode = "sideways" | .podRPFilter = 3' "$LAB/config" >"$LAB/stdin"
  mapfile -t call < <(request)
  at_terminal "${call[@]}" "$(tool cni-request)"
  assert_equal "$status" 1
  assert_equal "$(wc -l <<<"$output")" 1 || fail "$output"
  assert_contains "$output" 'setting mode: "sideways" is not allowed'
  assert_contains "$output" podRPFilter
}

@test "a plan is a table at a terminal and JSON in a pipe, and a document is JSON in both" {
  cp "$LAB/config" "$LAB/stdin"
  mapfile -t call < <(request)
  lab_in node1 "${call[@]}" sh -c "cd $(lab_libexec) && ./cni-request | ./detect-mode | ./sync-cidrs" <"$LAB/config" >"$LAB/document"
  cp "$LAB/document" "$LAB/stdin"
  at_terminal "$(tool mk-veth)" --dry-run
  assert_equal "$status" 0
  assert_equal "$(head -n 1 <<<"$output")" 'DO   WHAT'
  assert_contains "$output" 'add  neighbour'
  at_terminal "$(tool tune-pod)" --dry-run
  assert_equal "$status" 0
  at_terminal "$(tool mk-veth)" --explain
  assert_contains "$output" 'ip link add veth'
  cp "$LAB/config" "$LAB/stdin"
  at_terminal "${call[@]}" "$(tool cni-request)"
  assert_json "$output" .request.ifname eth0
  [ "$(wc -l <<<"$output")" -gt 20 ]
  run --separate-stderr lab_in node1 "$(tool mk-veth)" --dry-run <"$LAB/document"
  assert_json "$output" 'type' array
}

@test "the cluster's CIDRs are a table with their sources at a terminal, and JSON in a pipe" {
  # A note, a kind of CIDR that is not found, and a setting.
  local objects='[
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "kube-system", "name": "underpass"},
      "data": {"settings": "hostRuleTable: 600\n"}},
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "kube-system", "name": "kubeadm-config"},
      "data": {"ClusterConfiguration": "networking:\n  podSubnet: 10.244.0.1/16,fd00:244::/56\n"}}
  ]'
  jq -c '{kind: "List", items: .}' <<<"$objects" >"$LAB/stdin"
  at_terminal "$(tool sync-cidrs)" --from - --cni-directory /none
  assert_equal "$status" 0
  assert_equal "$output" "\
sync-cidrs: warn: no CIDR of Services was found
KIND     CIDR           SOURCE
Service  none
pod      10.244.0.0/16  kubeadm-config, podSubnet (10.244.0.1/16, its host bits masked)
pod      fd00:244::/56  kubeadm-config, podSubnet

SETTING        VALUE    SOURCE
podCIDRType    cluster  the API has neither Calico's nor Cilium's objects
hostRuleTable  600      the cluster's settings"
  run --separate-stderr lab_in node1 "$(tool sync-cidrs)" --from - --cni-directory /none <"$LAB/stdin"
  assert_equal "$status" 0
  assert_json "$output" .cidrs.pod '["10.244.0.0/16","fd00:244::/56"]'
  assert_json "$output" .settings.hostRuleTable 600
  assert_json "${stderr:?}" .level warn
}

@test "a cidrs section alone is a table at a terminal too, and JSON in a pipe" {
  printf '{"service": ["10.96.0.0/12"], "pod": ["10.244.0.0/16", "fd00:244::/56"], "hijack": ["192.0.2.0/24"]}' >"$LAB/stdin"
  at_terminal "$(tool sync-cidrs)" --from -
  assert_equal "$status" 0
  assert_equal "$output" "\
KIND     CIDR
Service  10.96.0.0/12
pod      10.244.0.0/16
pod      fd00:244::/56
hijack   192.0.2.0/24"
  run --separate-stderr lab_in node1 "$(tool sync-cidrs)" --from - <"$LAB/stdin"
  assert_json "$output" .hijack '["192.0.2.0/24"]'
}

@test "what is neither a cidrs section nor what kubectl prints, as nothing at all, is refused, and what is wrong is named" {
  local words wrong
  while IFS='|' read -r words wrong; do
    run --separate-stderr lab_in node1 "$(tool sync-cidrs)" --from - --cni-directory /none <<<"$wrong"
    assert_equal "$status" 1 || fail "$wrong" "$output"
    assert_contains "$(jq -r '.error.msg' <<<"$output")" "$words"
  done <<'EOF'
no cidrs section has the key items|{"items": [{"kind": "Node", "metadata": {"name": "a"}, "spec": {"podCIDR": "10.244.0.0/24"}}]}
no cidrs section has the key services|{"services": ["10.96.0.0/12"]}
expected what kubectl get --output json prints|[]
expected what kubectl get --output json prints|"10.96.0.0/12"
an object has no kind|{"kind": "List", "items": [{"metadata": {"name": "a"}}]}
an object has no kind|{"kind": "List", "items": []} {"service": ["10.96.0.0/12"]}
- is empty, and no cluster is|
EOF
}

@test "empty input, input that is no document, and a document of a megabyte are errors in each tool" {
  local name
  head -c 1048576 /dev/zero | tr '\0' x | jq -Rc '{padding: .}' >"$BATS_TEST_TMPDIR/large"
  for name in detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod; do
    expect 1 lab_in node1 "$(tool "$name")" </dev/null
    assert_json "$output" '.error | .tool, .code' "$name
102"
    expect 1 lab_in node1 "$(tool "$name")" <<<'{"cniVersion":'
    assert_json "$output" .error.code 6
    expect 1 lab_in node1 "$(tool "$name")" <<<'{"version": 1}'
    assert_json "$output" .error.code 6
    expect 1 lab_in node1 "$(tool "$name")" <"$BATS_TEST_TMPDIR/large"
    assert_json "$output" .error.code 6
  done
  expect 3 lab_in node1 "$(tool cni-result)" </dev/null
  assert_json "$output" .code 102
}

@test "each tool says what it is for, with an example, and its version" {
  local name
  for name in cni-request detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod cni-result; do
    expect 0 lab_in node1 "$(tool "$name")" --help
    assert_contains "$output" 'Example:'
    assert_contains "$output" "$name"
    expect 0 lab_in node1 "$(tool "$name")" --version
    assert_contains "$output" "$name 0.1.0"
  done
}

@test "a tool that has no plan to print does not let itself be asked for one, and does nothing" {
  local name flag
  for flag in --dry-run --explain; do
    for name in cni-request check-node keep-pods scope-pods serve-metrics watch-services; do
      expect 2 lab_in node1 timeout 2 "$(tool "$name")" $flag </dev/null
    done
    expect 2 lab_in node1 "$(tool sync-cidrs)" --watch $flag </dev/null
  done
}
