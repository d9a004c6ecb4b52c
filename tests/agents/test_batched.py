"""Every agent of many environments: the same weights wherever rollouts come from, after a resume, on any workers."""

import hashlib
import os
import signal

import gymnasium as gym
import numpy as np
import pytest

import valueapprox
from valueapprox.agents.batch_catalogue import BATCH_AGENTS
from valueapprox.agents.batch_run import BatchRun, BatchSettings, make_experience
from valueapprox.optim import OPTIMIZERS
from valueapprox.telemetry import read_metrics

SMALL = {"steps": 200, "envs": 4, "hidden": (8,), "seed": 3, "dtype": "float32"}
CARTPOLE, GYMNASIUM = "valueapprox/CartPole-v1", "CartPole-v1"
NAMES = sorted(BATCH_AGENTS)


def settings_of(name, env=CARTPOLE, **changed):
    names = BatchSettings.names(name)
    own = {"rollout": 25}  # and of replay: a memory that fills, and is written again from its start
    own |= {"learning_starts": 30, "capacity": 120, "minibatch": 8} if "capacity" in names else {}
    return BatchSettings.from_dict({"agent": name, "env": env, **SMALL, **own, **changed})


def run_of(settings, folder, workers=0, resume=False, **options):
    run = BatchRun(settings, folder, resume=resume, **options)
    run.train(workers)
    return run


def digest(agent):
    state = {
        name: array for name, array in agent.state_dict().items() if not name.endswith(("/stats", "sums"))
    }  # the log's
    return hashlib.sha256(b"".join(np.ascontiguousarray(state[name]).tobytes() for name in sorted(state))).hexdigest()


def logged(folder):
    """All lines of a log, but for what depends on the clock."""
    return [{tag: n for tag, n in line.items() if not tag.startswith("time/")} for line in read_metrics(folder)]


def interrupt_at(step):
    """Ctrl-C, once a run is there."""

    def progress(status):
        if status.step >= step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_world_and_its_gymnasium_form_give_the_same_weights(name, tmp_path):
    compiled = run_of(settings_of(name), tmp_path / "a")
    plain = run_of(settings_of(name), tmp_path / "b", compiled=False)
    assert digest(compiled.agent) == digest(plain.agent)
    assert (tmp_path / "a/episodes.jsonl").read_text() == (tmp_path / "b/episodes.jsonl").read_text() != ""


@pytest.mark.parametrize("env", [CARTPOLE, GYMNASIUM])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_longer_one_bit_for_bit(name, env, tmp_path, monkeypatch):
    # The log's points lie 300 steps apart, and the second part begins between two of them.
    whole = run_of(settings_of(name, env, steps=1200, log_every=300), tmp_path / "whole")
    run = BatchRun(settings_of(name, env, steps=1200, log_every=300), tmp_path / "parts")
    monkeypatch.setattr("valueapprox.agents.batch_run.CHUNK_SECONDS", 0.0)  # each rollout by itself
    assert run.train(progress=interrupt_at(500)).interrupted == signal.SIGINT
    assert run.step == 500
    parts = run_of(settings_of(name, env, steps=1200, log_every=300), tmp_path / "parts", resume=True)
    assert digest(parts.agent) == digest(whole.agent)
    assert (tmp_path / "whole/episodes.jsonl").read_text() == (tmp_path / "parts/episodes.jsonl").read_text()
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")


@pytest.mark.ray
def test_workers_change_nothing(local_ray, tmp_path):
    alone = run_of(settings_of("ppo", GYMNASIUM), tmp_path / "0")
    for n in (1, 2, 4):
        assert digest(run_of(settings_of("ppo", GYMNASIUM), tmp_path / str(n), workers=n).agent) == digest(alone.agent)
    longer = settings_of("ppo", GYMNASIUM, steps=400, schedule_steps=200)
    assert digest(run_of(longer, tmp_path / "2", workers=4, resume=True).agent) == digest(
        run_of(longer, tmp_path / "0", resume=True).agent
    )


