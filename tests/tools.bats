# Each tool alone: a document in, the document out, and exactly the expected kernel state, for ADD, CHECK and DEL.

load helpers

setup_file() {
  suite_lab 1 || return 0
  lab_snapshot node1 >"$LAB/node.clean"
}

setup() {
  own_pod
  lab_rp_filter "node1/$POD" 2
}

teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  lab_plugin node1 coordinator DEL "$POD" eth0 <<<"$CONFIG"
  lab_pod_delete node1 "$POD" plain46
  # What a test that failed leaves is not the fault of the next.
  [ -n "${BATS_TEST_COMPLETED-}" ] || lab_snapshot node1 >"$LAB/node.clean"
  assert_same "$(cat "$LAB/node.clean")" "$(lab_snapshot node1)"
}

# request COMMAND: the document that cni-request makes of a CNI call.
request() {
  lab_in node1 env CNI_COMMAND="$1" CNI_CONTAINERID="lab-$POD" CNI_NETNS="/run/netns/$POD" CNI_IFNAME=eth0 \
    "$(lab_libexec)/cni-request" <<<"$CONFIG"
}

# tool NAME [OPTION...] <document
tool() {
  local name=$1
  shift
  lab_in node1 "$(lab_libexec)/$name" "$@"
}

# before NAME COMMAND: the document with which NAME is called, all tools before it having done their work.
before() {
  local name document
  document=$(request "$2")
  for name in detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod cni-result; do
    [ "$name" != "$1" ] || break
    document=$(tool "$name" <<<"$document")
  done
  printf '%s\n' "$document"
}

# as_command COMMAND <document: the same document in another CNI command.
as_command() {
  jq -c --arg command "$1" '.request.command = $command'
}

# differences FILE FILE: the lines that only the second has.
added() {
  comm -13 <(sort "$1") <(sort "$2")
}

@test "cni-request makes a document of a CNI call, with every setting resolved" {
  local document
  document=$(request ADD)
  assert_json "$document" .version 1
  assert_json "$document" '.request | .command, .containerId, .netns, .ifname' "ADD
lab-$POD
/run/netns/$POD
eth0"
  assert_json "$document" '.settings | .mode, .podDefaultCniNic, .hostRuleTable, .podRPFilter' 'auto
eth0
500
0'
  assert_equal "$(jq -Sc .request.config <<<"$document")" "$(jq -Sc . <<<"$CONFIG")"
}

@test "the document's JSON Schema is printed, and every document on the way fits it" {
  /usr/bin/python3 -c 'import jsonschema' 2>/dev/null || skip 'python3-jsonschema is not installed: run scripts/setup'
  local name
  tool cni-request --schema </dev/null >"$BATS_TEST_TMPDIR/schema"
  for name in detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod cni-result; do
    before "$name" ADD | /usr/bin/python3 -c '
import json, jsonschema, sys
jsonschema.validate(json.load(sys.stdin), json.load(open(sys.argv[1])))' "$BATS_TEST_TMPDIR/schema"
  done
}

@test "detect-mode notes the mode, the interface and the node's addresses, and changes nothing" {
  local document state
  state=$(lab_snapshot node1; lab_snapshot "node1/$POD")
  document=$(before sync-cidrs ADD)
  assert_json "$document" '.mode | .mode, .first, .nic.name, .nic.mtu' 'underlay
true
eth0
1500'
  assert_json "$document" .mode.nic.addresses "[\"$P4/16\",\"$P6/64\"]"
  assert_json "$document" .mode.nodeAddresses '["10.6.212.101","fd00:6::101"]'
  assert_same "$state" "$(lab_snapshot node1; lab_snapshot "node1/$POD")"
}

