"""A value function as a service: in this process, as a named Ray actor, or over HTTP.

Each door is loaded when it is first used: importing this loads neither Ray nor FastAPI nor httpx.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "Client",
    "Closed",
    "Gap",
    "InvalidTransitions",
    "JournalError",
    "LearnResult",
    "QueueFull",
    "ReadOnly",
    "Service",
    "ServiceError",
    "ServiceSettings",
    "StorageError",
    "Transitions",
    "connect",
    "create_app",
    "start",
]

HOMES = {
    "Client": "client",
    "JournalError": "journal",
    "Service": "service",
    "connect": "ray_actor",
    "create_app": "api",
    "start": "ray_actor",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES.get(name, 'messages')}"), name)
