"""A small simulated robot, whose sensors `demo_nexting.py` predicts."""

from __future__ import annotations

import math

import numpy as np

LONG, WIDE = 3.0, 1.4  # metres, of the robot's pen

SENSORS = (
    "light_left", "light_right", "wall_ahead", "bump", "current_left", "current_right", "temperature", "battery",
)  # fmt: skip


def robot(steps: int, rng: np.random.Generator) -> np.ndarray:
    """What a small robot's sensors give as it patrols a pen: (steps, 8), ten steps a second, in the order of SENSORS.

    It follows the walls of 3 m by 1.4 m counter-clockwise, a lap in some 20 s. A lamp stands in a corner, where it is
    dazzled: in four laps of ten it sees the wall too late and bumps into it; elsewhere that is rare. On a carpet along
    a wall it takes more current. Every two minutes or so something blocks its wheels for two or three seconds. When its
    battery is low, it stops at the dock on its way until the battery is full. The motors heat up slowly, with the
    square of their current.

    Light and nearness of the wall ahead in [0, 1], bump 0 or 1, currents in A, temperature in degrees Celsius, battery
    in V; all with noise, rounded to four decimals.
    """
    out = np.empty((steps, len(SENSORS)))
    noise, luck = rng.normal(size=(steps, 8)), rng.random((steps, 3))
    x, y, angle, v, wall, charge, temperature = 0.4, 0.3, 0.0, 0.0, 0, 0.8, 35.0
    mode, left, late = "drive", 0, False
    for t in range(steps):
        ahead, beside = ((LONG - x, y), (WIDE - y, LONG - x), (x, WIDE - y), (y, x))[wall % 4]
        error = wall * math.pi / 2 - angle
        bump, stall = 0.0, 0.0
        # What it wants: a speed in m/s and a turn in rad/s.
        if mode == "drive":
            wanted, turn = 0.4, 1.2 * error + 1.5 * (0.3 - beside)
            if ahead < (0.13 if late else 0.35 + 0.02 * noise[t, 0]):
                mode, left = ("back", 7) if late else ("turn", 0)
                bump = float(late)
                wall, late = wall + (not late), False
            elif luck[t, 0] < 1 / 1000:
                mode, left = "stuck", 15 + int(15 * luck[t, 1])
            elif wall % 4 == 0 and charge < 0.35 and 0.9 < x < 1.1:
                mode = "charge"
        elif mode == "turn":
            wanted, turn = 0.15, 1.6 if error > 0.15 else 1.2 * error
            if error < 0.15:
                mode, late = "drive", luck[t, 2] < (0.4 if wall % 4 == 2 else 0.02)
        elif mode == "back":
            wanted, turn, left, bump = -0.25, 0.0, left - 1, float(left > 5)
            if left == 0:
                mode, wall = "turn", wall + 1
        elif mode == "stuck":
            wanted, turn, left, stall = 0.0, 0.0, left - 1, 1.0
            mode = "stuck" if left else "drive"
        else:
            wanted, turn = 0.0, 0.0
            mode = "drive" if charge > 0.95 else "charge"
        turn += 0.1 * noise[t, 1] * (wanted != 0)
        before = v
        v = 0.0 if stall else v + 0.5 * (wanted - v)
        angle += 0.1 * turn
        x = min(max(x + 0.1 * v * math.cos(angle), 0.12), LONG - 0.12)
        y = min(max(y + 0.1 * v * math.sin(angle), 0.12), WIDE - 0.12)
        carpet = 1.7 if 1.4 < x < 2.4 and y < 0.7 else 1.0
        effort = 0.6 * max(0.0, v - before)
        idle = 0.05 if mode == "charge" else 0.15
        currents = [
            idle + carpet * 0.9 * abs(v + side * 0.1 * turn) + effort + 1.4 * stall + 0.02 * noise[t, 3 + i]
            for i, side in enumerate((-1, 1))
        ]
        heat = currents[0] ** 2 + currents[1] ** 2
        temperature += (22.0 - temperature) / 700 + 0.05 * heat
        charge += 0.003 if mode == "charge" else -2.5e-4 * sum(currents)
        volts = 11.0 + 1.6 * charge - 0.1 * sum(currents) + 0.4 * (mode == "charge")
        to_lamp, far = math.atan2(WIDE - y, -x), math.hypot(x, WIDE - y)
        lights = [
            (0.25 + 0.75 * max(0.0, math.cos(to_lamp - angle - side * math.pi / 4))) / (1 + (far / 0.7) ** 2)
            for side in (1, -1)
        ]
        near = math.exp(-max(0.0, ahead - 0.12) / 0.3)
        out[t] = (
            *(light + 0.01 * noise[t, 5 + i] for i, light in enumerate(lights)),
            near + 0.02 * noise[t, 2],
            bump,
            *currents,
            temperature + 0.05 * noise[t, 0],
            volts + 0.01 * noise[t, 7],
        )
    return np.round(out, 4)
