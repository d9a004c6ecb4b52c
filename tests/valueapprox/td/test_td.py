"""Learning: TD(lambda), n-step TD and Monte Carlo by hand, against second implementations, and in the long run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueapprox import SGD, Adam, DivergenceError, InverseTime, Momentum, Network, ValueFunction, twolayer
from valueapprox.optim import OPTIMIZERS

METHODS = {"td": {"lam": 0.9}, "n-step": {"method": "n-step", "n": 3}, "monte-carlo": {"method": "monte-carlo"}}


def linear(n_states, optimizer, *, gamma=0.9, **options):
    """v(s) = w . s: with one-hot states w is the table of values."""
    net = Network((n_states, 1), bias=False, dtype="float64")
    return ValueFunction(net, optimizer, gamma=gamma, init="zeros", **options)


def stream(n_steps, n_inputs=3, seed=0, dtype=np.float64):
    """Transitions with endings of every kind: (s, r, s_next, terminated, truncated)."""
    rng = np.random.default_rng(seed)
    s, r = rng.normal(size=(n_steps + 1, n_inputs)).astype(dtype), rng.normal(size=n_steps)
    ended, cut = rng.random((2, n_steps)) < 0.1
    s_next = s[1:].copy()
    finals = ended | cut  # the final observation is not the one after the reset
    s_next[finals] = rng.normal(size=(finals.sum(), n_inputs))
    return s[:-1], r, s_next, ended, cut


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("terminated", "truncated", "delta"),
    [
        # r = 1, gamma = 0.9, v(s) = 1.5, v(s') = 2
        (False, False, 1.3),  # 1 + 0.9 * 2 - 1.5
        (False, True, 1.3),  # a time limit bootstraps
        (True, False, -0.5),  # 1 - 1.5
        (True, True, -0.5),  # both: terminated wins
    ],
)
def test_the_td_error_at_endings(method, terminated, truncated, delta):
    v = linear(2, SGD(0.1), **METHODS[method])
    v.w[:] = 1.5, 2.0
    assert v.learn([1, 0], 1.0, [0, 1], terminated, truncated) == pytest.approx(delta, rel=1e-14)
    # An ending updates in every method, and here all targets are the same; otherwise only TD(lambda) has learned yet.
    moved = 0.1 * delta if method == "td" or terminated or truncated else 0.0
    np.testing.assert_allclose(v.w, [1.5 + moved, 2.0], rtol=1e-14)


def test_the_trace_decays_and_is_cut_after_the_update():
    # gamma lambda = 0.9 * 0.5 = 0.45. States 0, 1, 2 in turn, all rewards 0 but the last, 1; alpha 0.1.
    v = linear(3, SGD(0.1), lam=0.5)
    i = np.eye(3)
    v.learn(i[0], 0.0, i[1])
    assert v.trace.tolist() == [1, 0, 0]
    v.learn(i[1], 0.0, i[2])
    np.testing.assert_allclose(v.trace, [0.45, 1, 0])
    # The reward at the end reaches every state on the way: delta = 1, z = (0.2025, 0.45, 1).
    assert v.learn(i[2], 1.0, i[0], terminated=True) == 1.0
    np.testing.assert_allclose(v.w, [0.02025, 0.045, 0.1])
    assert v.trace.tolist() == [0, 0, 0]
    # A truncation cuts it too, and the next episode does not reach back.
    v.learn(i[0], 0.0, i[1], truncated=True)
    assert v.trace.tolist() == [0, 0, 0]
    before = v.w.copy()
    v.learn(i[1], 5.0, i[2], terminated=True)
    assert v.w[[0, 2]].tolist() == before[[0, 2]].tolist()


def test_a_revisited_state_accumulates():
    # z = 1, then 0.45 * 1 + 1 = 1.45, then 0.45 * 1.45 + 1 = 1.6525
    v = linear(1, SGD(0.0), lam=0.5)
    assert [(v.learn([1], 0.0, [1]), float(v.trace[0]))[1] for _ in range(3)] == pytest.approx([1, 1.45, 1.6525])


def test_one_step_returns_by_hand():
    # n = 2, gamma = 0.5, alpha = 0.1, w = 0; rewards 1, 2, 4 on states 0, 1, 2, then terminal.
    v = linear(4, SGD(0.1), gamma=0.5, method="n-step", n=2)
    v.w[3] = 8.0
    i = np.eye(4)
    v.learn(i[0], 1.0, i[1])
    assert v.w.tolist() == [0, 0, 0, 8]  # nothing is two steps old
    v.learn(i[1], 2.0, i[3])  # G_0 = 1 + 0.5 * 2 + 0.25 * v(3) = 2 + 2 = 4
    np.testing.assert_allclose(v.w, [0.4, 0, 0, 8])
    v.learn(i[2], 4.0, i[3], truncated=True)  # G_1 = 2 + 0.5 * 4 + 0.25 * 8 = 6;  G_2 = 4 + 0.5 * 8 = 8
    np.testing.assert_allclose(v.w, [0.4, 0.6, 0.8, 8])


def test_monte_carlo_waits_for_the_end():
    # gamma = 0.5, rewards 1, 2, 4:  G_2 = 4, G_1 = 2 + 0.5 * 4 = 4, G_0 = 1 + 0.5 * 4 = 3
    v = linear(3, SGD(0.1), gamma=0.5, method="monte-carlo")
    i = np.eye(3)
    v.learn(i[0], 1.0, i[1])
    v.learn(i[1], 2.0, i[2])
    assert not v.w.any()
    v.learn(i[2], 4.0, i[0], terminated=True)
    np.testing.assert_allclose(v.w, [0.3, 0.4, 0.4])


# --- against second implementations -----------------------------------------------------------------------------------


def td_lambda_by_the_specification(A, B, data, gamma, lam, step):
    """TD(lambda) on the two-layer network, written with `twolayer`; step(u_A, u_B) -> changes of A and B."""
    z_A, z_B, deltas = np.zeros_like(A), np.zeros_like(B), []
    for s, r, s_next, terminated, truncated in zip(*data, strict=True):
        v_next = 0.0 if terminated else twolayer.forward(s_next, A, B).yhat[0]
        v, grad_A, grad_B = twolayer.value_gradients(s, A, B)
        delta = r + gamma * v_next - v
        z_A, z_B = gamma * lam * z_A + grad_A, gamma * lam * z_B + grad_B
        change_A, change_B = step(delta * z_A, delta * z_B)
        A, B = A + change_A, B + change_B
        if terminated or truncated:
            z_A, z_B = np.zeros_like(A), np.zeros_like(B)
        deltas.append(delta)
    return np.array(deltas), A, B, z_A, z_B


class TextbookAdam:
    """Adam on a list of arrays, from the paper's algorithm 1; ascends."""

    def __init__(self, alpha, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self.alpha, self.beta1, self.beta2, self.epsilon, self.t = alpha, beta1, beta2, epsilon, 0
        self.m, self.v = [0.0, 0.0], [0.0, 0.0]

    def __call__(self, *us):
        self.t += 1
        changes = []
        for l, u in enumerate(us):
            self.m[l] = self.beta1 * self.m[l] + (1 - self.beta1) * u
            self.v[l] = self.beta2 * self.v[l] + (1 - self.beta2) * u**2
            m_hat, v_hat = self.m[l] / (1 - self.beta1**self.t), self.v[l] / (1 - self.beta2**self.t)
            changes.append(self.alpha * m_hat / (np.sqrt(v_hat) + self.epsilon))
        return changes


@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        (SGD({"A": 0.01, "B": 0.003}), lambda u_A, u_B: (0.01 * u_A, 0.003 * u_B)),
        (Adam(0.005), TextbookAdam(0.005)),  # receives delta z
    ],
    ids=["SGD", "Adam"],
)
def test_td_lambda_equals_the_specification(optimizer, step, lam):
    if isinstance(step, TextbookAdam):
        step = TextbookAdam(step.alpha)
    net = Network((3, 8, 1), bias=False, dtype="float64")
    data = stream(400)
    v = ValueFunction(net, optimizer, gamma=0.95, lam=lam, seed=2)
    (A, _), (B, _) = net.unpack(v.w.copy())
    deltas, A, B, z_A, z_B = td_lambda_by_the_specification(A, B, data, 0.95, lam, step)
    np.testing.assert_allclose(v.learn_stream(*data), deltas, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(v.w, net.pack([(A, None), (B, None)]), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(v.trace, net.pack([(z_A, None), (z_B, None)]), rtol=1e-10, atol=1e-12)
    assert np.abs(v.w - net.init(2)).max() > 0.01


def n_step_by_brute_force(w, episodes, gamma, n, alpha):
    """Linear n-step TD from the definition of the return; n larger than every episode is Monte Carlo.

    G_t = sum_{k < m} gamma^k r_{t+k+1} + gamma^m v(s_{t+m}), m = n or what is left of the episode. At an ending the
    states that still wait are updated oldest first, with the value of the final observation from before.
    """
    for states, rewards, terminated in episodes:
        length = len(rewards)
        for now in range(1, length + 1):
            v_now = 0.0 if terminated and now == length else w @ states[now]
            waiting = range(max(0, now - n), now) if now == length else range(now - n, now - n + 1) if now >= n else ()
            for t in waiting:
                g = sum(gamma**k * rewards[t + k] for k in range(now - t)) + gamma ** (now - t) * v_now
                w = w + alpha * (g - w @ states[t]) * states[t]
    return w


def episodes_of(lengths, seed):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n + 1, 3)), rng.normal(size=n), bool(rng.random() < 0.5)) for n in lengths]


