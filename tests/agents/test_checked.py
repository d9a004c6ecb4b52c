"""What a user's environment gives is checked at the border, and every error says whose, when, what, and where."""

import inspect
import pickle

import faulty_envs
import numpy as np
import pytest

from valueapprox import Network, ValueFunction
from valueapprox.agents.checked import Checked, UserCodeError, close, fault_of
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.evaluation import evaluate, monte_carlo
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.rollout import GymnasiumRollout, Task, make_environment

ENV = "faulty_envs:Wrong-v0"
STEP_15 = "at step 15, the 5th of its episode"
#: What is wrong, in which space, and what is said of it.
FAULTS = {
    "reward array": ("box", f"the reward is array([1.]) {STEP_15}; expected one number"),
    "reward none": ("box", f"the reward is None {STEP_15}; expected one number"),
    "reward word": ("box", f"the reward is '1.0' {STEP_15}; expected one number"),
    "reward complex": ("box", f"the reward is 1j {STEP_15}; expected one number"),
    "reward nan": ("box", f"the reward is nan {STEP_15}; expected a finite number"),
    "reward infinite": ("box", f"the reward is np.float32(inf) {STEP_15}; expected a finite number"),
    "terminated none": ("box", f"terminated is None {STEP_15}; expected True or False"),
    "terminated word": ("box", f"terminated is 'False' {STEP_15}; expected True or False"),
    "terminated number": ("box", f"terminated is 0 {STEP_15}; expected True or False"),
    "terminated array": ("box", f"terminated is array([False]) {STEP_15}; expected True or False"),
    "truncated none": ("box", f"truncated is None {STEP_15}; expected True or False"),
    "truncated number": ("box", f"truncated is 0.0 {STEP_15}; expected True or False"),
    "info none": ("box", f"info is None {STEP_15}; expected a dict"),
    "info list": ("box", f"info is [] {STEP_15}; expected a dict"),
    "answer four": ("box", f"step() gave 4 values {STEP_15}; expected 5 values: observation, reward, terminated"),
    "answer six": ("box", f"step() gave 6 values {STEP_15}; expected 5 values"),
    "answer none": ("box", f"step() gave None {STEP_15}; expected 5 values"),
    "observation wide": ("box", f"the observation has shape (4,) {STEP_15}; expected (3,)"),
    "observation row": ("box", f"the observation has shape (1, 3) {STEP_15}; expected (3,)"),
    "observation nothing": ("box", f"the observation is None {STEP_15}; expected an array of shape (3,)"),
    "observation text": ("box", f"the observation is 'left' {STEP_15}; expected an array of shape (3,)"),
    "observation objects": ("box", "the observation is array([0.0, None, 1.0]"),
    "observation complex": ("box", "the observation is array([0.+0.j"),
    "observation half pixels": ("pixels", f"the observation has dtype float64 {STEP_15}; expected uint8"),
    "observation bright pixels": ("pixels", f"the observation is array([ 0, 256, 3]) {STEP_15}; expected"),
    "observation state 6": ("discrete", f"the observation is 6 {STEP_15}; expected a whole number from 1 to 5"),
    "observation state 1.5": ("discrete", f"the observation has dtype float64 {STEP_15}; expected int64"),
    "bug": ("box", f"step() raised ValueError {STEP_15}: could not convert string to float: 'not a number'"),
    "start wide": ("box", "the observation that reset() gave has shape (4,); expected (3,)"),
    "reset alone": ("box", "reset() gave array([0., 0., 0.], dtype=float32); expected 2 values: observation, info"),
    "reset list info": ("box", "the info that reset() gave is []; expected a dict"),
    "reset bug": ("box", "reset() raised RuntimeError: the track is blocked"),
}
FINE = [
    ("reward 0-d array", "box"), ("reward bool", "box"), ("reward float16", "box"), ("observation list", "box"),
    ("observation float64", "box"), ("observation dark pixels", "pixels"),
]  # fmt: skip


def thirty_steps(env):
    env.reset(seed=1)
    for _ in range(30):
        if any(env.step(0)[2:4]):
            env.reset()


@pytest.mark.parametrize("env_id", [ENV, "faulty_envs:WrongLimited-v0"])
@pytest.mark.parametrize("gives", FAULTS)
def test_a_fault_is_named(gives, env_id):
    space, says = FAULTS[gives]
    env = Checked(make_environment(env_id, gives=gives, space=space), env_id, 0)
    with pytest.raises({"bug": ValueError, "reset bug": RuntimeError}.get(gives, UserCodeError)) as caught:
        thirty_steps(env)
    fault = fault_of(caught.value)
    if gives.startswith("answer") and "Limited" in env_id:  # Gymnasium's TimeLimit has taken it apart
        assert f"{env_id}: step() gave" in str(fault)
        assert f"{STEP_15}; expected 5 values" in str(fault)
    else:
        assert str(fault).startswith(f"{env_id}: {says}")
    # Where to look: the line that raised, or else where the method begins.
    method = faulty_envs.Faulty.reset if gives.startswith(("start", "reset")) else faulty_envs.Faulty.step
    lines, first = inspect.getsourcelines(method)
    bug = {"bug": 'float("not a number")', "reset bug": "raise RuntimeError"}.get(gives)
    line = first + next((i for i, text in enumerate(lines) if bug and bug in text), 0)
    assert f'File "{faulty_envs.__file__}", line {line}, in ' in fault.place
    again = fault_of(pickle.loads(pickle.dumps(caught.value)))  # as Ray sends it
    assert (str(again), again.place) == (str(fault), fault.place)


