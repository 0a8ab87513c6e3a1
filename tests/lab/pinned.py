"""What is pinned on a BPF file system, by bpf(2) itself: no library for it is there on every machine."""

import ctypes
import mmap
import os
import platform
import struct

SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BPF_OBJ_GET = 7


def bpf(command, attributes):
    result = ctypes.CDLL(None, use_errno=True).syscall(SYS_BPF, command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def opened(path):
    """A descriptor of the map or link that is pinned there."""
    name = ctypes.create_string_buffer(path.encode())
    return bpf(BPF_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))


def about(descriptor, key):
    """What the kernel says of it, as a number."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as info:
        return next(int(line.split()[1]) for line in info if line.startswith(f"{key}:"))


def values(path):
    """Those of an array that can be mapped."""
    array = opened(path)
    # The kernel rounds the size of a value up to eight bytes.
    return mmap.mmap(array, about(array, "max_entries") * -(-about(array, "value_size") // 8) * 8)
