"""What optimizers share: settings, state, the registry, and the kernels into which each puts its own rule.

Every optimizer ascends: it is given u and moves w along it. TD learning passes u = delta z; minimising a loss passes
u = -grad L, by the same code. What it remembers is plain arrays beside the weights, saved and copied like them.

An optimizer is one file: a frozen dataclass of settings with `@register`, and its rule, a kernel. There are three kinds
of rules, told apart by the class that the dataclass derives from:

Optimizer         rule(w, z, start, stop, g, alpha, moments, t, hyper)
                  moves w[start:stop], the weights of one layer, along u = g z
GlobalOptimizer   rule(w, z, delta, factor, moments, scalars, t, hyper)
                  moves all of w along u = delta z, with one step size, hyper[ALPHA] factor
TraceOptimizer    rule(w, z, g, delta, decay, factor, moments, scalars, t, hyper)
                  the same, and sees the newest gradient g (P,) and the decay of the trace z; may overwrite g

w (P,), moments (n_moments, P) and scalars (5,) are overwritten; z (P,) is read; t counts updates from 1. Settings of
its own, in the order of the fields, are hyper[OWN], hyper[OWN + 1], ...; None is 0 there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from valueapprox.compiling import interpreted, kernel, placeholder, specialise, template
from valueapprox.nn.backprop import LAYERS, ZERO, accumulate, layer_size, store_gradient
from valueapprox.optim.schedules import SCHEDULES, Constant, Schedule, schedule_factor
from valueapprox.registry import Registry

if TYPE_CHECKING:
    from valueapprox.nn.network import Network

__all__ = ["OPTIMIZERS", "GlobalOptimizer", "Optimizer", "OptimizerState", "TraceOptimizer", "norm", "register"]

# Positions in the kernels' vector of hyper-parameters: the schedule, two bounds, the optimizer's own settings, and
# behind them the step size of each layer.
SCHEDULE, SCHEDULE_FINAL, SCHEDULE_STEPS, CLIP_NORM, CLIP_LAYER_NORM, OWN = range(6)
N_OWN = 8
ALPHA = OWN + N_OWN

# Positions in an optimizer's scalars: three of its own, then what the log shows.
FIRST_OWN, SECOND_OWN, THIRD_OWN, SUM_OF_STEPS, N_BOUNDED, N_SCALARS = range(6)


# --- kernels --------------------------------------------------------------------------------------------------------

rule = placeholder("rule")


@kernel
def norm(vector, start, stop):
    """Euclidean norm of vector[start:stop], summed in float64."""
    total = 0.0
    for p in range(start, stop):
        total += np.float64(vector[p]) * np.float64(vector[p])
    return math.sqrt(total)


@kernel(inline=True)
def shrink(size, bound):
    """Factor that brings a vector of this norm down to `bound`; 1 if it is short enough or the bound is 0."""
    return bound / size if bound > 0.0 and size > bound else 1.0


@kernel(inline=True)
def share_of_newest(decay, t):
    """(1 - decay) / (1 - decay^t), the newest of t numbers in their mean that forgets by decay; 1 / t for decay 1."""
    if decay <= 0.0:
        return 1.0
    if decay >= 1.0:
        return 1.0 / t
    return (1.0 - decay) / -math.expm1(t * math.log(decay))


@kernel(inline=True)
def count_update(count, hyper):
    """The schedule's factor at this update, which is counted."""
    factor = schedule_factor(int(hyper[SCHEDULE]), hyper[SCHEDULE_FINAL], hyper[SCHEDULE_STEPS], count[0])
    count[0] += 1
    return factor


@template
def step_by_layers(w, z, scale, spec, moments, scalars, count, hyper):
    """Move the weights along u = scale z, layer by layer: w <- w + step(u).

    w (P,), moments (m, P) and scalars (5,) overwritten; z (P,) read; scale a number (TD: delta; a loss: -1); spec
    describes the network (see `backprop`); count[0] the number of updates, counted here; hyper as `Optimizer.hyper`
    says.
    """
    dtype = w.dtype.type
    factor = count_update(count, hyper)
    clip = 1.0
    if hyper[CLIP_NORM] > 0.0:
        clip = shrink(abs(scale) * norm(z, ZERO, np.uint64(w.size)), hyper[CLIP_NORM])
    stop = ZERO
    for layer in range(spec[LAYERS]):
        start = stop
        stop += layer_size(spec, layer)
        alpha = hyper[ALPHA + layer] * factor
        layer_clip = clip
        if hyper[CLIP_LAYER_NORM] > 0.0:
            layer_clip *= shrink(abs(scale) * clip * norm(z, start, stop), hyper[CLIP_LAYER_NORM])
        rule(w, z, start, stop, dtype(scale * layer_clip), alpha, moments, count[0], hyper)


