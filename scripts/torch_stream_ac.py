"""Stream actor-critic(lambda) in PyTorch: what `benchmark_control.py` checks ours against, and times beside it.

Written from the formulas as its users would write it for speed: autograd, one thread; each network's weights and its
trace are one vector each, of which the layers are views; the acting forward pass is the one that is learned from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from valueapprox import Network
from valueapprox.agents.base import ControlAgent

GAMMA, LAM, KAPPA_CRITIC, KAPPA_ACTOR, ENTROPY = 0.99, 0.8, 2.0, 3.0, 0.01


class Learner:
    """A network s -> (linear, LayerNorm without parameters, leaky ReLU) ... -> linear, with its trace and ObGD.

    net, w0 (P,)   the layers' sizes, and the first weights as `Network` lays them out
    """

    def __init__(self, net: Network, w0: np.ndarray, kappa: float) -> None:
        self.net, self.kappa = net, kappa
        dtype = getattr(torch, net.dtype)
        self.w, self.z = torch.zeros(len(w0), dtype=dtype), torch.zeros(len(w0), dtype=dtype)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        place = 0
        for W, b in net.unpack(w0):
            assert b is not None, "all have biases"
            pair = []
            for values in (W.T, b):
                block = slice(place, place + values.size)
                self.w[block] = torch.tensor(values.ravel())
                parameter = self.w[block].view(values.shape).requires_grad_()
                parameter.grad = self.z[block].view(values.shape)  # backward() adds to it: the trace
                pair.append(parameter)
                place += values.size
            self.layers.append((pair[0], pair[1]))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs (k,) for the inputs x (d,)."""
        *hidden, (B, b_B) = self.layers
        for W, b in hidden:
            psi = functional.linear(x, W, b)
            x = functional.leaky_relu(functional.layer_norm(psi, psi.shape), 0.01)
        return functional.linear(x, B, b_B)

    def learn(self, output: torch.Tensor, delta: float, decay: float, ended: bool) -> None:
        """z <- decay z + grad output;  w <- w + delta z / max(1, kappa max(|delta|, 1) ||z||_1);  z <- 0 at an ending.

        Overshooting-bounded gradient descent with alpha = 1 (Elsayed, Vasan & Mahmood 2024, algorithm 3).
        """
        self.z.mul_(decay)
        output.backward()
        with torch.no_grad():
            bound = self.kappa * max(abs(delta), 1.0) * torch.linalg.vector_norm(self.z, 1).item()
            self.w.add_(self.z, alpha=delta / max(1.0, bound))
        if ended:
            self.z.zero_()

    def weights(self) -> np.ndarray:
        """(P,) as `Network` lays them out."""
        return self.net.pack([(W.detach().numpy().T, b.detach().numpy()) for W, b in self.layers])


class Spread:
    """Mean and variance of what was seen so far, one number or many, in float64 (Welford 1962)."""

    def __init__(self, shape: int | tuple[int, ...] = ()) -> None:
        self.n, self.mean, self.squares = 0, np.zeros(shape), np.zeros(shape)

    def add(self, x: Any) -> None:
        """n += 1;  mean' = mean + (x - mean) / n;  squares += (x - mean)(x - mean')."""
        self.n += 1
        off = x - self.mean
        self.mean = self.mean + off / self.n
        self.squares = self.squares + off * (x - self.mean)

    def deviation(self) -> Any:
        """sqrt(variance + 1e-8); the variance is 1 while one number was seen."""
        return np.sqrt(self.squares / (self.n - 1) + 1e-8) if self.n > 1 else math.sqrt(1.0 + 1e-8)


class TorchStreamAC:
    """Actor-critic(lambda) with a softmax policy, behind start, step and end, as `agents.actor_critic.StreamAC`.

    delta = r + gamma v(s') - v(s)
    critic: grad v(s) into its trace;  actor: grad [log pi(a|s) + 0.01 sign(delta) H(pi(.|s))]

    critic, actor
        A network and its first weights each.
    """

    def __init__(self, critic: tuple[Network, np.ndarray], actor: tuple[Network, np.ndarray]) -> None:
        torch.set_num_threads(1)
        self.critic, self.actor = Learner(*critic, KAPPA_CRITIC), Learner(*actor, KAPPA_ACTOR)
        self.dtype = getattr(torch, critic[0].dtype)
        self.generator = torch.Generator().manual_seed(0)
        self.seen, self.returns, self.discounted = Spread((critic[0].n_inputs,)), Spread(), 0.0
        self.action = 0

    @classmethod
    def like(cls, ours: ControlAgent) -> TorchStreamAC:
        """One with the weights of ours, which has learned nothing yet."""
        return cls((ours.first.net, ours.first.w.copy()), (ours.second.net, ours.second.w.copy()))

    def start(self, observation: np.ndarray) -> int:
        """Begin an episode; returns the first action."""
        return self._act(self._perceive(observation))

    def step(self, reward: float, observation: np.ndarray) -> int:
        """Learn from the transition into `observation`, and return the next action."""
        s_next = self._perceive(observation)
        self._learn(reward, s_next, terminated=False, ended=False)
        return self._act(s_next)

    def end(self, reward: float, observation: np.ndarray, terminated: bool) -> None:
        """Learn from the last transition of an episode."""
        self._learn(reward, self._perceive(observation), terminated, ended=True)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Of critic and actor."""
        return self.critic.weights(), self.actor.weights()

    def _perceive(self, observation: np.ndarray) -> torch.Tensor:
        """(o - mean) / deviation."""
        o = observation.astype(np.float64)
        self.seen.add(o)
        return torch.from_numpy((o - self.seen.mean) / self.seen.deviation()).to(self.dtype)

    def _act(self, s: torch.Tensor) -> int:
        """Run both networks, and draw an action with probability softmax(logits)."""
        self.v = self.critic(s)
        self.log_p = functional.log_softmax(self.actor(s), 0)
        with torch.no_grad():
            self.action = int(torch.multinomial(self.log_p.exp(), 1, generator=self.generator))
        return self.action

    def _learn(self, reward: float, s_next: torch.Tensor, terminated: bool, ended: bool) -> None:
        # The reward is divided by the deviation of u <- gamma u + r, begun anew at an ending.
        self.discounted = (0.0 if ended else GAMMA * self.discounted) + reward
        self.returns.add(self.discounted)
        r = reward / float(self.returns.deviation())
        v_next = 0.0
        if not terminated:
            with torch.no_grad():
                v_next = self.critic(s_next).item()
        delta = r + GAMMA * v_next - self.v.item()
        decay = GAMMA * LAM
        entropy = -(self.log_p.exp() * self.log_p).sum()
        sign = (delta > 0) - (delta < 0)
        self.actor.learn(self.log_p[self.action] + ENTROPY * sign * entropy, delta, decay, ended)
        self.critic.learn(self.v, delta, decay, ended)
