# scripts/demo: the first command that the README shows.

load helpers

setup() {
  suite_needs_lab || skip "$SUITE_SKIP"
  export LAB_PREFIX=underpass-demo-$$
}

demo() {
  bash "$LAB_SOURCE/demo" "$@"
}

@test "the demo shows a connection that fails, then works, and leaves nothing" {
  expect 0 demo
  assert_contains "$output" 'no answer'
  assert_contains "$output" 'shop answers'
  assert_contains "$output" 'What was shown'
  [[ $output != *$'\e'* ]] || fail 'colours on something that is not a terminal'
  assert_equal "$(lab_leaks)" ''
}

@test "the demo with --keep leaves its lab up to look around, and --down removes it" {
  expect 0 demo --keep
  expect 0 demo --in node1/after ip route show table 8500
  assert_contains "$output" 'dev veth0'
  expect 0 demo --down
  assert_equal "$(lab_leaks)" ''
  expect 1 demo --in node1 true
  assert_contains "$stderr" 'no demo is up'
}

@test "the demo fails when a connection that should work does not" {
  printf '#!/bin/sh\ncat >/dev/null\nprintf %%s "{}"\n' >"$BATS_TEST_TMPDIR/nothing"
  chmod +x "$BATS_TEST_TMPDIR/nothing"
  mkdir "$BATS_TEST_TMPDIR/libexec"
  local tool
  for tool in "$(lab_libexec)"/*; do [ -d "$tool" ] || ln -s "$tool" "$BATS_TEST_TMPDIR/libexec/"; done
  ln -sf "$BATS_TEST_TMPDIR/nothing" "$BATS_TEST_TMPDIR/libexec/set-routes"
  UNDERPASS_LIBEXEC=$BATS_TEST_TMPDIR/libexec expect 1 demo
  assert_equal "$(lab_leaks)" ''
}
