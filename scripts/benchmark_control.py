"""Speed of control: steps per second of a whole learning run, beside the bare environment and beside PyTorch."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from rich.box import SIMPLE_HEAD
from rich.table import Table

from valueapprox import envs
from valueapprox.agents import layout
from valueapprox.agents.base import ControlAgent
from valueapprox.agents.control_run import AGENTS, ControlRun, ControlSettings
from valueapprox.agents.rollout import make_environment
from valueapprox.checks import one_of, positive
from valueapprox.cli.terminal import announce_compile, command_line, console, errors_in_one_line, note

CARTPOLE, CHEETAH = "CartPole-v1", "HalfCheetah-v5"
BARE, LEARNING, COMPILED = "bare environment", "learning", "learning, compiled"
OBGD, TORCH = "published, ours", "published, PyTorch"
#: A timing of these takes as many steps more or fewer than one of CartPole-v1.
SHARES = {CHEETAH: 0.2, COMPILED: 10.0, TORCH: 0.1}
#: How far PyTorch's weights may lie from ours, relative to the way that ours went, and after how many steps.
TOLERANCE = {"float64": 1e-7, "float32": 1e-3}
CHECKED_STEPS = 300
#: What PyTorch's version is of: stream-ac as it was published, which need not be our default.
PUBLISHED = {"agent": "stream-ac", "optimizer": "obgd", "rescale_outputs": False, "persistence": 0.0}


@dataclass(frozen=True)
class Benchmark:
    """Time in turns: the bare environment, learning in it, learning in its compiled world, and with PyTorch.

    Without options: CartPole-v1 with networks of 32-32, then HalfCheetah-v5 with 128-128 (extra [mujoco]). One thread.
    Shown are medians, and the ratio to the bare environment of the same round with its quartiles. A run of ours counts
    as a person's does, with its log and its checkpoints; PyTorch's is the loop alone. PyTorch has stream-ac as it was
    published, for discrete actions. First it is checked to learn the same weights as ours with these settings from the
    same transitions; if it does not, nothing is timed and the exit code is 1.
    """

    env: str | None = None
    """One environment of Gymnasium instead of the two."""
    agent: str = "stream-ac"
    """Who learns."""
    hidden: tuple[int, ...] | None = None
    """Units of each hidden layer; if not given 128 128 for HalfCheetah-v5, else 32 32."""
    steps: int = 100_000
    """Of a timing; a fifth for HalfCheetah-v5, a tenth for PyTorch, ten times as many in the compiled world."""
    rounds: int = 7
    """How often each is timed."""

    def __post_init__(self) -> None:
        one_of("agent", self.agent, AGENTS)
        for name in ("steps", "rounds"):
            positive(name, getattr(self, name))


# --- who takes part -----------------------------------------------------------------------------------------------


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


def learning(env_id: str, steps: int, **settings: Any) -> float:
    """Steps per second of a run."""
    run = ControlSettings.from_dict({**settings, "env": env_id, "steps": steps})
    with tempfile.TemporaryDirectory() as folder:
        return ControlRun(run, Path(folder) / "run").train().steps_per_second


def published(env: gym.Env[Any, Any], **settings: Any) -> ControlAgent:
    """Our agent with the published settings."""
    return ControlSettings.from_dict({**PUBLISHED, **settings}).make_agent(env)


def torch_learning(env_id: str, steps: int, hidden: tuple[int, ...]) -> float:
    """Steps per second of PyTorch's stream-ac."""
    from valueapprox.commands.torch_stream_ac import TorchStreamAC

    env: gym.Env = make_environment(env_id)
    agent = TorchStreamAC.like(published(env, hidden=hidden))
    observation, _ = env.reset(seed=0)
    action = agent.start(observation)
    start = time.perf_counter()
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            agent.end(float(reward), observation, terminated)
            observation, _ = env.reset()
            action = agent.start(observation)
        else:
            action = agent.step(float(reward), observation)
    env.close()
    return steps / (time.perf_counter() - start)


def disagreement(env_id: str, hidden: tuple[int, ...], dtype: str) -> float:
    """The larger ||w_torch - w|| / ||w - w_0|| of critic and actor, after both learned from the same transitions.

    Observations and rewards are normal numbers, actions are drawn for both, one transition in forty terminates its
    episode and one in forty cuts it.
    """
    from valueapprox.commands.torch_stream_ac import TorchStreamAC

    env: gym.Env = make_environment(env_id)
    space = env.action_space
    assert isinstance(space, spaces.Discrete), "asked for before"
    ours = published(env, hidden=hidden, dtype=dtype)
    env.close()
    other = TorchStreamAC.like(ours)
    firsts = [learner.w.copy() for learner in (ours.first, ours.second)]
    rng = np.random.default_rng(0)
    both: tuple[ControlAgent | TorchStreamAC, ...] = (ours, other)
    observation = rng.normal(size=ours.encode.size)
    for agent in both:
        agent.start(observation)
    for _ in range(CHECKED_STEPS):
        reward, observation, u = float(rng.normal()), rng.normal(size=ours.encode.size), rng.random()
        ours.counts[layout.ACTION] = other.action = int(rng.integers(space.n))
        for agent in both:
            if u < 0.05:
                agent.end(reward, observation, u < 0.025)
                agent.start(observation)
            else:
                agent.step(reward, observation)
    return max(
        float(np.linalg.norm(w - learner.w) / np.linalg.norm(learner.w - first))
        for w, learner, first in zip(other.weights(), (ours.first, ours.second), firsts, strict=True)
    )


