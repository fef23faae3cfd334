"""results.json: every number of a run. Gathering it, its success rates, older files by the present names, and several
runs beside each other.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import itemgetter
from pathlib import Path

from safetensors import safe_open

from ..run.errors import LarError
from ..run.files import read_jsonl
from ..run.folder import Run, provenance
from ..run.runtime import device_name
from ..run.settings import PATHS
from ..scene.placements import OTHER_SENTENCE, RELATIONS
from ..scene.watch import HAPPENED
from .schema import Document, Results
from .statistics import describe_difference, wilson

CONTROLS = ("blind", "blind_deaf")  # the conditions that are trained without images
AUDIT, SHOWN_GREY = "audit", " shown grey"  # the profile of policies that others serve; what ends their control's name
OTHER_BENCH = ("One acted in LIBERO's own scene and learned from its demonstrations, the other in the embedded scene from "
               "the scripted expert's (bench): what differs then is not the condition alone.")


def _modern(results: dict) -> dict:
    """Older results by the present names of what the policy was told."""
    return results | {"rollouts": modern_rows(results["rollouts"], results["run"]["config"]["profile"]["tasks"])}


RESULTS = Document(Results, "results", "lar reproduce", _modern)
validate_results, load_results, save_results = RESULTS.validate, RESULTS.load, RESULTS.save


def audited(results: dict) -> bool:
    """Whether the policy is one that was only asked for actions (`lar audit`)."""
    return results["run"]["profile"] == AUDIT


def control_of(results: dict) -> str:
    """The condition of a run's blind control, which is told nothing where the policy itself is not.

    That of an audited policy is the same one, shown grey pictures.
    """
    if audited(results):
        return results["run"]["condition"] + SHOWN_GREY
    return CONTROLS[bool(measured(results, ("run", "config", "condition", "deaf")))]


# Put what the steps left in a run folder together into results.json.

_ARM = ("policy", "instruction", "placement")
NAMING = ("right", "other_bowl")  # the kinds of instruction that name a bowl of the scene
PLANNED = "plan.json"  # of a run that belongs to a planned study: {"plan": hash}
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
                       "demonstrations": (heldout or {}).get("demonstrations"), **(_read(run.path / PLANNED) or {})},
        "training": _training(run, heldout) if heldout else None,
        **{part: heldout and heldout.get(part) for part in ("action", "shortcut", "reconstruction", "denoising",
                                                             "grounding", "aggregations", "robustness", "layers", "cause",
                                                             "mechanism")},
        "without": _without(run),
        "photographs": {path.stem: _read(path) for path in sorted((run.path / "photographs").glob("*.json"))} or None,
        "rollouts": summarise(episodes) or None,
        "latency": latency,
        "training_cost": _read(run.path / "training_cost.json"),
    }
    save_results(run.results, results)
    return results


def _without(run: Run) -> list[dict] | None:
    """Success, over all tasks, with a path of attention cut; None where nothing was rolled out so."""
    found = []
    for path in PATHS:
        rows = read_episodes(run.path / f"without_{path}" / "rollouts.jsonl", run.config.profile.tasks)
        for row in summarise(rows):
            if row["task"] is None:
                counts = ("instruction", "placement", "episodes", "successes", "low", "high")
                found.append({"path": path, **{name: row[name] for name in counts},
                              "followed": (row.get("happened") or {}).get("followed")})
    return found or None


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
    parameters = {"backbone": 0, "head": 0, "decoder": 0, "readers": 0}
    with safe_open(run.final_checkpoint / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no dict)
            parameters[name.split(".")[0]] += math.prod(file.get_slice(name).get_shape())
    return {"steps": run.config.steps, "samples": run.config.steps * run.config.profile.batch_size,
            "seconds": last["seconds"], "parameters": {**parameters, "total": sum(parameters.values())},
            "train_episodes": heldout["train_episodes"], "heldout_episodes": heldout["heldout_episodes"],
            "final": {"loss": last["loss"], "action": last["action"],
                      "recon": last["recon"] if run.config.condition.reconstructor != "none" else None,
                      **{name: last[name] for name in run.config.condition.regularisers}}}


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# Success rates: one row a policy, kind of instruction, placement and task, then one over all its tasks.

def summarise(episodes: Sequence[dict]) -> list[dict]:
    """Rows of rollouts.jsonl -> success rates with Wilson's intervals, per task and then pooled (task None)."""
    return with_pools([success_row(*key, len(rows), _total(rows, "success"), _total(rows, "did_not_listen"), _tally(rows))
                       for key, rows in _grouped(episodes, (*_ARM, "task")).items()])


def with_pools(rows: Sequence[dict], pools: Sequence[dict] = ()) -> list[dict]:
    """The rows of single tasks, each group followed by the one over all of them; pools: those that exist already."""
    known, made = {key: same[-1] for key, same in _grouped(pools, _ARM).items()}, []
    for key, group in _grouped(rows, _ARM).items():
        counts = (_total(group, name) for name in ("episodes", "successes", "did_not_listen"))
        happened = _tally([row.get("happened") or {} for row in group])
        made += [*group, known.pop(key, None) or success_row(*key, None, *counts, happened)]
    return made + list(known.values())


def success_row(policy: str, instruction: str, placement: str, task: int | None, episodes: int, successes: int | None,
                did_not_listen: int | None = None, happened: dict[str, dict[str, int]] | None = None) -> dict:
    """One row of `rollouts` in results.json; happened: how often each word of `HAPPENED`, where that was recorded."""
    interval = None if successes is None else wilson(successes, episodes)
    return {"policy": policy, "instruction": instruction, "placement": placement, "task": task, "episodes": episodes,
            "successes": successes, "rate": interval and interval.value, "low": interval and interval.low,
            "high": interval and interval.high,
            **({"did_not_listen": did_not_listen} if instruction == "other_bowl" else {}),
            **({"happened": {**happened, "followed": _followed(instruction, happened)}} if happened else {})}


