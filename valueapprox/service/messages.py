"""What goes into the service and comes out: settings, transitions, results, errors; transitions in the journal."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_floats, as_numbers, one_of, positive, python_settings
from valueapprox.nn.network import Network
from valueapprox.optim import STREAM_ADAM, Optimizer
from valueapprox.td.predictions import Predictions

__all__ = [
    "DIVERGED",
    "DUPLICATE",
    "GAP",
    "LEARNED",
    "STATUS_NAMES",
    "Closed",
    "Gap",
    "Gradients",
    "InvalidTransitions",
    "LearnResult",
    "Norms",
    "QueueFull",
    "ReadOnly",
    "ServiceError",
    "ServiceSettings",
    "StorageError",
    "Transitions",
    "Values",
    "Weights",
    "decode",
    "encode",
    "gap",
    "without_gap",
]

LEARNED, DUPLICATE, GAP, DIVERGED = range(4)  # what became of a transition
STATUS_NAMES = ("learned", "duplicate", "gap", "diverged")
DURABILITIES = ("every", "batch", "none")
GAPS = ("reject", "cut")
LONGEST_NAME = 200
FLOAT64 = np.dtype(np.float64)

# The payload of a journal's record. Kind, bytes per number of the network, whether discounts follow, 0, then n, d, k
# and the length of the names; or, for weights, the numbers m and P.
TRANSITIONS, WEIGHTS = 1, 2
HEAD = struct.Struct("<BBBBIIII")
TERMINATED, TRUNCATED, CUT = 1, 2, 4  # flags of a transition


class ServiceError(Exception):
    """What the service cannot do, or not now."""


class QueueFull(ServiceError):  # noqa: N818  (it is a state, not a mistake; so are the next ones)
    """Too many transitions wait to be learned; try again in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after)
        self.message, self.retry_after = message, retry_after

    def __str__(self) -> str:
        return self.message


class StorageError(ServiceError):
    """The journal cannot be written; nothing of the request was learned. Values are still served."""


class ReadOnly(ServiceError):  # noqa: N818
    """The service only answers; it does not learn."""


class Closed(ServiceError):  # noqa: N818
    """The service was closed."""


class InvalidTransitions(ServiceError, ValueError):  # noqa: N818
    """Transitions that are not well formed; `field` names what is wrong. Nothing of the request was learned.

    `index` is the transition that is wrong, or None if it is not one alone.
    """

    def __init__(self, field: str, message: str, index: int | None = None) -> None:
        super().__init__(field, message, index)
        self.field, self.message, self.index = field, message, index

    def __str__(self) -> str:
        return self.message


class Gap(ServiceError):  # noqa: N818
    """Transitions before these are missing in a stream; from there on nothing of the stream was learned.

    `expected` is the sequence number that is due in `stream`, where `sequence` came; `index` says which transition that
    was. `result` says what became of each, since other streams of the request were learned.
    """

    def __init__(self, stream: str, sequence: int, expected: int, index: int, result: LearnResult) -> None:
        super().__init__(stream, sequence, expected, index, result)
        self.stream, self.sequence, self.expected, self.index, self.result = stream, sequence, expected, index, result

    def __str__(self) -> str:
        return f"sequence {self.message}"

    @property
    def message(self) -> str:
        """Without the name of what is wrong."""
        return f"is {self.sequence}; expected {self.expected}, the next number of stream {self.stream!r}"


