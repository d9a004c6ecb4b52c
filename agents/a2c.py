"""A2C: the synchronous advantage actor-critic."""

from __future__ import annotations

from dataclasses import dataclass

from valueapprox import RMSProp
from valueapprox.agents.batched import register
from valueapprox.agents.policy_gradient import PolicyGradient, PolicyGradientSettings
from valueapprox.compiling import kernel


@kernel(inline=True)
def advantage_alone(ratio, advantage, settings):
    """grad log pi times the advantage; the policy is still the one that acted."""
    return advantage, False


@dataclass(frozen=True, kw_only=True)
class A2CSettings(PolicyGradientSettings):
    """Of A2C."""

    rollout: int = 5
    """Steps of a rollout in each environment."""
    lam: float = 1.0
    """Lambda of the advantages (GAE), in [0, 1]: 1 gives n-step advantages, up to the end of the rollout."""


@register("a2c")
class A2C(PolicyGradient):
    """Advantage actor-critic: Mnih et al. 2016, arXiv 1602.01783, algorithm S3, with all environments in step.

    One update from each rollout, along the mean of

        policy: A grad log pi(a|s) + entropy grad H(pi(.|s)), A = r_1 + gamma r_2 + ... + gamma^n v(s_n) - v(s)
        values: value_weight (A + v(s) - v(s)) grad v(s)
    """

    rule = advantage_alone
    Settings = A2CSettings
    default_optimizer = RMSProp(7e-4, epsilon=1e-5)
