"""Service: one learner that many threads feed and read, with a journal, so that no acknowledged transition is lost.

Requests to learn wait in a queue for one thread, the writer. It takes all that wait as one group: what is to be learned
goes to the journal and is forced to disk, then it is learned, then the weights are published, then the requests are
answered. Readers use the weights that were published last and wait for nobody.

What is learned depends on the order of the journal and on nothing else: the last checkpoint and the journal behind it
give the same weights again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.network import Network
from valueapprox.optimizers import SGD, Optimizer

__all__ = [
    "DIVERGED",
    "DUPLICATE",
    "GAP",
    "LEARNED",
    "STATUS_NAMES",
    "Closed",
    "Gradients",
    "InvalidTransitions",
    "LearnResult",
    "Norms",
    "QueueFull",
    "ReadOnly",
    "Service",
    "ServiceError",
    "ServiceSettings",
    "StorageError",
    "Transitions",
    "Values",
    "Weights",
]

LEARNED, DUPLICATE, GAP, DIVERGED = range(4)  # what became of a transition
STATUS_NAMES = ("learned", "duplicate", "gap", "diverged")
DURABILITIES = ("every", "batch", "none")
GAPS = ("reject", "cut")


class ServiceError(Exception):
    """What the service cannot do, or not now."""


class QueueFull(ServiceError):
    """Too many transitions wait to be learned; try again in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after)
        self.message, self.retry_after = message, retry_after

    def __str__(self) -> str:
        return self.message


class StorageError(ServiceError):
    """The journal cannot be written; nothing of the request was learned. Values are still served."""


class ReadOnly(ServiceError):
    """This service only answers; it does not learn."""


class Closed(ServiceError):
    """The service was closed."""


class InvalidTransitions(ServiceError, ValueError):
    """Transitions that are not well formed; `field` names what is wrong. Nothing of the request was learned."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field, self.message = field, message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class ServiceSettings:
    """What a service learns, and how it keeps it.

    Parameters
    ----------
    net
        The network: k outputs, or one output of which every prediction gets its own network (`separate`).
    optimizer
        Moves the weights.
    discounts, lams
        Discount and trace decay of each prediction, in [0, 1].
    names
        Of the predictions; "0", "1", ... by default.
    separate
        One network for each prediction.
    seed, scheme
        Of the initial weights; see `Network.init`.
    durability
        "batch": all requests that wait share one write that is forced to disk; "every": each has its own; "none": no
        journal, and a crash loses what came after the last checkpoint.
    on_gap
        What to do when sequence numbers are missing in a stream: "reject" the transition, or "cut" the stream's trace
        and learn it.
    max_streams
        Streams that have a trace; beyond that, the trace of the one that was used least recently is forgotten.
    max_known_streams
        Streams whose last sequence number is kept.
    max_batch
        Transitions in a request.
    max_queue
        Transitions that may wait.
    checkpoint_seconds, checkpoint_transitions, checkpoint_bytes
        A checkpoint is written when something was learned and the last one is so old, so many transitions or so many
        bytes of journal ago.
    segment_bytes
        Size at which the journal goes on in a new file.
    retain_bytes
        How much of the journal is kept that the last checkpoint covers.
    sample_every
        Every how many updates the per-layer norms are measured; 0 is never.
    read_only
        Refuse to learn.
    """

    net: Network
    optimizer: Optimizer = field(default_factory=lambda: SGD(0.01))
    discounts: tuple[float, ...] = (0.99,)
    lams: tuple[float, ...] = (0.9,)
    names: tuple[str, ...] = ()
    separate: bool = False
    seed: int = 0
    scheme: str = "he_normal"
    durability: str = "batch"
    on_gap: str = "reject"
    max_streams: int = 256
    max_known_streams: int = 100_000
    max_batch: int = 65_536
    max_queue: int = 262_144
    checkpoint_seconds: float = 60.0
    checkpoint_transitions: int = 1_000_000
    checkpoint_bytes: int = 256 * 2**20
    segment_bytes: int = 64 * 2**20
    retain_bytes: int = 0
    sample_every: int = 100
    read_only: bool = False


@dataclass(frozen=True)
class Transitions:
    """n transitions of one or more streams, in the order in which they are learned.

    Parameters
    ----------
    names
        The streams that occur.
    stream
        (n,) index into `names`.
    sequence
        (n,) number of each transition in its stream, from 0, rising by 1.
    state, next_state
        (n, d). At an ending next_state is the final observation, never the one after the reset.
    cumulants
        (n, k) the signals that are predicted; the reward, for a value function.
    terminated, truncated
        (n,) booleans.
    discounts
        (n, k) of each transition, in [0, 1]; None for those of the settings.
    """

    names: tuple[str, ...]
    stream: np.ndarray
    sequence: np.ndarray
    state: np.ndarray
    cumulants: np.ndarray
    next_state: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    discounts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    @classmethod
    def of(
        cls,
        stream: str | Sequence[str],
        sequence: int | ArrayLike,
        state: ArrayLike,
        cumulants: ArrayLike,
        next_state: ArrayLike,
        terminated: ArrayLike = False,
        truncated: ArrayLike = False,
        discounts: ArrayLike | None = None,
    ) -> Transitions:
        """Transitions from what is at hand.

        `stream` is one name for all, or n of them; `sequence` the number of the first of them if they are all of one
        stream, or n numbers; `state` and `next_state` (n, d) or, for one transition, (d,); `cumulants` (n, k), or (n,)
        for one prediction, or (k,) or a number for one transition; flags one for all or (n,).
        """
        raise NotImplementedError


class LearnResult(NamedTuple):
    """What became of n transitions."""

    version: int  # of the weights after the last of them
    status: np.ndarray  # (n,) uint8: LEARNED, DUPLICATE, GAP or DIVERGED
    td_errors: np.ndarray  # (n, k) float64; NaN where nothing was learned
    expected: np.ndarray  # (n,) int64: the sequence number that a GAP should have had; -1 elsewhere

    @property
    def learned(self) -> int:
        """Number of transitions learned."""
        return int(np.count_nonzero(self.status == LEARNED))

    @property
    def duplicates(self) -> int:
        """Number of transitions that had been seen before."""
        return int(np.count_nonzero(self.status == DUPLICATE))

    @property
    def rejected(self) -> int:
        """Number of transitions refused since others before them are missing."""
        return int(np.count_nonzero(self.status == GAP))

    @property
    def diverged(self) -> int:
        """Number of transitions whose update would have been infinite or NaN; their streams' traces were cut."""
        return int(np.count_nonzero(self.status == DIVERGED))


