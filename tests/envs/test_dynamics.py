"""The compiled worlds against Gymnasium's own, against themselves interpreted, and inside a larger kernel."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import acrobot as gymnasium_acrobot
from gymnasium.envs.classic_control import pendulum as gymnasium_pendulum

from valueapprox.compiling import placeholder, specialise, template
from valueapprox.envs import Acrobot, CartPole, MountainCar, Pendulum, RandomWalk

WORLDS = {
    "cart-pole": CartPole(),
    "mountain car": MountainCar(),
    "random walk": RandomWalk(31, jump=4, features="aggregation", groups=8),
    "position": RandomWalk(7, features="position"),
    "acrobot": Acrobot(),
    "pendulum": Pendulum(),
}


def start(world, u):
    state = np.full(world.n_state, np.nan)
    type(world).reset(world.params, np.atleast_1d(u), state)
    return state


def step(world, state, action, u=0.0):
    return type(world).step(world.params, state, action, u)


def observe(world, state, out):
    type(world).observe(world.params, state, out)


@pytest.mark.parametrize(
    ("world", "original"),
    [
        ("cart-pole", "CartPole-v1"),
        ("mountain car", "MountainCar-v0"),
        ("acrobot", "Acrobot-v1"),
        ("pendulum", "Pendulum-v1"),
    ],
)
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
        assert step(world, state, action, 0.0) == tuple(outcome)
        np.testing.assert_allclose(state, np.array(theirs.state), rtol=rtol, atol=rtol)
        observe(world, state, seen)
        np.testing.assert_allclose(seen, observation, rtol=1e-6 if rtol else 0.0, atol=rtol)
        if outcome[1]:
            n_ends += 1
            theirs.reset()
            state[:] = theirs.state
    assert n_ends > 50


def libm(function):
    """NumPy's sine or cosine on one number, as the C library has it."""
    return lambda x: np.float64(function(float(x)))


def swing(state, generator):
    """Torque at the elbow against the shoulder's rotation, to the goal in some 100 steps; now and then at random."""
    return int(generator.integers(3)) if generator.random() < 0.2 else 2 * int(state[2] < 0)


def twist(_, generator):
    return generator.uniform(-3.0, 3.0, size=1).astype(np.float32)  # beyond the bounds too


@pytest.mark.parametrize("trigonometry", ["libm", "numpy"])
@pytest.mark.parametrize(
    ("world", "original", "policy", "n_resets"),
    [("acrobot", "Acrobot-v1", swing, 50), ("pendulum", "Pendulum-v1", twist, 30)],
)
def test_swings_are_those_of_gymnasium(monkeypatch, trigonometry, world, original, policy, n_resets):
    # With the C library's sine and cosine in Gymnasium's dynamics, everything is equal to the last bit. NumPy's may,
    # depending on its version and on the processor, differ from them in the last bit. One such step errs by some 2e-15
    # (2e-12 from an acrobot at full speed), and an acrobot is chaotic: so each step starts from Gymnasium's state.
    # In float32, which NumPy uses to show an acrobot's start, sine and cosine do differ.
    exact, world = trigonometry == "libm", WORLDS[world]
    if exact:
        sin, cos = libm(math.sin), libm(math.cos)
        monkeypatch.setattr(gymnasium_acrobot, "sin", sin)
        monkeypatch.setattr(gymnasium_acrobot, "cos", cos)
        monkeypatch.setattr(gymnasium_pendulum, "np", SimpleNamespace(**{**vars(np), "sin": sin, "cos": cos}))
    theirs = gymnasium.make(original).unwrapped
    generator, seen = np.random.default_rng(0), np.empty(world.n_observation, dtype=np.float32)
    tolerance = {"rtol": 0.0, "atol": 0.0 if exact else 1e-12}
    rough = {"rtol": 0.0, "atol": 0.0 if exact else 2e-6}
    n_ends = n_steps = 0
    for seed in range(n_resets):
        observation, _ = theirs.reset(seed=seed)
        state = start(world, gymnasium.utils.seeding.np_random(seed)[0].random(world.n_reset_uniforms))
        np.testing.assert_array_equal(state, theirs.state)
        observe(world, state, seen)
        np.testing.assert_allclose(seen, observation, **rough)
        ours, gymnasiums = [], []  # of the episode's steps: reward, state, observation
        for _ in range(world.max_episode_steps):
            action = policy(state, generator)
            observation, reward, terminated, _, _ = theirs.step(action)
            got = step(world, state, action.item() if world.continuous else action, 0.0)
            assert got[1] == terminated
            observe(world, state, seen)
            ours.append((got[0], state.copy(), seen.copy()))
            gymnasiums.append((reward, np.array(theirs.state), observation))
            state[:] = theirs.state
            n_steps += 1
            n_ends += terminated
            if terminated:
                break
        limits = (tolerance, tolerance, rough)
        for mine, their, limit in zip(zip(*ours, strict=True), zip(*gymnasiums, strict=True), limits, strict=True):
            np.testing.assert_allclose(mine, their, **limit)
    assert n_steps > 5_000
    assert n_ends > 30 or world.continuous


