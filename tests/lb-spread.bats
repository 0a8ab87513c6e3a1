# The socket load balancer: how many buckets of the frontends' hash table are in use grows with the frontends.

load helpers
load lb

setup_file() {
  lb_suite || return 0
}

# spread_anew [OPTION...]: with new maps.
spread_anew() {
  lab_lb node1 unload
  lab_reload node1 "$@"
}

# spread_service NUMBER: a UDP service with an address of either family.
spread_service() { spread_table "$(($1 + 1))" | jq -c '.services[-1]'; }

# spread_table COUNT: a table of so many UDP services, each with an address of either family, on which other ports are refused.
spread_table() {
  jq -nc --argjson count "$1" '
    {refuse: ["10.96.0.0/12", "fd02::/112"], services: [range($count) | {namespace: "test", name: "s\(.)", port: 80,
      protocol: "UDP", clusterIps: ["10.96.\(. / 256 | floor).\(. % 256)", "fd02::0.0.\(. / 256 | floor).\(. % 256)"],
      backends: [{address: "127.0.0.2", port: 8080}, {address: "fd01::2", port: 8080}]}]}'
}

# spread_cells: of IPv4 and IPv6, how many buckets are in use, and how many cells are.
spread_cells() {
  spread_python <<'PY'
for cells, (size, _), mask in zip(tables, FORMS, struct.unpack("II", config[MASKS])):
    print(mask + 1, sum(is_present(cells, at, size) for at in range(0, len(cells), size)))
PY
}

# spread_full: of IPv4 and IPv6, in how many buckets a search does not end for what is not there: no cell's port is 0.
spread_full() {
  spread_python <<'PY'
for cells, (size, port), mask in zip(tables, FORMS, struct.unpack("II", config[MASKS])):
    starts = range(0, (mask + 1) * 4 * size, 4 * size)
    print(sum(all(any(cells[at + port : at + port + 2]) for at in range(start, start + 4 * size, size)) for start in starts))
PY
}

# spread_save FILE
spread_save() {
  spread_python "$1" <<'PY'
with open(sys.argv[1], "wb") as file:
    pickle.dump([bytes(cells) for cells in tables], file)
PY
}

# spread_restore FILE IN_USE: the cells that were in use then are again, as they were; and so many buckets.
spread_restore() {
  spread_python "$@" <<'PY'
with open(sys.argv[1], "rb") as file:
    for cells, (size, _), saved in zip(tables, FORMS, pickle.load(file)):
        for at in range(0, len(cells), size):
            if is_present(saved, at, size) and not is_present(cells, at, size):
                cells[at : at + size] = saved[at : at + size]
config[MASKS] = struct.pack("II", *[int(sys.argv[2]) - 1] * 2)
PY
}

# spread_python ARGUMENT...: runs the program on stdin, with the maps.
spread_python() {
  { cat <<'PY' && cat; } | lb_pinned "$@"
import pickle

config, *tables = [values(f"/sys/fs/bpf/underpass/maps/{name}") for name in ("config", "frontends4", "frontends6")]
# In config, frontend_masks.
MASKS = slice(24, 32)
# The size of a table's cells, and where in one the port is.
FORMS = [(16, 4), (32, 16)]


# A cell ends with its entry, of which a bit says whether it is in use.
def is_present(cells, at, size):
    return cells[at + size - 1] & 1


PY
}

# spread_reach COUNT: all of so many services answer, and other ports are refused.
spread_reach() {
  lab_sockets node1/pod "$1" <<'PY'
serve("127.0.0.2", "fd01::2")
for number in range(int(sys.argv[1])):
    for service, backend in (f"10.96.{number // 256}.{number % 256}", "127.0.0.2"), (f"fd02::0.0.{number // 256}.{number % 256}", "fd01::2"):
        equal((service, reach(SOCK_DGRAM, service)), (service, backend))
        equal((service, errno_of(reach, SOCK_STREAM, service)), (service, "ECONNREFUSED"))
PY
}

@test "frontends are spread over more buckets as they become more, by one table" {
  spread_anew --max-services 4096
  lb_apply "$(spread_table 200)"
  assert_equal "$(spread_cells)" $'1024 400\n1024 400'
  spread_reach 200
  lb_apply "$(spread_table 1000)"
  assert_equal "$(spread_cells)" $'4096 2000\n4096 2000'
  spread_reach 1000
  lb_apply "$(spread_table 10)"
  assert_equal "$(spread_cells)" $'4096 20\n4096 20'
  spread_reach 10
}

