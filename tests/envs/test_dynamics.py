"""The compiled worlds against Gymnasium's own, against themselves interpreted, and inside a larger kernel."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from envs import RandomWalk, cart_pole, mountain_car, observe, reset_state, step_state
from valueapprox.compiling import kernel

WORLDS = {
    "cart-pole": cart_pole(),
    "mountain car": mountain_car(),
    "random walk": RandomWalk(31, jump=4, features="aggregation", groups=8).world(),
    "position": RandomWalk(7, features="position").world(),
}


def start(world, u):
    state = np.full(world.n_state, np.nan)
    reset_state(world.code, world.params, np.atleast_1d(u), state)
    return state


@pytest.mark.parametrize(("world", "original"), [("cart-pole", "CartPole-v1"), ("mountain car", "MountainCar-v0")])
def test_start_states_are_those_of_gymnasium(world, original):
    theirs = gymnasium.make(original).unwrapped
    for seed in range(200):
        theirs.reset(seed=seed)
        generator, _ = gymnasium.utils.seeding.np_random(seed)
        ours = start(WORLDS[world], generator.random(WORLDS[world].n_reset_uniforms))
        np.testing.assert_array_equal(ours, theirs.state)


def pump(state, generator):
    """Push the car the way it rolls, to the goal in some 120 steps; now and then at random."""
    return int(generator.integers(3)) if generator.random() < 0.1 else 2 * int(state[1] >= 0)


def at_random(_, generator):
    return int(generator.integers(2))


@pytest.mark.parametrize(
    ("world", "original", "policy", "n_steps", "rtol"),
    [
        # NumPy has its own sine and cosine, which differ from those of libm in the last bits; the pole, being
        # unstable, multiplies the difference in its 20 steps or so.
        ("cart-pole", "CartPole-v1", at_random, 10_000, 1e-11),
        # Both take libm's cosine, and the kernels do IEEE arithmetic in Gymnasium's order: no difference.
        ("mountain car", "MountainCar-v0", pump, 10_000, 0.0),
    ],
)
def test_steps_are_those_of_gymnasium(world, original, policy, n_steps, rtol):
    world = WORLDS[world]
    theirs = gymnasium.make(original).unwrapped
    generator = np.random.default_rng(0)
    theirs.reset(seed=0)
    state = np.array(theirs.state)
    seen = np.empty(world.n_observation, dtype=np.float32)
    n_ends = 0
    for _ in range(n_steps):
        action = policy(state, generator)
        observation, *outcome, _, _ = theirs.step(action)
        assert step_state(world.code, world.params, state, action, 0.0) == tuple(outcome)
        np.testing.assert_allclose(state, np.array(theirs.state), rtol=rtol, atol=rtol)
        observe(world.code, world.params, state, seen)
        np.testing.assert_allclose(seen, observation, rtol=1e-6 if rtol else 0.0, atol=rtol)
        if outcome[1]:
            n_ends += 1
            theirs.reset()
            state[:] = theirs.state
    assert n_ends > 50


def test_mountain_car_stops_at_the_left_wall():
    # v = -0.05 - 0.001 - 0.0025 cos(-3.54) = -0.0487;  x = -1.18 - 0.0487 < -1.2: the wall stops the car.
    world, state = WORLDS["mountain car"], np.array([-1.18, -0.05])
    assert step_state(world.code, world.params, state, 0, 0.0) == (-1.0, False)
    assert state.tolist() == [-1.2, 0.0]


@pytest.mark.parametrize("jump", [2, 3, 7, 100])
def test_a_jump_is_uniform_on_1_to_jump(jump):
    world = RandomWalk(1000, jump=jump).world()
    # One u in the middle of each interval of length 1 / jump, and the least and greatest u there are.
    for action, sign in ((0, -1), (1, 1)):
        moves = []
        for u in [*(np.arange(jump) + 0.5) / jump, 0.0, np.nextafter(1.0, 0.0)]:
            state = start(world, [])
            assert state[0] == 499
            step_state(world.code, world.params, state, action, u)
            moves.append(sign * (state[0] - 499))
        assert moves == [*range(1, jump + 1), 1, jump]


@pytest.mark.parametrize(("action", "end", "reward"), [(0, -1, -2.0), (1, 3, 5.0)])
def test_a_move_past_an_end_terminates_with_its_reward(action, end, reward):
    world = RandomWalk(3, jump=9, left_reward=-2.0, right_reward=5.0).world()
    state = np.array([1.0])
    assert step_state(world.code, world.params, state, action, 0.0) == (0.0, False)  # 1 + floor(0) = 1 place
    assert step_state(world.code, world.params, state, action, 0.0) == (reward, True)
    assert state[0] == end
    state = np.array([1.0])
    assert step_state(world.code, world.params, state, action, 0.5) == (
        reward,
        True,
    )  # 1 + floor(4.5) = 5 places
    assert state[0] == end  # however far the move would have gone


def test_an_end_is_observed_as_zeros_or_as_one():
    for features, left, right in (("one-hot", 0, 0), ("aggregation", 0, 0), ("position", -1, 1)):
        walk = RandomWalk(4, features=features, groups=2)
        world, seen = walk.world(), np.full((2, walk.world().n_observation), np.nan)
        observe(world.code, world.params, np.array([-1.0]), seen[0])
        observe(world.code, world.params, np.array([4.0]), seen[1])
        assert (seen[0] == left).all()
        assert (seen[1] == right).all()


def experience(world, actions, u):
    """One row (terminated, reward, state, observation) per step; takes its numbers from u in order."""
    rows = np.empty((actions.size, 2 + world.n_state + world.n_observation))
    state = start(world, u[: world.n_reset_uniforms])
    n_used = world.n_reset_uniforms
    for t, action in enumerate(actions):
        n_used += world.n_step_uniforms
        rows[t, 1], rows[t, 0] = step_state(world.code, world.params, state, int(action), u[n_used - 1])
        rows[t, 2 : 2 + world.n_state] = state
        observe(world.code, world.params, state, rows[t, 2 + world.n_state :])
        if rows[t, 0]:
            reset_state(world.code, world.params, u[n_used:], state)
            n_used += world.n_reset_uniforms
    return rows


@kernel
def experience_in_a_loop(code, params, n_reset, n_step, state, actions, u, rows):
    """`experience`, compiled as a whole."""
    reset_state(code, params, u[:n_reset], state)
    n_used = n_reset
    for t in range(actions.size):
        n_used += n_step
        reward, terminated = step_state(code, params, state, actions[t], u[n_used - 1])
        rows[t, 0] = terminated
        rows[t, 1] = reward
        for i in range(state.size):
            rows[t, 2 + i] = state[i]
        observe(code, params, state, rows[t, 2 + state.size :])
        if terminated:
            reset_state(code, params, u[n_used:], state)
            n_used += n_reset


def inputs(world, n_steps=2000):
    generator = np.random.default_rng(5)
    return generator.integers(world.n_actions, size=n_steps), generator.random(5 * n_steps)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_a_world_inlined_in_a_compiled_loop_is_the_same_to_the_last_bit(world):
    actions, u = inputs(world)
    alone = experience(world, actions, u)
    inlined, state = np.empty_like(alone), np.empty(world.n_state)
    counts = (world.n_reset_uniforms, world.n_step_uniforms)
    experience_in_a_loop(world.code, world.params, *counts, state, actions, u, inlined)
    np.testing.assert_array_equal(inlined, alone)


def experiences():
    return {name: experience(world, *inputs(world)).tolist() for name, world in WORLDS.items()}


def test_interpreted_is_compiled_to_the_last_bit():
    # Both call the sine and cosine of libm. JSON keeps every bit of a float.
    script = "import json, test_dynamics as t; print(json.dumps(t.experiences()))"
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parent), str(here.parents[2])])
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, check=True)
    assert json.loads(run.stdout) == experiences()


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_a_world_travels_as_it_is(world):
    # As Ray sends it: protocol 5, with its arrays beside it, where they come back read-only.
    buffers = []
    message = pickle.dumps(world, protocol=5, buffer_callback=buffers.append)
    assert len(message) < 1000
    arrived = pickle.loads(message, buffers=[bytes(buffer) for buffer in buffers])
    assert arrived.params.flags.writeable
    np.testing.assert_array_equal(arrived.params, world.params)
    assert vars(arrived) | {"params": None} == vars(world) | {"params": None}
