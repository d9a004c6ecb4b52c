"""Runs of many environments in which something fails: the same weights, or what was learned is saved and said."""

import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from families import alive, family, wait_for
from test_batched import digest, run_of, settings_of

from valueapprox import interrupts
from valueapprox.agents.acting import Rollout
from valueapprox.agents.batch_run import BatchRun, make_experience
from valueapprox.agents.checked import UserCodeError, fault_of
from valueapprox.agents.report import read_episodes

FAULTY, STUCK = "scripted_envs:Faulty-v0", "stuck_envs:Stuck-v0"
ROUND = 100  # transitions of a rollout: 4 environments, 25 steps
WHERE = [0, pytest.param(2, marks=pytest.mark.ray)]


@pytest.fixture
def on(request):
    """`on(2)` says that a run has two workers, of the Ray that all tests share; 0 needs none."""

    def workers(n):
        if n:
            request.getfixturevalue("local_ray")
        return n

    return workers


def faulty(what, at=80, steps=500, **changed):
    """Each environment goes wrong in its step `at`: of the 4th rollout, as the first three have 75."""
    arguments = {"what": what, "at": at} | changed.pop("arguments", {})
    return settings_of("ppo", FAULTY, env_args=arguments, steps=steps, schedule_steps=500, **changed)


def saved_as_if_nothing_had_happened(folder, fine, steps):
    """What a run that failed has saved is what one of so many steps has learned."""
    run = BatchRun(None, folder, resume=True)
    assert run.step == steps
    assert digest(run.agent) == digest(fine.agent)
    return run


# --- workers that die -----------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_worker_that_is_killed_in_a_round_is_replaced_and_changes_nothing(on, tmp_path):
    fine = run_of(faulty("none"), tmp_path / "fine")
    said = []
    settings = faulty("die-once", arguments={"mark": str(tmp_path / "mark")})
    run = run_of(settings, tmp_path / "run", on(2), notice=said.append)
    assert digest(run.agent) == digest(fine.agent)
    assert any("a Ray worker died" in sentence and "does its work again" in sentence for sentence in said)
    assert (tmp_path / "mark").exists()


@pytest.mark.ray
def test_workers_that_are_killed_from_outside_are_replaced_and_change_nothing(on, tmp_path):
    settings = settings_of("ppo", "CartPole-v1", steps=600, log_every=100)
    fine = run_of(settings, tmp_path / "fine")
    said, killed = [], []
    run = BatchRun(settings, tmp_path / "run", notice=said.append)

    def kill(point):
        if run.step == 600:
            return  # the workers have gone home
        worker = run.workers[len(killed) % 2]
        killed.append(worker.pid())
        os.kill(killed[-1], signal.SIGKILL)

    run.train(on(2), callbacks=[kill])
    assert digest(run.agent) == digest(fine.agent)
    assert read_episodes(tmp_path / "run") == read_episodes(tmp_path / "fine") != []
    assert len(set(killed)) == len(killed) == 5
    assert sum("a Ray worker died" in sentence for sentence in said) == 5


@pytest.mark.ray
def test_an_asynchronous_worker_that_is_killed_is_replaced(on, tmp_path):
    # The others bring rollouts meanwhile, so it goes on until its death was noticed, and then for a while.
    said, after = [], []

    def enough(point):
        after.extend([point.step] if said else [])
        return len(set(after)) > 20 and "enough"

    arguments = {"what": "die-once", "at": 80, "mark": str(tmp_path / "mark")}
    settings = settings_of("impala", FAULTY, env_args=arguments, steps=10**7, log_every=100, asynchronous=True)
    run = BatchRun(settings, tmp_path / "run", notice=said.append)
    report = run.train(on(2), callbacks=[enough])
    assert report.stopped == "enough"
    assert sum("a Ray worker died" in sentence for sentence in said) == 1
    assert not any("cannot be brought back" in sentence for sentence in said)
    assert all(np.isfinite(learner.w).all() for learner in run.agent.networks().values())


@pytest.mark.ray
def test_a_worker_that_always_dies_ends_the_run(on, tmp_path):
    with pytest.raises(RuntimeError, match="a Ray worker died 4 times in a row"):
        run_of(faulty("die"), tmp_path / "run", on(2), notice=lambda sentence: None)
    saved_as_if_nothing_had_happened(tmp_path / "run", run_of(faulty("none", steps=300), tmp_path / "fine"), 300)


def test_observations_of_more_digits_than_the_networks_have_are_brought_back(tmp_path):
    # Those of Faulty-v0 are float64 and the networks float32, as with MuJoCo's worlds.
    whole = run_of(faulty("none"), tmp_path / "whole")
    run_of(faulty("none", steps=200), tmp_path / "parts")
    said = []
    parts = run_of(faulty("none"), tmp_path / "parts", resume=True, notice=said.append)
    assert digest(parts.agent) == digest(whole.agent)
    assert not any("cannot be brought back" in sentence for sentence in said)