@test "sync-cidrs notes the configured CIDRs, or those of a file, merged" {
  assert_json "$(before mk-veth ADD)" .cidrs \
    '{"service":["10.233.64.0/18","fd00:233:64::/108"],"pod":["10.233.0.0/18","fd00:233::/48"],"hijack":[]}'
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'printf "%s" "$0" >/run/cidrs.json' '{"service":["10.96.0.0/13","10.104.0.0/13","10.97.0.0/16"]}'
  assert_json "$(before sync-cidrs ADD | jq -c 'del(.settings.serviceCIDR, .settings.overlayPodCIDR)' |
    tool sync-cidrs --file /run/cidrs.json)" .cidrs.service '["10.96.0.0/12"]'
  assert_json "$(tool sync-cidrs --from /run/cidrs.json)" .service '["10.96.0.0/12"]'
  assert_json "$(printf '{"pod":["10.1.0.0/16"]}' | tool sync-cidrs --from -)" .pod '["10.1.0.0/16"]'
  expect 1 tool sync-cidrs --from - <<<'{"pod":["10.1.0.0/99"]}'
  assert_json "$output" .error.code 6
}

@test "mk-veth makes the pair with its neighbours, and nothing else" {
  local document host mac peer
  document=$(before set-routes ADD)
  host=$(jq -r .veth.host <<<"$document") mac=$(jq -r .veth.hostMac <<<"$document") peer=$(jq -r .veth.podMac <<<"$document")
  assert_json "$(lab_in node1 ip -json link show "$host")" '.[0] | .address, .mtu, .operstate, .ifalias' "$mac
1500
UP
underpass lab-$POD/eth0 underlay46"
  assert_json "$(lab_in "node1/$POD" ip -json link show veth0)" '.[0] | .address, .mtu, .operstate' "$peer
1500
UP"
  assert_json "$(lab_in node1 ip -json neighbour show nud permanent dev "$host")" 'map([.dst, .lladdr, .state[0]])' \
    "[[\"$P4\",\"$peer\",\"PERMANENT\"],[\"$P6\",\"$peer\",\"PERMANENT\"]]"
  assert_json "$(lab_in "node1/$POD" ip -json neighbour show dev veth0)" 'map([.dst, .lladdr, .state[0]])' \
    "[[\"10.6.212.101\",\"$mac\",\"PERMANENT\"],[\"fd00:6::101\",\"$mac\",\"PERMANENT\"]]"
  assert_json "$(lab_in node1 ip -json address show dev "$host")" '.[0].addr_info' '[]'
  assert_equal "$(lab_in "node1/$POD" ip route show dev veth0)" ''
}

@test "set-routes makes the routes into the node and to the pod, and nothing else" {
  local document host
  document=$(before set-routes ADD)
  host=$(jq -r .veth.host <<<"$document")
  lab_snapshot node1 >"$BATS_TEST_TMPDIR/node"
  lab_snapshot "node1/$POD" >"$BATS_TEST_TMPDIR/pod"
  tool set-routes <<<"$document" >/dev/null
  assert_equal "$(lab_in "node1/$POD" ip -4 route show dev veth0 table all | grep -v 'table local' | sort)" "10.233.0.0/18 via 10.6.212.101 proto 85 src $P4 
10.233.64.0/18 via 10.6.212.101 proto 85 src $P4 
10.6.212.101 proto 85 scope link src $P4 
default via 10.6.212.101 table 8500 proto 85 "
  assert_equal "$(lab_in "node1/$POD" ip -6 route show dev veth0 table all | grep -v -e multicast -e 'proto kernel' | sort)" "default via fd00:6::101 table 8500 proto 85 metric 1024 pref medium
fd00:233:64::/108 via fd00:6::101 proto 85 src $P6 metric 1024 pref medium
fd00:233::/48 via fd00:6::101 proto 85 src $P6 metric 1024 pref medium
fd00:6::101 proto 85 src $P6 metric 1024 pref medium"
  assert_equal "$(lab_in node1 ip route show dev "$host" table 500)" "$P4 proto 85 scope link "
  assert_equal "$(lab_in node1 ip -6 route show dev "$host" table 500)" "$P6 proto 85 metric 1024 pref medium"
  # Ten routes, and nothing but routes.
  lab_snapshot node1 >"$BATS_TEST_TMPDIR/node.after"
  lab_snapshot "node1/$POD" >"$BATS_TEST_TMPDIR/pod.after"
  assert_equal "$(added "$BATS_TEST_TMPDIR/node" "$BATS_TEST_TMPDIR/node.after" | grep -c 'proto 85')" 2
  assert_equal "$(added "$BATS_TEST_TMPDIR/pod" "$BATS_TEST_TMPDIR/pod.after" | grep -c 'proto 85')" 8
  assert_equal "$(added "$BATS_TEST_TMPDIR/node" "$BATS_TEST_TMPDIR/node.after" | grep -vc 'proto 85')" 0
  assert_equal "$(added "$BATS_TEST_TMPDIR/pod" "$BATS_TEST_TMPDIR/pod.after" | grep -vc 'proto 85')" 0
}

