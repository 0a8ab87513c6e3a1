# scripts/install on a node of the lab: the plugin put there, exchanged while pods start, and taken away.

load helpers

setup_file() {
  suite_lab || return 0
  lab_pod node2 server plain46
  lab_serve node2/server 8080
  lab_service web 80:8080 node2/server
}

# Each test has the node as it was.
teardown() {
  [ -z "${SUITE_SKIP-}" ] || return 0
  [ ! -e "$LAB/pid/keep" ] || lab_stop keep
  lab_in node1 rm -rf /opt/cni /opt/bare /opt/image /etc/iproute2/rt_protos.d/underpass.conf /etc/NetworkManager /etc/systemd/networkd.conf.d
}

# install_on_node1 [FLAG...]
install_on_node1() {
  lab_in node1 env UNDERPASS_LIBEXEC="${OTHER:-$(lab_libexec)}" "$LAB_REPO/scripts/install" "$@"
}

# installed COMMAND POD [NETNS]: a CNI call by the plugin that was installed.
installed() {
  LAB_CNI_ARGS='' lab_in node1 env CNI_COMMAND="$1" CNI_CONTAINERID="$2" CNI_NETNS="${3-/run/netns/$2}" CNI_IFNAME=eth0 \
    CNI_PATH=/opt/cni/bin /opt/cni/bin/coordinator
}

# another_version: tools with other bytes that do the same.
another_version() {
  OTHER=$BATS_TEST_TMPDIR/other
  mkdir "$OTHER"
  find "$(lab_libexec)" -maxdepth 1 -type f -perm -u+x -exec cp -t "$OTHER" {} +
  printf '\n' >>"$OTHER/cni-result"
}

@test "an installed plugin leads a pod to a Service" {
  expect 0 install_on_node1
  lab_pod node1 first plain46
  expect 0 installed ADD first < <(lab_chained node1 first underlay46)
  assert_answer node1/first "$(lab_cluster_ip web 4)" 80 server ''
  expect 0 installed DEL first < <(lab_chained node1 first underlay46)
}

@test "installed with a node agent, the plugin takes no pod from the node's start until that has said the cluster's settings" {
  local call
  lab_pod node1 early plain46
  expect 0 install_on_node1 --with-agent
  # What was installed stays so for the version before, and whatever is chosen by hand.
  another_version
  expect 0 install_on_node1 --with-agent
  expect 0 install_on_node1 --rollback
  for call in ADD STATUS; do
    expect 1 installed $call early < <(lab_chained node1 early underlay46 | jq -c '.cniVersion = "1.1.0"')
    assert_json "$output" '[.code, .msg]' "[$([ $call = ADD ] && echo 11 || echo 50),\"the cluster's settings are not known yet\"]"
  done
  lab_in node1 sh -c 'mkdir -p /run/underpass && printf "cannot list Nodes\n" >/run/underpass/cluster.pending'
  expect 1 installed ADD early < <(lab_chained node1 early underlay46)
  assert_contains "$output" 'the node agent says: cannot list Nodes'
  # One that is to be left alone is, whatever the cluster says.
  expect 0 installed ADD early < <(lab_chained node1 early underlay46 | jq -c '.mode = "disable"')
  expect 0 installed DEL early < <(lab_chained node1 early underlay46)
  lab_in node1 sh -c 'rm /run/underpass/cluster.pending && cat >/run/underpass/cluster.json' <<<'{"settings": {"podMACPrefix": "0a:1b"}, "cidrs": {}}'
  expect 0 installed STATUS early < <(lab_chained node1 early underlay46 | jq -c '.cniVersion = "1.1.0"')
  expect 0 installed ADD early < <(lab_chained node1 early underlay46)
  assert_json "$(lab_in node1/early ip -json link show eth0)" '.[0].address[:6]' 0a:1b:
  # What is there is deleted and looked at in any case.
  lab_in node1 rm /run/underpass/cluster.json
  expect 0 installed DEL early < <(lab_chained node1 early underlay46)
  # By hand there is no agent to wait for.
  OTHER='' expect 0 install_on_node1
  expect 0 installed ADD early < <(lab_chained node1 early underlay46)
  expect 0 installed DEL early < <(lab_chained node1 early underlay46)
  expect 0 install_on_node1 --with-agent
  expect 0 install_on_node1 --uninstall
  assert_equal "$(lab_in node1 ls -A /opt/cni/bin)" ''
}

@test "installed twice, nothing changes" {
  expect 0 install_on_node1
  # As where the runtime looks elsewhere.
  assert_contains "$stderr" 'no other plugin is in /opt/cni/bin'
  lab_in node1 touch /opt/cni/bin/macvlan
  local before
  before=$(lab_in node1 find /opt/cni /etc -xdev -newermt '1 hour ago' -printf '%p %i\n' | sort)
  expect 0 install_on_node1
  [[ $stderr != *'no other plugin'* ]] || fail "$stderr"
  assert_same "$before" "$(lab_in node1 find /opt/cni /etc -xdev -newermt '1 hour ago' -printf '%p %i\n' | sort)"
}

@test "pods start while versions are exchanged, and each call has one version's tools" {
  another_version
  install_on_node1
  local n
  ( while [ ! -e "$BATS_TEST_TMPDIR/stop" ]; do
      OTHER=$OTHER install_on_node1 && OTHER='' install_on_node1
    done ) >/dev/null 2>"$BATS_TEST_TMPDIR/exchanges" 3>&- &
  local exchanger=$!
  for n in 1 2 3 4 5 6 7 8 9 10; do
    lab_pod node1 "many$n" plain46
    expect 0 installed ADD "many$n" < <(lab_chained node1 "many$n" underlay46)
    expect 0 installed DEL "many$n" < <(lab_chained node1 "many$n" underlay46)
  done
  : >"$BATS_TEST_TMPDIR/stop"
  wait "$exchanger"
  [ "$(grep -c 'is in /opt/cni/bin' "$BATS_TEST_TMPDIR/exchanges")" -ge 2 ] || fail 'no exchange took place'
}