def acrobot_energy(state):
    """Kinetic and potential energy of two rods of mass 1, length 1 and moment 1 about their middle."""
    a, b, a_dot, b_dot = state
    middle = (
        np.array([0.5 * math.sin(a), -0.5 * math.cos(a)]),
        np.array([math.sin(a) + 0.5 * math.sin(a + b), -math.cos(a) - 0.5 * math.cos(a + b)]),
    )
    speed = 0.5 * a_dot * np.array([math.cos(a), math.sin(a)])
    speed_2 = 2 * speed + 0.5 * (a_dot + b_dot) * np.array([math.cos(a + b), math.sin(a + b)])
    kinetic = 0.5 * (speed @ speed + speed_2 @ speed_2 + a_dot**2 + (a_dot + b_dot) ** 2)
    return kinetic + 9.8 * (middle[0][1] + middle[1][1])


def test_an_acrobot_without_torque_keeps_its_energy():
    # Hanging at rest: 9.8 (-0.5 - 1.5) = -19.6.
    world = WORLDS["acrobot"]
    assert acrobot_energy(np.zeros(4)) == pytest.approx(-19.6)
    state = np.array([0.3, -0.4, 0.2, 0.1])
    for _ in range(200):
        energy = acrobot_energy(state)
        step(world, state, 1, 0.0)
        # Runge-Kutta with so long a step loses up to 0.0007 of the energy above rest in each.
        assert acrobot_energy(state) == pytest.approx(energy, abs=0.001 * (energy + 19.6))


def test_a_torque_does_work_on_the_acrobot():
    # The torque acts on angle b: from rest, energy = integral of torque b' = torque * (change of b).
    world = WORLDS["acrobot"]
    for action, torque in ((0, -1.0), (2, 1.0)):
        state = np.zeros(4)
        step(world, state, action, 0.0)
        assert acrobot_energy(state) + 19.6 == pytest.approx(torque * state[1], rel=2e-3)


def test_an_acrobot_at_rest_stays():
    world, state = WORLDS["acrobot"], np.zeros(4)
    for _ in range(100):
        assert step(world, state, 1, 0.0) == (-1.0, False)
    np.testing.assert_allclose(state, 0.0, atol=1e-15)  # cos(pi / 2) is 6e-17 in floating point


def test_an_acrobot_is_at_its_goal_one_link_above_the_pivot():
    # Nearly upright, the tip is 2 above the pivot; with both links level, 0.
    world = WORLDS["acrobot"]
    for a, outcome in ((math.pi - 0.01, (0.0, True)), (math.pi / 2, (-1.0, False))):
        assert step(world, np.array([a, 0.0, 0.0, 0.0]), 1, 0.0) == outcome


