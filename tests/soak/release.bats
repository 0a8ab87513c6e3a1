# What scripts/release makes: twice, in two places, and tried.

load ../helpers

setup_file() {
  local program
  for program in aarch64-linux-gnu-gcc qemu-aarch64-static; do
    command -v $program >/dev/null || { export SUITE_SKIP="no $program: run scripts/setup --release" && return 0; }
  done
  export DIST=$BATS_FILE_TMPDIR/dist
  "$LAB_REPO/scripts/release" --output "$DIST" >"$BATS_FILE_TMPDIR/log" 2>&1 || { cat "$BATS_FILE_TMPDIR/log" >&2 && return 1; }
  local architecture
  for architecture in amd64 arm64; do
    mkdir "$BATS_FILE_TMPDIR/$architecture"
    tar -xzf "$DIST"/underpass-*-linux-$architecture.tar.gz -C "$BATS_FILE_TMPDIR/$architecture" --strip-components 1
  done
}

setup() {
  [ -z "${SUITE_SKIP-}" ] || skip "$SUITE_SKIP"
}

# content ARCHITECTURE: where its archive was unpacked.
content() { printf '%s\n' "$BATS_FILE_TMPDIR/$1"; }

@test "the checksums are those of the archives" {
  cd "$DIST"
  assert_equal "$(wc -l <SHA256SUMS)" 2
  expect 0 sha256sum --check SHA256SUMS
}

@test "each tool is static, for its architecture, and says its version" {
  local tool
  for tool in "$LAB_REPO"/bins/*; do
    tool=${tool##*/}
    ! ldd "$(content amd64)/bin/underpass.d/$tool" >/dev/null 2>&1 || fail "$tool is not static"
    [ "$tool" != lifeline ] || continue
    expect 0 "$(content amd64)/bin/underpass.d/$tool" --version
    expect 0 qemu-aarch64-static "$(content arm64)/bin/underpass.d/$tool" --version
  done
}

@test "a pod document goes through the arm64 tools" {
  local tools
  tools=$(content arm64)/bin/underpass.d
  # shellcheck disable=SC2016 # expanded by that shell
  run --separate-stderr bash -c 'qemu-aarch64-static "$0/cni-request" <<<"$1" | qemu-aarch64-static "$0/cni-result"' "$tools" \
    '{"cniVersion": "1.0.0", "name": "n", "type": "coordinator"}'
  # Without CNI_COMMAND: the specification's code for that.
  assert_json "$output" .code 4
}

@test "the BPF object is one, and each tool has a man page and completions" {
  local tool share
  share=$(content amd64)/share
  assert_equal "$(head -c 4 "$(content amd64)/lib/bpf-lb.o" | od -An -tx1 | tr -d ' \n')" 7f454c46
  for tool in "$LAB_REPO"/bins/*; do
    tool=${tool##*/}
    case $tool in lifeline | sync-cidrs-kube) continue ;; esac
    [ -s "$share/man/man1/$tool.1" ] && [ -s "$share/bash-completion/completions/$tool.bash" ] &&
      [ -s "$share/zsh/site-functions/_$tool" ] && [ -s "$share/fish/vendor_completions.d/$tool.fish" ] || fail "$tool"
  done
}

@test "what a page links to is in the archive" {
  local page link
  cd "$(content amd64)"
  find . -name '*.md' | while read -r page; do
    grep -o '](\([^)#]*\)' "$page" | sed 's/^](//' | while read -r link; do
      case $link in '' | http*) continue ;; esac
      [ -e "${page%/*}/$link" ] || printf '%s: %s\n' "$page" "$link"
    done
  done >"$BATS_TEST_TMPDIR/lost"
  [ ! -s "$BATS_TEST_TMPDIR/lost" ] || fail "$(cat "$BATS_TEST_TMPDIR/lost")"
}

@test "a script that a page says to run is where it says, if it is in the archive" {
  local script
  cd "$(content amd64)"
  for script in bin/*; do
    [ -f "$script" ] || continue
    expect 1 grep -rnE --include='*.md' "\\<scripts/${script#bin/}\\>" .
  done
  # shellcheck disable=SC2016 # what it looks for
  grep -rohE --include='*.md' '(^|[ `])bin/[a-z-]+' . | tr -d ' `' | sort -u >"$BATS_TEST_TMPDIR/named"
  [ "$(wc -l <"$BATS_TEST_TMPDIR/named")" -ge 4 ] || fail "$(cat "$BATS_TEST_TMPDIR/named")"
  while read -r script; do [ -x "$script" ] || fail "there is no $script"; done <"$BATS_TEST_TMPDIR/named"
}

@test "the SBOM and the licences name every package that is linked in, and each has a licence that is allowed" {
  local package
  jq -r '.components[].name' "$(content amd64)/sbom.cdx.json" | grep -vx 'rust-std\|glibc' >"$BATS_TEST_TMPDIR/names"
  [ "$(wc -l <"$BATS_TEST_TMPDIR/names")" -gt 50 ]
  while read -r package; do
    grep -q "^==== $package [^ ]*: ..*" "$(content amd64)/THIRD-PARTY" || fail "$package"
  done <"$BATS_TEST_TMPDIR/names"
  assert_equal "$(jq '[.components[] | select(.purl | startswith("pkg:cargo")) | select(.hashes[0].content == null)] | length' \
    "$(content amd64)/sbom.cdx.json")" 0
}

@test "the same commit gives the same bytes in another place" {
  git -C "$LAB_REPO" diff --quiet HEAD || skip 'what is here is not a commit'
  git clone -q "$LAB_REPO" "$BATS_TEST_TMPDIR/elsewhere"
  "$BATS_TEST_TMPDIR/elsewhere/scripts/release" --output "$BATS_TEST_TMPDIR/again" amd64
  cmp "$DIST"/underpass-*-linux-amd64.tar.gz "$BATS_TEST_TMPDIR"/again/underpass-*-linux-amd64.tar.gz
}
