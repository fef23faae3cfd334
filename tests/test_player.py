"""The rollout player: what is kept of a rollout, and that the picture follows the slider."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lar_core.measure.film import Film
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl
from lar_core.run.folder import Run
from lar_core.show.widgets import HEIGHT, RolloutPlayer

STEPS = 12


def film_of(steps: int = STEPS) -> Film:
    film, rng = Film(), np.random.default_rng(0)
    for step in range(steps):
        observation = {"agentview_rgb": rng.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8),
                       "eye_in_hand_rgb": np.zeros((2, 32, 32, 3), np.uint8),
                       "gripper_states": np.array([[0.0, 0.0], [0.04 - 0.002 * step, -0.04 + 0.002 * step]])}
        film.add(observation, 1, np.linspace(-1, 1, 7), np.full(16, 1 / 16), "move the bowl")
    return film


@pytest.fixture
def run(tmp_path):
    run = Run.open(make_config(profile="micro"), tmp_path / "run")
    for episode, steps in enumerate((STEPS, 5)):
        film_of(steps).save(run.path / f"rollouts/{episode}.mp4")
        append_jsonl(run.path / "rollouts.jsonl", {
            "policy": "attention_mask", "instruction": "right", "placement": "official", "task": 5, "episode": episode,
            "success": episode == 1, "steps": steps, "sentence": "move", "video": f"rollouts/{episode}.mp4"})
    append_jsonl(run.path / "rollouts.jsonl", {"policy": "attention_mask", "video": None})
    return run


def shown(player) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(player.picture.value)))


def test_a_film_comes_back_with_its_traces(tmp_path):
    film_of().save(tmp_path / "a.mp4")
    film = Film.load(tmp_path / "a.mp4")
    assert len(film) == STEPS and film.frames[0].shape == (288, 784, 3)
    np.testing.assert_allclose(film.traces["gripper"], 0.08 - 0.004 * np.arange(STEPS), atol=1e-6)
    np.testing.assert_allclose(film.traces["actions"][3], np.linspace(-1, 1, 7), atol=1e-6)


def test_a_video_without_traces_is_refused_with_the_cure(tmp_path):
    film_of().save(tmp_path / "a.mp4")
    (tmp_path / "a.npz").unlink()
    with pytest.raises(LarError, match="roll out again"):
        Film.load(tmp_path / "a.mp4")


def test_only_filmed_episodes_can_be_chosen_and_each_brings_its_length(run):
    player = RolloutPlayer(run)
    assert len(player.episode.options) == 2 and player.frame.max == STEPS - 1
    player.frame.value = STEPS - 1
    player.episode.value = 1
    assert (player.frame.value, player.frame.max, player.play.max) == (0, 4, 4)
    assert "Solved in 5 steps" in player.said.value


def test_the_picture_follows_the_slider_and_the_cursor_moves(run):
    player = RolloutPlayer(run)
    first = shown(player)
    player.frame.value = 6
    second = shown(player)
    assert first.shape == second.shape == (288 + HEIGHT, 784, 3)
    assert (first[:288] != second[:288]).any() and (first[288:] != second[288:]).any()


def test_the_still_picture_shows_moments_above_the_traces(run):
    assert RolloutPlayer(run).still(moments=(0.2, 0.8)).shape == (2 * 288 + HEIGHT, 784, 3)


def test_a_run_without_films_says_what_to_run(tmp_path):
    with pytest.raises(LarError, match="lar rollout"):
        RolloutPlayer(Run.open(make_config(profile="micro"), tmp_path / "empty"))
