"""Rollouts: evaluation scenes only, resumed without repeating, errors never counted as failures."""

import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from lar_core.data.dataset import Stats
from lar_core.measure.results import scenes
from lar_core.measure.rollout import (
    Trial,
    _plan,
    _warn,
    episodes_of,
    missing_episodes,
    roll_out,
    rolled_out,
    vector_env,
)
from lar_core.run.config import PROFILES, make_config
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl
from lar_core.run.folder import Run
from lar_core.run.processes import STOPS, Stopped, stop
from lar_core.scene.episode import EpisodeEnv, fingerprint
from lar_core.scene.expert import IDLE, Expert
from lar_core.scene.placements import BOWLS, PLATE, X_ADDRESS, evaluation_scenes
from lar_core.scene.watch import HAPPENED

MICRO = PROFILES["micro"]


def test_a_rollout_process_does_not_load_torch():
    code = "import sys, lar_core.scene.episode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.open(make_config("attention_mask", "micro", tasks=(2, 8), episodes_per_task=3), tmp_path / "run")


def test_finished_episodes_are_not_repeated(run):
    trial = Trial("attention_mask", "right", "official", 2)
    append_jsonl(run.path / "rollouts.jsonl", {**vars(trial), "episode": 1, "success": True})
    append_jsonl(run.path / "rollouts.jsonl", {**vars(trial), "instruction": "blank", "episode": 0, "success": True})
    assert missing_episodes(run, trial) == [0, 2]


def test_elsewhere_there_are_at_most_as_many_episodes_as_scenes_and_at_home_what_was_asked_for(tmp_path):
    run = Run.open(make_config("attention_mask", "micro", tasks=(5,), episodes_per_task=50), tmp_path / "run")
    counts = {placement: len(missing_episodes(run, Trial("attention_mask", "right", placement, 5)))
              for placement in ("official", "wide", "counterfactual")}
    assert counts == {"official": 50, "wide": 50, "counterfactual": 40}
    more = Run.open(make_config("attention_mask", "micro", tasks=(5,), episodes_per_task=51), tmp_path / "more")
    with pytest.raises(LarError, match="episodes_per_task is 51, but task 5 has 50 evaluation scenes with official"):
        roll_out(more, None, None)


def test_old_episodes_under_another_sentence_are_kept_but_the_other_bowl_which_was_not_watched_is_rolled_out_again(run):
    for task, episode in ((8, 0), (8, 1)):
        append_jsonl(run.path / "rollouts.jsonl", {"policy": "attention_mask", "instruction": "swapped", "task": task,
                                                   "placement": "official", "episode": episode, "success": True})
    other_bowl = Trial("attention_mask", "other_bowl", "official", 8)
    assert missing_episodes(run, other_bowl) == [0, 1, 2]
    append_jsonl(run.path / "rollouts.jsonl", {**vars(other_bowl), "episode": 1, "success": False, "did_not_listen": True})
    assert missing_episodes(run, other_bowl) == [0, 2] and len(episodes_of(run)) == 2


def test_a_rollout_is_complete_when_every_task_has_the_kinds_that_were_asked_for(run):
    for task in (2, 8):
        assert not rolled_out(run, ("right",))
        for episode in range(3):
            append_jsonl(run.path / "rollouts.jsonl", {**vars(Trial("attention_mask", "right", "official", task)),
                                                       "episode": episode, "success": True})
    assert rolled_out(run, ("right",)) and not rolled_out(run, ("right", "other_bowl"))


def test_a_kind_that_no_scene_has_is_refused_even_where_all_others_are_done(tmp_path):
    run = Run.open(make_config("attention_mask", "micro", tasks=(5,), episodes_per_task=1), tmp_path / "run")
    append_jsonl(run.path / "rollouts.jsonl", {**vars(Trial("attention_mask", "right", "official", 5)), "episode": 0,
                                               "success": True})
    assert rolled_out(run, ("right",))
    assert not rolled_out(run, ("right", "other_task"))
    with pytest.raises(LarError, match="no other_task instruction for task 5"):
        roll_out(run, None, None, instructions=("right", "other_task"))


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


