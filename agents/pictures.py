"""Pictures of a run, drawn from its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox.checkpoint import write_whole
from valueapprox.telemetry import read_metrics

__all__ = ["control_picture", "return_chart", "run_picture"]

#: title, tags by how they begin, scale
Panel = tuple[str, tuple[str, ...], str]

PANELS: tuple[Panel, ...] = (
    ("error", ("value/td_error/rms", "value/error/"), "linear"),
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
NAMES = {"value/td_error/rms": "TD error, root mean square", "value/error/rmsve": "RMSVE, against the true values"}
RUNNING_MEAN = 100  # episodes
BLOCKS, PLAIN_BLOCKS = " ▁▂▃▄▅▆▇█", " ...::::#"


def run_picture(folder: str | Path, title: str) -> Path | None:
    """Draw what the run logged, errors and per-layer norms over environment steps, into `run.png` of its folder.

    None if it logged nothing yet.
    """
    return _draw(folder, title, PANELS, [])


def control_picture(folder: str | Path, title: str, episodes: Sequence[dict[str, Any]]) -> Path | None:
    """The same for a control run: returns of its episodes with their running mean, TD error, norms, entropy."""
    return _draw(folder, title, CONTROL_PANELS, episodes)


def _draw(folder: str | Path, title: str, wanted: Sequence[Panel], episodes: Sequence[dict[str, Any]]) -> Path | None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, which only pictures need
    from matplotlib.figure import Figure

    metrics = read_metrics(folder)
    if not metrics:
        return None
    tags = sorted({tag for line in metrics for tag in line})
    panels = [(name, [t for t in tags if t.startswith(prefixes)], scale) for name, prefixes, scale in wanted]
    panels = [panel for panel in panels if panel[1]]
    first = 1 if episodes else 0
    n_panels = first + len(panels)
    columns = 2 if n_panels > 1 else 1
    rows = -(-n_panels // columns)
    figure = Figure(figsize=(5.2 * columns, 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    if episodes:
        _draw_returns(figure.add_subplot(rows, columns, 1), episodes)
    for place, (name, shown, scale) in enumerate(panels, start=first + 1):
        axes = figure.add_subplot(rows, columns, place)
        for tag in shown:
            points = [(line["step"], line[tag]) for line in metrics if tag in line]
            axes.plot(*zip(*points, strict=True), label=NAMES.get(tag, tag.rpartition("/")[2]), linewidth=1.3)
        axes.set_yscale(scale)
        _finish(axes, name)
        if scale == "linear" and all(line.get(tag, 0.0) >= 0 for tag in shown for line in metrics):
            axes.set_ylim(bottom=0)
    path = Path(folder) / "run.png"
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))
    return path


def _draw_returns(axes: Any, episodes: Sequence[dict[str, Any]]) -> None:
    steps = np.array([episode["step"] for episode in episodes])
    returns = np.array([episode["return"] for episode in episodes], np.float64)
    axes.plot(steps, returns, ".", markersize=2, alpha=0.35, label="episode", rasterized=True)
    axes.plot(steps, running_mean(returns, RUNNING_MEAN), linewidth=1.6, label=f"mean of the last {RUNNING_MEAN}")
    _finish(axes, "return of an episode")


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("environment steps", fontsize=9)
    axes.tick_params(labelsize=8, which="both")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def running_mean(values: np.ndarray, n: int) -> np.ndarray:
    """Means (m,) of each value and up to n - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(stops - n, 0)
    return (sums[stops] - sums[starts]) / (stops - starts)


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
