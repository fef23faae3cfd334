"""A study: which conditions, with which seeds, are compared, and how big. Read from a small YAML file (docs/study.md).

Every run of a study is an ordinary run (`RunConfig`); the blind control is one run per seed that all conditions share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..run.checked import Checked
from ..run.config import CONDITIONS, PROFILES, Placement, RunConfig, make_config
from ..run.errors import LarError, unknown
from ..run.folder import blind_twin

OWN_LINE = ("condition", "seed", "profile", "tasks", "placement")  # of these, `set` may change none
BLIND = "blind"


class Study(Checked):
    """What is compared: the lines of the file. Raises LarError, one sentence a mistake, for what cannot be."""

    name: str = Field(pattern=r"^[\w.-]+$")  # a folder is called so
    conditions: tuple[str, ...] = Field(strict=False)  # "all": every one that there is
    reference: str  # the condition that every other one is compared with; by default the first
    seeds: tuple[int, ...] = Field((0,), strict=False)
    profile: str = "tiny"
    tasks: tuple[int, ...] | None = Field(None, strict=False)  # None: the profile's
    placement: tuple[Placement, ...] = Field(("official",), strict=False)  # demonstrations stand at the first one, rollouts
    # start at each
    set: dict[str, Any] = {}  # fields of condition or profile, the same in every run

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, lines: dict[str, Any]) -> dict[str, Any]:
        if "conditions" not in lines:
            if close := [line for line in lines if line not in cls.model_fields]:
                raise unknown("line of a study", close[0], cls.model_fields)
            raise LarError("It names no conditions: write, for example, conditions: [action_only, random_mask].")
        if lines["conditions"] == "all":
            lines = {**lines, "conditions": list(CONDITIONS)}
        named = lines["conditions"]
        return {"reference": named[0], **lines} if isinstance(named, list | tuple) and named else lines

    @field_validator("conditions", "seeds", "tasks", "placement")
    @classmethod
    def _each_once(cls, values: tuple, info: ValidationInfo) -> tuple:
        if values is not None and (not values or len({*values}) < len(values)):
            raise LarError(f"{info.field_name} is {[*values]}, but must name something, and nothing twice.")
        return values

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> Study:
        for kind, names, choices in (("condition", self.conditions, CONDITIONS), ("profile", [self.profile], PROFILES)):
            for name in names:
                if name not in choices:
                    raise unknown(kind, name, choices)
        if {*self.conditions} <= {BLIND}:
            raise LarError("The blind control is part of every study: name at least one condition besides it.")
        if self.reference not in self.arms:
            raise unknown("reference", self.reference, self.arms)
        for name in self.set:
            if name in OWN_LINE:
                raise LarError(f"{name} stands under set, but has a line of its own in a study: see docs/study.md.")
        self.configs()
        return self

    @classmethod
    def load(cls, path: Path | str) -> Study:
        """Read a study's YAML. Raises LarError for a file that is none, naming the mistake."""
        return cls(**{"name": Path(path).stem, **_mapping(Path(path))})

    @property
    def arms(self) -> tuple[str, ...]:
        """The conditions, and the blind control."""
        return tuple(dict.fromkeys((*self.conditions, BLIND)))

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the presets in every run."""
        return {**self.set, **({"tasks": self.tasks} if self.tasks else {})}

    def configs(self) -> dict[tuple[str, int], RunConfig]:
        """The run of every (condition, seed), the blind controls first, because the others need them."""
        changes = {"placement": self.placement[0], **self.changes}
        own = {(condition, seed): make_config(condition, self.profile, seed, **changes)
               for condition in self.conditions if condition != BLIND for seed in self.seeds}
        blind = {(BLIND, seed): blind_twin(config) for (_, seed), config in own.items()}
        return blind | own


def _mapping(path: Path) -> dict[str, Any]:
    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LarError(f"There is no {path}: name a study's YAML file, such as studies/small.yaml.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LarError(f"{path} is not YAML ({' '.join(str(error).split())[:150]}): see docs/study.md.") from error
    if not isinstance(lines, dict) or not all(isinstance(name, str) for name in lines):
        raise LarError(f"{path} is not a study: it needs lines such as conditions: [action_only, attention_mask].")
    return lines