class Values(NamedTuple):
    """Predictions at n states."""

    values: np.ndarray  # (n, k)
    version: int


class Gradients(NamedTuple):
    """How one prediction changes with its input, at n states."""

    gradients: np.ndarray  # (n, d)
    version: int


class Norms(NamedTuple):
    """Euclidean norm of each layer's weights, over all networks."""

    norms: dict[str, float]
    version: int


class Weights(NamedTuple):
    """The weights, and how to read them."""

    w: np.ndarray  # (m, P), one row per network; read-only
    version: int
    blocks: dict[str, tuple[int, tuple[int, ...]]]  # name -> where it starts in a row, and its shape
    net: dict[str, Any]  # settings of `Network`
    names: tuple[str, ...]  # of the predictions

    def block(self, name: str, network: int = 0) -> np.ndarray:
        """One block, by name: A, b_A, B, b_B, or W1, b1, ... of a deeper network."""
        start, shape = self.blocks[name]
        return self.w[network, start : start + int(np.prod(shape))].reshape(shape)


class Service:
    """One learner, many threads; see the module. Use it as a context manager, or close it.

    Parameters
    ----------
    settings
        What it learns.
    folder
        Where journal and checkpoint lie. If they are there already, the service goes on from them. None: nothing is
        kept.
    """

    def __init__(self, settings: ServiceSettings, folder: str | Path | None = None) -> None:
        raise NotImplementedError

    @classmethod
    def open(cls, folder: str | Path, **changes: Any) -> Service:
        """Go on with what lies in `folder`; `changes` replace settings that say nothing about what is learned."""
        raise NotImplementedError

    @classmethod
    def from_checkpoint(cls, path: str | Path, folder: str | Path | None = None, **changes: Any) -> Service:
        """A service of a trained value function: the file of `ValueFunction.save`, a run's checkpoint, or a service's.

        Without a folder it is read-only.
        """
        raise NotImplementedError

    settings: ServiceSettings
    n_inputs: int  # d
    n_predictions: int  # k
    names: tuple[str, ...]  # of the predictions
    notices: list[str]  # what recovery has to say, for a log

    def learn(self, batch: Transitions, timeout: float | None = None) -> LearnResult:
        """Learn, and wait for the acknowledgement."""
        return self.submit(batch).result(timeout)

    def submit(self, batch: Transitions) -> Future[LearnResult]:
        """Put transitions into the queue; the future gives what became of them, or raises what `learn` raises.

        Raises at once: InvalidTransitions, QueueFull, ReadOnly, Closed. In the future: StorageError, Closed.
        """
        raise NotImplementedError

    @property
    def version(self) -> int:
        """Number of changes that the weights have had: transitions learned, and weights loaded."""
        raise NotImplementedError

    def values(self, states: ArrayLike) -> Values:
        """Predictions (n, k) at states (n, d), all with the same weights."""
        raise NotImplementedError

    def gradients(self, states: ArrayLike, output: int = 0) -> Gradients:
        """How prediction `output` changes with each input: d v / d s (n, d) at states (n, d)."""
        raise NotImplementedError

    def weights(self) -> Weights:
        """The weights and their version."""
        raise NotImplementedError

    def norms(self) -> Norms:
        """Euclidean norm of each layer's weights."""
        raise NotImplementedError

    def load_weights(self, weights: str | Path | ArrayLike) -> int:
        """Go on with other weights, from an array (P,) or (m, P) or a checkpoint's file; returns the new version.

        Traces are cut and the optimizer starts afresh, since both belong to the old weights; streams go on.
        """
        raise NotImplementedError

    def health(self) -> dict[str, Any]:
        """The state of the service, JSON-able.

        ready, learning (bool), reason (str, why not), version, queued (transitions that wait), queue_limit, n_streams,
        n_traces, n_updates, counts since the start: learned, duplicates, rejected, diverged, refused (queue full);
        journal_bytes, journal_segments, last_checkpoint_version, checkpoint_age_seconds, durability, uptime_seconds.
        """
        raise NotImplementedError

    def diagnostics(self) -> dict[str, float]:
        """Averages over the last second in which something was learned, by the log's tags without their network.

        As `ValueFunction.diagnostics`; with several predictions td_error/mean/NAME and td_error/rms/NAME.
        """
        raise NotImplementedError

    def checkpoint(self) -> None:
        """Write a checkpoint now; what was submitted before is in it."""
        raise NotImplementedError

    def close(self, timeout: float | None = None) -> None:
        """Finish what waits, write a checkpoint, and release the folder. What comes later raises Closed."""
        raise NotImplementedError

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
