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

from valueapprox.backprop import (
    BIAS,
    LAYERS,
    ONE,
    SIZES,
    ZERO,
    D,
    X,
    accumulate,
    first_unit,
    layer_size,
    store_gradient,
)
from valueapprox.checks import positive
from valueapprox.compiling import kernel

if TYPE_CHECKING:
    from valueapprox.network import Network

__all__ = [
    "SGD",
    "Adam",
    "AdaptiveObGD",
    "Constant",
    "CosineDecay",
    "DecayedMax",
    "ExponentialDecay",
    "Intentional",
    "InverseTime",
    "LinearDecay",
    "Momentum",
    "ObGD",
    "Optimizer",
    "OptimizerState",
    "RMSProp",
    "Schedule",
    "StepDecay",
    "VarianceAdjusted",
]

SGD_CODE, MOMENTUM_CODE, RMSPROP_CODE, ADAM_CODE = range(4)
OBGD_CODE, ADAPTIVE_OBGD_CODE, DECAYED_MAX_CODE, INTENTIONAL_CODE, VARIANCE_ADJUSTED_CODE = range(4, 9)
CONSTANT_CODE, LINEAR_CODE, INVERSE_TIME_CODE, COSINE_CODE, STEP_CODE, EXPONENTIAL_CODE = range(6)

# Positions in the kernel's vector of hyper-parameters.
CODE, SCHEDULE, SCHEDULE_FINAL, SCHEDULE_STEPS, BETA1, BETA2, EPSILON, CLIP_NORM, CLIP_LAYER_NORM = range(9)
NEEDS_GRADIENT, KAPPA, RMS, NORMALISE, ALPHA = range(9, 14)

# Positions in an optimizer's scalars: those of Intentional, then what the log shows.
GRADIENT_SIZE, SQUARED_ERROR, ERROR_SIZE, SUM_OF_STEPS, N_BOUNDED, N_SCALARS = range(6)


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


