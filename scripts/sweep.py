"""Run many settings on many seeds, keep what comes out in one file, and go on where it was left."""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from valueapprox.agents.sweeps import cells, sheets
from valueapprox.agents.sweeps.cells import Range
from valueapprox.agents.sweeps.sweep import Status, Sweep
from valueapprox.agents.training import kind_for
from valueapprox.cli.charts import progress_bar
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
from valueapprox.supervised.table_fit import Settings as FitSettings

FIT = "fit"
SHOWN = 20  # settings of a table in the terminal
#: Decided by the sweep, and not by a setting.
NOT_SWEPT = ("seed", "agent", "env")


@dataclass(frozen=True)
class SweepCommand:
    """Run every combination of the values that are given, each on the same seeds, on Ray workers.

    Each option of the agent takes several values: --alpha 0.1 0.3 1. A value that is a list has commas in it: --hidden
    64,64 32,32. Results go to one file in --out. The same command again runs only what is missing; with more values
    or more seeds, only what is new. A cell (a setting with a seed) comes out the same on any number of workers.

    For example:
      sweep.py --env MountainCar-v0 --agent sarsa --alpha 0.1 0.3 1.0 --lam 0 0.8 0.95 --seeds 30 --out sweeps/mc
      sweep.py --env CartPole-v1 --agent ppo --random 40 --alpha 1e-4..1e-2:log --epochs 1..10 --then-evaluate 30
      sweep.py --env CartPole-v1 Acrobot-v1 --agent stream-ac sarsa --steps 100000 --seeds 30
      sweep.py fit --data houses.csv --target price --alpha 1e-3 1e-2 --hidden 32 64,64
      sweep.py sweep.toml --ray-address auto
      report.py sweeps/mc                                    what came out, on one page

    The options of an agent are those of train.py: sweep.py --agent sarsa --help lists them.
    """

    settings: Any = None
    file: tyro.conf.Positional[Path | None] = None
    """A sweep in TOML; options that are given here come first."""
    env: tuple[str, ...] = ()
    """Environments."""
    agent: tuple[str, ...] = ()
    """Agents: who learns."""
    seeds: int = 10
    """Seeds that each setting is run with."""
    first_seed: int = 0
    """The first of them."""
    random: int = 0
    """Draw so many settings from ranges such as 1e-4..0.1:log and 1..8, and lists of values, instead of all."""
    search: str = "random"
    """random, or optuna, which draws settings where earlier ones did well (pip install 'valueapprox[tune]')."""
    rounds: int = 4
    """Rounds in which optuna draws them."""
    search_seed: int = 0
    """Seed of the draws."""
    then_evaluate: int = 0
    """Run the best setting again with so many fresh seeds: what a sweep found best looks better than it is."""
    out: Path | None = None
    """Folder of the results; sweeps/ENV-AGENT, or sweeps/FILE, if not given."""
    points: bool = False
    """Keep all that runs log, so that report.py can draw bands of every tag in TensorBoard."""
    logs: bool = False
    """Leave the folder of each run, with log and checkpoint, in runs/ of --out: many files."""
    workers: int = 2
    """Ray workers; 0 for none. The numbers do not depend on it."""
    ray_address: str | None = None
    """A Ray cluster: host:port, or auto. Without it, Ray is started on this machine."""
    quiet: bool = False
    """No progress bar; the table only."""


def parse(arguments: Sequence[str]) -> tuple[SweepCommand, Sweep]:
    """The command line: how it is run, and what."""
    rest = list(arguments)
    fit = bool(rest) and rest[0] == FIT
    agents = [FIT] if fit else _values("--agent", rest)
    file = next((word for word in rest[fit:] if word.endswith(".toml")), None)
    read = Sweep.from_toml(file) if file is not None and Path(file).exists() else None
    if read is not None and not agents:
        agents = [FIT] if "data" in read.fixed else _listed(read, "agent")
    known = options_of(tuple(agents or ["td"]))
    options = command_line(known, rest[fit:])
    if options.file is not None and read is None:
        read = Sweep.from_toml(options.file)
    return options, asked(options, read, rest)


