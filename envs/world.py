"""What a world is, the registry of worlds, and each of them as a Gymnasium environment.

A world is one file: a frozen dataclass of settings with `@register`, and its kernels:

reset(params, u, state)         begins an episode: overwrites state (n_state,), from n_reset_uniforms numbers of u
step(params, state, action, u)  takes one step from a state that is not terminal; returns (reward, terminated)
observe(params, state, out)     writes what an agent sees of a state, terminal or not, to out (n_observation,)
heuristic(observation)          a sensible action, for worlds that know one

They are pure functions with exact arithmetic, `@kernel(exact=True)`, so that a compiled loop and the Gymnasium
environment have the same experience, bit for bit. Randomness comes in as uniform numbers from [0, 1): an array for a
start, one number for a step. params are the world's own numbers. An action is 0 ... n_actions - 1, as an integer or a
float, or any finite float where actions are continuous. Observations are float32. Time limits are the caller's.
"""

from __future__ import annotations

import importlib
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar, TypeVar

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from valueapprox.compiling import interpreted, kernel
from valueapprox.seeding import generator_from, generator_state

__all__ = ["WORLDS", "World", "WorldEnv", "compiled_world", "find_world", "make_env", "register", "uniform"]


@kernel(inline=True, exact=True)
def uniform(low, high, u):
    """A number between low and high, as NumPy's `Generator.uniform` makes it of the same u."""
    return low + (high - low) * u


@kernel(exact=True)
def observe_state(params, state, out):
    """The observation is the state."""
    for i in range(state.size):
        out[i] = state[i]


