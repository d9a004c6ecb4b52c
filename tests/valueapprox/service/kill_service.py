"""Kill a service under load, again and again; after each time compare it with a learner that was never disturbed.

Run as a script: FOLDER ROUNDS SEED. Children are forked from a process that has the kernels, so a round is short.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from valueapprox import Adam, Network
from valueapprox.service import Service, ServiceSettings, Transitions
from valueapprox.service.messages import DUPLICATE
from valueapprox.service.records import Plan, decode
from valueapprox.service.segments import read
from valueapprox.td.predictions import Predictions

THREADS, MOST = 4, 12  # transitions in a request
SETTINGS = ServiceSettings(
    Network((3, 8, 2)),
    Adam(1e-3),
    discounts=(0.5, 0.95),
    lams=(0.9, 0.9),
    max_streams=3,  # fewer than there are, so that traces are given up
    checkpoint_transitions=400,
    segment_bytes=4096,
    retain_bytes=2**40,
)


def transitions(stream, first, n):
    """The transitions of a stream are the same whenever they are sent."""
    rows = [np.random.default_rng([stream, number]).normal(size=9) for number in range(first, first + n)]
    kinds = [np.random.default_rng([stream, number, 1]).integers(0, 8) for number in range(first, first + n)]
    rows, kinds = np.array(rows), np.array(kinds)
    return Transitions.of(f"stream {stream}", first, rows[:, :3], rows[:, 3:5], rows[:, 6:], kinds == 0, kinds == 1)


def serve(folder, acknowledged, pipe, seed):
    """What the child does until it is killed: learn, and say through the pipe what was acknowledged."""
    durability = ("batch", "every")[seed % 2]
    service = Service(ServiceSettings(**{**vars(SETTINGS), "durability": durability}), folder)

    def feed(stream):
        rng, number = random.Random(seed * 100 + stream), acknowledged[stream]
        while True:
            first = max(0, number - rng.randrange(3))  # some are sent again
            n = number - first + 1 + rng.randrange(MOST)
            result = service.learn(transitions(stream, first, n))
            assert result.rejected == result.diverged == 0
            number = first + n
            os.write(pipe, f"{stream} {number}\n".encode())
            if rng.random() < 0.02:
                service.load_weights(np.random.default_rng(number).normal(size=SETTINGS.net.size) / 3)

    threads = [threading.Thread(target=feed, args=(stream,), daemon=True) for stream in range(THREADS)]
    for thread in threads:
        thread.start()
    threads[0].join()


class Undisturbed:
    """A learner that is fed the journal's records as they are, without any service."""

    def __init__(self):
        self.learner = Predictions(SETTINGS.net, SETTINGS.optimizer, SETTINGS.discounts, SETTINGS.lams, streams=3)
        self.position = self.version = 0
        self.seen = set()
        self.used = []  # streams that have a trace, least recently used first: [name, place]

    def place(self, name, among):
        found = next((entry for entry in self.used if entry[0] == name), None)
        if found is not None:
            self.used.remove(found)
            self.used.append(found)
            return found[1], False
        if len(self.used) < 3:
            place = len(self.used)
        else:
            oldest = next(entry for entry in self.used if entry[0] not in among)
            self.used.remove(oldest)
            place = oldest[1]
        self.used.append([name, place])
        return place, True

    def feed(self, folder):
        for number, payload in read(folder, self.position):
            what = decode(payload)
            if isinstance(what, Plan):
                self.learn(*what)
            else:
                self.learner.restart(what)
                self.version += 1
            self.position = number + 1

    def learn(self, batch, cut):
        start = 0
        while start < len(batch):
            stop, among = start, []  # as many rows as have at most three streams among them
            while stop < len(batch):
                name = batch.names[batch.stream[stop]]
                if name not in among and len(among) == 3:
                    break
                among += [name] * (name not in among)
                stop += 1
            places = {name: self.place(name, among) for name in among}
            begun = {name for name in among if places[name][1]}
            for t in range(start, stop):
                name, number = batch.names[batch.stream[t]], int(batch.sequence[t])
                assert (name, number) not in self.seen, f"{name} {number} was learned twice"
                self.seen.add((name, number))
                rows = slice(t, t + 1)
                self.learner.learn(
                    places[name][0], batch.state[rows], batch.cumulants[rows], batch.next_state[rows],
                    batch.terminated[rows], batch.truncated[rows], cut=bool(cut[t]) or name in begun,
                )  # fmt: skip
                begun.discard(name)
                self.version += 1
            start = stop


def check(folder, copy, acknowledged, undisturbed):
    """Recover a copy of what the killed process left, and compare."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    with Service.open(copy) as service:
        undisturbed.feed(copy)
        np.testing.assert_array_equal(service.weights().w, undisturbed.learner.w)
        assert service.version == undisturbed.version
        for stream, number in enumerate(acknowledged):
            assert {(f"stream {stream}", i) for i in range(number)} <= undisturbed.seen
            if number:
                again = service.learn(transitions(stream, 0, number))
                assert (again.status == DUPLICATE).all()
        np.testing.assert_array_equal(service.weights().w, undisturbed.learner.w)
        return service.notices


def main(folder, rounds, seed):
    rng, acknowledged, undisturbed = random.Random(seed), [0] * THREADS, Undisturbed()
    folder = Path(folder)
    Service(SETTINGS).close()  # the kernels, before forking
    killed_while_starting = torn = 0
    for number in range(rounds):
        out, pipe = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(out)
                serve(folder / "service", acknowledged, pipe, seed + number)
            finally:
                os._exit(1)
        os.close(pipe)
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(os.fdopen(out, "rb")))  # noqa: B023  (joined below)
        reader.start()
        if number % 4 == 3:  # at once, in the middle of starting or replaying
            time.sleep(rng.uniform(0, 0.05))
        else:
            deadline = time.monotonic() + 60
            while not lines and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the service ended by itself"
        reader.join()
        killed_while_starting += not lines
        for line in lines:
            if line.endswith(b"\n"):
                stream, count = map(int, line.split())
                acknowledged[stream] = max(acknowledged[stream], count)
        if (folder / "service" / "checkpoint.npz").exists():
            notices = check(folder / "service", folder / "copy", acknowledged, undisturbed)
            torn += any("cut off" in notice for notice in notices)
    print(
        json.dumps(
            {
                "kills": rounds,
                "killed_while_starting": killed_while_starting,
                "torn": torn,
                "acknowledged": sum(acknowledged),
                "learned": len(undisturbed.seen),
                "version": undisturbed.version,
                "records": undisturbed.position,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