def test_an_acrobot_is_wrapped_and_bounded():
    # At 4 pi and 9 pi in 0.2 s it turns by 2.5 and 5.7.
    world, state = WORLDS["acrobot"], np.array([3.0, 3.0, 4 * math.pi, 9 * math.pi])
    for t in range(50):
        step(world, state, 2 * (t % 2), 0.0)
        assert (np.abs(state) <= [math.pi, math.pi, 4 * math.pi, 9 * math.pi]).all()
    spinning = np.array([0.0, 0.0, 10 * math.pi, -20 * math.pi])
    step(world, spinning, 1, 0.0)
    assert (np.abs(spinning) <= [math.pi, math.pi, 4 * math.pi, 9 * math.pi]).all()


def test_a_pendulum_at_rest_hanging_pays_pi_squared():
    world, state = WORLDS["pendulum"], np.array([math.pi, 0.0])
    reward, terminated = step(world, state, 0.0, 0.0)
    assert (reward, terminated) == (-(math.pi**2), False)
    np.testing.assert_allclose(state, [math.pi, 0.0], atol=1e-15)


def test_a_pendulum_balances_free_of_charge():
    world, state = WORLDS["pendulum"], np.zeros(2)
    assert step(world, state, 0.0, 0.0) == (0.0, False)
    assert state.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("action", "torque"), [(1.0, 1.0), (2.0, 2.0), (5.0, 2.0), (-9.0, -2.0)])
def test_one_step_of_a_pendulum(action, torque):
    # Level, at speed 1: theta' = 1 + 0.05 (15 * 1 + 3 u), theta = pi / 2 + 0.05 theta'; u is held to [-2, 2].
    world, state = WORLDS["pendulum"], np.array([math.pi / 2, 1.0])
    reward, _ = step(world, state, action, 0.0)
    assert reward == pytest.approx(-(math.pi**2 / 4 + 0.1 + 0.001 * torque**2))
    assert state[1] == pytest.approx(1.75 + 0.15 * torque)
    assert state[0] == pytest.approx(math.pi / 2 + 0.05 * state[1])


def test_a_pendulum_has_a_greatest_speed_and_a_cost_per_turn():
    # At 8, pulled further down, it stays at 8. Two turns later, the cost is that of the same angle.
    world = WORLDS["pendulum"]
    rewards = []
    for turns in (0, 2):
        state = np.array([1.0 + turns * 2 * math.pi, 8.0])
        rewards.append(step(world, state, 2.0, 0.0)[0])
        assert state[1] == 8.0
    assert rewards[0] == pytest.approx(-(1 + 6.4 + 0.004))
    assert rewards[1] == pytest.approx(rewards[0])


def test_a_whole_action_may_come_as_an_integer_or_a_float():
    for name in ("cart-pole", "mountain car", "random walk", "acrobot"):
        world = WORLDS[name]
        for action in range(world.n_actions):
            u = np.full(world.n_reset_uniforms, 0.3)
            states = start(world, u), start(world, u)
            outcomes = [step(world, state, kind(action), 0.7) for state, kind in zip(states, (int, float), strict=True)]
            assert outcomes[0] == outcomes[1]
            np.testing.assert_array_equal(*states)


def test_mountain_car_stops_at_the_left_wall():
    # v = -0.05 - 0.001 - 0.0025 cos(-3.54) = -0.0487;  x = -1.18 - 0.0487 < -1.2: the wall stops the car.
    world, state = WORLDS["mountain car"], np.array([-1.18, -0.05])
    assert step(world, state, 0, 0.0) == (-1.0, False)
    assert state.tolist() == [-1.2, 0.0]


@pytest.mark.parametrize("jump", [2, 3, 7, 100])
def test_a_jump_is_uniform_on_1_to_jump(jump):
    world = RandomWalk(1000, jump=jump)
    # One u in the middle of each interval of length 1 / jump, and the least and greatest u there are.
    for action, sign in ((0, -1), (1, 1)):
        moves = []
        for u in [*(np.arange(jump) + 0.5) / jump, 0.0, np.nextafter(1.0, 0.0)]:
            state = start(world, [])
            assert state[0] == 499
            step(world, state, action, u)
            moves.append(sign * (state[0] - 499))
        assert moves == [*range(1, jump + 1), 1, jump]


