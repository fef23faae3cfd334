"""results.json: what the schema accepts, what it refuses, and that the refusal names the place."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from lar_core.measure.kept import beside_kept
from lar_core.measure.results import (
    gather_results,
    load_results,
    modern_rows,
    read_episodes,
    save_results,
    success_row,
    summarise,
    validate_results,
)
from lar_core.measure.schema import Results
from lar_core.measure.statistics import wilson
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl
from lar_core.run.folder import Run, provenance, without
from lar_core.show.report import kept_table, write_report


def interval(mean: float, half: float = 0.01) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def series(model: float, uniform: float, centre: float, mean_map: float) -> dict:
    return {"model": interval(model), "uniform": interval(uniform), "centre": interval(centre),
            "mean_map": interval(mean_map)}


def changed(loss: float, before: float = 1.6) -> dict:
    return {"loss": interval(loss), "increase": interval(loss - before), "l1": interval(0.2)}


def lost(mm: float) -> dict:
    return {"nats": interval(mm / 500), "mm": interval(mm), "degrees": interval(mm / 50)}


def cause() -> dict:
    curve, centre = ({way: {"area": interval(area), "points": [0.0] * 9} for way, area in areas.items()}
                     for areas in ({"deletion": 0.11, "insertion": 0.03}, {"deletion": 0.08, "insertion": 0.05}))
    return {"frames": 40, "episodes": 5, "blocks": 64, "unit": "nats", "occlusion": None,
            "agreement": {"model": interval(0.5), "centre": interval(0.4), "random": None},
            "curves": {"model": curve, "centre": centre, "random": centre},
            "knockout": [{"path": path, "layer": layer, "onwards": onwards, "loss": interval(0.1)} | lost(20.0)
                         for path in ("text_image", "action_image") for layer in (1, 2) for onwards in (False, True)],
            "pixels": {"named_gone": {"frames": 32} | lost(90.0), "other_gone": {"frames": 32} | lost(9.0),
                       "swapped": {"frames": 32, "followed_before": interval(0.8), "followed": interval(0.1)} | lost(90.0)}}


def training_step(parameters: int, step_ms: float) -> dict:
    return {"parameters": parameters, "flops": 1000.0 * parameters, "step_ms": step_ms, "peak_bytes": None}


def scene(task: int = 5, **picture) -> dict:
    return {"assets": {"name": "standin", "sha256": "ab" * 32}, "versions": {"python": "3.11.7", "mujoco": "3.3.2"},
            "gl": {"backend": "osmesa", "renderer": "llvmpipe", "version": "4.5"}, "policies": ["blind"], "episodes": 20,
            "picture": {"task": task, "sha256": "cd" * 32, "colours": "0f" * 192, "check": "expected", **picture}}


def rollout(policy: str, instruction: str, successes: int, episodes: int = 20, task: int | None = 5,
            placement: str = "official") -> dict:
    rate = wilson(successes, episodes)
    return {"policy": policy, "instruction": instruction, "placement": placement, "task": task, "episodes": episodes,
            "successes": successes, "rate": rate.value, "low": rate.low, "high": rate.high}


def other_bowl(policy: str, successes: int | None, did_not_listen: int, episodes: int = 20, task: int | None = 5) -> dict:
    return success_row(policy, "other_bowl", "official", task, episodes, successes, did_not_listen)


def went(policy: str, named: int, other: int, placement: str = "near_counterfactual", instruction: str = "right") -> dict:
    """20 rollouts of task 5 that placed every bowl that they touched first; the rest met something else."""
    rest = 20 - named - other
    happened = {"first_touched": {"named": named, "other": other, "else": rest, "none": 0},
                "progress": {"none": 20 - named, "touched": 0, "grasped": 0, "lifted": 0, "placed": named},
                "on_plate": {"named": named, "other": other, "both": 0, "none": rest}}
    return success_row(policy, instruction, placement, 5, 20, named, happened=happened)


def minimal(condition: str = "attention_mask", profile: str = "tiny", **changes) -> dict:
    config = make_config(condition, profile, **changes)
    return {"schema_version": 1, "run": {"name": config.name, "condition": condition, "profile": profile, "seed": 0,
                                         "fingerprint": config.fingerprint, "config": config.model_dump()}}


def full() -> dict:
    return minimal() | {
        "provenance": {"commit": "0123456789ab", "python": "3.11.7", "machine": "a processor", "torch": "2.13.0",
                       "device": "a device", "assets": {"name": "standin", "sha256": "ab" * 32},
                       "scenes": [scene()],
                       "demonstrations": {"source": "official", "images": "resized", "recorded_sizes": [128, 128]}},
        "training": {"steps": 1500, "samples": 24000, "seconds": 500.0, "train_episodes": 45, "heldout_episodes": 5,
                     "parameters": {"backbone": 1_600_000, "head": 200_000, "decoder": 200_000, "total": 2_000_000},
                     "final": {"loss": 1.5, "action": 1.2, "recon": 0.6}},
        "action": {"frames": 200, "episodes": 5, "l1": interval(0.06), "l1_mean_action": interval(0.2),
                   "cross_entropy": 1.6},
        "shortcut": {"frames": 200, "episodes": 5, "unit": "nats",
                     "right": {"loss": interval(1.6), "l1": interval(0.06)},
                     "whole": {"blank": changed(2.4), "shuffled": changed(2.0)}, "head": None},
        "reconstruction": {"frames": 200, "loss": 0.6, "mean_patch": 1.0, "neighbours": 0.7},
        "grounding": {"frames": 200, "episodes": 5, "aos": series(0.12, 0.06, 0.08, 0.2),
                      "target_minus_distractor": series(0.02, 0, 0.01, 0.05), "auc": series(0.7, 0.5, 0.6, 0.8),
                      "pointing": None},
        "cause": cause(),
        "rollouts": [rollout("attention_mask", "right", 14), rollout("attention_mask", "blank", 2),
                     rollout("attention_mask", "foreign_task", 11), other_bowl("attention_mask", 3, 12),
                     rollout("blind", "right", 13)],
        "latency": {"device": "a device", "dtype": "float32", "n": 50, "p50_ms": 13.0, "p95_ms": 17.0,
                    "replans_per_s": 76.9, "actions_per_s": 615.0, "chunk": 8, "execute": 8},
        "training_cost": {"device": "a device", "batch_size": 16, "n": 8, "own": training_step(2_000_000, 250.0),
                          "action_only": training_step(1_800_000, 200.0)},
    }


def change(results: dict, path: str, value: object) -> dict:
    """A copy with the entry at `path`, e.g. "rollouts/0/rate", replaced."""
    results = copy.deepcopy(results)
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    place = results
    for part in parents:
        place = place[part]
    place[last] = value
    return results


def test_rollouts_without_a_path_of_attention_have_a_section_of_their_own(tmp_path):
    run = Run.open(make_config(profile="micro"), tmp_path / "run")
    for success in (True, False):
        append_jsonl(without(run, "action_image").path / "rollouts.jsonl", {
            "policy": "attention_mask", "instruction": "right", "placement": "near", "task": 5, "episode": int(success),
            "success": success, "steps": 9, "sentence": "pick it up"})
    row, = gather_results(run)["without"]
    assert (row["path"], row["episodes"], row["successes"]) == ("action_image", 2, 1) and row["low"] < 0.5 < row["high"]
    assert gather_results(run)["rollouts"] is None
    save_results(run.results, full() | {"without": [row]})
    assert "actions do not see the image</th><td>right</td><td>near</td><td>1/2" in write_report(run).read_text()


def test_accepts_complete_and_minimal_results():
    validate_results(full())
    validate_results(minimal())


@pytest.mark.parametrize("section", [name for name in Results.model_fields if name not in ("schema_version", "run")])
def test_every_section_may_be_null_or_absent(section):
    results = full()
    validate_results(results | {section: None})
    results.pop(section, None)
    validate_results(results)


@pytest.mark.parametrize("path, value, place", [
    ("schema_version", 2, "schema_version"),
    ("surprise", 1, "the top level"),
    ("run/seed", "zero", "run.seed"),
    ("training/steps", 0, "training.steps"),
    ("training/parameters/extra", 1, "training.parameters"),
    ("action/l1", {"mean": 0.1}, "action.l1"),
    ("grounding/aos/model/low", "low", "grounding.aos.model.low"),
    ("rollouts/1/instruction", "whispered", "rollouts[1].instruction"),
    ("rollouts/1/instruction", "swapped", "rollouts[1].instruction"),
    ("rollouts/1/did_not_listen", 1, "rollouts[1]"),
    ("rollouts/3/did_not_listen", None, "rollouts[3].did_not_listen"),
    ("rollouts/3/did_not_listen", 18, "rollouts[3]"),
    ("rollouts/3/rate", None, "rollouts[3]"),
    ("rollouts/4/task", 10, "rollouts[4].task"),
    ("latency/p50_ms", -1, "latency.p50_ms"),
    ("latency/p95_ms", math.nan, "latency.p95_ms"),
    ("action/l1/low", -math.inf, "action.l1.low"),
    ("action/cross_entropy", "1.5", "action.cross_entropy"),
    ("shortcut/whole/blank/increase", None, "shortcut.whole.blank.increase"),
    ("shortcut/unit", "bits", "shortcut.unit"),
    ("rollouts/0/rate", 0.71, "rollouts[0]"),
    ("rollouts/0/successes", 21, "rollouts[0]"),
    ("rollouts/0/low", 0.9, "rollouts[0]"),
    ("provenance/scenes/0/gl/renderer", "", "provenance.scenes[0].gl.renderer"),
    ("provenance/scenes/0/picture/check", "fine", "provenance.scenes[0].picture.check"),
    ("provenance/scenes/0/picture/colours", "0f", "provenance.scenes[0].picture.colours"),
    ("provenance/scenes/0/versions/mujoco", None, "provenance.scenes[0].versions.mujoco"),
])
def test_refusal_names_the_place(path, value, place):
    with pytest.raises(LarError) as error:
        validate_results(change(full(), path, value))
    assert f"In the results, {place} is wrong" in str(error.value)


def test_refuses_a_missing_entry_by_name():
    results = full()
    del results["reconstruction"]["neighbours"]
    with pytest.raises(LarError, match="reconstruction is wrong.*'neighbours'"):
        validate_results(results)


KEPT = sorted((Path(__file__).parents[1] / "results").glob("*_mask-*.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_files_of_earlier_versions_are_still_read(path):
    assert load_results(path)["rollouts"]


def test_provenance_holds_every_version_that_can_change_a_result():
    made = provenance()
    assert {"torch", "transformers", "numpy", "mujoco", "robosuite", "libero", "bitsandbytes", "python"} <= made.keys()
    validate_results(minimal() | {"provenance": made})


def test_round_trip(tmp_path):
    save_results(tmp_path / "results.json", full())
    assert load_results(tmp_path / "results.json") == json.loads(json.dumps(full()))


def test_invalid_results_leave_the_earlier_file(tmp_path):
    path = tmp_path / "results.json"
    save_results(path, minimal())
    with pytest.raises(LarError):
        save_results(path, change(full(), "training/steps", 0))
    assert "training" not in load_results(path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content, words", [
    (None, "There is no"), ("{", "is not JSON"), ("[]", "does not follow the results schema"),
    ('{"schema_version": 1}', "does not follow the results schema")])
def test_unreadable_files_are_refused_in_words(tmp_path, content, words):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LarError, match=words) as error:
        load_results(path)
    assert str(path) in str(error.value)


# Success rates are counted per task, then pooled, and never across two questions.


def episode(instruction: str, task: int, success: bool | None, **more) -> dict:
    return {"policy": "p", "instruction": instruction, "placement": "official", "task": task, "success": success, **more}


def test_summary_counts_per_task_and_pooled():
    rows = [episode("right", task, success) for task, success in ((2, True), (5, True), (2, False))]
    assert [row["task"] for row in summarise(rows)] == [2, 5, None]
    table = {row["task"]: row for row in summarise(rows)}
    assert (table[2]["successes"], table[5]["episodes"], table[None]["rate"]) == (1, 1, 2 / 3)
    assert table[None]["low"] == pytest.approx(0.2077, abs=1e-3)  # Wilson for 2 of 3, from the closed formula


def test_under_the_other_bowls_sentence_the_scenes_own_bowl_is_counted_too():
    rows = [episode("other_bowl", 8, True, did_not_listen=False), episode("other_bowl", 8, False, did_not_listen=True),
            episode("other_bowl", 5, False, did_not_listen=False), episode("other_task", 5, True)]
    pooled = {row["instruction"]: row for row in summarise(rows) if row["task"] is None}
    assert (pooled["other_bowl"]["successes"], pooled["other_bowl"]["did_not_listen"], pooled["other_bowl"]["episodes"]) \
        == (1, 1, 3)
    assert "did_not_listen" not in pooled["other_task"]


def test_one_episode_whose_success_was_not_watched_leaves_the_rate_unknown_not_lower():
    rows = [episode("other_bowl", 8, None, did_not_listen=True), episode("other_bowl", 5, True, did_not_listen=False)]
    table = {row["task"]: row for row in summarise(rows)}
    assert table[8]["rate"] is None and table[None]["successes"] is None and table[None]["did_not_listen"] == 1
    assert table[5]["rate"] == 1


# What happened is counted word by word, pooled over tasks, and unknown where one episode does not know it.


def watched(task: int, first: str, progress: str, on_plate: str, instruction: str = "right") -> dict:
    return episode(instruction, task, progress == "placed", first_touched=first, progress=progress, on_plate=on_plate)


WATCHED = [watched(2, "named", "placed", "named"), watched(2, "named", "lifted", "none"),
           watched(5, "other", "none", "other"), watched(5, "else", "touched", "none")]


def test_what_happened_is_counted_per_task_and_pooled():
    table = {row["task"]: row["happened"] for row in summarise(WATCHED)}
    assert table[2]["first_touched"] == {"named": 2, "other": 0, "else": 0, "none": 0}
    assert table[None]["first_touched"] == {"named": 2, "other": 1, "else": 1, "none": 0}
    assert table[None]["progress"] == {"none": 1, "touched": 1, "grasped": 0, "lifted": 1, "placed": 1}
    assert table[None]["on_plate"] == {"named": 1, "other": 1, "both": 0, "none": 2}
    assert table[5]["followed"]["mean"] == 0 and table[None]["followed"]["mean"] == 0.5
    assert table[None]["followed"]["low"] == pytest.approx(0.1500, abs=1e-4)  # 1/2 - 1.96 / 2 / √(4 + 1.96²)
    validate_results(minimal(tasks=(2, 5)) | {"rollouts": summarise(WATCHED)})


def test_a_sentence_that_names_no_bowl_of_the_scene_cannot_be_followed():
    rows = [watched(5, "named", "touched", "none", kind) for kind in ("blank", "other_task")]
    assert all(row["happened"]["followed"] is None for row in summarise(rows))


def test_episodes_of_earlier_versions_leave_what_happened_unknown():
    table = {row["task"]: row for row in summarise([*WATCHED, episode("right", 5, True)])}
    assert "happened" in table[2] and "happened" not in table[5] and "happened" not in table[None]
    validate_results(minimal(tasks=(2, 5)) | {"rollouts": [*table.values()]})


@pytest.mark.parametrize("path, words", [("first_touched/named", "first_touched is counted in 5 of 2 episodes"),
                                         ("first_touched/whole", "'whole' stands there, which it does not have")])
def test_what_happened_must_add_up(path, words):
    with pytest.raises(LarError, match=words):
        validate_results(change(minimal() | {"rollouts": summarise(WATCHED)}, f"rollouts/0/happened/{path}", 5))


def test_a_placed_bowl_is_a_success():
    with pytest.raises(LarError, match="1 successes, but 2 bowls placed"):
        counts = {"touched": 0, "none": 0, "grasped": 0, "lifted": 0, "placed": 2}
        validate_results(change(minimal() | {"rollouts": summarise(WATCHED)}, "rollouts/0/happened/progress", counts))


@pytest.mark.parametrize("row, words", [
    (success_row("p", "other_bowl", "official", 8, 20, 12, 9), "12 successes and 9 that did not listen in 20"),
    (success_row("p", "right", "official", 8, 20, None), "all null"),
    (success_row("p", "other_bowl", "official", 8, 20, 3, 9) | {"rate": None}, "all null"),
    (success_row("p", "right", "official", 8, 20, 3) | {"rate": 0.2}, "0.2 is not 3/20")])
def test_counts_that_cannot_be_are_named(row, words):
    with pytest.raises(LarError, match=words):
        validate_results(minimal() | {"rollouts": [row]})


@pytest.mark.parametrize("row", [success_row("p", "other_bowl", "official", 8, 20, None, 19),
                                 success_row("p", "other_bowl", "official", 8, 20, 3, 17)])
def test_counts_that_can_be_are_accepted(row):
    validate_results(minimal() | {"rollouts": [row]})


# Older results keep their numbers, each under the name of what was really told.


def old(task: int, successes: int = 7, placement: str = "official") -> dict:
    return rollout("p", "swapped", successes, task=task, placement=placement)


@pytest.mark.parametrize("task, tasks, placement, kind", [
    (2, (2, 5, 8), "official", "other_task"), (5, (2, 5, 8), "wide", "other_task"),
    (8, (2, 5, 8), "official", "other_bowl"), (8, tuple(range(10)), "wide", "other_bowl"),
    (5, (5,), "official", "foreign_task"), (9, (2, 9), "official", "other_task"),
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
    kept = json.loads((KEPT[0].parent / f"{condition}-small-s0.json").read_text())  # as it is kept, not as it loads
    rows = kept["rollouts"]
    told = {(row["instruction"], row["task"]): row for row in rows if row["policy"] == condition}
    assert told["other_bowl", None]["did_not_listen"] == told["other_bowl", 8]["did_not_listen"] == ignored
    assert told["other_task", None]["successes"] == 0 and ("other_task", 8) not in told
    assert not any(row["instruction"] == "swapped" for path in KEPT[0].parent.glob("*.json")
                   for row in json.loads(path.read_text()).get("rollouts") or [])


def test_a_run_is_put_beside_the_kept_ones_of_its_settings(tmp_path):
    def kept(seed: int, successes: int, aos: float, **changes: object) -> dict:
        config = make_config(profile="tiny", seed=seed, **changes)
        rows = [rollout("attention_mask", "right", successes, task=task, placement=config.profile.placement)
                for task in (5, None)]
        return json.loads(json.dumps(full() | {"rollouts": rows, "run": {
            "name": config.name, "condition": "attention_mask", "profile": "tiny", "seed": seed,
            "fingerprint": config.fingerprint, "config": config.model_dump(mode="json")},
            "grounding": full()["grounding"] | {"aos": series(aos, 0.06, 0.08, 0.2)}}))
    save_results(tmp_path / "attention_mask-tiny-s0.json", kept(0, 16, 0.10))
    assert beside_kept(kept(3, 17, 0.3), tmp_path) == []  # one is no spread
    save_results(tmp_path / "attention_mask-tiny-s2.json", kept(2, 2, 0.01, samples=800))  # other settings
    older = kept(1, 18, 0.14)
    del older["run"]["config"]["condition"]["saliency_rows"]  # from before there was this setting, at its default
    save_results(tmp_path / "attention_mask-tiny-s1.json", older)
    success, aos, *others = beside_kept(kept(3, 17, 0.3), tmp_path)
    assert success.kept == (0.8, 0.9) and success.value == 0.85 and success.within
    assert aos.kept == (0.10, 0.14) and not aos.within and all(other.within for other in others)
    text = kept_table([success, aos])
    assert "Beside 2 kept runs" in text and "kept 0.8 to 0.9: within" in text and text.endswith("Outside their range: AOS.")
    assert kept_table([]) == "" and "All within" in kept_table([success])
