"""The conventions of other people's demonstrations, each decided once for a whole data set, from evidence.

    state       what the numbers of a state vector are, in order. In HDF5 they have names of their own: "as named".
    alignment   a row's observation was made "before" its action, or "after" it (as LIBERO's own script stores it)
    pictures    as they lie in the file: "upright" (as an Episode holds them, the robot at the top), "rotated" by 180 degrees
                (as OpenGL draws them), "flipped" (rows in reverse), or "mirrored" (columns in reverse)
    gripper     the commands that open / close: "-1/1" (LIBERO), "1/-1", "0/1", "1/0"
    actions     "units" of the controller, in [-1, 1] (1 is 0.05 m or 0.5 rad a step), or "metres" (and radians)

What the numbers do not show, or show both ways, has to be stated (`demos_conventions`); nothing is guessed. The thresholds
were chosen on recordings of the scripted expert, with and without noise, written in all conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import center_of_mass
from scipy.spatial.transform import Rotation

from ..run.conventions import CONVENTIONS
from ..run.errors import LarError
from .motion import METRES, RADIANS, Shown, action_scale, alignment, correlation, motion
from .raw import Raw


@dataclass(frozen=True)
class Verdict:
    """What one convention is ("" = not known) and why; stated: by the user, whatever the numbers show."""

    name: str
    value: str
    evidence: str
    stated: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.value or 'unknown'} ({self.evidence})"


@dataclass(frozen=True)
class Conventions:
    """One verdict for each name in CONVENTIONS, for one data set."""

    verdicts: tuple[Verdict, ...]

    def __getitem__(self, name: str) -> str:
        return next(verdict.value for verdict in self.verdicts if verdict.name == name)

    def __str__(self) -> str:
        return "; ".join(map(str, self.verdicts))

    def as_dict(self) -> dict[str, str]:
        """For an episode's provenance."""
        return {verdict.name: f"{verdict.value}: {verdict.evidence}" for verdict in self.verdicts}

    def require(self, where: object) -> Conventions:
        """Itself. Raises LarError for what is not known, naming the setting, its values and the evidence."""
        asked = [verdict for verdict in self.verdicts if not verdict.value]
        if not asked:
            return self
        setting = ",".join(f"{verdict.name}={CONVENTIONS[verdict.name][0]}" for verdict in asked)
        told = "; ".join(f"{verdict.name} ({verdict.evidence}) is one of {', '.join(CONVENTIONS[verdict.name])}"
                         for verdict in asked)
        raise LarError(f"{where} does not show all of its conventions: {told}. State what is right, for example --set "
                       f"demos_conventions={setting}; the top of lar_core/data/conventions.py says what the values mean.")


def decide(raws: Sequence[Raw], stated: dict[str, str] | None = None,
           drawn: Callable[[Raw, str], Verdict] | None = None) -> Conventions:
    """The conventions of a data set, from all of its demonstrations; `stated` ones go before the evidence.

    drawn: gives a verdict on the pictures by drawing a state of a demonstration (whose alignment is known), where its
    pictures alone do not tell.
    """
    stated = stated or {}
    state = _stated("state", state_order(raws), stated)
    raws = [ordered(raw, state.value) for raw in raws]
    rules = {"alignment": alignment, "gripper": gripper, "actions": action_scale}
    found = [_stated(name, _agreed(rule, raws), stated) for name, rule in rules.items()]
    seen, example = pictures_of(raws), next((raw for raw in raws if raw.states is not None), None)
    if not seen[0] and not seen[1].startswith("both") and drawn and example and found[0].value:
        verdict = drawn(example, found[0].value)
        seen = verdict.value, verdict.evidence
    return Conventions((state, *found, _stated("pictures", seen, stated)))


def _stated(name: str, shown: Shown, stated: dict[str, str]) -> Verdict:
    value, evidence = shown
    if name not in stated or value == "as named":
        return Verdict(name, value, evidence)
    against = f", against the evidence for {value}" if value not in ("", stated[name]) else ""
    return Verdict(name, stated[name], f"stated{against}; {evidence}", stated=True)


def _agreed(rule: Callable[[Sequence[Raw]], Shown], raws: Sequence[Raw]) -> Shown:
    """A rule's verdict on all demonstrations, unless it would give two of them, or two files, different ones."""
    files: dict[str, list[Raw]] = {}
    for raw in raws:
        files.setdefault(raw.source, []).append(raw)
    for kind, parts in (("demonstrations", [(raw.where, [raw]) for raw in raws]), ("files", files.items())):
        if both := _both([(where, rule(part)[0]) for where, part in parts], kind):
            return "", both
    return rule(raws)


