"""Fit a network to the rows of a CSV or npz file, and predict the rows of another."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as Lines

from valueapprox import CheckpointError, FitError, History, Network, Optimizer, ReduceOnPlateau, checkpoint, fit
from valueapprox.agents.console import (
    announce_compile,
    command,
    command_line,
    console,
    errors,
    errors_in_one_line,
    note,
    plain,
    typed,
)
from valueapprox.checks import one_of, positive, python_settings
from valueapprox.files import folder_for
from valueapprox.interrupts import interruptible
from valueapprox.optim import (
    OPTIMIZERS,
    Constant,
    CosineDecay,
    ExponentialDecay,
    InverseTime,
    LinearDecay,
    Schedule,
    StepDecay,
)
from valueapprox.seeding import sequence
from valueapprox.supervised import losses
from valueapprox.supervised.columns import Cells, Column, Problem, Raw, Treatment, encode, learn_columns, read_columns
from valueapprox.supervised.fitting import STOPPED
from valueapprox.supervised.regularizers import ElasticNet
from valueapprox.supervised.tables import Label, Model, Scaling, Table, TableError, fold_scaling, load_model, read_table

HISTORY_FILE, MODEL_FILE, SETTINGS_FILE = "fit.npz", "model.npz", "settings.json"
PICTURE_FILE, SUMMARY_FILE = "learning_curve.png", "summary.json"
OF_CLASSES, OF_ZERO_AND_ONE = ("nll", "nll_from_logits"), ("log_loss", "log_loss_from_logits")
OUTPUTS = {"log_loss": "sigmoid", "nll": "softmax"}  # of others: linear
GIVES = {"log_loss_from_logits": "sigmoid", "nll_from_logits": "softmax"}  # a model gives probabilities
MAY_CHANGE = (
    "epochs",
    "max_iterations",
    "schedule_epochs",
    "tolerance",
    "gradient_tolerance",
    "early_stopping",
)  # on a resume


# --- options --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Everything but the data that decides what is learned."""

    target: tuple[str, ...] = ()
    """Column or columns to predict; of an npz file an array, Y if not given."""
    features: tuple[str, ...] = ()
    """Columns to predict from; all others if not given; of an npz file S, if there is one."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out."""
    delimiter: str | None = None
    """Between the cells of a CSV file: one character, or tab; guessed from the header if not given."""
    missing: Literal["refuse", "drop", "mean", "median"] = "refuse"
    """Rows with a missing cell: refuse them; leave them out; or fill in the column's mean or median, and add a column
    that says where. A row without target is left out by each of the last three."""
    missing_words: tuple[str, ...] = ()
    """What means a missing cell, beside an empty one, NA and NaN."""
    one_hot: tuple[str, ...] = ()
    """Columns of categories: each category becomes a column of 0 and 1."""
    dates: tuple[str, ...] = ()
    """Columns of dates (2024-03-31, 2024-03-31T18:00): they become days since 1970-01-01."""
    date_format: str | None = None
    """How those dates are written, if otherwise: %d.%m.%Y for 31.03.2024, %m/%d/%Y for 03/31/2024."""
    loss: str = "half_squared"
    """Numbers: half_squared, squared, mse, huber; targets 0 and 1: log_loss; classes by number or name: nll."""
    validation: float | Path = 0.2
    """Share of the rows that is not learned from, or a file of such rows; 0 for none."""
    standardise: bool = True
    """Bring columns to mean 0 and standard deviation 1 while fitting; the model takes and gives raw ones."""
    hidden: tuple[int, ...] = (64,)
    """Units of each hidden layer; none for a linear model."""
    activation: str = "relu"
    """Of the hidden layers: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus."""
    output: str | None = None
    """Activation of the output: those, or softmax; if not given, as the loss wants it."""
    layer_norm: bool = False
    """Normalise the pre-activations of hidden layers, example by example."""
    batch_norm: bool = False
    """Normalise each hidden unit over a minibatch."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the arithmetic while fitting; the model is stored in float64."""
    init: str = "he_normal"
    """How weights are drawn: zeros, lecun_..., glorot_..., he_..._normal or _uniform, orthogonal, sparse."""
    optimizer: str = "adam"
    """Turns gradients into updates: sgd, momentum, rmsprop, adam, decayed_max, obgd, adaptive_obgd."""
    alpha: tuple[float, ...] = ()
    """Step size: one, or one per layer; if not given, 0.001 (adam, rmsprop, decayed_max), 0.01 (sgd, momentum), 1."""
    schedule: Literal["constant", "linear", "cosine", "inverse-time", "step", "exponential"] = "constant"
    """Of the step size, over the run: step halves it each fifth, inverse-time in a tenth; others end at a hundredth."""
    schedule_epochs: int | None = None
    """Epochs for which the schedule is planned; those of the run if not given. A longer resume leaves it as planned."""
    clip_norm: float | None = None
    """Longest gradient; longer ones are scaled down."""
    batch_size: int = 32
    """Rows of a minibatch; 0 for all."""
    epochs: int | None = None
    """Passes over the rows, at most; if not given 100, or no limit with --max-iterations."""
    max_iterations: int | None = None
    """Updates, at most."""
    tolerance: float | None = None
    """End when the training loss changes by no more than this from epoch to epoch."""
    gradient_tolerance: float | None = None
    """End when the gradient's norm over all rows is no more than this."""
    early_stopping: int | None = None
    """End when the validation loss has not fallen for this many epochs, and keep the weights of the best."""
    reduce_on_plateau: int | None = None
    """Halve the step size when the loss has not fallen for this many epochs."""
    l1: float = 0.0
    """Strength of the penalty sum |w|."""
    l2: float = 0.0
    """Strength of the penalty sum w^2."""
    proximal: bool = False
    """Let --l1 make weights exactly zero."""
    dropout: float = 0.0
    """Share of hidden units that each update leaves out."""
    seed: int = 0
    """Of everything random: the rows held out, weights, order, dropout."""

    def __post_init__(self) -> None:
        python_settings(self)
        columns = ("target", "features", "ignore", "missing_words", "one_hot", "dates")
        for name in columns:  # JSON gives lists; equality wants tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "hidden", tuple(int(n) for n in self.hidden))
        object.__setattr__(self, "alpha", tuple(float(a) for a in self.alpha))
        if isinstance(self.validation, str | Path):
            object.__setattr__(self, "validation", Path(self.validation).resolve())

    def check(self) -> None:
        """Raise ValueError for what nobody else would notice in time."""
        one_of("loss", self.loss, losses.LOSSES)
        if OPTIMIZERS[one_of("optimizer", self.optimizer, OPTIMIZERS)].needs_gradient:
            known = ", ".join(name for name, cls in OPTIMIZERS.items() if not cls.needs_gradient)
            raise ValueError(
                f"optimizer is {self.optimizer}, which needs an eligibility trace; expected one of {known}"
            )
        positive("seed", self.seed, at_least=0)
        positive("batch_size", self.batch_size, at_least=0)
        if self.epochs is not None:
            positive("epochs", self.epochs)
        if isinstance(self.validation, int | float) and not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; expected a share in [0, 1), or a file")
        if self.date_format is not None and not self.dates:
            raise ValueError("date_format is set and dates is empty; expected the columns that it is for (--dates)")
        if self.early_stopping is not None and self.validation == 0:
            raise ValueError("early_stopping needs validation data, and validation is 0")
        if self.proximal and self.l1 == 0:
            raise ValueError("proximal is set and l1 is 0; it says how the penalty of --l1 acts")

    @property
    def treatment(self) -> Treatment:
        """What becomes of cells that are no numbers."""
        return Treatment(self.missing, self.one_hot, self.dates, self.date_format, self.missing_words)

    @property
    def max_epochs(self) -> int | None:
        """How many epochs there are at most, or None."""
        return 100 if self.epochs is None and self.max_iterations is None else self.epochs

    def as_dict(self) -> dict[str, Any]:
        """As JSON-able values; `from_dict` is the inverse."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings as a folder holds them."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def make_network(self, n_inputs: int, n_outputs: int) -> Network:
        """The network for so many columns."""
        output = OUTPUTS.get(self.loss, "linear") if self.output is None else self.output
        sizes = (n_inputs, *self.hidden, n_outputs)
        return Network(sizes, self.activation, output, True, self.layer_norm, self.dtype, self.batch_norm)

    def make_optimizer(self, n_rows: int) -> Optimizer:
        """The optimizer, its schedule stretched over the updates that it is planned for."""
        per_epoch = -(-n_rows // (min(self.batch_size, n_rows) or n_rows))
        limits = [self.max_epochs and self.max_epochs * per_epoch, self.max_iterations]
        updates = min(limit for limit in limits if limit)
        if self.schedule_epochs is not None:
            updates = positive("schedule_epochs", self.schedule_epochs) * per_epoch
        schedules: dict[str, Schedule] = {
            "constant": Constant(),
            "linear": LinearDecay(updates, final=0.01),
            "cosine": CosineDecay(updates, final=0.01),
            "inverse-time": InverseTime(max(1, updates // 10)),
            "step": StepDecay(max(1, updates // 5), decay=0.5),
            "exponential": ExponentialDecay(updates, decay=0.01),
        }
        schedule = schedules[one_of("schedule", self.schedule, schedules)]
        cls = OPTIMIZERS[one_of("optimizer", self.optimizer, OPTIMIZERS)]
        if not self.alpha:
            return cls(schedule=schedule, clip_norm=self.clip_norm)
        alpha = self.alpha if len(self.alpha) > 1 else self.alpha[0]
        return cls(alpha, schedule=schedule, clip_norm=self.clip_norm)


@dataclass(frozen=True)
class Fit:
    """Fit a network to the rows of a CSV or npz file, or predict with a model that was fitted.

    The file comes first, then the column to predict. Model, log, learning curve and summary go to a folder in runs/.
    A fifth of the rows is held out, to see how well the model does on rows that it has not seen. Ctrl-C saves.

    A number is an optional sign, the digits 0 to 9, a point and an exponent: -12.5e3. Blanks around a cell do not
    count. An empty cell, NA and NaN are missing; anything else is text. Classes are given back as they are written.
    All that keeps a table from being used is said at once, with the options that help: --missing, --one-hot, --dates,
    --ignore. The model remembers them: it takes such tables as they are. A category that it has not seen counts as
    none of those that it knows; with --missing drop, a row with a missing cell gets an empty prediction.

    Like this:
      fit.py houses.csv --target price --hidden 64 64 --early-stopping 20
      fit.py flowers.csv --target species --loss nll
      fit.py flats.csv --target rent --missing median --one-hot district --dates let-since
      fit.py returns.npz                                 arrays S (n, d) and Y (n,) or (n, k)
      fit.py --resume runs/NAME --epochs 500             go on
      fit.py more-houses.csv --model runs/NAME           predictions as CSV, to the terminal or to --out FILE
    """

    data: tyro.conf.Positional[Path | None] = None
    """CSV with a header line, or npz."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    out: Path | None = None
    """Folder of the fit, a new one in runs/ if not given; with --model, the file for the predictions."""
    resume: Path | None = None
    """Go on with the fit in this folder, bit for bit; only the options on when to end may differ."""
    model: Path | None = None
    """Predict the rows of the file with the model in this folder."""
    checkpoint_every: float = 30.0
    """Seconds between two checkpoints."""
    quiet: bool = False
    """No progress bar; the summary only."""


