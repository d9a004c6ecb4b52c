"""What every control agent has to do: the same bits, saving, refusing."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from stream_agents import ACTORS, AGENTS, ALGORITHMS, PLAIN, assert_same, inputs, last_delta, life, live, make, snapshot

from valueapprox import SGD, DivergenceError, Intentional
from valueapprox.agents import StreamQ
from valueapprox.agents import layout as kernels
from valueapprox.checkpoint import CheckpointError
from valueapprox.optim import OPTIMIZERS as EVERY_OPTIMIZER


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", AGENTS)
def test_one_seed_gives_the_same_bits_and_another_seed_others(name, dtype):
    a, b, c = (make(name, dtype=dtype, seed=seed) for seed in (7, 7, 8))
    assert not np.array_equal(a.first.w, c.first.w)
    answers = [live(agent, life(60, dtype=dtype)) for agent in (a, b, c)]
    assert str(answers[0]) == str(answers[1]) != str(answers[2])
    assert_same(snapshot(a), snapshot(b))
    assert a.first.w.dtype == a.first.z.dtype == a.second.w.dtype == dtype
    assert all(np.isfinite(array).all() for array in a.state_dict().values())


@pytest.mark.parametrize("name", AGENTS)
def test_both_networks_start_from_weights_of_their_own(name):
    agent = make(name, hidden=(3,))
    if agent.second_name:
        assert not np.array_equal(agent.first.w[:9], agent.second.w[:9])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_float32_learns_what_float64_learns_to_its_precision(name):
    deltas = []
    for dtype in ("float32", "float64"):
        agent = make(name, dtype=dtype, **PLAIN)
        agent.first.w[:], agent.second.w[:] = make(name).first.w, make(name).second.w
        agent.start(np.ones(3, dtype))
        seen = np.array([[0.25 * t, 1.0, -1.0] for t in range(4)], dtype)
        deltas.append([last_delta(agent, "step", 1.0, s) for s in seen])
    np.testing.assert_allclose(*deltas, rtol=1e-3, atol=1e-5)


#: The optimizer that remembers most, for both networks; of the agents' own some remember less.
REMEMBER = {"optimizer": Intentional(0.1), "second_optimizer": Intentional(0.1)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("through", ["save", "state_dict"])
@pytest.mark.parametrize(("name", "optimizers"), [*((n, {}) for n in AGENTS), ("actor-critic", REMEMBER)])
def test_learning_goes_on_bit_for_bit_in_the_middle_of_an_episode(name, optimizers, through, dtype, tmp_path):
    settings = {"dtype": dtype, "time_limit": 30, "seed": 2, **optimizers}
    calls = life(80, seed=1, dtype=dtype)
    cut = next(i for i in range(40, 80) if calls[i][0] == calls[i - 1][0] == "step") + 1
    whole, parted, again = (make(name, **settings) for _ in range(3))
    whole.norms_every = parted.norms_every = again.norms_every = 3
    answers = live(whole, calls)
    live(parted, calls[:cut])
    live(again, life(17, seed=9, dtype=dtype))  # what it has learned so far must go without a trace
    assert np.any(parted.first.z) or "q" in name
    if through == "save":
        parted.save(tmp_path / "agent.npz")
        again.load(tmp_path / "agent.npz")
    else:
        again.restore(snapshot(parted))
    live(parted, life(10, seed=8, dtype=dtype))  # nor do the two share anything
    assert str(live(again, calls[cut:])) == str(answers[cut:])
    assert_same(snapshot(again), snapshot(whole))
    assert again.diagnostics() == whole.diagnostics()


@pytest.mark.parametrize("name", AGENTS)
def test_a_file_of_another_agent_is_refused_and_nothing_changed(name, tmp_path):
    make(name).save(tmp_path / "agent.npz")
    others = [make("q" if name != "q" and AGENTS[name][0] is not StreamQ else "sarsa"), make(name, hidden=(6,))]
    others.append(make(name, dtype="float32"))
    for other in others:
        live(other, life(5, dtype=other.first.w.dtype))
        before = snapshot(other)
        with pytest.raises(CheckpointError):
            other.load(tmp_path / "agent.npz")
        assert_same(snapshot(other), before)
    (tmp_path / "bad.npz").write_bytes((tmp_path / "agent.npz").read_bytes()[:-100])
    for path in ("bad.npz", "none.npz"):
        with pytest.raises(CheckpointError):
            make(name).load(tmp_path / path)


@pytest.mark.parametrize("name", AGENTS)
def test_half_a_state_is_refused_and_nothing_changed(name):
    agent, other = make(name), make(name, seed=5)
    live(other, life(10))
    before = snapshot(agent)
    for spoil in (lambda d: d.pop("second/stats"), lambda d: d.update({"second/here": np.zeros(3)})):
        state = snapshot(other)
        spoil(state)
        with pytest.raises((KeyError, ValueError), match="second/"):
            agent.restore(state)
        assert_same(snapshot(agent), before)


@pytest.mark.parametrize("name", AGENTS)
def test_a_start_without_an_end_clears_the_traces(name):
    agent, alone = make(name, **PLAIN), make(name, **PLAIN)
    live(agent, life(9, seed=1, ends=0.0))
    agent.start(np.ones(3))
    assert not np.any(agent.first.z)
    assert not np.any(agent.second.z)
    assert agent.memory[kernels.SCALAR_TRACE] == 0.0
    # What follows is what an agent with these weights learns that has never seen the episode that was left.
    alone.start(np.zeros(3))
    alone.restore(snapshot(agent))
    after = life(20, seed=2)
    assert str(live(agent, after)) == str(live(alone, after))
    np.testing.assert_array_equal(agent.first.w, alone.first.w)


@pytest.mark.parametrize("name", AGENTS)
def test_a_step_before_the_start_or_after_the_end_is_an_error_and_changes_nothing(name):
    agent = make(name)
    for calls in ([], [*life(5, ends=0.0), ("end", 1.0, np.ones(3), True)]):
        live(agent, calls)
        before = snapshot(agent)
        for call in (("step", 1.0, np.ones(3)), ("end", 1.0, np.ones(3), True), ("end", 1.0, np.ones(3), False)):
            with pytest.raises(RuntimeError, match="call start"):
                live(agent, [call])
        assert_same(snapshot(agent), before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", AGENTS)
def test_what_is_not_finite_is_an_error_with_the_step_and_changes_nothing(name, bad, dtype):
    agent, clean = make(name, time_limit=20, dtype=dtype), make(name, time_limit=20, dtype=dtype)
    calls = life(12, ends=0.0, dtype=dtype)
    with pytest.raises(ValueError, match=r"step 1\b"):
        agent.start(np.array([0.0, bad, 0.0], dtype))
    live(agent, calls)
    before = snapshot(agent)
    spoiled, ones = np.array([0.0, 1.0, bad], dtype), np.ones(3, dtype)
    for call, what in (
        (("step", 1.0, spoiled), "observation"),
        (("end", 1.0, spoiled, True), "observation"),
        (("end", 1.0, spoiled, False), "observation"),
        (("step", bad, ones), "reward"),
        (("end", bad, ones, True), "reward"),
        (("start", spoiled), "observation"),
    ):
        with pytest.raises(ValueError, match=rf"{what} is .*step 13\b"):
            live(agent, [call])
        assert_same(snapshot(agent), before)
    live(clean, calls)
    more = life(10, seed=5, dtype=dtype)[1:]
    assert str(live(agent, more)) == str(live(clean, more))
    assert_same(snapshot(agent), snapshot(clean))


@pytest.mark.parametrize(("name", "dtype"), [*((n, "float64") for n in ALGORITHMS), ("td", "float32")])
def test_divergence_is_an_error_at_the_step_where_it_shows(name, dtype):
    still = SGD(0.0)  # of the second network
    agent = make(name, dtype=dtype, optimizer=SGD(1e6), second_optimizer=still, **PLAIN | {"activation": "relu"})
    agent.start(np.ones(3, dtype))
    weights = []

    def learn():
        for _ in range(2000):
            weights[:] = [agent.first.w.copy(), agent.second.w.copy()]
            agent.step(1.0, np.array([1.0, -2.0, 3.0], dtype))

    with pytest.raises(DivergenceError, match="smaller step size") as error:
        learn()
    assert f"step {agent.n_steps + 1} " in str(error.value)
    np.testing.assert_array_equal(agent.first.w, weights[0])
    np.testing.assert_array_equal(agent.second.w, weights[1])


#: An agent is compiled for each optimizer; the learning of all is refused before the optimizer is called.
FULL = {False: (), True: (pytest.mark.full,)}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((n, None) for n in AGENTS),
        *(pytest.param("td", o, marks=FULL[o not in ("sgd", "obgd")]) for o in EVERY_OPTIMIZER),
    ],
)
def test_a_refused_step_leaves_everything_as_it_was(name, optimizer):
    # At weights of 3e38 the value of the next state is infinite in float32, and so is the TD error.
    own = {} if optimizer is None else {"optimizer": EVERY_OPTIMIZER[optimizer]()}
    agent, twin = (make(name, dtype="float32", time_limit=50, **own) for _ in range(2))
    first, *rest = life(30, ends=0.0, dtype=np.float32)
    for one in (agent, twin):
        one.norms_every = 1
        live(one, [first, *rest])
        weights = one.first.w.copy()
        one.first.w[:] = 3e38
    before = snapshot(agent)
    refused = [(9.0, [7.0, 7.0, 7.0]), (np.nan, [1.0, 1.0, 1.0]), (1.0, [0.0, np.inf, 0.0])]
    for reward, s in refused:
        observation = np.array(s, np.float32)
        with pytest.raises((DivergenceError, ValueError), match=f"at step {agent.n_steps + 1}"):
            agent.step(reward, observation)
        if name != "q, limits are terminal" or not np.isfinite([reward, *observation]).all():
            with pytest.raises((DivergenceError, ValueError)):
                agent.end(reward, observation, terminated=False)
        assert_same(snapshot(agent), before)
    for one in (agent, twin):
        one.first.w[:] = weights
        live(one, life(20, seed=1, dtype=np.float32)[1:])
    assert_same(snapshot(agent), snapshot(twin))


@pytest.mark.parametrize("name", ACTORS)
def test_an_actor_that_diverges_is_an_error(name):
    agent = make(name, optimizer=SGD(0.01), second_optimizer=SGD(1e200), **PLAIN | {"activation": "relu"})

    def run():
        agent.start(np.ones(3))
        for t in range(50):
            agent.step(1.0, np.array([1.0, -2.0, t]))

    with pytest.raises(DivergenceError):
        run()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_reward_too_large_for_the_weights_leaves_them_as_they_are(name):
    # 1e39 is finite, and infinite in float32; either an error or a bounded step, but no weight that is NaN.
    agent = make(name, dtype="float32", scale_rewards=False)
    agent.start(np.ones(3, np.float32))
    agent.step(1.0, np.zeros(3, np.float32))
    with contextlib.suppress(DivergenceError, ValueError):
        agent.step(1e39, np.ones(3, np.float32))
    assert np.isfinite(agent.first.w).all()
    assert np.isfinite(agent.second.w).all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_huge_reward_does_not_end_the_learning_in_silence(name):
    # 1e200 squared is infinite: so would be the variance of all that follows, and every scaled reward 0.
    agent = make(name, hidden=(), init="zeros", optimizer=SGD(0.0), second_optimizer=SGD(0.0))
    agent.start(np.ones(3))
    agent.step(1.0, np.ones(3))
    try:
        agent.step(1e200, np.ones(3))
    except (DivergenceError, ValueError):
        return
    assert last_delta(agent, "step", 1e200, np.ones(3)) != 0.0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_huge_observation_does_not_blind_the_agent_in_silence(name):
    agent = make(name)
    agent.start(np.ones(3))
    try:
        agent.step(1.0, np.array([1e200, 0.0, 0.0]))
        agent.step(1.0, np.array([-1e200, 0.0, 0.0]))
    except (DivergenceError, ValueError):
        return
    assert inputs(agent)[0] != 0.0


@pytest.mark.parametrize("name", ["q"])  # all agents perceive by the same kernel
def test_an_observation_too_large_for_the_network_is_an_error(name):
    agent = make(name, dtype="float32", **PLAIN)
    with pytest.raises((DivergenceError, ValueError), match="observation"):
        live(agent, [("start", np.full(3, 1e39)), ("step", 1.0, np.ones(3))])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_inputs_are_left_as_they_are_and_may_be_used_again(name):
    kept, reused, buffer = make(name), make(name), np.empty(3)
    answers = []
    for call, *arguments in life(40):
        place = 0 if call == "start" else 1
        buffer[:] = arguments[place]
        through = [*arguments]
        through[place] = buffer
        answers.append(getattr(reused, call)(*through))
        np.testing.assert_array_equal(buffer, arguments[place])
        buffer[:] = np.nan
    assert str(live(kept, life(40))) == str(answers)
    assert_same(snapshot(kept), snapshot(reused))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "change",
    [
        lambda s: np.frombuffer(s.tobytes(), s.dtype),  # read-only, as what comes from Ray
        lambda s: np.repeat(s, 2)[::2],  # not in one piece
    ],
)
def test_no_observation_makes_the_kernels_compile_anew(change, dtype):
    agent, s = make("q"), np.ones(3, dtype)
    assert numba.typeof(agent._state(change(s))) == numba.typeof(agent._state(s))


def test_lists_and_whole_numbers_are_observations_too():
    a, b = make("q"), make("q")
    assert str(live(a, [("start", [1, 2, 3]), ("step", 1, [0, 0, 1])])) == str(
        live(b, [("start", np.array([1.0, 2.0, 3.0])), ("step", 1.0, np.array([0.0, 0.0, 1.0]))])
    )
    assert_same(snapshot(a), snapshot(b))


@pytest.mark.parametrize("name", ["q"])  # all agents perceive by the same kernel
def test_float32_observations_are_normalised_in_float64(name):
    a, b = make(name, dtype="float32"), make(name, dtype="float32")
    narrow = [(c, *(np.float32(x) if isinstance(x, np.ndarray) else x for x in rest)) for c, *rest in life(30)]
    wide = [(c, *(np.float64(x) if isinstance(x, np.ndarray) else x for x in rest)) for c, *rest in narrow]
    assert str(live(a, narrow)) == str(live(b, wide))
    np.testing.assert_array_equal(a.memory, b.memory)
    np.testing.assert_array_equal(a.first.w, b.first.w)


SCRIPT = """
import numpy as np
from gymnasium import spaces
from valueapprox.agents import QRC, ExpectedSarsa, Sarsa, StreamAC, StreamQ, StreamTD
from valueapprox import Intentional

