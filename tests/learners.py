"""Small learners of every kind, each with a digest of what it learned: a test compares them across processes.

python tests/learners.py NAME ...    learn in this order; prints one line for each, its name and its digest
"""

import hashlib
import sys

import gymnasium as gym
import numpy as np

from valueapprox import (
    Adam,
    Network,
    ObGD,
    Predictions,
    ValueFunction,
    VarianceAdjusted,
    envs,  # registers the compiled worlds
    fit,
)
from valueapprox.agents import QRC, StreamAC, StreamQ, StreamTD
from valueapprox.agents.control_loop import CompiledLoop
from valueapprox.agents.rollout import Task, make_rollout


def stream(n, d, dtype):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(n + 1, d)).astype(dtype)
    return states[:-1], rng.normal(size=n), states[1:], rng.random(n) < 0.05, rng.random(n) < 0.05


def value_function(optimizer, one_by_one=False, dtype="float32", **settings):
    net = Network((4, 32, 1), dtype=dtype, **settings)
    v = ValueFunction(net, optimizer, gamma=0.9, lam=0.8, seed=1)
    transitions = stream(300, 4, dtype)
    if one_by_one:
        for s, r, s_next, terminated, truncated in zip(*transitions, strict=True):
            v.learn(s, r, s_next, terminated, truncated)
    else:
        v.learn_stream(*transitions)
    return v.w


def predictions(dtype):
    p = Predictions(Network((4, 16, 3), dtype=dtype), Adam(), [0.5, 0.9, 0.99], 0.8, streams=2, seed=1)
    s, r, s_next, terminated, truncated = stream(300, 4, dtype)
    p.learn(np.arange(300) % 2, s, np.stack([r, -r, r * r], axis=1), s_next, terminated, truncated)
    return p.w


def fitted(dtype):
    net = Network((4, 32, 32, 1), dtype=dtype)
    w, s = net.init(seed=0), np.random.default_rng(0).normal(size=(128, 4))
    fit(net, w, s, s[:, :1] ** 2, optimizer=Adam(1e-2), epochs=3, batch_size=32, seed=0, progress=False)
    return w


def agent(kind, env_id, n=400, compiled=False, **settings):
    env = gym.make(env_id)
    learner = kind(env.observation_space, env.action_space, seed=1, **settings)
    observation, _ = env.reset(seed=1)
    action = learner.start(observation)
    if compiled:
        world, limit = envs.compiled_world(env_id)
        CompiledLoop(learner, env, world, limit, np.zeros(2)).run(n)
        return np.concatenate([learner.first.w, learner.second.w])
    for _ in range(n):
        observation, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            learner.end(reward, observation, terminated)
            observation, _ = env.reset()
            action = learner.start(observation)
        else:
            action = learner.step(reward, observation)
    return np.concatenate([learner.first.w, learner.second.w])


def rollout():
    block, _ = make_rollout(Task("valueapprox/Acrobot-v1", "random", seed=1), [0, 1]).collect(200)
    return np.concatenate([block.next_observations.ravel(), block.rewards.ravel()])


CART, CAR = "valueapprox/CartPole-v1", "valueapprox/MountainCar-v0"
#: The first names are those that version 0.1 learned differently in a process that compiles and in one that loads.
LEARNERS = {
    "obgd": lambda: value_function(ObGD()),
    "stream-ac": lambda: agent(StreamAC, CAR),
    "stream-ac-compiled": lambda: agent(StreamAC, CAR, compiled=True),
    "obgd-one-by-one": lambda: value_function(ObGD(), one_by_one=True),
    "obgd-float64": lambda: value_function(ObGD(), dtype="float64"),
    "adam-layer-norm-float64": lambda: value_function(Adam(), dtype="float64", layer_norm=True),
    "variance-adjusted": lambda: value_function(VarianceAdjusted(), layer_norm=True, hidden="tanh"),
    "predictions": lambda: predictions("float32"),
    "predictions-float64": lambda: predictions("float64"),
    "fit": lambda: fitted("float32"),
    "fit-float64": lambda: fitted("float64"),
    "rollout": rollout,
    "stream-q": lambda: agent(StreamQ, CART),
    "stream-q-compiled": lambda: agent(StreamQ, CART, compiled=True),
    "qrc-float64": lambda: agent(QRC, CART, dtype="float64"),
    "stream-td": lambda: agent(StreamTD, CART),
    "stream-ac-continuous": lambda: agent(StreamAC, "valueapprox/Pendulum-v1"),
    "stream-ac-continuous-compiled": lambda: agent(StreamAC, "valueapprox/Pendulum-v1", compiled=True),
}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, hashlib.sha256(LEARNERS[name]().tobytes()).hexdigest()[:16], flush=True)
