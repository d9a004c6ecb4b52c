"""n-step TD and gradient Monte Carlo. Sutton & Barto 2018, sections 7.1 and 9.3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox.checks import positive
from valueapprox.compiling import template
from valueapprox.nn.backprop import X, forward
from valueapprox.td.base import (
    DIVERGED,
    LEARNED,
    OWN,
    QUEUE_FULL,
    UPDATES,
    Method,
    clear,
    finite,
    register,
    setting,
    td_error,
    update,
)

FIRST_QUEUE = 256  # states that Monte Carlo can keep at first; doubled whenever an episode is longer


@template
def n_step(net, queue, span, t):
    """w <- w + step((G - v(S_t)) grad v(S_t)), G = r_{t+1} + ... + gamma^{n-1} r_{t+n} + gamma^n v(S_{t+n}).

    The newest state joins the queue, and the one that is n steps old is updated. When the episode ended, all that wait
    are updated, oldest first, with the return up to the end and v_next (0 if terminal) from there on. For Monte Carlo
    n is 0: every state waits for the end. The TD error that is returned is that of one step.

    If an error is NaN or infinite nothing has changed, unless the episode ended: who calls puts it back.
    """
    n, size, d = int(setting(net, OWN)), queue.shape[0], queue.shape[1] - 1
    zero = net.w.dtype.type(0)
    if n == 0 and span[1] == size:
        return net.w.dtype.type(np.nan), QUEUE_FULL
    delta = td_error(t.r, t.gamma, t.v_next, t.v)
    if not finite(delta):
        return delta, DIVERGED
    newest = (span[0] + span[1]) % size
    old_reward = queue[newest, d]
    for i in range(d):
        net.before[i] = queue[newest, i]  # scratch until the update, and never shorter than a state
        queue[newest, i] = net.scratch[X, i]
    queue[newest, d] = t.r
    span[1] += 1
    if not t.ended and (n == 0 or span[1] < n):
        return delta, LEARNED
    # Returns from the end backwards, G <- r + gamma G; at an ending each goes to the slot of its reward.
    g = t.v_next
    for k in range(span[1] - 1, -1, -1):
        row = (span[0] + k) % size
        g = queue[row, d] + t.gamma * g
        if t.ended:
            queue[row, d] = g
    while span[1] > 0:
        row = span[0]
        if t.ended:
            g = queue[row, d]
        for i in range(d):
            net.scratch[X, i] = queue[row, i]
        error = g - forward(net.w, net.spec, net.scratch)
        if not finite(error):
            if not t.ended:
                span[1] -= 1
                queue[newest, d] = old_reward
                for i in range(d):
                    queue[newest, i] = net.before[i]
            return delta, DIVERGED
        update(net, zero, error, net.counts[UPDATES])
        span[0] = (row + 1) % size
        span[1] -= 1
        if not t.ended:
            break
    clear(net.z)
    return delta, LEARNED


@register("n-step")
@dataclass(frozen=True, kw_only=True)
class NStep(Method):
    """n-step TD: the next n rewards, and the value of the state behind them."""

    n: int = 8
    """Steps until the bootstrap."""
    rule = n_step
    has_trace = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", positive("n", self.n))

    @property
    def queue_size(self) -> int:
        """The n newest states."""
        return self.n


@register("monte-carlo")
@dataclass(frozen=True, kw_only=True)
class MonteCarlo(Method):
    """Gradient Monte Carlo: the whole return, learned from when the episode ends."""

    rule = n_step
    has_trace = False

    @property
    def queue_size(self) -> int:
        """A whole episode, however long it gets."""
        return FIRST_QUEUE
