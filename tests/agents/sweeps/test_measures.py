"""A cell's numbers: those of the run by itself, of its own files, and right."""

import math

import numpy as np
import pytest

from valueapprox.agents.evaluation import rmsve
from valueapprox.agents.prediction_run import PredictionRun
from valueapprox.agents.report import read_episodes
from valueapprox.agents.sweeps import cells, measures
from valueapprox.agents.sweeps.measures import Wanted, acted, measure, predicted
from valueapprox.agents.sweeps.runs import read_run
from valueapprox.agents.sweeps.store import DIVERGED, DONE, FAILED
from valueapprox.agents.training import kind_for, settings_from

WALK = {"env": "valueapprox/RandomWalk-v0", "agent": "td", "steps": 2000, "envs": 2, "block": 100, "hidden": []}
RUNS = [
    WALK,
    {"env": "valueapprox/CartPole-v1", "agent": "stream-ac", "steps": 3000, "hidden": [8]},
    {"env": "valueapprox/CartPole-v1", "agent": "ppo", "steps": 2048, "hidden": [8], "envs": 4, "rollout": 64,
     "minibatch": 64, "eval_every": 1024, "eval_episodes": 2},
    {"env": "CartPole-v1", "agent": "sarsa", "steps": 500, "hidden": [8]},
]  # fmt: skip


@pytest.mark.parametrize("values", RUNS, ids=lambda values: values["agent"])
def test_the_numbers_are_those_of_the_run_by_itself(values, tmp_path):
    settings = settings_from({**values, "seed": 3})
    kind_for(settings.agent)(settings, tmp_path / "run").train()
    alone = read_run(tmp_path / "run").result
    found = measure(cells.make(values, 3))
    assert found.status == DONE, found.error
    assert found.numbers == alone.numbers
    assert np.array_equal(found.curve, alone.curve, equal_nan=True)
    again = measure(cells.make(values, 3), Wanted(points=True))
    assert again.numbers == found.numbers
    timed = ("time/", "seconds")
    logged = [{tag: x for tag, x in point.items() if not tag.startswith(timed)} for point in alone.points]
    assert [{t: x for t, x in point.items() if not t.startswith(timed)} for point in again.points] == logged


def test_a_shared_experience_is_that_of_each_alone():
    shared = [measure(cells.make({**WALK, "lam": lam}, 0)).numbers for lam in (0.0, 0.5, 0.9)]
    measures._recorded.clear()
    alone = []
    for lam in (0.0, 0.5, 0.9):
        alone.append(measure(cells.make({**WALK, "lam": lam}, 0)).numbers)
        measures._recorded.clear()
    assert shared == alone
    assert len({numbers["value_error"] for numbers in shared}) == 3


def test_a_run_that_diverges_does_not_spoil_what_others_learn_from():
    values = {**WALK, "optimizer": "sgd", "schedule": "constant"}
    measures._recorded.clear()
    before = measure(cells.make({**values, "alpha": 0.01}, 1)).numbers
    measures._recorded.clear()
    lost = measure(cells.make({**values, "alpha": 1e30, "hidden": [4]}, 1))
    assert (lost.status, lost.numbers) == (DIVERGED, {})
    assert measure(cells.make({**values, "alpha": 0.01}, 1)).numbers == before


def test_a_value_error_is_that_against_the_true_values(tmp_path):
    run = PredictionRun(settings_from({**WALK, "seed": 5}), tmp_path / "run")
    run.train()
    found = measure(cells.make(WALK, 5)).numbers["value_error"]
    assert found == rmsve(run.value_function, run.known)


def test_the_error_against_returns_is_least_for_the_true_values():
    """Of v + c, the mean square is that of v plus c^2 + 2 c E[v - G], and the mean of v - G is about nothing."""
    task = settings_from({"env": "valueapprox/CartPole-v1", "agent": "td"}).task()
    reference = measures._gathered(task, 0.9)
    assert reference.states.shape == (measures.REFERENCE_STATES, 4)
    # CartPole's rewards are 1 until the pole falls: returns are (1 - 0.9^k) / 0.1
    k = np.log(1 - 0.1 * reference.returns) / math.log(0.9)
    long = k > 60  # whose end is too far off to be told from none
    assert np.allclose(k[~long], np.round(k[~long]), atol=1e-6)
    assert reference.returns.max() <= 10.0
    assert measures._reference(*measures._key(task), 0.9).returns is not None


