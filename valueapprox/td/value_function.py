"""ValueFunction: a network that learns state values from transitions, one at a time or many in one compiled call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import checkpoint
from valueapprox.checks import CACHE_LINE, aligned_zeros, as_float, as_floats, divergence_advice, unit_interval
from valueapprox.compiling import specialise
from valueapprox.nn.network import Network
from valueapprox.optim import Optimizer
from valueapprox.td import base
from valueapprox.td.base import LEARNED
from valueapprox.td.learner import Learner, put

__all__ = ["DivergenceError", "ValueFunction"]

FLOAT64 = np.dtype(np.float64)


class DivergenceError(FloatingPointError):
    """The TD error became NaN or infinite; nothing was learned from that transition."""


class ValueFunction(Learner):
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
        "td" for TD(lambda); "n-step"; "monte-carlo", which learns when an episode ends; or any other of `td.METHODS`.
    seed
        Of the initial weights.
    init
        How the initial weights are drawn; see `Network.init`.
    streams
        Number of independent sequences of experience, each with a trace (or queue) of its own, over one w.
    settings
        Of the method: `n`, the steps until the bootstrap of n-step TD.

    Examples
    --------
    A two-state chain, by hand: v(s) = w . s, w = (0, 0), r = 1, alpha = 0.5 moves w_0 by 0.5.

    >>> from valueapprox import SGD
    >>> v = ValueFunction(Network((2, 1), bias=False, dtype="float64"), SGD(0.5), gamma=0.9, init="zeros")
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
        seed: int | np.random.SeedSequence | np.random.Generator = 0,
        init: str = "he_normal",
        streams: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(net, optimizer, streams)
        if net.n_outputs != 1:
            raise ValueError(f"net has {net.n_outputs} outputs; expected 1, as a state has one value")
        self.gamma = unit_interval("gamma", gamma)
        if lam or "lam" in base.settings_of(method):
            settings["lam"] = lam
        self._method = base.method_of(method, settings)
        self.method, self.lam = method, getattr(self._method, "lam", 0.0)
        first = net.init(seed, init)
        self._w = aligned_zeros(first.shape, first.dtype)
        self._w[:] = first
        size = -(-first.size // CACHE_LINE) * CACHE_LINE
        self._traces = aligned_zeros((streams, size), first.dtype)[:, : first.size]
        self._count = np.zeros(2, np.int64)
        self.state = self.optimizer.init(self.w)._replace(n_updates=self._count[: base.TRANSITIONS])
        shape = (self._method.queue_size, net.n_inputs + 1)
        self._queues = [np.zeros(shape, self._dtype) for _ in range(streams)]
        self._span, self._has_queue = np.zeros((streams, 2), np.int64), self._method.queue_size > 0
        hyper = self.optimizer.hyper(net.layer_names)
        self._norms_every = hyper.size + base.NORMS_EVERY
        self._hyper = np.array([*hyper, self.gamma, 0.0, *self._method.settings()])
        self._scratch, self._before = net.scratch(), aligned_zeros(first.shape, first.dtype)
        self._shape, self._numbers = (net.n_inputs,), range(streams)
        self._bind()

    def _bind(self) -> None:
        # What a kernel needs for each stream, put together once: a call per transition must not do it again.
        state, scratch = self.state, (self._scratch, self._before, self._stats)
        self._arguments = [
            (self.w, z, state.moments, state.scalars, self._count, self._hyper, self.net.spec, *scratch, queue, span)
            for z, queue, span in zip(self.traces, self._queues, self._span, strict=True)
        ]
        kernels = self.optimizer.kernels()
        rule = specialise(type(self._method).rule, **kernels)
        learn_transition = specialise(base.learn_transition, rule=rule, **kernels)
        self._learn_many = specialise(base.learn_transitions, rule=rule, **kernels)
        self._learn_one = [partial(learn_transition, *arguments) for arguments in self._arguments]

    @property
    def trace(self) -> np.ndarray:
        """The eligibility trace z (P,) of the first stream."""
        return self._traces[0]

    @trace.setter
    def trace(self, z: ArrayLike) -> None:
        self._traces[0] = as_floats("trace", z, self._dtype, self._w.shape)

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
            self._check_stream(stream)
        if type(r) is not float:
            r = as_float("r", r)
        if type(terminated) is not bool:
            terminated = _flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = _flag("truncated", truncated)
        while True:
            before = self._snapshot(stream) if self._has_queue and (terminated or truncated) else []
            delta, status = self._learn_one[stream](s, r, s_next, terminated, truncated)
            if status == LEARNED:
                return delta
            if before and status == base.DIVERGED:
                self._put_back(stream, before)
            self._grow_or_raise(status, stream, s, r, s_next)

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
        self._check_stream(stream)
        deltas = np.empty(len(s), self._dtype)
        t = 0
        while t < len(s):
            first, before = t, self._snapshot(stream) if self._has_queue else []
            t, status = self._learn_many(*self._arguments[stream], t, s, rewards, s_next, ended, cut, deltas)
            if before and status == base.DIVERGED:
                self._put_back(stream, before)  # and learn again up to there, which gives the same bits
                part = [array[:t] for array in (s, rewards, s_next, ended, cut, deltas)]
                self._learn_many(*self._arguments[stream], first, *part)
            if status != LEARNED:
                self._grow_or_raise(status, stream, s[t], rewards[t], s_next[t], row=(int(t),))
        return deltas

    def _changing(self, stream: int) -> tuple[np.ndarray, ...]:
        own = (self.traces[stream], self._queues[stream], self._span[stream])
        return (self.w, self.state.moments, self.state.scalars, self._count, self._stats, *own)

    def _snapshot(self, stream: int) -> list[np.ndarray]:
        """What an episode's end may change before its updates turn out not to be finite."""
        return [array.copy() for array in self._changing(stream)]

    def _put_back(self, stream: int, snapshot: list[np.ndarray]) -> None:
        for array, before in zip(self._changing(stream), snapshot, strict=True):
            array[...] = before

    def _grow_or_raise(
        self, status: int, stream: int, s: np.ndarray, r: float, s_next: np.ndarray, row: tuple[int, ...] = ()
    ) -> None:
        """Make room and return, or raise what stopped the kernel; `row` is where in arrays of many it was."""
        if status == base.QUEUE_FULL:
            old, start = self._queues[stream], int(self._span[stream, 0])
            bigger = np.zeros((2 * len(old), old.shape[1]), old.dtype)
            bigger[: len(old)] = np.roll(old, -start, axis=0)
            self._queues[stream], self._span[stream, 0] = bigger, 0
            self._bind()
            return
        number = self.n_transitions + 1
        if status == base.BAD_INPUT:
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

        Norms are sampled at every `norms_every`-th update; with 0, only those of weights and TD errors are there.
        """
        totals, values = self._stats[base.TOTALS], dict[str, float]()
        if (seen := totals[base.N_TRANSITIONS]) > 0:
            values["td_error/mean"] = totals[base.SUM_DELTA] / seen
            values["td_error/rms"] = float(np.sqrt(totals[base.SUM_DELTA_SQUARED] / seen))
        values.update(self._norms(self._method.has_trace))
        values.update({f"weight_norm/{name}": norm for name, norm in self.net.layer_norms(self.w).items()})
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
            **{f"queue_{i}": queue for i, queue in enumerate(self._queues) if queue.size},
        }
        settings = {
            "net": self.net.as_dict(),
            "optimizer": self.optimizer.as_dict(),
            "gamma": self.gamma,
            "method": self.method,
            **dataclasses.asdict(self._method),
            "streams": self.streams,
            "norms_every": self.norms_every,
        }
        return arrays, settings

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> ValueFunction:
        """The value function that `state_dict` described."""
        settings = checkpoint.under_new_names(settings)
        norms_every, method = settings.pop("norms_every"), settings["method"]
        net, optimizer = Network(**settings.pop("net")), Optimizer.from_dict(settings.pop("optimizer"))
        if "memory_0" in arrays:  # of version 0.1, which wrote the settings of all methods
            arrays = {name.replace("memory_", "queue_"): array for name, array in arrays.items()}
            for name in {"lam", "n"} - set(base.settings_of(method)):
                settings.pop(name, None)
        self = cls(net, optimizer, **settings, init="zeros")
        self.norms_every = norms_every
        for i, queue in enumerate(self._queues):
            if queue.size and method == "monte-carlo":  # it may have grown for a long episode
                self._queues[i] = np.zeros((max(len(queue), len(arrays[f"queue_{i}"])), queue.shape[1]), queue.dtype)
        put(self.state_dict()[0], arrays)
        for (start, waiting), queue in zip(self._span, self._queues, strict=True):
            if queue.size and not (0 <= start < len(queue) and 0 <= waiting <= len(queue)):
                raise ValueError(f"span is ({start}, {waiting}); expected slots of a queue of {len(queue)}")
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
        raise ValueError(f"{name} holds {array[wrong][0]:g}; expected booleans")
    return array.astype(np.bool_)