def test_a_policy_without_a_path_of_attention_acts_without_it_in_every_step(policy_of, batch):
    policy, stats = policy_of("action_only").eval(), Stats((-1.0,) * 7, (1.0,) * 7, (0.0,) * 8, (1.0,) * 8)
    seen = {name: batch[key].permute(0, 2, 3, 1).numpy() for name, key in (("agentview_rgb", "images"),
                                                                          ("eye_in_hand_rgb", "wrist"))}
    seen |= {"ee_pos": np.zeros((2, 3)), "ee_ori": np.zeros((2, 3)), "gripper_states": np.zeros((2, 2))}
    def saliency(cut):
        return _plan(policy, stats, cut, seen, batch["instructions"])[1]
    assert np.isnan(saliency("text_image")).all()  # nothing of the image is left to be looked at
    assert np.isfinite(saliency("")).all() and np.array_equal(saliency("action_image"), saliency(""))


def test_a_machine_that_renders_something_else_is_said_once(capsys, monkeypatch):
    monkeypatch.setenv("LAR_SAID", "")
    for check in ("expected", "unknown", "other", "other"):
        _warn({"task": 5, "check": check})
    assert capsys.readouterr().err.count("does not render what is expected for task 5") == 1


def test_an_episode_begins_alike_with_the_same_hash_alone(env_8):
    state = env_8.env.state()
    moved = state.copy()
    moved[X_ADDRESS[PLATE]] += 1e-3  # metres
    assert fingerprint(state + 1e-10) == fingerprint(state) != fingerprint(moved)
    hashes = []
    for seed in (0, 1, 0):
        env_8.reset(seed=seed)
        hashes.append(env_8.begun)
    assert hashes[0] == hashes[2] != hashes[1]


def test_after_success_the_scene_stands_still(monkeypatch):
    env = EpisodeEnv(5, "official", MICRO)
    monkeypatch.setattr("lar_core.scene.episode.success", lambda *_: True)
    try:
        env.reset(seed=0)
        first, _, done, _, _ = env.step(np.ones(7))
        second, *_ = env.step(np.ones(7))
        assert done and (first["ee_pos"] == second["ee_pos"]).all()
    finally:
        env.close()


@pytest.mark.parametrize("other_bowl, brought, reward, done", [
    (False, BOWLS[0], 1, True), (False, BOWLS[1], 0, False), (True, BOWLS[1], 1, True), (True, BOWLS[0], 0, True)])
def test_the_bowl_that_the_sentence_names_is_the_success_and_the_scenes_own_one_instead_ends_it(
        env_8, other_bowl, brought, reward, done):
    env = env_8
    env.reset(seed=0, options={"other_bowl": other_bowl})
    state, plate = env.env.state(), env.env.body_pose(PLATE)[0]
    address = {BOWLS[0]: 10, BOWLS[1]: 17}[brought]
    state[address : address + 3] = plate + (0, 0, 0.03)
    env.env.set_state(state)
    for _ in range(20):
        _, got, ended, _, _ = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert env.env.satisfied(["on", brought, PLATE]) and (got, ended) == (reward, done)


@pytest.fixture(scope="module")
def env_8():
    env = EpisodeEnv(8, "official", MICRO)
    yield env
    env.close()


# What happened, not only whether it succeeded.

def solve(env: EpisodeEnv, scene) -> list[dict]:
    """Let the scripted expert bring the bowl of `scene`; what had happened after each step."""
    expert, happened = Expert(env.env, scene), []
    while not expert.done and not env.done:
        env.step(expert.act())
        happened.append(env.happened)
    return happened


@pytest.mark.parametrize("other_bowl", [False, True])
def test_who_brings_the_named_bowl_touched_it_first_grasped_lifted_and_placed_it(env_8, other_bowl):
    env_8.reset(seed=0, options={"other_bowl": other_bowl})
    happened = solve(env_8, env_8.asked)
    assert happened[0] == {"first_touched": "none", "progress": "none", "on_plate": "none"}
    assert happened[-1] == {"first_touched": "named", "progress": "placed", "on_plate": "named"}
    stages = list(dict.fromkeys(moment["progress"] for moment in happened))
    assert stages == sorted(stages, key=HAPPENED["progress"].index) and {"grasped", "lifted"} <= {*stages}


