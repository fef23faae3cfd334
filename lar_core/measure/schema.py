"""JSON files that follow a schema: what they may hold, said in one sentence where they do not.

A schema is a file beside this one (JSON Schema, draft 2020-12). What it cannot say, `contradictions` adds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from pathlib import Path

from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from ..run.errors import LarError
from ..run.files import write_json

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
