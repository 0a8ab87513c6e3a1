# Debian's own Linux 6.1, booted in QEMU by software emulation. A suite says `load ../kernel` after `load ../helpers`.

# suite_needs_kernel: downloads it once, into KERNELS.
suite_needs_kernel() {
  local program
  for program in qemu-system-x86_64 busybox cpio dpkg-deb apt-get; do
    command -v $program >/dev/null || suite_skips "no $program: run scripts/setup --qemu" || return
  done
  kernel || suite_skips 'no package of Linux 6.1 could be downloaded: run apt-get update'
}

kernel() {
  export KERNELS=${UNDERPASS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/underpass}/kernel
  mkdir -p "$KERNELS"
  [ -z "$(find "$KERNELS" -name 'linux-image-6.1.*.deb')" ] || return 0
  local package
  package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-6\.1\..*\)/\1/p' | head -1)
  [ -n "$package" ] && (cd "$KERNELS" && apt-get download "$package")
}

# on_kernel PROGRAM_DIR [MODULE...] <SCRIPT: runs it there, and leaves what it prints in console. Says which kernel it was, which the
# script prints as "kernel VERSION".
on_kernel() {
  bash "$LAB_SOURCE/boot" "$KERNELS"/linux-image-6.1.*.deb "$@" >"$BATS_TEST_TMPDIR/console" || {
    cat "$BATS_TEST_TMPDIR/console"
    return 1
  }
  grep -o '6\.1\.0-.*' "$BATS_TEST_TMPDIR/console" | head -1 | sed 's/^/# Linux /' >&3
}