@template
def step_at_once(w, z, scale, spec, moments, scalars, count, hyper):
    """The same for a rule with one step size for all weights."""
    dtype = w.dtype.type
    factor = count_update(count, hyper)
    clip = 1.0
    if hyper[CLIP_NORM] > 0.0:
        clip = shrink(abs(scale) * norm(z, ZERO, np.uint64(w.size)), hyper[CLIP_NORM])
    rule(w, z, dtype(scale * clip), factor, moments, scalars, count[0], hyper)


@template
def step_with_gradient(w, z, g, delta, decay, spec, moments, scalars, count, hyper):
    """The same for a rule that wants the newest gradient g (P,) beside the trace z (P,) and its decay."""
    factor = count_update(count, hyper)
    rule(w, z, g, delta, decay, factor, moments, scalars, count[0], hyper)


step = placeholder("step")


@template(inline=True)
def accumulate_then_step(w, z, delta, decay, spec, scratch, moments, scalars, count, hyper):
    """z <- decay z + gradient;  w <- w + step(delta z), for the gradient that `backward` left in scratch."""
    accumulate(z, spec, scratch, decay)
    step(w, z, delta, spec, moments, scalars, count, hyper)


@template(inline=True)
def accumulate_then_step_with_gradient(w, z, delta, decay, spec, scratch, moments, scalars, count, hyper):
    """The same for a `TraceOptimizer`, which keeps the gradient in moments[0]."""
    g = moments[0]
    store_gradient(g, spec, scratch)
    for p in range(z.size):
        z[p] = decay * z[p] + g[p]
    step_with_gradient(w, z, g, delta, decay, spec, moments, scalars, count, hyper)


@kernel(inline=True)
def no_step(w, z, scale, spec, moments, scalars, count, hyper):
    """In the place of `step` for optimizers that have none; who would call it refuses them."""


@kernel(inline=True)
def unit_divisor(moments, p, t, hyper):
    """1: along a steady gradient of 1 a weight moves by alpha."""
    return 1.0


# --- settings -------------------------------------------------------------------------------------------------------

StepSize = float | Sequence[float] | Mapping[str, float]


