"""Other people's copies of LIBERO, read through one map of names, and turned into episodes by the conventions found.

    original LIBERO             HDF5, pictures as OpenGL draws them, observed after the action
    OpenVLA's (no_noops)        HDF5 with the same names, observed before the action, without the file's attributes
    robomimic's names           HDF5 with robosuite's names (agentview_image, robot0_eef_pos, ...)
    lerobot/*, physical-intelligence/libero, HuggingFaceVLA/libero      LeRobot data sets, see lerobot.py

Which of a copy's conventions hold is not concluded from such a name, but from its content: see conventions.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm.auto import tqdm

from ..run.errors import LarError
from .conventions import Conventions, commands, decide, ordered, turned
from .episode import PER_STEP, Episode, check_episode
from .evidence import Raw, Verdict
from .hdf5 import demo_group, demo_names, open_demos, read_array, read_sentence

NAMES = {  # what we call it: what copies call it, the more telling name first
    "actions": ("actions", "action"),
    "states": ("states",),
    "agentview_rgb": ("agentview_rgb", "agentview_image", "observation.images.image", "observation.images.agentview",
                      "observation.image", "image"),
    "eye_in_hand_rgb": ("eye_in_hand_rgb", "robot0_eye_in_hand_image", "observation.images.wrist_image",
                        "observation.images.image2", "observation.images.wrist", "observation.wrist_image", "wrist_image"),
    "ee_pos": ("ee_pos", "robot0_eef_pos"),
    "ee_ori": ("ee_ori", "robot0_eef_quat"),
    "ee_states": ("ee_states", "observation.states.ee_state"),  # position and axis-angle together
    "fingers": ("gripper_states", "robot0_gripper_qpos", "observation.states.gripper_state"),
    "joint_states": ("joint_states", "robot0_joint_pos", "observation.states.joint_state"),
    "state": ("observation.state", "state", "robot_states"),
}
PICTURES = ("agentview_rgb", "eye_in_hand_rgb")
_NUMBERS = tuple(name for name in NAMES if name not in PICTURES)
_WORDS = (("akita ", ""), ("pick the ", "pick up the "), ("cookies box", "cookie box"), ("top layer", "top drawer"))


def plain(sentence: str) -> str:
    """A sentence as the benchmark has it, without capitals, stops, quotes and the words of LIBERO's task files."""
    words = " ".join(re.sub(r"[^\w\s]|_", " ", sentence).lower().split())
    for theirs, ours in _WORDS:
        words = words.replace(theirs, ours)
    return words


def name_in(names: Collection[str], what: str) -> str | None:
    """What a copy with these names calls `what`; None if it has none."""
    return next((name for name in NAMES[what] if name in names), None)


def conventions_of(paths: Path | str | Sequence[Path | str], stated: dict[str, str] | None = None,
                   drawn: Callable[[Raw, str], Verdict] | None = None, progress: bool = False) -> Conventions:
    """The conventions that the demonstrations of HDF5 files have in common.

    Raises LarError for malformed files, and for a convention that is neither shown nor stated.
    """
    paths = [paths] if isinstance(paths, Path | str) else paths
    raws = [raw for path in tqdm(paths, unit="file", desc="conventions", disable=not progress) for raw in raw_demos(path)]
    return decide(raws, stated, drawn).require(" and ".join(map(str, paths[:2])) + (", ..." if len(paths) > 2 else ""))


def raw_demos(path: Path | str) -> list[Raw]:
    """The numbers of every demonstration in an HDF5 file; pictures are read when asked for."""
    with open_demos(path) as file:
        return [_raw(file, name, path) for name in demo_names(file, path)]


def read_hdf5(path: Path | str, index: int, conventions: Conventions | None = None) -> Episode:
    """Demonstration `index` of an HDF5 file of other people's; None: the conventions that the file itself shows."""
    conventions = conventions or conventions_of(path)
    with open_demos(path) as file:
        raw = _raw(file, demo_names(file, path)[index], path)
    return to_episode(raw, conventions)


def to_episode(raw: Raw, conventions: Conventions) -> Episode:
    """A copy's demonstration as an Episode. Raises LarError for what is missing, misshapen, or no command."""
    raw = ordered(raw, conventions["state"])
    pictures = {name: turned(frames, conventions["pictures"]) for name, frames in raw.pictures(PICTURES).items()}
    if "agentview_rgb" not in pictures:
        raise LarError(f"{raw.where}: no picture of the scene is there; it may be called "
                       f"{', '.join(NAMES['agentview_rgb'])}.")
    hand: dict[str, Any] = {"ee_pos": raw.ee_pos, "ee_ori": raw.ee_ori, "gripper_states": raw.fingers}  # checked below
    episode = Episode(
        instruction=raw.instruction, actions=commands(raw.actions, conventions), agentview_rgb=pictures["agentview_rgb"],
        eye_in_hand_rgb=pictures.get("eye_in_hand_rgb"), **hand, joint_states=raw.joint_states, states=raw.states,
        init_state=raw.init_state, model_file=raw.model_file)
    check_episode(episode, raw.where)
    peak = float(np.abs(episode.actions).max())
    if peak > 1.001:
        raise LarError(f"{raw.where}: a command of {peak:.3g} is there (actions {conventions['actions']}, gripper "
                       f"{conventions['gripper']}), but the controller takes -1 to 1: convert this copy first, or state "
                       "another of demos_conventions.")
    return _paired(episode) if conventions["alignment"] == "after" else episode


