"""scripts/train.py with agents of many environments, as a person starts it, and the commands that follow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("--envs", "2", "--rollout", "64", "--hidden", "8", "--quiet")


@pytest.fixture(scope="module")
def run(start_script, tmp_path_factory):
    """A finished run, and what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("ppo", "--env", "valueapprox/CartPole-v1", "--steps", "300", "--episodes", "2", *SMALL)
    done = start_script("train.py", *options, "--run-dir", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_it_says_what_it_did(run):
    folder, out = run
    assert "Learned from 384 transitions" in out  # 300 steps are three rollouts of 128
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["step"] == 384
    assert set(summary["evaluation"]) == {"greedy", "sampled"}
    assert (folder / "run.png").exists()
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["agent"], settings["steps"], settings["optimizer"]["name"]) == ("ppo", 384, "Adam")


def test_it_is_continued_evaluated_and_compared(run, start_script, tmp_path):
    folder, _ = run
    more = start_script("train.py", "--resume", folder, "--steps", 512, "--episodes", 0, "--quiet", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "Learned from 512 transitions" in more.stdout
    # In a process of its own, which imports no more than the command does.
    script = Path(__file__).parents[2] / "scripts" / "evaluate.py"
    command = [sys.executable, str(script), str(folder), "--episodes", "2", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (found["step"], found["returns"]["n_episodes"]) == (512, 2)
    compared = start_script("report.py", folder, cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "ppo" in compared.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("ppo", "--async"), "async is True; expected False for ppo"),
        (("impala", "--async"), "workers is 0; expected at least 1 with --async"),
        (("ppo", "--workers", "9"), "workers is 9; expected at most 8"),
        (("ppo", "--n-steps", "5"), "did you mean --rollout or --steps?"),
        (("ppo", "--ent-coef", "0.1"), "--entropy"),
        (("pqn", "--clip", "0.1"), "--clip is not an option"),
        (("dqn", "--env", "Pendulum-v1"), "DQN learns a value for each. PPO takes any"),
        (("a2c", "--config", "nowhere.json"), "nowhere.json"),
    ],
)
def test_what_it_refuses(options, words, start_script, tmp_path):
    done = start_script("train.py", *options, cwd=tmp_path)
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_every_agent_has_its_help(start_script):
    shown = start_script("train.py", "impala", "--help").stdout
    assert "--async" in shown
    assert "--max-rho" in shown
    assert "--clip " not in shown
    assert "(default: 1)" in start_script("train.py", "dqn", "--help").stdout  # --envs
