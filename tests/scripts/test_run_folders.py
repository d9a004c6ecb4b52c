"""Folders of runs, as a person starts several: each its own, and a start that is refused changes nothing."""

import json
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from valueapprox import checkpoint
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.telemetry import read_metrics

SCRIPTS = Path(__file__).parents[2] / "scripts"
STRANGE = Path(__file__).parents[1] / "agents" / "strange_locks.py"
CONTROL = ("--env", "valueapprox/CartPole-v1", "--agent", "stream-ac", "--hidden", 4, "--episodes", 0, "--quiet")
PREDICTION = ("--env", "valueapprox/RandomWalk-v0", "--workers", 0, "--envs", 2, "--episodes", 0, "--quiet")


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def wait_for(condition, process, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("options", [CONTROL, PREDICTION], ids=["control", "prediction"])
def test_runs_started_in_one_second_have_folders_of_their_own(start_script, tmp_path, options):
    start = partial(start_script.start, "train.py", *options, "--steps", 2000, cwd=tmp_path)
    started = [start("--seed", seed) for seed in (1, 2, 3)]
    ends = [process.communicate(timeout=280) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ends
    folders = list((tmp_path / "runs").iterdir())
    seeds = {}
    for folder in folders:
        written = json.loads((folder / "settings.json").read_text())["seed"]
        assert checkpoint.load(folder / CHECKPOINT_FILE).meta["settings"]["seed"] == written
        assert read_metrics(folder)[-1]["step"] == 2000
        seeds[written] = folder
        assert f"Log and checkpoint  runs/{folder.name}\n" in ends[written - 1][0]
    assert (len(folders), set(seeds)) == (3, {1, 2, 3})


def test_a_start_that_fails_leaves_no_folder(start_script, tmp_path):
    result = start_script("train.py", "--gamma", 2, "--steps", 100, cwd=tmp_path)
    assert result.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [CONTROL, PREDICTION], ids=["control", "prediction"])
def test_a_run_that_is_going_is_not_touched_by_a_resume_or_a_start(start_script, tmp_path, options):
    endless = ("--steps", 10**12, "--checkpoint-every", 0.2, "--run-dir", "run")
    first = start_script.start("train.py", *options, *endless, cwd=tmp_path)
    try:
        wait_for((tmp_path / "run" / CHECKPOINT_FILE).exists, first)
        first.send_signal(signal.SIGSTOP)  # so that every byte can be compared
        time.sleep(0.1)
        before = files(tmp_path)
        for more in (("--resume", "run", "--steps", 2 * 10**12), (*options, "--steps", 500, "--run-dir", "run")):
            result = start_script("train.py", *more, "--quiet", cwd=tmp_path)
            assert result.returncode == 2
            assert result.stderr.count("\n") == 1
            assert "another process" in result.stderr or "exists and is not empty" in result.stderr
            assert files(tmp_path) == before
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=60) == 130
    finally:
        first.kill()
        first.communicate()
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["steps"] == 10**12


@pytest.mark.parametrize("kind", [PredictionRun, ControlRun])
def test_a_resume_that_was_overtaken_is_refused_and_changes_nothing(tmp_path, kind):
    # Both read the checkpoint of step 300; one goes on to 600, and then the other must not go on from 300.
    small = PredictionSettings("valueapprox/CartPole-v1", hidden=(4,), envs=2, block=50, steps=300)
    settings = small if kind is PredictionRun else ControlSettings("valueapprox/CartPole-v1", hidden=(4,), steps=300)
    arguments = (0,) if kind is PredictionRun else ()
    kind(settings, tmp_path).train(*arguments)
    more = type(settings)(**{**vars(settings), "steps": 600})
    one, other = kind(more, tmp_path, resume=True), kind(more, tmp_path, resume=True)
    one.train(*arguments)
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="has continued the run"):
        other.train(*arguments)
    assert files(tmp_path) == before


@pytest.mark.parametrize("kind", ["nfs", "none"])
def test_folders_on_other_file_systems(start_script, tmp_path, kind):
    rng = np.random.default_rng(0)
    rows = "\n".join(f"{a:.3f},{a:.3f}" for a in rng.normal(size=20))
    (tmp_path / "data.csv").write_text(f"a,b\n{rows}\n")
    commands = (
        ("train.py", *CONTROL, "--steps", 300, "--run-dir", "a"),
        ("train.py", *PREDICTION, "--steps", 300, "--run-dir", "b"),
        ("fit.py", "data.csv", "--target", "b", "--quiet", "--epochs", 2, "--out", "c"),
    )
    for script, *options in commands:
        result = start_script(STRANGE, kind, SCRIPTS / script, *options, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert ("has no locks" in result.stdout) == (kind == "none")


@pytest.mark.parametrize("kind", ["nfs", "none"])
def test_a_service_on_other_file_systems(start_script, tmp_path, kind):
    options = ("--new", "--inputs", 2, "--data", "d", "--port", 0)
    process = start_script.start(STRANGE, kind, SCRIPTS / "serve.py", *options, cwd=tmp_path)
    try:
        said = []
        for line in process.stderr:  # its log
            said.append(line)
            if "serving" in line:
                break
        process.send_signal(signal.SIGINT)
        output = "".join([*said, *process.communicate(timeout=60)])
    finally:
        process.kill()
        process.wait()
    assert "Bad file" not in output
    assert ("has no locks" in output) == (kind == "none"), output