def options_of(agents: tuple[str, ...]) -> type[SweepCommand]:
    """The options of a sweep over agents: those of each of them, which all take several values."""
    settings: list[Any] = []
    for agent in agents:
        cls: Any = FitSettings if agent == FIT else type(kind_for(agent).Settings(agent=agent))
        settings.append(cls)
    changed: list[Any] = [("data", Annotated[tuple[str, ...], _shown("")], field(default=()))] * (agents == (FIT,))
    for cls, agent in zip(settings, agents, strict=True):
        default = cls() if agent == FIT else kind_for(agent).Settings(agent=agent)
        for f in fields(cls):
            if f.name not in {*NOT_SWEPT, *(name for name, *_ in changed)}:
                hint = Annotated[tuple[str, ...], _shown(getattr(default, f.name))]
                changed.append((f.name, hint, field(default=())))
    hidden = [
        (name, Annotated[str, tyro.conf.Suppress], field(default=""))
        for name in NOT_SWEPT
        if any(name in {f.name for f in fields(cls)} for cls in settings)
    ]
    plain_class: dict[str, Any] = {"__new__": _plain_new, "__post_init__": lambda self: None}
    bases = tuple(dict.fromkeys(settings))
    own: Any = make_dataclass(
        "Settings", [*changed, *hidden], bases=bases, frozen=True, eq=False, namespace=plain_class
    )
    held = ("settings", Annotated[own, tyro.conf.OmitArgPrefixes], field(default_factory=own))
    made: type[SweepCommand] = make_dataclass(
        "SweepCommand", [held], bases=(SweepCommand,), frozen=True, namespace={"__doc__": SweepCommand.__doc__}
    )
    return made


def _plain_new(cls: type[Any], *_: Any, **__: Any) -> Any:
    return object.__new__(cls)


def _shown(default: Any) -> Any:
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    hint = f"(default: {text})" if text else ""
    return tyro.conf.arg(metavar="VALUES", help_behavior_hint=hint)


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """The words that follow an option, before the command line is parsed."""
    found: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == option:
            for word in arguments[i + 1 :]:
                if word.startswith("-"):
                    break
                found.append(word)
        elif argument.startswith(f"{option}="):
            found.append(argument.partition("=")[2])
    return found


def _listed(sweep: Sweep, name: str) -> list[str]:
    """All values that a sweep gives a setting."""
    listed = [one[name] for one in sweep.settings if name in one]
    found = [*([sweep.fixed[name]] if name in sweep.fixed else []), *sweep.grid.get(name, ()), *listed]
    return list(dict.fromkeys(map(str, found)))


def asked(options: SweepCommand, read: Sweep | None, arguments: Sequence[str]) -> Sweep:
    """The sweep that the options ask for, on top of that of a file."""
    base = read or Sweep()
    fixed, grid, ranges = dict(base.fixed), dict(base.grid), dict(base.ranges)
    given: dict[str, tuple[Any, ...]] = {name: getattr(options, name) for name in ("env", "agent")}
    types = _types(options.settings)
    for f in fields(options.settings):
        if f.name not in NOT_SWEPT and (words := getattr(options.settings, f.name)):
            given[f.name] = tuple(value_of(f.name, word, types.get(f.name, str)) for word in words)
    typed_at = [a.partition("=")[0].lstrip("-").replace("-", "_") for a in arguments]
    for name in sorted(given, key=lambda n: typed_at.index(n) if n in typed_at else 0):  # the grid is as it was typed
        values = given[name]
        if not values:
            continue
        for where in (fixed, grid, ranges):
            where.pop(name, None)
        drawn = [value for value in values if isinstance(value, Range)]
        if drawn and len(values) > 1:
            raise ValueError(f"{name} is a range and more; expected one range, or values")
        if drawn:
            ranges[name] = drawn[0].checked(name)
        elif len(values) == 1:
            fixed[name] = values[0]
        elif options.random or base.random:
            ranges[name] = Range(choices=values)
        else:
            grid[name] = list(values)
    if "data" not in fixed and "data" not in grid and "env" not in {*fixed, *grid} and not base.settings:
        raise ValueError("env is missing; expected --env with at least one environment, or a file with a sweep")
    own = {}
    for name in ("seeds", "first_seed", "random", "search", "rounds", "search_seed", "then_evaluate"):
        typed_name = f"--{name.replace('_', '-')}"
        is_given = any(a.split("=")[0].replace("_", "-") == typed_name for a in arguments)
        own[name] = getattr(options, name) if is_given or read is None else getattr(base, name)
    listed = [{name: value for name, value in one.items() if not given.get(name)} for one in base.settings]
    return Sweep(fixed, grid, listed, ranges, **own)


