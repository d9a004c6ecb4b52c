"""Temporal-difference learning of values: the methods, one value function, many predictions.

Each import below registers a method; the line is all that a new one needs beside its file.
"""

from valueapprox.td.base import METHODS, Method, register
from valueapprox.td.td_lambda import TDLambda  # isort: split

from valueapprox.td.n_step import MonteCarlo, NStep

__all__ = ["METHODS", "Method", "MonteCarlo", "NStep", "TDLambda", "register"]
