"""Honest statistics over runs: functions on arrays that say how good something is, and how sure that is.

A run is one number, its score; higher is better, and a run that failed or diverged scores -inf. Where runs come from
several tasks, they are a list with one array per task.
"""

from valueapprox.statistics.aggregates import STATISTICS, area_under_curve, register
from valueapprox.statistics.comparisons import paired_difference, probability_of_improvement, seeds_to_decide
from valueapprox.statistics.hyperparameters import (
    Sensitivity,
    choose_across,
    effective_dimension,
    sensitivity,
    sensitivity_curves,
)
from valueapprox.statistics.intervals import (
    Estimate,
    estimate,
    interval_of_mean,
    intervals_of_measures,
    tolerance_interval,
)
from valueapprox.statistics.profiles import performance_profile

__all__ = [
    "STATISTICS",
    "Estimate",
    "Sensitivity",
    "area_under_curve",
    "choose_across",
    "effective_dimension",
    "estimate",
    "interval_of_mean",
    "intervals_of_measures",
    "paired_difference",
    "performance_profile",
    "probability_of_improvement",
    "register",
    "seeds_to_decide",
    "sensitivity",
    "sensitivity_curves",
    "tolerance_interval",
]
