"""DQN and Double DQN."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox import Adam
from valueapprox.agents.batched import register
from valueapprox.agents.replay import ReplayAgent, ReplaySettings
from valueapprox.compiling import kernel


@kernel
def best_value(values, online, n, target):
    """max_a q(a)."""
    best = np.float64(values[0])
    for a in range(1, n):
        best = max(best, np.float64(values[a]))
    return best


@kernel
def value_of_best(values, online, n, target):
    """q(argmax_a q_online(a)): the network that learns chooses, the other one says what it is worth."""
    best = 0
    for a in range(1, n):
        best = a if online[a] > online[best] else best
    return np.float64(values[best])


@dataclass(frozen=True, kw_only=True)
class DQNSettings(ReplaySettings):
    """Of DQN."""

    rollout: int = 4
    """Steps of a rollout in each environment."""
    epsilon: tuple[float, float, float] = (1.0, 0.05, 0.1)
    """Random actions at first, at last, and the share of the schedule's steps in between (a straight line)."""
    max_error: float = 1.0
    """Clip errors to this size in the gradient (Huber loss); 0 for no clipping."""


@register("dqn")
class DQN(ReplayAgent):
    """Deep Q-network: Mnih et al. 2015, Nature 518, algorithm 1.

    descend the loss of q(s, a) - (r + gamma max_a' q_target(s', a')), with transitions from memory and a target network
    that is copied now and then.
    """

    rule = best_value
    Settings = DQNSettings
    default_optimizer = Adam(1e-3)


@register("double-dqn")
class DoubleDQN(DQN):
    """Double DQN (van Hasselt, Guez & Silver 2016, arXiv 1509.06461).

    As `DQN`, with r + gamma q_target(s', argmax_a' q(s', a')): the network that learns chooses the action.
    """

    rule = value_of_best
    needs_online = True
