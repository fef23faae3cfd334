"""Older results keep their numbers, each under the name of what was really told."""

import json
from pathlib import Path

import pytest
from test_results import minimal, rollout

from lar_core.measure.results import load_results, modern_rows, read_episodes
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl

KEPT = Path(__file__).resolve().parents[1] / "results"


def old(task: int, successes: int = 7, placement: str = "official") -> dict:
    return rollout("p", "swapped", successes, task=task, placement=placement)


@pytest.mark.parametrize("task, tasks, placement, kind", [
    (2, (2, 5, 8), "official", "other_task"), (5, (2, 5, 8), "wide", "other_task"), (8, (2, 5, 8), "official", "other_bowl"),
    (8, tuple(range(10)), "wide", "other_bowl"), (5, (5,), "official", "foreign_task"), (9, (2, 9), "official", "other_task"),
    (8, (8,), "counterfactual", "mixed"), (3, (3,), "counterfactual", "foreign_task")])
def test_what_swapped_was(task, tasks, placement, kind):
    row, _ = modern_rows([old(task, placement=placement)], tasks)
    assert row["instruction"] == kind
    if kind == "other_bowl":  # the scene's own bowl on the plate was called a success
        assert row["successes"] is None and row["did_not_listen"] == 7
    else:
        assert row["successes"] == 7


def test_an_old_results_file_is_pooled_anew_kind_by_kind(tmp_path):
    rows = [rollout("attention_mask", "right", 58, 60, None), old(2, 0), old(5, 1), old(8, 19),
            rollout("p", "swapped", 20, 60, None)]
    (tmp_path / "results.json").write_text(json.dumps(minimal(tasks=(2, 5, 8)) | {"rollouts": rows}))
    pooled = {row["instruction"]: row for row in load_results(tmp_path / "results.json")["rollouts"] if row["task"] is None}
    assert (pooled["other_task"]["successes"], pooled["other_task"]["episodes"]) == (1, 40)
    assert (pooled["other_bowl"]["did_not_listen"], pooled["other_bowl"]["episodes"]) == (19, 20)
    assert pooled["right"]["successes"] == 58


@pytest.mark.parametrize("damage", [{"successes": 99}, {"task": "two"}, {"episodes": None}, {"placement": []}])
def test_a_damaged_old_file_is_refused_in_a_sentence(tmp_path, damage):
    (tmp_path / "results.json").write_text(json.dumps(minimal() | {"rollouts": [old(2) | damage]}))
    with pytest.raises(LarError, match="does not follow the results schema"):
        load_results(tmp_path / "results.json")


def test_old_episodes_of_counterfactual_scenes_are_told_apart_by_the_bowl_that_the_scene_names(tmp_path):
    for episode in range(4):
        append_jsonl(tmp_path / "rollouts.jsonl", {"policy": "p", "instruction": "swapped", "placement": "counterfactual",
                                                   "task": 8, "episode": episode, "success": episode < 2})
    rows = read_episodes(tmp_path / "rollouts.jsonl", (8,))  # odd ones were told their own sentence, which is no change
    assert [(row["episode"], row["instruction"], row["did_not_listen"]) for row in rows] == [
        (0, "other_bowl", True), (2, "other_bowl", False)]


@pytest.mark.parametrize("condition, ignored", [("attention_mask", 19), ("random_mask", 15)])
def test_the_kept_results_say_what_was_hidden_in_their_pool(condition, ignored):
    rows = json.loads((KEPT / f"{condition}-small-s0.json").read_text())["rollouts"]  # as they are kept, not as they load
    told = {(row["instruction"], row["task"]): row for row in rows if row["policy"] == condition}
    assert told["other_bowl", None]["did_not_listen"] == told["other_bowl", 8]["did_not_listen"] == ignored
    assert told["other_task", None]["successes"] == 0 and ("other_task", 8) not in told
    assert not any(row["instruction"] == "swapped" for path in KEPT.glob("*.json")
                   for row in json.loads(path.read_text()).get("rollouts") or [])