def _types(settings: Any) -> dict[str, Any]:
    """The type of each setting as its own class says it."""
    found: dict[str, Any] = {}
    for cls in reversed(type(settings).__mro__[1:-1]):
        if "__annotations__" in vars(cls):
            found |= typing.get_type_hints(cls)
    return found


def value_of(name: str, word: str, hint: Any) -> Any:
    """What a word of the command line stands for: a number, true or false, text, a list with commas, or a range."""
    kinds = {hint, *typing.get_args(hint)} if typing.get_origin(hint) is not tuple else {tuple}
    numeric = {int, float} & {*kinds, *typing.get_args(hint)} and bool not in kinds
    if ".." in word and numeric:
        low, _, rest = word.partition("..")
        high, _, log = rest.partition(":")
        try:
            ends = json.loads(low), json.loads(high)
        except ValueError:
            ends = None, None
        if not all(isinstance(end, int | float) for end in ends) or log not in ("", "log"):
            raise ValueError(f"{name} is {word!r}; expected LOW..HIGH, or LOW..HIGH:log, such as 1e-4..0.1:log")
        return Range(*ends, log=log == "log", whole=all(isinstance(end, int) for end in ends))
    if typing.get_origin(hint) is dict:
        pairs = [pair.partition("=") for pair in word.split(",")]
        return {key: value for key, _, value in pairs}
    if tuple in kinds:
        texts = str in typing.get_args(hint)
        return [part if texts else _number(part) for part in word.split(",") if part]
    if type(None) in kinds and word.lower() == "none":
        return None
    return word if str in kinds and not {int, float} & kinds else _number(word)


def _number(word: str) -> Any:
    try:
        return json.loads(word.lower() if word.lower() in ("true", "false") else word)
    except ValueError:
        return word


def main(options: SweepCommand, sweep: Sweep) -> int:
    """Run what is missing, then say what came out; returns the exit code."""
    out = options.out or Path("sweeps") / _name(options, sweep)
    announce_compile()
    again = typed(*sys.argv[0].split(" "), *sys.argv[1:])
    if not options.quiet and sweep.search != "optuna":
        n = len(cells.grid(sweep.grid)) * max(1, len(sweep.settings)) * max(1, sweep.random)
        console.print(f"{plain(out)}: {n:,} settings x {sweep.seeds:,} seeds = {n * sweep.seeds:,} cells")
        if sweep.seeds < 5:
            note(f"{sweep.seeds} seeds say little: intervals of fewer than five are wide, and rarely right")
    with ExitStack() as stack:
        bars: dict[tuple[str, int], Callable[[int], None]] = {}

        def progress(status: Status) -> None:
            bar = status.stage, status.n_cells
            if bar not in bars:
                stack.close()  # the bar of the stage, or the round, before
                bars[bar] = stack.enter_context(progress_bar(status.stage, status.n_cells, options.quiet))
            bars[bar](status.done)

        try:
            table = sweep.run(
                out,
                workers=options.workers,
                ray_address=options.ray_address,
                points=options.points,
                logs=options.logs,
                command=again,
                notice=note,
                progress=progress,
            )
        except KeyboardInterrupt:
            stack.close()
            note(f"interrupted; what is done is kept in {plain(out)}, and the same command does the rest")
            return 130
    for sheet in sheets.overview(table, max_rows=SHOWN):
        sheets.show(sheet)
    console.print(f"Results  {plain(out)}\nReport   {plain(command('report.py', out))}")
    return 1 if table.counts["failed"] else 0


def _name(options: SweepCommand, sweep: Sweep) -> str:
    if options.file is not None:
        return options.file.stem
    if "data" in sweep.fixed:
        return f"fit-{Path(sweep.fixed['data']).stem}"
    names = [*_listed(sweep, "env"), *(_listed(sweep, "agent") or ["td"])]
    return "-".join(names).replace("/", "-").replace(":", "-")


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(*parse(sys.argv[1:])))
