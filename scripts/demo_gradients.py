"""Vanishing and exploding gradients: deep networks that suffer from them beside their cures, in a picture and a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from valueapprox import SGD, FitError, History, Network, fit
from valueapprox.checks import positive
from valueapprox.cli.charts import new_figure, new_table, progress_bar, save_figure
from valueapprox.cli.terminal import announce_compile, command_line, console, errors_in_one_line, plain, typed
from valueapprox.files import folder_for
from valueapprox.seeding import sequence
from valueapprox.supervised.gradient_flow import Diagnosis, diagnose

EXAMPLES = 600
RADIUS = 0.75  # of the disc that is to be told from what surrounds it in the square [-1, 1]^2; about half of its area
TOO_LARGE = 2.5  # what large weights are multiplied by


@dataclass(frozen=True)
class DemoGradients:
    """Train deep networks with vanishing and exploding gradients, and with what helps against them.

    Six networks learn whether a point lies in a disc, by stochastic gradient descent on the log loss: sigmoid units,
    whose gradient vanishes; ReLU, and sigmoid units with batch normalisation, against that; ReLU with too large initial
    weights, whose gradient explodes; batch normalisation and a lower rate against that. Prints what is seen in each,
    draws a picture and writes a TensorBoard log of every network.

    Example: demo_gradients.py --hidden-layers 15 --lower-rate 1e-5 --epochs 300
    """

    hidden_layers: int = 10
    """Hidden layers of every network."""
    units: int = 32
    """Units of a hidden layer."""
    epochs: int = 150
    """Passes over the examples."""
    rate: float = 0.1
    """Step size of stochastic gradient descent."""
    lower_rate: float = 1e-4
    """That of the last network. The deeper the networks, the lower must it be."""
    seed: int = 0
    """Seed of the examples, initial weights and order."""
    out: Path | None = None
    """Folder for picture and logs; runs/demo-gradients-TIME if not given."""
    quiet: bool = False
    """No progress bar; the results only."""


@dataclass(frozen=True)
class Case:
    """One network of the demonstration: how it is built, where it starts, and how it is drawn."""

    name: str
    hidden: str
    init: str
    batch_norm: bool = False
    scale: float = 1.0
    lower_rate: bool = False
    color: str = "black"  # of Okabe & Ito 2008, which colour-blind people can tell apart
    marker: str = "o"
    line: str = "-"


CASES = (
    Case("sigmoid", "sigmoid", "glorot_normal", color="#D55E00", marker="v"),
    Case("ReLU", "relu", "he_normal", color="#0072B2", marker="o"),
    Case("sigmoid, batch norm", "sigmoid", "glorot_normal", True, color="#E69F00", marker="D"),
    Case("ReLU, large weights", "relu", "he_normal", scale=TOO_LARGE, color="#000000", marker="^"),
    Case("large weights, batch norm", "relu", "he_normal", True, TOO_LARGE, color="#009E73", marker="s"),
    Case(
        "large weights, lower rate", "relu", "he_normal", False, TOO_LARGE, True, color="#CC79A7", marker="P", line="--"
    ),
)


@dataclass
class Result:
    """What became of a network."""

    case: Case
    rate: float
    before: Diagnosis
    after: Diagnosis | None  # None if it diverged
    rows: list[dict[str, float]]
    accuracy: float
    failure: str = ""


def main(options: DemoGradients) -> int:
    """Train, print, draw; returns the exit code."""
    for name in ("hidden_layers", "units", "epochs"):
        positive(name, getattr(options, name))
    positive("seed", options.seed, at_least=0)
    for name in ("rate", "lower_rate"):
        if not 0 < getattr(options, name) < np.inf:
            raise ValueError(f"{name} is {getattr(options, name)}; expected a positive number")
    announce_compile()
    rng = np.random.default_rng(sequence(options.seed, "examples"))
    states = rng.uniform(-1.0, 1.0, (EXAMPLES, 2))
    inside = (np.hypot(states[:, 0], states[:, 1]) < RADIUS).astype(float)
    results: list[Result] = []
    with folder_for(options.out, "demo-gradients") as folder:
        with progress_bar("learning", len(CASES) * options.epochs, options.quiet) as advance:
            for case in CASES:
                done = len(results) * options.epochs
                results.append(train(case, options, states, inside, folder, advance, done))
        save_figure(draw(results, options), folder / "gradients.png")
    console.print(
        f"{EXAMPLES} points, inside a disc or not; {options.hidden_layers} hidden layers of {options.units} units; "
        f"{options.epochs} epochs of stochastic gradient descent"
    )
    console.print(table(results))
    for result in results:
        if result.before.verdict != "healthy":
            console.print(f"[bold]{result.case.name}[/] at the start: {result.before.sentence}")
    console.print(f"\nPicture      {plain(folder / 'gradients.png')}")
    console.print(f"Logs         {plain(folder)}")
    console.print(f"Look at it   {plain(typed('tensorboard', '--logdir', folder))}")
    return 0


def train(
    case: Case,
    options: DemoGradients,
    states: np.ndarray,
    inside: np.ndarray,
    folder: Path,
    advance: Callable[[int], None],
    done: int,
) -> Result:
    """Fit one network, after `done` epochs of others, with its log in a folder of its own."""
    from valueapprox.telemetry import RunLog  # TensorBoard takes a second

    sizes = (2, *(options.units,) * options.hidden_layers, 1)
    net = Network(sizes, hidden=case.hidden, output="sigmoid", batch_norm=case.batch_norm)
    rate = options.lower_rate if case.lower_rate else options.rate
    w = net.init(options.seed, case.init)
    for W, _ in net.unpack(w)[:-1]:
        W *= case.scale
    rows: list[dict[str, float]] = []

    def keep(history: History) -> None:  # what was before a failure is wanted too
        rows.append(history.rows[-1])
        advance(done + history.epoch)

    before = diagnose(net, w, states, inside, "log_loss")
    after, failure = None, ""
    own = folder / case.name.replace(", ", "-").replace(" ", "-")
    own.mkdir(parents=True, exist_ok=True)
    with RunLog(own) as log:
        names = [layer.name for layer in before.layers]
        charts = {"gradient norm per layer": "fit/grad_norm", "norm of dl/dpsi per layer": "flow/norm"}
        log.layout({"gradients": {title: [f"{tag}/{name}" for name in names] for title, tag in charts.items()}})
        log.text("diagnosis at the start", str(before))
        log.scalars(0, norms(before))
        try:
            fit(
                *(net, w, states, inside),
                loss="log_loss",
                optimizer=SGD(rate),
                epochs=options.epochs,
                seed=options.seed,
                callback=keep,
                log=log,
                progress=False,
            )
        except FitError as error:
            failure = f"diverged in epoch {len(rows) + 1}"
            log.text("failure", str(error))
        else:
            after, step = diagnose(net, w, states, inside, "log_loss"), int(rows[-1]["updates"])
            log.text("diagnosis at the end", str(after), step)
            log.scalars(step, norms(after))
    advance(done + options.epochs)
    accuracy = float(np.mean((net.forward(w, states)[:, 0] > 0.5) == inside))
    return Result(case, rate, before, after, rows, accuracy, failure)


def norms(diagnosis: Diagnosis) -> dict[str, float]:
    """The numbers of a diagnosis, as they are logged."""
    return {f"flow/norm/{layer.name}": layer.norm for layer in diagnosis.layers}


def table(results: Sequence[Result]) -> Table:
    """A row for each network: what is seen at the start and at the end, and what it has learned."""
    # Narrow enough for 80 characters.
    columns = new_table(
        "The gradient, and what a layer multiplies it by on its way down",
        ("network", "at the start", "at the end"),
        ("loss", "accuracy"),
        padding=(0, 1, 0, 0),
    )
    for result in results:
        seen = []
        for found in (result.before, result.after):
            color = "green" if found is not None and found.verdict == "healthy" else "red"
            seen.append("" if found is None else f"[{color}]{found.verdict:9}[/] {found.factor:.2f}")
        learned = ("[red]diverged[/]", "")
        if not result.failure:
            learned = (f"{result.rows[-1]['loss']:.3f}", f"{result.accuracy:.1%}")
        columns.add_row(result.case.name, *seen, *learned)
    return columns


def draw(results: Sequence[Result], options: DemoGradients) -> Any:
    """The figure: above, all networks at the start, and their losses; below, each network's layers over training."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(16, 9)
    figure.set_layout_engine("constrained", wspace=0.04)
    figure.suptitle(
        f"Vanishing and exploding gradients: {options.hidden_layers} hidden layers of {options.units} units",
        fontsize=17,
    )
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    at_start, weights, losses = above.subplots(1, 3)
    layers = np.arange(1, options.hidden_layers + 2)
    for result in results:
        case = result.case
        style: dict[str, Any] = {"color": case.color, "marker": case.marker, "linestyle": case.line, "label": case.name}
        style |= {"markersize": 6, "linewidth": 1.8}
        at_start.plot(layers, [layer.norm for layer in result.before.layers], **style)
        weights.plot(layers, [layer.grad_norm for layer in result.before.layers], **style)
        if result.rows:
            every = (0, max(1, options.epochs // 6))
            epochs = [row["epoch"] for row in result.rows]
            losses.plot(epochs, [row["loss"] for row in result.rows], **style | {"linewidth": 1.3, "markevery": every})
    for axes, title in (
        (at_start, "At the start: derivative at a layer's units"),
        (weights, "At the start: gradient of a layer's weights"),
    ):
        axes.set_title(title, fontsize=13)
        axes.set_xlabel("layer: from the inputs (left) to the output (right)", fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=11))
    at_start.set_ylabel(r"norm of $\partial\ell\,/\,\partial\psi$", fontsize=12)
    weights.set_ylabel("gradient norm", fontsize=12)
    losses.set_title("Loss while training", fontsize=13)
    losses.set_ylabel("log loss", fontsize=12)
    losses.set_xlabel("epoch", fontsize=11)
    for result in results:
        if result.failure:
            losses.text(
                0.98, 0.97, f"{result.case.name}: {result.failure}", color=result.case.color, fontsize=11,
                transform=losses.transAxes, ha="right", va="top",
            )  # fmt: skip
    handles, names = at_start.get_legend_handles_labels()
    above.legend(handles, names, loc="outside lower center", ncols=len(results), fontsize=11.5, frameon=False)

    # Without viridis' light end, which is hard to see on white.
    shades = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, len(layers))))
    panels = below.subplots(1, len(results), sharey=True, sharex=True)
    for axes, result in zip(panels, results, strict=True):
        for l, layer in enumerate(result.before.layers):
            shade = shades(l)
            # Before the first update, over all examples; then an epoch's mean over minibatches.
            axes.plot(0, layer.grad_norm, marker="o", markersize=4, color=shade, clip_on=False)
            column = [row[f"grad_norm/{layer.name}"] for row in result.rows]
            axes.plot(range(1, len(column) + 1), column, color=shade, linewidth=1.4)
        axes.set_title(f"{result.case.name}\nrate {result.rate:g}", fontsize=11.5)
        axes.set_xlabel("epoch", fontsize=11)
        if result.failure:
            axes.text(0.55, 0.5, result.failure, transform=axes.transAxes, ha="center", va="center", fontsize=12)
    panels[0].set_ylabel("gradient norm per layer", fontsize=12)
    for axes in (at_start, weights, losses, *panels):
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    norm = Normalize(0.5, len(layers) + 0.5)
    bar = below.colorbar(ScalarMappable(norm, shades), ax=panels, pad=0.01, aspect=25)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=11))
    bar.set_label("layer (1: at the inputs)", fontsize=11)
    return figure


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(DemoGradients)))
