"""Learn in a Gymnasium environment, the values of a policy or how to act, and say how good the result is."""

from __future__ import annotations

import json
import math
import re
import sys
import typing
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

import valueapprox
from valueapprox.agents import evaluation, several, verdict
from valueapprox.agents.batch_run import BatchRun, BatchSettings
from valueapprox.agents.console import evaluation_table, returns_table, training_bar
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.evaluation import Recording
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.report import LAST_EPISODES, Report, read_episodes
from valueapprox.agents.run import CHECKPOINT_FILE, Run
from valueapprox.agents.sweeps import figures, sheets
from valueapprox.agents.sweeps.runs import table_of
from valueapprox.agents.training import kind_for, kind_of, read_config, settings_from
from valueapprox.checkpoint import write_whole
from valueapprox.checks import one_of, positive
from valueapprox.cli.charts import progress_bar, save_figure
from valueapprox.cli.pictures import control_picture, return_chart, run_picture
from valueapprox.cli.terminal import (
    announce_compile,
    command,
    command_line,
    console,
    errors_in_one_line,
    note,
    plain,
    typed,
)
from valueapprox.envs import WORLDS
from valueapprox.files import folder_for
from valueapprox.interrupts import PATIENCE
from valueapprox.telemetry import read_metrics


@dataclass(frozen=True)
class Common:
    """What every run of this command has."""

    settings: Any = None
    run_dir: Path | None = None
    """Folder of the run; a new one in runs/ if not given."""
    resume: Path | None = None
    """Continue the run in this folder, bit for bit; of the other options only --steps may differ."""
    config: Path | None = None
    """Settings from this file, such as the settings.json of another run, or TOML; options given here come first."""
    seeds: int = 1
    """Runs of as many seeds, counted from --seed, each by itself; a table and a picture compare them."""
    film: bool = True
    """Show a film of the final policy in TensorBoard, where the environment can be drawn."""
    checkpoint_every: float = 30.0
    """Seconds between two checkpoints."""
    patience: float = PATIENCE
    """Seconds after which an environment that does not come back ends the run, saved; 0 waits without end."""
    ray_address: str | None = None
    """A Ray cluster: host:port, or auto. Without it, Ray is started on this machine."""
    quiet: bool = False
    """No progress bar; the summary only."""


@dataclass(frozen=True)
class Train(Common):
    """Learn the state values of a fixed policy, from experience that Ray workers collect.

    Without options: TD(lambda) with a 4-64-1 network in CartPole-v1, for a policy that pushes towards the pole's lean
    and acts at random one time in ten. The run's log, checkpoint and picture lie in a folder of runs/. Ctrl-C saves.

    More examples:
      train.py --env MountainCar-v0 --policy random --workers 2
      train.py --env valueapprox/RandomWalk-v0 --agent td --lam 0.8 --hidden --no-bias --optimizer sgd --alpha 0.05
      train.py --resume runs/NAME [--steps MORE]
      train.py --config runs/NAME/settings.json --seeds 10

    An agent as the first word leaves the options of the others out:
      train.py n-step --help
    Agents that learn how to act (stream-ac, stream-q, sarsa, expected-sarsa, qrc) have options of their own:
      train.py --agent stream-ac --help
    """

    settings: tyro.conf.OmitArgPrefixes[PredictionSettings] = field(default_factory=PredictionSettings)
    workers: int = 2
    """Ray workers that collect experience, or among which --seeds are dealt; 0 for none. Changes the speed alone."""
    episodes: int = 200
    """Fresh episodes that the learned values are compared with at the end; 0 for none."""


@dataclass(frozen=True)
class Control(Common):
    """Learn to act in an environment, from each transition once: no replay, no target network, no batches.

    Without other options: actor-critic(lambda), two networks 4-32-32, in CartPole-v1. The run's log, episodes,
    checkpoint and picture lie in a folder of runs/. Ctrl-C saves.

    More examples:
      train.py --env CartPole-v1 --agent stream-ac --steps 300000 --seed 0
      train.py --env Acrobot-v1 --agent sarsa --optimizer adaptive_obgd --lam 0.9
      train.py --env valueapprox/Pendulum-v1 --agent stream-ac --steps 1000000
      train.py --agent stream-ac --eval-every 10000 --stop-at 475
      train.py --agent stream-ac --seeds 10
      train.py --resume runs/NAME [--steps MORE]

    An agent as the first word leaves the options of the others out:
      train.py stream-ac --help
    Agents that learn the values of a fixed policy (td, n-step, monte-carlo) have options of their own:
      train.py --agent td --help
    """

    settings: tyro.conf.OmitArgPrefixes[ControlSettings] = field(default_factory=ControlSettings)
    workers: int = 2
    """Ray workers among which --seeds are dealt; 0 for none. One run alone needs none."""
    episodes: int = 20
    """Fresh episodes, greedy and sampled, in which the agent is evaluated at the end; 0 for none."""


