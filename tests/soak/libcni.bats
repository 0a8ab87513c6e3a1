# Garbage collection as a runtime does it through libcni, which says what is valid (cnitool does not).

load ../helpers

setup_file() {
  suite_needs_lab && suite_needs_tools cnitool plugins cni-gc || return 0
  lab_up 2
  LAB_CNI_PLUGINS=$("$LAB_REPO/tests/tools/build" --where plugins)
  export LAB_CNI_PLUGINS
  lab_pod node2 server plain46
  lab_serve node2/server 8080
  lab_service web 80:8080 node2/server
  LAB_CNI_VERSION=1.1.0 lab_network_config node1 current 46 "$(lab_coordinator_json 46)"
}

# gc [CONTAINERID IFNAME]...: through the whole chain.
gc() {
  lab_in node1 env CNI_PATH="$(lab_cni_path)" NETCONFPATH=/etc/cni/net.d UNDERPASS_LIBEXEC="$(lab_libexec)" \
    "$("$LAB_REPO/tests/tools/build" --where cni-gc)/cni-gc" current "$@"
}

# cached POD: libcni's note of its attachment, which is named by the container's id.
cached() {
  lab_in node1 grep -l "\"netns\":\"/run/netns/$1\"" -r /var/lib/cni/results
}

# removed POD: nothing of ours is in it.
removed() {
  ! lab_in "node1/$1" ip link show veth0 2>/dev/null
}

@test "GC removes attachments that are not in its list, those too of which libcni has lost its note, and what is in the list stays" {
  local pod id
  lab_snapshot node1 >"$BATS_TEST_TMPDIR/before"
  for pod in kept stale lost; do
    lab_pod node1 $pod current
    assert_answer node1/$pod "$(lab_cluster_ip web 4)" 80 server ''
  done
  id=$(cached kept)
  lab_in node1 rm "$(cached lost)"
  id=${id##*/current-}
  expect 0 gc "${id%-eth0}" eth0
  removed stale
  removed lost
  assert_answer node1/kept "$(lab_cluster_ip web 4)" 80 server ''
  expect 0 lab_cnitool node1 check current kept
  expect 0 gc
  removed kept
  for pod in kept stale lost; do lab_in node1 ip netns delete $pod; done
  assert_same "$(<"$BATS_TEST_TMPDIR/before")" "$(lab_snapshot node1)"
}
