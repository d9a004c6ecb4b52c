"""The Gymnasium side: registration, the interface's own checker, vector environments, seeds and errors."""

import copy
import importlib
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from valueapprox import envs
from valueapprox.envs import RandomWalk, compiled_world, observe, reset_state, step_state

IDS = [
    f"valueapprox/{name}" for name in ("RandomWalk-v0", "CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v1")
]
LONG_WALK = {"n_states": 11, "jump": 3, "features": "aggregation", "groups": 4}


@pytest.mark.parametrize("features", ["one-hot", "aggregation", "position"])
def test_gymnasium_finds_nothing_to_say_about_a_random_walk(features):
    env = gymnasium.make(IDS[0], features=features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS[1:])
def test_the_other_worlds_pass_the_checker_and_have_the_spaces_of_gymnasium(env_id):
    env = gymnasium.make(env_id)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*infinity")  # the bounds of CartPole-v1 itself
        warnings.filterwarnings("ignore", message=".*symmetric and normalized")  # the torque of Pendulum-v1 itself
        check_env(env.unwrapped, skip_render_check=True)
    original = gymnasium.make(env_id.removeprefix("valueapprox/"))
    assert env.observation_space == original.observation_space
    assert env.action_space == original.action_space
    assert env.spec.max_episode_steps == original.spec.max_episode_steps


def rollout(env, seed, n_steps=300):
    """[observation, reward, terminated, truncated, ...] with actions from a generator of their own."""
    generator, space = np.random.default_rng(seed), env.action_space
    if isinstance(space, gymnasium.spaces.Box):
        actions = generator.uniform(space.low, space.high, size=(n_steps, 1)).astype(np.float32)
    else:
        actions = generator.integers(space.n, size=n_steps)
    rows = [env.reset(seed=seed)[0].tolist()]
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append([observation.tolist(), reward, terminated, truncated])
        if terminated or truncated:
            rows.append(env.reset()[0].tolist())
    return rows


@pytest.mark.parametrize("env_id", IDS)
def test_a_seed_gives_the_same_experience_and_another_seed_another(env_id):
    kwargs = LONG_WALK if "Walk" in env_id else {}
    first, second = gymnasium.make(env_id, **kwargs), gymnasium.make(env_id, **kwargs)
    assert rollout(first, 3) == rollout(second, 3)
    assert rollout(first, 3) == rollout(second, 3)  # whatever came before
    assert rollout(first, 3) != rollout(second, 4)


def test_cart_pole_looks_like_gymnasiums_to_the_limit_of_float32():
    ours, theirs = (gymnasium.make(env_id) for env_id in ("valueapprox/CartPole-v1", "CartPole-v1"))
    for row, expected in zip(rollout(ours, 0), rollout(theirs, 0), strict=True):
        if len(expected) == 4 and isinstance(expected[0], list):
            assert row[1:] == expected[1:]
            row, expected = row[0], expected[0]
        # A last bit of float64 may, rarely, be a last bit of float32.
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("env_id", IDS)
def test_uniforms_are_drawn_in_the_order_that_compiled_loops_use(env_id):
    kwargs = LONG_WALK if "Walk" in env_id else {}
    world, _ = compiled_world(env_id, **kwargs)
    env = gymnasium.make(env_id, **kwargs).unwrapped
    generator, _ = gymnasium.utils.seeding.np_random(8)
    state, seen = np.empty(world.n_state), np.empty(world.n_observation, dtype=np.float32)
    for episode in range(30):
        observation, _ = env.reset(seed=None if episode else 8)
        reset_state(world.code, world.params, generator.random(world.n_reset_uniforms), state)
        for t in range(50):
            observe(world.code, world.params, state, seen)
            np.testing.assert_array_equal(seen, observation)
            u = generator.random() if world.n_step_uniforms else 0.0
            reward, terminated = step_state(world.code, world.params, state, t % 2, u)
            observation, *outcome = env.step([t % 2] if world.continuous else t % 2)
            assert outcome == [reward, terminated, False, {}]
            if terminated:
                break
    assert generator.random() == env.np_random.random()


def test_time_limits_truncate():
    env = gymnasium.make("valueapprox/MountainCar-v0")
    env.reset(seed=0)
    endings = [env.step(1)[2:4] for _ in range(200)]
    assert endings == [(False, False)] * 199 + [(False, True)]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments(mode):
    vector = gymnasium.make_vec(IDS[0], num_envs=3, vectorization_mode=mode, **LONG_WALK)
    singles = [gymnasium.make(IDS[0], **LONG_WALK) for _ in range(3)]
    try:
        observations, _ = vector.reset(seed=[5, 6, 7])
        expected = [env.reset(seed=seed)[0] for env, seed in zip(singles, (5, 6, 7), strict=True)]
        np.testing.assert_array_equal(observations, expected)
        observations, rewards, *_ = vector.step(np.array([0, 1, 1]))
        outcomes = [env.step(action) for env, action in zip(singles, (0, 1, 1), strict=True)]
        np.testing.assert_array_equal(observations, [outcome[0] for outcome in outcomes])
        np.testing.assert_array_equal(rewards, [outcome[1] for outcome in outcomes])
    finally:
        vector.close()


