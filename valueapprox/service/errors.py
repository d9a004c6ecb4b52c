"""What a service raises. Each error knows the HTTP status that stands for it, and its name is its type there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valueapprox.service.messages import LearnResult

__all__ = [
    "ClosedError", "GapError", "InvalidRequestError", "QueueFullError", "ReadOnlyError", "ServiceError", "StorageError",
]  # fmt: skip


class ServiceError(Exception):
    """The service cannot do this, or not now."""

    status = 503
    retry_after: float | None = None  # seconds until another try makes sense


class QueueFullError(ServiceError):
    """Too many transitions wait to be learned; try again in `retry_after` seconds."""

    status = 429

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class StorageError(ServiceError):
    """The journal cannot be written; nothing of the request was learned. Values are still served."""

    retry_after = 5.0


class ReadOnlyError(ServiceError):
    """The service answers requests for values; it does not learn."""

    status = 403


class ClosedError(ServiceError):
    """The service was closed."""

    retry_after = 5.0


class InvalidRequestError(ServiceError, ValueError):
    """A request that is not well formed. Nothing of it was learned.

    `field` names what is wrong, None for the request as a whole; `indices` say which entry of it. For transitions
    the first index is that of the transition, which is `index` as well.
    """

    def __init__(self, field: str | None, message: str, indices: tuple[int, ...] = (), status: int = 422) -> None:
        super().__init__(field, message, indices, status)
        self.field, self.message, self.indices, self.status = field, message, indices, status

    @property
    def index(self) -> int | None:
        """The transition that is wrong, or None if it is not a single one."""
        return self.indices[0] if self.indices else None

    @property
    def path(self) -> str | None:
        """The field and the entry, as state[1][2]."""
        return self.field and self.field + "".join(f"[{i}]" for i in self.indices)

    def __str__(self) -> str:
        return f"{self.path} {self.message}" if self.field else self.message


class GapError(ServiceError):
    """Transitions before these are missing in a stream; from there on nothing of the stream was learned.

    `expected` is the sequence number that is due in `stream`, where `sequence` came; `index` says which transition that
    was. `result` says what became of each, since other streams of the request were learned.
    """

    status = 409

    def __init__(self, stream: str, sequence: int, expected: int, index: int, result: LearnResult) -> None:
        super().__init__(stream, sequence, expected, index, result)
        self.stream, self.sequence, self.expected, self.index, self.result = stream, sequence, expected, index, result
        self.message = f"is {sequence}; expected {expected}, the next number of stream {stream!r}"

    def __str__(self) -> str:
        return f"sequence {self.message}"
