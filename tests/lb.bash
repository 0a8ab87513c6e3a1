# What the suites of the socket load balancer share: one node, on it a pod with addresses to serve on, and the program.

# lb_suite [LOAD OPTION...]: for setup_file.
lb_suite() {
  suite_needs_lab || return
  lb_needs_program || return
  lab_up 1
  lb_pod pod
  lab_balancer node1 "$@"
}

lb_needs_program() {
  local program
  program=$(lab_lb_program)
  [ -x "$program" ] || suite_skips "$program is not built: run scripts/build" || return
  # No cgroup is opened by a loader that has nothing to load.
  [[ $("$program" load --cgroup /nowhere 2>&1) != *'without its kernel side'* ]] ||
    suite_skips 'bpf-lb-load has no kernel side: run scripts/setup and scripts/build'
}

# lb_pinned [ARGUMENT...]: runs the Python program on stdin on node1, with the names of pinned.py.
lb_pinned() {
  { printf 'import sys\nfrom pinned import *\n' && cat; } |
    lab_in node1 env PYTHONPATH="$LAB_SOURCE" PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 - "$@"
}

# lb_of_another_layout: the maps say that their layout is 4711.
lb_of_another_layout() {
  # The layout is the first word of the map config.
  lb_pinned /sys/fs/bpf/underpass/maps/config <<'PY'
values(sys.argv[1])[:4] = struct.pack("I", 4711)
PY
}

# lb_pod NAME: a pod that has nothing but addresses of its own: 127.0.0.0/8, and fd01::2 to fd01::9.
lb_pod() {
  local host
  lab_sandbox node1 "$1"
  for host in 2 3 4 5 6 7 8 9; do lab_in "node1/$1" ip address add "fd01::$host/128" dev lo nodad; done
}

# lb_apply JSON: the whole table.
lb_apply() {
  lab_lb node1 apply <<<"$1" >/dev/null
}

# lb_service NAME JSON: a service of the table, as JSON, with defaults for what is left out.
lb_service() {
  jq -nc --arg name "$1" --argjson more "$2" '{namespace: "test", name: $name, port: 80} + $more'
}

# lb_services JSON...: the table with these services.
lb_services() {
  lb_apply "{\"nodeAddresses\": [\"127.9.9.9\", \"fd01::9\"], \"services\": [$(IFS=, && printf '%s' "$*")]}"
}

# lb_backends ADDRESS...: a list of backends on port 8080.
lb_backends() {
  jq -nc '[$ARGS.positional[] | {address: ., port: 8080}]' --args "$@"
}

# lb_follow [OPTION...]: follow on node1, which does what lb_tell writes, until lab_stop follow.
lb_follow() {
  rm -f "$LAB/lines"
  mkfifo "$LAB/lines"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn follow node1 sh -c 'program=$0 lines=$1 && shift && exec "$program" follow "$@" <>"$lines"' "$(lab_lb_program)" "$LAB/lines" "$@"
}

# lb_tell LINE: what follow answers.
lb_tell() {
  local told
  told=$(wc -l <"$LAB/log/follow")
  printf '%s\n' "$1" >"$LAB/lines"
  lab_until 5 lb_has_said "$((told + 1))" || fail "$(<"$LAB/log/follow")"
  tail -n 1 "$LAB/log/follow"
}

lb_has_said() { [ "$(wc -l <"$LAB/log/follow")" -ge "$1" ]; }

# lb_has_expired: whether the table has.
lb_has_expired() { lab_lb node1 stats --format prometheus | grep -qx 'underpass_lb_expired 1'; }

# lb_stat FILTER: what a jq filter finds in the counters.
lb_stat() {
  lab_lb node1 stats | jq -c "$1"
}

# lb_under_fire CHANGES KILLS: clients connect while services change and the loader is killed (see lab/fire.py).
lb_under_fire() {
  expect 0 lab_served node1/pod timeout "${LAB_TIMEOUT:-240}" /usr/bin/python3 "$LAB_SOURCE/fire.py" \
    "$(lab_lb_program)" /sys/fs/bpf/underpass "$1" "$2"
  # shellcheck disable=SC2154 # set by expect
  assert_json "$output" '[.failed, .changes, .kills]' "[0,$1,$2]"
  # Four clients that are hardly ever there would show nothing.
  assert_json "$output" '.connections >= .changes / 10' true
}

# lb_same SOCKETS SEED COUNT [SECONDS]: random sequences of socket calls, with places for so many sockets (see lab/same).
lb_same() {
  local sockets=$1
  shift
  lab_balancer node1 --max-sockets "$sockets"
  run --separate-stderr lab_in node1 /usr/bin/python3 -B "$LAB_SOURCE/same/same.py" "$(lab_lb_program)" \
    "$(<"$LAB/host/node1/cgroup")" "$LAB_REPO/tests/fixtures/same" "$@"
  lab_lb node1 unload
  printf '# seeds %s and on: %s\n' "$1" "${output##*$'\n'}" >&3
  [ "$status" -eq 0 ] || fail "$output" "$stderr"
  # What differs once is looked at again, since a packet may come late; with many of these, nothing would be shown.
  assert_json "${lines[-1]}" '[.late < .played / 20, .failed]' '[true,0]'
}