@test "set-rules makes the rules and the marks, and nothing else" {
  tool set-rules <<<"$(before set-rules ADD)" >/dev/null
  local family
  for family in 4 6; do
    assert_json "$(lab_in "node1/$POD" ip "-$family" -json rule show)" 'map(select(.protocol == "85")) | map([.priority, .fwmark, .table])' \
      '[[85,"0x1000","8500"]]'
    assert_json "$(lab_in node1 ip "-$family" -json rule show)" 'map(select(.protocol == "85")) | map([.priority, .src, .table])' \
      '[[85,"all","500"]]'
  done
  assert_equal "$(lab_in "node1/$POD" nft list ruleset)" 'table inet underpass {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iifname "veth0" ct state new ct mark set ct mark | 0x00001000
		ct direction reply ct mark & 0x00001000 == 0x00001000 meta mark set meta mark | 0x00001000
	}

	chain output {
		type route hook output priority mangle; policy accept;
		ct direction reply ct mark & 0x00001000 == 0x00001000 meta mark set meta mark | 0x00001000
	}
}'
}

@test "tune-pod sets rp_filter for all, default and each interface of ours, whatever was inherited" {
  local key
  tool tune-pod <<<"$(before tune-pod ADD)" >"$BATS_TEST_TMPDIR/document"
  for key in all default eth0 veth0; do
    assert_equal "$(lab_in "node1/$POD" sysctl -n "net.ipv4.conf.$key.rp_filter")" 0
  done
  tool tune-pod <<<"$(as_command DEL <"$BATS_TEST_TMPDIR/document")" >/dev/null
  for key in all default eth0; do
    assert_equal "$(lab_in "node1/$POD" sysctl -n "net.ipv4.conf.$key.rp_filter")" 2
  done
}

@test "a pod whose podRPFilter is -1 keeps its rp_filter" {
  tool tune-pod <<<"$(before tune-pod ADD | jq -c '.settings.podRPFilter = null')" >/dev/null
  assert_equal "$(lab_in "node1/$POD" sysctl -n net.ipv4.conf.all.rp_filter)" 2
}

@test "cni-result prints prevResult with the pair appended, and keeps the document for DEL" {
  local document result
  document=$(before cni-result ADD)
  result=$(tool cni-result <<<"$document")
  assert_json "$result" '.interfaces | map(.name)' "[\"eth0\",$(jq -c .veth.host <<<"$document"),\"veth0\"]"
  assert_json "$result" .ips "$(jq -c .prevResult.ips <<<"$CONFIG")"
  assert_json "$result" .routes "$(jq -c .prevResult.routes <<<"$CONFIG")"
  assert_json "$(lab_in node1 cat "/run/underpass/attachments/lab-$POD@eth0.json")" .request.containerId "lab-$POD"
  expect 0 tool cni-result --dry-run <<<"$(jq -c '.request.config.prevResult = []' <<<"$document")"
  assert_json "$output" '.interfaces | length' 2
}

@test "each tool run a second time has nothing to do, and CHECK agrees" {
  local name document
  for name in mk-veth set-routes set-rules tune-pod; do
    document=$(before "$name" ADD)
    assert_json "$(tool "$name" <<<"$document")" '.applied | length > 0' true
    assert_equal "$(tool "$name" --dry-run <<<"$document")" '[]'
    expect 0 tool "$name" <<<"$(as_command CHECK <<<"$document")"
  done
}