def _both(values: Sequence[tuple[str, str]], kind: str) -> str:
    """The evidence that parts of a data set (place, and value or "" where none is shown) differ; "" where they do not."""
    places: dict[str, list[str]] = {}
    for place, value in values:
        if value:
            places.setdefault(value, []).append(place)
    told = [f"{value} in {len(where)} {kind} ({where[0]}{', ...' * (len(where) > 1)})" for value, where in
            sorted(places.items())]
    return f"both: {', '.join(told)}" if len(told) > 1 else ""


def ordered(raw: Raw, order: str) -> Raw:
    """The demonstration with its state vector taken apart; as it is where the parts have names, or are not known."""
    if raw.ee_pos is None and raw.state is not None and order in CONVENTIONS["state"]:
        raw = replace(raw, **parts(raw.state, order)) if raw.state.shape[1] == width(order) else raw
    if raw.ee_ori is not None and raw.ee_ori.shape[1:] == (4,):
        raw = replace(raw, ee_ori=axis_angle(raw.ee_ori))
    if raw.ee_ori is not None and np.isnan(raw.ee_ori).any():
        raise LarError(f"{raw.where}: the hand's orientation should be a unit quaternion (x, y, z, w), but is none.")
    return raw


def turned(frames: np.ndarray, pictures: str) -> np.ndarray:
    """Frames (T, H, W, ...) as stored -> upright."""
    rows, columns = pictures in ("rotated", "flipped"), pictures in ("rotated", "mirrored")
    return np.ascontiguousarray(frames[:, :: -1 if rows else 1, :: -1 if columns else 1])


def commands(actions: np.ndarray, conventions: Conventions) -> np.ndarray:
    """Actions (T, 7) as stored -> controller units, gripper -1 opens and +1 closes."""
    actions = np.array(actions, dtype=np.float64)
    if conventions["actions"] == "metres":
        actions[:, :3] /= METRES
        actions[:, 3:6] /= RADIANS
    opening, closing = map(float, conventions["gripper"].split("/"))
    if (opening, closing) != (-1.0, 1.0):
        actions[:, 6] = 2 * (actions[:, 6] - opening) / (closing - opening) - 1
    return actions


# Gripper.

GRIPPER_DELAY = 3  # steps after which fingers have clearly begun to follow


def gripper(raws: Sequence[Raw]) -> Shown:
    """Range and sense of the gripper's commands, over all demonstrations together."""
    commands = np.concatenate([raw.actions[:, 6] for raw in raws])
    span = f"between {commands.min():.3g} and {commands.max():.3g}"
    if np.abs(commands).max() > 1.001:
        return "", f"commands {span}, neither -1/1 nor 0/1"
    lows = [raw.actions[:, 6].min() for raw in raws]
    signed, counted = sum(low < -0.5 for low in lows), sum(abs(low) < 0.05 for low in lows)
    if signed and counted:
        return "", f"both: commands reach -1 in {signed} demonstrations and stop at 0 in {counted}"
    if not (signed or counted) or np.ptp(commands) < 0.9:
        return "", f"all commands lie {span}"
    each = [r for raw in raws if abs(r := _follows([raw])) > 0.5]
    if min(each, default=0) < 0 < max(each, default=0):
        return "", (f"both: fingers open on the larger command in {sum(r > 0 for r in each)} demonstrations, close in "
                    f"{sum(r < 0 for r in each)}")
    together = _follows(raws)
    shown = f"opening {GRIPPER_DELAY} steps later follows the command by r = {together:.2f}"
    low = "-1" if signed else "0"
    return "" if abs(together) < 0.3 else f"{low}/1" if together < 0 else f"1/{low}", shown


def _follows(raws: Sequence[Raw]) -> float:
    """Pearson's r of commands and the opening GRIPPER_DELAY steps later; 0 where no fingers are told."""
    known = [(raw.actions[:-GRIPPER_DELAY, 6], np.abs(raw.fingers).sum(axis=1)[GRIPPER_DELAY:])
             for raw in raws if raw.fingers is not None and len(raw.fingers) > GRIPPER_DELAY]
    return correlation(*map(np.concatenate, zip(*known))) if known else 0.0


