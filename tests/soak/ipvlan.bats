# IPvlan, which not every kernel has, on Debian's own Linux 6.1, booted in QEMU by software emulation.

load ../helpers
load ../kernel

setup_file() {
  suite_needs_kernel || return 0
  export PROGRAMS=$BATS_FILE_TMPDIR/programs
  mkdir "$PROGRAMS"
  cp -L "$(command -v ip)" "$PROGRAMS"
  for tool in cni-request detect-mode sync-cidrs tune-pod; do cp "$(lab_libexec)/$tool" "$PROGRAMS"; done
}

@test "a gateway that is there is found, and another host with the pod's address is a conflict, in each of IPvlan's modes" {
  on_kernel "$PROGRAMS" veth ipvlan <<'EOT'
# In place of BusyBox' own.
ip() { /bin/ip "$@"; }
mkdir /run
printf 'kernel %s\n' "$(uname -r)"
ip netns add gateway
ip link add wire0 type veth peer name net6 netns gateway
ip link set wire0 up
ip address add 10.6.212.101/16 dev wire0
ip -n gateway link set net6 up
ip -n gateway address add 10.6.0.1/16 dev net6
ip -n gateway address add fd00:6::1/64 dev net6 nodad
# asks WHAT SETTING: prints WHAT and the code of an ADD's failure, if there is one.
asks() {
  printf '{"cniVersion": "1.0.0", "name": "u", "type": "coordinator", "podRPFilter": -1, "serviceCIDR": ["10.233.64.0/18"], "%s": true,
    "detectOptions": {"interval": "500ms", "timeout": "2s"}, "prevResult": {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}], "ips": [
      {"address": "10.6.10.1/16", "gateway": "10.6.0.1", "interface": 0}, {"address": "fd00:6::a/64", "gateway": "fd00:6::1", "interface": 0}]}}' "$2" |
    CNI_COMMAND=ADD CNI_CONTAINERID=pod CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 cni-request 2>/dev/null |
    detect-mode 2>/dev/null | sync-cidrs | tune-pod 2>/dev/null |
    sed 's/.*"error":{[^}]*"code":\([0-9]*\).*/\1/; s/^{.*/none/' | sed "s/^/== $1 /"
}
for mode in l2 l3 l3s; do
  ip netns add pod
  ip link add link wire0 name eth0 netns pod type ipvlan mode $mode
  ip -n pod link set eth0 up
  ip -n pod address add 10.6.10.1/16 dev eth0
  ip -n pod address add fd00:6::a/64 dev eth0 nodad
  asks "$mode gateway" detectGateway
  asks "$mode alone" detectIPConflict
  ip -n gateway address add 10.6.10.1/32 dev net6
  asks "$mode IPv4" detectIPConflict
  ip -n gateway address delete 10.6.10.1/32 dev net6
  ip -n gateway address add fd00:6::a/128 dev net6 nodad
  asks "$mode IPv6" detectIPConflict
  ip -n gateway address delete fd00:6::a/128 dev net6
  ip -n gateway link set net6 down
  asks "$mode none" detectGateway
  ip -n gateway link set net6 up
  ip -n gateway address replace fd00:6::1/64 dev net6 nodad
  ip netns delete pod
done
EOT
  assert_same "$(for mode in l2 l3 l3s; do printf '== %s\n' "$mode gateway none" "$mode alone none" "$mode IPv4 103" "$mode IPv6 103" "$mode none 104"; done)" \
    "$(grep '^== ' "$BATS_TEST_TMPDIR/console")"
}