# --- data -----------------------------------------------------------------------------------------------------------


class Examples(NamedTuple):
    """Rows to learn from or to judge by: S (n, d), and Y (n, k), or for classes their numbers (n,)."""

    S: np.ndarray
    Y: np.ndarray


class Data(NamedTuple):
    """What is learned from what: `features` are the network's inputs, made of the columns."""

    training: Examples
    validation: Examples | None
    columns: tuple[Column, ...]
    features: tuple[str, ...]
    targets: tuple[str, ...]
    classes: tuple[Label, ...]


class Targets(NamedTuple):
    """What is to be predicted: labels of classes or numbers, where they are missing, and what is wrong with them."""

    labels: np.ndarray
    Y: np.ndarray
    missing: np.ndarray
    problems: list[Problem]


def targets_of(table: Table, names: Sequence[str], settings: Settings) -> Targets:
    """The columns to predict, read; of classes the labels."""
    columns = {name: table.parse(name, settings.missing_words) for name in names}
    problems: list[Problem] = []
    labels = np.empty(0)
    for name, cells in columns.items():
        absent = cells.missing if settings.missing == "refuse" or cells.missing.all() else np.zeros_like(cells.missing)
        if settings.loss in OF_CLASSES:
            labels = table.labels(name, settings.missing_words)
            found = Cells(cells.numbers, absent, np.zeros_like(absent))
            problems += table.problem(name, found, ("--missing drop",), what="class")
        else:
            offers = ("--loss", "--missing drop", "--missing-words")
            problems += table.problem(name, cells._replace(missing=absent), offers)
    missing = np.any([cells.missing for cells in columns.values()], axis=0)
    return Targets(labels, np.stack([cells.numbers for cells in columns.values()], axis=1), missing, problems)


