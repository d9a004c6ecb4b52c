"""Damage the last segment of a service's journal again and again: nothing that was acknowledged may be lost silently.

A service learns and is killed. Each trial takes a copy of its folder, zeroes blocks of the journal's last segment, cuts
it, overwrites a part of it or removes it, and starts a service there. That either has all that was acknowledged, to the
last bit of the weights, or is refused by an error that names the records, with no file changed. Torn tails that nobody
was told about are appended too; with those it has to start.

    python tests/bars/journal_damage.py --trials 200
"""

import argparse
import collections
import itertools
import json
import random
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from valueapprox import Adam, Network
from valueapprox.service import JournalError, Service, ServiceSettings, StorageError, Transitions
from valueapprox.service.messages import DUPLICATE

SETTINGS = ServiceSettings(Network((3, 8, 2), dtype="float64"), Adam(), discounts=(0.5, 0.9), lams=(0.0, 0.8))
KINDS = ("zeroed blocks", "zeroed end", "cut", "cut at a record", "overwritten", "removed", "torn, not acknowledged")


def transitions(first, n):
    """Transitions of one stream; the same whenever they are asked for."""
    rows = np.random.default_rng(0).normal(size=(4000, 8))[first : first + n]
    return Transitions.of("a", first, rows[:, :3], rows[:, 3:5], rows[:, 5:])


def killed(folder, records, rng, segment_bytes):
    """A killed service's folder, with a checkpoint somewhere; how much was acknowledged, and the weights."""
    n = 0
    settings = replace(SETTINGS, segment_bytes=segment_bytes)
    with Service(settings, folder / "service") as service:
        checkpoint = rng.randrange(records - 1)
        for i in range(records):
            size = rng.choice((1, 5, 20, 60))
            service.learn(transitions(n, size))
            n += size
            if i == checkpoint:
                service.checkpoint()
        shutil.copytree(service.folder, folder / "killed")
        return folder / "killed", n, service.weights().w


def segment_of(folder):
    """The journal's last segment."""
    return max(folder.glob("journal-*.log"))


def starts(data):
    """Where the records of a segment start."""
    return [match.start() for match in re.finditer(b"VREC", data)]


def damage(folder, kind, rng):
    """Do it; the numbers of the records that are not whole any more, or None if the file is as it was."""
    file = segment_of(folder)
    data = file.read_bytes()
    new = damaged(data, kind, rng)
    if new == data:
        return None
    if new is None:
        file.unlink()
        new = b""
    else:
        file.write_bytes(new)
    at = [*starts(data), len(data)]
    return [
        int.from_bytes(data[start + 8 : start + 16], "little")
        for start, stop in itertools.pairwise(at)
        if new[start:stop] != data[start:stop]
    ]


def damaged(data, kind, rng):
    """Other bytes in place of those of the segment; None for none at all."""
    size, block = len(data), rng.choice((16, 512, 4096))
    if kind == "removed":
        return None
    if kind == "zeroed blocks":
        start = rng.randrange((size + block - 1) // block) * block
        length = min(block * rng.randrange(1, 4), size - start)
        return data[:start] + bytes(length) + data[start + length :]
    if kind == "zeroed end":
        start = rng.randrange(size)
        return data[:start] + bytes(size - start)
    if kind == "cut":
        return data[: rng.randrange(size)]
    if kind == "cut at a record":
        return data[: rng.choice(starts(data))]
    if kind == "overwritten":
        start = rng.randrange(size)
        length = min(rng.randrange(1, 2000), size - start)
        return data[:start] + rng.randbytes(length) + data[start + length :]
    record = bytearray(data[starts(data)[-1] :])  # with the next number, and not whole
    record[8:16] = (int.from_bytes(record[8:16], "little") + 1).to_bytes(8, "little")
    return data + bytes(record[: rng.randrange(1, len(record))])


def contents(folder):
    """All files, as they are."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def trial(folder, kind, acknowledged, weights, rng):
    """What comes of it; in capitals, what may not."""
    lost = damage(folder, kind, rng)
    if lost is None:
        return "not damaged"
    before = contents(folder)
    try:
        service = Service.open(folder)
    except JournalError as error:
        named = re.search(r"records? (\d+)(?: to (\d+))? of the journal in .* had been on disk", str(error))
        if contents(folder) != before:
            return "REFUSED, AND CHANGED"
        if kind == "torn, not acknowledged":
            return "REFUSED NEEDLESSLY"
        if named is None:
            return "refused" if re.search("in record|expected the header", str(error)) else "REFUSED FOR NO REASON"
        first, last = int(named[1]), int(named[2] or named[1])
        return "refused" if [*range(first, last + 1)] == lost[:-1] else "REFUSED WITH WRONG NUMBERS"
    with service:
        try:
            again = service.learn(transitions(0, acknowledged)).status
        except StorageError:
            return "BROKEN AFTERWARDS"
        if (again == DUPLICATE).all() and np.array_equal(service.weights().w, weights):
            return "recovered" if lost else "whole"
        said = any("restored" not in notice and "learned again" not in notice for notice in service.notices)
        return "LOSS WITH A NOTICE" if said else "SILENT LOSS"


def run(folder, trials, seed=0):
    """`trials` trials; {kind: {outcome: how often}}. Six of them share a killed service."""
    rng, counts = random.Random(seed), {kind: collections.Counter() for kind in KINDS}
    for i in range(trials):
        if i % 6 == 0:
            shutil.rmtree(folder / "one", ignore_errors=True)
            segment_bytes = rng.choice((1, 4000, 2**20))
            source, acknowledged, weights = killed(folder / "one", rng.randrange(2, 16), rng, segment_bytes)
        kind = KINDS[i % len(KINDS)]
        shutil.rmtree(folder / "copy", ignore_errors=True)
        shutil.copytree(source, folder / "copy")
        counts[kind][trial(folder / "copy", kind, acknowledged, weights, rng)] += 1
    return {kind: dict(count) for kind, count in counts.items()}


def bad(counts):
    """How many trials ended as none may: in capitals."""
    return sum(n for count in counts.values() for outcome, n in count.items() if outcome.isupper())


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), options.trials, options.seed)
    print(json.dumps(counts, indent=2))
    silent = sum(count.get("SILENT LOSS", 0) for count in counts.values())
    print(f"{options.trials} trials, {silent} silent losses, {bad(counts) - silent} others that may not be")
    return 1 if bad(counts) else 0


if __name__ == "__main__":
    sys.exit(main())
