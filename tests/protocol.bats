# The CNI protocol: what the plugin refuses, how it says so, and that it then has changed nothing. Each kind of request and
# setting that is wrong stands in the tests of cni-request and of common's settings.

# shellcheck disable=SC2154 # lab_status and lab_stdout are set by lab_plugin
load helpers

setup_file() {
  suite_lab 1 || return 0
  lab_pod node1 pod plain4
  lab_chained node1 pod underlay4 >"$LAB/config"
  lab_snapshot node1 >"$LAB/node.before"
  lab_snapshot node1/pod >"$LAB/pod.before"
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
  config=$(cat "$LAB/config")
}

# What a test that failed has added is not the fault of the next.
teardown() {
  [ -n "${BATS_TEST_COMPLETED-}${SUITE_SKIP-}" ] || call DEL "$config"
}

# call COMMAND CONFIG [VARIABLE=VALUE...]: one call of the plugin for the suite's pod.
call() {
  local command=$1 text=$2
  shift 2
  lab_plugin node1 coordinator "$command" pod eth0 "$@" <<<"$text"
}

# refused CODE TEXT COMMAND CONFIG [VARIABLE=VALUE...]: the call fails with a CNI error of this code in which TEXT stands,
# exits 1, and has changed nothing.
refused() {
  local code=$1 text=$2
  shift 2
  call "$@"
  assert_equal "$lab_status" 1
  assert_json "$lab_stdout" .code "$code"
  assert_json "$lab_stdout" '[.cniVersion, .msg, .details] | all(type == "string" and length > 0)' true
  assert_contains "$(jq -r '.msg + " " + .details' <<<"$lab_stdout")" "$text"
  unchanged
}

unchanged() {
  assert_same "$(cat "$LAB/node.before")" "$(lab_snapshot node1)"
  assert_same "$(cat "$LAB/pod.before")" "$(lab_snapshot node1/pod)"
}

# with FILTER: the suite's configuration, changed by jq.
with() {
  jq -c "$1" <<<"$config"
}

@test "a configuration that is not JSON is refused" {
  refused 6 'not JSON' ADD '{"cniVersion": '
}

@test "a configuration of a megabyte is refused, and one of a hundred kilobytes is not" {
  refused 6 'longer than' ADD "$(with '.padding = "x" * 1048576')"
  call ADD "$(with '.padding = "x" * 100000')"
  assert_equal "$lab_status" 0
  call DEL "$config"
  unchanged
}

@test "settings that are not allowed are refused, and the error names each and says what is allowed" {
  refused 7 'auto, underlay, overlay or disable' ADD "$(with '.mode = "sideways" | .podRPFilter = 3')"
  assert_contains "$(jq -r .details <<<"$lab_stdout")" podRPFilter
}

@test "null and an empty address in prevResult are what is not there, as for the plugins before" {
  local odd
  while read -r odd; do
    call ADD "$(with "$odd")"
    assert_equal "$lab_status" 0 || fail "$odd" "$lab_stdout"
    call CHECK "$(with "$odd")"
    assert_equal "$lab_status" 0 || fail "$odd" "$lab_stdout"
    call DEL "$config"
    unchanged
  done <<'EOF'
.prevResult.interfaces = null
.prevResult.ips = null | .prevResult.routes = null
.prevResult.interfaces[0].sandbox = null
.prevResult.ips[0].gateway = "" | .prevResult.routes[0].gw = ""
.prevResult.ips[0].gateway = null | .prevResult.ips[0].interface = null
EOF
}

@test "a network namespace that is missing, a plain file, a FIFO, another kind of namespace, or the node's own is refused" {
  refused 8 /run/netns/nowhere ADD "$config" CNI_NETNS=/run/netns/nowhere
  refused 8 'not a network namespace' ADD "$config" CNI_NETNS=/etc/hostname
  lab_in node1 mkfifo /run/fifo
  refused 8 'not a network namespace' ADD "$config" CNI_NETNS=/run/fifo
  refused 5 'cannot open a netlink socket in the pod' ADD "$config" CNI_NETNS=/proc/thread-self/ns/user
  refused 8 "node's own" ADD "$config" CNI_NETNS=/proc/thread-self/ns/net
}

