"""Targets against their definitions: each return summed by hand, over random episodes with every kind of ending."""

import numpy as np
import pytest

from valueapprox.td import targets

GAMMA = 0.9


class Stretch:
    """T steps of n environments, cut into episodes at random: terminated, truncated, and open at the end."""

    def __init__(self, seed, T=23, n=5, dtype="float64", share=0.3):
        rng = np.random.default_rng(seed)
        self.shape = T, n
        self.r = rng.normal(size=(T, n)).astype(dtype)
        self.v_tm1 = rng.normal(size=(T, n)).astype(dtype)
        self.ended = rng.random((T, n)) < share
        terminated = self.ended & (rng.random((T, n)) < 0.5)
        # within an episode v_t is the value of the next row's state; at a cut, of a final observation of its own
        self.v_t = np.where(self.ended, rng.normal(size=(T, n)), np.roll(self.v_tm1, -1, axis=0)).astype(dtype)
        self.v_t[-1] = rng.normal(size=n)
        self.discount = np.where(terminated, 0.0, GAMMA).astype(dtype)
        self.rho = rng.exponential(size=(T, n)).astype(dtype)
        self.episodes = [(i, start, stop) for i in range(n) for start, stop in self._parts(i)]

    def _parts(self, i):
        stops = [*(np.flatnonzero(self.ended[:, i]) + 1), self.shape[0]]
        return [(a, b) for a, b in zip([0, *stops], stops, strict=False) if a < b]

    def each(self):
        """(environment, row, last row of its episode in the stretch)."""
        return [(i, k, stop - 1) for i, start, stop in self.episodes for k in range(start, stop)]

    def n_step(self, i, k, m):
        """The m-step return from row k, summed from its first reward on."""
        total, factor = 0.0, 1.0
        for j in range(k, k + m):
            total += factor * self.r[j, i]
            factor *= self.discount[j, i]
        return total + factor * self.v_t[k + m - 1, i]


