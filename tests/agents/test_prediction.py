"""The prediction agent learns what `ValueFunction` learns from the same transitions."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from valueapprox import SGD, Adam, Network, ValueFunction
from valueapprox.agents.policies import lean
from valueapprox.agents.prediction import Prediction
from valueapprox.agents.spaces import UnsupportedSpaceError
from valueapprox.seeding import sequence

SPACE = spaces.Box(-10.0, 10.0, (2,))


def agent(**settings):
    settings = {"hidden": (5,), "gamma": 0.9, "lam": 0.8, "dtype": "float64", "seed": 4, **settings}
    return Prediction(SPACE, spaces.Discrete(2), **settings)


def fresh(optimizer=None, **method):
    net = Network((2, 5, 1), dtype="float64")
    return ValueFunction(net, optimizer, 0.9, **method, seed=sequence(4, "weights"))


def experience(n_episodes=4, length=6):
    """Episodes of states (length + 1, 2) and rewards (length,); every second one is cut rather than ended."""
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(length + 1, 2)), rng.normal(size=length), e % 2 == 0) for e in range(n_episodes)]


def live(learner, episodes):
    for states, rewards, terminated in episodes:
        learner.start(states[0])
        for state, reward in zip(states[1:-1], rewards[:-1], strict=True):
            learner.step(reward, state)
        learner.end(rewards[-1], states[-1], terminated)


@pytest.mark.parametrize(
    "method",
    [
        {"lam": 0.8},
        {"lam": 0.0},
        {"method": "n-step", "lam": 0.0, "n": 3},
        {"method": "monte-carlo", "lam": 0.0},
    ],
)
@pytest.mark.parametrize("optimizer", [SGD(0.05), Adam(0.01)], ids=["sgd", "adam"])
def test_it_learns_what_learn_stream_learns(method, optimizer):
    learner, episodes = agent(**method, optimizer=optimizer), experience()
    live(learner, episodes)
    expected = fresh(optimizer, **method)
    for states, rewards, terminated in episodes:
        ended, cut = np.zeros(len(rewards), bool), np.zeros(len(rewards), bool)
        ended[-1], cut[-1] = terminated, not terminated
        expected.learn_stream(states[:-1], rewards, states[1:], ended, cut)
    np.testing.assert_array_equal(learner.value_function.w, expected.w)
    assert learner.value_function.n_transitions == 24


def test_td_by_hand():
    # Linear, zeros at first, alpha 1/2, gamma 0.9.  (1,0) -r=1-> (0,1): delta = 1, w = (0.5, 0).
    # (0,1) -r=2-> (1,0), cut: delta = 2 + 0.9 * 0.5 - 0 = 2.45;  lambda = 0:  w = (0.5, 1.225)
    learner = agent(hidden=(), bias=False, lam=0.0, optimizer=SGD(0.5))
    learner.value_function.w[:] = 0.0
    learner.start([1, 0])
    learner.step(1.0, [0, 1])
    assert learner.value_function.w.tolist() == [0.5, 0.0]
    learner.end(2.0, [1, 0], terminated=False)
    assert learner.value_function.w.tolist() == pytest.approx([0.5, 1.225])


@pytest.mark.parametrize("method", ["td", "n-step", "monte-carlo"])
def test_an_episode_left_without_end_does_not_reach_into_the_next(method):
    settings = {"method": method, "lam": 0.8 if method == "td" else 0.0, "optimizer": SGD(0.05)}
    if method == "n-step":
        settings["n"] = 3
    (states, rewards, _), after = experience(2)
    left = agent(**settings)
    left.start(states[0])
    for state, reward in zip(states[1:], rewards, strict=True):
        left.step(reward, state)
    learned = left.value_function.w.copy()
    live(left, [after])

    alone = agent(**settings)
    alone.value_function.w[:] = learned
    live(alone, [after])
    np.testing.assert_array_equal(left.value_function.w, alone.value_function.w)


@pytest.mark.parametrize("call", [lambda a: a.step(1.0, [0, 0]), lambda a: a.end(1.0, [0, 0], True)])
def test_a_step_before_the_start_or_after_the_end_is_an_error(call):
    learner = agent()
    with pytest.raises(RuntimeError, match="call start"):
        call(learner)
    live(learner, experience(1))
    before = learner.value_function.w.copy()
    with pytest.raises(RuntimeError, match="call start"):
        call(learner)
    np.testing.assert_array_equal(learner.value_function.w, before)


def test_the_environment_may_reuse_its_array():
    kept, reused, buffer = agent(), agent(), np.empty(2)

    def through_buffer(learner, states, rewards, terminated):
        buffer[:] = states[0]
        learner.start(buffer)
        for t in range(1, len(states)):
            buffer[:] = states[t]
            if t < len(rewards):
                learner.step(rewards[t - 1], buffer)
            else:
                learner.end(rewards[t - 1], buffer, terminated)

    episodes = experience()
    live(kept, episodes)
    for episode in episodes:
        through_buffer(reused, *episode)
    np.testing.assert_array_equal(reused.value_function.w, kept.value_function.w)


def test_it_acts_by_its_policy_and_its_own_generator():
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    assert Prediction(env.observation_space, env.action_space, lean).start(observation) == lean(observation, None)
    actions = [[a.start([0.0, 0.0]) for _ in range(50)] for a in (agent(seed=1), agent(seed=1), agent(seed=2))]
    assert actions[0] == actions[1] != actions[2]


@pytest.mark.parametrize(
    ("observation", "error", "message"),
    [([1.0], ValueError, "reshape|shape"), ([np.nan, 0.0], ValueError, "nan"), (["a", "b"], ValueError, "float")],
)
def test_a_bad_observation_is_an_error(observation, error, message):
    learner = agent()
    learner.start([0.0, 0.0])
    with pytest.raises(error, match=message):
        learner.step(1.0, observation)


def test_structured_observations_want_flatten():
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0, 1, (2,))})
    with pytest.raises(UnsupportedSpaceError, match="flatten"):
        Prediction(space, spaces.Discrete(2))
    learner = Prediction(space, spaces.Discrete(2), flatten=True)
    learner.start({"a": 1, "b": np.zeros(2, np.float32)})
    assert learner.value_function.net.n_inputs == 5
