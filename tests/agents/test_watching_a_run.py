"""Evaluations, callbacks and stops while a run learns: they are in the log, and change no learned bit."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from test_control_training import NEVER, interrupt_at
from test_control_training import metrics as logged

from valueapprox import checkpoint
from valueapprox.agents.callbacks import stop_after, stop_at_return, stop_without_progress
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.evaluation import MonteCarlo, Returns
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.run import BEST_FILE, CHECKPOINT_FILE
from valueapprox.telemetry import read_metrics

ACTS = ControlSettings("valueapprox/CartPole-v1", hidden=(8,), steps=4000, log_every=1000, seed=5)
PREDICTS = PredictionSettings(
    "valueapprox/RandomWalk-v0", hidden=(8,), steps=4000, log_every=1000, envs=2, block=100, policy="random"
)
KINDS = {"acts": (ControlRun, ACTS), "predicts": (PredictionRun, PREDICTS)}
COUNTED = ("evaluated", "best", "concluded")


def change(settings, **changes):
    return type(settings).__mro__[1].from_dict({**dataclasses.asdict(settings), **changes})


def learned(folder):
    """Everything in the checkpoint but how the run is watched."""
    arrays, meta = checkpoint.load(folder / CHECKPOINT_FILE)
    for name in ("eval_every", "eval_episodes", "stop_at"):
        meta["settings"].pop(name, None)
    kept = {name: value for name, value in meta.items() if name not in COUNTED}
    return {name: array.tobytes() for name, array in arrays.items()}, kept


def without(lines, prefix):
    return [{tag: value for tag, value in line.items() if not tag.startswith(prefix)} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_are_logged_and_change_nothing_that_is_learned(kind, tmp_path):
    cls, settings = KINDS[kind]
    cls(settings, tmp_path / "plain").train()
    report = cls(change(settings, eval_every=1000, eval_episodes=4), tmp_path / "watched").train(episodes=3)
    assert learned(tmp_path / "watched") == learned(tmp_path / "plain")
    lines = logged(tmp_path / "watched")
    assert without(without(lines, "evaluation/"), "final/") == logged(tmp_path / "plain")
    tag = "evaluation/return" if kind == "acts" else "evaluation/value_error"
    assert [line["step"] for line in lines if tag in line] == [1000, 2000, 3000, 4000]
    assert set(report.evaluation) == ({"greedy", "sampled"} if kind == "acts" else {""})
    last = lines[-1]
    if kind == "acts":
        assert last["final/greedy/return"] == report.evaluation["greedy"].mean.value
    else:
        assert last["final/explained_variance"] == report.evaluation[""].explained_variance.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eval_every", [700, 1500])
def test_an_interrupted_run_has_the_evaluations_of_one_that_was_not(kind, eval_every, tmp_path):
    cls, settings = KINDS[kind]
    settings = change(settings, eval_every=eval_every, eval_episodes=3)
    cls(settings, tmp_path / "whole").train()
    run = cls(settings, tmp_path / "parts")
    for step in (700, 1500, 2300):
        report = run.train(checkpoint_every=NEVER, progress=interrupt_at(step))
        assert report.interrupted
        run = cls(None, tmp_path / "parts", resume=True)
    run.train()
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")
    best, again = (checkpoint.load(tmp_path / name / BEST_FILE) for name in ("whole", "parts"))
    assert best.meta == again.meta
    assert all(np.array_equal(best.arrays[name], again.arrays[name]) for name in best.arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_of_the_best_evaluation_is_kept(kind, tmp_path):
    cls, settings = KINDS[kind]
    run = cls(change(settings, eval_every=500, eval_episodes=4), tmp_path)
    run.train()
    tag, sign = ("evaluation/return", 1) if kind == "acts" else ("evaluation/value_error", -1)
    scores = [(sign * line[tag], line["step"]) for line in read_metrics(tmp_path) if tag in line]
    best = max(score for score, _ in scores)
    meta = checkpoint.load(tmp_path / BEST_FILE).meta
    assert (meta["best"], meta["step"]) == (best, next(step for score, step in scores if score == best))
    assert run.best == best


def test_an_evaluation_is_of_the_policy_as_it_stands(tmp_path):
    run = ControlRun(change(ACTS, eval_every=1000, eval_episodes=5), tmp_path)
    found = []
    run.train(callbacks=[lambda point: found.append((point.evaluation, point.evaluate(5))) and None])
    at_points = [pair for pair in found if pair[0] is not None]
    assert len(at_points) == 4
    assert all(isinstance(now, Returns) and before == now for before, now in at_points)  # the same starts at one step


def test_a_callback_sees_what_is_logged_and_adds_to_it(tmp_path, caplog):
    def callback(point):
        logging.getLogger("mine").warning("step %d of %d", point.step, point.steps)
        point.values["mine/step_squared"] = float(point.step) ** 2
        assert "critic/td_error/rms" in point.values
        assert point.seconds > 0

    ControlRun(ACTS, tmp_path).train(callbacks=[callback])
    lines = read_metrics(tmp_path)
    assert [line["mine/step_squared"] for line in lines] == [float(line["step"]) ** 2 for line in lines]
    assert [record.message for record in caplog.records] == [f"step {k}000 of 4000" for k in range(1, 5)]


def test_what_is_no_callback_is_refused_before_anything_is_written(tmp_path):
    run = ControlRun(ACTS, tmp_path / "run")
    with pytest.raises(TypeError, match="a callback is 3; expected a function that takes a Point"):
        run.train(callbacks=[3])
    run.close()
    assert not (tmp_path / "run").exists()


def test_a_callback_stops_the_run_and_a_resume_goes_on(tmp_path):
    ControlRun(ACTS, tmp_path / "whole").train()
    run = ControlRun(ACTS, tmp_path / "stopped")
    report = run.train(callbacks=[lambda point: point.step == 2000])
    assert (report.step, report.stopped, report.interrupted) == (2000, "a callback has ended it", 0)
    run = ControlRun(None, tmp_path / "stopped", resume=True)
    assert run.stopped
    report = run.train()
    assert (report.step, report.stopped) == (4000, "")
    assert learned(tmp_path / "stopped") == learned(tmp_path / "whole")
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")


def test_stop_at_is_reached_by_an_evaluation(tmp_path):
    run = ControlRun(change(ACTS, steps=100_000, eval_every=2000, eval_episodes=5, stop_at=100.0), tmp_path)
    report = run.train()
    lines = [line["evaluation/return"] for line in read_metrics(tmp_path) if "evaluation/return" in line]
    assert all(number < 100.0 for number in lines[:-1])
    assert lines[-1] >= 100.0
    assert report.stopped == f"the mean return of {lines[-1]:.5g} has reached 100"
    assert report.step == 2000 * len(lines) < 100_000


def test_stop_at_without_evaluations_wants_a_hundred_episodes(tmp_path):
    run = ControlRun(change(ACTS, steps=100_000, stop_at=9.0), tmp_path)
    report = run.train()
    assert report.stopped
    assert report.n_episodes >= 100
    assert report.mean_return >= 9.0
    assert len(run.episodes.last_returns) == 100


class FakePoint:
    """A point whose score is given: the callbacks read nothing else."""

    def __init__(self, score, seconds=0.0):
        self.score, self.seconds = score, seconds


@pytest.mark.parametrize(
    ("callback", "points", "stops_at"),
    [
        (stop_at_return(10.0), [None, 9.99, 10.0], 2),
        (stop_at_return(-5.0), [-7.0, None, -4.0], 2),
        (stop_without_progress(2), [1.0, 1.0, 2.0, 2.0, None, 1.0], 5),
        (stop_without_progress(1), [-3.0, -2.0, -2.0], 2),
    ],
)
def test_when_callbacks_stop(callback, points, stops_at):
    answers = [callback(FakePoint(score)) for score in points]
    assert [bool(answer) for answer in answers] == [k == stops_at for k in range(len(points))]


def test_a_time_is_a_reason_to_stop(tmp_path):
    stop = stop_after(0.5)
    assert [bool(stop(FakePoint(None, seconds))) for seconds in (0.1, 0.49, 0.5)] == [False, False, True]
    report = ControlRun(change(ACTS, steps=10**9, log_every=1000), tmp_path).train(callbacks=[stop_after(0.2)])
    assert report.stopped == "0.2 s are over"
    assert report.step % 1000 == 0


def test_a_run_is_evaluated_at_the_end_of_its_last_resume_only(tmp_path):
    run = PredictionRun(PREDICTS, tmp_path)
    assert run.train(progress=interrupt_at(1000), episodes=5).evaluation == {}
    report = PredictionRun(None, tmp_path, resume=True).train(episodes=5)
    assert isinstance(report.evaluation[""], MonteCarlo)
    assert [line["step"] for line in read_metrics(tmp_path) if "final/rmse" in line] == [4000]
    lines = logged(tmp_path)
    again = PredictionRun(None, tmp_path, resume=True).train(episodes=5)  # there is nothing left to learn
    assert again.evaluation == report.evaluation
    assert logged(tmp_path) == lines


def test_how_a_run_is_watched_may_change_on_a_resume(tmp_path):
    ControlRun(ACTS, tmp_path).train(callbacks=[lambda point: True])
    run = ControlRun(change(ACTS, eval_every=500, eval_episodes=2, stop_at=1e6), tmp_path, resume=True)
    run.train()
    assert [line["step"] for line in read_metrics(tmp_path) if "evaluation/return" in line][-1] == 4000
    with pytest.raises(ValueError, match=r"gamma is 0\.5; expected 0\.99, .* only steps, .* can change on a resume"):
        ControlRun(change(ACTS, gamma=0.5), tmp_path, resume=True)


def test_where_a_run_comes_from_is_noted_at_each_start(tmp_path):
    ControlRun(ACTS, tmp_path).train(callbacks=[lambda point: True], command="valueapprox train ...")
    ControlRun(None, tmp_path, resume=True).train()
    first, second = json.loads((tmp_path / "provenance.json").read_text())
    assert (first["step"], first["command"]) == (0, "valueapprox train ...")
    assert (second["step"], second["command"]) == (1000, "")
    assert {"valueapprox", "commit", "python", "numpy", "numba", "gymnasium", "host", "time"} <= set(first)
