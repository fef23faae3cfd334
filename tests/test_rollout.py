"""Rollouts: evaluation scenes only, resumed without repeating, errors never counted as failures."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lar_core.config import PROFILES
from lar_core.evaluate.gather import scenes, summarise
from lar_core.evaluate.rollout import Trial, _warn, close_envs, missing_episodes, vector_env
from lar_core.files import append_jsonl
from lar_core.sim.env import instruction
from lar_core.sim.episode import EpisodeEnv
from lar_core.sim.placements import evaluation_scenes

MICRO = PROFILES["micro"]


def test_a_rollout_process_does_not_load_torch():
    code = "import sys, lar_core.sim.episode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_right_blank_and_swapped_sentences():
    scene = evaluation_scenes(5, "official")[0]
    said = {kind: Trial("p", kind, "official", 5).sentence(scene.instruction) for kind in ("right", "blank", "swapped")}
    assert said == {"right": instruction(5), "blank": ".", "swapped": instruction(8)}


def test_finished_episodes_are_not_repeated(tmp_path):
    trial = Trial("p", "right", "official", 5)
    append_jsonl(tmp_path / "rollouts.jsonl", {**vars(trial), "episode": 1, "success": True})
    append_jsonl(tmp_path / "rollouts.jsonl", {**vars(trial), "instruction": "blank", "episode": 0, "success": True})
    assert missing_episodes(tmp_path / "rollouts.jsonl", trial, 3) == [0, 2]


def test_an_episode_begins_at_its_stored_init_state_after_the_wait():
    env = EpisodeEnv(5, "official", MICRO)
    try:
        env.reset(seed=3)
        bowl = env.env.body_pose("akita_black_bowl_1")[0]
        assert np.abs(bowl[:2] - evaluation_scenes(5, "official")[3].init_state[10:12]).max() < 0.02
        again, _ = env.reset(seed=3)
        first = again["agentview_rgb"].copy()
        env.step(np.ones(7))
        assert (env.reset(seed=3)[0]["agentview_rgb"] == first).all()
    finally:
        env.close()


def test_every_row_keeps_what_was_simulated_and_rows_of_a_kind_become_one_entry():
    row = {"policy": "p", "assets": {"name": "standin", "sha256": "a"}, "gl": {"renderer": "llvmpipe"},
           "versions": {"mujoco": "3.3.2"}, "picture": {"check": "expected"}, "episode": 0}
    other = row | {"gl": {"renderer": "a card"}, "policy": "blind"}
    older = {"policy": "p", "assets": {}}
    found = scenes([row, row | {"episode": 1, "policy": "blind"}, other, older])
    assert [(entry["gl"]["renderer"], entry["policies"], entry["episodes"]) for entry in found] == \
        [("llvmpipe", ["blind", "p"], 2), ("a card", ["blind"], 1)]
    assert scenes([older]) is None


def test_a_machine_that_renders_something_else_is_said_once(capsys, monkeypatch):
    monkeypatch.setenv("LAR_SAID", "")
    for check in ("expected", "unknown", "other", "other"):
        _warn({"task": 5, "check": check})
    assert capsys.readouterr().err.count("does not render what is expected for task 5") == 1


def test_after_success_the_scene_stands_still(monkeypatch):
    env = EpisodeEnv(5, "official", MICRO)
    monkeypatch.setattr("lar_core.sim.episode.success", lambda *_: True)
    try:
        env.reset(seed=0)
        first, _, done, _, _ = env.step(np.ones(7))
        second, *_ = env.step(np.ones(7))
        assert done and (first["ee_pos"] == second["ee_pos"]).all()
    finally:
        env.close()


def test_an_exception_in_an_environment_is_not_a_failed_episode():
    with pytest.raises(Exception, match="7 finite numbers"), vector_env(5, "official",
                                                                        replace(MICRO, episodes_per_task=1)) as envs:
        envs.reset(seed=[0])
        envs.step(np.full((1, 7), np.nan))


def test_environments_are_kept_for_the_next_rollout_alike_and_closed_by_an_exception():
    def processes(profile=replace(MICRO, episodes_per_task=1)):
        with vector_env(5, "official", profile) as envs:
            return envs.processes
    first = processes()
    assert processes() is first and first[0].is_alive()
    other = processes(replace(MICRO, episodes_per_task=1, wait_steps=3))
    assert other is not first and not first[0].is_alive()
    with pytest.raises(ZeroDivisionError), vector_env(5, "official", replace(MICRO, episodes_per_task=1)):
        1 / 0
    assert processes() is not first
    close_envs()


def test_summary_counts_per_task_and_pooled():
    rows = [{"policy": "p", "instruction": "right", "placement": "official", "task": task, "success": success}
            for task, success in ((2, True), (2, False), (5, True))]
    table = {row["task"]: row for row in summarise(rows)}
    assert (table[2]["successes"], table[5]["episodes"], table[None]["rate"]) == (1, 1, 2 / 3)
    assert table[None]["low"] == pytest.approx(0.2077, abs=1e-3)  # Wilson for 2 of 3, from the closed formula
