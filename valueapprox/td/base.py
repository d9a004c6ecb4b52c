"""What methods of temporal-difference learning share: their arrays, the registry, and the kernels around each rule.

All ascend delta times a vector: TD(lambda) the accumulating trace, others the gradient at the state that is updated.

A method is one file: a frozen dataclass of settings with `@register`, and its rule, a kernel or template

rule(net, queue, span, t) -> (delta, status)

which learns from one transition t (see `Transition`), after `forward` of s, whose values are in net.scratch. It calls
`update`, once or more often, or returns DIVERGED, and then has changed nothing. Its settings, in the order of the
fields, are setting(net, OWN), setting(net, OWN + 1), ...

Arrays, beside those of the network and its optimizer:

z (P,)              the trace; methods without one put the gradient here
queue (c, d + 1)    states that await their return, and in the last column their rewards
span (2,)           where the oldest of them lies in the queue, and how many they are
count (2,)          updates made; transitions seen
hyper               the optimizer's hyper-parameters, and behind them the settings of the method
before (P,)         scratch
stats (4, m)        sums since the last log, rows TOTALS, GRADIENT, TRACE and UPDATE below
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

from valueapprox.checks import one_of
from valueapprox.compiling import interpreted, kernel, placeholder, specialise, template
from valueapprox.nn.backprop import (
    BIAS,
    LAYERS,
    SIZES,
    ZERO,
    D,
    X,
    backward,
    first_unit,
    forward,
    layer_size,
    seed_output,
)
from valueapprox.nn.network import Network
from valueapprox.optim import SGD
from valueapprox.optim.base import ALPHA, norm
from valueapprox.registry import Registry

# Behind the optimizer's hyper-parameters: the discount, how often norms are measured, and the method's own settings.
GAMMA, NORMS_EVERY, OWN = range(3)
N_OWN = 4
N_SETTINGS = OWN + N_OWN

LEARNED, BAD_INPUT, DIVERGED, QUEUE_FULL = range(4)  # status of a kernel

UPDATES, TRANSITIONS = range(2)  # entries of count
TOTALS, GRADIENT, TRACE, UPDATE = range(4)  # rows of stats
N_TRANSITIONS, SUM_DELTA, SUM_DELTA_SQUARED, N_SAMPLED = range(4)  # entries of stats[TOTALS]


class Net(NamedTuple):
    """A network as the kernels of learning see it, with its optimizer's state and its trace."""

    w: np.ndarray
    z: np.ndarray
    moments: np.ndarray
    scalars: np.ndarray
    counts: np.ndarray
    hyper: np.ndarray
    spec: np.ndarray
    scratch: np.ndarray  # of s
    scratch_next: np.ndarray  # of s'
    before: np.ndarray
    stats: np.ndarray


class Transition(NamedTuple):
    """What a method's rule is told: numbers in the weights' dtype."""

    r: Any
    v: Any
    v_next: Any  # 0 where s' is terminal
    gamma: Any
    ended: bool  # terminated or truncated


# --- kernels --------------------------------------------------------------------------------------------------------

accumulate_and_step = placeholder("accumulate_and_step")  # of the optimizer
rule = placeholder("rule")  # of the method


@kernel(inline=True)
def setting(net, entry):
    """One of the settings behind the optimizer's: GAMMA, NORMS_EVERY, or one of the method's own."""
    return net.hyper[ALPHA + net.spec[LAYERS] + entry]


@kernel(inline=True)
def is_sampled(net, number):
    """Whether the norms of this update are measured."""
    every = int(setting(net, NORMS_EVERY))
    return every > 0 and number % every == 0


@kernel(inline=True)
def finite(value):
    """Neither NaN nor infinite. (Numba's isfinite tests value - value, which reassociation turns into 0.)"""
    return abs(value) < np.inf


@kernel(inline=True)
def td_error(r, discount, v_next, v):
    """delta = r + gamma v(s') - v(s), in the arguments' dtype."""
    return r + discount * v_next - v


@kernel
def clear(z):
    """z <- 0."""
    for p in range(z.size):
        z[p] = z.dtype.type(0)


