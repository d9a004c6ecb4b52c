"""Spaces of actions of control agents."""

import math

import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats
from stream_agents import (
    AGENTS,
    ALGORITHMS,
    PAIRS,
    PLAIN,
    PLANE,
    SPACE,
    THREE,
    assert_frequencies,
    inputs,
    life,
    live,
    make,
)

from valueapprox import SGD
from valueapprox.agents import QRC, ExpectedSarsa, Sarsa, StreamAC, StreamQ
from valueapprox.agents.spaces import UnsupportedSpaceError
from valueapprox.nn.backprop import D


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"gaussian"}))
def test_discrete_actions_may_start_anywhere(name):
    plain, moved = make(name), make(name, actions=spaces.Discrete(3, start=-5))
    answers = live(plain, life(50)), live(moved, life(50))
    assert [a if a is None else a - 5 for a in answers[0]] == answers[1]
    assert all(a is None or (isinstance(a, int) and a in moved.action_space) for a in answers[1])
    assert {a for a in answers[1] if a is not None} == {-5, -4, -3}
    assert moved.actor().start(np.ones(3)) == plain.actor().start(np.ones(3)) - 5


@pytest.mark.parametrize(("shape", "dtype"), [((2,), np.float32), ((2, 3), np.float64), ((), np.float32), ((1,), int)])
def test_continuous_actions_fill_the_bounds_and_are_learned_from_as_they_were(shape, dtype):
    # From -1 to 3: the policy's 0 is the middle, 1, and its unit is 2.
    space = spaces.Box(-1, 3, shape, dtype)
    agent = make("gaussian", actions=space, optimizer=SGD(0.0), second_optimizer=SGD(0.0), lam=0.0, entropy=0.0)
    agent.second.w[:] = 0.0
    outputs = agent.second.net.n_outputs
    agent.second.w[-outputs // 2 :] = 0.5  # sigma = 0.97
    beyond = 0
    agent.start(np.ones(3))
    for t in range(40):
        action, sampled = agent.action(), agent._action_values.copy()
        assert np.shape(action) == shape
        assert action.dtype == dtype
        assert space.contains(action)
        inside = np.clip(1.0 + 2.0 * sampled, -1, 3)
        np.testing.assert_array_equal(np.ravel(action), (np.round(inside) if dtype is int else inside).astype(dtype))
        beyond += int((np.abs(sampled) > 1).sum())
        agent.step(1.0, np.full(3, 0.1 * t))
        gradient = agent.second.net.unpack(agent.second.z)[-1][1][: outputs // 2]
        np.testing.assert_allclose(gradient, sampled / np.log1p(np.exp(0.5)) ** 2, rtol=1e-9)  # (a - mu) / sigma^2
    assert beyond > 5


NOWHERE = np.zeros(3)  # where a linear network says its biases


def actions_of(space, n=2000, mean=0.0, spread=0.69):
    """Actions (n, entries) of a Gaussian with this mean and spread in each entry, in the policy's unit."""
    agent = StreamAC(SPACE, space, (), dtype="float64", **PLAIN)
    k = agent._action_values.size
    agent.second.w[:], agent.second.w[-2 * k : -k], agent.second.w[-k:] = 0.0, mean, math.log(math.expm1(spread))
    answers = [agent.start(NOWHERE) for _ in range(n)]
    assert all(space.contains(a) for a in answers)
    return np.reshape(np.array(answers, np.float64), (n, -1))


@pytest.mark.parametrize(
    ("low", "high"), [(5.0, 35.0), (100.0, 200.0), (0.0, 1.0), (-1000.0, 1000.0), (-1e-3, 1e-3), (-1e6, -1e6 + 1.0)]
)
def test_the_unit_of_the_policy_is_half_the_distance_of_the_bounds(low, high):
    space = spaces.Box(low, high, (2,), np.float64)
    unit = (actions_of(space, spread=0.3) - low) / (high - low) * 2.0 - 1.0
    # clipped at 3.3 sigma; the mean of 2000 within 4 sigma / sqrt 2000
    np.testing.assert_allclose(unit.mean(axis=0), 0.0, atol=0.027)
    np.testing.assert_allclose(unit.std(axis=0), 0.3, atol=0.02)
    assert actions_of(space, 1, mean=5.0)[0].tolist() == [high, high]
    assert actions_of(space, 1, mean=-5.0)[0].tolist() == [low, low]


def test_what_has_no_bound_keeps_the_unit_of_the_environment():
    inf, largest = np.inf, float(np.finfo(np.float32).max)
    #        low, high, mean of actions and spread where the policy's mean is 3 and its spread 0.2
    cases = [
        (-1.0, 1.0, 1.0, 0.0),
        (-inf, inf, 3.0, 0.2),
        (-largest, largest, 3.0, 0.2),
        (0.0, largest, 3.0, 0.2),
        (0.0, inf, 3.0, 0.2),
        (-inf, 50.0, 3.0, 0.2),
        (5.0, inf, 9.0, 0.2),  # 0 is outside: the policy's 0 is one unit inside, as the mean of random actions
        (-inf, -5.0, -5.0, 0.0),
        (20.0, 60.0, 60.0, 0.0),
        (2.0, 2.0, 2.0, 0.0),
    ]
    low, high, mean, spread = np.array(cases).T
    actions = actions_of(spaces.Box(low.astype(np.float32), high.astype(np.float32)), mean=3.0, spread=0.2)
    np.testing.assert_allclose(actions.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(actions.std(axis=0), spread, atol=0.015)


def test_between_minus_one_and_one_actions_are_the_samples_to_the_bit():
    agent = StreamAC(SPACE, spaces.Box(-1.0, 1.0, (4,)), seed=3)
    for call in life(50, ends=0.0, dtype=np.float32):
        action = live(agent, [call])[0]
        np.testing.assert_array_equal(action, np.clip(agent._action_values, -1.0, 1.0).astype(np.float32))


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(-2, 2, np.int64), (0, 1, np.int8), (10, 13, np.int32), (0, 255, np.uint8), (0, 1, bool)]
)
def test_integer_actions_are_rounded_to_the_nearest(low, high, dtype):
    # From -2 to 2 the sigma of 0.69 is 1.38: 0 in 28 % (P(|z| < 0.5 / 1.38)), -1 and 1 in 22 %, the ends in 14 %.
    space = spaces.Box(low, high, (1,), dtype)
    centre, sigma, n = (low + high) / 2, 0.69 * (high - low) / 2, 6000
    edges = np.concatenate([[-np.inf], np.arange(low, high) + 0.5, [np.inf]])
    expected = np.diff(stats.norm.cdf((edges - centre) / sigma))
    counts = np.bincount(actions_of(space, n).ravel().astype(int) - low, minlength=high - low + 1)
    assert np.abs(counts / n - expected).max() < 0.03


def test_the_largest_integers_are_bounds_too():
    for dtype in (np.int64, np.uint64, np.int32):
        limits = np.iinfo(dtype)  # an unsigned Box takes no infinity
        low, high = (-np.inf, np.inf) if limits.min else (0, limits.max)
        assert np.abs(actions_of(spaces.Box(low, high, (2,), dtype), 50)).max() < 10
        assert actions_of(spaces.Box(low, high, (2,), dtype), 1, mean=1e30).min() > 2e9


@pytest.mark.parametrize(
    ("space", "mean", "spread", "led"),
    [  # led: whether the mean may move up, whether it may move down, whether the spread may become narrower, or wider
        (spaces.Box(-1, 1, (1,), np.float64), 0.9, 0.5, (True, True, True, True)),
        (spaces.Box(-1, 1, (1,), np.float64), 1.4, 0.5, (True, True, True, True)),
        (spaces.Box(-1, 1, (1,), np.float64), 1.6, 0.5, (False, True, True, True)),
        (spaces.Box(100, 200, (1,), np.float64), 1.9, 1.1, (True, True, True, False)),
        (spaces.Box(100, 200, (1,), np.float64), 2.1, 50.0, (False, True, True, False)),
        (spaces.Box(0, np.inf, (1,), np.float64), 2.0, 50.0, (True, True, True, True)),
        (spaces.Box(100, 200, (1,), np.float64), 1.6, 0.5, (False, True, True, True)),
        (spaces.Box(100, 200, (1,), np.float64), -9.0, 0.5, (True, False, True, True)),
        (spaces.Box(0, np.inf, (1,), np.float64), -0.6, 0.5, (True, False, True, True)),
        (spaces.Box(0, np.inf, (1,), np.float64), 9.0, 0.5, (True, True, True, True)),
        (spaces.Box(-np.inf, np.inf, (1,), np.float64), 99.0, 0.01, (True, True, True, True)),
        (spaces.Box(-2, 2, (1,), np.int64), 1.1, 0.5, (False, True, True, True)),
        (spaces.Box(-2, 2, (1,), np.int64), 0.9, 0.12, (True, True, False, True)),  # below 0.25 of a unit of the space
        (spaces.Box(-2, 2, (1,), np.int64), 0.9, 0.13, (True, True, True, True)),
    ],
)
def test_a_policy_outside_of_the_bounds_is_led_no_further(space, mean, spread, led):
    still = {"optimizer": SGD(0.0), "second_optimizer": SGD(0.0)}
    agent = StreamAC(SPACE, space, (), **still, entropy=0.0, dtype="float64", **PLAIN)
    moves, widths = [], []
    for t in range(300):
        agent.second.w[:] = 0.0
        agent.second.w[-2:] = mean, math.log(math.expm1(spread))
        agent.start(NOWHERE)
        sampled = agent._action_values[0]
        reward = 1.0 if t % 2 else -1.0  # delta, since v = 0
        agent.end(reward, NOWHERE, terminated=True)
        gradient = agent.second.scratch[D, agent.second.net.starts[-2] :][:2].copy()
        assert gradient[0] == pytest.approx((sampled - mean) / spread**2, rel=1e-6) or gradient[0] == 0.0
        moves.append(reward * gradient[0])
        widths.append(reward * gradient[1])
    assert (max(moves) > 0, min(moves) < 0, min(widths) < 0, max(widths) > 0) == led


@pytest.mark.parametrize(
    ("space", "best", "mean"),
    [
        (spaces.Box(-1.0, 1.0, (1,)), 0.0, 3.0),
        (spaces.Box(-1.0, 1.0, (1,)), 0.5, -3.0),
        (spaces.Box(100.0, 200.0, (1,)), 150.0, 3.0),
    ],
    ids=str,
)
def test_a_policy_that_has_left_the_range_comes_back(space, best, mean):
    # Ten pulls an episode, of -(5 d)^2 each, d the distance to the best in half widths; the observation is noise. At
    # the bound an episode earns -250, or -562 where it is 1.5 half widths away.
    agent, rng = StreamAC(SPACE, space, seed=1), np.random.default_rng(0)
    agent.second.w[-2:] = mean, math.log(math.expm1(0.1))
    half = float(space.high[0] - space.low[0]) / 2.0
    returns = []

    def noise():
        return rng.normal(size=3).astype(np.float32)

    for _ in range(1500):
        action, total = agent.start(noise()), 0.0
        for t in range(10):
            reward = -25.0 * float(action[0] - best) ** 2 / half**2
            total += reward
            if t < 9:
                action = agent.step(reward, noise())
        agent.end(reward, noise(), terminated=True)
        returns.append(total)
    assert returns[0] < -200.0
    assert np.mean(returns[-100:]) > -20.0


@pytest.mark.parametrize("kind", [StreamQ, Sarsa, ExpectedSarsa, QRC])
def test_agents_of_action_values_want_discrete_actions(kind):
    with pytest.raises(TypeError, match=rf"^action_space is Box.*; expected Discrete.* for {kind.__name__}.*StreamAC"):
        kind(SPACE, PLANE)
    with pytest.raises(TypeError, match=r"^action_space is MultiB.*; expected at most 1024 actions in all.*StreamAC"):
        kind(SPACE, spaces.MultiBinary(11))


@pytest.mark.parametrize("kind", [StreamAC, StreamQ])
def test_other_spaces_of_actions_are_refused(kind):
    for space in (spaces.Tuple((THREE, THREE)), spaces.Text(3)):
        with pytest.raises(TypeError, match=r"^action_space is .*; expected .*Discrete, MultiDiscrete or MultiBinary"):
            kind(SPACE, space)


SEVERAL = [PAIRS, spaces.MultiDiscrete([[2, 3], [1, 4]]), spaces.MultiBinary(3), spaces.MultiBinary((2, 2))]


@pytest.mark.parametrize("space", SEVERAL, ids=str)
@pytest.mark.parametrize("kind", [StreamAC, StreamQ, Sarsa, ExpectedSarsa, QRC])
def test_an_action_of_several_entries_is_learned(kind, space):
    # A reward of 1 for each entry that is right: of an actor's 12 actions at random half an entry would be wrong.
    agent = kind(spaces.Discrete(1), space, (), seed=1, **({} if kind is StreamAC else {"epsilon": (1.0, 0.05, 2000)}))
    rng = np.random.default_rng(5)
    best = space.sample() if space.seed(5) else None
    best = np.asarray(best)
    n = 4000
    for _ in range(n):
        action = agent.start(0)
        assert space.contains(action)
        assert action.dtype == space.dtype
        agent.end(float((action == best).sum() + 0.1 * rng.normal()), 0, terminated=True)
    np.testing.assert_array_equal(agent.actor().start(0), best)


@pytest.mark.parametrize("space", SEVERAL, ids=str)
def test_each_entry_of_an_action_has_the_softmax_of_its_own_outputs(space):
    agent = StreamAC(SPACE, space, (), dtype="float64", **PLAIN)
    counts = (space.nvec if isinstance(space, spaces.MultiDiscrete) else np.full(space.shape, 2)).ravel()
    logits = np.random.default_rng(0).normal(size=counts.sum())
    agent.second.w[:], agent.second.w[-logits.size :] = 0.0, logits
    start = np.ravel(getattr(space, "start", np.zeros(space.shape, int)))
    actions = np.array([agent.start(NOWHERE).ravel() - start for _ in range(6000)])
    for j, own in enumerate(np.split(logits, np.cumsum(counts)[:-1])):
        p = np.exp(own) / np.exp(own).sum()
        assert_frequencies(np.bincount(actions[:, j], minlength=counts[j]), p)
        assert agent.actor().start(NOWHERE).ravel()[j] - start[j] == own.argmax()
    agent.step(1.0, NOWHERE)
    entropies = [stats.entropy(np.exp(own) / np.exp(own).sum()) for own in np.split(logits, np.cumsum(counts)[:-1])]
    shown = agent.diagnostics()
    assert shown["actor/entropy"] == pytest.approx(sum(entropies), rel=1e-9)
    assert "actor/spread" not in shown


@pytest.mark.parametrize("name", ALGORITHMS)
def test_discrete_observations_become_one_of_n(name):
    own = {"normalise_observations": False, "dtype": "float32"}
    agent, moved = (make(name, spaces.Discrete(4, start=k), **own) for k in (0, 7))
    for state in range(4):
        agent.start(state)
        moved.start(np.int64(state + 7))
        assert inputs(agent).tolist() == inputs(moved).tolist() == np.eye(4)[state].tolist()


def test_a_discrete_observation_that_does_not_exist_is_an_error():
    agent = make("q", spaces.Discrete(4, start=7), dtype="float32")
    for state in (6, 11):
        with pytest.raises((ValueError, IndexError)):
            agent.start(state)


def test_structured_observations_want_flatten():
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0, 1, (2,))})
    with pytest.raises(UnsupportedSpaceError, match="flatten"):
        StreamQ(space, THREE)
    agent = StreamQ(space, THREE, flatten=True)
    agent.start({"a": 1, "b": np.zeros(2, np.float32)})
    assert agent.first.net.n_inputs == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.1}, "gamma"),
        ({"gamma": math.nan}, "gamma"),
        ({"lam": -0.1}, "lam"),
        ({"epsilon": (1.5, 0.0, 1)}, "epsilon"),
        ({"epsilon": (0.5, -0.1, 1)}, "epsilon"),
        ({"epsilon": (0.5, 0.1, -1)}, "epsilon"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"average_reward": -1.0}, "average_reward"),
        ({"average_reward": math.inf}, "average_reward"),
        ({"time_limit": 0}, "time_limit"),
        ({"seed": -1}, "seed"),
        ({"cut": "befor"}, "before"),
        ({"init": "spars"}, "sparse"),
        ({"activation": "rellu"}, "relu"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        StreamQ(SPACE, THREE, **settings)


@pytest.mark.parametrize(
    "number",
    [
        *(-0.1, math.nan),
        math.inf,
    ],
)
@pytest.mark.parametrize(("kind", "name"), [(StreamAC, "entropy"), (QRC, "regularise")])
def test_a_bad_setting_of_one_agent_is_named(kind, name, number):
    with pytest.raises(ValueError, match=name):
        kind(SPACE, THREE, **{name: number})


@pytest.mark.parametrize("name", AGENTS)
def test_a_setting_of_another_agent_is_refused(name):
    with pytest.raises(ValueError, match=r"setting of .* is 'learning_rate'"):
        make(name, learning_rate=0.1)
