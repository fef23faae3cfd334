"""Success rates: one row a policy, kind of instruction, placement and task, then one over all its tasks.

Under `other_bowl` success is the other bowl on the plate, and a second count says how often the scene's own bowl was put
there (`did_not_listen`). `successes` is None in older results that did not watch the other bowl (`swapped.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .statistics import wilson


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


def contradictions(place: str, row: dict) -> Iterator[tuple[str, str]]:
    """What a schema cannot say of such a row: counts, rate and interval must agree."""
    known = [row[name] is not None for name in ("successes", "rate", "low", "high")]
    ignored = row.get("did_not_listen")
    if ignored is not None and row["instruction"] != "other_bowl":
        yield f"{place}.did_not_listen", f"it is counted under other_bowl, not under {row['instruction']}"
    elif any(known) != all(known) or not (known[0] or ignored is not None):
        yield place, "successes, rate and interval are either all there or, where did_not_listen stands instead, all null"
    elif (row["successes"] or 0) + (ignored or 0) > row["episodes"]:
        both = "" if ignored is None else f" and {ignored} that did not listen"
        yield f"{place}.successes", f"{row['successes']} successes{both} in {row['episodes']} episodes"
    elif known[0] and abs(row["rate"] - row["successes"] / row["episodes"]) > 1e-6:
        yield f"{place}.rate", f"{row['rate']} is not {row['successes']}/{row['episodes']}"
    elif known[0] and not row["low"] - 1e-9 <= row["rate"] <= row["high"] + 1e-9:
        yield place, f"its rate {row['rate']} lies outside its interval {row['low']} to {row['high']}"


def _pool(key: tuple[str, str, str], rows: Sequence[dict]) -> dict:
    def total(name: str) -> int | None:
        counts = [row.get(name) for row in rows]
        return None if None in counts else sum(counts)
    return success_row(*key, None, total("episodes"), total("successes"), total("did_not_listen"))


def _count(rows: Sequence[dict], name: str) -> int | None:
    """How many are true; None where an older row does not know."""
    values = [row[name] for row in rows]
    return None if None in values else sum(values)
