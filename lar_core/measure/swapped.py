"""Older results, whose `swapped` instruction was several things: what each of them was.

It was always the sentence of task (t + 3) % 10 in the scene of task t, and success that of the scene's own bowl. So it was

    other_task    where that task is one of the profile's
    other_bowl    in the scene of task 8, whose other bowl the sentence of task 1 names. A "success" was the scene's own
                  bowl on the plate, so that the policy did not listen; whether the other bowl came there is not known
    foreign_task  elsewhere: the sentence of a task that the profile does not have. New rollouts have no such kind
    mixed         in counterfactual scenes of task 8, where that sentence is the right one of every second scene; in
                  results.json the two cannot be told apart any more, in rollouts.jsonl they can
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..run.files import read_jsonl
from ..scene.placements import OTHER_SENTENCE, RELATIONS
from .success import success_row, with_pools

_KEY = ("policy", "instruction", "placement", "task")


def read_episodes(path: Path, tasks: Sequence[int]) -> list[dict]:
    """Rows of a rollouts.jsonl, old kinds of instruction by their present names; tasks: those of the profile.

    Of two rows on one episode the later one counts: an old `other_bowl` has been rolled out again.
    """
    rows = (episode for row in read_jsonl(path) if (episode := _modern_episode(row, tasks)))
    return list({tuple(row.get(name) for name in (*_KEY, "episode")): row for row in rows}.values())


def modern_rows(rows: object, tasks: object) -> object:
    """Rows of `rollouts` in results.json, or of `success` in study.json, by their present names and pooled anew.

    What is not such a list is returned as it is: the schema says what is wrong with it.
    """
    whole = isinstance(rows, list) and all(
        isinstance(row, dict) and "task" in row and all(isinstance(row.get(name), str) for name in _KEY[:3]) for row in rows)
    if not whole or not isinstance(tasks, Iterable) or not any(_old(row) for row in rows):
        return rows
    single = [row for row in rows if not (_old(row) and row["task"] is None)]
    modern = [_modern_row(row, tuple(tasks)) if _old(row) else row for row in single]
    return with_pools([row for row in modern if row["task"] is not None], [row for row in modern if row["task"] is None])


def _old(row: dict) -> bool:
    """Whether it is a row of the old kind, and whole: what is damaged is left to the schema."""
    if row["instruction"] != "swapped" or not {"episodes", "successes"} <= row.keys():
        return False
    n, of = row["successes"], row["episodes"]
    return row["task"] in (None, *range(10)) and isinstance(n, int) and isinstance(of, int) and 0 <= n <= of > 0


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
    kind, successes, ignored = _kind(row["task"], row["placement"], tasks), row["successes"], None
    if kind == "other_bowl":
        successes, ignored = None, row["successes"]
    return success_row(row["policy"], kind, row["placement"], row["task"], row["episodes"], successes, ignored)


def _kind(task: int, placement: str, tasks: Sequence[int]) -> str:
    told = (task + 3) % len(RELATIONS)
    if told == OTHER_SENTENCE.get(task):
        return "mixed" if placement == "counterfactual" else "other_bowl"
    return "other_task" if told in tasks else "foreign_task"
