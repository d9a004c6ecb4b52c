"""Expected Sarsa with replay: the agent of the specialization's capstone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from valueapprox import Adam
from valueapprox.agents.batched import register
from valueapprox.agents.replay import ReplayAgent, ReplaySettings
from valueapprox.compiling import kernel


@kernel
def expected_value(values, online, n, target):
    """sum_a pi(a) q(a), pi the softmax of q / temperature; max_a q(a) at temperature 0."""
    best = np.float64(values[0])
    for a in range(1, n):
        best = max(best, np.float64(values[a]))
    if target.temperature <= 0.0:
        return best
    total = weights = 0.0
    for a in range(n):
        weight = math.exp((np.float64(values[a]) - best) / target.temperature)
        total += weight * np.float64(values[a])
        weights += weight
    return total / weights


@dataclass(frozen=True, kw_only=True)
class ExpectedSarsaReplaySettings(ReplaySettings):
    """Of Expected Sarsa with replay."""

    minibatch: int = 8
    """Transitions of a minibatch."""
    updates: int = 4
    """Minibatches after each rollout."""
    learning_starts: int = 0
    """Transitions before the first minibatch."""
    target_every: int = 0
    """Transitions between updates of the target network; 0 copies the network before each rollout's minibatches."""
    temperature: float = 0.001
    """Choose by softmax of q / temperature, and expect that in targets; 0 for the best action."""
    max_grad_norm: float = 0.0
    """Maximum norm of the gradient; 0 for none."""


@register("expected-sarsa-replay")
class ExpectedSarsaReplay(ReplayAgent):
    """Expected Sarsa, softmax policy, Adam and replay: the course's "Complete RL System", with Sutton & Barto eq. 6.9.

    After each step, minibatches from memory, with a copy of the network from before them for the targets:

        descend 1/2 (q(s, a) - (r + gamma sum_a' pi(a'|s') q(s', a')))^2,  pi the softmax of q / temperature
    """

    rule = expected_value
    Settings = ExpectedSarsaReplaySettings
    default_optimizer = Adam(1e-3)
    defaults: ClassVar[Mapping[str, Any]] = {**ReplayAgent.defaults, "hidden": (256,)}