def _subclasses(cls: type) -> list[Any]:
    direct: list[type] = cls.__subclasses__()
    return direct + [further for subclass in direct for further in _subclasses(subclass)]


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
    """What an optimizer learns: running moments (m, P) in the weights' dtype, and the number of updates so far.

    scalars (5,) are running averages of the whole network; sums of effective steps and of bounded ones for the log.
    """

    moments: np.ndarray
    n_updates: np.ndarray
    scalars: np.ndarray


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
    needs_gradient = False  # apart from the trace
    whole_network = False  # its step size depends on all weights
    proximal = False  # `regularizers.shrink_to_zero` knows its step

    def __init_subclass__(cls) -> None:
        """Refuse a code that another optimizer has: its kernel would run in place of this one's."""
        super().__init_subclass__()
        inherited = {base.code for base in cls.__mro__[1:] if issubclass(base, Optimizer) and "code" in vars(base)}
        if "code" in vars(cls) and cls.code not in inherited - {Optimizer.code}:
            for other in _subclasses(Optimizer):
                if other is not cls and "code" in vars(other) and other.code == cls.code:
                    raise TypeError(f"code of {cls.__name__} is {cls.code}; expected one that {other.__name__} has not")

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _step_sizes(self.alpha))
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule is {self.schedule!r}; one like LinearDecay(steps=1000) is wanted")
        for name in ("clip_norm", "clip_layer_norm", "clip"):
            bound = getattr(self, name, None)
            if bound is not None:
                if not bound > 0:
                    raise ValueError(f"{name} is {bound}; expected a positive number, or None for no clipping")
                object.__setattr__(self, name, float(bound))
        for name in ("beta", "beta1", "beta2", "clip_decay"):
            if hasattr(self, name):
                beta = getattr(self, name)
                if not 0 <= beta < 1:
                    raise ValueError(f"{name} is {beta}; a decay rate lies in [0, 1)")
                object.__setattr__(self, name, float(beta))
        if not getattr(self, "kappa", 1.0) > 0:
            raise ValueError(f"kappa is {getattr(self, 'kappa', None)}; expected a positive number")
        if self.whole_network and np.ndim(list(self.alpha.values()) if isinstance(self.alpha, Mapping) else self.alpha):
            raise ValueError(f"alpha is {self.alpha}; {type(self).__name__} has one step size for the whole network")
        if self.needs_gradient and (self.clip_norm is not None or self.clip_layer_norm is not None):
            raise ValueError(f"clip_norm is set; {type(self).__name__} bounds its steps itself")
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
        """The settings as the kernel reads them, (13 + L,) float64; an unset clip is 0."""
        first = getattr(self, "beta1", getattr(self, "beta", getattr(self, "clip_decay", 0.0)))
        return np.array(
            [
                self.code,
                *self.schedule.settings(),
                first,
                getattr(self, "beta2", 0.0),
                getattr(self, "epsilon", 0.0),
                self.clip_norm or 0.0,
                self.clip_layer_norm or 0.0,
                self.needs_gradient,
                getattr(self, "kappa", getattr(self, "clip", None)) or 0.0,
                getattr(self, "rms", True),
                getattr(self, "normalise", False),
                *self.layer_alphas(layers),
            ]
        )

    def init(self, w: np.ndarray) -> OptimizerState:
        """A fresh state for weights like `w` (P,)."""
        scalars = np.zeros(N_SCALARS)
        scalars[SQUARED_ERROR] = 1.0  # as Intentional has it; the others do not look
        return OptimizerState(np.zeros((self.n_moments, w.size), w.dtype), np.zeros(1, np.int64), scalars)

    def step(self, net: Network, w: np.ndarray, u: np.ndarray, state: OptimizerState) -> None:
        """Move w (P,) along u (P,), in place, and renew the state: u = delta z for TD, u = -grad L for a loss."""
        for name, array in (("w", w), ("u", u)):
            if array.dtype != net.dtype or array.shape != (net.size,) or not array.flags.carray:
                raise ValueError(
                    f"{name} is {array.dtype} of shape {array.shape}; contiguous, writeable {net.dtype} of shape "
                    f"({net.size},) is wanted"
                )
        if self.needs_gradient:
            raise ValueError(f"{type(self).__name__} needs an eligibility trace; it is for learning from a stream")
        hyper = self.hyper(net.layer_names)
        ascend(w, u, w.dtype.type(1), net.spec, state.moments, state.scalars, state.n_updates, hyper)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values; `from_dict` is the inverse."""
        settings = asdict(self)
        settings["schedule"] = {"name": type(self.schedule).__name__, **settings["schedule"]}
        return {"name": type(self).__name__, **settings}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Optimizer:
        """Build the optimizer that `as_dict` described."""
        values = dict(settings)
        if values.pop("largest_error", None) is not None:  # of version 0.1
            raise ValueError(
                f"largest_error is {settings['largest_error']}; expected None, as there is no such clip now"
            )
        schedule = dict(values.pop("schedule"))
        make_schedule = SCHEDULES[schedule.pop("name")]
        return OPTIMIZERS[values.pop("name")](**values, schedule=make_schedule(**schedule))


@dataclass(frozen=True)
class SGD(Optimizer):
    """w <- w + alpha u. With u = delta z the textbook TD update."""

    code = SGD_CODE
    proximal = True


@dataclass(frozen=True)
class Momentum(Optimizer):
    """v <- beta v + u;  w <- w + alpha v. Heavy ball (Polyak 1964)."""

    beta: float = 0.9
    code = MOMENTUM_CODE
    proximal = True
    n_moments = 1


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """v <- beta v + (1 - beta) u^2;  w <- w + alpha u / (sqrt(v) + epsilon). (Tieleman & Hinton 2012.)"""

    alpha: StepSize = 1e-3
    beta: float = 0.99
    epsilon: float = 1e-8
    code = RMSPROP_CODE
    proximal = True
    n_moments = 1


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam with bias correction and epsilon outside the root (Kingma & Ba 2015, algorithm 1).

    m <- beta1 m + (1 - beta1) u;  v <- beta2 v + (1 - beta2) u^2
    w <- w + alpha (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    v grows with the very error that it divides, so that values of rare large rewards come out too small when v
    remembers few of them: rewards of 1 / p with probability p = 0.005, gamma = 0.9, true value 10, are learned as 9.2,
    with beta2 = 0.9999, the default for streams, as 9.8.
    """

    alpha: StepSize = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    code = ADAM_CODE
    proximal = True
    n_moments = 2


#: The default where values are learned from a stream: v then remembers enough of the rare large errors.
STREAM_ADAM = Adam(beta2=0.9999)