# Pictures.

_LOOKED_AT = 8  # demonstrations whose pictures are looked at, spread over all, beside the first one of every file
_GAP = 8  # rows between two pictures that are compared
_OPENGL = {"opengl": "rotated", "opencv": "mirrored"}  # macros_image_convention of robosuite
_CAMERA = np.array([0.6586131746834771, 0.0, 1.6103500240372423])  # agentview of LIBERO's tabletop scenes, metres
_CAMERA_TURN = Rotation.from_quat([0.3048497438430786, 0.30484986305236816, 0.6380177736282349, 0.6380177736282349])
_TURNS = {(-1, 1): "upright", (1, -1): "rotated", (1, 1): "mirrored", (-1, -1): "flipped"}  # against a true picture


def pictures_of(raws: Sequence[Raw]) -> Shown:
    """From where pictures change while the hand moves, beside where the camera must see the hand; and from the file."""
    told = {_OPENGL.get(raw.told["pictures"], raw.told["pictures"]) for raw in raws if "pictures" in raw.told}
    if len(told) > 1:
        return "", f"both: files name {' and '.join(sorted(told))}"
    chosen = {*np.linspace(0, len(raws) - 1, _LOOKED_AT).round().astype(int).tolist(), *_first_of_files(raws)}
    tracks = [(raws[number].where, _track(raws[number].ee_pos, raws[number].pictures(("agentview_rgb",))))
              for number in sorted(chosen)]
    if both := _both([(where, _turn(track)[0]) for where, track in tracks], "demonstrations"):
        return "", both
    seen, shown = _turn(np.concatenate([np.zeros((0, 4)), *(track for _, track in tracks)]))
    named = next(iter(told), "")
    if named and seen not in ("", named):
        return "", f"both: the file names {named}, but {shown} says {seen}"
    return (named, f"named in the file; {shown}") if named else (seen, shown)


def _first_of_files(raws: Sequence[Raw]) -> list[int]:
    return list({raw.source: number for number, raw in reversed(list(enumerate(raws)))}.values())


def projected(places: np.ndarray) -> np.ndarray:
    """Places (N, 3), metres -> (column, row) in a true, unmirrored picture of agentview, from its middle."""
    seen = _CAMERA_TURN.inv().apply(places - _CAMERA)
    focal = 0.5 / np.tan(np.radians(45) / 2)
    return focal * seen[:, :2] * [1, -1] / -seen[:, 2:]


def check_turn(raw: Raw, pictures: Mapping[str, np.ndarray], conventions: Conventions) -> None:
    """Raise LarError for a demonstration whose pictures show that they lie otherwise than those of its data set.

    Not all of them were looked at when that was decided. What was stated goes before what they show.
    """
    agreed = next(verdict for verdict in conventions.verdicts if verdict.name == "pictures")
    seen, shown = _turn(_track(raw.ee_pos, pictures))
    if seen not in ("", agreed.value) and not agreed.stated:
        raise LarError(f"{raw.where}: its pictures are {seen} ({shown}), those of the data set {agreed.value}: leave this "
                       f"demonstration out, or state what is right for all, --set demos_conventions=pictures={seen}.")


