"""Learn in a Gymnasium environment, the values of a policy or how to act, and say how good the result is."""

from __future__ import annotations

import json
import math
import re
import sys
import typing
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from valueapprox import checkpoint
from valueapprox.agents import evaluation
from valueapprox.agents.console import (
    announce_compile,
    command,
    command_line,
    console,
    control_bar,
    errors_in_one_line,
    evaluation_table,
    note,
    plain,
    progress_bar,
    returns_table,
    training_bar,
    typed,
)
from valueapprox.agents.control_evaluation import Returns, evaluate
from valueapprox.agents.control_training import AGENTS, KIND, ControlReport, ControlRun, ControlSettings, read_episodes
from valueapprox.agents.training import CHECKPOINT_FILE, Report, Run, Settings
from valueapprox.checkpoint import write_whole
from valueapprox.checks import one_of
from valueapprox.cli.pictures import control_picture, return_chart, run_picture
from valueapprox.envs import WORLDS
from valueapprox.files import folder_for
from valueapprox.interrupts import PATIENCE

PREDICTION = ("td", "n-step", "monte-carlo")


@dataclass(frozen=True)
class Train:
    """Learn the state values of a fixed policy, from experience that Ray workers collect.

    Without options: TD(lambda) with a 4-64-1 network in CartPole-v1, for a policy that pushes towards the pole's lean
    and acts at random one time in ten. The run's log, checkpoint and picture lie in a folder of runs/. Ctrl-C saves.

    More examples:
      train.py --env MountainCar-v0 --policy random --workers 2
      train.py --env valueapprox/RandomWalk-v0 --agent td --lam 0.8 --hidden --no-bias --optimizer sgd --alpha 0.05
      train.py --resume runs/NAME [--steps MORE]

    An agent as the first word leaves the options of the others out:
      train.py n-step --help
    Agents that learn how to act (stream-ac, stream-q, sarsa, expected-sarsa, qrc) have options of their own:
      train.py --agent stream-ac --help
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
    patience: float = PATIENCE
    """Seconds after which an environment that does not come back ends the run, saved; 0 waits without end."""
    episodes: int = 200
    """Fresh episodes that the learned values are compared with at the end; 0 for none."""
    quiet: bool = False
    """No progress bar; the summary only."""


@dataclass(frozen=True)
class Control:
    """Learn to act in an environment, from each transition once: no replay, no target network, no batches.

    Without other options: actor-critic(lambda), two networks 4-32-32, in CartPole-v1. The run's log, episodes,
    checkpoint and picture lie in a folder of runs/. Ctrl-C saves.

    More examples:
      train.py --env CartPole-v1 --agent stream-ac --steps 300000 --seed 0
      train.py --env Acrobot-v1 --agent sarsa --optimizer adaptive_obgd --lam 0.9
      train.py --env valueapprox/Pendulum-v1 --agent stream-ac --steps 1000000
      train.py --resume runs/NAME [--steps MORE]

    An agent as the first word leaves the options of the others out:
      train.py stream-ac --help
    Agents that learn the values of a fixed policy (td, n-step, monte-carlo) have options of their own:
      train.py --agent td --help
    """

    settings: tyro.conf.OmitArgPrefixes[ControlSettings] = field(default_factory=ControlSettings)
    run_dir: Path | None = None
    """Folder of the run; a new one in runs/ if not given."""
    resume: Path | None = None
    """Continue the run in this folder, bit for bit; of the other options only --steps may differ."""
    checkpoint_every: float = 30.0
    """Seconds between two checkpoints."""
    patience: float = PATIENCE
    """Seconds after which an environment that does not come back ends the run, saved; 0 waits without end."""
    episodes: int = 20
    """Fresh episodes, greedy and sampled, in which the agent is evaluated at the end; 0 for none."""
    quiet: bool = False
    """No progress bar; the summary only."""


for kind in (Train, Control):
    worlds = ", ".join(sorted(env_id.removeprefix("valueapprox/") for env_id in WORLDS))
    kind.__doc__ = f"{kind.__doc__}\n    Compiled worlds, as valueapprox/NAME: {worlds}.\n    "


def main(options: Train | Control) -> int:
    """Run and report; returns the exit code."""
    env = options.settings.env.replace("/", "-").replace(":", "-")
    with folder_for(options.resume or options.run_dir, f"{env}-{options.settings.agent}") as folder:
        return predict(options, folder) if isinstance(options, Train) else control(options, folder)


def predict(options: Train, folder: Path) -> int:
    """Learn the values of a policy."""
    announce_compile()
    run = Run(options.settings, folder, resume=options.resume is not None, notice=note)
    if run.step >= run.settings.steps:
        console.print(f"{plain(folder)} has learned its {run.step:,} steps; --steps MORE lets it go on.")
    settings = run.settings
    if not options.quiet:
        console.print(
            f"[bold]{plain(settings.env)}[/], policy {plain(run.task.policy)}"
            + (f" with {run.task.noise:.0%} random actions" if run.task.noise else "")
            + f", gamma {settings.gamma:g}: {describe(settings)}\n{run.value_function.net}"
        )
    with training_bar(options.quiet) as show:
        report = run.train(
            options.workers,
            ray_address=options.ray_address,
            checkpoint_every=options.checkpoint_every,
            patience=options.patience,
            progress=show,
        )
    summarise(run, report, options)
    return 128 + report.interrupted if report.interrupted else 0


def control(options: Control, folder: Path) -> int:
    """Learn to act."""
    announce_compile()
    run = ControlRun(options.settings, folder, resume=options.resume is not None, notice=note)
    settings = run.settings
    if run.step >= settings.steps:
        console.print(f"{plain(folder)} has learned its {run.step:,} steps; --steps MORE lets it go on.")
    if not options.quiet:
        console.print(f"[bold]{plain(settings.env)}[/], gamma {settings.gamma:g}: {describe_control(settings)}")
        for name, learner in ((run.agent.name, run.agent.first), (run.agent.second_name, run.agent.second)):
            if name:
                console.print(f"{name}: {learner.net}")
    with control_bar(options.quiet) as show:
        report = run.train(checkpoint_every=options.checkpoint_every, patience=options.patience, progress=show)
    summarise_control(run, report, options)
    return 128 + report.interrupted if report.interrupted else 0


def describe(settings: Settings) -> str:
    """How it learns, in a few words."""
    how = {"td": f"TD({settings.lam:g})", "n-step": f"{settings.n}-step TD", "monte-carlo": "gradient Monte Carlo"}
    alphas = ", ".join(f"{a:g}" for a in settings.alpha)
    return f"{how[settings.agent]} with {settings.optimizer}, alpha {alphas}"


def describe_control(settings: ControlSettings) -> str:
    """How it learns, in a few words."""
    alpha = "" if settings.alpha is None else f", alpha {settings.alpha:g}"
    optimizer = type(settings.make_optimizer()).__name__
    return f"{settings.agent}, lambda {settings.lam:g}, with {optimizer}{alpha}"


def summarise(run: Run, report: Report, options: Train) -> None:
    """How good the values are, where everything lies, and what to type next."""
    settings, folder = run.settings, report.folder
    summary: dict[str, object] = {"step": report.step, "seconds": report.seconds, "interrupted": report.interrupted > 0}
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
                    run.value_function, run.task, options.episodes, settings.seed, progress=advance, notice=note
                )
            except ValueError as error:
                note(f"no evaluation: {error}")
            else:
                summary["monte_carlo"] = asdict(result)
                console.print(evaluation_table(result))
    write_whole(folder / "summary.json", lambda file: file.write(json.dumps(summary, indent=2).encode()))
    picture = run_picture(folder, f"{settings.env}: {describe(settings)}")
    where_it_lies(folder, picture, report.interrupted > 0, "--episodes", 1000)


def summarise_control(run: ControlRun, report: ControlReport, options: Control) -> None:
    """How well it acts, the training curve, where everything lies, and what to type next."""
    settings, folder = run.settings, report.folder
    episodes = read_episodes(folder)
    summary: dict[str, object] = {
        "step": report.step,
        "seconds": report.seconds,
        "interrupted": report.interrupted > 0,
        "n_episodes": report.n_episodes,
        "mean_return_last_100": report.mean_return,
    }
    if report.seconds > 0 and report.steps_per_second > 0:
        console.print(
            f"{'Interrupted after' if report.interrupted else 'Learned from'} {report.step:,} transitions in "
            f"{report.n_episodes:,} episodes ({report.seconds:.1f} s, {report.steps_per_second:,.0f} steps/s)."
        )
    chart = return_chart(episodes, report.step, plain=not console.is_terminal)
    if chart:
        console.print(f"\nReturn of an episode\n{chart}\n")
    if report.mean_return is not None:
        n = min(100, report.n_episodes)
        console.print(f"Mean return of the last {n} episodes, while learning: [bold]{report.mean_return:,.5g}[/]")
    if options.episodes > 0 and not report.interrupted:
        results: dict[str, Returns] = {}
        for name in ("greedy", "sampled"):
            with progress_bar(f"evaluating, {name}", options.episodes, options.quiet) as advance:
                results[name] = evaluate(
                    run.agent, settings, options.episodes, greedy=name == "greedy", progress=advance, notice=note
                )
        summary["evaluation"] = {name: asdict(result) for name, result in results.items()}
        console.print(returns_table(results))
    write_whole(folder / "summary.json", lambda file: file.write(json.dumps(summary, indent=2).encode()))
    picture = control_picture(folder, f"{settings.env}: {describe_control(settings)}", episodes)
    where_it_lies(folder, picture, report.interrupted > 0, "--episodes", 50, "--gif", folder / "run.gif")


def where_it_lies(folder: Path, picture: Path | None, interrupted: bool, *again: object) -> None:
    """What the run has left, and what to type next."""
    in_runs = Path("Makefile").exists() and folder.resolve().is_relative_to(Path("runs").resolve())
    rows = [("Log and checkpoint", plain(folder)), ("Picture", plain(picture) if picture else "")]
    rows += [("Look at it", "make tensorboard" if in_runs else plain(typed("tensorboard", "--logdir", folder)))]
    rows += [
        ("Continue", plain(command("train.py", "--resume", folder)))
        if interrupted
        else ("Evaluate again", plain(command("evaluate.py", folder, *again)))
    ]
    console.print()
    for what, text in rows:
        if text:
            console.print(f"{what:<20}{text}")


def words() -> dict[str, type[Train] | type[Control]]:
    """What may stand before all options: an agent, with the options that mean something to it."""
    return {agent: _of(Train, agent) for agent in PREDICTION} | {agent: _of(Control, agent) for agent in AGENTS}


def _of(cls: type[Any], agent: str) -> type[Any]:
    """The options of a run without those that mean nothing to an agent."""
    settings = type(cls().settings)
    hints = typing.get_type_hints(settings, include_extras=True)
    left_out = ("agent", *settings.of_others(agent))
    defaults = {f.name: agent if f.name == "agent" else f.default for f in fields(settings)}
    unseen = [
        (name, Annotated[hints[name], tyro.conf.Fixed, tyro.conf.Suppress], field(default=defaults[name]))
        for name in left_out
    ]
    own: Any = make_dataclass(settings.__name__, unseen, bases=(settings,), frozen=True, eq=False)
    held = ("settings", Annotated[own, tyro.conf.OmitArgPrefixes], field(default_factory=own))
    return make_dataclass(cls.__name__, [held], bases=(cls,), frozen=True, namespace={"__doc__": cls.__doc__})


def parse(arguments: list[str]) -> Train | Control:
    """The command line; on a resume, what it leaves out is what the run was started with."""
    resume, agent = _value("--resume", arguments), _value("--agent", arguments)
    if arguments and not arguments[0].startswith("-"):
        agent, *rest = arguments
        cls = words()[one_of("agent", agent, (*PREDICTION, *AGENTS))]
        if resume is None or _asks_for_help(arguments):
            options: Any = command_line(cls, rest, others={"other agents": Control if agent in AGENTS else Train})
            settings = Settings if agent in PREDICTION else ControlSettings
            known = {f.name: getattr(options.settings, f.name) for f in fields(settings)}
            return replace(options, settings=settings(**known))
        arguments = ["--agent", agent, *rest]
    if resume is not None and not _asks_for_help(arguments):
        meta = checkpoint.load(Path(resume) / CHECKPOINT_FILE).meta
        if meta.get("kind") == KIND:
            stored = Control(settings=ControlRun.stored_settings(resume))
            return command_line(Control, arguments, default=stored)
        default = Train(settings=Run.stored_settings(resume))
        return command_line(Train, arguments, default=default)
    if agent is not None and one_of("agent", agent, (*PREDICTION, *AGENTS)) in AGENTS:
        return command_line(Control, arguments, others={"--agent td": Train})
    return command_line(Train, arguments, others={"--agent stream-ac": Control})


def _value(option: str, arguments: list[str]) -> str | None:
    """What an option is given on the command line, before it is parsed."""
    for i, argument in enumerate(arguments):
        if argument == option:
            return arguments[i + 1] if i + 1 < len(arguments) else None
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _asks_for_help(arguments: list[str]) -> bool:
    return any(re.fullmatch(r"-h|-H|--help(-verbose)?", argument) for argument in arguments)


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(parse(sys.argv[1:])))
