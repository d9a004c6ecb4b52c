"""Agents that learn in Gymnasium environments, what they are made of, and what runs them."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """The agents of `catalogue`, imported when asked for: a server has no use for Gymnasium."""
    if not (name[0].isupper()):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module("valueapprox.agents.catalogue"), name)
