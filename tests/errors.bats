# Bad input: each gives a CNI error with its code, message and details, exit status 1, one JSON document on stdout, and
# changes nothing.

load helpers

setup_file() {
  suite_lab 1 || return 0
  lab_pod node1 pod plain46
  lab_chained node1 pod underlay46 >"$LAB/config"
  lab_snapshot node1 >"$LAB/node.before"
  lab_snapshot node1/pod >"$LAB/pod.before"
}

teardown_file() {
  lab_down
}

# refused CODE WORD COMMAND [VARIABLE=VALUE...] <configuration: our plugin refuses, says WORD, and nothing has changed.
refused() {
  local code=$1 word=$2 command=$3
  shift 3
  lab_plugin node1 coordinator "$command" pod eth0 "$@"
  [ "$lab_status" = 1 ] || fail "exit status $lab_status" "$lab_stdout"
  assert_json "$lab_stdout" .code "$code"
  assert_json "$lab_stdout" '[.cniVersion, .msg, .details] | map(type == "string" and length > 0) | all' true
  assert_contains "$(jq -r '.msg + " " + .details' <<<"$lab_stdout")" "$word"
  assert_same "$(cat "$LAB/node.before")" "$(lab_snapshot node1)"
  assert_same "$(cat "$LAB/pod.before")" "$(lab_snapshot node1/pod)"
}

# config FILTER: the good configuration, changed by jq.
config() {
  jq -c "$1" "$LAB/config"
}

@test "a configuration that is empty, blank, not JSON, or not an object is a decoding error" {
  refused 6 'configuration' ADD </dev/null
  refused 6 'configuration' ADD <<<'   '
  refused 6 'not JSON' ADD <<<'{"cniVersion":'
  refused 6 'not JSON' ADD <<<"$(cat "$LAB/config") trailing"
  refused 6 'not an object' ADD <<<'["cniVersion"]'
}

@test "a configuration of one mebibyte is refused, and of a hundred kilobytes is not" {
  config '.padding = "x" * 1048576' >"$BATS_TEST_TMPDIR/large"
  refused 6 'longer' ADD <"$BATS_TEST_TMPDIR/large"
  config '.padding = "x" * 100000 | .mode = "disable"' >"$BATS_TEST_TMPDIR/fair"
  lab_plugin node1 coordinator ADD pod eth0 <"$BATS_TEST_TMPDIR/fair"
  assert_equal "$lab_status" 0
  lab_plugin node1 coordinator DEL pod eth0 <"$BATS_TEST_TMPDIR/fair"
}

@test "an unknown cniVersion, and a command that the version does not have, are version errors" {
  refused 1 9.9.9 ADD < <(config '.cniVersion = "9.9.9"')
  refused 1 0.2.0 ADD < <(config '.cniVersion = "0.2.0"')
  refused 1 0.4.0 CHECK < <(config '.cniVersion = "0.3.1"')
  refused 1 1.1.0 GC < <(config '.cniVersion = "1.0.0"')
  refused 1 1.1.0 STATUS < <(config '.cniVersion = "1.0.0"')
}

@test "an unknown mode, and any setting of a wrong type or value, are configuration errors that name the setting" {
  local change name
  while IFS='|' read -r name change; do
    refused 7 "$name" ADD < <(config "$change")
  done <<'EOF'
mode|.mode = "magic"
mode|.mode = 1
serviceCIDR|.serviceCIDR = ["10.233.64.0/33"]
serviceCIDR|.serviceCIDR = ["fd00::/129"]
serviceCIDR|.serviceCIDR = ["nonsense"]
serviceCIDR|.serviceCIDR = "10.233.64.0/18"
overlayPodCIDR|.overlayPodCIDR = ["10.233.0.0"]
overlayPodCIDR|.overlayPodCIDR = [7]
hijackCIDR|.hijackCIDR = ["300.1.1.1"]
hostRuleTable|.hostRuleTable = "many"
hostRuleTable|.hostRuleTable = -1
EOF
}

@test "a missing prevResult, and one that is not a result, are refused (peer finding 16)" {
  refused 7 prevResult ADD < <(config 'del(.prevResult)')
  refused 7 prevResult ADD < <(config '.prevResult = 7')
  refused 6 prevResult ADD < <(config '.prevResult.ips = [{address: "nonsense"}]')
  refused 7 prevResult CHECK < <(config 'del(.prevResult)')
}

