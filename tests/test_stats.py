"""Normalisation: quantiles of the training actions, gripper apart, and a way back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_demos import make_episode

from lar_core.data.dataset import Stats, proprio
from lar_core.run.errors import LarError


@pytest.fixture
def episodes():
    return [make_episode(steps=200, seed=seed, size=2) for seed in range(3)]


def test_the_quantiles_become_the_ends_of_the_range(episodes):
    actions, stats = np.concatenate([episode.actions for episode in episodes]), Stats.of(episodes)
    np.testing.assert_allclose(stats.action_low[:6], np.quantile(actions, 0.01, axis=0)[:6])
    np.testing.assert_allclose(stats.normalise_actions(np.array(stats.action_high)), np.ones(7), atol=1e-6)
    normalised = stats.normalise_actions(actions)
    assert normalised.dtype == np.float32 and normalised.min() == -1 and normalised.max() == 1


def test_the_gripper_keeps_its_own_scale(episodes):
    actions = np.zeros((2, 7))
    actions[:, 6] = [-1, 1]
    assert Stats.of(episodes).normalise_actions(actions)[:, 6].tolist() == [-1, 1]


def test_actions_inside_the_quantiles_come_back(episodes):
    stats = Stats.of(episodes)
    actions = np.clip(episodes[0].actions, stats.action_low, stats.action_high)
    np.testing.assert_allclose(stats.denormalise_actions(stats.normalise_actions(actions)), actions, atol=1e-6)


def test_a_direction_that_never_moves_stays_harmless(episodes):
    still = [replace(episode, actions=episode.actions * [1, 1, 0, 1, 1, 1, 1]) for episode in episodes]
    stats = Stats.of(still)
    assert np.isfinite(stats.normalise_actions(still[0].actions)).all()
    assert abs(stats.denormalise_actions(np.ones(7))[2]) <= 0.01


def test_proprioception_gets_mean_0_and_deviation_1(episodes):
    own = np.concatenate([proprio(episode.ee_pos, episode.ee_ori, episode.gripper_states) for episode in episodes])
    values = Stats.of(episodes).normalise_proprio(own)
    assert values.shape == (600, 8)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-4)


def test_saved_and_loaded_they_are_the_same(tmp_path, episodes):
    stats = Stats.of(episodes)
    stats.save(tmp_path / "stats.json")
    assert Stats.load(tmp_path / "stats.json") == stats


GOOD = {"action_low": [-0.5] * 7, "action_high": [0.5] * 7, "proprio_mean": [0.0] * 8, "proprio_std": [1.0] * 8}


@pytest.mark.parametrize("field, place, value, words", [
    ("action_low", 2, math.nan, "action_low holds nan"), ("action_high", 0, math.inf, "action_high holds inf"),
    ("proprio_mean", 7, -math.inf, "proprio_mean holds -inf"), ("proprio_std", 1, math.nan, "proprio_std holds nan"),
    ("action_high", 3, -0.5, r"direction 3 \(-0.5 to -0.5\)"),  # no width
    ("action_high", 3, -0.7, r"direction 3"),  # upside down
    ("action_low", 6, 0.5, r"direction 6"), ("proprio_std", 4, 0.0, "proprio_std is 0.0"),
    ("proprio_std", 0, -1.0, "proprio_std is -1.0")])
def test_scales_that_would_spoil_every_action_are_refused_where_they_are_read(tmp_path, field, place, value, words):
    values = {name: list(numbers) for name, numbers in GOOD.items()}
    values[field][place] = value
    (tmp_path / "stats.json").write_text(json.dumps(values))
    with pytest.raises(LarError, match=words) as refusal:
        Stats.load(tmp_path / "stats.json")
    assert str(tmp_path / "stats.json") in str(refusal.value) and "delete" not in str(refusal.value)
    assert "from a copy of the run" in str(refusal.value)


def test_good_scales_and_scales_of_another_size(tmp_path):
    (tmp_path / "stats.json").write_text(json.dumps(GOOD))
    assert Stats.load(tmp_path / "stats.json").action_high == (0.5,) * 7
    (tmp_path / "stats.json").write_text(json.dumps(GOOD | {"proprio_std": [1.0] * 7}))
    with pytest.raises(LarError, match="proprio_std has 7 numbers, but 8"):
        Stats.load(tmp_path / "stats.json")


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    with pytest.raises(LarError, match=r"stats.json cannot be read \(No such file or directory\)"):
        Stats.load(tmp_path / "stats.json")
    (tmp_path / "stats.json").mkdir()
    with pytest.raises(LarError, match=r"cannot be read \(Is a directory\)"):
        Stats.load(tmp_path / "stats.json")


@pytest.mark.parametrize("field", ["actions", "ee_pos", "gripper_states"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_demonstrations_with_numbers_that_are_none_are_named_before_training(episodes, field, value):
    getattr(episodes[1], field)[3:20, 0] = value
    with pytest.raises(LarError, match="demonstrations give no scales: .* not a finite number"):
        Stats.of(episodes)


@pytest.mark.parametrize("text", ["{", "{}", '{"action_low": 3}', "[1]"])
def test_a_foreign_file_and_no_episodes_are_refused(tmp_path, text):
    path = tmp_path / "stats.json"
    path.write_text(text)
    with pytest.raises(LarError, match="does not hold action statistics"):
        Stats.load(path)
    with pytest.raises(LarError, match="no training episodes"):
        Stats.of([])
