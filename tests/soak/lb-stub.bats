# The socket load balancer on a machine without what builds its kernel side.

load ../helpers

@test "without the BPF toolchain bpf-lb-load builds, and its load says what to install" {
  local path='' folder
  while read -r folder; do [ -x "$folder/bpf-linker" ] || path+=:$folder; done < <(tr : '\n' <<<"$PATH")
  # rustup's programs lie beside bpf-linker.
  expect 0 env PATH="${path#:}" RUSTC="$(rustup which rustc 2>/dev/null || command -v rustc)" \
    "$(rustup which cargo 2>/dev/null || command -v cargo)" build --locked --package bpf-lb-load \
    --manifest-path "$LAB_REPO/Cargo.toml" --target-dir "$BATS_TEST_TMPDIR/target"
  # shellcheck disable=SC2154 # set by expect
  assert_contains "$stderr" 'kernel side was not built: bpf-linker is not on the PATH'
  expect 1 "$BATS_TEST_TMPDIR/target/debug/bpf-lb-load" load --cgroup /nowhere
  assert_contains "$stderr" 'cargo install --locked bpf-linker'
  expect 0 "$BATS_TEST_TMPDIR/target/debug/bpf-lb-load" schema
  # By these words scripts/image knows it.
  grep -qF 'built without its kernel side' "$BATS_TEST_TMPDIR/target/debug/bpf-lb-load"
}
