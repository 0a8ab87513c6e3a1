# The socket load balancer: changes to the table while clients connect. The soak suite of the same name goes on for longer.

load helpers
load lb

setup_file() {
  # As much room as the changes need, but for a few: so places are used again and again.
  lb_suite --max-services 1 --max-backends 40 || return 0
  # One bucket is in use, and more as there are more services.
  lab_reload node1 --max-services 12
}

@test "no connection goes wrong while services change 10,000 times and the loader is killed 50 times" {
  lb_under_fire 10000 50
}
