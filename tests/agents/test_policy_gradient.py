"""What agents of PPO's family learn from a rollout: gradients, whole updates, endings and normalisers."""

import json
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import ppo_cases
import pytest
from gymnasium import spaces
from scipy import stats

from valueapprox import Adam
from valueapprox.agents.acting import Rollout
from valueapprox.agents.batch_catalogue import PPO
from valueapprox.agents.batch_run import BatchSettings, make_experience
from valueapprox.agents.experience import GymnasiumExperience
from valueapprox.agents.policy_gradient import N_SUMS, Batch
from valueapprox.envs import compiled_world

STATES = spaces.Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "pairs": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1.0, 1.0, (2,)),
}
N = 12  # examples of a minibatch


# --- the gradient of a minibatch ------------------------------------------------------------------------------------


def forward(net, w, x):
    """A network in NumPy."""
    f = {"tanh": np.tanh, "relu": lambda psi: np.maximum(psi, 0.0)}[net.hidden]
    *hidden, (B, b) = net.unpack(w)
    for W, b_W in hidden:
        x = f(x @ W + b_W)
    return x @ B + b


def objective(agent, batch, weights):
    """mean of min(ratio A, clip(ratio) A) + entropy H - value_weight / 2 (v - target)^2, as PPO's paper has it."""
    own, head = agent.own, agent.head
    outputs = forward(agent.actor_learner.net, weights["network" if own.shared else "actor"], batch.states)
    v = forward(agent.critic_learner.net, weights["network" if own.shared else "critic"], batch.states)[:, -1]
    if head.n_spreads:
        normal = stats.norm(outputs[:, : head.n_values], np.exp(weights["spread"]))
        log_pi, entropy = normal.logpdf(batch.actions).sum(axis=1), normal.entropy().sum(axis=1)
    else:
        log_pi = entropy = 0.0
        parts = np.split(outputs[:, : head.n_outputs], np.cumsum(head.layout)[:-1].astype(int), axis=1)
        for logits, a in zip(parts, batch.actions.T.astype(int), strict=True):
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            log_pi, entropy = log_pi + np.log(p[np.arange(N), a]), entropy - (p * np.log(p)).sum(axis=1)
    A = batch.advantages
    if own.normalise_advantages:
        A = (A - A.mean()) / (A.std(ddof=1) + 1e-8)
    ratio = np.exp(log_pi - batch.log_mu)
    surrogate = np.minimum(ratio * A, np.clip(ratio, 1.0 - own.clip, 1.0 + own.clip) * A)
    error = (v - batch.targets) ** 2
    if own.value_clip:
        kept = batch.v_before + np.clip(v - batch.v_before, -own.value_clip, own.value_clip)
        error = np.maximum(error, (kept - batch.targets) ** 2)
    return (surrogate + own.entropy * entropy - own.value_weight / 2.0 * error).mean()


def slopes(function, weights):
    """Central differences of a function of several vectors, by name; exact to h^4."""
    found, h = {name: np.zeros_like(w) for name, w in weights.items()}, 1e-4
    for name, w in weights.items():
        for p, kept in enumerate(w.copy()):
            at = []
            for step in (h, -h, 2 * h, -2 * h):
                w[p] = kept + step
                at.append(function(weights))
            w[p] = kept
            found[name][p] = (8.0 * (at[0] - at[1]) - (at[2] - at[3])) / (12.0 * h)
    return found


def an_agent(actions, seed=0, **settings):
    own = {"rollout": N, "minibatch": N, "epochs": 1, "dtype": "float64"} | settings
    agent = PPO(STATES, ACTIONS[actions], 1, (5, 4), Adam(0.01, epsilon=1e-5), **own)
    rng = np.random.default_rng(seed)
    for learner in agent.learners.values():
        learner.w += rng.normal(0.0, 0.4, learner.w.size)
    return agent, rng


def a_batch(agent, rng):
    """N examples whose ratios, and whose values' distances from what they were, lie on both sides of their bounds."""
    states, head = rng.normal(0.0, 1.0, (N, 3)), agent.head
    actions, log_probs = np.zeros((N, head.n_values)), np.zeros(N)
    for s, a, log_p in zip(states, actions, log_probs[:, None], strict=True):
        agent.acting.choose(s[None], agent.policy(), a[None], log_p)
    v = agent.values_of(states)[:, 0]
    log_mu = log_probs - rng.uniform(-0.5, 0.5, N)
    return Batch(states, np.arange(N), actions, log_mu, *rng.normal(0.0, 1.0, (2, N)), v + rng.normal(0.0, 0.3, N))


