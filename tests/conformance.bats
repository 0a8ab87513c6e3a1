# tests/cluster/conformance, which writes the page of what Kubernetes' own tests say, from real reports (fixtures/conformance).

load helpers

REPORTS=$LAB_REPO/tests/fixtures/conformance

# page STATUS REASONS COLUMN...: what it writes of these columns.
page() {
  local status=$1 reasons=$2
  shift 2
  expect "$status" "$LAB_REPO/tests/cluster/conformance" abcdef0 "$REPORTS/tests" "$reasons" "$@"
}

# overlay: the page of that column, with the reasons that the project has.
overlay() {
  page 0 "$LAB_REPO/tests/cluster/conformance.reasons" "overlay=$REPORTS/overlay"
}

# has LINE: the page has that line.
has() {
  grep -qxF -- "$1" <<<"$output" || fail "no such line: $1" "$output"
}

@test "each group and all of them are counted, and those that are marked as out of scope are not" {
  overlay
  has '| DNS | 1 | 0 passed, 1 skipped |'
  has '| HostPort | 1 | 1 passed |'
  has '| IPv6DualStack | 3 | 3 passed |'
  has '| Services | 5 | 1 passed, 2 failed, 2 not run |'
  has '| **all** | 12 | **6 passed, 3 failed, 2 not run, 1 skipped** |'
  assert_contains "$output" '2 tests are not counted'
  assert_contains "$output" 'Kubernetes 1.34.4'
  assert_contains "$output" '2026-11-28'
  assert_contains "$output" 'commit abcdef0'
}

@test "a test that does not pass has its reason beside it, the first that fits" {
  overlay
  has "| DNS should provide DNS for the cluster [Provider:GCE] | skipped | for Google's cloud alone |"
  printf '%s\t%s\n' 'Provider:GCE' first DNS second . rest >"$BATS_TEST_TMPDIR/reasons"
  page 0 "$BATS_TEST_TMPDIR/reasons" "overlay=$REPORTS/overlay"
  has '| DNS should provide DNS for the cluster [Provider:GCE] | skipped | first |'
  has '| Services should be rejected for evicted pods (no endpoints exist) | failed | rest |'
}

@test "the last run of a test counts, whatever its report is called" {
  overlay
  # It failed, and passed half an hour later.
  ! grep -q '^| HostPort validates' <<<"$output" || fail "$output"
  # It skipped itself for want of a third node, and failed where there were six.
  assert_contains "$output" '| Services should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes | failed |'
}

@test "a run that did not choose a test, or was cut short within it, says nothing of it" {
  overlay
  # Failed, and not chosen in five later runs.
  assert_contains "$output" '| Services should be rejected for evicted pods (no endpoints exist) | failed |'
  # Cut short in the only run.
  has '* Services should fallback to local terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Local'
  # In no report at all.
  has '* Services should serve endpoints on same port and different protocols [Conformance]'
}

@test "a failure without a reason is said to be unexplained, and is an error" {
  page 1 "$LAB_REPO/tests/cluster/conformance.reasons" "overlay=$REPORTS/overlay" "macvlan=$REPORTS/macvlan"
  has '| HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly] [Conformance] | passed | failed | **unexplained** |'
  assert_contains "$stderr" 'no reason for [sig-network] HostPort validates'
  assert_equal "$(wc -l <<<"$stderr")" 1
  # One column's failure is none of the other's.
  has '| HostPort | 1 | 1 passed | 0 passed, 1 failed |'
}

@test "every reason that the project has is of a test that does not pass on its page" {
  local pattern why
  while IFS=$'\t' read -r pattern why; do
    grep -E "^\| .*$pattern.* \|" "$LAB_REPO/deploy/conformance.md" | grep -qF "| $why |" || fail "$pattern: $why"
  done <"$LAB_REPO/tests/cluster/conformance.reasons"
}
