"""An interrupted environment goes on bit for bit: compiled worlds, and Gymnasium's classics as it makes them."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from valueapprox.envs import env_state, restore_env_state, restore_wrappers, wrapper_states

CLASSICS = ["CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1"]
OURS = [f"valueapprox/{name}" for name in ("CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v1")]
WALK = "valueapprox/RandomWalk-v0"
LIMIT = 60


def make(env_id, **kwargs):
    walk = {"n_states": 30, "jump": 5} if env_id == WALK else {}
    return gymnasium.make(env_id, max_episode_steps=LIMIT, **walk, **kwargs)


def actions(env, n_steps):
    generator, space = np.random.default_rng(1), env.action_space
    if isinstance(space, gymnasium.spaces.Box):
        return generator.uniform(space.low, space.high, size=(n_steps, 1)).astype(np.float32)
    return generator.integers(space.n, size=n_steps)


def follow(env, chosen):
    """What comes of some actions, resets included, to the last bit and type."""
    rows = []
    for action in chosen:
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation.tobytes(), observation.dtype, float(reward).hex(), terminated, truncated))
        if terminated or truncated:
            rows.append(env.reset()[0].tobytes())
    return rows


def through_json(state):
    """The state as a file would hold it: JSON, with the arrays beside it."""
    array = state["world"]["state"]
    text = json.dumps({**state, "world": {**state["world"], "state": None}})
    again = json.loads(text)
    again["world"]["state"] = None if array is None else array.copy()
    return again


@pytest.mark.parametrize("cut", [0, 1, 7, LIMIT - 1, LIMIT, LIMIT + 20])
@pytest.mark.parametrize("env_id", [*CLASSICS, *OURS, WALK])
def test_an_interrupted_environment_goes_on_bit_for_bit(env_id, cut):
    env = make(env_id)
    chosen = actions(env, 3 * LIMIT)
    env.reset(seed=4)
    follow(env, chosen[:cut])
    state = env_state(env)
    kept = through_json(state)
    expected = follow(env, chosen[cut:])  # and the saved state stays as it is
    assert json.dumps(through_json(state)["world"]["generator"]) == json.dumps(kept["world"]["generator"])
    fresh = make(env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_env_state(fresh, through_json(state))
        assert follow(fresh, chosen[cut:]) == expected
        restore_env_state(env, state)  # one that has moved on can be taken back
        assert follow(env, chosen[cut:]) == expected


@pytest.mark.parametrize("env_id", [*CLASSICS, *OURS])
def test_before_the_first_reset_there_is_only_a_generator(env_id):
    env, fresh = make(env_id), make(env_id)
    fresh.reset(seed=9)
    restore_env_state(fresh, through_json(env_state(env)))
    with pytest.raises(ResetNeeded):
        fresh.step(actions(env, 1)[0])
    np.testing.assert_array_equal(fresh.reset()[0], env.reset()[0])


def test_an_episode_that_has_ended_stays_ended():
    # A pole that nobody holds falls within 10 steps; CartPole pays 1 for the fall and 0 for a step after it.
    env = make("CartPole-v1")
    env.reset(seed=0)
    while not env.step(0)[2]:
        pass
    fresh = make("CartPole-v1")
    restore_env_state(fresh, env_state(env))
    assert fresh.unwrapped.steps_beyond_terminated == 0
    ours = make("valueapprox/CartPole-v1")
    ours.reset(seed=0)
    while not ours.step(0)[2]:
        pass
    again = make("valueapprox/CartPole-v1")
    restore_env_state(again, env_state(ours))
    with pytest.raises(ResetNeeded, match="again after an end"):
        again.step(0)


def test_a_compiled_environment_has_a_state_of_its_own():
    env, fresh = (make(WALK).unwrapped for _ in range(2))
    env.reset(seed=2)
    env.step(1)
    fresh.restore(env.state())
    assert follow(fresh, [1, 0, 1] * 5) == follow(env, [1, 0, 1] * 5)


def test_a_saved_state_is_a_copy():
    for env_id in (*CLASSICS, *OURS):
        env, fresh = make(env_id), make(env_id)
        env.reset(seed=0)
        state = env_state(env)
        before = state["world"]["state"].copy()
        restore_env_state(fresh, state)
        follow(env, actions(env, 5))
        follow(fresh, actions(env, 5))
        np.testing.assert_array_equal(state["world"]["state"], before)


def test_what_a_classic_keeps_is_known():
    # A later Gymnasium may keep more: then this fails first.
    for env_id in CLASSICS:
        env = gymnasium.make(env_id).unwrapped
        env.reset(seed=0)
        before = {name: repr(value) for name, value in vars(env).items()}
        env.step(actions(env, 1)[0])
        changed = {name for name, value in vars(env).items() if before.get(name) != repr(value)}
        assert changed <= {"state", "last_u", "steps_beyond_terminated"}


class Noisy(gymnasium.envs.classic_control.CartPoleEnv):
    """May keep anything."""


WRAPPERS = {
    "observations": gymnasium.wrappers.NormalizeObservation,
    "rewards": gymnasium.wrappers.NormalizeReward,
    "both": lambda env: gymnasium.wrappers.NormalizeObservation(gymnasium.wrappers.NormalizeReward(env)),
    "statistics": gymnasium.wrappers.RecordEpisodeStatistics,
    "time": gymnasium.wrappers.TimeAwareObservation,
    "scaled": lambda env: gymnasium.wrappers.NormalizeReward(gymnasium.wrappers.RescaleAction(env, -1.0, 1.0)),
}


@pytest.mark.parametrize("cut", [0, 7, LIMIT + 20])
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_gymnasium_s_wrappers_keep_is_restored_bit_for_bit(name, cut):
    env_id = "Pendulum-v1" if name == "scaled" else "CartPole-v1"
    env = WRAPPERS[name](make(env_id))
    chosen = actions(env, 2 * LIMIT)
    env.reset(seed=4)
    follow(env, chosen[:cut])
    state = through_json(env_state(env))
    expected = follow(env, chosen[cut:])
    fresh = WRAPPERS[name](make(env_id))
    restore_env_state(fresh, state)
    assert follow(fresh, chosen[cut:]) == expected


def test_a_frozen_statistic_stays_frozen():
    env = gymnasium.wrappers.NormalizeObservation(make("CartPole-v1"))
    env.reset(seed=4)
    env.update_running_mean = False
    fresh = gymnasium.wrappers.NormalizeObservation(make("CartPole-v1"))
    restore_env_state(fresh, through_json(env_state(env)))
    assert not fresh.update_running_mean


def test_statistics_want_the_wrappers_they_came_from():
    states = wrapper_states(gymnasium.wrappers.NormalizeReward(make("CartPole-v1")))
    with pytest.raises(ValueError, match="expected the wrappers of these statistics"):
        restore_wrappers(gymnasium.wrappers.NormalizeObservation(make("CartPole-v1")), states)


def test_what_is_not_known_gives_none():
    assert env_state(gymnasium.make("FrozenLake-v1")) is None
    assert env_state(Noisy()) is None
    assert env_state(gymnasium.wrappers.FrameStackObservation(make("CartPole-v1"), 2)) is None
    assert env_state(gymnasium.wrappers.TransformReward(make("CartPole-v1"), lambda r: r)) is None
    env = make("CartPole-v1")
    env.unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    assert env_state(env) is None


def test_a_state_wants_the_environment_it_came_from():
    state = env_state(make("CartPole-v1"))
    for other in (make("Pendulum-v1"), make("valueapprox/CartPole-v1"), gymnasium.make("CartPole-v1").unwrapped):
        with pytest.raises(
            ValueError, match=r"expected the environment of this state: gymnasium.CartPoleEnv in .*TimeLimit"
        ):
            restore_env_state(other, state)
    env = make("valueapprox/MountainCar-v0").unwrapped
    with pytest.raises(ValueError, match=r"state is of shape \(4,\); expected \(2,\), that of MountainCar"):
        env.restore(make("valueapprox/CartPole-v1").unwrapped.state())


def test_a_state_of_version_0_2_calls_the_package_of_worlds_envs():
    env = make(OURS[0])
    env.reset(seed=4)
    state = env_state(env)
    assert state["env"] == "valueapprox.CartPoleEnv"
    restore_env_state(env, {**state, "env": "envs.CartPoleEnv"})
    with pytest.raises(ValueError, match=r"gymnasium\.CartPoleEnv"):
        restore_env_state(env, {**state, "env": "gymnasium.CartPoleEnv"})


def test_wrappers_are_optional_and_the_checker_does_not_count():
    bare = gymnasium.make("Acrobot-v1").unwrapped
    bare.reset(seed=0)
    state = env_state(bare)
    assert state["wrappers"] == []
    env = make("Acrobot-v1")
    env.reset(seed=0)
    unchecked = make("Acrobot-v1", disable_env_checker=True)
    restore_env_state(unchecked, env_state(env))
    assert follow(unchecked, [0, 1, 2] * 30) == follow(env, [0, 1, 2] * 30)
