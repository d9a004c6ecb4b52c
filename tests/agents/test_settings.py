"""What a run was told and what was chosen for it: NumPy's numbers, ids without a version, "auto", images."""

import json
import time

import gymnasium as gym
import numpy as np
import pytest

from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.evaluation import monte_carlo
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.rollout import make_environment
from valueapprox.agents.training import settings_from

SMALL = {
    PredictionSettings: {"hidden": (4,), "steps": 64, "envs": 2, "block": 16},
    ControlSettings: {"hidden": (4,), "steps": 64},
}
NUMPY = {
    "seed": np.int64(3), "steps": np.uint16(64), "gamma": np.float32(0.9), "lam": np.float16(0.8),
    "layer_norm": np.bool_(True), "hidden": np.array([4, 4]), "dtype": np.str_("float32"),
    "env_args": {"max_episode_steps": np.int32(50)}, "log_every": np.array(20), "alpha": np.float32(0.01),
}  # fmt: skip


def trained(settings, folder):
    return (
        PredictionRun(settings, folder).train(0)
        if isinstance(settings, PredictionSettings)
        else ControlRun(settings, folder).train()
    )


@pytest.mark.parametrize("kind", SMALL)
def test_numpy_numbers_are_settings_like_any_others(tmp_path, kind):
    settings = kind(**SMALL[kind] | NUMPY)
    trained(settings, tmp_path / "run")
    run = PredictionRun if kind is PredictionSettings else ControlRun
    again = run(None, tmp_path / "run", resume=True).settings
    assert again == settings
    plain = {n: v.tolist() if isinstance(v, (np.generic, np.ndarray)) else v for n, v in NUMPY.items()}
    assert again == kind(**SMALL[kind] | plain | {"env_args": {"max_episode_steps": 50}})
    document = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert document["seed"] == 3
    assert document["gamma"] == float(np.float32(0.9))
    assert document["layer_norm"] is True


@pytest.mark.parametrize("kind", SMALL)
def test_a_whole_number_is_one_however_it_is_written(kind):
    assert kind(steps=1e3).steps == 1000
    assert isinstance(kind(steps=np.float64(1e3)).steps, int)
    assert kind(gamma=1).gamma == 1


def test_an_id_without_version_is_the_newest_one_in_all_that_follows(tmp_path):
    # Without the version, version 0.1 did not find the heuristic and evaluated the random policy.
    runs = {}
    for env in ("CartPole", "CartPole-v1"):
        folder = tmp_path / env
        run = PredictionRun(PredictionSettings(env, **SMALL[PredictionSettings]), folder)
        run.train(0)
        result = monte_carlo(run.value_function, PredictionSettings(env).task(), 5, seed=1)
        runs[env] = run.value_function.w.tobytes(), result, (folder / "settings.json").read_text()
    assert runs["CartPole"] == runs["CartPole-v1"]
    document = json.loads(runs["CartPole"][2])
    assert (document["env"], document["policy"], document["noise"]) == ("CartPole-v1", "heuristic", 0.1)
    assert '"auto"' not in runs["CartPole"][2]
    assert PredictionSettings("CartPole") == PredictionSettings("CartPole-v1", policy="heuristic", noise=0.1)
    assert PredictionSettings("CartPole") != PredictionSettings("CartPole-v1", policy="random")
    assert PredictionSettings("valueapprox/RandomWalk", policy="random").task().env == "valueapprox/RandomWalk-v0"


def test_control_stores_the_optimizers_that_were_chosen(tmp_path):
    run = ControlRun(ControlSettings("CartPole", **SMALL[ControlSettings]), tmp_path / "run")
    run.train()
    document = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert document["env"] == "CartPole-v1"
    assert document["optimizer"] == {
        "critic": run.agent.first.optimizer.as_dict(),
        "actor": run.agent.second.optimizer.as_dict(),
    }
    assert '"auto"' not in (tmp_path / "run" / "settings.json").read_text()
    assert ControlRun(None, tmp_path / "run", resume=True).settings == ControlSettings(
        "CartPole-v1", **SMALL[ControlSettings]
    )


class Pixels(gym.Env):
    """Says nothing in a picture."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, shape=(84, 84, 3), inside=False):
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        if inside:
            self.observation_space = gym.spaces.Dict(
                {"camera": self.observation_space, "speed": gym.spaces.Discrete(3)}
            )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


class SlowStart(gym.Env):
    """Its first step of all takes half a second, as the step in which kernels are compiled does."""

    action_space, observation_space = gym.spaces.Discrete(2), gym.spaces.Box(0.0, 1.0, (2,))
    begun = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        if not self.begun:
            time.sleep(0.5)
        self.begun = True
        return np.zeros(2, np.float32), 1.0, False, False, {}


gym.register("Pixels-v0", entry_point=Pixels)
gym.register("SlowStart-v0", entry_point=SlowStart)


@pytest.mark.parametrize(("kind", "run"), [(PredictionSettings, PredictionRun), (ControlSettings, ControlRun)])
def test_an_image_is_said_to_become_a_dense_network(tmp_path, kind, run):
    said = []
    run(kind("Pixels-v0", hidden=(4,)), tmp_path / "a", notice=said.append)
    (sentence,) = said
    assert "Pixels-v0: observations are arrays of shape (84, 84, 3), read as 21,168 numbers in a row" in sentence
    assert "84,672 weights in its first layer" in sentence  # 4 x 21,168
    assert "wrapper" in sentence
    run(kind("Pixels-v0", {"inside": True}, hidden=(4,), flatten=True), tmp_path / "b", notice=said.append)
    assert "21,171 numbers" in said[1]
    run(kind("Pixels-v0", {"shape": (4, 4)}, hidden=(4,)), tmp_path / "c", notice=said.append)
    assert len(said) == 2


@pytest.mark.parametrize(("kind", "run"), [(PredictionSettings, PredictionRun), (ControlSettings, ControlRun)])
def test_what_comes_before_the_first_step_is_no_learning_time(tmp_path, kind, run):
    settings = kind("SlowStart-v0", **SMALL[kind])
    begun = time.monotonic()
    report = trained(settings, tmp_path)
    assert report.seconds < time.monotonic() - begun - 0.5


@pytest.mark.parametrize("kind", [PredictionSettings, ControlSettings])
def test_settings_of_version_0_2_lead_to_where_the_worlds_and_policies_are_now(kind):
    old = {"env": "envs:valueapprox/CartPole-v1"} | (
        {"policy": "agents.policies:lean"} if kind is PredictionSettings else {}
    )
    settings = kind.from_dict(old)
    assert make_environment(settings.env).spec.id == "valueapprox/CartPole-v1"
    assert kind.from_dict({"env": "envs:Mine-v0"}).env == "envs:Mine-v0"
    if kind is PredictionSettings:
        assert settings.policy == "valueapprox.agents.policies:lean"


@pytest.mark.parametrize("agent", ["stream-ac", "ppo"])
def test_settings_that_describe_the_agent_s_own_optimizer_leave_it_to_the_agent(agent):
    described = {"agent": agent, "optimizer": {"name": "Adam", "alpha": 3e-4}}
    assert settings_from(described) == settings_from({"agent": agent})