def transitions_of(episodes):
    for states, rewards, terminated in episodes:
        for t, r in enumerate(rewards):
            last = t == len(rewards) - 1
            yield states[t], r, states[t + 1], last and terminated, last and not terminated


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    n=st.integers(1, 14),
    gamma=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_n_step_equals_brute_force_on_random_episodes(lengths, n, gamma, seed):
    episodes = episodes_of(lengths, seed)
    v = linear(3, SGD(0.05), gamma=gamma, method="n-step", n=n)
    v.w[:] = 1.0, -1.0, 0.5
    expected = n_step_by_brute_force(v.w.copy(), episodes, gamma, n, 0.05)
    for transition in transitions_of(episodes):
        v.learn(*transition)
    np.testing.assert_allclose(v.w, expected, rtol=1e-10, atol=1e-12)


def test_monte_carlo_equals_brute_force_on_episodes_longer_than_its_first_memory():
    # The memory starts with room for 256 states and doubles; the ring wraps before and after it grows.
    episodes = episodes_of([1, 200, 300, 5, 600, 255, 256, 257, 1100, 2], seed=0)
    v = linear(3, SGD(0.001), gamma=0.9, method="monte-carlo")
    w = n_step_by_brute_force(np.zeros(3), episodes, 0.9, 10**6, 0.001)
    columns = [np.array(column) for column in zip(*transitions_of(episodes), strict=True)]
    v.learn_stream(*columns)
    np.testing.assert_allclose(v.w, w, rtol=1e-9)


