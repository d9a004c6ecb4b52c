"""Schedules: factors on the step size over the updates, as settings and as one kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from valueapprox.checks import positive
from valueapprox.compiling import kernel

__all__ = [
    "SCHEDULES",
    "Constant",
    "CosineDecay",
    "ExponentialDecay",
    "InverseTime",
    "LinearDecay",
    "Schedule",
    "StepDecay",
    "schedule_factor",
]

CONSTANT, LINEAR, INVERSE_TIME, COSINE, STEP, EXPONENTIAL = range(6)


@kernel
def decayed(code, final, steps, t):
    """The factor of a schedule that changes.

    A function of its own: inlined, its cosine and powers are computed ahead of the branches, at every update.
    """
    if code == LINEAR:
        return 1.0 + (final - 1.0) * min(t / steps, 1.0)
    if code == INVERSE_TIME:
        return 1.0 / (1.0 + t / steps)
    if code == COSINE:
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(t / steps, 1.0)))
    if code == STEP:
        return final ** math.floor(t / steps)
    return final ** (t / steps)


@kernel(inline=True)
def schedule_factor(code, final, steps, t):
    """Factor on the step size after t updates: see the schedules. `final` is their `final` or `decay`."""
    return 1.0 if code == CONSTANT else decayed(code, final, steps, t)


@dataclass(frozen=True)
class Schedule:
    """A factor on the step size after t updates, t = 0 at the first."""

    code = CONSTANT

    def __post_init__(self) -> None:
        if hasattr(self, "steps"):
            object.__setattr__(self, "steps", positive("steps", self.steps))
        for name in ("final", "decay"):
            number = getattr(self, name, 1.0)
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name} is {number}; expected a factor on the step size, finite and not negative")
            if hasattr(self, name):
                object.__setattr__(self, name, float(number))

    def settings(self) -> list[float]:
        """What the kernel reads: a code, a factor and a number of updates."""
        number = getattr(self, "final", getattr(self, "decay", 1.0))
        return [float(self.code), float(number), float(getattr(self, "steps", 1))]

    def factor(self, t: int) -> float:
        """The factor after t updates."""
        code, number, steps = self.settings()
        return float(schedule_factor(code, number, steps, t))


@dataclass(frozen=True)
class Constant(Schedule):
    """1, always."""


@dataclass(frozen=True)
class LinearDecay(Schedule):
    """From 1 in a straight line to `final` at `steps` updates, then `final`."""

    steps: int
    final: float = 0.0
    code = LINEAR


@dataclass(frozen=True)
class InverseTime(Schedule):
    """1 / (1 + t / steps): halved after `steps` updates. Meets Robbins and Monro's conditions."""

    steps: int
    code = INVERSE_TIME


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """From 1 along half a cosine to `final` at `steps` updates, then `final` (Loshchilov & Hutter 2017)."""

    steps: int
    final: float = 0.0
    code = COSINE


@dataclass(frozen=True)
class StepDecay(Schedule):
    """decay^floor(t / steps): multiplied by `decay` every `steps` updates."""

    steps: int
    decay: float = 0.5
    code = STEP


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """decay^(t / steps): as `StepDecay`, but a little at every update."""

    steps: int
    decay: float = 0.5
    code = EXPONENTIAL


SCHEDULES: dict[str, type[Schedule]] = {
    c.__name__: c for c in (Constant, LinearDecay, InverseTime, CosineDecay, StepDecay, ExponentialDecay)
}