@dataclass(frozen=True)
class World:
    """What all worlds share. Subclasses override what differs; their fields are their settings."""

    #: The kernels: see the head of this file.
    reset: ClassVar[Any] = None
    step: ClassVar[Any] = None
    observe: ClassVar[Any] = observe_state
    heuristic: ClassVar[Any] = None
    n_state: ClassVar[int] = 1
    #: 0: the action is continuous, one number from `action_low` to `action_high`. The world holds it to them.
    n_actions: ClassVar[int] = 0
    action_low: ClassVar[float] = -1.0
    action_high: ClassVar[float] = 1.0
    n_reset_uniforms: ClassVar[int] = 0
    #: The customary time limit; 0 for none.
    max_episode_steps: ClassVar[int] = 0

    @property
    def params(self) -> np.ndarray:
        """The settings as the kernels read them, float64; a fresh array, of the type for which they are compiled."""
        return np.array(astuple(self), dtype=np.float64)

    @property
    def n_step_uniforms(self) -> int:
        """Uniform numbers used by one step: 0 or 1."""
        return 0

    @property
    def observation_low(self) -> Sequence[float]:
        """Lower bound of each entry of an observation."""
        return tuple(-bound for bound in self.observation_high)

    @property
    def observation_high(self) -> Sequence[float]:
        """Upper bound of each entry of an observation."""
        return (math.inf,) * self.n_state

    @property
    def n_observation(self) -> int:
        """Length of an observation."""
        return len(self.observation_high)

    @property
    def continuous(self) -> bool:
        """Whether an action is a number, and not one of a few."""
        return self.n_actions == 0

    def truth(self, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What is known of the uniform random policy; None if nothing is.

        Returns
        -------
        (observations, values, distribution) or None
            Of every state: what is observed (n, d), its value (n,), and how often it is visited (n,), adding up to 1.
        """
        return None

    def draw(self, state: np.ndarray) -> str | None:
        """A state as text, for ``render_mode="ansi"``; None where there is no picture."""
        return None

    @classmethod
    def kernels(cls) -> dict[str, Any]:
        """What templates of loops are specialised with."""
        return {f"world_{name}": getattr(cls, name) for name in ("reset", "step", "observe", "heuristic")}


#: Every world, by its id in Gymnasium.
WORLDS: dict[str, type[World]] = {}

Class = TypeVar("Class", bound=type[World])
Info = dict[str, Any]


def register(name: str) -> Callable[[Class], Class]:
    """Make a world known as ``valueapprox/NAME``: to Gymnasium, compiled loops, policies, evaluation and the tests.

    Parameters
    ----------
    name
        As in ``"CartPole-v1"``.

    Raises
    ------
    TypeError
        If the name is taken or has no version, or a world with default settings cannot work: a kernel is missing, not
        exact, or reads or writes past an array; the observation has another length than its bounds; a bound is the
        wrong way round; an episode starts out of bounds.
    """

    def add(cls: Class) -> Class:
        env_id = f"valueapprox/{name}"
        if not re.fullmatch(r"\w+-v\d+", name):
            raise TypeError(f"name of {cls.__name__} is {name!r}; expected one like 'CartPole-v1'")
        if env_id in WORLDS or env_id in gymnasium.registry:
            known = WORLDS[env_id].__name__ if env_id in WORLDS else "an environment"
            raise TypeError(f"name of {cls.__name__} is {name!r}; {known} is registered as {env_id!r}")
        try:
            _try(cls())
        except (TypeError, ValueError, IndexError) as error:
            raise TypeError(f"{cls.__name__} cannot be used: {error}") from error
        WORLDS[env_id] = cls
        # A string as entry point, and where to find the world: the spec can be written as JSON and sent to workers.
        gymnasium.register(
            env_id,
            entry_point=f"{__name__}:make_env",
            max_episode_steps=cls.max_episode_steps or None,
            kwargs={"env_id": f"{cls.__module__}:{env_id}"},
        )
        return cls

    return add


def _try(world: World) -> None:
    """Run a few starts and steps as plain Python, where an index outside of an array is an error."""
    plain: dict[str, Any] = {}
    for name, function in world.kernels().items():
        name = name.removeprefix("world_")
        if function is None and name != "heuristic":
            raise TypeError(f"its {name} is missing; expected a kernel, see valueapprox.envs.world")
        if getattr(function, "targetoptions", {}).get("fastmath"):
            raise TypeError(f"its {name} is not exact; expected @kernel(exact=True)")
        plain[name] = interpreted(function) if function is not None else None
    low, high = (np.asarray(bound, np.float32) for bound in (world.observation_low, world.observation_high))
    if low.shape != high.shape or not (low <= high).all():
        raise TypeError(
            f"its observation_low is {low}; expected one bound for each of observation_high {high}, not above"
        )
    if world.continuous and not world.action_low < world.action_high:
        raise TypeError(f"its action_low is {world.action_low}; expected less than action_high {world.action_high}")

    def observed(state: np.ndarray) -> np.ndarray:
        seen = np.full(low.size, np.nan, np.float32)
        plain["observe"](world.params, state, seen)
        if np.isnan(seen).any():
            raise TypeError(f"its observation is {seen}; expected {low.size} numbers, as its bounds say")
        return seen

    for u in (0.0, 0.5, math.nextafter(1.0, 0.0)):
        state = np.full(world.n_state, np.nan)
        plain["reset"](world.params, np.full(world.n_reset_uniforms, u), state)
        start = observed(state)
        if not ((low <= start) & (start <= high)).all():
            raise TypeError(f"its start is observed as {start}; expected within {low} and {high}")
        for action in range(world.n_actions) if world.n_actions else (world.action_low, world.action_high):
            after = state.copy()
            reward, terminated = plain["step"](world.params, after, action, u)
            observed(after)
            if not (isinstance(reward, float) and isinstance(terminated, bool | np.bool_)):
                raise TypeError(f"its step gives {reward!r}, {terminated!r}; expected a float and a bool")
        if plain["heuristic"] is not None:
            action = plain["heuristic"](start)
            if not (
                world.action_low <= action <= world.action_high if world.continuous else 0 <= action < world.n_actions
            ):
                raise TypeError(f"its heuristic gives {action!r}; expected an action")


def find_world(env_id: str) -> type[World] | None:
    """The world of an environment id; of "module:id", where it is not known yet, the module is imported first."""
    module, _, name = env_id.rpartition(":")
    if module and name.startswith("valueapprox/") and name not in WORLDS:
        importlib.import_module(module)
    return WORLDS.get(name)


def compiled_world(env_id: str, *, max_episode_steps: int | None = None, **settings: Any) -> tuple[World, int] | None:
    """Give the compiled world of an environment id and its time limit, or None where there is none.

    Parameters
    ----------
    env_id : str
        As for `gymnasium.make`. Only registered worlds are compiled: `CartPole-v1` means Gymnasium's own.
    max_episode_steps : int, optional
        As for `gymnasium.make`: a limit instead of the customary one, or -1 for none.
    **settings
        As for `gymnasium.make`: keyword arguments of the environment.

    Returns
    -------
    (World, int) or None
        The world and its time limit in steps, 0 for none.
    """
    kind = find_world(env_id)
    if kind is None:
        return None
    world = kind(**settings)
    if max_episode_steps is None:
        return world, world.max_episode_steps
    if max_episode_steps < 1 and max_episode_steps != -1:
        raise ValueError(f"max_episode_steps is {max_episode_steps}; expected at least 1, or -1 for no limit")
    return world, max(max_episode_steps, 0)


def make_env(env_id: str, *, render_mode: str | None = None, **settings: Any) -> WorldEnv:
    """The environment of a registered world: what `gymnasium.make` calls."""
    found = compiled_world(env_id, **settings)
    if found is None:
        raise ValueError(f"env_id is {env_id!r}; expected one of {sorted(WORLDS)}")
    return WorldEnv(found[0], render_mode)


class WorldEnv(gymnasium.Env[np.ndarray, Any]):
    """A world behind Gymnasium's interface; the state is float64, observations are float32.

    `np_random` gives `n_reset_uniforms` numbers at a reset and `n_step_uniforms` at a step, and nothing else
    draws from it. A compiled loop that draws in this order from the same generator has the same experience,
    bit for bit.

    Parameters
    ----------
    world : World
        What to run. Its time limit is left to Gymnasium's `TimeLimit`, which `gymnasium.make` adds.
    render_mode : {"ansi"}, optional
        `render()` then gives a state as text, in worlds that have such a picture.
    """

    def __init__(self, world: World, render_mode: str | None = None) -> None:
        self.metadata = {"render_modes": [] if type(world).draw is World.draw else ["ansi"], "render_fps": 4}
        if render_mode not in (None, *self.metadata["render_modes"]):
            known = " or ".join(map(repr, [*self.metadata["render_modes"], None]))
            raise ValueError(f"render_mode is {render_mode!r}; expected {known}")
        self.world, self.render_mode = world, render_mode
        self.observation_space = gymnasium.spaces.Box(
            np.asarray(world.observation_low, np.float32), np.asarray(world.observation_high, np.float32)
        )
        self.action_space: gymnasium.Space[Any] = (
            gymnasium.spaces.Box(world.action_low, world.action_high, (1,), np.float32)
            if world.continuous
            else gymnasium.spaces.Discrete(world.n_actions)
        )
        self._params, self._state, self._running = world.params, np.zeros(world.n_state), False

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Start an episode. There are no options: a non-empty `options` is an error."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"options is {options!r}; expected none, as the start of {self._name} is fixed")
        type(self.world).reset(self._params, self.np_random.random(self.world.n_reset_uniforms), self._state)
        self._running = True
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Take one step. `truncated` is always False: a time limit is a wrapper's business.

        A continuous action, an array of one number, is rounded to float32 and held to its bounds.
        """
        world = self.world
        choice = self._checked(action)
        if not self._running:
            raise ResetNeeded("no episode is running; call reset() first, and again after an end")
        u = self.np_random.random() if world.n_step_uniforms else 0.0
        reward, terminated = type(world).step(self._params, self._state, choice, u)
        self._running = not terminated
        return self._observation(), reward, terminated, False, {}

    def render(self) -> str | None:
        """The state as text, or None without a render mode."""
        return None if self.render_mode is None else self.world.draw(self._state)

    def state(self) -> Info:
        """Where the environment stands: its state, whether an episode runs, and its generator."""
        generator = generator_state(self.np_random)
        return {"state": self._state.copy(), "running": self._running, "generator": generator}

    def restore(self, state: Info) -> None:
        """Go to where `state()` was taken, in the same world, and on from there bit for bit."""
        values = np.asarray(state["state"], dtype=np.float64)
        if values.shape != self._state.shape:
            raise ValueError(f"state is of shape {values.shape}; expected {self._state.shape}, that of {self._name}")
        self.np_random = generator_from(state["generator"])
        self._state[:] = values
        self._running = bool(state["running"])

    @property
    def _name(self) -> str:
        return type(self.world).__name__

    def _checked(self, action: Any) -> float:
        """An action as the kernels take it."""
        world = self.world
        try:
            # action_space.contains takes longer than the step
            choice = np.asarray(action, dtype=np.float32).item() if world.continuous else operator.index(action)
        except (TypeError, ValueError):
            choice = math.nan
        if not (math.isfinite(choice) if world.continuous else 0 <= choice < world.n_actions):
            numbers = f"one finite number, which is held to [{world.action_low}, {world.action_high}]"
            wanted = numbers if world.continuous else f"an integer from 0 to {world.n_actions - 1}"
            raise ValueError(f"action is {action!r}; expected {wanted}")
        return choice

    def _observation(self) -> np.ndarray:
        # A fresh array each time: people keep what they are given.
        observation = np.empty(self.world.n_observation, dtype=np.float32)
        type(self.world).observe(self._params, self._state, observation)
        return observation
