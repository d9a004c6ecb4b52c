"""What a user's environment gives, checked where it comes in: errors name it, the step, what came and where to look."""

from __future__ import annotations

import contextlib
import inspect
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import valueapprox

__all__ = ["Checked", "UserCodeError", "blame", "close", "fault_of", "guarded", "image_note", "is_image"]

NUMBERS = frozenset((float, int, np.float64, np.float32, np.int64, np.int32, np.bool_, bool))
FLAGS = frozenset((bool, np.bool_))
ANSWER = "observation, reward, terminated, truncated, info"
INF = float("inf")
SHOWN = 80  # characters of a value
MOST_FRAMES = 6
MANY_INPUTS = 300  # numbers of an image, from which a dense network is worth a word
# Code between the run and the user's: what it raises is about what it was given.
OURS = str(Path(valueapprox.__file__).parent)
GYMNASIUM = str(Path(gym.__file__).parent)


class UserCodeError(ValueError):
    """What an environment, or another function of the user's, did or gave cannot be learned from.

    Attributes
    ----------
    place : str
        Where in the user's files to look; lines for a person, which may be empty.
    """

    def __init__(self, sentence: str, place: str = "") -> None:
        super().__init__(sentence, place)  # both: so that it can be sent from a Ray worker
        self.sentence, self.place = sentence, place

    def __str__(self) -> str:
        return self.sentence


