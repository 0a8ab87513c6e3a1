# What the suites about the agent's care share. A suite says `load care` after `load helpers`.

agent_start() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_spawn agent node1 env PATH="$(lab_libexec):$PATH" bash -c 'exec keep-pods < <(exec sleep infinity)'
  lab_until 10 metric 'attachments{state="current"}' '[1-9][0-9]*'
}

# metric NAME VALUE: whether a metric has a value (a regular expression).
# shellcheck disable=SC2001 # a replacement that repeats what it replaces
metric() { lab_in node1 grep -Eqx "underpass_$(sed 's/[{}]/\\&/g' <<<"$1") $2" /run/underpass/keep-pods.prom 2>/dev/null; }

# link POD: name of the node's link to a pod.
link() { lab_in node1 cat "/run/underpass/attachments/$(container_of "$1")@eth0.json" | jq -r .veth.host; }

# everything POD: the node's configuration and a pod's, to compare. A link that is made anew has another index.
everything() {
  { lab_snapshot node1 && lab_snapshot "node1/$1"; } | sed '/^== files/,/^==/d; s/^[0-9]*: //; s/@if[0-9]*:/:/' | sort
}

# is_as_before: whether it was so when the look began, of which "now" is the time.
is_as_before() {
  now=${EPOCHREALTIME/./}
  [ "$(everything "$POD")" = "$before" ]
}

# altered WHERE COMMAND: by somebody else. All is right again within a second; a machine that was busy with something else gets
# another two chances. The agent is stopped until the alteration has been seen: one that is not seen would be right at once.
altered() {
  local after begin now took
  for _ in 1 2 3; do
    after=
    lab_pause agent
    lab_in "$1" sh -c "$2" 2>"$LAB/altered" && after=$(everything "$POD")
    begin=${EPOCHREALTIME/./}
    lab_resume agent
    [ -n "$after" ] || fail "$2" "$(cat "$LAB/altered")" || return
    [ "$after" != "$before" ] || fail "alters nothing that is compared: $2" || return
    lab_until 5 is_as_before || fail "after: $2" "$(diff <(printf '%s\n' "$before") <(everything "$POD"))" "$(tail -3 "$LAB/log/agent")" || return
    took=$(((now - begin) / 1000))
    printf '%6d ms after %s\n' $took "$2" >&3
    [ $took -gt 1000 ] || return 0
  done
  fail "took $took ms: $2"
}

# The kernel tells nobody of these: the agent finds them when it looks at all of a pod, which it does slowly.
SILENT='accept_ra|accept_ra_defrtr|use_oif_addrs_only'

# altered_each POD IFNAME: everything that the ADD of an interface made, by what its document says.
altered_each() {
  local where change count=0
  POD=$1 before=$(everything "$1")
  lab_in node1 cat "/run/underpass/attachments/$(container_of "$1")@$2.json" |
    jq -re --arg pod "$1" -f "$LAB_SOURCE/alterations.jq" | grep -Ev "[.]($SILENT)=" >"$BATS_TEST_TMPDIR/alterations"
  while IFS='|' read -r where change <&4; do
    altered "$where" "$change" || return
    # What is put right ten times, each time within two seconds, counts as contested.
    ((++count % 8)) || sleep 2.1
  done 4<"$BATS_TEST_TMPDIR/alterations"
}
