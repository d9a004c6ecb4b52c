"""Every agent that learns from a stream: a new one is a line here."""

from valueapprox.agents.actor_critic import StreamAC  # isort: split

from valueapprox.agents.base import AGENTS, Actor, ControlAgent
from valueapprox.agents.expected_sarsa import ExpectedSarsa
from valueapprox.agents.q import StreamQ
from valueapprox.agents.qrc import QRC
from valueapprox.agents.sarsa import Sarsa
from valueapprox.agents.td import StreamTD

__all__ = ["AGENTS", "QRC", "Actor", "ControlAgent", "ExpectedSarsa", "Sarsa", "StreamAC", "StreamQ", "StreamTD"]
