"""Named random streams: different where the name differs, the same in every process."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from valueapprox.seeding import generator_from, generator_state, seed_for, sequence

NAMES = [
    *((seed, purpose, i) for seed in (0, 1, 2**31, 2**70) for purpose in ("environment", "policy") for i in range(4)),
    (0, "weights"),
    (1, "weights"),
    (0, "restart", 0, 0),
    (0, "restart", 0, 1),
    (0, "restart", 1, 0),
    (0, "environment", 0, 0),
]


def test_streams_are_pairwise_different():
    draws = [np.random.default_rng(sequence(*name)).random(100) for name in NAMES]
    for a, b in itertools.combinations(draws, 2):
        assert not np.isin(a, b).any()
    assert len({seed_for(*name) for name in NAMES}) == len(NAMES)


def test_streams_are_not_those_of_the_bare_seed():
    assert np.random.default_rng(sequence(0, "policy", 0)).random() != np.random.default_rng(0).random()


def test_a_seed_for_a_reset_fits_into_32_bits():
    seeds = [seed_for(5, "environment", i) for i in range(50)]
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)


def test_the_same_name_is_the_same_stream_in_another_process():
    # str hashes differ from process to process; names must not go through them
    code = "from valueapprox.seeding import seed_for; print(seed_for(7, 'environment', 3), seed_for(7, 'policy'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(seed_for(7, "environment", 3)), str(seed_for(7, "policy"))]


@pytest.mark.parametrize("draw", [lambda rng: rng.random(), lambda rng: rng.integers(10), lambda rng: rng.normal()])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_generator_s_state_goes_through_json(draw, n):
    rng = np.random.default_rng(sequence(1, "policy"))
    for _ in range(n):
        draw(rng)
    again = generator_from(json.loads(json.dumps(generator_state(rng))))
    assert [draw(again) for _ in range(20)] == [draw(rng) for _ in range(20)]


def test_a_state_is_a_copy():
    rng = np.random.default_rng(0)
    state = generator_state(rng)
    expected = rng.random(3)
    rng.random(100)
    np.testing.assert_array_equal(generator_from(state).random(3), expected)
