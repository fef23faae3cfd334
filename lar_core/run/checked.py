"""Checked values: frozen pydantic models whose first mistake is one sentence, naming the field, the value and the cure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import LarError, unknown


class Checked(BaseModel):
    """Types and choices are the annotations; nothing is converted but whole numbers to floats, and lists to tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, /, **values: Any):
        """Raises LarError for the first value that cannot be."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise LarError(_sentence(type(self), error)) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again. Raises LarError."""
        return type(self)(**dict(self) | changes)

    @classmethod
    def names(cls) -> list[str]:
        """What `extra` fields are compared with."""
        return list(cls.model_fields)


def place(path: Iterable[str | int]) -> str:
    """Where in a document, in words: `rollouts[0].rate`."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.lstrip(".") or "the top level"


def _sentence(model: type[Checked], error: ValidationError) -> str:
    """The first mistake, in words."""
    first = error.errors(include_url=False)[0]
    where, value = first["loc"], first["input"]
    info = model.model_fields.get(str(where[0])) if where else None
    kind = (info.title if info else None) or str(where[0] if where else "").replace("_", " ")
    if first["type"] == "extra_forbidden":
        return str(unknown("setting", where[-1], model.names()))
    if first["type"] == "missing":
        return f"{place(where)} is missing, but must be given."
    if first["type"] == "literal_error" and info:
        return str(unknown(kind, value, _choices(info.annotation)))
    must = re.sub("^[A-Z][a-z]+ should", "must", first["msg"]).replace("valid tuple", "list in brackets")
    return f"{place(where)} is {value!r}, but {must}."


def _choices(annotation: Any) -> list:
    """The values of a Literal, also inside a tuple."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]