@pytest.mark.parametrize(("action", "end", "reward"), [(0, -1, -2.0), (1, 3, 5.0)])
def test_a_move_past_an_end_terminates_with_its_reward(action, end, reward):
    world = RandomWalk(3, jump=9, left_reward=-2.0, right_reward=5.0)
    state = np.array([1.0])
    assert step(world, state, action, 0.0) == (0.0, False)  # 1 + floor(0) = 1 place
    assert step(world, state, action, 0.0) == (reward, True)
    assert state[0] == end
    state = np.array([1.0])
    assert step(world, state, action, 0.5) == (
        reward,
        True,
    )  # 1 + floor(4.5) = 5 places
    assert state[0] == end  # however far the move would have gone


def test_an_end_is_observed_as_zeros_or_as_one():
    for features, left, right in (("one-hot", 0, 0), ("aggregation", 0, 0), ("position", -1, 1)):
        walk = RandomWalk(4, features=features, groups=2)
        world, seen = walk, np.full((2, walk.n_observation), np.nan)
        observe(world, np.array([-1.0]), seen[0])
        observe(world, np.array([4.0]), seen[1])
        assert (seen[0] == left).all()
        assert (seen[1] == right).all()


def experience(world, actions, u):
    """One row (terminated, reward, state, observation) per step; takes its numbers from u in order."""
    rows = np.empty((actions.size, 2 + world.n_state + world.n_observation))
    state = start(world, u[: world.n_reset_uniforms])
    n_used = world.n_reset_uniforms
    for t, action in enumerate(actions):
        n_used += world.n_step_uniforms
        rows[t, 1], rows[t, 0] = step(world, state, action.item(), u[n_used - 1])
        rows[t, 2 : 2 + world.n_state] = state
        observe(world, state, rows[t, 2 + world.n_state :])
        if rows[t, 0]:
            state[:] = start(world, u[n_used:])
            n_used += world.n_reset_uniforms
    return rows


reset_in_loop, step_in_loop = placeholder("world_reset"), placeholder("world_step")
observe_in_loop = placeholder("world_observe")


@template
def experience_in_a_loop(params, n_reset, n_step, state, actions, u, rows):
    """`experience`, compiled as a whole."""
    reset_in_loop(params, u[:n_reset], state)
    n_used = n_reset
    for t in range(actions.size):
        n_used += n_step
        reward, terminated = step_in_loop(params, state, actions[t], u[n_used - 1])
        rows[t, 0] = terminated
        rows[t, 1] = reward
        for i in range(state.size):
            rows[t, 2 + i] = state[i]
        observe_in_loop(params, state, rows[t, 2 + state.size :])
        if terminated:
            reset_in_loop(params, u[n_used:], state)
            n_used += n_reset


def inputs(world, n_steps=2000):
    generator = np.random.default_rng(5)
    if world.continuous:
        actions = generator.uniform(2 * world.action_low, 2 * world.action_high, size=n_steps)
    else:
        actions = generator.integers(world.n_actions, size=n_steps)
    return actions, generator.random(5 * n_steps)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_a_world_inlined_in_a_compiled_loop_is_the_same_to_the_last_bit(world):
    actions, u = inputs(world)
    alone = experience(world, actions, u)
    inlined, state = np.empty_like(alone), np.empty(world.n_state)
    counts = (world.n_reset_uniforms, world.n_step_uniforms)
    loop = specialise(experience_in_a_loop, **world.kernels())
    loop(world.params, *counts, state, actions, u, inlined)
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
    assert arrived == world
    assert arrived.params.flags.writeable
    np.testing.assert_array_equal(arrived.params, world.params)