@pytest.mark.parametrize(
    "values", [WALK, RUNS[1], {**WALK, "env": "valueapprox/CartPole-v1"}], ids=["td", "ac", "rmse"]
)
def test_a_cell_that_leaves_its_folder_has_the_same_numbers_and_goes_on(values, tmp_path):
    cell = cells.make(values, 1)
    plain = measure(cell)
    assert measure(cell, Wanted(logs=tmp_path)).numbers == plain.numbers
    assert (tmp_path / cell.digest / "checkpoint.npz").exists()
    assert list((tmp_path / cell.digest).glob("events.out.tfevents.*"))
    again = measure(cell, Wanted(logs=tmp_path))  # it is done, and only read
    assert again.numbers == plain.numbers
    assert np.array_equal(again.curve, plain.curve, equal_nan=True)


def test_a_run_that_ends_early_says_at_which_step(tmp_path):
    random = {"agent": "sarsa", "epsilon": [1.0, 1.0, 1.0]}  # whose episodes are short
    values = {**RUNS[1], **random, "steps": 20_000, "log_every": 500, "stop_at": 5.0}
    settings = settings_from({**values, "seed": 3})
    kind_for(settings.agent)(settings, tmp_path / "run").train()
    row = read_run(tmp_path / "run")
    found = measure(cells.make(values, 3))
    assert found.numbers == row.result.numbers
    assert found.numbers["steps"] < 20_000
    assert np.isfinite(found.numbers["return"])
    assert row.cell.settings["steps"] == 20_000  # seeds that end at different steps are still repetitions


def test_long_experience_is_not_kept(monkeypatch):
    monkeypatch.setattr(measures, "SHARED_BYTES", 1000)
    measures._recorded.clear()
    measure(cells.make(WALK, 0))
    assert not measures._recorded


def test_what_raises_is_a_failure_with_its_traceback():
    found = measure(cells.make({"env": "faulty_envs:Wrong-v0", "agent": "sarsa", "steps": 100, "hidden": [4],
                                "env_args": {"gives": "reset bug"}}, 0))  # fmt: skip
    assert found.status == FAILED
    assert "the track is blocked" in found.error
    assert "Traceback" in found.error


def test_an_agent_s_numbers_by_hand():
    episodes = [{"step": s, "return": r} for s, r in ((40, 1.0), (80, 3.0), (86, 4.0), (100, 6.0))]
    numbers, curve = acted([{"step": 50, "evaluation/return": 7.0}, {"step": 100}], episodes, 100, marks=(80, 100))
    assert numbers["return"] == 5.0
    assert numbers["return_at_80"] == 3.0
    assert "return_at_100" not in numbers
    assert numbers["evaluation_return"] == 7.0
    assert numbers["episodes"] == 4.0
    assert curve.shape == (2, measures.POINTS)
    # Windows of five steps; a gap is bridged, and what is before the first known point is as it.
    known = np.array([(40, 1.0), (42, 1.0), (44, 1.0), (80, 3.0), (84, 3.0), (86, 4.0), (90, 4.0), (100, 6.0)])
    assert numbers["return_area"] == pytest.approx(
        np.trapezoid(np.interp(np.arange(2, 101, 2), *known.T), np.arange(2, 101, 2)) / 98, abs=0.05
    )


def test_a_value_function_s_numbers_by_hand():
    logged = [{"step": 10, "value/td_error/rms": 2.0, "value/error/rmsve": 1.0}, {"step": 30, "value/error/rmsve": 0.5}]
    numbers, curve = predicted(logged)
    assert numbers == {"value_error": 0.5, "value_error_area": 0.75, "td_error": 2.0}
    assert curve.tolist() == [[10.0, 30.0], [1.0, 0.5]]
    assert predicted([])[0] == {}


def test_a_fit_s_number_is_its_validation_loss(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    np.savetxt(tmp_path / "a.csv", np.c_[x, x @ [1.0, -2.0]], delimiter=",", header="a,b,y", comments="")
    values = {"data": str(tmp_path / "a.csv"), "target": ["y"], "hidden": [4], "epochs": 5}
    found = measure(cells.make(values, 0))
    assert found.status == DONE, found.error
    assert found.numbers["epochs"] == 5.0
    assert found.curve.shape == (2, 5)
    assert found.numbers["validation_loss"] == found.curve[1, -1]
    assert measure(cells.make(values, 0)).numbers == found.numbers != measure(cells.make(values, 1)).numbers


def test_episodes_are_those_of_the_file(tmp_path):
    settings = settings_from({**RUNS[1], "seed": 0})
    kind_for(settings.agent)(settings, tmp_path / "run").train()
    listed = read_episodes(tmp_path / "run")
    _, episodes = kind_for(settings.agent)(settings, None).measure()
    assert episodes == listed
