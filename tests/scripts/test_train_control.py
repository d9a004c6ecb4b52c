"""scripts/train.py and scripts/evaluate.py with agents that learn to act, as a person starts them."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from valueapprox import checkpoint
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.report import read_episodes
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.telemetry import read_metrics

SCRIPTS = Path(__file__).parents[2] / "scripts"
CART_POLE = ("--env", "CartPole-v1", "--agent", "stream-ac", "--hidden", 8, "--steps", 2000)


@pytest.fixture(scope="module")
def train(start_script):
    return lambda *options, cwd=".": start_script("train.py", *options, cwd=cwd)


@pytest.fixture(scope="module")
def evaluate(start_script):
    return lambda *options, cwd=".": start_script("evaluate.py", *options, cwd=cwd)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def outcome(folder):
    arrays, meta = checkpoint.load(Path(folder) / CHECKPOINT_FILE)
    hidden = ("time/", "final/")
    logged = [{t: v for t, v in line.items() if not t.startswith(hidden)} for line in read_metrics(folder)]
    meta.pop("concluded", None)
    return {name: array.tobytes() for name, array in arrays.items()}, meta, logged, read_episodes(folder)


@pytest.fixture(scope="module")
def small(train, tmp_path_factory):
    """A small finished run, made by the script: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, train(*CART_POLE, "--quiet", "--run-dir", folder)


def test_a_run_leaves_everything_and_says_where(small):
    folder, result = small
    assert (result.returncode, result.stderr) == (0, "")
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    assert names == {
        "checkpoint.npz", "episodes.jsonl", "metrics.jsonl", "provenance.json", "settings.json", "summary.json",
        "run.png",
    }  # fmt: skip
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    settings = ControlSettings.from_dict(json.loads((folder / "settings.json").read_text()))
    assert settings == ControlSettings("CartPole-v1", hidden=(8,), steps=2000, schedule_steps=2000)
    assert read_metrics(folder)[-1]["step"] == 2000
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")
    n = len(read_episodes(folder))
    assert f"Learned from 2,000 transitions in {n} episodes" in result.stdout
    assert f"Log and checkpoint  {folder}\n" in result.stdout  # on one line, however long
    assert f"python scripts/evaluate.py {folder} --episodes 50 --gif {folder}/run.gif" in result.stdout
    assert "Return of an episode\n" in result.stdout  # the curve
    assert "##" in result.stdout  # in plain characters, for a pipe


def test_the_summary_holds_what_was_printed(small):
    folder, result = small
    summary = json.loads((folder / "summary.json").read_text())
    returns = [episode["return"] for episode in read_episodes(folder)][-100:]
    assert (summary["step"], summary["interrupted"]) == (2000, False)
    assert summary["mean_return_last_100"] == pytest.approx(sum(returns) / len(returns))
    assert f"{summary['mean_return_last_100']:,.5g}" in result.stdout
    for name in ("greedy", "sampled"):
        estimate = summary["evaluation"][name]["mean"]
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert f"{estimate['value']:,.4g}" in result.stdout
        assert summary["evaluation"][name]["n_episodes"] == 20


