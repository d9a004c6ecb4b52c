"""Streams of experience: what is in them, and that nothing but the seed and the environment's number decides it."""

import itertools

import numpy as np
import pytest

from valueapprox.agents.rollout import (
    AUTORESET,
    Block,
    CompiledRollout,
    GymnasiumRollout,
    Task,
    make_environment,
    make_rollout,
)
from valueapprox.agents.spaces import UnsupportedSpaceError, encoder
from valueapprox.seeding import seed_for

MODES = sorted(AUTORESET)
SCRIPTED = Task("scripted_envs:Scripted-v0", "random", seed=3)
CART_POLE = Task("valueapprox/CartPole-v1", "heuristic", 0.1)


def replace(task, **changes):
    return Task(**{**vars(task), **changes})


def collect(task, numbers, *lengths):
    rollout = make_rollout(task, numbers)
    blocks = [rollout.collect(n)[0] for n in lengths]
    rollout.close()
    return blocks


def assert_equal(a, b):
    for name, left, right in zip(Block._fields, a, b, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


def assert_same_bits(a, b):
    assert_equal(a, b)
    assert [part.dtype for part in a] == [part.dtype for part in b]


# What is in a stream -------------------------------------------------------------------------------------------------


def script(number, n_steps):
    """The transitions of `Scripted`, written down."""
    name = seed_for(SCRIPTED.seed, "environment", number) % 1000
    for k in range(n_steps):
        episode, t = divmod(k, 3)
        last, kind = t == 2, episode % 3
        yield (
            [name, episode, t],
            10 * episode + t + 1,
            [name, episode, t + 1],
            last and kind != 1,
            last and kind != 0,
        )


@pytest.mark.parametrize("mode", MODES)
def test_transitions_are_the_scripted_ones_in_every_autoreset_mode(mode):
    blocks = collect(replace(SCRIPTED, autoreset=mode), [0, 1, 5], 1, 2, 4, 3, 10)  # 20 steps, 6 episodes
    for i, number in enumerate([0, 1, 5]):
        got = [np.concatenate([part[i] for part in parts]) for parts in list(zip(*blocks, strict=True))[:-1]]
        s, _, r, s_next, terminated, truncated = got
        for k, expected in enumerate(script(number, 20)):
            assert (s[k].tolist(), r[k], s_next[k].tolist(), terminated[k], truncated[k]) == expected
    assert not any(block.restarted.any() for block in blocks)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env", ["CartPole-v1", "valueapprox/CartPole-v1", "valueapprox/RandomWalk-v0"])
def test_no_transition_joins_two_episodes_and_none_is_missing(env, mode):
    (block,) = collect(Task(env, "random", autoreset=mode, compiled=False), [0, 1, 2], 300)
    ended = block.terminated | block.truncated
    assert ended.any(axis=1).all()
    for i in range(3):
        joined = (block.next_observations[i, :-1] == block.observations[i, 1:]).all(axis=1)
        np.testing.assert_array_equal(joined, ~ended[i, :-1])  # after an ending comes the start of another episode


@pytest.mark.parametrize("mode", MODES)
def test_an_environment_may_write_every_observation_into_the_same_array(mode):
    (expected,) = collect(SCRIPTED, [0, 1], 9)
    (block,) = collect(replace(SCRIPTED, env_args={"reuse": True}, autoreset=mode), [0, 1], 9)
    assert_same_bits(block, expected)


@pytest.mark.parametrize(
    "task",
    [
        Task("CartPole-v1", "heuristic", 0.2),
        Task("MountainCar-v0", "random"),  # cut after 200 steps
        Task("Pendulum-v1", "random"),
        Task("FrozenLake-v1", "random"),
        Task("valueapprox/RandomWalk-v0", "random", env_args={"jump": 3}, compiled=False),
    ],
    ids=lambda task: task.env,
)
def test_autoreset_modes_give_bit_identical_blocks(task):
    first, *others = (collect(replace(task, autoreset=mode), [0, 1, 2], 150, 1, 149) for mode in MODES)
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize(
    ("env", "env_args"),
    [
        ("valueapprox/CartPole-v1", {}),
        ("valueapprox/CartPole-v1", {"max_episode_steps": 7}),
        ("valueapprox/MountainCar-v0", {}),
        ("valueapprox/RandomWalk-v0", {"n_states": 30, "jump": 4}),
        ("valueapprox/RandomWalk-v0", {"features": "position"}),
        ("valueapprox/Acrobot-v1", {"max_episode_steps": 60}),
        ("valueapprox/Pendulum-v1", {}),
    ],
)
@pytest.mark.parametrize(("policy", "noise"), [("random", 0.0), ("heuristic", 0.3), ("heuristic", 0.0)])
def test_compiled_rollouts_equal_gymnasium_s(env, env_args, policy, noise):
    if "RandomWalk" in env and policy == "heuristic":
        pytest.skip("a random walk has no heuristic")
    task = Task(env, policy, noise, env_args, seed=11)
    ours, gymnasiums = make_rollout(task, [0, 3]), make_rollout(replace(task, compiled=False), [0, 3])
    assert isinstance(ours, CompiledRollout)
    assert isinstance(gymnasiums, GymnasiumRollout)
    for n in (1, 250, 249):
        assert_same_bits(ours.collect(n)[0], gymnasiums.collect(n)[0])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("lengths", [(60,), (1, 2, 57), (59, 1)])
def test_the_length_of_blocks_does_not_matter(compiled, lengths):
    task = replace(CART_POLE, compiled=compiled, autoreset="next-step")
    (whole,) = collect(task, [0, 1], 60)
    parts = collect(task, [0, 1], *lengths)
    joined = Block(*(np.concatenate(p, axis=1) for p in list(zip(*parts, strict=True))[:-1]), parts[0].restarted)
    assert_same_bits(joined, whole)


@pytest.mark.parametrize("task", [CART_POLE, Task("CartPole-v1", "random")], ids=["compiled", "gymnasium"])
@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 1, 2], [3]]])
def test_streams_do_not_depend_on_how_they_are_dealt_out(task, shares):
    (together,) = collect(task, [0, 1, 2, 3], 100)
    assert_same_bits(Block.join([collect(task, share, 100)[0] for share in shares]), together)


