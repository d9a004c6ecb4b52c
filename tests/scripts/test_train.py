"""scripts/train.py as a person starts it."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from families import alive, family, wait_for

from valueapprox import ValueFunction, checkpoint
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.telemetry import read_metrics

TRAIN = str(Path(__file__).parents[2] / "scripts" / "train.py")
QUICK = ("--workers", "0", "--quiet", "--episodes", "0")


def command(*options):
    return [sys.executable, TRAIN, *map(str, options)]


@pytest.fixture(scope="module")
def train(start_script):
    return lambda *options, cwd=".": start_script("train.py", *options, cwd=cwd)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def outcome(folder):
    arrays, meta = checkpoint.load(Path(folder) / CHECKPOINT_FILE)
    hidden = ("time/", "final/")
    logged = [{t: v for t, v in line.items() if not t.startswith(hidden)} for line in read_metrics(folder)]
    meta.pop("concluded", None)
    return {name: array.tobytes() for name, array in arrays.items()}, meta, logged


@pytest.fixture(scope="module")
def small(tmp_path_factory):  # as a person starts it, in a process from the beginning
    """A small finished run, made by the script: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    options = ("--env", "valueapprox/RandomWalk-v0", "--steps", 2000, "--envs", 2, "--block", 100, "--gamma", 0.9)
    started = command(*options, "--workers", 0, "--quiet", "--episodes", 20, "--run-dir", folder)
    return folder, subprocess.run(started, capture_output=True, text=True, timeout=120)


def test_a_run_leaves_everything_and_says_where(small):
    folder, result = small
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    assert names == {"checkpoint.npz", "metrics.jsonl", "provenance.json", "settings.json", "summary.json", "run.png"}
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert ValueFunction.load(folder / "checkpoint.npz").n_transitions == 2000
    assert read_metrics(folder)[-1]["step"] == 2000
    assert PredictionSettings.from_dict(json.loads((folder / "settings.json").read_text())).gamma == 0.9
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "Learned from 2,000 transitions" in result.stdout
    assert f"Log and checkpoint  {folder}\n" in result.stdout  # on one line, however long
    assert f"python scripts/evaluate.py {folder} --episodes 1000" in result.stdout
    assert "value error" in result.stdout
    assert "explained variance" in result.stdout


def test_the_summary_holds_what_was_printed(small):
    folder, result = small
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["step"] == 2000
    assert not summary["interrupted"]
    assert f"RMSVE {summary['rmsve']:.4g}" in result.stdout
    bias = summary["monte_carlo"]["bias"]
    assert bias["low"] <= bias["value"] <= bias["high"]
    assert f"{bias['value']:.4g}" in result.stdout


def test_the_commands_in_the_help_are_understood(train, tmp_path):
    walk = ("--env", "valueapprox/RandomWalk-v0", "--agent", "td", "--lam", 0.8, "--hidden", "--no-bias")
    options = (*walk, "--optimizer", "sgd", "--alpha", 0.05, "--steps", 500, "--run-dir", tmp_path / "run")
    result = train(*options, *QUICK)
    assert result.returncode == 0, result.stderr
    net = ValueFunction.load(tmp_path / "run" / "checkpoint.npz").net
    assert (net.sizes, net.bias) == ((19, 1), False)


def test_help_names_the_choices(train):
    result = train("--help")
    assert result.returncode == 0
    for word in ("--run-dir", "--resume", "monte-carlo", "RandomWalk-v0", "Acrobot-v1"):
        assert word in result.stdout


