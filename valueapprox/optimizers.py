"""Optimizers: how an update direction becomes a change of the weights. Settings are frozen dataclasses.

Every optimizer ascends: it is given u and moves w along it. TD learning passes u = delta z; minimising a loss passes
u = -grad L, by the same code. What it remembers is plain arrays beside the weights, saved and copied like them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from valueapprox.backprop import BIAS, LAYERS, ONE, SIZES, ZERO, D, X, first_unit, layer_size
from valueapprox.checks import positive
from valueapprox.compiling import kernel

if TYPE_CHECKING:
    from valueapprox.network import Network

__all__ = [
    "SGD",
    "Adam",
    "Constant",
    "CosineDecay",
    "ExponentialDecay",
    "InverseTime",
    "LinearDecay",
    "Momentum",
    "Optimizer",
    "OptimizerState",
    "RMSProp",
    "Schedule",
    "StepDecay",
]

SGD_CODE, MOMENTUM_CODE, RMSPROP_CODE, ADAM_CODE = range(4)
CONSTANT_CODE, LINEAR_CODE, INVERSE_TIME_CODE, COSINE_CODE, STEP_CODE, EXPONENTIAL_CODE = range(6)

# Positions in the kernel's vector of hyper-parameters.
CODE, SCHEDULE, SCHEDULE_FINAL, SCHEDULE_STEPS, BETA1, BETA2, EPSILON, CLIP_NORM, CLIP_LAYER_NORM, ALPHA = range(10)


# --- settings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """A factor on the step size after t updates, t = 0 at the first."""

    code = CONSTANT_CODE

    def __post_init__(self) -> None:
        if hasattr(self, "steps"):
            object.__setattr__(self, "steps", positive("steps", self.steps))
        for name in ("final", "decay"):
            number = getattr(self, name, 1.0)
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name} is {number}; it is a factor on the step size, finite and not negative")
            if hasattr(self, name):
                object.__setattr__(self, name, float(number))

    def settings(self) -> list[float]:
        """What the kernel reads: a code, a factor and a number of updates."""
        number = getattr(self, "final", getattr(self, "decay", 1.0))
        return [float(self.code), float(number), float(getattr(self, "steps", 1))]

    def factor(self, t: int) -> float:
        """The factor after t updates."""
        code, number, steps = self.settings()
        return float(schedule_factor(code, number, steps, t))


@dataclass(frozen=True)
class Constant(Schedule):
    """1, always."""


@dataclass(frozen=True)
class LinearDecay(Schedule):
    """From 1 in a straight line to `final` at `steps` updates, then `final`."""

    steps: int
    final: float = 0.0
    code = LINEAR_CODE


@dataclass(frozen=True)
class InverseTime(Schedule):
    """1 / (1 + t / steps): halved after `steps` updates. Meets Robbins and Monro's conditions."""

    steps: int
    code = INVERSE_TIME_CODE


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """From 1 along half a cosine to `final` at `steps` updates, then `final` (Loshchilov & Hutter 2017)."""

    steps: int
    final: float = 0.0
    code = COSINE_CODE


@dataclass(frozen=True)
class StepDecay(Schedule):
    """decay^floor(t / steps): multiplied by `decay` every `steps` updates."""

    steps: int
    decay: float = 0.5
    code = STEP_CODE


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """decay^(t / steps): as `StepDecay`, but a little at every update."""

    steps: int
    decay: float = 0.5
    code = EXPONENTIAL_CODE


StepSize = float | Sequence[float] | Mapping[str, float]


def _step_sizes(alpha: StepSize) -> StepSize:
    """Plain numbers, so that they compare and can be written as JSON."""
    given: Any = alpha.values() if isinstance(alpha, Mapping) else alpha if np.ndim(alpha) else (alpha,)
    try:
        values = [float(a) for a in given]
    except (TypeError, ValueError):
        raise ValueError(f"alpha is {alpha!r}; a step size is a number, or one for each layer") from None
    if not all(math.isfinite(a) and a >= 0 for a in values):
        raise ValueError(f"alpha is {alpha}; a step size is finite and not negative")
    if isinstance(alpha, Mapping):
        return dict(zip(alpha, values, strict=True))
    return values if np.ndim(alpha) else values[0]


