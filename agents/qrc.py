"""QRC(lambda): Q with gradient corrections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox import SGD
from valueapprox.agents.base import ControlAgent, register
from valueapprox.agents.choosing import best_value, outputs
from valueapprox.agents.layout import CUT_BEFORE, REGULARISE, SCALAR_TRACE
from valueapprox.agents.q import CutSettings
from valueapprox.agents.stream import rescale, stretch_last_layer, value
from valueapprox.compiling import kernel, placeholder, template
from valueapprox.nn.backprop import SIZES, X, backward, forward, seed_output, store_gradient
from valueapprox.optim import OPTIMIZERS
from valueapprox.td.base import clear, finite, sample_norms, td_error

step_first, step_second = placeholder("step_first"), placeholder("step_second")


@kernel(inline=True)
def gradient_of(net, scratch, output, gradient):
    """The gradient of an output at the state whose forward pass is in scratch."""
    seed_output(scratch, net.spec, output)
    backward(net.w, net.spec, scratch, False)
    store_gradient(gradient, net.spec, scratch)


@kernel(inline=True)
def keep(net, sampled):
    """Remember the weights before a step whose norms are measured."""
    if sampled:
        for p in range(net.w.size):
            net.before[p] = net.w[p]


@template(inline=True)
def update(agent, q, h, t, bootstraps, work):
    """QRC(lambda) with gradient eligibility traces (eqs. 26 to 28 of arXiv 2507.09087), TDRC's form.

    delta = r + gamma max_a q(s', a) - q(s, a)
    e <- gamma lambda e + h;  z <- gamma lambda z + grad q;  z_h <- gamma lambda z_h + grad h
    w <- w + step(delta z - h grad q - e grad delta),  grad delta = gamma grad max q(s', .) - grad q
    w_h <- w_h + step(delta z_h - h grad h - beta w_h)
    """
    start, n = outputs(q.spec)
    v_next, best = 0.0, 0
    if bootstraps:
        v_next = np.float64(best_value(q.scratch_next[X], start, n))
        for a in range(n):
            if q.scratch_next[X, start + a] == q.w.dtype.type(v_next):
                best = a
    delta = td_error(t.r, t.discount, v_next, value(q, t.taken, t.unit))
    if finite(q.w.dtype.type(delta)):
        rescale(q, t.unit)
        if t.unit != 1.0:
            stretch_last_layer(h.w, h.spec, t.unit)
        if t.exploring != 0 and agent.settings[CUT_BEFORE] != 0.0:
            clear(q.z)
            clear(h.z)
            agent.memory[SCALAR_TRACE] = 0.0
        for i in range(q.spec[SIZES]):
            h.scratch[X, i] = q.scratch[X, i]
        forward(h.w, h.spec, h.scratch)
        h_s = np.float64(h.scratch[X, outputs(h.spec)[0] + t.taken])
        correct(agent, q, h, t, delta, h_s, best, work)
        if t.exploring != 0 and agent.settings[CUT_BEFORE] == 0.0:
            clear(q.z)
            clear(h.z)
            agent.memory[SCALAR_TRACE] = 0.0
    return delta, 0.0


@template
def correct(agent, q, h, t, delta, h_s, best, work):
    """Both networks' traces and steps, for the greedy action `best` at s'."""
    dtype = q.w.dtype.type
    g, u, g_next = work[0, : q.w.size], work[1, : q.w.size], work[2, : q.w.size]
    keep(q, t.sampled)
    gradient_of(q, q.scratch, t.taken, g)
    if t.discount != 0.0:
        gradient_of(q, q.scratch_next, best, g_next)
    else:
        clear(g_next)
    agent.memory[SCALAR_TRACE] = t.decay * agent.memory[SCALAR_TRACE] + h_s
    e = dtype(agent.memory[SCALAR_TRACE])
    decay, error, correction, discount = dtype(t.decay), dtype(delta), dtype(h_s), dtype(t.discount)
    for p in range(q.w.size):
        q.z[p] = decay * q.z[p] + g[p]
        u[p] = error * q.z[p] - correction * g[p] - e * (discount * g_next[p] - g[p])
    step_first(q.w, u, dtype(1), q.spec, q.moments, q.scalars, q.counts, q.hyper)
    g_h, u_h = work[0, : h.w.size], work[1, : h.w.size]
    gradient_of(h, h.scratch, t.taken, g_h)
    beta = dtype(agent.settings[REGULARISE])
    for p in range(h.w.size):
        h.z[p] = decay * h.z[p] + g_h[p]
        u_h[p] = error * h.z[p] - correction * g_h[p] - beta * h.w[p]
    keep(h, t.sampled)
    step_second(h.w, u_h, dtype(1), h.spec, h.moments, h.scalars, h.counts, h.hyper)
    if t.sampled:
        sample_norms(h.w, h.z, h.before, h.spec, h.scratch, h.stats)
        sample_norms(q.w, q.z, q.before, q.spec, q.scratch, q.stats)


@dataclass(frozen=True, kw_only=True)
class QRCSettings(CutSettings):
    """Of the correction, and of the trace."""

    regularise: float = 1.0
    """beta, 0 or more, the weight decay of h: 1 as in TDRC, 0 as in TDC."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.regularise < np.inf:
            raise ValueError(f"regularise is {self.regularise}; expected a number that is not negative")


@register("qrc")
class QRC(ControlAgent):
    """QRC(lambda): Q with gradient corrections, by a second network h (eqs. 26 to 28 of arXiv 2507.09087).

    regularise
        beta, the weight decay of h: 1 as in TDRC, 0 as in TDC.
    cut
        As for `StreamQ`.
    """

    update = update
    second_name = "h"
    Settings = QRCSettings
    default_optimizers = (SGD(1e-3), SGD(1e-4))

    def _own_settings(self, own: QRCSettings) -> dict[int, float]:
        for name, learner in (("optimizer", self.first), ("second_optimizer", self.second)):
            if learner.optimizer.needs_gradient:
                plain = ", ".join(c.__name__ for c in OPTIMIZERS.values() if not c.needs_gradient)
                raise ValueError(
                    f"{name} is {type(learner.optimizer).__name__}, whose step is made for delta times a trace, and "
                    f"QRC's is a sum of corrections; expected one of {plain}"
                )
        return {REGULARISE: own.regularise, CUT_BEFORE: own.cut == "before"}
