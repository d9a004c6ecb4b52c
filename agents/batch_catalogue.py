"""Every agent that learns from many environments: a new one is a line here."""

from valueapprox.agents.batched import BATCH_AGENTS, BatchAgent
from valueapprox.agents.ppo import PPO

__all__ = ["BATCH_AGENTS", "PPO", "BatchAgent"]
