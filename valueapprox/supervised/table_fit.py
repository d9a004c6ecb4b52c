"""A fit of a network to a table: its settings, the fit itself, and the folder that it leaves and goes on from."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import tyro

from valueapprox import checkpoint
from valueapprox.checks import one_of, positive, python_settings
from valueapprox.interrupts import interruptible
from valueapprox.nn.activations import HIDDEN
from valueapprox.nn.initializers import INITIALISERS
from valueapprox.nn.network import Network
from valueapprox.nn.scaling import Scaling, fold_scaling
from valueapprox.optim import OPTIMIZERS, Constant, Optimizer, Schedule, schedules
from valueapprox.seeding import sequence
from valueapprox.supervised import losses
from valueapprox.supervised.columns import Treatment
from valueapprox.supervised.examples import TableData
from valueapprox.supervised.fitting import STOPPED, FitError, History, ReduceOnPlateau, fit
from valueapprox.supervised.models import Examples, Model
from valueapprox.supervised.regularizers import ElasticNet

__all__ = ["HISTORY_FILE", "MODEL_FILE", "Result", "Settings", "fit_table", "stored", "summary"]

HISTORY_FILE, MODEL_FILE, SETTINGS_FILE = "fit.npz", "model.npz", "settings.json"


def _default_alphas() -> str:
    """The step sizes of the optimizers that can fit, and whose they are."""
    names: dict[Any, list[str]] = {}
    for name, cls in OPTIMIZERS.items():
        if not cls.needs_gradient:
            names.setdefault(cls().alpha, []).append(name)
    return "; ".join(f"{alpha:g} ({', '.join(names[alpha])})" for alpha in sorted(names))


if TYPE_CHECKING:
    Loss: TypeAlias = str
    OptimizerName: TypeAlias = str
    Alpha: TypeAlias = tuple[float, ...]
    Init: TypeAlias = str
    Activation: TypeAlias = str
else:  # what there is, is said by the registries
    _names = sorted(losses.LOSSES, key=lambda name: losses.LOSSES[name].applies is not None)
    _losses = [
        f"{what}: {', '.join(name for name in _names if losses.LOSSES[name].targets_are == kind)}"
        for what, kind in (("numbers", "numbers"), ("0 and 1", "labels"), ("classes by number or name", "classes"))
    ]
    _optimizers = ", ".join(name for name, cls in OPTIMIZERS.items() if not cls.needs_gradient)
    Loss = Annotated[str, tyro.conf.arg(help=f"What is minimised. For targets that are {'; '.join(_losses)}.")]
    OptimizerName = Annotated[str, tyro.conf.arg(help=f"Turns gradients into updates: {_optimizers}.")]
    Alpha = Annotated[
        tuple[float, ...],
        tyro.conf.arg(help=f"Step size: one, or one for each layer. The optimizer's own: {_default_alphas()}."),
    ]
    Init = Annotated[str, tyro.conf.arg(help=f"How weights are drawn: {', '.join(INITIALISERS)}.")]
    Activation = Annotated[str, tyro.conf.arg(help=f"Activation of the hidden layers: {', '.join(HIDDEN)}.")]


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
    loss: Loss = "half_squared"
    validation: float | Path = 0.2
    """Share of the rows that is held out, or a file of such rows; 0 for none."""
    standardise: bool = True
    """Bring columns to mean 0 and standard deviation 1 while fitting; the model takes and gives raw ones."""
    hidden: tuple[int, ...] = (64,)
    """Units of each hidden layer; none for a linear model."""
    activation: Activation = "relu"
    output: str | None = None
    """Activation of the output: those, or softmax; if not given, as the loss expects it."""
    layer_norm: bool = False
    """Normalise the pre-activations of hidden layers, example by example."""
    batch_norm: bool = False
    """Normalise each hidden unit over a minibatch."""
    dtype: Literal["float32", "float64"] = "float32"
    """dtype of the arithmetic while fitting; the model is stored in float64."""
    init: Init = "he_normal"
    optimizer: OptimizerName = "adam"
    alpha: Alpha = ()
    schedule: Literal["constant", "linear", "cosine", "inverse-time", "step", "exponential"] = "constant"
    """Of the step size, over the run: step halves it each fifth, inverse-time in a tenth; others end at a hundredth."""
    schedule_epochs: int | None = None
    """Epochs for which the schedule is planned; those of the run if not given. A longer resume leaves it as planned."""
    clip_norm: float | None = None
    """Maximum norm of the gradient; longer ones are scaled down to it."""
    batch_size: int = 32
    """Rows of a minibatch; 0 for all."""
    epochs: int | None = None
    """Maximum number of passes over the rows; if not given 100, or no limit with --max-iterations."""
    max_iterations: int | None = None
    """Maximum number of updates."""
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
    """Seed of the rows held out, the weights, the order and dropout."""

    def __post_init__(self) -> None:
        python_settings(self)
        for name in ("target", "features", "ignore", "missing_words", "one_hot", "dates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists; equality wants tuples
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
            raise ValueError("validation is 0; expected a share or a file, as early_stopping needs validation data")
        if self.proximal and self.l1 == 0:
            raise ValueError("l1 is 0; expected a positive number, as proximal says how the penalty of --l1 acts")

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

    def make_network(self, data: TableData) -> Network:
        """The network for so many columns."""
        output = self.output or losses.LOSSES[self.loss].output or "linear"
        sizes = (len(data.features), *self.hidden, data.n_outputs)
        return Network(sizes, self.activation, output, True, self.layer_norm, self.dtype, self.batch_norm)

    def make_optimizer(self, n_rows: int) -> Optimizer:
        """The optimizer, its schedule stretched over the updates that it is planned for."""
        per_epoch = -(-n_rows // (min(self.batch_size, n_rows) or n_rows))
        limits = [self.max_epochs and self.max_epochs * per_epoch, self.max_iterations]
        updates = min(limit for limit in limits if limit)
        if self.schedule_epochs is not None:
            updates = positive("schedule_epochs", self.schedule_epochs) * per_epoch
        known: dict[str, Schedule] = {
            "constant": Constant(),
            "linear": schedules.LinearDecay(updates, final=0.01),
            "cosine": schedules.CosineDecay(updates, final=0.01),
            "inverse-time": schedules.InverseTime(max(1, updates // 10)),
            "step": schedules.StepDecay(max(1, updates // 5), decay=0.5),
            "exponential": schedules.ExponentialDecay(updates, decay=0.01),
        }
        schedule = known[one_of("schedule", self.schedule, known)]
        cls = OPTIMIZERS[one_of("optimizer", self.optimizer, OPTIMIZERS)]
        alpha: dict[str, Any] = {"alpha": self.alpha if len(self.alpha) > 1 else self.alpha[0]} if self.alpha else {}
        return cls(**alpha, schedule=schedule, clip_norm=self.clip_norm)


# --- fitting --------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """How a fit went."""

    history: History
    model: Model
    interrupted: int  # by which signal; 0: not
    seconds: float


def fit_table(
    data: TableData,
    path: Path,
    folder: Path,
    settings: Settings,
    *,
    resume: bool = False,
    checkpoint_every: float = 30.0,
    progress: bool | None = None,
    notice: Callable[[str], None] = warnings.warn,
) -> Result:
    """Fit, and leave the checkpoint, the settings and the model in the folder.

    Parameters
    ----------
    data, path, settings
        What is learned from, the file that it was read from, and how.
    folder
        Where it is left; with `resume`, where it goes on from.
    checkpoint_every
        Seconds between two checkpoints.
    progress
        Whether to show a progress bar; if None, in a terminal.
    notice
        Called with what is worth knowing and no error.
    """
    net, loss = settings.make_network(data), losses.get(settings.loss)
    scaled = settings.standardise and loss.targets_are == "numbers" and net.output == "linear"
    inputs = Scaling.of(data.training.S) if settings.standardise else Scaling.none(net.n_inputs)
    outputs = Scaling.of(data.training.Y) if scaled else Scaling.none(net.n_outputs)

    def standard(examples: Examples) -> Examples:
        return Examples(inputs.apply(examples.S), outputs.apply(examples.Y) if scaled else examples.Y)

    earlier, optimizer = None, settings.make_optimizer(len(data.training.S))
    if resume:
        earlier, optimizer = _stored_history(folder, optimizer, settings.schedule_epochs is not None, notice)
    w = net.init(sequence(settings.seed, "weights"), settings.init)
    S, Y = standard(data.training)
    plateau = settings.reduce_on_plateau
    options: dict[str, Any] = {
        "loss": loss,
        "optimizer": optimizer,
        "regularizer": ElasticNet(settings.l1, settings.l2, settings.proximal) if settings.l1 or settings.l2 else None,
        "dropout": settings.dropout,
        "gradient_tolerance": settings.gradient_tolerance,
    }
    with contextlib.suppress(FitError):  # one update that is thrown away: what has to be compiled for it is no fitting
        few = S[:2], Y[:2]
        fit(net, w.copy(), *few, max_iterations=1, validation=few, progress=False, **options)
    started = saved = time.monotonic()

    def save(history: History) -> None:
        document = json.dumps({"data": str(path.resolve()), **settings.as_dict()}, indent=2)
        checkpoint.write_whole(folder / SETTINGS_FILE, lambda file: file.write(document.encode()))
        history.save(folder / HISTORY_FILE)

    def after_epoch(history: History) -> None:
        nonlocal saved
        if history.epoch == 1 or time.monotonic() - saved > checkpoint_every:
            save(history)
            saved = time.monotonic()

    try:
        with (
            interruptible("Ending; Ctrl-C again ends at once, at the last checkpoint.") as stop,
            warnings.catch_warnings(),
        ):
            warnings.showwarning = lambda message, *_: notice(str(message))  # that the folder cannot be locked
            history = fit(
                *(net, w, S, Y),
                batch_size=settings.batch_size or None,
                epochs=settings.max_epochs,
                max_iterations=settings.max_iterations,
                tolerance=settings.tolerance,
                validation=None if data.validation is None else standard(data.validation),
                early_stopping=settings.early_stopping,
                reduce_on_plateau=None if plateau is None else ReduceOnPlateau(patience=plateau),
                seed=settings.seed,
                callback=after_epoch,
                stop=stop.is_set,
                log=folder,
                progress=progress,
                resume=earlier,
                **options,
            )
            interrupted = stop.number if history.reason == STOPPED else 0
            save(history)
            raw, folded = fold_scaling(net, w, inputs, outputs)
            raw = replace(raw, output=loss.applies or raw.output)
            about = (data.features, data.targets, settings.loss, data.classes, data.columns, settings.treatment)
            model = Model(raw, folded, *about)
            model.save(folder / MODEL_FILE)
    except FitError:
        if not (folder / HISTORY_FILE).exists():  # not an epoch was done: nothing that is worth a look
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return Result(history, model, interrupted, time.monotonic() - started)


def _stored_history(
    folder: Path, optimizer: Optimizer, planned: bool, notice: Callable[[str], None]
) -> tuple[History, Optimizer]:
    """The history to go on from, and the optimizer, whose schedule stays as it was planned unless that is asked for."""
    history = History.load(folder / HISTORY_FILE)
    old, new = history.settings["optimizer"], optimizer.as_dict()
    others_equal = {**old, "schedule": None} == {**new, "schedule": None}
    if old != new and others_equal and old["schedule"]["name"] == new["schedule"]["name"]:
        if planned:
            notice("the schedule of the step size is planned anew: this is not the run that goes on as it was planned")
            history.settings["optimizer"] = new
        else:
            optimizer = Optimizer.from_dict(old)
            notice("the schedule of the step size stays as it was planned; --schedule-epochs N plans it for N epochs")
    return history, optimizer


def stored(folder: Path) -> tuple[Path, Settings]:
    """The data and the settings of the fit in a folder, or CheckpointError."""
    path = folder / SETTINGS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Path(values["data"]), Settings.from_dict(values)
    except (FileNotFoundError, NotADirectoryError):
        raise checkpoint.CheckpointError(f"there is no fit in {folder} ({SETTINGS_FILE} is missing)") from None
    except (ValueError, TypeError, KeyError) as error:
        raise checkpoint.CheckpointError(f"{path} is damaged ({error!r})") from None


def summary(result: Result, data: TableData, path: Path, scores: Mapping[str, Any]) -> dict[str, Any]:
    """How a fit went, as JSON-able values; `scores` of the training rows and the others, see `Model.scores`."""
    history, best = result.history, result.history.best_epoch
    return {
        "data": str(path),
        "model": str(result.model.net),
        "reason": history.reason,
        "interrupted": result.interrupted,
        "epochs": history.epoch,
        "updates": history.n_updates,
        "seconds": result.seconds,
        "best_epoch": best,
        "best_validation_loss": None if best is None else history.best_loss,
        "rows": {
            "training": len(data.training.S),
            "validation": 0 if data.validation is None else len(data.validation.S),
        },
        "scores": {
            rows: {name: {what: x if np.isfinite(x) else None for what, x in n.items()} for name, n in by.items()}
            for rows, by in scores.items()
        },
    }
