"""What a service learns, and how it keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from valueapprox.checkpoint import under_new_names
from valueapprox.checks import one_of, positive, python_settings
from valueapprox.nn.network import Network
from valueapprox.optim import STREAM_ADAM, Optimizer
from valueapprox.td.predictions import Predictions

__all__ = ["ServiceSettings"]

DURABILITIES = ("every", "batch", "none")
GAPS = ("reject", "cut")
MAY_BE_ZERO = ("seed", "retain_bytes", "norms_every")


@dataclass(frozen=True)
class ServiceSettings:
    """What a service learns, and how it keeps it.

    Parameters
    ----------
    net
        The network: k outputs, or one output of which every prediction gets its own network (`separate`).
    optimizer
        Moves the weights; Adam(beta2=0.9999) if not given.
    discounts, lams
        Discount and trace decay of each prediction, in [0, 1].
    names
        Of the predictions; "0", "1", ... by default.
    separate
        One network for each prediction.
    seed, init
        Of the initial weights; see `Network.init`.
    durability
        "batch": all requests that wait share one write that is forced to disk; "every": each has its own; "none": no
        journal, and a crash loses what came after the last checkpoint.
    on_gap
        What to do when sequence numbers are missing in a stream: "reject" the transition, or "cut" the stream's trace
        and learn it.
    max_streams
        Streams that have a trace; beyond that, the trace of the one that was used least recently is forgotten.
    max_known_streams
        Streams whose last sequence number is kept.
    max_batch
        Transitions in a request.
    max_queue
        Transitions that may wait.
    checkpoint_seconds, checkpoint_transitions, checkpoint_bytes
        A checkpoint is written when something was learned and the last one is so old, so many transitions or so many
        bytes of journal ago.
    segment_bytes
        Size at which the journal continues in a new file.
    retain_bytes
        How much of the journal is kept that the last checkpoint covers.
    norms_every
        Every how many updates the per-layer norms are measured; 0 is never.
    read_only
        Refuse to learn. Other weights may still be loaded.
    """

    net: Network
    optimizer: Optimizer = STREAM_ADAM
    discounts: tuple[float, ...] = (0.99,)
    lams: tuple[float, ...] = (0.9,)
    names: tuple[str, ...] = ()
    separate: bool = False
    seed: int = 0
    init: str = "he_normal"
    durability: str = "batch"
    on_gap: str = "reject"
    max_streams: int = 256
    max_known_streams: int = 100_000
    max_batch: int = 65_536
    max_queue: int = 262_144
    checkpoint_seconds: float = 60.0
    checkpoint_transitions: int = 1_000_000
    checkpoint_bytes: int = 256 * 2**20
    segment_bytes: int = 64 * 2**20
    retain_bytes: int = 0
    norms_every: int = 100
    read_only: bool = False

    def __post_init__(self) -> None:
        python_settings(self)
        for name in ("discounts", "lams"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(float(x) for x in np.atleast_1d(value)))
        if len(self.lams) == 1:
            object.__setattr__(self, "lams", self.lams * len(self.discounts))
        object.__setattr__(self, "names", tuple(self.names) or tuple(map(str, range(len(self.discounts)))))
        one_of("durability", self.durability, DURABILITIES)
        one_of("on_gap", self.on_gap, GAPS)
        for f in fields(self):
            if type(f.default) is int:
                positive(f.name, getattr(self, f.name), at_least=int(f.name not in MAY_BE_ZERO))
        if not 0 < self.checkpoint_seconds < np.inf:
            raise ValueError(f"checkpoint_seconds is {self.checkpoint_seconds}; expected a positive, finite number")
        if self.max_known_streams < self.max_streams:
            raise ValueError(
                f"max_known_streams is {self.max_known_streams}; expected at least max_streams, {self.max_streams}: "
                "a stream with a trace is known"
            )

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values; `from_dict` is the inverse."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "net": self.net.as_dict(), "optimizer": self.optimizer.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServiceSettings:
        """The settings that `as_dict` described."""
        net, optimizer = Network(**values["net"]), Optimizer.from_dict(values["optimizer"])
        return cls(**{**under_new_names(values), "net": net, "optimizer": optimizer})

    def learner(self) -> Predictions:
        """A fresh learner."""
        return Predictions(
            self.net,
            self.optimizer,
            self.discounts,
            self.lams,
            names=self.names,
            separate=self.separate,
            seed=self.seed,
            init=self.init,
            streams=self.max_streams,
        )