@dataclass(frozen=True)
class Batch(Common):
    """Learn to act from many environments at once: each rollout is learned from in minibatches.

    Without other options: PPO, two networks 4-64-64, in eight copies of CartPole-v1. The run's log, episodes,
    checkpoint and picture lie in a folder of runs/. Ctrl-C saves.

    More examples:
      train.py --env CartPole-v1 --agent ppo
      train.py --env valueapprox/Pendulum-v1 --agent ppo --gamma 0.9
      train.py --env HalfCheetah-v5 --agent ppo --workers 2
      train.py --agent ppo --eval-every 20000 --stop-at 475
      train.py --resume runs/NAME [--steps MORE] [--workers 4]

    An agent as the first word leaves the options of the others out:
      train.py ppo --help
    Agents that learn from one environment, each transition once, have options of their own:
      train.py --agent stream-ac --help
    """

    settings: tyro.conf.OmitArgPrefixes[BatchSettings] = field(default_factory=BatchSettings)
    workers: int = 0
    """Ray workers that collect rollouts, or among which --seeds are dealt; 0 for none. Changes the speed alone."""
    episodes: int = 20
    """Fresh episodes, greedy and sampled, in which the agent is evaluated at the end; 0 for none."""


Command = Train | Control | Batch

for kind in (Train, Control, Batch):
    worlds = ", ".join(sorted(env_id.removeprefix("valueapprox/") for env_id in WORLDS))
    kind.__doc__ = f"{kind.__doc__}\n    Compiled worlds, as valueapprox/NAME: {worlds}.\n    "


def main(options: Command) -> int:
    """Run and report; returns the exit code."""
    env = options.settings.env.replace("/", "-").replace(":", "-")
    with folder_for(options.resume or options.run_dir, f"{env}-{options.settings.agent}") as folder:
        announce_compile()
        if positive("seeds", options.seeds) > 1:
            return run_seeds(options, folder)
        run = kind_for(options.settings.agent)(options.settings, folder, resume=options.resume is not None, notice=note)
        if run.step >= run.settings.steps:
            console.print(f"{plain(folder)} has learned its {run.step:,} steps; --steps MORE lets it go on.")
        if not options.quiet:
            for line in described(run, options.settings.steps):
                console.print(line)
        with training_bar(options.quiet) as show:
            report = run.train(
                0 if isinstance(options, Control) else options.workers,
                ray_address=options.ray_address,
                checkpoint_every=options.checkpoint_every,
                patience=options.patience,
                episodes=options.episodes,
                recording=film_of(run) if options.film and options.episodes else None,
                command=typed(*sys.argv[0].split(" "), *sys.argv[1:]),
                progress=show,
            )
        summarise(run, report)
        return 128 + report.interrupted if report.interrupted else 0


def run_seeds(options: Command, folder: Path) -> int:
    """Runs of several seeds, and what they have in common."""
    if options.resume is not None:
        raise ValueError("resume goes with one run; to go on with several seeds, give the same --run-dir again")
    seeds = range(options.settings.seed, options.settings.seed + options.seeds)
    runs = several.seed_runs(options.settings, folder, seeds)
    if not options.quiet:
        console.print(f"{plain(folder)}: seeds {seeds[0]} to {seeds[-1]} of {describe(options.settings)}")
    with progress_bar("seeds", len(runs), options.quiet) as show:
        try:
            several.complete_all(runs, options.workers, options.ray_address, options.episodes, show)
        except KeyboardInterrupt:
            note(f"interrupted; the same command with {typed('--run-dir', folder)} does what is missing")
            return 130
    table = table_of([folder])
    for sheet in sheets.overview(table):
        sheets.show(sheet)
    console.print(f"Runs     {plain(folder)}")
    if (figure := figures.curves(table.groups())) is not None:
        save_figure(figure, folder / "seeds.png")
        console.print(f"Picture  {plain(folder / 'seeds.png')}")
    console.print(f"Report   {plain(command('report.py', folder))}")
    return 0