@pytest.mark.parametrize("hidden", ["relu", "tanh"])
def test_special_cases_of_the_methods_agree(hidden):
    # n = 1 is TD(0); n beyond the episodes is Monte Carlo.
    net, data = Network((3, 8, 1), hidden, dtype="float64"), stream(300)

    def learned(**options):
        v = ValueFunction(net, SGD(0.01), gamma=0.9, seed=1, **options)
        v.learn_stream(*data)
        return v.w

    np.testing.assert_allclose(learned(method="n-step", n=1), learned(lam=0.0), rtol=1e-12)
    np.testing.assert_allclose(learned(method="n-step", n=300), learned(method="monte-carlo"), rtol=1e-12)
    assert not np.allclose(learned(method="monte-carlo"), learned(lam=0.0), rtol=1e-3)


@pytest.mark.parametrize("terminated", [True, False])
def test_td_1_is_monte_carlo_for_a_small_step(terminated):
    # Offline, TD(1) changes w by alpha sum_t (G_t - v(s_t)) s_t; online it differs by a share of about alpha.
    ((states, rewards, _),) = episodes_of([30], seed=3)
    w = np.array([0.5, -0.2, 0.1])
    g, expected = 0.0 if terminated else w @ states[-1], np.zeros(3)
    for t in reversed(range(30)):
        g = rewards[t] + 0.9 * g
        expected += (g - w @ states[t]) * states[t]
    for options in ({"lam": 1.0}, {"method": "monte-carlo"}):
        v = linear(3, SGD(1e-7), **options)
        v.w[:] = w
        for transition in transitions_of([(states, rewards, terminated)]):
            v.learn(*transition)
        np.testing.assert_allclose((v.w - w) / 1e-7, expected, rtol=1e-4)


