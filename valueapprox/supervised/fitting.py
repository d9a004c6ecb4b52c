"""Fit a network to pairs (s, y) by minimising the empirical risk: epochs of minibatches, early stopping, a history."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from valueapprox.checks import one_of, positive
from valueapprox.nn.network import Network
from valueapprox.optim import Adam, Optimizer
from valueapprox.seeding import sequence
from valueapprox.supervised import losses
from valueapprox.supervised.history import FitError, History
from valueapprox.supervised.losses import Loss
from valueapprox.supervised.objective import (
    LOSS_SUM,
    N_EXAMPLES,
    N_NORMED,
    NORMS,
    Data,
    Minibatches,
    Objective,
    as_data,
    minibatch_weights,
)
from valueapprox.supervised.regularizers import Regularizer, SupportsPenalty

if TYPE_CHECKING:
    from valueapprox.telemetry import RunLog

__all__ = ["FitError", "History", "ReduceOnPlateau", "fit"]

STOPPED = "stopped on demand"
SECONDS_PER_CALL = 0.2  # how long a compiled call lasts: as late a Ctrl-C is heard


@dataclass(frozen=True)
class ReduceOnPlateau:
    """Multiply every step size by `decay` when the loss has not fallen for `patience` epochs; not below `least`.

    The loss is that of the validation data if there are any, else that of the training data.
    """

    decay: float = 0.5
    patience: int = 5
    least: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"decay is {self.decay}; expected a factor between 0 and 1")
        object.__setattr__(self, "patience", positive("patience", self.patience))
        if not 0 <= self.least <= 1:
            raise ValueError(f"least is {self.least}; expected a factor in [0, 1]")


def fit(
    net: Network,
    w: np.ndarray,
    S: ArrayLike,
    Y: ArrayLike,
    *,
    loss: str | Loss | Sequence[losses.Function] = "half_squared",
    optimizer: Optimizer | None = None,
    regularizer: Regularizer | SupportsPenalty | None = None,
    dropout: float | Sequence[float] = 0.0,
    batch_size: int | None = 32,
    epochs: int | str | None = "auto",
    max_iterations: int | None = None,
    tolerance: float | None = None,
    gradient_tolerance: float | None = None,
    validation: tuple[ArrayLike, ArrayLike] | float | None = None,
    early_stopping: int | None = None,
    reduce_on_plateau: ReduceOnPlateau | None = None,
    shuffle: bool = True,
    seed: int = 0,
    callback: Callable[[History], bool | None] | None = None,
    stop: Callable[[], bool] | None = None,
    log: str | Path | RunLog | None = None,
    progress: bool | None = None,
    resume: History | str | Path | None = None,
    threads: int = 1,
) -> History:
    """Minimise R(w) = mean of l(yhat(s_i; w), y_i) + Omega(w) over w, in place, and return how it went.

    For each minibatch: g = gradient of its mean loss + grad Omega;  w <- w + the optimizer's step along -g. Where the
    loss sums over the n examples, g is the gradient of the sum over the minibatch's m of them, + m/n grad Omega.
    The same seed, data and settings give the same weights, bit for bit, on one machine.

    Parameters
    ----------
    net, w
        The network, and its weights (``net.init(seed)`` or any others), which are changed.
    S, Y
        States (n, d) and targets (n, k); (n,) for one output, or classes (n,) for the losses nll.
    loss
        A name or more: see `losses.get`. A pair (value, derivative) of functions works too, more slowly.
    optimizer
        Adam(1e-3) if not given. Its schedule counts updates.
    regularizer
        `regularizers.L2`, `L1`, `ElasticNet`, or an object with value(net, w) and gradient(net, w).
    dropout
        Rate of every hidden layer, or one for each; one more in front is that of the inputs. Off in predicting.
    batch_size
        Examples of a minibatch; 1 is one example at a time; None is all: batch gradient descent. The last minibatch of
        an epoch may be smaller; with batch normalisation a single left-over example joins the one before.
    epochs
        Maximum number of passes over all examples; None for no limit, which needs another way to end. "auto" is 100,
        or no limit if max_iterations is given.
    max_iterations
        Maximum number of updates.
    tolerance
        Converged when the objective (training loss + penalty) changes by no more than this from epoch to epoch.
    gradient_tolerance
        Converged when the norm of the objective's gradient over all data is no more than this after an epoch (with
        batch_size=None: in its update). Dropout and batch normalisation count as in predicting.
    validation
        Pairs (S, Y) that are not learned from; or the share of the data, in (0, 1), to be held out.
    early_stopping
        End when the validation loss has not fallen for this many epochs, and return the best weights.
    reduce_on_plateau
        Lower the step size when the loss stops falling.
    shuffle
        Whether each epoch takes the examples in a new random order.
    seed
        Seed of the order, the held-out examples and the dropout masks.
    callback
        Called with the history after each epoch; if it returns True, fit ends. ``history.w`` are the current weights.
    stop
        Asked several times a second; if it returns True, fit ends after the running minibatches and can be resumed.
    log
        A folder for TensorBoard's event file and metrics.jsonl, or an open log. Tags are ``fit/...`` over updates.
    progress
        Whether to show a progress bar; if None, in a terminal.
    resume
        A history, or a file of one, to go on from: the same call with more epochs ends as if it had run through. What
        decides when to end may differ. (A custom loss or regularizer is known by its name alone.)
    threads
        Threads of BLAS. One is fastest for small networks, and keeps results from depending on the number of cores.

    Raises
    ------
    ValueError, TypeError
        If data or settings make no sense; w is as before.
    FitError
        If a loss is NaN or infinite.

    Examples
    --------
    >>> net = Network((1, 1), dtype="float64")
    >>> w = net.init(seed=0)
    >>> history = fit(net, w, [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], optimizer=Adam(0.1), epochs=500)
    >>> w.round(3)  # y = 2 s + 1
    array([2., 1.])
    """
    run = _Run(
        *(net, w, S, Y),
        loss=losses.get(loss), optimizer=Adam() if optimizer is None else optimizer, regularizer=regularizer,
        dropout=dropout, batch_size=batch_size, validation=validation, early_stopping=early_stopping,
        plateau=reduce_on_plateau, shuffle=shuffle, seed=seed,
    )  # fmt: skip
    if isinstance(epochs, str):
        one_of("epochs", epochs, ("auto",))
        epochs = None if max_iterations is not None else 100
    if epochs is not None:
        epochs = positive("epochs", epochs)
    if max_iterations is not None:
        positive("max_iterations", max_iterations)
    for name, bound in (("tolerance", tolerance), ("gradient_tolerance", gradient_tolerance)):
        if bound is not None and not (isinstance(bound, Real) and bound >= 0):
            raise ValueError(f"{name} is {bound!r}; expected a number that is not negative")
    if epochs is None and max_iterations is None and tolerance is None and gradient_tolerance is None:
        if early_stopping is None:
            raise ValueError("epochs is None; expected max_iterations, tolerance or early_stopping then, which end too")
    for name, value in (("callback", callback), ("stop", stop)):
        if value is not None and not callable(value):
            raise ValueError(f"{name} is {value!r}; expected a function")
    positive("threads", threads)
    history = run.start(resume)
    import scipy.linalg.cython_blas  # noqa: F401  (Numba's products come from its BLAS: loaded before it is limited)

    with (
        threadpool_limits(int(threads), "blas"),
        _log(log, history, resume is not None, validation is not None) as write,
        _bar(progress, epochs, max_iterations, run) as show,
    ):
        w[:] = history.last_w
        history.reason = run.converged(history, tolerance, gradient_tolerance)
        show(history)
        try:
            while not (history.reason or _ended(history, epochs, max_iterations)):
                limit = math.inf if max_iterations is None else max_iterations
                if not run.epoch(history, limit, show, stop):
                    break
                row = history.rows[-1]
                write({f"fit/{name}": value for name, value in row.items() if name not in ("epoch", "updates")})
                history.last_w[:] = w
                history.reason = run.converged(history, tolerance, gradient_tolerance)
                if callback is not None and callback(history):
                    history.reason = history.reason or "the callback ended it"
                if not history.reason and stop is not None and stop():
                    history.reason = STOPPED
        except FitError as error:
            error.history = history
            raise
        finally:
            history.last_w[:] = w  # after an interruption too, so that a history that the callback kept goes on
    history.reason = history.reason or _ended(history, epochs, max_iterations) or STOPPED
    if early_stopping is not None and history.best_epoch is not None:
        w[:] = history.best_w
    return history


def _ended(history: History, epochs: int | None, max_iterations: int | None) -> str:
    if max_iterations is not None and history.n_updates >= max_iterations:
        return f"max_iterations {max_iterations} reached"
    if epochs is not None and history.epoch >= epochs:
        return f"{epochs} epochs done"
    return ""


class _Run:
    """One call of `fit`: what was checked, and an epoch."""

    def __init__(
        self,
        net: Network,
        w: np.ndarray,
        S: ArrayLike,
        Y: ArrayLike,
        *,
        loss: Loss,
        optimizer: Optimizer,
        regularizer: Regularizer | SupportsPenalty | None,
        dropout: float | Sequence[float],
        batch_size: int | None,
        validation: tuple[ArrayLike, ArrayLike] | float | None,
        early_stopping: int | None,
        plateau: ReduceOnPlateau | None,
        shuffle: bool,
        seed: int,
    ) -> None:
        if not isinstance(w, np.ndarray) or w.dtype != net.dtype or w.shape != (net.size,) or not w.flags.carray:
            kind = f"{w.dtype} of shape {w.shape}" if isinstance(w, np.ndarray) else type(w).__name__
            raise ValueError(
                f"w is {kind}; expected a contiguous, writeable {net.dtype} array of shape ({net.size},), since fit "
                "changes it: net.init(seed) makes one"
            )
        if not np.isfinite(w).all():
            at = int(np.argmax(~np.isfinite(w)))
            raise ValueError(f"w[{at}] is {w[at]}; expected a finite number")
        loss.check(net)
        seed, shuffle = positive("seed", seed, at_least=0), bool(shuffle)
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer is {optimizer!r}; expected one like Adam(1e-3)")
        if not isinstance(plateau, ReduceOnPlateau | None):
            raise ValueError(f"reduce_on_plateau is {plateau!r}; expected ReduceOnPlateau() or None")
        data = as_data(net, S, Y, loss)
        held_out = None
        if isinstance(validation, tuple | list):
            if len(validation) != 2:
                raise ValueError(f"validation has {len(validation)} parts; expected (S, Y) or a share in (0, 1)")
            held_out = as_data(net, *validation, loss, "validation ")
        elif validation is not None:
            data, held_out = _hold_out(data, validation, seed)
        if early_stopping is not None:
            early_stopping = positive("early_stopping", early_stopping)
            if held_out is None:
                raise ValueError("validation is None; expected (S, Y), or a share like 0.2, as early_stopping needs it")
        n = data.n
        size = n if batch_size is None else min(positive("batch_size", batch_size), n)
        if net.batch_norm and size == 1:
            raise ValueError(
                f"batch_size is {batch_size} for {n} examples; expected at least 2, for batch normalisation"
            )
        ends = [*range(0, n, size), n]
        if net.batch_norm and ends[-1] - ends[-2] == 1:
            del ends[-2]
        self.net, self.w, self.data, self.held_out = net, w, data, held_out
        self.ends = np.array(ends, dtype=np.int64)
        self.loss, self.optimizer, self.regularizer = loss, optimizer, regularizer
        self.early_stopping, self.plateau, self.shuffle, self.seed = early_stopping, plateau, shuffle, seed
        counts = np.diff(self.ends)
        self.weights = minibatch_weights(loss, counts, net.n_outputs)
        largest = int(counts.max())
        self.objective = Objective(
            net, loss, regularizer, optimizer=optimizer, dropout=dropout, batch_size=largest, seed=seed
        )
        self.evaluator = Objective(net, loss, regularizer, optimizer=optimizer)
        self.batches_per_call = max(1, int(SECONDS_PER_CALL * 2e9 / (12.0 * net.n_parameters * (size + 4))))
        self.settings = {
            "optimizer": optimizer.as_dict(),
            "loss": loss.as_dict(),
            "regularizer": repr(regularizer),
            "dropout": self.objective.work.rates.tolist(),
            "batch_size": size,
            "shuffle": shuffle,
            "seed": seed,
            "reduce_on_plateau": None if plateau is None else asdict(plateau),
            "examples": [n, *data.checksums()],
            "validation": None if held_out is None else held_out.checksums(),
        }
        if not isinstance(regularizer, Regularizer | None):  # whose repr may hold an address
            self.settings["regularizer"] = type(regularizer).__name__

    def start(self, resume: History | str | Path | None) -> History:
        """A fresh history, or the one to resume, whose `last_w` is where w stood."""
        if not isinstance(resume, History | str | Path | None):
            raise ValueError(f"resume is {resume!r}; expected a History, or the file of one")
        if resume is None:
            history = History(self.net, self.w, self.optimizer)
            history.settings = self.settings
            return history
        old = History.load(resume) if isinstance(resume, str | Path) else resume
        if old.net != self.net:
            raise ValueError(f"net is {self.net}; expected {old.net}, that of the history to resume")
        for name, value in self.settings.items():
            if old.settings.get(name) != value:
                what = f"{name} is {value}; expected {old.settings.get(name)}"
                if name in ("examples", "validation"):
                    what = "the data are others"
                raise ValueError(f"cannot resume: {what}; a fresh fit can start from any weights")
        history = old.copy(self.net, self.w, self.optimizer)
        history.settings = self.settings
        return history

    def epoch(
        self, history: History, limit: float, show: Callable[[History], None], stop: Callable[[], bool] | None
    ) -> bool:
        """Go on to the end of the epoch, to `limit` updates or until `stop`; True if the epoch is complete."""
        n_batches = len(self.ends) - 1
        order = np.arange(self.data.n)
        if self.shuffle:
            np.random.default_rng(sequence(self.seed, "order", history.epoch)).shuffle(order)
        minibatches = Minibatches(order, self.ends, self.weights)
        while history.batch < n_batches and history.n_updates < limit:
            end = int(min(n_batches, history.batch + self.batches_per_call, history.batch + limit - history.n_updates))
            begun = history.n_updates - history.batch
            try:
                self.objective.descend(
                    *(self.w, history.state, self.data, minibatches, history.batch, end),
                    factor=history.factor, sums=history.sums,
                )  # fmt: skip
            finally:
                history.batch = history.n_updates - begun
            if history.batch < end:
                self._keep_finite(history)
                raise FitError(
                    f"the loss is infinite or NaN in epoch {history.epoch + 1}, minibatch {history.batch + 1} of "
                    f"{n_batches} (largest weight {np.abs(self.w).max():.3g}): learning has diverged; a smaller step "
                    "size or clip_norm helps"
                )
            show(history)
            if history.batch < n_batches and stop is not None and stop():
                return False
        if not self._keep_finite(history):
            raise FitError(
                f"a weight is infinite or NaN in epoch {history.epoch + 1}: learning has diverged; a smaller step size "
                "or clip_norm helps"
            )
        if history.batch < n_batches:
            return False
        self._finish(history)
        show(history)
        return True

    def _keep_finite(self, history: History) -> bool:
        """Go back to the weights of the last whole epoch if one is infinite or NaN; whether all were finite."""
        if np.isfinite(self.w).all():
            return True
        self.w[:] = history.last_w
        return False

    def _finish(self, history: History) -> None:
        """Close an epoch: its row, the best weights, the plateau."""
        sums, k = history.sums, self.net.n_outputs
        history.epoch, history.batch = history.epoch + 1, 0
        row: dict[str, float] = {"epoch": history.epoch, "updates": history.n_updates}
        row["loss"] = float(sums[LOSS_SUM] * self.loss.weight(int(sums[N_EXAMPLES]), k))
        if self.regularizer is not None:
            row["penalty"] = float(self.regularizer.value(self.net, self.w))
        if self.held_out is not None:
            row["validation_loss"] = self.evaluator.risk(self.w, self.held_out)
            if not math.isfinite(row["validation_loss"]):
                raise FitError(f"the validation loss is {row['validation_loss']} after epoch {history.epoch}")
            if row["validation_loss"] < history.best_loss:
                history.best_loss, history.best_epoch = row["validation_loss"], history.epoch
                history.best_w[:] = self.w
        row["step_size"] = history.factor * self.optimizer.schedule.factor(history.n_updates - 1)
        for name, total in zip(self.net.layer_names, sums[NORMS:], strict=True):
            row[f"grad_norm/{name}"] = float(total / sums[N_NORMED])
        history.rows.append(row)
        objective = row["loss"] + row.get("penalty", 0.0)
        history.change, history.objective = abs(history.objective - objective), objective
        sums[:] = 0.0
        if self.plateau is not None:
            watched = row.get("validation_loss", row["loss"])
            if watched < history.plateau_loss:
                history.plateau_loss, history.plateau_epochs = watched, 0
            else:
                history.plateau_epochs += 1
            if history.plateau_epochs >= self.plateau.patience:
                history.factor = max(history.factor * self.plateau.decay, self.plateau.least)
                history.plateau_epochs = 0

    def converged(self, history: History, tolerance: float | None, gradient_tolerance: float | None) -> str:
        """Why to end after this epoch, or an empty string."""
        if not history.rows or history.batch > 0:
            return ""
        if early := self.stopped_early(history):
            return early
        if tolerance is not None and history.change <= tolerance:
            return f"converged: the objective changed by {history.change:.3g}"
        if gradient_tolerance is not None:
            norm = self._gradient_norm(history.rows[-1])
            if norm <= gradient_tolerance:
                return f"converged: the gradient's norm is {norm:.3g}"
        return ""

    def stopped_early(self, history: History) -> str:
        """The reason to stop early, or an empty string."""
        if self.early_stopping is None or history.best_epoch is None:
            return ""
        if history.epoch - history.best_epoch < self.early_stopping:
            return ""
        return f"early stopping: no smaller validation loss since epoch {history.best_epoch}"

    def _gradient_norm(self, row: dict[str, float]) -> float:
        proximal = getattr(self.regularizer, "proximal", False)
        if len(self.ends) == 2 and not proximal:  # one minibatch is all data: its norm was measured in the update
            return math.sqrt(sum(row[f"grad_norm/{name}"] ** 2 for name in self.net.layer_names))
        self.evaluator.gradient(self.w, self.data)
        gradient = self.evaluator.work.gradient
        if self.evaluator.builtin is not None:
            gradient = self.evaluator.builtin.least_gradient(self.net, self.w, gradient)
        else:
            self.evaluator.add_whole_penalty(self.w, gradient)
        return float(np.linalg.norm(gradient))


def _hold_out(data: Data, share: float, seed: int) -> tuple[Data, Data]:
    """Split off a random share of the examples for validation."""
    if not (isinstance(share, Real) and 0 < share < 1):
        raise ValueError(f"validation is {share!r}; expected (S, Y) or a share in (0, 1)")
    n = data.n
    held = max(1, round(share * n))
    if held >= n:
        raise ValueError(f"validation is {share} of {n} examples; expected a share that leaves some")
    order = np.random.default_rng(sequence(seed, "validation")).permutation(n)
    out, kept = np.sort(order[:held]), np.sort(order[held:])
    return Data(data.states[kept], data.targets[kept]), Data(data.states[out], data.targets[out])


@contextlib.contextmanager
def _log(
    log: str | Path | RunLog | None, history: History, resumed: bool, validated: bool
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Write rows to the log, if there is one."""
    if log is None:
        yield lambda values: None
        return
    from valueapprox.telemetry import RunLog, network_charts  # TensorBoard takes a second

    if isinstance(log, RunLog):
        yield lambda values: log.scalars(history.n_updates, values)
        return
    folder = Path(log)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLog(folder, resume_step=history.n_updates if resumed else None) as own:
        if not resumed:
            loss = ["fit/loss", *(["fit/validation_loss"] if validated else [])]
            own.layout({"Did it learn?": {"loss": loss}, "Network": network_charts("fit", "grad_norm", "step_size")})
            own.text("settings", f"```json\n{json.dumps(history.settings, indent=2)}\n```")
            own.hparams(history.settings)
        yield lambda values: own.scalars(history.n_updates, values)
        own.hparams_done()


