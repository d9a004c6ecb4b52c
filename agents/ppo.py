"""PPO: proximal policy optimization."""

from __future__ import annotations

import math
from dataclasses import dataclass

from valueapprox.agents.batched import register
from valueapprox.agents.policy_gradient import Loss, PolicyGradient, PolicyGradientSettings
from valueapprox.checks import positive
from valueapprox.compiling import kernel


@kernel(inline=True)
def clipped_surrogate(ratio, advantage, settings):
    """d/dlog pi of min(ratio A, clip(ratio, 1 - c, 1 + c) A): ratio A, or 0 where clipping makes it smaller."""
    clipped = abs(ratio - 1.0) > settings.clip
    stopped = (advantage > 0.0 and ratio > 1.0 + settings.clip) or (advantage < 0.0 and ratio < 1.0 - settings.clip)
    return (0.0 if stopped else ratio * advantage), clipped


@dataclass(frozen=True, kw_only=True)
class PPOSettings(PolicyGradientSettings):
    """Of PPO."""

    epochs: int = 10
    """Passes over each rollout."""
    minibatch: int = 64
    """Transitions of a minibatch."""
    clip: float = 0.2
    """Clip range: no gain from moving the ratio of new to old policy beyond 1 - clip or 1 + clip."""
    value_clip: float = 0.0
    """Clip range of the values around what they were before the update; 0 for no clipping."""
    kl_stop: float = 0.0
    """Stop the epochs early once the KL divergence from the old policy exceeds this; 0 for never."""
    normalise_advantages: bool = True
    """Normalise the advantages of each minibatch to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("epochs", self.epochs)
        positive("minibatch", self.minibatch)
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip is {self.clip}; expected a positive number")
        for name in ("value_clip", "kl_stop"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number that is not negative")


@register("ppo")
class PPO(PolicyGradient):
    """Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347), with the clipped surrogate, eq. 7.

    From each rollout, epochs of minibatches; with ratio = pi(a|s) / pi_old(a|s) and A by GAE(lambda):

        policy: ascend min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + entropy H(pi(.|s))
        values: descend value_weight / 2 (v(s) - (A + v_old(s)))^2
    """

    rule = clipped_surrogate
    Settings = PPOSettings

    @property
    def _minibatch(self) -> int:
        return int(self.own.minibatch)

    def _loss(self) -> Loss:
        own = self.own
        return (
            super()
            ._loss()
            ._replace(
                clip=own.clip,
                value_clip=own.value_clip,
                kl_stop=own.kl_stop,
                normalise=own.normalise_advantages,
                epochs=own.epochs,
            )
        )