def close(found, expected, dtype="float64"):
    np.testing.assert_allclose(
        found, expected, rtol=1e-10 if dtype == "float64" else 2e-4, atol=1e-10 if dtype == "float64" else 2e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_n_step_returns(n, dtype):
    x = Stretch(1, dtype=dtype)
    expected = np.zeros(x.shape)
    for i, k, last in x.each():
        expected[k, i] = x.n_step(i, k, min(n, last - k + 1))
    found = targets.n_step_returns(x.r, x.discount, x.v_t, x.ended, n)
    assert found.dtype == dtype
    close(found, expected, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_lambda_returns_are_mixtures_of_n_step_returns(lam, dtype):
    x = Stretch(2, dtype=dtype)
    expected = np.zeros(x.shape)
    for i, k, last in x.each():
        rest = last - k + 1  # rewards until the end
        mixed = sum((1 - lam) * lam ** (m - 1) * x.n_step(i, k, m) for m in range(1, rest))
        expected[k, i] = mixed + lam ** (rest - 1) * x.n_step(i, k, rest)
    found = targets.lambda_returns(x.r, x.discount, x.v_t, x.ended, lam)
    close(found, expected, dtype)
    # advantages are what these returns are above the values, where v_t is v_tm1 of the next row
    close(targets.gae(x.r, x.discount, x.v_tm1, x.v_t, x.ended, lam), expected - x.v_tm1, dtype)


@pytest.mark.parametrize(
    ("lam", "max_rho", "max_c"), [(1.0, 1.0, 1.0), (0.9, 2.0, 1.0), (0.0, 1.0, 0.5), (1.0, np.inf, np.inf)]
)
def test_vtrace_is_its_sum_over_products(lam, max_rho, max_c):
    x = Stretch(3)
    rho, c = np.minimum(max_rho, x.rho), lam * np.minimum(max_c, x.rho)
    v_s, advantages = np.zeros(x.shape), np.zeros(x.shape)
    for i, k, last in x.each():
        v_s[k, i] = x.v_tm1[k, i]
        for j in range(k, last + 1):
            weight = np.prod([x.discount[m, i] * c[m, i] for m in range(k, j)])
            delta = x.r[j, i] + x.discount[j, i] * x.v_t[j, i] - x.v_tm1[j, i]
            v_s[k, i] += weight * rho[j, i] * delta
    for i, k, last in x.each():
        following = x.v_t[k, i] if k == last else v_s[k + 1, i]
        advantages[k, i] = rho[k, i] * (x.r[k, i] + x.discount[k, i] * following - x.v_tm1[k, i])
    found = targets.vtrace(x.r, x.discount, x.v_tm1, x.v_t, x.ended, x.rho, lam, max_rho, max_c)
    close(found[0], v_s)
    close(found[1], advantages)


def test_vtrace_on_policy_is_the_lambda_return():
    x = Stretch(4)
    v_s, advantages = targets.vtrace(x.r, x.discount, x.v_tm1, x.v_t, x.ended, np.ones(x.shape), 1.0)
    close(v_s, targets.lambda_returns(x.r, x.discount, x.v_t, x.ended, 1.0))
    close(advantages, v_s - x.v_tm1)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_retrace_is_its_sum_over_products(lam):
    x = Stretch(5)
    rng = np.random.default_rng(6)
    q, v_t = rng.normal(size=x.shape), rng.normal(size=x.shape)  # q(s, a), and the expectation at the next state
    expected = np.zeros(x.shape)
    for i, k, last in x.each():
        expected[k, i] = q[k, i]
        for j in range(k, last + 1):
            weight = np.prod([x.discount[m, i] * lam * min(1.0, x.rho[m + 1, i]) for m in range(k, j)])
            expected[k, i] += weight * (x.r[j, i] + x.discount[j, i] * v_t[j, i] - q[j, i])
    close(targets.retrace(x.r, x.discount, q, v_t, x.ended, x.rho, lam), expected)


FUNCTIONS = {
    "n_step_returns": lambda x: targets.n_step_returns(x.r, x.discount, x.v_t, x.ended, 3),
    "lambda_returns": lambda x: targets.lambda_returns(x.r, x.discount, x.v_t, x.ended, 0.9),
    "gae": lambda x: targets.gae(x.r, x.discount, x.v_tm1, x.v_t, x.ended, 0.9),
    "vtrace": lambda x: np.stack(targets.vtrace(x.r, x.discount, x.v_tm1, x.v_t, x.ended, x.rho)),
    "retrace": lambda x: targets.retrace(x.r, x.discount, x.v_tm1, x.v_t, x.ended, x.rho, 0.9),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_of_another_episode_comes_in(name):
    x = Stretch(7)
    before = FUNCTIONS[name](x)
    i, start, stop = next((i, a, b) for i, a, b in x.episodes if a > 0 and b < x.shape[0])
    for array in (x.r, x.v_tm1, x.v_t, x.rho):
        array[start:stop, i] = 1e6
    changed = FUNCTIONS[name](x)
    untouched = np.ones(x.shape, bool)
    untouched[start:stop, i] = False
    assert np.array_equal(before[..., untouched], changed[..., untouched])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_behind_a_termination_counts_for_nothing_and_behind_a_cut_it_does(name):
    x = Stretch(8)
    before = FUNCTIONS[name](x)
    terminal = x.ended & (x.discount == 0)
    x.v_t[terminal] = 1e6
    assert np.array_equal(FUNCTIONS[name](x), before)
    cut = x.ended & (x.discount > 0)
    x.v_t[cut] += 1.0
    after = FUNCTIONS[name](x)
    assert (after[..., cut] != before[..., cut]).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda x: targets.gae(x.r[:3], x.discount, x.v_tm1, x.v_t, x.ended, 0.9),
            r"discount_t has shape \(23, 5\); expected",
        ),
        (lambda x: targets.gae(x.r[0], x.discount[0], x.v_tm1[0], x.v_t[0], x.ended[0], 0.9), r"expected \(T, n\)"),
        (
            lambda x: targets.gae(x.r, x.discount, x.v_tm1, x.v_t, x.ended * 1.0, 0.9),
            "ended_t is float64 .* expected booleans",
        ),
        (lambda x: targets.gae(x.r, x.discount, x.v_tm1, x.v_t, x.ended, 1.1), "lam is 1.1; expected a number in"),
        (lambda x: targets.n_step_returns(x.r, x.discount, x.v_t, x.ended, 0), "n is 0; expected a whole number"),
        (lambda x: targets.vtrace(x.r, x.discount, x.v_tm1, x.v_t, x.ended, -x.rho), "rho_tm1 has .* not negative"),
        (lambda x: targets.vtrace(x.r, x.discount, x.v_tm1, x.v_t, x.ended, x.rho, 1.0, 0.5), "max_c is 1.0; expected"),
        (lambda x: targets.retrace(x.r, x.discount, x.v_tm1, x.v_t, x.ended, -x.rho, 1.0), "rho_tm1 has"),
    ],
)
def test_what_does_not_fit_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call(Stretch(9))
