"""Nexting: what will every sensor of a robot do within a step, a second, ten? A picture of predictions and returns."""

from __future__ import annotations

import math
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from valueapprox import Adam, Network
from valueapprox.checkpoint import write_whole
from valueapprox.checks import positive, unit_interval
from valueapprox.cli.charts import progress_bar
from valueapprox.cli.terminal import announce_compile, command, command_line, console, errors_in_one_line, note
from valueapprox.commands.robot import SENSORS, robot
from valueapprox.files import folder_for
from valueapprox.optim import InverseTime
from valueapprox.seeding import sequence
from valueapprox.service import Client, Service, ServiceError, ServiceSettings, Transitions
from valueapprox.supervised.columns import read_dates
from valueapprox.supervised.tables import Problem, TableError, read_table
from valueapprox.supervised.tables import Table as Columns

PICTURE, DATA, SERVICE = "nexting.png", "stream.csv", "service"
SERVE = Path(__file__).with_name("serve.py")
STREAM = "signals"
TRACES = (0.8, 0.95, 0.99)  # decays of the slow traces in the state
FARTHEST = 5.0  # standard deviations that an entry of the state may be away from 0
CALIBRATION = 20  # one part in so many of the stream is only looked at, for the scale of each signal
LEFT = 0.01  # weight of what is missing of a return at which it counts as complete
LEAST = 400  # steps to learn from and be judged
LEAP = 1.5  # usual times between two rows, beyond which a gap is
WINDOW = 600  # steps that are drawn
MOST_AT_ONCE = 4096  # steps in a batch
POINTS = 150  # of a learning curve
AVERAGED = 12  # and each is a mean over one part in so many of the stream
DRAWN = ("light_right", "wall_ahead", "bump", "current_left", "temperature")
COLORS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#000000")  # of Okabe & Ito 2008


def returns(signals: np.ndarray, gamma: float, after: Sequence[int] = ()) -> np.ndarray:
    """G_t = sum_k gamma^k c_{t+k+1} (n, m) of what came of signals c (n, m); late ones lack the most. G_n-1 = 0.

    The rows of `after` come after a gap: no return reaches across it.
    """
    G, first = np.zeros(signals.shape), set(after)
    for t in range(len(signals) - 2, -1, -1):
        if t + 1 not in first:
            G[t] = signals[t + 1] + gamma * G[t + 1]
    return G


def states(z: np.ndarray, after: Sequence[int] = ()) -> np.ndarray:
    """States (n, 4 m): standardised signals z (n, m), and x <- b x + (1 - b) z of each for every b of TRACES.

    x begins anew with the rows of `after`, which come after a gap.
    """
    parts, first = [z], {0, *after}
    for decay in TRACES:
        trace = np.empty_like(z)
        for t in range(len(z)):
            trace[t] = z[t] if t in first else decay * trace[t - 1] + (1 - decay) * z[t]
        parts.append(trace)
    return np.clip(np.concatenate(parts, axis=1), -FARTHEST, FARTHEST)


