"""What an update of a control agent does: gradients, endings, Watkins's cut."""

import numpy as np
import pytest
from gymnasium import spaces
from stream_agents import (
    ACTORS,
    AGENTS,
    ALGORITHMS,
    PLAIN,
    SIX,
    SPACE,
    STATE_VALUES,
    VALUE_BASED,
    entropy_of,
    inputs,
    last_delta,
    life,
    live,
    log_policy,
    make,
)

from valueapprox import SGD
from valueapprox.agents import StreamQ
from valueapprox.agents import layout as kernels


def central_differences(f, w, h=1e-4):
    """Of fourth order, for LayerNorm bends sharply: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h."""
    g = np.empty_like(w)
    for p, unit in enumerate(np.eye(w.size)):
        near, far = (f(w + k * h * unit) - f(w - k * h * unit) for k in (1, 2))
        g[p] = (8 * near - far) / (12 * h)
    return g


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("reward", [5.0, -5.0])
@pytest.mark.parametrize("bias", [None, -4.0, 6.0])
@pytest.mark.parametrize("name", ACTORS)
def test_the_actors_gradient_is_that_of_log_pi_and_the_entropy_with_the_sign_of_delta(name, bias, reward, layer_norm):
    # lambda = 0: the trace is the newest gradient. `bias` brings the softplus of a spread to its ends (0.018 and 6),
    # one action's probability near 0 or 1.
    gaussian = name == "gaussian"
    settings = PLAIN | {"layer_norm": layer_norm, "entropy": 0.7, "lam": 0.0, "hidden": (5, 4)}
    agent = make(name, **settings, optimizer=SGD(0.0), second_optimizer=SGD(0.0), seed=5)
    w, net = agent.second.w, agent.second.net
    if bias is not None:
        w[-1] = bias
    s = np.array([0.3, -0.8, 0.5])
    agent.start(s)
    action = agent._action_values.copy() if gaussian else int(agent.counts[kernels.ACTION])
    delta = last_delta(agent, "step", reward, np.ones(3))
    assert delta * reward > 0

    def objective(w):
        outputs = net.forward(w, s)
        return log_policy(outputs, action, gaussian) + 0.7 * np.sign(reward) * entropy_of(outputs, gaussian)

    expected = central_differences(objective, w)
    np.testing.assert_allclose(agent.second.z, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    expected = central_differences(lambda w: agent.first.net.forward(w, s)[0], agent.first.w)
    np.testing.assert_allclose(agent.first.z, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("name", ACTORS)
def test_a_delta_of_zero_leaves_the_entropy_out(name):
    traces = []
    for entropy in (0.0, 3.0):
        agent = make(name, entropy=entropy, lam=0.0, **PLAIN)
        agent.first.w[:] = 0.0
        agent.start(np.ones(3))
        assert last_delta(agent, "step", 0.0, np.zeros(3)) == 0.0
        traces.append(agent.second.z.copy())
    assert np.abs(traces[0]).max() > 0
    np.testing.assert_array_equal(*traces)


@pytest.mark.parametrize("name", VALUE_BASED)
def test_the_trace_holds_the_gradient_of_the_taken_actions_value(name):
    agent = make(name, lam=0.0, epsilon=(1.0, 1.0, 0), optimizer=SGD(0.0), second_optimizer=SGD(0.0), **PLAIN)
    s, seen = np.array([0.3, -0.8, 0.5]), set()
    for _ in range(20):
        a = agent.start(s)
        agent.step(0.3, np.ones(3))
        if a not in seen and np.any(agent.first.z):  # else it explored, and the trace was cut after it
            seen.add(a)
            expected = central_differences(lambda w, a=a: agent.first.net.forward(w, s)[a], agent.first.w)
            np.testing.assert_allclose(agent.first.z, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
            if name == "qrc":
                expected = central_differences(lambda w, a=a: agent.second.net.forward(w, s)[a], agent.second.w)
                np.testing.assert_allclose(agent.second.z, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    assert len(seen) == (1 if name in ("q", "qrc") else 3)


def value_of_next(agent, x):
    """V(s'), for a policy that never explores."""
    return agent.first.net.forward(agent.first.w, x).max()


@pytest.mark.parametrize(
    ("terminated", "truncated", "published", "bootstraps"),
    [
        (True, False, False, False),
        (False, True, False, True),
        (True, True, False, False),
        (False, False, False, True),
        (True, False, True, False),
        (False, True, True, False),
        (True, True, True, False),
        (False, False, True, True),
    ],
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_target_at_an_ending(name, terminated, truncated, published, bootstraps):
    agent = make(name, epsilon=(0.0, 0.0, 0), bootstrap_at_limit=not published, **PLAIN)
    s, s_next = np.array([0.5, -0.2, 0.1]), np.array([1.0, 2.0, -1.0])
    agent.start(s)
    a = 0 if name in STATE_VALUES else int(agent.counts[kernels.ACTION])
    expected = 0.7 + 0.9 * bootstraps * value_of_next(agent, s_next) - agent.first.net.forward(agent.first.w, s)[a]
    assert abs(value_of_next(agent, s_next)) > 0.05
    assert agent.learn(s_next, 0.7, terminated, truncated, *agent.arrays) == kernels.LEARNED
    assert agent.sums[kernels.SUM_DELTA] == pytest.approx(expected, rel=1e-12)
    ended = terminated or truncated
    assert agent.counts[kernels.RUNNING] == (not ended)
    assert np.any(agent.first.z) != ended
    assert np.any(agent.second.z) == (not ended and bool(agent.second_name))
    assert (agent.memory[kernels.SCALAR_TRACE] != 0) == (not ended and name == "qrc")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_limit_bootstraps_from_the_final_observation_and_not_from_the_next_start(name):
    def weights(final, start):
        agent = make(name, **PLAIN)
        live(agent, [("start", np.ones(3)), ("end", 1.0, np.full(3, final), False)])
        learned = agent.first.w.copy()
        agent.start(np.full(3, start))
        np.testing.assert_array_equal(agent.first.w, learned)
        return learned.tobytes()

    assert weights(0.5, 0.1) == weights(0.5, -3.0) != weights(0.7, 0.1)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("name", AGENTS)
def test_what_the_second_episode_brings_reaches_no_state_of_the_first(name, terminated):
    # Linear in one-hot states: weights of states 0 to 2 are touched in the first episode alone.
    # (All values change when the reward's unit does: `rescale_outputs`.)
    own = {"regularise": 0.0} if "qrc" in name else {}
    agent = make(name, SIX, hidden=(), rescale_outputs=False, **own)
    agent.settings[kernels.NORMALISE] = 0.0
    s = np.eye(6)
    live(agent, [("start", s[0]), ("step", 1.0, s[1]), ("step", -2.0, s[2]), ("end", 3.0, s[5], terminated)])
    learners = [agent.first, agent.second] if agent.second_name else [agent.first]
    before = [learner.net.unpack(learner.w)[0][0][:3].copy() for learner in learners]
    live(agent, [("start", s[3]), ("step", 100.0, s[4]), ("step", -50.0, s[3]), ("end", 9.0, s[5], False)])
    for learner, rows in zip(learners, before, strict=True):
        np.testing.assert_array_equal(learner.net.unpack(learner.w)[0][0][:3], rows)
        assert np.any(learner.net.unpack(learner.w)[0][0][3:5])


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_time_limit_on_a_task_without_end_does_not_shorten_its_values(name, published):
    # A ring of 4 states, reward 1 at every step, cut every 5: v = 1 / (1 - 0.8) = 5. Were limits terminal, no episode
    # would bring more than 1 + 0.8 + ... + 0.8^4 = 3.36; the maximum of noisy values of Q is above that, at 3.9.
    settings = PLAIN | {"hidden": (), "init": "zeros", "gamma": 0.8, "lam": 0.5, "bootstrap_at_limit": not published}
    settings |= {"optimizer": SGD(0.1), "second_optimizer": SGD(0.01), "epsilon": (1.0, 1.0, 0)}
    agent = make(name, SIX, **settings)
    states, state = np.eye(6), 0
    for _ in range(600):
        agent.start(states[state])
        for t in range(5):
            state = (state + 1) % 4
            if t < 4:
                agent.step(1.0, states[state])
            else:
                agent.end(1.0, states[state], terminated=False)
    W, b = agent.first.net.unpack(agent.first.w)[0]
    W = W[:4]
    if published:
        assert np.max(W + b) < 4.5
    else:
        np.testing.assert_allclose(W + b, 5.0, rtol=2e-3)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("name", ["actor-critic", "gaussian", "q", "q, cut before", "sarsa", "expected sarsa", "td"])
def test_a_reward_at_the_end_credits_earlier_states_by_gamma_lambda(name, terminated):
    # All weights 0, so the only delta is 1, at the end; gamma lambda = 0.72; alpha = 0.5: 0.2592, 0.36, 0.5.
    both = {"optimizer": SGD(0.5), "second_optimizer": SGD(0.5)}
    agent, s = make(name, SIX, hidden=(), init="zeros", **both, **PLAIN), np.eye(6)
    actions = live(agent, [("start", s[0]), ("step", 0.0, s[1]), ("step", 0.0, s[2]), ("end", 1.0, s[3], terminated)])
    W, b = agent.first.net.unpack(agent.first.w)[0]
    expected = np.zeros_like(W)
    for s, credit in enumerate((0.2592, 0.36, 0.5)):
        expected[s, 0 if name in STATE_VALUES else actions[s]] = credit
    np.testing.assert_allclose(W, expected, rtol=1e-12)
    np.testing.assert_allclose(b, expected.sum(axis=0), rtol=1e-12)


def test_the_decay_does_not_know_the_ending():
    # The last transition of an episode decays the trace by gamma lambda like any other: with reward 0 on the way, one
    # agent that sees the end terminated and one that sees it cut credit the past alike (v(s') = 0 in both).
    learned = []
    for terminated in (True, False):
        agent = make("actor-critic", hidden=(), init="zeros", optimizer=SGD(0.5), second_optimizer=SGD(0.5), **PLAIN)
        live(agent, [("start", np.ones(3)), ("step", 0.0, 2 * np.ones(3)), ("end", 1.0, np.zeros(3), terminated)])
        learned.append(agent.first.w.copy())
    np.testing.assert_array_equal(*learned)
    assert np.any(learned[0])


@pytest.mark.parametrize(
    ("cut", "W", "b"),
    [
        ("after", [[2.03125, 0.0], [1.0, 1.5625], [2.484375, 0.0]], [1.515625, 1.5625]),
        ("before", [[1.25, 0.0], [1.0, 2.0], [2.875, 0.0]], [1.125, 2.0]),
    ],
)
def test_watkins_by_hand(cut, W, b):
    # alpha = gamma = 1/2, lambda = 1; q(s, a) = W[s, a] + b[a], W = (1 0; 1 0; 2 0). Actions 0, 1 (exploring), 0.
    # 1. delta = 1 + 1.0 / 2 - 1 = 0.5: W00 = 1.25, b0 = 0.25.
    # 2. q(s2) = (2.25, 0): delta = 2 + 2.25 / 2 - 0 = 3.125; half of it: 1.5625 to W11 and b1.
    #    after: half of that, 0.78125, to W00 and b0 too, then z = 0.    before: z = 0 first, W00 = 1.25, b0 = 0.25.
    # 3. after: delta = 4 - (2 + 1.03125) = 0.96875, half of it to W20 and b0.
    #    before: delta = 4 - 2.25 = 1.75: 0.875 to W20 and b0, 0.4375 to W11 and b1, which the trace still holds.
    for seed in range(100):
        settings = PLAIN | {"gamma": 0.5, "lam": 1.0, "cut": cut, "epsilon": (1.0, 1.0, 0), "dtype": "float64"}
        agent, s = StreamQ(SIX, spaces.Discrete(2), (), SGD(0.5), seed=seed, **settings), np.eye(6)
        weights = agent.first.net.unpack(agent.first.w)[0]
        weights[0][:] = [[1, 0], [1, 0], [2, 0], [0, 0], [0, 0], [0, 0]]
        weights[1][:] = 0.0
        flags = []
        actions = []
        for call in [("start", s[0]), ("step", 1.0, s[1]), ("step", 2.0, s[2])]:
            actions += live(agent, [call])
            flags.append(int(agent.counts[kernels.EXPLORING]))
        if actions == [0, 1, 0]:
            break
    assert actions == [0, 1, 0]
    assert flags == [0, 1, 0]
    agent.end(4.0, s[3], terminated=True)
    assert weights[0][:3].tolist() == W
    assert weights[1].tolist() == b


@pytest.mark.parametrize("name", [*VALUE_BASED, "q, softmax"])
def test_the_exploring_flag_says_whether_a_better_action_was_known(name):
    agent = make(name, seed=1, **PLAIN)
    flags = []
    for call in life(200, seed=2):
        answer = live(agent, [call])[0]
        if answer is not None:
            values = agent.first.net.forward(agent.first.w, inputs(agent))
            assert agent.counts[kernels.EXPLORING] == (values[answer] < values.max())
            flags.append(int(agent.counts[kernels.EXPLORING]))
    assert 10 < sum(flags) < len(flags) - 10


def test_a_random_action_that_is_the_greedy_one_cuts_nothing():
    agent = StreamQ(SPACE, spaces.Discrete(1), (), SGD(0.1), epsilon=(1.0, 1.0, 0), dtype="float64", **PLAIN)
    live(agent, life(5, ends=0.0))
    assert np.any(agent.first.z)
