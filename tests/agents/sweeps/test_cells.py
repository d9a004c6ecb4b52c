"""Which cells a sweep has: every combination once, the same draws always, seeds that do not mix."""

import dataclasses
import json
import math

import numpy as np
import pytest

from valueapprox.agents.sweeps import cells
from valueapprox.agents.sweeps.cells import FIRST_EVALUATION_SEED, Cell, Range
from valueapprox.agents.sweeps.sweep import Sweep, attempt

TD = {"env": "valueapprox/RandomWalk-v0", "agent": "td", "steps": 200}


def test_a_cell_is_named_by_all_that_decides_its_result():
    one = cells.make(TD, 0)
    assert cells.make({**TD, "gamma": 0.99, "lam": 0.9}, 0).digest == one.digest  # as they are by default
    assert cells.make({**TD, "gamma": 1}, 0).digest == cells.make({**TD, "gamma": 1.0}, 0).digest
    others = [cells.make(TD, 1), cells.make({**TD, "lam": 0.5}, 0), cells.make({**TD, "steps": 201}, 0)]
    others += [cells.make({**TD, "env_args": {"n_states": "7"}}, 0), cells.make({**TD, "agent": "n-step"}, 0)]
    assert len({one.digest, *(cell.digest for cell in others)}) == 6
    assert cells.make(TD, 1).setting == one.setting != others[1].setting
    assert Cell(json.loads(json.dumps(one.settings))).digest == one.digest


def test_a_version_that_is_left_open_is_the_newest_one():
    assert (
        cells.make({"env": "CartPole", "agent": "sarsa"}, 0).digest
        == cells.make({"env": "CartPole-v1", "agent": "sarsa"}, 0).digest
    )