@dataclass(frozen=True)
class DemoNexting:
    """Learn what every signal of a live stream will do next, on several time scales, through the value service.

    Nexting (Modayil, White and Sutton 2014, arXiv 1112.1133): for every signal c and every discount gamma there is a
    prediction of G_t = c_t+1 + gamma c_t+2 + gamma^2 c_t+3 + ..., learned by TD(lambda) while the signals come. gamma =
    0, 0.8, 0.95, 0.9875 look 1 / (1 - gamma) = 1, 5, 20, 80 steps ahead. The signals are those of a simulated robot
    that drives round a pen with a lamp, a carpet and a charging dock, or the columns of your CSV file. There an empty
    cell, NA and NaN are missing: the signal stays what it was, and that is said. Where all signals of a row are
    missing, and where a column of times leaps, there is a gap: nothing is learned or judged across it.

    Every batch of steps is predicted first and learned from afterwards, and each is in the service's journal before it
    is acknowledged. The state is made of all signals, less their mean and in standard deviations, both of the first
    twentieth of the stream, which is not learned from; and of three slow traces of each, exponential averages over some
    5, 20 and 100 steps, which say what was before. A prediction has a network of its own, and Adam.

    When all is known, predictions are compared with the returns that came. The table shows mean squared errors divided
    by the variance of the return, over the last quarter: 0 is perfect, 1 no better than knowing the mean. Beside it:
    now, the present value for ever, c_t / (1 - gamma); and mean, the mean of the signal so far, / (1 - gamma).

    More examples:
      demo_nexting.py --http                                     # the same from a server in a process of its own
      demo_nexting.py --csv plant.csv --time stamp --ignore remark --draw flow pressure
      demo_nexting.py --gamma 0 0.9 0.99 --steps 100000
    """

    csv: Path | None = None
    """A CSV file with a header and a row for each step, instead of the robot. All columns are numbers."""
    time: str | None = None
    """Column of the CSV file that says when: numbers, or dates as 2024-03-31T18:00:05. It rises from row to row."""
    ignore: tuple[str, ...] = ()
    """Columns of the CSV file to leave out."""
    steps: int = 40_000
    """Of the robot, ten a second."""
    gamma: tuple[float, ...] = (0.0, 0.8, 0.95, 0.9875)
    """Discounts of the predictions of each signal, at least 0 and less than 1."""
    lam: float = 0.9
    """Trace decay lambda of all predictions, in [0, 1]."""
    hidden: int = 32
    """Units (ReLU) in the hidden layer of each prediction's network."""
    alpha: float = 0.01
    """Step size of Adam at the start."""
    halve: int = 1500
    """Steps after which the step size is half of that: alpha / (1 + t / halve)."""
    batch: int = 64
    """Steps that are predicted, then sent to be learned, at a time."""
    http: bool = False
    """Start a server in a process of its own, and predict and learn over HTTP."""
    draw: tuple[str, ...] = ()
    """Signals in the picture; five of the robot's, or the first five columns, if not given."""
    seed: int = 0
    """Of robot and initial weights."""
    out: Path | None = None
    """Folder for picture, data and service; runs/demo-nexting-TIME if not given."""
    quiet: bool = False
    """No progress bar; the results only."""


class Learner(Protocol):
    """What a Service in this process and a Client of one elsewhere have in common."""

    def values(self, states: np.ndarray) -> Any:
        """Predictions at states."""

    def learn(self, batch: Transitions) -> Any:
        """Learn from transitions, and wait until they are kept."""


class Errors(NamedTuple):
    """Normalised mean squared errors (m, scales) of what was learned and of two that learn nothing."""

    learned: np.ndarray
    now: np.ndarray
    mean: np.ndarray


class Result(NamedTuple):
    """Predictions and returns, all (n, m, scales), of standardised signals; and which steps are judged."""

    predicted: np.ndarray
    came: np.ndarray
    judged: slice
    errors: Errors


def main(options: DemoNexting) -> int:
    """Learn, print, draw; returns the exit code."""
    with folder_for(options.out, "demo-nexting") as folder:
        return demonstrate(options, folder)