values = []
space, three = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
for kind, actions, own in (
    (StreamAC, three, {}), (StreamAC, spaces.Box(-1, 1, (2,)), {"optimizer": Intentional(0.1)}),
    (StreamQ, three, {"cut": "before"}), (Sarsa, three, {"average_reward": 0.1}),
    (ExpectedSarsa, three, {"temperature": 0.5}), (QRC, three, {}), (StreamTD, three, {}),
):
    agent = kind(space, actions, hidden=(4,), time_limit=9, dtype="float64", init="lecun_normal", seed=1, **own)
    agent.norms_every = 2
    rng = np.random.default_rng(0)
    agent.start(rng.normal(size=2))
    for t in range(1, 31):
        if t % 9:
            values.extend(np.ravel(agent.step(float(rng.normal()), rng.normal(size=2))))
        else:
            agent.end(float(rng.normal()), rng.normal(size=2), t % 2 == 0)
            agent.start(rng.normal(size=2))
    values.extend([*agent.first.w, *agent.second.w, *agent.first.z, *agent.memory, *agent.diagnostics().values()])
    values.extend(np.ravel(agent.actor().start(rng.normal(size=2))))
"""


def test_interpreted_equals_compiled():
    interpreted = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT + "print(*map(float.hex, map(float, values)))"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert interpreted.returncode == 0, interpreted.stderr
    compiled = {}
    exec(SCRIPT, compiled)
    np.testing.assert_allclose(
        compiled["values"], [float.fromhex(x) for x in interpreted.stdout.split()], rtol=1e-9, atol=1e-11
    )