@dataclass(frozen=True)
class ServiceSettings:
    """What a service learns, and how it keeps it.

    Parameters
    ----------
    net
        The network: k outputs, or one output of which every prediction gets its own network (`separate`).
    optimizer
        Moves the weights; Adam(beta2=0.9999) if not given.
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
        Refuse to learn. Other weights may still be loaded.
    """

    net: Network
    optimizer: Optimizer = STREAM_ADAM
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

    def __post_init__(self) -> None:
        python_settings(self)
        for name in ("discounts", "lams"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(float(x) for x in np.atleast_1d(value)))
        if len(self.lams) == 1:
            object.__setattr__(self, "lams", self.lams * len(self.discounts))
        object.__setattr__(self, "names", tuple(self.names) or tuple(map(str, range(len(self.discounts)))))
        one_of("durability", self.durability, DURABILITIES)
        one_of("on_gap", self.on_gap, GAPS)
        for name in ("max_streams", "max_known_streams", "max_batch", "max_queue", "segment_bytes"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        for name in ("checkpoint_transitions", "checkpoint_bytes"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        for name in ("retain_bytes", "sample_every", "seed"):
            object.__setattr__(self, name, positive(name, getattr(self, name), at_least=0))
        if not 0 < self.checkpoint_seconds < np.inf:
            raise ValueError(f"checkpoint_seconds is {self.checkpoint_seconds}; a positive, finite number is wanted")
        if self.max_known_streams < self.max_streams:
            raise ValueError(
                f"max_known_streams is {self.max_known_streams}, less than max_streams, {self.max_streams}; a stream "
                "with a trace is known"
            )

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values; `from_dict` is the inverse."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "net": self.net.as_dict(), "optimizer": self.optimizer.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServiceSettings:
        """The settings that `as_dict` described."""
        net, optimizer = Network(**values["net"]), Optimizer.from_dict(values["optimizer"])
        return cls(**{**values, "net": net, "optimizer": optimizer})

    def learner(self) -> Predictions:
        """A fresh learner."""
        return Predictions(
            self.net,
            self.optimizer,
            self.discounts,
            self.lams,
            names=self.names,
            separate=self.separate,
            seed=self.seed,
            scheme=self.scheme,
            streams=self.max_streams,
        )


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
        states = _numbers("state", state)
        one = states.ndim == 1
        if one:
            states = states[None]
        n = len(states)
        next_states, signals = _numbers("next_state", next_state), _numbers("cumulants", cumulants)
        if one and next_states.ndim == 1:
            next_states = next_states[None]
        if one and signals.ndim < 2:
            signals = signals.reshape(1, -1)
        elif signals.ndim == 1:
            signals = signals[:, None]
        gammas = None if discounts is None else _numbers("discounts", discounts)
        if gammas is not None and gammas.ndim < 2:
            gammas = gammas.reshape(1, -1) if one else gammas[:, None]
        many = [stream] if isinstance(stream, str) else list(stream)
        places: dict[str, int] = {}
        for name in many:
            if not isinstance(name, str):
                raise InvalidTransitions("stream", f"stream holds {name!r:.50}; names are wanted")
            places.setdefault(name, len(places))
        if isinstance(stream, str):
            index = np.zeros(n, np.int64)
        else:
            index = np.array([places[name] for name in many], np.int64)
        numbers = np.asarray(sequence)
        if numbers.ndim == 0 and numbers.dtype.kind in "iu":
            if n > 1 and len(places) > 1:
                raise InvalidTransitions("sequence", "sequence is one number; with several streams each wants its own")
            numbers = int(numbers) + np.arange(n)
        flags = [
            np.broadcast_to(array, (n,)) if array.ndim == 0 else array
            for array in (_numbers("terminated", terminated), _numbers("truncated", truncated))
        ]
        return cls(tuple(places), index, numbers, states, signals, next_states, flags[0], flags[1], gammas)

    def checked(self, net: Network, k: int, max_batch: int) -> Transitions:
        """The same with arrays as the kernel takes them, copied, so that the caller may use its own again.

        Raises
        ------
        InvalidTransitions
            If something has the wrong shape or type, or a number is not finite.
        """
        dtype, d = np.dtype(net.dtype), net.n_inputs
        states = _floats("state", self.state, dtype, (None, d))
        n = len(states)
        if n > max_batch:
            raise InvalidTransitions(
                "transitions", f"{n} transitions were given; at most {max_batch} are taken at once"
            )
        next_states = _floats("next_state", self.next_state, dtype, (n, d))
        cumulants = _floats("cumulants", self.cumulants, FLOAT64, (n, k))
        most = float(np.finfo(dtype).max)
        for name, array in (("state", states), ("next_state", next_states), ("cumulants", cumulants)):
            _must(np.abs(array) <= most, name, array, f"a finite number of {dtype}")
        gammas = None
        if self.discounts is not None:
            gammas = _floats("discounts", self.discounts, FLOAT64, (n, k))
            _must((gammas >= 0) & (gammas <= 1), "discounts", gammas, "a number in [0, 1]")
        flags = []
        for name, value in (("terminated", self.terminated), ("truncated", self.truncated)):
            array = _sized(name, _numbers(name, value), n)
            if array.dtype != np.bool_:
                _must((array == 0) | (array == 1), name, array, "a boolean")
            flags.append(array.astype(np.bool_))
        sequence = _whole("sequence", self.sequence, n, 2**63 - 1)
        stream = _whole("stream", self.stream, n, len(self.names) - 1)
        for i, name in enumerate(self.names):
            if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()):
                t = next((int(t) for t in np.flatnonzero(stream == i)), None)
                raise InvalidTransitions(
                    "stream",
                    f"stream is {name!r:.250}; a name of 1 to {LONGEST_NAME} printable characters is wanted",
                    t,
                )
        if len(set(self.names)) != len(self.names):
            raise InvalidTransitions("stream", "names holds one name twice")
        return Transitions(self.names, stream, sequence, states, cumulants, next_states, flags[0], flags[1], gammas)


def _numbers(name: str, value: ArrayLike) -> np.ndarray:
    try:
        return as_numbers(name, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTransitions(name, str(error)) from None


def _floats(name: str, value: ArrayLike, dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
            array = as_floats(name, value, dtype, shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTransitions(name, str(error)) from None
    return array.copy() if array is value else array


def _sized(name: str, array: np.ndarray, n: int) -> np.ndarray:
    if array.shape != (n,):
        raise InvalidTransitions(name, f"{name} has shape {array.shape}; ({n},) is wanted")
    return array


def _whole(name: str, value: ArrayLike, n: int, most: int) -> np.ndarray:
    array = _sized(name, _numbers(name, value), n)
    with np.errstate(invalid="ignore"):
        whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and (array % 1 == 0).all())
    if not whole:
        raise InvalidTransitions(name, f"{name} holds {array.dtype}; whole numbers are wanted")
    exact = min(most, 2**53) if array.dtype.kind == "f" else most  # beyond, a float64 may not be what was meant
    _must((array >= 0) & (array <= exact), name, array, f"a whole number from 0 to {exact}")
    return np.array(array, np.int64)


def _must(fine: np.ndarray, name: str, array: np.ndarray, wanted: str) -> None:
    if not fine.all():
        place = tuple(int(i) for i in np.argwhere(~fine)[0])
        entry = f"{name}[{', '.join(map(str, place))}]"
        raise InvalidTransitions(name, f"{entry} is {array[place]}; {wanted} is wanted", place[0])


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


def gap(batch: Transitions, result: LearnResult) -> Gap | None:
    """The first gap in a batch, if there is one."""
    gaps = np.flatnonzero(result.status == GAP)
    if not len(gaps):
        return None
    i = int(gaps[0])
    stream = batch.names[int(np.asarray(batch.stream)[i])]
    return Gap(stream, int(np.asarray(batch.sequence)[i]), int(result.expected[i]), i, result)


def without_gap(batch: Transitions, result: LearnResult) -> LearnResult:
    """The result, or Gap: how `learn` of every door ends."""
    error = gap(batch, result)
    if error is not None:
        raise error
    return result


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


# --- in the journal ---------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What is to be learned by one record of the journal: transitions whose numbers are in order."""

    batch: Transitions
    cut: np.ndarray  # (n,) whether the stream's trace is cut before, since transitions are missing


def encode(plan: Plan) -> bytes:
    """A record's payload: head, sequence, discounts, cumulants, state, next_state, stream, flags, names as JSON."""
    batch, cut = plan
    flags = batch.terminated * TERMINATED | batch.truncated * TRUNCATED | cut * CUT
    names = json.dumps(batch.names).encode()
    gammas = batch.discounts
    (n, d), k = batch.state.shape, batch.cumulants.shape[1]
    head = HEAD.pack(TRANSITIONS, batch.state.itemsize, gammas is not None, 0, n, d, k, len(names))
    floats = batch.state.dtype.newbyteorder("<")
    parts = [
        (batch.sequence, "<i8"),
        *([(gammas, "<f8")] if gammas is not None else []),
        (batch.cumulants, "<f8"),
        (batch.state, floats),
        (batch.next_state, floats),
        (batch.stream, "<u4"),
        (flags, "u1"),
    ]
    return b"".join([head, *(array.astype(dtype, copy=False).tobytes() for array, dtype in parts), names])


def encode_weights(w: np.ndarray) -> bytes:
    """A record's payload for weights (m, P) that replace the present ones."""
    return HEAD.pack(WEIGHTS, w.itemsize, 0, 0, *w.shape, 0, 0) + w.astype(w.dtype.newbyteorder("<")).tobytes()


def decode(payload: bytes) -> Plan | np.ndarray:
    """What `encode` or `encode_weights` wrote.

    Raises
    ------
    ValueError
        If it is neither: the record was written by another version.
    """
    kind, itemsize, discounted, _, n, d, k, n_names = HEAD.unpack_from(payload)
    if kind not in (TRANSITIONS, WEIGHTS) or itemsize not in (4, 8):
        raise ValueError(f"a record of kind {kind} with numbers of {itemsize} bytes is not known here")
    offset = HEAD.size

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal offset
        size = int(np.prod(shape))
        array = np.frombuffer(payload, dtype, size, offset).reshape(shape)
        offset += array.nbytes
        return array.astype(array.dtype.newbyteorder("="))  # a copy, which may be written to

    floats = f"<f{itemsize}"
    if kind == WEIGHTS:
        return take(floats, n, d)
    sequence = take("<i8", n)
    gammas = take("<f8", n, k) if discounted else None
    cumulants, states, next_states = take("<f8", n, k), take(floats, n, d), take(floats, n, d)
    stream, flags = take("<u4", n).astype(np.int64), take("u1", n)
    names = json.loads(payload[offset : offset + n_names])
    ended, truncated, cut = (flags & bit != 0 for bit in (TERMINATED, TRUNCATED, CUT))
    return Plan(
        Transitions(tuple(names), stream, sequence, states, cumulants, next_states, ended, truncated, gammas), cut
    )
