"""What results.json may hold, and how files of a format are read and written (docs/results.md says what each field means).

Only `schema_version` and `run` are always there. Any other section may be missing or null: its step has not run yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from ..run.errors import LarError
from ..run.files import write_json
from ..run.registry import place
from ..run.settings import INSTRUCTIONS, Count, Placement, SaliencyRows, Share
from ..run.settings import Path as PathOfAttention
from ..scene.watch import HAPPENED

Size = Annotated[float, Field(ge=0)]
Number = Annotated[int, Field(ge=0)]
Word = Annotated[str, Field(min_length=1)]
Task = Annotated[int, Field(ge=0, le=9)]


class Section(BaseModel):
    """A part of a file: nothing but its fields, numbers that are finite, and no text in the place of a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def section(**fields: Any) -> type[Section]:
    """A Section of these fields: a type where one must be given, (type, value) where it need not."""
    fields = {name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in fields.items()}
    return create_model("Section", __base__=Section, **fields)


def optional(kind: Any) -> tuple[Any, None]:
    """A field that may be null or missing."""
    return kind | None, None


def listed(kind: Any) -> Any:
    """A list of at least one."""
    return Annotated[list[kind], Field(min_length=1)]


Estimate = section(mean=float, low=float | None, high=float | None)  # a mean and its 95 % interval, null where there is none
Series = section(model=Estimate | None, uniform=Estimate | None, centre=Estimate | None, mean_map=Estimate | None,
                 best=optional(Estimate))
Values = dict[str, str | int | float | bool | list | tuple]  # what a configuration of this version or another holds
RunSection = section(name=Word, condition=Word, profile=Word, seed=int, fingerprint=Word,
                     config=section(condition=Values, profile=Values, seed=int))


class Versions(Section, extra="allow"):
    """Of packages, by name."""

    __pydantic_extra__: dict[str, Word]
    mujoco: Word


Scene = section(
    assets=section(name=Word, sha256=Word), gl=section(backend=Word, renderer=Word, version=Word), versions=Versions,
    picture=section(task=Task, sha256=Annotated[str, Field(pattern="^[0-9a-f]{64}$")],
                    colours=Annotated[str, Field(pattern="^[0-9a-f]{384}$")], check=Literal["expected", "other", "unknown"]),
    policies=listed(Word), episodes=Count)


class Demonstrations(Section, extra="allow"):
    """Where they are from; what else a recording says of itself is kept with it."""

    source: Literal["expert", "official", "lerobot"]
    images: Literal["recorded", "resized", "rendered"]
    revision: Word = None
    recorded_sizes: list[Number] = None
    assets: dict[str, str] = None
    conventions: dict[str, str] = None


class Provenance(Section, extra="allow"):
    """Commit, machine, and versions of packages by name."""

    __pydantic_extra__: dict[str, str]
    commit: str
    python: str
    machine: str
    assets: section(name=Word, sha256=(Word, None)) | None = None
    scenes: list[Scene] | None = None
    demonstrations: Demonstrations | None = None


class Final(Section, extra="allow"):
    """The last logged losses; those of regularisers by name."""

    __pydantic_extra__: dict[str, float]
    loss: float
    action: float
    recon: float | None


class Grounding(Section, extra="allow"):
    """Metrics of maps by name, registered here or elsewhere; null where nothing could be measured."""

    __pydantic_extra__: dict[str, Series | None]
    frames: Count
    episodes: Count
    aos: Series | None
    target_minus_distractor: Series | None
    auc: Series | None
    pointing: Series | None


class Metrics(Section, extra="allow"):
    """The same of one map."""

    __pydantic_extra__: dict[str, Estimate | None]
    aos: Estimate | None
    auc: Estimate | None
    target_minus_distractor: Estimate | None


Happened = section(**{name: section(**dict.fromkeys(words, Number)) for name, words in HAPPENED.items()},
                   followed=Estimate | None)


class Rollouts(Section):
    """Successes of one policy under one kind of instruction; task null: of all. Counts, rate and interval must agree."""

    policy: Word
    instruction: Literal[*INSTRUCTIONS, "foreign_task", "mixed"]
    placement: Placement
    task: Task | None
    episodes: Count
    successes: Number | None
    rate: Share | None
    low: Share | None
    high: Share | None
    did_not_listen: Number = None  # under other_bowl always, else never
    happened: Happened = None  # missing where it was not recorded

    @model_validator(mode="after")
    def _agree(self) -> Rollouts:
        known, ignored = self.successes is not None, self.did_not_listen
        if (ignored is not None) != (self.instruction == "other_bowl"):
            raise ValueError(f"did_not_listen is counted under other_bowl, and only there, not under {self.instruction}")
        if {known} != {value is not None for value in (self.rate, self.low, self.high)} or not known and ignored is None:
            raise ValueError("successes, rate and interval are either all there or, where did_not_listen stands instead, "
                             "all null")
        if (self.successes or 0) + (ignored or 0) > self.episodes:
            both = "" if ignored is None else f" and {ignored} that did not listen"
            raise ValueError(f"{self.successes} successes{both} in {self.episodes} episodes")
        if known and abs(self.rate - self.successes / self.episodes) > 1e-6:
            raise ValueError(f"its rate {self.rate} is not {self.successes}/{self.episodes}")
        if known and not self.low - 1e-9 <= self.rate <= self.high + 1e-9:
            raise ValueError(f"its rate {self.rate} lies outside its interval {self.low} to {self.high}")
        return self

    @model_validator(mode="after")
    def _add_up(self) -> Rollouts:
        counts = self.happened.model_dump(exclude={"followed"}) if self.happened else {}
        for name, words in counts.items():
            if sum(words.values()) != self.episodes:
                raise ValueError(f"{name} is counted in {sum(words.values())} of {self.episodes} episodes")
        if counts and self.successes != counts["progress"]["placed"]:
            raise ValueError(f"{self.successes} successes, but {counts['progress']['placed']} bowls placed")
        return self


