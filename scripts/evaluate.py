"""How good is what a run learned? Values against fresh Monte Carlo returns and the truth, agents by their returns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from valueapprox import ValueFunction, checkpoint
from valueapprox.agents import evaluation
from valueapprox.agents.console import evaluation_table, returns_table
from valueapprox.agents.prediction_run import PredictionSettings
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.agents.training import kind_of
from valueapprox.cli.charts import progress_bar
from valueapprox.cli.terminal import announce_compile, command_line, console, errors, errors_in_one_line, note, plain


@dataclass(frozen=True)
class Evaluate:
    """Evaluate what a run has learned, in fresh episodes.

    Of a prediction run: learned values against the returns of its policy. Of a control run: returns of its agent,
    which learns nothing here.

    For example:
      evaluate.py runs/NAME --episodes 1000
      evaluate.py runs/NAME --episodes 50 --gif run.gif
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run, or its checkpoint file."""
    episodes: int = 200
    """Fresh episodes."""
    seed: int = 1
    """Of the fresh episodes; training streams are never touched."""
    json: bool = False
    """Print the numbers as JSON and nothing else."""
    sampled: bool = False
    """Control: draw actions as while learning, instead of taking the best one."""
    gif: Path | None = None
    """Control: write the first episode to this file, as an animation."""


def main(options: Evaluate) -> int:
    """Evaluate and print; returns the exit code."""
    path = options.run / CHECKPOINT_FILE if options.run.is_dir() or not options.run.suffix else options.run
    meta = checkpoint.load(path).meta
    kind: Any = kind_of(path)
    if kind.lists_episodes:
        return evaluate_control(options, path, meta, kind)
    if options.gif is not None or options.sampled:
        raise ValueError(f"--gif and --sampled are for control runs; {path} is of a prediction run")
    return evaluate_prediction(options, path, meta)


def evaluate_prediction(options: Evaluate, path: Path, meta: dict[str, Any]) -> int:
    """Learned values against returns."""
    value_function, settings = ValueFunction.load(path), PredictionSettings.from_dict(meta["settings"])
    task = settings.task()
    announce_compile(errors if options.json else console)
    with progress_bar("evaluating", options.episodes, options.json) as advance:
        result = evaluation.monte_carlo(
            value_function, task, options.episodes, options.seed, progress=advance, notice=noted(options)
        )
    known = evaluation.truth(task, settings.gamma)
    rmsve = None if known is None else evaluation.rmsve(value_function, known)
    if options.json:
        print(json.dumps({"step": meta["step"], "rmsve": rmsve, "monte_carlo": asdict(result)}))
        return 0
    console.print(f"{plain(settings.env)}, policy {plain(task.policy)}, after {meta['step']:,} transitions")
    console.print(evaluation_table(result))
    if rmsve is not None:
        console.print(f"Exact error against the true values: RMSVE [bold]{rmsve:.4g}[/]")
    return 0


def evaluate_control(options: Evaluate, path: Path, meta: dict[str, Any], kind: Any) -> int:
    """Returns of the agent, and its picture."""
    if options.gif is not None:
        check_gif(options.gif)
    agent, settings = kind.load_agent(path, noted(options))
    announce_compile(errors if options.json else console)
    actions = "sampled" if options.sampled else "greedy"
    recording = None if options.gif is None else evaluation.Recording()
    with progress_bar("evaluating", options.episodes, options.json) as advance:
        result = evaluation.evaluate(
            agent, settings, options.episodes, options.seed,
            greedy=not options.sampled, recording=recording, progress=advance, notice=noted(options),
        )  # fmt: skip
    if recording is not None and options.gif is not None:
        recording.write(options.gif)
    if options.json:
        print(json.dumps({"step": meta["step"], "actions": actions, "returns": asdict(result)}))
        return 0
    console.print(f"{plain(settings.env)}, {settings.agent}, after {meta['step']:,} transitions")
    console.print(returns_table({actions: result}))
    if options.gif is not None:
        console.print(f"The first episode  {plain(options.gif)}")
    return 0


def noted(options: Evaluate) -> Callable[[object], None]:
    """Where notes go: not among the numbers that a program reads."""
    return partial(note, where=errors if options.json else console)


def check_gif(path: Path) -> None:
    """Raise an error before anything is run if no animation can be written there."""
    if path.suffix.lower() != ".gif":
        raise ValueError(f"--gif is {path}; expected a name that ends in .gif: no other kind of recording is written")
    if path.is_dir():
        raise ValueError(f"--gif is {path}; expected the name of a file, and that is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"--gif is {path}; expected a place in a folder that exists: there is no folder {path.parent}"
        )


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Evaluate)))