def film_of(run: Run[Any]) -> Recording | None:
    """What records the first steps of an episode at the end, where the environment can be drawn."""
    if not (isinstance(run, ControlRun | BatchRun) and evaluation.can_be_drawn(run.env, run.settings)):
        return None
    return Recording(max_frames=200, every=2)


def described(run: Run[Any], asked: int) -> list[str]:
    """What is about to be learned, in how many steps if it was asked for others, and with which networks."""
    settings = run.settings
    head = f"[bold]{plain(settings.env)}[/]"
    if isinstance(run, PredictionRun):
        task = run.task
        noise = f" with {task.noise:.0%} random actions" if task.noise else ""
        head += f", policy {plain(task.policy)}{noise}"
        nets = [str(run.value_function.net)]
    else:
        assert isinstance(run, ControlRun | BatchRun)
        nets = [f"{name}: {learner.net}" for name, learner in run.agent.networks().items()]
        if isinstance(run, BatchRun) and run.settings.steps != asked:
            nets.append(f"{asked:,} steps are rounded up to {settings.steps:,}: a rollout has {run.settings.round:,}")
    return [f"{head}, gamma {settings.gamma:g}: {describe(settings)}", *nets]


def describe(settings: PredictionSettings | ControlSettings | BatchSettings) -> str:
    """How it learns, in a few words."""
    if isinstance(settings, BatchSettings):
        made = settings.make_optimizer()
        return f"{settings.agent} in {settings.envs} environments, with {type(made).__name__}, alpha {made.alpha:g}"
    if isinstance(settings, ControlSettings):
        alpha = "" if settings.alpha is None else f", alpha {settings.alpha:g}"
        optimizer = type(settings.make_optimizer()).__name__
        return f"{settings.agent}, lambda {settings.lam:g}, with {optimizer}{alpha}"
    own = "".join(f", {name} {value:g}" for name, value in settings.own().items())
    alphas = ", ".join(f"{a:g}" for a in settings.alpha)
    return f"{settings.agent}{own}, with {settings.optimizer}, alpha {alphas}"


def summarise(run: Run[Any], report: Report) -> None:
    """How good it is and what that means, where everything lies, and what to type next."""
    settings, folder = run.settings, report.folder
    if report.stopped:
        console.print(f"Ended at step {report.step:,}: {plain(report.stopped)}.")
    if not math.isnan(report.first_step_after):
        of = f" in {report.n_episodes:,} episodes" if report.n_episodes is not None else ""
        console.print(
            f"{'Interrupted after' if report.interrupted else 'Learned from'} {report.step:,} transitions{of} "
            f"({report.seconds:.1f} s, {report.steps_per_second:,.0f} steps/s; first learning step after "
            f"{report.first_step_after:.1f} s)."
        )
    summary: dict[str, Any] = {"step": report.step, "seconds": report.seconds, "interrupted": report.interrupted > 0}
    summary |= {"stopped": report.stopped, "version": valueapprox.__version__}
    title = f"{settings.env}: {describe(settings)}"
    if run.lists_episodes:
        episodes = read_episodes(folder)
        sentences, picture = show_returns(run, report, episodes, summary), control_picture(folder, title, episodes)
        again = ["--episodes", 50, "--gif", folder / "run.gif"]
    else:
        sentences, picture = show_values(run, report, summary), run_picture(folder, title)
        again = ["--episodes", 1000]
    for sentence in sentences:
        console.print(plain(sentence))
    summary["verdict"] = sentences
    write_whole(folder / "summary.json", lambda file: file.write(json.dumps(summary, indent=2).encode()))
    where_it_lies(folder, picture, report.interrupted > 0, *again)


def show_values(run: Run[Any], report: Report, summary: dict[str, Any]) -> list[str]:
    """How good the values are, and in words."""
    if report.value_error is not None:
        summary["rmsve"] = report.value_error
        console.print(f"Exact error against the true values: RMSVE [bold]{report.value_error:.4g}[/]")
    result: Any = report.evaluation.get("")
    if result is not None:
        summary["monte_carlo"] = asdict(result)
        console.print(evaluation_table(result))
    return verdict.of_values(result, read_metrics(report.folder))


