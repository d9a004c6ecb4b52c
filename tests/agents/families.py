"""Processes that a process has started: which there are, and whether they have ended."""

import contextlib
import time
from pathlib import Path


def family(pid):
    """Process ids of all descendants that run now, each with its start time, so that a number used again is not it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = (int(fields[1]), fields[19], fields[0])
    found, wanted = set(), {pid}
    while wanted:
        children = {p for p, (parent, _, state) in parents.items() if parent in wanted and state != "Z"}
        found |= {(p, parents[p][1]) for p in children}
        wanted = children
    return found


def alive(processes):
    left = set()
    for pid, started in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[19] == started and fields[0] != "Z":
                left.add((pid, started))
    return left


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False
