"""A client, a node and backends, each a network namespace, in one process: so that after a call everything that it sets in
motion can be waited for.

    client 10.9.1.1 ── 10.9.1.254 node 10.9.2.254 ── 10.9.2.11 to 14 backends

The process stays in the client's namespace. Both worlds of a test have the same addresses."""

import ctypes
import os
import select
import socket
import struct
import subprocess
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
PORT = 8080
# By name: the IPv4 and the IPv6 address. Nobody listens on the last one.
BACKENDS = {f"b{number}": (f"10.9.2.1{number}", f"fd09:2::1{number}") for number in (1, 2, 3, 4)}
CLIENT = "10.9.1.1", "fd09:1::1"
# This one speaks Multipath TCP too.
MULTIPATH = "b2"
SILENT = "b4"
IPPROTO_MPTCP = 262


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """A network namespace of this process."""

    def __init__(self):
        check(LIBC.unshare(CLONE_NEWNET))
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.run("ip link set lo up")
        # No link asks for a neighbour with an address that may be another's: for two seconds nothing would be answered over IPv6.
        self.set(ipv6__conf__default__accept_dad=0)

    @property
    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def enter(self):
        check(LIBC.setns(self.fd, CLONE_NEWNET))

    def run(self, *commands):
        self.enter()
        for command in commands:
            subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)

    def set(self, **values):
        self.enter()
        for name, value in values.items():
            with open("/proc/sys/net/" + name.replace("__", "/"), "w") as sysctl:
                sysctl.write(str(value))


class World:
    def __init__(self):
        self.node, self.back, self.client = Namespace(), Namespace(), Namespace()
        self.poll = select.epoll()
        self.served = {}
        self.connect()
        self.serve()
        self.client.enter()
        for _ in range(3):
            self.probe()

    def connect(self):
        for number, (end, nic) in enumerate(((self.client, "eth1"), (self.back, "eth2")), 1):
            self.node.run(f"ip link add {nic} type veth peer name eth0 netns {end.path}", f"ip link set {nic} up",
                          f"ip address add 10.9.{number}.254/24 dev {nic}",
                          f"ip address add fd09:{number}::fe/64 dev {nic} nodad")
            end.run("ip link set eth0 up")
        self.node.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv4__icmp_ratelimit=0,
                      ipv6__icmp__ratelimit=0, ipv4__conf__all__rp_filter=0)
        for four, six in BACKENDS.values():
            self.back.run(f"ip address add {four}/24 dev eth0", f"ip address add {six}/64 dev eth0 nodad")
        self.back.run("ip route add default via 10.9.2.254", "ip -6 route add default via fd09:2::fe")
        self.node.run("ip route add unreachable 10.66.0.0/16", "ip -6 route add unreachable fd66::/16")
        # What is not translated goes on, as by a node's default route, and comes back as unreachable.
        for four, six in (("10.96.0.0/16", "fd96::/16"), ("192.0.2.0/24", "fd02::/16")):
            self.node.run(f"ip route add {four} via 10.9.2.11", f"ip -6 route add {six} via fd09:2::11")
            self.back.run(f"ip route add unreachable {four}", f"ip -6 route add unreachable {six}")
        self.back.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        self.client.run(f"ip address add {CLIENT[0]}/24 dev eth0", f"ip address add {CLIENT[1]}/64 dev eth0 nodad",
                        "ip route add default via 10.9.1.254", "ip -6 route add default via fd09:1::fe",
                        "ip route add unreachable 10.67.0.0/16", "ip -6 route add unreachable fd67::/16")
        # Every refusal is sent, and a connection that is over leaves nothing behind.
        self.back.set(ipv4__icmp_ratelimit=0, ipv6__icmp__ratelimit=0, ipv4__tcp_max_tw_buckets=0)
        self.client.set(ipv4__icmp_ratelimit=0, ipv6__icmp__ratelimit=0, ipv4__tcp_max_tw_buckets=0)

    def serve(self):
        self.back.enter()
        for name, addresses in BACKENDS.items():
            for address in addresses if name != SILENT else ():
                family = AF_INET6 if ":" in address else AF_INET
                udp = socket.socket(family, SOCK_DGRAM | socket.SOCK_NONBLOCK)
                protocol = IPPROTO_MPTCP if name == MULTIPATH else 0
                tcp = socket.socket(family, SOCK_STREAM | socket.SOCK_NONBLOCK, protocol)
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                for server in udp, tcp:
                    server.bind((address, PORT))
                tcp.listen(64)
                self.watch(udp, lambda udp=udp, name=name: self.answer(udp, name))
                self.watch(tcp, lambda tcp=tcp, name=name: self.accept(tcp, name))
        self.far = self.prober("10.9.2.11", 9999)
        self.client.enter()
        self.near = self.prober("10.9.1.1", 9998)

    @staticmethod
    def prober(address, port):
        made = socket.socket(AF_INET, SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
        made.bind((address, port))
        return made

    def watch(self, served, work):
        self.served[served.fileno()] = served, work
        self.poll.register(served.fileno(), select.EPOLLIN)

    def forget(self, served):
        self.poll.unregister(served.fileno())
        del self.served[served.fileno()]
        served.close()

    @staticmethod
    def answer(udp, name):
        data, sender = udp.recvfrom(4096)
        udp.sendto(f"{name}|".encode() + data, sender)

    def accept(self, tcp, name):
        connection, _ = tcp.accept()
        connection.setblocking(False)
        try:
            connection.send(f"{name}|".encode())
        except OSError:
            pass
        self.watch(connection, lambda: self.echo(connection))

    def echo(self, connection):
        try:
            data = connection.recv(4096)
            if data:
                connection.send(data)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.forget(connection)

    def probe(self):
        """Returns after every packet that was under way, since all of them wait in the same queues."""
        self.near.sendto(b"", ("10.9.2.11", 9999))
        self.far.recv(16)
        self.far.sendto(b"", ("10.9.1.1", 9998))
        self.near.recv(16)

    def settle(self):
        """Until nothing is under way, and the backends have answered everything."""
        for _ in range(100):
            self.probe()
            ready = self.poll.poll(0)
            if not ready:
                return
            for fd, _ in ready:
                if fd in self.served:
                    try:
                        self.served[fd][1]()
                    except OSError:
                        pass
        raise RuntimeError("the backends never come to rest")

    def end_connections(self):
        for served, _ in list(self.served.values()):
            if served.type == SOCK_STREAM and not served.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self.forget(served)