def test_a_spec_goes_through_json_with_its_keyword_arguments():
    spec = gymnasium.make(IDS[0], max_episode_steps=7, **LONG_WALK).spec
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert again.unwrapped.walk == RandomWalk(**LONG_WALK)
    assert again.spec.max_episode_steps == 7


def test_registering_twice_is_harmless():
    before = [gymnasium.spec(env_id) for env_id in IDS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(envs)
    assert all(gymnasium.spec(env_id) is spec for env_id, spec in zip(IDS, before, strict=True))


def test_an_id_can_name_the_package_to_import():
    script = (
        "import gymnasium; print(gymnasium.make('valueapprox.envs:valueapprox/MountainCar-v0').spec.max_episode_steps)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "200"


def test_compiled_world_knows_our_ids_only():
    assert compiled_world("CartPole-v1") is None
    assert compiled_world("valueapprox/NoSuchWorld-v0") is None
    for env_id, limit in zip(IDS, (0, 500, 200, 500, 200), strict=True):
        world, steps = compiled_world(env_id)
        assert steps == world.max_episode_steps == limit
    world, _ = compiled_world("valueapprox.envs:valueapprox/RandomWalk-v0", **LONG_WALK)
    np.testing.assert_array_equal(world.params, RandomWalk(**LONG_WALK).world().params)


def test_compiled_world_takes_a_time_limit_as_gymnasium_make_does():
    assert [compiled_world(IDS[1], max_episode_steps=limit)[1] for limit in (None, 10, -1)] == [500, 10, 0]
    with pytest.raises(ValueError, match="max_episode_steps: got 0, wants at least 1, or -1 for no limit"):
        compiled_world(IDS[1], max_episode_steps=0)


@pytest.mark.parametrize("action", [-1, 2, 1.0, float("nan"), "left", None, np.array([0, 1])])
def test_an_invalid_action_is_a_clear_error(action):
    env = gymnasium.make(IDS[0]).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: got .*, wants an integer from 0 to 1"):
        env.step(action)


@pytest.mark.parametrize("action", [1, np.int64(1), np.int32(1), np.array(1), np.uint8(1)])
def test_any_integer_is_an_action(action):
    env = gymnasium.make(IDS[0]).unwrapped
    env.reset(seed=0)
    assert env.step(action)[0].argmax() == 10


@pytest.mark.parametrize("action", [float("nan"), [np.inf], "left", None, [], [0.0, 1.0]])
def test_an_invalid_torque_is_a_clear_error(action):
    env = gymnasium.make(IDS[4]).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: got .*, wants one finite number, which is held to \[-2.0, 2.0\]"):
        env.step(action)


@pytest.mark.parametrize("action", [[0.1], np.array([0.1], np.float32), np.array([0.1]), 0.1, np.float32(0.1)])
def test_a_torque_is_float32_however_it_comes(action):
    env = gymnasium.make(IDS[4]).unwrapped
    original = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0), original.reset(seed=0)
    expected = original.step(np.array([0.1], np.float32))
    got = env.step(action)
    np.testing.assert_allclose(got[0], expected[0], atol=1e-6)
    assert got[1] == pytest.approx(expected[1], abs=1e-12)


def test_a_step_wants_a_running_episode():
    env = gymnasium.make(IDS[0], n_states=1).unwrapped
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    assert env.step(0)[1:4] == (-1.0, True, False)
    with pytest.raises(ResetNeeded, match="again after an end"):
        env.step(0)


def test_options_are_refused_rather_than_ignored():
    with pytest.raises(ValueError, match=r"options: got .*low.*, but the start of a cart-pole is fixed"):
        gymnasium.make(IDS[1]).reset(options={"low": -0.1})


def test_bad_keyword_arguments_are_clear_errors():
    with pytest.raises(TypeError, match="n_sates"):
        gymnasium.make(IDS[0], n_sates=5)
    with pytest.raises(ValueError, match="jump: got 0, wants an integer of at least 1"):
        gymnasium.make(IDS[0], jump=0)
    with pytest.raises(ValueError, match="render_mode: got 'human'"):
        envs.compiled_env.RandomWalkEnv(render_mode="human")


def test_observations_are_not_reused():
    env = gymnasium.make(IDS[0]).unwrapped
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second = env.step(1)[0]
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)


def test_a_copy_goes_its_own_way():
    env = gymnasium.make(IDS[0], **LONG_WALK).unwrapped
    env.reset(seed=0)
    twin = copy.deepcopy(env)
    np.testing.assert_array_equal(env.step(1)[0], twin.step(1)[0])


def test_a_walk_can_be_drawn():
    env = gymnasium.make(IDS[0], n_states=3, render_mode="ansi")
    env.reset(seed=0)
    pictures = [env.render()]
    for _ in range(2):
        env.step(1)
        pictures.append(env.render())
    assert pictures == ["|.o.|", "|..o|", "|...o"]