# --- one environment ----------------------------------------------------------------------------------------------


def contenders(
    env_id: str, options: Benchmark, hidden: tuple[int, ...], notes: list[str]
) -> dict[str, Callable[[], float]]:
    """Whoever can take part, as functions that give steps per second; into the notes, why others cannot."""
    env: gym.Env = make_environment(env_id)
    space = env.action_space
    env.close()

    def steps(name: str) -> int:
        return max(1, round(options.steps * SHARES.get(env_id, 1.0) * SHARES.get(name, 1.0)))

    own: dict[str, Any] = {"agent": options.agent, "hidden": hidden}
    found: dict[str, Callable[[], float]] = {
        BARE: lambda: bare(env_id, steps(BARE)),
        LEARNING: lambda: learning(env_id, steps(LEARNING), **own),
    }
    if envs.compiled_world(f"valueapprox/{env_id}") is not None:
        found[COMPILED] = lambda: learning(f"valueapprox/{env_id}", steps(COMPILED), **own)
    if options.agent == "stream-ac" and isinstance(space, spaces.Discrete):
        if find_spec("torch"):
            found[OBGD] = lambda: learning(env_id, steps(OBGD), hidden=hidden, **PUBLISHED)
            found[TORCH] = lambda: torch_learning(env_id, steps(TORCH), hidden)
        else:
            notes.append("no PyTorch: pip install torch brings it")
    return found


def bars(env_id: str, rates: dict[str, np.ndarray]) -> list[tuple[str, bool]]:
    """What is promised for the two environments and their default networks, and whether it holds."""
    middle = {name: float(np.median(values)) for name, values in rates.items()}
    ratio = float(np.median(rates[LEARNING] / rates[BARE]))
    if env_id == CHEETAH:
        return [("at least 0.5 of the bare environment", ratio >= 0.5)]
    if env_id != CARTPOLE:
        return []
    found = [
        ("at least 25,000 steps/s and 0.45 of the bare environment", middle[LEARNING] >= 25_000 and ratio >= 0.45),
        ("at least 150,000 steps/s in the compiled world", middle[COMPILED] >= 150_000),
    ]
    if TORCH in rates:
        found.append(("at least 30 times as fast as PyTorch", float(np.median(rates[OBGD] / rates[TORCH])) >= 30.0))
    return found


def results(rates: dict[str, np.ndarray], title: str) -> Table:
    """One row per contender; rates (rounds,) each, in steps per second."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("")
    for column in ("steps/s", "of the bare environment", "ours is faster"):
        table.add_column(column, justify="right")
    for name, values in rates.items():
        low, middle, high = np.percentile(values / rates[BARE], [25, 50, 75])
        digits = 2 if middle >= 0.1 else 3
        faster = f"{np.median(rates[OBGD] / values):.0f} times" if name == TORCH else ""
        share = f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
        table.add_row(name, f"{np.median(values):,.0f}", share, faster)
    return table


def main(options: Benchmark) -> int:
    """Check, time, print; returns the exit code."""
    announce_compile()
    notes: list[str] = []
    for env_id in [options.env] if options.env else [CARTPOLE, CHEETAH]:
        own = (128, 128) if env_id == CHEETAH else (32, 32)
        hidden = own if options.hidden is None else options.hidden
        try:
            taking_part = contenders(env_id, options, hidden, notes)
        except ValueError as error:
            if options.env:
                raise
            notes.append(f"no {env_id}: {error}")
            continue
        if TORCH in taking_part:
            for dtype, tolerance in TOLERANCE.items():
                off = disagreement(env_id, hidden, dtype)
                if not off <= tolerance:
                    console.print(
                        f"[bold red]error:[/] PyTorch differs from ours in {dtype}: after {CHECKED_STEPS} steps its "
                        f"weights are off by {off:.2g} of the way that ours went; rounding explains {tolerance:g}"
                    )
                    return 1
        for name in (LEARNING, COMPILED):  # compiles, or loads what was compiled
            if name in taking_part:
                where = env_id if name == LEARNING else f"valueapprox/{env_id}"
                learning(where, 1000, agent=options.agent, hidden=hidden)
        rounds = [{name: time_it() for name, time_it in taking_part.items()} for _ in range(options.rounds)]
        rates = {name: np.array([measured[name] for measured in rounds]) for name in taking_part}
        console.print(results(rates, f"{options.agent}, {'-'.join(map(str, hidden))}, in {env_id}"))
        if options.agent == "stream-ac" and hidden == own:
            for bar, holds in bars(env_id, rates):
                console.print(f"  {bar}: {'[green]holds[/]' if holds else '[red]below the bar[/]'}")
        if TORCH in taking_part:
            console.print("  Before that, PyTorch had learned the same weights as ours, as far as rounding goes.")
    for sentence in notes:
        note(sentence)
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Benchmark)))