def improved(agent, batch):
    """One call of the kernel; sums of what it logs."""
    sums, none = np.zeros(N_SUMS), np.zeros(agent.actor_network.n_layers)
    agent._improve(
        *(agent.actor_learner.part, agent.critic_learner.part, agent.spread.part, agent._loss_settings),
        *(agent.head.layout, batch, none, agent._shuffle_key, agent.counts, sums),
    )
    return sums


def ascended(agent):
    """The direction in which the first step went: Adam's mean m is then 1 - beta1 of it."""
    return {name: learner.state.moments[0] / (1.0 - agent.optimizer.beta1) for name, learner in agent.learners.items()}


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize(
    "loss",
    [
        {"max_grad_norm": 0.0, "normalise_advantages": False},
        {"max_grad_norm": 0.3, "entropy": 0.1, "value_clip": 0.2, "value_weight": 0.7},
    ],
    ids=["plain", "clipped"],
)
def test_the_gradient_of_a_minibatch_is_that_of_the_objective(loss, actions, activation, shared):
    agent, rng = an_agent(actions, 3, activation=activation, shared=shared, **loss)
    batch = a_batch(agent, rng)
    weights = {name: learner.w.copy() for name, learner in agent.learners.items()}
    expected = slopes(lambda w: objective(agent, batch, w), weights)
    norm = np.sqrt(sum((g**2).sum() for g in expected.values()))
    most = loss["max_grad_norm"]
    assert most == 0.0 or norm > 1.5 * most
    improved(agent, batch)
    for name, direction in ascended(agent).items():
        np.testing.assert_allclose(
            direction, expected[name] * (most / norm if most else 1.0), rtol=1e-7, atol=1e-9, err_msg=name
        )
        assert np.abs(expected[name]).max() > 1e-3


def test_examples_of_the_minibatches_above_are_clipped_and_not():
    agent, rng = an_agent("discrete", 3)
    batch = a_batch(agent, rng)
    sums = improved(agent, batch)
    assert 0.2 < sums[2] < 0.8  # the share that is clipped
    v = agent.values_of(batch.states)[:, 0]
    assert 0.2 < np.mean(np.abs(v - batch.v_before) > 0.2) < 0.8


def test_examples_that_pull_the_ratio_further_out_have_no_gradient():
    # A > 0 and ratio e^0.5 > 1.2, or A < 0 and e^-0.5 < 0.8: nothing. The other way round: all of it.
    for sign, stopped in ((1.0, True), (-1.0, False)):
        agent, rng = an_agent("discrete", 3, normalise_advantages=False)
        batch = a_batch(agent, rng)
        side = np.where(np.arange(N) % 2 == 0, 1.0, -1.0)
        log_pi = batch.log_mu.copy()
        for i, (s, a) in enumerate(zip(batch.states, batch.actions, strict=True)):
            logits = forward(agent.actor_learner.net, agent.actor_learner.w, s)
            log_pi[i] = logits[int(a[0])] - np.log(np.exp(logits).sum())
        improved(agent, batch._replace(log_mu=log_pi - 0.5 * side, advantages=sign * side))
        assert (np.abs(ascended(agent)["actor"]).max() == 0.0) == stopped


# --- whole updates --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers():
    return json.loads(ppo_cases.NUMBERS.read_text())