def numbers_of(
    table: Table, names: Sequence[str], found: Targets, rows: np.ndarray, loss: str, classes: tuple[Label, ...]
) -> np.ndarray:
    """The targets of these rows as `fit` takes them; for classes their numbers, in the order of `classes`."""
    if loss in OF_CLASSES:
        number = {str(label): k for k, label in enumerate(classes)}
        for row in rows:
            if str(found.labels[row]) not in number:
                raise TableError(
                    f"{table.place(row, names[0])}: class {str(found.labels[row])!r} was not learned; expected one of "
                    f"{', '.join(number)}"
                )
        return np.array([number[str(found.labels[row])] for row in rows])
    Y = found.Y[rows]
    if loss in OF_ZERO_AND_ONE and not ((Y == 0) | (Y == 1)).all():
        i, j = np.argwhere((Y != 0) & (Y != 1))[0]
        raise TableError(
            f"{table.place(rows[i], names[j])}: {Y[i, j]:g} is neither 0 nor 1, which {loss} learns; --loss nll learns "
            "other classes"
        )
    return Y


def read_data(path: Path, settings: Settings) -> Data:
    """Read the file, and the file for validation or the rows that are held out."""
    table = read_table(path, settings.delimiter)
    features, targets = table.roles(settings.target, settings.features, settings.ignore)
    if table.n_nameless:
        note(f"{table.n_nameless} column{'s' * (table.n_nameless > 1)} of {path} without a name: left out")
    if settings.loss in OF_CLASSES and len(targets) != 1:
        raise TableError(f"{settings.loss} learns one column of classes; {', '.join(targets)} were given")
    treatment = settings.treatment
    for option, asked in (("--one-hot", treatment.one_hot), ("--dates", treatment.dates)):
        for name in table.pick(asked, option):
            if name not in features:
                raise TableError(f"{option} is {name}; expected columns to predict from, and it is none of them")
    if both := [name for name in treatment.one_hot if name in treatment.dates]:
        raise TableError(f"--one-hot and --dates are both {both[0]}; expected one of them for a column")
    n = len(table.cells[targets[0]])
    raw, rows, found = usable_rows(table, features, targets, settings)
    classes: tuple[Label, ...] = ()
    if settings.loss in OF_CLASSES:
        classes = tuple(sorted(set(found.labels[rows].tolist())))
    Y = numbers_of(table, targets, found, rows, settings.loss, classes)
    for j, name in enumerate(targets):
        column = Y[:, j] if Y.ndim == 2 else Y
        if (column == column[0]).all() and len(column) > 1:
            value = classes[0] if classes else f"{column[0]:g}"
            raise TableError(f"{path}: {name} is {value} in all {len(column)} rows; there is nothing to learn")
    # Positions among the rows that are used: fills and categories come from those that are learned from.
    kept, held = np.arange(len(rows)), np.arange(0)
    if not isinstance(settings.validation, Path) and settings.validation > 0:
        n_held = max(1, round(settings.validation * len(rows)))
        order = np.random.default_rng(sequence(settings.seed, "validation")).permutation(len(rows))
        held, kept = np.sort(order[:n_held]), np.sort(order[n_held:])
    if len(kept) < 2:
        used = f" of which {len(rows)} can be used" if len(rows) < n else ""
        raise TableError(
            f"{path} has {n} row{'s' * (n > 1)}{used}{', and 1 is held out' * bool(len(held))}; expected at least 2 to "
            "learn from"
        )
    columns = learn_columns(raw, rows[kept], treatment)
    S = encoded(table, columns, raw, rows)
    training, validation = Examples(S[kept], Y[kept]), None
    if isinstance(settings.validation, Path):
        other = read_table(settings.validation, settings.delimiter)
        inputs, wanted = other.pick(features, "--features"), other.pick(targets, "--target")
        raw, rows, found = usable_rows(other, inputs, wanted, settings)
        judged = numbers_of(other, wanted, found, rows, settings.loss, classes)
        validation = Examples(encoded(other, columns, raw, rows), judged)
    elif len(held):
        validation = Examples(S[held], Y[held])
    names = tuple(name for column in columns for name in column.inputs)
    return Data(training, validation, columns, names, tuple(targets), classes)