@dataclass(frozen=True)
class ObGD(Optimizer):
    """Overshooting-bounded gradient descent (Elsayed, Vasan & Mahmood 2024, algorithm 3).

    M = alpha kappa max(|delta|, 1) ||z||_1;  w <- w + alpha / max(1, M) delta z
    With alpha = 1, ||w_new - w||_1 <= 1 / kappa. The norm is over the whole network, and so is the step size.

    An error beyond 1 counts by its sign alone, so that values are biased where errors are skewed: of a reward of 50
    with probability 0.02, gamma = 0.9, true value 10, it learns 3.3. For means take `Intentional`.
    """

    alpha: StepSize = 1.0
    kappa: float = 2.0
    code = OBGD_CODE
    whole_network = True


@dataclass(frozen=True)
class AdaptiveObGD(Optimizer):
    """ObGD with a second moment (the same paper's code).

    v <- beta2 v + (1 - beta2) (delta z)^2;  u = delta z / sqrt(v / (1 - beta2^t) + epsilon)
    M = alpha kappa max(|delta|, 1) ||u / delta||_1;  w <- w + alpha / max(1, M) u. Biased as `ObGD` is: 3.3 for
    the true 10.
    """

    alpha: StepSize = 1.0
    kappa: float = 2.0
    beta2: float = 0.999
    epsilon: float = 1e-8
    code = ADAPTIVE_OBGD_CODE
    whole_network = True
    n_moments = 1


@dataclass(frozen=True)
class DecayedMax(Optimizer):
    """Every coordinate by its own decayed maximum; u = delta z.

    v <- max(beta v, |u|);  w <- w + alpha u / (v + epsilon)
    No coordinate changes by more than alpha. (The rule of the 2026 revision of stream-x.) Rare large errors count
    little, so that values are biased: of a reward of 50 with probability 0.02, gamma = 0.9, true value 10, it learns
    9.3.
    """

    alpha: StepSize = 1e-3
    beta: float = 0.999
    epsilon: float = 1e-8
    code = DECAYED_MAX_CODE
    n_moments = 1


@dataclass(frozen=True)
class Intentional(Optimizer):
    """Chooses the change of the output, alpha delta, and solves for the step (Intentional updates, 2026).

    nu <- beta2 nu + (1 - beta2) g^2;  D = 1 / (sqrt(nu / (1 - beta2^t)) + epsilon), or 1 with rms=False
    S <- S + (1 - k) / (1 - k^t) (sum g^2 D - S), k = gamma lambda;  a = alpha / sqrt(S sum z^2 D)
    w <- w + a delta D z;  with normalise=True, for actors, delta is divided by its running mean size first.

    S is the mean of sum g^2 D that forgets by k; for k = 1 the factor is 1 / t. Needs the gradient g beside the trace
    z. Without rms and trace it is normalised LMS for a linear v.

    clip, which is off unless given, clips |delta| at clip sqrt(c / (1 - b^t)) with c <- b c + (1 - b) delta^2,
    b = clip_decay and c_0 = 1.

    The values that it learns are means, which those of the published epsilon = 1e-8 and clip = 20 are not where errors
    are skewed. With rewards of 1 / p with probability p and gamma = 0.9 the true value is 10. At p = 0.005 the values
    of a network are 6 % too small with that epsilon, by which the weights that hardly matter take the largest part in a
    step; at p = 0.001 the clip binds. For actors the published alpha is 0.05.
    """

    alpha: StepSize = 0.5
    beta2: float = 0.999
    epsilon: float = 0.1
    clip: float | None = None
    clip_decay: float = 0.9998
    rms: bool = True
    normalise: bool = False
    code = INTENTIONAL_CODE
    n_moments = 2
    needs_gradient = True
    whole_network = True


@dataclass(frozen=True)
class VarianceAdjusted(Optimizer):
    """The rule of Adaptive Q(lambda) (2026): second moments that forget as the trace does, and a clipped error.

    v <- v + (1 - k) / (1 - k^t) (g^2 - v), k = gamma lambda
    w <- w + alpha clip(delta, +-clip) z / (sqrt(v) + epsilon)

    The published v <- k v + (1 - k) g^2 begins at 0, and stays there for k = 1; this one is the same with its bias
    corrected, for k = 1 the mean. The clip makes values medians rather than means: of a reward of 50 with probability
    0.02, gamma = 0.9, true value 10, it learns 3.3. clip=None does not clip.
    """

    alpha: StepSize = 4.6e-4
    epsilon: float = 0.1
    clip: float | None = 1.0
    code = VARIANCE_ADJUSTED_CODE
    n_moments = 2
    needs_gradient = True
    whole_network = True


