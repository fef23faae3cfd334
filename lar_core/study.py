"""A study: which conditions, with which seeds, are compared, and how big. Read from a small YAML file (docs/study.md).

Every run of a study is an ordinary run (`RunConfig`); the blind control is one run per seed that all conditions share.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .config import CONDITIONS, PROFILES, RunConfig, make_config
from .errors import LarError, unknown
from .names import PLACEMENTS
from .run import blind_twin

KEYS = ("name", "conditions", "reference", "seeds", "profile", "tasks", "placement", "set")
OWN_LINE = ("condition", "seed", "profile", "tasks", "placement")  # of these, `set` may change none
BLIND = "blind"


@dataclass(frozen=True)
class Study:
    """What is compared. Raises LarError, one sentence a mistake, for what cannot be."""

    name: str
    conditions: tuple[str, ...]
    reference: str  # the condition that every other one is compared with
    seeds: tuple[int, ...] = (0,)
    profile: str = "tiny"
    placements: tuple[str, ...] = ("official",)  # demonstrations stand at the first one, rollouts start at each
    changes: dict[str, Any] = field(default_factory=dict)  # fields of condition or profile, the same in every run

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise LarError(f"name is {self.name!r}, but a folder is called so: use letters, digits, '-' and '_'.")
        for kind, names, choices in (("condition", self.conditions, CONDITIONS), ("profile", (self.profile,), PROFILES),
                                     ("placement", self.placements, PLACEMENTS)):
            for name in names:
                if name not in choices:
                    raise unknown(kind, name, choices)
        if set(self.conditions) <= {BLIND}:
            raise LarError("The blind control is part of every study: name at least one condition besides it.")
        if self.reference not in self.arms:
            raise unknown("reference", self.reference, self.arms)
        self.configs()

    @classmethod
    def load(cls, path: Path | str) -> Study:
        """Read a study's YAML. Raises LarError for a file that is none, naming the mistake."""
        entries = _mapping(Path(path))
        for key in entries:
            if key not in KEYS:
                raise unknown("entry of a study", key, KEYS)
        if "conditions" not in entries:
            raise LarError(f"{path} names no conditions: write, for example, conditions: [action_only, random_mask].")
        every = entries["conditions"] == "all"
        conditions = _list("conditions", list(CONDITIONS) if every else entries["conditions"], str)
        profile = str(entries.get("profile", "tiny"))
        placement = entries.get("placement", ["official"])
        return cls(str(entries.get("name", Path(path).stem)), conditions, str(entries.get("reference", conditions[0])),
                   _list("seeds", entries.get("seeds", [0]), int), profile,
                   _list("placement", placement, str), _changes(entries))

    @property
    def arms(self) -> tuple[str, ...]:
        """The conditions, and the blind control."""
        return tuple(dict.fromkeys((*self.conditions, BLIND)))

    def configs(self) -> dict[tuple[str, int], RunConfig]:
        """The run of every (condition, seed), the blind controls first, because the others need them."""
        changes = {"placement": self.placements[0], **self.changes}
        own = {(condition, seed): make_config(condition, self.profile, seed, **changes)
               for condition in self.conditions if condition != BLIND for seed in self.seeds}
        blind = {(BLIND, seed): blind_twin(config) for (_, seed), config in own.items()}
        return blind | own


def _mapping(path: Path) -> dict:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LarError(f"There is no {path}: name a study's YAML file, such as studies/small.yaml.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LarError(f"{path} is not YAML ({' '.join(str(error).split())[:150]}): see docs/study.md.") from error
    if not isinstance(entries, dict):
        raise LarError(f"{path} is not a study: it needs lines such as conditions: [action_only, attention_mask].")
    return entries


def _list(name: str, values: object, kind: type) -> tuple:
    """A list without repetitions of one kind. Raises LarError."""
    words = {int: "whole numbers, such as [0, 1, 2]", str: "names in brackets"}[kind]
    if not isinstance(values, list) or not values or any(type(value) is not kind for value in values):
        raise LarError(f"{name} is {json.dumps(values, default=str)}, but must be a list of {words}.")
    if len(set(values)) < len(values):
        raise LarError(f"{name} is {json.dumps(values)}, but must name nothing twice.")
    return tuple(values)


def _changes(entries: dict) -> dict[str, Any]:
    """What `set` and `tasks` change, as `make_config` takes it."""
    changes = entries.get("set") or {}
    if not isinstance(changes, dict) or not all(isinstance(name, str) for name in changes):
        raise LarError(f"set is {json.dumps(changes, default=str)}, but must hold settings, such as {{samples: 9000}}.")
    for name in changes:
        if name in OWN_LINE:
            raise LarError(f"{name} stands under set, but has a line of its own in a study: see docs/study.md.")
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return changes | ({"tasks": _list("tasks", entries["tasks"], int)} if "tasks" in entries else {})
