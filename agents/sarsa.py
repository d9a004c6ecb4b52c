"""Sarsa(lambda)."""

from __future__ import annotations

import numpy as np

from valueapprox.agents.base import ControlAgent, register
from valueapprox.agents.choosing import best_value, choose_by_value, outputs
from valueapprox.agents.layout import ACTION, EXPLORING, LEARNED
from valueapprox.agents.stream import learn_from, value
from valueapprox.compiling import kernel, template
from valueapprox.nn.backprop import X
from valueapprox.td.base import td_error


@template(inline=True)
def update(agent, q, unused, t, bootstraps, work):
    """delta = r + gamma q(s', a') - q(s, a);  z <- gamma lambda z + grad q(s, a);  w <- w + step(delta z)."""
    q_next = 0.0
    if bootstraps:
        start, n = outputs(q.spec)
        choose_by_value(q.scratch_next[X], start, n, agent.settings, agent.counts, agent.key, False)
        q_next = np.float64(q.scratch_next[X, start + agent.counts[ACTION]])
    delta = td_error(t.r, t.discount, q_next, value(q, t.taken, t.unit))
    learn_from(q, t.taken, t, delta)
    return delta, 0.0


@kernel(inline=True)
def choose_next(agent, q, unused, persist):
    """The action was chosen before the update; whether it is greedy is seen after it."""
    start, n = outputs(q.spec)
    taken = q.scratch[X, start + agent.counts[ACTION]]
    agent.counts[EXPLORING] = 1 if taken < best_value(q.scratch[X], start, n) else 0
    return LEARNED


@register("sarsa")
class Sarsa(ControlAgent):
    """Sarsa(lambda): delta = r + gamma q(s', a') - q(s, a), with the action a' that is taken next."""

    update = update
    choose_next = choose_next
