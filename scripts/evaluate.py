"""Compare a run's learned values with fresh Monte Carlo returns, and with the truth where it is known."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from agents import evaluation
from agents.console import announce_compile, console, errors_in_one_line, evaluation_table, progress_bar
from agents.training import CHECKPOINT_FILE, Settings
from valueapprox import CheckpointError, ValueFunction, checkpoint


@dataclass(frozen=True)
class Evaluate:
    """Run fresh episodes of the run's policy and compare their returns with the values that it learned.

    Example: evaluate.py runs/NAME --episodes 1000
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run, or its checkpoint file."""
    episodes: int = 200
    """Fresh episodes."""
    seed: int = 1
    """Of the fresh episodes; training streams are never touched."""
    json: bool = False
    """Print the numbers as JSON and nothing else."""


def main(options: Evaluate) -> int:
    """Evaluate and print; returns the exit code."""
    path = options.run / CHECKPOINT_FILE if options.run.is_dir() or not options.run.suffix else options.run
    meta = checkpoint.load(path).meta
    if meta.get("kind") != "prediction":
        raise CheckpointError(f"{path} is no checkpoint of a prediction run")
    value_function, settings = ValueFunction.load(path), Settings.from_dict(meta["settings"])
    task = settings.task()
    if not options.json:
        announce_compile()
    with progress_bar("evaluating", options.episodes, options.json) as advance:
        result = evaluation.monte_carlo(value_function, task, options.episodes, options.seed, progress=advance)
    known = evaluation.truth(task, settings.gamma)
    rmsve = None if known is None else evaluation.rmsve(value_function, known)
    if options.json:
        print(json.dumps({"step": meta["step"], "rmsve": rmsve, "monte_carlo": asdict(result)}))
        return 0
    console.print(f"{settings.env}, policy {task.policy}, after {meta['step']:,} transitions")
    console.print(evaluation_table(result))
    if rmsve is not None:
        console.print(f"Exact error against the true values: RMSVE [bold]{rmsve:.4g}[/]")
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(tyro.cli(Evaluate, description=Evaluate.__doc__)))