@pytest.mark.parametrize("name", NAMES)
def test_loaded_it_acts_and_values(name, tmp_path):
    run = run_of(settings_of(name), tmp_path / "run")
    loaded = valueapprox.load(tmp_path / "run")
    observation = np.array([0.1, 0.0, -0.05, 0.2], np.float32)
    assert loaded.act(observation) in (0, 1)
    assert loaded.value(observation) == run.agent.value(observation)
    assert loaded.step == run.step == 200


def test_steps_fill_whole_rollouts():
    # 8 environments, 256 steps each: 2,048 at once; 50,000 are 24.4 of these
    assert BatchSettings(steps=50_000).chosen().steps == 25 * 2048


def test_the_same_actions_whoever_asks(tmp_path):
    settings = settings_of("ppo")
    env = gym.make(CARTPOLE)
    agent = settings.make_agent(env)
    whole = make_experience(settings, [0, 1, 2, 3]).gather(50, agent.policy())
    for numbers in ([0], [1, 2], [3]):
        part = make_experience(settings, numbers).gather(50, agent.policy())
        assert (part.actions == whole.actions[:, numbers]).all()
        assert (part.next_observations == whole.next_observations[:, numbers]).all()
        assert (part.log_probs == whole.log_probs[:, numbers]).all()


def test_start_and_step_learn_what_a_run_learns(tmp_path):
    # One world by hand, through Gymnasium's vector environment: the run's seeds, the run's weights.
    from valueapprox.seeding import seed_for

    settings = settings_of("ppo", GYMNASIUM)
    run = run_of(settings, tmp_path / "run")
    mode = gym.vector.AutoresetMode.SAME_STEP
    vector = gym.make_vec(GYMNASIUM, 4, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    agent = run.settings.make_agent(gym.make(GYMNASIUM))
    observations, _ = vector.reset(seed=[seed_for(3, "environment", i) for i in range(4)])
    actions = agent.start(observations)
    for _ in range(50):
        observations, rewards, terminated, truncated, info = vector.step(np.array(actions))
        actions = agent.step(rewards, observations, terminated, truncated, info.get("final_obs"))
    assert digest(agent) == digest(run.agent)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"clip": 0.0}, "clip is 0.0; expected a positive number"),
        ({"lam": 1.5}, "lam is 1.5; expected"),
        ({"envs": 0}, "envs is 0; expected"),
        ({"epochs": 0}, "epochs is 0; expected"),
        ({"minibatch": 0}, "minibatch is 0; expected"),
    ],
)
def test_settings_that_make_no_sense(changed, words):
    with pytest.raises(ValueError, match=words):
        settings_of("ppo", **changed).check()


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_that_cannot_step_along_a_gradient_are_refused(name):
    # Those for eligibility traces have no step along a gradient; they would change nothing, and say nothing.
    for optimizer, cls in OPTIMIZERS.items():
        settings = settings_of(name, optimizer=optimizer)
        if cls.needs_gradient:
            with pytest.raises(ValueError, match=f"optimizer is {cls.__name__}, which is made for eligibility traces"):
                settings.make_agent(gym.make(CARTPOLE))
        else:
            settings.make_agent(gym.make(CARTPOLE))


def test_what_step_refuses():
    agent = settings_of("ppo").make_agent(gym.make(CARTPOLE))
    with pytest.raises(RuntimeError, match="call start"):
        agent.step(np.zeros(4), np.zeros((4, 4)), np.zeros(4, bool), np.zeros(4, bool))
    with pytest.raises(ValueError, match="observations has 3 rows; expected 4"):
        agent.start(np.zeros((3, 4)))
    agent.start(np.zeros((4, 4)))
    cut = np.array([False, True, False, False])
    with pytest.raises(ValueError, match="final_observations has nothing for environment 1"):
        agent.step(np.zeros(4), np.zeros((4, 4)), np.zeros(4, bool), cut)
    with pytest.raises(ValueError, match="expected finite numbers"):
        agent.step(np.full(4, np.nan), np.zeros((4, 4)), np.zeros(4, bool), np.zeros(4, bool))
    with pytest.raises(ValueError, match="observation of environment 0"):
        agent.start(np.full((4, 4), np.nan))
