"""The success rates of a run for tables and sentences: looked up, pooled over tasks, and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..scene.episode import kinds_of

CHANGES = {"blank": "a blank instruction", "other_task": "the instruction of another of its tasks",
           "other_bowl": "the other bowl's instruction",
           "foreign_task": "the instruction of a task that is not its own",  # these two only in older results:
           "mixed": "a sentence that is right every second time"}  # measure/results.py


def changes(results: dict, placement: str) -> list[str]:
    """The changed instructions that were rolled out or that the run's tasks have, in the order of `CHANGES`."""
    known = {row["instruction"] for row in results.get("rollouts") or [] if row["placement"] == placement}
    return [change for change in CHANGES if change in known or change in kinds_of(tasks_of(results))]


def rows_of(results: dict, policy: str, instruction: str, placement: str) -> list[dict]:
    """Rows of single tasks; where there is only one over all tasks, that."""
    rows = [row for row in results.get("rollouts") or []
            if (row["policy"], row["instruction"], row["placement"]) == (policy, instruction, placement)]
    return [row for row in rows if row["task"] is not None] or rows


def pooled(results: dict, policy: str, instruction: str, placement: str, count: str = "successes",
           tasks: Iterable[int | None] | None = None) -> tuple[int, int] | None:
    """(successes, episodes) over all tasks, or over `tasks`; None where they were not rolled out or not counted.

    count: what is counted, "successes" or "did_not_listen".
    """
    rows = [row for row in rows_of(results, policy, instruction, placement) if tasks is None or row["task"] in tasks]
    if not rows or any(row.get(count) is None for row in rows):
        return None
    return sum(row[count] for row in rows), sum(row["episodes"] for row in rows)


def by_task(results: dict, rows: Iterable[dict], words: Callable[[dict], str] | None = None) -> str:
    """`task 2 4/20, task 5 0/20`; nothing in a run of a single task, whose pool says it already."""
    single = [row for row in rows if row["task"] is not None and len(tasks_of(results)) > 1]
    return ", ".join(f"task {row['task']} {(words or solved)(row)}" for row in single)


def outcome(row: dict) -> str:
    """How an episode ended: `solved`, `not solved`, or that the wrong bowl was brought."""
    if row.get("did_not_listen"):
        return "did not listen"
    return {True: "solved", False: "not solved", None: "not its own bowl, the other one was not watched"}[row["success"]]


def percent(row: dict) -> tuple[str, str]:
    """Rate and interval of a row of `rollouts`, in words."""
    if row["rate"] is None:
        return "not recorded", ""
    return f"{100 * row['rate']:.0f} %", f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %"


def solved(row: dict) -> str:
    """`14/20`; under the other bowl's instruction also how often the scene's own bowl was brought."""
    known = "not recorded" if row["successes"] is None else f"{row['successes']}/{row['episodes']}"
    ignored = row.get("did_not_listen")
    return known if ignored is None else f"{known} (did not listen {ignored}/{row['episodes']})"


def tasks_of(results: dict) -> tuple[int, ...]:
    """Those of the profile."""
    return tuple(results["run"]["config"]["profile"].get("tasks", ()))
