"""Sweeps: the same table however they are run, whatever dies meanwhile; the choice, and the numbers that follow it."""

import dataclasses
import math
import os
import signal

import numpy as np
import pytest

from valueapprox.agents.sweeps import scheduler
from valueapprox.agents.sweeps.cells import FIRST_EVALUATION_SEED, Cell, Range
from valueapprox.agents.sweeps.measures import measure
from valueapprox.agents.sweeps.scheduler import run_cells
from valueapprox.agents.sweeps.store import DIVERGED, DONE, FAILED, Result, Row, Store
from valueapprox.agents.sweeps.sweep import Sweep
from valueapprox.agents.sweeps.table import Group, Table, best
from valueapprox.agents.training import settings_from

WALK = {"env": "valueapprox/RandomWalk-v0", "agent": "td", "steps": 400, "envs": 2, "block": 50, "hidden": []}
SWEEP = Sweep(
    {**WALK, "optimizer": "sgd", "schedule": "constant"}, {"alpha": [0.01, 0.1, 1e30], "lam": [0.0, 0.9]}, seeds=3
)
ACTS = {"env": "valueapprox/CartPole-v1", "agent": "stream-ac", "steps": 1000, "hidden": [8]}


def compared(rows):
    """What must not depend on how a sweep is run."""
    return [
        (row.number, row.cell.digest, row.cell.stage, row.result.status, row.result.numbers, row.result.curve.tobytes())
        for row in rows
    ]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder of the sweep, run in this process."""
    folder = tmp_path_factory.mktemp("here")
    SWEEP.run(folder)
    return folder


def rows_of(folder):
    with Store(folder, read_only=True) as store:
        return store.rows()


def test_a_cell_comes_out_the_same_alone_in_a_batch_and_on_workers(local_ray, here, tmp_path):
    rows = rows_of(here)
    for row in rows[::5]:
        alone = measure(row.cell)
        assert (alone.status, alone.numbers) == (row.result.status, row.result.numbers)
    for workers in (1, 3):
        SWEEP.run(tmp_path / str(workers), workers=workers)
        assert compared(rows_of(tmp_path / str(workers))) == compared(rows)


def test_run_again_only_what_is_missing_runs(here, tmp_path, monkeypatch):
    half = dataclasses.replace(SWEEP, grid={**SWEEP.grid, "lam": [0.0]})
    half.run(tmp_path)
    ran = []
    monkeypatch.setattr(scheduler, "measure", lambda cell, *wanted: ran.append(cell.digest) or measure(cell, *wanted))
    SWEEP.run(tmp_path)
    new = {cell.digest for cell in SWEEP.cells()} - {cell.digest for cell in half.cells()}
    assert sorted(ran) == sorted(new)
    SWEEP.run(tmp_path)
    assert len(ran) == len(new)
    by_digest = {row.cell.digest: compared([row._replace(number=0)]) for row in rows_of(here)}
    assert {row.cell.digest: compared([row._replace(number=0)]) for row in rows_of(tmp_path)} == by_digest


def test_a_table_has_arrays_with_a_row_per_cell(here):
    with Store(here, read_only=True) as store:
        table = Table(store.rows())
    assert len(table) == 18
    assert table.number == "value_error"
    assert table["alpha"].tolist() == [0.01] * 6 + [0.1] * 6 + [1e30] * 6
    assert table["lam"].tolist() == ([0.0] * 3 + [0.9] * 3) * 3
    assert table["seed"].tolist() == [0, 1, 2] * 6
    lost = table["alpha"] > 1
    assert (table["status"][lost] == DIVERGED).all()
    assert np.isnan(table["value_error"][lost]).all()
    assert np.isfinite(table["value_error"][~lost]).all()
    assert table.counts == {DONE: 12, DIVERGED: 6, FAILED: 0, "missing": 0}
    assert table.varied == ["lam", "alpha"]
    with pytest.raises(KeyError, match=r"column is 'alfa'; expected one of value_error, .*alpha"):
        table["alfa"]


def test_what_fails_is_tried_again_and_stops_nothing(tmp_path):
    (tmp_path / "fails").write_text("raise")
    fixed = {"env": "sweeps_envs:Ends-v0", "agent": "sarsa", "steps": 300, "hidden": [4]}
    arguments = [{"file": str(tmp_path / name)} for name in ("none", "fails")]
    sweep = Sweep(fixed, {"env_args": arguments}, seeds=2)
    table = sweep.run(tmp_path / "out")
    assert table["status"].tolist() == [DONE, DONE, FAILED, FAILED]
    failed = table.rows[2].result
    assert failed.attempts == scheduler.ATTEMPTS
    assert "the track is blocked" in failed.error
    assert math.isnan(table.groups()[1].mean.value)
    (tmp_path / "fails").unlink()  # mended: the same command does what is missing
    again = sweep.run(tmp_path / "out")
    assert again["status"].tolist() == [DONE] * 4
    assert again.rows[2].result.attempts == scheduler.ATTEMPTS + 1
    assert again["return"][:2].tolist() == again["return"][2:].tolist()


def test_a_process_that_dies_takes_only_the_cell_along_that_kills_it(local_ray, tmp_path):
    (tmp_path / "dies").write_text("die")
    (tmp_path / "died").write_text("die once")
    fixed = {"env": "sweeps_envs:Ends-v0", "agent": "sarsa", "steps": 300, "hidden": [4]}
    arguments = [{"file": str(tmp_path / name)} for name in ("none", "dies", "died")]
    said = []
    table = Sweep(fixed, {"env_args": arguments}, seeds=1).run(tmp_path / "out", workers=2, notice=said.append)
    assert table["status"].tolist() == [DONE, FAILED, DONE]
    assert f"the process that measured it died {scheduler.LIVES} times" in table.rows[1].result.error
    assert any("a Ray worker died" in sentence for sentence in said)
    assert table["return"][0] == table["return"][2]


def test_ctrl_c_keeps_what_is_done(tmp_path):
    sweep = Sweep(WALK, {"lam": np.linspace(0, 0.99, 100).tolist()}, seeds=30)

    def interrupt(status):
        if status.done:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sweep.run(tmp_path, progress=interrupt)
    with Store(tmp_path, read_only=True) as store:
        done = store.settled()
    assert 0 < len(done) < 3000


def test_one_process_at_a_time_fills_a_store(tmp_path):
    from valueapprox.telemetry import hold

    with hold(tmp_path), pytest.raises(FileExistsError, match="another process is writing"):
        SWEEP.run(tmp_path)


# --- the choice -------------------------------------------------------------------------------------------------------


def group(name, values, number="return"):
    rows = [
        Row(0, Cell({"env": "x", "agent": name, "seed": k}),
            None if v is None else Result(name, DONE if math.isfinite(v) else DIVERGED,
                                          {number: v} if math.isfinite(v) else {}, np.zeros((2, 0))))
        for k, v in enumerate(values)
    ]  # fmt: skip
    return Group(name, rows, number)


def test_the_setting_with_the_best_lower_end_is_chosen():
    wide, narrow = group("wide", [0.0, 10.0, 20.0, 30.0]), group("narrow", [9.0, 10.0, 11.0, 10.0])
    assert wide.mean.value > narrow.mean.value
    assert best([wide, narrow]) is narrow
    errors = [group("a", [0.0, 10.0, 20.0, 30.0], "rmse"), group("b", [17.0, 18.0, 18.0, 17.0], "rmse")]
    assert errors[0].mean.value > errors[1].mean.value  # scores: more is better
    assert best(errors) is errors[1]


def test_a_lost_cell_counts_as_the_worst_and_no_mean_is_made_of_it():
    lost = group("lost", [100.0, 100.0, math.inf, 100.0])
    whole = group("whole", [1.0, 2.0, 3.0, 2.0])
    assert math.isnan(lost.mean.value)
    assert lost.worst == -math.inf
    assert lost.scores.tolist() == [100.0, 100.0, -math.inf, 100.0]
    assert best([lost, whole]) is whole
    assert best([lost, group("other", [math.inf] * 4)]) is lost
    assert group("e", [1.0, math.inf], "rmse").worst == math.inf
    missing = group("m", [1.0, None, 3.0])
    assert missing.scores.tolist() == [1.0, 3.0]


def test_the_chosen_setting_runs_again_on_fresh_seeds(tmp_path):
    sweep = dataclasses.replace(SWEEP, then_evaluate=4)
    table = sweep.run(tmp_path)
    evaluated = [row for row in table.rows if row.cell.stage == "evaluation"]
    chosen = best(table.only(stage="tuning").groups())
    assert {row.cell.setting for row in evaluated} == {chosen.setting}
    assert [row.cell.settings["seed"] for row in evaluated] == [FIRST_EVALUATION_SEED + k for k in range(4)]
    seeds = set(table["seed"][table["stage"] == "tuning"].tolist())
    assert not seeds & set(table["seed"][table["stage"] == "evaluation"].tolist())
    assert sweep.run(tmp_path)["value_error"].tolist() == pytest.approx(table["value_error"].tolist(), nan_ok=True)


def test_each_agent_in_each_world_has_its_own_choice(tmp_path):
    sweep = Sweep(
        {k: v for k, v in WALK.items() if k != "agent"},
        {"agent": ["td", "n-step"], "alpha": [0.01, 0.1]},
        seeds=2,
        then_evaluate=2,
    )
    table = sweep.run(tmp_path)
    assert len(table.competitors()) == 2
    agents = table["agent"][table["stage"] == "evaluation"]
    assert agents.tolist() == ["td", "td", "n-step", "n-step"]


def test_the_discount_is_part_of_the_problem_only_where_its_values_are_learned():
    acting = [
        Row(k, Cell({"env": "x", "agent": "sarsa", "gamma": g, "seed": 0}), None) for k, g in enumerate((0.9, 1.0))
    ]
    assert len(Table(acting).competitors()) == 1
    predicting = [row._replace(cell=Cell({**row.cell.settings, "policy": "random"})) for row in acting]
    assert len(Table(predicting).competitors()) == 2


# --- searches ---------------------------------------------------------------------------------------------------------


def test_optuna_asks_the_same_for_any_number_of_workers(local_ray, tmp_path):
    pytest.importorskip("optuna")
    ranges = {"alpha": Range(1e-3, 1.0, log=True), "lam": Range(0.0, 0.99), "optimizer": Range(choices=("sgd", "adam"))}
    sweep = Sweep(WALK, ranges=ranges, random=6, rounds=3, search="optuna", seeds=2)
    tables = [sweep.run(tmp_path / str(workers), workers=workers) for workers in (0, 2)]
    assert compared(tables[0].rows) == compared(tables[1].rows)
    assert len(set(tables[0]["alpha"].tolist())) == 6
    assert len(tables[0]) == 12


def test_a_worker_gets_about_a_second_s_work():
    cells = Sweep(WALK, {"lam": np.linspace(0, 0.9, 300).tolist()}, seeds=1).cells()
    pool = object.__new__(scheduler._Pool)
    pool.waiting, pool.alone, pool.workers, pool.seconds = scheduler.deque(cells), scheduler.deque(), [None] * 2, {}
    assert len(pool._next_chunk()) == 1  # how long it takes is not known
    pool.seconds[scheduler._shape(cells[0])] = 0.05
    assert len(pool._next_chunk()) in (19, 20)
    pool.seconds[scheduler._shape(cells[0])] = 3.0
    assert len(pool._next_chunk()) == 1
    pool.seconds[scheduler._shape(cells[0])] = 0.03
    sizes = []
    while chunk := pool._next_chunk():
        sizes.append(len(chunk))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 3 < sizes[0]  # a tenth of a second at least
    assert 301 - 23 <= sum(sizes) <= 300 - 21


def test_nothing_to_do_is_done(local_ray):
    assert not run_cells([], lambda results: None, workers=2)
    assert settings_from(WALK).steps == 400
