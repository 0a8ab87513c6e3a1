# Many pods at once, as after a node's restart.

load helpers

setup_file() {
  suite_lab 1
}

teardown_file() {
  lab_down
}

PODS=200
AT_ONCE=20

# in_parallel FUNCTION: calls it with each number up to PODS, AT_ONCE at a time; fails when one failed, and shows it.
in_parallel() {
  local number
  for ((number = 1; number <= PODS; number++)); do
    while [ "$(jobs -pr | wc -l)" -ge $AT_ONCE ]; do wait -n; done
    { "$1" $number >"$BATS_TEST_TMPDIR/$1.$number" 2>&1 || : >"$BATS_TEST_TMPDIR/failed.$1.$number"; } 3>&- &
  done
  wait
  for number in "$BATS_TEST_TMPDIR"/failed."$1".*; do
    [ ! -e "$number" ] || fail "$1 failed for pod ${number##*.}: $(cat "$BATS_TEST_TMPDIR/$1.${number##*.}")" || return
  done
}

add() { lab_pod node1 "pod$1" underlay46; }
probe() { lab_in node1 ping -c 1 -W 2 "$(lab_address "node1/pod$1" 4)" && lab_in node1 ping -c 1 -W 2 "$(lab_address "node1/pod$1" 6)"; }
check() { lab_cnitool node1 check underlay46 "pod$1"; }
delete() { lab_pod_delete node1 "pod$1" underlay46; }

@test "two hundred pods, twenty at a time: added, reached, checked and deleted without a failure, and nothing is left" {
  local before
  lab_known_network node1 underlay46
  before=$(lab_snapshot node1)
  in_parallel add
  in_parallel probe
  in_parallel check
  assert_equal "$(lab_in node1 ip rule show pref 1000 | wc -l)" 1
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
