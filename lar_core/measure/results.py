"""results.json: every number of a run. Gathering it, its success rates, and older files by the present names."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from ..run.errors import LarError
from ..run.files import read_jsonl
from ..run.folder import Run, provenance
from ..run.runtime import device_name
from ..scene.placements import OTHER_SENTENCE, RELATIONS
from .schema import Document, Results
from .statistics import wilson


def _modern(results: dict) -> dict:
    """Older results by the present names of what the policy was told."""
    return results | {"rollouts": modern_rows(results["rollouts"], results["run"]["config"]["profile"]["tasks"])}


RESULTS = Document(Results, "results", "lar reproduce", _modern)
validate_results, load_results, save_results = RESULTS.validate, RESULTS.load, RESULTS.save


# Put what the steps left in a run folder together into results.json.

SCENE = ("assets", "gl", "versions", "picture")  # of a row of rollouts.jsonl: see `scene.reference.scene_record`


def gather_results(run: Run) -> dict:
    """Collect, validate and write `results.json` of a run and of its blind control; steps not run yet are null."""
    heldout, latency = _read(run.path / "heldout.json"), _read(run.path / "latency.json")
    episodes = [row for folder in (run.path, run.control)
                for row in read_episodes(folder / "rollouts.jsonl", run.config.profile.tasks)]
    config = run.config.model_dump(mode="json")
    results = {
        "schema_version": 1,
        "run": {"name": run.config.name, "condition": run.config.condition.name, "profile": run.config.profile.name,
                "seed": run.config.seed, "fingerprint": run.config.fingerprint, "config": config},
        "provenance": {**provenance(), "device": device_name(), "assets": _assets(run, episodes),
                       "scenes": scenes(episodes),
                       "demonstrations": (heldout or {}).get("demonstrations")},
        "training": _training(run, heldout) if heldout else None,
        **{part: heldout and heldout.get(part) for part in ("action", "shortcut", "reconstruction", "denoising",
                                                             "grounding", "aggregations", "robustness")},
        "photographs": {path.stem: _read(path) for path in sorted((run.path / "photographs").glob("*.json"))} or None,
        "rollouts": summarise(episodes) or None,
        "latency": latency,
        "training_cost": _read(run.path / "training_cost.json"),
    }
    save_results(run.results, results)
    return results


def scenes(episodes: list[dict]) -> list[dict] | None:
    """What the rollouts were made with, each kind once, with how many episodes of which policies; None: not recorded."""
    kinds: dict[str, list[dict]] = {}
    for row in episodes:
        if "gl" in row:
            kinds.setdefault(json.dumps({name: row[name] for name in SCENE}, sort_keys=True), []).append(row)
    return [{**json.loads(kind), "policies": sorted({row["policy"] for row in rows}), "episodes": len(rows)}
            for kind, rows in kinds.items()] or None


def _assets(run: Run, episodes: list[dict]) -> dict | None:
    """The one set of assets that the rollouts used. Raises LarError when they used several."""
    used = {json.dumps(row["assets"], sort_keys=True) for row in episodes}
    if len(used) > 1:
        raise LarError(f"The rollouts in {run.path} used different assets ({', '.join(sorted(used))}): delete "
                       "rollouts.jsonl and roll out again with one set.")
    return json.loads(used.pop()) if used else None


def _training(run: Run, heldout: dict) -> dict:
    last = read_jsonl(run.metrics)[-1]
    return {"steps": run.config.steps, "samples": run.config.steps * run.config.profile.batch_size,
            "seconds": last["seconds"], "parameters": _parameters(run.final_checkpoint / "model.safetensors"),
            "train_episodes": heldout["train_episodes"], "heldout_episodes": heldout["heldout_episodes"],
            "final": {"loss": last["loss"], "action": last["action"],
                      "recon": last["recon"] if run.config.condition.reconstructor != "none" else None,
                      **{name: last[name] for name in run.config.condition.regularisers}}}


def _parameters(checkpoint: Path) -> dict[str, int]:
    """Weights per part, counted in the file."""
    counts = {"backbone": 0, "head": 0, "decoder": 0}
    with safe_open(checkpoint, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no dict)
            counts[name.split(".")[0]] += math.prod(file.get_slice(name).get_shape())
    return {**counts, "total": sum(counts.values())}


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# Success rates: one row a policy, kind of instruction, placement and task, then one over all its tasks.

def summarise(episodes: Sequence[dict]) -> list[dict]:
    """Rows of rollouts.jsonl -> success rates with Wilson's intervals, per task and then pooled (task None)."""
    groups: dict[tuple, list[dict]] = {}
    for row in episodes:
        groups.setdefault((row["policy"], row["instruction"], row["placement"], row["task"]), []).append(row)
    return with_pools([success_row(*key, len(rows), _count(rows, "success"),
                                   _count(rows, "did_not_listen") if key[1] == "other_bowl" else None)
                       for key, rows in groups.items()])


