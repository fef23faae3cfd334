"""What the motion of a hand says of its commands: which row's command moved it, and in which unit that was given.

The step's motion follows from the motion before and from the command in force. What a lasting command ends in is the gain:
robosuite's controller achieves 0.013 m a step per unit commanded and 0.105 rad, whatever the noise of the demonstrator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from .raw import Raw

METRES, RADIANS = 0.05, 0.5  # what one unit commands in a step: robosuite's default OSC_POSE
Shown = tuple[str, str]  # what a rule finds, "" where it is not told or told both ways; and the evidence


def alignment(raws: Sequence[Raw]) -> Shown:
    """From simulator states, which are those before the action; otherwise from the motion that commands cause: a step's
    motion follows from the motion before and from the command that was in force, t's or t + 1's."""
    votes = [vote for raw in raws if (vote := _state_vote(raw))]
    if votes:
        before = votes[0] == "before"
        return votes[0], f"joints equal states[{'t' if before else 't + 1'}] in {len(votes)} of {len(raws)} demonstrations"
    table = motion(raws)
    if len(table) < 90:
        return "", "no simulator states, and too few steps to tell from the motion"
    neither, own, next_ = (_unexplained(table, columns) for columns in ([1], [1, 2], [1, 3]))
    shown = f"no simulator states; of the motion, action t leaves {own:.3f} unexplained, action t + 1 {next_:.3f}"
    if neither <= 1.2 * min(own, next_):
        return "", f"{shown}, no action {neither:.3f}"
    return "before" if own < 0.92 * next_ else "after" if own > 1.3 * next_ else "", shown


def _state_vote(raw: Raw) -> str:
    if raw.states is None or raw.joint_states is None or raw.states.shape[1] < 8 or len(raw.states) < 3:
        return ""
    arm = raw.states[:, 1:8]
    same = np.median(np.abs(arm - raw.joint_states).max(axis=1))
    next_ = np.median(np.abs(arm[1:] - raw.joint_states[:-1]).max(axis=1))
    if max(same, next_) < 1e-5 or min(same, next_) > 0.25 * max(same, next_):  # it stands still, or neither fits
        return ""
    return "before" if same < next_ else "after"


def action_scale(raws: Sequence[Raw]) -> Shown:
    """From the motion that a lasting command ends in: in metres a step, and, where the hand was turned, in radians."""
    peak, moves = max(float(np.abs(raw.actions[:, :6]).max()) for raw in raws), motion(raws)
    if len(moves) < 24:
        return "", f"too few steps to tell from the motion, largest number {peak:.3g}"
    (moved, clear), (turned, turns) = _gain(moves), _gain(turning(raws))
    told = turns > 1.5  # a turn is smaller beside its noise
    both = f"{moved:.4f} m{f' and {turned:.3f} rad' if told else ''}"
    shown = f"{both} achieved a step per number commanded, largest number {peak:.3g}"
    if peak > 1.001:
        return "", f"{shown}, outside [-1, 1]"
    if clear <= 1.2:
        return "", f"{shown}, but the motion hardly depends on it"
    value = "units" if 0.004 <= moved <= 0.03 else "metres" if 0.08 <= moved <= 0.6 else ""
    if told and value != ("units" if 0.05 <= turned < 0.15 else "metres" if 0.15 <= turned <= 0.45 else ""):
        return "", f"{shown}, where positions and turns do not have the same scale"
    return value, shown


def motion(raws: Sequence[Raw]) -> np.ndarray:
    """(N, 4), a row for each step and axis: metres moved, metres moved in the step before, command t, command t + 1."""
    return _rows((np.diff(raw.ee_pos, axis=0), raw.actions[:, :3]) for raw in raws
                 if raw.ee_pos is not None and len(raw.ee_pos) > 4)


def turning(raws: Sequence[Raw]) -> np.ndarray:
    """The same (N, 4) of the hand's turns about the axes of the world, radians."""
    known = [(Rotation.from_rotvec(raw.ee_ori), raw.actions[:, 3:6]) for raw in raws
             if raw.ee_ori is not None and len(raw.ee_ori) > 4]
    return _rows(((turn[1:] * turn[:-1].inv()).as_rotvec(), wanted) for turn, wanted in known)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r; 0 for too few numbers or none that vary."""
    if len(one) < 8 or np.std(one) < 1e-9 or np.std(other) < 1e-9:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _rows(known: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Of pairs of steps (T - 1, 3) and commands (T, 3)."""
    rows = [np.stack([step[1:-1], step[:-2], wanted[1:-2], wanted[2:-1]], axis=-1).reshape(-1, 4) for step, wanted in known]
    return np.concatenate([np.zeros((0, 4)), *rows])


def _gain(table: np.ndarray) -> tuple[float, float]:
    """What a lasting command of one ends in a step, and by how much less is unexplained with the command than without."""
    if len(table) < 24:
        return 0.0, 0.0
    columns = min(([1, 2], [1, 3]), key=lambda columns: _unexplained(table, columns))
    kept, gain = np.linalg.lstsq(table[:, columns], table[:, 0], rcond=None)[0]
    return float(gain / max(1 - kept, 0.05)), _unexplained(table, [1]) / max(_unexplained(table, columns), 1e-12)


def _unexplained(table: np.ndarray, columns: list[int]) -> float:
    given, found = table[:, columns], table[:, 0]
    rest = found - given @ np.linalg.lstsq(given, found, rcond=None)[0]
    return float((rest ** 2).sum() / max((found ** 2).sum(), 1e-12))
