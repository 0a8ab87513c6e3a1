"""Whom a client reaches: `reach.py serve PORT...` answers on every address of its host with the address and port that it was
reached on; `reach.py ask TRIES SECONDS [AT_ONCE]` reads lines such as `tcp 10.6.0.1:80` and prints for each, as JSON, whose
answers it got in so many tries, "refused", another error such as "EHOSTUNREACH", or "silent"."""

import errno
import json
import selectors
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, SOCK_DGRAM, SOCK_STREAM

IP_PKTINFO = 8  # <linux/in.h>


def name(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def listener(family, kind, port):
    made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == AF_INET6:
        made.setsockopt(IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == SOCK_DGRAM and family == AF_INET6:
        made.setsockopt(IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    elif kind == SOCK_DGRAM:
        made.setsockopt(IPPROTO_IP, IP_PKTINFO, 1)
    made.bind(("", port))
    if kind == SOCK_STREAM:
        made.listen(1000)
    return made


def answer(server, kind, port):
    if kind == SOCK_STREAM:
        connection, _ = server.accept()
        connection.sendall(name(connection.getsockname()[0], port).encode())
        connection.close()
        return
    _, ancillary, _, sender = server.recvmsg(64, 128)
    (level, what, data) = ancillary[0]
    if level == IPPROTO_IPV6:
        address = socket.inet_ntop(AF_INET6, data[:16])
        info = data[:16] + bytes(4)
    else:
        address = socket.inet_ntop(AF_INET, data[8:12])
        info = bytes(4) + data[8:12] + bytes(4)
    server.sendmsg([name(address, port).encode()], [(level, what, info)], 0, sender)


def serve(ports):
    ready = selectors.DefaultSelector()
    for port in ports:
        for family in AF_INET, AF_INET6:
            for kind in SOCK_STREAM, SOCK_DGRAM:
                ready.register(listener(family, kind, port), selectors.EVENT_READ, (kind, port))
    print("serving", flush=True)
    while True:
        for key, _ in ready.select():
            answer(key.fileobj, *key.data)


def once(kind, address, port, seconds):
    with socket.socket(AF_INET6 if ":" in address else AF_INET, kind) as client:
        client.settimeout(seconds)
        try:
            client.connect((address, port))
            client.send(b"?")
            return client.recv(64).decode()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silent"
        except OSError as error:
            return errno.errorcode[error.errno]


def answers(line, tries, seconds):
    protocol, to = line.split()
    address, port = to.rsplit(":", 1)
    where = SOCK_STREAM if protocol == "tcp" else SOCK_DGRAM, address.strip("[]"), int(port)
    first = once(*where, seconds)
    # An answer is an address with a port.
    if ":" not in first:
        return first
    # One that gets no answer where others did is a failure: it shows.
    return sorted({first} | {once(*where, 3) for _ in range(tries - 1)})


def ask(tries, seconds, at_once=1):
    lines = sys.stdin.read().splitlines()
    with ThreadPoolExecutor(at_once) as threads:
        found = threads.map(lambda line: answers(line, tries, seconds), lines)
        print(json.dumps(dict(zip(lines, found))))


if sys.argv[1] == "serve":
    serve([int(port) for port in sys.argv[2:]])
else:
    ask(int(sys.argv[2]), float(sys.argv[3]), *map(int, sys.argv[4:]))
