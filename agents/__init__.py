"""Agents that learn in Gymnasium environments, what they are made of, and what runs them. A new one is a line here."""

from agents.actor_critic import StreamAC  # isort: split

from agents.base import AGENTS, Actor, ControlAgent
from agents.expected_sarsa import ExpectedSarsa
from agents.q import StreamQ
from agents.qrc import QRC
from agents.sarsa import Sarsa
from agents.td import StreamTD

__all__ = ["AGENTS", "QRC", "Actor", "ControlAgent", "ExpectedSarsa", "Sarsa", "StreamAC", "StreamQ", "StreamTD"]
