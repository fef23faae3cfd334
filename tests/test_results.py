"""results.json: what the schema accepts, what it refuses, and that the refusal names the place."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

from lar_core.measure.results import SCHEMA, load_results, save_results, success_row, validate_results
from lar_core.measure.statistics import wilson
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.folder import provenance


def interval(mean: float, half: float = 0.01) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def series(model: float, uniform: float, centre: float, mean_map: float) -> dict:
    return {"model": interval(model), "uniform": interval(uniform), "centre": interval(centre),
            "mean_map": interval(mean_map)}


def changed(loss: float, before: float = 1.6) -> dict:
    return {"loss": interval(loss), "increase": interval(loss - before), "l1": interval(0.2)}


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
        "rollouts": [rollout("attention_mask", "right", 14), rollout("attention_mask", "blank", 2),
                     rollout("attention_mask", "foreign_task", 11), other_bowl("attention_mask", 3, 12), rollout("blind", "right", 13)],
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


def test_accepts_complete_and_minimal_results():
    validate_results(full())
    validate_results(minimal())


@pytest.mark.parametrize("section", [name for name in SCHEMA["properties"] if name not in ("schema_version", "run")])
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
    ("rollouts/1/did_not_listen", 1, "rollouts[1].did_not_listen"),
    ("rollouts/3/did_not_listen", None, "rollouts[3].did_not_listen"),
    ("rollouts/3/did_not_listen", 18, "rollouts[3].successes"),
    ("rollouts/3/rate", None, "rollouts[3]"),
    ("rollouts/4/task", 10, "rollouts[4].task"),
    ("latency/p50_ms", -1, "latency.p50_ms"),
    ("latency/p95_ms", math.nan, "latency.p95_ms"),
    ("action/l1/low", -math.inf, "action.l1.low"),
    ("action/cross_entropy", np.float32(1.5), "action.cross_entropy"),
    ("shortcut/whole/blank/increase", None, "shortcut.whole.blank.increase"),
    ("shortcut/unit", "bits", "shortcut.unit"),
    ("rollouts/0/rate", 0.71, "rollouts[0].rate"),
    ("rollouts/0/successes", 21, "rollouts[0].successes"),
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
