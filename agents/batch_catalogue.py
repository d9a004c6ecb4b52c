"""Every agent that learns from many environments: a new one is a line here."""

from valueapprox.agents.ppo import PPO  # isort: split

from valueapprox.agents.a2c import A2C
from valueapprox.agents.batched import BATCH_AGENTS, BatchAgent
from valueapprox.agents.dqn import DQN, DoubleDQN
from valueapprox.agents.expected_sarsa_replay import ExpectedSarsaReplay
from valueapprox.agents.impala import Impala
from valueapprox.agents.pqn import PQN

__all__ = ["A2C", "BATCH_AGENTS", "DQN", "PPO", "PQN", "BatchAgent", "DoubleDQN", "ExpectedSarsaReplay", "Impala"]
