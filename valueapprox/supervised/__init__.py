"""Fitting a network to examples: losses, penalties, gradient descent, tables of examples."""
