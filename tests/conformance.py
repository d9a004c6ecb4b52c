"""What every world must do: tests call these for each that is registered, and for that of the documentation."""

import warnings

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from valueapprox import envs
from valueapprox.agents import evaluation
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.policies import heuristics, resolve, task_name
from valueapprox.agents.rollout import CompiledRollout, GymnasiumRollout, Task, make_rollout

OF_GYMNASIUMS_OWN = (".*infinity", ".*symmetric and normalized")  # bounds of CartPole-v1, torque of Pendulum-v1


def gymnasium_has_no_complaints(env_id, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in OF_GYMNASIUMS_OWN:
            warnings.filterwarnings("ignore", message=message)
        check_env(gym.make(env_id).unwrapped, skip_render_check=True)


def compiled_rollouts_are_those_of_gymnasium(env_id, folder):
    policies = [("random", 0.0), *[("heuristic", noise) for noise in (0.0, 0.3) if task_name(env_id) in heuristics()]]
    for policy, noise in policies:
        compiled, plain = (
            make_rollout(Task(env_id, policy, noise, seed=11, compiled=c), [0, 3]) for c in (True, False)
        )
        assert isinstance(compiled, CompiledRollout)
        assert isinstance(plain, GymnasiumRollout)
        for n in (1, 250, 249):
            for ours, gymnasiums in zip(compiled.collect(n)[0], plain.collect(n)[0], strict=True):
                assert (ours.dtype, ours.tobytes()) == (gymnasiums.dtype, gymnasiums.tobytes())


def the_heuristic_is_followed_unless_another_policy_is_asked_for(env_id, folder):
    known = task_name(env_id) in heuristics()
    assert resolve("auto", None, env_id)[0] == ("heuristic" if known else "random")
    env = gym.make(env_id)
    if known:
        action = heuristics()[task_name(env_id)](env.reset(seed=0)[0], None)
        assert env.action_space.contains(action if isinstance(action, np.ndarray) else np.int64(action))


def an_interrupted_environment_goes_on(env_id, folder):
    env, again = gym.make(env_id), gym.make(env_id)
    env.action_space.seed(0)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(20)]
    kept = envs.env_state(env)
    envs.restore_env_state(again, kept)
    for action in actions:
        ours, theirs = env.step(action), again.step(action)
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1:] == theirs[1:]
        if ours[2] or ours[3]:
            assert env.reset()[0].tobytes() == again.reset()[0].tobytes()


def what_is_known_of_its_values_is_what_experience_says(env_id, folder):
    """Each state's mean TD error is 0 and it is visited as often as it should, within five standard errors."""
    gamma, n = 0.9, 20_000
    known = evaluation.truth(Task(env_id, "random"), gamma)
    if known is None:
        return
    features, values, visits = known
    index = {row.astype(np.float32).tobytes(): i for i, row in enumerate(features)}
    block, _ = make_rollout(Task(env_id, "random", env_args={"max_episode_steps": -1}), [0]).collect(n)
    states = np.array([index[s.tobytes()] for s in block.observations[0]])
    pairs = zip(block.next_observations[0], block.terminated[0], strict=True)
    after = np.array([0.0 if terminal else values[index[s.tobytes()]] for s, terminal in pairs])
    errors = block.rewards[0] + gamma * after - values[states]
    for i in range(len(values)):
        mine = errors[states == i]
        assert abs(mine.mean()) <= 5 * mine.std() / np.sqrt(mine.size) + 1e-9
    # Visits of one episode depend on each other; an episode counts as one sample.
    ends = np.flatnonzero(block.terminated[0]) + 1
    counts = np.array([np.bincount(part, minlength=len(values)) for part in np.split(states, ends)[:-1]])
    excess = counts - counts.sum(axis=1, keepdims=True) * visits
    assert (abs(excess.mean(axis=0)) <= 5 * excess.std(axis=0) / np.sqrt(len(ends)) + 1e-9).all()


def the_compiled_control_loop_is_that_of_gymnasium(env_id, folder):
    ends = []
    for compiled in (True, False):
        run = ControlRun(ControlSettings(env_id, steps=600), folder / str(compiled), compiled=compiled)
        run.train()
        assert (run.loop is not None) is compiled
        ends.append((run.agent.first.w.tobytes(), run.agent.second.w.tobytes(), run.agent.counts.tolist()))
    assert ends[0] == ends[1]


WORLD_CHECKS = (
    gymnasium_has_no_complaints,
    compiled_rollouts_are_those_of_gymnasium,
    the_heuristic_is_followed_unless_another_policy_is_asked_for,
    an_interrupted_environment_goes_on,
    what_is_known_of_its_values_is_what_experience_says,
    the_compiled_control_loop_is_that_of_gymnasium,
)
