"""Random sequences of socket calls, and what is left out of them."""

import random

from calls import DESTINATIONS, FORMS
from table import BASE, Table
from world import BACKENDS

SLOTS = range(3)


def generate(seed):
    """The sequence of that seed."""
    draw = random.Random(seed)
    kinds = draw.choice((["udp"], ["udp"], ["udp", "udp", "tcp"], ["tcp"], ["mptcp", "tcp"], ["udp", "lite"]))
    family = draw.choice("446")
    # A few addresses: what matters is what they have in common.
    names = draw.sample(sorted(DESTINATIONS), 4) + draw.sample(sorted(BASE), 2)
    if "udp" not in kinds and draw.random() < 0.95:
        # A SYN that comes back as unreachable is heard only when it is repeated, a second later.
        names = [name for name in names if name != "unreachable"]
    forms = draw.choice((["4"], ["6"], ["4", "m"], list(FORMS))) if family == "6" else ["4", "4", "4", "m"]
    sequence = [["socket", 0, draw.choice(kinds), family, draw.random() < 0.1]]
    for _ in range(draw.randint(4, 16)):
        sequence.append(call(draw, kinds, family, lambda: f"{draw.choice(names)}/{draw.choice(forms)}"))
    return normal(sequence)


def call(draw, kinds, family, destination):
    slot = draw.choice((0, 0, 0, 1, 2))
    one = lambda: draw.choices(*zip(*(
        (["sendto", slot, destination()], 24), (["connect", slot, destination()], 14), (["send", slot], 12),
        (["recvfrom", slot], 16), (["recvfrom", slot, "MSG_PEEK"], 5), (["recv", slot], 3),
        (["recvmsg", slot, draw.choice((3, 64))], 6), (["sendmmsg", slot, [destination() for _ in range(draw.randint(1, 4))]], 5),
        (["getpeername", slot], 8), (["getsockname", slot], 5), (["disconnect", slot], 4), (["error", slot], 2),
    )))[0]
    return draw.choices(*zip(
        (one(), 86), (["socket", slot, draw.choice(kinds), family, draw.random() < 0.1], 5),
        (["bind", slot, draw.choice(("any", "own", "mapped")), draw.choice((0, 20001, 20002))], 3),
        (["shutdown", slot, draw.choice((0, 1, 2))], 2), (["close", slot], 2),
        (["dup", slot, draw.choice((0, 1, 2))], 2), (["fork", one()], 2),
        (["recverr", slot], 2), (["errors", slot], 2),
        (["set", draw.choice(sorted(BASE)), draw.choice(["b1", "b2", "b3", None, Table.GONE])], 3),
        (["move", draw.choice(["one", "two", "three", "least", None])], 3),
    ))[0]


class Socket:
    """What the calls have made of a socket, as far as it matters for what is left out."""

    def __init__(self, kind, family):
        self.kind, self.family, self.asked = kind, family, {}
        # Whom it may be connected to: more than one if the kernel may have refused the last.
        self.peers = set()
        self.waiting = False
        self.refused = None
        self.called = set()


def normal(sequence):
    """The sequence without what differs on purpose, or cannot be the same. Each rule stands in bins/bpf-lb-load/README.md."""
    sockets, table, result = {}, Table(), []
    for each in sequence:
        if each[0] in ("set", "move"):
            result += leave_moved(sockets, table, each)
            result.append(each)
        elif each[0] == "socket":
            sockets[each[1]] = Socket(*each[2:4])
            result.append(each)
        else:
            inner = each[1] if each[0] == "fork" else each
            before = allowed(sockets, table, inner)
            if before is not None:
                result += before + [each]
                follow(sockets, table, inner)
    return result


def target(table, destination):
    """The name that is asked, and the backend that it leads to, each with the family."""
    name, form = destination.split("/")
    family = "6" if form == "6" else "4"
    backend = table.backend(name) if name in BASE or name == "vip" else name
    return (name, family), (backend, family)


def destinations(call):
    if call[0] in ("connect", "sendto"):
        return [call[2]]
    return call[2] if call[0] == "sendmmsg" else []


def allowed(sockets, table, call):
    """The calls that have to come before this one, or None if it is left out."""
    made = sockets.get(call[1])
    if made is None:
        return None
    if made.kind not in ("udp", "lite"):
        # The kernel's worker tells of the end of a Multipath TCP connection when it gets to it.
        is_late = made.kind == "mptcp" and "shutdown" in made.called
        return None if is_late or is_marked_by_refusal(made, table, call) else []
    if call[0] == "disconnect" and any(name[1] == "6" for name, _ in made.peers):
        # Linux does not forget the last peer's IPv6 address, and hears that one only.
        return None
    before = []
    for destination in destinations(call):
        name, backend = target(table, destination)
        if backend[0] is None:
            # Refused at once here, and by an answer there.
            return None
        if call[0] != "connect" and any(peer[1] == backend and peer[0] != name for peer in made.peers):
            return None
        if made.waiting and (call[0] == "connect" or made.asked.get(backend, name) != name):
            before = [["drain", call[1]]]
    names = [target(table, destination) for destination in destinations(call)]
    if len({name for name, _ in names}) > len({backend for _, backend in names}):
        return None
    return before


def is_marked_by_refusal(made, table, call):
    """Whether it can be seen that no packet has left a TCP socket whose call was refused: it is as it was, without an address.
    One that got an address in the other family before is answered by nobody, there."""
    if call[0] == "getsockname":
        return made.refused is not None
    families = {name[1] for name, _ in (target(table, destination) for destination in destinations(call))}
    refused = any(target(table, destination)[1][0] is None for destination in destinations(call))
    before = {family for _, family in made.asked}
    return refused and (not made.called.isdisjoint(("bind", "shutdown", "disconnect")) or before - families != set()) \
        or made.refused is not None and families - {made.refused} != set()


def is_connected(made, destination):
    """Whether the kernel is sure to connect it: neither its own address nor the other one's family stands against that."""
    name, form = destination.split("/")
    families = {form, *(name[1] for name, _ in made.peers)}
    return families == {made.family} and "bind" not in made.called and name != "nowhere"


def follow(sockets, table, call):
    made = sockets.get(call[1])
    if call[0] == "dup" and made:
        sockets[call[2]] = made
    elif call[0] == "close" and made:
        del sockets[call[1]]
    elif made:
        for destination in destinations(call):
            name, backend = target(table, destination)
            made.asked[backend] = name
            if backend[0] is None:
                made.refused = name[1]
            if call[0] == "connect":
                if is_connected(made, destination):
                    made.peers.clear()
                made.peers.add((name, backend))
        if call[0] == "disconnect":
            made.peers.clear()
        made.called.add(call[0])
        made.waiting |= call[0] in ("send", "sendto", "sendmmsg")
        made.waiting &= call[0] != "drain"


def leave_moved(sockets, table, change):
    """Closes the sockets that are connected to what a change takes away, as end-sockets does, and reads what others wait for."""
    before = {name: table.backend(name) for name in (*BASE, "vip")}
    table.change(change)
    moved = {name for name in before if table.backend(name) != before[name]}
    result = []
    for slot, made in list(sockets.items()):
        if made.kind != "udp":
            continue
        if any(name[0] in moved for name, _ in made.peers):
            result.append(["close", slot])
            del sockets[slot]
        elif made.waiting:
            result.append(["drain", slot])
    return result
