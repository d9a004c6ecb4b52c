"""Agents that learn in Gymnasium environments, what they are made of, and what runs them."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """The agents of the catalogues, imported when asked for: a server has no use for Gymnasium."""
    if name[0].isupper():
        for catalogue in ("catalogue", "batch_catalogue"):
            module = importlib.import_module(f"valueapprox.agents.{catalogue}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
