"""Control runs: the same bits through the compiled loop, Gymnasium's, interruptions and resumes."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from valueapprox import CheckpointError, checkpoint, envs
from valueapprox.agents import run as runs
from valueapprox.agents.base import ControlAgent
from valueapprox.agents.control_run import AGENTS, ControlRun, ControlSettings
from valueapprox.agents.evaluation import Recording, evaluate
from valueapprox.agents.layout import DISCOUNTED, EPSILON_FIRST, EPSILON_LAST, EPSILON_STEPS
from valueapprox.agents.report import EPISODES_FILE, read_episodes
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.cli import pictures
from valueapprox.optim import OPTIMIZERS, Intentional, ObGD
from valueapprox.telemetry import read_metrics

NEVER = 1e9  # seconds between checkpoints
SMALL = ControlSettings("CartPole-v1", hidden=(8,), steps=1500, log_every=250, seed=5)


def change(settings, **changes):
    return ControlSettings.from_dict({**dataclasses.asdict(settings), **changes})


def finished(settings, folder, **options):
    run = ControlRun(settings, folder, **options)
    assert not run.train(checkpoint_every=NEVER).interrupted
    return run


def metrics(folder):
    return [{tag: v for tag, v in line.items() if not tag.startswith("time/")} for line in read_metrics(folder)]


def outcome(folder):
    """All that must not depend on what happened on the way."""
    arrays, meta = checkpoint.load(Path(folder) / CHECKPOINT_FILE)
    plain = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}
    return plain, meta, metrics(folder), (Path(folder) / EPISODES_FILE).read_text()


def assert_same_outcome(folder, expected):
    (arrays, *rest), (e_arrays, *e_rest) = outcome(folder), outcome(expected)
    assert rest == e_rest
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


def interrupted_and_resumed(settings, folder, steps=(90, 700)):
    run, in_an_episode = ControlRun(settings, folder), []
    for step in steps:
        report = run.train(checkpoint_every=NEVER, progress=interrupt_at(step))
        assert report.interrupted
        assert step <= report.step < settings.steps
        run = ControlRun(None, folder, resume=True)
        assert run.step == report.step
        in_an_episode.append(run.running[1] > 0)
    assert any(in_an_episode)
    assert not run.train(checkpoint_every=NEVER).interrupted
    return run


# Interruption and resume ----------------------------------------------------------------------------------------------

RESUMED = {
    **{agent: change(SMALL, agent=agent) for agent in AGENTS},
    "continuous": change(SMALL, env="Pendulum-v1"),
    "compiled": change(SMALL, env="valueapprox/CartPole-v1"),
    "compiled, continuous": change(SMALL, env="valueapprox/Pendulum-v1"),
    "intentional": change(SMALL, optimizer="intentional", time_feature=True),
    "softmax, momenta": change(SMALL, agent="sarsa", optimizer="adam", alpha=1e-3, temperature=0.5),
    "average reward": change(SMALL, average_reward=0.01, gamma=1.0),
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_run_interrupted_twice_equals_one_that_was_not(tmp_path, settings):
    interrupted_and_resumed(settings, tmp_path / "parts")
    run = finished(settings, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")
    assert run.agent.n_steps == 1500
    assert [line["step"] for line in metrics(tmp_path / "whole")] == [250, 500, 750, 1000, 1250, 1500]


PLANNED = {
    **{agent: change(SMALL, agent=agent) for agent in AGENTS},
    "softmax": change(SMALL, agent="sarsa", temperature=0.5),
    "compiled": change(SMALL, env="valueapprox/MountainCar-v0", agent="expected-sarsa"),
    "long fall": change(SMALL, agent="stream-q", epsilon=(1.0, 0.1, 0.9)),
}


@pytest.mark.parametrize("settings", PLANNED.values(), ids=PLANNED)
def test_more_steps_give_the_longer_run_of_the_same_plan(tmp_path, settings):
    notices = []
    finished(change(settings, steps=600), tmp_path / "parts")
    run = ControlRun(settings, tmp_path / "parts", resume=True, notice=notices.append)
    run.train()
    finished(change(settings, schedule_steps=600), tmp_path / "whole")
    lines = [line["step"] for line in metrics(tmp_path / "parts")]
    assert lines == [250, 500, 600, 750, 1000, 1250, 1500]  # the shorter run ended with a point of its own
    (arrays, meta, _, episodes), (e_arrays, e_meta, _, e_episodes) = (
        outcome(tmp_path / name) for name in ("parts", "whole")
    )
    assert (meta, episodes) == (e_meta, e_episodes)
    assert [name for name in e_arrays if arrays[name] != e_arrays[name]] == []
    falls = settings.agent != "stream-ac" and settings.temperature is None
    assert len(notices) == falls
    if falls:
        assert "the fall of epsilon was planned for 600 steps; afterwards it stays at 0." in notices[0]


def test_a_run_planned_for_more_steps_goes_on_as_planned(tmp_path):
    settings = change(SMALL, agent="sarsa", epsilon=(1.0, 0.1, 0.9))
    finished(change(settings, steps=600, schedule_steps=1500), tmp_path / "parts")
    ControlRun(settings, tmp_path / "parts", resume=True).train()
    finished(settings, tmp_path / "whole")
    parts, whole = outcome(tmp_path / "parts"), outcome(tmp_path / "whole")
    assert parts[0] == whole[0]
    assert (parts[1], parts[3]) == (whole[1], whole[3])


def test_another_plan_on_a_resume_is_taken_and_said(tmp_path):
    settings, notices = change(SMALL, agent="sarsa", epsilon=(1.0, 0.1, 0.5)), []
    finished(change(settings, steps=600), tmp_path)
    run = ControlRun(change(settings, schedule_steps=1500), tmp_path, resume=True, notice=notices.append)
    assert run.agent.settings[EPSILON_STEPS] == 750.0
    (notice,) = notices
    assert "the fall of epsilon was planned for 600 steps, and is now stretched over 1,500" in notice


def test_a_finished_run_resumes_into_nothing(tmp_path):
    finished(SMALL, tmp_path)
    before = outcome(tmp_path)
    report = ControlRun(None, tmp_path, resume=True).train()
    assert (report.step, report.interrupted) == (1500, False)
    assert outcome(tmp_path) == before


def test_what_was_written_after_the_last_checkpoint_is_written_again_and_equal(tmp_path):
    # As after kill -9: log and episodes are ahead of the checkpoint, the last line of each is half written.
    kept = {}

    def keep(status):
        if status.step >= 700 and not kept:
            path = tmp_path / "parts" / CHECKPOINT_FILE
            kept[path] = path.read_bytes()

    ControlRun(SMALL, tmp_path / "parts").train(checkpoint_every=0.0, progress=keep)
    for path, content in kept.items():
        path.write_bytes(content)
    with (tmp_path / "parts" / EPISODES_FILE).open("a") as file:
        file.write('{"step": 15')
    run = ControlRun(None, tmp_path / "parts", resume=True)
    assert 0 < run.step < 1500
    run.train()
    finished(SMALL, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_an_environment_that_cannot_be_restored_goes_on_and_says_so(tmp_path):
    notices = []
    settings = change(SMALL, env="FrozenLake-v1", agent="stream-q")
    stopped = ControlRun(settings, tmp_path).train(progress=interrupt_at(400))
    run = ControlRun(None, tmp_path, resume=True, notice=notices.append)
    assert run.running.tolist() == [0.0, 0.0]
    assert run.train().step == 1500
    (notice,) = notices
    assert f"a new episode at step {stopped.step}" in notice


def statistics(env):
    """Of the two wrappers of Wrapped-v0, bit for bit."""
    found = {}
    while isinstance(env, gym.Wrapper):
        for name in ("obs_rms", "return_rms"):
            if name in vars(env):
                rms = getattr(env, name)
                found[name] = [(np.asarray(part).dtype, np.asarray(part).tobytes()) for part in vars(rms).values()]
        env = env.env
    assert len(found) == 2
    return found


def test_statistics_of_gymnasium_s_wrappers_survive_a_resume_bit_for_bit(tmp_path):
    settings = change(SMALL, env="scripted_envs:Wrapped-v0", normalise_observations=False, scale_rewards=False)
    parts = interrupted_and_resumed(settings, tmp_path / "parts")
    whole = finished(settings, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")
    assert statistics(parts.env) == statistics(whole.env)


def test_statistics_survive_where_the_environment_does_not(tmp_path):
    settings = change(SMALL, env="scripted_envs:Wrapped-v0", env_args={"kind": "unknown"})
    stopped = ControlRun(settings, tmp_path)
    step = stopped.train(progress=interrupt_at(400)).step
    kept = statistics(stopped.env)
    notices = []
    run = ControlRun(None, tmp_path, resume=True, notice=notices.append)
    assert [f"a new episode at step {step}" in notice for notice in notices] == [True]
    count = next(env for env in wrappers(run.env) if "obs_rms" in vars(env)).obs_rms.count
    assert count == pytest.approx(1e-4 + 1 + step + 1)  # a reset, the steps, and the new reset
    assert statistics(run.env)["return_rms"] == kept["return_rms"]


def wrappers(env):
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def test_a_wrapper_that_nobody_can_save_is_named_in_a_note_and_in_the_log(tmp_path):
    settings = change(SMALL, env="scripted_envs:Wrapped-v0", env_args={"kind": "own"})
    ControlRun(settings, tmp_path).train(progress=interrupt_at(400))
    notices = []
    ControlRun(None, tmp_path, resume=True, notice=notices.append).train()
    assert "the wrapper Scaler of scripted_envs:Wrapped-v0" in notices[-1]
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    texts = [
        events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        if "resumed" in tag
    ]
    assert texts == notices


@pytest.mark.parametrize("agent", AGENTS)
def test_an_abandoned_episode_leaves_neither_trace_nor_sum_of_rewards(agent):
    # What is left behind after `start` must not depend on whether the episode before was ended: one that begins anew
    # learns the first transition as if traces and the discounted sum of rewards were 0.
    made = []
    for cleared in (False, True):
        env = gym.make("CartPole-v1")
        one = change(SMALL, agent=agent, lam=0.9, epsilon=(0.0, 0.0, 0.1)).make_agent(env)
        observation, _ = env.reset(seed=1)
        action = one.start(observation)
        for _ in range(5):
            observation, _, _, _, _ = env.step(action)
            action = one.step(3.0, observation)
        assert np.abs(one.first.z).max() > 0
        observation, _ = env.reset(seed=2)
        one.start(observation)
        assert np.abs(one.first.z).max() == np.abs(one.second.z).max() == 0.0
        if cleared:
            one.first.z[:] = 0.0
            one.second.z[:] = 0.0
            one.memory[DISCOUNTED] = 0.0
        one.step(1.0, env.step(0)[0])
        made.append((one.first.w.tobytes(), one.second.w.tobytes(), one.memory.tobytes()))
    assert made[0] == made[1]


def test_a_run_that_is_killed_right_after_a_save_has_its_episodes(tmp_path):
    settings = change(SMALL, steps=3000)
    pid = os.fork()
    if pid == 0:
        run = ControlRun(settings, tmp_path / "killed")
        saved = run.save

        def save_and_die():
            saved()
            if run.step >= 1500:
                os.kill(os.getpid(), signal.SIGKILL)

        run.save = save_and_die
        run.train(checkpoint_every=0.0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    run = ControlRun(None, tmp_path / "killed", resume=True)
    finished(settings, tmp_path / "whole")
    expected = read_episodes(tmp_path / "whole", run.step)
    assert run.step >= 1500
    assert len(expected) > 10
    assert read_episodes(tmp_path / "killed", run.step) == expected
    assert [line["step"] for line in read_metrics(tmp_path / "killed")] == list(range(250, run.step + 1, 250))


def test_after_the_run_ctrl_c_is_what_it_was(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    ControlRun(SMALL, tmp_path).train(progress=interrupt_at(100))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("log_every", [0, 1, 10_000])
def test_how_often_is_logged_changes_no_learned_bit(tmp_path, log_every):
    ends = []
    for every in (250, log_every):
        run = finished(change(SMALL, log_every=every), tmp_path / str(every))
        ends.append((run.agent.first.w.tobytes(), run.agent.second.w.tobytes(), run.agent.counts.tolist()))
    assert ends[0] == ends[1]


# The compiled loop ----------------------------------------------------------------------------------------------------

COMPILED = {
    "CartPole": change(SMALL, env="valueapprox/CartPole-v1", steps=25_000, log_every=7000),
    "CartPole, Q": change(SMALL, env="valueapprox/CartPole-v1", steps=25_000, agent="stream-q", cut="before"),
    "Acrobot": change(SMALL, env="valueapprox/Acrobot-v1", steps=3000, agent="sarsa"),
    "Acrobot, QRC, a limit": change(
        SMALL, env="valueapprox/Acrobot-v1", agent="qrc", env_args={"max_episode_steps": "70"}, time_feature=True
    ),
    "Pendulum": change(SMALL, env="valueapprox/Pendulum-v1", steps=3000),
    "MountainCar": change(SMALL, env="valueapprox/MountainCar-v0", agent="expected-sarsa", bootstrap_at_limit=False),
    "random walk": change(SMALL, env="valueapprox/RandomWalk-v0", env_args={"n_states": "7", "jump": "3"}),
    "no limit": change(SMALL, env="valueapprox/Pendulum-v1", env_args={"max_episode_steps": "-1"}, gamma=0.9),
}


@pytest.mark.parametrize("settings", COMPILED.values(), ids=COMPILED)
def test_the_compiled_loop_equals_the_gymnasium_loop_bit_for_bit(tmp_path, settings):
    compiled = finished(settings, tmp_path / "compiled")
    assert compiled.loop is not None
    plain = finished(settings, tmp_path / "plain", compiled=False)
    assert plain.loop is None
    assert_same_outcome(tmp_path / "compiled", tmp_path / "plain")
    ended = len(read_episodes(tmp_path / "plain"))
    assert ended >= (settings.env_args.get("max_episode_steps") != "-1") * 5
    assert plain.agent.n_steps == settings.steps


def test_a_compiled_run_can_go_on_in_the_gymnasium_loop(tmp_path):
    settings = change(SMALL, env="valueapprox/CartPole-v1")
    ControlRun(settings, tmp_path / "parts").train(progress=interrupt_at(300))
    ControlRun(None, tmp_path / "parts", resume=True, compiled=False).train()
    finished(settings, tmp_path / "whole")
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_only_worlds_of_this_package_are_compiled(tmp_path):
    assert ControlRun(SMALL, tmp_path / "a").loop is None
    assert ControlRun(change(SMALL, env="valueapprox.envs:valueapprox/CartPole-v1"), tmp_path / "b").loop is not None


def test_environments_of_other_seeds_start_elsewhere(tmp_path):
    starts = [envs.env_state(ControlRun(change(SMALL, seed=s), tmp_path).env)["world"]["state"] for s in (1, 2, 1)]
    assert starts[0].tolist() == starts[2].tolist() != starts[1].tolist()


# Episodes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(monkeypatch):
    """What the agent is told: (call, reward, observation, terminated)."""
    calls = []
    start, step, end = ControlAgent.start, ControlAgent.step, ControlAgent.end

    def note_start(self, observation):
        calls.append(("start", None, observation.tolist(), None))
        return start(self, observation)

    def note_step(self, reward, observation):
        calls.append(("step", reward, observation.tolist(), None))
        return step(self, reward, observation)

    def note_end(self, reward, observation, terminated):
        calls.append(("end", reward, observation.tolist(), terminated))
        return end(self, reward, observation, terminated)

    for name, note in (("start", note_start), ("step", note_step), ("end", note_end)):
        monkeypatch.setattr(ControlAgent, name, note)
    return calls


@pytest.mark.parametrize("reuse", ["false", "true"])
def test_the_agent_is_told_the_final_observation_and_how_it_ended(tmp_path, heard, reuse):
    # Episodes of 3 steps; step t of episode e pays 10 e + t. 0 terminates, 1 is cut, 2 is both: terminated wins.
    finished(change(SMALL, env="scripted_envs:Scripted-v0", steps=9, env_args={"reuse": reuse}), tmp_path)
    name = heard[0][2][0]
    expected = []
    for e, terminated in ((0, True), (1, False), (2, True)):
        expected += [
            ("start", None, [name, e, 0], None),
            ("step", 10 * e + 1, [name, e, 1], None),
            ("step", 10 * e + 2, [name, e, 2], None),
            ("end", 10 * e + 3, [name, e, 3], terminated),
        ]
    assert heard == [*expected, ("start", None, [name, 3, 0], None)]


def test_episodes_by_hand(tmp_path):
    # Episode e pays 10 e + (1, 2, 3), 30 e + 6 in all; the first 15 steps hold e = 0 ... 4.
    run = ControlRun(change(SMALL, env="scripted_envs:Scripted-v0", steps=15, log_every=6), tmp_path)
    report = run.train()
    lines = [json.loads(line) for line in (tmp_path / EPISODES_FILE).read_text().splitlines()]
    assert lines == [{"step": 3 * e + 3, "return": 30.0 * e + 6, "length": 3} for e in range(5)]
    assert (report.n_episodes, report.mean_return) == (5, 66.0)
    logged = [(line["step"], line["episode/return"], line["episode/length"]) for line in metrics(tmp_path)]
    assert logged == [(6, 21.0, 3.0), (12, 81.0, 3.0), (15, 126.0, 3.0)]


def test_the_event_file_reads_back(tmp_path):
    interrupted_and_resumed(SMALL, tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    lines = read_metrics(tmp_path)
    assert set(events.Tags()["scalars"]) == {tag for line in lines for tag in line if tag != "step"}
    for tag in events.Tags()["scalars"]:
        expected = [(line["step"], float(np.float32(line[tag]))) for line in lines if tag in line]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    wanted = {"critic/grad_norm/A", "actor/grad_norm/B", "critic/td_error/rms", "actor/entropy", "critic/bounded"}
    assert wanted | {"episode/return", "episode/length", "time/steps_per_second"} < set(lines[0])


# Settings -------------------------------------------------------------------------------------------------------------


def test_settings_survive_json():
    settings = change(SMALL, hidden=[3, 4], epsilon=[1, 0.1, 0.5], env_args={"a": "1"}, kappa=1.5, temperature=0.1)
    assert (settings.hidden, settings.epsilon) == ((3, 4), (1.0, 0.1, 0.5))
    assert ControlSettings.from_dict(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


def test_the_optimizers_that_settings_make():
    for agent in AGENTS:
        own = change(SMALL, agent=agent)
        assert tuple(own.make_optimizer(second) for second in (False, True)) == AGENTS[agent].default_optimizers
    qrc = change(SMALL, agent="qrc")
    faster = change(qrc, alpha=0.01)
    assert [faster.make_optimizer(second).alpha for second in (False, True)] == [0.01, qrc.make_optimizer(True).alpha]
    chosen = change(SMALL, optimizer="obgd", alpha=0.5, kappa=1.0, actor_kappa=4.0)
    assert [chosen.make_optimizer(second) for second in (False, True)] == [ObGD(0.5, 1.0), ObGD(0.5, 4.0)]
    intentional = change(SMALL, optimizer="intentional", alpha=0.25)
    assert intentional.make_optimizer() == Intentional(0.25)
    assert intentional.make_optimizer(second=True) == Intentional(0.005, epsilon=1e-8, clip=20.0, normalise=True)
    for name, cls in OPTIMIZERS.items():
        assert type(change(SMALL, optimizer=name).make_optimizer()) is cls


def test_epsilon_falls_over_its_share_of_the_run():
    agent = change(SMALL, agent="sarsa", steps=1000, epsilon=(0.8, 0.2, 0.25)).make_agent(gym.make("CartPole-v1"))
    assert [agent.settings[place] for place in (EPSILON_FIRST, EPSILON_LAST, EPSILON_STEPS)] == [0.8, 0.2, 250.0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"gamma": 2.0}, "gamma is 2.0"),
        ({"lam": -0.1}, "lam is -0.1"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"log_every": -1}, "log_every is -1"),
        ({"activation": "rely"}, "did you mean 'relu'"),
        ({"init": "spars"}, "did you mean 'sparse'"),
        ({"optimizer": "obdg"}, "did you mean 'obgd'"),
        ({"agent": "sarse"}, "did you mean 'sarsa'"),
        ({"agent": "sarsa", "epsilon": (2, 0, 0.1)}, "epsilon is 2"),
        ({"epsilon": (1, 0, 1.5)}, "share of the run is 1.5"),
        ({"epsilon": (1, 0)}, "epsilon is"),
        ({"optimizer": "sgd", "kappa": 2.0}, "kappa is 2.0; expected nothing, as SGD has no kappa"),
        ({"agent": "qrc", "actor_kappa": 2.0}, "kappa is 2.0; expected nothing, as SGD has no kappa"),
        ({"alpha": -1.0}, "alpha"),
        ({"entropy": -1.0}, "entropy is -1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"hidden": (0,)}, "at least 1|sizes"),
        ({"env": "CartPol-v1"}, "did you mean 'CartPole-v1'"),
        ({"env": "Pendulum-v1", "agent": "sarsa"}, "expected Discrete.* for Sarsa"),
        ({"env": "scripted_envs:Structured-v0"}, "--flatten"),
        ({"env": "scripted_envs:Scripted-v0", "time_feature": True}, "no time limit"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_an_error_and_writes_nothing(tmp_path, changes, error):
    with pytest.raises((ValueError, TypeError), match=error):
        ControlRun(change(SMALL, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"gamma": 0.5}, {"seed": 6}, {"agent": "sarsa"}, {"env": "Acrobot-v1"}], ids=str)
def test_another_setting_on_a_resume_is_an_error(tmp_path, changes):
    finished(SMALL, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is "):
        ControlRun(change(SMALL, **changes), tmp_path, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["checkpoint.npz", "notes.txt"])
def test_a_folder_that_exists_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="--resume"):
        ControlRun(SMALL, tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]


def test_a_run_of_version_01_is_refused_by_name(tmp_path):
    ControlRun(SMALL, tmp_path).train()
    arrays, meta = checkpoint.load(tmp_path / CHECKPOINT_FILE)
    meta["settings"]["least_error"] = 0.05
    checkpoint.save(tmp_path / CHECKPOINT_FILE, arrays, meta)
    for restored in (
        lambda: ControlRun(None, tmp_path, resume=True),
        lambda: ControlRun.load_agent(tmp_path / CHECKPOINT_FILE),
    ):
        with pytest.raises(CheckpointError, match=r"written by version 0\.1"):
            restored()


@pytest.mark.parametrize("damage", ["missing", "cut", "agent only", "other agent", "no settings", "no array"])
def test_a_checkpoint_that_cannot_be_resumed_is_an_error(tmp_path, damage):
    run, path = finished(SMALL, tmp_path), tmp_path / CHECKPOINT_FILE
    arrays, meta = checkpoint.load(path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "agent only":
        run.agent.save(path)
    elif damage == "other agent":
        checkpoint.save(path, arrays, {**meta, "settings": {**meta["settings"], "hidden": [9]}})
    elif damage == "no settings":
        checkpoint.save(path, arrays, {"kind": meta["kind"]})
    else:
        checkpoint.save(path, {name: a for name, a in arrays.items() if name != "episodes/running"}, meta)
    with pytest.raises(CheckpointError, match="checkpoint"):
        ControlRun(None, tmp_path, resume=True)


@pytest.mark.parametrize(("what", "error"), [("nan", "the reward is nan at step 100"), ("inf", "the observation is")])
def test_a_bad_number_is_an_error_and_the_last_checkpoint_stands(tmp_path, what, error):
    settings = change(SMALL, env="scripted_envs:Faulty-v0", env_args={"what": what, "dtype": "float32"}, log_every=30)
    with pytest.raises(ValueError, match=error):
        ControlRun(settings, tmp_path).train(checkpoint_every=0.0)
    assert 30 <= ControlRun(None, tmp_path, resume=True).step < 100


@pytest.mark.parametrize(
    "changes",
    [
        {"env": "scripted_envs:Faulty-v0", "env_args": {"what": "nothing"}, "dtype": "float64", "alpha": 1e100},
        {"env": "valueapprox/Pendulum-v1", "alpha": 1e30},
    ],
    ids=["gymnasium", "compiled"],
)
def test_divergence_is_an_error_and_is_not_saved(tmp_path, changes):
    settings = change(SMALL, optimizer="sgd", log_every=1, **changes)
    with pytest.raises(FloatingPointError, match="diverged"):
        ControlRun(settings, tmp_path).train(checkpoint_every=0.0)
    run = ControlRun(None, tmp_path, resume=True)
    assert np.isfinite(run.agent.first.w).all()
    assert np.isfinite(run.agent.second.w).all()


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_evaluation_changes_nothing_and_can_be_repeated(tmp_path):
    run = finished(SMALL, tmp_path)
    before = {name: array.tobytes() for name, array in run.agent.state_dict().items()}
    first, again, other = (evaluate(run.agent, run.settings, 5, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert {name: array.tobytes() for name, array in run.agent.state_dict().items()} == before
    loaded, settings = ControlRun.load_agent(tmp_path / CHECKPOINT_FILE)
    assert settings == run.settings
    assert evaluate(loaded, settings, 5) == first
    assert first.mean.low <= first.mean.value <= first.mean.high
    assert first.lowest <= first.mean.value <= first.highest
    assert first.mean.value == first.mean_length  # CartPole pays 1 a step


def test_returns_by_hand(tmp_path):
    # Episodes pay 1, 2, 4: each return is 7.
    settings = change(SMALL, env="scripted_envs:Rewards-v0", agent="stream-q", steps=6)
    result = evaluate(finished(settings, tmp_path).agent, settings, 4, greedy=False)
    assert (result.mean.value, result.mean.low, result.mean.high) == (7.0, 7.0, 7.0)
    assert (result.spread, result.mean_length, result.n_episodes, result.n_cut) == (0.0, 3.0, 4, 0)


def test_greedy_and_sampled_actions_differ(tmp_path):
    # epsilon is 1: sampled actions are random ones, for which CartPole falls after some 22 steps.
    run = finished(change(SMALL, agent="stream-q", steps=5000, epsilon=(1.0, 1.0, 0.0)), tmp_path)
    greedy, sampled = (evaluate(run.agent, run.settings, 30, greedy=greedy) for greedy in (True, False))
    assert 15 < sampled.mean.value < 35
    assert greedy.mean.value > 2 * sampled.mean.value


def test_one_episode_is_an_error(tmp_path):
    run = ControlRun(SMALL, tmp_path)
    with pytest.raises(ValueError, match="episodes is 1"):
        evaluate(run.agent, SMALL, 1)


def test_a_film_shows_the_first_episode(tmp_path):
    pytest.importorskip("pygame")
    film, run = Recording(), finished(SMALL, tmp_path)
    with_film = evaluate(run.agent, SMALL, 2, recording=film)
    assert with_film == evaluate(run.agent, SMALL, 2)
    film.write(tmp_path / "run.gif")
    with Image.open(tmp_path / "run.gif") as gif:
        assert gif.size == (600, 400)
        milliseconds = 0
        for frame in range(gif.n_frames):  # equal neighbours are written as one that is shown longer
            gif.seek(frame)
            milliseconds += gif.info["duration"]
        assert milliseconds == 20 * len(film.frames)  # 50 frames a second
    assert len(film.frames) in (with_film.lowest, with_film.highest)


def test_a_film_without_pygame_is_an_error(tmp_path, monkeypatch):
    run = finished(SMALL, tmp_path)
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ValueError, match="CartPole-v1 cannot be drawn: pygame is not installed"):
        evaluate(run.agent, SMALL, 2, recording=Recording())


@pytest.mark.parametrize(
    ("env", "says"), [("valueapprox/CartPole-v1", "CartPole-v1 of Gymnasium can"), ("scripted_envs:Scripted-v0", "no")]
)
def test_a_film_of_what_cannot_be_drawn_is_an_error(tmp_path, env, says):
    settings = change(SMALL, env=env)
    with pytest.raises(ValueError, match=f"{env} cannot be drawn.*{says}"):
        evaluate(ControlRun(settings, tmp_path).agent, settings, 2, recording=Recording())


# Pictures -------------------------------------------------------------------------------------------------------------


def drawn(monkeypatch):
    """The figures that are drawn from now on."""
    from matplotlib.figure import Figure

    figures = []
    init = Figure.__init__

    def noted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "__init__", noted)
    return figures


def test_returns_are_drawn_over_steps_and_not_over_episodes(tmp_path, monkeypatch):
    # Short bad episodes at first, then one good one after the other: 900 episodes of 10 steps with return 0, then 100
    # of 90 steps with return 100. A mean of the last 100 episodes would reach 100 at the last step of 18,000 only.
    ends = [*range(10, 9001, 10), *range(9090, 18001, 90)]
    lines = [{"step": s, "return": 0.0 if s <= 9000 else 100.0, "length": 1} for s in ends]
    (tmp_path / "metrics.jsonl").write_text('{"step": 18000, "critic/td_error/rms": 0.5}\n')
    figures = drawn(monkeypatch)
    assert pictures.control_picture(tmp_path, "title", lines) == tmp_path / "run.png"
    returns = figures[0].axes[0]
    assert [line.get_label() for line in returns.lines] == ["episode", "mean over the last 900 steps"]
    steps, means = returns.lines[1].get_data()
    assert means[steps == 9000].tolist() == [0.0]
    assert means[steps > 9900].tolist() == [100.0] * 27  # a window later, all of it is there


def test_no_panel_is_empty_and_every_axis_can_be_read(tmp_path, monkeypatch):
    # An actor's gradient of 0 has no place on a log axis, and an entropy that is not a number none at all.
    metrics = [
        {"step": s, "critic/td_error/rms": 0.5, "critic/grad_norm/W1": 0.31 + s / 1e5, "critic/grad_norm/W2": 0.0,
         "actor/grad_norm/W1": 0.0, "actor/entropy": float("nan")}
        for s in (1000, 2000)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    figures = drawn(monkeypatch)
    pictures.control_picture(tmp_path, "title", [{"step": 500, "return": 3.0, "length": 500}])
    returns, error, norms = figures[0].axes
    assert [axes.get_title() for axes in (error, norms)] == [
        "TD error, root mean square", "value network: gradient norm per layer",
    ]  # fmt: skip
    assert [line.get_label() for line in norms.lines] == ["W1"]
    for axes in (returns, error, norms):
        assert all(np.isfinite(line.get_ydata()).all() and len(line.get_ydata()) for line in axes.lines)
        assert all(line.get_marker() == "." for line in axes.lines)  # so few points, or one, would not be seen
    assert [label.get_text() for label in norms.get_yticklabels()] == ["0.3", "0.5", "0.7"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.31, 0.33, [0.3, 0.5, 0.7]),
        (0.5, 0.5, [0.5, 0.7, 1.0]),
        (0.004, 0.3, [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
        (2e-6, 40.0, [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0]),
        (1e-30, 1.0, [1e-30, 1e-26, 1e-22, 1e-18, 1e-14, 1e-10, 1e-6, 1e-2, 1e2]),
    ],
)
def test_ticks_of_a_log_axis(low, high, ticks):
    assert pictures.log_ticks(low, high) == ticks


def test_a_chart_by_hand():
    # Columns of 10 steps: means 0, 4, none (stays 4) and 8. 2 rows are 16 eighths; 0 is the first of them, 8 the last.
    episodes = [{"step": s, "return": r} for s, r in ((10, 0.0), (11, 3.0), (20, 5.0), (31, 8.0))]
    chart = pictures.return_chart(episodes, 40, width=4, height=2)
    assert chart.splitlines()[:2] == ["        8 ┤ ▁▁█", "        0 ┤▁███"]
    assert pictures.return_chart(episodes, 40, width=4, height=2, plain=True).isascii()


def test_a_chart_of_equal_returns_or_too_few():
    assert pictures.return_chart([{"step": 1, "return": 1.0}], 10) == ""
    assert "▁▁" in pictures.return_chart([{"step": s, "return": 1.0} for s in (1, 2, 9)], 10, width=10)


def test_the_picture_of_a_run(tmp_path):
    finished(SMALL, tmp_path / "run")
    path = pictures.control_picture(tmp_path / "run", "title", read_episodes(tmp_path / "run"))
    with Image.open(path) as image:
        assert image.size == (1248, 1080)  # two columns and three rows: returns, TD error, two norms, entropy
    (tmp_path / "empty").mkdir()
    assert pictures.control_picture(tmp_path / "empty", "title", []) is None


def test_the_last_hundred_episodes_are_kept_over_a_resume(tmp_path):
    random = change(SMALL, agent="stream-q", epsilon=(1.0, 1.0, 0.0), steps=4000)  # some 180 episodes
    run = interrupted_and_resumed(random, tmp_path, (3000,))
    returns = [episode["return"] for episode in read_episodes(tmp_path)]
    assert len(returns) > runs.LAST_EPISODES
    assert list(run.episodes.last_returns) == returns[-runs.LAST_EPISODES :]