def usable_rows(
    table: Table, features: Sequence[str], targets: Sequence[str], settings: Settings
) -> tuple[dict[str, Raw], np.ndarray, Targets]:
    """The columns as they are read, and the rows that can be used; a `TableError` that says all that is wrong."""
    table.roles(targets, features)  # of one length
    raw, problems = read_columns(table, features, settings.treatment)
    found = targets_of(table, targets, settings)
    table.complain([*problems, *found.problems])
    missing = found.missing.copy()
    if settings.missing == "drop":
        missing |= np.any([column.missing for column in raw.values()], axis=0)
    if missing.all():
        raise TableError(f"{table.path} has a missing cell in each of its {len(missing)} rows; expected some without")
    if missing.any():
        n = int(missing.sum())
        without = "a cell" if settings.missing == "drop" else "the target"
        note(f"{n} of {len(missing)} rows of {table.path} {'are' if n > 1 else 'is'} left out: {without} is missing")
    return raw, np.flatnonzero(~missing), found


def encoded(table: Table, columns: Sequence[Column], raw: Mapping[str, Raw], rows: np.ndarray) -> np.ndarray:
    """The inputs of these rows; what was not as learned is said."""
    result = encode(columns, raw, table)
    for sentence in result.notes:
        note(sentence)
    return result.S[rows]


