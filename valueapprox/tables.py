"""Tables of examples: columns read from CSV and npz files, standardised, and the models that predict from them."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import checkpoint
from valueapprox.checks import MOST_NAMES
from valueapprox.network import Network

__all__ = ["Model", "Scaling", "Table", "TableError", "fold_scaling", "load_model", "read_table"]

DELIMITERS = (",", ";", "\t")
Label = int | str


class TableError(ValueError):
    """A file of examples that cannot be used; the message says where and why, in one line."""


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Columns by name, of a CSV file as text, of an npz file as numbers; checked when they are used.

    cells
        The columns. A 2-D array S of an npz file gives the columns S[0], S[1], ....
    lines
        Where in a CSV file each row begins, from 1; empty for npz.
    groups
        The columns of each 2-D array.
    unusable
        Arrays that are no columns, and why.
    n_nameless
        How many columns of a CSV file have no name, as pandas writes its index; they are left out.
    """

    path: Path
    cells: Mapping[str, Sequence[str] | np.ndarray]
    lines: Sequence[int] = ()
    groups: Mapping[str, list[str]] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    n_nameless: int = 0

    def roles(
        self, target: Sequence[str], features: Sequence[str] = (), ignore: Sequence[str] = ()
    ) -> tuple[list[str], list[str]]:
        """The names of the columns to learn from and of those to predict.

        Features are all other columns if none are named, but those to ignore. Of an npz file, the target is Y if none
        is named, and features are S if there is an S.
        """
        whole = "S" in self.groups or "S" in self.cells
        if not target and not self.lines:
            if "Y" not in {*self.cells, *self.groups, *self.unusable}:
                raise TableError(f"{self.path} has no array Y, and no --target is named; {self._there_are()}")
            target = ("Y",)
        if not target:
            raise TableError(f"--target is missing: which column of {self.path} to predict; {self._there_are()}")
        targets = self.pick(target, "--target")
        ignored = [*self.pick(ignore, "--ignore", usable=False), *ignore]
        if features:
            chosen = self.pick(features, "--features")
        elif whole and not self.lines:
            chosen = self.pick(["S"], "--features")
        else:
            wrong = [name for name in self.unusable if name not in {*ignored, *target}]
            if wrong:
                raise TableError(
                    f"{self.path}: array {wrong[0]} {self.unusable[wrong[0]]}; --ignore {wrong[0]} leaves it out"
                )
            chosen = [name for name in self.cells if name not in targets]
        chosen = [name for name in chosen if name not in ignored]
        if both := [name for name in chosen if name in targets]:
            raise TableError(f"column {both[0]!r} of {self.path} is a feature and a target; it can be one of them")
        if not chosen:
            only = f" has the one column {targets[0]!r} (is the delimiter right?)" if len(self.cells) == 1 else ""
            raise TableError(
                f"{self.path}{only or ' has no column left to learn from'}: at least one feature is wanted"
            )
        self._same_length([*chosen, *targets])
        return chosen, targets

    def _same_length(self, names: Sequence[str]) -> int:
        n = len(self.cells[names[0]])
        for name in names:
            if len(self.cells[name]) != n:
                other = f"{name} has {len(self.cells[name])}"
                raise TableError(f"{self.path}: {names[0]} has {n} rows and {other}; equally many are wanted")
        return n

    def pick(self, names: Iterable[str], option: str, *, usable: bool = True) -> list[str]:
        """The columns that the names stand for, once each; an unknown name is an error that suggests the nearest."""
        picked: list[str] = []
        for name in names:
            if name in self.unusable:
                if usable:
                    raise TableError(f"{self.path}: array {name} {self.unusable[name]}")
                continue
            if name not in self.cells and name not in self.groups:
                raise TableError(
                    f"{self.path} has no column {name!r} ({option}); {self._near(name)}{self._there_are()}"
                )
            picked += self.groups.get(name, [name])
        return list(dict.fromkeys(picked))

    def _known(self) -> list[str]:
        grouped = {column for columns in self.groups.values() for column in columns}
        return [*self.groups, *(name for name in self.cells if name not in grouped), *self.unusable]

    def _near(self, name: str) -> str:
        return _did_you_mean(name, self._known())

    def _there_are(self) -> str:
        names = self._known()
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        hint = ""
        if self.lines and all(_number(name) is not None for name in names):
            hint = "; is line 1 a header?"
        return f"there are {', '.join(names[:MOST_NAMES])}{more}{hint}"

    def place(self, row: int, name: str) -> str:
        """Where a cell lies, for errors: file, line and column; of an array, the index."""
        if self.lines:
            return f"{self.path}, line {self.lines[row]}, column {name!r}"
        for array, columns in self.groups.items():
            if name in columns:
                return f"{self.path}, {array}[{row}, {columns.index(name)}]"
        return f"{self.path}, {name}[{row}]"

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Columns as finite float64 numbers (n, len(names)).

        Raises
        ------
        TableError
            If a cell is empty, no number, or NaN or infinite.
        """
        numbers = np.empty((self._same_length(names), len(names)))
        for j, name in enumerate(names):
            cells = self.cells[name]
            if isinstance(cells, np.ndarray):
                if cells.dtype.kind not in "fiub":
                    raise TableError(f"{self.path}: {name} holds {_kind(cells)}; real numbers are wanted")
                numbers[:, j] = cells
            else:
                try:
                    numbers[:, j] = [float(cell) for cell in cells]
                except ValueError:
                    row = next(i for i, cell in enumerate(cells) if _number(cell) is None)
                    raise TableError(f"{self.place(row, name)}: {_what_is_wrong(cells[row])}") from None
            if not np.isfinite(numbers[:, j]).all():
                row = int(np.argmax(~np.isfinite(numbers[:, j])))
                shown = "NaN" if math.isnan(numbers[row, j]) else "infinite"
                raise TableError(f"{self.place(row, name)}: the cell is {shown}; a finite number is wanted")
        return numbers

    def labels(self, name: str) -> np.ndarray:
        """A column as labels of classes (n,): int64 if all are whole numbers, else text.

        Raises
        ------
        TableError
            If a cell is empty, or if all are numbers and not all of them whole.
        """
        cells = self.cells[name]
        if isinstance(cells, np.ndarray) and cells.dtype.kind not in "fiubU":
            raise TableError(f"{self.path}: {name} holds {_kind(cells)}; whole numbers or text are wanted")
        texts = [str(cell).strip() for cell in cells]
        if "" in texts:
            raise TableError(f"{self.place(texts.index(''), name)}: the cell is empty; a class is wanted")
        if isinstance(cells, np.ndarray) and cells.dtype.kind in "iub":
            return cells.astype(np.int64)
        parsed = [_number(text) for text in texts]
        if any(number is None for number in parsed):
            return np.array(texts)
        numbers = np.array(parsed, dtype=np.float64)
        whole = np.isfinite(numbers) & (numbers % 1 == 0)
        if not whole.all():
            row = int(np.argmax(~whole))
            raise TableError(
                f"{self.place(row, name)}: {texts[row]} is no class; a class is a whole number or a name (for other "
                "numbers there is --loss half_squared)"
            )
        return numbers.astype(np.int64)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"did you mean {lower[near[0]]!r}? " if near else ""


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _kind(array: np.ndarray) -> str:
    return {"U": "text", "S": "bytes", "c": "complex numbers"}.get(array.dtype.kind, f"{array.dtype}")


def _what_is_wrong(cell: str) -> str:
    if not cell.strip():
        return "the cell is empty; a number is wanted"
    shown = repr(cell if len(cell) <= 40 else f"{cell[:40]}...")
    hint = " with a decimal point" if cell.count(",") == 1 and _number(cell.replace(",", ".")) is not None else ""
    return f"{shown} is no number; a number{hint} is wanted (--ignore leaves a column out)"


def read_table(path: str | Path, delimiter: str | None = None) -> Table:
    """Read a file of examples: npz if it is called so, else CSV in UTF-8 with a header line. Nothing is unpickled.

    Parameters
    ----------
    path
        The file.
    delimiter
        Between the cells of a CSV file: one character, or "tab"; of comma, semicolon and tab, the one that is most
        frequent in the header, if not given.

    Raises
    ------
    TableError
        If the file is missing, empty, damaged, or no table.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise TableError(f"there is no file {path}; {_did_you_mean(path.name, others)}".rstrip("; ")) from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if not content:
        raise TableError(f"{path} is empty")
    return _read_npz(path, content) if path.suffix.lower() == ".npz" else _read_csv(path, content, delimiter)