def test_without_a_folder_one_in_runs_is_made(train, tmp_path):
    result = train("--env", "CartPole-v1", "--steps", 100, *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("CartPole-v1-td-")
    assert f"runs/{folder.name}" in result.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_follow_a_policy_of_the_working_directory(train, tmp_path):
    (tmp_path / "my_policies.py").write_text("def left(observation, rng):\n    return int(rng.random() < 0.3)\n")
    options = ("--env", "CartPole-v1", "--policy", "my_policies:left", "--steps", 4000, "--envs", 4, "--block", 250)
    result = train(*options, "--workers", 2, "--episodes", 5, "--run-dir", "two", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "explained variance" in result.stdout
    assert train(*options, *QUICK, "--run-dir", "none", cwd=tmp_path).returncode == 0
    assert outcome(tmp_path / "two") == outcome(tmp_path / "none")


def test_a_finished_run_can_be_resumed_and_loses_nothing(train, small, tmp_path):
    shutil.copytree(small[0], tmp_path / "small")
    result = train("--resume", "small", *QUICK, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--steps MORE" in result.stdout
    assert "nan" not in result.stdout
    assert outcome(tmp_path / "small") == outcome(small[0])
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (small[0], tmp_path / "small")]
    assert summaries[1]["rmsve"] == summaries[0]["rmsve"]


def test_the_default_number_of_steps_may_be_asked_for(train, small, tmp_path):
    shutil.copytree(small[0], tmp_path / "small")
    result = train("--resume", "small", *QUICK, "--steps", PredictionSettings().steps, cwd=tmp_path)
    assert result.returncode == 0
    assert ValueFunction.load(tmp_path / "small" / CHECKPOINT_FILE).n_transitions == PredictionSettings().steps


# Bad input ------------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


RUN = ("--run-dir", "run", "--steps", 100)
#: name: (options, what the line says); the folder small holds the small run, other somebody's files
BAD = {
    "environment": ((*RUN, "--env", "CartPol-v1"), "did you mean 'CartPole-v1'"),
    "module of the environment": ((*RUN, "--env", "no_such_module:X-v0"), "no_such_module"),
    "argument of the environment": ((*RUN, "--env", "CartPole-v1", "--env-args", "colour", "3"), "colour"),
    "policy": ((*RUN, "--policy", "heuristc"), "did you mean 'heuristic'"),
    "policy's module": ((*RUN, "--policy", "no_such_module:f"), "'no_such_module' cannot be imported"),
    "policy's function": ((*RUN, "--policy", "math:no_such_function"), "has no 'no_such_function'"),
    "folder": (("--run-dir", "other", "--steps", 100), "exists and is not empty"),
    "gamma": ((*RUN, "--gamma", 2), "gamma is 2.0"),
    "steps": ((*RUN, "--steps", 0), "steps is 0"),
    "activation": ((*RUN, "--activation", "rely"), "did you mean 'relu'"),
    "workers": ((*RUN, "--workers", 9), "workers is 9; expected at most 8"),
    "address": ((*RUN, "--ray-address", "127.0.0.1:{port}"), "nothing answers at the Ray address"),
    "malformed address": ((*RUN, "--ray-address", "nonsense"), "'nonsense'"),
    "checkpoint missing": (("--resume", "nowhere"), "there is no checkpoint at"),
    "checkpoint damaged": (("--resume", "damaged"), "damaged"),
    "checkpoint not ours": (("--resume", "other"), "not a checkpoint of valueapprox"),
    "another gamma": (("--resume", "small", *QUICK, "--gamma", 0.5), "gamma is 0.5; expected 0.9"),
    "the default gamma": (("--resume", "small", *QUICK, "--gamma", 0.99), "gamma is 0.99; expected 0.9"),
    "structured observations": (
        (*RUN, "--env", "scripted_envs:Structured-v0", "--policy", "random"),
        "--flatten",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(train, small, tmp_path, name):
    options, says = BAD[name]
    shutil.copytree(small[0], tmp_path / "small")
    content = (small[0] / CHECKPOINT_FILE).read_bytes()
    for folder, damaged in (("damaged", content[: len(content) // 2]), ("other", b"a shopping list")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / CHECKPOINT_FILE).write_bytes(damaged)
    before = files(tmp_path)
    result = train(*(str(o).format(port=free_port()) for o in options), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert files(tmp_path) == before


# Kills ----------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_nothing_is_left_running(tmp_path, sent):
    options = ("--steps", 10**9, "--workers", 2, "--quiet", "--run-dir", tmp_path / "run", "--checkpoint-every", 0.2)
    process = subprocess.Popen(
        command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    children = set()
    try:
        path = tmp_path / "run" / CHECKPOINT_FILE
        assert wait_for(lambda: path.exists() or process.poll() is not None, 120)  # Ray's start on a busy machine
        time.sleep(0.5)
        children = family(process.pid)
        assert len(children) >= 4  # Ray's own, and two workers
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.kill()
        output, errors = process.communicate(timeout=60)
        assert wait_for(lambda: not alive(children), 15), alive(children)
    finally:
        process.kill()
        process.wait()
        for pid, _ in alive(children):
            os.kill(pid, signal.SIGKILL)
    run = PredictionRun(None, tmp_path / "run", resume=True)
    if sent is signal.SIGINT:
        assert process.returncode == 130, errors
        assert f"--resume {tmp_path / 'run'}" in output
        assert run.step > 0


@pytest.mark.slow
def test_kill_9_in_the_middle_of_saves_loses_nothing(start_script, tmp_path):
    settings = PredictionSettings("valueapprox/CartPole-v1", hidden=(8,), steps=12_000, envs=2, block=4, log_every=500)
    PredictionRun(settings, tmp_path / "quiet").train(0, checkpoint_every=1e9)
    fresh = ("--env", settings.env, "--hidden", 8, "--steps", settings.steps, "--envs", 2, "--block", 4)
    options = (*fresh, "--log-every", 500, "--run-dir", tmp_path / "killed")
    path, rng, kills, steps = tmp_path / "killed" / CHECKPOINT_FILE, random.Random(0), 0, [0]
    while True:
        process = start_script.start("train.py", *options, *QUICK, "--checkpoint-every", 0)
        if kills == 3:
            assert process.wait(timeout=120) == 0, process.stderr.read()
            break
        # It saves all the time: once it has got further, any moment is in the middle of a save, or close to it.
        assert wait_for(lambda: path.exists() and checkpoint.load(path).meta["step"] > steps[-1], seconds=120)
        time.sleep(rng.uniform(0.02, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
        kills += 1
        steps.append(checkpoint.load(path).meta["step"])
        options = ("--resume", tmp_path / "killed")
    assert steps == sorted(set(steps))
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "quiet")
