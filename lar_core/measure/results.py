"""results.json: every number of a run, read and written through one schema (fields: docs/results.md).

Only `schema_version` and `run` are always there. Any other section may be missing or null: its step has not run yet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from safetensors import safe_open

from ..run.errors import LarError
from ..run.files import read_jsonl, write_json
from ..run.folder import Run, provenance
from ..run.runtime import device_name
from ..scene.placements import OTHER_SENTENCE, RELATIONS
from .statistics import wilson


def _contradictions(results: dict) -> Iterator[tuple[str, str]]:
    for i, row in enumerate(results.get("rollouts") or []):
        yield from contradictions(f"rollouts[{i}]", row)


def _modern(results: dict) -> dict:
    """Older results by the present names of what the policy was told."""
    profile = results
    for name in ("run", "config", "profile"):
        profile = profile.get(name) if isinstance(profile, dict) else None
    rows = modern_rows(results.get("rollouts"), profile.get("tasks") if isinstance(profile, dict) else None)
    return results | {"rollouts": rows} if rows else results


# JSON files that follow a schema: what they may hold, said in one sentence where they do not.

_TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many({  # what Python's json can write, no more and no less
    "array": lambda _, value: isinstance(value, list | tuple),
    "number": lambda _, value: isinstance(value, int | float) and not isinstance(value, bool)})
_Validator = validators.extend(Draft202012Validator, type_checker=_TYPES)


def _read_schema(name: str) -> dict:
    return json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _resource(name: str) -> Resource:
    """What one schema refers to in another, as in `results_schema.json#/$defs/interval`."""
    return DRAFT202012.create_resource(_read_schema(name))


class Document:
    """One kind of JSON file. noun: what it is called in sentences; command: what makes it; modern: older ones as new."""

    def __init__(self, schema: str, noun: str, command: str,
                 contradictions: Callable[[dict], Iterable[tuple[str, str]]] = lambda document: (),
                 modern: Callable[[dict], dict] = lambda document: document):
        self.schema = _read_schema(schema)
        self.noun, self.command, self.contradictions, self.modern = noun, command, contradictions, modern
        self._validator = _Validator(self.schema, registry=Registry(retrieve=_resource))

    def validate(self, document: dict) -> None:
        """Raises LarError naming the place and what was expected, unless `document` is complete and consistent."""
        error = best_match(self._validator.iter_errors(document))
        if error is not None:
            error = _innermost(error)
            raise LarError(f"In the {self.noun}, {place(error.absolute_path)} is wrong: {error.message[:200]}.")
        for where, sentence in (*_not_finite(document), *self.contradictions(document)):
            raise LarError(f"In the {self.noun}, {where} is wrong: {sentence}.")

    def load(self, path: Path | str) -> dict:
        """Read and validate. Raises LarError when the file is missing, not JSON, or does not follow the schema."""
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LarError(f"There is no {path}: `{self.command}` makes it.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise LarError(f"{path} is not JSON ({error}): delete it and run `{self.command}` again; finished "
                           "steps are kept.") from error
        document = self.modern(document) if isinstance(document, dict) else document
        try:
            self.validate(document)
        except LarError as error:
            raise LarError(f"{path} does not follow the {self.noun} schema. {error}") from error
        return document

    def save(self, path: Path | str, document: dict) -> None:
        """Validate and write atomically. Raises LarError, and leaves an earlier file as it was, for an invalid one."""
        self.validate(document)
        write_json(path, document)


def place(path: Iterable[str | int]) -> str:
    """Where in a document, in words: `rollouts[0].rate`."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.lstrip(".") or "the top level"


def _innermost(error: ValidationError) -> ValidationError:
    """`anyOf [null, section]` fails as a whole: step down to the entry inside the section that is wrong."""
    while error.context:
        inner = [part for part in error.context if part.validator != "type" or part.instance != error.instance]
        if not inner:
            return error
        error = max(inner, key=lambda part: len(part.absolute_path))
    return error


def _not_finite(document: dict) -> Iterator[tuple[str, str]]:
    for path, value in _leaves(document, ()):
        if isinstance(value, float) and not math.isfinite(value):
            yield place(path), f"{value} is not a finite number (write null where nothing could be measured)"


def _leaves(value: object, path: tuple) -> Iterator[tuple[tuple, object]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


RESULTS = Document("results_schema.json", "results", "lar reproduce", _contradictions, _modern)
SCHEMA = RESULTS.schema
validate_results, load_results, save_results = RESULTS.validate, RESULTS.load, RESULTS.save


# Older results, whose `swapped` instruction was several things: what each of them was.

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
        for name in file.keys():
            size = 1
            for length in file.get_slice(name).get_shape():
                size *= length
            counts[name.split(".")[0]] += size
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
