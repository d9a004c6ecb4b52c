"""A service's folder: a lock, the journal, and a checkpoint that covers the older part of it."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import checkpoint
from valueapprox.checkpoint import CheckpointError
from valueapprox.files import FolderLock
from valueapprox.nn.network import Network
from valueapprox.service.errors import StorageError
from valueapprox.service.journal import Journal
from valueapprox.service.records import Change, Plan, decode, encode
from valueapprox.service.segments import COPIES, JournalError, owner, read
from valueapprox.service.settings import ServiceSettings
from valueapprox.service.state import State
from valueapprox.td.value_function import ValueFunction

__all__ = ["CHECKPOINT", "Store", "Trained", "load_service"]

CHECKPOINT, LOCK = "checkpoint.npz", "lock"  # in the folder, beside the journal
RETRY_SECONDS = 10.0  # until a checkpoint that failed is tried again
LEARNED_WITH = ("net", "optimizer", "discounts", "lams", "names", "separate")  # settings that a folder does not change


class Store:
    """What is kept of a service, in a folder that it holds until `close`.

    Parameters
    ----------
    folder
        Made if it does not exist.
    settings
        Of the service.

    Raises
    ------
    StorageError
        If another process has the folder, or it cannot be used.
    """

    def __init__(self, folder: Path, settings: ServiceSettings) -> None:
        self.folder, self.settings, self.path = folder, settings, folder / CHECKPOINT
        self.notices: list[str] = []
        self.journal: Journal | None = None
        self.checkpoint_error, self.checkpoint_version = "", -1
        self._checkpoint_time = time.monotonic()
        self._journal_bytes = 0  # since the last checkpoint
        self._identity = b""  # of the service in the folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FolderLock(folder, LOCK, self.notices.append)
        except BlockingIOError:
            raise StorageError(f"another service is using {folder}; stop it, or choose another folder") from None
        except OSError as error:
            raise StorageError(f"{folder} cannot be used as a folder of the service: {error}") from None

    def recover(self, weights: ArrayLike | None, version: int) -> State:
        """The state at the last acknowledgement: that of the checkpoint, and the journal after it.

        Without a checkpoint, it begins at `weights` of `version`; see `State.fresh`.
        """
        for pattern in (f".{CHECKPOINT}.*.tmp", ".journal-*.tmp"):
            for left in self.folder.glob(pattern):  # of a service that was killed while it wrote one
                left.unlink()
        known, marked = None, False
        stored = None
        if self.path.exists():
            stored, state, known, marked = self._load()
        elif any(self.folder.glob("journal-*")):
            raise JournalError(f"{self.folder} holds a journal but no {CHECKPOINT}; a journal alone cannot be read")
        else:
            state = State.fresh(self.settings, weights, version)
        # Version 0.1 wrote none; then what lies in the journal already, if anything does, becomes the checkpoint's.
        self._identity = known or owner(self.folder) or secrets.token_bytes(16)
        replayed, covered = 0, state.position
        for number, payload in read(self.folder, covered, self._identity, old_format=known is None):
            try:
                change = decode(payload)
                state.check_fits(change)
            except ValueError as error:
                raise JournalError(f"record {number} of the journal in {self.folder}: {error}") from None
            state.apply(change, number)
            replayed += len(change.batch) if isinstance(change, Plan) else 0
        if self.settings.max_streams != state.streams.capacity:
            state.resize(self.settings.max_streams)
        if self.settings.durability != "none":
            self.journal = Journal(self.folder, covered, self.settings.segment_bytes, self._identity, marked=marked)
            self.check_learned(state)
            self.notices += self.journal.notices
        if replayed:
            self.notices.append(f"{replayed} transitions were learned again from the journal, up to {state.version}")
        # A first checkpoint says what the journal belongs to; the next start need not replay what this one has.
        if replayed or known is None or stored != self.settings:
            try:
                self.save(state)
            except StorageError:  # a full disk must not keep from serving what is there already
                if stored is None:
                    raise
        else:
            self.checkpoint_version = state.version
        return state

    def _load(self) -> tuple[ServiceSettings, State, bytes | None, bool]:
        """Settings, state and identity in the checkpoint, and whether the journal had a copy of its end then."""
        stored, arrays, meta = load_service(self.path)
        for name in LEARNED_WITH:
            found, expected = getattr(self.settings, name), getattr(stored, name)
            if found != expected:
                raise ValueError(
                    f"{name} is {_describe(found)}; expected {_describe(expected)}: the service in {self.folder} has "
                    "learned with that"
                )
        try:
            state = State.from_arrays(self.settings, arrays, meta)
            identity = bytes.fromhex(meta["identity"]) if "identity" in meta else None  # version 0.1 wrote none
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} holds no state of a service ({error!r})") from None
        return stored, state, identity, bool(meta.get("marked"))

    def append(self, change: Change) -> int | None:
        """Write a record to the journal and force it to disk: its number, or None if there is no journal."""
        if self.journal is None:
            return None
        payload = encode(change)
        number = self.journal.append(payload)
        self._journal_bytes += len(payload)
        return number

    def check_learned(self, state: State) -> None:
        """What is in the journal is learned: otherwise a checkpoint would cover what it does not hold."""
        if self.journal is not None and self.journal.next != state.position:
            raise RuntimeError(f"record {state.position} of the journal was not learned")

    def save(self, state: State) -> None:
        """Write the checkpoint, then forget the journal that it covers."""
        journal = self.journal
        arrays, meta = state.as_arrays()
        meta |= {
            "kind": "service",
            "settings": self.settings.as_dict(),
            "identity": self._identity.hex(),
            "marked": journal is not None and journal.marked,
        }
        self._checkpoint_time = time.monotonic()  # also of a try that fails
        try:
            checkpoint.save(self.path, arrays, meta, private=True)
            self.checkpoint_version, self.checkpoint_error, self._journal_bytes = state.version, "", 0
            if journal is not None:
                journal.rotate()
                journal.forget(state.position, self.settings.retain_bytes)
            else:
                for old in (*self.folder.glob("journal-*.log"), *map(self.folder.joinpath, COPIES)):
                    old.unlink(missing_ok=True)  # of a time when there was one
        except OSError as error:
            self.checkpoint_error = f"the last checkpoint could not be written: {error}"
            raise StorageError(self.checkpoint_error) from error

    def is_due(self, state: State) -> bool:
        """Whether it is time for a checkpoint."""
        settings, changes = self.settings, state.version - self.checkpoint_version
        if changes == 0 and self._journal_bytes == 0:
            return False
        much = changes >= settings.checkpoint_transitions or self._journal_bytes >= settings.checkpoint_bytes
        return self._seconds_left() <= 0 or (much and not self.checkpoint_error)

    def next_deadline(self, state: State) -> float | None:
        """Seconds until a checkpoint may be due, if nothing more is learned."""
        return None if state.version == self.checkpoint_version else max(0.01, self._seconds_left())

    def _seconds_left(self) -> float:
        seconds = RETRY_SECONDS if self.checkpoint_error else self.settings.checkpoint_seconds
        return self._checkpoint_time + seconds - time.monotonic()

    def health(self) -> dict[str, Any]:
        """The journal and the checkpoint, JSON-able; see `Service.health`."""
        return {
            "durability": self.settings.durability,
            "journal_bytes": 0 if self.journal is None else self.journal.n_bytes,
            "journal_segments": 0 if self.journal is None else self.journal.n_segments,
            "checkpoint_version": self.checkpoint_version,
            "checkpoint_age_seconds": time.monotonic() - self._checkpoint_time,
            "checkpoint_error": self.checkpoint_error,
        }

    def close(self) -> None:
        """Close the journal and release the folder."""
        if self.journal is not None:
            self.journal.close()
        self._lock.close()


class Trained(NamedTuple):
    """What a service is started from: the checkpoint of a service, of a run, or of `ValueFunction.save`."""

    settings: ServiceSettings
    w: np.ndarray  # (m, P)
    version: int
    method: str

    @classmethod
    def load(cls, path: Path) -> Trained:
        """Read one; `path` may be a service's folder."""
        if path.is_dir():
            path = path / CHECKPOINT
        if checkpoint.load(path).meta.get("kind") == "service":
            stored, arrays, meta = load_service(path)
            return cls(stored, arrays["learner/w"], int(meta["version"]), "td")
        v = ValueFunction.load(path)
        settings = ServiceSettings(v.net, v.optimizer, (v.gamma,), (v.lam,), ("value",))
        return cls(settings, v.w[None], v.n_transitions, v.method)


def load_service(path: Path) -> tuple[ServiceSettings, dict[str, np.ndarray], dict[str, Any]]:
    """The checkpoint of a service: its settings, and the arrays and values that `Store.save` wrote."""
    arrays, meta = checkpoint.load(path)
    try:
        return ServiceSettings.from_dict(meta["settings"]), arrays, meta
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not the checkpoint of a service ({error!r})") from None


def _describe(value: Any) -> str:
    return str(value) if isinstance(value, Network) else repr(value)
