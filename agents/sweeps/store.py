"""What is known of the cells of a sweep, in one SQLite file that a crash cannot damage."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from valueapprox.agents.sweeps.cells import Cell

__all__ = ["DIVERGED", "DONE", "FAILED", "STORE_FILE", "Result", "Row", "Store"]

STORE_FILE = "sweep.sqlite"
DONE, DIVERGED, FAILED = "done", "diverged", "failed"
VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (
    number INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, stage TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS origins (id INTEGER PRIMARY KEY, what TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS results (
    digest TEXT PRIMARY KEY, status TEXT NOT NULL, numbers TEXT NOT NULL, curve BLOB, points TEXT, error TEXT NOT NULL,
    attempts INTEGER NOT NULL, seconds REAL NOT NULL, finished REAL NOT NULL, origin INTEGER NOT NULL);
"""


class Result(NamedTuple):
    """What came out of a cell."""

    digest: str
    status: str
    """done; diverged: learning went to infinity, as it will again; failed: an error, or the process was lost."""
    numbers: dict[str, float]
    """By name, such as "return"; empty unless it is done."""
    curve: np.ndarray
    """(2, T) steps, and what is shown over them: the return, the value error, the loss; NaN where nothing is known."""
    error: str = ""
    """Of a cell that is not done: what was raised, with its traceback."""
    attempts: int = 1
    seconds: float = 0.0
    origin: Mapping[str, Any] = {}
    """Version, commit and machine."""
    points: Sequence[dict[str, float]] = ()
    """All that was logged, point by point, if that was asked for."""


class Row(NamedTuple):
    """A cell with what came out of it, if anything has."""

    number: int
    cell: Cell
    result: Result | None


class Store:
    """The cells of a sweep and their results; every `add` is whole on disk before it returns.

    Parameters
    ----------
    folder
        Holds the file.
    read_only
        Only read; the file must exist.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no store, or it is none that this version reads.
    """

    def __init__(self, folder: str | Path, read_only: bool = False) -> None:
        self.path = Path(folder) / STORE_FILE
        # Of one that is being made nothing is there yet: tables and version come in one transaction.
        if read_only and not (self.path.exists() and self.path.stat().st_size):
            raise FileNotFoundError(f"{folder} holds no sweep ({STORE_FILE} is missing)")
        where = f"{self.path.resolve().as_uri()}?mode=ro" if read_only else str(self.path)
        self._db = sqlite3.connect(where, uri=read_only, isolation_level=None, timeout=30.0)
        try:
            if not read_only:
                # A rollback journal and not a write-ahead log, which network file systems do not bear.
                self._db.execute("PRAGMA journal_mode = DELETE")
                self._db.execute("PRAGMA synchronous = FULL")
                with self._whole():
                    for statement in filter(str.strip, TABLES.split(";")):
                        self._db.execute(statement)
                    self._db.execute("INSERT OR IGNORE INTO about VALUES ('version', ?)", (str(VERSION),))
            (found,) = self._db.execute("SELECT value FROM about WHERE name = 'version'").fetchone() or ("none",)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(f"{self.path} is no store of a sweep ({error})") from None
        if found != str(VERSION):
            self._db.close()
            raise ValueError(f"version of {self.path} is {found}; expected {VERSION}")
        self._origins: dict[str, int] = {}

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing ------------------------------------------------------------------------------------------------------

    def plan(self, cells: Iterable[Cell]) -> None:
        """Have these cells too, behind those that are there; one that is there already stays as it is."""
        with self._whole():
            (n,) = self._db.execute("SELECT COALESCE(MAX(number) + 1, 0) FROM cells").fetchone()
            known = {digest for (digest,) in self._db.execute("SELECT digest FROM cells")}
            rows: list[tuple[Any, ...]] = []
            for cell in cells:
                if cell.digest not in known:
                    known.add(cell.digest)
                    rows.append((n + len(rows), cell.digest, cell.stage, json.dumps(cell.settings)))
            self._db.executemany("INSERT INTO cells VALUES (?, ?, ?, ?)", rows)

    def add(self, results: Iterable[Result]) -> None:
        """Keep results; of a cell that is done or diverged, the first one stays."""
        now = time.time()
        with self._whole():
            self._db.executemany(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET "
                "status = excluded.status, numbers = excluded.numbers, curve = excluded.curve, "
                "points = excluded.points, error = excluded.error, attempts = attempts + excluded.attempts, "
                "seconds = excluded.seconds, finished = excluded.finished, origin = excluded.origin "
                "WHERE status = 'failed'",
                [
                    (
                        *(r.digest, r.status, _text(r.numbers), np.asarray(r.curve, np.float64).tobytes()),
                        *("\n".join(map(_text, r.points)) or None, r.error, r.attempts, r.seconds, now),
                        self._origin(r.origin),
                    )
                    for r in results
                ],
            )

    def note(self, name: str, value: Any) -> None:
        """Keep something about the sweep, JSON-able."""
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, json.dumps(value)))

    def _whole(self) -> _Transaction:
        return _Transaction(self._db)

    def _origin(self, origin: Mapping[str, Any]) -> int:
        what = json.dumps(origin, sort_keys=True)
        if what not in self._origins:
            self._db.execute("INSERT OR IGNORE INTO origins (what) VALUES (?)", (what,))
            (self._origins[what],) = self._db.execute("SELECT id FROM origins WHERE what = ?", (what,)).fetchone()
        return self._origins[what]

    # --- reading ------------------------------------------------------------------------------------------------------

    def about(self, name: str, default: Any = None) -> Any:
        """What was noted under a name."""
        found = self._db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return default if found is None else json.loads(found[0])

    def settled(self) -> set[str]:
        """Digests of the cells that need not run again: done, or diverged."""
        return {digest for (digest,) in self._db.execute("SELECT digest FROM results WHERE status != 'failed'")}

    def rows(self, points: bool = False) -> list[Row]:
        """Every cell in the order in which they were planned; with what was logged only if asked, as it may be much."""
        origins = {id: json.loads(what) for id, what in self._db.execute("SELECT id, what FROM origins")}
        found = []
        for number, digest, stage, settings, status, *rest in self._db.execute(
            "SELECT c.number, c.digest, c.stage, c.settings, r.status, r.numbers, r.curve, r.error, r.attempts, "
            f"r.seconds, r.origin, {'r.points' if points else 'NULL'} "
            "FROM cells c LEFT JOIN results r ON r.digest = c.digest ORDER BY c.number"
        ):
            result = None
            if status is not None:
                numbers, curve, error, attempts, seconds, origin, logged = rest
                result = Result(
                    *(digest, status, _numbers(numbers), np.frombuffer(curve, np.float64).reshape(2, -1)),
                    *(error, attempts, seconds, origins[origin]),
                    [_numbers(line) for line in (logged or "").splitlines()],
                )
            found.append(Row(number, Cell(json.loads(settings), stage), result))
        return found


class _Transaction:
    """All or nothing, also for other processes."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _text(numbers: Mapping[str, float]) -> str:
    return json.dumps(numbers)  # with NaN and Infinity, which Python's JSON reads again


def _numbers(text: str) -> dict[str, float]:
    numbers: dict[str, float] = json.loads(text)
    return numbers
