"""Put what the steps left in a run folder together into results.json."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from ..run.errors import LarError
from ..run.files import read_jsonl
from ..run.folder import Run, provenance
from ..run.runtime import device_name
from .results import save_results
from .success import summarise
from .swapped import read_episodes

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
        for name in file.keys():
            size = 1
            for length in file.get_slice(name).get_shape():
                size *= length
            counts[name.split(".")[0]] += size
    return {**counts, "total": sum(counts.values())}


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
