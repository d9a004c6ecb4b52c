"""What a fit did, epoch by epoch: its rows, its weights, and all that it needs to go on, in one file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox import checkpoint
from valueapprox.nn.network import Network
from valueapprox.optim import Optimizer, OptimizerState
from valueapprox.supervised import losses
from valueapprox.supervised.objective import NORMS

__all__ = ["FitError", "History"]

COUNTS = ["epoch", "batch", "best_epoch", "plateau_epochs"]
NUMBERS = [*COUNTS, "best_loss", "plateau_loss", "objective", "change", "factor"]


class FitError(FloatingPointError):
    """A loss, or a weight, became NaN or infinite.

    After `fit`, w is that from before the minibatch, or where a weight overflowed, of the last whole epoch.

    Attributes
    ----------
    history
        What `fit` had done until then, with `best_w` if there were validation data; None from elsewhere.
    """

    history: History | None = None


class History:
    """What `fit` did, epoch by epoch, and all that it needs to go on.

    Attributes
    ----------
    net, w
        The network and its weights: after `fit`, with early stopping, those of the best epoch.
    rows
        One dict for each epoch: epoch, updates, loss (the mean over the epoch, each minibatch before its update),
        penalty and validation_loss (at its end), step_size (the factor of schedule and plateau in its last update),
        grad_norm/<layer> (of the objective, mean over the first, ninth, ... minibatch).
    epoch, n_updates
        Epochs completed, and updates made.
    best_epoch, best_loss
        Where the validation loss was at its minimum, and what it was; None and infinity without validation data.
    reason
        Why it ended, in words.
    """

    def __init__(self, net: Network, w: np.ndarray, optimizer: Optimizer) -> None:
        self.net, self.w = net, w
        self.rows: list[dict[str, float]] = []
        self.reason = ""
        self.epoch = self.batch = 0
        self.best_epoch: int | None = None
        self.best_loss = self.plateau_loss = self.objective = self.change = math.inf
        self.plateau_epochs = 0
        self.factor = 1.0
        self.state = optimizer.init(w)
        self.best_w = w.copy()
        self.last_w = w.copy()
        self.sums = np.zeros(NORMS + net.n_layers)
        self.settings: dict[str, Any] = {}

    @property
    def n_updates(self) -> int:
        """Number of updates so far."""
        return int(self.state.n_updates[0])

    def copy(self, net: Network, w: np.ndarray, optimizer: Optimizer) -> History:
        """A history of these weights that goes on from where this one stands."""
        other = History(net, w, optimizer)
        for name in NUMBERS:
            setattr(other, name, getattr(self, name))
        other.rows = list(self.rows)
        other.state = OptimizerState(*(array.copy() for array in self.state))
        other.sums, other.best_w, other.last_w = self.sums.copy(), self.best_w.copy(), self.last_w.copy()
        return other

    def __getitem__(self, column: str) -> np.ndarray:
        """A column of the rows, one number for each epoch: ``history["loss"]``, ``history["grad_norm/A"]``."""
        if not any(column in row for row in self.rows):
            known = sorted({name for row in self.rows for name in row})
            wanted = f"one of {', '.join(known)}" if known else "none, as no epoch is complete"
            raise KeyError(f"column is {column!r}; expected {wanted}")
        return np.array([row.get(column, math.nan) for row in self.rows])

    def __repr__(self) -> str:
        last = self.rows[-1] if self.rows else {}
        numbers = ", ".join(f"{name} {last[name]:.4g}" for name in ("loss", "validation_loss") if name in last)
        return (
            f"<History: {self.epoch} epochs, {self.n_updates} updates, {numbers or 'no epoch complete'}; {self.reason}>"
        )

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write all of it to one file: network, weights, rows, and what `fit(..., resume=path)` needs. No pickle."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        finite = {name: None if value == math.inf else value for name, value in numbers.items()}
        told = {name: getattr(self, name) for name in ("rows", "reason", "settings")}
        meta = {"kind": "fit", "net": self.net.as_dict(), "numbers": finite, **told}
        checkpoint.save(path, self._arrays(), meta)

    def _arrays(self) -> dict[str, np.ndarray]:
        own = {name: getattr(self, name) for name in ("w", "last_w", "best_w", "sums")}
        state = self.state
        return {**own, "moments": state.moments, "scalars": state.scalars, "count": state.n_updates}

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged or holds no fit.
        """
        arrays, meta = checkpoint.load(path)
        try:
            net = Network(**meta["net"])
            checkpoint.must_be_finite({"w": arrays["w"]})
            self = cls(net, np.empty(net.size, net.dtype), Optimizer.from_dict(meta["settings"]["optimizer"]))
            for name, array in self._arrays().items():
                _fill(name, array, arrays[name])
            for name in NUMBERS:
                value = meta["numbers"][name]
                setattr(self, name, math.inf if value is None and name != "best_epoch" else value)
            self.rows, self.reason, self.settings = meta["rows"], meta["reason"], meta["settings"]
            self.settings["loss"] = losses.stored(self.settings["loss"])
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{path} holds no fit ({error!r})") from None
        return self


def _fill(name: str, array: np.ndarray, stored: np.ndarray) -> None:
    if stored.shape != array.shape or stored.dtype != array.dtype:
        raise ValueError(f"{name} is {stored.dtype} {stored.shape}; expected {array.dtype} {array.shape}")
    array[...] = stored