Counted = {"frames": Count, "episodes": Count}
Changed = section(loss=Estimate, l1=Estimate, increase=Estimate)
ChangedImages = section(blank=Changed, shuffled=Changed)
SaliencyRow = section(name=Word, frames=Count, metrics=Metrics, skipped=(Number, None))
SWEPT = ("aos", "auc", "target_minus_distractor")  # what is measured of every layer
LayerRow = section(layer=Number, rows=SaliencyRows, frames=Count,
                   metrics=section(**dict.fromkeys(SWEPT, Estimate | None), agreement=optional(Estimate)))
Lost = {"nats": optional(Estimate), "mm": Estimate, "degrees": Estimate}  # what a change does to the actions
Curve = section(area=Estimate, points=listed(Size))
Cause = section(
    **Counted, blocks=Count, unit=Literal["nats", "mm"],
    occlusion=optional(section(auc=Estimate | None, energy=Estimate | None, target_minus_distractor=Estimate | None)),
    agreement=dict[str, Estimate | None], curves=dict[str, section(deletion=Curve, insertion=Curve)],
    knockout=list[section(path=PathOfAttention, layer=Number, onwards=bool, **Lost, loss=Estimate)],
    pixels=optional(section(
        named_gone=section(frames=Count, **Lost), other_gone=section(frames=Count, **Lost),
        swapped=optional(section(frames=Count, **Lost, followed_before=Estimate, followed=Estimate)))))
Place = section(model=Estimate, proprio=Estimate, mean=Estimate)  # errors in cm
Mechanism = section(positions=optional(section(**Counted, named=Place, plate=Place)), pull=optional(Estimate))
TrainingStep = section(parameters=Number, flops=Size | None, step_ms=Size, peak_bytes=Number | None)
Results = section(
    schema_version=Literal[1], run=RunSection, provenance=optional(Provenance),
    training=optional(section(
        steps=Count, samples=Count, seconds=Size, train_episodes=Count, heldout_episodes=Number, final=Final,
        parameters=section(backbone=Number, head=Number, decoder=Number, readers=(Number, 0), total=Number))),
    action=optional(section(**Counted, l1=Estimate, l1_mean_action=Estimate, cross_entropy=Size | None)),
    shortcut=optional(section(**Counted, unit=Literal["nats", "normalised"], right=section(loss=Estimate, l1=Estimate),
                              whole=ChangedImages, head=ChangedImages | None)),
    reconstruction=optional(section(frames=Count, loss=Size, mean_patch=Size, neighbours=Size)),
    denoising=optional(section(**Counted, loss=Estimate, other_frame=Estimate, increase=Estimate)),
    grounding=optional(Grounding), aggregations=optional(list[SaliencyRow]), robustness=optional(list[SaliencyRow]),
    layers=optional(list[LayerRow]), cause=optional(Cause), mechanism=optional(Mechanism),
    without=optional(list[section(path=PathOfAttention, instruction=Literal[*INSTRUCTIONS], placement=Placement,
                                  episodes=Count, successes=Number, low=Share, high=Share, followed=optional(Estimate))]),
    photographs=optional(dict[str, list[SaliencyRow]]), rollouts=optional(list[Rollouts]),
    latency=optional(section(device=Word, dtype=Word, n=Count, p50_ms=Size, p95_ms=Size, replans_per_s=Size,
                             actions_per_s=Size, chunk=Count, execute=Count)),
    training_cost=optional(section(device=Word, batch_size=Count, n=Count, own=TrainingStep, action_only=TrainingStep)))


class Document:
    """One kind of JSON file. noun: what it is called in sentences; command: what makes it; modern: older ones as new."""

    def __init__(self, model: type[Section], noun: str, command: str, modern: Callable[[dict], dict]):
        self.model, self.noun, self.command, self.modern = model, noun, command, modern

    def validate(self, document: dict) -> None:
        """Raises LarError naming the place and what was expected, unless `document` is complete and consistent."""
        try:
            self.model.model_validate(document)
        except ValidationError as error:
            raise LarError(f"In the {self.noun}, {_mistake(error)}.") from None

    def load(self, path: Path | str) -> dict:
        """Read and validate. Raises LarError when the file is missing, not JSON, or does not follow the format."""
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LarError(f"There is no {path}: `{self.command}` makes it.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise LarError(f"{path} is not JSON ({error}): delete it and run `{self.command}` again; finished "
                           "steps are kept.") from error
        with suppress(KeyError, TypeError, ValueError):  # what is damaged stays as it is: the format says what is wrong
            document = self.modern(document)
        try:
            self.validate(document)
        except LarError as error:
            raise LarError(f"{path} does not follow the {self.noun} schema. {error}") from error
        return document

    def save(self, path: Path | str, document: dict) -> None:
        """Validate and write atomically. Raises LarError, and leaves an earlier file as it was, for an invalid one."""
        self.validate(document)
        write_json(path, document)


def _mistake(error: ValidationError) -> str:
    """The first one: where, and what was expected there."""
    first = error.errors(include_url=False)[0]
    where, kind = first["loc"], first["type"]
    if kind in ("missing", "extra_forbidden"):
        words = "is missing" if kind == "missing" else "stands there, which it does not have"
        return f"{place(where[:-1])} is wrong: {where[-1]!r} {words}"
    if kind == "value_error":
        return f"{place(where)} is wrong: {first['ctx']['error']}"
    return f"{place(where)} is wrong: it is {first['input']!r:.100}, but {first['msg'].replace('Input should', 'must', 1)}"