# --- online, in a stream, in several streams --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        *((SGD(0.01), dtype) for dtype in ("float64", "float32")),
        (Momentum(0.001, clip_norm=1.0), "float64"),
        pytest.param(Momentum(0.001, clip_norm=1.0), "float32", marks=pytest.mark.full),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("method", METHODS)
def test_one_call_for_a_stream_is_a_call_for_each_transition(method, optimizer, dtype):
    # ... bit for bit, in pieces too; and looking at the norms changes nothing.
    net, data = Network((3, 8, 1), dtype=dtype), stream(600, dtype=dtype)
    one, many, looking = (ValueFunction(net, optimizer, seed=4, **METHODS[method]) for _ in range(3))
    looking.norms_every = 7
    deltas = [one.learn(*transition) for transition in zip(*data, strict=True)]
    np.testing.assert_array_equal(many.learn_stream(*[c[:250] for c in data]), deltas[:250])
    np.testing.assert_array_equal(many.learn_stream(*[c[250:] for c in data]), deltas[250:])
    np.testing.assert_array_equal(looking.learn_stream(*data), deltas)
    for other in (many, looking):
        for name, array in one.state_dict()[0].items():
            if name != "stats":
                np.testing.assert_array_equal(other.state_dict()[0][name], array, err_msg=name)
    assert one.n_transitions == 600


@pytest.mark.parametrize("method", METHODS)
def test_streams_have_traces_of_their_own(method):
    # With alpha = 0 nothing joins the streams but their traces and memories: each is as if it were alone.
    net = Network((3, 8, 1), dtype="float64")
    data = [stream(50, seed=k) for k in range(3)]
    together = ValueFunction(net, SGD(0.0), streams=3, **METHODS[method])
    for t in range(50):
        for k in (2, 0, 1):
            together.learn(*[column[t] for column in data[k]], stream=k)
    arrays = together.state_dict()[0]
    for k in range(3):
        alone = ValueFunction(net, SGD(0.0), **METHODS[method])
        alone.learn_stream(*data[k])
        np.testing.assert_array_equal(together.traces[k], alone.trace)
        np.testing.assert_array_equal(arrays["span"][k], alone.state_dict()[0]["span"][0])
        if method != "td":
            np.testing.assert_array_equal(arrays[f"queue_{k}"], alone.state_dict()[0]["queue_0"])


@pytest.mark.parametrize("method", METHODS)
def test_a_learner_among_neighbours_learns_as_alone(method):
    net = Network((3, 8, 1), dtype="float64")
    learners = [ValueFunction(net, SGD(0.01), seed=k, **METHODS[method]) for k in range(3)]
    data = [stream(100, seed=k) for k in range(3)]
    for t in range(100):
        for v, columns in zip(learners, data, strict=True):
            v.learn(*[column[t] for column in columns])
    for k, v in enumerate(learners):
        alone = ValueFunction(net, SGD(0.01), seed=k, **METHODS[method])
        alone.learn_stream(*data[k])
        np.testing.assert_array_equal(v.w, alone.w)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_next_episode_does_not_reach_back(method, terminated):
    # After an ending nothing of the past is left: what comes next is learned as by one who starts with these weights.
    net = Network((3, 8, 1), dtype="float64")
    s, r, s_next, _, _ = stream(40)
    ended = np.arange(40) == 19
    v = ValueFunction(net, SGD(0.01), **METHODS[method])
    v.learn_stream(s[:20], r[:20], s_next[:20], ended[:20] & terminated, ended[:20])
    fresh = ValueFunction(net, SGD(0.01), **METHODS[method])
    fresh.w[:] = v.w
    for learner in (v, fresh):
        learner.learn_stream(s[20:], r[20:], s_next[20:], ended[20:])
    np.testing.assert_array_equal(v.w, fresh.w)
    np.testing.assert_array_equal(v.trace, fresh.trace)