def with_pools(rows: Sequence[dict], pools: Sequence[dict] = ()) -> list[dict]:
    """The rows of single tasks, each group followed by the one over all of them; pools: those that exist already."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["policy"], row["instruction"], row["placement"]), []).append(row)
    known = {(row["policy"], row["instruction"], row["placement"]): row for row in pools}
    return [row for key, group in groups.items() for row in (*group, known.pop(key, None) or _pool(key, group))] \
        + list(known.values())


def success_row(policy: str, instruction: str, placement: str, task: int | None, episodes: int, successes: int | None,
                did_not_listen: int | None = None) -> dict:
    """One row of `rollouts` in results.json."""
    interval = None if successes is None else wilson(successes, episodes)
    return {"policy": policy, "instruction": instruction, "placement": placement, "task": task, "episodes": episodes,
            "successes": successes, "rate": interval and interval.value, "low": interval and interval.low,
            "high": interval and interval.high,
            **({"did_not_listen": did_not_listen} if instruction == "other_bowl" else {})}


def _pool(key: tuple[str, str, str], rows: Sequence[dict]) -> dict:
    def total(name: str) -> int | None:
        counts = [row.get(name) for row in rows]
        return None if None in counts else sum(counts)
    return success_row(*key, None, total("episodes"), total("successes"), total("did_not_listen"))


def _count(rows: Sequence[dict], name: str) -> int | None:
    """How many are true; None where an older row does not know."""
    values = [row[name] for row in rows]
    return None if None in values else sum(values)


# Older results, whose `swapped` instruction was several things: what each of them was.

_KEY = ("policy", "instruction", "placement", "task")


def read_episodes(path: Path, tasks: Sequence[int]) -> list[dict]:
    """Rows of a rollouts.jsonl, old kinds of instruction by their present names; tasks: those of the profile.

    Of two rows on one episode the later one counts: an old `other_bowl` has been rolled out again.
    """
    rows = (episode for row in read_jsonl(path) if (episode := _modern_episode(row, tasks)))
    return list({tuple(row.get(name) for name in (*_KEY, "episode")): row for row in rows}.values())


def modern_rows(rows: list[dict], tasks: Sequence[int]) -> list[dict]:
    """Rows of `rollouts` in results.json, or of `success` in study.json, by their present names and pooled anew.

    Raises KeyError, TypeError or ValueError for what is not such a list.
    """
    ours = [row for row in rows if row["instruction"] != "swapped"]
    if len(ours) == len(rows):
        return rows
    ours += [_modern_row(row, tasks) for row in rows if row["instruction"] == "swapped" and row["task"] is not None]
    return with_pools([row for row in ours if row["task"] is not None], [row for row in ours if row["task"] is None])


def _modern_episode(row: dict, tasks: Sequence[int]) -> dict | None:
    if row.get("instruction") != "swapped":
        return row
    kind = _kind(row["task"], row["placement"], tasks)
    if kind == "mixed":
        if row["episode"] % 2:  # it was told its own sentence: what `right` says already
            return None
        kind = "other_bowl"
    ignored = {"success": None, "did_not_listen": row["success"]} if kind == "other_bowl" else {}
    return row | {"instruction": kind} | ignored


def _modern_row(row: dict, tasks: Sequence[int]) -> dict:
    kind = _kind(row["task"], row["placement"], tasks)
    counts = (None, row["successes"]) if kind == "other_bowl" else (row["successes"],)
    return success_row(row["policy"], kind, row["placement"], row["task"], row["episodes"], *counts)


def _kind(task: int, placement: str, tasks: Sequence[int]) -> str:
    told = (task + 3) % len(RELATIONS)
    if told == OTHER_SENTENCE.get(task):
        return "mixed" if placement == "counterfactual" else "other_bowl"
    return "other_task" if told in tasks else "foreign_task"
