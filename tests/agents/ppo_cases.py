"""Updates of PPO in which ours and `scripts/torch_ppo.py` must agree, and the file of PyTorch's numbers.

python tests/agents/ppo_cases.py writes ppo_numbers.json anew; it needs PyTorch.
"""

import json
from pathlib import Path

import numpy as np
from gymnasium import spaces

from valueapprox import Adam
from valueapprox.agents.acting import Rollout
from valueapprox.agents.batch_catalogue import PPO
from valueapprox.agents.batched import shuffle

NUMBERS = Path(__file__).with_name("ppo_numbers.json")
N_ENVS, N_STEPS, D, ROLLOUTS = 3, 10, 3, 3
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "pairs": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-2.0, 2.0, (2,)),
}
PLAIN = {"rollout": N_STEPS, "minibatch": 8, "epochs": 3, "entropy": 0.01}

#: name: (actions, settings of the agent)
CASES = {
    "discrete": ("discrete", PLAIN),
    "discrete, the epochs end": ("discrete", PLAIN | {"kl_stop": 0.032, "shared": True}),
    "pairs, clipped values": ("pairs", PLAIN | {"value_clip": 0.2, "activation": "relu", "max_grad_norm": 0.0}),
    "pairs, raw advantages": ("pairs", PLAIN | {"normalise_advantages": False, "shared": True, "lam": 1.0}),
    "box": ("box", PLAIN | {"first_spread": 0.6, "value_clip": 0.1, "shared": True}),
    "box, normalised, decay": (
        "box",
        PLAIN | {"activation": "relu", "normalise_observations": True, "scale_rewards": True}
        | {"horizon": 150, "schedule": "linear", "minibatch": 7},
    ),
}  # fmt: skip


class Numbers:
    """Uniform numbers from the bits of PCG64, which NumPy promises not to change."""

    def __init__(self, seed):
        self.bits = np.random.PCG64(seed)

    def __call__(self, low, high, *shape):
        raw = self.bits.random_raw(int(np.prod(shape))) >> np.uint64(11)
        return low + (high - low) * (raw.astype(np.float64) * 2.0**-53).reshape(shape)


def make(name):
    """An agent with first weights of its own."""
    actions, settings = CASES[name]
    space = spaces.Box(-np.inf, np.inf, (D,), np.float64)
    agent = PPO(space, ACTIONS[actions], N_ENVS, (5, 4), Adam(0.01, epsilon=1e-5), 0.9, dtype="float64", **settings)
    numbers = Numbers(1)
    for key in ("network", "actor", "critic", "spread"):
        if key in agent.learners:
            w = agent.learners[key].w
            w += numbers(-0.1, 0.1, w.size) if key == "spread" else numbers(-0.4, 0.4, w.size) - w
    return agent


def rollouts(agent):
    """Random rollouts, with endings of all three kinds, and log-probabilities of a policy like the first one."""
    numbers, head = Numbers(2), agent.head
    for _ in range(ROLLOUTS):
        made = Rollout.zeros(N_STEPS, N_ENVS, D, head.n_values, "float64")
        made.observations[:] = numbers(-2.0, 3.0, *made.observations.shape)
        made.next_observations[:] = made.observations[1:]
        kind = numbers(0.0, 1.0, N_STEPS, N_ENVS)
        made.terminated[:], made.truncated[:] = kind < 0.15, (kind > 0.1) & (kind < 0.3)
        ended = made.terminated | made.truncated
        made.next_observations[ended] = numbers(-2.0, 3.0, int(ended.sum()), D)
        made.rewards[:] = numbers(-1.0, 2.0, N_STEPS, N_ENVS)
        if head.n_spreads:
            made.actions[:] = numbers(-1.0, 1.0, *made.actions.shape)
            z = made.actions / agent.own.first_spread
            made.log_probs[:] = (-0.5 * z**2 - np.log(agent.own.first_spread * np.sqrt(2.0 * np.pi))).sum(axis=2)
        else:
            made.actions[:] = np.floor(numbers(0.0, 1.0, *made.actions.shape) * head.layout)
            made.log_probs[:] = -np.log(np.prod(head.layout))
        made.log_probs[:] += numbers(-0.15, 0.15, N_STEPS, N_ENVS)
        yield made


def orders(agent):
    """The orders in which the agent's next call of `learn` goes through its rollout, one per epoch."""
    order, counts = np.arange(N_STEPS * N_ENVS), agent.counts.copy()
    for _ in range(agent.own.epochs):
        shuffle(order, agent._shuffle_key, counts)
        yield order.copy()


def ours(name):
    """After each rollout the weights by name, and what was logged."""
    agent = make(name)
    for rollout in rollouts(agent):
        agent.diagnostics()
        agent.learn(rollout, agent.policy())
        yield {key: learner.w.copy() for key, learner in agent.learners.items()}, agent.diagnostics()


def theirs(name):
    """The same by PyTorch: weights, and what was found in each minibatch."""
    from valueapprox.commands.torch_ppo import TorchPPO

    agent = make(name)
    torch = TorchPPO(agent)
    for rollout in rollouts(agent):
        dealt = list(orders(agent))
        found = torch.learn(rollout, dealt)
        # Ours draws as many numbers as it begins epochs.
        begun = -(-len(found) // -(-dealt[0].size // agent.own.minibatch))
        agent.counts[0] += begun * (dealt[0].size - 1)
        yield torch.weights(), found


def main():
    """Write the file."""
    text = {name: [entry(*result) for result in theirs(name)] for name in CASES}
    NUMBERS.write_text(json.dumps(text, separators=(",", ":")).replace('{"', '\n{"') + "\n")


def entry(weights, found):
    """As the file has it: weights by name, and of each minibatch the divergence and the entropy."""
    return {key: w.tolist() for key, w in weights.items()} | {"minibatches": [[f.kl, f.entropy] for f in found]}


if __name__ == "__main__":
    main()