class Checked(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose answers are as Gymnasium's interface says, or there is a clear error.

    Parameters
    ----------
    env, name
        The environment, and what errors call it.
    n_steps
        Of the run so far, from which errors count; None where only the step of the episode makes sense.
    """

    keeps_nothing = True  # of the environment: see `valueapprox.envs.unknown_wrappers`

    def __init__(self, env: gym.Env[Any, Any], name: str, n_steps: int | None = None) -> None:
        super().__init__(env)
        self.name, self.n_steps, self.of_a_run, self.episode_steps = name, n_steps or 0, n_steps is not None, 0
        self.fits = _fit(env.observation_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self.episode_steps = 0
        try:
            answer = self.env.reset(seed=seed, options=options)
        except Exception as error:
            blame(error, f"{self.name}: reset()", _home(self.env.unwrapped, "reset"))
            raise
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise self._fault("reset", f"reset() gave {_several(answer)}; expected 2 values: observation, info")
        observation, info = answer
        if not isinstance(info, dict):
            raise self._fault("reset", f"the info that reset() gave is {_shown(info)}; expected a dict")
        if not self.fits(observation):
            raise self._fault(
                "reset", _misfit("the observation that reset() gave", self.observation_space, observation)
            )
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        self.n_steps += 1
        self.episode_steps += 1
        try:
            answer: Any = self.env.step(action)
        except Exception as error:
            # Gymnasium's own wrappers take an answer apart, and complain without saying whose it was.
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            if last.startswith(GYMNASIUM) and isinstance(error, (TypeError, ValueError)) and "unpack" in str(error):
                raise self._wrong_number(str(error)) from None
            blame(error, f"{self.name}: step()", _home(self.env.unwrapped, "step"), self._when())
            raise
        try:
            observation, reward, terminated, truncated, info = answer
        except (TypeError, ValueError):
            raise self._wrong_number(_several(answer)) from None
        if (
            (type(reward) not in NUMBERS and not _is_number(reward))
            or not -INF < reward < INF
            or (type(terminated) not in FLAGS and not _is_flag(terminated))
            or (type(truncated) not in FLAGS and not _is_flag(truncated))
            or not isinstance(info, dict)
            or not self.fits(observation)
        ):
            raise self._examined(observation, reward, terminated, truncated, info)
        return answer

    def not_finite(self, observation: Any, largest: float) -> UserCodeError:
        """The error for the last observation, if it has numbers that are infinite, NaN or too large."""
        started = self.episode_steps == 0
        what = "the observation that reset() gave is" if started else "the observation is"
        when = "" if started else f" {self._when()}"
        sentence = f"{what} {_shown(observation)}{when}; expected finite numbers up to {largest:g}"
        return self._fault("reset" if started else "step", sentence)

    def named(self, error: ValueError) -> UserCodeError:
        """The same error of what came from this environment, with its name."""
        return self._fault("step", str(error))

    def _examined(self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> UserCodeError:
        at = self._when()
        if not _is_number(reward):
            return self._fault("step", f"the reward is {_shown(reward)} {at}; expected one number")
        if not -INF < reward < INF:
            return self._fault("step", f"the reward is {_shown(reward)} {at}; expected a finite number")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not _is_flag(flag):
                return self._fault("step", f"{name} is {_shown(flag)} {at}; expected True or False")
        if not isinstance(info, dict):
            return self._fault("step", f"info is {_shown(info)} {at}; expected a dict")
        what, _, wanted = _misfit("the observation", self.observation_space, observation).rpartition("; expected ")
        return self._fault("step", f"{what} {at}; expected {wanted}")

    def _when(self) -> str:
        if not self.of_a_run:
            return f"at step {self.episode_steps} of an episode"
        own = f", the {_ordinal(self.episode_steps)} of its episode" if self.episode_steps != self.n_steps else ""
        return f"at step {self.n_steps}{own}"

    def _wrong_number(self, came: str) -> UserCodeError:
        return self._fault("step", f"step() gave {came} {self._when()}; expected 5 values: {ANSWER}")

    def _fault(self, method: str, sentence: str) -> UserCodeError:
        return UserCodeError(f"{self.name}: {sentence}", _home(self.env.unwrapped, method))


# --- faults -----------------------------------------------------------------------------------------------------------


def blame(error: BaseException, what: str, home: str = "", when: str = "") -> None:
    """Note at an error that the user's own code has raised whose it is and where, as `fault_of` gives it again.

    It keeps its type and traceback, for those who call from Python. Where: its last frames, or else `home`.
    """
    if fault_of(error) is not None:
        return
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((OURS, GYMNASIUM))]
    place = "".join(traceback.format_list(frames[-MOST_FRAMES:])).rstrip() or home
    text = " ".join(str(error).split())
    sentence = " ".join(filter(None, (what, "raised", type(error).__name__, when)))
    fault = UserCodeError(sentence + (f": {text}" if text else ""), place)
    with contextlib.suppress(AttributeError):  # some errors take no attributes
        error.fault = fault  # type: ignore[attr-defined]
    error.add_note(sentence)


def fault_of(error: BaseException) -> UserCodeError | None:
    """What is to be said of an error if it is one of the user's code: also of one that Ray has brought."""
    cause = getattr(error, "cause", None)
    shown = cause if isinstance(cause, BaseException) else error
    found = shown if isinstance(shown, UserCodeError) else getattr(shown, "fault", None)
    return found if isinstance(found, UserCodeError) else None


def guarded(policy: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same policy; where it is a function of the user's, what it raises says so."""
    if ":" not in name:
        return policy

    def call(observation: Any, rng: np.random.Generator) -> Any:
        try:
            return policy(observation, rng)
        except Exception as error:
            blame(error, f"policy {name}")
            raise

    return call


def close(env: Any, name: str, notice: Callable[[str], None] = warnings.warn) -> None:
    """Close an environment, or anything that has `close`; if that fails, say so: what was learned is not its fault."""
    try:
        env.close()
    except Exception as error:  # noqa: BLE001  # it is the user's code, and may raise anything
        notice(f"{name} could not be closed: {' '.join(str(error).split()) or type(error).__name__}")


def _home(env: Any, method: str) -> str:
    """Where the environment's method begins, unless it is built in."""
    function = getattr(type(env), method, None)
    try:
        path = inspect.getsourcefile(function)  # type: ignore[arg-type]
        _, line = inspect.getsourcelines(function)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""
    return f'  File "{path}", line {line}, in {type(env).__name__}.{method}'


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _several(answer: Any) -> str:
    if isinstance(answer, (tuple, list)):
        return f"{len(answer)} value{'' if len(answer) == 1 else 's'}"
    return _shown(answer)


def _ordinal(n: int) -> str:
    ending = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{ending}"


# --- what fits --------------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    """Whether it is one real number, of whatever library."""
    try:
        array = np.asarray(value)
    except Exception:  # noqa: BLE001  # whatever it is, it is no number
        return False
    return array.ndim == 0 and array.dtype.kind in "fiub"


def _is_flag(value: Any) -> bool:
    return type(value) in FLAGS or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind == "b")


def _fit(space: gym.Space[Any]) -> Callable[[Any], bool]:
    """A quick test of observations; what it refuses, `_misfit` can explain."""
    if isinstance(space, spaces.Box):
        shape, floats = space.shape, space.dtype.kind == "f"
        kinds = "fiub" if floats else space.dtype.kind

        def fits(observation: Any) -> bool:
            if type(observation) is np.ndarray and observation.shape == shape and observation.dtype.kind in kinds:
                return floats or observation.dtype == space.dtype or not _misfit("", space, observation)
            return not _misfit("", space, observation)

        return fits
    return lambda observation: not _misfit("", space, observation)


def _misfit(name: str, space: gym.Space[Any], observation: Any) -> str:
    """What is wrong with an observation of a space; empty if nothing is."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, dict) or set(observation) != set(space.spaces):
            return f"{name} is {_shown(observation)}; expected a dict of {', '.join(map(repr, space.spaces))}"
        parts = [(key, part, observation[key]) for key, part in space.spaces.items()]
        return next(filter(None, (_misfit(f"{name}, entry {key!r},", part, o) for key, part, o in parts)), "")
    if isinstance(space, spaces.Tuple):
        if not isinstance(observation, (tuple, list)) or len(observation) != len(space.spaces):
            return f"{name} is {_shown(observation)}; expected a tuple of {len(space.spaces)}"
        numbered = enumerate(zip(space.spaces, observation, strict=True))
        return next(filter(None, (_misfit(f"{name}, entry {i},", part, o) for i, (part, o) in numbered)), "")
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return "" if space.contains(observation) else f"{name} is {_shown(observation)}; expected one of {space}"
    try:
        array = np.asarray(observation)
    except Exception:  # noqa: BLE001  # rows of unequal length, or an object of another library
        return f"{name} is {_shown(observation)}; expected an array of shape {space.shape}"
    shape, dtype = space.shape or (), np.dtype(space.dtype)
    if array.dtype.kind not in "fiub":
        return f"{name} is {_shown(observation)}; expected {_expected(space)}"
    if array.shape != shape:
        return f"{name} has shape {array.shape}; expected {shape}, the shape of its space"
    if dtype.kind == "f":
        return ""
    if array.dtype.kind == "f":
        return f"{name} has dtype {array.dtype}; expected {dtype}, the dtype of its space"
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        start = np.asarray(space.start)
        low: Any = start
        high: Any = start + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1
    else:
        low, high = (0, 1) if dtype.kind == "b" or isinstance(space, spaces.MultiBinary) else _range(dtype)
    if not ((array >= low) & (array <= high)).all():
        return f"{name} is {_shown(observation)}; expected {_expected(space)}"
    return ""


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _expected(space: gym.Space[Any]) -> str:
    if isinstance(space, spaces.Discrete):
        return f"a whole number from {space.start} to {space.start + space.n - 1}"
    return f"an array of shape {space.shape} and dtype {space.dtype}"


def image_note(name: str, space: gym.Space[Any], n_inputs: int, hidden: tuple[int, ...]) -> str:
    """What becomes of an image in a dense network, and what to do."""
    what = f"arrays of shape {space.shape}" if isinstance(space, spaces.Box) else "images"
    weights = n_inputs * (hidden[0] if hidden else 1)
    return (
        f"{name}: observations are {what}, read as {n_inputs:,} numbers in a row by a dense network that knows nothing "
        f"of rows and columns: {weights:,} weights in its first layer. A wrapper that extracts features, or makes the "
        "picture smaller (gymnasium.wrappers.GrayscaleObservation, ResizeObservation), learns far more from each step"
    )


def is_image(space: gym.Space[Any]) -> bool:
    """Whether observations of a space hold something like an image: rows and columns of many numbers."""
    if isinstance(space, spaces.Dict):
        return any(map(is_image, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return any(map(is_image, space.spaces))
    return isinstance(space, spaces.Box) and len(space.shape) >= 2 and int(np.prod(space.shape)) >= MANY_INPUTS