def test_a_fit_is_named_by_its_rows_too(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n2,4\n")
    one = cells.make({"data": str(path), "target": ["y"]}, 0)
    other = tmp_path / "b" / "a.csv"
    other.parent.mkdir()
    other.write_text("x,y\n1,2\n2,5\n")
    assert one.settings["data_digest"] != cells.make({"data": str(other), "target": ["y"]}, 0).settings["data_digest"]
    with pytest.raises(FileNotFoundError, match=r"data is .*none.csv; expected a CSV or npz file"):
        cells.make({"data": str(tmp_path / "none.csv")}, 0)
    with pytest.raises(ValueError, match="a setting of fit is 'targt'; did you mean 'target'"):
        cells.make({"data": str(path), "targt": ["y"]}, 0)


def test_a_grid_has_every_combination_in_order():
    found = cells.grid({"alpha": [1, 2], "lam": [0.0, 0.5, 1.0]})
    assert [tuple(one.values()) for one in found] == [(1, 0.0), (1, 0.5), (1, 1.0), (2, 0.0), (2, 0.5), (2, 1.0)]
    assert cells.grid({}) == [{}]
    with pytest.raises(ValueError, match=r"lam is \[\]; expected a list of at least one value"):
        cells.grid({"lam": []})


def test_more_draws_leave_the_first_ones_as_they_are():
    ranges = {"alpha": Range(1e-4, 1e-1, log=True), "lam": Range(), "n": Range(1, 4, whole=True)}
    few, many = cells.drawn(ranges, 5, seed=3), cells.drawn(ranges, 2000, seed=3)
    assert many[:5] == few
    assert cells.drawn(ranges, 5, seed=4) != few
    logs = np.log10([one["alpha"] for one in many])
    assert (logs.min() >= -4) & (logs.max() <= -1)
    assert abs(logs.mean() + 2.5) < 4 * 3 / math.sqrt(12 * 2000)
    assert {one["n"] for one in many} == {1, 2, 3, 4}
    counts = np.bincount([one["n"] for one in many])[1:]
    assert ((counts - 500) ** 2 / 500).sum() < 16.3  # chi-square, 3 degrees of freedom, 0.1 %


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"low": 1}, "alpha is {'low': 1}; expected a list of values, or low and high"),
        ({"low": 1, "high": 0}, "alpha is drawn from 1 to 0; expected finite ends, the lower one first"),
        ({"low": 0, "high": 1, "log": True}, "alpha is drawn from 0 on a log scale; expected a positive low end"),
        ({"low": 0, "high": 1, "lg": True}, "an entry of the range of alpha is 'lg'; did you mean 'log'"),
        (3, "alpha is 3; expected a list of values"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        Range.of("alpha", value)


def test_seeds_of_tuning_and_evaluation_never_meet():
    sweep = Sweep(TD, {"lam": [0.0, 0.5]}, seeds=3, first_seed=7)
    seeds = {cell.settings["seed"] for cell in sweep.cells()}
    assert seeds == {7, 8, 9}
    again = cells.evaluation_cell(sweep.cells()[0], 2)
    assert (again.settings["seed"], again.stage) == (FIRST_EVALUATION_SEED + 2, "evaluation")
    with pytest.raises(ValueError, match="the last seed is 1000000; expected one below 1,000,000"):
        Sweep(TD, seeds=2, first_seed=FIRST_EVALUATION_SEED - 1)


def test_a_file_says_the_same_as_python(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        'env = "valueapprox/RandomWalk-v0"\nagent = "td"\nsteps = 200\nseeds = 2\nrandom = 3\n'
        "[grid]\nlam = [0.0, 0.5]\n[ranges]\nalpha = {low = 1e-3, high = 1e-1, log = true}\n"
        'optimizer = ["sgd", "adam"]\n'
        "[[settings]]\nhidden = [8]\n[[settings]]\nhidden = [16]\n"
    )
    ranges = {"alpha": Range(1e-3, 1e-1, log=True), "optimizer": Range(choices=("sgd", "adam"))}
    same = Sweep(TD, {"lam": [0.0, 0.5]}, [{"hidden": [8]}, {"hidden": [16]}], ranges, random=3, seeds=2)
    found = Sweep.from_toml(path).cells()
    assert [cell.digest for cell in found] == [cell.digest for cell in same.cells()]
    assert len({cell.digest for cell in found}) == len(found) == 2 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": {"steps": [1, 2]}}, "steps is given twice"),
        ({"grid": {"seed": [1, 2]}}, "seed is given; expected seeds, how many there are, and first_seed"),
        ({"ranges": {"lam": Range()}}, "random is 0; expected how many settings are drawn"),
        ({"random": 3}, "random is 3 and there are no ranges"),
        ({"search": "grid"}, "search is 'grid'; expected one of"),
        ({"seeds": 0}, "seeds is 0; expected"),
        ({"grid": {"lam": [0]}, "settings": [{"lam": 1}]}, "lam is given twice; expected it in the settings that are"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Sweep(TD, **arguments)


def test_what_cannot_work_is_known_before_anything_runs(tmp_path):
    sweep = Sweep({**TD, "activation": "relu"}, {"hidden": [[8], [8, 8]], "activation_": [1]})
    with pytest.raises(ValueError, match="a setting is 'activation_'"):
        sweep.run(tmp_path / "none")
    with pytest.raises(ValueError, match="is 'rlu'; did you mean 'relu'"):
        attempt(dataclasses.replace(sweep, grid={"lam": [0.0]}, fixed={**TD, "activation": "rlu"}).cells())
    assert not (tmp_path / "none").exists()


def test_what_comes_out_otherwise_each_time_is_no_cell():
    with pytest.raises(ValueError, match="async is True; expected False, as a cell of a sweep comes out the same"):
        cells.make({"env": "CartPole-v1", "agent": "impala", "asynchronous": True}, 0)


def test_what_cannot_work_in_a_fit_is_known_before(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n2,4\n3,5\n4,9\n")
    good = cells.make({"data": str(path), "target": ["y"], "validation": 0.25}, 0)
    attempt([good])
    for wrong, words in (({"activation": "rlu"}, "rlu"), ({"target": ["z"]}, "z")):
        with pytest.raises(ValueError, match=words):
            attempt([cells.make({"data": str(path), "target": ["y"], "validation": 0.25, **wrong}, 0)])
