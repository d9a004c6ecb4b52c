"""Linear and non-linear separation: logistic regression beside two-layer networks, their surfaces as a picture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from valueapprox import Adam, Network, fit, risk
from valueapprox.checks import positive
from valueapprox.cli.charts import new_figure, new_table, progress_bar, save_figure
from valueapprox.cli.terminal import announce_compile, command, command_line, console, errors_in_one_line, plain
from valueapprox.files import folder_for
from valueapprox.seeding import sequence
from valueapprox.supervised.regularizers import L2

PICTURE = "separation.png"
TITLES = {"xor": "XOR: four blobs", "circles": "A disc in a ring", "spiral": "Two spiral arms", "linear": "Two blobs"}
FRESH = 4000  # examples that nothing has learned from
GRID = 300  # points on a side of a surface
COLORS = ("#0072B2", "#D55E00")  # classes 0 and 1, blue and vermilion of Okabe & Ito 2008


@dataclass(frozen=True)
class DemoSeparation:
    """Separate two classes of points with a line, and with a network that has a hidden layer.

    Logistic regression, a network without a hidden layer, cannot separate what no line separates; a two-layer network
    can. Prints the shares of correct answers on the training examples and on fresh ones, and draws what the networks
    believe. Several numbers of units, or several strengths of the L2 penalty, show under- and overfitting.

    More examples:
      demo_separation.py --data spiral --noise 0.1 --hidden 4 64 --epochs 2000
      demo_separation.py --data circles --points 60 --noise 0.35 --hidden 2 8 128 --l2 0 0.003 0.03
    """

    data: Literal["xor", "circles", "spiral", "linear"] = "xor"
    """Four blobs, opposite ones of a class; a disc in a ring; two spiral arms; two blobs."""
    points: int = 400
    """Training examples."""
    noise: float = 0.25
    """Standard deviation of the noise on both coordinates; the classes are about 1 apart, arms of the spiral 0.5."""
    hidden: tuple[int, ...] = (16,)
    """Units of the hidden layer; a network for each number."""
    l2: tuple[float, ...] = (0.0,)
    """Strengths of the L2 penalty on the weights; each network is fitted with each."""
    epochs: int = 500
    """Passes over the training examples."""
    seed: int = 0
    """Seed of the points, initial weights and order."""
    out: Path | None = None
    """Folder for the picture; runs/demo-separation-TIME if not given."""
    quiet: bool = False
    """No progress bar; the results only."""


@dataclass
class Result:
    """A fitted network, the shares of its answers that are correct, and its log loss on fresh examples."""

    name: str
    net: Network
    w: np.ndarray
    l2: float
    training: float
    fresh: float
    loss: float


def sample(data: str, n: int, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) and their classes (n,), 0 or 1 in turn, so that there are as many of each."""
    y = np.arange(n) % 2.0
    if data == "xor":
        first = np.where(np.arange(n) % 4 < 2, 0.75, -0.75)
        points = np.stack([first, np.where(y == 1, -first, first)], axis=1)
    elif data == "linear":
        points = np.outer(2 * y - 1, [0.5, 0.5])
    elif data == "circles":
        points = polar(np.where(y == 1, 0.4, 1.3), rng.uniform(0, 2 * np.pi, n))
    else:
        # A turn and a half; the other arm is the same, half a turn further. Evenly along the arm.
        share = np.sqrt(rng.uniform(0.02, 1, n))
        points = polar(1.5 * share, 3 * np.pi * share + np.pi * y)
    return points + rng.normal(0, noise, (n, 2)), y


def polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Points (n, 2)."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def main(options: DemoSeparation) -> int:
    """Fit, print, draw; returns the exit code."""
    check(options)
    announce_compile()
    training, fresh = (
        sample(options.data, n, options.noise, np.random.default_rng(sequence(options.seed, name)))
        for n, name in ((options.points, "training"), (FRESH, "fresh"))
    )
    networks = [("logistic regression", Network((2, 1), output="sigmoid"))]
    for h in options.hidden:
        networks.append((f"two layers, {h} unit{'s' if h > 1 else ''}", Network((2, h, 1), output="sigmoid")))
    with folder_for(options.out, "demo-separation") as folder:
        path = folder / PICTURE
        if path.exists():
            raise FileExistsError(f"{path} exists; choose another --out")
        results: list[Result] = []
        with progress_bar("learning", len(options.l2) * len(networks) * options.epochs, options.quiet) as advance:
            for strength in options.l2:
                for name, net in networks:
                    done = len(results) * options.epochs
                    results.append(learn(name, net, strength, options, training, fresh, advance, done))
        console.print(
            f"{options.points} training examples of {options.data}, noise {options.noise:g}, {FRESH:,} fresh ones"
        )
        console.print(table(results))
        save_figure(draw(results, options, *training), path)
    console.print(f"Picture   {plain(path)}")
    if len(results) == 2:
        harder = ["--data", "circles", "--points", "60", "--noise", "0.35", "--hidden", "2", "8", "128"]
        console.print(f"Try next  {plain(command('demo_separation.py', *harder))}")
    return 0