@test "each tool's DEL takes back exactly what its ADD did" {
  local name document state
  for name in mk-veth set-routes set-rules tune-pod; do
    document=$(before "$name" ADD)
    state=$(lab_snapshot node1; lab_snapshot "node1/$POD")
    document=$(tool "$name" <<<"$document")
    assert_json "$(tool "$name" <<<"$(as_command DEL <<<"$document")")" '.error' null
    assert_same "$state" "$(lab_snapshot node1; lab_snapshot "node1/$POD")"
    tool "$name" <<<"$document" >/dev/null
  done
}

@test "--dry-run prints the plan and changes nothing; the plan is what is then applied" {
  local name document state plan
  for name in mk-veth set-routes set-rules tune-pod; do
    document=$(before "$name" ADD)
    state=$(lab_snapshot node1; lab_snapshot "node1/$POD")
    plan=$(tool "$name" --dry-run <<<"$document")
    assert_same "$state" "$(lab_snapshot node1; lab_snapshot "node1/$POD")"
    assert_json "$(tool "$name" <<<"$document")" ".applied[$(jq '.applied | length' <<<"$document"):]" "$plan"
  done
}

@test "--explain prints commands that do the same when pasted" {
  local name document script
  for name in mk-veth set-routes set-rules tune-pod; do
    document=$(before "$name" ADD)
    script=$(tool "$name" --explain <<<"$document")
    [ -n "$script" ]
    expect 0 lab_in node1 sh -e -c "$script"
    # The tool finds nothing left to do: what the commands made is exactly what it wants.
    assert_equal "$(tool "$name" --dry-run <<<"$document")" '[]'
    assert_json "$(tool "$name" <<<"$(as_command CHECK <<<"$document")")" .error null
  done
}

@test "a document of STATUS is passed on also where the kernel gives no netlink socket, and in one of ADD that is the error" {
  [ -n "$(command -v strace)" ] || skip 'no strace: run scripts/setup'
  local name
  for name in detect-mode mk-veth set-routes set-rules tune-pod; do
    expect 0 without_sockets $name <<<"$(request ADD | as_command STATUS)"
    assert_json "$output" .error null
    expect 1 without_sockets $name <<<"$(request ADD)"
    assert_json "$output" .error.msg 'cannot open a netlink socket on the node'
  done
}

# without_sockets NAME <document: that tool where the kernel gives it no socket.
without_sockets() {
  lab_in node1 strace --quiet=all --trace=socket --inject=socket:error=EAFNOSUPPORT --output=/dev/null "$(lab_libexec)/$1"
}

@test "a tool that is given an error in ADD or CHECK does nothing and passes it on" {
  local name document command
  for name in detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod; do
    for command in ADD CHECK; do
      document=$(request "$command" | jq -c '.error = {tool: "x", code: 7, msg: "m", details: "d"}')
      expect 1 tool "$name" <<<"$document"
      assert_equal "$(jq -Sc . <<<"$output")" "$(jq -Sc . <<<"$document")"
    done
  done
  assert_same "$(cat "$LAB/node.clean")" "$(lab_snapshot node1)"
}

@test "a tool that is given an error in DEL does its part all the same, and passes the error on" {
  local name document
  document=$(before cni-result ADD | as_command DEL | jq -c '.error = {tool: "x", code: 7, msg: "m", details: "d"}')
  for name in tune-pod set-routes set-rules mk-veth; do
    expect 1 tool "$name" <<<"$document"
    assert_json "$output" .error.msg m
  done
  assert_same "$(cat "$LAB/node.clean")" "$(lab_snapshot node1)"
}

@test "fields that a tool does not know pass through all of them" {
  local document name
  document=$(request ADD | jq -c '.future = {a: [1, 2]} | .settings.future = "b"')
  for name in detect-mode sync-cidrs mk-veth set-routes set-rules tune-pod; do document=$(tool "$name" <<<"$document"); done
  assert_json "$document" '.future.a, .settings.future' '[1,2]
b'
}

@test "a tool that changes nothing has an empty plan" {
  local name
  for name in detect-mode sync-cidrs; do
    assert_equal "$(before "$name" ADD | tool "$name" --dry-run)" '[]'
    assert_equal "$(before "$name" ADD | tool "$name" --explain)" ''
  done
}