def test_cutting_the_trace_forgets_the_past_of_one_stream():
    v = linear(3, SGD(0.1), lam=1.0, streams=2)
    v.learn([1, 0, 0], 0.0, [0, 1, 0], stream=0)
    v.learn([1, 0, 0], 0.0, [0, 1, 0], stream=1)
    v.cut_trace(1)
    assert v.traces.tolist() == [[1, 0, 0], [0, 0, 0]]
    v = linear(3, SGD(0.1), method="monte-carlo")
    v.learn([1, 0, 0], 0.0, [0, 1, 0])
    v.cut_trace()
    v.learn([0, 1, 0], 1.0, [0, 0, 1], terminated=True)
    np.testing.assert_allclose(v.w, [0, 0.1, 0])


# --- what the log shows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 1), (3, 8, 1), (3, 4, 4, 4, 4, 1)])
def test_norms_are_those_of_the_gradient_the_trace_and_the_applied_update(sizes, bias):
    net = Network(sizes, "tanh", bias=bias, dtype="float64")
    v = ValueFunction(net, Adam(0.01), gamma=0.9, lam=0.8)
    v.norms_every = 3
    s, r, s_next, _, _ = stream(9)
    sums, deltas = dict.fromkeys(("grad_norm", "trace_norm", "update_ratio"), 0.0), []
    for t in range(9):
        before = v.w.copy()
        deltas.append(v.learn(s[t], r[t], s_next[t]))
        if t % 3 == 0:  # transitions 0, 3 and 6 are sampled
            lengths = {
                "grad_norm": net.layer_norms(net.gradient(before, s[t])),
                "trace_norm": net.layer_norms(v.trace),
                "update_ratio": {
                    name: length / net.layer_norms(v.w)[name] for name, length in net.layer_norms(v.w - before).items()
                },
            }
            sums = {tag: np.array(list(lengths[tag].values())) / 3 + total for tag, total in sums.items()}
    seen = v.diagnostics()
    for tag, means in sums.items():
        assert [seen[f"{tag}/{name}"] for name in net.layer_names] == pytest.approx(means.tolist(), rel=1e-12), tag
    assert seen["td_error/mean"] == pytest.approx(np.mean(deltas))
    assert seen["td_error/rms"] == pytest.approx(np.sqrt(np.mean(np.square(deltas))))
    weights = {f"weight_norm/{name}": length for name, length in net.layer_norms(v.w).items()}
    assert {tag: seen[tag] for tag in weights} == pytest.approx(weights)
    assert set(v.diagnostics()) == set(weights)  # the sums start anew


def test_the_norm_of_the_trace_at_an_ending_is_from_before_the_cut():
    # z = 0.45 * (1, 0) + (0, 1): length sqrt(1 + 0.2025)
    v = linear(2, SGD(0.1), lam=0.5)
    v.learn([1, 0], 0.0, [0, 1])
    v.norms_every = 1
    v.learn([0, 1], 1.0, [1, 0], terminated=True)
    assert v.diagnostics()["trace_norm/W1"] == pytest.approx(np.sqrt(1.2025))


@pytest.mark.parametrize("method", ["n-step", "monte-carlo"])
def test_other_methods_report_the_gradient_at_the_states_they_update(method):
    # Linear: the gradient is the state. States of lengths 5, 13, 1 in one episode, each updated once: mean 19/3.
    v = linear(2, SGD(0.01), **METHODS[method])
    v.norms_every = 1
    states = np.array([[3.0, 4.0], [5.0, 12.0], [0.0, 1.0]])
    v.learn_stream(states, [1.0, 1.0, 1.0], states, [False, False, True])
    seen = v.diagnostics()
    assert seen["grad_norm/W1"] == pytest.approx(19 / 3)
    assert "trace_norm/W1" not in seen


