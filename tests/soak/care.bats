# The agent's care for everything that pods of every kind have.

load ../helpers
load ../care

setup_file() {
  suite_lab 1 || return 0
  lab_network 7 eth1
  lab_network_config node1 every 46 "$(lab_coordinator_json 46 |
    jq -c '. + {txQueueLen: 500, podMACPrefix: "02:ab", podRPFilter: 1, overlayMasquerade: true}')"
  lab_network_config node1 seven 46 "$(lab_coordinator_json 46 | jq -c '.podRPFilter = 2')" eth1
  lab_pod node1 every every
  lab_attach node1 every seven net1
  lab_overlay_pod node1 over calico 46
  lab_attach node1 over seven net1
  agent_start
  lab_until 10 metric 'attachments{state="current"}' 3
}

@test "any single object of pods with several interfaces, an overlay and every setting is put right within a second" {
  altered_each every eth0
  altered_each every net1
  altered_each over net1
}

@test "settings of which the kernel does not tell are found within a minute" {
  local change host
  host=$(link every)
  lab_in node1 sysctl -qw "net.ipv6.conf.$host.accept_ra=1" "net.ipv6.conf.$host.use_oif_addrs_only=1"
  lab_in node1/every sysctl -qw net.ipv6.conf.net1.accept_ra_defrtr=1
  for change in "node1 $host.accept_ra=0" "node1 $host.use_oif_addrs_only=0" 'node1/every net1.accept_ra_defrtr=0'; do
    lab_until 70 is_set "${change% *}" "${change#* }"
  done
}

is_set() { [ "$(lab_in "$1" sysctl -n "net.ipv6.conf.${2%=*}")" = "${2#*=}" ]; }

@test "what cannot be done for one interface costs the pod nothing else, and who keeps undoing the rest is told so" {
  lab_in node1/every sysctl -qw net.ipv6.conf.net1.disable_ipv6=1
  lab_until 10 metric 'attachments{state="failing"}' 1
  lab_in node1/every ip rule delete pref 86 from "$(lab_address node1/every 4 net1)"
  lab_until 5 has_rule
  lab_spawn undoer node1/every sh -c 'while :; do ip rule delete pref 86 2>/dev/null; sleep 0.05; done'
  lab_until 15 grep -q 'somebody keeps undoing this; leaving it alone for 1 s: rule pref 86' "$LAB/log/agent"
  lab_stop undoer
  lab_until 20 has_rule
}

has_rule() { lab_in node1/every ip rule show pref 86 | grep -q "from $(lab_address node1/every 4 net1) "; }

@test "a pod with 200,000 routes of a routing daemon, of which a thousand change in a second, costs the agent little and other pods nothing" {
  local agent ticks hop
  lab_pod node1 router every
  lab_attach node1 router seven net1
  awk 'BEGIN { for (i = 0; i < 200000; i++) printf "route add 20.%d.%d.%d/32 via 10.6.0.1 dev eth0 proto bird\n", i / 65536, i / 256 % 256, i % 256 }' |
    lab_in node1/router ip -batch -
  for hop in 1 2; do
    awk -v hop=$hop 'BEGIN { for (i = 0; i < 100; i++) printf "route replace 20.0.0.%d/32 via 10.6.0.%d dev eth0 proto bird\n", i, hop }' >"$LAB/hop$hop"
  done
  agent=$(lab_in node1 pgrep -x keep-pods)
  # It looks at this pod too, with all these, which takes it a while.
  lab_in node1/router ip route delete 10.233.64.0/18
  lab_until 30 has_way router
  lab_until 60 is_idle "$agent"
  lab_spawn churn node1/router sh -c "while :; do for hop in 1 2; do ip -batch $LAB/hop\$hop; sleep 0.1; done; done"
  ticks=$(ticks "$agent")
  # shellcheck disable=SC2034 # is_as_before's
  POD=every before=$(everything every)
  for _ in 1 2 3 4 5; do
    altered node1/every 'ip route delete 10.233.64.0/18'
    sleep 2
  done
  ticks=$(($(ticks "$agent") - ticks))
  lab_stop churn
  printf 'keep-pods took %d ms of processor time; at most %s of memory\n' $((ticks * 1000 / $(getconf CLK_TCK))) "$(most_memory "$agent")" >&3
  [ $((ticks * 1000 / $(getconf CLK_TCK))) -lt 3000 ]
  [ "$(most_memory "$agent" | tr -dc 0-9)" -lt 50000 ]
}

has_way() { lab_in "node1/$1" ip route show 10.233.64.0/18 | grep -q .; }

# is_idle PID: whether it has done nothing for a second.
is_idle() {
  local ticks
  ticks=$(ticks "$1")
  sleep 1
  [ "$(ticks "$1")" = "$ticks" ]
}

# ticks PID: what its program has run.
# shellcheck disable=SC2016 # expanded by awk
ticks() { lab_in node1 awk '{ print $14 + $15 }' "/proc/$1/stat"; }

# most_memory PID: in kB.
# shellcheck disable=SC2016 # as above
most_memory() { lab_in node1 awk '/^VmHWM/ { print $2, $3 }' "/proc/$1/status"; }
