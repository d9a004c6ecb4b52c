"""Policies as heads of a network: log pi, entropy, their gradients and what is drawn, each against another way."""

import math
from functools import partial

import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats

from valueapprox.agents.heads import CATEGORIES, GAUSSIAN, policy_head

AT, BEHIND = 3, 2  # other numbers before and behind an example's outputs
KEY = np.uint64(20)
#: Chance that another key for the random numbers fails a test of a distribution.
CHANCE = 1e-6

DISCRETE = spaces.Discrete(4)
PAIRS = spaces.MultiDiscrete([2, 3, 4])
BITS = spaces.MultiBinary(3)
PLANE = spaces.Box(-1.0, 1.0, (3,))
SPACES = {"discrete": DISCRETE, "multidiscrete": PAIRS, "multibinary": BITS, "box": PLANE}
CATEGORICAL = ["discrete", "multidiscrete", "multibinary"]


class Case:
    """A head, random outputs for one example with foreign numbers around them, and an action of it."""

    def __init__(self, name, seed=0, dtype="float64"):
        rng = np.random.default_rng(seed)
        self.head = policy_head(SPACES[name])
        self.n = self.head.n_outputs
        self.x = rng.normal(0.0, 1.5, AT + self.n + BEHIND).astype(dtype)
        self.spread = rng.normal(-0.3, 0.5, self.head.n_spreads).astype(dtype)
        self.gaussian = name == "box"
        counts = np.ones(self.head.n_values) if self.gaussian else self.head.layout
        self.action = (rng.normal(0.0, 1.0, counts.size) if self.gaussian else rng.integers(counts)).astype(dtype)
        self.counts = counts.astype(int)

    def log_pi(self, x=None, spread=None):
        """(log pi, H, d) by the kernel."""
        x = self.x if x is None else x
        d = np.full_like(x, 7.0)
        spread = self.spread if spread is None else spread
        log_p, entropy = self.head.kernels["log_pi"](x, d, AT, self.head.layout, spread, self.action)
        return log_p, entropy, d

    def gradient(self, weight, entropy, before=0.0):
        """(d, spread gradient), which is added to `before`."""
        *_, d = self.log_pi()
        spread_gradient = np.full_like(self.spread, before)
        self.head.kernels["gradient_of"](
            self.x, d, AT, self.head.layout, self.spread, spread_gradient, self.action, weight, entropy
        )
        return d, spread_gradient

    def draws(self, n, greedy=False):
        """Actions (n, k), log pi (n,) of each, and how many numbers were drawn for them."""
        actions, log_probs, count = np.zeros((n, self.head.n_values), self.x.dtype), np.zeros(n), np.zeros(1, np.int64)
        for action, i in zip(actions, range(n), strict=True):
            log_probs[i] = self.head.kernels["draw_row"](
                self.x, AT, self.head.layout, self.spread, KEY, count, greedy, action
            )
        return actions, log_probs, int(count[0])

    def probabilities(self):
        """p of each value of each entry, by NumPy."""
        logits = np.split(self.x[AT : AT + self.n].astype(np.float64), np.cumsum(self.counts)[:-1])
        return [np.exp(part) / np.exp(part).sum() for part in logits]


# --- log pi, entropy, gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATEGORICAL)
def test_log_pi_and_entropy_of_categories(name):
    case = Case(name)
    log_p, entropy, _ = case.log_pi()
    parts = case.probabilities()
    assert log_p == pytest.approx(sum(math.log(p[int(a)]) for p, a in zip(parts, case.action, strict=True)), rel=1e-13)
    assert entropy == pytest.approx(sum(stats.entropy(p) for p in parts), rel=1e-13)


@pytest.mark.parametrize("name", CATEGORICAL)
def test_probabilities_of_all_actions_sum_to_1(name):
    case, total = Case(name), 0.0
    for action in np.ndindex(*case.counts):
        case.action = np.array(action, float)
        total += math.exp(case.log_pi()[0])
    assert total == pytest.approx(1.0, abs=1e-13)


def test_log_pi_and_entropy_of_a_gaussian():
    case = Case("box")
    log_p, entropy, _ = case.log_pi()
    entries = stats.norm(case.x[AT : AT + 3], np.exp(case.spread))
    assert log_p == pytest.approx(entries.logpdf(case.action).sum(), rel=1e-13)
    assert entropy == pytest.approx(entries.entropy().sum(), rel=1e-13)


def slope(function, at):
    """Central differences of a function of a vector, good to about 1e-10."""
    found, h = np.zeros_like(at), 1e-5
    for i in range(at.size):
        step = np.zeros_like(at)
        step[i] = h
        near = function(at + step) - function(at - step)
        found[i] = (8.0 * near - function(at + 2 * step) + function(at - 2 * step)) / (12.0 * h)
    return found


