"""How well does a control agent act? Fresh episodes, apart from training: own environment, nothing is learned."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from valueapprox.agents.base import ControlAgent
from valueapprox.agents.checked import Checked, close, fault_of
from valueapprox.agents.control_training import ControlSettings
from valueapprox.agents.evaluation import Estimate, interval_of_mean
from valueapprox.agents.rollout import make_environment
from valueapprox.checkpoint import write_whole
from valueapprox.checks import positive
from valueapprox.seeding import seed_for

__all__ = ["Film", "Returns", "evaluate"]

MOST_STEPS = 100_000  # of an episode in an environment without a time limit
MOST_FRAMES = 1000  # of a film
SMALLEST_FRAME = 200  # pixels of its longer side; smaller ones are enlarged


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
        Episodes that were run, and those given up after `MOST_STEPS`.
    """

    mean: Estimate
    spread: float
    lowest: float
    highest: float
    mean_length: float
    n_episodes: int
    n_cut: int


@dataclass
class Film:
    """Pictures (height, width, 3) of an episode."""

    frames: list[np.ndarray] = field(default_factory=list)
    frames_per_second: float = 30.0

    def write(self, path: Path) -> None:
        """Write an animated GIF that begins anew at its end."""
        from PIL import Image

        images = [Image.fromarray(frame).quantize(64, method=Image.Quantize.FASTOCTREE) for frame in self.frames]
        # GIF counts in hundredths of a second, and viewers slow down below two.
        milliseconds = max(20, round(100 / self.frames_per_second) * 10)
        write_whole(
            path,
            lambda file: images[0].save(
                file, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0
            ),
        )


def evaluate(
    agent: ControlAgent,
    settings: ControlSettings,
    n_episodes: int = 20,
    seed: int = 1,
    *,
    greedy: bool = True,
    film: Film | None = None,
    progress: Callable[[int], None] = lambda done: None,
    notice: Callable[[str], None] = warnings.warn,
) -> Returns:
    """Returns of episodes in which a frozen copy of the agent acts: greedily, or by the policy that it learns with.

    Episode i starts from a seed of its own, so that agents are compared on the same starts. The first
    episode is filmed, if asked.

    Raises
    ------
    ValueError
        If pictures are wanted of an environment that cannot be drawn.
    """
    positive("episodes", n_episodes, at_least=2)
    positive("seed", seed, at_least=0)
    env = make_environment(settings.env, **settings.arguments())
    if film is not None:
        env = _drawn(env, settings, notice)
        film.frames_per_second = float(env.metadata.get("render_fps") or film.frames_per_second)
    env = Checked(env, settings.env)
    actor = agent.actor(seed, greedy)
    returns, lengths, n_cut = np.zeros(n_episodes), np.zeros(n_episodes), 0
    try:
        for episode in range(n_episodes):
            observation, _ = env.reset(seed=seed_for(seed, "evaluation environment", episode))
            action = actor.start(observation)
            ended = False
            while not ended and lengths[episode] < MOST_STEPS:
                if film is not None and episode == 0 and len(film.frames) < MOST_FRAMES:
                    film.frames.append(_frame(env, settings))
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


def _drawn(env: gym.Env[Any, Any], settings: ControlSettings, notice: Callable[[str], None]) -> gym.Env[Any, Any]:
    """The same environment, made so that it can be drawn."""
    modes = env.metadata.get("render_modes") or []
    close(env, settings.env, notice)
    if "rgb_array" not in modes:
        known = f"only as {', '.join(modes)}" if modes else "in no way"
        hint = f"; {settings.env.rpartition('/')[2]} of Gymnasium can" if "valueapprox/" in settings.env else ""
        raise ValueError(f"{settings.env} cannot be drawn as a picture ({known}){hint}")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # nothing is shown; without a display, SDL complains on stderr
    return make_environment(settings.env, **{**settings.arguments(), "render_mode": "rgb_array"})


def _frame(env: gym.Env[Any, Any], settings: ControlSettings) -> np.ndarray:
    try:
        picture = env.render()
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise ValueError(f"{settings.env} cannot be drawn: {error}") from None
    pixels = np.asarray(picture)
    if pixels.dtype.kind == "f":  # MinAtar's colours are shares of 1, and each cell of its world is a pixel
        pixels = np.round(255 * pixels)
    enlarged = max(1, SMALLEST_FRAME // max(pixels.shape[:2]))
    return pixels.astype(np.uint8).repeat(enlarged, 0).repeat(enlarged, 1)