def show_returns(run: Run[Any], report: Report, episodes: list[dict[str, Any]], summary: dict[str, Any]) -> list[str]:
    """How well the agent acts, with the training curve, and in words."""
    summary |= {"n_episodes": len(episodes), "mean_return_last_100": report.mean_return}
    chart = return_chart(episodes, report.step, plain=not console.is_terminal)
    if chart:
        console.print(f"\nReturn of an episode\n{chart}\n")
    if report.mean_return is not None:
        n = min(LAST_EPISODES, len(episodes))
        console.print(f"Mean return of the last {n} episodes, while learning: [bold]{report.mean_return:,.5g}[/]")
    results: Any = report.evaluation
    if results:
        summary["evaluation"] = {name: asdict(result) for name, result in results.items()}
        console.print(returns_table(results))
    return verdict.of_returns(run.settings, report.step, episodes, results)


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
    rows += [("Use it in Python", plain(f"valueapprox.load({str(folder)!r})"))]
    console.print()
    for what, text in rows:
        if text:
            console.print(f"{what:<20}{text}")


COMMANDS: dict[str, type[Command]] = {
    **dict.fromkeys(PredictionSettings.agents(), Train),
    **dict.fromkeys(ControlSettings.agents(), Control),
    **dict.fromkeys(BatchSettings.agents(), Batch),
}


SETTINGS: dict[type[Command], Any] = {Train: PredictionSettings, Control: ControlSettings, Batch: BatchSettings}


def words() -> dict[str, type[Command]]:
    """What may stand before all options: an agent, with the options that mean something to it."""
    return {agent: options_of(agent, hide_agent=True) for agent in COMMANDS}


def options_of(agent: str, hide_agent: bool = False, stored: Any = None) -> type[Any]:
    """The options of a run of an agent: those of all runs, and its own.

    Defaults are those of a run that is resumed, if its settings are given.
    """
    cls = COMMANDS[one_of("agent", agent, COMMANDS)]
    kind: Any = SETTINGS[cls]
    known = kind(agent=agent) if stored is None else stored
    settings = type(known)
    hints = typing.get_type_hints(settings, include_extras=True)
    unseen = [*(["agent"] if hide_agent else []), *kind.of_others(agent)] if stored is None else []
    names = [f.name for f in fields(settings)] if stored is not None else sorted({"agent", *unseen})
    changed = []
    for name in names:
        hint = Annotated[hints[name], tyro.conf.Fixed, tyro.conf.Suppress] if name in unseen else hints[name]
        changed.append((name, hint, field(default_factory=partial(getattr, known, name))))
    own: Any = make_dataclass(kind.__name__, changed, bases=(settings,), frozen=True, eq=False)
    held = ("settings", Annotated[own, tyro.conf.OmitArgPrefixes], field(default_factory=own))
    return make_dataclass(cls.__name__, [held], bases=(cls,), frozen=True, namespace={"__doc__": cls.__doc__})


def parse(arguments: list[str]) -> Command:
    """The command line; on a resume, what it leaves out is what the run was started with."""
    resume, agent, rest = _value("--resume", arguments), _value("--agent", arguments), arguments
    word = bool(arguments) and not arguments[0].startswith("-")
    if word:
        agent, *rest = arguments
    stored = None
    config = _value("--config", arguments)
    if resume is not None and config is not None:
        raise ValueError(f"config is {config}; expected nothing with --resume, as a run knows its settings")
    if (resume is not None or config is not None) and not _asks_for_help(arguments):
        if resume is not None:
            stored = kind_of(Path(resume) / CHECKPOINT_FILE).stored_settings(resume)
        else:
            stored = settings_from(read_config(str(config)))
        if word:
            rest = ["--agent", str(agent), *rest]
        agent = stored.agent
    agent = one_of("agent", agent or "td", COMMANDS)
    cls = options_of(agent, word and stored is None, stored)
    others = {("" if word else "--agent ") + name: options_of(name) for name in COMMANDS if name != agent}
    options = command_line(cls, rest, others=others)
    kind: Any = SETTINGS[COMMANDS[agent]]
    settings = kind.from_dict({f.name: getattr(options.settings, f.name) for f in fields(options.settings)})
    return typing.cast(Any, replace(options, settings=settings))


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
