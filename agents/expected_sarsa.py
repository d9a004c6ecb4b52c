"""Expected Sarsa(lambda)."""

from __future__ import annotations

from valueapprox.agents.base import ControlAgent, register
from valueapprox.agents.choosing import expected_value, outputs
from valueapprox.agents.stream import learn_from, value
from valueapprox.compiling import template
from valueapprox.nn.backprop import X
from valueapprox.td.base import td_error


@template(inline=True)
def update(agent, q, unused, t, bootstraps, work):
    """delta = r + gamma sum_a pi(a|s') q(s', a) - q(s, a), then as `Sarsa`."""
    start, n = outputs(q.spec)
    v_next = expected_value(q.scratch_next[X], start, n, agent.settings, agent.counts) if bootstraps else 0.0
    delta = td_error(t.r, t.discount, v_next, value(q, t.taken, t.unit))
    learn_from(q, t.taken, t, delta)
    return delta, 0.0


@register("expected-sarsa")
class ExpectedSarsa(ControlAgent):
    """Expected Sarsa(lambda): delta = r + gamma sum_a pi(a|s') q(s', a) - q(s, a), pi the policy that acts."""

    update = update
