"""Experiments of many runs: cells (a setting and a seed each), a store of their results, workers, and a report."""

from valueapprox.agents.sweeps.cells import Cell, Range
from valueapprox.agents.sweeps.store import Result, Row, Store
from valueapprox.agents.sweeps.sweep import Sweep
from valueapprox.agents.sweeps.table import Group, Table

__all__ = ["Cell", "Group", "Range", "Result", "Row", "Store", "Sweep", "Table"]
