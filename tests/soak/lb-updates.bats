# The socket load balancer: changes to the table while clients connect.

load ../helpers
load ../lb

setup_file() {
  # As much room as the changes need, but for a few: so places are used again and again.
  lb_suite --max-services 12 --max-backends 40
}

@test "no connection goes wrong while services change 100,000 times and the loader is killed 500 times" {
  LAB_TIMEOUT=800 lb_under_fire 100000 500
}
