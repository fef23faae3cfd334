"""Which conventions the numbers and pictures of demonstrations show: order of the state, alignment, gripper, scale of the
actions, pictures.

Every rule takes all demonstrations (`Raw`, as another copy of LIBERO stores them) and gives one `Verdict`, without a value
where they do not tell, or tell both ways. The thresholds were chosen on recordings of the scripted expert, with and without
noise, written in all conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..run.conventions import CONVENTIONS


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


# Alignment, gripper, scale of the actions, pictures.

GRIPPER_DELAY = 3  # steps after which fingers have clearly begun to follow
_LOOKED_AT = 8  # demonstrations whose pictures are looked at, spread over all
_GAP = 8  # rows between two pictures that are compared
_OPENGL = {"opengl": "rotated", "opencv": "mirrored"}  # macros_image_convention of robosuite
_CAMERA = np.array([0.6586131746834771, 0.0, 1.6103500240372423])  # agentview of LIBERO's tabletop scenes, metres
_CAMERA_TURN = Rotation.from_quat([0.3048497438430786, 0.30484986305236816, 0.6380177736282349, 0.6380177736282349])
_TURNS = {"upright": (-1, 1), "rotated": (1, -1), "mirrored": (1, 1), "flipped": (-1, -1)}  # against a true picture


def alignment(raws: Sequence[Raw]) -> Verdict:
    """From simulator states, which are those before the action; otherwise from the motion that commands cause."""
    votes = [vote for raw in raws if (vote := _state_vote(raw))]
    before, after = votes.count("before"), votes.count("after")
    if before and after:
        return Verdict("alignment", "", f"both: joints equal states[t] in {before} demonstrations, states[t + 1] in "
                                        f"{after}")
    if votes:
        return Verdict("alignment", votes[0], f"joints equal states[{'t' if before else 't + 1'}] in {len(votes)} of "
                                              f"{len(raws)} demonstrations")
    return _by_motion(raws)


def gripper(raws: Sequence[Raw]) -> Verdict:
    """Range and sense of the gripper's commands, over all demonstrations together."""
    commands = np.concatenate([raw.actions[:, 6] for raw in raws])
    if np.abs(commands).max() > 1.001:
        span = f"commands between {commands.min():.3g} and {commands.max():.3g}"
        return Verdict("gripper", "", f"{span}, neither -1/1 nor 0/1")
    signed = sum(bool(raw.actions[:, 6].min() < -0.5) for raw in raws)
    counted = sum(bool(raw.actions[:, 6].min() > -0.05 and raw.actions[:, 6].min() < 0.05) for raw in raws)
    if signed and counted:
        return Verdict("gripper", "", f"both: commands reach -1 in {signed} demonstrations and stop at 0 in {counted}")
    if not (signed or counted) or np.ptp(commands) < 0.9:
        return Verdict("gripper", "", f"all commands lie between {commands.min():.3g} and {commands.max():.3g}")
    together = _follows(raws)
    each = [r for raw in raws if abs(r := _follows([raw])) > 0.5]
    if min(each, default=0) < 0 < max(each, default=0):
        return Verdict("gripper", "", f"both: fingers open on the larger command in {sum(r > 0 for r in each)} "
                                      f"demonstrations, close in {sum(r < 0 for r in each)}")
    shown = f"opening {GRIPPER_DELAY} steps later follows the command by r = {together:.2f}"
    if abs(together) < 0.3:
        return Verdict("gripper", "", shown)
    low, high = ("-1", "1") if signed else ("0", "1")
    return Verdict("gripper", f"{low}/{high}" if together < 0 else f"{high}/{low}", shown)


def action_scale(raws: Sequence[Raw]) -> Verdict:
    """From the motion that a lasting command ends in, in metres a step."""
    peak = max(float(np.abs(raw.actions[:, :6]).max()) for raw in raws)
    table = motion(raws)
    if len(table) < 24:
        return Verdict("actions", "", f"too few steps to tell from the motion, largest number {peak:.3g}")
    columns = min(([1, 2], [1, 3]), key=lambda columns: _unexplained(table, columns))
    kept, gain = np.linalg.lstsq(table[:, columns], table[:, 0], rcond=None)[0]
    ratio = float(gain / max(1 - kept, 0.05))
    shown = f"{ratio:.4f} m achieved a step per number commanded, largest number {peak:.3g}"
    if peak > 1.001:
        return Verdict("actions", "", f"{shown}, outside [-1, 1]")
    if _unexplained(table, [1]) <= 1.2 * _unexplained(table, columns):
        return Verdict("actions", "", f"{shown}, but the motion hardly depends on it")
    value = "units" if 0.004 <= ratio <= 0.03 else "metres" if 0.08 <= ratio <= 0.6 else ""
    return Verdict("actions", value, shown)


