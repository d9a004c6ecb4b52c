"""How good is what was learned? Values against returns of fresh episodes, and the truth; agents by their returns."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np

from valueapprox import ValueFunction, envs
from valueapprox.agents.checked import Checked, close, fault_of, guarded
from valueapprox.agents.policies import Policy, make_policy
from valueapprox.agents.rollout import Recorder, Task, make_environment
from valueapprox.agents.spaces import encoder
from valueapprox.checkpoint import write_whole
from valueapprox.checks import positive
from valueapprox.interrupts import Stopped, tick
from valueapprox.seeding import seed_for, sequence
from valueapprox.statistics import Estimate, interval_of_mean, intervals_of_measures

__all__ = ["Estimate", "MonteCarlo", "Recording", "Returns", "evaluate", "monte_carlo", "rmsve", "truth"]

if TYPE_CHECKING:
    from valueapprox.agents.settings import RunSettings

TAIL = 0.001  # a return may miss what is discounted by less than this
BRANCHES = 8  # continuations from one state
MAX_STEPS = 100_000  # of an episode in an environment without a time limit
MIN_FRAME = 200  # pixels of its longer side; smaller ones are enlarged
BRANCH_STEPS = 400_000  # no further states are branched from after about so many steps: they take the time


@dataclass(frozen=True)
class MonteCarlo:
    """Learned values v against returns G from fresh episodes of the same policy.

    Attributes
    ----------
    value_error
        Root mean square value error, sqrt(mean (v_pi(s) - v(s))^2) over the states that the policy visits, without
        the spread of returns: from each of some states `BRANCHES` independent continuations are run, and the variance
        of their mean is taken off. None where the environment cannot be brought back to a state.
    rmse
        sqrt(mean (G - v)^2). It holds the returns' own spread around the true value, which no value function avoids.
    bias
        mean (v - G).
    explained_variance
        1 - var(G - v) / var(G): 1 is perfect, 0 no better than a constant. None where all returns are equal.
    mean_return, spread
        Mean and standard deviation of G.
    n_episodes, n_states
        Episodes that were run, and states in them whose return is known.
    n_skipped
        States left out because the episode was cut before their return was.
    """

    value_error: Estimate | None
    rmse: Estimate
    bias: Estimate
    explained_variance: Estimate | None
    mean_return: Estimate
    spread: float
    n_episodes: int
    n_states: int
    n_skipped: int

    @property
    def score(self) -> float:
        """More is better: minus the value error, or what is there of it."""
        return -(self.value_error or self.rmse).value

    def tags(self) -> dict[str, float]:
        """For the log."""
        named = ("value_error", "rmse", "bias", "explained_variance")
        return {name: getattr(self, name).value for name in named if getattr(self, name) is not None}


def horizon(gamma: float) -> float:
    """Steps after which a reward is discounted by less than `TAIL`; infinite for gamma = 1."""
    return math.inf if gamma >= 1.0 else 1.0 if gamma == 0.0 else math.ceil(math.log(TAIL) / math.log(gamma))


def follow(
    env: Any, observation: Any, policy: Policy, rng: np.random.Generator, most: float
) -> tuple[list[Any], np.ndarray, bool]:
    """Observations and rewards from here to the end of the episode or `most` steps, and whether it terminated."""
    observations: list[Any] = []
    rewards: list[float] = []
    terminated = truncated = False
    while not (terminated or truncated) and len(rewards) < most:
        if tick():
            raise Stopped
        observations.append(observation)
        observation, reward, terminated, truncated, _ = env.step(policy(observation, rng))
        rewards.append(float(reward))
    return observations, np.array(rewards), terminated


def discounted(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Returns G_t = r_{t+1} + gamma G_{t+1} of one episode, (m,) for rewards (m,)."""
    returns = np.empty(len(rewards))
    g = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        g = rewards[t] + gamma * g
        returns[t] = g
    return returns


def n_known(rewards: np.ndarray, terminated: bool, gamma: float) -> int:
    """How many states, from the first, have a return that misses less than `TAIL` of the discount."""
    return len(rewards) if terminated else max(0, len(rewards) - int(min(horizon(gamma), len(rewards))))


