"""Temporal-difference learning of values: methods, one value function, many predictions."""