# --- in the long run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_time_limit_does_not_shorten_the_return(method):
    # One state, r = 1 for ever, gamma = 0.9, cut every 5 steps: v = 1 / (1 - 0.9) = 10, and not
    # 1 + 0.9 + ... + 0.9^4 = 4.0951.
    v = linear(1, SGD(0.1), **METHODS[method])
    ones = np.ones((5000, 1))
    v.learn_stream(ones, ones[:, 0], ones, np.zeros(5000), np.arange(5000) % 5 == 4)
    assert v.predict([1.0]) == pytest.approx(10.0, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_termination_does(method):
    # The same, terminated every 5 steps, and the step in the state: v(t) = (1 - 0.9^(5-t)) / 0.1.
    v = linear(5, SGD(0.1), **METHODS[method])
    s = np.tile(np.eye(5), (1000, 1))
    v.learn_stream(s, np.ones(5000), np.roll(s, -1, axis=0), np.arange(5000) % 5 == 4)
    np.testing.assert_allclose(v.predict(np.eye(5)), (1 - 0.9 ** np.arange(5, 0, -1)) / 0.1, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_five_state_random_walk(method):
    # Sutton & Barto 2018, example 6.2: from the middle, left or right, reward 1 at the right end: v = 1/6, ..., 5/6.
    # alpha_t = 0.5 / (1 + t / 400) meets Robbins and Monro's conditions; at the end it is 0.0007, and a return with
    # standard deviation 1/2 then leaves about sqrt(0.0007 / 2) / 2 = 0.01 of noise.
    rng, states, place = np.random.default_rng(0), [], 2
    for move in rng.choice([-1, 1], 300_000):
        states.append((place, place + move))
        place = place + move if 0 <= place + move <= 4 else 2
    place, after = np.array(states).T
    ended = (after < 0) | (after > 4)
    v = linear(5, SGD(0.5, schedule=InverseTime(400)), gamma=1.0, **METHODS[method])
    v.learn_stream(np.eye(5)[place], after > 4, np.eye(5)[np.clip(after, 0, 4)], ended)
    np.testing.assert_allclose(v.predict(np.eye(5)), np.arange(1, 6) / 6, atol=0.03)


# --- what is refused --------------------------------------------------------------------------------------------------


def learned(v):
    """All that a value function has learned, but in its memory only the states that await their return."""
    arrays = {name: array.copy() for name, array in v.state_dict()[0].items() if not name.startswith("queue")}
    for i, (memory, (start, n)) in enumerate(zip(v._queues, v._span, strict=True)):
        arrays[f"waiting {i}"] = np.roll(memory, -start, axis=0)[:n]
    return arrays


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


HUGE = np.float32(3e38)
#: What refuses: the transition (s, r, s_next, terminated, truncated), and how much larger the weights are then.
REFUSED = {
    "state": (([np.nan, 0, 0], 1.0, [0, 0, 0], False, False), 1),
    "next state": (([0, 0, 0], 1.0, [0, 0, np.inf], False, False), 1),
    "terminal state": (([0, 0, 0], 1.0, [np.nan, 0, 0], True, False), 1),
    "reward": (([0, 0, 0], -np.inf, [0, 0, 0], False, True), 1),
    "value": (([HUGE, HUGE, -HUGE], 1.0, [0, 0, 0], True, False), 1e9),
    "next value": (([0, 0, 0], 1.0, [HUGE, -HUGE, HUGE], False, True), 1e9),
}


# Each pair of a method and an optimizer is compiled on its own: three kinds of memory, and in full every optimizer.
@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        pytest.param(m, o, marks=() if o in ("sgd", "adam") or (m, o) == ("td", "intentional") else pytest.mark.full)
        for m in METHODS
        for o in OPTIMIZERS
        if m == "td" or o in ("sgd", "adam", "intentional")
    ],
)
def test_a_refused_update_leaves_everything_as_it_was(method, optimizer):
    v, twin = (
        ValueFunction(
            Network((3, 5, 1), "sigmoid"), OPTIMIZERS[optimizer](), streams=2, init="lecun_normal", **METHODS[method]
        )
        for _ in range(2)
    )
    data = stream(40, dtype=np.float32)
    for learner in (v, twin):
        learner.norms_every = 1
        learner.learn_stream(*data, stream=1)
    weights = v.w.copy()
    for name, (transition, factor) in REFUSED.items():
        v.w, before = weights, learned(v)
        v.w *= np.float32(factor)
        if factor > 1:
            v.w[-6:] = HUGE  # the layer behind the sigmoid, where it overflows if two units are on
        before["w"] = v.w.copy()
        with pytest.raises((DivergenceError, ValueError), match=f"transition {v.n_transitions + 1}"):
            v.learn(*transition, stream=1)
        same(learned(v), before)
        assert np.isfinite(before["scalars"]).all(), name
    v.w = weights
    again = stream(40, seed=1, dtype=np.float32)
    np.testing.assert_array_equal(v.learn_stream(*again, stream=1), twin.learn_stream(*again, stream=1))
    same(learned(v), learned(twin))