def demonstrate(options: DemoNexting, folder: Path) -> int:
    """The same, in a folder."""
    check(options)
    for name in (PICTURE, DATA, SERVICE):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists; choose another --out")
    names, signals, after = read(options)
    drawn = list(dict.fromkeys(options.draw)) or list(DRAWN if options.csv is None else names[: len(DRAWN)])
    for name in drawn:
        if name not in names:
            raise ValueError(f"draw is {name}; expected signals, which are {', '.join(names)}")
    n, start = len(signals), len(signals) // CALIBRATION
    end = n - 1 - horizon(max(options.gamma))
    if end - start < LEAST:
        raise ValueError(
            f"{n} steps are too few: with gamma {max(options.gamma):g}, {horizon(max(options.gamma))} at the end lack "
            f"a complete return, and {LEAST} beside the first twentieth are wanted to learn from"
        )
    whole = complete(n, after, horizon(max(options.gamma)))
    if (judged := int(whole[end - (end - start) // 4 : end].sum())) < LEAST // 4:
        raise ValueError(
            f"the gaps leave {judged} complete returns in the last quarter; expected at least {LEAST // 4}: a smaller "
            "--gamma looks less far ahead"
        )
    announce_compile()
    mean, spread = signals[:start].mean(axis=0), signals[:start].std(axis=0)
    spread = np.where(spread > 1e-12 * np.abs(mean), spread, 1.0)  # of one that has not moved yet
    z = (signals - mean) / spread
    folder.mkdir(parents=True, exist_ok=True)
    if options.csv is None:
        lines = [",".join(names), *(",".join(f"{value:.4f}" for value in row) for row in signals.tolist())]
        write_whole(folder / DATA, lambda file: file.write(("\n".join(lines) + "\n").encode()))
    predicted = np.zeros((n, len(names) * len(options.gamma)))
    try:
        with (
            service(settings(options, names), folder, options.http) as learner,
            progress_bar("learning", n - 1 - start, options.quiet) as advance,
        ):
            began = time.perf_counter()
            lost = follow(learner, z, start, options, predicted, advance, after)
            seconds = time.perf_counter() - began
    except ServiceError as error:
        raise ValueError(str(error)) from error
    result = judge(predicted.reshape(n, len(names), -1), z, options.gamma, start, end, after)
    door = "over HTTP" if options.http else "in this process"
    console.print(
        f"{len(names)} signals, {len(options.gamma)} time scales: {predicted.shape[1]} predictions; {n - 1 - start:,} "
        f"steps learned {door}, durability batch, in {seconds:.1f} s: {(n - 1 - start) / seconds:,.0f} steps/s"
    )
    if lost:
        console.print(f"[red]{lost} steps were not learned from: they would have made a weight infinite[/]")
    console.print(table(names, options.gamma, result))
    figure = draw(names, drawn, options.gamma, result, mean, spread, start)
    write_whole(folder / PICTURE, lambda file: figure.savefig(file, format="png", dpi=100))
    console.print(f"\nPicture   {folder / PICTURE}", markup=False)
    if options.csv is None:
        console.print(f"Data      {folder / DATA}", markup=False)
    console.print(
        f"Learner   {folder / SERVICE}\nAsk it    {command('serve.py', '--data', folder / SERVICE)}",
        markup=False,
    )
    return 0


def check(options: DemoNexting) -> None:
    """Refuse what cannot be learned, in the words of the options."""
    for name in ("steps", "hidden", "halve", "batch"):
        positive(name, getattr(options, name))
    positive("seed", options.seed, at_least=0)
    unit_interval("lam", options.lam)
    if options.batch > MOST_AT_ONCE:
        raise ValueError(f"batch is {options.batch}; expected at most {MOST_AT_ONCE}")
    if not 0 < options.alpha < np.inf:
        raise ValueError(f"alpha is {options.alpha}; expected a positive number")
    if not options.gamma or len(set(options.gamma)) != len(options.gamma):
        raise ValueError("gamma wants different discounts, at least one")
    for gamma in options.gamma:
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma is {gamma:g}; expected at least 0 and less than 1")
    for name in ("ignore", "time"):
        if getattr(options, name) and options.csv is None:
            raise ValueError(f"--{name} is for the columns of a --csv file")


def read(options: DemoNexting) -> tuple[tuple[str, ...], np.ndarray, list[int]]:
    """Names of the signals, the signals (n, m), and the rows that come after a gap."""
    if options.csv is None:
        rng = np.random.default_rng(sequence(options.seed, "robot"))
        return SENSORS, robot(options.steps, rng), []
    columns = read_table(options.csv)
    times = columns.pick([options.time] if options.time else [], "--time")
    left_out = {*columns.pick(options.ignore, "--ignore"), *times}
    names = tuple(name for name in columns.cells if name not in left_out)
    if not names:
        raise TableError(f"{options.csv} has no column left; expected at least one signal")
    cells = {name: columns.parse(name) for name in names}
    problems = []
    for name, read in cells.items():
        refused = read if read.missing.all() else read._replace(missing=np.zeros_like(read.missing))
        problems += columns.problem(name, refused, ("--time", "--ignore"))
    at = None
    if times:
        at, wrong = times_of(columns, times[0])
        problems += wrong
    columns.complain(problems)
    signals, after = fill(options.csv, {name: read.numbers for name, read in cells.items()}, at)
    for name, signal_ in zip(names, signals.T, strict=True):
        if signal_.min() == signal_.max():
            raise TableError(
                f"{options.csv}, column {name!r} is {signal_[0]:g} in every row; there is nothing to predict "
                f"(--ignore {shlex.quote(name)} leaves it out)"
            )
    return names, signals, after


def times_of(columns: Columns, name: str) -> tuple[np.ndarray, list[Problem]]:
    """When each row was, in any unit, and what is wrong with it."""
    read = columns.parse(name)
    numbers, problems = read, list[Problem]()
    if read.other.any():
        numbers, problems = read_dates(columns, name, read)
    if not problems:
        problems = columns.problem(name, numbers, what="time")
    backwards = np.flatnonzero(np.diff(numbers.numbers) <= 0)
    if not problems and len(backwards):
        row = int(backwards[0]) + 1
        before, now = (columns.texts(name)[i] for i in (row - 1, row))
        problems.append(
            Problem(
                columns.where(row, name, path=False), f"the time is {now}; expected a later one than {before} before it"
            )
        )
    return numbers.numbers, problems


def fill(path: Path, signals: Mapping[str, np.ndarray], times: np.ndarray | None) -> tuple[np.ndarray, list[int]]:
    """Signals (n, m) without missing cells, and the rows that come after a gap; what was done is said.

    A missing cell is what the signal was before, at the start what it is first. A row without any signal is left out,
    and is a gap, as is more than one and a half times the usual time between two rows.
    """
    table = np.stack(list(signals.values()), axis=1)
    there = ~np.isnan(table).all(axis=1)
    rows = np.flatnonzero(there)
    after = set(np.flatnonzero(np.diff(rows) > 1) + 1)
    table = table[rows]
    if times is not None and len(rows) > 1:
        steps = np.diff(times[rows])
        after |= set(np.flatnonzero(steps > LEAP * np.median(steps)) + 1)
    for name, column in zip(signals, table.T, strict=True):
        missing = np.isnan(column)
        if missing.any():
            known = np.flatnonzero(~missing)
            column[:] = column[known[np.maximum(np.searchsorted(known, np.arange(len(column)), "right") - 1, 0)]]
            note(f"{path}, column {name!r}: {missing.sum()} missing cells are what the signal was before")
    if after:
        left = len(there) - len(rows)
        note(
            f"{path} has {len(after)} gap{'s' * (len(after) > 1)}"
            + (f", and {left} row{'s' * (left > 1)} without a signal" if left else "")
            + ": nothing is learned or judged across"
        )
    return table, sorted(map(int, after))


# --- learning ---------------------------------------------------------------------------------------------------------


def settings(options: DemoNexting, names: Sequence[str]) -> ServiceSettings:
    """What the service learns: for each signal the predictions of all time scales, signal by signal."""
    k = len(names) * len(options.gamma)
    return ServiceSettings(
        net=Network(((1 + len(TRACES)) * len(names), options.hidden, 1)),
        optimizer=Adam(options.alpha, schedule=InverseTime(options.halve)),
        discounts=tuple(options.gamma) * len(names),
        lams=(options.lam,) * k,
        names=tuple(f"{name}, gamma {gamma:g}" for name in names for gamma in options.gamma),
        separate=True,
        seed=options.seed,
        durability="batch",
        max_streams=1,
        on_gap="cut",
    )


@contextmanager
def service(chosen: ServiceSettings, folder: Path, http: bool) -> Iterator[Learner]:
    """A new service with its journal in a folder: in this process, or behind a server in a process of its own."""
    with Service(chosen, folder / SERVICE) as new:
        if not http:
            yield new
            return
    # Its first checkpoint holds the settings; the server goes on from there.
    command = [sys.executable, str(SERVE), "--data", str(folder / SERVICE), "--port", "0", "--log-every", "0"]
    log = folder / "server.log"
    with log.open("w") as said, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process:
        assert process.stdout is not None
        try:
            url = ""
            for line in process.stdout:
                url = url or "".join(re.findall(r"^Serving +(http://\S+)", line))
                if line.startswith("Read on"):
                    break
            else:
                reason = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
                raise ConnectionError(f"the server did not start: {reason.removeprefix('error: ')}")
            with Client(url) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def follow(
    learner: Learner,
    z: np.ndarray,
    start: int,
    options: DemoNexting,
    predicted: np.ndarray,
    advance: Callable[[int], None],
    after: Sequence[int] = (),
) -> int:
    """Predict and learn, batch by batch, from step `start` on; returns how many steps were refused.

    The predictions of a batch, written into `predicted` (n, k), are asked for before any step of it is learned from.
    The steps into the rows of `after` are left out; the service then finds a gap in their numbers, and cuts the traces.
    """
    s, c = states(z, after).astype(np.float32), np.repeat(z, len(options.gamma), axis=1)
    kept = np.ones(len(z), bool)
    kept[[row - 1 for row in after]] = False
    last, refused = len(z) - 1, 0
    for t in range(start, last, options.batch):
        stop = min(t + options.batch, last)
        predicted[t:stop] = learner.values(s[t:stop]).values
        steps = np.arange(t, stop)[kept[t:stop]]
        if len(steps):
            result = learner.learn(Transitions.of(STREAM, steps, s[steps], c[steps + 1], s[steps + 1]))
            refused += len(result.status) - result.learned
        advance(stop - start)
    return refused


# --- what came of it --------------------------------------------------------------------------------------------------


def horizon(gamma: float) -> int:
    """Steps after which gamma^k is at most LEFT: 367 for 0.9875."""
    return 0 if gamma == 0 else math.ceil(math.log(LEFT) / math.log(gamma))


def complete(n: int, after: Sequence[int], steps: int) -> np.ndarray:
    """Which of n rows (n,) have so many steps before the next gap, or the end."""
    ends = np.array([*after, n]) - 1
    rows = np.arange(n)
    return np.asarray(ends[np.searchsorted(ends, rows)] - rows >= steps)


def judge(
    predicted: np.ndarray, z: np.ndarray, gammas: Sequence[float], start: int, end: int, after: Sequence[int] = ()
) -> Result:
    """Compare predictions (n, m, scales) with the returns of z (n, m), over the last quarter of steps start to end.

    Where a gap cuts the longest return off, what came is NaN, and not judged.
    """
    came = np.stack([returns(z, gamma, after) for gamma in gammas], axis=-1)
    if len(after):
        came[:end][~complete(len(z), after, horizon(max(gammas)))[:end]] = np.nan
    judged = slice(end - (end - start) // 4, end)
    so_far = np.cumsum(z, axis=0) / np.arange(1, len(z) + 1)[:, None]
    scale = 1 / (1 - np.array(gammas))
    variance = np.nanvar(came[judged], axis=0)
    variance[variance == 0] = np.nan  # nothing moved: no error is large or small

    def error(guess: np.ndarray) -> np.ndarray:
        squares: np.ndarray = np.nanmean((guess - came)[judged] ** 2, axis=0)
        return squares / variance

    errors = Errors(error(predicted), error(z[:, :, None] * scale), error(so_far[:, :, None] * scale))
    return Result(predicted, came, judged, errors)


def table(names: Sequence[str], gammas: Sequence[float], result: Result) -> Table:
    """A row for each signal, three errors for each time scale."""
    errors = result.errors
    better = int(np.sum((errors.learned < errors.now) & (errors.learned < errors.mean)))
    columns = Table(
        title="Mean squared error / variance of the return, over the last quarter: learned, now, mean",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=f"learned is the best of the three for {better} of {errors.learned.size} predictions",
        caption_justify="left",
    )
    columns.add_column("", no_wrap=True, min_width=max(map(len, names)))
    for gamma in gammas:  # rather wider than the terminal than cut
        columns.add_column(ahead(gamma), justify="right", no_wrap=True, min_width=14)
    for name, *rows in zip(names, *errors, strict=True):
        cells = []
        for learned, now, mean in zip(*rows, strict=True):
            color = "green" if learned < min(now, mean) else "red" if learned > mean else "yellow"
            cells.append(f"[{color}]{short(learned)}[/] {short(now)} {short(mean)}")
        columns.add_row(name.replace("[", r"\["), *cells)
    return columns


def short(error: float) -> str:
    """An error in four characters, as long as it is below 10,000; "-" if the signal did not move."""
    if np.isnan(error):
        return "   -"
    return f"{error:.2f}" if error < 9.995 else f"{error:4.0f}"


def ahead(gamma: float) -> str:
    """How far a discount looks: 1 / (1 - gamma) steps."""
    steps = 1 / (1 - gamma)
    return f"{steps:.3g} step{'s' if steps > 1 else ''}"


def curve(result: Result, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Learning curves: steps (p,), and (p, scales) medians over signals of the error until there / variance of all.

    The error is a mean over the twelfth of the stream before a step, at the start over what there is.
    """
    end = result.judged.stop
    variance = np.nanvar(result.came[start:end], axis=0)
    variance[variance == 0] = np.nan
    squares = (result.predicted - result.came)[start:end] ** 2 / variance
    width = (end - start) // AVERAGED
    stops = np.unique(np.linspace(width // 4, end - start, POINTS).astype(int))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a window that is a gap: NaN, which is not drawn
        means = [np.nanmean(squares[max(0, stop - width) : stop], axis=0) for stop in stops]
        medians = [np.nanmedian(mean, axis=0) for mean in means]
    return start + stops, np.array(medians)


def draw(
    names: Sequence[str],
    drawn: Sequence[str],
    gammas: Sequence[float],
    result: Result,
    mean: np.ndarray,
    spread: np.ndarray,
    start: int,
) -> Any:
    """The figure: a panel for each drawn signal and time scale, in the signal's units; below, errors over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, which only pictures need
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    known = np.flatnonzero(~np.isnan(result.came[result.judged, 0, 0])) + result.judged.start
    shown = slice(max(result.judged.start, int(known[-1]) + 1 - WINDOW), int(known[-1]) + 1)
    steps = np.arange(shown.start, shown.stop)
    figure: Any = Figure(figsize=(4.2 * max(2, len(gammas)), 1.95 * len(drawn) + 4.4))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.06)
    figure.suptitle("Nexting: what was predicted, and what came", fontsize=18)
    above, below = figure.subfigures(2, 1, height_ratios=(1.95 * len(drawn) + 0.6, 3.0))
    panels = above.subplots(len(drawn), len(gammas), sharex=True, sharey="row", squeeze=False)
    for row, name in zip(panels, drawn, strict=True):
        i = names.index(name)
        weights = 1 - np.array(gammas)
        lowest = mean[i] + spread[i] * np.nanmin(weights * result.came[shown, i])
        for j, (axes, gamma) in enumerate(zip(row, gammas, strict=True)):
            # (1 - gamma) G is a weighted mean of what comes, in the signal's own units.
            came, predicted = (
                mean[i] + spread[i] * (1 - gamma) * array[shown, i, j] for array in (result.came, result.predicted)
            )
            axes.fill_between(steps, came, lowest, color="0.88", linewidth=0)
            axes.plot(steps, came, color="0.35", linewidth=1.3, label=r"return that came, $(1-\gamma)\,G$")
            axes.plot(steps, predicted, color="#D55E00", linewidth=1.3, label=r"predicted on-line, $(1-\gamma)\,v$")
            axes.set_title(f"nMSE {result.errors.learned[i, j]:.2f}", fontsize=10.5, loc="right", pad=3)
            axes.margins(x=0)
        row[0].set_ylabel(name, fontsize=12)
    for axes, gamma in zip(panels[0], gammas, strict=True):
        axes.set_title(f"{ahead(gamma)} ahead", fontsize=13, loc="left", pad=3)
    for axes in panels[-1]:
        axes.set_xlabel("step", fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=12, frameon=False)

    errors = below.subplots()
    at, medians = curve(result, start)
    for j, gamma in enumerate(gammas):
        color = COLORS[j % len(COLORS)]
        errors.plot(at, medians[:, j], color=color, linewidth=2, label=f"{ahead(gamma)} ahead")
    errors.axhline(1, color="0.4", linewidth=1.2, linestyle="--")
    errors.text(at[-1], 1.05, "predicting the mean", color="0.3", ha="right", va="bottom", fontsize=11)
    errors.axvspan(result.judged.start, result.judged.stop, color="0.94", linewidth=0)
    errors.set_yscale("log")
    errors.set_xlim(start, result.judged.stop)
    errors.set_title(
        "Learning: nMSE = mean squared error / variance of the return, median over signals; grey: the quarter judged",
        fontsize=12.5,
    )
    errors.set_xlabel("step", fontsize=11)
    errors.legend(fontsize=11, frameon=False, ncols=len(gammas), loc="upper center", bbox_to_anchor=(0.5, 0.9))
    for axes in (*panels.flat, errors):
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(DemoNexting)))