@pytest.mark.parametrize("task", [CART_POLE, Task("CartPole-v1", "random")], ids=["compiled", "gymnasium"])
def test_streams_that_end_inside_of_a_block_are_joined(task):
    # The last block of a run: the first worker's streams have 7 and 5 transitions left, the second's none.
    (together,) = collect(task, [0, 1, 2, 3], [7, 5, 0, 0])
    assert_same_bits(Block.join([collect(task, [0, 1], [7, 5])[0], collect(task, [2, 3], [0, 0])[0]]), together)
    assert together.rewards.any(axis=1).tolist() == [True, True, False, False]


@pytest.mark.parametrize("compiled", [True, False])
def test_streams_of_environments_and_seeds_differ_pairwise(compiled):
    streams = {}
    for seed in (0, 1):
        (block,) = collect(replace(CART_POLE, policy="random", compiled=compiled, seed=seed), list(range(6)), 100)
        streams.update({(seed, i): block for i in range(6)})
    for (seed_a, i), (seed_b, j) in itertools.combinations(streams, 2):
        a, b = streams[seed_a, i], streams[seed_b, j]
        assert not np.array_equal(a.observations[i], b.observations[j])
        assert not np.array_equal(a.actions[i], b.actions[j])
        assert not np.array_equal(a.observations[i, 0], b.observations[j, 0])


@pytest.mark.parametrize("task", [CART_POLE, Task("CartPole-v1", "random")], ids=["compiled", "gymnasium"])
def test_numpy_s_global_generator_is_neither_used_nor_moved(task):
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    (first,) = collect(task, [0, 1], 50)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert_same_bits(collect(task, [0, 1], 50)[0], first)


