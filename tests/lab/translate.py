#!/usr/bin/env python3
"""Stands in for another socket load balancer: translates one IPv4 address and port at connect(), for the processes of a cgroup.

Usage: translate.py NAME CGROUP FROM_ADDRESS FROM_PORT TO_ADDRESS TO_PORT

Its program has that name, is attached as long as this runs, and says "ready" when it is.
"""
import ctypes
import os
import signal
import socket
import struct
import sys

PROG_LOAD, LINK_CREATE = 5, 28
CGROUP_SOCK_ADDR, INET4_CONNECT = 18, 10
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]


def bpf(command, attribute):
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    result = ctypes.CDLL(None, use_errno=True).syscall(SYS_BPF, command, buffer, len(attribute))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def instruction(code, destination=0, source=0, offset=0, immediate=0):
    return struct.pack("<BBhI", code, source << 4 | destination, offset, immediate & 0xFFFFFFFF)


def address(text):
    return struct.unpack("=I", socket.inet_aton(text))[0]


def port(text):
    return socket.htons(int(text))


def program(source, source_port, target, target_port):
    """struct bpf_sock_addr has user_ip4 at 4 and user_port at 24, both in network byte order."""
    load, store, move, unequal32 = 0x61, 0x63, 0xB4, 0x56
    return b"".join([
        instruction(load, 2, 1, 4),
        instruction(unequal32, 2, 0, 6, address(source)),
        instruction(load, 2, 1, 24),
        instruction(unequal32, 2, 0, 4, port(source_port)),
        instruction(move, 2, 0, 0, address(target)),
        instruction(store, 1, 2, 4),
        instruction(move, 2, 0, 0, port(target_port)),
        instruction(store, 1, 2, 24),
        instruction(move, 0, 0, 0, 1),
        instruction(0x95),
    ])


def main(name, cgroup, *translation):
    code = program(*translation)
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    loaded = bpf(PROG_LOAD, struct.pack(
        "=IIQQIIQII16sII", CGROUP_SOCK_ADDR, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence),
        0, 0, 0, 0, 0, name[:15].encode(), 0, INET4_CONNECT))
    # The link goes with this process.
    bpf(LINK_CREATE, struct.pack("=IIII", loaded, os.open(cgroup, os.O_RDONLY), INET4_CONNECT, 0))
    print("ready", flush=True)
    signal.pause()


main(*sys.argv[1:])
