"""Records the file calls under a folder, in their order, and what a loss of power could leave after each of them.

`Recorder` stands between this process and the system: each call is made, and written down. `audit` says which rules of
writing safely the order breaks. `worlds` are folders as a loss of power may leave them: of what was not forced to disk,
any part may be there.

A sync call can be left out by naming its place in the code, as if its line were deleted; so a test can show that the
rules, or what is found afterwards, depend on each of them.
"""

import builtins
import errno
import io
import os
import random
import sys
import threading
from pathlib import Path
from typing import NamedTuple

PACKAGE = str(Path(__file__).parents[3] / "valueapprox")


class Event(NamedTuple):
    op: str  # open, create, write, truncate, sync, sync folder, rename, remove, answer
    name: str = ""
    target: str = ""  # of a rename
    place: str = ""  # of a sync: function and line from which it is called


class File:
    """What is in a file now, and what was when it was last forced to disk."""

    def __init__(self, now=b"", durable=b""):
        self.now, self.durable = now, durable


class Recorder:
    """Record what happens to the files of a folder, until the end of the `with` statement.

    Parameters
    ----------
    folder
        Whose files; not those of folders in it.
    left_out
        The place of a sync call that is not made.
    killed
        What lies in the folder at the start was left by a process that was killed: it may not be on disk yet.
    keep_states
        Keep what `worlds` needs.
    """

    CALLS = ("open", "close", "pwrite", "fsync", "fdatasync", "ftruncate", "unlink", "remove", "rename", "replace")

    def __init__(self, folder, left_out=None, killed=False, keep_states=False):
        self.folder, self.left_out, self.keep_states = Path(folder).resolve(), left_out, keep_states
        self.folder.mkdir(parents=True, exist_ok=True)
        self.events, self.states, self.n_answers = [], [], 0
        self._lock = threading.RLock()
        self._descriptors = {}  # -> name; "" is the folder
        self._names = {path.name: File(*2 * [path.read_bytes()]) for path in sorted(self.folder.iterdir())}
        self._durable_names = dict(self._names)
        self.fail = None  # the next sync of a file whose name begins so is an error
        self.left_by_killed = sorted(self._names) if killed else []

    def __enter__(self):
        self._real = {name: getattr(os, name) for name in self.CALLS}
        self._real_io_open = io.open
        for name in self.CALLS:
            setattr(os, name, getattr(self, f"_{name}"))
        io.open = builtins.open = self._io_open
        return self

    def __exit__(self, *_):
        for name, function in self._real.items():
            setattr(os, name, function)
        io.open = builtins.open = self._real_io_open

    def answer(self):
        """Say that somebody is told now that all is on disk."""
        with self._lock:
            self.n_answers += 1
            self._add(Event("answer"))

    def places(self):
        """From where files and the folder were forced to disk."""
        return sorted({event.place for event in self.events if event.op in ("sync", "sync folder")})

    def _name(self, path):
        """The name of a file in the folder, "" for the folder; None for what lies elsewhere."""
        path = Path(os.fsdecode(path)).absolute()
        if path == self.folder:
            return ""
        return path.name if path.parent == self.folder else None

    def _add(self, event):
        self.events.append(event)
        if self.keep_states:
            tables = (self._durable_names, self._names)
            self.states.append(
                {
                    name: [(t[name].durable, t[name].now) if name in t else None for t in tables]
                    for name in {*self._names, *self._durable_names}
                }
            )

    def _look(self):
        """Note what was written since the last look; also through buffers of Python's."""
        for name, file in self._names.items():
            try:
                descriptor = self._real["open"](self.folder / name, os.O_RDONLY)
            except FileNotFoundError:
                continue
            now = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            self._real["close"](descriptor)
            if now != file.now:
                file.now = now
                self._add(Event("write", name))

    def _opened(self, path, descriptor, was_there):
        name = None if isinstance(path, int) else self._name(path)
        if name is None:
            self._descriptors.pop(descriptor, None)
            return
        self._descriptors[descriptor] = name
        if name and not was_there:
            self._names[name] = File()
            self._add(Event("create", name))

    def _open(self, path, *arguments, **options):
        with self._lock:
            was_there = os.path.lexists(path)
            descriptor = self._real["open"](path, *arguments, **options)
            self._opened(path, descriptor, was_there)
            return descriptor

    def _io_open(self, path, *arguments, **options):
        with self._lock:
            was_there = isinstance(path, int) or os.path.lexists(path)
            file = self._real_io_open(path, *arguments, **options)
            self._opened(path, file.fileno(), was_there)
            return file

    def _close(self, descriptor):
        with self._lock:
            self._descriptors.pop(descriptor, None)
            self._real["close"](descriptor)

    def _pwrite(self, descriptor, data, offset):
        with self._lock:
            written = self._real["pwrite"](descriptor, data, offset)
            self._look()
            return written

    def _ftruncate(self, descriptor, size):
        with self._lock:
            self._look()
            self._real["ftruncate"](descriptor, size)
            name = self._descriptors.get(descriptor)
            if name and len(self._names[name].now) != size:
                self._names[name].now = self._names[name].now[:size]
                self._add(Event("truncate", name))

    def _sync(self, function, descriptor):
        place = _place()
        with self._lock:
            self._look()
            name = self._descriptors.get(descriptor)
            if self.fail is not None and name is not None and name.startswith(self.fail):
                self.fail = None
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if name is not None and place == self.left_out:
                return
            function(descriptor)
            if name == "":
                self._durable_names = dict(self._names)
                self._add(Event("sync folder", place=place))
            elif name is not None:
                self._names[name].durable = self._names[name].now
                self._add(Event("sync", name, place=place))

    def _fsync(self, descriptor):
        self._sync(self._real["fsync"], descriptor)

    def _fdatasync(self, descriptor):
        self._sync(self._real["fdatasync"], descriptor)

    def _unlink(self, path, **options):
        with self._lock:
            self._look()
            self._real["unlink"](path, **options)
            name = self._name(path)
            if name:
                self._names.pop(name, None)
                self._add(Event("remove", name))

    _remove = _unlink

    def _replace(self, source, target, **options):
        with self._lock:
            self._look()
            self._real["replace"](source, target, **options)
            name, to = self._name(source), self._name(target)
            if name:
                self._names[to] = self._names.pop(name)
                self._add(Event("rename", name, to))

    _rename = _replace


