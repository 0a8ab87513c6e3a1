"""Plays sequences of socket calls twice, behind a DNAT with connection tracking and by the socket path, and compares what
the calls return.

same.py LOADER CGROUP KEPT_DIR FIRST_SEED COUNT [SECONDS]

Sequences in KEPT_DIR come first. What differs is made as short as it can be and printed, one JSON document a line. With
SECONDS it goes on for so long, whatever COUNT is."""

import json
import multiprocessing
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from calls import Caller
from sequences import generate, normal
from table import Socketed, Tracked
from world import World

# How many sequences are played before somebody looks whether anything is left of them.
CHUNK = 100


def side(make, pipe, cpu):
    """A process that plays what it is sent."""
    os.sched_setaffinity(0, {cpu % os.cpu_count()})
    world = World()
    translator = make(world)
    caller = Caller(world, translator)
    pipe.send("ready")
    while True:
        wanted = pipe.recv()
        pipe.send(translator.leftovers() if wanted is None else caller.play(wanted))


class Side:
    def __init__(self, make, cpu):
        self.pipe, theirs = multiprocessing.Pipe()
        multiprocessing.Process(target=side, args=(make, theirs, cpu), daemon=True).start()
        theirs.close()

    def begin(self, wanted):
        self.pipe.send(wanted)

    def end(self):
        if not self.pipe.poll(60):
            raise RuntimeError("a side hangs")
        return self.pipe.recv()


class Pair:
    def __init__(self, loader, cgroup):
        self.sides = Side(Tracked, 0), Side(lambda world: Socketed(world, loader, cgroup), 1)
        for each in self.sides:
            each.end()

    def play(self, sequence):
        """What each side saw."""
        for each in self.sides:
            each.begin(sequence)
        return [each.end() for each in self.sides]

    def differs(self, sequence):
        """Whether it does each time: a packet that comes late is no difference."""
        for _ in range(3):
            tracked, socketed = self.play(sequence)
            if tracked == socketed:
                return False
        return True

    def leaves(self, sequence):
        before = self.leftovers()
        self.play(sequence)
        return self.leftovers() != before

    def leftovers(self):
        self.sides[1].begin(None)
        return self.sides[1].end()

    def shorten(self, sequence, fails):
        """Takes away one call after the other as long as it still fails."""
        index = len(sequence) - 1
        while index >= 0:
            shorter = normal(sequence[:index] + sequence[index + 1:])
            if len(shorter) < len(sequence) and fails(shorter):
                sequence = shorter
                index = len(sequence)
            index -= 1
        return sequence

    def report(self, name, sequence):
        sequence = self.shorten(sequence, self.differs)
        tracked, socketed = self.play(sequence)
        steps = [{"call": call, "tracked": one, **({} if one == other else {"socket": other})}
                 for call, one, other in zip(sequence, tracked, socketed)]
        print(json.dumps({"differs": name, "sequence": sequence, "steps": steps}), flush=True)


def main(loader, cgroup, kept, seed, count, seconds=0):
    pair = Pair(loader, cgroup)
    began, failed, late, played = time.monotonic(), 0, 0, 0
    chunk, left = [], pair.leftovers()

    def look():
        nonlocal failed, left
        before, left = left, pair.leftovers()
        if left and left != before:
            failed += 1
            name, culprit = next(((name, each) for name, each in chunk if pair.leaves(each)), ("several", []))
            print(json.dumps({"leaves": name, "what": left, "sequence": pair.shorten(culprit, pair.leaves)}), flush=True)
            left = pair.leftovers()
        chunk.clear()

    def play(name, sequence):
        nonlocal failed, late, played
        tracked, socketed = pair.play(sequence)
        played += 1
        if tracked != socketed:
            if pair.differs(sequence):
                failed += 1
                pair.report(name, sequence)
            else:
                late += 1
        chunk.append((name, sequence))
        if len(chunk) == CHUNK:
            look()

    for path in sorted(pathlib.Path(kept).glob("*.json")):
        play(path.name, json.loads(path.read_text()))
    seed, end = int(seed), int(seed) + int(count)
    while (seed < end or time.monotonic() - began < float(seconds)) and failed < 20:
        play(seed, generate(seed))
        seed += 1
    look()
    print(json.dumps({"played": played, "failed": failed, "late": late, "next_seed": seed,
                      "seconds": round(time.monotonic() - began, 1)}))
    sys.exit(failed > 0)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main(*sys.argv[1:])
