"""Vector environments: in all autoreset modes, here and in processes of their own, the same transitions."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from valueapprox.agents.batch_catalogue import PPO, PQN
from valueapprox.agents.experience import GymnasiumExperience
from valueapprox.agents.vector import VectorExperience, learn_in

N = 3


def vector(mode, kind="sync", env="CartPole-v1"):
    return gym.make_vec(env, N, vectorization_mode=kind, vector_kwargs={"autoreset_mode": mode})


def agent(cls=PPO, env="CartPole-v1", **settings):
    made = gym.make(env)
    return cls(
        made.observation_space, made.action_space, N, (8,), rollout=20, normalise_observations=True, seed=1, **settings
    )


def transitions(rollout, i):
    valid = rollout.valid[:, i]
    parts = (rollout.observations[:-1], *rollout[1:7])
    return [np.asarray(part[:, i])[valid] for part in parts]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_all_modes_give_the_same_transitions_of_each_environment(mode, kind):
    one = agent()
    policy = one.policy()
    reference = VectorExperience(one, vector(AutoresetMode.SAME_STEP), 5).gather(200, policy)
    assert (reference.terminated | reference.truncated).sum() > 10
    env = vector(mode, kind)
    rollout = VectorExperience(one, env, 5).gather(200, policy)
    env.close()
    for i in range(N):
        for ours, theirs in zip(transitions(rollout, i), transitions(reference, i), strict=True):
            n = min(len(ours), len(theirs))  # NEXT_STEP spends steps on resets
            np.testing.assert_array_equal(ours[:n], theirs[:n])
            assert n >= 150


def test_no_transition_joins_two_episodes():
    one = agent()
    rollout = VectorExperience(one, vector(AutoresetMode.NEXT_STEP), 5).gather(200, one.policy())
    ended = (rollout.terminated | rollout.truncated)[:-1]
    assert (rollout.valid[1:] == ~ended).all()  # the step after an ending is not valid, and all others are
    after = rollout.observations[2:][ended[:]]
    assert (np.abs(after) <= 0.05).all()  # then a new episode has begun


@pytest.mark.parametrize("cls", [PPO, PQN])
def test_what_is_not_valid_is_not_learned_from(cls):
    # The same rollout with other numbers where it is not valid: the same weights and statistics.
    learned = []
    for junk in (0.0, 7.0):
        one = agent(cls, scale_rewards=True)
        rollout = VectorExperience(one, vector(AutoresetMode.NEXT_STEP), 5).gather(40, one.policy())
        dead = ~rollout.valid
        assert dead.any()
        rollout.rewards[dead] = junk
        rollout.actions[dead] = 1.0 if junk else 0.0
        one.learn(rollout, one.policy())
        assert one.n_steps == rollout.valid.sum() == one.observed[0] == one.rewarded[0]
        learned.append(one.state_dict())
    for name in learned[0]:
        np.testing.assert_array_equal(learned[0][name], learned[1][name], err_msg=name)


def test_learn_in_learns():
    one = learn_in(agent(), vector(AutoresetMode.DISABLED), 100)
    assert one.n_steps == 120  # 2 rollouts of 3 x 20
    native = gym.make_vec("CartPole-v1", N, vectorization_mode="vector_entry_point")  # Gymnasium's own, NEXT_STEP
    one = learn_in(one, native, 100)
    assert one.n_steps >= 220
    with pytest.raises(ValueError, match="env has 3 environments; expected 2"):
        learn_in(PPO(native.single_observation_space, native.single_action_space, n_envs=2), native, 10)


def test_a_vector_and_single_environments_are_the_same_experience():
    one = agent()
    single = GymnasiumExperience(one, range(N), 5, "CartPole-v1").gather(60, one.policy())
    from valueapprox.seeding import seed_for

    env = vector(AutoresetMode.SAME_STEP)
    experience = VectorExperience(one, env, 5)
    experience.observations = experience._split(env.reset(seed=[seed_for(5, "environment", i) for i in range(N)])[0])
    rollout = experience.gather(60, one.policy())
    for ours, theirs in zip(rollout, single, strict=True):
        np.testing.assert_array_equal(ours, theirs)
