"""Speed of fitting on minibatches: ours beside PyTorch and scikit-learn, in one run, after comparing loss curves."""

from __future__ import annotations

import os

# Read when NumPy is imported, and the package imports it.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from valueapprox.commands.benchmark import (  # first: it sets one thread for PyTorch too
    console,
    machine,
    pin_to_one_core,
    spread,
)

# isort: split
import numpy as np
from rich.progress import Progress

from valueapprox import Adam, Network, fit
from valueapprox.cli.charts import new_table
from valueapprox.cli.terminal import announce_compile, command_line, errors_in_one_line, note
from valueapprox.seeding import sequence

OURS = "ours"
TORCH, TORCH_FUSED = "PyTorch", "PyTorch, fused Adam"
SKLEARN = "scikit-learn"
BARS = {TORCH: 3.0, SKLEARN: 2.0}  # how many times faster ours is to be
ALPHA, EPSILON, NEXT_TO_NOTHING = 1e-3, 1e-8, 1e-12


@dataclass(frozen=True)
class Benchmark:
    """Time an epoch of Adam on half the squared error: ReLU, linear output, minibatches, one thread, one core.

    All begin with the same weights and take the minibatches in the same order; first their loss curves over ten epochs
    are compared, and if they differ by more than rounding explains, nothing is timed and the exit code is 1.
    (scikit-learn's order cannot be given, and its epsilon stands before the bias correction: it is compared in the
    examples' own order, and with an epsilon that is next to nothing.) In float32 a unit at the kink of ReLU can part
    two runs that were equal to rounding; with other seeds or more examples that happens within ten epochs.
    A ratio says how many times faster ours is. It is formed within a round; shown are the median and the quartiles.
    """

    network: str = "17-128-128-1"
    """Sizes of the layers, inputs first."""
    dtype: Literal["float32", "float64"] = "float32"
    """dtype of weights and data."""
    examples: int = 2048
    """Number of pairs (s, y)."""
    batch_size: int = 32
    """Examples in a minibatch."""
    compare: int = 10
    """Epochs of the loss curves that are compared."""
    tolerance: float = 1e-5
    """How far two losses of an epoch may lie apart, relative to the loss."""
    rounds: int = 15
    """How often each is timed."""
    seed: int = 0
    """Seed of the weights, the pairs and the order."""


@dataclass(frozen=True)
class Problem:
    """What is fitted: a noisy sine of all inputs."""

    net: Network
    w: np.ndarray
    states: np.ndarray
    targets: np.ndarray
    batch_size: int
    seed: int

    @classmethod
    def random(cls, options: Benchmark) -> Problem:
        """A problem by the options."""
        net = Network(tuple(int(n) for n in options.network.split("-")), dtype=options.dtype)
        rng = np.random.default_rng(options.seed)
        states = rng.normal(size=(options.examples, net.n_inputs)).astype(net.dtype)
        waves = np.sin(states @ rng.normal(size=(net.n_inputs, net.n_outputs)) / np.sqrt(net.n_inputs))
        targets = (waves + 0.1 * rng.normal(size=waves.shape)).astype(net.dtype)
        return cls(net, net.init(options.seed), states, targets, options.batch_size, options.seed)

    def order(self, epoch: int) -> np.ndarray:
        """The examples in the order of an epoch."""
        order = np.arange(len(self.states))
        np.random.default_rng(sequence(self.seed, "order", epoch)).shuffle(order)
        return order


#: Epochs, whether the order is random, Adam's epsilon -> mean loss of each epoch.
Fit = Callable[[int, bool, float], list[float]]


def ours(problem: Problem) -> Fit:
    """Ours, from Python."""

    def run(epochs: int, shuffled: bool, epsilon: float) -> list[float]:
        history = fit(
            problem.net, problem.w.copy(), problem.states, problem.targets, batch_size=problem.batch_size,
            optimizer=Adam(ALPHA, epsilon=epsilon), epochs=epochs, shuffle=shuffled, seed=problem.seed, progress=False,
        )  # fmt: skip
        return [float(loss) for loss in history["loss"]]

    return run


def pytorch(problem: Problem, fused: bool) -> Fit:
    """PyTorch's own way: Sequential, autograd, torch.optim.Adam as it comes, or its fused form."""
    import torch

    torch.set_num_threads(1)
    dtype = getattr(torch, problem.net.dtype)
    states, targets = torch.from_numpy(problem.states), torch.from_numpy(problem.targets)

    def run(epochs: int, shuffled: bool, epsilon: float) -> list[float]:
        modules: list[torch.nn.Module] = []
        for W, b in problem.net.unpack(problem.w):
            linear = torch.nn.Linear(*W.shape, dtype=dtype)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(W.T.copy()))
                linear.bias.copy_(torch.from_numpy(b.copy()))  # type: ignore[union-attr]
            modules += [linear, torch.nn.ReLU()]
        model = torch.nn.Sequential(*modules[:-1])
        optimizer = torch.optim.Adam(model.parameters(), ALPHA, eps=epsilon, fused=fused)
        losses = []
        for epoch in range(epochs):
            order = torch.from_numpy(problem.order(epoch) if shuffled else np.arange(len(states)))
            total = 0.0
            for batch in order.split(problem.batch_size):
                optimizer.zero_grad()
                loss = 0.5 * torch.nn.functional.mse_loss(model(states[batch]), targets[batch])
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(batch)
            losses.append(total / len(states))
        return losses

    return run