def _followed(instruction: str, happened: dict[str, dict[str, int]]) -> dict | None:
    """Share, with Wilson's interval, of episodes that first touched the bowl that the sentence names, where it names one."""
    touched = happened["first_touched"]
    return wilson(touched["named"], sum(touched.values())).written if instruction in NAMING else None


def _tally(rows: Sequence[dict]) -> dict[str, dict[str, int]] | None:
    """How often each word of `HAPPENED`, over rows that have one word or such counts; None where a row does not know."""
    if any(row.get(name) is None for row in rows for name in HAPPENED):
        return None
    counted: dict[str, Counter[str]] = {name: Counter() for name in HAPPENED}
    for name, counter in counted.items():
        for row in rows:
            counter.update([row[name]] if isinstance(row[name], str) else row[name])
    return {name: {word: counted[name][word] for word in words} for name, words in HAPPENED.items()}


def _grouped(rows: Iterable[dict], names: Sequence[str]) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return groups


def _total(rows: Sequence[dict], name: str) -> int | None:
    """None where a row does not know."""
    values = [row.get(name) for row in rows]
    return None if None in values else sum(values)


def episodes_of(run: Run) -> list[dict]:
    """Rows of the run's `rollouts.jsonl`; old ones by the present names of what the policy was told."""
    return read_episodes(run.path / "rollouts.jsonl", run.config.profile.tasks)


# Older results, whose `swapped` instruction was several things: what each of them was.

def read_episodes(path: Path, tasks: Sequence[int]) -> list[dict]:
    """Rows of a rollouts.jsonl, old kinds of instruction by their present names; tasks: those of the profile.

    Of two rows on one episode the later one counts: an old `other_bowl` has been rolled out again.
    """
    rows = (episode for row in read_jsonl(path) if (episode := _modern_episode(row, tasks)))
    return [same[-1] for same in _grouped(rows, (*_ARM, "task", "episode")).values()]


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


# Several runs beside each other: run folders of this machine, and results that others kept.

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

    @property
    def control(self) -> str:
        """Its blind control's."""
        return control_of(self.results)

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
    made = [(f"{row['placement']} placements, {result.results['run']['profile']}{_WORDS[bench_of(result.results)]}",
             label, kind, row["successes"], row["episodes"], row["low"], row["high"])
            for result in found if result.condition not in CONTROLS
            for policy, label, kind in ((result.condition, result.name, "model"),
                                        (result.control, "its blind control", "control"))
            for row in result.entries(policy)]
    return sorted(made, key=lambda bar: bar[0])  # groups together, the order within a group as it was


_WORDS = {"libero": ", LIBERO's own scene", "embedded": ""}


def bench_of(results: dict) -> str:
    """`libero` or `embedded`: whose scene and demonstrations results.json is about."""
    return "libero" if measured(results, ("run", "config", "profile", "bench")) == "libero" else "embedded"


def summary(found: Sequence[Result]) -> list[tuple]:
    """(run, success, its blind control's, AOS, named minus other bowl, action error, training minutes) of each."""
    def count(result: Result, policy: str) -> str:
        rows = result.entries(policy)
        return ", ".join(f"{row['successes']}/{row['episodes']} {row['placement']}" for row in rows) or "not run"
    def number(result: Result, *path: str, unit: float = 1) -> float | str:
        found = measured(result.results, path)
        return "not run" if found is None else found / unit
    return [(one.name, count(one, one.condition), count(one, one.control), number(one, "grounding", "aos", "model", "mean"),
             number(one, "grounding", "target_minus_distractor", "model", "mean"), number(one, "action", "l1", "mean"),
             number(one, "training", "seconds", unit=60)) for one in found]


def measured(results: dict, path: Sequence[str]) -> float | None:
    """What stands at a place in results.json; None where its step has not run."""
    found: object = results
    for name in path:
        found = found and found.get(name)
    return found


def differences(found: Sequence[Result]) -> list[str]:
    """For every two policies that were rolled out on the same episodes, one sentence with the paired test, or why not."""
    sentences = []
    for a, b in combinations(found, 2):
        first, second = (outcomes(result.rows, result.condition) for result in (a, b))
        shared = sorted(first.keys() & second.keys())
        if shared and bench_of(a.results) != bench_of(b.results):
            sentences.append(f"{a.name} and {b.name} are not compared. {OTHER_BENCH}")
        elif shared:
            sentences.append(describe_difference(a.name, [first[key] for key in shared],
                                                 b.name, [second[key] for key in shared]))
    return sentences


def outcomes(rows: Iterable[dict], policy: str, instruction: str = "right", placement: str | None = None,
             outcome: Callable[[dict], bool | None] = itemgetter("success")) -> dict[tuple, bool]:
    """`outcome` by (placement, task, episode, init seed, hash of the state in which it began or ""): what pairs the rollouts
    of two policies. placement None: all.
    """
    return {(row["placement"], row["task"], row["episode"], row["init_seed"], row.get("begun", "")): outcome(row)
            for row in rows if (row["policy"], row["instruction"]) == (policy, instruction)
            and placement in (None, row["placement"])}


def followed(row: dict) -> bool | None:
    """Whether an episode first touched the bowl that the sentence names; None where that was not recorded."""
    return row["first_touched"] == "named" if "first_touched" in row else None