def _read_csv(path: Path, content: bytes, delimiter: str | None) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TableError(f"{path}, line {line} is not UTF-8 text; save it as CSV in UTF-8") from None
    if not text.strip():
        raise TableError(f"{path} is empty")
    if delimiter is None:
        header = re.sub(r'"[^"]*"', "", text.lstrip().split("\n", 1)[0])
        delimiter = max(DELIMITERS, key=header.count)
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise TableError(f"the delimiter is {delimiter!r}; one character, or tab, is wanted")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    names: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                pass  # a blank line
            elif not names:
                names = [name.strip() for name in row]
            elif len(row) != len(names):
                raise TableError(
                    f"{path}, line {line} has {len(row)} cell{'s' * (len(row) != 1)}; the header has {len(names)}"
                )
            else:
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"{path}, line {line} is not CSV: {error}") from None
    twice = [name for i, name in enumerate(names) if name and name in names[:i]]
    if twice:
        raise TableError(f"{path} has two columns called {twice[0]!r}; each name can stand for one")
    if not rows:
        raise TableError(f"{path} has a header line and no rows")
    columns = {name: column for name, column in zip(names, zip(*rows, strict=True), strict=True) if name}
    return Table(path, columns, lines, n_nameless=names.count(""))


def _read_npz(path: Path, content: bytes) -> Table:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise TableError(f"{path} is damaged or no npz file")
    cells: dict[str, np.ndarray] = {}
    groups: dict[str, list[str]] = {}
    unusable: dict[str, str] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = {name.removesuffix(".npy"): file.read(name) for name in file.namelist() if name.endswith(".npy")}
        for name, member in members.items():
            data = io.BytesIO(member)
            try:
                array = np.lib.format.read_array(data, allow_pickle=False)
            except ValueError as error:
                if "Object arrays" not in str(error):
                    raise
                unusable[name] = "holds Python objects, which are not loaded; numbers are wanted"
                continue
            if array.ndim == 1:
                cells[name] = array
            elif array.ndim == 2:
                groups[name] = [f"{name}[{j}]" for j in range(array.shape[1])]
                cells.update(zip(groups[name], array.T, strict=True))
            else:
                unusable[name] = f"has shape {array.shape}; (n,) or (n, d) is wanted"
    except Exception as error:  # noqa: BLE001  (what is damaged can make the readers raise anything)
        raise TableError(f"{path} is damaged or no npz file ({error!r})") from None
    if not cells and not unusable:
        raise TableError(f"{path} holds no arrays")
    if not any(len(column) for column in cells.values()) and not unusable:
        raise TableError(f"{path} has no rows")
    return Table(path, cells, (), groups, unusable)


