"""Learn the values of a policy in a Gymnasium environment, and say how good they are."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from agents import evaluation
from agents.console import announce_compile, console, errors_in_one_line, evaluation_table, progress_bar, training_bar
from agents.pictures import run_picture
from agents.training import Report, Run, Settings
from valueapprox.checkpoint import write_whole


@dataclass(frozen=True)
class Train:
    """Learn the state values of a fixed policy, from experience that Ray workers collect.

    Without options: TD(lambda) with a 4-64-1 network in CartPole-v1, for a policy that pushes towards the pole's lean
    and acts at random one time in ten. The run's log, checkpoint and picture lie in a folder of runs/. Ctrl-C saves.

    More examples:
      train.py --env MountainCar-v0 --policy random --workers 2
      train.py --env valueapprox/RandomWalk-v0 --agent td --lam 0.8 --hidden --no-bias --optimizer sgd --alpha 0.05
      train.py --resume runs/NAME [--steps MORE]
    """

    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    workers: int = 2
    """Ray workers that collect experience; 0 for none. Changes the speed and not the result."""
    ray_address: str | None = None
    """A Ray cluster: host:port, or auto. Without it, Ray is started on this machine."""
    run_dir: Path | None = None
    """Folder of the run; a new one in runs/ if not given."""
    resume: Path | None = None
    """Continue the run in this folder, bit for bit; of the other options only --steps may differ."""
    checkpoint_every: float = 30.0
    """Seconds between two checkpoints."""
    episodes: int = 200
    """Fresh episodes that the learned values are compared with at the end; 0 for none."""
    quiet: bool = False
    """No progress bar; the summary only."""


def main(options: Train) -> int:
    """Run and report; returns the exit code."""
    announce_compile()
    folder = options.resume or new_folder(options)
    run = Run(options.settings, folder, resume=options.resume is not None, notice=say)
    if run.step >= run.settings.steps:
        console.print(f"{folder} has learned its {run.step:,} steps; --steps MORE lets it go on.")
    settings = run.settings
    if not options.quiet:
        console.print(
            f"[bold]{settings.env}[/], policy {run.task.policy}"
            + (f" with {run.task.noise:.0%} random actions" if run.task.noise else "")
            + f", gamma {settings.gamma:g}: {describe(settings)}\n{run.value_function.net}"
        )
    with training_bar(options.quiet) as show:
        report = run.train(
            options.workers,
            ray_address=options.ray_address,
            checkpoint_every=options.checkpoint_every,
            progress=show,
        )
    summarise(run, report, options)
    return 130 if report.interrupted else 0


def new_folder(options: Train) -> Path:
    """Where a fresh run goes."""
    if options.run_dir is not None:
        return options.run_dir
    name = options.settings.env.replace("/", "-").replace(":", "-")
    return Path("runs") / f"{name}-{options.settings.agent}-{time.strftime('%Y%m%d-%H%M%S')}"


def describe(settings: Settings) -> str:
    """How it learns, in a few words."""
    how = {"td": f"TD({settings.lam:g})", "n-step": f"{settings.n}-step TD", "monte-carlo": "gradient Monte Carlo"}
    alphas = ", ".join(f"{a:g}" for a in settings.alpha)
    return f"{how[settings.agent]} with {settings.optimizer}, alpha {alphas}"


def say(sentence: str) -> None:
    """Print a notice."""
    console.print(f"[yellow]note:[/] {sentence}")


def summarise(run: Run, report: Report, options: Train) -> None:
    """How good the values are, where everything lies, and what to type next."""
    settings, folder = run.settings, report.folder
    summary: dict[str, object] = {"step": report.step, "seconds": report.seconds, "interrupted": report.interrupted}
    if not math.isnan(report.first_step_after):
        console.print(
            f"{'Interrupted after' if report.interrupted else 'Learned from'} {report.step:,} transitions in "
            f"{report.seconds:.1f} s (first learning step after {report.first_step_after:.1f} s)."
        )
    if report.value_error is not None:
        summary["rmsve"] = report.value_error
        console.print(f"Exact error against the true values: RMSVE [bold]{report.value_error:.4g}[/]")
    if options.episodes > 0 and not report.interrupted:
        with progress_bar("evaluating", options.episodes, options.quiet) as advance:
            try:
                result = evaluation.monte_carlo(
                    run.value_function, run.task, options.episodes, settings.seed, progress=advance
                )
            except ValueError as error:
                say(f"no evaluation: {error}")
            else:
                summary["monte_carlo"] = asdict(result)
                console.print(evaluation_table(result))
    write_whole(folder / "summary.json", lambda file: file.write(json.dumps(summary, indent=2).encode()))
    picture = run_picture(folder, f"{settings.env}: {describe(settings)}")
    console.print(f"\nLog and checkpoint  {folder}")
    if picture:
        console.print(f"Picture             {picture}")
    console.print("Look at it          make tensorboard")
    if report.interrupted:
        console.print(f"Continue            python scripts/train.py --resume {folder}")
    else:
        console.print(f"Evaluate again      python scripts/evaluate.py {folder} --episodes 1000")


def parse() -> Train:
    """The command line; on a resume, what it leaves out is what the run was started with."""
    options = tyro.cli(Train, description=Train.__doc__)
    if options.resume is None:
        return options
    return tyro.cli(Train, description=Train.__doc__, default=Train(settings=Run.stored_settings(options.resume)))


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(parse()))
