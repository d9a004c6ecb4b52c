"""ValueFunction: a network that learns state values from transitions, one at a time or many in one compiled call."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import checkpoint
from valueapprox.checks import (
    CACHE_LINE,
    aligned_zeros,
    as_float,
    as_floats,
    divergence_advice,
    one_of,
    positive,
    unit_interval,
)
from valueapprox.compiling import specialise
from valueapprox.nn.network import Network
from valueapprox.optim import STREAM_ADAM, Optimizer
from valueapprox.td import kernels as td

__all__ = ["DivergenceError", "ValueFunction"]

LEARNED = td.LEARNED
FLOAT64 = np.dtype(np.float64)
FIRST_MEMORY = 256  # states that Monte Carlo has room for at first; doubled whenever an episode is longer


class DivergenceError(FloatingPointError):
    """The TD error became NaN or infinite; nothing was learned from that transition."""


class ValueFunction:
    """v(s), learned by semi-gradient TD(lambda), n-step TD or gradient Monte Carlo.

    TD(lambda), with accumulating traces, per transition (s, r, s'):

        delta = r + gamma v(s') - v(s)      v(s') = 0 if s' is terminal
        z <- gamma lambda z + grad v(s)
        w <- w + step(delta z)              SGD: alpha delta z

    and z <- 0 after the update if the episode terminated or was truncated. A truncation still bootstraps, from the
    final observation.

    Parameters
    ----------
    net
        A network with one output.
    optimizer
        Receives delta z and moves w along it. If not given, Adam(beta2=0.9999), whose values are means also where
        rewards are rare and large.
    gamma, lam
        Discount and trace decay, both in [0, 1].
    method
        "td" for TD(lambda); "n-step", which uses `n`; or "monte-carlo", which learns when an episode ends.
    n
        Steps until the bootstrap of n-step TD.
    seed
        Of the initial weights.
    scheme
        How the initial weights are drawn; see `Network.init`.
    streams
        Number of independent sequences of experience, each with a trace (or memory) of its own, over one w.

    Examples
    --------
    A two-state chain, by hand: v(s) = w . s, w = (0, 0), r = 1, alpha = 0.5 moves w_0 by 0.5.

    >>> from valueapprox import SGD
    >>> v = ValueFunction(Network((2, 1), bias=False, dtype="float64"), SGD(0.5), gamma=0.9, scheme="zeros")
    >>> v.learn([1, 0], 1.0, [0, 1])
    1.0
    >>> v.w
    array([0.5, 0. ])
    """

    def __init__(
        self,
        net: Network,
        optimizer: Optimizer | None = None,
        gamma: float = 0.99,
        lam: float = 0.0,
        *,
        method: str = "td",
        n: int = 1,
        seed: int | np.random.SeedSequence | np.random.Generator = 0,
        scheme: str = "he_normal",
        streams: int = 1,
    ) -> None:
        if net.n_outputs != 1:
            raise ValueError(f"net has {net.n_outputs} outputs; a state value is one")
        if net.output == "softmax":
            raise ValueError("net has a softmax output, which is 1 for a single unit; a state value wants linear")
        if net.batch_norm:
            raise ValueError(
                "net has batch normalisation, which needs many examples at a time; net.fold(w) makes it an ordinary "
                "network with the same predictions"
            )
        self.net = net
        self.optimizer = STREAM_ADAM if optimizer is None else optimizer
        self.gamma = unit_interval("gamma", gamma)
        self.lam = unit_interval("lam", lam)
        self.method = one_of("method", method, td.METHODS)
        self.n = positive("n", n)
        self.streams = positive("streams", streams)
        if method != "td" and lam != 0.0:
            raise ValueError(f"lam is {lam}; {method} has no trace, so lam must be 0")
        first = net.init(seed, scheme)
        self._w = aligned_zeros(first.shape, first.dtype)
        self._w[:] = first
        room = -(-first.size // CACHE_LINE) * CACHE_LINE
        self._traces = aligned_zeros((streams, room), first.dtype)[:, : first.size]
        self._count = np.zeros(2, np.int64)
        fresh = self.optimizer.init(self.w)
        self.state = fresh._replace(n_updates=self._count[: td.TRANSITIONS])
        self._stats = np.zeros((4, max(4, net.n_layers)))
        places = {"td": 1, "n-step": self.n, "monte-carlo": FIRST_MEMORY}[method]
        self._has_memory = method != "td"
        self._memory = [np.zeros((places, net.n_inputs + 1), self.w.dtype) for _ in range(streams)]
        self._span = np.zeros((streams, 2), np.int64)
        settings = np.array([td.METHODS[method], self.gamma, self.lam, self.n, 0], dtype=np.float64)
        self._hyper = np.concatenate([self.optimizer.hyper(net.layer_names), settings])
        self._scratch, self._before = net.scratch(), aligned_zeros(first.shape, first.dtype)
        self._shape, self._dtype, self._numbers = (net.n_inputs,), self.w.dtype, range(streams)
        self._bind()

    def _bind(self) -> None:
        # What a kernel needs for each stream, put together once: a call per transition must not do it again.
        self._arguments = [
            (
                *(
                    self.w,
                    self.traces[i],
                    self.state.moments,
                    self.state.scalars,
                    self._count,
                    self._scratch,
                    self._before,
                ),
                *(self.net.spec, self._hyper, self._stats, self._memory[i], self._span[i]),
            )
            for i in range(self.streams)
        ]
        kernels = self.optimizer.kernels()
        learn_transition = specialise(td.learn_transition, **kernels)
        self._learn_many = specialise(td.learn_transitions, **kernels)
        self._learn_one = [partial(learn_transition, *arguments) for arguments in self._arguments]

    @property
    def sample_every(self) -> int:
        """Every how many updates the per-layer norms are measured for `diagnostics`; 0, as at first, is never."""
        return int(self._hyper[td.SAMPLE_EVERY - td.N_SETTINGS])

    @sample_every.setter
    def sample_every(self, updates: int) -> None:
        self._hyper[td.SAMPLE_EVERY - td.N_SETTINGS] = positive("sample_every", updates, at_least=0)

    @property
    def w(self) -> np.ndarray:
        """The weights (P,). Assigning copies into them, so that kernels and views keep seeing the same memory."""
        return self._w

    @w.setter
    def w(self, weights: ArrayLike) -> None:
        self._w[:] = as_floats("w", weights, self._dtype, self._w.shape)

    @property
    def traces(self) -> np.ndarray:
        """The eligibility traces (streams, P)."""
        return self._traces

    @property
    def trace(self) -> np.ndarray:
        """The eligibility trace z (P,) of the first stream."""
        return self._traces[0]

    @trace.setter
    def trace(self, z: ArrayLike) -> None:
        self._traces[0] = as_floats("trace", z, self._dtype, self._w.shape)

    @property
    def n_transitions(self) -> int:
        """Number of transitions learned from, over all streams."""
        return int(self._count[td.TRANSITIONS])

    def predict(self, s: ArrayLike) -> Any:
        """v(s): a float for one state (d,), an array (n,) for a batch (n, d)."""
        yhat = self.net.forward(self.w, s)
        return float(yhat[0]) if yhat.ndim == 1 else yhat[:, 0]

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(
        self,
        s: ArrayLike,
        r: float,
        s_next: ArrayLike,
        terminated: bool = False,
        truncated: bool = False,
        stream: int = 0,
    ) -> float:
        """Learn from one transition and return its TD error, delta = r + gamma v(s') - v(s) before the update.

        Parameters
        ----------
        s, s_next
            States (d,). At an ending s_next is the final observation, never the one after the reset.
        r
            Reward.
        terminated
            s_next is terminal: no bootstrap.
        truncated
            The episode was cut here: bootstrap, and cut the trace. If both are true, terminated wins.
        stream
            Which sequence of experience the transition continues.

        Raises
        ------
        ValueError
            If a state has the wrong shape, or an entry or the reward is NaN or infinite. Nothing is learned.
        DivergenceError
            If the TD error is NaN or infinite.
        """
        # Written out, since the checks of an array that fits must not cost more than learning from it.
        shape, dtype = self._shape, self._dtype
        if type(s) is not np.ndarray or s.dtype is not dtype or s.shape != shape or not s.flags.carray:
            s = as_floats("s", s, dtype, shape)
        if (
            type(s_next) is not np.ndarray
            or s_next.dtype is not dtype
            or s_next.shape != shape
            or not s_next.flags.carray
        ):
            s_next = as_floats("s_next", s_next, dtype, shape)
        if stream not in self._numbers:
            raise ValueError(f"stream is {stream}; there are streams 0 to {self.streams - 1}")
        if type(r) is not float:
            r = as_float("r", r)
        if type(terminated) is not bool:
            terminated = _flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = _flag("truncated", truncated)
        while True:
            before = self._snapshot(stream) if self._has_memory and (terminated or truncated) else []
            delta, status = self._learn_one[stream](s, r, s_next, terminated, truncated)
            if status == LEARNED:
                return delta
            if before and status == td.DIVERGED:
                self._put_back(stream, before)
            self._mend(status, stream, s, r, s_next)

    def learn_stream(
        self,
        s: ArrayLike,
        r: ArrayLike,
        s_next: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike | None = None,
        stream: int = 0,
    ) -> np.ndarray:
        """Learn from T consecutive transitions in one compiled call; the same as `learn` on each.

        s, s_next (T, d); r, terminated, truncated (T,). Returns the TD errors (T,). On an error everything before the
        offending transition has been learned, and the message names the array, its row and the transition.
        """
        s = as_floats("s", s, self._dtype, (None, self.net.n_inputs))
        s_next = as_floats("s_next", s_next, self._dtype, s.shape)
        rewards = as_floats("r", r, FLOAT64, (len(s),))
        ended = _flags("terminated", terminated, (len(s),))
        cut = np.zeros(len(s), np.bool_) if truncated is None else _flags("truncated", truncated, (len(s),))
        if stream not in self._numbers:
            raise ValueError(f"stream is {stream}; there are streams 0 to {self.streams - 1}")
        deltas = np.empty(len(s), self._dtype)
        t = 0
        while t < len(s):
            first, before = t, self._snapshot(stream) if self._has_memory else []
            t, status = self._learn_many(*self._arguments[stream], t, s, rewards, s_next, ended, cut, deltas)
            if before and status == td.DIVERGED:
                self._put_back(stream, before)  # and learn again up to there, which gives the same bits
                part = [array[:t] for array in (s, rewards, s_next, ended, cut, deltas)]
                self._learn_many(*self._arguments[stream], first, *part)
            if status != td.LEARNED:
                self._mend(status, stream, s[t], rewards[t], s_next[t], row=(int(t),))
        return deltas

    def _changing(self, stream: int) -> tuple[np.ndarray, ...]:
        own = (self.traces[stream], self._memory[stream], self._span[stream])
        return (self.w, self.state.moments, self.state.scalars, self._count, self._stats, *own)

    def _snapshot(self, stream: int) -> list[np.ndarray]:
        """What an episode's end may change before its updates turn out not to be finite."""
        return [array.copy() for array in self._changing(stream)]

    def _put_back(self, stream: int, snapshot: list[np.ndarray]) -> None:
        for array, before in zip(self._changing(stream), snapshot, strict=True):
            array[...] = before

    def _mend(
        self, status: int, stream: int, s: np.ndarray, r: float, s_next: np.ndarray, row: tuple[int, ...] = ()
    ) -> None:
        """Make room and return, or raise what stopped the kernel; `row` is where in arrays of many it was."""
        if status == td.MEMORY_FULL:
            old, start = self._memory[stream], int(self._span[stream, 0])
            bigger = np.zeros((2 * len(old), old.shape[1]), old.dtype)
            bigger[: len(old)] = np.roll(old, -start, axis=0)
            self._memory[stream], self._span[stream, 0] = bigger, 0
            self._bind()
            return
        number = self.n_transitions + 1
        if status == td.BAD_INPUT:
            for name, value in (("s", s), ("s_next", s_next), ("r", r)):
                wrong = ~np.isfinite(np.atleast_1d(value))
                if wrong.any():
                    column = int(np.argmax(wrong))
                    place = row if name == "r" else (*row, column)
                    entry = f"[{', '.join(map(str, place))}]" if place else ""
                    found = np.atleast_1d(value)[column]
                    raise ValueError(f"{name}{entry} is {found} at transition {number}; expected a finite number")
        raise DivergenceError(
            f"the TD error is infinite or NaN at transition {number} (largest weight {np.abs(self.w).max():.3g}, "
            f"reward {r}){divergence_advice(self.w)}"
        )

    def cut_trace(self, stream: int = 0) -> None:
        """Forget the past of a stream, as at the start of an episode."""
        self.traces[stream] = 0.0
        self._span[stream] = 0

    # --- what the log shows -------------------------------------------------------------------------------------------

    def diagnostics(self) -> dict[str, float]:
        """Averages since the last call, by the log's tags without their network: see docs/reference/tags.md.

        Norms are sampled at every `sample_every`-th update; with 0, only those of weights and TD errors are there.
        """
        totals = self._stats[td.TOTALS]
        seen, sampled = totals[td.N_TRANSITIONS], totals[td.N_SAMPLED]
        values: dict[str, float] = {}
        if seen > 0:
            values["td_error/mean"] = totals[td.SUM_DELTA] / seen
            values["td_error/rms"] = float(np.sqrt(totals[td.SUM_DELTA_SQUARED] / seen))
        rows = {"grad_norm": td.GRADIENT, "trace_norm": td.TRACE, "update_ratio": td.UPDATE}
        for tag, row in rows.items():
            if sampled > 0 and not (tag == "trace_norm" and self.method != "td"):
                for name, total in zip(self.net.layer_names, self._stats[row], strict=False):
                    values[f"{tag}/{name}"] = total / sampled
        for name, length in self.net.layer_norms(self.w).items():
            values[f"weight_norm/{name}"] = length
        self._stats[:] = 0.0
        return values

    # --- files --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that was learned, as arrays, and the settings, JSON-able: what a checkpoint needs to continue exactly."""
        arrays = {
            "w": self.w,
            "traces": self.traces,
            "moments": self.state.moments,
            "scalars": self.state.scalars,
            "count": self._count,
            "stats": self._stats,
            "span": self._span,
            **{f"memory_{i}": memory for i, memory in enumerate(self._memory)},
        }
        settings = {
            "net": self.net.as_dict(),
            "optimizer": self.optimizer.as_dict(),
            "gamma": self.gamma,
            "lam": self.lam,
            "method": self.method,
            "n": self.n,
            "streams": self.streams,
            "sample_every": self.sample_every,
        }
        return arrays, settings

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> ValueFunction:
        """The value function that `state_dict` described."""
        settings = dict(settings)
        sample_every = settings.pop("sample_every")
        net = Network(**settings.pop("net"))
        optimizer = Optimizer.from_dict(settings.pop("optimizer"))
        self = cls(net, optimizer, **settings, scheme="zeros")
        self.sample_every = sample_every
        for i, memory in enumerate(self._memory):
            places = len(arrays[f"memory_{i}"])
            if self.method == "monte-carlo" and places > len(memory):  # it had grown for a long episode
                self._memory[i] = np.zeros((places, memory.shape[1]), memory.dtype)
        own, _ = self.state_dict()
        for name, array in own.items():
            stored = arrays[name]
            if stored.shape != array.shape or stored.dtype != array.dtype:
                raise ValueError(f"{name} is {stored.dtype} {stored.shape}; {array.dtype} {array.shape} is wanted")
            array[...] = stored
        for (start, waiting), memory in zip(self._span, self._memory, strict=True):
            if not (0 <= start < len(memory) and 0 <= waiting <= len(memory)):
                raise ValueError(f"span ({start}, {waiting}) lies outside of a memory of {len(memory)}")
        self._bind()
        return self

    def save(self, path: str | Path) -> None:
        """Write everything to one file: learning goes on from it bit for bit. Without pickle, whole or not at all."""
        arrays, settings = self.state_dict()
        checkpoint.save(path, arrays, {"kind": "value_function", "value_function": settings})

    @classmethod
    def load(cls, path: str | Path) -> ValueFunction:
        """Read what `save` wrote, or the value function in a run's checkpoint.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged or holds no value function.
        """
        arrays, meta = checkpoint.load(path)
        try:
            prefix = meta.get("prefix", "")
            own = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
            checkpoint.must_be_finite(own)
            return cls.from_state(own, meta["value_function"])
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{path} holds no value function ({error!r})") from None


def _flag(name: str, value: Any) -> bool:
    return bool(value) if type(value) is np.bool_ else bool(_flags(name, value, ()))


def _flags(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    if type(value) is np.ndarray and value.dtype == np.bool_ and value.shape == shape and value.flags.carray:
        return value
    array = as_floats(name, value, FLOAT64, shape)
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        raise ValueError(f"{name} holds {array[wrong][0]:g}; booleans are wanted")
    return array.astype(np.bool_)