# Snapshots -----------------------------------------------------------------------------------------------------------


def cuts(task, n_steps):
    """In the middle of the first stream's first episode, right at its end, and one step into the next."""
    (block,) = collect(task, [0, 1], n_steps)
    end = int(np.argmax(block.terminated[0] | block.truncated[0])) + 1
    assert 3 < end < n_steps - 5
    return end // 2, end, end + 1


def assert_goes_on_exactly(task, n_steps, at):
    rollout = make_rollout(task, [0, 1])
    _, snapshot = rollout.collect(at)
    again = make_rollout(task, [0, 1])
    again.restore(snapshot)
    for n in (n_steps - at, 5):
        block = again.collect(n)[0]
        assert_same_bits(block, rollout.collect(n)[0])
        assert not block.restarted.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env", ["CartPole-v1", "MountainCar-v0", "LunarLander-v3", "Pendulum-v1"])
def test_a_snapshot_goes_on_exactly(env, mode):
    if env == "LunarLander-v3":
        pytest.importorskip("Box2D")
    task = Task(env, "random", autoreset=mode, seed=2)
    for at in cuts(task, 220):
        assert_goes_on_exactly(task, 220, at)


@pytest.mark.parametrize("mode", MODES)
def test_random_actions_may_be_of_any_space(mode):
    task = Task("scripted_envs:Spoken-v0", "random", autoreset=mode, seed=2)
    (block,) = collect(task, [0, 1], 40)
    assert_same_bits(Block.join([collect(task, [i], 40)[0] for i in (0, 1)]), block)
    assert np.unique(block.rewards).size >= 5
    assert block.terminated.sum() == 10
    rollout = make_rollout(task, [0, 1])
    snapshot = rollout.collect(10)[1]  # in the middle of an episode, which cannot be replayed: a new one begins
    again = make_rollout(task, [0, 1])
    again.restore(snapshot)
    after = again.collect(14)[0]
    assert after.restarted.all()
    np.testing.assert_array_equal(after.terminated.sum(axis=1), 2)
    again.close()


def test_a_policy_that_is_not_compiled_is_followed_in_gymnasium():
    rollout = make_rollout(Task("valueapprox/Pendulum-v1", "valueapprox.agents.policies:upright", 0.1), [0])
    assert isinstance(rollout, GymnasiumRollout)
    assert rollout.collect(5)[0].actions.shape == (1, 5, 1)


@pytest.mark.parametrize("env", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v1"])
def test_a_snapshot_of_a_compiled_rollout_goes_on_exactly(env):
    task = Task(f"valueapprox/{env}", "random", env_args={"max_episode_steps": 200}, seed=2)
    for at in cuts(task, 220):
        assert_goes_on_exactly(task, 220, at)


def test_a_snapshot_can_be_taken_where_a_reset_of_its_own_is_due():
    task = Task("CartPole-v1", "random", autoreset="next-step")
    _, end, _ = cuts(task, 100)
    _, snapshots = make_rollout(task, [0, 1]).collect(end)
    assert snapshots[0]["ended"]


@pytest.mark.parametrize("mode", MODES)
def test_a_rollout_that_has_moved_on_can_be_taken_back(mode):
    task = Task("CartPole-v1", "random", autoreset=mode)
    rollout = make_rollout(task, [0, 1])
    _, snapshot = rollout.collect(4)
    after = rollout.collect(50)[0]
    for at in cuts(task, 100):  # wherever the environments stand meanwhile
        rollout.restore(snapshot)
        rollout.collect(at - 4)
        rollout.restore(snapshot)
        assert_same_bits(rollout.collect(50)[0], after)


def push_array(observation, rng):
    """A torque that float32 cannot hold."""
    return np.array([0.1 + 0.01 * rng.random()])


def push_list(observation, rng):
    """The same as a list."""
    return [0.1 + 0.01 * rng.random()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("push", ["push_array", "push_list"])
def test_a_policy_s_actions_are_replayed_as_they_were_taken(mode, push):
    task = Task("Pendulum-v1", f"{__name__}:{push}", autoreset=mode)
    assert_goes_on_exactly(task, 120, 50)


@pytest.mark.parametrize("mode", MODES)
def test_an_environment_that_cannot_be_replayed_goes_on_with_a_new_episode_and_says_so(mode):
    task = Task("scripted_envs:Entropy-v0", "random", autoreset=mode)
    rollout = make_rollout(task, [0, 1])
    block, snapshot = rollout.collect(10)
    again = make_rollout(task, [0, 1])
    again.restore(snapshot)
    after = again.collect(10)[0]
    assert after.restarted.tolist() == [True, True]
    assert not np.isin(after.observations, block.next_observations).any()
    assert again.collect(10)[0].restarted.tolist() == [False, False]


# Errors and spaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_environment, lambda env: make_rollout(Task(env, "random"), [0])])
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPol-v1", "did you mean 'CartPole-v1'"),
        ("valueapprox/RandomWlk-v0", "did you mean 'valueapprox/RandomWalk-v0'"),
        ("CartPole-v99", "CartPole"),
        ("no_such_module:Thing-v0", "no_such_module"),
        ("", "Malformed environment ID"),
    ],
)
def test_an_unknown_environment_is_a_helpful_error(make, env, message):
    with pytest.raises(ValueError, match=message):
        make(env)


