"""Pictures of a run, drawn from its log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox.cli.charts import new_figure, save_figure
from valueapprox.telemetry import read_metrics

__all__ = ["control_picture", "mean_returns", "return_chart", "run_picture", "steps_axis"]

#: title, tags by how they begin, scale
Panel = tuple[str, tuple[str, ...], str]

PANELS: tuple[Panel, ...] = (
    ("value error", ("value/error/", "evaluation/value_error"), "linear"),
    ("TD error, root mean square", ("value/td_error/rms",), "linear"),
    ("gradient norm per layer", ("value/grad_norm/",), "log"),
    ("trace norm per layer", ("value/trace_norm/",), "log"),
    ("update norm / weight norm per layer", ("value/update_ratio/",), "log"),
)
CONTROL_PANELS: tuple[Panel, ...] = (
    ("TD error, root mean square", ("value/td_error/rms", "critic/td_error/rms"), "linear"),
    ("value network: gradient norm per layer", ("value/grad_norm/", "critic/grad_norm/"), "log"),
    ("actor: gradient norm per layer", ("actor/grad_norm/",), "log"),
    ("h: gradient norm per layer", ("h/grad_norm/",), "log"),
    ("actor: entropy", ("actor/entropy",), "linear"),
)
NAMES = {
    **dict.fromkeys(("value/td_error/rms", "critic/td_error/rms"), "mean since the point before"),
    "value/error/rmsve": "RMSVE, against the true values",
    "evaluation/value_error": "in fresh episodes",
}
POINTS = 60  # of a curve of returns
WINDOW = 20  # a point is the mean over a twentieth of the run
MOST_TICKS = 9  # of an axis
FEW = 12  # points that are marked, or one alone would not be seen
BLOCKS, PLAIN_BLOCKS = " ▁▂▃▄▅▆▇█", " ...::::#"


def run_picture(folder: str | Path, title: str) -> Path | None:
    """Draw what the run logged, value errors first, then norms by layer, into `run.png` of its folder.

    None if it logged nothing yet.
    """
    return _draw(folder, title, PANELS, [])


def control_picture(folder: str | Path, title: str, episodes: Sequence[dict[str, Any]]) -> Path | None:
    """The same for a control run: returns of its episodes with their mean over steps, TD error, norms, entropy."""
    return _draw(folder, title, CONTROL_PANELS, episodes)


def _draw(folder: str | Path, title: str, wanted: Sequence[Panel], episodes: Sequence[dict[str, Any]]) -> Path | None:
    metrics = read_metrics(folder)
    if not metrics:
        return None
    last = max(metrics[-1]["step"], episodes[-1]["step"] if episodes else 0)
    panels = [(name, _lines(metrics, prefixes, scale), scale) for name, prefixes, scale in wanted]
    panels = [panel for panel in panels if panel[1]]
    first = 1 if episodes else 0
    n_panels = first + len(panels)
    if n_panels == 0:
        return None
    columns = 2 if n_panels > 1 else 1
    rows = -(-n_panels // columns)
    figure = new_figure(5.2 * columns, 3.0 * rows)
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(rows, columns)
    places = [grid[i // columns, i % columns :] if i == n_panels - 1 else grid[i // columns, i % columns]
              for i in range(n_panels)]  # fmt: skip  # the last panel is as wide as the row has room
    if episodes:
        evaluated = [(line["step"], line["evaluation/return"]) for line in metrics if "evaluation/return" in line]
        _draw_returns(figure.add_subplot(places[0]), episodes, evaluated, last)
    for place, (name, lines, scale) in zip(places[first:], panels, strict=True):
        axes = figure.add_subplot(place)
        for tag, (steps, values) in lines.items():
            marker = "." if len(steps) <= FEW else None
            axes.plot(steps, values, marker=marker, label=NAMES.get(tag, tag.rpartition("/")[2]), linewidth=1.3)
        _finish(axes, name, last)
        numbers = np.concatenate([values for _, values in lines.values()])
        if scale == "log":
            _log_axis(axes, numbers.min(), numbers.max())
        elif numbers.min() >= 0:
            axes.set_ylim(bottom=0)
    path = Path(folder) / "run.png"
    save_figure(figure, path)
    return path


def _lines(
    metrics: Sequence[dict[str, Any]], prefixes: tuple[str, ...], scale: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of the tags that begin so, as far as they can be drawn: finite, and positive on a log axis."""
    lines = {}
    for tag in sorted({tag for line in metrics for tag in line if tag.startswith(prefixes)}):
        steps, values = np.array([(line["step"], line[tag]) for line in metrics if tag in line], np.float64).T
        drawn = np.isfinite(values) & ((values > 0) | (scale != "log"))
        if drawn.any():
            lines[tag] = steps[drawn], values[drawn]
    return lines


