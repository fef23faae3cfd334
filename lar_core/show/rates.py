"""Numbers in words, as tables and sentences give them: success rates (looked up, pooled over tasks) and intervals.

`results` is results.json; a row is one of its `rollouts`, or the same of a study: one policy, instruction, placement and
task (None: all tasks together).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ..measure.kept import Spread
from ..measure.results import CONTROLS
from ..measure.statistics import wilson
from ..run.settings import PAIRED
from ..scene.episode import kinds_of
from ..scene.watch import HAPPENED

CHANGES = {"blank": "a blank instruction", "other_task": "the instruction of another of its tasks",
           "other_bowl": "the other bowl's instruction",
           "foreign_task": "the instruction of a task that is not its own",  # these two only in older results:
           "mixed": "a sentence that is right every second time"}  # measure/results.py
RUN_AS = {"right": "its own", "blank": "blank", "other_task": "another of its tasks'", "other_bowl": "the other bowl's",
          "foreign_task": "a task's that is not its own", "mixed": "right every second time"}

PATHS = {"text_image": "words do not see the image", "bos_image": "BOS does not see the image",
         "image_text": "the image does not hear the words", "action_text": "actions do not hear the words",
         "action_image": "actions do not see the image"}


# What was rolled out

def tasks_of(results: dict) -> tuple[int, ...]:
    """Those of the profile."""
    return tuple(results["run"]["config"]["profile"].get("tasks", ()))


def placements(results: dict) -> list[str]:
    """The placements that were rolled out, else the one that the profile asks for."""
    seen = list(dict.fromkeys(row["placement"] for row in results.get("rollouts") or []))
    return seen or [results["run"]["config"]["profile"].get("placement", "official")]


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


def first_touched(results: dict, policy: str, instruction: str, placement: str) -> Counter[str] | None:
    """How often which bowl was touched first, over all tasks; None where they were not rolled out or it was not recorded."""
    rows = rows_of(results, policy, instruction, placement)
    if not rows or not all(row.get("happened") for row in rows):
        return None
    return sum((Counter(row["happened"]["first_touched"]) for row in rows), Counter())


# Tables and bars

def success_table(rows: Iterable[dict]) -> list[tuple]:
    """(policy, instruction, placements, task, solved, rate, 95 % interval) of every row."""
    return [(*_what(row), solved(row), *(("not recorded", "") if row["rate"] is None else
                                         (f"{100 * row['rate']:.0f} %", percent(row["low"], row["high"]))))
            for row in _not_twice(rows)]


def happened_table(rows: Iterable[dict]) -> list[tuple]:
    """(policy, instruction, placements, task, followed, at most if deaf, touched first, furthest, on the plate) of every
    row; nothing where no row knows.
    """
    rows = list(_not_twice(rows))
    if not any(row.get("happened") for row in rows):
        return []
    return [(*_what(row), *(_happened(row) if row.get("happened") else ("not recorded", *[""] * 4))) for row in rows]


def progress_rows(rows: Iterable[dict]) -> list[tuple[str, dict[str, int]]]:
    """(policy, instruction and placements, how many episodes came how far) of every row over all tasks that knows."""
    return [(f"{row['policy']}, {RUN_AS[row['instruction']]}, {row['placement']}", row["happened"]["progress"])
            for row in rows if row["task"] is None and row.get("happened")]


def _happened(row: dict) -> tuple[str, ...]:
    counts, limit = row["happened"], "one half" if row["placement"] in PAIRED else "no limit"
    share = counts["followed"]
    followed = ("names no bowl here", "") if share is None else (
        f"{counts['first_touched']['named']}/{row['episodes']} ({percent(share['low'], share['high'])})", limit)
    return *followed, *(", ".join(f"{count} {word}" for word, count in counts[name].items() if count) for name in HAPPENED)


def _what(row: dict) -> tuple:
    return (row["policy"], RUN_AS[row["instruction"]], row["placement"], "all" if row["task"] is None else row["task"])


def _not_twice(rows: Iterable[dict]) -> Iterator[dict]:
    """The rows, without the pooled ones where there is only one task, whose row says everything already."""
    rows = list(rows)
    single = len({row["task"] for row in rows} - {None}) == 1
    return (row for row in rows if row["task"] is not None or not single)


def followed_bars(results: dict) -> list[tuple]:
    """Following the right sentence, where that was recorded: a bar as of success for each policy and placement."""
    policies = dict.fromkeys(row["policy"] for row in results.get("rollouts") or [])
    return [bar(placement, policy, "model", touched["named"], touched.total())
            for placement in placements(results) for policy in policies
            if (touched := first_touched(results, policy, "right", placement))]


def bar(placement: str, label: str, kind: str, successes: int, n: int) -> tuple[str, str, str, int, int, float, float]:
    """One bar as `figures.success_bars` takes it, with Wilson's interval."""
    interval = wilson(successes, n)
    return f"{placement} placements", label, kind, successes, n, interval.low, interval.high


def success_bars(results: dict) -> list[tuple]:
    """Pooled rows in a fixed order: the policy, its changed instructions, then every other policy."""
    return [bar for bar, _ in bars_and_tasks(results)]


