"""What a fit to a table leaves: a network that knows the names of its columns, and how good its predictions are."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import checkpoint
from valueapprox.nn.network import Network
from valueapprox.supervised import losses
from valueapprox.supervised.columns import Column, Encoded, Treatment, encode, read_columns
from valueapprox.supervised.tables import Table

__all__ = ["Examples", "Label", "Model", "load_model"]

Label = bool | int | float | str


class Examples(NamedTuple):
    """Rows to learn from or to evaluate on: S (n, d), and Y (n, k), or for classes their numbers (n,)."""

    S: np.ndarray
    Y: np.ndarray


@dataclass(frozen=True, eq=False)
class Model:
    """A network with the names of the columns that it takes and gives.

    features, targets
        Names of inputs, in the order of a row of S, and of what is predicted.
    loss
        What was minimised.
    classes
        The class of each output, for nll; none for others.
    columns, treatment
        The columns of a table of which `encode` makes the inputs, and what becomes of cells that are no numbers; if not
        given, the features are columns of numbers.
    """

    net: Network
    w: np.ndarray
    features: tuple[str, ...]
    targets: tuple[str, ...]
    loss: str
    classes: tuple[Label, ...] = ()
    columns: tuple[Column, ...] = ()
    treatment: Treatment = field(default_factory=Treatment)

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", tuple(Column(name) for name in self.features))

    def encode(self, table: Table, option: str = "a feature of the model") -> Encoded:
        """The rows S (n, d) of a table as `predict` takes them, and notes on cells that are not as in fitting.

        A row that the treatment leaves out is NaN.

        Raises
        ------
        TableError
            If a column is not there, or cells in it cannot be used; it names all of them.
        """
        names = table.pick([column.name for column in self.columns], option)
        raw, problems = read_columns(table, names, self.treatment, offers=())
        table.complain(problems)
        return encode(self.columns, raw, table)

    def predict(self, S: ArrayLike) -> np.ndarray:
        """The outputs (n, k) for rows S (n, d) of the features: numbers in the targets' units, or probabilities."""
        return self.net.forward(self.w, np.atleast_2d(np.asarray(S, dtype=np.float64)))

    def classify(self, S: ArrayLike) -> np.ndarray:
        """The likeliest class of each row (n,); with log_loss, (n, k) of 0 and 1, where 1 has more than a half."""
        if self.net.output == "softmax":
            classes = np.array(self.classes)
            if classes.tolist() != list(self.classes):  # of different types: NumPy would change some
                classes = np.array(self.classes, dtype=object)
            return classes[self.predict(S).argmax(axis=1)]
        if self.net.output == "sigmoid":
            return (self.predict(S) > 0.5).astype(np.int64)
        raise ValueError(f"output is {self.net.output}; expected probabilities of classes (predict gives numbers)")

    def scores(self, examples: Examples, training: Examples) -> dict[str, dict[str, float]]:
        """How good the predictions are, by target, beside a baseline that knows the training targets alone.

        Numbers: RMSE sqrt(1/n sum (yhat - y)^2), and R^2 = 1 - sum (yhat - y)^2 / sum (y - mean)^2, the mean that of
        these rows; baseline: the mean of the training rows. Classes: accuracy, and log loss -1/n sum log P(class);
        baseline: the most frequent class of the training rows, and the shares of the classes there.
        """
        outputs, kind = self.predict(examples.S), losses.LOSSES[self.loss].targets_are
        result: dict[str, dict[str, float]] = {}
        for j, name in enumerate(self.targets):
            if kind == "numbers":
                y, errors = examples.Y[:, j], outputs[:, j] - examples.Y[:, j]
                variation = np.sum((y - y.mean()) ** 2)
                result[name] = {
                    "RMSE": float(np.sqrt(np.mean(errors**2))),
                    "baseline RMSE": float(np.sqrt(np.mean((y - training.Y[:, j].mean()) ** 2))),
                    "R^2": float(1 - np.sum(errors**2) / variation) if variation > 0 else math.nan,
                }
                continue
            y, known, probabilities = examples.Y, training.Y, outputs
            if kind == "labels":
                y, known = y[:, j].astype(int), known[:, j].astype(int)
                probabilities = np.stack([1 - outputs[:, j], outputs[:, j]], axis=1)
            shares = np.bincount(known, minlength=probabilities.shape[1]) / len(known)
            rows, tiny = np.arange(len(y)), np.finfo(float).tiny
            result[name] = {
                "accuracy": float(np.mean(probabilities.argmax(axis=1) == y)),
                "baseline accuracy": float(np.mean(y == shares.argmax())),
                "log loss": float(-np.mean(np.log(np.maximum(probabilities[rows, y], tiny)))),
                "baseline log loss": float(-np.mean(np.log(np.maximum(shares[y], tiny)))),
            }
        return result

    def answers(self, S: np.ndarray) -> tuple[list[str], list[list[object]]]:
        """The header and the rows of a table of predictions: numbers; or classes, and their probabilities.

        A row of NaN gets empty cells.
        """
        usable = ~np.isnan(S).any(axis=1)
        outputs, kind = self.predict(S[usable]), losses.LOSSES[self.loss].targets_are
        header, rows = list(self.targets), outputs.tolist()
        if kind == "classes":
            header += [f"P({label})" for label in self.classes]
            rows = [[self.classes[k], *row] for k, row in zip(outputs.argmax(axis=1), rows, strict=True)]
        elif kind == "labels":
            header += [f"P({name}=1)" for name in self.targets]
            rows = [[*(int(p > 0.5) for p in row), *row] for row in rows]
        left = iter(rows)
        return header, [next(left) if there else [""] * len(header) for there in usable]

    def save(self, path: str | Path) -> None:
        """Write it to one file; `load_model` reads it."""
        meta = {
            "kind": "model",
            "net": self.net.as_dict(),
            "features": list(self.features),
            "targets": list(self.targets),
            "loss": self.loss,
            "classes": list(self.classes),
            "columns": [asdict(column) for column in self.columns],
            "treatment": asdict(self.treatment),
        }
        checkpoint.save(path, {"w": self.w}, meta)


def load_model(path: str | Path) -> Model:
    """Read what `Model.save` wrote, from a file or from the folder of a fit, where it is called model.npz.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or holds no model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.npz"
    arrays, meta = checkpoint.load(path)
    try:
        if meta["kind"] != "model":
            raise ValueError(f"its kind is {meta['kind']}")  # noqa: TRY301
        net, w = Network(**meta["net"]), arrays["w"]
        features, targets = (tuple(str(name) for name in meta[part]) for part in ("features", "targets"))
        if w.shape != (net.size,) or w.dtype != net.dtype or len(features) != net.n_inputs:
            raise ValueError(f"w is {w.dtype} of shape {w.shape}")  # noqa: TRY301
        checkpoint.must_be_finite({"w": w})
        # Version 0.1 knew numbers only.
        columns = tuple(Column(**column) for column in meta.get("columns", ()))
        if columns and [name for column in columns for name in column.inputs] != list(features):
            raise ValueError("its columns do not give its features")  # noqa: TRY301
        treatment = Treatment(**meta.get("treatment", {}))
        return Model(net, w, features, targets, str(meta["loss"]), tuple(meta["classes"]), columns, treatment)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} holds no model ({error!r})") from None