@test "an installer that is killed while it copies leaves the version before, and the next one finishes" {
  install_on_node1
  local before
  before=$(lab_in node1 readlink /opt/cni/bin/underpass.d)
  another_version
  # sync never returns: killed then, it has copied and not chosen.
  mkdir "$BATS_TEST_TMPDIR/bin"
  # shellcheck disable=SC2016 # expanded by that shell
  printf '#!/bin/sh\nkill -KILL "$PPID"\n' >"$BATS_TEST_TMPDIR/bin/sync"
  chmod +x "$BATS_TEST_TMPDIR/bin/sync"
  expect 137 lab_in node1 env UNDERPASS_LIBEXEC="$OTHER" PATH="$BATS_TEST_TMPDIR/bin:$PATH" "$LAB_REPO/scripts/install"
  assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" "$before"
  lab_pod node1 between plain46
  expect 0 installed ADD between < <(lab_chained node1 between underlay46)
  install_on_node1
  [ "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" != "$before" ] || fail 'the next one did not finish'
  expect 0 installed DEL between < <(lab_chained node1 between underlay46)
  assert_equal "$(lab_in node1 sh -c 'ls -A /opt/cni/bin/.underpass | wc -l')" 5
}

@test "what is written to the disk at once is what was copied, and no other file of the node's" {
  local wanted
  program "$BATS_TEST_TMPDIR/sync" <<<"printf '%s\\n' \"\$@\" >'$BATS_TEST_TMPDIR/synced'; exec $(command -v sync) \"\$@\""
  PATH=$BATS_TEST_TMPDIR:$PATH expect 0 install_on_node1
  wanted=$(lab_in node1 sh -c 'cd /opt/cni/bin/underpass.d/ && printf "%s\n" *' | wc -l)
  # The directory of the version, and the one that has it.
  assert_equal "$(wc -l <"$BATS_TEST_TMPDIR/synced") $(grep -c '^/opt/cni/bin/.underpass' "$BATS_TEST_TMPDIR/synced")" "$((wanted + 2)) $((wanted + 2))"
}

@test "the version before is kept, and comes back with --rollback" {
  install_on_node1
  local first
  first=$(lab_in node1 readlink /opt/cni/bin/underpass.d)
  expect 1 install_on_node1 --rollback
  assert_contains "$stderr" 'no version before'
  another_version
  install_on_node1
  OTHER='' expect 0 install_on_node1 --rollback
  assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" "$first"
}

# foreign: what the other vendor's plugin is, or is not.
foreign() { assert_equal "$(lab_in node1 cat /opt/cni/bin/coordinator)" theirs; }

@test "another vendor's coordinator is kept, and comes back with --rollback and with --uninstall" {
  lab_in node1 mkdir -p /opt/cni/bin
  printf theirs | lab_in node1 tee /opt/cni/bin/coordinator >/dev/null
  expect 0 install_on_node1
  assert_contains "$stderr" 'kept as /opt/cni/bin/coordinator.before'
  expect 0 install_on_node1
  expect 0 install_on_node1 --rollback
  foreign
  install_on_node1
  another_version
  install_on_node1
  OTHER='' expect 0 install_on_node1 --rollback
  assert_equal "$(lab_in node1 cat /opt/cni/bin/coordinator.before)" theirs
  expect 0 install_on_node1 --uninstall
  foreign
  assert_equal "$(lab_in node1 ls -A /opt/cni/bin)" coordinator
}

# put_theirs file|link NAME: another vendor's plugin, as its installer puts it there: what has the name is moved out of its way.
put_theirs() {
  lab_in node1 mkdir -p /opt/cni/bin
  lab_in node1 rm -f /opt/cni/bin/coordinator
  case $1 in
    file) printf %s "$2" | lab_in node1 tee /opt/cni/bin/coordinator >/dev/null ;;
    link) lab_in node1 ln -s "/opt/theirs/$2" /opt/cni/bin/coordinator ;;
  esac
}

# only_theirs file|link NAME: that plugin is there, and nothing else is.
only_theirs() {
  case $1 in
    file) assert_equal "$(lab_in node1 cat /opt/cni/bin/coordinator)" "$2" ;;
    link) assert_equal "$(lab_in node1 readlink /opt/cni/bin/coordinator)" "/opt/theirs/$2" ;;
  esac || return
  assert_equal "$(lab_in node1 ls -A /opt/cni/bin)" coordinator
}

@test "a CNI directory that the plugin's first line or a shell would not find is refused" {
  local directory
  for directory in '' opt/cni '/opt/cni/a b' '/opt/cni/a&b' "/opt/cni/a'b"; do
    expect 1 install_on_node1 --cni-bin "$directory"
    assert_contains "$stderr" "$directory: the CNI directory is to be a path from / of letters, digits and"
  done
  expect 1 lab_in node1 test -e /opt/cni
}

@test "another vendor's coordinator that is a link is kept and comes back as well" {
  put_theirs link older
  expect 0 install_on_node1
  assert_contains "$stderr" 'kept as /opt/cni/bin/coordinator.before'
  expect 0 install_on_node1 --uninstall
  only_theirs link older
}

