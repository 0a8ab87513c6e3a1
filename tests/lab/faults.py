#!/usr/bin/python3
"""What happens while the processes of the node agent are killed in turn. Each writes JSON lines with monotonic times, in seconds.

  faults.py make                          prints the Services, for kubectl
  faults.py change SECONDS RATE           replaces endpoints in the API, so many times a second
  faults.py ask SECONDS                   serves on all backends' addresses, and connects to the Services
  faults.py kill SECONDS EVERY            kills one process of the agent each EVERY seconds, of each name in turn
  faults.py judge CHANGES ANSWERS KILLS CALM
                                          says what went wrong. The agent is calm CALM seconds after a kill

Version v of a Service has the backends v and v - 1: a backend is gone when version v + 2 is in the API."""

import json
import multiprocessing
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from http.client import HTTPSConnection

SERVICES = 8
CLIENTS = 4


def say(**what):
    os.write(1, (json.dumps(what) + "\n").encode())


def backend(service, version):
    return f"10.{200 + service}.{version >> 8}.{version & 255}"


def version_of(address):
    parts = address.split(".")
    return int(parts[2]) << 8 | int(parts[3])


def slice_of(service, version):
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"f{service}-x", "namespace": "default", "labels": {"kubernetes.io/service-name": f"f{service}"}},
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [backend(service, of)], "conditions": {"ready": True}} for of in (version, version - 1)],
    }


def make():
    for service in range(SERVICES):
        spec = {"clusterIP": f"10.233.64.{100 + service}", "ports": [{"port": 80}]}
        print(json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"f{service}", "namespace": "default"}, "spec": spec}))
        print(json.dumps(slice_of(service, 1)))


def change(seconds, rate):
    tls = ssl.create_default_context(cafile=os.environ["LAB"] + "/kubernetes/apiserver.crt")
    tls.check_hostname = False
    api = HTTPSConnection("10.6.0.10", 6443, context=tls, timeout=30)
    headers = {"Authorization": "Bearer admin-token", "Content-Type": "application/json"}
    start = time.monotonic()
    for number in range(int(seconds * rate)):
        time.sleep(max(0, start + number / rate - time.monotonic()))
        service, version = number % SERVICES, 2 + number // SERVICES
        begun = time.monotonic()
        path = f"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/f{service}-x"
        api.request("PUT", path, json.dumps(slice_of(service, version)), headers)
        answer = api.getresponse()
        text = answer.read()
        if answer.status != 200:
            sys.exit(f"{answer.status}: {text[:300]}")
        say(service=service, version=version, begun=begun, done=time.monotonic())


def serve(listener):
    while True:
        connection, _ = listener.accept()
        connection.sendall(connection.getsockname()[0].encode())
        connection.close()


def client(number, until):
    turn = number
    while time.monotonic() < until:
        turn += 1
        service, begin = turn % SERVICES, time.monotonic()
        try:
            with socket.create_connection((f"10.233.64.{100 + service}", 80), timeout=5) as connection:
                reached = connection.recv(64).decode()
            say(service=service, begin=begin, end=time.monotonic(), reached=reached)
        except OSError as error:
            say(service=service, begin=begin, end=time.monotonic(), error=str(error))
        time.sleep(0.01)


def ask(seconds):
    # There before the first client.
    listener = socket.create_server(("0.0.0.0", 8080), backlog=1000)
    until = time.monotonic() + seconds
    clients = [multiprocessing.Process(target=client, args=(number, until)) for number in range(CLIENTS)]
    for one in clients:
        one.start()
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    for one in clients:
        one.join()


def read(path, otherwise=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return otherwise


def agent():
    """The agent's processes by name: all below the one that is here to start it anew."""
    children = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        stat = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if stat and stat[0] != "Z":
            children.setdefault(int(stat[1]), []).append(int(pid))
    names, left = {}, list(children.get(int(read("/run/supervisor")), []))
    while left:
        pid = left.pop()
        left += children.get(pid, [])
        words = read(f"/proc/{pid}/cmdline").split("\0")
        name = " ".join(os.path.basename(word) for word in words[:4] if word and not word.startswith("--kube"))
        if words[0] and not name.startswith("sleep"):
            names.setdefault(name, []).append(pid)
    return names


def kill(seconds, every):
    until, killed = time.monotonic() + seconds, Counter()
    while time.monotonic() < until:
        names = agent()
        if names:
            name = min(names, key=lambda one: (killed[one], one))
            killed[name] += 1
            say(at=time.monotonic(), killed=name)
            for pid in names[name]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        time.sleep(every)


def lines(path):
    return [json.loads(line) for line in read(path).splitlines() if line.startswith("{")]


def judge(changes, answers, kills, calm):
    gone = {(one["service"], one["version"] - 2): one["done"] for one in lines(changes)}
    begun = {(one["service"], one["version"]): one["begun"] for one in lines(changes)}
    kills = lines(kills)
    times = [one["at"] for one in kills]
    after, at_rest, wrong, total = [], [], Counter(), 0
    for one in lines(answers):
        total += 1
        if "error" in one:
            wrong[one["error"]] += 1
            continue
        key = (one["service"], version_of(one["reached"]))
        if begun.get(key, 0) > one["end"] or not one["reached"].startswith(f"10.{200 + one['service']}."):
            wrong["a backend that is not the Service's"] += 1
        stale = one["begin"] - gone.get(key, float("inf"))
        if stale > 0:
            (at_rest if all(not 0 <= one["begin"] - at < calm for at in times) else after).append(stale * 1000)
    print(json.dumps({
        "connections": total, "changes": len(gone), "kills": len(kills), "killed": dict(Counter(one["killed"] for one in kills)), "wrong": wrong,
        "late": {"calm": [len(at_rest), round(max(at_rest, default=0))], "afterKill": [len(after), round(max(after, default=0))]},
    }))


WHAT = {"make": make, "change": change, "ask": ask, "kill": kill}
if sys.argv[1] == "judge":
    judge(*sys.argv[2:5], float(sys.argv[5]))
else:
    WHAT[sys.argv[1]](*map(float, sys.argv[2:]))