# --- environments that raise, or give what is no number -------------------------------------------------------------


@pytest.mark.parametrize("workers", WHERE)
def test_an_environment_that_raises_ends_the_run_with_its_own_traceback(workers, on, tmp_path):
    said = []
    with pytest.raises(RuntimeError, match="the arm fell off") as caught:
        run_of(faulty("raise"), tmp_path / "run", on(workers), notice=said.append)
    shown = "".join(traceback.format_exception(caught.value))
    assert "scripted_envs.py" in shown  # the line of the environment that raised
    assert 'raise RuntimeError("the arm fell off")' in shown
    assert "scripted_envs.py" in fault_of(caught.value).place
    assert any("what was learned up to step 300 is saved" in sentence for sentence in said)
    saved_as_if_nothing_had_happened(tmp_path / "run", run_of(faulty("none", steps=300), tmp_path / "fine"), 300)


@pytest.mark.parametrize("workers", WHERE)
def test_an_environment_that_raises_at_once_leaves_no_run(workers, on, tmp_path):
    with pytest.raises(RuntimeError, match="the arm fell off"):
        run_of(faulty("raise", at=7), tmp_path / "run", on(workers))
    assert workers == 0 or not (tmp_path / "run").exists()


@pytest.mark.parametrize(("what", "at"), [("nan", 80), ("inf", 80), ("inf", 100)])
@pytest.mark.parametrize("workers", WHERE)
def test_what_is_no_number_is_refused_with_environment_and_step(workers, what, at, on, tmp_path):
    # Step 100 is the last one of a rollout: nobody acts on that observation, but values would be learned from it.
    with pytest.raises(ValueError, match=f"at step {at} of an episode; expected") as caught:
        run_of(faulty(what, at), tmp_path / "run", on(workers), notice=lambda sentence: None)
    fault = fault_of(caught.value)
    assert isinstance(fault, UserCodeError)
    named = "the reward is nan" if what == "nan" else "the observation is "
    assert fault.sentence.startswith(f"{FAULTY}: {named}")
    run = saved_as_if_nothing_had_happened(tmp_path / "run", run_of(faulty("none", steps=300), tmp_path / "fine"), 300)
    assert all(np.isfinite(learner.w).all() for learner in run.agent.networks().values())


@pytest.mark.parametrize("where", ["reset", "terminal", "cut"])
def test_observations_at_an_ending_are_looked_at_too(where):
    class Ending(gym.Env):
        action_space, observation_space = gym.spaces.Discrete(2), gym.spaces.Box(-1.0, 1.0, (1,))
        episode = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t, self.episode = 0, self.episode + 1
            return np.full(1, np.nan if where == "reset" and self.episode == 2 else 0.0, np.float32), {}

        def step(self, action):
            self.t += 1
            bad = self.t == 5 and where != "reset"
            ends = self.t == 5
            observation = np.full(1, np.nan if bad else 0.5, np.float32)
            return observation, 1.0, ends and where == "terminal", ends and where != "terminal", {}

    gym.register("Ending-v0", Ending, disable_env_checker=True)
    try:
        settings = settings_of("ppo", "Ending-v0", envs=2)
        agent = settings.make_agent(gym.make("Ending-v0"))
        experience = make_experience(settings, [0, 1])
        what = r"that reset\(\) gave is .*nan" if where == "reset" else ".*nan.* at step 5 of an episode"
        with pytest.raises(UserCodeError, match=f"Ending-v0: the observation (is )?{what}.*; expected finite numbers"):
            experience.gather(5, agent.policy())
    finally:
        del gym.registry["Ending-v0"]


def test_what_step_refuses_has_not_been_taken():
    settings = settings_of("ppo", rollout=2)
    agent = settings.make_agent(gym.make(settings.env))
    fine, no, nan = np.zeros((4, 4)), np.zeros(4, bool), np.full((4, 4), np.nan)
    agent.start(fine)
    agent.step(np.zeros(4), fine, no, no)
    before = {name: array.copy() for name, array in agent.state_dict().items()}
    with pytest.raises(ValueError, match=r"^observations is .*nan"):
        agent.step(np.zeros(4), nan, no, no)
    with pytest.raises(ValueError, match=r"^final_observations is .*nan"):
        agent.step(np.zeros(4), fine, no, ~no, nan)
    for name, array in agent.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    agent.step(np.zeros(4), fine, no, no)  # this one fills the rollout
    assert agent.counts[1] == 8


