# Many pods at once, as after a node's restart.

load helpers

setup_file() {
  suite_lab 1 || return 0
}

PODS=200
AT_ONCE=20

# in_parallel FUNCTION: calls it with each number up to PODS, AT_ONCE at a time; fails when one failed, and shows it.
in_parallel() {
  local worker workers=() log=$BATS_TEST_TMPDIR/$1
  for ((worker = 1; worker <= AT_ONCE; worker++)); do
    every_nth "$1" $worker >"$log.$worker" 2>&1 3>&- &
    workers+=($!)
  done
  # By their pids: bats, too, has a job in this shell, which sleeps until the test's time is over.
  for ((worker = 1; worker <= AT_ONCE; worker++)); do
    wait "${workers[worker - 1]}" || fail "$1 failed: $(tail -n 20 "$log.$worker")" || return
  done
}

# every_nth FUNCTION FIRST: one worker's numbers, until one fails.
every_nth() {
  local number
  for ((number = $2; number <= PODS; number += AT_ONCE)); do
    "$1" $number || return
  done
}

add() { lab_pod node1 "pod$1" underlay46; }
probe() { lab_in node1 ping -c 1 -W 2 "$(lab_address "node1/pod$1" 4)" && lab_in node1 ping -c 1 -W 2 "$(lab_address "node1/pod$1" 6)"; }
check() { lab_cnitool node1 check underlay46 "pod$1"; }
delete() { lab_cnitool node1 del underlay46 "pod$1" && lab_in node1 ip netns delete "pod$1" && rm -r "$LAB/host/node1/pod/pod$1"; }

@test "two hundred pods, twenty at a time: added, reached, checked and deleted without a failure, and nothing is left" {
  local before
  lab_known_network node1 underlay46
  before=$(lab_snapshot node1)
  in_parallel add
  in_parallel probe
  in_parallel check
  assert_equal "$(lab_in node1 ip rule show pref 85 | wc -l)" 1
  assert_equal "$(lab_in node1 ip route show table 500 | wc -l)" $PODS
  in_parallel delete
  assert_same "$before" "$(lab_snapshot node1)"
}

@test "pods added, deleted and added again in a random order, twenty at a time, leave nothing" {
  local before
  lab_known_network node1 underlay46
  before=$(lab_snapshot node1)
  in_parallel life
  assert_same "$before" "$(lab_snapshot node1)"
}

life() {
  local times
  for ((times = 1 + RANDOM % 3; times > 0; times--)); do
    add "$1" && delete "$1" || return
  done
}
