"""How good is a value function? Against Monte Carlo returns from fresh episodes, and exactly where truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import envs
from agents.policies import Policy, make_policy
from agents.rollout import Task, make_environment
from agents.spaces import encoder
from valueapprox import ValueFunction
from valueapprox.checks import positive
from valueapprox.seeding import seed_for, sequence

__all__ = ["Estimate", "MonteCarlo", "monte_carlo", "rmsve", "truth"]

TAIL = 0.001  # a return may miss what is discounted by less than this
CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g}  [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class MonteCarlo:
    """Learned values v against returns G from fresh episodes of the same policy.

    Attributes
    ----------
    rmse
        sqrt(mean (G - v)^2). It holds the returns' own spread around the true value, which no value function avoids.
    bias
        mean (v - G).
    explained_variance
        1 - var(G - v) / var(G): 1 is perfect, 0 no better than a constant.
    mean_return, spread
        Mean and standard deviation of G.
    n_episodes, n_states
        Episodes that were run, and states in them whose return is known.
    n_skipped
        States left out because the episode was cut before their return was.
    """

    rmse: Estimate
    bias: Estimate
    explained_variance: Estimate
    mean_return: Estimate
    spread: float
    n_episodes: int
    n_states: int
    n_skipped: int


def horizon(gamma: float) -> float:
    """Steps after which a reward is discounted by less than `TAIL`; infinite for gamma = 1."""
    return math.inf if gamma >= 1.0 else 1.0 if gamma == 0.0 else math.ceil(math.log(TAIL) / math.log(gamma))


def episode_returns(
    env: Any, policy: Policy, rng: np.random.Generator, encode: Callable[[Any], np.ndarray], gamma: float, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """States (m, d) of one fresh episode, their returns (m,), and how many more states had none.

    An episode without an end is followed for two horizons, and states of the first have a return that misses less than
    `TAIL` of the discount. Where the environment cuts it, states within a horizon of the cut have none.
    """
    reach = horizon(gamma)
    observation, _ = env.reset(seed=seed)
    states: list[np.ndarray] = []
    rewards: list[float] = []
    terminated = truncated = False
    while not (terminated or truncated) and len(rewards) < 2 * reach:
        states.append(encode(observation).copy())
        observation, reward, terminated, truncated, _ = env.step(policy(observation, rng))
        rewards.append(float(reward))
    returns = np.empty(len(rewards))
    g = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        g = rewards[t] + gamma * g
        returns[t] = g
    known = len(rewards) if terminated else max(0, len(rewards) - int(min(reach, len(rewards))))
    return np.array(states[:known]).reshape(known, -1), returns[:known], len(rewards) - known


def monte_carlo(
    value_function: ValueFunction,
    task: Task,
    n_episodes: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> MonteCarlo:
    """Compare learned values with the returns of fresh episodes of the task's policy.

    The environment's time limit is lifted, since the value being learned bootstraps there. Training streams are not
    touched. Intervals come from a bootstrap over episodes, whose states are not independent.

    Raises
    ------
    ValueError
        If no state has a known return.
    """
    positive("episodes", n_episodes, at_least=2)
    unlimited = {**task.env_args, "max_episode_steps": -1}
    env = make_environment(task.env, **unlimited)
    if math.isinf(horizon(value_function.gamma)):
        env.close()  # undiscounted: only the environment's own end can end a return
        env = make_environment(task.env, **task.env_args)
    try:
        encode = encoder(env.observation_space, task.flatten)
        policy = make_policy(task.policy, task.noise, task.env, env.action_space)
        parts, skipped = [], 0
        for episode in range(n_episodes):
            states, returns, without = episode_returns(
                env,
                policy,
                np.random.default_rng(sequence(seed, "evaluation policy", episode)),
                encode,
                value_function.gamma,
                seed_for(seed, "evaluation environment", episode),
            )
            skipped += without
            if len(returns):
                parts.append((value_function.predict(states).astype(np.float64), returns))
            progress(episode + 1)
    finally:
        env.close()
    if len(parts) < 2:
        raise ValueError(
            f"{len(parts)} of {n_episodes} episodes held a state whose return is known; two are the least: "
            "the environment cuts its episodes before they end, so a smaller gamma is needed"
        )
    return _summarise(parts, n_episodes, skipped)


def _summarise(parts: list[tuple[np.ndarray, np.ndarray]], n_episodes: int, skipped: int) -> MonteCarlo:
    # Per episode the sums from which every measure follows; resampling episodes is resampling rows.
    sums = np.array([[len(g), (g - v).sum(), ((g - v) ** 2).sum(), g.sum(), (g**2).sum()] for v, g in parts])

    def measures(total: np.ndarray) -> np.ndarray:
        n, error, error2, g, g2 = np.moveaxis(total, -1, 0)
        variance = np.maximum(g2 / n - (g / n) ** 2, 0.0)
        unexplained = error2 / n - (error / n) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = np.where(variance > 1e-12 * np.maximum(1.0, g2 / n), 1.0 - unexplained / variance, np.nan)
        return np.stack([np.sqrt(error2 / n), -error / n, explained, g / n, np.sqrt(variance)], axis=-1)

    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    resampled = measures(counts @ sums)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail), axis=0)
    value = measures(sums.sum(axis=0))
    estimates = [Estimate(*map(float, three)) for three in zip(value, low, high, strict=True)]
    rmse, bias, explained_variance, mean_return, _ = estimates
    n_states = int(sums[:, 0].sum())
    return MonteCarlo(
        rmse, bias, explained_variance, mean_return, float(value[4]), n_episodes, n_states, n_skipped=skipped
    )


def truth(task: Task, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Features (n, d), true values (n,) and visit distribution (n,) of every state, or None where they are unknown."""
    if task.env.rpartition(":")[2] != "valueapprox/RandomWalk-v0" or task.policy != "random":
        return None
    arguments = {name: value for name, value in task.env_args.items() if name != "max_episode_steps"}
    walk = envs.RandomWalk(**arguments)
    return walk.features_matrix(), walk.true_values(gamma), walk.state_distribution()


def rmsve(value_function: ValueFunction, known: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """Root mean square value error, sqrt(sum_s mu(s) (v(s) - v_pi(s))^2): Sutton & Barto 2018, eq. 9.1."""
    features, values, distribution = known
    return float(np.sqrt(distribution @ (value_function.predict(features) - values) ** 2))
