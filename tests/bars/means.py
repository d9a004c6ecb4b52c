"""Are learned values means? Rewards of 1 / p with probability p, so that with gamma = 0.9 every state's value is 10."""

import argparse
import sys
from pathlib import Path

import numpy as np
from gymnasium import spaces

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from valueapprox import Network, Optimizer, Predictions, ValueFunction
from valueapprox.agents import StreamAC, StreamTD
from valueapprox.agents import layout as kernels
from valueapprox.agents.prediction_run import PredictionSettings
from valueapprox.optim import OPTIMIZERS
from valueapprox.service import ServiceSettings

GAMMA, N_INPUTS = 0.9, 3
SPACE = spaces.Box(-10.0, 10.0, (N_INPUTS,))


def rewards_of(world: str, p: float, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rewards whose sum from here on, discounted, is worth 10 (-10), and whether each is an episode's last.

    "steps": 1 / p with probability p, at every step. "negative": -1 / p. "ends": episodes of one step pay 10 / p with
    probability p, where there is nothing to bootstrap.
    """
    hit = (rng.random(n) < p) / p
    ends = np.full(n, world == "ends")
    return {"steps": hit, "negative": -hit, "ends": 10.0 * hit}[world], ends


def of_agent(kind: type[StreamTD] | type[StreamAC], optimizer: Optimizer | None, rewards, ended, states, seed) -> float:
    """The mean of v over the second half of an agent's life."""
    agent = kind(SPACE, spaces.Discrete(2), gamma=GAMMA, seed=seed, optimizer=optimizer)
    here, memory, arrays, at = agent.first.scratch, agent.memory, agent.arrays, agent.first.net.starts[-2]
    half, total = rewards.size // 2, 0.0
    agent.start(states[0])
    for t in range(rewards.size):
        agent.learn(states[t + 1], rewards[t], ended[t], False, *arrays)
        if ended[t]:
            agent.begin(states[t + 1], *arrays)
        if t >= half:
            total += here[0, at] * (memory[kernels.REWARD_SCALE] or 1.0)
    return total / (rewards.size - half)


def of_learner(v: ValueFunction | Predictions, rewards, ended, states) -> float:
    """The same of a learner without an agent; its values are looked at every hundred steps."""
    values, no = [], np.zeros(100, bool)
    for t in range(0, rewards.size - 99, 100):
        these = slice(t, t + 100)
        s, s_next, r = states[these], states[t + 1 : t + 101], rewards[these]
        if isinstance(v, Predictions):
            v.learn(np.zeros(100, np.int64), s, r[:, None], s_next, ended[these], no)
        else:
            v.learn_stream(s, r, s_next, ended[these], no)
        if t >= rewards.size // 2:
            values.append(float(np.mean(v.predict(states[t + 100]))))
    return float(np.mean(values))


def served(seed: int) -> Predictions:
    """What `serve.py --new` learns."""
    import serve

    settings = serve.new_settings(serve.Serve(new=True, inputs=N_INPUTS, gamma=(GAMMA,), seed=seed), {})
    return Predictions(settings.net, settings.optimizer, settings.discounts, settings.lams, seed=seed)


NET = Network((N_INPUTS, 64, 1))
#: What is called a value, by default: each a function (rewards, ended, states, seed) -> mean of v.
DEFAULTS = {
    "StreamTD": lambda *life: of_agent(StreamTD, None, *life),
    "critic of stream-ac": lambda *life: of_agent(StreamAC, None, *life),
    "ValueFunction": lambda r, e, s, seed: of_learner(ValueFunction(NET, gamma=GAMMA, seed=seed), r, e, s),
    "Predictions": lambda r, e, s, seed: of_learner(Predictions(NET, discounts=(GAMMA,), seed=seed), r, e, s),
    "service": lambda r, e, s, seed: of_learner(
        Predictions(NET, ServiceSettings(NET).optimizer, (GAMMA,), ServiceSettings(NET).lams, seed=seed), r, e, s
    ),
    "serve.py --new": lambda r, e, s, seed: of_learner(served(seed), r, e, s),
    "prediction run": lambda r, e, s, seed: of_learner(
        PredictionSettings(steps=r.size, gamma=GAMMA, envs=1, seed=seed).make_value_function(N_INPUTS), r, e, s
    ),
}


def by_optimizer(name: str):
    """StreamTD's recipe with another optimizer, its settings the default ones."""
    return lambda *life: of_agent(StreamTD, OPTIMIZERS[name](), *life)


def mean_value(learn, world: str, p: float, steps: int, seeds: int) -> tuple[float, float]:
    """Mean over seeds of what was learned, and of what the second half's rewards would have made it."""
    values, realised = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        rewards, ended = rewards_of(world, p, steps, rng)
        states = rng.normal(size=(steps + 1, N_INPUTS)).astype(np.float32)
        values.append(learn(rewards, ended, states, seed))
        realised.append(rewards[steps // 2 :].mean() * (1.0 if world == "ends" else 1.0 / (1.0 - GAMMA)))
    return float(np.mean(values)), float(np.mean(realised))


def main() -> int:
    """Print a table; the exit code is 1 if a default is further than 5 % from the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--p", type=float, nargs="+", default=[0.5, 0.1, 0.02, 0.005])
    parser.add_argument("--worlds", nargs="+", default=["steps", "negative"], choices=["steps", "negative", "ends"])
    parser.add_argument("--only", nargs="+", help="names of defaults")
    parser.add_argument("--optimizers", nargs="*", help="instead of the defaults: StreamTD with each of these, or all")
    options = parser.parse_args()
    if options.optimizers is None:
        learners = {name: learn for name, learn in DEFAULTS.items() if options.only is None or name in options.only}
    else:
        learners = {name: by_optimizer(name) for name in options.optimizers or OPTIMIZERS}
    wrong = 0
    for name, learn in learners.items():
        for world in options.worlds:
            for p in options.p:
                v, realised = mean_value(learn, world, p, options.steps, options.seeds)
                far = not abs(v / (-10.0 if world == "negative" else 10.0) - 1.0) < 0.05
                wrong += far
                print(
                    f"{name:22} {world:9} p {p:<6} v {v:8.3f}  of these rewards {realised:8.3f}{'  X' * far}",
                    flush=True,
                )
    return int(wrong > 0 and options.optimizers is None)


if __name__ == "__main__":
    sys.exit(main())