def agree(weights, log, expected):
    found = np.array(expected["minibatches"])
    for key, w in weights.items():
        np.testing.assert_allclose(w, expected[key], rtol=0, atol=1e-10, err_msg=key)
    np.testing.assert_allclose([log["actor/kl"], log["actor/entropy"]], found.mean(axis=0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ppo_cases.CASES)
def test_updates_are_those_of_pytorch(name, numbers):
    # Weights after all epochs of each of three rollouts; numbers of PyTorch 2.13, see ppo_cases.py.
    agent = ppo_cases.make(name)
    before = {key: learner.w.copy() for key, learner in agent.learners.items()}
    for (weights, log), expected in zip(ppo_cases.ours(name), numbers[name], strict=True):
        assert set(weights) == set(before)
        agree(weights, log, expected)
    assert all(np.abs(weights[key] - before[key]).max() > 1e-2 for key in before)


def test_the_epochs_of_one_of_these_updates_end_early(numbers):
    found = {name: [len(rollout["minibatches"]) for rollout in rollouts] for name, rollouts in numbers.items()}
    assert found.pop("discrete, the epochs end") == [6, 12, 12]  # in the second epoch
    assert found.pop("box, normalised, decay") == [15, 15, 15]  # of minibatches of 7, the last of 2
    assert set(map(tuple, found.values())) == {(12, 12, 12)}


@pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
@pytest.mark.parametrize("name", ppo_cases.CASES)
def test_pytorch_gives_these_numbers(name, numbers):
    for (weights, found), stored in zip(ppo_cases.theirs(name), numbers[name], strict=True):
        fresh = ppo_cases.entry(weights, found)
        assert set(fresh) == set(stored)
        for key, values in fresh.items():
            np.testing.assert_allclose(values, stored[key], rtol=0, atol=1e-12, err_msg=key)


def test_a_minibatch_that_ends_the_epochs_has_no_loss_of_values():
    agent = ppo_cases.make("discrete")
    agent._loss_settings = agent._loss_settings._replace(kl_stop=1e-9)
    before = agent.actor_learner.w.copy(), agent.critic_learner.w.copy()
    agent.learn(next(ppo_cases.rollouts(agent)), agent.policy())
    logged = agent.diagnostics()
    assert logged["actor/kl"] > 1e-9
    assert "critic/loss" not in logged
    np.testing.assert_array_equal(agent.actor_learner.w, before[0])
    np.testing.assert_array_equal(agent.critic_learner.w, before[1])


# --- endings --------------------------------------------------------------------------------------------------------

SCRIPTED = "scripted_envs:Scripted-v0"  # episodes of 3 steps: terminated, truncated, both, and so on


def scripted(n_steps=9, numbers=(0, 1), **arguments):
    env = gym.make(SCRIPTED)
    agent = PPO(
        *(env.observation_space, env.action_space, len(numbers), (6,), Adam(0.01), 0.9),
        dtype="float64",
        rollout=n_steps,
        seed=1,
        minibatch=4,
        activation="relu",
    )
    for learner in agent.learners.values():
        learner.w += np.random.default_rng(5).normal(0.0, 0.3, learner.w.size)
    experience = GymnasiumExperience(agent, numbers, 0, SCRIPTED, arguments)
    return agent, experience.gather(n_steps, agent.policy())


def batch_of(agent, rollout):
    """What the agent makes of a rollout before it learns from it: advantages and targets (T, n)."""
    seen, improve = [], agent._improve
    agent._improve = lambda *arguments: seen.append(arguments[5])
    try:
        agent._learn(rollout, agent.policy())
    finally:
        agent._improve = improve
    return seen[0].advantages.reshape(rollout.rewards.shape), seen[0].targets.reshape(rollout.rewards.shape)


@pytest.mark.parametrize("reuse", [False, True])
def test_a_rollout_has_final_observations_and_those_of_the_next_episode(reuse):
    _, rollout = scripted(reuse=reuse)
    for i in range(2):
        of_episode, of_step = rollout.observations[:-1, i, 1], rollout.observations[:-1, i, 2]
        np.testing.assert_array_equal(of_episode, [0, 0, 0, 1, 1, 1, 2, 2, 2])
        np.testing.assert_array_equal(of_step, [0, 1, 2] * 3)
        np.testing.assert_array_equal(rollout.next_observations[:, i, 1], of_episode)
        np.testing.assert_array_equal(rollout.next_observations[:, i, 2], [1, 2, 3] * 3)
        np.testing.assert_array_equal(rollout.observations[-1, i, 1:], [3, 0])
        np.testing.assert_array_equal(rollout.rewards[:, i], [1, 2, 3, 11, 12, 13, 21, 22, 23])
    np.testing.assert_array_equal(np.flatnonzero(rollout.terminated[:, 0]), [2, 8])
    np.testing.assert_array_equal(np.flatnonzero(rollout.truncated[:, 0]), [5, 8])


def test_targets_at_endings_by_hand():
    agent, rollout = scripted()
    advantages, targets = batch_of(agent, rollout)
    v = agent.values_of(rollout.observations.reshape(-1, 3))[:, 0].reshape(-1, 2)
    final = agent.values_of(rollout.next_observations[5])[:, 0]
    np.testing.assert_allclose(targets[2], 3.0, rtol=1e-12)  # terminated: the reward alone
    np.testing.assert_allclose(targets[5], 13.0 + 0.9 * final, rtol=1e-12)  # truncated: and the final observation
    np.testing.assert_allclose(targets[8], 23.0, rtol=1e-12)  # both: terminated
    delta = 2.0 + 0.9 * v[2] - v[1]
    np.testing.assert_allclose(advantages[1], delta + 0.9 * 0.95 * (3.0 - v[2]), rtol=1e-12)


@pytest.mark.parametrize("ending", [2, 5, 8], ids=["terminated", "truncated", "both"])
def test_nothing_after_an_ending_moves_a_target_before_it(ending):
    agent, rollout = scripted(12)
    expected = batch_of(agent, rollout)
    rng, later = np.random.default_rng(0), ending + 1
    changed = Rollout(*(array.copy() for array in rollout))
    changed.observations[later:] += rng.normal(0.0, 5.0, changed.observations[later:].shape)
    changed.next_observations[later:] += rng.normal(0.0, 5.0, changed.next_observations[later:].shape)
    changed.rewards[later:] *= -3.0
    changed.terminated[later:] ^= True
    changed.actions[later:] = 1.0 - changed.actions[later:]
    for before, after in zip(expected, batch_of(agent, changed), strict=True):
        np.testing.assert_array_equal(before[:later], after[:later])
        assert (before[later:] != after[later:]).all()


@pytest.mark.parametrize(("ending", "counts"), [(2, False), (5, True), (8, False)])
def test_a_final_observation_counts_where_an_episode_was_truncated_alone(ending, counts):
    agent, rollout = scripted()
    _, expected = batch_of(agent, rollout)
    rollout.next_observations[ending] += 1.0
    _, targets = batch_of(agent, rollout)
    own = slice(ending - 2, ending + 1)
    assert (targets[own] != expected[own]).all() if counts else (targets == expected).all()
    targets[own] = expected[own]
    np.testing.assert_array_equal(targets, expected)


def learned_values(n_states, rollouts=120, **env_args):
    """Values of the first states of a chain that pays 1 a step."""
    settings = BatchSettings.from_dict(
        {"agent": "ppo", "env": "scripted_envs:Rewards-v0", "env_args": env_args}
        | {"envs": 2, "hidden": (8,), "gamma": 0.8, "alpha": 0.02, "rollout": 10, "minibatch": 10, "dtype": "float64"}
        | {"normalise_observations": False, "scale_rewards": False, "max_grad_norm": 0.0, "steps": rollouts * 20}
    )
    experience = make_experience(settings, [0, 1])
    agent = settings.make_agent(gym.make("scripted_envs:Rewards-v0", **settings.env_args))
    for _ in range(rollouts):
        policy = agent.policy()
        agent.learn(experience.gather(10, policy), policy)
    return [agent.value(s) for s in range(n_states)]


def test_a_time_limit_does_not_lower_values():
    # Without an end, 1 a step is worth 1 / (1 - 0.8) = 5 everywhere, however often a limit cuts.
    values = learned_values(2, rewards=(1.0,), ending="never", max_episode_steps=4)
    np.testing.assert_allclose(values, 5.0, atol=0.1)


def test_a_terminal_state_is_worth_nothing():
    # v(4) = 1, v(s) = 1 + 0.8 v(s + 1)
    np.testing.assert_allclose(learned_values(5, rewards=(1.0,) * 5), [3.3616, 2.952, 2.44, 1.8, 1.0], atol=0.1)


# --- normalisers ----------------------------------------------------------------------------------------------------


def gathered(n_rollouts, numbers=((0, 1, 2),), env="valueapprox/CartPole-v1", **changed):
    """An agent that has learned from some rollouts, collected in shares of its environments, and the rollouts."""
    settings = BatchSettings.from_dict(
        {"agent": "ppo", "env": env, "envs": 3, "hidden": (6,), "rollout": 40, "minibatch": 30, "epochs": 2}
        | {"dtype": "float64", "seed": 2, "gamma": 0.9, "steps": 1200} | changed
    )  # fmt: skip
    agent = settings.make_agent(gym.make(env))
    parts = [make_experience(settings, list(own)) for own in numbers]
    rollouts = []
    for _ in range(n_rollouts):
        policy = agent.policy()
        rollouts.append(Rollout.join([part.gather(40, policy) for part in parts]))
        agent.learn(rollouts[-1], policy)
    return agent, rollouts


def test_statistics_of_observations_are_those_of_all_of_them():
    agent, rollouts = gathered(4)
    seen = np.concatenate([rollout.observations[:-1].reshape(-1, 4) for rollout in rollouts]).astype(np.float64)
    n, mean, squares = agent.observed[0], agent.observed[1:5], agent.observed[5:]
    assert n == len(seen) == 4 * 40 * 3
    np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(squares / n, seen.var(axis=0), rtol=1e-12)
    more = rollouts[0].observations[0] * 3.0
    expected = (more - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + 1e-8)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(agent.states_of(more, agent.policy()), expected, rtol=1e-9)
    far = agent.states_of(np.array([[1e9, -1e9, 0.0, 0.0]]), agent.policy())[0]
    np.testing.assert_array_equal(far[:2], [10.0, -10.0])


def test_large_means_lose_no_digits():
    # Sums of squares would: 1e8 squared leaves no digit of a variance of 1.
    agent = PPO(STATES, ACTIONS["discrete"], 2, (4,), dtype="float64", rollout=5, normalise_observations=True)
    rng, seen = np.random.default_rng(1), []
    for _ in range(6):
        rollout = Rollout.zeros(5, 2, 3, 1, "float64")
        rollout.observations[:] = rng.normal([0.0, 1e8, -1e4], [1.0, 1.0, 1e-3], (6, 2, 3))
        rollout.next_observations[:] = rollout.observations[1:]
        agent.learn(rollout, agent.policy())
        seen.append(rollout.observations[:-1].reshape(-1, 3))
    np.testing.assert_allclose(agent.observed[4:] / agent.observed[0], np.concatenate(seen).var(axis=0), rtol=1e-6)


def test_the_scale_of_rewards_is_that_of_a_plain_loop():
    agent, rollouts = gathered(3)
    sums = []
    for i in range(3):
        u = 0.0
        for rollout in rollouts:
            for r, ended in zip(rollout.rewards[:, i], (rollout.terminated | rollout.truncated)[:, i], strict=True):
                u = 0.9 * u + r
                sums.append(u)
                u = 0.0 if ended else u
        assert agent.discounted[i] == pytest.approx(u)
    assert agent.reward_scale == pytest.approx(np.std(sums), rel=1e-12)
    scaled, discounts = agent.scaled(rollouts[-1])
    np.testing.assert_allclose(scaled, rollouts[-1].rewards / np.std(sums), rtol=1e-12)
    np.testing.assert_array_equal(discounts, np.where(rollouts[-1].terminated, 0.0, 0.9))
    large = rollouts[-1]._replace(rewards=np.full((40, 3), 1e6))
    assert (agent.scaled(large)[0] == 10.0).all()
    value = agent.value([0.0, 0.0, 0.0, 0.0])  # is in the unit of the rewards themselves
    states = agent.states_of(np.zeros((1, 4)), agent.policy())
    assert value == pytest.approx(agent.values_of(states)[0, 0] * np.std(sums))


def test_rewards_that_never_differ_are_not_scaled():
    agent = PPO(STATES, ACTIONS["discrete"], 2, (4,), gamma=0.0, dtype="float64", rollout=5, scale_rewards=True)
    rollout = Rollout.zeros(5, 2, 3, 1, "float64")
    rollout.rewards[:] = 0.1
    agent.learn(rollout, agent.policy())
    assert agent.reward_scale == 1.0


def test_a_new_episode_after_a_resume_begins_a_sum_of_rewards_of_its_own():
    agent, _ = gathered(1)
    before = agent.discounted.copy()
    rollout = Rollout.zeros(40, 3, 4, 1, "float64")
    rollout.restarted[1] = True
    agent.learn(rollout, agent.policy())
    np.testing.assert_allclose(agent.discounted, [before[0] * 0.9**40, 0.0, before[2] * 0.9**40])


def test_normalisers_stand_still_while_a_rollout_is_collected_and_in_evaluation():
    agent, _ = gathered(2)
    before = {name: array.copy() for name, array in agent.state_dict().items()}
    policy = agent.policy()
    rng = np.random.default_rng(0)
    actor = agent.actor()
    agent.start(rng.normal(size=(3, 4)))
    for t in range(39):  # the 40th step learns
        actor.start(50.0 * rng.normal(size=4))
        agent.step(np.ones(3), 50.0 * rng.normal(size=(3, 4)), np.full(3, t % 7 == 6), np.zeros(3, bool), [None] * 3)
        agent.value(rng.normal(size=4))
    np.testing.assert_array_equal(agent.policy(), policy)
    for name, array in agent.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    np.testing.assert_array_equal(actor.policy, policy)
    agent.step(np.ones(3), rng.normal(size=(3, 4)), np.zeros(3, bool), np.zeros(3, bool))
    assert agent.observed[0] == before["observed"][0] + 120
    assert (agent.policy() != policy).any()
    np.testing.assert_array_equal(actor.policy, policy)  # of an actor that was made before: still


@pytest.mark.parametrize("env", ["valueapprox/CartPole-v1", "CartPole-v1"])
def test_it_does_not_matter_how_environments_are_dealt_out(env):
    assert (compiled_world(env) is None) == (env == "CartPole-v1")
    agent, _ = gathered(3, env=env)
    other, _ = gathered(3, ((0,), (1, 2)), env=env)
    for name, array in agent.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[name], err_msg=name)