def pictures_of(raws: Sequence[Raw]) -> Verdict:
    """From where pictures change while the hand moves, beside where the camera must see the hand; and from the file."""
    told = {raw.told["pictures"] for raw in raws if "pictures" in raw.told}
    told = {_OPENGL.get(value, value) for value in told}
    if len(told) > 1:
        return Verdict("pictures", "", f"both: files name {' and '.join(sorted(told))}")
    chosen = [raws[i] for i in sorted(set(np.linspace(0, len(raws) - 1, _LOOKED_AT).round().astype(int).tolist()))]
    found = [track for raw in chosen if raw.ee_pos is not None and (track := _track(raw, raw.ee_pos)) is not None]
    seen, shown = _turn(found) if found else ("", "nothing moves in the pictures")
    if told and seen and told != {seen}:
        return Verdict("pictures", "", f"both: the file names {told.pop()}, but {shown} says {seen}")
    if told:
        return Verdict("pictures", told.pop(), f"named in the file; {shown}")
    return Verdict("pictures", seen, shown)


def motion(raws: Sequence[Raw]) -> np.ndarray:
    """(N, 4), a row for each step and axis: metres moved, metres moved in the step before, command t, command t + 1."""
    rows = [np.zeros((0, 4))]
    for raw in raws:
        if raw.ee_pos is not None and len(raw.ee_pos) > 4:
            moved, wanted = np.diff(raw.ee_pos, axis=0), raw.actions[:, :3]
            rows.append(np.stack([moved[1:-1], moved[:-2], wanted[1:-2], wanted[2:-1]], axis=-1).reshape(-1, 4))
    return np.concatenate(rows)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r; 0 for too few numbers or none that vary."""
    if len(one) < 8 or np.std(one) < 1e-9 or np.std(other) < 1e-9:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def projected(places: np.ndarray) -> np.ndarray:
    """Places (N, 3), metres -> (column, row) in a true, unmirrored picture of agentview, from its middle."""
    seen = _CAMERA_TURN.inv().apply(places - _CAMERA)
    focal = 0.5 / np.tan(np.radians(45) / 2)
    return focal * seen[:, :2] * [1, -1] / -seen[:, 2:]


def _state_vote(raw: Raw) -> str:
    if raw.states is None or raw.joint_states is None or raw.states.shape[1] < 8 or len(raw.states) < 3:
        return ""
    arm = raw.states[:, 1:8]
    same = np.median(np.abs(arm - raw.joint_states).max(axis=1))
    next_ = np.median(np.abs(arm[1:] - raw.joint_states[:-1]).max(axis=1))
    if max(same, next_) < 1e-5 or min(same, next_) > 0.25 * max(same, next_):  # it stands still, or neither fits
        return ""
    return "before" if same < next_ else "after"


def _by_motion(raws: Sequence[Raw]) -> Verdict:
    """A step's motion follows from the motion before and from the command that was in force: t's, or t + 1's."""
    table = motion(raws)
    if len(table) < 90:
        return Verdict("alignment", "", "no simulator states, and too few steps to tell from the motion")
    neither, own, next_ = (_unexplained(table, columns) for columns in ([1], [1, 2], [1, 3]))
    shown = f"no simulator states; of the motion, action t leaves {own:.3f} unexplained, action t + 1 {next_:.3f}"
    if neither <= 1.2 * min(own, next_):
        return Verdict("alignment", "", f"{shown}, no action {neither:.3f}")
    return Verdict("alignment", "before" if own < 0.92 * next_ else "after" if own > 1.3 * next_ else "", shown)


def _unexplained(table: np.ndarray, columns: list[int]) -> float:
    given, found = table[:, columns], table[:, 0]
    rest = found - given @ np.linalg.lstsq(given, found, rcond=None)[0]
    return float((rest ** 2).sum() / max((found ** 2).sum(), 1e-12))


def _follows(raws: Sequence[Raw]) -> float:
    """Pearson's r of commands and the opening GRIPPER_DELAY steps later; 0 where no fingers are told."""
    known = [(raw.actions[:-GRIPPER_DELAY, 6], np.abs(raw.fingers).sum(axis=1)[GRIPPER_DELAY:])
             for raw in raws if raw.fingers is not None and len(raw.fingers) > GRIPPER_DELAY]
    return correlation(*map(np.concatenate, zip(*known))) if known else 0.0


