"""Expected Sarsa(lambda)."""

from __future__ import annotations

from valueapprox.agents.base import ControlAgent, register
from valueapprox.agents.choosing import expected_value, outputs
from valueapprox.agents.stream import rescale, value
from valueapprox.backprop import X, seed_output
from valueapprox.compiling import placeholder, template
from valueapprox.td import finite, td_error

improve_first = placeholder("improve_first")


@template(inline=True)
def update(agent, q, unused, t, bootstraps, work):
    """delta = r + gamma sum_a pi(a|s') q(s', a) - q(s, a), then as `Sarsa`."""
    start, n = outputs(q.spec)
    v_next = expected_value(q.there[X], start, n, agent.settings, agent.counts) if bootstraps else 0.0
    delta = td_error(t.r, t.discount, v_next, value(q, t.taken, t.unit))
    if finite(q.w.dtype.type(delta)):
        rescale(q, t.unit)
        seed_output(q.here, q.spec, t.taken)
        improve_first(q, t.decay, delta, t.sampled)
    return delta, 0.0


@register("expected-sarsa")
class ExpectedSarsa(ControlAgent):
    """Expected Sarsa(lambda): delta = r + gamma sum_a pi(a|s') q(s', a) - q(s, a), pi the policy that acts."""

    update = update
