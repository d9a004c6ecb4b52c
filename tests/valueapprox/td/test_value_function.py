"""ValueFunction at its borders: files, what it accepts, what it refuses, divergence, interpreted kernels."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from valueapprox import (
    SGD,
    Adam,
    CheckpointError,
    CosineDecay,
    DivergenceError,
    LinearDecay,
    Momentum,
    Network,
    ValueFunction,
    checkpoint,
)

METHODS = {"td": {"lam": 0.9}, "n-step": {"method": "n-step", "n": 3}, "monte-carlo": {"method": "monte-carlo"}}
OPTIMIZERS = [
    SGD((0.01, 0.02), schedule=LinearDecay(80)),
    Momentum(0.001, schedule=CosineDecay(80, 0.5), clip_norm=1.0),
    Momentum({"A": 1e-3, "B": 1e-4}),
    Adam(),
]


def value_function(**options):
    return ValueFunction(Network((3, 8, 1), dtype="float64"), **{"lam": 0.9, **options})


def stream(n_steps, seed=0):
    rng = np.random.default_rng(seed)
    s, r = rng.normal(size=(n_steps + 1, 3)), rng.normal(size=n_steps)
    kind = rng.integers(0, 12, n_steps)
    return s[:-1], r, s[1:], kind == 0, kind == 1


def assert_equal_state(v, other):
    arrays, settings = v.state_dict()
    others, other_settings = other.state_dict()
    assert settings == other_settings
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(others[name], array, err_msg=name)
        assert others[name].dtype == array.dtype


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_learning_goes_on_from_a_file_bit_for_bit(method, optimizer, tmp_path):
    s, r, s_next, _, _ = stream(100)
    ended = np.isin(np.arange(100), (20, 90))  # saved at 50, in the middle of an episode
    v = ValueFunction(
        Network((3, 8, 1), "tanh", layer_norm=True, dtype="float64"), optimizer, streams=2, **METHODS[method]
    )
    v.norms_every = 4
    v.learn_stream(s[:10], r[:10], s_next[:10], ended[:10], stream=0)
    v.learn_stream(s[10:50], r[10:50], s_next[10:50], ended[10:50], stream=1)
    v.save(tmp_path / "v.npz")
    again = ValueFunction.load(str(tmp_path / "v.npz"))
    assert_equal_state(v, again)
    for learner in (v, again):
        for k in (1, 0):
            learner.learn_stream(s[50:], r[50:], s_next[50:], ended[50:], stream=k)
    assert_equal_state(v, again)
    assert v.diagnostics() == again.diagnostics()
    assert again.n_transitions == 150


def test_a_memory_that_grew_is_saved(tmp_path):
    s, r, s_next, _, _ = stream(700)
    v = value_function(method="monte-carlo", lam=0.0)
    v.learn_stream(s[:600], r[:600], s_next[:600], np.zeros(600))
    v.save(tmp_path / "v.npz")
    again = ValueFunction.load(tmp_path / "v.npz")
    for learner in (v, again):
        learner.learn_stream(s[600:], r[600:], s_next[600:], np.arange(600, 700) == 699)
    assert_equal_state(v, again)
    assert np.abs(v.w - v.net.init(0)).max() > 0.01


def test_a_loaded_value_function_shares_nothing_with_the_first(tmp_path):
    v = value_function()
    v.save(tmp_path / "v.npz")
    again = ValueFunction.load(tmp_path / "v.npz")
    v.learn([1, 2, 3], 1.0, [1, 2, 3])
    np.testing.assert_array_equal(again.w, again.net.init(0))


def test_a_file_that_holds_something_else(tmp_path):
    checkpoint.save(tmp_path / "other.npz", {"w": np.ones(3)}, {"kind": "other"})
    with pytest.raises(CheckpointError, match="no value function"):
        ValueFunction.load(tmp_path / "other.npz")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        ValueFunction.load(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("w", np.zeros(40)),
        ("w", np.zeros(41, np.float32)),
        ("moments", np.zeros((1, 41))),
        ("span", np.zeros((2, 2), np.int64)),
        ("queue_0", np.zeros((256, 3))),  # kernels trust the array's width: d + 1 = 4
        ("queue_0", np.zeros((0, 4))),
        ("span", np.array([[500, 3]])),  # a place outside of the queue of 256
        ("span", np.array([[0, 300]])),
        ("span", np.array([[0, -1]])),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, array, tmp_path):
    v = value_function(method="monte-carlo", lam=0.0)
    arrays, settings = v.state_dict()
    checkpoint.save(tmp_path / "v.npz", {**arrays, name: array}, {"value_function": settings})
    with pytest.raises(CheckpointError, match=name):
        ValueFunction.load(tmp_path / "v.npz")


def test_numpy_scalars_in_the_settings_can_be_saved(tmp_path):
    v = value_function(gamma=np.float32(0.5), lam=np.float64(0.9))
    v.norms_every = np.int64(10)
    v.save(tmp_path / "v.npz")
    assert_equal_state(v, ValueFunction.load(tmp_path / "v.npz"))


# --- what is accepted -----------------------------------------------------------------------------------------------


def test_predict_gives_a_float_for_a_state_and_an_array_for_a_batch():
    v = value_function()
    batch = np.random.default_rng(0).normal(size=(5, 3))
    assert isinstance(v.predict(batch[0]), float)
    assert v.predict(batch).shape == (5,)
    assert v.predict(batch[:0]).shape == (0,)
    np.testing.assert_allclose(v.predict(batch), [v.predict(s) for s in batch], rtol=1e-12)


AS = {
    "lists": lambda a: a.tolist(),
    "tuples": lambda a: tuple(a.tolist()),
    "not contiguous": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "column order": np.asfortranarray,
    "big endian": lambda a: a.astype(">f8"),
    "read-only": lambda a: np.frombuffer(a.tobytes()).reshape(a.shape),
    "a view of bytes at an odd address": lambda a: np.frombuffer(b"x" + a.tobytes(), offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("form", AS)
def test_states_come_in_many_forms_and_none_is_changed_or_compiled_for(form):
    s, r, s_next, ended, cut = stream(20)
    v, other = value_function(), value_function()
    expected = v.learn_stream(s, r, s_next, ended, cut)
    v.learn(s[0], 1.0, s_next[0])
    kernels = v._learn_one[0].func, v._learn_many
    compiled = [len(kernel.signatures) for kernel in kernels]
    given = [AS[form](s), AS[form](r), AS[form](s_next)]
    copies = [np.array(a) for a in given]
    np.testing.assert_array_equal(other.learn_stream(*given, ended.tolist(), cut.astype(int)), expected)
    other.learn(AS[form](s[0]), 1, AS[form](s_next[0]))
    np.testing.assert_array_equal(other.w, v.w)
    assert other.predict(AS[form](s[1])) == v.predict(s[1])
    for a, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(a, copy)
    # A kernel compiled anew takes ten seconds in the middle of learning.
    assert [len(kernel.signatures) for kernel in kernels] == compiled


@pytest.mark.parametrize("number", [float, int, np.float64, np.float32, np.int64, np.uint8, np.array])
def test_rewards_and_flags_are_python_numbers_or_those_of_numpy(number):
    s, _, s_next, _, _ = stream(4)
    v, other = value_function(), value_function()
    expected = [v.learn(s[t], 2.0, s_next[t], t == 2, t == 3) for t in range(4)]
    compiled = len(v._learn_one[0].func.signatures)
    flags = [np.bool_(False), np.bool_(True)]
    assert [other.learn(s[t], number(2), s_next[t], flags[t == 2], flags[t == 3]) for t in range(4)] == expected
    assert len(other._learn_one[0].func.signatures) == compiled


@pytest.mark.parametrize("reward", [None, "1.0", 1j, np.ones(2), np.complex128(1)])
def test_a_reward_that_is_no_number_is_refused(reward):
    s, _, s_next, _, _ = stream(1)
    with pytest.raises((TypeError, ValueError), match=r"^r h"):
        value_function().learn(s[0], reward, s_next[0])


def test_learning_changes_no_input():
    data = stream(50)
    copies = [column.copy() for column in data]
    v = value_function()
    v.learn_stream(*data)
    v.learn(data[0][0], 1.0, data[2][0])
    for column, copy in zip(data, copies, strict=True):
        np.testing.assert_array_equal(column, copy)


def test_weights_that_are_assigned_are_learned_from():
    v, fresh = value_function(), value_function(seed=7)
    v.w = fresh.w
    assert v.learn([1, 2, 3], 1.0, [3, 2, 1]) == fresh.learn([1, 2, 3], 1.0, [3, 2, 1])
    np.testing.assert_array_equal(v.w, fresh.w)


def test_nobody_touches_numpys_global_generator():
    before = repr(np.random.get_state())  # noqa: NPY002
    value_function(seed=3).learn_stream(*stream(10))
    assert repr(np.random.get_state()) == before  # noqa: NPY002


# --- what is refused ------------------------------------------------------------------------------------------------

OK = [1.0, 2.0, 3.0]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: v.learn([1, 2], 1.0, OK), r"^s has shape \(2,\); expected \(3,\)"),
        (lambda v: v.learn(OK, 1.0, [OK]), r"^s_next has shape \(1, 3\)"),
        (lambda v: v.learn(["1", "2", "3"], 1.0, OK), "^s holds"),
        (lambda v: v.learn(OK, 1.0, [1, 2, 3j]), "^s_next holds complex"),
        (lambda v: v.learn(None, 1.0, OK), "^s holds"),
        (lambda v: v.learn([1, [2], 3], 1.0, OK), "^s "),
        (lambda v: v.learn([1, NAN, 3], 1.0, OK), r"^s\[1\] is nan at transition 6"),
        (lambda v: v.learn(OK, 1.0, [1, 2, INF]), r"^s_next\[2\] is inf at transition 6"),
        (lambda v: v.learn(OK, 1.0, [-INF, 2, 3], terminated=True), r"^s_next\[0\] is -inf"),
        (lambda v: v.learn(OK, NAN, OK), "^r is nan at transition 6"),
        (lambda v: v.learn(OK, -INF, OK), "^r is -inf at transition 6"),
        (lambda v: v.learn(OK, "much", OK), r"^r\b"),
        (lambda v: v.learn(OK, None, OK), r"^r\b"),
        (lambda v: v.learn(OK, 1j, OK), r"^r\b"),
        (lambda v: v.learn(OK, [1.0, 2.0], OK), r"^r\b"),
        (lambda v: v.learn(OK, 1.0, OK, terminated="no"), "^terminated"),
        (lambda v: v.learn(OK, 1.0, OK, terminated=NAN), "^terminated"),
        (lambda v: v.learn(OK, 1.0, OK, truncated=[True, False]), "^truncated"),
        (lambda v: v.learn(OK, 1.0, OK, stream=1), "^stream is 1; expected a stream from 0 to 0"),
        (lambda v: v.learn(OK, 1.0, OK, stream=-1), "^stream is -1"),
        (lambda v: v.learn(OK, 1.0, OK, stream=0.5), "^stream is 0.5"),
        (lambda v: v.learn_stream([OK], [1.0], [OK], [0], stream=2), "^stream is 2"),
        (lambda v: v.learn_stream(OK, [1.0], [OK], [0]), r"^s has shape \(3,\); expected \(n, 3\)"),
        (lambda v: v.learn_stream([OK], [1.0], [OK, OK], [0]), r"^s_next has shape \(2, 3\); expected \(1, 3\)"),
        (lambda v: v.learn_stream([OK], [1.0, 2.0], [OK], [0]), r"^r has shape \(2,\); expected \(1,\)"),
        (lambda v: v.learn_stream([OK], ["1"], [OK], [0]), "^r holds"),
        (lambda v: v.learn_stream([OK], [1.0], [OK], [0, 1]), r"^terminated has shape \(2,\)"),
        (lambda v: v.learn_stream([OK], [1.0], [OK], [0], [0, 1]), r"^truncated has shape \(2,\)"),
        (lambda v: v.learn_stream([OK], [1.0], [OK], [2]), "^terminated"),
        (lambda v: v.learn_stream([OK], [1.0], [OK], [NAN]), "^terminated"),
        (lambda v: v.learn_stream([OK], [1.0], [OK], ["True"]), "^terminated"),
        (lambda v: v.learn_stream([OK], [NAN], [OK], [0]), r"^r\[0\] is nan at transition 6"),
        (lambda v: v.predict([1, 2]), r"^s has shape \(2,\)"),
        (lambda v: v.predict(["a", "b", "c"]), "^s holds"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(method, call, message):
    v = value_function(**{"lam": 0.0, **METHODS[method]})
    v.learn_stream(*(column[:5] for column in stream(5)))
    before = {name: array.copy() for name, array in v.state_dict()[0].items()}
    with pytest.raises((ValueError, TypeError), match=message):
        call(v)
    for name, array in v.state_dict()[0].items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_what_came_before_a_bad_transition_has_been_learned():
    s, r, s_next, ended, cut = stream(10)
    r[7] = NAN
    v, other = value_function(), value_function()
    with pytest.raises(ValueError, match=r"r\[7\] is nan at transition 8"):
        v.learn_stream(s, r, s_next, ended, cut)
    other.learn_stream(s[:7], r[:7], s_next[:7], ended[:7], cut[:7])
    assert_equal_state(v, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.01}, "^gamma is 1.01"),
        ({"gamma": -0.1}, "^gamma"),
        ({"gamma": NAN}, "^gamma is nan"),
        ({"gamma": "high"}, "^gamma"),
        ({"lam": 1.5}, "^lam is 1.5"),
        ({"lam": -1e-9}, "^lam"),
        ({"lam": NAN}, "^lam is nan"),
        ({"method": "tdd"}, "^method is 'tdd'; did you mean 'td'"),
        ({"method": "n-step"}, "^lam is 0.9; expected nothing, as n-step has n"),
        ({"method": "n-step", "lam": 0, "n": 0}, "^n is 0"),
        ({"method": "n-step", "lam": 0, "n": 2.5}, "^n is 2.5"),
        ({"method": "n-step", "lam": 0, "n": INF}, "^n is inf"),
        ({"method": "n-step", "lam": 0, "n": "many"}, "^n is many"),
        ({"streams": 0}, "^streams is 0"),
        ({"init": "he"[::-1]}, "^init is 'eh'"),
        ({"net": Network((3, 2))}, "^net has 2 outputs"),
        ({"net": Network((3, 1), output="softmax")}, "^output is softmax; expected linear"),
    ],
)
def test_settings_that_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ValueFunction(**{"net": Network((3, 8, 1)), "lam": 0.9, **options})


# --- divergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "state", "says"),
    [(1e200, 1e200, "a smaller step size helps"), (1.0, 1e308, "rewards must be too large"), (np.nan, 1.0, "is NaN")],
)
def test_a_smaller_step_size_is_advised_where_it_helps(weight, state, says):
    v = ValueFunction(Network((2, 1), bias=False, dtype="float64"), SGD(0.1))
    v.w[:] = weight
    with pytest.raises(DivergenceError, match=says) as error, np.errstate(all="ignore"):
        v.learn([state, state], 0.0, [0.0, 0.0])
    assert ("step size" in str(error.value)) == ("step size" in says)


@pytest.mark.parametrize("method", METHODS)
def test_an_infinite_td_error_is_an_error_and_moves_nothing(method):
    # v(s) = 1e200 * 1e200 overflows.
    v = ValueFunction(Network((1, 1), bias=False, dtype="float64"), SGD(0.1), **METHODS[method])
    v.learn_stream([[1.0], [2.0]], [1.0, 1.0], [[2.0], [3.0]], [0, 0])
    v.w[:] = 1e200
    before = {name: array.copy() for name, array in v.state_dict()[0].items()}
    with pytest.raises(DivergenceError, match=r"transition 3 .*largest weight 1e\+200"):
        v.learn([1e200], 1.0, [1.0])
    for name, array in v.state_dict()[0].items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("optimizer", [SGD(10.0), Momentum(10.0), Adam(1e308)], ids=["SGD", "Momentum", "Adam"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_learning_that_diverges_ends_in_a_divergence_error(dtype, optimizer):
    # v(s) = w, v(s') = 2 w, gamma = 1, r = 1: delta = 1 + w, and w grows without bound.
    v = ValueFunction(Network((1, 1), bias=False, dtype=dtype), optimizer, gamma=1.0, init="zeros")
    s = np.ones((2000, 1))
    with pytest.raises(DivergenceError) as error, np.errstate(all="ignore"):
        v.learn_stream(s, s[:, 0], 2 * s, np.zeros(2000))
    assert f"transition {v.n_transitions + 1} " in str(error.value)


def test_a_reward_too_large_for_float32_is_an_error():
    v = ValueFunction(Network((3, 8, 1)), SGD(0.1))
    before = v.w.copy()
    with pytest.raises(FloatingPointError, match="transition 1"):
        v.learn(OK, 1e300, OK)
    np.testing.assert_array_equal(v.w, before)


# --- interpreted ----------------------------------------------------------------------------------------------------

SCRIPT = """
import numpy as np
from valueapprox import SGD, Adam, InverseTime, Momentum, Network, RMSProp, ValueFunction
rng = np.random.default_rng(0)
s, r, kind = rng.normal(size=(41, 3)), rng.normal(size=40), rng.integers(0, 8, 40)
methods = [{"lam": 0.9}, {"method": "n-step", "n": 3}, {"method": "monte-carlo"}]
optimizers = [SGD(0.01, schedule=InverseTime(9)), Momentum(0.001, clip_norm=0.1), RMSProp(clip_layer_norm=0.1), Adam()]
hidden = ["relu", "tanh", "softplus", "elu", "sigmoid", "leaky_relu", "linear"]
values = []
for i, method in enumerate(methods):
    for k, optimizer in enumerate(optimizers):
        net = Network((3, *[4] * (1 + k % 2), 1), hidden[(4 * i + k) % 7], "tanh", bool(i), k > 1, "float64")
        v = ValueFunction(net, optimizer, **method)
        v.norms_every = 3
        values += v.learn_stream(s[:-1], r, s[1:], kind == 0, kind == 1).tolist()
        values += [*v.w.tolist(), v.predict(s[0]), *net.gradient(v.w, s[0]), *v.diagnostics().values()]
"""


def test_interpreted_equals_compiled():
    interpreted = subprocess.run(
        [sys.executable, "-c", SCRIPT + "print(*map(float.hex, map(float, values)))"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert interpreted.returncode == 0, interpreted.stderr
    compiled = {}
    exec(SCRIPT, compiled)
    np.testing.assert_allclose(
        compiled["values"], [float.fromhex(x) for x in interpreted.stdout.split()], rtol=1e-12, atol=1e-14
    )
