"""What is called a value is a mean, by default: a short form of tests/bars/means.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bars"))

import means

AGENTS = ("StreamTD", "critic of stream-ac")


WORLDS = [("steps", 0.5), ("steps", 0.02), ("steps", 0.01), ("negative", 0.02), ("ends", 0.02)]
LEARNERS = (*AGENTS, "ValueFunction", "Predictions")  # what learns in all of the defaults


#: Each learner in two worlds, each other world with one of an agent and one of a learner; in full all in all.
BOTH = (("steps", 0.02), ("ends", 0.02))
ALONE = {("steps", 0.5): ("StreamTD", "Predictions"), ("steps", 0.01): ("critic of stream-ac", "ValueFunction")}
ALONE |= {("negative", 0.02): ("StreamTD", "ValueFunction")}


@pytest.mark.parametrize(
    ("name", "world", "p"),
    [
        pytest.param(n, *w, marks=() if w in BOTH or n in ALONE[w] else pytest.mark.full)
        for n in means.DEFAULTS
        for w in WORLDS
        if n in LEARNERS or w in BOTH
    ],
)
def test_rare_large_rewards_are_worth_what_they_bring(name, world, p):
    # The rewards that came say what the value is more closely than the 10 that they bring in expectation.
    steps = 40_000 if name in AGENTS else 200_000
    v, realised = means.mean_value(means.DEFAULTS[name], world, p, steps, seeds=2)
    assert v == pytest.approx(realised, rel=0.05)
    assert abs(realised) == pytest.approx(10.0, rel=0.25)


def test_rules_that_bound_the_error_are_told_apart():
    # By ObGD the same rewards are worth 3 to 4 where they bring 10, as its docstring says.
    v, realised = means.mean_value(means.by_optimizer("obgd"), "steps", 0.02, 40_000, seeds=1)
    assert v < 0.5 * realised
