# What the bats suites share. A suite starts with `load helpers`; when its tests share a lab, it goes on with:
#
#   setup_file() {
#     suite_lab || return 0
#     ...pods and Services for all tests...
#   }
#
# A test's name is the sentence that it proves.

bats_require_minimum_version 1.5.0

# shellcheck source=lab/lab.bash
source "${BATS_TEST_DIRNAME%/soak}/lab/lab.bash"

# suite_lab [NODES]: a lab that the suite's tests share. Where none can be, each test is skipped and says why.
suite_lab() {
  suite_needs_lab || return
  lab_up "${1:-2}"
}

suite_needs_lab() {
  SUITE_SKIP=$(lab_require) || suite_skips "$SUITE_SKIP"
}

# suite_needs_tools MODULE...: programs of tests/tools.
suite_needs_tools() {
  local module
  for module in "$@"; do
    "$LAB_REPO/tests/tools/build" --where "$module" >/dev/null 2>&1 ||
      suite_skips "$module is not built: run scripts/setup --tools (needs Go)" || return
  done
}

# suite_skips REASON: no test of this suite runs. (bats knows skip in a test only, not in setup_file.)
suite_skips() {
  export SUITE_SKIP=$1
  return 1
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
}

teardown_file() {
  lab_down
}

# own_pod: for a setup. A pod of the test's own as a runtime hands it to our plugin: its macvlan NIC is there, and our plugin
# has not run. Sets POD, the pod's addresses P4 and P6, and CONFIG, the configuration that our plugin gets.
# shellcheck disable=SC2034 # the tests use them
own_pod() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
  POD=pod$BATS_TEST_NUMBER
  lab_pod node1 "$POD" plain46
  CONFIG=$(lab_chained node1 "$POD" underlay46)
  P4=$(lab_address "node1/$POD" 4) P6=$(lab_address "node1/$POD" 6)
}

# expect STATUS COMMAND...: runs a command and checks its exit status; sets output and stderr. Time is bounded by the
# test's own (BATS_TEST_TIMEOUT) and by the short timeouts of the lab's clients.
expect() {
  local wanted=$1
  shift
  run --separate-stderr "$@"
  # shellcheck disable=SC2154 # set by run
  [ "$status" -eq "$wanted" ] || fail "exit status $status instead of $wanted: $*" "$output" "$stderr"
}

# at_terminal COMMAND...: runs it on node1 with standard output and error at a terminal and standard input from $LAB/stdin. Sets output, without
# carriage returns, and status.
at_terminal() {
  run lab_in node1 /usr/bin/python3 - "$LAB/stdin" "$@" <<'PYTHON'
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)
    os.execvp(sys.argv[2], sys.argv[2:])
text = b""
try:
    while data := os.read(terminal, 4096):
        text += data
except OSError:
    pass
sys.stdout.write(text.decode().replace("\r", ""))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
PYTHON
}

# fail LINE...: fails the test and says why.
fail() {
  printf '%s\n' "$@" >&2
  return 1
}

# assert_equal ACTUAL EXPECTED
assert_equal() {
  [ "$1" = "$2" ] || fail "expected: $2" "actual:   $1"
}

# assert_contains TEXT PART
assert_contains() {
  [[ $1 == *"$2"* ]] || fail "expected to contain: $2" "actual: $1"
}

# assert_json DOCUMENT FILTER EXPECTED: what a jq filter finds, as compact JSON or as a plain string.
assert_json() {
  local found
  found=$(jq -rc "$2" <<<"$1") || fail "no JSON: $1" || return
  [ "$found" = "$3" ] || fail "$2" "expected: $3" "actual:   $found" "document: $1"
}

# assert_same BEFORE AFTER: two texts, with what changed between them.
assert_same() {
  [ "$1" = "$2" ] || fail "$(diff <(printf '%s\n' "$1") <(printf '%s\n' "$2"))"
}

# assert_answer FROM ADDRESS PORT WHO SEEN: over TCP and UDP, WHO answers and has seen the address SEEN. SEEN may be empty.
assert_answer() {
  local protocol
  for protocol in tcp udp; do
    expect 0 lab_ask "$1" "$protocol" "$2" "$3" 5 || return
    assert_equal "${output%% *}" "$4" || return
    [ -z "${5-}" ] || assert_equal "${output#* }" "$5" || return
  done
}

# assert_no_answer FROM ADDRESS PORT: neither over TCP nor over UDP.
assert_no_answer() {
  expect 1 lab_ask "$1" tcp "$2" "$3" && expect 1 lab_ask "$1" udp "$2" "$3"
}

# leaves_by POD NIC OTHER... -- COMMAND...: a question that succeeds, and whose packets (port 8080 at the pod) are all seen
# on NIC and none on the OTHERs. POD is NODE/POD.
leaves_by() {
  local pod=$1 right=$2 nic wrong=()
  shift 2
  while [ "$1" != -- ]; do wrong+=("$1") && shift; done
  shift
  for nic in "$right" "${wrong[@]}"; do lab_capture "on-$nic" "$pod" "$nic" "port 8080 or port 80" || return; done
  "$@" || return
  for nic in "${wrong[@]}"; do
    assert_equal "$(lab_captured "on-$nic")" '' || fail "packets on $nic of $pod: $*" || return
  done
  [ -n "$(lab_captured "on-$right")" ] || fail "no packets on $right of $pod: $*"
}

# rule_tables NODE/POD 4|6: "ADDRESS TABLE" for each rule by source address that the pod has.
rule_tables() {
  lab_in "$1" ip -json "-$2" rule show | jq -r '.[] | select(.src != "all" and .table != "local") | "\(.src) \(.table)"'
}

# assert_tables NODE/POD: each of our tables has the default route of one NIC at most, and each address one rule.
assert_tables() {
  local family tables
  for family in 4 6; do
    tables=$(rule_tables "$1" $family)
    assert_equal "$(cut -d' ' -f1 <<<"$tables" | sort | uniq -d)" '' || return
    assert_equal "$(cut -d' ' -f2 <<<"$tables" | sort | uniq -d)" '' || return
  done
}

# container_of POD: the container id under which cnitool added a pod.
container_of() {
  printf 'cnitool-%s' "$(printf '/run/netns/%s' "$1" | sha512sum | cut -c 1-20)"
}
