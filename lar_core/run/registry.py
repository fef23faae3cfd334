"""Values that are checked, and names that stand for things.

Checked values are frozen pydantic models whose first mistake is one sentence, naming the field, the value and the cure. A
registry is the one place where a mask source, a head, a metric and so on is named: command line, configuration, tables and
figures ask it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from .errors import LarError, unknown


class Checked(BaseModel):
    """Types and choices are the annotations; nothing is converted but whole numbers to floats, and lists to tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any):
        """Raises LarError for the first value that cannot be."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise LarError(_sentence(type(self), error)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _written_with_exponent(cls, value: Any, info: ValidationInfo) -> Any:
        return number(value) if cls.model_fields[str(info.field_name)].annotation is float else value

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again. Raises LarError."""
        return type(self)(**dict(self) | changes)

    @classmethod
    def names(cls) -> list[str]:
        """Of all fields: what a misspelt one is compared with."""
        return list(cls.model_fields)


def number(value: Any) -> Any:
    """YAML takes 1e-4 for a word: where a number is asked for, it is one; anything else stays as it is."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else value


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


# Registries: the names that a setting may take, what stands behind each, and what is said of it.

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class About:
    """words: what it is, in one line; by default the first paragraph of its docstring."""

    name: str
    words: str


@dataclass(frozen=True)
class AboutSource(About):
    """needs: what it asks for beyond the policy's own saliency: "segmentation", "previous" (the frame before) or
    "teacher" (a copy of the backbone that follows it slowly)."""

    needs: str = ""


@dataclass(frozen=True)
class AboutHead(About):
    """losses: the action losses that it can learn from, the usual one first; multiple: of what text_width must be one;
    queries: whether its own tokens are queries, all there at once, so that it can be read where they look."""

    losses: tuple[str, ...] = ("cross_entropy", "l1")
    multiple: int = 1
    queries: bool = True


@dataclass(frozen=True)
class AboutRegulariser(About):
    """passes: how often more it runs the backbone, on other words or pixels, at every step; on_map: whether its loss is
    one on the saliency map; needs: what it asks for in a batch, "others" (the sentence that names the other bowl) or
    "following" (the frame after); of_words: whether it hides or changes words of the instruction; reader: makes what of
    its own it learns, from the backbone's width; colour: of curves.
    """

    passes: int = 0
    on_map: bool = True
    needs: str = ""
    of_words: bool = False
    reader: Callable[[int], Any] | None = None
    colour: str = "#737b84"


@dataclass(frozen=True)
class AboutMetric(About):
    """label: its name in tables; chance: what a map that says nothing gets, where that is the same in every frame;
    smaller: whether smaller is better; column: whether tables of many rows have it; plot: whether it is drawn beside
    the baselines, under `title`; guide: how to read it, where a page explains it.
    """

    label: str = ""
    chance: float | None = None
    smaller: bool = False
    column: bool = True
    plot: bool = True
    title: str = ""
    guide: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name.replace("_", " "))
        object.__setattr__(self, "title", self.title or self.label)


class Registry(Mapping[str, Any]):
    """Things by name. kind: what one is called in sentences; about: what is said of each; homes: modules that fill it."""

    def __init__(self, kind: str, about: type[About], *homes: str):
        self.kind, self._about, self._homes = kind, about, homes
        self._entries: dict[str, tuple[Any, About]] = {}

    def register(self, name: str, words: str = "", **facts: Any) -> Callable[[Thing], Thing]:
        """Decorate what `name` shall mean; facts: fields of this registry's `About`.

        Running a notebook's cell again replaces its entry. Raises LarError for a name that means something else.
        """
        def add(thing: Thing) -> Thing:
            there, _ = self._entries.get(name, (thing, None))
            if _home(there) != _home(thing):
                raise LarError(f"There is a {self.kind} {name!r} already, {_home(there)}: choose another name.")
            first_paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
            self._entries[name] = thing, self._about(name, words or first_paragraph, **facts)
            return thing
        return add

    def remove(self, name: str) -> None:
        """Forget an entry."""
        del self._entries[name]

    def about(self, name: str) -> Any:
        """What is said of an entry. Raises LarError for an unknown name."""
        return self._entry(name)[1]

    def __getitem__(self, name: str) -> Any:
        """Raises LarError for an unknown name, with the nearest one."""
        return self._entry(name)[0]

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)

    def __iter__(self) -> Iterator[str]:
        for home in self._homes:
            importlib.import_module(home)
        return iter(list(self._entries))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _entry(self, name: str) -> tuple[Any, About]:
        if name not in self:
            raise unknown(self.kind, name, self)
        return self._entries[name]


def _home(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(thing))}"


MASK_SOURCES = Registry("mask source", AboutSource, "lar_core.model.masking")
RECONSTRUCTORS = Registry("reconstructor", About, "lar_core.model.mae", "lar_core.model.diffusion")
HEADS = Registry("action head", AboutHead, "lar_core.model.heads", "lar_core.model.layerwise")
REGULARISERS = Registry("regulariser", AboutRegulariser, "lar_core.model.regularisers", "lar_core.model.dynamics")
AGGREGATIONS = Registry("aggregation", About, "lar_core.model.aggregation")
PASSES = Registry("aggregation of many passes", About, "lar_core.measure.maps")
METRICS = Registry("metric", AboutMetric, "lar_core.measure.metrics")
