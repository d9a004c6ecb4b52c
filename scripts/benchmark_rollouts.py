"""Speed of rollouts: what Ray workers bring to the driver, and agents that learn from them, beside their peers."""

from __future__ import annotations

import importlib.util
import sys
import time
import typing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  (Numba's products come from its BLAS: loaded before it is limited)
from rich.box import SIMPLE_HEAD
from rich.table import Table
from threadpoolctl import threadpool_limits

from valueapprox.agents.batch_run import BatchSettings, make_experience
from valueapprox.agents.batched import BatchAgent
from valueapprox.agents.experience import CompiledExperience, Experience
from valueapprox.agents.policies import resolve
from valueapprox.agents.rollout import Task, make_environment, make_rollout
from valueapprox.checks import one_of
from valueapprox.cli.terminal import announce_compile, command_line, console, errors_in_one_line
from valueapprox.cluster import RayWorker, cluster
from valueapprox.envs import compiled_world

PARTS = ("transport", "pendulum", "cartpole", "pqn", "collection")
PENDULUM: dict[str, Any] = {
    "agent": "ppo", "env": "valueapprox/Pendulum-v1", "envs": 4, "rollout": 1024, "minibatch": 256, "epochs": 2,
    "activation": "relu", "gamma": 0.9, "alpha": 1e-3, "schedule": "linear", "steps": 74 * 4096,
}  # fmt: skip
#: Stable-Baselines3's default settings, with eight environments.
SB3 = {"env": "CartPole-v1", "normalise_observations": False, "scale_rewards": False, "schedule": "constant"}
SB3_PPO = {**SB3, "agent": "ppo", "rollout": 2048, "minibatch": 64, "epochs": 10, "value_weight": 1.0}
SB3_A2C = {**SB3, "agent": "a2c", "rollout": 5, "value_weight": 1.0}
#: CleanRL's.
PQN: dict[str, Any] = {"agent": "pqn", "steps": 500_000}


@dataclass(frozen=True)
class Benchmark:
    """Rollouts and what learns from them, in turns with their peers, and the ratios.

    transport: transitions of a fixed policy per second with one worker and with many; nothing is learned. An
    environment that costs next to nothing shows what Ray's transport can carry, a costly one how the work is spread.
    pendulum: PPO in the compiled Pendulum, steps per CPU second of collecting and learning, and what it learned.
    cartpole: PPO and A2C in eight of Gymnasium's CartPole-v1, beside Stable-Baselines3 where it is installed, and
    beside the bare vector environment with random actions. pqn: seconds of 500,000 steps in CartPole. collection:
    transitions per second of PPO's rollouts with one worker and with many.
    """

    parts: tuple[str, ...] = PARTS
    """What to measure."""
    envs: tuple[str, ...] = ("valueapprox/CartPole-v1", "CartPole-v1", "LunarLander-v3")
    """Environments of transport."""
    blocks: tuple[int, ...] = (262144, 1024, 512)
    """Transitions of each stream in a block: one number for each environment."""
    streams: int = 4
    """Environments of each worker."""
    collected: tuple[str, ...] = ("LunarLander-v3", "HalfCheetah-v5")
    """Environments of collection."""
    workers: int = 2
    """The larger number of workers."""
    rounds: int = 5
    """How often each is timed."""
    seconds: float = 3.0
    """Length of one timing of transport."""
    steps: int = 65_536
    """Steps of one timing of ours in cartpole; peers take a quarter of them."""
    seeds: int = 1
    """Seeds of pendulum."""
    episodes: int = 1000
    """Evaluation episodes of pendulum."""


def rate(task: Task, n_workers: int, block: int, options: Benchmark) -> float:
    """Transitions per second that arrive, two blocks asked for in advance."""
    shares = np.arange(n_workers * options.streams).reshape(n_workers, -1)
    workers = [RayWorker(make_rollout, task, [int(i) for i in share]) for share in shares]
    try:
        for worker in workers:
            worker.submit("collect", block)
            worker.submit("collect", block)
        for worker in workers:  # the first block waits for the worker's process
            worker.result()
            worker.submit("collect", block)
        arrived, start = 0, time.perf_counter()
        while time.perf_counter() - start < options.seconds:
            for worker in workers:
                collected, _ = worker.result()
                worker.submit("collect", block)
                arrived += collected.rewards.size
        return arrived / (time.perf_counter() - start)
    finally:
        for worker in workers:
            worker.close()


# --- agents -----------------------------------------------------------------------------------------------------------


def made(given: dict[str, Any]) -> tuple[BatchSettings, BatchAgent, Experience]:
    """An agent and what brings it rollouts, with kernels loaded."""
    settings = BatchSettings.from_dict(given).chosen()
    env = make_environment(settings.env)
    trial = settings.make_agent(env)
    trial.learn(make_experience(settings, list(range(settings.envs))).gather(trial.rollout_steps, trial.policy()),
                trial.policy())  # fmt: skip
    return settings, settings.make_agent(env), make_experience(settings, list(range(settings.envs)))


def learned(given: dict[str, Any], steps: int) -> tuple[BatchAgent, float, float, float]:
    """Learn from at least so many steps: the agent, steps, and CPU seconds of collecting and of learning."""
    _, agent, experience = made(given)
    collecting = learning = 0.0
    while agent.n_steps < steps:
        begun = time.process_time()
        policy = agent.policy()
        rollout = experience.gather(agent.rollout_steps, policy)
        then = time.process_time()
        agent.learn(rollout, policy)
        collecting, learning = collecting + then - begun, learning + time.process_time() - then
    experience.close()
    return agent, agent.n_steps, collecting, learning


def sb3(name: str, steps: int) -> float:
    """Steps per CPU second of Stable-Baselines3's agent in eight environments, after a first learn()."""
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    model = getattr(stable_baselines3, name)("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=0), device="cpu", seed=0)
    model.learn(256)
    begun, before = time.process_time(), model.num_timesteps
    model.learn(steps, reset_num_timesteps=False)
    return (model.num_timesteps - before) / (time.process_time() - begun)


def bare(steps: int) -> float:
    """Steps per CPU second of Gymnasium's vector environment of eight CartPoles, with random actions."""
    env = gym.make_vec("CartPole-v1", 8, vectorization_mode="sync")
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, (1000, 8))
    begun = time.process_time()
    for t in range(steps // 8):
        env.step(actions[t % 1000])
    return steps / (time.process_time() - begun)


def pendulum(options: Benchmark) -> None:
    """PPO in the compiled Pendulum."""
    table = table_of("PPO in the compiled Pendulum, 4 environments, 303,104 steps", "seed", "steps per CPU second",
                     "collecting, us per step", "learning, us per step", "mean return of greedy episodes")  # fmt: skip
    means = []
    for seed in range(options.seeds):
        agent, steps, collecting, learning = learned({**PENDULUM, "seed": seed}, int(PENDULUM["steps"]))
        means.append(evaluated(agent, PENDULUM["env"], options.episodes))
        numbers = (steps / (collecting + learning), 1e6 * collecting / steps, 1e6 * learning / steps)
        table.add_row(str(seed), f"{numbers[0]:,.0f}", *(f"{n:.2f}" for n in numbers[1:]), f"{means[-1]:.1f}")
    table.caption = f"mean of {len(means)} seeds: {np.mean(means):.1f}"
    console.print(table)


def evaluated(agent: BatchAgent, env_id: Any, n_episodes: int) -> float:
    """Mean return of greedy episodes of a compiled world that ends by its time limit alone."""
    world, limit = typing.cast(Any, compiled_world(env_id))
    rollout = CompiledExperience(agent, range(n_episodes), 1, world, limit).gather(limit, agent.policy(), greedy=True)
    return float(rollout.rewards.sum(axis=0).mean())


def cartpole(options: Benchmark) -> None:
    """PPO and A2C beside Stable-Baselines3, in turns."""
    peer = importlib.util.find_spec("stable_baselines3") is not None
    table = table_of("Steps per CPU second in eight of Gymnasium's CartPole-v1", "agent", "ours",
                     "Stable-Baselines3", "ratio, median (quartiles)", "of the bare vector environment")  # fmt: skip
    for name, given in (("PPO", SB3_PPO), ("A2C", SB3_A2C)):
        rows = []
        for _ in range(options.rounds):
            _, steps, collecting, learning = learned(given, options.steps)
            ours = steps / (collecting + learning)
            rows.append((ours, sb3(name, options.steps // 4) if peer else np.nan, bare(options.steps)))
        ours, theirs, plain = np.array(rows).T
        middle = np.median(np.array(rows), axis=0)
        shown = ratio(ours / theirs) if peer else "not installed"
        table.add_row(name, f"{middle[0]:,.0f}", f"{middle[1]:,.0f}" if peer else "", shown, ratio(ours / plain))
    console.print(table)


def pqn(options: Benchmark) -> None:
    """PQN with CleanRL's settings."""
    table = table_of("PQN, CartPole, 500,000 steps", "environment", "CPU seconds", "collecting", "learning")
    for env in ("CartPole-v1", "valueapprox/CartPole-v1"):
        _, _, collecting, learning = learned({**PQN, "env": env}, int(PQN["steps"]))
        table.add_row(env, *(f"{n:.1f}" for n in (collecting + learning, collecting, learning)))
    console.print(table)


def collection(options: Benchmark) -> None:
    """Rollouts of PPO on workers: each is sent the policy, and sends its part."""
    many_workers = f"{options.workers} workers"
    title = "Transitions of PPO's rollouts per second"
    table = table_of(title, "environment", "1 worker", many_workers, "ratio, median (quartiles)")
    with cluster(n_cpus=options.workers):
        for env in options.collected:
            n = options.streams * options.workers
            settings = BatchSettings.from_dict({"agent": "ppo", "env": env, "envs": n}).chosen()
            agent = settings.make_agent(make_environment(env))
            with console.status(f"collecting in {env}"):
                rates = np.array(
                    [[collecting_rate(settings, agent, w) for w in (1, options.workers)] for _ in range(options.rounds)]
                )
            one, many = np.median(rates, axis=0)
            table.add_row(env, f"{one:,.0f}", f"{many:,.0f}", ratio(rates[:, 1] / rates[:, 0]))
    console.print(table)


def collecting_rate(settings: BatchSettings, agent: BatchAgent, n_workers: int) -> float:
    """Transitions per second of three rollouts of all environments."""
    shares = np.array_split(np.arange(settings.envs), n_workers)
    workers = [RayWorker(make_experience, settings, [int(i) for i in share]) for share in shares]
    try:
        for repeated in range(4):
            if repeated == 1:  # the first waits for the processes
                begun = time.perf_counter()
            policy = agent.policy()
            for worker in workers:
                worker.submit("collect", agent.rollout_steps, policy)
            for worker in workers:
                worker.result()
        return 3 * settings.round / (time.perf_counter() - begun)
    finally:
        for worker in workers:
            worker.close()


def table_of(title: str, *columns: str) -> Table:
    """A table whose first column is of words."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def ratio(values: np.ndarray) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def transport(options: Benchmark) -> None:
    """Blocks of a fixed policy."""
    table = table_of("Transitions per second, and how many times as many", "environment", "1 worker",
                     f"{options.workers} workers", "ratio, median (quartiles)")  # fmt: skip
    with cluster(n_cpus=options.workers):
        for env, block in zip(options.envs, options.blocks, strict=True):
            task = Task(env, *resolve("auto", None, env))
            with console.status(f"collecting in {env}"):
                rates = np.array(
                    [[rate(task, n, block, options) for n in (1, options.workers)] for _ in range(options.rounds)]
                )
            one, many = np.median(rates, axis=0)
            table.add_row(env, f"{one:,.0f}", f"{many:,.0f}", ratio(rates[:, 1] / rates[:, 0]))
    console.print(table)


def main(options: Benchmark) -> int:
    """Time, print; returns the exit code."""
    if len(options.blocks) != len(options.envs):
        raise ValueError(f"blocks has {len(options.blocks)} entries; expected one for each of {len(options.envs)} envs")
    for part in options.parts:
        one_of("parts", part, PARTS)
    announce_compile()
    measures = {
        "transport": transport,
        "pendulum": pendulum,
        "cartpole": cartpole,
        "pqn": pqn,
        "collection": collection,
    }
    with threadpool_limits(1, "blas"):
        for part in options.parts:
            measures[part](options)
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Benchmark)))