OPTIMIZERS: dict[str, type[Optimizer]] = {
    c.__name__: c for c in (SGD, Momentum, RMSProp, Adam, ObGD, AdaptiveObGD, DecayedMax, Intentional, VarianceAdjusted)
}
#: The same by their names in files and on the command line.
SPELLED: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "rmsprop": RMSProp,
    "adam": Adam,
    "obgd": ObGD,
    "adaptive_obgd": AdaptiveObGD,
    "decayed_max": DecayedMax,
    "intentional": Intentional,
    "variance_adjusted": VarianceAdjusted,
}
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


@kernel(inline=True)
def share_of_newest(decay, t):
    """(1 - decay) / (1 - decay^t), the newest of t numbers in their mean that forgets by decay; 1 / t for decay 1."""
    if decay <= 0.0:
        return 1.0
    if decay >= 1.0:
        return 1.0 / t
    return (1.0 - decay) / -math.expm1(t * math.log(decay))


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
def ascend(w, z, scale, spec, moments, scalars, count, hyper):
    """Move the weights along u = scale z: w <- w + step(u).

    w (P,), moments (m, P) and scalars (5,) overwritten; z (P,) read; scale a number (TD: delta; a loss: -1); spec
    describes the network (see `backprop`); count[0] the number of updates, counted here; hyper as `Optimizer.hyper`
    says.
    """
    dtype = w.dtype.type
    code = int(hyper[CODE])
    factor = schedule_factor(int(hyper[SCHEDULE]), hyper[SCHEDULE_FINAL], hyper[SCHEDULE_STEPS], count[0])
    count[0] += 1
    clip = 1.0
    if hyper[CLIP_NORM] > 0.0:
        clip = shrink(abs(scale) * norm(z, ZERO, np.uint64(w.size)), hyper[CLIP_NORM])
    if code in (OBGD_CODE, ADAPTIVE_OBGD_CODE):
        bounded_step(w, z, dtype(scale * clip), factor, spec, moments, scalars, count, hyper)
        return
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
        elif code == DECAYED_MAX_CODE:
            step = dtype(alpha)
            for p in range(start, stop):
                u = g * z[p]
                moments[0, p] = max(beta1 * moments[0, p], abs(u))
                w[p] += step * u / (moments[0, p] + epsilon)
        elif code == ADAM_CODE:
            # The corrections 1 - beta^t, taken out of the loop: alpha / c1 * m / (sqrt(v) / sqrt(c2) + epsilon).
            step = dtype(alpha / (1.0 - hyper[BETA1] ** count[0]))
            root = dtype(1.0 / math.sqrt(1.0 - hyper[BETA2] ** count[0]))
            for p in range(start, stop):
                u = g * z[p]
                moments[0, p] = beta1 * moments[0, p] + rest1 * u
                moments[1, p] = beta2 * moments[1, p] + rest2 * u * u
                w[p] += step * moments[0, p] / (np.sqrt(moments[1, p]) * root + epsilon)


@kernel(inline=True)
def bounded_step(w, z, delta, factor, spec, moments, scalars, count, hyper):
    """The steps of ObGD and AdaptiveObGD along delta z, with what it was bounded by in the scalars."""
    dtype = w.dtype.type
    size = dtype(0)
    adaptive = int(hyper[CODE]) == ADAPTIVE_OBGD_CODE
    if adaptive:
        beta2, rest2, epsilon = dtype(hyper[BETA2]), dtype(1.0 - hyper[BETA2]), dtype(hyper[EPSILON])
        correction = dtype(1.0 / (1.0 - hyper[BETA2] ** count[0]))
        for p in range(z.size):
            u = delta * z[p]
            moments[0, p] = beta2 * moments[0, p] + rest2 * u * u
            size += abs(z[p]) / np.sqrt(moments[0, p] * correction + epsilon)
    else:
        for p in range(z.size):
            size += abs(z[p])
    alpha = hyper[ALPHA] * factor
    bound = alpha * hyper[KAPPA] * max(abs(np.float64(delta)), 1.0) * np.float64(size)
    step = alpha / max(1.0, bound)
    scalars[SUM_OF_STEPS] += step
    scalars[N_BOUNDED] += 1.0 if bound > 1.0 else 0.0
    scale = dtype(step) * delta
    if adaptive:
        for p in range(z.size):
            w[p] += scale * z[p] / np.sqrt(moments[0, p] * correction + epsilon)
    else:
        for p in range(z.size):
            w[p] += scale * z[p]


