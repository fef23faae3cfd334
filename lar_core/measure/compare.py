"""Several runs beside each other: run folders of this machine, and results that others kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..run.errors import LarError
from .results import load_results, read_episodes
from .statistics import describe_difference

BLIND = "blind"  # the condition that is trained without images


@dataclass(frozen=True)
class Result:
    """results: results.json; rows: episodes, of the policy and its control; empty where only results.json was kept."""

    name: str
    results: dict
    rows: tuple[dict, ...]

    @property
    def condition(self) -> str:
        """Its name."""
        return self.results["run"]["condition"]

    def entries(self, policy: str) -> list[dict]:
        """The pooled rows of results.json for a policy and the right instruction, one a placement."""
        return [row for row in self.results.get("rollouts") or [] if row["task"] is None
                and (row["policy"], row["instruction"]) == (policy, "right")]


def find_results(runs: Path, kept: Path | None = None) -> list[Result]:
    """Every run below `runs` that has a results.json, then every kept results file that none of them stands for.

    Files that cannot be read are left out with a sentence.
    """
    places = [(path.parent.name, path, path.parent) for path in sorted(runs.glob("*/results.json"))]
    places += [(f"{path.stem} (kept)", path, None) for path in sorted(kept.glob("*.json") if kept else ())
               if path.stem not in {name for name, *_ in places} and _of_a_run(path)]
    found = []
    for name, path, folder in places:
        try:
            results = load_results(path)
            tasks = results["run"]["config"]["profile"].get("tasks", ())
            rows = [row for part in (folder, folder / "control") for row in read_episodes(part / "rollouts.jsonl", tasks)] \
                if folder else []
            found.append(Result(name, results, tuple(rows)))
        except LarError as error:
            print(f"{name} is left out: {error}")
    return found


def _of_a_run(path: Path) -> bool:
    """Whether a kept file is of one run; other things are kept too. What is no JSON at all will be named as damaged."""
    try:
        return "run" in json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True


def bars(found: Sequence[Result]) -> list[tuple]:
    """Success of every run and of its blind control, as `figures.success_bars` takes it."""
    made, control = [], (BLIND, "its blind control", "control")
    for result in found:
        for policy, label, kind in ((result.condition, result.name, "model"), control):
            for row in result.entries(policy) if policy != BLIND or result.condition != BLIND else ():
                made.append((f"{row['placement']} placements, {result.results['run']['profile']}", label, kind,
                             row["successes"], row["episodes"], row["low"], row["high"]))
    return sorted(made, key=lambda bar: bar[0])  # groups together, the order within a group as it was


def summary(found: Sequence[Result]) -> list[tuple]:
    """(run, success, its blind control's, AOS, named minus other bowl, action error, training minutes) of each."""
    def count(rows: list[dict]) -> str:
        return ", ".join(f"{row['successes']}/{row['episodes']} {row['placement']}" for row in rows) or "not run"
    def minutes(result: Result) -> float | str:
        training = result.results.get("training")
        return training["seconds"] / 60 if training else "not run"
    def mean(section: str, metric: str, result: Result, series: str | None = "model") -> float | str:
        entry = (result.results.get(section) or {}).get(metric)
        entry = entry and (entry[series] if series else entry)
        return entry["mean"] if entry else "not run"
    return [(result.name, count(result.entries(result.condition)), count(result.entries(BLIND)),
             mean("grounding", "aos", result), mean("grounding", "target_minus_distractor", result),
             mean("action", "l1", result, None), minutes(result))
            for result in found]


def differences(found: Sequence[Result], instruction: str = "right") -> list[str]:
    """For every two policies that were rolled out on the same episodes, one sentence with the paired test."""
    sentences = []
    for a, b in combinations(found, 2):
        first, second = (outcomes(result.rows, result.condition, instruction) for result in (a, b))
        shared = sorted(first.keys() & second.keys())
        if shared:
            sentences.append(describe_difference(a.name, [first[key] for key in shared],
                                                 b.name, [second[key] for key in shared]))
    return sentences


def outcomes(rows: Iterable[dict], policy: str, instruction: str = "right") -> dict[tuple, bool]:
    """Success by (placement, task, episode, init seed): what pairs the rollouts of two policies."""
    return {(row["placement"], row["task"], row["episode"], row["init_seed"]): row["success"] for row in rows
            if (row["policy"], row["instruction"]) == (policy, instruction)}