# --- fitting --------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """How a fit went."""

    history: History
    model: Model
    interrupted: int  # by which signal; 0: not
    seconds: float


def run(data: Data, path: Path, folder: Path, options: Fit) -> Result:
    """Fit, and leave the checkpoint, the settings and the model in the folder."""
    settings = options.settings
    n, k = len(data.training.S), len(data.classes) or len(data.targets)
    net = settings.make_network(len(data.features), k)
    loss = losses.get(settings.loss)
    scaled = settings.standardise and loss.code in (losses.SQUARED_CODE, losses.HUBER_CODE) and net.output == "linear"
    inputs = Scaling.of(data.training.S) if settings.standardise else Scaling.none(net.n_inputs)
    outputs = Scaling.of(data.training.Y) if scaled else Scaling.none(k)

    def standard(examples: Examples) -> Examples:
        return Examples(inputs.apply(examples.S), outputs.apply(examples.Y) if scaled else examples.Y)

    optimizer = settings.make_optimizer(n)
    regularizer = ElasticNet(settings.l1, settings.l2, settings.proximal) if settings.l1 or settings.l2 else None
    earlier = None
    if options.resume:
        earlier, optimizer = stored_history(folder, optimizer, settings.schedule_epochs is not None)
    w = net.init(sequence(settings.seed, "weights"), settings.init)
    with contextlib.suppress(FitError):  # one update that is thrown away: what has to be compiled for it is no fitting
        few = [array[:2] for array in standard(data.training)]
        fit(
            net, w.copy(), *few, loss=loss, optimizer=optimizer, regularizer=regularizer, dropout=settings.dropout,
            max_iterations=1, validation=(few[0], few[1]), gradient_tolerance=settings.gradient_tolerance,
            progress=False,
        )  # fmt: skip
    started = saved = time.monotonic()

    def save(history: History) -> None:
        document = json.dumps({"data": str(path.resolve()), **settings.as_dict()}, indent=2)
        checkpoint.write_whole(folder / SETTINGS_FILE, lambda file: file.write(document.encode()))
        history.save(folder / HISTORY_FILE)

    def after_epoch(history: History) -> None:
        nonlocal saved
        if history.epoch == 1 or time.monotonic() - saved > options.checkpoint_every:
            save(history)
            saved = time.monotonic()

    try:
        with (
            interruptible("Ending; Ctrl-C again ends at once, at the last checkpoint.") as stop,
            warnings.catch_warnings(),
        ):
            warnings.showwarning = lambda message, *_: note(str(message))  # that the folder cannot be locked
            history = fit(
                net,
                w,
                *standard(data.training),
                loss=loss,
                optimizer=optimizer,
                regularizer=regularizer,
                dropout=settings.dropout,
                batch_size=settings.batch_size or None,
                epochs=settings.max_epochs,
                max_iterations=settings.max_iterations,
                tolerance=settings.tolerance,
                gradient_tolerance=settings.gradient_tolerance,
                validation=None if data.validation is None else standard(data.validation),
                early_stopping=settings.early_stopping,
                reduce_on_plateau=(
                    None if settings.reduce_on_plateau is None else ReduceOnPlateau(patience=settings.reduce_on_plateau)
                ),
                seed=settings.seed,
                callback=after_epoch,
                stop=stop.is_set,
                log=folder,
                progress=False if options.quiet else None,
                resume=earlier,
            )
            interrupted = stop.number if history.reason == STOPPED else 0
            save(history)
            raw, folded = fold_scaling(net, w, inputs, outputs)
            raw = replace(raw, output=GIVES.get(settings.loss, raw.output))
            model = Model(
                raw, folded, data.features, data.targets, settings.loss, data.classes, data.columns, settings.treatment
            )
            model.save(folder / MODEL_FILE)
    except FitError:
        if not (folder / HISTORY_FILE).exists():  # not an epoch was done: nothing that is worth a look
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except KeyboardInterrupt:  # the second Ctrl-C
        if (folder / HISTORY_FILE).exists():
            console.print(f"Go on from the last checkpoint: {plain(command('fit.py', '--resume', folder))}")
        raise
    return Result(history, model, interrupted, time.monotonic() - started)


