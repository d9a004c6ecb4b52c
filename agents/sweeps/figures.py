"""Pictures of results: learning curves over seeds, sensitivity to each setting, performance profiles."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from valueapprox.agents.sweeps.sheets import words_for
from valueapprox.agents.sweeps.table import Group, best, names_of, problem_of, renamed, value_text
from valueapprox.cli.charts import new_figure
from valueapprox.cli.pictures import steps_axis
from valueapprox.statistics import interval_of_mean, performance_profile

__all__ = ["curves", "draw_seeds", "png", "profiles", "sensitivities"]

MOST_LINES = 6  # of a panel: more are no picture
COLUMNS = 3
THRESHOLDS = 101


def png(figure: Any, dpi: int = 110) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def draw_seeds(axes: Any, steps: np.ndarray, curves: np.ndarray, colour: str, label: str | None = None) -> None:
    """The mean of curves (n_seeds, n_steps) with its 95 % interval where no seed is missing, and each seed thin."""
    for curve in curves:
        there = np.isfinite(curve)
        axes.plot(steps[there], curve[there], color=colour, alpha=0.2 if len(curves) > 1 else 1.0, linewidth=0.7)
    whole = np.isfinite(curves).all(axis=0)
    bands = [interval_of_mean(values) for values in curves[:, whole].T]
    means, lows, highs = np.array([(b.value, b.low, b.high) for b in bands]).reshape(-1, 3).T
    axes.plot(steps[whole], means, color=colour, linewidth=1.8, label=label)
    axes.fill_between(steps[whole], lows, highs, color=colour, alpha=0.25, linewidth=0)


def _panels(n: int, height: float = 3.4) -> tuple[Any, list[Any]]:
    columns = min(COLUMNS, n)
    rows = -(-n // columns)
    figure = new_figure(5.2 * columns, height * rows)
    return figure, [figure.add_subplot(rows, columns, place) for place in range(1, n + 1)]


def _finish(axes: Any, title: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)


def problem(settings: dict[str, Any]) -> str:
    """What is learned in, in a title."""
    return str(settings.get("env") or settings.get("data", "")).rpartition("/" if "data" in settings else "\0")[2]


def curves(groups: Sequence[Group]) -> Any | None:
    """Curves over steps, a panel for each problem: mean over seeds, its 95 % interval, and every seed.

    Of many settings those with the best means. A seed that diverged or failed has no curve; the label counts them.
    """
    panels: dict[str, list[Group]] = {}
    for group in groups:
        if group.curves()[0].size:
            panels.setdefault(problem_key(group), []).append(group)
    if not panels:
        return None
    figure, every = _panels(len(panels))
    for axes, here in zip(every, panels.values(), strict=True):
        name, number = problem(here[0].settings), here[0].number
        ranked = sorted(renamed(here), key=lambda g: np.median(g.scores) if len(g.scores) else -math.inf, reverse=True)
        last = 0.0
        for colour, group in enumerate(ranked[:MOST_LINES]):
            steps, lines = group.curves()
            lost = len(group.scores) - len(lines)
            draw_seeds(axes, steps, lines, f"C{colour}", group.name + (f" ({lost} lost)" if lost else ""))
            last = max(last, float(steps[-1]))
        steps_axis(axes)
        if "data" in here[0].settings:
            axes.set_xlabel("epochs", fontsize=9)
        axes.set_xlim(0, 1.02 * last)
        more = f", best {MOST_LINES} of {len(ranked)} settings" if len(ranked) > MOST_LINES else ""
        _finish(axes, name + more, words_for(number.removesuffix("_area")))
    return figure


def problem_key(group: Group) -> str:
    """Equal for groups of one problem."""
    return json.dumps(problem_of(group.settings), sort_keys=True)


def sensitivities(groups: Sequence[Group]) -> Any | None:
    """A panel for each setting that was varied: over its values, the best over all others, and their mean.

    A bar is the 95 % interval over seeds of that best setting.
    """
    names = [name for name in names_of([group.settings for group in groups]) if name not in ("env", "agent")]
    if not names or len(groups) < 2:
        return None
    sign = -1.0 if groups[0].least_is_best else 1.0
    figure, every = _panels(len(names), 3.0)
    for axes, name in zip(every, names, strict=True):
        values = sorted({json.dumps(g.settings.get(name)) for g in groups}, key=_order_of)
        numbers = [_plain_number(json.loads(value)) for value in values]
        as_numbers = all(number is not None for number in numbers)
        x = np.array(numbers if as_numbers else range(len(values)), np.float64)
        tops, means = [], []
        for value in values:
            here = [g for g in groups if json.dumps(g.settings.get(name)) == value]
            top = best(here)
            found = top.mean
            tops.append((sign * found.value, abs(found.value - found.low)))
            finite = [g.mean.value for g in here if math.isfinite(g.mean.value)]
            means.append(sign * float(np.mean(finite)) if finite else math.nan)
        centre, half = np.array(tops).T
        axes.errorbar(x, centre, np.nan_to_num(half), marker="o", markersize=4, capsize=3, label="best of the others")
        axes.plot(x, means, marker=".", linestyle="--", label="mean over the others")
        if as_numbers and (x > 0).all() and x.max() / x.min() >= 20:
            axes.set_xscale("log")
        if not as_numbers:
            axes.set_xticks(x, [value_text(json.loads(value)) for value in values], rotation=20)
        axes.set_xlabel(name, fontsize=9)
        _finish(axes, f"sensitivity to {name}", words_for(groups[0].number))
    return figure


def _plain_number(value: Any) -> float | None:
    single = value[0] if isinstance(value, list) and len(value) == 1 else value
    return float(single) if isinstance(single, int | float) and not isinstance(single, bool) else None


def _order_of(text: str) -> tuple[Any, ...]:
    number = _plain_number(json.loads(text))
    return (0, number, "") if number is not None else (1, 0.0, text)


def profiles(groups: Sequence[Group]) -> Any | None:
    """Performance profiles: the share of seeds that reach some number, with 95 % bands; a panel per problem."""
    panels: dict[str, list[Group]] = {}
    for group in groups:
        if len(group.scores):
            panels.setdefault(problem_key(group), []).append(group)
    if not panels:
        return None
    figure, every = _panels(len(panels), 3.0)
    for axes, here in zip(every, panels.values(), strict=True):
        name = problem(here[0].settings)
        ranked = sorted(renamed(here), key=lambda g: np.median(g.scores), reverse=True)[:MOST_LINES]
        known = np.concatenate([g.scores[np.isfinite(g.scores)] for g in ranked])
        if not known.size:
            known = np.zeros(1)
        margin = 0.02 * (np.ptp(known) or 1.0)
        thresholds = np.linspace(known.min() - margin, known.max() + margin, THRESHOLDS)
        least = ranked[0].least_is_best
        for colour, group in enumerate(ranked):
            share, low, high = performance_profile(group.scores, thresholds)
            x = -thresholds if least else thresholds
            axes.plot(x, share, color=f"C{colour}", label=group.name)
            axes.fill_between(x, low, high, color=f"C{colour}", alpha=0.2, linewidth=0)
        axes.set_xlabel(words_for(ranked[0].number), fontsize=9)
        axes.set_ylim(0, 1.02)
        _finish(axes, name, "share of seeds that are at most there" if least else "share of seeds that are above")
    return figure