@pytest.mark.parametrize("method", ["n-step", "monte-carlo"])
@pytest.mark.parametrize("ended", [False, True])
def test_a_return_that_overflows_is_refused_and_can_be_tried_again(method, ended):
    # float32 ends at 3.4e38: each TD error is finite, and the return 2e38 + 2e38 is not.
    settings = {**METHODS[method], "n": 2} if method == "n-step" else METHODS[method]
    v, twin = (ValueFunction(Network((2, 1)), SGD(0.1), 1.0, **settings) for _ in range(2))
    if method == "monte-carlo" and not ended:
        pytest.skip("Monte Carlo learns at an ending")
    for learner in (v, twin):
        learner.learn([1, 0], 2e38, [0, 1])
    before = learned(v)
    for _ in range(3):
        with pytest.raises(DivergenceError, match="transition 2 "):
            v.learn([0, 1], 2e38, [0, 0], terminated=ended)
        same(learned(v), before)
    for learner in (v, twin):  # 2e38 - 2e38: nothing is wrong with that
        learner.learn([0, 1], -2e38, [0, 0], terminated=ended)
    same(learned(v), learned(twin))


@pytest.mark.parametrize("method", ["n-step", "monte-carlo"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", pytest.param("intentional", marks=pytest.mark.full)])
def test_of_many_updates_at_an_ending_all_are_made_or_none(method, optimizer):
    # The oldest state's update is fine and leaves weights so large that the value of the next one is infinite.
    v = ValueFunction(Network((2, 1), bias=False), OPTIMIZERS[optimizer](1e37), 1.0, **METHODS[method])
    v.norms_every = 1
    v.learn([1, 1], 0.0, [0, 1])
    before = learned(v)
    with pytest.raises(DivergenceError, match="transition 2 "):
        v.learn([1e3, 1e3], 10.0, [0, 1], truncated=True)
    same(learned(v), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "place"), [("s", (6, 2)), ("s_next", (6, 0)), ("r", (6,)), ("s_next", (0, 1))])
def test_a_stream_that_is_not_finite_is_refused_by_the_name_of_the_array_and_the_row(method, bad, name, place):
    data = dict(zip(("s", "r", "s_next", "terminated", "truncated"), stream(12), strict=True))
    v, twin = (ValueFunction(Network((3, 4, 1), dtype="float64"), Adam(), **METHODS[method]) for _ in range(2))
    for learner in (v, twin):
        learner.learn_stream(*stream(5, seed=3))
    data["terminated"][place[0]] = (
        name == "s_next"
    )  # a terminal state is not asked for its value, and yet it must be finite
    data[name][place] = bad
    entry = ", ".join(map(str, place))
    expected = rf"{name}\[{entry}\] is {bad} at transition {5 + place[0] + 1}; expected a finite number$"
    with pytest.raises(ValueError, match=expected):
        v.learn_stream(**data)
    twin.learn_stream(**{part: array[: place[0]] for part, array in data.items()})
    same(learned(v), learned(twin))
