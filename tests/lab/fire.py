"""Changes services as fast as it can while clients connect, and kills the loader at random moments.

fire.py LOADER PIN_DIR CHANGES KILLS

A backend's address tells of which service and of which version of that service it is. A client notes, for its service,
the last version that was known to be in the kernel before its connect(), and the last one that was begun after it: what
it reached must be one of these, and if none of these has no backends, the connection must not fail."""

import ctypes
import errno
import json
import mmap
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time

SERVICES = 8
CLIENTS = 4
PORTS = (8080, 8081, 8082)
IP_PKTINFO = 8


class Versions:
    """Two counters for each service, shared by all processes."""

    def __init__(self):
        memory = mmap.mmap(-1, 4096)
        self.counters = (ctypes.c_uint64 * (2 * SERVICES + 2)).from_buffer(memory)

    def known(self, service):
        return self.counters[service]

    def begun(self, service):
        return self.counters[SERVICES + service]

    def know(self, service, version):
        self.counters[service] = version

    def begin(self, service, version):
        self.counters[SERVICES + service] = version

    @property
    def over(self):
        return self.counters[2 * SERVICES] != 0

    def end(self):
        self.counters[2 * SERVICES] = 1


def cluster_ip(service):
    return f"10.96.1.{service + 1}"


def backend(service, version):
    return f"127.{16 + service}.{version >> 8 & 0xff}.{version & 0xff}"


def has_backends(service, version):
    """The first half of the services always has some."""
    return service < SERVICES // 2 or version % 4 != 3


def is_there(service, version):
    """The last two services come and go."""
    return service < SERVICES - 2 or version % 4 != 1


def change(service, version):
    if not is_there(service, version):
        return {"remove": {"namespace": "fire", "name": str(service)}}
    count = 1 + version % len(PORTS) if has_backends(service, version) else 0
    return {"set": {
        "namespace": "fire", "name": str(service), "protocol": "UDP", "port": 80, "clusterIps": [cluster_ip(service)],
        "backends": [{"address": backend(service, version), "port": port} for port in PORTS[:count]],
    }}


def serve():
    """Answers with the address that a datagram was sent to and with the datagram, from that address."""
    sockets = []
    for port in PORTS:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        server.bind(("", port))
        sockets.append(server)
    return [fork(answer, server) for server in sockets]


def answer(server):
    while True:
        asked, ancillary, _, sender = server.recvmsg(16, 64)
        _, _, address = struct.unpack("=I4s4s", ancillary[0][2])
        control = [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, address, bytes(4)))]
        server.sendmsg([address, asked], control, 0, sender)


def fork(work, *arguments):
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        work(*arguments)
    except BaseException as error:  # pylint: disable=broad-except
        print(f"{work.__name__}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def connect_on_and_on(versions, number, report):
    """Connects until the end, each time to another service, on a new socket or on the same."""
    draw, kept, count = random.Random(number), new_socket(), 0
    while not versions.over:
        service = draw.randrange(SERVICES)
        client = kept if draw.random() < 0.5 else new_socket()
        known = versions.known(service)
        reached = reach(client, cluster_ip(service))
        begun = versions.begun(service)
        if client is not kept:
            client.close()
        check(service, known, begun, reached)
        count += 1
    os.write(report, struct.pack("=I", count))


def new_socket():
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(1)
    return client


def reach(client, address):
    """The address of the backend, or the name of the error of connect()."""
    try:
        client.connect((address, 80))
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))
    return ask(client)


def ask(client, attempts=10):
    """What the peer of a connected socket says. While other sockets connect, the kernel may miss the socket that a datagram
    is for, one in some million times, also without a load balancer: then it is lost, or refused. So it is sent again."""
    question = random.randbytes(8)
    try:
        client.send(question)
        while (answer := client.recv(12))[4:] != question:
            pass
        return answer[:4]
    except (ConnectionRefusedError, TimeoutError):
        if attempts == 1:
            raise
        return ask(client, attempts - 1)


def check(service, known, begun, reached):
    possible = range(known, begun + 1)
    if reached == "ECONNREFUSED":
        fine = any(is_there(service, v) and not has_backends(service, v) for v in possible)
    elif reached == "ENETUNREACH":
        # Not translated, and there is no route to it.
        fine = any(not is_there(service, v) for v in possible)
    elif isinstance(reached, bytes):
        there = [socket.inet_aton(backend(service, v)) for v in possible
                 if is_there(service, v) and has_backends(service, v)]
        fine = reached in there
    else:
        fine = False
    if not fine:
        shown = socket.inet_ntoa(reached) if isinstance(reached, bytes) else reached
        raise AssertionError(f"service {service}, versions {known} to {begun}: {shown}")


class Loader:
    """A follow that is started again when it was killed."""

    def __init__(self, command):
        self.command, self.process, self.kills = command, None, 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def make(self, wanted):
        """Says whether the change is known to be made. What it did before it was killed nobody knows."""
        try:
            self.process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        answered = self.process.stdout.readline()
        if not answered:
            return False
        answered = json.loads(answered)
        assert "error" not in answered, answered
        return True

    def kill_in(self, seconds):
        """Another process does it, so that the moment has nothing to do with what is done here."""
        victim = self.process.pid
        return fork(lambda: (time.sleep(seconds), os.kill(victim, signal.SIGKILL)))

    def restart(self, killer):
        self.process.wait()
        os.waitpid(killer, 0)
        self.kills += 1
        self.start()


def fire(loader, versions, changes, kills):
    draw, version, done, killer = random.Random(1), [0] * SERVICES, 0, None
    while done < changes:
        if killer is None and loader.kills < kills:
            killer = loader.kill_in(draw.random() * 0.05)
        service = draw.randrange(SERVICES)
        version[service] += 1
        versions.begin(service, version[service])
        while not loader.make(change(service, version[service])):
            loader.restart(killer)
            killer = loader.kill_in(draw.random() * 0.05) if loader.kills < kills else None
        versions.know(service, version[service])
        done += 1
    if killer is not None:
        loader.restart(killer)


def main():
    command, pins, changes, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    versions, loader = Versions(), Loader([command, "--pin-dir", pins, "follow"])
    for service in range(SERVICES):
        assert loader.make(change(service, 0))
    servers = serve()
    reports = os.pipe()
    clients = [fork(connect_on_and_on, versions, number, reports[1]) for number in range(CLIENTS)]
    try:
        fire(loader, versions, changes, kills)
    finally:
        versions.end()
        failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in clients)
        for pid in servers:
            os.kill(pid, signal.SIGTERM)
        loader.process.stdin.close()
    counts = struct.unpack(f"={CLIENTS - failed}I", os.read(reports[0], 4 * CLIENTS)) if failed < CLIENTS else ()
    print(json.dumps({"failed": failed, "changes": changes, "kills": loader.kills, "connections": sum(counts)}))
    sys.exit(failed != 0)


main()
