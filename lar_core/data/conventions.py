"""The conventions of other people's demonstrations, each decided once for a whole data set, from evidence.

    state       what the numbers of a state vector are, in order. In HDF5 they have names of their own: "as named".
    alignment   a row's observation was made "before" its action, or "after" it (as LIBERO's own script stores it)
    pictures    as they lie in the file: "upright" (as an Episode holds them, the robot at the top), "rotated" by 180 degrees
                (as OpenGL draws them), "flipped" (rows in reverse), or "mirrored" (columns in reverse)
    gripper     the commands that open / close: "-1/1" (LIBERO), "1/-1", "0/1", "1/0"
    actions     "units" of the controller, in [-1, 1] (1 is 0.05 m or 0.5 rad a step), or "metres" (and radians)

What the numbers do not show, or show both ways, has to be stated (`demos_conventions`); nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..run.conventions import CONVENTIONS
from ..run.errors import LarError
from .evidence import Raw, Verdict, action_scale, alignment, axis_angle, gripper, parts, pictures_of, state_order, width

METRES, RADIANS = 0.05, 0.5  # what one unit commands in a step: robosuite's default OSC_POSE


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
    found = [_stated(state_order(raws), stated)]
    raws = [ordered(raw, found[0].value) for raw in raws]
    found += [_stated(_agreed(rule, raws), stated) for rule in (alignment, gripper, action_scale)]
    seen = pictures_of(raws)
    with_states = [raw for raw in raws if raw.states is not None]
    if not seen.value and not seen.evidence.startswith("both") and drawn and with_states and found[1].value:
        seen = drawn(with_states[0], found[1].value)
    return Conventions(tuple([*found, _stated(seen, stated)]))


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


def _stated(verdict: Verdict, stated: dict[str, str]) -> Verdict:
    if verdict.name not in stated or verdict.value == "as named":
        return verdict
    value = stated[verdict.name]
    against = f", against the evidence for {verdict.value}" if verdict.value not in ("", value) else ""
    return Verdict(verdict.name, value, f"stated{against}; {verdict.evidence}")


def _agreed(rule: Callable[[Sequence[Raw]], Verdict], raws: Sequence[Raw]) -> Verdict:
    """A rule's verdict on all demonstrations, unless it would give two files different ones."""
    whole = rule(raws)
    files: dict[str, list[Raw]] = {}
    for raw in raws:
        files.setdefault(raw.source, []).append(raw)
    values = {verdict.value: source for source, part in files.items() if (verdict := rule(part)).value}
    if len(values) > 1:
        told = ", ".join(f"{value} in {source}" for value, source in sorted(values.items()))
        return Verdict(whole.name, "", f"both: {told}")
    return whole