@pytest.mark.parametrize(("weight", "bonus"), [(1.0, 0.0), (0.0, 1.0), (-1.7, 0.3)])
@pytest.mark.parametrize("name", SPACES)
def test_gradients_are_central_differences(name, weight, bonus):
    def objective(case, x, spread):
        log_p, entropy, _ = case.log_pi(x, spread)
        return weight * log_p + bonus * entropy

    for seed in range(3):
        case = Case(name, seed)
        d, spread_gradient = case.gradient(weight, bonus, before=0.25)
        own = slice(AT, AT + case.n)
        by_outputs = slope(partial(objective, case, spread=case.spread), case.x)
        by_spread = slope(partial(objective, case, case.x), case.spread)
        np.testing.assert_allclose(d[own], by_outputs[own], rtol=0, atol=1e-9)
        np.testing.assert_allclose(spread_gradient, 0.25 + by_spread, rtol=0, atol=1e-9)
        assert (by_outputs[:AT] == 0.0).all()  # numbers of other examples have no part in it
        assert (d[:AT] == 7.0).all()
        assert (d[AT + case.n :] == 7.0).all()


def test_a_softmax_by_hand():
    # logits log 1, log 2, log 5: p = 1/8, 2/8, 5/8.  H = log 8 - (2 log 2 + 5 log 5) / 8
    case = Case("discrete")
    case.head = policy_head(spaces.Discrete(3))
    case.x[AT : AT + 3], case.action = np.log([1.0, 2.0, 5.0]), np.array([2.0])
    log_p, entropy, _ = case.log_pi()
    expected = math.log(8.0) - (2.0 * math.log(2.0) + 5.0 * math.log(5.0)) / 8.0
    assert log_p == pytest.approx(math.log(5.0 / 8.0))
    assert entropy == pytest.approx(expected)
    # d log pi(2) = (0, 0, 1) - p = (-1, -2, 3) / 8;  twice that
    assert case.gradient(2.0, 0.0)[0][AT : AT + 3] == pytest.approx([-0.25, -0.5, 0.75])
    # dH / dx_i = - p_i (log p_i + H)
    assert case.gradient(0.0, 1.0)[0][AT] == pytest.approx(-(math.log(1.0 / 8.0) + expected) / 8.0)


def test_a_gaussian_by_hand():
    # mu = 1, sigma = 2, a = 4: z = 1.5.  log pi = -1.125 - log 2 - 0.9189;  d mu = z / sigma = 0.75;  z^2 - 1 = 1.25
    case = Case("box")
    case.head = policy_head(spaces.Box(-1.0, 1.0, (1,)))
    case.x[AT], case.spread, case.action = 1.0, np.array([math.log(2.0)]), np.array([4.0])
    log_p, entropy, _ = case.log_pi()
    assert log_p == pytest.approx(-1.125 - math.log(2.0) - 0.5 * math.log(2.0 * math.pi))
    assert entropy == pytest.approx(math.log(2.0) + 0.5 * math.log(2.0 * math.pi * math.e))
    d, spread_gradient = case.gradient(1.0, 0.0)
    assert (d[AT], spread_gradient[0]) == (pytest.approx(0.75), pytest.approx(1.25))
    d, spread_gradient = case.gradient(0.0, 0.5)  # dH / d log sigma = 1
    assert (d[AT], spread_gradient[0]) == (0.0, pytest.approx(0.5))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_policy_that_has_decided_has_finite_gradients(dtype):
    case = Case("discrete", dtype=dtype)
    case.x[AT : AT + 4] = [0.0, 3e4, -3e4, 0.0]
    case.action[0] = 2.0
    log_p, entropy, _ = case.log_pi()
    assert (log_p, entropy) == (-6e4, 0.0)
    np.testing.assert_array_equal(case.gradient(1.0, 0.5)[0][AT : AT + 4], [0.0, -1.0, 1.0, 0.0])


