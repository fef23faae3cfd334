"""Which conventions the numbers and pictures of demonstrations show: alignment, gripper, scale of the actions, pictures.

Every function takes all demonstrations and gives one verdict, without a value where they do not tell, or tell both ways. The
thresholds were chosen on recordings of the scripted expert, with and without noise, written in all conventions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from .raw import Raw, Verdict

GRIPPER_DELAY = 3  # steps after which fingers have clearly begun to follow
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


def pictures_of(raws: Sequence[Raw], most: int = 8) -> Verdict:
    """From where pictures change while the hand moves, beside where the camera must see the hand; and from the file."""
    told = {raw.told["pictures"] for raw in raws if "pictures" in raw.told}
    told = {_OPENGL.get(value, value) for value in told}
    if len(told) > 1:
        return Verdict("pictures", "", f"both: files name {' and '.join(sorted(told))}")
    chosen = [raws[i] for i in sorted(set(np.linspace(0, len(raws) - 1, most).round().astype(int).tolist()))]
    found = [track for raw in chosen if raw.ee_pos is not None and (track := _track(raw)) is not None]
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
    known = [raw for raw in raws if raw.fingers is not None and len(raw.fingers) > GRIPPER_DELAY]
    if not known:
        return 0.0
    opening = [np.abs(raw.fingers).sum(axis=1)[GRIPPER_DELAY:] for raw in known]
    return correlation(np.concatenate([raw.actions[:-GRIPPER_DELAY, 6] for raw in known]), np.concatenate(opening))


def _track(raw: Raw, gap: int = 8) -> np.ndarray | None:
    """Where pictures change between rows t and t + gap, beside where a true picture shows the hand: (N, 4) of
    column, row, column, row, all from the middle and in widths of a picture; None for no pictures."""
    frames = raw.pictures(("agentview_rgb",)).get("agentview_rgb")
    if frames is None or frames.ndim != 4 or len(frames) != len(raw.ee_pos):
        return None
    rows = []
    for t in range(0, len(frames) - gap, 2):
        changed = np.abs(frames[t + gap].astype(np.float32) - frames[t]).mean(axis=-1)
        changed[changed < 20] = 0
        if changed.sum() > 0:
            height, width = changed.shape
            column = (changed.sum(axis=0) @ (np.arange(width) + 0.5)) / changed.sum() / width - 0.5
            row = (changed.sum(axis=1) @ (np.arange(height) + 0.5)) / changed.sum() / height - 0.5
            rows.append([column, row, *projected(raw.ee_pos[[t, t + gap]]).mean(axis=0)])
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
