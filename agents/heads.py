"""Policies as the outputs of a network: drawing an action, log pi, the entropy, and the gradients at the outputs.

One example's outputs lie at x[at], x[at + 1], ...; d has the derivatives at the same places. An action is `action`
(k,), its entries numbered from 0 or in the policy's own unit (see `agents.spaces`). There are two kinds of policies,
and each is three kernels:

draw        (x, at, head, noise, key, counts, greedy, action) -> log pi, and writes the action
            noise: what the policy depends on beside x, here the spread
log_pi      (x, d, at, head, spread, action) -> (log pi, entropy), and may leave something in d for the next
gradient    (x, d, at, head, spread, spread_gradient, action, weight, entropy)
            d <- gradient of weight log pi + entropy H; the gradient for `spread` is added to

Categories: each entry is chosen by a softmax of its own, head (k,) says among how many.
Gaussian: the outputs are the means, spread (k,) is log sigma, the same in every state (Schulman et al. 2015, arXiv
1502.05477, appendix D); actions are not cut off at their bounds here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox.agents.choosing import best_action, draw, draw_normal, softmax_action, softmax_entropy
from valueapprox.agents.spaces import by_factor, continuous
from valueapprox.compiling import kernel

__all__ = ["Head", "policy_head"]

HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


@kernel
def draw_categories(x, at, head, noise, key, counts, greedy, action):
    """Each entry's index by its softmax, or its likeliest one."""
    total = 0.0
    for j in range(action.size):
        n = int(head[j])
        chosen = best_action(x, at, n, key, counts) if greedy else softmax_action(x, at, n, 1.0, draw(key, counts))
        action[j] = chosen
        total += np.float64(x[at + chosen]) - softmax_entropy(x, at, n)[1]
        at += n
    return total


@kernel(inline=True)
def log_pi_of_categories(x, d, at, head, spread, action):
    """log pi = sum_j log p_j(a_j), H = sum_j H_j; leaves all log p in d."""
    total, entropy = 0.0, 0.0
    for j in range(action.size):
        n = int(head[j])
        h, log_total = softmax_entropy(x, at, n)
        for i in range(n):
            d[at + i] = np.float64(x[at + i]) - log_total
        total += np.float64(d[at + int(action[j])])
        entropy += h
        at += n
    return total, entropy


@kernel(inline=True)
def gradient_of_categories(x, d, at, head, spread, spread_gradient, action, weight, entropy):
    """d_i = weight (1[i = a] - p_i) - entropy p_i (log p_i + H), from log p in d."""
    for j in range(action.size):
        n = int(head[j])
        h = 0.0
        for i in range(n):
            log_p = np.float64(d[at + i])
            h -= math.exp(log_p) * log_p
        for i in range(n):
            log_p = np.float64(d[at + i])
            p = math.exp(log_p)
            d[at + i] = weight * ((1.0 if i == action[j] else 0.0) - p) - entropy * p * (log_p + h)
        at += n


@kernel
def draw_gaussian(x, at, head, noise, key, counts, greedy, action):
    """mu + sigma times a normal number, or mu."""
    total = 0.0
    for j in range(action.size):
        z = 0.0 if greedy else draw_normal(key, counts)
        log_sigma = np.float64(noise[j])
        action[j] = np.float64(x[at + j]) + math.exp(log_sigma) * z
        total -= 0.5 * z * z + log_sigma + HALF_LOG_2_PI
    return total


@kernel(inline=True)
def log_pi_of_gaussian(x, d, at, head, spread, action):
    """log pi = - sum_j (z_j^2 / 2 + log sigma_j + log(2 pi) / 2), z = (a - mu) / sigma; H = sum log sigma + k/2 ..."""
    total, entropy = 0.0, 0.0
    for j in range(action.size):
        log_sigma = np.float64(spread[j])
        z = (np.float64(action[j]) - np.float64(x[at + j])) * math.exp(-log_sigma)
        total -= 0.5 * z * z + log_sigma + HALF_LOG_2_PI
        entropy += log_sigma + HALF_LOG_2_PI + 0.5
    return total, entropy


@kernel(inline=True)
def gradient_of_gaussian(x, d, at, head, spread, spread_gradient, action, weight, entropy):
    """d log pi / d mu = z / sigma;  d log pi / d log sigma = z^2 - 1;  dH / d log sigma = 1."""
    for j in range(action.size):
        inverse = math.exp(-np.float64(spread[j]))
        z = (np.float64(action[j]) - np.float64(x[at + j])) * inverse
        d[at + j] = weight * z * inverse
        spread_gradient[j] += weight * (z * z - 1.0) + entropy


CATEGORIES = {"draw_row": draw_categories, "log_pi": log_pi_of_categories, "gradient_of": gradient_of_categories}
GAUSSIAN = {"draw_row": draw_gaussian, "log_pi": log_pi_of_gaussian, "gradient_of": gradient_of_gaussian}


class Head(NamedTuple):
    """A policy over an action space."""

    n_outputs: int  # of the network
    n_values: int  # k, entries of an action
    n_spreads: int  # k of a Gaussian, otherwise 0
    layout: np.ndarray  # what the kernels call head
    to_space: np.ndarray  # of continuous actions: `agents.spaces.continuous`; otherwise empty
    decode: Callable[[np.ndarray], Any]  # action (k,) -> action of the space
    kernels: Mapping[str, Any]  # draw, log_pi, gradient


def policy_head(space: gym.Space[Any]) -> Head:
    """The policy for an action space: categories for Discrete, MultiDiscrete and MultiBinary, a Gaussian for Box."""
    if isinstance(space, spaces.Box):
        actions = continuous(space)
        k = actions.n_values
        return Head(k, k, k, np.zeros(k), actions.layout, lambda values: actions.decode(0, values), GAUSSIAN)
    if isinstance(space, spaces.Discrete):
        n, first = int(space.n), int(space.start)
        return Head(n, 1, 0, np.array([float(n)]), np.zeros(0), lambda values: np.int64(values[0]) + first, CATEGORIES)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        actions = by_factor(space)
        decode = actions.decode
        return Head(
            actions.n_outputs, actions.n_values, 0, actions.layout, np.zeros(0), lambda v: decode(0, v), CATEGORIES
        )
    raise TypeError(f"action_space is {space}; expected Discrete, MultiDiscrete, MultiBinary or Box")