@test "a state directory or a lock that cannot be opened is an I/O failure, in each command" {
  refused 5 /proc/nothing/lock ADD "$config" UNDERPASS_STATE=/proc/nothing
  refused 5 /proc/nothing/lock DEL "$config" UNDERPASS_STATE=/proc/nothing
  lab_in node1 mkdir -p /run/odd/lock
  refused 5 /run/odd/lock ADD "$config" UNDERPASS_STATE=/run/odd
}

@test "an interface that the pod does not have is refused" {
  refused 4 nic9 ADD "$config" CNI_IFNAME=nic9
}

@test "a container id with characters that are not allowed is refused, also in DEL" {
  refused 4 CNI_CONTAINERID ADD "$config" CNI_CONTAINERID=../../etc
  refused 4 CNI_CONTAINERID DEL "$config" CNI_CONTAINERID=../../etc
}

@test "a command that is unknown is refused" {
  refused 4 EXPLODE EXPLODE "$config"
}

@test "a cniVersion that is not supported is refused" {
  refused 1 0.2.0 ADD "$(with '.cniVersion = "0.2.0"')"
}

@test "GC with a list that is no list of attachments is refused and removes nothing" {
  call ADD "$(with '.cniVersion = "1.1.0"')"
  lab_snapshot node1 >"$LAB/with"
  call GC "$(with '.cniVersion = "1.1.0" | ."cni.dev/valid-attachments" = [null]')"
  assert_equal "$lab_status" 1
  assert_json "$lab_stdout" .code 7
  assert_contains "$(jq -r .msg <<<"$lab_stdout")" cni.dev/valid-attachments
  assert_same "$(cat "$LAB/with")" "$(lab_snapshot node1)"
  call DEL "$config"
  unchanged
}

@test "GC takes null for the empty list that it is in Go, and then removes what there is" {
  call ADD "$(with '.cniVersion = "1.1.0"')"
  call GC "$(with '.cniVersion = "1.1.0" | ."cni.dev/valid-attachments" = null | ."cni.dev/attachments" = null')"
  assert_equal "$lab_status" 0
  expect 1 lab_in node1 test -e /run/underpass/attachments/lab-pod@eth0.json
  call DEL "$config"
  unchanged
}

@test "keys are read whatever their case, those of prevResult and of lists too, and of two spellings the last counts" {
  local host
  call ADD "$(with '.MODE = .mode | del(.mode) | .HijackCidr = ["198.51.100.0/24"] | .PolicyRoutes = [{DST: "192.0.2.0/24", Gw: "10.6.0.1"}]
    | .PrevResult = (.prevResult | .IPs = (.ips | map({Address: .address, Gateway: .gateway, INTERFACE: .interface})) | del(.ips))
    | del(.prevResult) | .vethMTU = 1400 | .VETHMTU = 1300')"
  assert_equal "$lab_status" 0 || fail "$lab_stdout"
  assert_json "$lab_stdout" '.ips[0].address' "$(jq -r '.prevResult.ips[0].address' <<<"$config")"
  assert_contains "$(lab_in node1/pod ip route show 198.51.100.0/24)" 'dev veth0'
  assert_contains "$(lab_in node1/pod ip route show 192.0.2.0/24)" 'via 10.6.0.1 dev eth0'
  assert_json "$(lab_in node1/pod ip -json link show veth0)" '.[0].mtu' 1300
  host=$(jq -r '.interfaces[1].name' <<<"$lab_stdout")
  call GC "$(with '.cniVersion = "1.1.0" | ."CNI.dev/Valid-Attachments" = [{ContainerId: "lab-pod", IfName: "eth0"}]')"
  assert_equal "$lab_status" 0
  expect 0 lab_in node1 ip link show "$host"
  call DEL "$config"
  unchanged
}

@test "ADD answers in the version of the configuration, in each one that there is" {
  local version
  for version in 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0; do
    call ADD "$(with ".cniVersion = \"$version\"")"
    assert_equal "$lab_status" 0
    assert_json "$lab_stdout" .cniVersion "$version"
    call DEL "$(with ".cniVersion = \"$version\"")"
    assert_equal "$lab_status" 0
  done
  unchanged
}

@test "VERSION says which versions there are, without a configuration" {
  call VERSION ''
  assert_equal "$lab_status" 0
  assert_json "$lab_stdout" '.supportedVersions' '["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]'
}

