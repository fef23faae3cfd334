"""The order of a state vector: which of its numbers are position, orientation and fingers of the hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from ..run.conventions import CONVENTIONS
from .evidence import correlation, motion
from .raw import Raw, Verdict


def state_order(raws: Sequence[Raw]) -> Verdict:
    """Which numbers of a state vector are hand position, orientation and fingers."""
    if all(raw.ee_pos is not None and raw.ee_ori is not None and raw.fingers is not None for raw in raws):
        return Verdict("state", "as named", "the file has a name for each part")
    raws = [raw for raw in raws if raw.state is not None]
    widths = {raw.state.shape[1] for raw in raws}
    if len(widths) != 1:
        return Verdict("state", "", f"state vectors of {sorted(widths) or 'no'} numbers, where one width is expected")
    fits = {order: _fit(raws, order) for order in CONVENTIONS["state"] if width(order) == min(widths)}
    good = [order for order, (moved, opposite, tilt) in fits.items() if moved > 0.3 and opposite and tilt is not None]
    alike = ""
    if len(good) > 1:
        good, alike = _best_orientation(raws, good, {order: fits[order][2] for order in good})
    told = "; ".join(f"{order}: position follows the command by r = {moved:.2f}, "
                     f"fingers {'mirror' if opposite else 'do not mirror'} each other, "
                     f"{'no unit quaternion' if tilt is None else f'hand {tilt:.2f} rad from straight down'}"
                     for order, (moved, opposite, tilt) in fits.items() if len(good) != 1 or order in good)
    return Verdict("state", good[0] if len(good) == 1 else "", (told or f"no known order of {min(widths)} numbers") + alike)


def width(order: str) -> int:
    """How many numbers a state vector of this order has."""
    return sum({"pos": 3, "axisangle": 3, "euler": 3, "quaternion": 4, "fingers": 2, "finger": 1}[part]
               for part in order.split("_"))


def parts(state: np.ndarray, order: str) -> dict[str, np.ndarray]:
    """ee_pos, ee_ori (axis-angle; NaN where a quaternion is none) and fingers of state vectors."""
    found, start = {}, 0
    for part in order.split("_"):
        found[part] = state[:, start : start + width(part)]
        start += width(part)
    if "axisangle" in found:
        turn = found["axisangle"]
    elif "euler" in found:
        turn = axis_angle(Rotation.from_euler("xyz", found["euler"]).as_quat())
    else:
        turn = axis_angle(found["quaternion"])
    fingers = found["fingers"] if "fingers" in found else found["finger"] * [1.0, -1.0]
    return {"ee_pos": found["pos"], "ee_ori": turn, "fingers": fingers}


def axis_angle(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions (T, 4) x, y, z, w -> axis-angle (T, 3) as the simulator tells it; NaN where one has no unit length.

    A hand that points down has turned by about pi around x: by which of the two signs is told is then a matter of chance.
    The simulator's is the positive one.
    """
    sign = np.where(quaternions[:, :1] < 0, -1.0, 1.0)
    vector, w = sign * quaternions[:, :3], (sign * quaternions[:, 3:]).clip(-1, 1)
    length = np.linalg.norm(vector, axis=1, keepdims=True)
    turn = 2 * np.arccos(w) * vector / np.maximum(length, 1e-9)
    return np.where(np.abs(np.linalg.norm(quaternions, axis=1, keepdims=True) - 1) < 0.01, turn, np.nan)


def _fit(raws: Sequence[Raw], order: str) -> tuple[float, bool, float | None]:
    """How well an order fits: r of position and command; whether the fingers mirror each other; median tilt (rad)."""
    taken = [parts(raw.state, order) for raw in raws]
    moved, _, own, next_ = motion([replace(raw, **part) for raw, part in zip(raws, taken)]).T
    r = max(correlation(moved, own), correlation(moved, next_))
    fingers, turns = (np.concatenate([part[name] for part in taken]) for name in ("fingers", "ee_ori"))
    opposite = bool(np.abs(fingers).max() < 0.1 and np.abs(fingers.sum(axis=1)).max() < 0.02)
    return r, opposite, _tilt(turns)


def _tilt(turns: np.ndarray) -> float | None:
    """Median angle between the hand and straight down, for axis-angle (N, 3); None for what is no rotation."""
    if not np.isfinite(turns).all():
        return None
    down = -Rotation.from_rotvec(turns).as_matrix()[:, 2, 2]
    return float(np.median(np.arccos(down.clip(-1, 1))))


def _best_orientation(raws: Sequence[Raw], orders: list[str], tilts: dict[str, float]) -> tuple[list[str], str]:
    """Of orders that differ in the orientation: the one by which the hand points down, or the first if all are alike.

    And, for the evidence, how far apart they are.
    """
    best, second = sorted(orders, key=tilts.get)[:2]
    if tilts[best] < 0.5 * tilts[second] and tilts[second] > 0.1:
        return [best], f", as {second} {tilts[second]:.2f} rad"
    one, other = (Rotation.from_rotvec(np.concatenate([parts(raw.state, order)["ee_ori"] for raw in raws]))
                  for order in orders[:2])
    apart = float(np.median((one.inv() * other).magnitude()))
    return orders[:1] if apart < 0.1 else orders, f", read as {orders[1]} {apart:.2f} rad apart"