def check(options: DemoSeparation) -> None:
    """Errors before anything is fitted."""
    positive("points", options.points, at_least=2)
    positive("epochs", options.epochs)
    positive("seed", options.seed, at_least=0)
    if not options.noise >= 0:
        raise ValueError(f"noise is {options.noise}; expected a standard deviation, which is not negative")
    if not options.hidden or not options.l2:
        raise ValueError("hidden or l2 is empty; expected at least one number each")
    for h in options.hidden:
        positive("hidden", h)
    for strength in options.l2:
        if not strength >= 0:
            raise ValueError(f"l2 is {strength}; expected a strength, which is not negative")


def learn(
    name: str,
    net: Network,
    strength: float,
    options: DemoSeparation,
    training: tuple[np.ndarray, np.ndarray],
    fresh: tuple[np.ndarray, np.ndarray],
    advance: Callable[[int], None],
    done: int,
) -> Result:
    """Fit one network by Adam on the log loss, after `done` epochs of others."""
    w = net.init(options.seed)
    fit(
        *(net, w, *training),
        loss="log_loss",
        optimizer=Adam(0.01),
        regularizer=L2(strength) if strength > 0 else None,
        epochs=options.epochs,
        seed=options.seed,
        progress=False,
        callback=lambda history: advance(done + history.epoch),
    )
    known, new = (float(np.mean((net.forward(w, S)[:, 0] > 0.5) == y)) for S, y in (training, fresh))
    return Result(name, net, w, strength, known, new, risk(net, w, *fresh, loss="log_loss"))


def table(results: Sequence[Result]) -> Table:
    """A row for each network: the shares of correct answers, and the log loss."""
    columns = new_table(
        "Shares of correct answers, and the log loss",
        ("network",),
        ("parameters", "L2", "training", "fresh", "fresh loss"),
        caption="Always answering 1/2 has the loss log 2 = 0.693.",
        caption_justify="left",
    )
    for result in results:
        numbers = (f"{result.net.n_parameters}", f"{result.l2:g}", f"{result.training:.1%}", f"{result.fresh:.1%}")
        columns.add_row(result.name, *numbers, f"{result.loss:.3f}")
    return columns


def draw(results: Sequence[Result], options: DemoSeparation, states: np.ndarray, y: np.ndarray) -> Any:
    """The figure: a panel for each network, a row for each strength of the penalty."""
    from matplotlib.colors import LinearSegmentedColormap

    n_rows = len(options.l2)
    n_columns = len(results) // n_rows
    figure = new_figure(4.6 * n_columns + 1.2, 4.7 * n_rows + 0.6)
    figure.suptitle(f"{TITLES[options.data]}, {options.points} training examples", fontsize=16)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    reach = 1.05 * float(np.abs(states).max())
    side = np.linspace(-reach, reach, GRID)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    shades = LinearSegmentedColormap.from_list("classes", [COLORS[0], "white", COLORS[1]])
    for axes, result in zip(grid.flat, results, strict=True):
        probability = result.net.forward(result.w, points)[:, 0].reshape(GRID, GRID)
        extent = (-reach, reach, -reach, reach)
        image = axes.imshow(
            probability, extent=extent, origin="lower", cmap=shades, vmin=0, vmax=1, alpha=0.6, interpolation="bilinear"
        )
        if probability.min() < 0.5 < probability.max():
            axes.contour(side, side, probability, levels=[0.5], colors="black", linewidths=2)
        for label, marker in enumerate("os"):
            mine = states[y == label]
            axes.scatter(
                *mine.T, s=22, marker=marker, color=COLORS[label], edgecolor="white", linewidth=0.6,
                label=f"class {label}",
            )  # fmt: skip
        penalty = f", L2 {result.l2:g}" if any(options.l2) else ""
        axes.set_title(
            f"{result.name}{penalty}\ncorrect: training {result.training:.1%}, fresh {result.fresh:.1%}", fontsize=12
        )
        axes.set_aspect("equal")
        axes.tick_params(labelsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("$s_1$", fontsize=12)
    for axes in grid[:, 0]:
        axes.set_ylabel("$s_2$", fontsize=12)
    bar = figure.colorbar(image, ax=grid, aspect=25 * n_rows, pad=0.02)
    bar.set_label("probability of class 1; black line: 0.5", fontsize=12)
    bar.ax.tick_params(labelsize=10)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=12, frameon=False)
    return figure


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(DemoSeparation)))
