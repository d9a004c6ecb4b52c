"""Acting in many environments: rollouts, the kernel that goes from an observation to an action, and the normalisers.

An observation is normalised, run through the network and drawn an action for by itself, row by row: so what is chosen
does not depend on how many environments are asked together, nor on which worker has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from valueapprox import DivergenceError
from valueapprox.compiling import kernel, placeholder, specialise, template
from valueapprox.nn.backprop import LAYERS, SIZES, X, first_unit, forward
from valueapprox.seeding import sequence
from valueapprox.td.base import finite

if TYPE_CHECKING:
    from valueapprox.agents.batched import BatchAgent

__all__ = ["Acting", "Rollout", "act", "act_row", "merge_observations", "merge_rewards", "normalise_rows"]

ACTED, BAD_INPUT, DIVERGED = range(3)  # status
LARGEST = 1e30  # observation or reward
CLIP = 10.0  # of normalised observations, and of scaled rewards
N_WEIGHTS, N_NOISE, N_INPUTS = range(3)  # entries of `sizes`: what lies one after the other in a policy's numbers


class Rollout(NamedTuple):
    """T steps in each of n environments, raw, in the order of time and then of environments."""

    observations: np.ndarray  # (T + 1, n, d)  the last row is where the next rollout begins
    actions: np.ndarray  # (T, n, k)  as `Head` has them
    log_probs: np.ndarray  # (T, n)  log mu(a|s) of the policy that acted
    rewards: np.ndarray  # (T, n)
    next_observations: np.ndarray  # (T, n, d)  at an ending the final observation
    terminated: np.ndarray  # (T, n)
    truncated: np.ndarray  # (T, n)
    valid: np.ndarray  # (T, n)  False where a step only reset an environment: nothing is learned from it
    restarted: np.ndarray  # (n,)  whether an environment could not go on where it stood, and began a new episode

    @staticmethod
    def zeros(n_steps: int, n: int, d: int, k: int, dtype: str) -> Rollout:
        """A rollout to be filled."""
        shape, flag = (n_steps, n), np.bool_
        return Rollout(
            *(np.zeros((n_steps + 1, n, d), dtype), np.zeros((*shape, k), dtype), np.zeros(shape)),
            *(np.zeros(shape), np.zeros((*shape, d), dtype), np.zeros(shape, flag), np.zeros(shape, flag)),
            *(np.ones(shape, flag), np.zeros(n, flag)),
        )

    @staticmethod
    def join(parts: list[Rollout]) -> Rollout:
        """One rollout of all environments, in the order given; it can be written to, as kernels are compiled for."""
        if len(parts) == 1:
            return Rollout(*(a if a.flags.writeable else a.copy() for a in parts[0]))
        return Rollout(*(np.concatenate(p, axis=min(1, p[0].ndim - 1)) for p in zip(*parts, strict=True)))


# --- acting ---------------------------------------------------------------------------------------------------------

draw_row = placeholder("draw_row")  # of the agent's head


@kernel(inline=True)
def normalised(value, mean, inverse, bound):
    """(value - mean) / sigma, cut off at the bound; NaN stays NaN."""
    scaled = (value - mean) * inverse
    return bound if scaled > bound else (-bound if scaled < -bound else scaled)


@template
def act_row(observation, policy, sizes, spec, scratch, head, key, counts, greedy, action):
    """Normalise an observation (d,), run the network, draw an action (k,): (log pi, status).

    policy: weights, noise, mean (d,), 1 / sigma (d,) and the bound, one after the other, of the lengths in sizes.
    counts says how many numbers were drawn from key.
    """
    p, m, d = sizes[N_WEIGHTS], sizes[N_NOISE], sizes[N_INPUTS]
    mean, inverse, bound = policy[p + m : p + m + d], policy[p + m + d : p + m + d + d], policy[p + m + d + d]
    fine = True
    for i in range(d):
        fine &= abs(observation[i]) <= LARGEST
        scratch[X, i] = normalised(policy.dtype.type(observation[i]), mean[i], inverse[i], bound)
    if not fine:
        return 0.0, BAD_INPUT
    forward(policy[:p], spec, scratch)
    at = np.int64(first_unit(spec, spec[LAYERS]))
    for j in range(spec[SIZES + spec[LAYERS]]):
        fine &= finite(scratch[X, at + j])
    if not fine:
        return 0.0, DIVERGED
    return draw_row(scratch[X], at, head, policy[p : p + m], key, counts, greedy, action), ACTED


@template
def act(observations, policy, sizes, spec, scratch, head, keys, counts, greedy, actions, log_probs):
    """`act_row` for n environments; returns (status, the first environment where something is wrong)."""
    for i in range(len(observations)):
        log_probs[i], status = act_row(
            observations[i], policy, sizes, spec, scratch, head, keys[i], counts[i], greedy, actions[i]
        )
        if status != ACTED:
            return status, i
    return ACTED, 0


class Acting:
    """Draws the actions of some environments, each from random numbers of its own, and learns nothing.

    Parameters
    ----------
    agent
        Whose network, head and kernels it has.
    numbers
        Of the environments, from 0, in the run.
    seed
        Of the run; with another `purpose`, random numbers are others.
    """

    def __init__(self, agent: BatchAgent, numbers: Sequence[int], seed: int, purpose: str = "actions") -> None:
        self.head, self.sizes, self.spec = agent.head, agent.sizes, agent.actor_network.spec
        self.scratch, self.numbers = agent.actor_network.scratch(), list(numbers)
        keys = [sequence(seed, purpose, i).generate_state(1, np.uint64)[0] for i in numbers]
        self.keys, self.draws = np.array(keys, np.uint64), np.zeros((len(keys), 1), np.int64)
        self.kernels = agent.kernels
        self._act = specialise(act, **agent.kernels)

    def choose(
        self,
        observations: np.ndarray,
        policy: np.ndarray,
        actions: np.ndarray,
        log_probs: np.ndarray,
        greedy: bool = False,
    ) -> None:
        """Draw actions (n, k) and their log-probabilities (n,) for observations (n, d)."""
        status, i = self._act(
            *(observations, policy, self.sizes, self.spec, self.scratch, self.head.layout),
            *(self.keys, self.draws, greedy, actions, log_probs),
        )
        if status != ACTED:
            self.fail(status, i, observations[i])

    def fail(self, status: int, i: int, observation: np.ndarray) -> None:
        """Raise what a status of `act_row` means."""
        if status == BAD_INPUT:
            raise ValueError(
                f"the observation of environment {self.numbers[i]} is {observation}; expected finite numbers up to "
                f"{LARGEST:g}"
            )
        raise DivergenceError("an output of the network is infinite or NaN: learning has diverged")


# --- normalisers ----------------------------------------------------------------------------------------------------


@kernel
def merge_observations(rows, statistics):
    """Take rows (N, d) into the statistics (1 + 2 d,): how many, means, and sums of squared distances from them.

    Of the two sets together (Chan, Golub & LeVeque 1983): M2 = M2_a + M2_b + (mean_b - mean_a)^2 n_a n_b / n.
    """
    d = rows.shape[1]
    n_new = float(len(rows))
    n = statistics[0] + n_new
    for i in range(d):
        total = 0.0
        for r in range(len(rows)):
            total += np.float64(rows[r, i])
        mean = total / n_new
        squares = 0.0
        for r in range(len(rows)):
            distance = np.float64(rows[r, i]) - mean
            squares += distance * distance
        shift = mean - statistics[1 + i]
        statistics[1 + i] += shift * n_new / n
        statistics[1 + d + i] += squares + shift * shift * statistics[0] * n_new / n
    statistics[0] = n


@kernel
def merge_rewards(rewards, ended, valid, gamma, discounted, statistics):
    """Take the discounted sums of rewards so far, G <- gamma G + r, into their statistics: n, mean, sum of squares.

    rewards, ended, valid (T, n); discounted (n,) goes on from rollout to rollout, and starts anew with each episode.
    """
    for i in range(rewards.shape[1]):
        for t in range(len(rewards)):
            if not valid[t, i]:
                continue
            discounted[i] = gamma * discounted[i] + rewards[t, i]
            statistics[0] += 1.0
            shift = discounted[i] - statistics[1]
            statistics[1] += shift / statistics[0]
            statistics[2] += shift * (discounted[i] - statistics[1])
            if ended[t, i]:
                discounted[i] = 0.0


@kernel
def normalise_rows(rows, policy, sizes, out):
    """rows (N, d), normalised as they were when they were acted on."""
    shift, d = sizes[N_WEIGHTS] + sizes[N_NOISE], sizes[N_INPUTS]
    mean, inverse, bound = policy[shift : shift + d], policy[shift + d : shift + d + d], policy[shift + d + d]
    for r in range(len(rows)):
        for i in range(d):
            out[r, i] = normalised(policy.dtype.type(rows[r, i]), mean[i], inverse[i], bound)
