"""`valueapprox.load`: what was learned comes back, from whatever wrote it, and does what it did."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import valueapprox
from valueapprox import Adam, CheckpointError, Network, ValueFunction, checkpoint, fit
from valueapprox.agents import layout
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.evaluation import MonteCarlo, Returns, evaluate
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.run import BEST_FILE
from valueapprox.service.messages import Transitions
from valueapprox.service.service import Service
from valueapprox.service.settings import ServiceSettings
from valueapprox.supervised.models import Model

STEPS = 3000


def observations(env, n=5):
    made = gym.make(env)
    made.observation_space.seed(0)
    states = [made.reset(seed=k)[0] for k in range(n)]
    made.close()
    return states


@pytest.mark.parametrize("agent", ["stream-ac", "stream-q", "qrc"])
def test_an_agent_acts_as_it_did(agent, tmp_path):
    settings = ControlSettings("CartPole-v1", agent=agent, hidden=(8,), steps=STEPS, eval_every=1000)
    run = ControlRun(settings, tmp_path)
    run.train()
    trained = valueapprox.load(tmp_path)
    actor = run.agent.actor(0)
    for observation in observations("CartPole-v1"):
        assert trained.act(observation) == actor.start(observation)
        assert trained.value(observation) == run.agent.value(observation, 0) == run.agent.values(observation, 0).max()
    result = trained.evaluate(episodes=5)
    assert isinstance(result, Returns)
    assert result == evaluate(run.agent, settings, 5)
    assert trained.step == STEPS
    assert valueapprox.load(tmp_path / BEST_FILE).step == checkpoint.load(tmp_path / BEST_FILE).meta["step"]


def test_drawn_actions_follow_the_policy(tmp_path):
    ControlRun(ControlSettings("CartPole-v1", hidden=(8,), steps=200), tmp_path).train()
    trained = valueapprox.load(tmp_path)
    state = observations("CartPole-v1", 1)[0]
    assert len({trained.act(state) for _ in range(50)}) == 1
    assert {trained.act(state, greedy=False) for _ in range(200)} == {0, 1}


@pytest.mark.parametrize("env", ["CartPole-v1", "valueapprox/Pendulum-v1"])
def test_a_value_is_in_the_unit_of_the_rewards(env, tmp_path):
    run = ControlRun(ControlSettings(env, hidden=(8,), steps=2000), tmp_path)
    run.train()
    agent, state = run.agent, observations(env, 1)[0]
    # by hand: the observation by its running mean and variance, through the network, times the rewards' divisor
    n, d = agent.memory[layout.OBSERVATIONS_SEEN], agent.encode.size
    mean = agent.memory[layout.STATISTICS : layout.STATISTICS + d]
    m2 = agent.memory[layout.STATISTICS + d : layout.STATISTICS + 2 * d]
    normalised = (np.asarray(state, np.float64) - mean) / np.sqrt(m2 / (n - 1) + 1e-8)
    v = agent.first.net.forward(agent.first.w, normalised.astype(np.float32))
    assert agent.value(state) == pytest.approx(float(v[0]) * agent.memory[layout.REWARD_SCALE], rel=1e-4, abs=1e-4)


def test_values_of_a_policy_and_the_policy(tmp_path):
    settings = PredictionSettings("CartPole-v1", hidden=(8,), steps=STEPS, envs=2, block=100, noise=0.0)
    run = PredictionRun(settings, tmp_path)
    run.train()
    trained = valueapprox.load(tmp_path)
    for observation in observations("CartPole-v1"):
        assert trained.value(observation) == float(run.value_function.predict(observation))
        assert trained.act(observation) in (0, 1)
    assert isinstance(trained.evaluate(episodes=4), MonteCarlo)


def test_a_policy_of_the_user_s_is_imported_only_to_act(tmp_path, monkeypatch):
    (tmp_path / "my_policy.py").write_text("def policy(observation, rng):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    settings = PredictionSettings("CartPole-v1", hidden=(4,), steps=200, envs=1, block=100, policy="my_policy:policy")
    PredictionRun(settings, tmp_path / "run").train()
    (tmp_path / "my_policy.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.delitem(sys.modules, "my_policy")
    trained = valueapprox.load(tmp_path / "run")
    trained.value(np.zeros(4))
    with pytest.raises(Exception, match="imported"):
        trained.act(np.zeros(4))


def test_a_value_function_a_fit_and_a_history(tmp_path):
    v = ValueFunction(Network((2, 4, 1)), Adam(0.01), 0.9, seed=1)
    v.learn([1.0, 0.0], 1.0, [0.0, 1.0], False, False)
    v.save(tmp_path / "v.npz")
    loaded = valueapprox.load(tmp_path / "v.npz")
    assert loaded.value([0.5, 0.5]) == float(v.predict(np.array([0.5, 0.5])))

    net = Network((2, 3, 1), dtype="float64")
    w = net.init(seed=0)
    history = fit(net, w, [[0.0, 1.0], [1.0, 0.0]], [1.0, 2.0], epochs=3, progress=False)
    history.save(tmp_path / "fit.npz")
    assert valueapprox.load(tmp_path / "fit.npz").value([0.3, 0.4]) == float(net.forward(history.w, [0.3, 0.4])[0])

    model = Model(net, w, ("a", "b"), ("y",), "squared")
    (tmp_path / "fit").mkdir()
    model.save(tmp_path / "fit" / "model.npz")
    trained = valueapprox.load(tmp_path / "fit")
    assert trained.value([0.3, 0.4]) == float(model.predict([0.3, 0.4])[0, 0])
    assert trained.value([[0.3, 0.4], [1.0, 2.0]]).shape == (2, 1)
    for call, what in ((trained.act, "no policy"), (trained.evaluate, "no environment")):
        with pytest.raises(TypeError, match=f"a fit, which (has|knows) {what}"):
            call([0.0, 0.0]) if what == "no policy" else call()


def test_a_service_s_folder(tmp_path):
    settings = ServiceSettings(Network((2, 4, 2)), Adam(0.01), (0.9, 0.5), (0.8, 0.8), ("slow", "fast"))
    service = Service(settings, tmp_path)
    no = np.zeros(3, bool)
    states = np.eye(2)[[0, 1, 0]]
    service.learn(Transitions(("a",), np.zeros(3, int), np.arange(3), states, np.ones((3, 2)), states[::-1], no, no))
    service.close()
    trained = valueapprox.load(tmp_path)
    assert trained.names == ("slow", "fast")
    state = np.array([0.5, 0.5])
    values = trained.value(state)
    assert values.shape == (2,)
    with pytest.raises(TypeError, match="2 predictions, which has no policy"):
        trained.act(state)
    again = Service(settings, tmp_path)
    assert np.allclose(again.values(state[None]).values[0], values, rtol=1e-6)
    again.close()


@pytest.mark.parametrize("what", ["missing", "folder", "damaged", "agent"])
def test_what_is_not_there_is_said(what, tmp_path):
    path = tmp_path / "x.npz"
    if what == "folder":
        path = tmp_path
    elif what == "damaged":
        path.write_bytes(b"PK\x03\x04")
    elif what == "agent":
        checkpoint.save(path, {"w": np.zeros(1)}, {"kind": "control", "agent": "Sarsa"})
    with pytest.raises(CheckpointError) as error:
        valueapprox.load(path)
    assert str(tmp_path) in str(error.value)


def test_importing_the_package_loads_no_gymnasium(tmp_path):
    code = "import sys, valueapprox; loaded = 'gymnasium' in sys.modules; valueapprox.load; print(loaded)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        valueapprox.lode  # noqa: B018
