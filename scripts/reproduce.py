"""Learning results over seeds: the tables and picture of docs/results.md, each number by one command."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from valueapprox.agents.control_run import ControlSettings
from valueapprox.agents.settings import RunSettings
from valueapprox.agents.sweeps import figures, page, sheets
from valueapprox.agents.sweeps.cells import Cell, make
from valueapprox.agents.sweeps.sheets import Sheet
from valueapprox.agents.sweeps.sweep import complete, open_store
from valueapprox.agents.sweeps.table import Group, Table
from valueapprox.agents.training import settings_from
from valueapprox.checks import one_of, positive
from valueapprox.cli.charts import progress_bar
from valueapprox.cli.terminal import announce_compile, command_line, console, errors_in_one_line, note, plain, typed
from valueapprox.cluster import cluster
from valueapprox.envs import compiled_world
from valueapprox.statistics import interval_of_mean


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

    def cells(self, seeds: range | None) -> list[Cell]:
        """One for each seed."""
        return [make({**asdict(self.settings)}, seed) for seed in seeds or self.seeds]


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
    Nothing was chosen on these seeds.

    It is a sweep (see sweep.py): results are kept in --folder, and a second call runs only what is missing. Examples:
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
    """Where results and report go."""
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
        results = run(chosen, options, given)
    except KeyboardInterrupt:
        console.print(f"Interrupted. The same command goes on with what lies in {plain(options.folder)}.")
        return 130
    sheet = ablations(results) if options.ablations else returns(chosen, results)
    sheets.show(sheet)
    groups = list(results.values())
    parts = [page.Part("Results", sheets=[sheet])]
    if not options.ablations:
        what = "Return of training episodes: mean over seeds with its 95 % interval, and every seed"
        parts[0] = replace(parts[0], pictures=[(what, figures.png(figures.curves(groups)))])
    table = Table([row for group in groups for row in group.rows])
    code = [(f"One seed of {name}", page.command_for(group)) for name, group in results.items()]
    parts.append(page.Part("How to get these numbers again", sheets=[sheets.provenance_sheet(table)], code=code))
    paths = page.write(options.folder, "Ablations" if options.ablations else "Learning results", table, parts)
    for _, text in code:
        console.print(plain(text))
    console.print(f"Page, with curves and every number: {plain(paths[0])}")
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


def run(chosen: dict[str, Experiment], options: Reproduce, given: range | None) -> dict[str, Group]:
    """The cells of every experiment, once all have run."""
    wanted = {name: e.cells(given) for name, e in chosen.items()}
    every = [cell for cells in wanted.values() for cell in cells]
    marks = sorted({mark for e in chosen.values() for mark in e.marks})
    again = typed(*sys.argv[0].split(" "), *sys.argv[1:])
    with (
        open_store(options.folder, again, note) as store,
        cluster(options.ray_address, options.workers),
        progress_bar("runs", len(every), options.quiet) as show,
    ):
        complete(
            *(store, every),
            workers=options.workers,
            ray_address=options.ray_address,
            marks=marks,
            notice=note,
            progress=lambda status: show(status.done),
        )
        table = Table(store.rows())
    found = {}
    for name, cells in wanted.items():
        rows = table.only(digests={cell.digest for cell in cells}).rows
        e = chosen[name]
        found[name] = Group(f"{e.settings.env.rpartition('/')[2]}, {e.settings.agent}", rows, "return")
    return found


def returns_at(group: Group, mark: int) -> np.ndarray:
    """The result of each seed at a step: minus infinity of one that was lost, NaN where no episode ended."""
    name = "return" if mark >= group.settings["steps"] else f"return_at_{mark}"
    lost = [row.result is None or not row.result.numbers for row in group.rows]
    values = [math.nan if row.result is None else row.result.numbers.get(name, math.nan) for row in group.rows]
    return np.where(lost, -math.inf, values)


def shown(returns: np.ndarray) -> tuple[str, str]:
    """Mean with interval, and the worst seed."""
    if n := int(np.isneginf(returns).sum()):
        return f"not printed: {n} of {len(returns)} seeds were lost", "lost"
    if n := int(np.isnan(returns).sum()):
        return f"no episode ended there in {n} of {len(returns)} seeds", ""
    mean = interval_of_mean(returns)
    digits = 0 if abs(mean.value) >= 1000 else 1
    text = f"{mean.value:,.{digits}f}"
    if not math.isnan(mean.low):  # one seed alone has none
        text += f" ({mean.low:,.{digits}f} to {mean.high:,.{digits}f})"
    return text, f"{min(returns):,.0f}"


def returns(chosen: dict[str, Experiment], results: dict[str, Group]) -> Sheet:
    """One row per experiment and mark."""
    rows = []
    for name, e in chosen.items():
        published = [*e.published.split("|"), *[""] * len(e.marks)]
        for mark, known in zip(e.marks, published, strict=False):
            found = returns_at(results[name], mark)
            stuck = n_stuck(found, e) if e.stuck > -math.inf else ""
            rows.append([e.settings.env, e.settings.agent, f"{mark:,}", *shown(found), stuck, known.strip()])
    columns = ["steps", "return", "worst seed", "stuck", "published code"]
    title = "Return while learning, mean over seeds (95 % interval)"
    return Sheet(title, ["environment", "agent"], columns, rows)


def n_stuck(returns: np.ndarray, e: Experiment) -> str:
    """How many seeds have not found the goal."""
    return f"{sum(r <= e.stuck for r in returns)} of {len(returns)}"


def ablations(results: dict[str, Group]) -> Sheet:
    """One row per change, one column per world."""
    n_seeds = len(next(iter(results.values())).rows)
    title = f"What mattered: return over {n_seeds} seeds (95 % interval), the worst seed, and how many are stuck"
    rows = []
    for change in CHANGES:
        cells = []
        for world, e in WORLDS.items():
            group = results[f"{world} | {change}"]
            found = returns_at(group, group.settings["steps"])
            cells.append("; ".join([*shown(found), *([n_stuck(found, e)] if e.stuck > -math.inf else [])]))
        rows.append([change, *cells])
    return Sheet(title, [""], [f"{world} at {e.marks[0]:,}" for world, e in WORLDS.items()], rows)


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Reproduce)))