@contextlib.contextmanager
def _bar(
    progress: bool | None, epochs: int | None, max_iterations: int | None, run: _Run
) -> Iterator[Callable[[History], None]]:
    """A progress bar over updates: epoch, loss, validation loss, time left."""
    if progress is None:
        progress = sys.stderr.isatty()
    if not progress:
        yield lambda history: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("[bold]fitting"), BarColumn(bar_width=16), MofNCompleteColumn()),
        *(TextColumn("{task.fields[numbers]}"), TimeRemainingColumn()),
    )
    n_batches = len(run.ends) - 1
    limits = [n for n in (epochs and epochs * n_batches, max_iterations) if n]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=min(limits, default=None), numbers="")
        drawn, newest = 0.0, None

        def draw(history: History) -> None:
            row = history.rows[-1] if history.rows else {}
            names = (("loss", "loss"), ("validation_loss", "validation"))
            numbers = "  ".join(f"{label} {row[name]:.4g}" for name, label in names if name in row)
            bar.update(task, completed=history.n_updates, numbers=f"epoch {history.epoch}  {numbers}")

        def show(history: History) -> None:
            nonlocal drawn, newest
            newest = history
            if time.monotonic() - drawn > 0.1:
                draw(history)
                drawn = time.monotonic()

        try:
            yield show
        finally:
            if newest is not None:
                draw(newest)