@test "another vendor's coordinator that has taken the place of ours stays, when ours is taken away or goes back" {
  local kind action
  for kind in file link; do
    for action in --uninstall --rollback; do
      put_theirs $kind older
      install_on_node1
      put_theirs $kind newer
      expect 0 install_on_node1 $action
      only_theirs $kind newer
    done
    lab_in node1 rm -r /opt/cni
    install_on_node1
    put_theirs $kind newer
    # There is nothing to go back to.
    expect 1 install_on_node1 --rollback
    expect 0 install_on_node1 --uninstall
    only_theirs $kind newer
  done
}

@test "a plugin that was put there by hand is taken away" {
  by_hand
  expect 0 install_on_node1 --uninstall
  assert_equal "$(lab_in node1 ls -A /opt/cni/bin)" ''
}

@test "while another vendor's coordinator gives way there is always one" {
  local name
  mkdir "$BATS_TEST_TMPDIR/watched"
  for name in mv ln rm; do
    # Whatever changes files looks first.
    printf '#!/bin/sh\n[ -e /opt/cni/bin/coordinator ] || echo "none before %s $*" >>"%s"\nexec %s "$@"\n' $name "$BATS_TEST_TMPDIR/gaps" \
      "$(command -v $name)" >"$BATS_TEST_TMPDIR/watched/$name"
  done
  chmod +x "$BATS_TEST_TMPDIR/watched"/*
  lab_in node1 mkdir -p /opt/cni/bin
  printf theirs | lab_in node1 tee /opt/cni/bin/coordinator >/dev/null
  PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1
  PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1 --rollback
  no_gaps
  foreign
}

@test "what somebody has written over is put right by the next installation" {
  install_on_node1
  local before
  before=$(lab_in node1 sh -c 'cd /opt/cni/bin/underpass.d && sha256sum *')
  # As another installer's cp does it, through the link.
  printf theirs | lab_in node1 tee /opt/cni/bin/coordinator >/dev/null
  lab_in node1 truncate -s 100 /opt/cni/bin/underpass.d/set-routes
  expect 0 install_on_node1
  assert_contains "$stderr" 'was not as it was put there, and is again'
  assert_same "$before" "$(lab_in node1 sh -c 'cd /opt/cni/bin/underpass.d && sha256sum *')"
  expect 0 install_on_node1
  [[ $stderr != *'was not as it was'* ]] || fail "$stderr"
}

# tools: what is put beside the plugin.
tools() { sed -n "s|^TOOLS='\(.*\)'|\1|p" "$LAB_REPO/scripts/install"; }

# by_hand: the plugin and its tools as a person puts them there.
by_hand() {
  lab_in node1 mkdir -p /opt/cni/bin/underpass.d
  # shellcheck disable=SC2046 # a list
  lab_in node1 cp -t /opt/cni/bin/underpass.d $(tools | xargs printf "$(lab_libexec)/%s ")
  lab_in node1 cp "$LAB_REPO/scripts/coordinator" /opt/cni/bin
}

@test "what was put there by hand is the version before" {
  by_hand
  install_on_node1
  expect 0 install_on_node1 --rollback
  assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" .underpass/by-hand
  lab_pod node1 hand plain46
  expect 0 installed ADD hand < <(lab_chained node1 hand underlay46)
  assert_answer node1/hand "$(lab_cluster_ip web 4)" 80 server ''
  expect 0 installed DEL hand < <(lab_chained node1 hand underlay46)
}

@test "while a plugin that was put there by hand gives way each call finds a plugin with its tools, also where the installer is killed" {
  local name points point done=$BATS_TEST_TMPDIR/done
  mkdir "$BATS_TEST_TMPDIR/watched"
  program "$BATS_TEST_TMPDIR/call" <<END
printf {} | env -u UNDERPASS_LIBEXEC CNI_COMMAND=VERSION /opt/cni/bin/coordinator >/dev/null || printf 'none %s\n' "\$*" >>"$BATS_TEST_TMPDIR/gaps"
END
  for name in mv ln rm cp chmod sleep; do
    # Whatever changes files calls first, and is the last if it has the number KILLED.
    program "$BATS_TEST_TMPDIR/watched/$name" <<END
"$BATS_TEST_TMPDIR/call" "before $name \$*"
printf '%s\n' "$name \$*" >>"$done"
[ "\$(wc -l <"$done")" != "\${KILLED-}" ] || { kill -KILL "\$PPID"; exit; }
exec $(command -v $name) "\$@"
END
  done
  by_hand
  PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1
  no_gaps
  points=$(grep -nE '^sleep|(bridge|by-hand|previous|underpass.d|bin/coordinator)(.new)?$' "$done" | cut -d: -f1)
  [ "$(wc -w <<<"$points")" -ge 8 ] || fail "$points" "$(cat "$done")"
  for point in $points; do
    lab_in node1 rm -r /opt/cni
    by_hand
    : >"$done"
    KILLED=$point PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 137 install_on_node1
    lab_in node1 "$BATS_TEST_TMPDIR/call" "when killed at $point"
    if lab_in node1 test -L /opt/cni/bin/.underpass/previous; then
      PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1 --rollback
      assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" .underpass/by-hand
    fi
    PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1
    PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1 --rollback
    assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" .underpass/by-hand
    assert_same "$(lab_in node1 cat /opt/cni/bin/coordinator)" "$(<"$LAB_REPO/scripts/coordinator")"
  done
  no_gaps
}

@test "two installers at once: the second waits for the first, and what was put there by hand is the version before" {
  mkdir "$BATS_TEST_TMPDIR/watched"
  # While calls settle, the hand-made plugin half away, a second installer goes as far as it can.
  program "$BATS_TEST_TMPDIR/watched/sleep" <<END
[ -e "$BATS_TEST_TMPDIR/second" ] || {
  "$LAB_REPO/scripts/install" >"$BATS_TEST_TMPDIR/second" 2>&1 9<&- &
  until grep -qE 'waiting for another|is in' "$BATS_TEST_TMPDIR/second"; do $(command -v sleep) 0.1; done
}
exec $(command -v sleep) "\$@"
END
  by_hand
  PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1
  lab_until 10 grep -q 'is in /opt/cni/bin' "$BATS_TEST_TMPDIR/second" || fail "$(cat "$BATS_TEST_TMPDIR/second")"
  expect 0 install_on_node1 --rollback
  assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" .underpass/by-hand
  lab_in node1 env CNI_COMMAND=VERSION /opt/cni/bin/coordinator <<<'{}'
  assert_equal "$(grep -c 'waiting for another' "$BATS_TEST_TMPDIR/second")" 1
}

# killed_while_it_bridges [FLAG...]: an installer that is killed when the hand-made plugin has given way, and its tools are to.
killed_while_it_bridges() {
  mkdir "$BATS_TEST_TMPDIR/kills"
  program "$BATS_TEST_TMPDIR/kills/mv" <<END
case \$* in *.underpass/by-hand) kill -KILL "\$PPID" ;; *) exec $(command -v mv) "\$@" ;; esac
END
  PATH=$BATS_TEST_TMPDIR/kills:$PATH expect 137 install_on_node1 "$@"
}

@test "--rollback after an installer that was killed removes no version with which a call has begun" {
  by_hand
  killed_while_it_bridges
  # A call that has chosen its tools and waits for its lock.
  mkdir "$BATS_TEST_TMPDIR/state" "$BATS_TEST_TMPDIR/watched"
  mkfifo "$BATS_TEST_TMPDIR/state/lock"
  lab_spawn call node1 sh -c "printf {} | env CNI_COMMAND=VERSION UNDERPASS_STATE='$BATS_TEST_TMPDIR/state' /opt/cni/bin/coordinator"
  # It goes on while calls settle, or when there is nothing to wait for any more.
  program "$BATS_TEST_TMPDIR/watched/sleep" <<END
exec 8<>"$BATS_TEST_TMPDIR/state/lock"
exec $(command -v sleep) "\$@"
END
  PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1 --rollback
  exec 8<>"$BATS_TEST_TMPDIR/state/lock"
  lab_until 10 test -s "$LAB/log/call"
  exec 8>&-
  assert_contains "$(cat "$LAB/log/call")" supportedVersions
}

@test "an installer in a container that takes the plugin away cleans the node, also when one was killed while a hand-made plugin gave way" {
  lab_in node1 mkdir -p /opt/bare/bin
  lab_in node1 touch /opt/bare/bin/sh
  by_hand
  lab_in node1 mkdir -p /opt/bare/opt
  lab_pod node1 swept plain46
  expect 0 installed ADD swept < <(lab_chained node1 swept underlay46)
  [ -n "$(lab_in node1 ip rule show pref 85)" ] || fail 'no rule'
  lab_in node1 mv /opt/cni /opt/bare/opt
  # The pod goes, and nobody says so: what is left is the node's.
  lab_in node1/swept ip link delete veth0
  lab_in node1 sh -c 'rm /run/underpass/attachments/swept*'
  killed_while_it_bridges --root /opt/bare
  expect 0 install_on_node1 --root /opt/bare --uninstall
  [[ $stderr != *'could not be cleaned'* ]] || fail "$stderr"
  assert_equal "$(lab_in node1 ip rule show pref 85)" ''
}

# program PATH <TEXT: a shell's program.
program() {
  { printf '#!/bin/sh\n' && cat; } >"$1"
  chmod +x "$1"
}

no_gaps() { [ ! -e "$BATS_TEST_TMPDIR/gaps" ] || fail "$(cat "$BATS_TEST_TMPDIR/gaps")"; }

@test "where /etc cannot be written, it is said, and the plugin is installed" {
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" unshare --mount sh -c '
    mkdir -p /etc/NetworkManager && mount --bind /etc /etc && mount -o remount,bind,ro /etc && exec "$0"' "$LAB_REPO/scripts/install"
  assert_contains "$stderr" 'could not write /etc/NetworkManager/conf.d/underpass.conf'
  lab_in node1 test -x /opt/cni/bin/coordinator
  # A full one gets no half of a file.
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" unshare --mount sh -c '
    mount -t tmpfs -o size=64k none /etc/NetworkManager && ! cat /dev/zero 2>/dev/null >/etc/NetworkManager/zeros && "$0" &&
    find /etc/NetworkManager -name "underpass*"' "$LAB_REPO/scripts/install"
  assert_contains "$stderr" 'could not write /etc/NetworkManager/conf.d/underpass.conf'
  assert_equal "$output" ''
}

@test "an installer that is killed before any change that it makes leaves nothing of ours once all is taken away" {
  local name action point before done=$BATS_TEST_TMPDIR/done
  small_tools
  mkdir "$BATS_TEST_TMPDIR/watched"
  program "$BATS_TEST_TMPDIR/watched/sleep" <<<:
  for name in mkdir mv ln rm rmdir; do
    program "$BATS_TEST_TMPDIR/watched/$name" <<END
printf '%s\n' "$name \$*" >>"$done"
[ "\$(wc -l <"$done")" != "\${KILLED-}" ] || { kill -KILL "\$PPID"; exit; }
exec $(command -v $name) "\$@"
END
  done
  lab_in node1 mkdir -p /etc/iproute2 /etc/NetworkManager /etc/systemd/network /opt/cni/bin
  # With another vendor's plugin nothing of ours is needed any more, and nothing is made whole before it is taken away.
  lab_in node1 tee /opt/cni/bin/coordinator <<<'another vendor'
  before=$(everything)
  for action in '' --uninstall; do
    for ((point = 1; ; point++)); do
      [ -z "$action" ] || PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1
      : >"$done"
      # shellcheck disable=SC2086 # none, or one
      KILLED=$point PATH=$BATS_TEST_TMPDIR/watched:$PATH run install_on_node1 $action
      [ "$(wc -l <"$done")" -ge $point ] || break
      assert_equal "$status" 137
      PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 0 install_on_node1 --uninstall
      assert_same "$before" "$(everything)" || fail "killed before: $(sed -n ${point}p "$done")"
    done
    [ $point -gt 5 ] || fail "killed before $point changes alone by install $action"
  done
}

# everything: what an installer could have made, but for directories in /etc, which are nobody's while they are empty.
everything() {
  lab_in node1 find /opt/cni /etc/iproute2 /etc/NetworkManager /etc/systemd ! '(' -path '/etc/*' -type d ')' -printf '%p %l\n' | sort
}

# small_tools: programs that do nothing in place of the tools, and the one that the installer needs.
small_tools() {
  local tool
  OTHER=$BATS_TEST_TMPDIR/small
  mkdir "$OTHER"
  for tool in $(tools); do program "$OTHER/$tool" <<<:; done
  ln -s "$(lab_libexec)/lifeline" "$OTHER"
}

@test "where the version is there already, a CNI directory on a file system that is full or read-only is no reason to fail" {
  small_tools
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 0 lab_in node1 env UNDERPASS_LIBEXEC="$OTHER" unshare --mount sh -c '
    mkdir -p /opt/cni && mount -t tmpfs -o size=256k none /opt/cni && "$0" &&
    ! cat /dev/zero 2>/dev/null >/opt/cni/zeros && "$0" && mount -o remount,ro /opt/cni && exec "$0"' "$LAB_REPO/scripts/install"
  assert_equal "$(grep -c 'version .* is in /opt/cni/bin' <<<"$stderr")" 3
}

@test "iproute2 says our name, and NetworkManager and networkd are told where they are" {
  lab_in node1 mkdir -p /etc/NetworkManager /etc/systemd/network
  install_on_node1
  lab_in node1 ip route add 198.51.100.0/24 dev eth0 proto 85
  assert_contains "$(lab_in node1 ip route show 198.51.100.0/24)" 'proto underpass'
  lab_in node1 ip route del 198.51.100.0/24 dev eth0 proto 85
  assert_contains "$(lab_in node1 cat /etc/NetworkManager/conf.d/underpass.conf)" 'managed=0'
  assert_contains "$(lab_in node1 cat /etc/systemd/networkd.conf.d/underpass.conf)" 'ManageForeignRoutingPolicyRules=no'
}

@test "a node without them gets none of their files" {
  lab_in node1 mkdir -p /run/bare/bin
  lab_in node1 touch /run/bare/bin/sh
  install_on_node1 --root /run/bare
  assert_equal "$(lab_in node1 find /run/bare -name '*.conf')" ''
  [ -n "$(lab_in node1 find /run/bare/opt/cni/bin -name coordinator)" ] || fail 'no plugin'
}

# bare COMMAND POD: a CNI call on a node that has no shell and no other programs, as a runtime there makes it.
bare() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 env CNI_COMMAND="$1" CNI_CONTAINERID="$2" CNI_NETNS="/run/netns/$2" CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
    unshare --mount sh -c '
      for directory in proc sys run; do
        mkdir -p "/opt/bare/$directory"
        mount --rbind "/$directory" "/opt/bare/$directory"
      done
      exec chroot /opt/bare /opt/cni/bin/coordinator'
}

@test "on a node without /bin/sh the plugin brings its shell: ADD, CHECK, DEL and GC work, and it is taken away again" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  expect 0 install_on_node1 --root /opt/bare
  assert_equal "$(lab_in node1 find /opt/bare -name 'bin' ! -path '*/cni/*')" ''
  lab_pod node1 talos plain46
  expect 0 bare ADD talos < <(lab_chained node1 talos underlay46)
  assert_json "$output" '.interfaces | length' 3
  assert_answer node1/talos "$(lab_cluster_ip web 4)" 80 server ''
  assert_answer node1/talos "$(lab_cluster_ip web 6)" 80 server ''
  expect 0 bare CHECK talos < <(lab_chained node1 talos underlay46)
  lab_in node1/talos ip route delete 10.233.64.0/18
  expect 1 bare CHECK talos < <(lab_chained node1 talos underlay46)
  expect 0 bare DEL talos < <(lab_chained node1 talos underlay46)
  expect 0 bare ADD talos < <(lab_chained node1 talos underlay46)
  [ -n "$(lab_in node1 ip rule show pref 85)" ] || fail 'no rule'
  expect 0 bare GC talos <<<'{"cniVersion": "1.1.0", "name": "underlay46", "type": "coordinator", "cni.dev/valid-attachments": []}'
  assert_equal "$(lab_in node1 ip rule show pref 85)" ''
  expect 0 install_on_node1 --root /opt/bare --uninstall
  assert_equal "$(lab_in node1 ls -A /opt/bare/opt/cni/bin)" ''
}

@test "on a node without /bin/sh, too, a plugin that was put there by hand gives way to one that has its tools" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  expect 0 install_on_node1 --root /opt/bare
  lab_in node1 sh -c 'cd /opt/bare/opt/cni/bin && cp -rL underpass.d plain && rm underpass.d coordinator &&
    mv plain underpass.d && cp underpass.d/coordinator . && rm -r .underpass'
  mkdir "$BATS_TEST_TMPDIR/bin"
  # shellcheck disable=SC2016 # expanded by that shell
  program "$BATS_TEST_TMPDIR/bin/sleep" <<<'kill -KILL "$PPID"'
  PATH=$BATS_TEST_TMPDIR/bin:$PATH expect 137 install_on_node1 --root /opt/bare
  lab_in node1 mv /opt/bare/opt/cni/bin/underpass.d /opt/bare/away
  lab_pod node1 bridged plain46
  expect 0 bare ADD bridged < <(lab_chained node1 bridged underlay46)
  lab_in node1 mv /opt/bare/away /opt/bare/opt/cni/bin/underpass.d
  expect 0 install_on_node1 --root /opt/bare
  expect 0 bare DEL bridged < <(lab_chained node1 bridged underlay46)
}

# image_install: a shell's program that runs the image's install with further arguments, as the chart does it.
image_install() {
  cat <<'END'
[ -n "${INSIDE-}" ] || exec env INSIDE=1 unshare --mount sh "$0" "$@"
for directory in proc dev; do
  mkdir -p "/opt/image/$directory"
  mount --rbind "/$directory" "/opt/image/$directory"
done
for directory in opt/cni/bin etc; do
  mkdir -p "/opt/image/host/$directory" "/opt/bare/$directory"
  mount --bind "/opt/bare/$directory" "/opt/image/host/$directory"
done
exec env -i PATH=/usr/local/bin:/bin "$(command -v chroot)" /opt/image install --root /host --cni-bin /opt/cni/bin "$@"
END
}

@test "installed from the image as the chart does it, which sees no /bin/sh of the node's, the plugin has its shell too" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  lab_in node1 "$LAB_REPO/scripts/image" --root /opt/image
  image_install >"$BATS_TEST_TMPDIR/command"
  expect 0 lab_in node1 sh "$BATS_TEST_TMPDIR/command"
  [[ $stderr != *'not found'* ]] || fail "$stderr"
  lab_pod node1 bottle plain46
  expect 0 bare ADD bottle < <(lab_chained node1 bottle underlay46)
  assert_answer node1/bottle "$(lab_cluster_ip web 4)" 80 server ''
  expect 0 bare DEL bottle < <(lab_chained node1 bottle underlay46)
}

# spiderpool_starts NAME: its agent puts its plugin there, as it does whenever it starts (postStart in its chart's daemonset.yaml): what it
# finds there, also through a link, is moved away, and its own is copied.
spiderpool_starts() {
  printf %s "$1" >"$BATS_TEST_TMPDIR/theirs"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 sh -c 'mkdir -p "$1" && cd "$1" && rm -f coordinator.old && { [ ! -f coordinator ] || mv coordinator coordinator.old; } &&
    cp "$0" coordinator && rm -f coordinator.old' "$BATS_TEST_TMPDIR/theirs" "${BIN:-/opt/cni/bin}"
}

# keeps COMMAND...: it keeps our plugin in its place from now on.
keeps() { lab_spawn keep node1 "$@" --keep; }

# comes_back: ours is in its place again, and theirs, NAME, is kept.
comes_back() {
  lab_until 15 lab_in node1 test -L "${BIN:-/opt/cni/bin}/coordinator" || fail "$(<"$LAB/log/keep")"
  assert_equal "$(lab_in node1 cat "${BIN:-/opt/cni/bin}/coordinator.before")" "$1"
}

@test "whenever Spiderpool's agent has put its plugin in place of ours, --keep gives ours its place back, keeps theirs, and says so once" {
  local name
  spiderpool_starts older
  install_on_node1
  keeps env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/install"
  for name in newer newest; do
    spiderpool_starts $name
    comes_back $name
  done
  lab_pod node1 kept plain46
  expect 0 installed ADD kept < <(lab_chained node1 kept underlay46)
  assert_answer node1/kept "$(lab_cluster_ip web 4)" 80 server ''
  expect 0 installed DEL kept < <(lab_chained node1 kept underlay46)
  assert_equal "$(grep -c 'in place of ours' "$LAB/log/keep")" 2
  expect 0 install_on_node1 --uninstall
  only_theirs file newest
}

@test "an older --keep leaves the version alone, and it puts nothing back once ours was taken away, even if it was waiting to" {
  local version
  spiderpool_starts older
  install_on_node1
  keeps env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/install"
  another_version
  install_on_node1
  version=$(lab_in node1 readlink /opt/cni/bin/underpass.d)
  spiderpool_starts newer
  comes_back newer
  assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" "$version"
  # While calls settle, theirs is there again, and our tools are there still.
  mkdir "$BATS_TEST_TMPDIR/watched"
  program "$BATS_TEST_TMPDIR/watched/sleep" <<END
n=0
until grep -q 'waiting for another' "$LAB/log/keep" || [ \$n = 200 ]; do n=\$((n + 1)) && $(command -v sleep) 0.1; done
END
  PATH=$BATS_TEST_TMPDIR/watched:$PATH OTHER='' expect 0 install_on_node1 --uninstall
  assert_contains "$(<"$LAB/log/keep")" 'waiting for another installer'
  looks_again
  only_theirs file newer
  assert_equal "$(grep -c 'in place of ours' "$LAB/log/keep")" 1
}

# looks_again: returns when --keep has looked since.
looks_again() {
  lab_until 10 waits_anew none
  lab_until 15 waits_anew "$(keeper_waits)"
}

# waits_anew PID: it waits for its next turn, and not with that process.
waits_anew() {
  local now
  now=$(keeper_waits) && [ "$now" != "$1" ]
}

keeper_waits() { pgrep --parent "$(<"$LAB/pid/keep")" --exact sleep; }

@test "--keep puts a plugin that went back and says so, and ends as soon as it is told to" {
  local start
  install_on_node1
  keeps env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/install"
  lab_in node1 rm /opt/cni/bin/coordinator
  lab_until 15 lab_in node1 test -x /opt/cni/bin/coordinator
  start=${EPOCHREALTIME/./}
  lab_stop keep
  [ $((${EPOCHREALTIME/./} - start)) -lt 3000000 ] || fail 'it took its time'
  assert_equal "$(<"$LAB/log/keep")" 'install: ours had been removed, and is in /opt/cni/bin again'
}

@test "--keep puts the plugin back with its tools where somebody removed all that the CNI directory shows, also in place of another vendor's" {
  local name before
  install_on_node1
  before=$(lab_in node1 readlink /opt/cni/bin/underpass.d)
  keeps env UNDERPASS_LIBEXEC="$(lab_libexec)" "$LAB_REPO/scripts/install"
  lab_pod node1 removed plain46
  for name in '' theirs; do
    lab_in node1 sh -c 'rm -r /opt/cni/bin/*'
    [ -z "$name" ] || put_theirs file "$name"
    lab_until 15 lab_in node1 test -L /opt/cni/bin/coordinator || fail "$(<"$LAB/log/keep")"
    assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" "$before"
    expect 0 installed ADD removed < <(lab_chained node1 removed underlay46)
    expect 0 installed DEL removed < <(lab_chained node1 removed underlay46)
  done
  assert_equal "$(lab_in node1 cat /opt/cni/bin/coordinator.before)" theirs
  # Its tools alone.
  lab_in node1 rm /opt/cni/bin/underpass.d
  lab_until 15 lab_in node1 test -e /opt/cni/bin/coordinator
  # And what cannot be put back is not said to be.
  lab_in node1 sh -c 'rm -r /opt/cni/bin/underpass.d/*'
  looks_again
  looks_again
  assert_equal "$(grep -c 'had been removed, and is in' "$LAB/log/keep")" 2
  # The next installation knows all the same which version was there before it.
  another_version
  install_on_node1
  before=$(lab_in node1 readlink /opt/cni/bin/underpass.d)
  lab_in node1 sh -c 'rm -r /opt/cni/bin/*'
  OTHER='' expect 0 install_on_node1
  OTHER='' expect 0 install_on_node1 --rollback
  assert_equal "$(lab_in node1 readlink /opt/cni/bin/underpass.d)" "$before"
}

@test "--keep in a container says once that the node's CNI directory itself was removed" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  lab_in node1 "$LAB_REPO/scripts/image" --root /opt/image
  image_install >"$BATS_TEST_TMPDIR/command"
  keeps sh "$BATS_TEST_TMPDIR/command"
  looks_again
  assert_equal "$(<"$LAB/log/keep")" ''
  lab_in node1 sh -c 'rm -r /opt/bare/opt/cni/bin && mkdir /opt/bare/opt/cni/bin'
  looks_again
  looks_again
  assert_equal "$(<"$LAB/log/keep")" \
    "install: the node's /opt/cni/bin was removed: if there is one again, it gets the plugin when this pod is made anew"
}

@test "from the image as the chart runs it, on a node without /bin/sh, --keep does the same" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  local BIN=/opt/bare/opt/cni/bin
  lab_in node1 "$LAB_REPO/scripts/image" --root /opt/image
  image_install >"$BATS_TEST_TMPDIR/command"
  expect 0 lab_in node1 sh "$BATS_TEST_TMPDIR/command"
  keeps sh "$BATS_TEST_TMPDIR/command"
  spiderpool_starts newer
  comes_back newer
  lab_pod node1 keeper plain46
  expect 0 bare ADD keeper < <(lab_chained node1 keeper underlay46)
  expect 0 bare DEL keeper < <(lab_chained node1 keeper underlay46)
}

@test "what check-node finds is said with its remedy, and is no reason not to install" {
  lab_in node1 sysctl -qw net.ipv4.ip_forward=0
  expect 0 install_on_node1
  lab_in node1 sysctl -qw net.ipv4.ip_forward=1
  assert_contains "$stderr" 'net/ipv4/ip_forward is 0'
  assert_contains "$stderr" 'set it to 1'
}

@test "a check-node that does not end is ended and told of, and is no reason not to install" {
  command -v busybox >/dev/null || skip 'no busybox: run scripts/setup'
  local timeout
  small_tools
  program "$OTHER/check-node" <<<'exec sleep 20'
  mkdir "$BATS_TEST_TMPDIR/bin"
  for timeout in "$(command -v timeout)" "$(command -v busybox) timeout"; do
    # It has less time here.
    program "$BATS_TEST_TMPDIR/bin/timeout" <<<"shift; exec $timeout 1 \"\$@\""
    PATH=$BATS_TEST_TMPDIR/bin:$PATH expect 0 install_on_node1
    assert_contains "$stderr" 'is in /opt/cni/bin'
    assert_contains "$stderr" 'check-node did not end within 30 s'
  done
}

@test "taken away while pods run it stays for their deletion, refuses new pods, and leaves nothing when it is taken away again" {
  local before
  lab_pod node1 stays plain46
  lab_pod node1 late plain46
  lab_chained node1 stays underlay46 >/dev/null
  lab_in node1 mkdir -p /etc/systemd/network
  before=$(lab_in node1 find /opt /etc -xdev | sort)
  lab_in node1 mkdir -p /etc/NetworkManager
  install_on_node1
  expect 0 installed ADD stays < <(lab_chained node1 stays underlay46)
  for _ in 1 2; do
    expect 3 install_on_node1 --uninstall
    assert_contains "$stderr" '1 interfaces of running pods keep their way'
    assert_contains "$stderr" 'its file in /run/underpass/attachments is to be removed'
    expect 1 installed ADD late < <(lab_chained node1 late underlay46)
    assert_json "$output" '[.code, .msg]' '[11,"Underpass is being taken off this node"]'
    expect 1 installed STATUS late < <(lab_chained node1 late underlay46)
    assert_json "$output" .code 50
    # What would take the pods' rules and links away is told not to, as long as they are there.
    lab_in node1 grep -q no /etc/systemd/networkd.conf.d/underpass.conf
    lab_in node1 test -e /etc/NetworkManager/conf.d/underpass.conf
  done
  # Where nothing can be written any more it is the same.
  # shellcheck disable=SC2016 # expanded by the inner shell
  expect 3 lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" unshare --mount sh -c '
    mount --bind /opt/cni /opt/cni && mount -o remount,bind,ro /opt/cni && exec "$0" --finish' "$LAB_REPO/scripts/install"
  assert_answer node1/stays "$(lab_cluster_ip web 4)" 80 server ''
  expect 0 installed CHECK stays < <(lab_chained node1 stays underlay46)
  expect 0 installed DEL stays < <(lab_chained node1 stays underlay46)
  assert_equal "$(lab_in node1 ip rule show pref 85)" ''
  expect 0 install_on_node1 --uninstall
  lab_in node1 rm -r /etc/NetworkManager /opt/cni
  assert_same "$before" "$(lab_in node1 find /opt /etc -xdev | sort)"
}

# up SECONDS FLAG: the installer, where the node started so long ago.
up() {
  printf '%s.00 0.00\n' "$1" >"$BATS_TEST_TMPDIR/uptime"
  # shellcheck disable=SC2016 # expanded by the inner shell
  lab_in node1 env UNDERPASS_LIBEXEC="$(lab_libexec)" unshare --mount sh -c 'mount --bind "$0" /proc/uptime && exec "$@"' \
    "$BATS_TEST_TMPDIR/uptime" "$LAB_REPO/scripts/install" "$2"
}

@test "taken away where the node has started since, it stays until the runtime has deleted what there was before" {
  local first
  lab_pod node1 before plain46
  # The node starts after it was to be taken away, or before.
  for first in --uninstall --finish; do
    install_on_node1
    expect 0 installed ADD before < <(lab_chained node1 before underlay46)
    [ $first = --finish ] || expect 3 install_on_node1 --uninstall
    lab_in node1 sh -c 'rm -r /run/underpass/* && echo another >/opt/cni/bin/.underpass/boot'
    expect 3 up 30 --uninstall
    assert_contains "$stderr" 'the node started 30 s ago'
    expect 3 up 599 --finish
    expect 1 installed ADD before < <(lab_chained node1 before underlay46)
    expect 0 installed DEL before '' < <(lab_chained node1 before underlay46)
    expect 0 up 600 --finish
    assert_equal "$(lab_in node1 ls -A /opt/cni/bin)" ''
  done
}

@test "a pod whose ADD is under way while the plugin is taken away keeps it for its deletion" {
  install_on_node1
  lab_pod node1 begun plain46
  lab_chained node1 begun underlay46 >"$BATS_TEST_TMPDIR/config"
  mkdir "$BATS_TEST_TMPDIR/watched"
  # It ends while calls settle.
  program "$BATS_TEST_TMPDIR/watched/sleep" <<END
CNI_COMMAND=ADD CNI_CONTAINERID=begun CNI_NETNS=/run/netns/begun CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin UNDERPASS_LIBEXEC=$(lab_libexec) \\
  "$LAB_REPO/scripts/coordinator" <"$BATS_TEST_TMPDIR/config" >"$BATS_TEST_TMPDIR/added" 9<&-
exec $(command -v sleep) "\$@"
END
  PATH=$BATS_TEST_TMPDIR/watched:$PATH expect 3 install_on_node1 --uninstall
  expect 0 installed DEL begun <"$BATS_TEST_TMPDIR/config"
  expect 0 install_on_node1 --uninstall
  assert_equal "$(lab_in node1 ls -A /opt/cni/bin)" ''
}

@test "a plugin that stays for the pods that run takes new ones again when it is installed again, or goes back" {
  local action removed
  by_hand
  lab_pod node1 again plain46
  expect 0 installed ADD again < <(lab_chained node1 again underlay46)
  for action in '' --rollback; do
    expect 3 install_on_node1 --uninstall
    expect 3 install_on_node1 --finish
    # shellcheck disable=SC2086 # none or one
    expect 0 install_on_node1 $action
    expect 0 install_on_node1 --finish
    assert_contains "$stderr" 'was installed in /opt/cni/bin since'
    expect 0 installed DEL again < <(lab_chained node1 again underlay46)
    expect 0 installed ADD again < <(lab_chained node1 again underlay46)
  done
  # Somebody takes it away himself, and half a DEL counts.
  lab_in node1 sh -c 'cd /run/underpass/attachments && mv again@eth0.json again@eth0.json.leaving'
  for removed in coordinator underpass.d '*'; do
    lab_in node1 sh -c "rm -r /opt/cni/bin/$removed"
    expect 3 install_on_node1 --uninstall
  done
  expect 0 installed DEL again < <(lab_chained node1 again underlay46)
  expect 0 install_on_node1 --uninstall
  assert_equal "$(lab_in node1 ls -A /opt/cni/bin)" ''
}

@test "another vendor's plugin that comes back while pods run deletes them, and what was written for them stays" {
  put_theirs file older
  lab_in node1 mkdir -p /etc/systemd/network
  install_on_node1
  lab_pod node1 theirs plain46
  expect 0 installed ADD theirs < <(lab_chained node1 theirs underlay46)
  expect 0 install_on_node1 --uninstall
  only_theirs file older
  lab_in node1 test -e /etc/systemd/networkd.conf.d/underpass.conf
  lab_in node1 rm -r /opt/cni
  install_on_node1
  expect 0 installed DEL theirs < <(lab_chained node1 theirs underlay46)
}