# --- standardising --------------------------------------------------------------------------------------------------


class Scaling(NamedTuple):
    """What brings columns to mean 0 and standard deviation 1: x -> (x - mean) / scale; both (d,), float64."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def none(cls, d: int) -> Scaling:
        """That which changes nothing."""
        return cls(np.zeros(d), np.ones(d))

    @classmethod
    def of(cls, columns: np.ndarray) -> Scaling:
        """That of these columns (n, d): their mean, and sqrt(1/n sum (x - mean)^2); a constant one has scale 1.

        >>> Scaling.of(np.array([[1.0, 7.0], [5.0, 7.0]]))
        Scaling(mean=array([3., 7.]), scale=array([2., 1.]))
        """
        low, high = columns.min(axis=0), columns.max(axis=0)
        constant = low == high
        mean = np.where(constant, low, columns.mean(axis=0))
        # Divided by the longest distance first: squares of large numbers are infinite, and of small ones zero.
        longest = np.where(constant, 1.0, np.abs(columns - mean).max(axis=0))
        scale = longest * np.sqrt(np.mean(((columns - mean) / longest) ** 2, axis=0))
        return cls(mean, np.where(constant, 1.0, scale))

    def apply(self, columns: np.ndarray) -> np.ndarray:
        """(x - mean) / scale."""
        return (columns - self.mean) / self.scale


def fold_scaling(net: Network, w: np.ndarray, inputs: Scaling, outputs: Scaling) -> tuple[Network, np.ndarray]:
    """A network in float64, and its weights, that takes and gives what net takes and gives standardised.

    (s - mean) / scale W + b = s W' + b - mean W', W' = W / scale by rows;  with batch normalisation in the first layer,
    which takes the mean of s W away, that mean grows by mean W' instead.
    scale (x W + b) + mean = x (W scale) + b scale + mean in the last layer; its activation has to be linear.

    Raises
    ------
    ValueError
        If the network has no biases, or outputs are scaled behind an activation.
    """
    if not net.bias:
        raise ValueError("the network has no biases; a mean needs one to go to")
    if net.output != "linear" and not all(map(np.array_equal, outputs, Scaling.none(net.n_outputs))):
        raise ValueError(f"output is {net.output}; only a linear output can be scaled by the weights before it")
    raw = replace(net, dtype="float64")
    folded = np.array(w, dtype=np.float64)
    layers = raw.unpack(folded)
    first, first_bias = layers[0]
    last, last_bias = layers[-1]
    assert first_bias is not None, "checked above"
    assert last_bias is not None, "checked above"
    first /= inputs.scale[:, None]
    moved = inputs.mean @ first
    norms = raw.batch_norms(folded)
    if norms:
        norms[0].mean[...] += moved
    else:
        first_bias -= moved
    last *= outputs.scale
    last_bias *= outputs.scale
    last_bias += outputs.mean
    return raw, folded


# --- models ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Model:
    """A network with the names of the columns that it takes and gives.

    features, targets
        Names of inputs, in the order of a row of S, and of what is predicted.
    loss
        What was minimised.
    classes
        The class of each output, for nll; none for others.
    """

    net: Network
    w: np.ndarray
    features: tuple[str, ...]
    targets: tuple[str, ...]
    loss: str
    classes: tuple[Label, ...] = ()

    def predict(self, S: ArrayLike) -> np.ndarray:
        """The outputs (n, k) for rows S (n, d) of the features: numbers in the targets' units, or probabilities."""
        return self.net.forward(self.w, np.atleast_2d(np.asarray(S, dtype=np.float64)))

    def classify(self, S: ArrayLike) -> np.ndarray:
        """The likeliest class of each row (n,); with log_loss, (n, k) of 0 and 1, where 1 has more than a half."""
        if self.net.output == "softmax":
            return np.array(self.classes)[self.predict(S).argmax(axis=1)]
        if self.net.output == "sigmoid":
            return (self.predict(S) > 0.5).astype(np.int64)
        raise ValueError(f"the model's outputs are {self.net.output}, numbers and not classes; predict gives them")

    def save(self, path: str | Path) -> None:
        """Write it to one file; `load_model` reads it."""
        meta = {
            "kind": "model",
            "net": self.net.as_dict(),
            "features": list(self.features),
            "targets": list(self.targets),
            "loss": self.loss,
            "classes": list(self.classes),
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
        return Model(net, w, features, targets, str(meta["loss"]), tuple(meta["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} holds no model ({error!r})") from None
