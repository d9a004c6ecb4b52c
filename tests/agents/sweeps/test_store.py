"""The store: what is written is there, once, whatever happens, and nothing else."""

import sqlite3

import numpy as np
import pytest

from valueapprox.agents.sweeps.cells import Cell
from valueapprox.agents.sweeps.store import DIVERGED, DONE, FAILED, STORE_FILE, Result, Store

CELLS = [Cell({"env": "x", "alpha": alpha, "seed": seed}) for alpha in (0.1, 0.2) for seed in range(3)]


def result(cell, status=DONE, value=1.0, **more):
    numbers = {"return": value} if status == DONE else {}
    return Result(cell.digest, status, numbers, np.array([[1.0, 2.0], [np.nan, value]]), origin={"version": 1}, **more)


def test_what_is_kept_comes_back(tmp_path):
    with Store(tmp_path) as store:
        store.plan(CELLS)
        kept = result(CELLS[1], value=-1e-300, seconds=0.25, points=[{"step": 1, "loss": np.nan}, {"step": 2}])
        store.add([kept, result(CELLS[4], DIVERGED, error="too far")])
        store.note("commands", ["a", "b"])
    with Store(tmp_path, read_only=True) as store:
        rows = store.rows(points=True)
        assert [row.cell for row in rows] == CELLS
        assert [row.number for row in rows] == list(range(6))
        assert [row.result is None for row in rows] == [True, False, True, True, False, True]
        found = rows[1].result
        assert (found.numbers, found.seconds, found.origin, found.attempts) == (
            {"return": -1e-300},
            0.25,
            {"version": 1},
            1,
        )
        assert np.array_equal(found.curve, kept.curve, equal_nan=True)
        assert found.points[1] == {"step": 2}
        assert np.isnan(found.points[0]["loss"])
        assert (rows[4].result.status, rows[4].result.error) == (DIVERGED, "too far")
        assert store.about("commands") == ["a", "b"]
        assert store.settled() == {CELLS[1].digest, CELLS[4].digest}
        assert list(store.rows()[1].result.points) == []


def test_a_plan_grows_and_forgets_nothing(tmp_path):
    with Store(tmp_path) as store:
        store.plan(CELLS[2:4])
        store.plan([CELLS[3], *CELLS, CELLS[0]])
        assert [row.cell for row in store.rows()] == [*CELLS[2:4], *CELLS[:2], *CELLS[4:]]


def test_the_first_result_stays_and_a_failure_does_not(tmp_path):
    with Store(tmp_path) as store:
        store.plan(CELLS)
        store.add([result(CELLS[0], value=1.0), result(CELLS[1], FAILED, error="no"), result(CELLS[2], DIVERGED)])
        store.add([result(CELLS[0], value=2.0), result(CELLS[1], value=3.0, attempts=2), result(CELLS[2], value=4.0)])
        first, second, third, *_ = (row.result for row in store.rows())
        assert first.numbers == {"return": 1.0}
        assert (second.status, second.numbers, second.attempts, second.error) == (DONE, {"return": 3.0}, 3, "")
        assert third.status == DIVERGED


def test_results_are_kept_all_together_or_not_at_all(tmp_path):
    with Store(tmp_path) as store:
        store.plan(CELLS)
        wrong = result(CELLS[1])._replace(numbers={"return": object()})
        with pytest.raises(TypeError):
            store.add([result(CELLS[0]), wrong])
        assert store.settled() == set()
        store.add([result(CELLS[0])])
        assert store.settled() == {CELLS[0].digest}


def test_what_is_no_store_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no sweep \(sweep.sqlite is missing\)"):
        Store(tmp_path, read_only=True)
    (tmp_path / STORE_FILE).write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match=r"sweep.sqlite is no store of a sweep \(file is not a database\)"):
        Store(tmp_path)
    (tmp_path / STORE_FILE).unlink()
    with Store(tmp_path):
        pass
    with sqlite3.connect(tmp_path / STORE_FILE) as db:
        db.execute("UPDATE about SET value = '7' WHERE name = 'version'")
    db.close()
    with pytest.raises(ValueError, match=r"version of .* is 7; expected 1"):
        Store(tmp_path, read_only=True)
