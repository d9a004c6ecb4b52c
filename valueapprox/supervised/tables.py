"""Tables of examples: columns read from CSV and npz files."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
import shlex
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from valueapprox.checkpoint import read_array, read_members
from valueapprox.checks import MOST_NAMES
from valueapprox.supervised.columns import Cells, Problem, TableError

__all__ = ["Cells", "Problem", "Table", "TableError", "read_table"]

DELIMITERS = (",", ";", "\t")
BLANKS = " \t"  # around a cell of a CSV file they do not belong to it
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"0|-?[1-9][0-9]*")  # written as Python writes a whole number
MISSING = frozenset(("", "na", "n/a", "#na", "#n/a", "<na>", "nan", "+nan", "-nan"))  # small and capital letters alike
SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?\r?\n', re.IGNORECASE)  # a first line that spreadsheets write
QUOTED = re.compile(r'(^|[,;\t])[ \t]*"(?:[^"]|"")*"', re.MULTILINE)
A_DATE = re.compile(r"[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}(?:[T ]+[0-9]{1,2}:[0-9]{2}.*)?")
MAX_HEADER = 1_000_000  # characters, that are looked at for the delimiter
MAX_SHOWN = 40  # characters of a cell
MANY = 20  # different texts, which may still be categories
FEW = 3  # different texts among numbers, which may stand for a missing cell


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
            raise TableError(f"{self.path}{only or ' has no column left to learn from'}; expected at least one feature")
        self._same_length([*chosen, *targets])
        return chosen, targets

    def _same_length(self, names: Sequence[str]) -> int:
        n = len(self.cells[names[0]])
        for name in names:
            if len(self.cells[name]) != n:
                other = f"{name} has {len(self.cells[name])}"
                raise TableError(f"{self.path}: {names[0]} has {n} rows and {other}; expected equally many")
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
        if self.lines and all(NUMBER.fullmatch(name) for name in names):
            hint = "; is line 1 a header?"
        return f"there are {', '.join(names[:MOST_NAMES])}{more}{hint}"

    def where(self, row: int, name: str, *, path: bool = True) -> str:
        """Where a cell lies, for errors: file, line and column; of an array, the index."""
        if self.lines:
            where = f"line {self.lines[row]}, column {name!r}"
        else:
            group = next((array for array, columns in self.groups.items() if name in columns), None)
            where = f"{name}[{row}]" if group is None else f"{group}[{row}, {self.groups[group].index(name)}]"
        return f"{self.path}, {where}" if path else where

    def texts(self, name: str) -> list[str]:
        """The cells of a column as they are written: of a CSV file without the blanks around them."""
        cells = self.cells[name]
        if not isinstance(cells, np.ndarray):
            return [cell.strip(BLANKS) for cell in cells]
        if cells.dtype.kind == "S":
            return [cell.decode("utf-8", "backslashreplace") for cell in cells.tolist()]
        return [str(cell) for cell in cells]

    def parse(self, name: str, words: Iterable[str] = ()) -> Cells:
        """A column as numbers: sign, ASCII digits, point, exponent. Empty, NA, NaN and `words` are missing."""
        cells = self.cells[name]
        if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
            numbers = cells.astype(np.float64)
            missing, other = np.isnan(numbers), np.isinf(numbers)
        elif isinstance(cells, np.ndarray) and cells.dtype.kind not in "US":
            numbers, missing = np.full(len(cells), np.nan), np.zeros(len(cells), bool)
            if cells.dtype.kind in "mM":
                missing = np.isnat(cells)
            other = ~missing
        else:
            absent = MISSING | {word.strip(BLANKS).lower() for word in words}
            texts = self.texts(name)
            missing = np.array([text.lower() in absent for text in texts])
            is_text = isinstance(cells, np.ndarray)  # which stays text, whatever it looks like
            numbers = np.array([math.nan if is_text or not NUMBER.fullmatch(text) else float(text) for text in texts])
            numbers[missing] = np.nan
            other = ~(missing | np.isfinite(numbers))
        numbers[other] = np.nan
        return Cells(numbers, missing, other)

    def problem(self, name: str, cells: Cells, offers: Iterable[str] = (), *, what: str = "number") -> list[Problem]:
        """What keeps a column from being used, if anything does, and which of the offered options mends it, best first.

        offers
            Those that the command has of --missing (or only --missing drop), --missing-words, --one-hot, --dates,
            --time, --ignore and --loss.
        """
        n, n_missing, n_other = len(cells.numbers), int(cells.missing.sum()), int(cells.other.sum())
        if not n_missing + n_other:
            return []
        texts, column = self.texts(name), shlex.quote(name)
        row = int(np.argmax(cells.other if n_other else cells.missing))
        text = texts[row] if len(texts[row]) <= MAX_SHOWN else f"{texts[row][:MAX_SHOWN]}..."
        offered: list[tuple[str, ...]] = []
        counts, told = "", f"the cell is {f'{text!r}, which is missing' if text else 'empty'}; expected a {what}"
        if n_other:
            kinds = {texts[i] for i in np.flatnonzero(cells.other)}
            counts, offered = self._other(name, n, kinds, n_other)
            point = text.count(",") == 1 and NUMBER.fullmatch(text.replace(",", "."))
            told = f"{text!r} is no number; expected a number{' with a decimal point' * bool(point)}"
        if n_missing:
            of = f" of {n} cells" * (not n_other)
            counts += f"{' and ' * bool(n_other)}{n_missing}{of} {'is' if n_missing == 1 else 'are'} missing"
        offered = [option for option in offered if option[0] in offers]
        if n_missing == n and "--ignore" in offers:
            offered = [("--ignore", name)]
        elif n_missing and not (offered and offered[0][0] == "--ignore"):
            offered += [("--missing", "median")] * ("--missing" in offers)
            offered += [("--missing", "drop")] * ("--missing drop" in offers)
        words = " ".join(map(shlex.quote, offered[0][1:])) if offered else ""
        fill = ", --missing median (or mean) fills them in" * ("--missing" in offers)
        advice = {
            "--loss": "--loss nll learns classes by name",
            "--missing-words": f"--missing-words {words} if that means missing",
            "--one-hot": f"--one-hot {column} makes a column of 0 and 1 of each",
            "--dates": f"--dates {column} turns them into days",
            "--time": f"--time {column} takes it as the times of the rows",
            "--ignore": f"--ignore {column} leaves the column out",
            "--missing": f"--missing drop leaves out their rows{fill}",
        }
        hint = "; ".join(advice[option[0]] for option in offered)
        best = [offered[0]] if offered else []
        best += [option for option in offered[1:] if option[0] == "--missing"]
        if best and best[0][0] == "--missing-words":
            best.append(("--missing", "median" if "--missing" in offers else "drop"))
        where = self.where(row, name, path=False)
        return [Problem(where, f"{told} ({counts}{': ' * bool(hint)}{hint})", tuple(best))]

    def _other(self, name: str, n: int, kinds: set[str], count: int) -> tuple[str, list[tuple[str, ...]]]:
        """What the cells are that are no numbers, in words, and the options that are made for such."""
        array = self.cells[name]
        kind = array.dtype.kind if isinstance(array, np.ndarray) else ""
        counts = f"{count} of {n} cells {'is' if count == 1 else 'are'}"
        if kind in tuple("fiub") or all(NUMBER.fullmatch(text) for text in kinds):
            return f"{counts} infinite", [("--ignore", name)]
        if kind == "c":
            return f"{counts} complex", [("--ignore", name)]
        if kind == "M" or all(A_DATE.fullmatch(text) for text in kinds):
            return f"{counts} dates" if count > 1 else f"{counts} a date", [
                ("--time", name),
                ("--dates", name),
                ("--ignore", name),
            ]
        offered: list[tuple[str, ...]] = [("--loss", "nll"), ("--one-hot", name), ("--ignore", name)]
        if 2 * count < n and len(kinds) <= FEW:
            offered.insert(0, ("--missing-words", *sorted(kinds)))
        elif len(kinds) > max(MANY, n // 5):  # names and remarks rather than categories
            offered = [("--loss", "nll"), ("--ignore", name), ("--one-hot", name)]
        return f"{counts} text{f', {len(kinds)} different ones' if len(kinds) > 1 else ''}", offered

    def numbers(self, names: Sequence[str], offers: Iterable[str] = ("--ignore",)) -> np.ndarray:
        """Columns as finite float64 numbers (n, len(names)).

        Raises
        ------
        TableError
            If a cell is missing, no number, or infinite; it names all such columns, and the options that mend them.
        """
        columns = {name: self.parse(name) for name in names}
        self._same_length(names)
        self.complain([problem for name, cells in columns.items() for problem in self.problem(name, cells, offers)])
        return np.stack([cells.numbers for cells in columns.values()], axis=1)

    def complain(self, problems: Sequence[Problem]) -> None:
        """Raise a `TableError` that says all of it, if there is anything."""
        if not problems:
            return
        if len(problems) == 1:
            raise TableError(f"{self.path}, {problems[0].where}: {problems[0].what}")
        merged: dict[str, list[str]] = {}
        for option, *values in (option for problem in problems for option in problem.options):
            merged_values = merged.setdefault(option, [])
            merged_values += [] if merged_values and option in ("--missing", "--loss") else values
        options = [part for option, values in merged.items() for part in (option, *dict.fromkeys(values))]
        lines = [f"{self.path} has {len(problems)} columns that cannot be used as they are:"]
        lines += [f"  {problem.where}: {problem.what}" for problem in problems]
        raise TableError("\n".join([*lines, f"For instance, add: {shlex.join(options)}"] if options else lines))

    def labels(self, name: str, words: Iterable[str] = ()) -> np.ndarray:
        """A column as labels of classes (n,): numbers and booleans of an array, text of a CSV file as it is written.

        Text is a whole number if all that is not missing is written as one, so that 2 comes before 10.

        Raises
        ------
        TableError
            If they are other numbers that hardly repeat, or nothing that has a name.
        """
        cells, texts = self.cells[name], self.texts(name)
        kind = cells.dtype.kind if isinstance(cells, np.ndarray) else ""
        if kind not in ("", *"fiubUS"):
            raise TableError(f"{self.path}: {name} holds {_kind(cells)}; expected numbers or text")  # type: ignore[arg-type]
        parsed = self.parse(name, words)
        if kind == "f" and parsed.other.any():
            row = int(np.argmax(parsed.other))
            raise TableError(f"{self.where(row, name)}: {texts[row]} is no class; expected a finite number or a name")
        usable = ~(parsed.missing | parsed.other)
        if kind in ("", "f") and ((parsed.numbers[usable] % 1) != 0).any() and (usable | parsed.missing).all():
            different = len(np.unique(parsed.numbers[usable]))
            if 2 * different > usable.sum():
                row = int(np.argmax(usable & (parsed.numbers % 1 != 0)))
                raise TableError(
                    f"{self.where(row, name)}: {texts[row]} is no class; expected classes that repeat, and there are "
                    f"{different} different numbers in {usable.sum()} rows (--loss half_squared predicts numbers)"
                )
        if kind in tuple("iub"):
            return np.asarray(cells)
        if kind == "f":
            return np.array([float(text) for text in texts])  # as written: 0.1 of float32, not 0.10000000149
        present = [text for text, gone in zip(texts, parsed.missing, strict=True) if not gone]
        if kind == "" and all(WHOLE.fullmatch(text) for text in present):
            return np.array(
                [text if gone else int(text) for text, gone in zip(texts, parsed.missing, strict=True)], object
            )
        return np.array(texts)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"did you mean {lower[near[0]]!r}? " if near else ""


def _kind(array: np.ndarray) -> str:
    return {"U": "text", "S": "bytes", "c": "complex numbers"}.get(array.dtype.kind, f"{array.dtype}")


def read_table(path: str | Path, delimiter: str | None = None) -> Table:
    """Read a file of examples: npz if it is called so, else CSV in UTF-8 with a header line. Nothing is unpickled.

    Parameters
    ----------
    path
        The file.
    delimiter
        Between the cells of a CSV file: one character, or "tab". If not given, that of a first line sep=;, or of comma,
        semicolon and tab the one that is most frequent in the header.

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
    line = 1
    if said := SEPARATOR.match(text):
        text, line = text[said.end() :], 2
        delimiter = delimiter or said[1]
    if delimiter is None:
        # What is quoted is taken out first, with its line breaks: what is left of the first record is one line.
        first_lines = QUOTED.sub(r"\1", text.lstrip("\r\n ")[:MAX_HEADER])
        header = re.split(r"[\r\n]", first_lines, maxsplit=1)[0]
        delimiter = max(DELIMITERS, key=header.count)
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise TableError(f"the delimiter is {delimiter!r}; expected one character, or tab")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    names: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    above = line - 1
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
            line = above + reader.line_num + 1
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
    cells: dict[str, np.ndarray] = {}
    groups: dict[str, list[str]] = {}
    unusable: dict[str, str] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = read_members(file, None)
    except Exception as error:  # noqa: BLE001  (what is damaged can make the reader raise anything)
        raise TableError(f"{path} is damaged or no npz file ({error!r})") from None
    for member, data in members.items():
        name = member.removesuffix(".npy")
        if name == member:
            continue
        try:
            array = read_array(data, "fiubcUSmM")
        except ValueError as error:
            unusable[name] = str(error)
            continue
        if array.ndim == 1:
            cells[name] = array
        elif array.ndim == 2:
            groups[name] = [f"{name}[{j}]" for j in range(array.shape[1])]
            cells.update(zip(groups[name], array.T, strict=True))
        else:
            unusable[name] = f"has shape {array.shape}; expected (n,) or (n, d)"
    if not cells and not unusable:
        raise TableError(f"{path} holds no arrays")
    if not any(len(column) for column in cells.values()) and not unusable:
        raise TableError(f"{path} has no rows")
    return Table(path, cells, (), groups, unusable)