class OptimizerState(NamedTuple):
    """What an optimizer learns: running moments (m, P) in the weights' dtype, and the number of updates so far."""

    moments: np.ndarray
    n_updates: np.ndarray


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers share.

    Parameters
    ----------
    alpha
        Step size: one number, or one per layer as a sequence or by name, ``{"A": 0.1, "B": 0.01}``.
    schedule
        Factor on the step size over the updates.
    clip_norm
        Scale the update direction down to this Euclidean norm if it is longer. None: no clipping.
    clip_layer_norm
        The same for each layer on its own.
    """

    alpha: StepSize = 0.01
    schedule: Schedule = field(default_factory=Constant, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)
    clip_layer_norm: float | None = field(default=None, kw_only=True)

    code = SGD_CODE
    n_moments = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _step_sizes(self.alpha))
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule is {self.schedule!r}; one like LinearDecay(steps=1000) is wanted")
        for name in ("clip_norm", "clip_layer_norm"):
            bound = getattr(self, name)
            if bound is not None:
                if not bound > 0:
                    raise ValueError(f"{name} is {bound}; a norm to clip to is positive, or None for no clipping")
                object.__setattr__(self, name, float(bound))
        for name in ("beta", "beta1", "beta2"):
            if hasattr(self, name):
                beta = getattr(self, name)
                if not 0 <= beta < 1:
                    raise ValueError(f"{name} is {beta}; a decay rate lies in [0, 1)")
                object.__setattr__(self, name, float(beta))
        if not getattr(self, "epsilon", 1.0) > 0:
            raise ValueError(f"epsilon is {getattr(self, 'epsilon', None)}; it keeps a division finite and is positive")

    def layer_alphas(self, layers: Sequence[str]) -> list[float]:
        """One step size for each named layer."""
        if isinstance(self.alpha, Mapping):
            if set(self.alpha) != set(layers):
                raise ValueError(f"alpha names the layers {sorted(self.alpha)}; the network has {list(layers)}")
            return [float(self.alpha[name]) for name in layers]
        alphas = np.atleast_1d(np.asarray(self.alpha, dtype=float))
        if alphas.size not in (1, len(layers)):
            raise ValueError(f"alpha has {alphas.size} step sizes; the network has {len(layers)} layers {list(layers)}")
        return [float(a) for a in np.broadcast_to(alphas, len(layers))]

    def hyper(self, layers: Sequence[str]) -> np.ndarray:
        """The settings as the kernel reads them, (9 + L,) float64; an unset clip is 0."""
        first = getattr(self, "beta1", getattr(self, "beta", 0.0))
        return np.array(
            [
                self.code,
                *self.schedule.settings(),
                first,
                getattr(self, "beta2", 0.0),
                getattr(self, "epsilon", 0.0),
                self.clip_norm or 0.0,
                self.clip_layer_norm or 0.0,
                *self.layer_alphas(layers),
            ]
        )

    def init(self, w: np.ndarray) -> OptimizerState:
        """A fresh state for weights like `w` (P,)."""
        return OptimizerState(np.zeros((self.n_moments, w.size), w.dtype), np.zeros(1, np.int64))

    def step(self, net: Network, w: np.ndarray, u: np.ndarray, state: OptimizerState) -> None:
        """Move w (P,) along u (P,), in place, and renew the state: u = delta z for TD, u = -grad L for a loss."""
        for name, array in (("w", w), ("u", u)):
            if array.dtype != net.dtype or array.shape != (net.size,) or not array.flags.carray:
                raise ValueError(
                    f"{name} is {array.dtype} of shape {array.shape}; contiguous, writeable {net.dtype} of shape "
                    f"({net.size},) is wanted"
                )
        ascend(w, u, w.dtype.type(1), net.spec, state.moments, state.n_updates, self.hyper(net.layer_names))

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values; `from_dict` is the inverse."""
        settings = asdict(self)
        settings["schedule"] = {"name": type(self.schedule).__name__, **settings["schedule"]}
        return {"name": type(self).__name__, **settings}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Optimizer:
        """Build the optimizer that `as_dict` described."""
        values = dict(settings)
        schedule = dict(values.pop("schedule"))
        make_schedule = SCHEDULES[schedule.pop("name")]
        return OPTIMIZERS[values.pop("name")](**values, schedule=make_schedule(**schedule))