@kernel
def ascend_with_gradient(w, z, g, delta, decay, spec, moments, scalars, count, hyper):
    """The steps of the optimizers that want the newest gradient g (P,) beside the trace z (P,) and its decay.

    g may be overwritten: Intentional keeps D z there, whose roots and quotients are then found once.
    """
    dtype = w.dtype.type
    factor = schedule_factor(int(hyper[SCHEDULE]), hyper[SCHEDULE_FINAL], hyper[SCHEDULE_STEPS], count[0])
    count[0] += 1
    t = count[0]
    one, epsilon = dtype(1), dtype(hyper[EPSILON])
    if int(hyper[CODE]) == VARIANCE_ADJUSTED_CODE:
        rest = dtype(share_of_newest(np.float64(decay), t))
        kept = one - rest
        bound = hyper[KAPPA] if hyper[KAPPA] > 0.0 else np.inf
        clipped = max(min(np.float64(delta), bound), -bound)
        scalars[N_BOUNDED] += 1.0 if clipped != delta else 0.0
        scalars[SUM_OF_STEPS] += hyper[ALPHA] * factor
        step = dtype(hyper[ALPHA] * factor * clipped)
        for p in range(w.size):
            moments[1, p] = kept * moments[1, p] + rest * g[p] * g[p]
            w[p] += step * z[p] / (np.sqrt(moments[1, p]) + epsilon)
        return
    rms = hyper[RMS] != 0.0
    beta2, rest2 = dtype(hyper[BETA2]), dtype(1.0 - hyper[BETA2])
    correction = dtype(1.0 / (1.0 - hyper[BETA2] ** t)) if rms else one
    size, trace_size = dtype(0), dtype(0)
    for p in range(w.size):
        scale = one
        if rms:
            moments[1, p] = beta2 * moments[1, p] + rest2 * g[p] * g[p]
            scale = one / (np.sqrt(moments[1, p] * correction) + epsilon)
        size += g[p] * g[p] * scale
        scaled = scale * z[p]
        trace_size += scaled * z[p]
        g[p] = scaled
    share = share_of_newest(np.float64(decay), t)
    scalars[GRADIENT_SIZE] += share * (np.float64(size) - scalars[GRADIENT_SIZE])
    step = hyper[ALPHA] * factor / max(math.sqrt(scalars[GRADIENT_SIZE] * np.float64(trace_size)), 1e-8)
    error = np.float64(delta)
    b = hyper[BETA1]
    scalars[SQUARED_ERROR] = b * scalars[SQUARED_ERROR] + (1.0 - b) * error * error
    if hyper[KAPPA] > 0.0:
        cap = hyper[KAPPA] * math.sqrt(scalars[SQUARED_ERROR] / (1.0 - b**t))
        scalars[N_BOUNDED] += 1.0 if abs(error) > cap else 0.0
        error = max(min(error, cap), -cap)
    if hyper[NORMALISE] != 0.0:
        scalars[ERROR_SIZE] = b * scalars[ERROR_SIZE] + (1.0 - b) * abs(error)
        error /= max(scalars[ERROR_SIZE] / (1.0 - b**t), 1e-12)
    scalars[SUM_OF_STEPS] += step
    along = dtype(step * error)
    for p in range(w.size):
        w[p] += along * g[p]


@kernel(inline=True)
def follow(w, z, delta, decay, spec, scratch, moments, scalars, count, hyper):
    """z <- decay z + gradient;  w <- w + step(delta z), for the gradient that `backward` left in scratch."""
    if is_plain_sgd(hyper):
        accumulate_and_ascend(w, z, delta, spec, scratch, decay, count, hyper)
    elif hyper[NEEDS_GRADIENT] != 0.0:
        g = moments[0]
        store_gradient(g, spec, scratch)
        for p in range(z.size):
            z[p] = decay * z[p] + g[p]
        ascend_with_gradient(w, z, g, delta, decay, spec, moments, scalars, count, hyper)
    else:
        accumulate(z, spec, scratch, decay)
        ascend(w, z, delta, spec, moments, scalars, count, hyper)


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