def stored_history(folder: Path, optimizer: Optimizer, planned: bool) -> tuple[History, Optimizer]:
    """The history to go on from, and the optimizer, whose schedule stays as it was planned unless that is asked for."""
    history = History.load(folder / HISTORY_FILE)
    old, new = history.settings["optimizer"], optimizer.as_dict()
    others_equal = {**old, "schedule": None} == {**new, "schedule": None}
    if old != new and others_equal and old["schedule"]["name"] == new["schedule"]["name"]:
        if planned:
            note("the schedule of the step size is planned anew: this is not the run that goes on as it was planned")
            history.settings["optimizer"] = new
        else:
            optimizer = Optimizer.from_dict(old)
            note("the schedule of the step size stays as it was planned; --schedule-epochs N plans it for N epochs")
    return history, optimizer


# --- what a person sees ---------------------------------------------------------------------------------------------


def scores(model: Model, examples: Examples, training: Examples) -> dict[str, dict[str, float]]:
    """How good the predictions are, by target, beside the baseline that knows the training targets alone.

    Numbers: RMSE sqrt(1/n sum (yhat - y)^2), and R^2 = 1 - sum (yhat - y)^2 / sum (y - mean)^2, the mean that of these
    rows; baseline: the mean of the training rows. Classes: accuracy, and log loss -1/n sum log P(class); baseline: the
    most frequent class of the training rows, and the shares of the classes there.
    """
    outputs = model.predict(examples.S)
    result: dict[str, dict[str, float]] = {}
    for j, name in enumerate(model.targets):
        if model.loss in (*OF_CLASSES, *OF_ZERO_AND_ONE):
            if model.loss in OF_CLASSES:
                y, known, probabilities = examples.Y, training.Y, outputs
            else:
                y, known = examples.Y[:, j].astype(int), training.Y[:, j].astype(int)
                probabilities = np.stack([1 - outputs[:, j], outputs[:, j]], axis=1)
            shares = np.bincount(known, minlength=probabilities.shape[1]) / len(known)
            rows, tiny = np.arange(len(y)), np.finfo(float).tiny
            result[name] = {
                "accuracy": float(np.mean(probabilities.argmax(axis=1) == y)),
                "baseline accuracy": float(np.mean(y == shares.argmax())),
                "log loss": float(-np.mean(np.log(np.maximum(probabilities[rows, y], tiny)))),
                "baseline log loss": float(-np.mean(np.log(np.maximum(shares[y], tiny)))),
            }
        else:
            y, errors = examples.Y[:, j], outputs[:, j] - examples.Y[:, j]
            spread = np.sum((y - y.mean()) ** 2)
            result[name] = {
                "RMSE": float(np.sqrt(np.mean(errors**2))),
                "baseline RMSE": float(np.sqrt(np.mean((y - training.Y[:, j].mean()) ** 2))),
                "R^2": float(1 - np.sum(errors**2) / spread) if spread > 0 else math.nan,
            }
    return result


def scores_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Lines:
    """The scores of each set of rows and each target."""
    table = Lines(box=SIMPLE_HEAD)
    table.add_column("")
    sets = list(found)
    for heading in next(iter(found[sets[0]].values())):
        table.add_column(heading, justify="right")
    for rows in sets:
        for name, numbers in found[rows].items():
            label = rows if len(found[rows]) == 1 else f"{rows}, {name}"
            shown = (f"{x:.1%}" if "accuracy" in what else f"{x:.4g}" for what, x in numbers.items())
            table.add_row(escape(label), *shown)
    return table


