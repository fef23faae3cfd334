"""results.json: every number of a run, read and written through one schema (fields: docs/results.md).

Only `schema_version` and `run` are always there. Any other section may be missing or null: its step has not run yet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match

from ..errors import LarError
from ..files import write_json

SCHEMA: dict = json.loads(files(__package__).joinpath("results_schema.json").read_text(encoding="utf-8"))
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many({  # what Python's json can write, no more and no less
    "array": lambda _, value: isinstance(value, list | tuple),
    "number": lambda _, value: isinstance(value, int | float) and not isinstance(value, bool)})
_VALIDATOR = validators.extend(Draft202012Validator, type_checker=_TYPES)(SCHEMA)


def validate_results(results: dict) -> None:
    """Raises LarError naming the place and what was expected, unless `results` is complete and consistent."""
    error = best_match(_VALIDATOR.iter_errors(results))
    if error is not None:
        error = _innermost(error)
        raise LarError(f"In the results, {_place(error.absolute_path)} is wrong: {error.message[:200]}.")
    for place, sentence in _contradictions(results):
        raise LarError(f"In the results, {place} is wrong: {sentence}.")


def load_results(path: Path | str) -> dict:
    """Read and validate. Raises LarError when the file is missing, not JSON, or does not follow the schema."""
    path = Path(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LarError(f"There is no {path}: `lar reproduce` makes it.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LarError(f"{path} is not JSON ({error}): delete it and run `lar reproduce` again; finished steps are "
                       "kept.") from error
    try:
        validate_results(results)
    except LarError as error:
        raise LarError(f"{path} does not follow the results schema. {error}") from error
    return results


def save_results(path: Path | str, results: dict) -> None:
    """Validate and write atomically. Raises LarError, and leaves an earlier file as it was, for invalid results."""
    validate_results(results)
    write_json(path, results)


def _innermost(error: ValidationError) -> ValidationError:
    """`anyOf [null, section]` fails as a whole: step down to the entry inside the section that is wrong."""
    while error.context:
        inner = [part for part in error.context if part.validator != "type" or part.instance != error.instance]
        if not inner:
            return error
        error = max(inner, key=lambda part: len(part.absolute_path))
    return error


def _place(path: Iterable[str | int]) -> str:
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.lstrip(".") or "the top level"


def _contradictions(results: dict) -> Iterator[tuple[str, str]]:
    """What a schema cannot say: numbers must be finite, in order, and agree with each other."""
    for path, value in _leaves(results, ()):
        if isinstance(value, float) and not math.isfinite(value):
            yield _place(path), f"{value} is not a finite number (write null where nothing could be measured)"
    for i, row in enumerate(results.get("rollouts") or []):
        if row["successes"] > row["episodes"]:
            yield f"rollouts[{i}].successes", f"{row['successes']} successes in {row['episodes']} episodes"
        if abs(row["rate"] - row["successes"] / row["episodes"]) > 1e-6:
            yield f"rollouts[{i}].rate", f"{row['rate']} is not {row['successes']}/{row['episodes']}"
        if not row["low"] - 1e-9 <= row["rate"] <= row["high"] + 1e-9:
            yield f"rollouts[{i}]", f"its rate {row['rate']} lies outside its interval {row['low']} to {row['high']}"


def _leaves(value: object, path: tuple) -> Iterator[tuple[tuple, object]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value
