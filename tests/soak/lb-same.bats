# The socket load balancer: an application sees what it would see behind a DNAT with connection tracking. For SAME_SECONDS
# (20 minutes); the first seed is the time, and is printed. What differs is printed as short as it can be: keep it in
# tests/fixtures/same.

load ../helpers
load ../lb

setup_file() {
  export SAME_SECONDS=${SAME_SECONDS:-1200}
  export BATS_TEST_TIMEOUT=$((SAME_SECONDS + 600)) LAB_LIFETIME=$((2 * SAME_SECONDS + 1200))
  suite_needs_lab || return 0
  lb_needs_program || return 0
  lab_up 1
}

@test "random socket calls go on to return what they return behind a DNAT with connection tracking" {
  lb_same 65536 "$(date +%s)00" 1 "$SAME_SECONDS"
}

@test "they do so too when nearly every socket finds its place taken by another one" {
  lb_same 2 "$(date +%s)00" 1 "$SAME_SECONDS"
}
