"""The examples of docs/adding.md, as they stand: each in a file of its own, registered, and used everywhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conformance import WORLD_CHECKS

from valueapprox import SGD, History, Network, Optimizer, Predictions, ValueFunction, envs, fit, losses
from valueapprox.agents import AGENTS, evaluation
from valueapprox.agents.batch_run import BATCH_AGENTS, BatchRun, BatchSettings
from valueapprox.agents.control_loop import CompiledLoop
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.policies import resolve
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.rollout import Task, make_rollout
from valueapprox.optim import OPTIMIZERS
from valueapprox.statistics import STATISTICS, estimate
from valueapprox.td import METHODS

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "adding.md").read_text(), re.DOTALL)


@pytest.fixture
def example(request, tmp_path, monkeypatch):
    """The module of an example, which is forgotten afterwards."""
    registries = OPTIMIZERS, AGENTS, BATCH_AGENTS, envs.WORLDS, gym.registry, losses.LOSSES, METHODS, STATISTICS
    known = [dict(registry) for registry in registries]
    path = tmp_path / f"example_{request.param}.py"
    path.write_text(EXAMPLES[request.param])
    assert len(EXAMPLES[request.param].splitlines()) < 60
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # as an import would
    spec.loader.exec_module(module)
    yield module
    for registry, before in zip(registries, known, strict=True):
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize("example", [0], indirect=True)
def test_an_optimizer_is_one_file(example, tmp_path):
    lion = example.Lion(0.25, beta1=0.5, beta2=0.5)
    v = ValueFunction(Network((2, 1), bias=False, dtype="float64"), lion, init="zeros")
    v.learn([1.0, -2.0], 1.0, [0.0, 0.0])  # u = (1, -2): w = (0.25, -0.25), m = (0.5, -1)
    np.testing.assert_array_equal(v.w, [0.25, -0.25])
    np.testing.assert_array_equal(v.state.moments, [[0.5, -1.0]])
    # v(s) = 0.5 + 0.25, delta = 0 - 0.75 = u: c = (0.25 - 0.375 2, -0.5 + 0.375), m = (0.25 - 0.75, -0.5 + 0.375)
    v.learn([2.0, -1.0], 0.0, [0.0, 0.0], terminated=True)
    np.testing.assert_array_equal(v.w, [0.0, -0.5])
    v.save(tmp_path / "v.npz")
    assert ValueFunction.load(tmp_path / "v.npz").optimizer == lion
    assert Optimizer.from_dict(lion.as_dict()) == lion

    rng = np.random.default_rng(0)
    states = rng.normal(size=(64, 3))
    p = Predictions(Network((3, 4, 2), dtype="float64"), lion, [0.9, 0.5], 0.9)
    before = p.w.copy()
    p.learn(0, states, rng.normal(size=(64, 2)), states)
    assert np.isfinite(p.w).all()
    assert (p.w != before).any()
    net = Network((3, 1), bias=False, dtype="float64")
    w = net.init(0, "zeros")
    fit(net, w, states, states @ [1.0, -1.0, 1.0], optimizer=lion, epochs=1, batch_size=64, progress=False)
    np.testing.assert_array_equal(w, [0.25, -0.25, 0.25])

    settings = ControlSettings("valueapprox/CartPole-v1", agent="stream-q", steps=300, optimizer="lion")
    run = ControlRun(settings, tmp_path / "run")
    run.train()
    assert [type(learner.optimizer).__name__ for learner in (run.agent.first, run.agent.second)] == ["Lion", "Lion"]


@pytest.mark.parametrize("example", [1], indirect=True)
def test_an_agent_is_one_file(example, tmp_path):
    agents = []
    for compiled in (False, True):
        env = gym.make("valueapprox/CartPole-v1")
        agent = example.CautiousQ(env.observation_space, env.action_space, seed=3)
        observation, _ = env.reset(seed=3)
        action = agent.start(observation)
        if compiled:
            CompiledLoop(agent, env, *envs.compiled_world("valueapprox/CartPole-v1"), np.zeros(2)).run(200)
        else:
            for _ in range(200):
                observation, reward, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    agent.end(reward, observation, terminated)
                    action = agent.start(env.reset()[0])
                else:
                    action = agent.step(reward, observation)
        agents.append(agent)
    np.testing.assert_array_equal(agents[0].first.w, agents[1].first.w)
    agents[0].save(tmp_path / "agent.npz")
    again = example.CautiousQ(env.observation_space, env.action_space, seed=4)
    again.load(tmp_path / "agent.npz")
    np.testing.assert_array_equal(again.first.w, agents[0].first.w)

    whole = ControlRun(ControlSettings("valueapprox/CartPole-v1", agent="cautious-q", steps=400), tmp_path / "whole")
    whole.train()
    ControlRun(ControlSettings("valueapprox/CartPole-v1", agent="cautious-q", steps=150), tmp_path / "part").train()
    longer = ControlSettings("valueapprox/CartPole-v1", agent="cautious-q", steps=400, schedule_steps=150)
    part = ControlRun(longer, tmp_path / "part", resume=True)
    part.train()
    assert part.agent.n_steps == 400


@pytest.mark.parametrize("example", [2], indirect=True)
def test_a_world_is_one_file(example, tmp_path):
    # From place i of n, a walk with a wall at 0 takes n (n + 1) - i (i + 1) steps to the door.
    i, task = np.arange(4), Task("valueapprox/Corridor-v0", "random", env_args={"n_states": 4})
    np.testing.assert_allclose(evaluation.truth(task, 1.0)[1], i * (i + 1) - 4 * 5.0)
    assert resolve("auto", None, "valueapprox/Corridor-v0") == ("heuristic", 0.1)
    (block, _) = make_rollout(Task("valueapprox/Corridor-v0", "heuristic"), [0]).collect(12)
    assert block.terminated[0].tolist() == ([False] * 5 + [True]) * 2
    # "module:id" imports the module where that has not happened yet, as in a worker.
    asked = "resolve('auto', None, 'example_2:valueapprox/Corridor-v0')"
    code = f"from valueapprox.agents.policies import resolve; print({asked})"
    words = [sys.executable, "-c", code]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "('heuristic', 0.1)\n"
    for check in WORLD_CHECKS:
        check("valueapprox/Corridor-v0", tmp_path / check.__name__)

    settings = PredictionSettings(
        "valueapprox/Corridor-v0", policy="random", hidden=(), steps=20_000, envs=2, gamma=0.9, alpha=0.03
    )
    run = PredictionRun(settings, tmp_path / "run")
    report = run.train(0)
    assert report.value_error < 0.3  # of values between -10 and -4


@pytest.mark.parametrize("example", [3], indirect=True)
def test_a_loss_is_one_file(example, tmp_path):
    loss = losses.get("log_cosh")
    assert loss == example.LogCosh()
    # e = 1 and -1000: log cosh 1, and 1000 - log 2 to the last digit; slopes tanh 1 and -1.
    np.testing.assert_allclose(loss.value([1.0, -1000.0], [0.0, 0.0]), [np.log(np.cosh(1.0)), 1000 - np.log(2.0)])
    np.testing.assert_allclose(loss.derivative([1.0, -1000.0], [0.0, 0.0]), [[np.tanh(1.0)], [-1.0]])
    net = Network((1, 1), bias=False, dtype="float64")
    w = np.zeros(1)
    loss = example.LogCosh(c=2.0)
    history = fit(net, w, [[1.0]], [1.0], loss=loss, optimizer=SGD(0.5), epochs=1, progress=False)
    np.testing.assert_allclose(w, np.tanh(0.5))  # e = -1: the slope is -2 tanh(1/2), the step half of it
    np.testing.assert_allclose(history["loss"], 4 * np.log(np.cosh(0.5)))
    history.save(tmp_path / "fit.npz")
    assert History.load(tmp_path / "fit.npz").settings["loss"] == {"name": "log_cosh", "reduction": "mean", "c": 2.0}


@pytest.mark.parametrize("example", [4], indirect=True)
def test_a_method_of_td_learning_is_one_file(example, tmp_path):
    net = Network((2, 1), bias=False, dtype="float64")
    v = ValueFunction(net, SGD(0.5), 0.5, 1.0, method="bounded-td", bound=2.0, init="zeros")
    assert v.learn([1.0, 0.0], 8.0, [0.0, 1.0]) == 8.0  # counts as 2: w = (1, 0), z = (1, 0)
    # delta = -1 - 0, z = (0.5, 1)
    assert v.learn([0.0, 1.0], -1.0, [0.0, 0.0], terminated=True) == -1.0
    np.testing.assert_array_equal(v.w, [0.75, -0.5])
    v.save(tmp_path / "v.npz")
    again = ValueFunction.load(tmp_path / "v.npz")
    assert (again.method, again.state_dict()[1]["bound"]) == ("bounded-td", 2.0)
    with pytest.raises(ValueError, match="n is 3; expected nothing, as bounded-td has lam, bound"):
        ValueFunction(net, method="bounded-td", n=3)

    settings = PredictionSettings("valueapprox/CartPole-v1", agent="bounded-td", bound=0.5, steps=512, envs=2, block=64)
    run = PredictionRun(settings, tmp_path / "run")
    run.train(0)
    kept = PredictionRun(None, tmp_path / "run", resume=True)
    assert kept.settings == run.settings
    np.testing.assert_array_equal(kept.value_function.w, run.value_function.w)


def test_a_method_that_cannot_work_is_an_error_when_it_is_registered():
    from valueapprox.td import Method, register

    with pytest.raises(TypeError, match="name of Twice is 'td'; TDLambda is registered as 'td'"):
        register("td")(type("Twice", (Method,), {"rule": METHODS["td"].rule}))
    with pytest.raises(TypeError, match="rule of Idle is missing"):
        register("idle")(type("Idle", (Method,), {}))
    with pytest.raises(TypeError, match="Wrong cannot be used: its rule returns None"):
        register("wrong")(type("Wrong", (Method,), {"rule": lambda net, queue, span, t: None}))


def test_an_agent_that_cannot_work_is_an_error_when_it_is_registered():
    from valueapprox.agents.base import ControlAgent, register

    with pytest.raises(TypeError, match="name of Twice is 'sarsa'; Sarsa is registered as 'sarsa'"):
        register("sarsa")(type("Twice", (ControlAgent,), {"update": AGENTS["sarsa"].update}))
    with pytest.raises(TypeError, match="update of Idle is missing"):
        register("idle")(type("Idle", (ControlAgent,), {}))


@pytest.mark.parametrize("example", [5], indirect=True)
def test_an_agent_of_many_environments_is_one_file(example, tmp_path):
    # ratio 1.1, A = 2, clip 0.2: 1.1 (2 - 2 0.1 / 0.2) = 1.1; ratio 1.3: 1.3 (2 - 3) = -1.3, which calls it back
    settings = type("Loss", (), {"clip": 0.2})
    plain = example.penalised.py_func
    assert plain(1.1, 2.0, settings) == (pytest.approx(1.1), False)
    assert plain(1.3, 2.0, settings) == (pytest.approx(-1.3), True)
    weights = []
    for name in ("spo", "spo", "ppo"):
        small = {"steps": 256, "envs": 2, "rollout": 64, "hidden": (8,), "clip": 0.01}
        run = BatchRun(BatchSettings("valueapprox/CartPole-v1", agent=name, **small), tmp_path / str(len(weights)))
        run.train()
        weights.append(run.agent.actor_learner.w)
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()
    assert example.SPO.agent_name in BATCH_AGENTS


@pytest.mark.parametrize("example", [6], indirect=True)
def test_a_statistic_is_one_file(example):
    runs = [5.0, 1.0, 7.0, 2.0, 9.0, 8.0]  # the worst two of six: (1 + 2) / 2
    found = estimate(runs, "worst-quarter")
    assert found.value == 1.5 == example.worst_quarter(runs)
    assert found.low <= found.value < found.high
    np.testing.assert_array_equal(example.worst_quarter([[3.0, -np.inf], [2.0, 1.0]]), [-np.inf, 1.0])
