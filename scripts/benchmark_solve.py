"""Time to solve: seconds and steps until an agent's greedy policy reaches a mean return, evaluations counted."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  (Numba's products come from its BLAS: loaded before it is limited)
from rich.box import SIMPLE_HEAD
from rich.table import Table
from threadpoolctl import threadpool_limits

from valueapprox.agents import evaluation
from valueapprox.agents.batch_run import BatchSettings
from valueapprox.agents.batched import BatchAgent
from valueapprox.agents.experience import CompiledExperience
from valueapprox.checks import positive
from valueapprox.cli.charts import progress_bar
from valueapprox.cli.terminal import announce_compile, command_line, console, errors_in_one_line
from valueapprox.envs import compiled_world

#: By world: agent and settings, the mean greedy return that is called solved, and Gymnasium's own world.
TASKS: dict[str, tuple[dict[str, Any], float, str]] = {
    "CartPole-v1": (
        {"agent": "ppo", "envs": 16, "rollout": 64, "minibatch": 256, "epochs": 6, "alpha": 3e-3, "hidden": (32, 32)},
        475.0,
        "CartPole-v1",
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """Train on a compiled world until 100 greedy episodes have a mean of 475, and confirm that in Gymnasium's world.

    Kernels are warm. The clock runs from fresh weights to the evaluation that reaches it, and every evaluation on the
    way counts. One core.
    """

    seeds: int = 20
    """Seeds, from 0."""
    episodes: int = 100
    """Greedy episodes of an evaluation."""
    every: int = 8
    """Rollouts between two evaluations."""
    max_steps: int = 500_000
    """Steps after which a seed is given up."""


class Solved(NamedTuple):
    """How one seed went."""

    seconds: float
    steps: int
    mean: float  # that was reached
    confirmed: float  # of fresh episodes in Gymnasium's world


def greedy_mean(agent: BatchAgent, env_id: str, seed: int, n_episodes: int) -> float:
    """Mean return of the first episode of each of n copies of a world."""
    found = compiled_world(env_id)
    assert found is not None, "worlds of this package are compiled"
    experience = CompiledExperience(agent, range(n_episodes), seed, *found)
    rollout = experience.gather(found[1], agent.policy(), greedy=True)
    ended = rollout.terminated | rollout.truncated
    stop = np.where(ended.any(axis=0), ended.argmax(axis=0), len(ended) - 1)
    return float((rollout.rewards * (np.arange(len(ended))[:, None] <= stop)).sum(axis=0).mean())


def solve(name: str, seed: int, options: Benchmark) -> Solved:
    """Train one seed until it is solved, or `max_steps` are over."""
    given, target, own = TASKS[name]
    env_id = f"valueapprox/{name}"
    settings = BatchSettings.from_dict({"env": env_id, "seed": seed, "steps": options.max_steps, **given})
    env = gym.make(env_id)
    found = compiled_world(env_id)
    assert found is not None, "worlds of this package are compiled"
    start, mean = time.perf_counter(), -np.inf
    agent = settings.make_agent(env)
    experience = CompiledExperience(agent, range(settings.envs), seed, *found)
    while mean < target and agent.n_steps < options.max_steps:
        for _ in range(options.every):
            policy = agent.policy()
            agent.learn(experience.gather(agent.rollout_steps, policy), policy)
        mean = greedy_mean(agent, env_id, 10_000 + agent.n_steps, options.episodes)
    seconds = time.perf_counter() - start
    gymnasiums = BatchSettings.from_dict({**given, "env": own})
    confirmed = evaluation.evaluate(agent, gymnasiums, options.episodes, seed=1).mean.value
    return Solved(seconds, agent.n_steps, mean, confirmed)


def main(options: Benchmark) -> int:
    """Train, print; returns the exit code."""
    for name in ("seeds", "episodes", "every", "max_steps"):
        positive(name, getattr(options, name))
    announce_compile()
    with threadpool_limits(1, "blas"):
        for name, (given, target, own) in TASKS.items():
            solve(name, 0, Benchmark(max_steps=1, episodes=2))  # kernels
            rows = []
            with progress_bar(f"solving {name}", options.seeds, False) as advance:
                for seed in range(options.seeds):
                    rows.append(solve(name, seed, options))
                    advance(seed + 1)
            report(name, given, target, own, rows)
    return 0


def report(name: str, given: dict[str, Any], target: float, own: str, rows: list[Solved]) -> None:
    """The table of a task."""
    seconds, steps, means, confirmed = (np.array(column) for column in zip(*rows, strict=True))
    words = ", ".join(f"{key} {value}" for key, value in given.items())
    table = Table(title=f"{name}, {target:g} over greedy episodes: {words}", title_justify="left", box=SIMPLE_HEAD)
    for column in ("", "median", "quartiles", "worst"):
        table.add_column(column, justify="left" if not column else "right")
    for what, values, worst in (
        ("seconds", seconds, seconds.max()),
        ("steps", steps, steps.max()),
        (f"mean return in Gymnasium's {own}", confirmed, confirmed.min()),
    ):
        low, middle, high = np.percentile(values, [25, 50, 75])
        table.add_row(what, f"{middle:,.4g}", f"{low:,.4g} to {high:,.4g}", f"{worst:,.4g}")
    unsolved = int((means < target).sum())
    table.caption = f"{len(rows)} seeds, {unsolved} of them not solved"
    console.print(table)


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Benchmark)))
