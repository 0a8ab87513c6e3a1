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
