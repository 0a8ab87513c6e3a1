# scripts/setup on machines that are not this one: what it would install stands in a list. And what scripts leave that are interrupted.

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

# installing: scripts/setup on a machine without jq, each time as often as there are arguments: killed while it installs, or when jq is there,
# to its end, or on a
# machine of which somebody has said that services may start (theirs). Prints whether they may while it installs, and after it.
installing() {
  program dpkg-query <<'END'
for name; do case $name in -* | jq) ;; *) printf 'installed %s\n' "$name" ;; esac; done
[ ! -e "$(dirname "$0")/../other/jq" ] || printf 'installed jq\n'
END
  program apt-get <<END
[ "\$1" = install ] || exit 0
may
[ ! -e '$MACHINE/late' ] || : >'$MACHINE/other/jq'
[ ! -e '$MACHINE/killed' ] || kill -KILL \$PPID
END
  program may <<'END'
status=0
! [ -x /usr/sbin/policy-rc.d ] || /usr/sbin/policy-rc.d || status=$?
printf '%s ' $status >&7
END
  program installing <<END
set -e
mount -t tmpfs none '$MACHINE/other'
mkdir '$MACHINE/other/upper' '$MACHINE/other/work'
mount -t overlay -o 'lowerdir=/usr/sbin,upperdir=$MACHINE/other/upper,workdir=$MACHINE/other/work' none /usr/sbin
rm -f /usr/sbin/policy-rc.d
for how; do
  case \$how in
    killed) : >'$MACHINE/killed' ;;
    late) : >'$MACHINE/killed' && : >'$MACHINE/late' ;;
    theirs) printf '#!/bin/sh\nexit 0\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d ;;
  esac
  '$LAB_REPO/scripts/setup' >&2 || :
  rm -f '$MACHINE/killed' '$MACHINE/late'
  may
done
! [ -e /usr/sbin/policy-rc.d ] || cat /usr/sbin/policy-rc.d >&7
END
  mkdir "$MACHINE/other"
  env PATH="$MACHINE/bin:/usr/sbin:/usr/bin:/sbin:/bin" CARGO_HOME="$MACHINE" RUSTUP_HOME="$MACHINE/rustup" unshare --mount installing "$@" 7>&1
}

@test "no service starts while packages are installed, and after it they may as before, also if somebody was killed meanwhile" {
  suite_needs_lab || skip "$SUITE_SKIP"
  expect 0 installing killed whole
  assert_equal "$output" '101 101 101 0 '
  rm -r "$MACHINE/other"
  # There is nothing to install any more.
  expect 0 installing late whole
  assert_equal "$output" '101 101 0 '
  rm -r "$MACHINE/other"
  expect 0 installing theirs
  assert_equal "$output" $'0 0 #!/bin/sh\nexit 0'
}

# interrupted COMMAND...: is told to end as at a terminal, with all that is in its process group, when a program of the machine has begun to wait.
interrupted() {
  local pid
  mkdir -p "$MACHINE/temporary"
  TMPDIR=$MACHINE/temporary PATH=$MACHINE/bin:$PATH env --default-signal=INT setsid "$@" >"$MACHINE/said" 2>&1 3>&- &
  pid=$!
  lab_until 10 "${BEGUN[@]}" || fail "$(<"$MACHINE/said")" || return
  kill -INT -- "-$pid"
  status=0
  wait "$pid" || status=$?
  assert_equal "$status" 130
  assert_equal "$(ls -A "$MACHINE/temporary")" ''
}

# waits NAME...: programs of the machine that wait, each of which writes down who it is.
waits() {
  local name
  for name in "$@"; do program "$name" <<<"printf '%s\\n' \$\$ >>'$MACHINE/waiting'; exec sleep 300"; done
}

waiting() { [ -e "$MACHINE/waiting" ] && [ "$(wc -l <"$MACHINE/waiting")" = "$1" ]; }

# test_of_stubs: scripts/test where there is nothing but one suite.
test_of_stubs() {
  mkdir -p "$MACHINE/repo/scripts" "$MACHINE/repo/tests"
  ln -s "$LAB_REPO/scripts/test" "$MACHINE/repo/scripts"
  ln -s "$MACHINE/bin/true" "$MACHINE/repo/scripts/setup"
  ln -s "$MACHINE/bin/true" "$MACHINE/repo/scripts/build"
  : >"$MACHINE/repo/tests/one.bats"
  program true <<<:
}

@test "tests that are interrupted leave no process and no directory" {
  local BEGUN=(waiting 2)
  test_of_stubs
  waits bats cargo
  interrupted "$MACHINE/repo/scripts/test"
  lab_until 5 gone || fail "$(ps -fp "$(paste -sd, "$MACHINE/waiting")")"
}

# gone: those who waited have ended, whether somebody has asked how or not.
gone() {
  local pid
  while read -r pid; do
    [ ! -e "/proc/$pid/exe" ] || return
  done <"$MACHINE/waiting"
}