def monte_carlo(
    value_function: ValueFunction,
    task: Task,
    n_episodes: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    notice: Callable[[str], None] = warnings.warn,
) -> MonteCarlo:
    """Compare learned values with the returns of fresh episodes of the task's policy.

    The environment's time limit is lifted, since the value being learned bootstraps there. An episode without an end is
    followed for two horizons, and the states of the first count. Training streams are not touched. Intervals count
    episodes, not states, which are not independent within one.

    Raises
    ------
    ValueError
        If no state has a known return.
    """
    positive("episodes", n_episodes, at_least=2)
    positive("seed", seed, at_least=0)
    gamma, reach = value_function.gamma, horizon(value_function.gamma)
    # Undiscounted, only the environment's own end can end a return.
    limit = {} if math.isinf(reach) else {"max_episode_steps": -1}
    env = Recorder(Checked(make_environment(task.env, **{**task.env_args, **limit}), task.env))
    try:
        encode = encoder(env.observation_space, task.flatten)
        policy = guarded(make_policy(task.policy, task.noise, task.env, env.action_space), task.policy)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        branches: list[tuple[float, float]] | None = []
        skipped = steps = 0
        for episode in range(n_episodes):
            rng = np.random.default_rng(sequence(seed, "evaluation policy", episode))
            observation, _ = env.reset(seed=seed_for(seed, "evaluation environment", episode))
            observations, rewards, terminated = follow(env, observation, policy, rng, 2 * reach)
            known = n_known(rewards, terminated, gamma)
            if not terminated and len(rewards) < 2 * reach:  # the environment cut it
                skipped += len(rewards) - known
            if known > 0:
                states = np.stack([encode(o) for o in observations[:known]])
                values = np.asarray(value_function.predict(states), dtype=np.float64)
                parts.append((values, discounted(rewards, gamma)[:known]))
                if branches is not None and steps < BRANCH_STEPS:
                    t = int(rng.integers(known))
                    steps += BRANCHES * (t + int(min(reach, len(rewards) - t)))
                    returns = _branch(env, policy, gamma, t, states[t], encode, seed, episode)
                    if returns is None:
                        branches = None
                    elif len(returns) == BRANCHES:
                        error2 = (returns.mean() - values[t]) ** 2 - returns.var(ddof=1) / BRANCHES
                        branches.append((known, known * error2))
            progress(episode + 1)
    finally:
        close(env, task.env, notice)
    if len(parts) < 2:
        raise ValueError(
            f"{len(parts)} of {n_episodes} episodes held a state whose return is known; two are the least: "
            "the environment cuts its episodes before they end, so a smaller gamma is needed"
        )
    return _summarise(parts, branches, n_episodes, skipped)


def _branch(
    env: Recorder,
    policy: Policy,
    gamma: float,
    t: int,
    state: np.ndarray,
    encode: Callable[[Any], np.ndarray],
    seed: int,
    episode: int,
) -> np.ndarray | None:
    """Returns of independent continuations from the running episode's state t; None if it cannot be reached again.

    A continuation that the environment cuts has no return and is left out.
    """
    if env.origin is None:
        return None
    origin, actions = env.origin, env.actions[:t]
    returns = []
    for branch in range(BRANCHES):
        observation = env.replay(origin, actions)
        if not np.array_equal(encode(observation), state):
            return None
        env.unwrapped.np_random = np.random.default_rng(sequence(seed, "branch environment", episode, branch))
        rng = np.random.default_rng(sequence(seed, "branch policy", episode, branch))
        _, rewards, terminated = follow(env, observation, policy, rng, horizon(gamma))
        if terminated or len(rewards) >= horizon(gamma):
            returns.append(discounted(rewards, gamma)[0])
    return np.array(returns)


def _root(square: Estimate) -> Estimate:
    """From a mean square to its root; an estimate of an error's square may lie below nothing."""
    return Estimate(*(math.sqrt(max(number, 0.0)) for number in (square.value, square.low, square.high)))


