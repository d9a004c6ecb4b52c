"""What learns values by temporal differences, one or many: its network, weights, traces, and what the log shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_floats, positive
from valueapprox.nn.network import Network
from valueapprox.optim import STREAM_ADAM, Optimizer
from valueapprox.td import base

NORMS = {"grad_norm": base.GRADIENT, "trace_norm": base.TRACE, "update_ratio": base.UPDATE}  # tag: row of the sums


class Learner:
    """The base of `ValueFunction` and `Predictions`."""

    _w: np.ndarray
    _traces: np.ndarray
    _hyper: np.ndarray
    _count: np.ndarray
    _norms_every: int  # where in _hyper

    def __init__(self, net: Network, optimizer: Optimizer | None, streams: int) -> None:
        if net.output == "softmax":
            raise ValueError("output is softmax; expected linear, as values need not sum to 1")
        if net.batch_norm:
            raise ValueError(
                "net has batch normalisation, which needs many examples at a time; net.fold(w) makes it an ordinary "
                "network with the same predictions"
            )
        self.net = net
        self.optimizer = STREAM_ADAM if optimizer is None else optimizer
        self.streams = positive("streams", streams)
        self._dtype = np.dtype(net.dtype)
        self._stats = np.zeros((4, max(4, net.n_layers)))

    @property
    def w(self) -> np.ndarray:
        """The weights. Assigning copies into them, so that kernels and views keep seeing the same memory."""
        return self._w

    @w.setter
    def w(self, weights: ArrayLike) -> None:
        self._w[:] = as_floats("w", weights, self._dtype, self._w.shape)

    @property
    def traces(self) -> np.ndarray:
        """The eligibility traces, (streams, ...)."""
        return self._traces

    @property
    def n_transitions(self) -> int:
        """Number of transitions learned from, over all streams."""
        return int(self._count.flat[base.TRANSITIONS])

    @property
    def norms_every(self) -> int:
        """Every how many updates the per-layer norms are measured for `diagnostics`; 0, as at first, is never."""
        return int(self._hyper[self._norms_every])

    @norms_every.setter
    def norms_every(self, updates: int) -> None:
        self._hyper[self._norms_every] = positive("norms_every", updates, at_least=0)

    def _check_stream(self, stream: int) -> None:
        if stream not in range(self.streams):
            raise ValueError(f"stream is {stream}; expected a stream from 0 to {self.streams - 1}")

    def _norms(self, has_trace: bool = True) -> dict[str, float]:
        """Means of the norms that were sampled since the last log, by tag and layer."""
        sampled = self._stats[base.TOTALS, base.N_SAMPLED]
        return {
            f"{tag}/{name}": float(total / sampled)
            for tag, row in NORMS.items()
            if sampled > 0 and (has_trace or tag != "trace_norm")
            for name, total in zip(self.net.layer_names, self._stats[row], strict=False)
        }


def put(arrays: dict[str, np.ndarray], stored: Any) -> None:
    """Fill a learner's arrays from those of a file.

    Raises
    ------
    ValueError
        If one has another shape or dtype.
    """
    for name, array in arrays.items():
        found = stored[name]
        if found.shape != array.shape or found.dtype != array.dtype:
            raise ValueError(f"{name} is {found.dtype} {found.shape}; expected {array.dtype} {array.shape}")
        array[...] = found