@dataclass(frozen=True)
class SGD(Optimizer):
    """w <- w + alpha u. With u = delta z the textbook TD update."""


@dataclass(frozen=True)
class Momentum(Optimizer):
    """v <- beta v + u;  w <- w + alpha v. Heavy ball (Polyak 1964)."""

    beta: float = 0.9
    code = MOMENTUM_CODE
    n_moments = 1


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """v <- beta v + (1 - beta) u^2;  w <- w + alpha u / (sqrt(v) + epsilon). (Tieleman & Hinton 2012.)"""

    alpha: StepSize = 1e-3
    beta: float = 0.99
    epsilon: float = 1e-8
    code = RMSPROP_CODE
    n_moments = 1


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam with bias correction and epsilon outside the root (Kingma & Ba 2015, algorithm 1).

    m <- beta1 m + (1 - beta1) u;  v <- beta2 v + (1 - beta2) u^2
    w <- w + alpha (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
    """

    alpha: StepSize = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    code = ADAM_CODE
    n_moments = 2


OPTIMIZERS: dict[str, type[Optimizer]] = {c.__name__: c for c in (SGD, Momentum, RMSProp, Adam)}
SCHEDULES: dict[str, type[Schedule]] = {
    c.__name__: c for c in (Constant, LinearDecay, InverseTime, CosineDecay, StepDecay, ExponentialDecay)
}


# --- kernels --------------------------------------------------------------------------------------------------------


@kernel(inline=True)
def schedule_factor(code, final, steps, t):
    """Factor on the step size after t updates: see the schedules. `final` is their `final` or `decay`."""
    if code == LINEAR_CODE:
        return 1.0 + (final - 1.0) * min(t / steps, 1.0)
    if code == INVERSE_TIME_CODE:
        return 1.0 / (1.0 + t / steps)
    if code == COSINE_CODE:
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(t / steps, 1.0)))
    if code == STEP_CODE:
        return final ** math.floor(t / steps)
    if code == EXPONENTIAL_CODE:
        return final ** (t / steps)
    return 1.0


@kernel
def norm(vector, start, stop):
    """Euclidean norm of vector[start:stop], summed in float64."""
    total = 0.0
    for p in range(start, stop):
        total += np.float64(vector[p]) * np.float64(vector[p])
    return math.sqrt(total)


@kernel(inline=True)
def shrink(length, bound):
    """Factor that brings a vector of this length down to `bound`; 1 if it is short enough or the bound is 0."""
    return bound / length if bound > 0.0 and length > bound else 1.0


@kernel
def ascend(w, z, scale, spec, moments, count, hyper):
    """Move the weights along u = scale z: w <- w + step(u).

    w (P,) and moments (m, P) overwritten; z (P,) read; scale a number (TD: delta; a loss: -1); spec describes the
    network (see `backprop`); count[0] the number of updates, counted here; hyper as `Optimizer.hyper` says.
    """
    dtype = w.dtype.type
    code = int(hyper[CODE])
    factor = schedule_factor(int(hyper[SCHEDULE]), hyper[SCHEDULE_FINAL], hyper[SCHEDULE_STEPS], count[0])
    count[0] += 1
    clip = 1.0
    if hyper[CLIP_NORM] > 0.0:
        clip = shrink(abs(scale) * norm(z, ZERO, np.uint64(w.size)), hyper[CLIP_NORM])
    beta1, beta2, epsilon = dtype(hyper[BETA1]), dtype(hyper[BETA2]), dtype(hyper[EPSILON])
    rest1, rest2 = dtype(1.0 - hyper[BETA1]), dtype(1.0 - hyper[BETA2])
    stop = ZERO
    for layer in range(spec[LAYERS]):
        start = stop
        stop += layer_size(spec, layer)
        alpha = hyper[ALPHA + layer] * factor
        layer_clip = clip
        if hyper[CLIP_LAYER_NORM] > 0.0:
            layer_clip *= shrink(abs(scale) * clip * norm(z, start, stop), hyper[CLIP_LAYER_NORM])
        g = dtype(scale * layer_clip)  # u = g z
        if code == SGD_CODE:
            step = dtype(alpha) * g
            for p in range(start, stop):
                w[p] += step * z[p]
        elif code == MOMENTUM_CODE:
            step = dtype(alpha)
            for p in range(start, stop):
                moments[0, p] = beta1 * moments[0, p] + g * z[p]
                w[p] += step * moments[0, p]
        elif code == RMSPROP_CODE:
            step = dtype(alpha)
            for p in range(start, stop):
                u = g * z[p]
                moments[0, p] = beta1 * moments[0, p] + rest1 * u * u
                w[p] += step * u / (np.sqrt(moments[0, p]) + epsilon)
        else:
            # The corrections 1 - beta^t, taken out of the loop: alpha / c1 * m / (sqrt(v) / sqrt(c2) + epsilon).
            step = dtype(alpha / (1.0 - hyper[BETA1] ** count[0]))
            root = dtype(1.0 / math.sqrt(1.0 - hyper[BETA2] ** count[0]))
            for p in range(start, stop):
                u = g * z[p]
                moments[0, p] = beta1 * moments[0, p] + rest1 * u
                moments[1, p] = beta2 * moments[1, p] + rest2 * u * u
                w[p] += step * moments[0, p] / (np.sqrt(moments[1, p]) * root + epsilon)


@kernel(inline=True)
def is_plain_sgd(hyper):
    """Whether the optimizer is SGD without clipping, whose update needs no pass of its own."""
    return int(hyper[CODE]) == SGD_CODE and hyper[CLIP_NORM] == 0.0 and hyper[CLIP_LAYER_NORM] == 0.0


@kernel(inline=True)
def accumulate_and_ascend(w, z, scale, spec, scratch, decay, count, hyper):
    """`accumulate` and SGD's `ascend` in one pass over memory: z <- decay z + x^T d;  w <- w + alpha scale z."""
    x, d = scratch[X], scratch[D]
    factor = schedule_factor(int(hyper[SCHEDULE]), hyper[SCHEDULE_FINAL], hyper[SCHEDULE_STEPS], count[0])
    count[0] += 1
    o, a = ZERO, first_unit(spec, 0)
    for layer in range(spec[LAYERS]):
        n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
        b = first_unit(spec, layer + 1)
        step = w.dtype.type(hyper[ALPHA + layer] * factor) * scale
        if m == ONE:
            d_b = d[b]
            for i in range(n):
                z_new = decay * z[o + i] + x[a + i] * d_b
                z[o + i] = z_new
                w[o + i] += step * z_new
            o += n
        else:
            for i in range(n):
                x_i = x[a + i]
                for j in range(m):
                    z_new = decay * z[o + j] + x_i * d[b + j]
                    z[o + j] = z_new
                    w[o + j] += step * z_new
                o += m
        if spec[BIAS]:
            for j in range(m):
                z_new = decay * z[o + j] + d[b + j]
                z[o + j] = z_new
                w[o + j] += step * z_new
            o += m
        a = b