def test_who_brings_the_other_bowl_came_nowhere_with_the_named_one(env_8):
    env_8.reset(seed=0)
    happened = solve(env_8, env_8.scene.of_other_bowl())
    assert happened[-1] == {"first_touched": "other", "progress": "none", "on_plate": "other"}


def test_who_does_not_move_touches_nothing(env_8):
    env_8.reset(seed=0)
    for _ in range(20):
        env_8.step(IDLE)
    assert env_8.happened == {"first_touched": "none", "progress": "none", "on_plate": "none"}


@pytest.mark.parametrize("met, first, progress", [
    ([(PLATE, 0.06)], "else", "none"), ([(BOWLS[1], 0.06)], "other", "none"), ([(BOWLS[0], 0.06)], "named", "touched"),
    ([(PLATE, 0.06), (BOWLS[0], 0.06)], "else", "touched"), ([(BOWLS[0], 0), (BOWLS[1], 0)], "named", "lifted")])
def test_what_the_hand_meets_first_stays_the_first(env_8, met, first, progress):
    env_8.reset(seed=0)
    before = env_8.env.state()
    for name, height in met:  # metres above the middle of the fingers, with both of which a bowl at 0 collides
        state = before.copy()
        state[X_ADDRESS[name] : X_ADDRESS[name] + 3] = env_8.last["ee_pos"] + (0, 0, height)
        env_8.env.set_state(state)
        env_8.watch.look()
    assert (env_8.happened["first_touched"], env_8.happened["progress"]) == (first, progress)


def test_watching_changes_no_state(env_8):
    env_8.reset(seed=0)
    expert, watched = Expert(env_8.env, env_8.scene), []
    for _ in range(80):
        action = expert.act()
        env_8.step(action)
        watched.append((action, env_8.env.state()))
    assert env_8.happened["progress"] == "lifted"
    env_8.reset(seed=0)
    for action, state in watched:
        env_8.env.step(action)
        assert (env_8.env.state() == state).all()


def test_an_exception_in_an_environment_is_not_a_failed_episode():
    with pytest.raises(LarError, match="7 finite numbers"), vector_env(5, "official",
                                                                        MICRO.replace(episodes_per_task=1)) as envs:
        envs.reset(seed=[0])
        envs.step(np.full((1, 7), np.nan))


def test_environments_are_kept_for_the_next_rollout_alike_and_closed_by_an_exception():
    def open_env(**changes):
        return vector_env(5, "official", MICRO.replace(episodes_per_task=1, **changes))

    def processes(**changes):
        with open_env(**changes) as envs:
            return envs.processes
    first = processes()
    assert processes() is first and first[0].is_alive()
    other = processes(wait_steps=3)
    assert other is not first and not first[0].is_alive()
    with pytest.raises(ZeroDivisionError), open_env(wait_steps=3) as envs:
        assert envs.processes is other and other[0].is_alive()
        1 / 0
    assert not other[0].is_alive()


def test_a_signal_to_the_whole_job_leaves_the_environments_to_their_parent_which_ends_them():
    with pytest.raises(Stopped), vector_env(5, "official", MICRO.replace(episodes_per_task=2), workers=1) as envs:
        envs.reset(seed=[0])
        for number in STOPS:
            os.kill(envs.processes[0].pid, number)
        envs.step(np.zeros((1, 7)))
        envs.step_async(np.zeros((1, 7)))
        stop()
    assert len(envs.processes) == 1 and not envs.processes[0].is_alive() and envs.closed
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the parent itself goes on to listen"


def _roll_out_in_a_worker():
    with vector_env(5, "official", MICRO.replace(episodes_per_task=1)) as envs:
        envs.reset(seed=[0])


def test_a_worker_that_has_rolled_out_ends():
    worker = multiprocessing.get_context("spawn").Process(target=_roll_out_in_a_worker)
    worker.start()
    worker.join(timeout=300)
    alive = worker.is_alive()
    worker.kill()
    assert not alive and worker.exitcode == 0