@kernel(inline=True)
def load(scratch, s):
    """Put the state s (d,) at the network's inputs; False if an entry is NaN or infinite."""
    fine = True
    for i in range(s.size):
        scratch[X, i] = s[i]
        fine &= finite(s[i])
    return fine


@kernel(inline=True)
def load_row(scratch, states, t):
    """`load` of states[t]: a row taken as an array would cost a reference count on every step."""
    fine = True
    for i in range(states.shape[1]):
        scratch[X, i] = states[t, i]
        fine &= finite(states[t, i])
    return fine


@kernel(inline=True)
def squared_gradient_norm(spec, scratch, layer):
    """||dv/dW||^2 + ||dv/db||^2 of a layer, from the outer product of which they consist: (||x||^2 + 1) ||d||^2."""
    n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
    inputs = float(spec[BIAS])
    a, b = first_unit(spec, layer), first_unit(spec, layer + 1)
    for i in range(a, a + n):
        inputs += np.float64(scratch[X, i]) ** 2
    derivatives = 0.0
    for j in range(b, b + m):
        derivatives += np.float64(scratch[D, j]) ** 2
    return inputs * derivatives


@kernel
def sample_norms(w, z, before, spec, scratch, stats):
    """Add this update's norms, layer by layer, to the sums since the last log.

    ||grad v(s)||;  ||z||, after the newest gradient was added;  and ||dw|| / ||w||, w after the update.
    """
    stats[TOTALS, N_SAMPLED] += 1.0
    stop = ZERO
    for layer in range(spec[LAYERS]):
        stats[GRADIENT, layer] += math.sqrt(squared_gradient_norm(spec, scratch, layer))
        start = stop
        stop += layer_size(spec, layer)
        stats[TRACE, layer] += norm(z, start, stop)
        change = 0.0
        for p in range(start, stop):
            change += (np.float64(w[p]) - np.float64(before[p])) ** 2
        length = norm(w, start, stop)
        if length > 0.0:
            stats[UPDATE, layer] += math.sqrt(change) / length


@template(inline=True)
def improve(net, decay, delta, sampled):
    """`backward`, then z <- decay z + gradient and the optimizer's step along delta z; norms for the log if asked."""
    w, z, spec, scratch, before = net.w, net.z, net.spec, net.scratch, net.before
    backward(w, spec, scratch, False)
    if sampled:
        for p in range(w.size):
            before[p] = w[p]
    dtype = w.dtype.type
    accumulate_and_step(
        w, z, dtype(delta), dtype(decay), spec, scratch, net.moments, net.scalars, net.counts, net.hyper
    )  # fmt: skip
    if sampled:
        sample_norms(w, z, before, spec, scratch, net.stats)


@template(inline=True)
def update(net, decay, delta, number):
    """One update, after `forward` of the state it is for: z <- decay z + grad v(s);  w <- w + step(delta z)."""
    seed_output(net.scratch, net.spec, 0)
    improve(net, decay, delta, is_sampled(net, number))


@template(inline=True)
def learn(net, queue, span, loaded, r, v_next, terminated, truncated):
    """Learn from one transition whose state is in the scratch and whose v(s') is known; returns (delta, status)."""
    v = forward(net.w, net.spec, net.scratch)
    dtype = net.w.dtype.type
    if not (loaded and finite(r)):
        return dtype(np.nan), BAD_INPUT
    gamma = dtype(setting(net, GAMMA))
    delta, status = rule(net, queue, span, Transition(dtype(r), v, v_next, gamma, terminated or truncated))
    if status == LEARNED:
        net.counts[TRANSITIONS] += 1
        net.stats[TOTALS, N_TRANSITIONS] += 1.0
        net.stats[TOTALS, SUM_DELTA] += np.float64(delta)
        net.stats[TOTALS, SUM_DELTA_SQUARED] += np.float64(delta) ** 2
    return delta, status


# --- what Python calls ----------------------------------------------------------------------------------------------


