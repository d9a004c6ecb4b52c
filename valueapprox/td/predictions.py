"""Predictions: several answers to "how much of this signal will come?", learned from many streams by TD(lambda)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import checkpoint
from valueapprox.checks import aligned_zeros, as_floats, as_numbers, unit_interval
from valueapprox.compiling import specialise
from valueapprox.nn.network import Network
from valueapprox.optim import Optimizer
from valueapprox.td import base
from valueapprox.td.learner import Learner, put
from valueapprox.td.prediction_kernels import NORMS_EVERY, input_gradients, learn_predictions

__all__ = ["Learned", "Predictions"]

FLOAT64 = np.dtype(np.float64)


class Learned(NamedTuple):
    """What n transitions did."""

    td_errors: np.ndarray  # (n, k) float64, before the update; NaN where nothing was learned
    status: np.ndarray  # (n,) uint8: base.LEARNED or base.DIVERGED


class Predictions(Learner):
    """k predictions, each of a cumulant c_i with a discount gamma_i and a trace decay lambda_i, over n streams.

    v_i(s) is the expected sum of c_i, discounted by gamma_i: a general value function (Sutton et al. 2011). The value
    of a policy is the one whose cumulant is the reward. Per transition (s, c, s') of a stream, for every i:

        delta_i = c_i + gamma_i v_i(s') - v_i(s)        v_i(s') = 0 if s' is terminal
        z_i <- (gamma_i lambda_i) z_i + grad v_i(s)     with the gamma_i of the transition into s
        w <- w + step(sum_i delta_i z_i)                one network with k outputs
        w_i <- w_i + step(delta_i z_i)                  or `separate` networks

    and z_i <- 0 after the update if the stream terminated or was truncated. A truncation still bootstraps, from the
    final observation.

    Parameters
    ----------
    net
        A network with k outputs; with `separate`, one with a single output, of which there are k.
    optimizer
        Receives sum_i delta_i z_i, or each delta_i z_i, and moves the weights along it. One that looks at delta and
        trace apart (ObGD, AdaptiveObGD, Intentional, VarianceAdjusted) wants k = 1 or `separate`. If not given,
        Adam(beta2=0.9999), whose values are means also where rewards are rare and large.
    discounts, lams
        gamma_i and lambda_i in [0, 1]; one number of lams is for all.
    names
        Of the predictions; "0", "1", ... by default.
    separate
        Whether every prediction has a network of its own.
    seed, init
        Of the initial weights; see `Network.init`.
    streams
        Number of sequences of experience, each with traces of its own.

    Examples
    --------
    Two horizons of one signal, linear, by hand: w = 0, so both deltas are 1, and alpha = 0.5 moves w by 0.5.

    >>> from valueapprox import SGD
    >>> v = Predictions(Network((2, 2), bias=False, dtype="float64"), SGD(0.5), (0.0, 0.9), init="zeros")
    >>> v.learn(0, [[1, 0]], [[1, 1]], [[0, 1]]).td_errors
    array([[1., 1.]])
    >>> v.predict([1, 0])
    array([0.5, 0.5])
    """

    def __init__(
        self,
        net: Network,
        optimizer: Optimizer | None = None,
        discounts: Sequence[float] = (0.99,),
        lams: float | Sequence[float] = 0.0,
        *,
        names: Sequence[str] = (),
        separate: bool = False,
        seed: int | np.random.SeedSequence | np.random.Generator = 0,
        init: str = "he_normal",
        streams: int = 1,
    ) -> None:
        super().__init__(net, optimizer, streams)
        self.discounts = tuple(unit_interval(f"discounts[{i}]", g) for i, g in enumerate(np.atleast_1d(discounts)))
        k = len(self.discounts)
        many = list(np.atleast_1d(lams)) * (k if np.ndim(lams) == 0 else 1)
        self.lams = tuple(unit_interval(f"lams[{i}]", l) for i, l in enumerate(many))
        if len(self.lams) != k:
            raise ValueError(f"lams has {len(self.lams)} entries; discounts has {k}, one for each prediction")
        self.names = tuple(names) or tuple(map(str, range(k)))
        if len(self.names) != k or len(set(self.names)) != k:
            raise ValueError(f"names is {self.names}; expected {k} different ones, one for each prediction")
        self.separate = bool(separate)
        if net.n_outputs != (1 if separate else k):
            wanted = "1, as each prediction has a network" if separate else f"{k}, one for each prediction"
            raise ValueError(f"net has {net.n_outputs} outputs; expected {wanted}")
        if self.optimizer.whole_network and not separate and k > 1:
            raise ValueError(
                f"optimizer is {type(self.optimizer).__name__}, whose step depends on one TD error and its trace; {k} "
                "predictions of one network have several: separate=True gives each its own network"
            )
        networks, rng = (k if separate else 1), np.random.default_rng(seed)
        self._w = aligned_zeros((networks, net.size), self._dtype)
        for row in self._w:
            row[:] = net.init(rng, init)
        #: No weight grows beyond it: values of moderate states then stay finite.
        self.limit = float(np.finfo(self._dtype).max) ** (1 / (net.n_layers + 1))
        own = [0.0, self.limit, *self.lams, *self.discounts]
        hyper = self.optimizer.hyper(net.layer_names)
        self._norms_every = hyper.size + NORMS_EVERY
        self._hyper = np.concatenate([hyper, own])
        self._kernel = specialise(learn_predictions, **self.optimizer.kernels())
        self._discounts = np.array([self.discounts])
        self._count = np.zeros((networks, 2), np.int64)
        self._errors = np.zeros((2, k))
        self._fresh_optimizer()
        self._make_room(self.streams)
        self._scratch = aligned_zeros((networks, *net.scratch().shape), self._dtype)
        self._rooms: tuple[np.ndarray, ...] = (
            *(np.zeros(k, self._dtype) for _ in range(2)),
            np.zeros(net.size, self._dtype),
            np.zeros(net.n_layers),
            *(np.zeros_like(a) for a in (self._w, self._moments, self._scalars)),
        )

    def _fresh_optimizer(self) -> None:
        states = [self.optimizer.init(row) for row in self._w]
        self._moments = np.stack([state.moments for state in states])
        self._scalars = np.stack([state.scalars for state in states])
        self._count[:, base.UPDATES] = 0

    def _make_room(self, streams: int) -> None:
        try:
            self._traces = aligned_zeros((streams, len(self.names), self.net.size), self._dtype)
        except (MemoryError, ValueError):
            size = streams * len(self.names) * self.net.size * self._dtype.itemsize / 2**30
            raise ValueError(f"streams is {streams}; their traces would take {size:.1f} GiB, too much here") from None
        self._inward = np.tile(self.discounts, (streams, 1))

    @property
    def n_predictions(self) -> int:
        """Number k of predictions."""
        return len(self.names)

    # --- predictions --------------------------------------------------------------------------------------------------

    def predict(self, s: ArrayLike, w: np.ndarray | None = None) -> np.ndarray:
        """v(s): (k,) for one state (d,), (n, k) for a batch (n, d); with other weights (m, P) if they are given."""
        rows = self._w if w is None else w
        if len(rows) == 1:
            return self.net.forward(rows[0], s)
        s = as_floats("s", s, self._dtype, (None,) * (as_numbers("s", s).ndim - 1) + (self.net.n_inputs,))
        return np.concatenate([self.net.forward(row, s) for row in rows], axis=-1)

    def input_gradients(self, s: ArrayLike, output: int = 0, w: np.ndarray | None = None) -> np.ndarray:
        """d v_output / d s (n, d) at states (n, d): which inputs the prediction depends on."""
        if output not in range(self.n_predictions):
            raise ValueError(f"output is {output}; expected a prediction from 0 to {self.n_predictions - 1}")
        states = as_floats("s", s, self._dtype, (None, self.net.n_inputs))
        rows, gradients = (self._w if w is None else w), np.empty_like(states)
        row, o = (rows[output], 0) if self.separate else (rows[0], output)
        input_gradients(row, self.net.spec, self.net.scratch(), states, o, gradients)
        return gradients

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(
        self,
        stream: ArrayLike,
        s: ArrayLike,
        c: ArrayLike,
        s_next: ArrayLike,
        terminated: ArrayLike = False,
        truncated: ArrayLike = False,
        *,
        discounts: ArrayLike | None = None,
        cut: ArrayLike = False,
    ) -> Learned:
        """Learn from n transitions, one after the other, in one compiled call.

        Parameters
        ----------
        stream
            (n,) which stream each continues, or one number for all.
        s, s_next
            States (n, d). At an ending s_next is the final observation, never the one after the reset.
        c
            Cumulants (n, k).
        terminated, truncated
            (n,), or one for all. If both are true, terminated wins.
        discounts
            (n, k) in [0, 1], instead of those of the predictions: 0 ends a prediction while its stream goes on.
        cut
            (n,), or one for all: whether the stream's traces are forgotten before, as at the start of an episode.

        Returns
        -------
        Learned
            td_errors (n, k) before each update, and status (n,). Where a TD error would be NaN or infinite, or a
            weight larger than M^(1 / (L + 1)), M the largest number of the dtype and L the number of layers (7e12 for
            float32 and two layers: beyond, values overflow), the status is base.DIVERGED and nothing is learned; the
            stream's traces are cut, since they would lack a gradient from there on.

        Raises
        ------
        ValueError
            If something has the wrong shape, or holds NaN or infinity. Nothing is learned.
        """
        k = self.n_predictions
        states = as_floats("s", s, self._dtype, (None, self.net.n_inputs))
        n = len(states)
        next_states = as_floats("s_next", s_next, self._dtype, states.shape)
        cumulants = as_floats("c", c, FLOAT64, (n, k))
        gammas = self._discounts if discounts is None else as_floats("discounts", discounts, FLOAT64, (n, k))
        for name, array in (("s", states), ("s_next", next_states), ("c", cumulants), ("discounts", gammas)):
            wrong = ~np.isfinite(array) if name != "discounts" else ~((array >= 0) & (array <= 1))
            if wrong.any():
                t, i = map(int, np.argwhere(wrong)[0])
                wanted = "a number in [0, 1]" if name == "discounts" else "a finite number"
                raise ValueError(f"{name}[{t}, {i}] is {array[t, i]}; expected {wanted}")
        places = np.broadcast_to(as_numbers("stream", stream), (n,)).astype(np.int64)
        if n and not (places.min() >= 0 and places.max() < self.streams):
            wrong_place = places[(places < 0) | (places >= self.streams)][0]
            raise ValueError(f"stream is {wrong_place}; expected a stream from 0 to {self.streams - 1}")
        flags = []
        for name, value in (("terminated", terminated), ("truncated", truncated), ("cut", cut)):
            array = np.broadcast_to(as_numbers(name, value), (n,))
            if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
                raise ValueError(f"{name} holds {array[~np.isin(array, (0, 1))][0]}; expected booleans")
            flags.append(array.astype(np.bool_))
        return self._learn(places, flags[2], states, cumulants, next_states, flags[0], flags[1], gammas)

    def _learn(
        self,
        stream: np.ndarray,
        cut: np.ndarray,
        s: np.ndarray,
        c: np.ndarray,
        s_next: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        discounts: np.ndarray,
    ) -> Learned:
        """`learn` without checks, of arrays as the kernel takes them."""
        td_errors, status = np.empty(c.shape), np.empty(len(stream), np.uint8)
        own = [self._w, self._traces, self._inward, self._moments, self._scalars, self._count]
        own += [self.net.spec, self._hyper, self._stats, self._errors, self._scratch, *self._rooms]
        given = [stream, cut, s, c, s_next, terminated, truncated, discounts, td_errors, status]
        self._kernel(*own, *given)
        return Learned(td_errors, status)

    def cut_traces(self, stream: int | None = None) -> None:
        """Forget the past of a stream, or of all, as at the start of an episode."""
        those = slice(None) if stream is None else stream
        self._traces[those], self._inward[those] = 0, self.discounts

    def restart(self, weights: ArrayLike) -> None:
        """Go on from other weights (m, P), with traces cut and a fresh optimizer, as both belong to the old ones."""
        self.w = as_floats("w", weights, self._dtype, self._w.shape)
        self.cut_traces()
        self._fresh_optimizer()

    # --- what the log shows -------------------------------------------------------------------------------------------

    def diagnostics(self) -> dict[str, float]:
        """Averages since the last call, by the log's tags without their network: see docs/reference/tags.md.

        With several predictions there are td_error/mean/NAME and td_error/rms/NAME, and norms are taken over all of
        them: grad_norm is sqrt(sum_i ||grad v_i||^2), trace_norm sqrt(sum_i ||z_i||^2).
        """
        seen, values = self._stats[base.TOTALS, base.N_TRANSITIONS], dict[str, float]()
        if seen > 0:
            for i, name in enumerate(self.names):
                tail = f"/{name}" if self.n_predictions > 1 else ""
                values[f"td_error/mean{tail}"] = float(self._errors[0, i] / seen)
                values[f"td_error/rms{tail}"] = float(np.sqrt(self._errors[1, i] / seen))
        values.update(self._norms())
        values.update({f"weight_norm/{name}": length for name, length in self.layer_norms().items()})
        self._stats[:] = 0.0
        self._errors[:] = 0.0
        return values

    def layer_norms(self, w: np.ndarray | None = None) -> dict[str, float]:
        """Euclidean norm of each layer's weights, over all networks."""
        norms = [self.net.layer_norms(row) for row in (self._w if w is None else w)]
        return {name: float(np.linalg.norm([n[name] for n in norms])) for name in self.net.layer_names}

    # --- files --------------------------------------------------------------------------------------------------------

    def state_dict(self, streams: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that was learned, as arrays, and the settings, JSON-able; only the first `streams` traces, if given."""
        arrays = {
            "w": self._w,
            "traces": self._traces[:streams],
            "inward": self._inward[:streams],
            "moments": self._moments,
            "scalars": self._scalars,
            "count": self._count,
            "stats": self._stats,
            "errors": self._errors,
        }
        settings = {
            "net": self.net.as_dict(),
            "optimizer": self.optimizer.as_dict(),
            "discounts": list(self.discounts),
            "lams": list(self.lams),
            "names": list(self.names),
            "separate": self.separate,
            "streams": self.streams,
            "norms_every": self.norms_every,
        }
        return arrays, settings

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Predictions:
        """The predictions that `state_dict` described; streams that it left out start without a trace."""
        settings = checkpoint.under_new_names(settings)
        norms_every = settings.pop("norms_every")
        net, optimizer = Network(**settings.pop("net")), Optimizer.from_dict(settings.pop("optimizer"))
        self = cls(net, optimizer, **settings, init="zeros")
        self.norms_every = norms_every
        own, _ = self.state_dict()
        for name in ("traces", "inward"):
            own[name] = own[name][: len(arrays[name])]
        put(own, arrays)
        return self