@test "a network namespace that is missing, is a plain file, or is the node's own is refused" {
  lab_in node1 touch /run/plain
  refused 8 /run/netns/nobody ADD CNI_NETNS=/run/netns/nobody <"$LAB/config"
  refused 4 CNI_NETNS ADD CNI_NETNS= <"$LAB/config"
  refused 8 /run/plain ADD CNI_NETNS=/run/plain <"$LAB/config"
  refused 8 /proc/self/ns/net ADD CNI_NETNS=/proc/self/ns/net <"$LAB/config"
}

@test "an interface that does not exist in the pod is refused by its name" {
  refused 4 eth7 ADD CNI_IFNAME=eth7 <"$LAB/config"
}

@test "environment variables that are missing or not allowed are refused by their name" {
  local id name
  refused 4 CNI_COMMAND '' <"$LAB/config"
  refused 4 CNI_COMMAND DESTROY <"$LAB/config"
  # shellcheck disable=SC2016 # nothing is to expand it
  for id in '' '../../etc' 'a b' 'a/b' '-a' $'a\nb' 'a;reboot' 'a$(reboot)' "$(printf 'x%.0s' {1..300})"; do
    refused 4 CNI_CONTAINERID ADD CNI_CONTAINERID="$id" <"$LAB/config"
  done
  for name in '' . .. 'a/b' 'a:b' 'a b' sixteen_letters_x; do
    refused 4 CNI_IFNAME ADD CNI_IFNAME="$name" <"$LAB/config"
  done
}

@test "a GC without the list of valid attachments is refused, and removes nothing" {
  refused 7 valid-attachments GC < <(config '.cniVersion = "1.1.0"')
}

@test "quotes, backslashes, dollars and newlines in names, arguments and configuration arrive unchanged and run nothing" {
  local odd=$'q\'u"o\\t\\\\e$(touch /run/injected)`touch /run/injected`;touch /run/injected\nnewline %s * é'
  jq -c --arg odd "$odd" '.odd = $odd | .prevResult.dns = {domain: $odd}' "$LAB/config" >"$BATS_TEST_TMPDIR/config"
  lab_plugin node1 coordinator ADD pod eth0 CNI_ARGS="K8S_POD_NAME=$odd" <"$BATS_TEST_TMPDIR/config"
  assert_equal "$lab_status" 0
  assert_equal "$(jq -r .dns.domain <<<"$lab_stdout")" "$odd"
  lab_in node1 sh -c "cat /run/underpass/attachments/*" >"$BATS_TEST_TMPDIR/state"
  assert_equal "$(jq -r .request.args "$BATS_TEST_TMPDIR/state")" "K8S_POD_NAME=$odd"
  assert_equal "$(jq -r .request.config.odd "$BATS_TEST_TMPDIR/state")" "$odd"
  expect 1 lab_in node1 test -e /run/injected
  lab_plugin node1 coordinator DEL pod eth0 <"$LAB/config"
  assert_same "$(cat "$LAB/node.before")" "$(lab_snapshot node1)"
}

@test "VERSION answers with every version that we speak, and each of them is answered in its own format" {
  local version
  lab_plugin node1 coordinator VERSION pod eth0 <<<'{"cniVersion":"1.0.0"}'
  assert_equal "$lab_status" 0
  assert_json "$lab_stdout" .supportedVersions '["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]'
  for version in 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0; do
    lab_plugin node1 coordinator ADD pod eth0 < <(config ".cniVersion = \"$version\" | .prevResult.cniVersion = \"$version\"")
    assert_equal "$lab_status" 0
    assert_json "$lab_stdout" .cniVersion $version
    lab_plugin node1 coordinator DEL pod eth0 < <(config ".cniVersion = \"$version\"")
    assert_equal "$lab_status" 0
  done
}

@test "STATUS succeeds with nothing on stdout when CIDRs are known" {
  lab_plugin node1 coordinator STATUS pod eth0 < <(config '.cniVersion = "1.1.0"')
  assert_equal "$lab_status" 0
  assert_equal "$lab_stdout" ''
}
