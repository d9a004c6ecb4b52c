"""PPO in PyTorch: a second implementation, which ours is checked against step by step.

Written from the papers' formulas with autograd, torch.distributions and torch.optim. Advantages, statistics and targets
are plain loops, so that nothing is shared with what is checked but the order of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.distributions import Categorical, Normal

from valueapprox import Adam, Network
from valueapprox.agents.acting import Rollout
from valueapprox.agents.ppo import PPO

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
BOUND = 10.0  # of normalised observations, and of scaled rewards


class Minibatch(NamedTuple):
    """What was found in one."""

    kl: float
    entropy: float
    norm: float  # of the gradient, before it was clipped; NaN where the minibatch ended the epochs


class Layers:
    """A network s -> (linear, activation) ... -> linear; net, w0 (P,) are its sizes and first weights."""

    def __init__(self, net: Network, w0: np.ndarray) -> None:
        self.net, self.activation = net, ACTIVATIONS[net.hidden]
        self.parameters = [torch.tensor(values, requires_grad=True) for pair in net.unpack(w0) for values in pair]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs (N, k) for the inputs x (N, d)."""
        pairs = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        for W, b in pairs[:-1]:
            x = self.activation(x @ W + b)
        W, b = pairs[-1]
        return x @ W + b

    def weights(self) -> np.ndarray:
        """(P,) as `Network` lays them out."""
        values = [p.detach().numpy() for p in self.parameters]
        return self.net.pack(list(zip(values[::2], values[1::2], strict=True)))