@template
def learn_transition(
    w, z, moments, scalars, count, hyper, spec, scratch, before, stats, queue, span,
    s, r, s_next, terminated, truncated,
):  # fmt: skip
    """Learn from one transition, s and s_next (d,); returns (delta, status). v(s') is 0 where s' is terminal."""
    loaded = load(scratch, s_next)
    v_next = w.dtype.type(0)
    if not terminated:
        v_next = forward(w, spec, scratch)
    loaded &= load(scratch, s)
    net = Net(w, z, moments, scalars, count, hyper, spec, scratch, scratch, before, stats)
    return learn(net, queue, span, loaded, r, v_next, terminated, truncated)


@template
def learn_transitions(
    w, z, moments, scalars, count, hyper, spec, scratch, before, stats, queue, span,
    first, s, r, s_next, terminated, truncated, deltas,
):  # fmt: skip
    """Learn from the transitions t >= first, s and s_next (T, d), one after the other, into deltas (T,).

    Returns (t, status): T and LEARNED, or the transition that could not be learned from and why.
    """
    net = Net(w, z, moments, scalars, count, hyper, spec, scratch, scratch, before, stats)
    for t in range(first, r.size):
        loaded = load_row(scratch, s_next, t)
        v_next = w.dtype.type(0)
        if not terminated[t]:
            v_next = forward(w, spec, scratch)
        loaded &= load_row(scratch, s, t)
        delta, status = learn(net, queue, span, loaded, r[t], v_next, terminated[t], truncated[t])
        if status != LEARNED:
            return t, status
        deltas[t] = delta
    return r.size, LEARNED


# --- settings and registry ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Method:
    """How values are learned from transitions; what all methods share."""

    #: In files and on the command line.
    name: ClassVar[str]
    #: The kernel: see the head of this file.
    rule: ClassVar[Any]
    #: Whether z carries anything from one transition to the next.
    has_trace: ClassVar[bool] = True

    @property
    def queue_size(self) -> int:
        """How many states may wait for their return, at first."""
        return 0

    def settings(self) -> list[float]:
        """Its own settings as the kernels read them."""
        own = [float(getattr(self, f.name)) for f in fields(self)]
        return own + [0.0] * (N_OWN - len(own))


def settings_of(name: str) -> list[str]:
    """Names of a method's own settings.

    Raises
    ------
    ValueError
        If there is no such method.
    """
    return [f.name for f in fields(METHODS[one_of("method", name, METHODS)])]


def method_of(name: str, settings: dict[str, Any]) -> Method:
    """The method of a name with these settings.

    Raises
    ------
    ValueError
        If there is no such method, or it has no such setting.
    """
    known = settings_of(name)
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"{key} is {value}; expected nothing, as {name} has {', '.join(known) or 'no settings'}")
    return METHODS[name](**settings)


def _try_rule(method: Method) -> None:
    """Run the rule as plain Python on one weight, where an index outside of an array is an error."""
    own = fields(method)
    if len(own) > N_OWN:
        raise TypeError(f"it has {len(own)} settings of its own; expected at most {N_OWN}")
    net, optimizer = Network((1, 1), bias=False, dtype="float64"), SGD(0.1)
    w, state = np.zeros(1), optimizer.init(np.zeros(1))
    hyper = np.array([*optimizer.hyper(net.layer_names), 0.9, 0.0, *method.settings()])
    scratch, stats, span = net.scratch(), np.zeros((4, 4)), np.zeros(2, np.int64)
    own_rule = specialise(type(method).rule, **optimizer.kernels())
    arrays = Net(
        w, np.zeros(1), state.moments, state.scalars, np.zeros(2, np.int64), hyper, net.spec, scratch, scratch,
        np.zeros(1), stats,
    )  # fmt: skip
    found = interpreted(own_rule)(arrays, np.zeros((method.queue_size, 2)), span, Transition(1.0, 0.0, 0.0, 0.9, True))
    if not (isinstance(found, tuple) and len(found) == 2):
        raise TypeError(f"its rule returns {found!r}; expected (delta, status)")


#: Every method, by its name in files and on the command line.
METHODS = Registry("rule", "valueapprox.td.base", lambda cls: _try_rule(cls()))
register = METHODS.register