def test_a_rollout_of_a_compiled_world_that_fails_leaves_it_where_it_was():
    settings = settings_of("ppo")
    agent = settings.make_agent(gym.make(settings.env))
    experience = make_experience(settings, [0, 1, 2, 3])
    policy = agent.policy()
    experience.gather(30, policy)
    before = experience.snapshot()
    with pytest.raises(FloatingPointError, match="diverged"):
        experience.gather(30, np.full_like(policy, np.nan))
    for one, other in zip(before, experience.snapshot(), strict=True):
        for name, value in one.items():
            np.testing.assert_equal(value, other[name], err_msg=name)
    again = make_experience(settings, [0, 1, 2, 3])
    again.restore(before)
    for one, other in zip(experience.gather(30, policy), again.gather(30, policy), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_one_worker_brings_is_learned_by_the_kernels_that_all_have():
    # Ray's arrays are read-only, for which Numba would compile all anew.
    rollout = Rollout.zeros(3, 2, 4, 1, "float32")
    for array in rollout:
        array.flags.writeable = False
    assert all(array.flags.writeable for array in Rollout.join([rollout]))


# --- environments that hang -----------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run_after_the_limit(on, tmp_path):
    on(2)
    settings = settings_of("ppo", STUCK, env_args={"how": "sleep", "at": 80}, steps=500, schedule_steps=500)
    run, said, pids = BatchRun(settings, tmp_path / "run", notice=lambda sentence: said.append(sentence)), [], set()
    with pytest.raises(TimeoutError, match=r"a Ray worker has not answered for .*--patience"):
        run.train(2, patience=15.0, callbacks=[lambda point: pids.update(w.pid() for w in run.workers)])
    assert any("what was learned up to step 300 is saved" in sentence for sentence in said)
    assert BatchRun(None, tmp_path / "run", resume=True).step == 300
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))  # although they sleep


@pytest.mark.slow
def test_a_local_environment_that_hangs_ends_the_run_after_the_limit(tmp_path):
    # In a process of its own, as it is interrupted by a signal.
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_batched import settings_of
from valueapprox.agents.batch_run import BatchRun
settings = settings_of("ppo", {STUCK!r}, env_args={{"how": "sleep", "at": 80}}, steps=500, schedule_steps=500)
BatchRun(settings, Path("run"), notice=lambda s: print(s, file=sys.stderr)).train(0, patience=2.0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    assert f"TimeoutError: {STUCK} has not come back for 2 s" in done.stderr
    assert "what was learned up to step 300 is saved" in done.stderr
    assert BatchRun(None, tmp_path / "run", resume=True).step == 300


def test_learning_that_takes_long_is_not_watched(tmp_path):
    # A watch gives an environment some seconds to come back from Ctrl-C; learning in one compiled call cannot.
    run = BatchRun(settings_of("ppo", "CartPole-v1", steps=300, log_every=100), tmp_path / "run")
    learn, watches = run.agent.learn, []

    def slow(*arguments):
        watches.append(interrupts._watch)
        time.sleep(0.15)
        learn(*arguments)

    run.agent.learn = slow
    run.train(0)
    assert watches == [None, None, None]


# --- runs that are asked to end -------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
# Ctrl-C ends a run on workers in tests/scripts/test_train.py too, and each has a Ray of its own.
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGTERM], ids=str)
def test_a_run_on_workers_that_is_asked_to_end_saves_and_a_resume_is_bit_for_bit(number, start_script, tmp_path):
    own = ("--agent", "ppo", "--env", "CartPole-v1", "--envs", 4, "--rollout", 25, "--hidden", 8, "--seed", 3)
    options = (
        *own,
        "--steps",
        10**9,
        "--workers",
        2,
        "--quiet",
        "--schedule",
        "constant",
        "--episodes",
        0,
        "--log-every",
        5000,
    )
    folder, children = tmp_path / "run", set()
    process = start_script.start("train.py", *options, "--run-dir", folder, start_new_session=True)
    try:
        path = folder / "metrics.jsonl"
        assert wait_for(lambda: (path.exists() and path.read_text()) or process.poll() is not None, 120)
        assert process.poll() is None, process.stderr.read()
        children = family(process.pid)
        assert len(children) >= 4  # Ray's own, and two workers
        os.killpg(process.pid, number)  # as a terminal does with Ctrl-C
        output, errors = process.communicate(timeout=60)
        assert wait_for(lambda: not alive(children)), alive(children)
    finally:
        process.kill()
        process.wait()
        for pid, _ in alive(children):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 128 + number, errors
    assert f"--resume {folder}" in output
    stored = BatchRun(None, folder, resume=True)
    settings = replace(stored.settings, steps=stored.step + 4 * ROUND)
    fine = run_of(settings, tmp_path / "fine")
    run = BatchRun(settings, folder, resume=True)
    run.train(0)
    assert digest(run.agent) == digest(fine.agent)
    assert read_episodes(folder) == read_episodes(tmp_path / "fine")


# --- what takes a process, or a cluster, of its own: more of it in tests/bars ----------------------------------------


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "bar", [("rollout_memory.py", "--rounds", "60"), ("node_loss.py", "--only", "result")], ids=lambda bar: bar[0]
)
def test_memory_is_flat_and_a_lost_node_costs_nothing(bar):
    name, *options = bar
    command = [sys.executable, str(Path(__file__).parents[1] / "bars" / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
