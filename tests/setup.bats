# scripts/setup on machines that are not this one: what it would install stands in a list.

load helpers

# A machine where Debian's packages are there, but for the eBPF compiler, which it cannot get. Rust is there.
setup() {
  MACHINE=$BATS_TEST_TMPDIR DONE=$BATS_TEST_TMPDIR/done
  : >"$DONE"
  program dpkg-query <<'END'
for name; do case $name in -* | rustc-web | rust-web-src) ;; *) printf 'installed %s\n' "$name" ;; esac; done
END
  program apt-get <<<'exit 100'
  program rustup <<<'exit 1'
  program cargo <<<"printf 'cargo %s\n' \"\$*\" >>'$DONE'"
  program rustc <<END
[ "\$1" != +nightly ] || { [ -e '$MACHINE/nightly' ] && printf '%s\n' '$MACHINE/nightly'; exit; }
exec '$(rustup which rustc 2>/dev/null || command -v rustc)' "\$@"
END
}

# with_rustup: where it gets what it is asked for.
with_rustup() {
  program rustup <<END
printf 'rustup %s\n' "\$*" >>'$DONE'
case \$* in
  *' nightly '*rust-src*)
    mkdir -p '$MACHINE/nightly/lib/rustlib/src/rust/library/core/src'
    : >'$MACHINE/nightly/lib/rustlib/src/rust/library/core/src/lib.rs'
    ;;
esac
END
}

# program NAME <TEXT: a shell's program of that machine.
program() {
  mkdir -p "$MACHINE/bin"
  { printf '#!/bin/sh\n' && cat; } >"$MACHINE/bin/$1"
  chmod +x "$MACHINE/bin/$1"
}

set_up() {
  env PATH="$MACHINE/bin:/usr/sbin:/usr/bin:/sbin:/bin" CARGO_HOME="$MACHINE" RUSTUP_HOME="$MACHINE/rustup" "$LAB_REPO/scripts/setup"
}

@test "where Debian's eBPF compiler cannot be had, rustup's nightly takes its place, once, and gets its linker" {
  with_rustup
  expect 0 set_up
  assert_equal "$(grep -c '^rustup toolchain install nightly' "$DONE")" 1
  assert_contains "$(<"$DONE")" 'bpf-linker'
  [[ $stderr != *'eBPF programs are not built'* ]] || fail "$stderr"
  : >"$DONE"
  expect 0 set_up
  assert_equal "$(grep -c '^rustup toolchain' "$DONE")" 0
  assert_contains "$(<"$DONE")" 'bpf-linker'
}

@test "where neither can be had, it is said that the eBPF programs are not built" {
  expect 0 set_up
  assert_contains "$stderr" 'eBPF programs are not built'
  assert_equal "$(<"$DONE")" ''
}