def _track(raw: Raw, hand: np.ndarray) -> np.ndarray | None:
    """Where pictures change between rows t and t + _GAP, beside where a true picture shows the hand: (N, 4) of
    column, row, column, row, all from the middle and in widths of a picture; None for no pictures."""
    frames = raw.pictures(("agentview_rgb",)).get("agentview_rgb")
    if frames is None or frames.ndim != 4 or len(frames) != len(hand):
        return None
    rows = []
    for t in range(0, len(frames) - _GAP, 2):
        changed = np.abs(frames[t + _GAP].astype(np.float32) - frames[t]).mean(axis=-1)
        changed[changed < 20] = 0
        if changed.sum() > 0:
            height, width = changed.shape
            column = (changed.sum(axis=0) @ (np.arange(width) + 0.5)) / changed.sum() / width - 0.5
            row = (changed.sum(axis=1) @ (np.arange(height) + 0.5)) / changed.sum() / height - 0.5
            rows.append([column, row, *projected(hand[[t, t + _GAP]]).mean(axis=0)])
    return np.array(rows) if rows else None


def _turn(tracks: Sequence[np.ndarray]) -> tuple[str, str]:
    """How pictures lie, and the evidence."""
    columns, rows = (correlation(*(np.concatenate([track[:, i] for track in tracks]) for i in (axis, axis + 2)))
                     for axis in (0, 1))
    shown = f"changes follow the hand by r = {columns:.2f} in columns, {rows:.2f} in rows"
    if min(abs(columns), abs(rows)) < 0.5:
        return "", shown
    signs = (int(np.sign(columns)), int(np.sign(rows)))
    return next(name for name, turn in _TURNS.items() if turn == signs), shown


# The order of a state vector: which of its numbers are position, orientation and fingers of the hand.

def state_order(raws: Sequence[Raw]) -> Verdict:
    """Which numbers of a state vector are hand position, orientation and fingers."""
    if all(raw.ee_pos is not None and raw.ee_ori is not None and raw.fingers is not None for raw in raws):
        return Verdict("state", "as named", "the file has a name for each part")
    raws = [raw for raw in raws if raw.state is not None]
    states = [raw.state for raw in raws if raw.state is not None]
    widths = {state.shape[1] for state in states}
    if len(widths) != 1:
        return Verdict("state", "", f"state vectors of {sorted(widths) or 'no'} numbers, where one width is expected")
    fits = {order: _fit(raws, order) for order in CONVENTIONS["state"] if width(order) == min(widths)}
    tilts = {order: tilt for order, (moved, opposite, tilt) in fits.items()
             if moved > 0.3 and opposite and tilt is not None}
    good, alike = _best_orientation(states, tilts) if len(tilts) > 1 else (list(tilts), "")
    told = "; ".join(f"{order}: position follows the command by r = {moved:.2f}, "
                     f"fingers {'mirror' if opposite else 'do not mirror'} each other, "
                     f"{'no unit quaternion' if tilt is None else f'hand {tilt:.2f} rad from straight down'}"
                     for order, (moved, opposite, tilt) in fits.items() if len(good) != 1 or order in good)
    return Verdict("state", good[0] if len(good) == 1 else "", (told or f"no known order of {min(widths)} numbers") + alike)


def width(order: str) -> int:
    """How many numbers a state vector of this order has."""
    return sum({"pos": 3, "axisangle": 3, "euler": 3, "quaternion": 4, "fingers": 2, "finger": 1}[part]
               for part in order.split("_"))


def parts(state: np.ndarray, order: str) -> dict[str, Any]:
    """Fields of Raw: ee_pos, ee_ori (axis-angle; NaN where a quaternion is none) and fingers of state vectors."""
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
    taken = [parts(raw.state, order) for raw in raws if raw.state is not None]
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


def _best_orientation(states: Sequence[np.ndarray], tilts: dict[str, float]) -> tuple[list[str], str]:
    """Of orders that differ in the orientation: the one by which the hand points down, or the first if all are alike.

    And, for the evidence, how far apart they are.
    """
    orders = list(tilts)
    best, second = sorted(orders, key=tilts.__getitem__)[:2]
    if tilts[best] < 0.5 * tilts[second] and tilts[second] > 0.1:
        return [best], f", as {second} {tilts[second]:.2f} rad"
    one, other = (Rotation.from_rotvec(np.concatenate([parts(state, order)["ee_ori"] for state in states]))
                  for order in orders[:2])
    apart = float(np.median((one.inv() * other).magnitude()))
    return orders[:1] if apart < 0.1 else orders, f", read as {orders[1]} {apart:.2f} rad apart"
