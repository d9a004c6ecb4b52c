"""The Gymnasium side: registration, the interface's own checker, vector environments, seeds and errors."""

import copy
import importlib
import subprocess
import sys
import warnings
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
from conformance import WORLD_CHECKS
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from valueapprox import envs
from valueapprox.compiling import kernel
from valueapprox.envs import WORLDS, RandomWalk, World, WorldEnv, compiled_world, register

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
def test_the_other_worlds_have_the_spaces_of_gymnasium(env_id):
    env, original = gymnasium.make(env_id), gymnasium.make(env_id.removeprefix("valueapprox/"))
    assert env.observation_space == original.observation_space
    assert env.action_space == original.action_space
    assert env.spec.max_episode_steps == original.spec.max_episode_steps


@pytest.mark.parametrize("check", WORLD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("env_id", WORLDS)
def test_every_world(env_id, check, tmp_path):
    check(env_id, tmp_path)


def test_the_tests_know_every_world():
    assert sorted(IDS) == sorted(WORLDS)


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
        type(world).reset(world.params, generator.random(world.n_reset_uniforms), state)
        for t in range(50):
            type(world).observe(world.params, state, seen)
            np.testing.assert_array_equal(seen, observation)
            u = generator.random() if world.n_step_uniforms else 0.0
            reward, terminated = type(world).step(world.params, state, t % 2, u)
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
    assert again.unwrapped.world == RandomWalk(**LONG_WALK)
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
    np.testing.assert_array_equal(world.params, RandomWalk(**LONG_WALK).params)


def test_compiled_world_takes_a_time_limit_as_gymnasium_make_does():
    assert [compiled_world(IDS[1], max_episode_steps=limit)[1] for limit in (None, 10, -1)] == [500, 10, 0]
    with pytest.raises(ValueError, match="max_episode_steps is 0; expected at least 1, or -1 for no limit"):
        compiled_world(IDS[1], max_episode_steps=0)


@pytest.mark.parametrize("action", [-1, 2, 1.0, float("nan"), "left", None, np.array([0, 1])])
def test_an_invalid_action_is_a_clear_error(action):
    env = gymnasium.make(IDS[0]).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is .*; expected an integer from 0 to 1"):
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
    with pytest.raises(ValueError, match=r"action is .*; expected one finite number, which is held to \[-2.0, 2.0\]"):
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
    with pytest.raises(ValueError, match=r"options is .*low.*; expected none, as the start of CartPole is fixed"):
        gymnasium.make(IDS[1]).reset(options={"low": -0.1})


def test_bad_keyword_arguments_are_clear_errors():
    with pytest.raises(TypeError, match="n_sates"):
        gymnasium.make(IDS[0], n_sates=5)
    with pytest.raises(ValueError, match="jump is 0; expected a whole number of at least 1"):
        gymnasium.make(IDS[0], jump=0)
    with pytest.raises(ValueError, match="render_mode is 'human'; expected 'ansi' or None"):
        WorldEnv(RandomWalk(), render_mode="human")


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


@kernel(exact=True)
def begin(params, u, state):
    state[0] = 0.5 * u[0]


@kernel(exact=True)
def stay(params, state, action, u):
    return 0.0, False


@kernel
def loose(params, state, action, u):
    return 0.0, False


@kernel(exact=True)
def two(params, state, out):
    out[0] = out[1] = 0.0


@kernel(exact=True)
def whole(params, state, action, u):
    return 0, False


@kernel(exact=True)
def third(observation):
    return 2


GOOD = {"reset": begin, "step": stay, "n_actions": 2, "n_reset_uniforms": 1, "observation_high": (1.0,)}


def make_class(**attributes):
    return dataclass(frozen=True)(type("Toy", (World,), GOOD | attributes))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("CartPole-v1", {}, "name of Toy is 'CartPole-v1'; CartPole is registered as 'valueapprox/CartPole-v1'"),
        ("Toy", {}, "name of Toy is 'Toy'; expected one like 'CartPole-v1'"),
        ("Toy-v0", {"step": None}, "its step is missing"),
        ("Toy-v0", {"step": loose}, "its step is not exact"),
        ("Toy-v0", {"step": begin}, "Toy cannot be used: .*argument"),
        ("Toy-v0", {"step": whole}, "its step gives 0, False; expected a float and a bool"),
        ("Toy-v0", {"observe": two}, "Toy cannot be used: index 1 is out of bounds"),
        ("Toy-v0", {"n_reset_uniforms": 0}, "Toy cannot be used: index 0 is out of bounds"),
        ("Toy-v0", {"observation_high": (1.0, 1.0)}, r"its observation is \[ 0. nan\]; expected 2 numbers"),
        ("Toy-v0", {"observation_low": (2.0,)}, r"its observation_low is \[2.\]"),
        ("Toy-v0", {"observation_low": (0.0, 0.0)}, r"its observation_low is \[0. 0.\]; expected one bound for each"),
        ("Toy-v0", {"observation_low": (0.1,)}, "its start is observed as"),
        ("Toy-v0", {"observation_high": (0.4,)}, "its start is observed as"),
        ("Toy-v0", {"n_actions": 0, "action_low": 3.0}, "its action_low is 3.0; expected less than action_high 1.0"),
        ("Toy-v0", {"heuristic": third}, "its heuristic gives 2; expected an action"),
    ],
)
def test_a_wrong_registration_is_an_error_when_it_is_made(name, wrong, message):
    before = dict(WORLDS), dict(gymnasium.registry)
    with pytest.raises(TypeError, match=message):
        register(name)(make_class(**wrong))
    assert before == (WORLDS, gymnasium.registry)


def test_the_same_registration_without_the_fault_works():
    known = dict(WORLDS), dict(gymnasium.registry)
    register("Toy-v0")(make_class())
    try:
        env = gymnasium.make("valueapprox/Toy-v0")
        assert env.reset(seed=0)[0].shape == (1,)
        with pytest.raises(ValueError, match="render_mode is 'ansi'; expected None"):
            gymnasium.make("valueapprox/Toy-v0", render_mode="ansi")
    finally:
        for registry, before in zip((WORLDS, gymnasium.registry), known, strict=True):
            registry.clear()
            registry.update(before)


def test_a_name_that_gymnasium_has_from_elsewhere_is_taken():
    gymnasium.register("valueapprox/Elsewhere-v0", entry_point="somewhere:Else")
    try:
        with pytest.raises(TypeError, match="an environment is registered as 'valueapprox/Elsewhere-v0'"):
            register("Elsewhere-v0")(make_class())
    finally:
        del gymnasium.registry["valueapprox/Elsewhere-v0"]
