"""Speed of TD(lambda) updates: ours beside NumPy, C, PyTorch and JAX, in one run, after checking that all agree."""

from __future__ import annotations

import os

# Read when NumPy, PyTorch and JAX are imported. One thread each; and JAX is faster on one core without a second thread
# to hand its calls to.
os.environ.update(
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    JAX_CPU_ENABLE_ASYNC_DISPATCH="false",
    JAX_ENABLE_X64="true",
    JAX_PLATFORMS="cpu",
)

import itertools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from valueapprox.cli.terminal import announce_compile, command_line, errors_in_one_line, note, plain
from valueapprox.commands import contenders as make
from valueapprox.commands.contenders import (
    JAX_CALL,
    JAX_RUNS,
    OURS_CALL,
    OURS_LOOP,
    OURS_RUNS,
    TORCH,
    C,
    Contender,
    Problem,
)

#: How far weights may lie from NumPy's, relative to the way that those went: ||w - w_numpy|| / ||w_numpy - w_0||.
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}
C_FLAGS = ("-O3", "-march=native")
NORMS_EVERY, LOGGING_COST = 64, 0.05  # the log's norms: the default interval, and what they may cost

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 120


@dataclass(frozen=True)
class Benchmark:
    """Time one TD(lambda) update: accumulating trace, SGD, gamma 0.99, lambda 0.9, ReLU, linear output, biases.

    All learn from the same transitions, on one core, in turns, so that a noisy machine disturbs all alike. First they
    are checked to end at the same weights; if not, nothing is timed and the exit code is 1. A ratio says how many
    times faster ours is. It is formed within a round; shown are the median and the quartiles over the rounds.

    More examples:
      benchmark.py --quick --networks 4-64-1 --dtypes float32
      benchmark.py --rounds 41 --json benchmark.json
      benchmark.py --control
    """

    networks: tuple[str, ...] = ("4-64-1", "17-128-1", "128-128-1")
    """Inputs, hidden units and the one output."""
    dtypes: tuple[Literal["float32", "float64"], ...] = ("float32", "float64")
    """Of weights, traces and states."""
    rounds: int = 15
    """How often each contender is timed."""
    seconds: float = 0.05
    """Length of one timing, or longer if the stream takes longer."""
    transitions: int = 1000
    """Length of the stream, which is repeated as needed."""
    runs: int = 30
    """Independent runs, where many are learned together."""
    quick: bool = False
    """A rough answer: 3 short rounds, 200 transitions, 4 runs."""
    json: Path | None = None
    """Write the microseconds of every round to this file."""
    seed: int = 0
    """Of the weights and transitions."""
    control: bool = False
    """Time agents that learn to act instead; benchmark_control.py does the same, and has options of its own."""

    def __post_init__(self) -> None:
        for network in self.networks:
            sizes = network.split("-")
            if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes) or sizes[2] != "1":
                raise ValueError(f"networks has {network!r}; expected inputs-hidden-1, such as 4-64-1")
        for name in ("rounds", "seconds", "transitions", "runs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.json is not None and not self.json.parent.is_dir():
            raise ValueError(f"json is {self.json}; there is no folder {self.json.parent}")


@dataclass(frozen=True)
class Timings:
    """Microseconds per update, in every round, by the contender's name."""

    section: str
    network: str
    dtype: str
    microseconds: dict[str, list[float]]

    def ratio(self, other: str, ours: str) -> np.ndarray:
        """How many times faster ours is, in every round."""
        return np.array(self.microseconds[other]) / np.array(self.microseconds[ours])


@dataclass(frozen=True)
class Bar:
    """A promise: ours is at least so many times faster, also than the fastest of several variants of the other."""

    other: str
    ours: str
    at_least: float
    networks: tuple[str, ...] = ("4-64-1",)
    variants: bool = False


BARS = (
    Bar(TORCH, OURS_CALL, 80.0),
    Bar(JAX_CALL, OURS_CALL, 10.0, variants=True),
    Bar(f"{C} {' '.join(C_FLAGS)}", OURS_LOOP, 0.85, ("4-64-1", "17-128-1")),
    Bar(JAX_RUNS, OURS_RUNS, 1.5),
)


# --- who takes part, and the check --------------------------------------------------------------------------------


def updates(problems: list[Problem], folder: str, notes: list[str]) -> list[Contender]:
    """Whoever can take part here; into the notes, why the others cannot."""
    first = problems[0]
    calls = [make.ours_call(first), make.ours_call(first, numpy_scalars=True)]
    taking_part = [make.numpy_loop(first), *calls, *make.ours_loop(first), make.ours_runs(problems)]
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        notes.append("no C: neither gcc nor cc is there")
    else:
        try:
            for flags in (C_FLAGS, (*C_FLAGS, "-ffast-math")):
                taking_part.append(make.c_loop(first, compiler, flags, folder))
        except subprocess.CalledProcessError as error:
            notes.append(f"no C: {compiler} says {error.stderr.strip().splitlines()[0]}")
    if find_spec("torch"):
        taking_part.append(make.torch_call(first))
    else:
        notes.append("no PyTorch: pip install torch brings it")
    if find_spec("jax"):
        taking_part += [make.jax_call(first), make.jax_call(first, flat=True), make.jax_runs(problems)]
    else:
        notes.append("no JAX: pip install jax brings it")
    return taking_part


def logging(problems: list[Problem], folder: str, notes: list[str]) -> list[Contender]:
    """Learning without the log's norms and with them; `updates` has checked the weights."""
    return make.ours_loop(problems[0], NORMS_EVERY)


SECTIONS = {"updates": updates, "logging": logging}


def learned(contender: Contender) -> np.ndarray:
    """Its weights after the stream, (runs, P)."""
    contender.learn()
    return np.atleast_2d(contender.weights())


def disagreements(taking_part: list[Contender], problems: list[Problem]) -> list[str]:
    """Let all learn from the stream once; a sentence for each whose weights are not NumPy's."""
    references = [learned(make.numpy_loop(problem))[0] for problem in problems]
    tolerance, wrong = TOLERANCE[problems[0].net.dtype], []
    for contender in taking_part:
        distance = max(
            float(np.linalg.norm(w - reference) / np.linalg.norm(reference - problem.w))
            for w, reference, problem in zip(learned(contender), references, problems, strict=False)
        )
        if not distance <= tolerance:
            wrong.append(
                f"{contender.name} differs from NumPy on {problems[0].net}: after {len(problems[0].r)} updates, its "
                f"weights are off by {distance:.2g} of the way that NumPy's went; rounding explains {tolerance:g}"
            )
    return wrong


# --- timing -------------------------------------------------------------------------------------------------------


def pin_to_one_core() -> str:
    """Keep this process, and every thread that a library starts, on one core; a sentence about it."""
    if not hasattr(os, "sched_setaffinity"):
        return "this system cannot pin a process to a core: JAX may use more than one"
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return f"pinned to core {core}, one thread"


def measure(taking_part: list[Contender], options: Benchmark, progress: Progress, label: str) -> dict[str, list[float]]:
    """Time everybody in turns, round after round: microseconds per update, by name."""
    warm_up = [contender.run(1) for contender in taking_part]
    passes = [max(1, round(options.seconds / seconds)) for seconds in warm_up]
    microseconds: dict[str, list[float]] = {contender.name: [] for contender in taking_part}
    task = progress.add_task(label, total=options.rounds)
    for _ in range(options.rounds):
        for contender, n in zip(taking_part, passes, strict=True):
            n_updates = n * options.transitions * contender.n_runs
            microseconds[contender.name].append(1e6 * contender.run(n) / n_updates)
        progress.advance(task)
    progress.remove_task(task)
    return microseconds


# --- what is printed ----------------------------------------------------------------------------------------------


def spread(values: list[float] | np.ndarray) -> str:
    """Median, and the quartiles behind it."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3g} [dim]({low:.3g} to {high:.3g})[/]"


def timings_table(timings: Timings) -> Table:
    """One row per contender."""
    title = f"{timings.section}: {timings.network}, {timings.dtype}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    bases = [name for name in (OURS_LOOP, OURS_CALL) if name in timings.microseconds]
    table.add_column("")
    for column in ("us per update", *(f"times {name.removeprefix('ours, ')}" for name in bases)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, values in sorted(timings.microseconds.items(), key=lambda item: float(np.median(item[1]))):
        table.add_row(name, spread(values), *(spread(timings.ratio(name, base)) for base in bases))
    return table


def summary_table(results: list[Timings]) -> Table:
    """The ratios that matter, beside what is promised for them."""
    table = Table(title="How many times faster ours is", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in ("ours", "than", "network", "dtype"):
        table.add_column(column)
    for column in ("ratio", "bar"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for bar in BARS:
        for timings in results:
            names = [n for n in timings.microseconds if n == bar.other or (bar.variants and n.startswith(bar.other))]
            if not names or timings.section != "updates":
                continue
            ratio = min((timings.ratio(name, bar.ours) for name in names), key=lambda r: float(np.median(r)))
            cells = (bar.ours.removeprefix("ours, "), bar.other, timings.network, timings.dtype, spread(ratio))
            if timings.network not in bar.networks:
                table.add_row(*cells, "", "")
            elif np.median(ratio) >= bar.at_least:
                table.add_row(*cells, f"{bar.at_least:g}", "[green]holds[/]")
            else:
                table.add_row(*cells, f"{bar.at_least:g}", "[red]below the bar[/]")
    for timings in (t for t in results if t.section == "logging"):
        without, sampled = timings.microseconds
        cost = timings.ratio(sampled, without) - 1.0
        verdict = "[green]holds[/]" if np.median(cost) < LOGGING_COST else "[red]above the bar[/]"
        what = ("cost of the log's norms", f"every {NORMS_EVERY}")
        percent = f"{spread(100 * cost)} %"
        table.add_row(*what, timings.network, timings.dtype, percent, f"under {100 * LOGGING_COST:g} %", verdict)
    return table


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    packages = [name for name in ("numpy", "numba", "torch", "jax") if find_spec(name)]
    return {
        "system": platform.platform(),
        "processor": processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def processor() -> str:
    """Its name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(options: Benchmark) -> int:
    """Check, time, print; returns the exit code."""
    if options.control:
        from valueapprox.commands import benchmark_control as control

        return control.main(control.Benchmark(steps=50_000, rounds=3) if options.quick else control.Benchmark())
    if options.quick:
        options = replace(options, rounds=3, seconds=0.005, transitions=200, runs=4)
    about = machine()
    console.print("; ".join(f"{name} {value}" for name, value in about.items()), soft_wrap=True)
    console.print(f"{pin_to_one_core()}; {options.rounds} rounds; many runs are {options.runs}")
    announce_compile(console)
    results: list[Timings] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        for network, dtype in itertools.product(options.networks, options.dtypes):
            seeds = [(options.seed, run) for run in range(options.runs)]
            problems = [Problem.random(network, dtype, options.transitions, seed) for seed in seeds]
            for section, invite in SECTIONS.items():
                task = progress.add_task(f"checking {section}: {network}, {dtype}", total=None)
                taking_part = invite(problems, folder, notes)
                wrong = disagreements(taking_part, problems) if section == "updates" else []
                progress.remove_task(task)
                if wrong:
                    for sentence in wrong:
                        console.print(f"[bold red]error:[/] {sentence}", soft_wrap=True)
                    return 1
                microseconds = measure(taking_part, options, progress, f"timing {section}: {network}, {dtype}")
                results.append(Timings(section, network, dtype, microseconds))
                console.print(timings_table(results[-1]))
    console.print("Before every timing, all had learned the same weights as NumPy, as far as rounding goes.")
    console.print(summary_table(results))
    for sentence in dict.fromkeys(notes):
        note(sentence)
    if options.json is not None:
        record = {"machine": about, "options": asdict(options) | {"json": None}, "results": [*map(asdict, results)]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
        console.print(f"Every round         {plain(options.json)}")
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Benchmark)))
