"""Several seeds: each run is the run alone; and runs from a few words or a file."""

import dataclasses
import json
import os
import signal
import threading

import numpy as np
import pytest

import valueapprox
from valueapprox.agents import several
from valueapprox.agents.callbacks import stop_at_return
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.prediction_run import PredictionSettings
from valueapprox.agents.training import read_config, settings_from, train

ACTS = ControlSettings("valueapprox/CartPole-v1", hidden=(8,), steps=3000)
PREDICTS = PredictionSettings(
    "valueapprox/RandomWalk-v0", hidden=(), steps=2000, envs=2, block=100, policy="random", log_every=500
)


def weights(folder):
    return valueapprox.checkpoint.load(folder / "checkpoint.npz").arrays


def same(folder, other):
    a, b = weights(folder), weights(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three seeds each of two settings, and of a prediction run."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in (("a", ACTS), ("b", dataclasses.replace(ACTS, gamma=0.9)), ("c", PREDICTS)):
        several.complete_all(several.seed_runs(settings, folder / name, range(3)), 0, episodes=3)
    return folder


def test_a_run_of_a_seed_is_the_run_alone(seeds, tmp_path):
    run = ControlRun(dataclasses.replace(ACTS, seed=2), tmp_path)
    run.train()
    assert same(seeds / "a" / "seed-2", tmp_path)


def test_workers_make_the_same_runs(local_ray, seeds, tmp_path):
    done = []
    several.complete_all(several.seed_runs(ACTS, tmp_path, range(3)), 2, episodes=3, progress=done.append)
    assert done == [1, 2, 3]
    assert all(same(seeds / "a" / f"seed-{k}", tmp_path / f"seed-{k}") for k in range(3))


def test_what_is_done_is_left_alone_and_what_is_not_goes_on(seeds, tmp_path):
    runs = several.seed_runs(ACTS, tmp_path, range(2))
    settings, folder = runs[0]
    ControlRun(settings, folder).train(callbacks=[lambda point: True])  # stopped: done, as its callback wanted
    before = weights(folder)
    several.complete_all(runs, 0)
    assert all(np.array_equal(before[name], array) for name, array in weights(folder).items())
    assert same(folder.with_name("seed-1"), seeds / "a" / "seed-1")


def test_ctrl_c_ends_all_of_the_runs(tmp_path):
    runs = several.seed_runs(dataclasses.replace(ACTS, steps=10**9), tmp_path, range(2))
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        several.complete_all(runs, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["seed-0"]
    assert ControlRun.stored_settings(tmp_path / "seed-0").steps == 10**9


# --- from a few words -------------------------------------------------------------------------------------------------


def test_train_in_python_is_the_run_of_the_same_settings(seeds, tmp_path):
    trained = train(
        "valueapprox/CartPole-v1", "stream-ac", steps=3000, seed=1, hidden=(8,), folder=tmp_path, progress=False,
        callbacks=[stop_at_return(1e9)], episodes=3,
    )  # fmt: skip
    assert same(tmp_path, seeds / "a" / "seed-1")
    assert trained.report.step == 3000
    assert trained.report.evaluation["greedy"].n_episodes == 3
    assert trained.act(np.zeros(4)) in (0, 1)
    assert train is valueapprox.train


def test_train_makes_a_folder_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = train("valueapprox/RandomWalk-v0", "td", steps=500, envs=1, progress=False)
    assert trained.path.parent.parent.name == "runs"
    assert trained.step == 500


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"agent": "stream-a"}, ValueError, "agent is 'stream-a'; did you mean 'stream-ac'"),
        ({"gama": 0.5}, ValueError, "a setting is 'gama'; did you mean 'gamma'"),
        ({"steps": -1}, ValueError, "steps is -1; expected"),
        ({"env": 3}, TypeError, "env is 3; expected the id of an environment"),
        ({"eval_every": -1}, ValueError, "eval_every is -1"),
        ({"eval_episodes": 1}, ValueError, "eval_episodes is 1; expected a whole number of at least 2"),
    ],
)
def test_wrong_words_leave_nothing_behind(arguments, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        train(progress=False, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "c"])
def test_the_settings_of_a_run_start_it_again(name, seeds, tmp_path):
    folder = seeds / name / "seed-1"
    settings = settings_from(read_config(folder / "settings.json"))
    several.complete(settings, tmp_path / "again")
    assert same(folder, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "settings.json").read_text()) == json.loads(
        (folder / "settings.json").read_text()
    )


def test_toml_and_json_say_the_same(tmp_path):
    (tmp_path / "a.toml").write_text('agent = "sarsa"\nhidden = [8, 8]\nepsilon = [1.0, 0.1, 0.5]\nsteps = 5000\n')
    (tmp_path / "a.json").write_text('{"agent": "sarsa", "hidden": [8, 8], "epsilon": [1.0, 0.1, 0.5], "steps": 5000}')
    expected = ControlSettings(agent="sarsa", hidden=(8, 8), epsilon=(1.0, 0.1, 0.5), steps=5000)
    assert all(settings_from(read_config(tmp_path / f"a.{kind}")) == expected for kind in ("toml", "json"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "steps = ", "cannot be read .* expected TOML"),
        ("a.json", "{", r"cannot be read .* expected JSON \(TOML has the suffix .toml\)"),
        ("a.json", "[1]", "holds list; expected names of settings with their values"),
        ("a.json", '{"agent": "td", "entropy": 1}', "a setting is 'entropy'"),
        ("a.json", '{"agent": "stream-ac", "layer_norm": "no"}', "layer_norm is 'no'; expected true or false"),
        ("a.json", '{"agent": "td", "hidden": [8, "x"]}', r"hidden is \[8, 'x'\]; expected a list .* a whole number"),
        ("a.json", '{"agent": "td", "hidden": 2.5}', "hidden is 2.5; expected a list in which each entry is a whole"),
        ("a.json", '{"agent": "stream-ac", "alpha": "x"}', "alpha is 'x'; expected a number"),
        ("a.json", '{"agent": "stream-ac", "steps": true}', "steps is True; expected a whole number"),
        ("a.json", '{"agent": "stream-ac", "stop_at": Infinity}', "stop_at is inf; expected a return, a finite number"),
        ("a.json", '{"agent": "td", "env_args": 3}', "env_args is 3; expected names with their values"),
        ("a.json", '{"env": 3}', "env is 3; expected a text"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        settings_from(read_config(tmp_path / name))
