"""StreamQ: Q(lambda) of Watkins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from valueapprox.agents.base import ControlAgent, register
from valueapprox.agents.choosing import best_value, outputs
from valueapprox.agents.layout import CUT_BEFORE
from valueapprox.agents.stream import learn_from, value
from valueapprox.checks import one_of
from valueapprox.compiling import template
from valueapprox.nn.backprop import X
from valueapprox.td.base import clear, finite, td_error


@template(inline=True)
def update(agent, q, unused, t, bootstraps, work):
    """delta = r + gamma max_a q(s', a) - q(s, a);  z <- gamma lambda z + grad q(s, a);  w <- w + step(delta z)."""
    start, n = outputs(q.spec)
    v_next = np.float64(best_value(q.scratch_next[X], start, n)) if bootstraps else 0.0
    delta = td_error(t.r, t.discount, v_next, value(q, t.taken, t.unit))
    if finite(q.w.dtype.type(delta)):
        if t.exploring != 0 and agent.settings[CUT_BEFORE] != 0.0:
            clear(q.z)
        learn_from(q, t.taken, t, delta)
        if t.exploring != 0 and agent.settings[CUT_BEFORE] == 0.0:
            clear(q.z)
    return delta, 0.0


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """Where the trace is cut for an action that is not greedy."""

    cut: Literal["after", "before"] = "after"
    """Cut the trace after the update of an exploring action, as published, or before it, as Watkins."""

    def __post_init__(self) -> None:
        one_of("cut", self.cut, ("after", "before"))


@register("stream-q")
class StreamQ(ControlAgent):
    """Q(lambda) of Watkins: delta = r + gamma max_a q(s', a) - q(s, a).

    cut
        Where the trace is cut for an action that is not greedy. "after", as in the code of stream-x: the update of that
        action is still credited to the past, then the trace is cleared. "before", as Watkins has it: the trace is
        cleared before that update, which changes q of that action alone.
    """

    update = update
    Settings = CutSettings

    def _own_settings(self, own: CutSettings) -> dict[int, float]:
        return {CUT_BEFORE: own.cut == "before"}