@pytest.mark.parametrize("name", SPACES)
def test_float32_is_float64_rounded(name):
    single, double = Case(name, 1, "float32"), Case(name, 1, "float32")
    double.x, double.spread, double.action = (a.astype(np.float64) for a in (single.x, single.spread, single.action))
    np.testing.assert_allclose(single.log_pi()[:2], double.log_pi()[:2], rtol=2e-6)
    for a, b in zip(single.gradient(-0.7, 0.2), double.gradient(-0.7, 0.2), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


# --- drawing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATEGORICAL)
def test_actions_are_drawn_as_often_as_the_policy_says(name):
    # Pearson's statistic over all actions together, so that a dependence between entries would show as well.
    case, n = Case(name, 2), 40_000
    case.x *= 0.4  # no action that is so rare that the statistic's distribution is another one
    actions, log_probs, drawn = case.draws(n)
    assert drawn == n * case.head.n_values
    index = np.ravel_multi_index(actions.T.astype(int), case.counts)
    observed = np.bincount(index, minlength=math.prod(case.counts))
    expected = case.probabilities()[0]
    for p in case.probabilities()[1:]:
        expected = np.multiply.outer(expected, p)
    np.testing.assert_allclose(log_probs, np.log(expected.ravel())[index], rtol=1e-12)
    expected = n * expected.ravel()
    assert expected.min() > 5.0
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2(expected.size - 1).isf(CHANCE)


def test_actions_are_drawn_from_a_gaussian():
    case, n = Case("box", 2), 40_000
    actions, log_probs, drawn = case.draws(n)
    assert drawn == 2 * n * 3
    entries = stats.norm(case.x[AT : AT + 3], np.exp(case.spread))
    np.testing.assert_allclose(log_probs, entries.logpdf(actions).sum(axis=1), rtol=1e-9)
    z = (actions - entries.mean()) / entries.std()
    for j in range(3):
        assert stats.kstest(z[:, j], "norm").pvalue > CHANCE / 3
    # The mean of n products of independent normal numbers has a deviation of 1 / sqrt(n).
    bound = stats.norm.isf(CHANCE / 12) / math.sqrt(n)
    for products in (z[:, 0] * z[:, 1], z[:, 0] * z[:, 2], z[:, 1] * z[:, 2], z[1:, 0] * z[:-1, 0]):
        assert abs(products.mean()) < bound


@pytest.mark.parametrize("name", SPACES)
def test_log_pi_of_what_is_drawn(name):
    case = Case(name, 4)
    actions, log_probs, _ = case.draws(20)
    for action, log_prob in zip(actions, log_probs, strict=True):
        case.action = action
        assert case.log_pi()[0] == pytest.approx(log_prob, rel=1e-12)


@pytest.mark.parametrize("name", SPACES)
def test_greedy_takes_the_likeliest_and_draws_nothing(name):
    case = Case(name, 5)
    actions, log_probs, drawn = case.draws(2, greedy=True)
    best = case.x[AT : AT + 3] if case.gaussian else [int(p.argmax()) for p in case.probabilities()]
    assert drawn == 0
    assert (actions == best).all()
    case.action = actions[0]
    assert case.log_pi()[0] == pytest.approx(log_probs[0])


def test_greedy_breaks_ties_at_random():
    # Three of four share the maximum: a third each, within 5 standard deviations, which one key in 500,000 exceeds.
    case, n = Case("discrete"), 9_000
    case.x[AT : AT + 4] = [1.0, 0.0, 1.0, 1.0]
    often = np.bincount(case.draws(n, greedy=True)[0][:, 0].astype(int), minlength=4)
    assert often[1] == 0
    assert np.abs(often[[0, 2, 3]] - n / 3).max() < 5.0 * math.sqrt(n * 2.0 / 9.0)


# --- spaces ---------------------------------------------------------------------------------------------------------


def test_actions_as_spaces_have_them():
    assert policy_head(spaces.Discrete(3, start=-2)).decode(np.array([2.0])) == 0
    pair = policy_head(spaces.MultiDiscrete([2, 3], start=[5, -1]))
    assert (pair.n_outputs, pair.n_values, pair.n_spreads) == (5, 2, 0)
    np.testing.assert_array_equal(pair.decode(np.array([1.0, 2.0])), [6, 1])
    bits = policy_head(spaces.MultiBinary((2, 2)))
    assert (bits.n_outputs, bits.n_values) == (8, 4)
    np.testing.assert_array_equal(bits.decode(np.array([1.0, 0.0, 0.0, 1.0])), [[1, 0], [0, 1]])
    # 0 is the middle, 1 half the distance of the bounds; what lies outside is cut off
    box = policy_head(spaces.Box(np.float32([0.0, -2.0]), np.float32([4.0, 2.0])))
    assert (box.n_outputs, box.n_values, box.n_spreads) == (2, 2, 2)
    np.testing.assert_array_equal(box.decode(np.array([0.5, -3.0])), np.float32([3.0, -2.0]))


def test_other_spaces_are_refused():
    with pytest.raises(
        TypeError, match=r"action_space is Text.*; expected Discrete, MultiDiscrete, MultiBinary or Box"
    ):
        policy_head(spaces.Text(3))


def test_kinds_of_heads_have_the_same_kernels():
    assert set(CATEGORIES) == set(GAUSSIAN) == {"draw_row", "log_pi", "gradient_of"}