class TorchPPO:
    """Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347), as `agents.ppo.PPO`.

    ascend   mean of min(ratio A, clip(ratio, 1 - c, 1 + c) A) + entropy H - value_weight L
    L        1/2 (v - G)^2, or max(that, 1/2 (v_old + clip(v - v_old, -c_v, c_v) - G)^2)
    A        generalised advantages (arXiv 1506.02438), of each minibatch (A - mean) / (sd + 1e-8);  G = A + v_old

    The gradient of all networks together is brought down to the norm max_grad_norm exactly: PyTorch's own function
    divides by the norm + 1e-6. Epochs end before a step of a minibatch where the mean of ratio - 1 - log ratio exceeds
    kl_stop.

    ours
        An agent that has learned nothing yet, with Adam: its settings and first weights are taken over.
    """

    def __init__(self, ours: PPO) -> None:
        torch.set_num_threads(1)
        adam = ours.optimizer
        assert isinstance(adam, Adam)
        self.own, self.gamma, self.horizon = ours.own, ours.gamma, ours.horizon if ours.falls else 0
        self.normalises, self.scales, self.n_values = ours.normalises, ours.scales, ours.head.n_values
        self.gaussian, self.choices = ours.head.n_spreads > 0, [int(n) for n in ours.head.layout]
        self.actor = self.critic = Layers(ours.actor_learner.net, ours.actor_learner.w)
        if not self.own.shared:
            self.critic = Layers(ours.critic_learner.net, ours.critic_learner.w)
        self.spread = torch.tensor(ours.spread.w[: ours.head.n_spreads], requires_grad=True)
        self.parameters = [*self.actor.parameters, *([] if self.own.shared else self.critic.parameters), self.spread]
        self.alpha = float(np.asarray(adam.alpha))
        betas = (adam.beta1, adam.beta2)
        self.adam = torch.optim.Adam(self.parameters, lr=self.alpha, betas=betas, eps=adam.epsilon)
        self.seen: list[np.ndarray] = []  # observations of the rollouts before
        self.returns: list[float] = []  # discounted sums of rewards so far
        self.running, self.n_transitions = np.zeros(ours.n_envs), 0

    def learn(self, rollout: Rollout, orders: Sequence[np.ndarray]) -> list[Minibatch]:
        """Epochs of minibatches over a rollout; orders[e] (N,) is the order of epoch e."""
        if self.horizon:
            for group in self.adam.param_groups:
                group["lr"] = self.alpha * max(0.0, 1.0 - self.n_transitions / self.horizon)
        n_steps, n = rollout.rewards.shape
        scale = self._scale(rollout)
        states = self._normalised(rollout.observations[:-1])
        with torch.no_grad():
            v = self._v(states)
            v_next = self._v(self._normalised(rollout.next_observations))
        advantages = np.zeros((n_steps, n))
        for i in range(n):
            later = 0.0
            for t in reversed(range(n_steps)):
                r = max(-BOUND, min(BOUND, rollout.rewards[t, i] / scale))
                future = 0.0 if rollout.terminated[t, i] else self.gamma * v_next[t, i].item()
                if rollout.terminated[t, i] or rollout.truncated[t, i]:
                    later = 0.0
                later = r + future - v[t, i].item() + self.gamma * self.own.lam * later
                advantages[t, i] = later
        a = torch.tensor(advantages).reshape(-1)
        v_old, targets, states = v.reshape(-1), a + v.reshape(-1), states.reshape(n_steps * n, -1)
        actions = torch.tensor(rollout.actions.reshape(n_steps * n, -1))
        log_mu = torch.tensor(rollout.log_probs.reshape(-1))
        found = self._epochs(orders, states, actions, log_mu, a, targets, v_old)
        self.seen.append(rollout.observations[:-1].reshape(n_steps * n, -1))
        self.n_transitions += n_steps * n
        return found

    def _epochs(
        self,
        orders: Sequence[np.ndarray],
        states: torch.Tensor,
        actions: torch.Tensor,
        log_mu: torch.Tensor,
        advantages: torch.Tensor,
        targets: torch.Tensor,
        v_old: torch.Tensor,
    ) -> list[Minibatch]:
        own = self.own
        found: list[Minibatch] = []
        for order in orders:
            for rows in torch.split(torch.tensor(order), own.minibatch):
                a = advantages[rows]
                if own.normalise_advantages and len(rows) > 1:
                    a = (a - a.mean()) / (a.std() + 1e-8)
                log_pi, entropy = self._policy(states[rows], actions[rows])
                log_ratio = log_pi - log_mu[rows]
                ratio = log_ratio.exp()
                kl = (ratio - 1.0 - log_ratio).mean().item()
                if own.kl_stop > 0.0 and kl > own.kl_stop:
                    return [*found, Minibatch(kl, entropy.mean().item(), math.nan)]
                surrogate = torch.min(ratio * a, ratio.clamp(1.0 - own.clip, 1.0 + own.clip) * a)
                v = self.critic(states[rows])[:, -1]
                error = (v - targets[rows]) ** 2
                if own.value_clip > 0.0:
                    kept = v_old[rows] + (v - v_old[rows]).clamp(-own.value_clip, own.value_clip)
                    error = torch.max(error, (kept - targets[rows]) ** 2)
                loss = -(surrogate + own.entropy * entropy - own.value_weight * 0.5 * error).mean()
                self.adam.zero_grad()
                loss.backward()
                gradients = [p.grad for p in self.parameters if p.grad is not None]
                norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
                if 0.0 < own.max_grad_norm < norm:
                    for g in gradients:
                        g.mul_(own.max_grad_norm / norm)
                self.adam.step()
                found.append(Minibatch(kl, entropy.mean().item(), norm))
        return found

    def weights(self) -> dict[str, np.ndarray]:
        """Of each network, as ours has them, by name."""
        named = {"network": self.actor} if self.own.shared else {"actor": self.actor, "critic": self.critic}
        weights = {name: layers.weights() for name, layers in named.items()}
        return weights | ({"spread": self.spread.detach().numpy().copy()} if self.gaussian else {})

    def _policy(self, states: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log pi(a|s), H(pi(.|s))), each (N,)."""
        outputs = self.actor(states)
        if self.gaussian:
            normal = Normal(outputs[:, : self.n_values], self.spread.exp())
            return normal.log_prob(actions).sum(1), normal.entropy().sum(1)
        parts = torch.split(outputs[:, : sum(self.choices)], self.choices, dim=1)
        entries = [Categorical(logits=logits) for logits in parts]
        log_pi = sum(entry.log_prob(a) for entry, a in zip(entries, actions.T, strict=True))
        return torch.as_tensor(log_pi), torch.as_tensor(sum(entry.entropy() for entry in entries))

    def _v(self, states: torch.Tensor) -> torch.Tensor:
        return self.critic(states)[..., -1]

    def _normalised(self, observations: np.ndarray) -> torch.Tensor:
        """(o - mean) / sd by all observations of the rollouts before this one, cut off at 10."""
        if self.normalises and self.seen:
            seen = np.concatenate(self.seen)
            observations = (observations - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + 1e-8)
            observations = np.clip(observations, -BOUND, BOUND)
        return torch.tensor(observations)

    def _scale(self, rollout: Rollout) -> float:
        """The standard deviation of all G <- gamma G + r so far, begun anew in each episode."""
        if not self.scales:
            return 1.0
        for t, ended in enumerate(rollout.terminated | rollout.truncated):
            self.running = self.gamma * self.running + rollout.rewards[t]
            self.returns.extend(self.running.tolist())
            self.running = np.where(ended, 0.0, self.running)
        return float(np.std(self.returns)) or 1.0
