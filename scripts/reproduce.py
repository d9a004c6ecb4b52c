"""Learning results over seeds: the tables and picture of docs/results.md, each number by one command."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from valueapprox.agents.control_run import ControlSettings
from valueapprox.agents.settings import RunSettings
from valueapprox.agents.several import LATEST, complete, draw_seeds
from valueapprox.agents.training import kind_for, settings_from
from valueapprox.checkpoint import write_whole
from valueapprox.checks import one_of, positive
from valueapprox.cli.charts import new_figure, print_wide, progress_bar, save_figure
from valueapprox.cli.pictures import POINTS, mean_returns, steps_axis
from valueapprox.cli.terminal import announce_compile, command_line, console, errors_in_one_line, plain
from valueapprox.envs import compiled_world
from valueapprox.statistics import Estimate, interval_of_mean


@dataclass(frozen=True)
class Experiment:
    """One setting, over seeds."""

    settings: RunSettings
    marks: tuple[int, ...]
    """Steps at which it is read."""
    published: str = ""
    """What the published code reaches there."""
    stuck: float = -math.inf
    """A seed that has not come above this return has not found the goal."""

    @property
    def seeds(self) -> range:
        """The seeds it is run with unless others are given: more where the compiled world makes them cheap."""
        streams = isinstance(self.settings, ControlSettings)
        return range(30 if compiled_world(self.settings.env) and streams else 10)

    def command(self) -> str:
        """How to run one seed of it by hand."""
        fresh, words = type(self.settings)(agent=self.settings.agent), []
        for name, value in asdict(self.settings).items():
            if value == getattr(fresh, name) and name not in ("env", "agent", "steps"):
                continue
            option = f"--{name.replace('_', '-')}"
            if isinstance(value, dict):
                words += [option, *(str(word) for pair in value.items() for word in pair)]
            elif isinstance(value, bool):
                words.append(option if value else f"--no-{option[2:]}")
            else:
                words += [option, *(map(str, value) if isinstance(value, tuple) else (str(value),))]
        return " ".join(["python scripts/train.py", *words])


def experiment(
    env: str,
    agent: str,
    steps: int,
    marks: tuple[int, ...],
    published: str = "",
    stuck: float = -math.inf,
    **own: Any,
) -> Experiment:
    """One with the defaults of `train.py` but for what is given."""
    settings = settings_from({"env": env, "agent": agent, "steps": steps, **own})
    return Experiment(settings, marks, published, stuck)


#: PPO's settings for all of MuJoCo: CleanRL's.
MUJOCO: dict[str, Any] = {"envs": 1, "rollout": 2048}

EXPERIMENTS = {
    "cartpole": experiment("valueapprox/CartPole-v1", "stream-ac", 150_000, (20_000, 75_000, 150_000), "330 | | 480"),
    "cartpole-q": experiment("valueapprox/CartPole-v1", "stream-q", 150_000, (75_000, 150_000), "440, 1 of 4 stuck |"),
    "acrobot": experiment("valueapprox/Acrobot-v1", "stream-ac", 150_000, (50_000, 150_000), "-97 | -90", -300.0),
    "mountaincar": experiment("valueapprox/MountainCar-v0", "stream-ac", 200_000, (50_000, 200_000), "", -199.99),
    "lunarlander": experiment("LunarLander-v3", "stream-ac", 500_000, (200_000, 500_000), "50 |", hidden=(128, 128)),
    "halfcheetah": experiment(
        "HalfCheetah-v5", "stream-ac", 1_000_000, (500_000, 1_000_000), "| 2,750", hidden=(128, 128)
    ),
    "hopper": experiment("Hopper-v5", "stream-ac", 1_000_000, (500_000, 1_000_000), hidden=(128, 128)),
    "breakout": experiment("MinAtar/Breakout-v1", "stream-q", 1_000_000, (500_000, 1_000_000)),
    "ppo-cartpole": experiment("valueapprox/CartPole-v1", "ppo", 500_000, (100_000, 500_000), "| 490"),
    "ppo-acrobot": experiment("valueapprox/Acrobot-v1", "ppo", 500_000, (100_000, 500_000), "| -86"),
    "ppo-lunarlander": experiment("LunarLander-v3", "ppo", 300_000, (300_000,), "183"),
    "pqn-cartpole": experiment("valueapprox/CartPole-v1", "pqn", 500_000, (500_000,), "495"),
    "pqn-acrobot": experiment("valueapprox/Acrobot-v1", "pqn", 500_000, (500_000,), "-96"),
    "a2c-cartpole": experiment("valueapprox/CartPole-v1", "a2c", 500_000, (100_000, 500_000)),
    "impala-cartpole": experiment("valueapprox/CartPole-v1", "impala", 500_000, (100_000, 500_000)),
    "dqn-cartpole": experiment("valueapprox/CartPole-v1", "dqn", 100_000, (100_000,)),
    "ppo-halfcheetah": experiment("HalfCheetah-v5", "ppo", 1_000_000, (1_000_000,), "1,443", **MUJOCO),
    "ppo-hopper": experiment("Hopper-v5", "ppo", 1_000_000, (1_000_000,), "2,383", **MUJOCO),
    "ppo-walker2d": experiment("Walker2d-v5", "ppo", 1_000_000, (1_000_000,), "2,288", **MUJOCO),
    "expected-sarsa-replay": experiment(
        *("LunarLander-v3", "expected-sarsa-replay", 150_000, (150_000,), "24 to 210"),
        env_args={"max_episode_steps": "500"},
    ),
}

#: What mattered: one thing changed at a time, in compiled worlds.
WORLDS = {
    "CartPole": experiment("valueapprox/CartPole-v1", "stream-ac", 75_000, (75_000,)),
    "Acrobot": experiment("valueapprox/Acrobot-v1", "stream-ac", 150_000, (150_000,), "", -300.0),
    "MountainCar": experiment("valueapprox/MountainCar-v0", "stream-ac", 200_000, (200_000,), "", -199.99),
}
CHANGES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "outputs not rescaled": {"rescale_outputs": False},
    "independent draws (persistence 0)": {"persistence": 0.0},
    "critic by ObGD": {"optimizer": "obgd"},
    "critic's alpha 0.1": {"alpha": 0.1},
    "critic's alpha 1": {"alpha": 1.0},
    "outputs, persistence, critic: as published": {
        "rescale_outputs": False,
        "persistence": 0.0,
        "optimizer": "obgd",
    },
    "the same, limit = end, time": {
        "rescale_outputs": False,
        "persistence": 0.0,
        "optimizer": "obgd",
        "bootstrap_at_limit": False,
        "time_feature": True,
    },
    "limit = end": {"bootstrap_at_limit": False},
    "limit = end, time feature": {"bootstrap_at_limit": False, "time_feature": True},
    "time feature": {"time_feature": True},
    "first layer all zero (sparse_published)": {"init": "sparse_published"},
    "dense weights (lecun_uniform)": {"init": "lecun_uniform"},
    "actor's kappa 1": {"actor_kappa": 1.0},
    "actor's kappa 10": {"actor_kappa": 10.0},
    "no layer normalisation": {"layer_norm": False},
    "observations as they are": {"normalise_observations": False},
    "rewards as they are": {"scale_rewards": False},
    "no trace (lambda 0)": {"lam": 0.0},
}


@dataclass(frozen=True)
class Reproduce:
    """Run experiments over seeds on Ray, and print the table that docs/results.md shows.

    A result at step t is the mean return of the training episodes that ended in the last 15 % of the steps up to t, as
    the agent acted while it learned; then the mean over seeds with its 95 % interval (Student's t), and the worst seed.

    Runs lie in --folder and are kept: a second call reads those that are done and goes on with the others. Examples:
      reproduce.py cartpole acrobot mountaincar
      reproduce.py --seeds 30 --ray-address auto
      reproduce.py mountaincar --seeds 1000:1100
      reproduce.py --ablations
    """

    names: tyro.conf.Positional[tuple[str, ...]] = field(default_factory=tuple)
    """cartpole, cartpole-q, acrobot, mountaincar, lunarlander, halfcheetah, hopper, breakout, by agents of a stream;
    ppo-cartpole, ppo-acrobot, pqn-cartpole, ... by those of many environments; all if none is named."""
    seeds: str = ""
    """How many, 0 to N - 1, or FIRST:STOP; if not given, 30 for agents of a stream in compiled worlds, otherwise 10."""
    ablations: bool = False
    """Instead: what mattered, one thing changed at a time, in compiled CartPole, Acrobot and MountainCar."""
    workers: int = 2
    """Runs at a time on this machine."""
    share: float = 1.0
    """Of the steps of each run; less than 1 to try it out."""
    ray_address: str | None = None
    """A Ray cluster: host:port, or auto. Without it, Ray is started on this machine."""
    folder: Path = Path("runs/reproduce")
    """Where the runs, results.json and learning.png go."""
    quiet: bool = False
    """No progress bar."""


def main(options: Reproduce) -> int:
    """Run what is missing, then print; returns the exit code."""
    given = seeds_of(options.seeds)
    positive("workers", options.workers)
    if not 0 < options.share <= 1:
        raise ValueError(f"share is {options.share}; expected a number above 0, up to 1,")
    if options.ablations:
        chosen = {
            f"{world} | {change}": replace(e, settings=replace(e.settings, **what))
            for change, what in CHANGES.items()
            for world, e in WORLDS.items()
        }
    else:
        chosen = {one_of("experiment", n, EXPERIMENTS): EXPERIMENTS[n] for n in options.names or EXPERIMENTS}
    chosen = {name: shortened(e, options.share) for name, e in chosen.items()}
    announce_compile()
    try:
        curves = run(chosen, options, given)
    except KeyboardInterrupt:
        console.print(f"Interrupted. The same command goes on with what lies in {plain(options.folder)}.")
        return 130
    results = {
        name: {str(mark): [at(episodes, mark) for episodes in curves[name]] for mark in e.marks}
        for name, e in chosen.items()
    }
    folder = options.folder.resolve()
    name = "ablations" if options.ablations else "results"
    document = json.dumps(
        {n: {"command": chosen[n].command(), "returns": known(r)} for n, r in results.items()}, indent=1
    )
    write_whole(folder / f"{name}.json", lambda file: file.write(document.encode()))
    if options.ablations:
        show_ablations(results)
    else:
        show_results(chosen, results)
        picture(chosen, curves, folder / "learning.png")
        places = (options.folder / "learning.png", options.folder / f"{name}.json")
        console.print("Curves: {}; numbers: {}".format(*map(plain, places)))
    return 0


def shortened(e: Experiment, share: float) -> Experiment:
    """The same with fewer steps; what was published is of the full length."""
    if share == 1.0:
        return e
    steps, marks = round(share * e.settings.steps), tuple(round(share * mark) for mark in e.marks)
    return replace(e, settings=replace(e.settings, steps=steps), marks=marks, published="")


def seeds_of(text: str) -> range | None:
    """The seeds of an option: how many, or FIRST:STOP; None for an experiment's own."""
    if not text:
        return None
    words = text.split(":")
    if len(words) > 2 or not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(
            f"seeds is {text}; expected how many, as 30, or the first and the one after the last, as 100:200"
        )
    seeds = range(*map(int, words))
    if not seeds:
        raise ValueError(f"seeds is {text}; expected at least one")
    return seeds


def run(
    chosen: dict[str, Experiment], options: Reproduce, given: range | None
) -> dict[str, list[list[dict[str, Any]]]]:
    """The episodes of every seed of every experiment."""
    from valueapprox.cluster import cluster, spread

    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {("valueapprox/" * ("valueapprox/" in e.settings.env), e.settings.agent) for e in chosen.values()}
    for name, agent in sorted(kinds):
        with tempfile.TemporaryDirectory() as trial:  # what has to be compiled is compiled here, and not by each worker
            trial_settings = settings_from({"env": f"{name}CartPole-v1", "agent": agent, "steps": 1})
            kind_for(agent)(trial_settings, Path(trial) / "run").train()
    calls, places = [], []
    for name, e in chosen.items():
        for place, seed in enumerate(given or e.seeds):
            where = folder / "".join(c if c.isalnum() else "-" for c in name) / f"seed-{seed}"
            calls.append((replace(e.settings, seed=seed), where))
            places.append((name, place))
    curves: dict[str, list[list[dict[str, Any]]]] = {n: [[] for _ in given or e.seeds] for n, e in chosen.items()}
    with cluster(options.ray_address, options.workers), progress_bar("runs", len(calls), options.quiet) as show:
        for done, (place, episodes) in enumerate(spread(complete, calls), start=1):
            name, row = places[place]
            curves[name][row] = episodes
            show(done)
    return curves


def at(episodes: list[dict[str, Any]], mark: int) -> float:
    """Mean return of the episodes that ended in the last 15 % of the steps up to `mark`."""
    returns = [e["return"] for e in episodes if (1 - LATEST) * mark < e["step"] <= mark]
    return float(np.mean(returns)) if returns else float("nan")


def known(returns: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """The same with None, which JSON knows, where no episode ended."""
    return {mark: [None if math.isnan(r) else r for r in of_seeds] for mark, of_seeds in returns.items()}


def shown(returns: list[float]) -> tuple[str, str]:
    """Mean with interval, and the worst seed."""
    mean: Estimate = interval_of_mean(np.array(returns))
    if math.isnan(mean.value):
        return f"no episode ended there in {np.isnan(returns).sum()} of {len(returns)} seeds", ""
    digits = 0 if abs(mean.value) >= 1000 else 1
    text = f"{mean.value:,.{digits}f}"
    if not math.isnan(mean.low):  # one seed alone has none
        text += f" ({mean.low:,.{digits}f} to {mean.high:,.{digits}f})"
    return text, f"{min(returns):,.0f}"


def show_results(chosen: dict[str, Experiment], results: dict[str, dict[str, list[float]]]) -> None:
    """One row per experiment and mark."""
    table = Table(title="Return while learning, mean over seeds (95 % interval)", title_justify="left", box=SIMPLE_HEAD)
    for column in ("", "agent", "steps", "return", "worst seed", "stuck", "published code"):
        table.add_column(column, justify="left" if column in ("", "agent") else "right")
    for name, e in chosen.items():
        published = [*e.published.split("|"), *[""] * len(e.marks)]
        for mark, known in zip(e.marks, published, strict=False):
            returns = results[name][str(mark)]
            stuck = n_stuck(returns, e) if e.stuck > -math.inf else ""
            table.add_row(e.settings.env, e.settings.agent, f"{mark:,}", *shown(returns), stuck, known.strip())
    print_wide(table)
    for e in chosen.values():
        console.print(plain(f"{e.command()} --seed 0"))


def n_stuck(returns: list[float], e: Experiment) -> str:
    """How many seeds have not found the goal."""
    return f"{sum(r <= e.stuck for r in returns)} of {len(returns)}"


def show_ablations(results: dict[str, dict[str, list[float]]]) -> None:
    """One row per change, one column per world."""
    n_seeds = len(next(iter(next(iter(results.values())).values())))
    title = f"What mattered: return over {n_seeds} seeds (95 % interval), the worst seed, and how many are stuck"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for world, e in WORLDS.items():
        table.add_column(f"{world} at {e.marks[0]:,}", justify="right")
    for change in CHANGES:
        cells = []
        for world, e in WORLDS.items():
            (returns,) = results[f"{world} | {change}"].values()
            cells.append("; ".join([*shown(returns), *([n_stuck(returns, e)] if e.stuck > -math.inf else [])]))
        table.add_row(change, *cells)
    print_wide(table)


def picture(chosen: dict[str, Experiment], curves: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    """Learning curves: mean over seeds with its 95 % interval, and each seed thin behind it."""
    rows = -(-len(chosen) // 4)
    columns = -(-len(chosen) // rows)
    figure = new_figure(3.4 * columns, 2.8 * rows)
    for place, (name, e) in enumerate(chosen.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        steps = np.linspace(0, e.settings.steps, POINTS + 1)[1:]
        seeds = np.array([mean_returns(episodes, steps) for episodes in curves[name]])
        draw_seeds(axes, steps, seeds, "C0")
        if not np.isfinite(seeds).any():
            axes.text(0.5, 0.5, "no episode ended", ha="center", transform=axes.transAxes, fontsize=9)
        axes.set_title(f"{e.settings.env}, {e.settings.agent}", fontsize=10)
        steps_axis(axes)
        axes.set_xlim(0, 1.02 * e.settings.steps)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    figure.suptitle("Return of training episodes: mean over seeds with its 95 % interval, and every seed", fontsize=11)
    save_figure(figure, path, dpi=110)


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Reproduce)))
