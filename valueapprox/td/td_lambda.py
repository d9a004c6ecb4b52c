"""TD(lambda) with accumulating traces. Sutton & Barto 2018, section 12.2."""

from __future__ import annotations

from dataclasses import dataclass

from valueapprox.checks import unit_interval
from valueapprox.compiling import template
from valueapprox.td.base import (
    DIVERGED,
    GAMMA,
    LEARNED,
    OWN,
    TRANSITIONS,
    Method,
    clear,
    finite,
    register,
    setting,
    td_error,
    update,
)


@template(inline=True)
def td_lambda(net, queue, span, t):
    """delta = r + gamma v(s') - v(s);  z <- gamma lambda z + grad v(s);  w <- w + step(delta z).

    The trace is cut after the update when the episode ended.
    """
    delta = td_error(t.r, t.gamma, t.v_next, t.v)
    if not finite(delta):
        return delta, DIVERGED
    update(net, setting(net, GAMMA) * setting(net, OWN), delta, net.counts[TRANSITIONS])
    if t.ended:
        clear(net.z)
    return delta, LEARNED


@register("td")
@dataclass(frozen=True, kw_only=True)
class TDLambda(Method):
    """TD(lambda): each error is credited to the states before it, by gamma lambda less for each step back."""

    lam: float = 0.9
    """Trace decay, in [0, 1]."""
    rule = td_lambda

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", unit_interval("lam", self.lam))
