"""Servers that say on which address they were reached, and clients that tell what they see.

Every call has a time limit: a test that goes wrong fails, it does not hang."""

import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM

PORT = 8080


def family_of(address):
    return AF_INET6 if ":" in address else AF_INET


def new(kind, address_or_family):
    family = family_of(address_or_family) if isinstance(address_or_family, str) else address_or_family
    made = socket.socket(family, kind)
    made.settimeout(5)
    return made


def follow(**change):
    """Has the table changed by the loader that the program was given."""
    subprocess.run([sys.argv[1], "follow"], input=json.dumps(change).encode(), check=True, capture_output=True)


def serve(*addresses, port=PORT):
    """On each address a TCP and a UDP server that answers with its address."""
    for address in addresses:
        for kind in SOCK_STREAM, SOCK_DGRAM:
            listener = socket.socket(family_of(address), kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            if kind == SOCK_STREAM:
                listener.listen(1000)
            work = accept_all if kind == SOCK_STREAM else answer_all
            threading.Thread(target=work, args=(listener, address), daemon=True).start()


def accept_all(listener, address):
    while True:
        connection, _ = listener.accept()
        connection.sendall(address.encode())
        connection.close()


def answer_all(server, address):
    while True:
        _, sender = server.recvfrom(64)
        server.sendto(address.encode(), sender)


def hold(*addresses):
    """As serve, but TCP connections stay open."""
    for address in addresses:
        listener = socket.create_server((address, PORT), family=family_of(address), backlog=1000)
        threading.Thread(target=keep_all, args=(listener, address.encode()), daemon=True).start()
        server = socket.socket(family_of(address), SOCK_DGRAM)
        server.bind((address, PORT))
        threading.Thread(target=answer_all, args=(server, address), daemon=True).start()


def keep_all(listener, greeting=b""):
    kept = []
    while True:
        connection, _ = listener.accept()
        connection.sendall(greeting)
        kept.append(connection)


def error_of(one):
    """The name of the error that waits for a socket, or None."""
    error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode[error] if error else None


def told(sockets, seconds=5, enough=None):
    """The error that each of the sockets gets within that time, or before so many have one, without doing anything."""
    found, end = [None] * len(sockets), time.monotonic() + seconds
    while len(found) - found.count(None) < (enough or len(found)) and time.monotonic() < end:
        found = [known or error_of(one) for known, one in zip(found, sockets)]
        time.sleep(0.01)
    return found


def ready(step=""):
    """Says by a file that the program has come this far."""
    with open(sys.argv[1] + step, "w", encoding="ascii"):
        pass


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def connect(kind, address, port=80, family=None):
    """A socket connected to address."""
    made = new(kind, family or address)
    made.connect((address, port))
    return made


def until_connects(kind, address, port=80):
    """Waits until the Service is there."""
    while errno_of(connect, kind, address, port):
        time.sleep(.01)


def disconnect(connected):
    """Undoes connect()."""
    libc, unspecified = ctypes.CDLL(None, use_errno=True), struct.pack("=H14x", 0)
    if libc.connect(connected.fileno(), unspecified, len(unspecified)):
        raise OSError(ctypes.get_errno(), "connect")


def answer(connected):
    """Which backend a connected socket reaches."""
    if connected.type == SOCK_DGRAM:
        connected.send(b"?")
    return connected.recv(64).decode()


def goes_on(connected, backend, seconds=5):
    """Writes on, whatever comes of it, until that backend answers. The names of the errors meanwhile, or None if it never does."""
    errors, end = [], time.monotonic() + seconds
    connected.settimeout(0.05)
    while time.monotonic() < end:
        if error := errno_of(connected.send, b"?"):
            errors.append(error)
        try:
            if connected.recv(64).decode() == backend:
                return errors
        except OSError as error:
            errors += [errno.errorcode[error.errno]] if error.errno else []
        time.sleep(0.05)
    return None


def reach(kind, address, port=80, family=None):
    """Which backend a new connection to address reaches."""
    with connect(kind, address, port, family) as connected:
        return answer(connected)


def ask(sender, address, port=80):
    """Which backend answers a datagram to address, and from where the answer seems to come."""
    sender.sendto(b"?", (address, port))
    data, source = sender.recvfrom(64)
    return data.decode(), source[:2]


def errno_of(call, *arguments, **options):
    """The name of the error with which a call fails, or None."""
    try:
        call(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else "timed out"
    return None


def equal(actual, expected, what=""):
    if actual != expected:
        sys.exit(f"{what}\nexpected: {expected}\nactual:   {actual}")


def all_reach(sender, address, backend, port=80):
    """A new connection of each kind to address reaches backend, and so does a datagram of sender's; all by the address asked."""
    for kind in SOCK_STREAM, SOCK_DGRAM:
        with connect(kind, address, port) as connected:
            equal((connected.getpeername()[:2], answer(connected)), ((address, port), backend))
    equal(ask(sender, address, port), (backend, (address, port)))
