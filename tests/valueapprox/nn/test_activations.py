"""What the activations of a whole network's tests do not show: how exact they are, and what becomes of NaN."""

import numpy as np
import pytest

from valueapprox import Network
from valueapprox.nn.activations import tanh_of_float32

UP_TO = {"float32": 4.5, "float64": 2.0}  # units in the last place


@pytest.mark.parametrize("dtype", UP_TO)
def test_tanh_is_exact_to_a_few_units_in_the_last_place(dtype):
    small = 10.0 ** np.linspace(-8, 1, 50_001)
    x = np.concatenate([np.linspace(-12, 12, 100_001), small, -small, [np.inf, -np.inf]]).astype(dtype)
    net = Network((1, 1), output="tanh", bias=False, dtype=dtype)
    found = net.forward(np.ones(1, dtype), x[:-2, None])[:, 0]
    exact = np.tanh(x[:-2].astype(np.longdouble))
    ulp = np.spacing(np.abs(exact).astype(dtype))
    assert np.max(np.abs(found - exact) / ulp) < UP_TO[dtype]
    assert np.abs(found).max() <= 1.0


def test_tanh_keeps_nan_and_takes_infinity():
    psi = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
    x = np.empty(4, np.float32)
    tanh_of_float32(psi, x, np.uint64(0), np.uint64(4))
    np.testing.assert_array_equal(x, np.array([np.nan, 1.0, -1.0, 0.0], np.float32))
