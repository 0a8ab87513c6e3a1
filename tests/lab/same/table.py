"""The Services, and the two ways in which the kernel is told of them."""

import ctypes
import json
import subprocess

from conntrack import Conntrack
from world import BACKENDS, CLIENT, PORT

# Each has one backend, so that both worlds choose the same: the first two have it in common, the last has none.
BASE = {"one": "b1", "two": "b1", "three": "b2", "least": "b3", "sticky": "b3", "silent": "b4", "none": None}
ADDRESSES = {name: (f"10.96.0.{number}", f"fd96::{number}") for number, name in enumerate(BASE, 1)}
# An external address that can belong to any Service, or to none.
VIP = "192.0.2.7", "fd02::7"
VIP_OWNER = "one"
SERVICE_PORT = 80
MORE = {"least": {"lbAlgorithm": "least-connections"}, "sticky": {"sessionAffinity": {"timeoutSeconds": 60}}}


class Table:
    """Which backend each Service has, and which Service has the external address. GONE: there is no such Service."""

    GONE = "gone"

    def __init__(self):
        self.backends, self.owner = dict(BASE), VIP_OWNER

    def change(self, call):
        """Makes a change, ["set", service, backend] or ["move", service]. Returns the Services that are affected."""
        if call[0] == "set":
            self.backends[call[1]] = call[2]
            return {call[1]}
        before, self.owner = self.owner, call[1]
        return {before, self.owner} - {None}

    def backend(self, name):
        """The backend behind a Service or behind the external address: a name, None, or GONE."""
        if name == "vip":
            return self.GONE if self.owner is None else self.backend(self.owner)
        return self.backends[name]

    def frontends(self):
        """Name, IPv4 and IPv6 address."""
        return [*((name, *addresses) for name, addresses in ADDRESSES.items()), ("vip", *VIP)]


class Tracked:
    """By nftables with connection tracking, on the node, as kube-proxy does it: new connections go by the table, and UDP
    flows to what is no backend any more are forgotten. A refusal is a reset, since an ICMP message that arrives before the
    SYN's sender lets go of its socket is heard only a second later."""

    RULES = """
        table inet same {
          map dnat4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
          map dnat6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
          set none4 { type ipv4_addr . inet_proto . inet_service; }
          set none6 { type ipv6_addr . inet_proto . inet_service; }
          chain prerouting {
            type nat hook prerouting priority dstnat;
            dnat ip to ip daddr . meta l4proto . th dport map @dnat4
            dnat ip6 to ip6 daddr . meta l4proto . th dport map @dnat6
          }
          chain postrouting { type nat hook postrouting priority srcnat; }
          chain forward {
            type filter hook forward priority filter;
            ip daddr . meta l4proto . th dport @none4 meta l4proto tcp reject with tcp reset
            ip6 daddr . meta l4proto . th dport @none6 meta l4proto tcp reject with tcp reset
            ip daddr . meta l4proto . th dport @none4 reject
            ip6 daddr . meta l4proto . th dport @none6 reject
          }
        }"""

    def __init__(self, world):
        self.world = world
        world.node.enter()
        self.nft = ctypes.CDLL("libnftables.so.1")
        self.nft.nft_ctx_new.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.nft.nft_ctx_new(0))
        self.conntrack = Conntrack()
        world.node.set(netfilter__nf_conntrack_udp_timeout=600)
        self.run(self.RULES)
        self.known = {}
        self.write(Table())
        world.client.enter()

    def run(self, commands):
        if self.nft.nft_run_cmd_from_buffer(self.context, commands.encode()):
            raise RuntimeError(f"nft: {commands}")

    def write(self, table, _affected=(), ports=()):
        commands, gone = [], []
        for name, *addresses in table.frontends():
            backend = table.backend(name)
            if self.known.get(name, Table.GONE) == backend:
                continue
            self.change(commands, name, addresses, backend)
            gone += addresses
        if commands:
            self.run("\n".join(commands))
            for address in gone:
                for port in ports:
                    self.conntrack.forget(CLIENT[":" in address], port, address, SERVICE_PORT)

    def change(self, commands, name, addresses, backend):
        before = self.known.get(name, Table.GONE)
        for family, address in zip("46", addresses):
            for protocol in "tcp", "udp":
                key = f"{address} . {protocol} . {SERVICE_PORT}"
                if before != Table.GONE:
                    commands.append(f"delete element inet same {'dnat' if before else 'none'}{family} {{ {key} }}")
                if backend is None:
                    commands.append(f"add element inet same none{family} {{ {key} }}")
                elif backend != Table.GONE:
                    target = BACKENDS[backend][family == "6"]
                    commands.append(f"add element inet same dnat{family} {{ {key} : {target} . {PORT} }}")
        self.known[name] = backend

    def reset(self):
        self.conntrack.flush()

    def leftovers(self):
        return None


class Socketed:
    """By the socket path."""

    def __init__(self, world, loader, cgroup):
        self.world, self.loader = world, loader
        with open(f"{cgroup}/cgroup.procs", "w") as procs:
            procs.write("0")
        self.follow = subprocess.Popen([loader, "follow"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        table = Table()
        self.tell({"table": {"services": [service for name in BASE for service in self.services(table, name)]}})

    def tell(self, line):
        self.follow.stdin.write(json.dumps(line) + "\n")
        self.follow.stdin.flush()
        answer = json.loads(self.follow.stdout.readline())
        if answer.get("error"):
            raise RuntimeError(f"{answer['error']}: {line}")

    @staticmethod
    def services(table, name):
        backend = table.backend(name)
        return [{
            "namespace": "same", "name": name, "portName": protocol.lower(), "protocol": protocol, "port": SERVICE_PORT,
            "clusterIps": ADDRESSES[name], "externalIps": VIP if table.owner == name else [],
            "backends": [{"address": address, "port": PORT} for address in BACKENDS.get(backend, ())],
            **MORE.get(name, {})} for protocol in ("TCP", "UDP")]

    def write(self, table, affected, _ports=()):
        # Who loses the external address first, as in the order of the tracked world's commands.
        for name in sorted(affected, key=lambda name: name == table.owner):
            for service in self.services(table, name):
                if table.backend(name) == Table.GONE:
                    self.tell({"remove": {key: service[key] for key in ("namespace", "name", "portName")}})
                else:
                    self.tell({"set": service})

    def reset(self):
        pass

    def leftovers(self):
        """What still counts as open although every socket was closed."""
        stats = json.loads(subprocess.run([self.loader, "stats"], capture_output=True, check=True).stdout)
        return {f"{service['name']}:{service['portName']} {address}": backend["open"]
                for service in stats for address, backend in service["backends"].items() if backend.get("open")}
