"""Learning agents and policies, the loops that run them, and what a person sees of it."""