def _summarise(
    parts: list[tuple[np.ndarray, np.ndarray]],
    branches: list[tuple[float, float]] | None,
    n_episodes: int,
    skipped: int,
) -> MonteCarlo:
    # Per episode the sums from which every measure follows: episodes are independent, their states are not.
    sums = np.array([[len(g), (g - v).sum(), ((g - v) ** 2).sum(), g.sum(), (g**2).sum()] for v, g in parts])

    def measures(total: np.ndarray) -> np.ndarray:
        n, error, error2, g, g2 = np.moveaxis(total, -1, 0)
        variance = np.maximum(g2 / n - (g / n) ** 2, 0.0)
        unexplained = error2 / n - (error / n) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = np.where(variance > 1e-12 * np.maximum(1.0, g2 / n), 1.0 - unexplained / variance, np.nan)
        return np.stack([error2 / n, -error / n, explained, g / n, variance], axis=-1)

    mean_square, bias, explained_variance, mean_return, variance = intervals_of_measures(sums, measures)
    value_error = None
    if branches and len(branches) > 1:
        value_error = _root(intervals_of_measures(np.array(branches), lambda total: total[..., 1:] / total[..., :1])[0])
    return MonteCarlo(
        value_error,
        *(
            _root(mean_square),
            bias,
            None if math.isnan(explained_variance.value) else explained_variance,
            mean_return,
            math.sqrt(variance.value),
            n_episodes,
            int(sums[:, 0].sum()),
            skipped,
        ),
    )


