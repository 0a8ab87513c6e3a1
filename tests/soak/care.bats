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
