"""The node's connection tracking, over netlink (linux/netfilter/nfnetlink_conntrack.h)."""

import socket
import struct

CTNETLINK, DELETE = 1 << 8, 2
NLM_F_REQUEST, NLA_F_NESTED = 1, 1 << 15
CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 1, 2
CTA_IP_SOURCE, CTA_IP_DESTINATION = {socket.AF_INET: 1, socket.AF_INET6: 3}, {socket.AF_INET: 2, socket.AF_INET6: 4}
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3


class Conntrack:
    """That of the network namespace in which it is made."""

    def __init__(self):
        self.netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)

    def flush(self):
        """Forgets every connection."""
        self.send(0)

    def forget(self, source, source_port, destination, port):
        """Forgets a UDP flow, if there is one."""
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        addresses = attribute(CTA_IP_SOURCE[family], socket.inet_pton(family, source)) \
            + attribute(CTA_IP_DESTINATION[family], socket.inet_pton(family, destination))
        protocol = attribute(CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP])) \
            + attribute(CTA_PROTO_SRC_PORT, source_port.to_bytes(2)) + attribute(CTA_PROTO_DST_PORT, port.to_bytes(2))
        flow = attribute(CTA_TUPLE_IP | NLA_F_NESTED, addresses) + attribute(CTA_TUPLE_PROTO | NLA_F_NESTED, protocol)
        self.send(family, attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, flow))

    def send(self, family, flow=b""):
        self.netlink.send(struct.pack("=IHHIIBBH", 20 + len(flow), CTNETLINK | DELETE, NLM_F_REQUEST, 0, 0, family, 0, 0) + flow)


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
