# The socket load balancer on Debian's own Linux 6.1, booted in QEMU by software emulation.

load ../helpers
load ../kernel
load ../lb

setup_file() {
  lb_needs_program && suite_needs_kernel || return 0
  programs || suite_skips 'no static bench client could be built' || return 0
}

# The loader, and the client of the benchmark, which checks what it is answered.
programs() {
  export PROGRAMS=$BATS_FILE_TMPDIR/programs
  local target
  target=$(rustc -vV | sed -n 's/^host: //p')
  RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --release --locked --target "$target" \
    --manifest-path "$LAB_REPO/Cargo.toml" --package bpf-lb-load --bins --example lb-bench || return
  mkdir "$PROGRAMS"
  cp "$LAB_REPO/target/$target/release/"{bpf-lb-load,examples/lb-bench} "$PROGRAMS"
}

# boot: runs the script on stdin on that kernel, after the load balancer was loaded there.
# shellcheck disable=SC2016 # expanded there
boot() {
  { printf '%s\n' \
    'mkdir /cgroup && mount -t cgroup2 cgroup2 /cgroup && mkdir /cgroup/test' \
    'mount -t bpf bpf /sys/fs/bpf' \
    'ip link set lo up' \
    'printf "kernel %s\n" "$(uname -r)"' \
    'bpf-lb-load load --cgroup /cgroup/test' && cat; } | on_kernel "$PROGRAMS"
}

@test "on Linux 6.1 all programs load, and TCP and UDP are translated there and back" {
  boot <<'EOT'
lb-bench table --services 10 | bpf-lb-load apply
for case in tcp tcp6 udp-same udp-mapped udp-new udp-echo peer; do
  lb-bench run $case --count 200 --repeat 1 --cgroup /cgroup/test
done
lb-bench table --services 1 --affinity | bpf-lb-load apply
lb-bench run tcp --count 200 --repeat 1 --cgroup /cgroup/test
lb-bench table --services 1 --least-connections | bpf-lb-load apply
lb-bench run tcp --count 200 --repeat 1 --cgroup /cgroup/test
bpf-lb-load stats --format prometheus
EOT
  expect 0 grep 'lacks' "$BATS_TEST_TMPDIR/console"
  assert_equal "${#lines[@]}" 1
  assert_contains "$output" 'lacks bpf_rdonly_cast'
  # 200 to warm up and 200 more; nothing is open when all is over.
  awk '/^underpass_lb_connections_total/ { sum += $NF } /^underpass_lb_open_sockets/ { open += $NF }
    END { exit !(sum >= 400 && open == 0) }' "$BATS_TEST_TMPDIR/console"
}

@test "on Linux 6.1 a new build takes over in place, and unload leaves nothing" {
  boot <<'EOT'
lb-bench table --services 10 | bpf-lb-load apply
bpf-lb-load show >/before
bpf-lb-load load --cgroup /cgroup/test
bpf-lb-load show >/after
cmp /before /after
lb-bench run tcp --services 10 --count 200 --repeat 1 --cgroup /cgroup/test
bpf-lb-load unload
test -z "$(find /sys/fs/bpf -mindepth 1 ! -name '*.debug')"
EOT
}

@test "on Linux 6.1 trace tells of each translation" {
  boot <<'EOT'
lb-bench table --services 10 | bpf-lb-load apply
bpf-lb-load trace --json >/traced 2>/told &
tracer=$!
seconds=0
until grep -q tracing /told || [ $((seconds += 1)) -gt 120 ]; do sleep 1; done
lb-bench run tcp --count 20 --repeat 1 --cgroup /cgroup/test
lb-bench run tcp6 --count 20 --repeat 1 --cgroup /cgroup/test
sleep 2
kill $tracer
wait $tracer || true
cat /told
printf 'traced %s\n' "$(grep -c '"outcome":"translated"' /traced)"
EOT
  # 20 to warm up and 20 more, of each family.
  grep -x 'traced 80' "$BATS_TEST_TMPDIR/console" || fail "$(<"$BATS_TEST_TMPDIR/console")"
}