def truth(task: Task, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Features (n, d), true values (n,) and visit distribution (n,) of every state, or None where they are unknown."""
    found = envs.compiled_world(task.env, **task.env_args) if task.policy == "random" else None
    return None if found is None else found[0].truth(gamma)


def rmsve(value_function: ValueFunction, known: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """Root mean square value error, sqrt(sum_s mu(s) (v(s) - v_pi(s))^2): Sutton & Barto 2018, eq. 9.1."""
    features, values, distribution = known
    return float(np.sqrt(distribution @ (value_function.predict(features) - values) ** 2))


# --- agents ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Returns:
    """Undiscounted returns of fresh episodes.

    Attributes
    ----------
    mean
        With its 95 % interval, Student's t over the episodes.
    spread
        Standard deviation of the returns.
    lowest, highest, mean_length
        Of the returns, and of the episodes in steps.
    n_episodes, n_cut
        Episodes that were run, and those given up after `MAX_STEPS`.
    """

    mean: Estimate
    spread: float
    lowest: float
    highest: float
    mean_length: float
    n_episodes: int
    n_cut: int

    @property
    def score(self) -> float:
        """More is better."""
        return self.mean.value

    def tags(self) -> dict[str, float]:
        """For the log."""
        return {"return": self.mean.value, "length": self.mean_length}


@dataclass
class Recording:
    """Pictures of the first steps of an episode, every so many steps one."""

    max_frames: int = 1000
    every: int = 1
    frames: list[Any] = field(default_factory=list)
    frames_per_second: float = 30.0

    def add(self, step: int, picture: Callable[[], np.ndarray]) -> None:
        """Keep the picture (height, width, 3) of a step, if it is one of those that are kept."""
        if step % self.every == 0 and len(self.frames) < self.max_frames:
            from PIL import Image

            # 64 colours need a third of the memory.
            self.frames.append(Image.fromarray(picture()).quantize(64, method=Image.Quantize.FASTOCTREE))

    def gif(self) -> bytes:
        """An animated GIF that begins anew at its end."""
        file = io.BytesIO()
        # GIF counts in hundredths of a second, and viewers slow down below two.
        milliseconds = max(20, round(100 * self.every / self.frames_per_second) * 10)
        first, *others = self.frames
        first.save(file, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
        return file.getvalue()

    def write(self, path: Path) -> None:
        """Write the GIF to a file."""
        write_whole(path, lambda file: file.write(self.gif()))


class Acts(Protocol):
    """What `evaluate` asks of an agent."""

    def actor(self, seed: int = 0, greedy: bool = True) -> Any:
        """A frozen copy, with `start(observation)` and `step(observation)`."""


def evaluate(
    agent: Acts,
    settings: RunSettings,
    n_episodes: int = 20,
    seed: int = 1,
    *,
    greedy: bool = True,
    recording: Recording | None = None,
    progress: Callable[[int], None] = lambda done: None,
    notice: Callable[[str], None] = warnings.warn,
) -> Returns:
    """Returns of episodes in which a frozen copy of the agent acts: greedily, or by the policy that it learns with.

    Episode i starts from a seed of its own, so that agents are compared on the same starts. The first
    episode is recorded, if asked.

    Raises
    ------
    ValueError
        If pictures are wanted of an environment that cannot be drawn.
    """
    positive("episodes", n_episodes, at_least=2)
    positive("seed", seed, at_least=0)
    env = make_environment(settings.env, **settings.arguments())
    if recording is not None:
        env = _drawn(env, settings, notice)
        recording.frames_per_second = float(env.metadata.get("render_fps") or recording.frames_per_second)
    env = Checked(env, settings.env)
    actor = agent.actor(seed, greedy)
    returns, lengths, n_cut = np.zeros(n_episodes), np.zeros(n_episodes), 0
    try:
        for episode in range(n_episodes):
            observation, _ = env.reset(seed=seed_for(seed, "evaluation environment", episode))
            action = actor.start(observation)
            ended = False
            while not ended and lengths[episode] < MAX_STEPS:
                if tick():
                    raise Stopped
                if recording is not None and episode == 0:
                    recording.add(int(lengths[episode]), partial(_frame, env, settings))
                observation, reward, terminated, truncated, _ = env.step(action)
                returns[episode] += float(reward)
                lengths[episode] += 1
                ended = bool(terminated or truncated)
                if not ended:
                    action = actor.step(observation)
            n_cut += not ended
            progress(episode + 1)
    except ValueError as error:  # an observation that is not a number
        if fault_of(error) is None:
            raise env.named(error) from error
        raise
    finally:
        close(env, settings.env, notice)
    return Returns(
        interval_of_mean(returns),
        float(returns.std(ddof=1)),
        float(returns.min()),
        float(returns.max()),
        float(lengths.mean()),
        n_episodes,
        n_cut,
    )


def can_be_drawn(env: gym.Env[Any, Any], settings: RunSettings) -> bool:
    """Whether `evaluate` can record episodes of an environment: it says so, and all that drawing needs is installed."""
    if "rgb_array" not in (env.metadata.get("render_modes") or []):
        return False
    try:
        trial = _drawn(make_environment(settings.env, **settings.arguments()), settings, warnings.warn)
        try:
            trial.reset(seed=0)
            _frame(trial, settings)
        finally:
            close(trial, settings.env)
    except Exception:  # noqa: BLE001  (whatever it is that drawing needs)
        return False
    return True


def _drawn(env: gym.Env[Any, Any], settings: RunSettings, notice: Callable[[str], None]) -> gym.Env[Any, Any]:
    """The same environment, made so that it can be drawn."""
    modes = env.metadata.get("render_modes") or []
    close(env, settings.env, notice)
    if "rgb_array" not in modes:
        known = f"only as {', '.join(modes)}" if modes else "in no way"
        hint = f"; {settings.env.rpartition('/')[2]} of Gymnasium can" if "valueapprox/" in settings.env else ""
        raise ValueError(f"{settings.env} cannot be drawn as a picture ({known}){hint}")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # nothing is shown; without a display, SDL complains on stderr
    return make_environment(settings.env, **{**settings.arguments(), "render_mode": "rgb_array"})


def _frame(env: gym.Env[Any, Any], settings: RunSettings) -> np.ndarray:
    try:
        picture = env.render()
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise ValueError(f"{settings.env} cannot be drawn: {error}") from None
    pixels = np.asarray(picture)
    if pixels.dtype.kind == "f":  # MinAtar's colours are shares of 1, and each cell of its world is a pixel
        pixels = np.round(255 * pixels)
    enlarged = max(1, MIN_FRAME // max(pixels.shape[:2]))
    return pixels.astype(np.uint8).repeat(enlarged, 0).repeat(enlarged, 1)