@pytest.mark.parametrize(("gives", "space"), FINE)
def test_what_can_be_learned_from_is_let_through(gives, space):
    thirty_steps(Checked(make_environment(ENV, gives=gives, space=space), ENV, 0))


def test_a_run_in_control_names_the_fault(tmp_path):
    for gives, says in (("reward array", "the reward is array"), ("observation nan", "is [ 0. nan  1.] at")):
        run = ControlRun(ControlSettings(ENV, {"gives": gives}, steps=300, hidden=(4,)), tmp_path / gives)
        with pytest.raises(UserCodeError, match=ENV) as caught:
            run.train()
        assert says in str(caught.value)
        assert "faulty_envs.py" in caught.value.place


@pytest.mark.parametrize("autoreset", ["same-step", "next-step", "disabled"])
def test_a_rollout_names_the_fault(autoreset):
    for gives in ("reward none", "bug", "answer four"):
        rollout = GymnasiumRollout(Task(ENV, "random", env_args={"gives": gives}, autoreset=autoreset), [0, 1])
        with pytest.raises(ValueError, match=r".") as caught:
            rollout.collect(40)
        fault = fault_of(caught.value)
        assert f"{ENV}: " in str(fault)
        assert " at step 5 of an episode" in str(fault)
        assert "faulty_envs.py" in fault.place
        rollout.close()


@pytest.mark.ray
def test_a_fault_on_a_ray_worker_is_named(local_ray, tmp_path):
    settings = PredictionSettings(ENV, {"gives": "bug"}, hidden=(4,), steps=200, envs=2, block=50)
    with pytest.raises(ValueError, match="could not convert") as caught:
        PredictionRun(settings, tmp_path / "run").train(1)
    fault = fault_of(caught.value)
    assert str(fault).startswith(f"{ENV}: step() raised ValueError at step 5 of an episode: could not convert")
    assert "faulty_envs.py" in fault.place


def test_evaluations_name_the_fault(tmp_path):
    faulty = Task(ENV, "random", env_args={"gives": "info none"})
    with pytest.raises(UserCodeError, match="info is None at step 5 of an episode; expected a dict"):
        monte_carlo(ValueFunction(Network((3, 1)), gamma=0.5), faulty, 3)
    agent = ControlRun(ControlSettings(ENV, hidden=(4,)), tmp_path).agent
    for gives, says in (("answer six", "gave 6 values at step 5 of an episode"), ("observation nan", "nan")):
        with pytest.raises(UserCodeError, match=says):
            evaluate(agent, ControlSettings(ENV, {"gives": gives}), 3)


def test_a_policy_of_the_users_says_where_it_fails(tmp_path):
    with pytest.raises(KeyError) as caught:
        PredictionRun(PredictionSettings(ENV, policy="faulty_envs:bad_policy"), tmp_path / "run")
    fault = fault_of(caught.value)
    assert str(fault) == "policy faulty_envs:bad_policy raised KeyError: 'push'"
    line = inspect.getsourcelines(faulty_envs.bad_policy)[1] + 2
    assert f'faulty_envs.py", line {line}, in bad_policy' in fault.place


def test_a_constructor_that_fails_says_where():
    with pytest.raises(OSError, match="no simulator is running") as caught:
        make_environment(ENV, gives="no constructor")
    fault = fault_of(caught.value)
    assert str(fault) == f"{ENV}: building it raised OSError: no simulator is running"
    assert "faulty_envs.py" in fault.place


# A close() that fails ------------------------------------------------------------------------------------------------

CLOSING = "faulty_envs:Closing-v0"
SAID = f"{CLOSING} could not be closed: the viewer is gone"


def test_a_close_that_fails_is_a_note_everywhere(tmp_path):
    said = []
    settings = ControlSettings(CLOSING, steps=50, hidden=(4,))
    run = ControlRun(settings, tmp_path / "control", notice=said.append)
    assert run.train().step == 50
    assert said == [SAID]
    agent, _ = ControlRun.load_agent(tmp_path / "control" / "checkpoint.npz", said.append)
    assert evaluate(agent, settings, 2, notice=said.append).n_episodes == 2
    small = PredictionSettings(CLOSING, hidden=(4,), steps=64, envs=2, block=16, policy="random")
    prediction = PredictionRun(small, tmp_path / "td", notice=said.append)  # tries an environment and closes it
    assert prediction.train(0).step == 64
    assert monte_carlo(prediction.value_function, prediction.task, 2, notice=said.append).n_episodes == 2
    assert said == [SAID] * 6


def test_a_close_that_fails_hides_no_error(tmp_path):
    said = []
    settings = ControlSettings(CLOSING, hidden=(4,), init="nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        ControlRun(settings, tmp_path, notice=said.append)
    assert said == [SAID]


def test_every_environment_of_a_rollout_is_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(faulty_envs.Faulty, "close", lambda self: closed.append(self) or [][len(closed) - 1])
    rollout = GymnasiumRollout(Task(ENV, "random"), [0, 1, 2])
    said = []
    close(rollout, ENV, said.append)
    assert len(closed) == 3
    assert said == [f"{ENV} could not be closed: list index out of range"]
    del rollout  # nothing is closed a second time


def test_numbers_reach_the_agent_as_they_came():
    env = Checked(make_environment("CartPole-v1"), "CartPole-v1", 0)
    bare = make_environment("CartPole-v1")
    assert env.reset(seed=3)[0].tolist() == bare.reset(seed=3)[0].tolist()
    for mine, theirs in zip(env.step(1), bare.step(1), strict=True):
        np.testing.assert_array_equal(mine, theirs)
