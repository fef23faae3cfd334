"""The scripted expert solves scenes, and its demonstrations are clean."""

from __future__ import annotations

import numpy as np
import pytest

from lar_core.scene import expert
from lar_core.scene.env import SpatialEnv
from lar_core.scene.expert import STEP_LIMIT, Expert, run_expert
from lar_core.scene.placements import BOWLS, sample_scene, success


@pytest.fixture(scope="module")
def env():
    env = SpatialEnv(5, image_size=16, wrist_size=16, segmentation=True)
    yield env
    env.close()


@pytest.mark.parametrize(("task", "placement", "index"), [(4, "official", 0), (9, "wide", 1), (8, "counterfactual", 1)])
def test_the_expert_solves(task, placement, index):
    env = SpatialEnv(task, image_size=16, wrist_size=0)
    scene = sample_scene(env, placement, index)
    assert scene.target == BOWLS[index if placement == "counterfactual" else 0]
    env.reset(seed=scene.seed, options={"init_state": scene.init_state})
    robot = Expert(env, scene)
    for _ in range(STEP_LIMIT):
        action = robot.act()
        assert np.abs(action).max() <= 1
        env.step(action)
        if success(env, scene):
            break
    assert success(env, scene)
    env.close()


def test_an_episode_records_what_was_seen_before_each_action(env):
    scene = sample_scene(env, "official", 0)
    episode = run_expert(env, scene)
    assert episode.target == BOWLS[0] and episode.distractor == BOWLS[1]
    assert episode.instruction == scene.instruction and list(episode.objects) == env.objects
    assert episode.agentview_rgb.shape == (len(episode), 16, 16, 3) and episode.segmentation.max() <= len(env.objects)
    observation, _ = env.reset(seed=scene.seed, options={"init_state": scene.init_state})
    for step in range(5):
        assert np.array_equal(episode.states[step], env.state())
        assert np.array_equal(episode.ee_pos[step], observation["ee_pos"])
        observation, *_ = env.step(episode.actions[step])


def test_noise_disturbs_what_is_executed_but_not_what_is_recorded(env, monkeypatch):
    executed = []
    stepped = env.step
    monkeypatch.setattr(env, "step", lambda action: executed.append(action) or stepped(action))
    episode = run_expert(env, sample_scene(env, "official", 1), noise=0.3, seed=7)
    difference = np.array(executed) - episode.actions
    assert np.abs(difference[:, :6]).mean() > 0.03
    assert np.all(difference[:, 6] == 0) and set(episode.actions[:, 6]) == {-1.0, 1.0}
    assert episode.provenance["expert_noise"] == 0.3


def test_disturbances_are_correlated_in_time_and_repeatable():
    draws = expert._disturbances(0.3, seed=3)
    values = np.array([next(draws) for _ in range(8000)])
    assert np.allclose(values[100:].std(axis=0), 0.3 * expert.NOISE_SHARES, atol=0.04)
    assert np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1] == pytest.approx(expert.NOISE_MEMORY, abs=0.03)
    assert np.array_equal(next(expert._disturbances(0.3, seed=3)), values[0])


def test_an_attempt_that_runs_out_of_time_gives_no_episode(env, monkeypatch):
    monkeypatch.setattr(expert, "STEP_LIMIT", 5)
    assert run_expert(env, sample_scene(env, "official", 0)) is None
