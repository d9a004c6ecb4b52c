"""MinAtar's games, with the extra [minatar] and without it."""

import sys
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest

from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.evaluation import Recording, evaluate
from valueapprox.agents.rollout import Task, make_environment, make_rollout
from valueapprox.agents.spaces import encoder

BREAKOUT = ControlSettings("MinAtar/Breakout-v1", agent="stream-q", hidden=(8,), steps=1500, seed=5)
installed = pytest.mark.skipif(not find_spec("minatar"), reason="MinAtar is not installed")


@pytest.mark.parametrize("make", [make_environment, lambda env: make_rollout(Task(env, "random"), [0])])
def test_without_the_extra_the_error_says_how_to_get_it(make, monkeypatch):
    for name in [name for name in gym.registry if name.startswith("MinAtar/")]:
        monkeypatch.delitem(gym.registry, name)
    for module in ("minatar", "minatar.gym"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"^MinAtar/Breakout-v1 needs .*: pip install 'valueapprox\[minatar\]'$"):
        make("MinAtar/Breakout-v1")


@installed
@pytest.mark.parametrize(
    ("game", "channels"), [("Breakout", 4), ("Asterix", 4), ("Freeway", 7), ("Seaquest", 10), ("SpaceInvaders", 6)]
)
def test_every_game_is_one_vector(game, channels):
    env = make_environment(f"MinAtar/{game}-v1")
    observation, _ = env.reset(seed=1)
    assert observation.shape == (10, 10, channels)
    encode = encoder(env.observation_space)
    assert encode.size == 100 * channels
    assert encode(observation).tolist() == observation.ravel().tolist()


@installed
def test_a_misspelt_game_is_a_helpful_error():
    with pytest.raises(ValueError, match="did you mean 'MinAtar/Breakout-v1'"):
        make_environment("MinAtar/Brekout-v1")


@installed
def test_one_seed_gives_one_run_and_a_resume_begins_an_episode_and_says_so(tmp_path):
    runs = [ControlRun(BREAKOUT, tmp_path / name) for name in "ab"]
    for run in runs:
        run.train()
    assert runs[0].agent.first.net.sizes == (400, 8, 3)
    assert runs[0].agent.first.w.tobytes() == runs[1].agent.first.w.tobytes()
    notices = []
    longer = ControlSettings(**{**vars(BREAKOUT), "steps": 2000})
    resumed = ControlRun(longer, tmp_path / "a", resume=True, notice=notices.append)
    assert notices == [
        "MinAtar/Breakout-v1 cannot be brought back to where it was; it goes on with a new episode at step 1500"
    ]
    assert resumed.train().step == 2000


@installed
def test_a_film_is_large_enough_to_be_looked_at_and_has_colours(tmp_path):
    run, film = ControlRun(BREAKOUT, tmp_path), Recording()
    evaluate(run.agent, BREAKOUT, 2, recording=film)
    assert film.frames[0].shape == (200, 200, 3)
    # Black, paddle and bricks, behind which the ball begins; the 10 x 10 cells are squares of 20 x 20 pixels.
    assert len(np.unique(film.frames[0].reshape(-1, 3), axis=0)) == 3
    assert (film.frames[0][::20, ::20].repeat(20, 0).repeat(20, 1) == film.frames[0]).all()


@installed
def test_the_values_of_a_policy_can_be_learned_there():
    block, _ = make_rollout(Task("MinAtar/Breakout-v1", "random"), [0]).collect(50)
    assert block.observations.shape == (1, 50, 400)
