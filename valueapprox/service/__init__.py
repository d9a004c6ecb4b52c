"""A value function as a service: in this process, as a named Ray actor, or over HTTP.

Each way in is loaded when it is first used: importing this loads neither Ray nor FastAPI nor httpx.
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "Client": "client",
    "JournalError": "segments",
    "LearnResult": "messages",
    "Service": "service",
    "ServiceSettings": "settings",
    "Transitions": "messages",
    "connect": "ray_actor",
    "create_app": "api",
    "start": "ray_actor",
} | dict.fromkeys(
    ("ClosedError", "GapError", "InvalidRequestError", "QueueFullError", "ReadOnlyError", "ServiceError",
     "StorageError"), "errors"
)  # fmt: skip

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
