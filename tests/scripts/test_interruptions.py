"""Runs that are asked to end, or whose environment hangs or raises: what was learned is saved, and the process ends.

Each run is a child of this process by fork, which has imported and compiled all already. A child that hangs in foreign
code can only be ended from outside: that is what is tested.
"""

import json
import os
import pty
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.report import read_episodes

STUCK = "stuck_envs:Stuck-v0"  # goes wrong in its 100th step


def say(sentence):
    """To the child's own file: pytest has replaced `sys.stderr`."""
    os.write(2, f"{sentence}\n".encode())


class Child:
    """A run in a process of its own; `wait` gives its exit code and what it wrote."""

    def __init__(self, kind, folder, how, patience=120.0, steps=5000, where="step", terminal=False):
        self.folder, self.mark, self.kind = folder, folder.with_suffix(".mark"), kind
        self.output = folder.with_suffix(".out")
        arguments = {"how": how, "mark": str(self.mark), "where": where}
        common = {"env": STUCK, "env_args": arguments, "hidden": (4,), "steps": steps}
        if kind is PredictionRun:
            settings = PredictionSettings(**common, policy="random", envs=2, block=30)
        else:
            settings = ControlSettings(**common)
        sys.stdout.flush()
        self.pid, self.terminal = pty.fork() if terminal else (os.fork(), -1)
        if self.pid == 0:
            self._run(settings, patience, terminal)

    def _run(self, settings, patience, terminal):
        code = 70
        try:
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 2)
            if not terminal:
                os.dup2(file, 1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            run = self.kind(settings, self.folder, notice=say)
            options = {"checkpoint_every": 0.0, "patience": patience}
            if terminal:
                options["progress"] = lambda status: os.write(1, b"progress\n")
            report = run.train(0, **options) if self.kind is PredictionRun else run.train(**options)
            code = 128 + report.interrupted if report.interrupted else 0
        except BaseException as error:  # noqa: BLE001
            say(f"{type(error).__name__}: {error}")
            code = 1
        finally:
            os._exit(code)

    def until_stuck(self):
        end = time.monotonic() + 200
        while not self.mark.exists():
            assert time.monotonic() < end
            assert os.waitpid(self.pid, os.WNOHANG)[0] == 0, self.output.read_text()
            time.sleep(0.02)
        time.sleep(0.2)

    def send(self, number):
        os.kill(self.pid, number)

    def wait(self, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status), self.output.read_text()
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still there after {seconds} s: {self.output.read_text()}")

    def resumed(self):
        return self.kind(None, self.folder, resume=True)


@pytest.fixture(scope="module", autouse=True)
def loaded(tmp_path_factory):
    """What children call is loaded, or compiled, here and once."""
    folder = tmp_path_factory.mktemp("loaded")
    arguments = {"how": "sleep", "at": "1000000"}
    common = {"env": STUCK, "env_args": arguments, "hidden": (4,), "steps": 120}
    ControlRun(ControlSettings(**common), folder / "control").train()
    PredictionRun(PredictionSettings(**common, policy="random", envs=2, block=30), folder / "prediction").train(0)


#: name: (kind of run, how it goes wrong, signal, exit code, step that is saved)
ASKED = {
    "control, Ctrl-C": (ControlRun, "sleep", signal.SIGINT, 130, 99),
    "control, SIGTERM": (ControlRun, "sleep", signal.SIGTERM, 143, 99),
    "control, slow": (ControlRun, "slow", signal.SIGHUP, 129, 100),
    "control, swallowed": (ControlRun, "swallow", signal.SIGINT, -9, None),
    "control, C": (ControlRun, "c", signal.SIGTERM, -9, None),
    "control, C that lets no Python run": (ControlRun, "gil", signal.SIGINT, -9, None),
    "prediction, Ctrl-C": (PredictionRun, "sleep", signal.SIGINT, 130, 180),
    "prediction, slow": (PredictionRun, "slow", signal.SIGTERM, 143, 180),
    "prediction, C that lets no Python run": (PredictionRun, "gil", signal.SIGINT, -9, 180),
}


def test_an_environment_that_does_not_come_back_is_left_behind_and_the_run_goes_on(tmp_path):
    children = {name: Child(kind, tmp_path / name, how) for name, (kind, how, *_) in ASKED.items()}
    for child in children.values():
        child.until_stuck()
    for name, child in children.items():
        child.send(ASKED[name][2])
    for name, child in children.items():
        kind, how, _, expected, step = ASKED[name]
        code, said = child.wait()
        assert code == expected, (name, said)
        run = child.resumed()
        if step is None:  # that of the last checkpoint
            assert run.step < 100, name
        elif how == "slow":
            assert step <= run.step <= step + 20, name
        else:
            assert run.step == step, name
        if expected == -9:
            assert "does not react to being interrupted" in said, name
            assert f"Ending: {STUCK} has 5 s to come back" in said, name
        elif how != "slow":
            assert f"learned up to step {step} is saved" in said, name
        if kind is ControlRun:
            assert run.agent.n_steps == run.step, name
            lines = read_episodes(child.folder, run.step)
            assert [line["step"] for line in lines] == list(range(10, run.step + 1, 10)), name


def test_an_environment_that_hangs_ends_the_run_after_the_limit(tmp_path):
    cases = {
        "control": (ControlRun, "sleep", "step", 1, 99),
        "control, reset": (ControlRun, "sleep", "reset", 1, 100),
        "control, C": (ControlRun, "gil", "step", -9, None),
        "prediction": (PredictionRun, "sleep", "step", 1, 180),
    }
    children = {
        name: Child(kind, tmp_path / name, how, patience=2.0, where=where)
        for name, (kind, how, where, *_) in cases.items()
    }
    for name, child in children.items():
        *_, expected, step = cases[name]
        code, said = child.wait(250)
        assert code == expected, (name, said)
        assert child.resumed().step == step or step is None, name
        if step is not None:
            assert f"TimeoutError: {STUCK} has not come back for 2 s; expected an answer" in said, name


@pytest.mark.parametrize("kind", [PredictionRun, ControlRun])
def test_a_run_whose_environment_raises_saves_what_it_has_learned(tmp_path, kind):
    child = Child(kind, tmp_path / "my run", "raise")
    code, said = child.wait(200)
    step = 180 if kind is PredictionRun else 99
    assert code == 1
    assert "RuntimeError: the arm fell off" in said
    assert f"step {step} is saved. To continue: " in said
    assert f"train.py --resume '{tmp_path / 'my run'}'" in said
    run = child.resumed()
    assert run.step == step
    assert json.loads((child.folder / "settings.json").read_text())["steps"] == 5000
    learner = run.value_function if kind is PredictionRun else run.agent.first
    assert np.isfinite(learner.w).all()


@pytest.mark.parametrize("kind", [PredictionRun, ControlRun])
def test_a_terminal_that_is_closed_saves(tmp_path, kind):
    child = Child(kind, tmp_path / "run", "slow", terminal=True)
    child.until_stuck()
    os.close(child.terminal)  # the system sends SIGHUP
    code, said = child.wait()
    assert code == 129, said
    assert child.resumed().step >= 100


def test_what_is_ignored_stays_ignored(tmp_path):
    # As under nohup.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        child = Child(ControlRun, tmp_path / "run", "slow", steps=103)
    finally:
        signal.signal(signal.SIGHUP, before)
    child.until_stuck()
    child.send(signal.SIGHUP)
    code, said = child.wait()
    assert (code, said) == (0, "")
    assert child.resumed().step == 103


def test_the_watching_process_ends_with_the_one_it_watches(tmp_path):
    child = Child(ControlRun, tmp_path / "run", "slow")
    child.until_stuck()
    watching = children_of(child.pid)
    assert len(watching) == 1
    child.send(signal.SIGKILL)
    assert child.wait()[0] == -9
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in watching):
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(parent):
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(folder.name))
    return found
