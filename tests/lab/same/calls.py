"""Makes a sequence of socket calls, and says what a process sees of them."""

import ctypes
import errno
import json
import os
import socket
import struct
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM

from table import ADDRESSES, SERVICE_PORT, VIP, Table
from world import BACKENDS, IPPROTO_MPTCP, LIBC, PORT

KINDS = {"udp": (SOCK_DGRAM, 0), "lite": (SOCK_DGRAM, 136), "tcp": (SOCK_STREAM, 0), "mptcp": (SOCK_STREAM, IPPROTO_MPTCP)}
# What is no Service. Nobody listens on the first; of the second the node says that there is no way, of the third the
# client itself.
OTHERS = {
    "nothing": ("10.9.2.11", "fd09:2::11", 9), "unreachable": ("10.66.0.1", "fd66::1", SERVICE_PORT),
    "nowhere": ("10.67.0.1", "fd67::1", SERVICE_PORT), "any": ("0.0.0.0", "::", PORT),
}
DESTINATIONS = {
    **{name: (*addresses, SERVICE_PORT) for name, addresses in ADDRESSES.items()}, "vip": (*VIP, SERVICE_PORT),
    **{name: (*addresses, PORT) for name, addresses in BACKENDS.items()}, **OTHERS,
}
FORMS = ("4", "6", "m")
IP_RECVERR, IPV6_RECVERR, UNSPEC = 11, 25, struct.pack("=H14x", 0)


def sockaddr(destination):
    """The bytes of NAME/FORM: an IPv4 address, an IPv6 one, or an IPv4-mapped one."""
    name, form = destination.split("/")
    four, six, port = DESTINATIONS[name]
    if form == "4":
        return struct.pack("=H2s4s8x", AF_INET, port.to_bytes(2), socket.inet_aton(four))
    address = six if form == "6" else "::ffff:" + four
    return struct.pack("=H2s4x16s4x", AF_INET6, port.to_bytes(2), socket.inet_pton(AF_INET6, address))


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]