def _track(hand: np.ndarray | None, pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where pictures change between rows t and t + _GAP, beside where a true picture shows the hand: (N, 4) of
    column, row, column, row, all from the middle and in widths of a picture; (0, 4) for no pictures."""
    frames, rows = pictures.get("agentview_rgb"), []
    if hand is not None and frames is not None and frames.ndim == 4 and len(frames) == len(hand):
        for t in range(0, len(frames) - _GAP, 2):
            changed = np.abs(frames[t + _GAP].astype(np.float32) - frames[t]).mean(axis=-1)
            changed[changed < 20] = 0
            if changed.any():
                row, column = (np.array(center_of_mass(changed)) + 0.5) / changed.shape - 0.5
                rows.append([column, row, *projected(hand[[t, t + _GAP]]).mean(axis=0)])
    return np.array(rows).reshape(-1, 4)


def _turn(track: np.ndarray) -> Shown:
    """How pictures lie."""
    if not len(track):
        return "", "nothing moves in the pictures"
    columns, rows = correlation(track[:, 0], track[:, 2]), correlation(track[:, 1], track[:, 3])
    clear = min(abs(columns), abs(rows)) >= 0.5
    return (_TURNS[int(np.sign(columns)), int(np.sign(rows))] if clear else "",
            f"changes follow the hand by r = {columns:.2f} in columns, {rows:.2f} in rows")


# The order of a state vector: which of its numbers are position, orientation and fingers of the hand.

_SIZES = {"pos": 3, "axisangle": 3, "euler": 3, "quaternion": 4, "fingers": 2, "finger": 1}


def state_order(raws: Sequence[Raw]) -> Shown:
    """Which numbers of a state vector are hand position, orientation and fingers."""
    if all(raw.ee_pos is not None and raw.ee_ori is not None and raw.fingers is not None for raw in raws):
        return "as named", "the file has a name for each part"
    raws = [raw for raw in raws if raw.state is not None]
    states = [raw.state for raw in raws if raw.state is not None]
    widths = {state.shape[1] for state in states}
    if len(widths) != 1:
        return "", f"state vectors of {sorted(widths) or 'no'} numbers, where one width is expected"
    fits = {order: _fit(raws, order) for order in CONVENTIONS["state"] if width(order) == min(widths)}
    tilts = {order: tilt for order, (moved, opposite, tilt) in fits.items()
             if moved > 0.3 and opposite and tilt is not None}
    good, alike = _best_orientation(states, tilts) if len(tilts) > 1 else (list(tilts), "")
    told = "; ".join(f"{order}: position follows the command by r = {moved:.2f}, "
                     f"fingers {'mirror' if opposite else 'do not mirror'} each other, "
                     f"{'no unit quaternion' if tilt is None else f'hand {tilt:.2f} rad from straight down'}"
                     for order, (moved, opposite, tilt) in fits.items() if len(good) != 1 or order in good)
    return good[0] if len(good) == 1 else "", (told or f"no known order of {min(widths)} numbers") + alike


def width(order: str) -> int:
    """How many numbers a state vector of this order has."""
    return sum(_SIZES[part] for part in order.split("_"))


def parts(state: np.ndarray, order: str) -> dict[str, Any]:
    """Fields of Raw: ee_pos, ee_ori (axis-angle; NaN where a quaternion is none) and fingers of state vectors."""
    names = order.split("_")
    found = dict(zip(names, np.split(state, np.cumsum([_SIZES[name] for name in names])[:-1], axis=1)))
    if "euler" in found:
        found["quaternion"] = Rotation.from_euler("xyz", found["euler"]).as_quat()
    return {"ee_pos": found["pos"],
            "ee_ori": axis_angle(found["quaternion"]) if "quaternion" in found else found["axisangle"],
            "fingers": found["fingers"] if "fingers" in found else found["finger"] * [1.0, -1.0]}


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
    """How well an order fits: r of position and command; whether the fingers mirror each other; the hand's median angle to
    straight down (rad), None for what is no rotation."""
    taken = [parts(raw.state, order) for raw in raws if raw.state is not None]
    moved, _, own, next_ = motion([replace(raw, **part) for raw, part in zip(raws, taken)]).T
    r = max(correlation(moved, own), correlation(moved, next_))
    fingers, turns = (np.concatenate([part[name] for part in taken]) for name in ("fingers", "ee_ori"))
    opposite = bool(np.abs(fingers).max() < 0.1 and np.abs(fingers.sum(axis=1)).max() < 0.02)
    if not np.isfinite(turns).all():
        return r, opposite, None
    down = -Rotation.from_rotvec(turns).as_matrix()[:, 2, 2]
    return r, opposite, float(np.median(np.arccos(down.clip(-1, 1))))


def _best_orientation(states: Sequence[np.ndarray], tilts: dict[str, float]) -> tuple[list[str], str]:
    """Of orders that differ in the orientation: the one by which the hand points down, or the first if all are alike; and,
    for the evidence, how far apart they are."""
    best, second = sorted(tilts, key=tilts.__getitem__)[:2]
    if tilts[best] < 0.5 * tilts[second] and tilts[second] > 0.1:
        return [best], f", as {second} {tilts[second]:.2f} rad"
    orders = list(tilts)
    one, other = (Rotation.from_rotvec(np.concatenate([parts(state, order)["ee_ori"] for state in states]))
                  for order in orders[:2])
    apart = float(np.median((one.inv() * other).magnitude()))
    return orders[:1] if apart < 0.1 else orders, f", read as {orders[1]} {apart:.2f} rad apart"
