# The socket load balancer: an application sees what it would see behind a DNAT with connection tracking. See lab/same.

load helpers
load lb

setup_file() {
  suite_needs_lab || return 0
  lb_needs_program || return 0
  lab_up 1
}

@test "random socket calls return what they return behind a DNAT with connection tracking" {
  lb_same 65536 1 2000
}

@test "they do so too when nearly every socket finds its place taken by another one" {
  lb_same 2 100001 1000
}

@test "they do so too where the programs cannot read the kernel's own sockets" {
  local program
  program=$(lab_lb_program)
  export BPF_LB_LOAD=$BATS_TEST_TMPDIR/load
  # shellcheck disable=SC2016 # expanded by the inner shell
  printf '#!/bin/sh\nexec unshare --mount sh -c '\''mount --bind /dev/null /sys/kernel/btf/vmlinux && exec "$0" "$@"'\'' %s "$@"\n' \
    "$program" >"$BPF_LB_LOAD"
  chmod +x "$BPF_LB_LOAD"
  expect 0 lab_balancer node1
  assert_contains "$stderr" 'lacks bpf_rdonly_cast'
  lab_lb node1 unload
  lb_same 65536 200001 500
}