@pytest.mark.parametrize("compiled", [True, False])
def test_an_argument_that_the_environment_does_not_know_is_an_error(compiled):
    with pytest.raises(ValueError, match=r"valueapprox/RandomWalk-v0 cannot be built.*colour"):
        make_rollout(Task("valueapprox/RandomWalk-v0", "random", env_args={"colour": 3}, compiled=compiled), [0])


def test_an_unknown_autoreset_mode_is_an_error():
    with pytest.raises(ValueError, match="did you mean 'same-step'"):
        make_rollout(Task("CartPole-v1", "random", autoreset="samestep"), [0])


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_structured_observations_offer_to_be_flattened(kind):
    with pytest.raises(UnsupportedSpaceError, match="--flatten"):
        make_rollout(Task("scripted_envs:Structured-v0", "random", env_args={"kind": kind}), [0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_flattened_observations_are_one_vector(kind, mode):
    task = Task("scripted_envs:Structured-v0", "random", env_args={"kind": kind}, flatten=True, autoreset=mode)
    (block,) = collect(task, [0, 1], 4)
    # colour one-hot of 3, then place: (t, 7); episodes of two steps
    assert block.observations[0].tolist() == [[1, 0, 0, 0, 7], [0, 1, 0, 1, 7]] * 2
    assert block.next_observations[1].tolist() == [[0, 1, 0, 1, 7], [0, 0, 1, 2, 7]] * 2
    assert block.terminated[0].tolist() == [False, True] * 2


@pytest.mark.parametrize(("env", "n"), [("FrozenLake-v1", 16), ("Taxi-v4", 500)])
def test_discrete_observations_are_one_hot(env, n):
    (block,) = collect(Task(env, "random"), [0, 1], 30)
    assert block.observations.shape == (2, 30, n)
    assert (block.observations.sum(axis=-1) == 1).all()
    assert set(np.unique(block.observations)) == {0.0, 1.0}


def test_a_discrete_space_may_start_anywhere():
    from gymnasium.spaces import Discrete

    assert encoder(Discrete(3, start=-1))(0).tolist() == [0, 1, 0]


def test_actions_of_a_box_are_kept_as_vectors():
    (block,) = collect(Task("Pendulum-v1", "random"), [0, 1], 400)
    assert block.actions.shape == (2, 400, 1)
    assert block.actions.dtype == np.float32
    # uniform on [-2, 2]: mean 0 with standard error 2 / sqrt(3 * 800) = 0.041
    assert abs(block.actions.mean()) < 0.16
    assert -2 <= block.actions.min() < -1.95
    assert 1.95 < block.actions.max() <= 2