def parts_of(arrays: Mapping[str, np.ndarray | None]) -> dict[str, Any]:
    """A demonstration's numbers by our names, as fields of Raw: ee_states taken apart, one kind of state only."""
    found = {name: arrays.get(name) for name in _NUMBERS}
    joined = found.pop("ee_states")
    if joined is not None and joined.shape[1:] == (6,):
        for name, part in (("ee_pos", joined[:, :3]), ("ee_ori", joined[:, 3:])):
            found[name] = part if found[name] is None else found[name]
    if any(found[name] is None for name in ("ee_pos", "ee_ori", "fingers")):
        found |= {"ee_pos": None, "ee_ori": None, "fingers": None} if found["state"] is not None else {}
    else:
        found["state"] = None
    return found


def check_numbers(arrays: Mapping[str, np.ndarray | None], where: str) -> None:
    """Raise LarError unless there are T > 1 actions of 7 numbers, and every other array has T rows of finite numbers."""
    actions = arrays.get("actions")
    if actions is None:
        raise LarError(f"{where}: actions are missing; they may be called {' or '.join(NAMES['actions'])}.")
    if actions.ndim != 2 or actions.shape[1] != 7 or len(actions) < 2:
        raise LarError(f"{where}: actions has shape {actions.shape}, but (T, 7) with T of at least two is expected.")
    for name, array in arrays.items():
        if array is not None and (array.ndim != 2 or len(array) != len(actions)):
            raise LarError(f"{where}: {name} has shape {array.shape}, but {len(actions)} rows are expected, as many as "
                           "there are actions.")
        if array is not None and not np.isfinite(array).all():
            raise LarError(f"{where}: {name} is not a finite number (NaN or infinite) at step "
                           f"{int(np.argwhere(~np.isfinite(array))[0][0])}: leave this demonstration out.")
    if arrays.get("state") is None and any(arrays.get(name) is None for name in ("ee_pos", "ee_ori", "fingers")):
        raise LarError(f"{where}: the hand's position, orientation or fingers are missing; they may be called "
                       f"{', '.join(NAMES['ee_pos'] + NAMES['ee_ori'] + NAMES['fingers'] + NAMES['state'])}.")


def _raw(file: h5py.File, name: str, path: Path | str) -> Raw:
    group, where = demo_group(file, name, path), f"{path}, {name}"
    keys = _keys(group)
    arrays = {what: _numbers(group, keys, what, where) for what in _NUMBERS}
    length = group.attrs.get("num_samples")
    found = parts_of(arrays)
    check_numbers(found, where)
    if length is not None and length != len(found["actions"]):
        raise LarError(f"{where}: num_samples is {length}, but there are {len(found['actions'])} actions.")
    convention = file["data"].attrs.get("macros_image_convention")
    told = {"pictures": convention} if convention else {}
    return Raw(where=where, source=str(path), pictures=lambda wanted: _pictures(path, name, wanted), told=told,
               instruction=group.attrs.get("instruction") or read_sentence(file, path),
               model_file=group.attrs.get("model_file", ""), init_state=group.attrs.get("init_state"), **found)


def _keys(group: h5py.Group) -> dict[str, str]:
    """The names in a demonstration: name -> key."""
    inside = group.get("obs")
    return {name: name for name in group} | ({name: f"obs/{name}" for name in inside} if inside is not None else {})


def _numbers(group: h5py.Group, keys: dict[str, str], what: str, where: str) -> np.ndarray | None:
    name = name_in(keys, what)
    array = None if name is None else read_array(group, keys[name], where)
    if array is not None and not np.issubdtype(array.dtype, np.number) and array.dtype != bool:
        raise LarError(f"{where}, {what} holds {array.dtype}, but numbers are expected.")
    return None if array is None else np.asarray(array, dtype=np.float64)


def _pictures(path: Path | str, name: str, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    with open_demos(path) as file:
        group, where = demo_group(file, name, path), f"{path}, {name}"
        keys = _keys(group)
        found = {what: read_array(group, keys[key], where) for what in wanted if (key := name_in(keys, what))}
    return {what: frames for what, frames in found.items() if frames is not None}


def _paired(episode: Episode) -> Episode:
    """Pair each frame of an episode that was observed after acting with the action that follows it; one step is lost."""
    arrays = {name: array for name in PER_STEP if (array := getattr(episode, name)) is not None}
    changes: dict[str, Any] = {name: array[1:] if name in ("actions", "states") else array[:-1]
                               for name, array in arrays.items()}
    return replace(episode, **changes)
