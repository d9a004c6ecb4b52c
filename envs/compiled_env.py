"""The compiled worlds as Gymnasium environments."""

from __future__ import annotations

import math
import operator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from valueapprox.seeding import generator_from, generator_state

from .dynamics import World, acrobot, cart_pole, mountain_car, observe, pendulum, reset_state, step_state
from .random_walk import RandomWalk

__all__ = ["AcrobotEnv", "CartPoleEnv", "CompiledEnv", "MountainCarEnv", "PendulumEnv", "RandomWalkEnv"]


class CompiledEnv(gymnasium.Env[np.ndarray, Any]):
    """A compiled world behind Gymnasium's interface; the state is float64, observations are float32.

    `np_random` gives `n_reset_uniforms` numbers at a reset and `n_step_uniforms` at a step, and nothing else
    draws from it. A compiled loop that draws in this order from the same generator has the same experience,
    bit for bit.

    Parameters
    ----------
    world : World
        What to run. Its time limit is left to Gymnasium's `TimeLimit`, which `gymnasium.make` adds.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        low, high = (
            np.broadcast_to(np.asarray(bound, dtype=np.float32), world.n_observation)
            for bound in (world.observation_low, world.observation_high)
        )
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.action_space: gymnasium.Space[Any] = (
            gymnasium.spaces.Box(world.action_low, world.action_high, (1,), np.float32)
            if world.continuous
            else gymnasium.spaces.Discrete(world.n_actions)
        )
        self._state = np.zeros(world.n_state)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode. There are no options: a non-empty `options` is an error."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"options: got {options!r}, but the start of a {self.world.name} is fixed")
        uniforms = self.np_random.random(self.world.n_reset_uniforms)
        reset_state(self.world.code, self.world.params, uniforms, self._state)
        self._running = True
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step. `truncated` is always False: a time limit is a wrapper's business.

        A continuous action, an array of one number, is rounded to float32 and held to its bounds.
        """
        world = self.world
        choice = self._number(action) if world.continuous else self._choice(action)
        if not self._running:
            raise ResetNeeded("step() wants a running episode: call reset() first, and again after an end")
        u = self.np_random.random() if world.n_step_uniforms else 0.0
        reward, terminated = step_state(world.code, world.params, self._state, choice, u)
        self._running = not terminated
        return self._observation(), reward, terminated, False, {}

    def state(self) -> dict[str, Any]:
        """Where the environment stands: its state, whether an episode runs, and its generator."""
        return {
            "state": self._state.copy(),
            "running": self._running,
            "generator": generator_state(self.np_random),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state()` was taken, in the same world, and on from there bit for bit."""
        values = np.asarray(state["state"], dtype=np.float64)
        if values.shape != self._state.shape:
            raise ValueError(f"state: got shape {values.shape}, wants {self._state.shape}, that of a {self.world.name}")
        self.np_random = generator_from(state["generator"])
        self._state[:] = values
        self._running = bool(state["running"])

    def _choice(self, action: Any) -> int:
        try:
            choice = operator.index(action)  # action_space.contains takes longer than the step
        except TypeError:
            choice = -1
        if not 0 <= choice < self.world.n_actions:
            raise ValueError(f"action: got {action!r}, wants an integer from 0 to {self.world.n_actions - 1}")
        return choice

    def _number(self, action: Any) -> float:
        try:
            number = np.asarray(action, dtype=np.float32).item()
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            low, high = self.world.action_low, self.world.action_high
            raise ValueError(f"action: got {action!r}, wants one finite number, which is held to [{low}, {high}]")
        return number

    def _observation(self) -> np.ndarray:
        # A fresh array each time: people keep what they are given.
        observation = np.empty(self.world.n_observation, dtype=np.float32)
        observe(self.world.code, self.world.params, self._state, observation)
        return observation


class AcrobotEnv(CompiledEnv):
    """Acrobot: Gymnasium's Acrobot-v1, compiled."""

    def __init__(self) -> None:
        super().__init__(acrobot())


class CartPoleEnv(CompiledEnv):
    """Cart-pole: Gymnasium's CartPole-v1, compiled."""

    def __init__(self) -> None:
        super().__init__(cart_pole())


class MountainCarEnv(CompiledEnv):
    """Mountain car: Gymnasium's MountainCar-v0, compiled."""

    def __init__(self) -> None:
        super().__init__(mountain_car())


class PendulumEnv(CompiledEnv):
    """Pendulum: Gymnasium's Pendulum-v1, compiled."""

    def __init__(self) -> None:
        super().__init__(pendulum())


class RandomWalkEnv(CompiledEnv):
    """A random walk; keyword arguments are those of `RandomWalk`, which `walk` holds with its true values.

    With `render_mode="ansi"`, `render()` draws the line, for example ``|...o.|``.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(self, *, render_mode: str | None = None, **walk: Any) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode: got {render_mode!r}, wants 'ansi' or None")
        self.walk = RandomWalk(**walk)
        self.render_mode = render_mode
        super().__init__(self.walk.world())

    def render(self) -> str | None:
        """Draw the line with the walker as ``o``, or nothing without a render mode."""
        if self.render_mode is None:
            return None
        line = ["|", *"." * self.walk.n_states, "|"]
        line[int(self._state[0]) + 1] = "o"
        return "".join(line)