def test_the_same_command_ends_with_the_same_bits(train, small, tmp_path):
    result = train(*CART_POLE, "--quiet", "--episodes", 0, "--run-dir", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    assert outcome(tmp_path / "again") == outcome(small[0])


def test_the_commands_in_the_help_are_understood(train, tmp_path):
    options = ("--env", "Acrobot-v1", "--agent=sarsa", "--optimizer", "adaptive_obgd", "--lam", 0.9, "--steps", 600)
    result = train(*options, "--episodes", 0, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("Acrobot-v1-sarsa-")
    settings = ControlRun.stored_settings(folder)
    assert (settings.agent, settings.optimizer, settings.lam) == ("sarsa", "adaptive_obgd", 0.9)
    assert "sarsa, lambda 0.9, with AdaptiveObGD" in result.stdout


def test_each_help_leads_to_the_other(train):
    prediction, control = train("--help"), train("--agent", "stream-ac", "--help")
    assert (prediction.returncode, control.returncode) == (0, 0)
    assert "--agent stream-ac --help" in prediction.stdout
    assert "--agent td --help" in control.stdout
    for word in ("--actor-kappa", "--entropy", "expected-sarsa"):
        assert word in control.stdout
        assert word not in prediction.stdout.replace("expected-sarsa, qrc)", "")


def test_an_agent_as_the_first_word_has_its_own_options_alone(train, small, tmp_path):
    shown = {agent: train(agent, "--help").stdout for agent in ("stream-ac", "qrc", "td")}
    for option, agent in (("--entropy", "stream-ac"), ("--cut", "qrc"), ("--noise", "td")):
        assert [a for a, text in shown.items() if f" {option} " in text] == [agent]
    assert " --epsilon " not in shown["stream-ac"]
    assert " --actor-kappa " in shown["qrc"]
    assert "in [0, 1]" in shown["stream-ac"]
    wrong = train("stream-ac", "--epsilon", 1, 0, 0, cwd=tmp_path)
    assert wrong.returncode == 2
    assert "; it goes with expected-sarsa" in wrong.stderr
    words = [word for word in CART_POLE if word not in ("--agent", "stream-ac")]
    result = train("stream-ac", *words, "--quiet", "--episodes", 0, "--run-dir", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    assert outcome(tmp_path / "again") == outcome(small[0])


def test_a_finished_run_can_be_resumed_and_loses_nothing(train, small, tmp_path):
    shutil.copytree(small[0], tmp_path / "small")
    result = train("--resume", "small", "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--steps MORE" in result.stdout
    assert outcome(tmp_path / "small") == outcome(small[0])
    assert train("--resume", "small", "--quiet", "--steps", 2500, "--episodes", 0, cwd=tmp_path).returncode == 0
    assert outcome(tmp_path / "small")[1]["step"] == 2500


@pytest.mark.parametrize("env", ["CartPole-v1", "valueapprox/CartPole-v1"])
def test_ctrl_c_saves_and_a_resume_goes_on(start_script, tmp_path, env):
    options = ("--env", env, "--agent", "stream-q", "--log-every", 5000, "--quiet", "--steps", 10**9)
    folder = tmp_path / "run"
    process = start_script.start("train.py", *options, "--run-dir", folder)
    try:
        end = time.monotonic() + 60
        while not (folder / "metrics.jsonl").exists() or not read_metrics(folder):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (130, "")
    assert "Interrupted after" in output
    assert f"python scripts/train.py --resume {folder}" in output
    stopped = ControlRun(None, folder, resume=True).step
    assert stopped > 0
    assert json.loads((folder / "summary.json").read_text())["step"] == stopped


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_what_is_printed_and_what_json_says_are_the_same(evaluate, small):
    text, parsed = (evaluate(small[0], "--episodes", 10, *extra) for extra in ((), ("--json",)))
    assert (text.returncode, parsed.returncode, text.stderr, parsed.stderr) == (0, 0, "", "")
    numbers = json.loads(parsed.stdout)
    assert (numbers["step"], numbers["actions"], numbers["returns"]["n_episodes"]) == (2000, "greedy", 10)
    for value in numbers["returns"]["mean"].values():
        assert f"{value:,.4g}" in text.stdout
    assert "stream-ac, after 2,000 transitions" in text.stdout


def test_sampled_and_seed_and_file(evaluate, small):
    options = [(), ("--sampled",), ("--sampled", "--seed", 2)]
    greedy, sampled, other = (evaluate(small[0], "--episodes", 5, "--json", *o).stdout for o in options)
    assert json.loads(sampled)["actions"] == "sampled"
    assert len({greedy, sampled, other}) == 3
    assert evaluate(small[0] / CHECKPOINT_FILE, "--episodes", 5, "--json").stdout == greedy


def test_a_gif(evaluate, small, tmp_path):
    pytest.importorskip("pygame")
    result = evaluate(small[0], "--episodes", 2, "--gif", "run.gif", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "The first episode  run.gif" in result.stdout
    with Image.open(tmp_path / "run.gif") as gif:
        assert gif.is_animated
        assert gif.format == "GIF"


# Bad input ------------------------------------------------------------------------------------------------------------

RUN = ("--run-dir", "run", "--steps", 100)
AC = (*RUN, "--agent", "stream-ac")
#: name: (script, options, what the line says); the folder small holds the small run, walk a prediction run
BAD = {
    "agent": ("train.py", (*RUN, "--agent", "stream-acc"), "did you mean 'stream-ac'"),
    "environment": ("train.py", (*AC, "--env", "CartPol-v1"), "did you mean 'CartPole-v1'"),
    "argument": ("train.py", (*AC, "--env-args", "colour", "3"), "colour"),
    "actions": (
        "train.py",
        (*RUN, "--agent", "qrc", "--env", "Pendulum-v1"),
        "expected Discrete, MultiDiscrete or MultiBinary for QRC",
    ),
    "gamma": ("train.py", (*AC, "--gamma", 2), "gamma is 2.0"),
    "kappa": ("train.py", (*AC, "--optimizer", "sgd", "--kappa", 2), "SGD has no kappa"),
    "folder": ("train.py", (*AC, "--run-dir", "small"), "exists and is not empty"),
    "structured": ("train.py", (*AC, "--env", "scripted_envs:Structured-v0"), "--flatten"),
    "missing": ("train.py", ("--resume", "nowhere", "--agent", "qrc"), "there is no checkpoint at"),
    "damaged": ("train.py", ("--resume", "damaged"), "damaged"),
    "another gamma": ("train.py", ("--resume", "small", "--gamma", 0.5), "gamma is 0.5; expected 0.99"),
    "another agent": ("train.py", ("--resume", "small", "--agent", "qrc"), "expected 'stream-ac'"),
    "one episode": ("evaluate.py", ("small", "--episodes", 1), "episodes is 1"),
    "gif of values": ("evaluate.py", ("walk", "--gif", "run.gif"), "--gif and --sampled are for control runs"),
    "gif's folder": ("evaluate.py", ("small", "--gif", "no/run.gif"), "there is no folder no"),
    "gif of a compiled world": ("evaluate.py", ("compiled", "--gif", "run.gif"), "cannot be drawn"),
    "agent file": ("evaluate.py", ("agent.npz",), "no checkpoint of a run"),
}


@pytest.fixture(scope="module")
def places(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    shutil.copytree(small[0], folder / "small")
    (folder / "damaged").mkdir()
    (folder / "damaged" / CHECKPOINT_FILE).write_bytes((small[0] / CHECKPOINT_FILE).read_bytes()[:1000])
    run = ControlRun(ControlSettings("valueapprox/CartPole-v1", steps=100), folder / "compiled")
    run.train()
    run.agent.save(folder / "agent.npz")
    PredictionRun(PredictionSettings("valueapprox/RandomWalk-v0", steps=200, envs=2, block=50), folder / "walk").train(
        0
    )
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(start_script, places, name):
    script, options, says = BAD[name]
    before = files(places)
    result = start_script(script, *options, cwd=places)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert files(places) == before