def bars_and_tasks(results: dict) -> list[tuple[tuple, str]]:
    """Each bar, and what single tasks have to do with it (`by_task`)."""
    policy = results["run"]["condition"]
    others = dict.fromkeys(row["policy"] for row in results.get("rollouts") or [] if row["policy"] != policy)
    kinds = [(policy, "right", policy, "model", "successes"),
             *((policy, change, words, "changed", "successes") for change, words in CHANGES.items()),
             (policy, "other_bowl", "did not listen: its own bowl instead", "ignored", "did_not_listen"),
             *((other, "right", "blind control" if other in CONTROLS else other, "control", "successes")
               for other in others)]
    return [(bar(placement, label, kind, *counts),
             by_task(results, rows_of(results, name, instruction, placement), count))
            for placement in placements(results) for name, instruction, label, kind, count in kinds
            if (counts := pooled(results, name, instruction, placement, count))]


def pooled_bars(runs: Sequence[dict]) -> tuple[list[tuple], list[list[float]]]:
    """Several runs of the same settings with seeds of their own as one chart: for each bar that all of them have, their
    rollouts together, and the rate of every run; `success_bars` of `figures` takes both.
    """
    each = [{made[:3]: made for made in success_bars(results) + without_bars(results)} for results in runs]
    names = [name for name in each[0] if all(name in one for one in each)]
    pools = [bar("", *name[1:], sum(one[name][3] for one in each), sum(one[name][4] for one in each)) for name in names]
    return [(name[0], *pool[1:]) for name, pool in zip(names, pools)], [[one[name][3] / one[name][4] for one in each]
                                                                        for name in names]


def without_bars(results: dict) -> list[tuple]:
    """Success with a path of attention cut, told the right sentence, as `success_bars`."""
    bars = [bar(row["placement"], PATHS[row["path"]], "changed", row["successes"], row["episodes"])
            for row in results.get("without") or [] if row["instruction"] == "right"]
    return [(f"the policy with a path of attention cut, {placements}", *rest) for placements, *rest in bars]


def modality_table(arms: Sequence[dict], seeing: str, placements: Iterable[str]) -> list[tuple[str, ...]]:
    """(placement, what it saw, told the sentence, told nothing): success of `seeing` and its controls `deaf`, `blind` and
    `blind_deaf`, each trained so; nothing where a study lacks one of them. arms: of study.json.
    """
    pools = {(arm["condition"], row["placement"]): row for arm in arms for row in arm["success"]
             if (row["instruction"], row["task"]) == ("right", None)}
    shown = (("the pictures", seeing, "deaf"), ("grey", "blind", "blind_deaf"))
    if not {"deaf", "blind", "blind_deaf"} < {arm["condition"] for arm in arms}:
        return []
    return [(placement, saw, *(f"{solved(row)} ({percent(row['low'], row['high'])})" if row else "not rolled out"
                               for row in (pools.get((name, placement)) for name in names)))
            for placement in placements for saw, *names in shown]


# Words

def by_task(results: dict, rows: Iterable[dict], count: str = "") -> str:
    """`task 2 4/20, task 5 0/20`; nothing in a run of a single task, whose pool says it already.

    count: what is counted, as in `pooled`; else the words of `solved`.
    """
    single = [row for row in rows if row["task"] is not None and len(tasks_of(results)) > 1]
    return ", ".join(f"task {row['task']} " + (f"{row[count]}/{row['episodes']}" if count else solved(row))
                     for row in single)


def solved(row: dict) -> str:
    """`14/20`; under the other bowl's instruction also how often the scene's own bowl was brought."""
    known = "not recorded" if row["successes"] is None else f"{row['successes']}/{row['episodes']}"
    ignored = row.get("did_not_listen")
    return known if ignored is None else f"{known} (did not listen {ignored}/{row['episodes']})"


def outcome(row: dict) -> str:
    """How an episode ended: `solved`, `not solved`, or that the wrong bowl was brought."""
    if row.get("did_not_listen"):
        return "did not listen"
    return {True: "solved", False: "not solved", None: "not its own bowl, the other one was not watched"}[row["success"]]


def ended(row: dict) -> str:
    """`solved in 90 steps`."""
    return f"{outcome(row)} in {row['steps']} steps"


def name_of(row: dict) -> str:
    """A row of rollouts.jsonl: what was rolled out, and how it ended."""
    return (f"{row['policy']}, {RUN_AS[row['instruction']]} instruction, {row['placement']} placements, task {row['task']}, "
            f"episode {row['episode']}: {ended(row)}")


def rate(successes: int, n: int, of: str = "rollouts") -> str:
    """`14 of 20 rollouts (70 %, 95 % interval 48 to 85 %)`, Wilson."""
    interval = wilson(successes, n)
    return f"{successes} of {n} {of} ({100 * interval.value:.0f} %, 95 % interval {percent(interval.low, interval.high)})"


def percent(low: float, high: float) -> str:
    """An interval of shares: `48 to 85 %`."""
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def estimate(interval: dict | None) -> str:
    """`0.11 (0.09 to 0.13)`."""
    return "not measurable" if interval is None else f"{interval['mean']:.3g} ({bounds(interval)})"


def bounds(interval: dict | None) -> str:
    """`0.09 to 0.13`."""
    if interval is None or interval["low"] is None or interval["high"] is None:
        return "no interval"
    return f"{interval['low']:.3g} to {interval['high']:.3g}"


def spread(found: Spread) -> str:
    """`kept 0.85 to 0.95: within`."""
    return f"kept {min(found.kept):.3g} to {max(found.kept):.3g}: {'within' if found.within else 'outside'}"


def sample(measured: dict) -> str:
    """`12 held-out frames of 1 episode`: what a score was measured on."""
    frames, episodes = measured["frames"], measured["episodes"]
    return f"{frames} held-out frame{'s' * (frames != 1)} of {episodes} episode{'s' * (episodes != 1)}"
