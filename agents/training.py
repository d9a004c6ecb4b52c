"""Runs from a few words: `train` in Python, and settings from a configuration file."""

from __future__ import annotations

import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox import checkpoint
from valueapprox.agents.batch_run import BatchRun, BatchSettings
from valueapprox.agents.callbacks import Callback
from valueapprox.agents.console import training_bar
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.run import KINDS, Run
from valueapprox.agents.trained import Trained, load
from valueapprox.checkpoint import CheckpointError
from valueapprox.checks import one_of
from valueapprox.cli.terminal import note
from valueapprox.files import folder_for

__all__ = ["kind_for", "kind_of", "read_config", "settings_from", "train"]


def kind_for(agent: str) -> type[Run[Any]]:
    """The kind of run that an agent is for."""
    kinds = {name: kind for kind in (PredictionRun, ControlRun, BatchRun) for name in kind.Settings.agents()}
    return kinds[one_of("agent", agent, kinds)]


def kind_of(path: Path) -> type[Run[Any]]:
    """The kind of run that a checkpoint file is of, or CheckpointError."""
    kind = checkpoint.load(path).meta.get("kind")
    try:
        return KINDS[one_of("kind", str(kind), KINDS)]
    except ValueError:
        raise CheckpointError(f"{path} is no checkpoint of a run (its kind is {kind})") from None


def settings_from(values: Mapping[str, Any]) -> PredictionSettings | ControlSettings | BatchSettings:
    """The settings of a run, whose agent is one of the values.

    Raises
    ------
    ValueError
        If one does not exist, or makes no sense.
    """
    settings = kind_for(values.get("agent", PredictionSettings.agent)).Settings
    known = settings.names(values.get("agent", settings.agent))
    example = settings(agent=values.get("agent", settings.agent))
    hints = _hints(typing.cast(Any, type(example)))
    for name, value in values.items():
        one_of("a setting", name, known)
        if (expected := _misfit(value, hints[name])) and not (name == "optimizer" and isinstance(value, dict)):
            raise ValueError(f"{name} is {value!r}; expected {expected}")
    made: PredictionSettings | ControlSettings | BatchSettings = settings.from_dict(values)
    made.check()
    return made


@cache
def _hints(settings: Any) -> dict[str, Any]:
    return typing.get_type_hints(settings)


def _misfit(value: Any, hint: Any) -> str:
    """What a value of this type would be, in words, if the value is none; otherwise nothing."""
    kinds, args = typing.get_origin(hint), typing.get_args(hint)
    if kinds in (typing.Union, types.UnionType):
        misfits = [_misfit(value, kind) for kind in args if kind is not type(None)]
        return "" if "" in misfits or value is None else misfits[0]
    if kinds is tuple:
        entries = value if isinstance(value, list | tuple | np.ndarray) else [value]
        misfits = [misfit for entry in entries if (misfit := _misfit(entry, args[0]))]
        return f"a list in which each entry is {misfits[0]}" if misfits else ""
    if hint is bool:
        return "" if isinstance(value, bool | np.bool_) else "true or false"
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, Real):
            return "a whole number" if hint is int else "a number"
        return "a whole number" if hint is int and value % 1 else ""
    if kinds is dict:
        return "" if isinstance(value, Mapping) else "names with their values"
    return "" if isinstance(value, str) else "a text"


def read_config(path: str | Path) -> dict[str, Any]:
    """What a configuration file sets: the settings.json of a run, or JSON or TOML with the same names.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        expected = "TOML" if path.suffix == ".toml" else "JSON (TOML has the suffix .toml)"
        raise ValueError(f"{path} cannot be read ({error}); expected {expected}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; expected names of settings with their values")
    return values


def train(
    env: str = "CartPole-v1",
    agent: str = "stream-ac",
    *,
    steps: int = 300_000,
    seed: int = 0,
    folder: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    episodes: int = 0,
    workers: int = 0,
    ray_address: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Trained:
    """Learn in an environment, and give back what was learned.

    The same settings as in the command `valueapprox train` give the same weights, bit for bit.

    Parameters
    ----------
    env
        Id of a Gymnasium environment, or module:Id.
    agent
        Who learns: stream-ac, stream-q, sarsa, ... learn to act; td, n-step and monte-carlo the values of a policy.
    steps, seed
        Transitions to learn from, and the seed of everything random.
    folder
        Of log, checkpoint and settings; a new one in runs/ if not given.
    callbacks
        Functions that are called with a `Point` at each point of the log, and can log, evaluate and stop: see
        `valueapprox.agents.callbacks`.
    episodes
        Fresh episodes of an evaluation at the end, which `report.evaluation` of the result has; 0 for none.
    workers, ray_address
        Ray workers that collect experience for td, n-step and monte-carlo, and where; 0 for none.
    progress
        Show a progress bar.
    **settings
        Further settings of the run: those of `ControlSettings` or `PredictionSettings`, and of the agent.

    Returns
    -------
    Trained
        With `value`, `act`, `evaluate`; its `report` says how the training ended.

    Raises
    ------
    ValueError
        If a setting does not exist, or makes no sense. Nothing has been written then.
    FileExistsError
        If the folder holds something.

    Examples
    --------
    >>> agent = train("CartPole-v1", "stream-ac", steps=100_000, callbacks=[stop_at_return(475)])
    >>> agent.evaluate(episodes=50).mean
    """
    if not isinstance(env, str):
        raise TypeError(
            f"env is {env!r}; expected the id of an environment, such as CartPole-v1: register your own with Gymnasium"
        )
    chosen = settings_from({"env": env, "agent": agent, "steps": steps, "seed": seed, **settings})
    name = f"{env.replace('/', '-').replace(':', '-')}-{agent}"
    with folder_for(None if folder is None else Path(folder), name) as place:
        run = kind_for(agent)(chosen, place, notice=note)
        with training_bar(not progress) as show:
            report = run.train(workers, ray_address=ray_address, callbacks=callbacks, episodes=episodes, progress=show)
        trained = load(place)
    trained.report = report
    return trained