def _draw_returns(
    axes: Any, episodes: Sequence[dict[str, Any]], evaluated: Sequence[tuple[int, float]], last: int
) -> None:
    ends = np.array([episode["step"] for episode in episodes])
    returns = np.array([episode["return"] for episode in episodes], np.float64)
    axes.plot(ends, returns, ".", markersize=2, alpha=0.35, label="episode", rasterized=True)
    steps = np.linspace(0, last, POINTS + 1)[1:]
    means = mean_returns(episodes, steps)
    there = np.isfinite(means)
    marker = "." if there.sum() <= FEW else None
    label = f"mean over the last {last / WINDOW:,.0f} steps"
    axes.plot(steps[there], means[there], marker=marker, linewidth=1.6, label=label)
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), marker="o", markersize=3, linewidth=1.2, label="evaluation, greedy")
    _finish(axes, "return of an episode", last)


def _finish(axes: Any, title: str, last: int) -> None:
    axes.set_title(title, fontsize=10)
    steps_axis(axes)
    axes.set_xlim(0, 1.02 * last)
    axes.tick_params(labelsize=8, which="both")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def steps_axis(axes: Any) -> None:
    """Environment steps, as 50k or 1M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel("environment steps", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _log_axis(axes: Any, low: float, high: float) -> None:
    """A log axis from one tick to another that hold all numbers between them, with labels such as 0.002 and 50."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    ticks = log_ticks(low, high)
    axes.set_yscale("log")
    axes.set_ylim(ticks[0], ticks[-1])
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float) -> list[float]:
    """From three to nine round numbers, the first at most `low` and the last at least `high`."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        numbers = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        start = max(i for i, number in enumerate(numbers) if number <= low)
        stop = min(i for i, number in enumerate(numbers) if number >= high)
        ticks = numbers[start : max(stop, start + 2) + 1]
        if len(ticks) <= MOST_TICKS:
            return ticks
    every = -(-len(ticks) // MOST_TICKS)
    exponent = round(math.log10(ticks[0]))
    return [float(f"1e{exponent + i * every}") for i in range(-(-(len(ticks) - 1) // every) + 1)]


def mean_returns(episodes: Sequence[Mapping[str, Any]], steps: np.ndarray) -> np.ndarray:
    """Mean return of the episodes that ended within a twentieth of the run before each of these steps, or NaN."""
    width = steps[-1] / WINDOW
    ends, returns = np.array([(e["step"], e["return"]) for e in episodes], np.float64).reshape(-1, 2).T
    means = [returns[(ends > step - width) & (ends <= step)] for step in steps]
    return np.array([m.mean() if len(m) else np.nan for m in means])


def return_chart(
    episodes: Sequence[dict[str, Any]], n_steps: int, *, width: int = 60, height: int = 8, plain: bool = False
) -> str:
    """A training curve for the terminal: a column is the mean return of the episodes that ended in its share of steps.

    A column in which none ended shows the one before. Empty with fewer than two episodes. `plain` has ASCII only.
    """
    if len(episodes) < 2:
        return ""
    columns = [min(width - 1, (episode["step"] - 1) * width // n_steps) for episode in episodes]
    counts = np.bincount(columns, minlength=width)
    sums = np.bincount(columns, [episode["return"] for episode in episodes], width)
    shown = np.flatnonzero(counts)
    means = sums[shown] / counts[shown]
    low, high = float(means.min()), float(means.max())
    eighths = np.zeros(width, int)
    eighths[shown] = 1 + np.round((means - low) / ((high - low) or 1.0) * (8 * height - 1)).astype(int)
    eighths = eighths[np.maximum.accumulate(np.where(counts > 0, np.arange(width), 0))]
    blocks, axis = (PLAIN_BLOCKS, "|") if plain else (BLOCKS, "┤")
    labels = {height - 1: f"{high:,.4g}", 0: f"{low:,.4g}"}
    lines = []
    for row in range(height - 1, -1, -1):
        bar = "".join(blocks[min(8, max(0, n - 8 * row))] for n in eighths.tolist())
        lines.append(f"{labels.get(row, ''):>9} {axis}{bar}".rstrip())
    lines.append(f"{'0':>12}{f'{n_steps:,} steps':>{max(1, width - 1)}}")
    return "\n".join(lines)