class Message(ctypes.Structure):
    """struct mmsghdr, on a machine of 64 bits."""

    _fields_ = [("name", ctypes.c_char_p), ("name_length", ctypes.c_uint), ("vectors", ctypes.POINTER(Vector)),
                ("vector_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
                ("flags", ctypes.c_int), ("sent", ctypes.c_uint64)]


class Caller:
    """A process with sockets in numbered slots. An outcome is what a call returned, or the name of its error."""

    def __init__(self, world, translator):
        self.world, self.translator = world, translator

    def play(self, sequence):
        """The outcome of each call. Everything is as it was when it is over."""
        self.slots, self.table, self.ports = {}, Table(), {}
        try:
            return [self.outcome(index, call) for index, call in enumerate(sequence)]
        finally:
            for each in self.slots.values():
                each.close()
            self.world.settle()
            self.world.end_connections()
            self.world.settle()
            affected = {name for name in self.table.backends if self.table.backends[name] != Table().backends[name]}
            if self.table.owner != Table().owner:
                affected |= {self.table.owner, Table().owner} - {None}
            if affected:
                self.translator.write(Table(), affected)
            self.translator.reset()

    def outcome(self, index, call):
        result = self.result(index, call)
        if call[0] not in ("socket", "getpeername", "getsockname", "dup"):
            self.world.settle()
        return result

    def result(self, index, call):
        try:
            return self.call(index, call)
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))
        except KeyError:
            return "no such socket"

    def call(self, index, call):
        verb, *arguments = call
        if verb in ("set", "move"):
            ports = {each.getsockname()[1] for each in self.slots.values()}
            self.translator.write(self.table, self.table.change(call), ports)
            return None
        if verb == "socket":
            return self.open(*arguments)
        if verb == "fork":
            return self.fork(index, arguments[0])
        slot, *arguments = arguments
        return getattr(self, verb)(index, self.slots[slot], slot, *arguments)

    def open(self, slot, kind, family, v6only):
        if slot in self.slots:
            self.slots.pop(slot).close()
            self.world.settle()
        kind, protocol = KINDS[kind]
        made = socket.socket(AF_INET6 if family == "6" else AF_INET, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 3, 0))
        if kind == SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == "6":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        self.slots[slot] = made

    def fork(self, index, call):
        """Another process with the same sockets makes the call. It leaves the backends alone, which are this one's."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writer, json.dumps(self.result(index, call)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        result = os.read(reader, 65536)
        os.close(reader)
        os.waitpid(child, 0)
        return json.loads(result)

    @staticmethod
    def bind(_index, made, _slot, host, port):
        address = {"any": ("0.0.0.0", "::"), "own": ("10.9.1.1", "fd09:1::1"), "mapped": ("10.9.1.1", "::ffff:10.9.1.1")}
        made.bind((address[host][made.family == AF_INET6], port))

    @staticmethod
    def connect(_index, made, _slot, destination):
        raw = sockaddr(destination)
        return done(LIBC.connect(made.fileno(), raw, len(raw)))

    @staticmethod
    def disconnect(_index, made, _slot):
        return done(LIBC.connect(made.fileno(), UNSPEC, len(UNSPEC)))

    @staticmethod
    def send(index, made, _slot):
        return made.send(b"m%d" % index)

    @staticmethod
    def sendto(index, made, _slot, destination):
        raw, data = sockaddr(destination), b"m%d" % index
        return done(LIBC.sendto(made.fileno(), data, len(data), 0, raw, len(raw)))

    @staticmethod
    def sendmmsg(index, made, _slot, destinations):
        messages, kept = (Message * len(destinations))(), []
        for number, (message, destination) in enumerate(zip(messages, destinations)):
            raw, data = sockaddr(destination), b"m%d.%d" % (index, number)
            vector = Vector(data, len(data))
            kept.append((raw, data, vector))
            message.name, message.name_length = raw, len(raw)
            message.vectors, message.vector_count = ctypes.pointer(vector), 1
        return done(LIBC.sendmmsg(made.fileno(), messages, len(destinations), 0))

    def recvfrom(self, _index, made, _slot, *flags):
        flags = sum(getattr(socket, flag) for flag in flags)
        data, name = made.recvfrom(64, socket.MSG_DONTWAIT | flags)
        return [data.decode(), self.name(name)]

    @staticmethod
    def recv(_index, made, _slot):
        return made.recv(64, socket.MSG_DONTWAIT).decode()

    def recvmsg(self, _index, made, _slot, size):
        data, control, flags, name = made.recvmsg(size, 256, socket.MSG_DONTWAIT)
        return [data.decode(), len(control), flags, self.name(name)]

    def drain(self, index, made, slot):
        """Reads all that there is."""
        results = []
        while len(results) < 40:
            try:
                results.append(self.recvfrom(index, made, slot))
            except OSError as error:
                results.append(errno.errorcode[error.errno])
                if error.errno != errno.ECONNREFUSED and error.errno != errno.EHOSTUNREACH:
                    break
            else:
                if results[-1][0] == "":
                    break
        return results

    @staticmethod
    def recverr(_index, made, _slot):
        made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        if made.family == AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)

    @staticmethod
    def errors(_index, made, _slot):
        """What is in the error queue, but for the addresses; of TCP that is a header, with numbers of its own."""
        data, control, flags, _ = made.recvmsg(64, 256, socket.MSG_DONTWAIT | socket.MSG_ERRQUEUE)
        return [len(data) if made.type == SOCK_STREAM else data.decode(), flags, [[level, kind, list(struct.unpack("=IBBB", value[:7]))] for level, kind, value in control]]

    @staticmethod
    def error(_index, made, _slot):
        return errno.errorcode.get(made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def getpeername(self, _index, made, _slot):
        return self.name(made.getpeername())

    def getsockname(self, _index, made, _slot):
        return self.name(made.getsockname())

    @staticmethod
    def shutdown(_index, made, _slot, how):
        made.shutdown(how)

    def close(self, _index, made, slot):
        del self.slots[slot]
        made.close()

    def dup(self, _index, made, _slot, other):
        before = self.slots.get(other)
        self.slots[other] = made.dup()
        if before is not None:
            before.close()

    def name(self, name):
        """An address and port; a port that the kernel chose is named by its turn."""
        if not name:
            return name
        address, port = name[:2]
        if port >= 32768:
            port = self.ports.setdefault(port, f"chosen {len(self.ports) + 1}")
        return [address, port]


def done(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
