"""One demonstration as somebody's copy of LIBERO stores it, before anybody knows by which conventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Raw:
    """T rows by our names; None for what the copy lacks.

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
