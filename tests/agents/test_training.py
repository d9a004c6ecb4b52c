"""Runs: the same numbers for any number of workers, through kills, interruptions and resumes."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from valueapprox import CheckpointError, ValueFunction, checkpoint
from valueapprox.agents import evaluation, prediction_run
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.cluster import RayWorker
from valueapprox.telemetry import read_metrics

NEVER = 1e9  # seconds between checkpoints

#: 10 blocks of 4 x 32 transitions, 5 points in the log
SMALL = PredictionSettings("valueapprox/CartPole-v1", hidden=(8,), steps=1280, envs=4, block=32, log_every=256, seed=5)
WALK = PredictionSettings(
    "valueapprox/RandomWalk-v0", gamma=1.0, lam=0.8, hidden=(), bias=False, init="zeros", optimizer="sgd",
    alpha=(0.1,), steps=40_000, envs=4, block=100,
)  # fmt: skip


def change(settings, **changes):
    return PredictionSettings.from_dict({**dataclasses.asdict(settings), **changes})


def finished(settings, folder, workers=0, **options):
    run = PredictionRun(settings, folder)
    report = run.train(workers, checkpoint_every=NEVER, **options)
    assert not report.interrupted
    return run


def metrics(folder):
    return [{tag: v for tag, v in line.items() if not tag.startswith("time/")} for line in read_metrics(folder)]


def outcome(folder):
    """All that must not depend on who collected, or on what happened on the way."""
    arrays, meta = checkpoint.load(Path(folder) / CHECKPOINT_FILE)
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}, meta, metrics(folder)


def assert_same_outcome(folder, expected):
    (arrays, meta, logged), (e_arrays, e_meta, e_logged) = outcome(folder), outcome(expected)
    assert logged == e_logged
    assert meta == e_meta
    assert [name for name in e_arrays if arrays.get(name) != e_arrays[name]] == []
    assert arrays.keys() == e_arrays.keys()


def interrupt_at(step):
    """A progress callback that presses Ctrl-C once."""
    pressed = []

    def press(status):
        if status.step >= step and not pressed:
            pressed.append(status.step)
            os.kill(os.getpid(), signal.SIGINT)

    return press


def interrupted_and_resumed(settings, folder, steps=(300,), workers=0):
    run = PredictionRun(settings, folder)
    for step in steps:
        report = run.train(workers, checkpoint_every=NEVER, progress=interrupt_at(step))
        assert report.interrupted
        assert step <= report.step < settings.steps
        run = PredictionRun(None, folder, resume=True)
        assert run.step == report.step
    assert not run.train(workers, checkpoint_every=NEVER).interrupted
    return run


# Workers --------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_any_number_of_workers_ends_with_the_same_bits(local_ray, tmp_path):
    # The last block has 32, 17, 0 and 0 transitions of the four streams.
    settings = change(SMALL, env="CartPole-v1", steps=1329)
    for workers in (0, 1, 3):  # three have two, one and one of the streams
        finished(settings, tmp_path / str(workers), workers)
        assert_same_outcome(tmp_path / str(workers), tmp_path / "0")
    assert len(metrics(tmp_path / "0")) == 6


@pytest.mark.ray
def test_what_one_worker_sends_is_learned_by_the_same_compiled_loop(local_ray, tmp_path):
    # Arrays out of Ray are read-only, which to Numba is another type: the loop would be compiled once more.
    kernels = []
    for workers in (0, 1):
        kernel = finished(SMALL, tmp_path / str(workers), workers).value_function._learn_many
        kernels.append((kernel, len(kernel.signatures)))
    assert kernels[0] == kernels[1]


@pytest.fixture
def workers_made(monkeypatch):
    made = []

    class Noted(RayWorker):
        def __init__(self, *arguments, **settings):
            made.append(self)
            super().__init__(*arguments, **settings)

    monkeypatch.setattr(prediction_run, "RayWorker", Noted)
    return made


@pytest.mark.ray
@pytest.mark.parametrize(
    "settings",
    [change(SMALL, env="CartPole-v1", autoreset="next-step"), change(SMALL, agent="n-step")],
    ids=["gymnasium", "compiled"],
)
def test_a_killed_worker_changes_nothing(local_ray, tmp_path, workers_made, settings):
    notices, killed = [], []

    def kill(status):
        if status.step >= 400 * (len(killed) + 1) and len(killed) < 2:
            killed.append(workers_made[len(killed)].pid())
            os.kill(killed[-1], signal.SIGKILL)

    PredictionRun(settings, tmp_path / "killed", notice=notices.append).train(2, checkpoint_every=NEVER, progress=kill)
    finished(settings, tmp_path / "quiet")
    assert_same_outcome(tmp_path / "killed", tmp_path / "quiet")
    assert len(killed) == 2
    assert sum("a Ray worker died" in notice for notice in notices) == 2


def faulty(what, mark="", **changes):
    arguments = {"what": what, "mark": str(mark)}
    return change(SMALL, env="scripted_envs:Faulty-v0", policy="random", envs=2, env_args=arguments, **changes)


@pytest.mark.ray
def test_an_environment_that_kills_its_process_once_is_survived(local_ray, tmp_path):
    notices = []
    settings = faulty("die-once", tmp_path / "mark")
    PredictionRun(settings, tmp_path / "died", notice=notices.append).train(2, checkpoint_every=NEVER)
    assert (tmp_path / "mark").exists()
    assert any("a Ray worker died" in notice for notice in notices)
    finished(settings, tmp_path / "quiet")  # now that the mark is there
    assert_same_outcome(tmp_path / "died", tmp_path / "quiet")


@pytest.mark.ray
def test_a_worker_that_keeps_dying_is_given_up(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr("valueapprox.cluster.DEATHS", 1)  # tests/valueapprox/test_cluster.py has all that there are
    with pytest.raises(RuntimeError, match="died 2 times in a row"):
        PredictionRun(faulty("die"), tmp_path / "run").train(1, checkpoint_every=0.0)
    assert PredictionRun(None, tmp_path / "run", resume=True).step == 192  # 3 blocks of 64


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_an_environment_s_own_error_is_shown(request, tmp_path, workers):
    if workers:
        request.getfixturevalue("local_ray")
    with pytest.raises(RuntimeError, match="the arm fell off") as caught:
        PredictionRun(faulty("raise"), tmp_path / "run").train(workers, checkpoint_every=0.0)
    if workers:
        assert re.search(r"scripted_envs.py.*in step", str(caught.value))
    assert PredictionRun(None, tmp_path / "run", resume=True).step == 192


@pytest.mark.parametrize("workers", [5, -1])
def test_a_wrong_number_of_workers_is_an_error_and_writes_nothing(tmp_path, workers):
    with pytest.raises(ValueError, match="workers"):
        PredictionRun(SMALL, tmp_path / "run").train(workers)
    assert not (tmp_path / "run").exists()


# Interruption and resume ----------------------------------------------------------------------------------------------

RESUMED = {
    "td": SMALL,
    "n-step": change(SMALL, agent="n-step", n=5),
    "monte-carlo": change(SMALL, agent="monte-carlo"),
    "gymnasium": change(SMALL, env="CartPole-v1"),
    "next-step": change(SMALL, env="CartPole-v1", autoreset="next-step"),
    "disabled": change(SMALL, env="CartPole-v1", autoreset="disabled"),
    "discrete": change(SMALL, env="FrozenLake-v1", policy="random"),
    "sgd, cosine": change(SMALL, optimizer="sgd", schedule="cosine", alpha=(1e-4, 1e-5), dtype="float64"),
    "clipped": change(SMALL, optimizer="momentum", clip_norm=0.5, layer_norm=True, activation="tanh"),
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_run_interrupted_twice_equals_one_that_was_not(tmp_path, settings):
    interrupted_and_resumed(settings, tmp_path / "parts", (300, 800))
    finished(settings, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_events_after_a_resume_hold_every_step_once(tmp_path):
    interrupted_and_resumed(SMALL, tmp_path, (300, 800))
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [256, 512, 768, 1024, 1280]
    assert set(events.Tags()["scalars"]) == {tag for line in lines for tag in line if tag != "step"}
    for tag in events.Tags()["scalars"]:
        expected = [(line["step"], float(np.float32(line[tag]))) for line in lines if tag in line]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    assert {"value/grad_norm/A", "value/grad_norm/B", "value/td_error/rms", "episode/return"} < set(lines[0])


def test_a_resume_in_a_new_process(tmp_path):
    PredictionRun(SMALL, tmp_path / "parts").train(0, checkpoint_every=NEVER, progress=interrupt_at(500))
    code = "import sys; from valueapprox.agents.prediction_run import PredictionRun as Run; "
    code += "Run(None, sys.argv[1], resume=True).train(0)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "parts"], check=True)
    finished(SMALL, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.ray
def test_a_run_may_be_resumed_with_other_workers(local_ray, tmp_path):
    # The last block has 32, 17, 0 and 0 transitions of the four streams.
    settings = change(SMALL, env="CartPole-v1", steps=1329)
    PredictionRun(settings, tmp_path / "parts").train(2, checkpoint_every=NEVER, progress=interrupt_at(500))
    PredictionRun(None, tmp_path / "parts", resume=True).train(1, checkpoint_every=NEVER)
    finished(settings, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_numbers_logged_after_the_last_checkpoint_are_logged_again_and_equal(tmp_path):
    # As after kill -9: the log is ahead of the checkpoint.
    kept = {}

    def keep(status):
        if status.step == 512:
            kept.update({p: p.read_bytes() for p in (tmp_path / "parts").glob("checkpoint*")})

    PredictionRun(SMALL, tmp_path / "parts").train(0, checkpoint_every=0.0, progress=keep)  # the one of step 384
    for path, content in kept.items():
        path.write_bytes(content)
    run = PredictionRun(None, tmp_path / "parts", resume=True)
    assert run.step == 384
    run.train(0)
    finished(SMALL, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_after_the_run_ctrl_c_is_what_it_was(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    PredictionRun(SMALL, tmp_path / "run").train(0, progress=interrupt_at(300))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_resumes_into_nothing(tmp_path):
    finished(SMALL, tmp_path)
    before = outcome(tmp_path)
    report = PredictionRun(None, tmp_path, resume=True).train(0)
    assert (report.step, report.interrupted) == (1280, False)
    assert outcome(tmp_path) == before


SCHEDULES = ["constant", "linear", "cosine", "inverse-time"]


@pytest.mark.parametrize("agent", ["td", "n-step", "monte-carlo"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_more_steps_give_the_longer_run_of_the_same_plan(tmp_path, schedule, agent):
    # 700 steps end within a block of 4 x 32, after its stream 1 has learned 28 of its 32.
    settings = change(SMALL, schedule=schedule, agent=agent, log_every=350, schedule_steps=700)
    finished(change(settings, steps=700, schedule_steps=0), tmp_path / "parts")
    run = PredictionRun(change(settings, schedule_steps=0), tmp_path / "parts", resume=True)
    assert run.settings == settings
    run.train(0)
    finished(settings, tmp_path / "whole")
    parts, whole = outcome(tmp_path / "parts"), outcome(tmp_path / "whole")
    assert parts[:2] == whole[:2]  # the log of the shorter run has a last point of its own


@pytest.mark.parametrize("env", ["valueapprox/CartPole-v1", "CartPole-v1"])
@pytest.mark.parametrize("steps", [1, 100, 384, 700])
def test_a_run_planned_for_more_steps_may_be_stopped_and_goes_on_as_planned(tmp_path, env, steps):
    # What is learned up to a step does not depend on how many follow.
    settings = change(SMALL, env=env, log_every=10_000)
    finished(change(settings, steps=steps, schedule_steps=1280), tmp_path / "parts")
    run = PredictionRun(change(settings, steps=1280), tmp_path / "parts", resume=True)
    run.train(0)
    whole = finished(settings, tmp_path / "whole")
    assert run.value_function.w.tobytes() == whole.value_function.w.tobytes()
    assert run.value_function.n_transitions == 1280


@pytest.mark.parametrize(
    ("schedule", "says"),
    [("constant", None), ("linear", "stays at its last value"), ("cosine", "stays at"), ("inverse-time", "goes on")],
)
def test_more_steps_than_were_planned_are_said_in_one_line(tmp_path, schedule, says):
    finished(change(SMALL, steps=640, schedule=schedule), tmp_path)
    notices = []
    run = PredictionRun(change(SMALL, schedule=schedule), tmp_path, resume=True, notice=notices.append)
    assert len(notices) == (says is not None)
    if says:
        assert f"the {schedule} schedule of the step size was planned for 640 steps" in notices[0]
        assert says in notices[0]
    factors = {"constant": 1.0, "linear": 0.01, "cosine": 0.01, "inverse-time": 64 / (64 + 1000)}
    assert run.value_function.optimizer.schedule.factor(1000) == pytest.approx(factors[schedule])
    assert json.loads((tmp_path / "settings.json").read_text())["schedule_steps"] == 640


def test_another_plan_on_a_resume_is_taken_and_said(tmp_path):
    finished(change(SMALL, steps=640), tmp_path)
    notices = []
    run = PredictionRun(change(SMALL, schedule_steps=1280), tmp_path, resume=True, notice=notices.append)
    (notice,) = notices
    assert "was planned for 640 steps, and is now stretched over 1,280" in notice
    assert run.value_function.optimizer.schedule.factor(640) == pytest.approx(0.505)
    run.train(0)
    assert PredictionRun.stored_settings(tmp_path).schedule_steps == 1280


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.5}, "gamma is 0.5; expected 0.99"),
        ({"seed": 6}, "seed is 6; expected 5"),
        ({"env": "CartPole-v1"}, "expected 'valueapprox/CartPole-v1'"),
        ({"envs": 2, "steps": 5000}, "envs is 2; expected 4"),
    ],
)
def test_another_setting_on_a_resume_is_an_error(tmp_path, changes, message):
    finished(SMALL, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        PredictionRun(change(SMALL, **changes), tmp_path, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_environment_that_cannot_be_restored_goes_on_and_says_so(tmp_path):
    notices = []
    settings = change(SMALL, env="scripted_envs:Entropy-v0", policy="random")
    PredictionRun(settings, tmp_path).train(0, progress=interrupt_at(300))
    PredictionRun(None, tmp_path, resume=True, notice=notices.append).train(0)
    assert [n for n in notices if "new episode" in n] == notices
    assert len(notices) == 4
    assert "environment 0" in notices[0]
    assert "step 384" in notices[0]  # the interruption came with the third block of 128


@pytest.mark.parametrize("agent", ["td", "n-step", "monte-carlo"])
def test_a_stream_that_could_not_be_restored_learns_nothing_across_the_gap(tmp_path, streams, agent):
    # What the weights are after the gap is what a value function has that learns both parts as streams of their own.
    settings = change(
        SMALL, env="scripted_envs:Entropy-v0", policy="random", agent=agent, n=5, schedule="constant",
        optimizer="sgd", alpha=(0.05,), envs=2, dtype="float64",
    )  # fmt: skip
    stopped = PredictionRun(settings, tmp_path)
    at = stopped.train(0, progress=interrupt_at(300)).step
    run = PredictionRun(None, tmp_path, resume=True)
    run.train(0)
    rows = {i: (learned[: at // 2], learned[at // 2 :]) for i, learned in streams.items()}
    streams.clear()
    v = settings.make_value_function(1)
    for part in (0, 1):
        for k in range(0, len(rows[0][part]), settings.block):
            for i in (0, 1):
                block = rows[i][part][k : k + settings.block]
                s, s_next = (np.array([row[j] for row in block]) for j in (0, 1))
                n = len(block)
                v.learn_stream(s, np.ones(n), s_next, np.zeros(n, bool), np.zeros(n, bool), stream=i)
        for i in (0, 1):
            v.cut_trace(i)
    np.testing.assert_array_equal(run.value_function.w, v.w)


@pytest.mark.parametrize("autoreset", ["same-step", "next-step", "disabled"])
def test_statistics_of_gymnasium_s_wrappers_survive_a_resume_bit_for_bit(tmp_path, autoreset):
    settings = change(SMALL, env="scripted_envs:Wrapped-v0", policy="random", autoreset=autoreset)
    interrupted_and_resumed(settings, tmp_path / "parts", (300, 800))
    finished(settings, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_a_wrapper_that_nobody_can_save_is_named_in_a_note_and_in_the_log(tmp_path):
    settings = change(SMALL, env="scripted_envs:Wrapped-v0", policy="random", env_args={"kind": "own"})
    PredictionRun(settings, tmp_path).train(0, progress=interrupt_at(300))
    notices = []
    PredictionRun(None, tmp_path, resume=True, notice=notices.append).train(0)
    assert "the wrapper Scaler of scripted_envs:Wrapped-v0" in notices[0]
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (tag,) = [tag for tag in events.Tags()["tensors"] if "resumed at step" in tag]
    assert "Scaler" in events.Tensors(tag)[0].tensor_proto.string_val[0].decode()


# Steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "envs", "block"), [(1, 3, 5), (10, 4, 3), (100, 7, 9), (101, 1, 10), (64, 4, 16)])
def test_exactly_the_steps_asked_for_are_learned(tmp_path, steps, envs, block):
    run = finished(change(SMALL, steps=steps, envs=envs, block=block), tmp_path)
    assert run.step == run.value_function.n_transitions == steps


@pytest.fixture
def streams(monkeypatch):
    """What each stream has learned from, in order."""
    learned = {}
    learn_stream = ValueFunction.learn_stream

    def note(self, s, r, s_next, terminated, truncated=None, stream=0):
        if not s.any():  # the trial that loads the kernels
            return learn_stream(self, s, r, s_next, terminated, truncated, stream)
        for row in zip(s.tolist(), s_next.tolist(), (terminated | truncated).tolist(), strict=True):
            learned.setdefault(stream, []).append(row)
        return learn_stream(self, s, r, s_next, terminated, truncated, stream)

    monkeypatch.setattr(ValueFunction, "learn_stream", note)
    return learned


@pytest.mark.parametrize("env", ["valueapprox/CartPole-v1", "CartPole-v1"])
def test_streams_have_no_gaps_where_a_run_goes_on_with_more_steps(tmp_path, streams, env):
    # 130 steps of 4 environments: 32 of each, then 2 of the first in the next block
    settings = change(SMALL, env=env, steps=130, schedule="constant")
    finished(settings, tmp_path)
    PredictionRun(change(settings, steps=330), tmp_path, resume=True).train(0)
    for i in range(4):
        for (_, s_next, ended), (s, _, _) in zip(streams[i][:-1], streams[i][1:], strict=True):
            assert ended or s_next == s, f"stream {i}"
    assert sum(map(len, streams.values())) == 330


def test_the_log_does_not_depend_on_blocks_being_large(tmp_path):
    finished(change(SMALL, block=1), tmp_path)
    assert [line["step"] for line in metrics(tmp_path)] == [256, 512, 768, 1024, 1280]


@pytest.mark.parametrize("log_every", [0, 1, 10_000])
def test_how_often_is_logged_changes_no_learned_bit(tmp_path, log_every):
    ends = []
    for i, every in enumerate((256, log_every)):
        run = finished(change(SMALL, log_every=every), tmp_path / str(i))
        arrays, _ = run.value_function.state_dict()
        ends.append({name: a.tobytes() for name, a in arrays.items() if name != "stats"})
    assert ends[0] == ends[1]


def test_logged_episodes_by_hand(tmp_path):
    # 3 steps an episode; episode e pays 10 e + (1, 2, 3), 30 e + 6 in all. The first 15 steps hold e = 0 ... 4.
    settings = change(SMALL, env="scripted_envs:Scripted-v0", policy="random", envs=1, block=5, steps=15, log_every=15)
    finished(change(settings, optimizer="sgd", alpha=(1e-9,)), tmp_path)
    (line,) = metrics(tmp_path)
    assert line["episode/return"] == 30 * 2 + 6
    assert line["episode/length"] == 3


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, 0.08),
        ({"agent": "n-step", "n": 4}, 0.08),
        ({"agent": "monte-carlo", "alpha": (0.02,)}, 0.12),
        ({"lam": 0.0}, 0.08),
        ({"hidden": (16,), "optimizer": "adam", "alpha": (0.003,), "init": "he_normal", "bias": True}, 0.15),
    ],
    ids=["td", "n-step", "monte-carlo", "td(0)", "network"],
)
def test_the_random_walk_is_learned(tmp_path, changes, bound):
    settings = change(WALK, **changes)
    untrained = evaluation.rmsve(settings.make_value_function(19), evaluation.truth(settings.task(), settings.gamma))
    run = finished(settings, tmp_path)
    assert untrained > 0.3  # v = 0 has sqrt(sum mu v^2) = 0.4
    assert run.value_error < bound
    assert metrics(tmp_path)[-1]["value/error/rmsve"] == run.value_error


def test_two_seeds_learn_different_weights(tmp_path):
    a, b = (finished(change(SMALL, seed=seed), tmp_path / str(seed)) for seed in (1, 2))
    assert not np.array_equal(a.value_function.w, b.value_function.w)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "scripted_envs:Faulty-v0: the reward is nan at step 100 of an episode"),
        ("inf", r"environment 0 of scripted_envs:Faulty-v0: s_next\[3, 0\] is inf at transition 196"),
    ],
)
def test_a_bad_number_names_environment_and_transition(tmp_path, what, message):
    # Step 100 of each of 2 environments, blocks of 32: 192 transitions in three blocks, then the 4th of environment 0.
    with pytest.raises(ValueError, match=message):
        PredictionRun(faulty(what), tmp_path).train(0, checkpoint_every=0.0)
    run = PredictionRun(None, tmp_path, resume=True)
    assert run.step == run.value_function.n_transitions == 192
    assert np.isfinite(run.value_function.w).all()


def test_divergence_is_an_error_and_the_last_checkpoint_loads(tmp_path):
    settings = change(WALK, env_args={"left_reward": "-1e30"}, alpha=(1e10,), steps=4000)
    with pytest.raises(FloatingPointError, match=r"environment \d of .*diverged"):
        PredictionRun(settings, tmp_path).train(0, checkpoint_every=0.0)
    assert np.isfinite(PredictionRun(None, tmp_path, resume=True).value_function.w).all()


def test_weights_that_overflow_in_a_block_s_last_update_are_not_saved(tmp_path):
    # One state, one step an episode: the first update already is 1e10 * 1e30, more than float32 holds.
    arguments = {"n_states": "1", "left_reward": "1e30", "right_reward": "1e30"}
    settings = change(WALK, env_args=arguments, alpha=(1e10,), schedule="constant", steps=3, envs=1, block=1)
    with pytest.raises(FloatingPointError):
        PredictionRun(settings, tmp_path).train(0, checkpoint_every=0.0)
    assert np.isfinite(PredictionRun(None, tmp_path, resume=True).value_function.w).all()


@pytest.mark.parametrize("name", ["checkpoint.npz", "notes.txt"])
def test_a_folder_that_exists_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="--resume"):
        PredictionRun(SMALL, tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]


def test_an_empty_folder_is_used(tmp_path):
    finished(SMALL, tmp_path)
    files = {"checkpoint", "events", "metrics", "provenance", "settings"}
    assert {p.name.split(".")[0] for p in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"gamma": 2.0}, "gamma is 2.0"),
        ({"lam": -0.1}, "lam is -0.1"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"envs": 0}, "envs is 0"),
        ({"block": -1}, "block is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"activation": "rely"}, "did you mean 'relu'"),
        ({"init": "he_norml"}, "did you mean 'he_normal'"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"agent": "tdd"}, "did you mean 'td'"),
        ({"policy": "heuristics"}, "did you mean 'heuristic'"),
        ({"policy": "no_such_module:f"}, "no_such_module"),
        ({"env": "CartPol-v1"}, "did you mean 'CartPole-v1'"),
        ({"env": "scripted_envs:Structured-v0", "policy": "random"}, "--flatten"),
        ({"autoreset": "same"}, "same-step"),
        ({"alpha": (-1.0,)}, "alpha"),
        ({"alpha": (0.1, 0.1, 0.1)}, "alpha"),
        ({"hidden": (0,)}, "at least 1|sizes"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_an_error_before_any_worker_starts(tmp_path, changes, error):
    with pytest.raises((ValueError, TypeError), match=error):
        PredictionRun(change(SMALL, **{"env": "CartPole-v1", **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "text", "value function"])
def test_a_checkpoint_that_cannot_be_resumed_is_an_error(tmp_path, damage):
    path = tmp_path / CHECKPOINT_FILE
    run = finished(SMALL, tmp_path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        at = content.index(run.value_function.w.tobytes()) + 20
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif damage == "text":
        path.write_text("hello")
    else:
        run.value_function.save(path)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        PredictionRun(None, tmp_path, resume=True)


def test_settings_survive_the_file():
    settings = change(SMALL, alpha=[0.1, 0.2], hidden=[3, 4], env_args={"a": "1"})
    assert settings.alpha == (0.1, 0.2)
    assert PredictionSettings.from_dict(dataclasses.asdict(settings)) == settings


def test_arguments_of_an_environment_are_read_as_numbers_where_they_are():
    arguments = {"n": "3", "x": "0.5", "yes": "true", "none": "null", "word": "one-hot"}
    assert change(SMALL, env_args=arguments).task().env_args == {
        "n": 3, "x": 0.5, "yes": True, "none": None, "word": "one-hot",
    }  # fmt: skip
