"""LeRobot's environment plugin as far as it needs no LeRobot: what its vector of gymnasium does with our scenes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lar_core.run.errors import LarError
from lar_core.run.files import read_jsonl
from lar_core.run.settings import Profile
from lar_core.scene.env import instruction
from lar_core.scene.episode import EpisodeEnv

PLUGIN = Path(__file__).resolve().parents[1] / "integrations/lerobot_env_lar/lerobot_env_lar"
SIZES = {"image_size": 32, "wrist_size": 16}


def load(name: str):
    """A module of the plugin without its package, which imports LeRobot."""
    spec = importlib.util.spec_from_file_location(f"plugin_{name}", PLUGIN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plugin, table = load("env"), load("table")


def test_lerobots_vector_gets_the_stored_scenes_and_each_episode_leaves_one_line(tmp_path):
    def make():
        return plugin.LarSpatial(tasks=[5], placement="counterfactual", instruction="other_bowl", episode_length=2,
                                 outcomes=str(tmp_path / "mine.jsonl"), **SIZES)

    envs = SyncVectorEnv([make, make], autoreset_mode=AutoresetMode.SAME_STEP)
    seen, _ = envs.reset(seed=[1000, 1001])
    ours = EpisodeEnv(5, "counterfactual", Profile(**SIZES))
    for number in range(2):
        upright, _ = ours.reset(seed=number, options={"other_bowl": True})
        np.testing.assert_array_equal(seen["pixels"]["image"][number][::-1, ::-1], upright["agentview_rgb"])
        np.testing.assert_array_equal(seen["pixels"]["image2"][number][::-1, ::-1], upright["eye_in_hand_rgb"])
        np.testing.assert_array_equal(seen["robot_state"]["eef"]["pos"][number], upright["ee_pos"])
        np.testing.assert_array_equal(seen["robot_state"]["gripper"]["qpos"][number], upright["gripper_states"])
        assert envs.call("task_description")[number] == ours.asked.instruction != ours.scene.instruction
    for step in range(3):  # one more than there is
        _, _, terminated, truncated, info = envs.step(np.zeros((2, 7), np.float32))
        assert truncated.tolist() == [step == 1] * 2 and not terminated.any()
        if step == 1:
            assert info["final_info"]["is_success"].tolist() == [False, False]
    rows = read_jsonl(tmp_path / "mine.jsonl")
    assert [(row["episode"], row["steps"], row["success"]) for row in rows] == [(0, 2, False), (1, 2, False)]
    assert {row["begun"] for row in rows} == {ours.begun} and rows[0]["assets"]["name"] == "standin"
    assert table.table([tmp_path / "mine.jsonl"])[1][:6] == ("mine", "counterfactual", "other_bowl", "seen", "0/2", "0.00")
    with pytest.raises(LarError, match="Episode 40 was asked for"):
        envs.reset(seed=[1040, 1041])
    envs.close()
    ours.close()


def test_episodes_follow_task_by_task_and_grey_hides_every_picture():
    env = plugin.LarSpatial(tasks=[5, 8], episodes_per_task=2, blank_image=True, **SIZES)
    assert env.plan == [(5, 0), (5, 1), (8, 0), (8, 1)]
    with pytest.raises(LarError, match="from the seed"):
        env.reset()
    seen, _ = env.reset(seed=1003)
    assert (env.task_id, env.episode, env.task_description) == (8, 1, instruction(8))
    assert all((picture == plugin.GREY).all() for picture in seen["pixels"].values()) and np.ptp(env.render()) > 0
    env.close()


def test_what_there_is_not_is_said(tmp_path):
    with pytest.raises(LarError, match="ask for 1 to 50"):
        plugin.LarSpatial(tasks=[5], episodes_per_task=51)
    with pytest.raises(LarError, match="There is no other_bowl instruction"):
        plugin.LarSpatial(tasks=[0], instruction="other_bowl")
    with pytest.raises(LarError, match="holds no episodes"):
        table.table([tmp_path / "none.jsonl"])