def picture(history: History, path: Path, title: str, alphas: Sequence[float], unit: str) -> None:
    """Draw losses, gradient norms and step sizes over the epochs into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, which only pictures need
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    epochs = history["epoch"]
    norms = [name for name in history.rows[-1] if name.startswith("grad_norm/")]
    factor = history["step_size"]
    sizes = {"all layers": alphas[0] * factor}
    if len(set(alphas)) > 1:
        sizes = {name: alpha * factor for name, alpha in zip(history.net.layer_names, alphas, strict=True)}
    losses_by_name = {"training": history["loss"]}
    if history.best_epoch is not None:
        losses_by_name["validation"] = history["validation_loss"]
    panels: list[tuple[str, dict[str, np.ndarray]]] = [
        (f"loss{unit}", losses_by_name),
        ("gradient norm per layer", {name.partition("/")[2]: history[name] for name in norms}),
        ("step size", sizes),
    ]
    marker = "." if len(epochs) < 30 else None
    for place, (name, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for label, values in curves.items():
            axes.plot(epochs, values, label=label, linewidth=1.3, marker=marker)
        if name == "step size":
            axes.set_ylim(bottom=0, top=1.05 * max(alphas))
        elif any((values > 0).any() for values in curves.values()):
            axes.set_yscale("log", nonpositive="mask")
        if place == 1 and history.best_epoch is not None:
            best = history.best_epoch
            label = f"least validation loss: {history.best_loss:.3g}, epoch {best}"
            axes.plot([best], [history.best_loss], "o", color="black", markersize=5, label=label)
            axes.axvline(best, color="black", linewidth=0.7, linestyle=":")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8, which="both")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    checkpoint.write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))


def summarise(result: Result, data: Data, path: Path, folder: Path, options: Fit) -> None:
    """How good the model is, where everything lies, and what to type next."""
    history, model, settings = result.history, result.model, options.settings
    found = {"training": scores(model, data.training, data.training)}
    if data.validation is not None:
        found["validation"] = scores(model, data.validation, data.training)
    kind = "the mean" if not data.classes and settings.loss not in OF_ZERO_AND_ONE else "the most frequent class"
    console.print(
        f"{'Interrupted' if result.interrupted else 'Ended'} after {history.epoch:,} epochs, {history.n_updates:,} "
        f"updates, {result.seconds:.1f} s" + ("." if result.interrupted else f": {history.reason}.")
    )
    console.print(scores_table(found))
    console.print(f"The baseline predicts {kind} of the training rows.")
    best = history.best_epoch
    if (
        best is not None
        and settings.early_stopping is None
        and history["validation_loss"][-1] > 1.05 * history.best_loss
    ):
        console.print(
            f"The validation loss was least in epoch {best}; the model is of epoch {history.epoch}. "
            "--early-stopping 20 keeps the best."
        )
    tenth = history.epoch // 10
    if history.epoch == settings.max_epochs and tenth:
        late, before = history["loss"][-tenth:].mean(), history["loss"][-2 * tenth : -tenth].mean()
        if late < 0.97 * before:
            console.print("The training loss was still falling: more --epochs, or a larger --alpha, go on from here.")
    n_held = 0 if data.validation is None else len(data.validation.S)
    summary = {
        "data": str(path),
        "model": str(model.net),
        "reason": history.reason,
        "interrupted": result.interrupted,
        "epochs": history.epoch,
        "updates": history.n_updates,
        "seconds": result.seconds,
        "best_epoch": best,
        "best_validation_loss": None if best is None else history.best_loss,
        "rows": {"training": len(data.training.S), "validation": n_held},
        "scores": {
            rows: {name: {what: x if math.isfinite(x) else None for what, x in n.items()} for name, n in by.items()}
            for rows, by in found.items()
        },
    }
    document = json.dumps(summary, indent=2)
    checkpoint.write_whole(folder / SUMMARY_FILE, lambda file: file.write(document.encode()))
    lines = [("Model", folder / MODEL_FILE)]
    if history.rows:
        names = ", ".join(model.targets[:3]) + ", ..." * (len(model.targets) > 3)
        title = f"{path.name}: {names} by {settings.optimizer}, {history.net}"
        scaled = settings.standardise and kind == "the mean" and history.net.output == "linear"
        alphas = settings.make_optimizer(len(data.training.S)).layer_alphas(history.net.layer_names)
        picture(history, folder / PICTURE_FILE, title, alphas, f" ({settings.loss}{', standardised targets' * scaled})")
        lines.append(("Learning curve", folder / PICTURE_FILE))
    else:
        note("no epoch was completed, so there is no learning curve")
    console.print()
    for what, where in (*lines, ("Log, checkpoint", folder)):
        console.print(f"{what:<16}{plain(where)}")
    console.print(f"{'Look at it':<16}{plain(typed('tensorboard', '--logdir', folder.parent))}")
    console.print(f"{'Predict':<16}{plain(command('fit.py', f'NEW{path.suffix}', '--model', folder))}")
    if result.interrupted or history.epoch == settings.max_epochs:  # converged, or stopped early, it has nowhere to go
        more = () if result.interrupted else ("--epochs", 2 * history.epoch)
        console.print(f"{'Go on':<16}{plain(command('fit.py', '--resume', folder, *more))}")


# --- predicting -----------------------------------------------------------------------------------------------------


def predictions(model: Model, S: np.ndarray) -> tuple[list[str], list[list[object]]]:
    """The header and the rows of a CSV file of predictions: numbers; or classes, and their probabilities.

    A row of NaN gets empty cells.
    """
    usable = ~np.isnan(S).any(axis=1)
    outputs = model.predict(S[usable])
    answers: list[list[object]]
    if model.loss in OF_CLASSES:
        header = [model.targets[0], *(f"P({label})" for label in model.classes)]
        chosen = [model.classes[k] for k in outputs.argmax(axis=1)]
        answers = [[label, *row] for label, row in zip(chosen, outputs.tolist(), strict=True)]
    elif model.loss in OF_ZERO_AND_ONE:
        header = [*model.targets, *(f"P({name}=1)" for name in model.targets)]
        answers = [[*(int(p > 0.5) for p in row), *row] for row in outputs.tolist()]
    else:
        header, answers = list(model.targets), outputs.tolist()
    left = iter(answers)
    return header, [next(left) if there else [""] * len(header) for there in usable]


def predict(options: Fit) -> int:
    """Write the predictions for the rows of a file; returns the exit code."""
    assert options.model is not None, "asked for"
    if options.resume is not None or options.settings != Settings(delimiter=options.settings.delimiter):
        raise ValueError("--model predicts, and takes --delimiter and --out; the other options are for fitting")
    model = load_model(options.model)
    table = read_table(data_path(options), options.settings.delimiter)
    S, notes = model.encode(table, f"a feature of {options.model}")
    header, rows = predictions(model, S)
    if n := int(np.isnan(S).any(axis=1).sum()):
        notes.append(f"{n} of {len(S)} rows have a missing cell; their predictions are empty")
    for sentence in notes:
        note(sentence, errors)  # what goes to the standard output may be read by a program
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    if options.out is None:
        sys.stdout.write(text.getvalue())
    else:
        if options.out.exists():
            raise FileExistsError(f"{options.out} exists; choose another --out")
        checkpoint.write_whole(options.out, lambda file: file.write(text.getvalue().encode()))
        console.print(f"{len(rows):,} predictions    {escape(str(options.out))}")
    return 0


# --- starting -------------------------------------------------------------------------------------------------------


def data_path(options: Fit) -> Path:
    """The file that was named, or an error that says how."""
    if options.data is None:
        named = [*options.settings.target, *options.settings.features, *options.settings.ignore]
        swallowed = next((name for name in named if name.lower().endswith((".csv", ".tsv", ".npz"))), None)
        hint = f" ({swallowed} was taken for a column)" if swallowed else ""
        raise ValueError(f"no file is named; it comes first{hint}: fit.py DATA.csv --target COLUMN")
    return options.data


def stored(folder: Path) -> tuple[Path, Settings]:
    """The data and the settings of the fit in a folder, or CheckpointError."""
    path = folder / SETTINGS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Path(values["data"]), Settings.from_dict(values)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"there is no fit in {folder} ({SETTINGS_FILE} is missing)") from None
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r})") from None


def main(options: Fit) -> int:
    """Fit and report, or predict; returns the exit code."""
    if options.model is not None:
        return predict(options)
    path, settings = data_path(options), options.settings
    settings.check()
    if options.resume is not None:
        _, old = stored(options.resume)
        for f in fields(Settings):
            before, now = getattr(old, f.name), getattr(settings, f.name)
            if f.name not in MAY_CHANGE and before != now:
                raise ValueError(f"the fit was started with {f.name} {before!r}, not {now!r}; on a resume it stays")
        done = History.load(options.resume / HISTORY_FILE).epoch
        if done > (settings.max_epochs or done):
            raise ValueError(f"{options.resume} has done {done} epochs, more than {settings.max_epochs}")
        if done == settings.max_epochs:
            console.print(f"{escape(str(options.resume))} has done its {done} epochs; --epochs MORE lets it go on.")
    with folder_for(options.resume or options.out, f"fit-{path.stem.replace(' ', '-')}") as folder:
        if options.resume is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and is not empty; choose another --out, or --resume {folder}")
        data = read_data(path, settings)
        announce_compile()
        if not options.quiet:
            describe(data, path, settings)
        result = run(data, path, folder, options)
        summarise(result, data, path, folder, options)
        return 128 + result.interrupted if result.interrupted else 0


def describe(data: Data, path: Path, settings: Settings) -> None:
    """What is learned from what, in a few lines."""
    held = 0 if data.validation is None else len(data.validation.S)
    what = ", ".join(data.targets) + (f" ({len(data.classes)} classes)" if data.classes else "")
    names = ", ".join(column.name for column in data.columns[:8]) + ", ..." * (len(data.columns) > 8)
    inputs = "" if len(data.features) == len(data.columns) else f", as {len(data.features)} inputs"
    net = settings.make_network(len(data.features), len(data.classes) or len(data.targets))
    console.print(
        f"[bold]{escape(str(path))}[/]: {escape(what)} from {len(data.columns)} columns ({escape(names)})"
        f"{inputs}\n"
        f"{len(data.training.S):,} rows to learn from, {held:,} for validation; {settings.loss} by "
        f"{settings.optimizer}\n{net}"
    )


def parse(arguments: Sequence[str] | None = None) -> Fit:
    """The command line; on a resume, what it leaves out is what the fit was started with."""
    options = command_line(Fit, arguments)
    if options.resume is None:
        return options
    path, settings = stored(options.resume)
    return command_line(Fit, arguments, default=Fit(data=path, settings=settings))


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(parse()))