def _place():
    """The function and line in the package from which a sync is called; for `sync_folder`, who called that."""
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE) and code.co_name != "sync_folder":
            return f"{Path(code.co_filename).name}:{code.co_qualname}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def audit(recorder):
    """Which rules the order of the calls breaks, as sentences; none is as it should be.

    A name that is renamed or removed needs no sync of its own. Of what a killed process left, the last segment and
    the names must be forced to disk before the first answer.
    """
    broken = []
    unsynced, cut = {name for name in recorder.left_by_killed if name.endswith(".log")}, set()
    unsynced = set(sorted(unsynced)[-1:])
    left = {"what was there"} if recorder.left_by_killed else set()
    new_names = set(left)
    for event in recorder.events:
        op, name = event.op, event.name
        if op in ("write", "truncate") and name in cut:
            broken.append(f"{name} was cut, and written to before the cut was forced to disk")
        if op == "truncate" and any("end" in other for other in unsynced - {name}):
            broken.append(f"{name} was cut before the copy of its last record was forced to disk")
        if op == "truncate" and new_names - left:
            broken.append(f"{name} was cut before {sorted(new_names)} was forced to disk")
        if op in ("write", "truncate"):
            unsynced.add(name)
        if op == "truncate":
            cut.add(name)
        if op == "sync":
            unsynced.discard(name)
            cut.discard(name)
        if op == "rename":
            if name in unsynced:
                broken.append(f"{name} was renamed to {event.target} before it was forced to disk")
            unsynced.discard(name)
        if op == "remove":
            if name.endswith(".log") and new_names:
                broken.append(f"{name} was removed before {sorted(new_names)} was forced to disk")
            unsynced.discard(name)
            cut.discard(name)
            new_names.discard(name)
        if op == "create":
            new_names.add(name)
        if op == "rename":
            new_names = new_names - {name} | {event.target}
        if op == "sync folder":
            new_names = set()
        if op == "answer":
            if unsynced:
                broken.append(f"answered before {sorted(unsynced)} was forced to disk")
            if new_names:
                broken.append(f"answered before the names {sorted(new_names)} were forced to disk")
    return broken


def worlds(recorder, seed, n):
    """`n` folders that a loss of power may leave: (answers given until then, {name: content}).

    The names and contents that were not forced to disk are there or not, each by chance; a content also in part.
    """
    rng = random.Random(seed)
    answers, at = 0, []
    for event in recorder.events:
        answers += event.op == "answer"
        at.append(answers)
    for _ in range(n):
        i = rng.randrange(len(recorder.states))
        yield at[i], _world(recorder.states[i], rng)


def _world(state, rng):
    found, how = {}, rng.randrange(4)
    for name, (durable, now) in state.items():
        file = (durable, now)[{0: 0, 1: 1}.get(how, rng.randrange(2))]
        if file is not None:
            found[name] = _torn(*file, rng, how)
    return found


def _torn(durable, now, rng, how):
    if durable == now or how < 2:
        return (durable, now)[how % 2] if how < 2 else now
    size = rng.choice((64, 512))  # disks write at least 512 bytes at once; here files are small
    length = rng.choice((len(durable), len(now)))
    parts = []
    for start in range(0, length, size):
        source = rng.choice((durable, now))
        parts.append(source[start : min(start + size, length)].ljust(min(size, length - start), b"\0"))
    return b"".join(parts)
