"""What the log says of units that never live, of epsilon and of the mean reward: networks whose numbers are known."""

import numpy as np
import pytest
from gymnasium import spaces

from valueapprox import SGD, Network
from valueapprox.agents import QRC, Sarsa, StreamAC, StreamQ
from valueapprox.agents.base import DEAD_AFTER, FLAT_BELOW
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.nn.activations import HIDDEN
from valueapprox.supervised.gradient_flow import gradient_flow
from valueapprox.telemetry import read_metrics

SPACE = spaces.Box(-10.0, 10.0, (3,), np.float64)
THREE = spaces.Discrete(3)
PLANE = spaces.Box(-np.inf, np.inf, (2,), np.float64)
STILL = SGD(0.0)  # weights stay as they are


def make(kind=StreamQ, actions=THREE, hidden=(8,), activation="relu", **settings):
    return kind(
        *(SPACE, actions, hidden, STILL, STILL),
        **{
            "activation": activation,
            "layer_norm": False,
            "normalise_observations": False,
            "scale_rewards": False,
            "dtype": "float64",
            **settings,
        },
    )


def set_biases(learner, *layers):
    """Hidden units that have these pre-activations in every state."""
    learner.w[:] = 0.0
    for (_, b), biases in zip(learner.net.unpack(learner.w), layers, strict=False):
        b[:] = biases


def live(agent, n_steps=DEAD_AFTER, state=lambda t: np.zeros(3)):
    agent.start(state(0))
    for t in range(1, n_steps + 1):
        if t % 50 == 0:
            agent.end(1.0, state(t), True)
            agent.start(state(t))
        else:
            agent.step(1.0, state(t))
    return agent


def dead(agent):
    return {tag: share for tag, share in agent.diagnostics().items() if "dead" in tag}


@pytest.mark.parametrize("activation", HIDDEN)
def test_a_unit_is_flat_where_gradient_flow_says_so(activation):
    # Of leaky ReLU it calls no unit dead; there the slope itself, by the d_psi of a loss of slope 1, is 0.01 or 1.
    net, bound = Network((1, 1, 1), activation, dtype="float64"), FLAT_BELOW[activation]

    def slope_is_lost(psi):
        (layer, _) = gradient_flow(net, [0.0, psi, 1.0, 0.0], [[0.0]], [1.0])
        return layer.dead == 1.0 or layer.saturated == 1.0 or (activation == "leaky_relu" and layer.d_psi < 0.02)

    if activation == "linear":
        assert bound == -np.inf
        assert not slope_is_lost(-1e6)
    else:
        assert slope_is_lost(bound - 1e-5)
        assert not slope_is_lost(bound + 1e-5)


@pytest.mark.parametrize(
    ("activation", "layer_norm", "psi", "share"),
    [
        ("relu", False, (-1, -1, 0, 1, 1, 1, 1, 1), 3 / 8),
        ("leaky_relu", False, (-1, -1, -9, 1, 1, 1, 1, 1), 3 / 8),
        ("leaky_relu", True, (0, 0, 0, 0, 0, 0, 0, 8), 7 / 8),  # mean 1: behind LayerNorm seven are negative
        ("leaky_relu", True, (-5, -5, -5, -5, -4, -4, -4, -4), 4 / 8),
        ("elu", False, (-1, -3.8, -4, 0, 0, 9, 9, 9), 1 / 8),
        ("softplus", False, (-1, -3.8, -4, 0, 0, 9, 9, 9), 1 / 8),
        ("tanh", False, (-1, -3, 3, 2, 2, 9, 0, 0), 3 / 8),
        ("sigmoid", False, (-5, -6, 6, 2, 2, 9, 0, 0), 3 / 8),
        ("linear", False, (-9, -9, -9, -9, 0, 0, 9, 9), 0),
    ],
)
def test_the_share_of_dead_units(activation, layer_norm, psi, share):
    agent = make(activation=activation, layer_norm=layer_norm)
    set_biases(agent.first, psi)
    assert dead(live(agent)) == {"value/dead_units/A": share}


@pytest.mark.parametrize(
    ("kind", "actions", "names"),
    [
        (StreamAC, THREE, ("critic", "actor")),
        (StreamAC, PLANE, ("critic", "actor")),
        (QRC, THREE, ("value", "h")),
        (Sarsa, THREE, ("value",)),
    ],
)
def test_every_network_and_every_hidden_layer_has_its_own(kind, actions, names):
    agent = make(kind, actions, hidden=(4, 20), gamma=0.5)
    set_biases(agent.first, [-1, 1, 1, 1], [-1] * 5 + [1] * 15)
    set_biases(agent.second, [-1, -1, 1, 1], [-1] * 19 + [1]) if len(names) > 1 else None
    expected = [{"W1": 1 / 4, "W2": 5 / 20}, {"W1": 2 / 4, "W2": 19 / 20}]
    assert dead(live(agent)) == {
        f"{name}/dead_units/{layer}": share
        for name, shares in zip(names, expected, strict=False)
        for layer, share in shares.items()
    }