@test "what runs beside the suites and is killed has failed" {
  test_of_stubs
  program bats <<<"printf '1..1\\nok 1 it is in 5ms\\n'"
  # shellcheck disable=SC2016 # expanded by that shell
  program cargo <<<'kill -KILL $PPID'
  PATH=$MACHINE/bin:$PATH expect 1 "$MACHINE/repo/scripts/test"
  assert_contains "$output" 'failed: lint and cargo'
}

@test "an image that is not made to its end leaves no directory" {
  local BEGUN=(waiting 1)
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  waits tar
  interrupted "$LAB_REPO/scripts/image"
}

# release_of_stubs [DIRECTORY]: a repository with one tool, where scripts/release finds all that it asks for.
release_of_stubs() {
  local repo=${1:-$MACHINE/repo} build=target/dist/build sysroot=$MACHINE/sysroot
  mkdir -p "$repo/scripts" "$repo/bins/one" "$repo/deploy" "$sysroot/lib/rustlib/x86_64-unknown-linux-musl/lib/self-contained" \
    "$repo/$build/release" "$repo/$build/debug" "$repo/$build/x86_64-unknown-linux-gnu/release/build/bpf-lb-load-1/out"
  cp "$LAB_REPO"/scripts/{release,coordinator,node-agent,install,image,pack-image} "$repo/scripts"
  cp "$LAB_REPO"/{LICENSE,README.md,Cargo.toml,Cargo.lock} "$repo"
  cp "$LAB_REPO/bins/watch-services/README.md" "$repo/bins/one"
  ln -s "$MACHINE/bin/true" "$repo/scripts/build"
  # shellcheck disable=SC2016 # expanded by that shell
  program one <<<'mkdir -p "$UNDERPASS_PAGES"'
  ln -s "$MACHINE/bin/one" "$repo/$build/debug/one"
  : >"$repo/$build/release/one"
  printf 1 >"$repo/$build/x86_64-unknown-linux-gnu/release/build/bpf-lb-load-1/out/bpf-lb"
  printf '1.2.3\n' >"$sysroot/lib/rustlib/x86_64-unknown-linux-musl/lib/self-contained/libc.a"
  program true <<<:
  program dpkg-query <<<'printf 2.41'
  program rustc <<<"case \$1 in --print) echo '$sysroot' ;; *) echo rustc 1.95.0 ;; esac"
  program cargo <<<"[ \$1 != metadata ] || printf '{\"packages\": []}'"
}

release() { SOURCE_DATE_EPOCH=1 PATH=$MACHINE/bin:$PATH "$MACHINE/repo/scripts/release" --output "$MACHINE/dist" amd64; }

@test "an archive is published whole or not at all, and beside no checksums of another" {
  local name program
  release_of_stubs
  expect 0 release
  name=$(ls "$MACHINE/dist"/*.tar.gz)
  (cd "$MACHINE/dist" && sha256sum --quiet --check SHA256SUMS)
  # Its disk is full, say.
  for program in tar gzip; do
    program $program <<<'printf part; exit 1'
    expect 1 release
    expect 0 tar -tzf "$name"
    expect 1 test -e "$MACHINE/dist/SHA256SUMS"
    rm "$MACHINE/bin/$program"
  done
  expect 0 release
  (cd "$MACHINE/dist" && sha256sum --quiet --check SHA256SUMS)
  assert_equal "$(ls "$MACHINE/dist")" SHA256SUMS$'\n'"${name##*/}"
}

@test "a release is not made where a path has a blank, at which the compiler's flags would come apart" {
  release_of_stubs "$MACHINE/a b"
  expect 1 "$MACHINE/a b/scripts/release" amd64
  assert_contains "$stderr" 'has a blank'
}

@test "what the figures are of is written down whole, or the measurements fail and begin anew" {
  local name repo=$MACHINE/repo
  mkdir -p "$repo/scripts" "$repo/tests/lab" "$repo/tests/tools"
  ln -s "$LAB_REPO/scripts/bench" "$repo/scripts"
  for name in lab/figures.py lab/bench-{path,lb,add,routes,scale}; do ln -s "$MACHINE/bin/true" "$repo/tests/$name"; done
  ln -s "$MACHINE/bin/where" "$repo/tests/tools/build"
  program true <<<:
  program where <<<"printf '%s\\n' '$MACHINE/bin'"
  for name in git kube-proxy iperf3 sockperf redis-benchmark; do
    ! PATH=$MACHINE/bin:$(without_bench) "$repo/scripts/bench" all "$MACHINE/figures" || fail "without $name"
    expect 1 test -e "$MACHINE/figures/machine.json"
    program $name <<<"echo 1.0"
  done
  expect 0 env PATH="$MACHINE/bin:$(without_bench)" "$repo/scripts/bench" all "$MACHINE/figures"
  assert_json "$(<"$MACHINE/figures/machine.json")" '."redis-benchmark", .CPUs != ""' $'1.0\ntrue'
}

# without_bench: where the programs are that measuring needs, but for those whose version is written down.
without_bench() {
  local name
  mkdir -p "$MACHINE/plain"
  for name in bash env dirname mkdir date uname nproc sed awk jq mv; do ln -sf "$(command -v $name)" "$MACHINE/plain"; done
  printf '%s\n' "$MACHINE/plain"
}