def sklearn(problem: Problem) -> Fit:
    """scikit-learn's MLPRegressor, without its default L2 and without stopping early."""
    from sklearn.neural_network import MLPRegressor

    warnings.filterwarnings("ignore", module="sklearn")  # that one epoch has not converged
    targets = problem.targets.ravel() if problem.net.n_outputs == 1 else problem.targets
    settings = {
        "hidden_layer_sizes": problem.net.sizes[1:-1],
        "batch_size": problem.batch_size,
        "learning_rate_init": ALPHA,
        "alpha": 0.0,
        "tol": 0.0,
        "n_iter_no_change": 10**9,
    }

    def run(epochs: int, shuffled: bool, epsilon: float) -> list[float]:
        model = MLPRegressor(**settings, shuffle=shuffled, random_state=0, max_iter=epochs, epsilon=epsilon)
        model.partial_fit(problem.states[:2], targets[:2])  # makes the weights, which are then given
        for i, (W, b) in enumerate(problem.net.unpack(problem.w)):
            model.coefs_[i][...] = W
            model.intercepts_[i][...] = b
        del model._optimizer
        model.set_params(warm_start=True)
        model.loss_curve_ = []
        model.fit(problem.states, targets)
        return [float(loss) for loss in model.loss_curve_[-epochs:]]

    return run


def distance(curve: list[float], other: list[float]) -> float:
    """The largest difference of two losses of an epoch, relative."""
    return max(abs(a - b) / abs(b) for a, b in zip(curve, other, strict=True))


def main(options: Benchmark) -> int:
    """Compare, time, print; returns the exit code."""
    console.print("; ".join(f"{name} {value}" for name, value in machine().items()), soft_wrap=True)
    console.print(f"{pin_to_one_core()}; {options.rounds} rounds")
    announce_compile(console)
    problem = Problem.random(options)
    taking_part: dict[str, Fit] = {OURS: ours(problem)}
    if find_spec("torch"):
        taking_part |= {TORCH: pytorch(problem, fused=False), TORCH_FUSED: pytorch(problem, fused=True)}
    else:
        note("no PyTorch: pip install torch brings it")
    if find_spec("sklearn"):
        taking_part[SKLEARN] = sklearn(problem)
    else:
        note("no scikit-learn: pip install scikit-learn brings it")

    for name, run in taking_part.items():
        if name == OURS:
            continue
        how = (False, NEXT_TO_NOTHING) if name == SKLEARN else (True, EPSILON)
        apart = distance(taking_part[OURS](options.compare, *how), run(options.compare, *how))
        verdict = f"losses of {options.compare} epochs differ from {name}'s by {apart:.2g}"
        if not apart <= options.tolerance:
            console.print(f"[bold red]error:[/] {verdict}; rounding explains {options.tolerance:g}")
            return 1
        console.print(f"{verdict} at most, relative")

    seconds: dict[str, list[float]] = {name: [] for name in taking_part}
    with Progress(console=console, transient=True) as progress:
        for _ in progress.track(range(options.rounds), description="timing"):
            for name, run in taking_part.items():
                n_epochs = 5 if name == OURS else 1
                start = time.perf_counter()
                run(n_epochs, True, EPSILON)
                seconds[name].append((time.perf_counter() - start) / n_epochs)

    n_batches = -(-options.examples // options.batch_size)
    title = f"fit: {options.network}, {options.dtype}, minibatches of {options.batch_size}, Adam"
    table = new_table(title, ("",), ("ms per epoch", "us per minibatch", "times ours", "bar", ""), title_style="bold")
    for name, values in sorted(seconds.items(), key=lambda item: float(np.median(item[1]))):
        ratio = np.array(values) / np.array(seconds[OURS])
        bar = BARS.get(name)
        verdict = "" if bar is None else "[green]holds[/]" if np.median(ratio) >= bar else "[red]below the bar[/]"
        table.add_row(
            name, spread(1e3 * np.array(values)), f"{1e6 * np.median(values) / n_batches:.0f}", spread(ratio),
            "" if bar is None else f"{bar:g}", verdict,
        )  # fmt: skip
    console.print(table)
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Benchmark)))