def test_a_network_without_hidden_units_has_none_dead():
    assert dead(live(make(hidden=()))) == {}


def states_with(active):
    """States whose first entry is 9 at these steps, and 0 at others."""
    return lambda t: np.array([9.0 * bool(active[t]), 0.0, 0.0])


def first_unit_waits(agent):
    """psi of the first unit is s_0 - 1; the second is dead, six are alive."""
    set_biases(agent.first, (-1, -1, 1, 1, 1, 1, 1, 1))
    agent.first.net.unpack(agent.first.w)[0][0][0, 0] = 1.0
    return agent


def test_a_unit_that_is_active_now_and_then_is_not_dead():
    # In one step of a hundred.
    active = np.random.default_rng(0).random(DEAD_AFTER + 1) < 0.01
    assert dead(live(first_unit_waits(make()), state=states_with(active))) == {"value/dead_units/A": 1 / 8}


def test_short_intervals_of_the_log_are_put_together():
    # The unit lives in steps 0 to 2 alone; the first 3000 steps say that one is dead, the next 3000 that two are.
    agent, active = first_unit_waits(make()), np.arange(2000) < 3
    said = [dead(live(agent, 1000, states_with(active if i == 0 else 0 * active))) for i in range(6)]
    assert said == [{}, {}, {"value/dead_units/A": 1 / 8}, {}, {}, {"value/dead_units/A": 2 / 8}]


def test_a_sign_of_life_is_saved_and_restored():
    agent, active = first_unit_waits(make()), np.arange(2000) < 3
    assert dead(live(agent, 1000, states_with(active))) == {}
    again = make()
    again.restore({name: array.copy() for name, array in agent.state_dict().items()})
    for each in (agent, again):
        assert dead(live(each, 2000, states_with(np.zeros(2001)))) == {"value/dead_units/A": 1 / 8}


@pytest.mark.parametrize("kind", [StreamAC, StreamQ, QRC])
def test_looking_changes_no_learned_bit(kind):
    agents = [kind(SPACE, THREE, (8,), dtype="float64", seed=3) for _ in range(2)]
    states = np.random.default_rng(0).normal(size=(501, 3))
    for agent in agents:
        agent.start(states[0])
    for s in states[1:]:
        actions = [agent.step(float(s[0]), s) for agent in agents]
        assert actions[0] == actions[1]
        agents[0].diagnostics()
    for a, b in zip((agents[0].first, agents[0].second), (agents[1].first, agents[1].second), strict=True):
        assert a.w.tobytes() == b.w.tobytes()
        assert a.z.tobytes() == b.z.tobytes()


def test_epsilon_now():
    # From 0.9 in a straight line to 0.1 in 100 steps: 0.5 after 50.
    agent = live(make(epsilon=(0.9, 0.1, 100)), 50)
    assert agent.diagnostics()["agent/epsilon"] == pytest.approx(0.5, rel=1e-12)
    assert "agent/epsilon" not in live(make(temperature=1.0), 5).diagnostics()
    assert "agent/epsilon" not in live(make(StreamAC), 5).diagnostics()


def test_the_mean_reward_now():
    # Values stay 0, so that delta = 1 - rbar, and rbar <- rbar + (1 - rbar) / 4: 1/4, then 7/16.
    agent = make(Sarsa, average_reward=0.25, gamma=1.0)
    agent.first.w[:] = 0.0
    assert live(agent, 2).diagnostics()["agent/mean_reward"] == pytest.approx(7 / 16, rel=1e-12)
    assert "agent/mean_reward" not in live(make(Sarsa), 2).diagnostics()


def test_a_run_logs_them(tmp_path):
    settings = ControlSettings("CartPole-v1", agent="sarsa", hidden=(8, 8), steps=2 * DEAD_AFTER, log_every=1000)
    ControlRun(settings, tmp_path).train()
    lines = read_metrics(tmp_path)
    assert [("value/dead_units/W1" in line, "value/dead_units/W2" in line) for line in lines] == [
        (number % 3 == 2, number % 3 == 2) for number in range(6)
    ]
    assert all(0 <= line["value/dead_units/W1"] <= 1 for line in lines[2::3])
    assert all("value/dead_units/W3" not in line for line in lines)
    assert [line["agent/epsilon"] for line in lines] == pytest.approx([0.01] * 6)
