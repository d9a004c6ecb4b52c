"""IMPALA: an actor-critic whose targets bear that another policy has acted, by V-trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox import RMSProp
from valueapprox.agents.a2c import advantage_alone
from valueapprox.agents.acting import Rollout
from valueapprox.agents.batched import register
from valueapprox.agents.policy_gradient import PolicyGradient, PolicyGradientSettings
from valueapprox.td.targets import vtrace


@dataclass(frozen=True, kw_only=True)
class ImpalaSettings(PolicyGradientSettings):
    """Of IMPALA."""

    rollout: int = 20
    """Steps of a rollout in each environment."""
    lam: float = 1.0
    """Lambda of V-trace, in [0, 1]."""
    entropy: float = 0.01
    """Weight of the policy's entropy, 0 or more."""
    max_rho: float = 1.0
    """Bound on the importance ratios of TD errors; it decides which policy's values are learned."""
    max_c: float = 1.0
    """Bound on the importance ratios in traces, at most max_rho; it decides how far back errors reach."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_rho >= self.max_c > 0:
            raise ValueError(f"max_c is {self.max_c}; expected a positive number up to max_rho, {self.max_rho}")


@register("impala")
class Impala(PolicyGradient):
    """V-trace actor-critic: Espeholt et al. 2018, arXiv 1802.01561, section 4.

    One update from each rollout, which an older policy mu may have acted in (with `--async` it does), with
    rho = min(max_rho, pi(a|s) / mu(a|s)) and vs the V-trace targets (see `valueapprox.td.vtrace`), along the mean of

        policy: rho (r + gamma vs(s') - v(s)) grad log pi(a|s) + entropy grad H(pi(.|s))
        values: value_weight (vs(s) - v(s)) grad v(s)
    """

    rule = advantage_alone
    Settings = ImpalaSettings
    bears_lag = True
    default_optimizer = RMSProp(7e-4, epsilon=1e-5)

    def targets(
        self, rollout: Rollout, states: np.ndarray, v_tm1: np.ndarray, v_t: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advantages and the targets of values, each (T, n)."""
        own, kind = self.own, v_tm1.dtype
        rewards, discounts = self.scaled(rollout)
        rho = np.exp(self.log_pi_now(rollout, states) - rollout.log_probs).astype(kind)
        self.note({"actor/ratio": float(rho.mean())})
        ended = rollout.terminated | rollout.truncated
        targets, advantages = vtrace(
            rewards, discounts, v_tm1, v_t, ended, rho, own.lam, max_rho=own.max_rho, max_c=own.max_c
        )
        return advantages, targets
