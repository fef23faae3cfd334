"""One demonstration as another copy of LIBERO stores it, and what is found out about a convention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Verdict:
    """What one convention is ("" = not known) and why."""

    name: str
    value: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.name} {self.value or 'unknown'} ({self.evidence})"


@dataclass(frozen=True)
class Raw:
    """One demonstration of T rows as a copy stores it; None for what it lacks.

    where: file and demonstration, for sentences; source: its file; told: conventions that the file itself names.
    """

    where: str
    source: str
    actions: np.ndarray  # (T, 7)
    pictures: Callable[[Sequence[str]], dict[str, np.ndarray]]  # reads those there are of agentview_rgb, eye_in_hand_rgb
    state: np.ndarray | None = None  # (T, N), in an order to be found out
    ee_pos: np.ndarray | None = None  # (T, 3)
    ee_ori: np.ndarray | None = None  # (T, 3) axis-angle or (T, 4) quaternion x, y, z, w
    fingers: np.ndarray | None = None  # (T, 2)
    joint_states: np.ndarray | None = None  # (T, 7)
    states: np.ndarray | None = None  # (T, S)
    instruction: str = ""
    model_file: str = ""
    init_state: np.ndarray | None = None
    told: dict[str, str] = field(default_factory=dict)
