"""Speed of control: steps per second of a whole learning run, beside the bare environment with random actions."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agents.console import announce_compile, console, errors_in_one_line
from agents.control_training import ControlRun, ControlSettings
from agents.rollout import make_environment

COMPILED = "valueapprox/CartPole-v1"


@dataclass(frozen=True)
class Benchmark:
    """Run in turns: the bare environment, learning in it, and learning in the compiled CartPole. One thread.

    Shown are medians, and the ratio to the bare environment of the same round with its quartiles. A run counts as a
    person's does, with its log and its checkpoints.
    """

    env: str = "CartPole-v1"
    """Environment of Gymnasium."""
    agent: str = "stream-ac"
    """Who learns."""
    hidden: tuple[int, ...] = (32, 32)
    """Units of each hidden layer."""
    steps: int = 100_000
    """Of a timing; ten times as many in the compiled world."""
    rounds: int = 7
    """How often each is timed."""


def bare(env_id: str, steps: int) -> float:
    """Steps per second with random actions, drawn beforehand."""
    env: gym.Env = make_environment(env_id)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(1000)]
    env.reset(seed=0)
    start = time.perf_counter()
    for t in range(steps):
        _, _, terminated, truncated, _ = env.step(actions[t % 1000])
        if terminated or truncated:
            env.reset()
    env.close()
    return steps / (time.perf_counter() - start)


def learning(env_id: str, steps: int, options: Benchmark) -> float:
    """Steps per second of a run."""
    settings = ControlSettings.from_dict(
        {"env": env_id, "agent": options.agent, "hidden": options.hidden, "steps": steps}
    )
    with tempfile.TemporaryDirectory() as folder:
        return ControlRun(settings, Path(folder) / "run").train().steps_per_second


def main(options: Benchmark) -> int:
    """Time, print; returns the exit code."""
    announce_compile()
    learning(options.env, 1000, options)
    learning(COMPILED, 1000, options)
    rates = np.array(
        [
            (
                bare(options.env, options.steps),
                learning(options.env, options.steps, options),
                learning(COMPILED, 10 * options.steps, options),
            )
            for _ in range(options.rounds)
        ]
    )
    size = "-".join(map(str, options.hidden))
    table = Table(title=f"{options.agent}, {size}: steps per second", title_justify="left", box=SIMPLE_HEAD)
    for column in ("", "median", "of the bare environment (quartiles)"):
        table.add_column(column, justify="right" if column else "left")
    names = (f"{options.env}, bare", f"{options.env}, learning", f"{COMPILED}, learning")
    for i, name in enumerate(names):
        low, middle, high = np.percentile(rates[:, i] / rates[:, 0], [25, 50, 75])
        table.add_row(name, f"{np.median(rates[:, i]):,.0f}", f"{middle:.2f} ({low:.2f} to {high:.2f})")
    console.print(table)
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(tyro.cli(Benchmark, description=Benchmark.__doc__)))
