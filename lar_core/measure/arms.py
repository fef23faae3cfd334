"""study.json: what the runs of a study say together, read and written through one schema (fields: docs/study.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..run.errors import LarError
from ..run.folder import Run
from .compare import Result, outcomes
from .contrast import Contrast, comparison, holm
from .gather import scenes
from .results import load_results
from .rollout import episodes_of
from .schema import Document
from .statistics import bootstrap_mean
from .study import Study
from .success import contradictions, summarise
from .swapped import modern_rows

FILE = "study.json"
SCORES = {"aos": ("grounding", "aos", "model"),  # where results.json has them: intervals, of which the mean is taken
          "target_minus_distractor": ("grounding", "target_minus_distractor", "model"), "action_l1": ("action", "l1")}
COSTS = {"parameters": ("training_cost", "own", "parameters"), "flops": ("training_cost", "own", "flops"),
         "train_step_ms": ("training_cost", "own", "step_ms"), "peak_bytes": ("training_cost", "own", "peak_bytes"),
         "train_seconds": ("training", "seconds"), "act_ms": ("latency", "p50_ms")}
BASE = "action_only"  # what every run measures beside its own training step, at the same moment


def _contradictions(document: dict) -> Iterator[tuple[str, str]]:
    for i, arm in enumerate(document["arms"]):
        for j, row in enumerate(arm["success"]):
            yield from contradictions(f"arms[{i}].success[{j}]", row)


def _modern(document: dict) -> dict:
    """Older studies by the present names of what the policies were told; the tasks are those that were rolled out."""
    def of(arm: object) -> object:
        rows = arm.get("success") if isinstance(arm, dict) else None
        tasks = [row["task"] for row in rows if isinstance(row, dict) and isinstance(row.get("task"), int)] \
            if isinstance(rows, list) else []
        return arm | {"success": modern_rows(rows, tasks)} if tasks else arm
    return document | {"arms": [of(arm) for arm in document["arms"]]} if isinstance(document.get("arms"), list) else document


STUDY = Document("study_schema.json", "study", "lar study", _contradictions, _modern)


def compare_arms(study: Study, runs: dict[tuple[str, int], Run], folder: Path) -> dict:
    """Compare the finished runs of a study; validates, writes and returns `study.json`.

    Raises LarError for rollouts that cannot be paired and for runs that used different assets.
    """
    results = {arm: _read(run) for arm, run in runs.items()}
    arms = {condition: [results[condition, seed] for seed in study.seeds] for condition in study.arms}
    document = {
        "schema_version": 1,
        "study": {"name": study.name, "conditions": list(study.arms), "reference": study.reference,
                  "seeds": list(study.seeds), "profile": study.profile, "placements": list(study.placement),
                  "changes": json.loads(json.dumps(study.changes))},
        "provenance": _provenance(arms),
        "arms": [_arm(condition, made, arms[study.reference], study.placement)
                 for condition, made in arms.items()],
        "comparisons": comparisons(study, arms),
    }
    STUDY.save(folder / FILE, document)
    return document


def comparisons(study: Study, arms: dict[str, Sequence[Result]]) -> list[dict]:
    """Every arm against the reference, at every placement; all p values are corrected together."""
    others = [condition for condition in study.arms if condition != study.reference]
    contrasts = {(condition, placement): Contrast.of(*_paired(arms[condition], arms[study.reference], placement))
                 for placement in study.placement for condition in others}
    corrected = holm([contrast.p for contrast in contrasts.values()])
    return [comparison((condition, study.reference), placement, contrast, p, len(contrasts))
            for ((condition, placement), contrast), p in zip(contrasts.items(), corrected)]


def _read(run: Run) -> Result:
    return Result(run.path.name, load_results(run.results), tuple(episodes_of(run)))


def _paired(a: Sequence[Result], b: Sequence[Result], placement: str) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (S, N) of two arms, seed by seed, in the same order of init states. Raises LarError if they differ."""
    tables = [[{key: success for key, success in outcomes(result.rows, result.condition).items() if key[0] == placement}
               for result in arm] for arm in (a, b)]
    keys = sorted(tables[0][0])
    for result, table in zip((*a, *b), (*tables[0], *tables[1])):
        if sorted(table) != keys or not keys:
            raise LarError(f"{result.name} and {a[0].name} were not rolled out on the same {placement} init states: "
                           "run the study again with one setting of tasks and episodes_per_task.")
    return tuple(np.array([[table[key] for key in keys] for table in arm]) for arm in tables)


def _arm(condition: str, made: Sequence[Result], reference: Sequence[Result], placements: Sequence[str]) -> dict:
    """One entry of `arms`; success is counted over all seeds."""
    rows = [row for result in made for row in result.rows if row["placement"] in placements]
    return {"condition": condition, "runs": [result.name for result in made], "success": summarise(rows),
            **{name: _score(made, reference, path) for name, path in SCORES.items()},
            "costs": {name: _cost(made, path) for name, path in COSTS.items()}}


def _score(made: Sequence[Result], reference: Sequence[Result], path: Sequence[str]) -> dict | None:
    """Mean over seeds, and mean difference from the same seeds of the reference, with intervals over seeds."""
    values = [_value(result.results, (*path, "mean")) for result in made]
    if None in values:
        return None
    beside = [_value(result.results, (*path, "mean")) for result in reference]
    gain = None if None in beside else _interval(np.subtract(values, beside))
    return {**_interval(values), "seeds": values, "over_reference": gain}


def _cost(made: Sequence[Result], path: Sequence[str]) -> dict | None:
    """Mean over seeds; ratio: how many times that of `action_only`, where each run measured both."""
    values = [_value(result.results, path) for result in made]
    if None in values:
        return None
    beside = [_value(result.results, [BASE if name == "own" else name for name in path]) for result in made]
    ratio = float(np.mean(np.divide(values, beside))) if "own" in path else None
    return {"mean": float(np.mean(values)), "ratio": ratio}


def _interval(values: Sequence[float]) -> dict:
    interval = bootstrap_mean(values)
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def _value(results: dict, path: Sequence[str]) -> float | None:
    value: object = results
    for name in path:
        value = value and value.get(name)
    return value


def _provenance(arms: dict[str, Sequence[Result]]) -> dict:
    """That of the first run. Raises LarError where another one used other assets: they could not be compared."""
    made = [result.results["provenance"] for results in arms.values() for result in results]
    if len({json.dumps(one["assets"], sort_keys=True) for one in made}) > 1:
        raise LarError("The runs of this study used different assets: run all with one set in another --run-dir.")
    return {**made[0], "commit": ", ".join(sorted({one["commit"] for one in made})),
            "scenes": scenes([row for results in arms.values() for result in results for row in result.rows])}