@test "the same by one change after the other, while clients connect without pause, and none of them fails; what moved is changed where it is" {
  # In maps that grew before, of which but a few buckets are in use.
  spread_anew --max-services 16
  lb_apply "$(spread_table 5)"
  lab_reload node1 --max-services 4096
  lab_sockets node1/pod "$BATS_TEST_TMPDIR" >"$BATS_TEST_TMPDIR/clients" 2>&1 3>&- <<'PY' &
serve("127.0.0.2", "fd01::2")
count = 0
while not os.path.exists(sys.argv[1] + "/over"):
    for number in range(5):
        equal((reach(SOCK_DGRAM, f"10.96.0.{number}"), reach(SOCK_DGRAM, f"fd02::0.0.0.{number}")), ("127.0.0.2", "fd01::2"))
    count += 1
print("went on" if count > 5 else f"only {count}")
PY
  local client=$!
  {
    spread_table 1000 | jq -c '.services[] | {set: .}'
    spread_service 10 | jq -c '{set: (.backends[0].address = "127.0.0.3")}'
    spread_service 11 | jq -c '{set: (.clusterIps = [.clusterIps[0]])}'
    spread_service 12 | jq -c '{remove: {namespace, name}}'
  } | lab_lb node1 follow >"$BATS_TEST_TMPDIR/told"
  : >"$BATS_TEST_TMPDIR/over"
  wait "$client"
  assert_equal "$(<"$BATS_TEST_TMPDIR/clients")" 'went on'
  assert_equal "$(spread_cells)" $'4096 1998\n4096 1996'
  lab_sockets node1/pod <<'PY'
serve("127.0.0.2", "127.0.0.3", "fd01::2")
equal((reach(SOCK_DGRAM, "10.96.0.10"), reach(SOCK_DGRAM, "fd02::0.0.0.10")), ("127.0.0.3", "fd01::2"))
equal((reach(SOCK_DGRAM, "10.96.0.11"), errno_of(reach, SOCK_DGRAM, "fd02::0.0.0.11")), ("127.0.0.2", "ENETUNREACH"))
for gone in "10.96.0.12", "fd02::0.0.0.12":
    equal(errno_of(reach, SOCK_DGRAM, gone), "ENETUNREACH")
PY
  lb_apply "$(spread_table 1000)"
  spread_reach 1000
}

@test "a search ends where it did, however many Services have come and gone" {
  spread_anew --max-services 16
  spread_table 401 | jq -c '.services | range(length) as $at | {set: .[$at]}, (select($at > 5) | .[$at - 6] | {remove: {namespace, name}})' |
    lab_lb node1 follow >"$BATS_TEST_TMPDIR/told"
  assert_equal "$(jq -s 'length' "$BATS_TEST_TMPDIR/told")" 796
  # Of 16 buckets; what went last waits for the programs.
  assert_json "$(spread_full | jq -sc .)" 'all(. <= 3)' true
  lb_apply "$(spread_table 0)"
  lb_apply "$(spread_table 1)"
  assert_equal "$(spread_full)" $'0\n0'
}

@test "what a writer leaves that was killed while it spread them, programs find, and the next writer removes what they do not" {
  local left
  for left in 2048 1024; do
    spread_anew --max-services 4096
    lb_apply "$(spread_table 200)"
    spread_save "$BATS_TEST_TMPDIR/before"
    lb_apply "$(spread_table 400)"
    lb_apply "$(spread_table 200)"
    assert_equal "$(spread_cells)" $'2048 400\n2048 400'
    # Those that moved are where they were, too; and if it came to no more, that is where programs look for them.
    spread_restore "$BATS_TEST_TMPDIR/before" "$left"
    assert_json "$(spread_cells | jq -sc .)" ".[0] == $left and .[2] == $left and .[1] > 500 and .[3] > 500" true
    spread_reach 200
    assert_json "$(lab_lb node1 show)" '[.services[].clusterIps | length] | length, add' $'200\n400'
    lb_apply "$(spread_table 201)"
    assert_equal "$(spread_cells)" "$left 402"$'\n'"$left 402"
    spread_reach 201
    lb_apply "$(spread_table 1000)"
    assert_equal "$(spread_cells)" $'4096 2000\n4096 2000'
    spread_reach 1000
  done
}
