"""What is said and drawn of a fit: scores beside the baseline, the learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from valueapprox.cli.charts import new_figure, new_table, save_figure
from valueapprox.supervised.fitting import History

__all__ = ["learning_curve", "scores_table", "still_falling"]


def scores_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """The scores of each set of rows and each target, see `Model.scores`."""
    table = new_table(None, ("",), next(iter(next(iter(scores.values())).values())))
    for rows, by_target in scores.items():
        for name, numbers in by_target.items():
            label = rows if len(by_target) == 1 else f"{rows}, {name}"
            shown = (f"{x:.1%}" if "accuracy" in what else f"{x:.4g}" for what, x in numbers.items())
            table.add_row(escape(label), *shown)
    return table


def learning_curve(history: History, path: Path, title: str, alphas: Sequence[float], unit: str) -> None:
    """Draw losses, gradient norms and step sizes over the epochs into a PNG file."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(13.0, 3.8)
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    epochs, best = history["epoch"], history.best_epoch
    factor = history["step_size"]
    sizes = {"all layers": alphas[0] * factor}
    if len(set(alphas)) > 1:
        sizes = {name: alpha * factor for name, alpha in zip(history.net.layer_names, alphas, strict=True)}
    losses = {"training": history["loss"]}
    if best is not None:
        losses["validation"] = history["validation_loss"]
    norms = {name: history[f"grad_norm/{name}"] for name in history.net.layer_names}
    panels = {f"loss{unit}": losses, "gradient norm per layer": norms, "step size": sizes}
    marker = "." if len(epochs) < 30 else None
    for axes, (name, curves) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for label, values in curves.items():
            axes.plot(epochs, values, label=label, linewidth=1.3, marker=marker)
        if curves is sizes:
            axes.set_ylim(bottom=0, top=1.05 * max(alphas))
        elif any((values > 0).any() for values in curves.values()):
            axes.set_yscale("log", nonpositive="mask")
        if curves is losses and best is not None:
            label = f"minimum of the validation loss: {history.best_loss:.3g}, epoch {best}"
            axes.plot([best], [history.best_loss], "o", color="black", markersize=5, label=label)
            axes.axvline(best, color="black", linewidth=0.7, linestyle=":")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8, which="both")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    save_figure(figure, path, dpi=110)


def still_falling(history: History) -> bool:
    """Whether the training loss of the last tenth of the epochs is clearly below that of the tenth before."""
    tenth = history.epoch // 10
    loss: np.ndarray = history["loss"]
    return tenth > 0 and bool(loss[-tenth:].mean() < 0.97 * loss[-2 * tenth : -tenth].mean())