def _step_sizes(alpha: StepSize) -> StepSize:
    """Plain numbers, so that they compare and can be written as JSON."""
    given: Any = alpha.values() if isinstance(alpha, Mapping) else alpha if np.ndim(alpha) else (alpha,)
    try:
        values = [float(a) for a in given]
    except (TypeError, ValueError):
        raise ValueError(f"alpha is {alpha!r}; expected a number, or one for each layer") from None
    if not all(math.isfinite(a) and a >= 0 for a in values):
        raise ValueError(f"alpha is {alpha}; expected step sizes that are finite and not negative")
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

    #: In files and on the command line.
    name: ClassVar[str]
    #: The kernel: see the head of this file.
    rule: ClassVar[Any]
    #: What calls it: w <- w + step(u), and the same after z <- decay z + gradient.
    step_kind: ClassVar[Any] = step_by_layers
    accumulate_kind: ClassVar[Any] = accumulate_then_step
    n_moments: ClassVar[int] = 0
    #: Of its own three: what they are before the first update.
    first_scalars: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)
    #: divisor(moments, p, t, hyper): along a steady gradient of 1, weight p moves by alpha / divisor. None: no rule
    #: like this one has such a step, and a proximal penalty cannot follow it.
    divisor: ClassVar[Any] = None
    #: Whether the rule sees the newest gradient beside the trace.
    needs_gradient: ClassVar[bool] = False
    #: Whether there is one step size, which depends on all weights.
    whole_network: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _step_sizes(self.alpha))
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule is {self.schedule!r}; expected one like LinearDecay(steps=1000)")
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
                    raise ValueError(f"{name} is {beta}; expected a decay rate in [0, 1)")
                object.__setattr__(self, name, float(beta))
        for name in ("kappa", "epsilon"):
            if not getattr(self, name, 1.0) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if self.whole_network and np.ndim(list(self.alpha.values()) if isinstance(self.alpha, Mapping) else self.alpha):
            raise ValueError(f"alpha is {self.alpha}; expected one step size, as {type(self).__name__} has no more")
        if self.needs_gradient and (self.clip_norm is not None or self.clip_layer_norm is not None):
            raise ValueError(f"clip_norm is set; expected None, as {type(self).__name__} bounds its steps itself")

    @property
    def own_settings(self) -> list[float]:
        """The settings that this optimizer alone has, in the order of its fields, as numbers."""
        shared = {f.name for f in fields(Optimizer)}
        return [float(getattr(self, f.name) or 0.0) for f in fields(self) if f.name not in shared]

    def layer_alphas(self, layers: Sequence[str]) -> list[float]:
        """One step size for each named layer."""
        if isinstance(self.alpha, Mapping):
            if set(self.alpha) != set(layers):
                raise ValueError(
                    f"alpha names the layers {sorted(self.alpha)}; expected those of the network, {list(layers)}"
                )
            return [float(self.alpha[name]) for name in layers]
        alphas = np.atleast_1d(np.asarray(self.alpha, dtype=float))
        if alphas.size not in (1, len(layers)):
            raise ValueError(
                f"alpha has {alphas.size} step sizes; expected one, or {len(layers)} for the layers {list(layers)}"
            )
        return [float(a) for a in np.broadcast_to(alphas, len(layers))]

    def hyper(self, layers: Sequence[str]) -> np.ndarray:
        """The settings as the kernels read them, (ALPHA + L,) float64; an unset clip is 0."""
        own = self.own_settings
        return np.array(
            [
                *self.schedule.settings(),
                self.clip_norm or 0.0,
                self.clip_layer_norm or 0.0,
                *own,
                *[0.0] * (N_OWN - len(own)),
                *self.layer_alphas(layers),
            ]
        )

    def init(self, w: np.ndarray) -> OptimizerState:
        """A fresh state for weights like `w` (P,)."""
        scalars = np.zeros(N_SCALARS)
        scalars[:SUM_OF_STEPS] = self.first_scalars
        return OptimizerState(np.zeros((self.n_moments, w.size), w.dtype), np.zeros(1, np.int64), scalars)

    def step(self, net: Network, w: np.ndarray, u: np.ndarray, state: OptimizerState) -> None:
        """Move w (P,) along u (P,), in place, and renew the state: u = delta z for TD, u = -grad L for a loss."""
        for name, array in (("w", w), ("u", u)):
            if array.dtype != net.dtype or array.shape != (net.size,) or not array.flags.carray:
                raise ValueError(
                    f"{name} is {array.dtype} of shape {array.shape}; expected contiguous, writeable {net.dtype} of "
                    f"shape ({net.size},)"
                )
        if self.needs_gradient:
            raise ValueError(f"{type(self).__name__} needs an eligibility trace; it is for learning from a stream")
        hyper = self.hyper(net.layer_names)
        self.kernels()["step"](w, u, w.dtype.type(1), net.spec, state.moments, state.scalars, state.n_updates, hyper)

    @classmethod
    @functools.cache
    def kernels(cls) -> dict[str, Any]:
        """The kernels that templates of learning are specialised with: `step`, `accumulate_and_step`, `divisor`."""
        step = specialise(cls.step_kind, rule=cls.rule)
        whole = specialise(cls.accumulate_kind, rule=cls.rule, step=step)
        return {"step": step, "accumulate_and_step": whole, "divisor": cls.divisor or unit_divisor}

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
        classes = {cls.__name__: cls for cls in OPTIMIZERS.values()}
        return classes[values.pop("name")](**values, schedule=make_schedule(**schedule))


@dataclass(frozen=True)
class GlobalOptimizer(Optimizer):
    """An optimizer whose step size depends on the whole network: one error, one trace."""

    whole_network = True
    step_kind = step_at_once


@dataclass(frozen=True)
class TraceOptimizer(Optimizer):
    """An optimizer that looks at the error, the newest gradient and the trace apart; no vector alone will do."""

    whole_network = True
    needs_gradient = True
    step_kind = no_step
    accumulate_kind = accumulate_then_step_with_gradient


# --- the registry ---------------------------------------------------------------------------------------------------


def _try_rule(optimizer: Optimizer) -> None:
    """Run the rule as plain Python on three weights, where an index outside of an array is an error."""
    own = optimizer.own_settings
    if len(own) > N_OWN:
        raise TypeError(f"it has {len(own)} settings of its own; expected at most {N_OWN}")
    w, z, g = np.zeros(3), np.ones(3), np.ones(3)
    state, hyper = optimizer.init(w), optimizer.hyper(["B"])
    plain = interpreted(type(optimizer).rule)
    if optimizer.needs_gradient:
        plain(w, z, g, 1.0, 0.9, 1.0, state.moments, state.scalars, 1, hyper)
    elif optimizer.whole_network:
        plain(w, z, 1.0, 1.0, state.moments, state.scalars, 1, hyper)
    else:
        plain(w, z, 0, 3, 1.0, 0.1, state.moments, 1, hyper)
    divisor = type(optimizer).divisor
    if divisor is not None:
        interpreted(divisor)(state.moments, 0, 1, hyper)


#: Every optimizer, by its name in files and on the command line.
OPTIMIZERS = Registry("rule", "valueapprox.optim.base", lambda cls: _try_rule(cls()))
register = OPTIMIZERS.register