@test "a file of the cluster's CIDRs that is no JSON object is a failure to read it" {
  local text
  for text in '[]' '{'; do
    lab_in node1 sh -c "mkdir -p /run/odd2 && printf '%s' '$text' >/run/odd2/cluster.json"
    refused 5 "the cluster's CIDRs" ADD "$(with 'del(.serviceCIDR, .overlayPodCIDR)')" UNDERPASS_STATE=/run/odd2
  done
}

@test "STATUS succeeds and prints nothing when ADD would work, and says 50 while the cluster's CIDRs are not known" {
  call STATUS "$(with '.cniVersion = "1.1.0"')"
  assert_equal "$lab_status" 0
  assert_equal "$lab_stdout" ''
  refused 50 'not known yet' STATUS "$(with '.cniVersion = "1.1.0" | del(.serviceCIDR, .overlayPodCIDR)')"
  refused 11 'not known yet' ADD "$(with 'del(.serviceCIDR, .overlayPodCIDR)')"
  # The overlay pods' CIDRs alone are no way to Services.
  refused 50 'not known yet' STATUS "$(with '.cniVersion = "1.1.0" | del(.serviceCIDR)')"
  refused 11 'not known yet' ADD "$(with 'del(.serviceCIDR)')"
}

@test "nobody but root can open the lock, also one of an earlier version, and everybody can read metrics" {
  local mode
  for mode in gone 644 600; do
    lab_in node1 sh -c "rm -f /run/underpass/lock; [ $mode = gone ] || install -m $mode /dev/null /run/underpass/lock"
    call ADD "$config"
    assert_equal "$lab_status" 0
    assert_equal "$(lab_in node1 stat -c %a /run/underpass/lock /run/underpass /run/underpass/attachments | xargs)" '600 755 755'
  done
  call DEL "$config"
}

@test "who waits for a lock for more than a second says so, once" {
  lab_spawn holder node1 /usr/bin/python3 -c '
import fcntl, struct, time
lock = open("/run/underpass/lock", "a")
fcntl.fcntl(lock, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
print("held", flush=True)
time.sleep(2)'
  lab_until 5 grep -q held "$LAB/log/holder"
  call ADD "$config"
  assert_equal "$lab_status" 0
  assert_equal "$(grep -c 'waiting for the lock of container lab-pod' <<<"$lab_stderr")" 1
  call DEL "$config"
  assert_equal "$(grep -c 'waiting for the lock' <<<"$lab_stderr")" 0
}

@test "the tools are found where UNDERPASS_LIBEXEC says, else in underpass.d beside the plugin" {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'mkdir -p /run/plugin && cp "$0" /run/plugin/ && ln -sfn "$1" /run/plugin/underpass.d' \
    "$LAB_REPO/scripts/coordinator" "$(lab_libexec)"
  expect 0 lab_in node1 env CNI_COMMAND=VERSION /run/plugin/coordinator
  assert_json "$output" '.cniVersion' 1.1.0
  expect 1 lab_in node1 env CNI_COMMAND=VERSION UNDERPASS_LIBEXEC=/nowhere /run/plugin/coordinator
  assert_json "$output" '.code' 102
  lab_in node1 rm -r /run/plugin
}

@test "quotes, backslashes, dollars and newlines in names, arguments and configuration arrive unchanged" {
  local nasty=$'a "b" \'c\' \\d \\n $(touch /run/pwned) `touch /run/pwned` ${HOME} ; & | \n\ttab * ?'
  call ADD "$(jq -c --arg nasty "$nasty" '.name = $nasty | .note = $nasty' <<<"$config")" \
    "CNI_ARGS=K8S_POD_NAME=$nasty;IgnoreUnknown=1"
  assert_equal "$lab_status" 0
  local saved
  saved=$(lab_in node1 cat /run/underpass/attachments/lab-pod@eth0.json)
  assert_equal "$(jq -r .request.config.note <<<"$saved")" "$nasty"
  assert_equal "$(jq -r .request.config.name <<<"$saved")" "$nasty"
  assert_equal "$(jq -r .request.args <<<"$saved")" "K8S_POD_NAME=$nasty;IgnoreUnknown=1"
  call DEL "$config"
  assert_equal "$lab_status" 0
  expect 1 lab_in node1 test -e /run/pwned
  unchanged
}
