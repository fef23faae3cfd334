"""Demonstrations in LIBERO's HDF5 format: official files and ours can take each other's place.

Layout (LIBERO, `scripts/create_dataset.py`); ours adds what is in brackets, which other readers ignore:

    data                    attributes: env_name, env_args, problem_info (JSON), bddl_file_name, bddl_file_content,
                            num_demos, total, tag, macros_image_convention [, observation_time]
    data/demo_<i>           attributes: num_samples, init_state, model_file
                            [, instruction, target, distractor, objects (JSON), provenance (JSON)]
        actions (T,7)  states (T,S)  robot_states (T,9)  rewards (T,)  dones (T,)
        obs/agentview_rgb  obs/eye_in_hand_rgb    (T,H,W,3) uint8
        obs/ee_pos (T,3)  ee_ori (T,3)  ee_states (T,6)  gripper_states (T,2)  joint_states (T,7)
        [obs/agentview_segmentation (T,H,W) uint8]

Files that were made from other people's formats lack states and joint_states where those do not tell them.

Images lie in the file as OpenGL draws them; an `Episode` holds them upright (rotated by 180 degrees). An `Episode` pairs
an action with what was seen *before* it, and so do our files, which say so in `observation_time`. Files without that
attribute are other people's; what we call which of their arrays is in NAMES:

    original LIBERO             HDF5, pictures as OpenGL draws them, observed after the action
    OpenVLA's (no_noops)        HDF5 with the same names, observed before the action, without the file's attributes
    robomimic's names           HDF5 with robosuite's names (agentview_image, robot0_eef_pos, ...)
    lerobot/*, physical-intelligence/libero, HuggingFaceVLA/libero      LeRobot data sets, see lerobot.py

Which of a copy's conventions hold is not concluded from such a name, but from its content: see conventions.py.

Recording many episodes safely: give each its own part file (`write_episode`), then join them (`merge_episodes`). Both
files appear whole or not at all, so a kill loses at most the episode being recorded, and the parts that exist say what
is left to do. A part is itself a valid demonstration file with one episode.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial.transform import Rotation
from tqdm.auto import tqdm

from ..run.errors import LarError, reading
from ..run.files import atomic_path
from .conventions import Conventions, Verdict, check_turn, commands, decide, ordered, turned
from .episode import (
    AGAIN,
    ARRAYS,
    IMAGES,
    OPTIONAL,
    PER_STEP,
    Episode,
    check_episode,
    demo_group,
    demo_names,
    open_demos,
    read_array,
    read_json,
    read_sentence,
)
from .raw import Raw

_OURS = "before_action"  # value of the attribute observation_time; other people's files do not have it


def write_episode(path: Path | str, episode: Episode, *, bddl_file: Path | str) -> None:
    """Write one episode as a demonstration file of its own (a part), atomically.

    bddl_file: the task's BDDL file. Raises LarError for an episode with missing, misshapen, misaligned or non-finite
    contents, and for a full disk.
    """
    check_episode(episode, where=f"The episode for {path}")
    with _create(path) as file:
        data = file.create_group("data")
        data.attrs.update(_file_attributes(Path(bddl_file), episode.instruction))
        _write_group(data.create_group("demo_0"), episode)
        data.attrs.update(num_demos=1, total=len(episode))


def merge_episodes(parts: Sequence[Path | str], path: Path | str) -> None:
    """Join part files, in the given order, into the demonstration file `path`, atomically; the parts are kept.

    Raises LarError for no parts, a part that cannot be read, parts of different tasks, and a full disk.
    """
    if not parts:
        raise LarError(f"There are no recorded episodes to make {path} from: record some first.")
    total = count = 0
    with _create(path) as file:
        data = file.create_group("data")
        for part in parts:
            with open_demos(part) as source:
                attributes = data.attrs if count else source["data"].attrs
                if source["data"].attrs.get("bddl_file_name") != attributes.get("bddl_file_name"):
                    raise LarError(f"{part} records another task than {parts[0]}: merge the episodes of one task only.")
                data.attrs.update(attributes)
                for name in demo_names(source, part):
                    group = demo_group(source, name, part)
                    with reading(f"{part}, {name}", AGAIN, OSError, RuntimeError, path=part):
                        data.copy(group, f"demo_{count}")
                        total, count = total + len(group["actions"]), count + 1
        data.attrs.update(num_demos=count, total=total)


def episode_count(path: Path | str) -> int:
    """Number of episodes in a demonstration file. Raises LarError for a file that is not one."""
    with open_demos(path) as file:
        return len(demo_names(file, path))


def read_episode(path: Path | str, index: int, conventions: Conventions | None = None) -> Episode:
    """Episode `index` (0-based) of a demonstration file, ours or other people's.

    conventions: those of the data set that other people's file belongs to; None: as the file itself shows them.
    Raises LarError for a malformed file, naming file, key and what was expected, for an index out of range, and for a
    convention that is neither shown nor stated.
    """
    with open_demos(path) as file:
        names = demo_names(file, path)
        if not 0 <= index < len(names):
            raise LarError(f"{path} has {len(names)} episodes, numbered from 0; there is no episode {index}.")
        return _read(file, names[index], path, conventions)


def read_episodes(path: Path | str, conventions: Conventions | None = None) -> Iterator[Episode]:
    """All episodes of a demonstration file, in order, each checked. Raises LarError as `read_episode` does."""
    with open_demos(path) as file:
        if not _is_ours(file):
            conventions = conventions or conventions_of(path)
        for name in demo_names(file, path):
            yield _read(file, name, path, conventions)


def made_here(path: Path | str) -> bool:
    """Whether a demonstration file was written here, so that nothing about it has to be found out."""
    with open_demos(path) as file:
        return _is_ours(file)


def read_origin(path: Path | str) -> dict:
    """Whose demonstrations a file of ours holds and how their pictures came about, as results.json tells it.

    source: "expert", "official" or "lerobot"; images: "recorded", "resized" or "rendered"; and, where they are known,
    revision, recorded_sizes (pixels of both cameras before), assets and conventions. Raises LarError as `read_episode` does.
    """
    with open_demos(path) as file:
        made = read_json(demo_group(file, demo_names(file, path)[0], path).attrs, "provenance", "{}", str(path))
    names = ("source", "images", "revision", "recorded_sizes", "assets", "conventions")
    told = {name: made[name] for name in names if name in made}
    return {"source": "expert", "images": "recorded"} | told


def _is_ours(file: h5py.File) -> bool:
    return file["data"].attrs.get("observation_time") == _OURS


def _file_attributes(bddl_file: Path, instruction: str) -> dict:
    problem = "libero_tabletop_manipulation"
    name = f"bddl_files/{bddl_file.parent.name}/{bddl_file.name}"
    env_args = {"type": 1, "env_name": problem.title(), "problem_name": problem, "bddl_file": name, "env_kwargs": {}}
    problem_info = {"problem_name": problem, "domain_name": "robosuite", "language_instruction": instruction}
    return {"env_name": problem.title(), "env_args": json.dumps(env_args), "problem_info": json.dumps(problem_info),
            "bddl_file_name": name, "bddl_file_content": bddl_file.read_text(encoding="utf-8"), "tag": "libero-v1",
            "macros_image_convention": "opengl", "observation_time": _OURS}


def _write_group(group: h5py.Group, episode: Episode) -> None:
    for name, (key, _, dtype) in ARRAYS.items():
        array = getattr(episode, name)
        if array is None:
            continue
        if name in IMAGES:  # one chunk a frame, so that single frames can be read without the rest
            group.create_dataset(key, data=turned(array, "rotated"), chunks=(1, *array.shape[1:]), compression="gzip",
                                 compression_opts=4)
        else:
            group.create_dataset(key, data=np.asarray(array, dtype=np.float64))
    last = (np.arange(len(episode)) == len(episode) - 1).astype(np.uint8)
    quaternion = Rotation.from_rotvec(episode.ee_ori).as_quat()  # x, y, z, w, as robosuite has it
    group["rewards"], group["dones"] = last, last
    group["robot_states"] = np.hstack([episode.gripper_states, episode.ee_pos, quaternion])
    group["obs/ee_states"] = np.hstack([episode.ee_pos, episode.ee_ori])
    group.attrs.update(num_samples=len(episode), instruction=episode.instruction, target=episode.target,
                       distractor=episode.distractor, objects=json.dumps(list(episode.objects)),
                       provenance=json.dumps(episode.provenance), model_file=episode.model_file)
    first = episode.states[0] if episode.init_state is None and episode.states is not None else episode.init_state
    if first is not None:
        group.attrs["init_state"] = first


def _read(file: h5py.File, name: str, path: Path | str, conventions: Conventions | None) -> Episode:
    if _is_ours(file):
        return _read_group(file, name, path)
    return to_episode(_raw(file, name, path), conventions or conventions_of(path))


def _read_group(file: h5py.File, name: str, path: Path | str) -> Episode:
    group, where = demo_group(file, name, path), f"{path}, {name}"
    attributes = group.attrs
    arrays: dict[str, Any] = {field_name: _array(group, field_name, where) for field_name in ARRAYS}
    episode = Episode(
        **arrays, instruction=attributes.get("instruction") or read_sentence(file, path),
        objects=read_json(attributes, "objects", "[]", where), target=attributes.get("target", ""),
        distractor=attributes.get("distractor", ""), init_state=attributes.get("init_state"),
        model_file=attributes.get("model_file", ""), provenance=read_json(attributes, "provenance", "{}", where))
    check_episode(episode, where)
    if attributes.get("num_samples", len(episode)) != len(episode):
        raise LarError(f"{where}: num_samples is {attributes['num_samples']}, but there are {len(episode)} actions.")
    return episode


def _array(group: h5py.Group, field_name: str, where: str) -> np.ndarray | None:
    key = ARRAYS[field_name][0]
    array = read_array(group, key, where)
    if array is None and field_name not in OPTIONAL:
        raise LarError(f"{where}: {key} is missing; LIBERO's format has it in every demonstration.")
    return turned(array, "rotated") if array is not None and field_name in IMAGES else array


@contextmanager
def _create(path: Path | str) -> Iterator[h5py.File]:
    """Yield a new HDF5 file in memory; write it to `path`, atomically, if nothing was raised.

    In memory, because the HDF5 library crashes the whole process when the disk becomes full under an open file.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        yield file
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


# Other people's copies: read through one map of names, and turned into episodes by the conventions found.

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
_WIDTHS = {"ee_pos": [3], "ee_ori": [3, 4], "ee_states": [6, 7], "fingers": [2], "joint_states": [7]}  # numbers a row
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


def to_episode(raw: Raw, conventions: Conventions) -> Episode:
    """A copy's demonstration as an Episode. Raises LarError for what is missing, misshapen, or no command."""
    raw = ordered(raw, conventions["state"])
    stored = raw.pictures(PICTURES)
    check_turn(raw, stored, conventions)
    pictures = {name: turned(frames, conventions["pictures"]) for name, frames in stored.items()}
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
    hand = ("ee_pos", "ee_ori", "fingers")
    if all(found[name] is not None for name in hand):
        found["state"] = None
    elif found["state"] is not None:
        found |= dict.fromkeys(hand)
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
        if array is not None and array.shape[1] not in _WIDTHS.get(name, [array.shape[1]]):
            raise LarError(f"{where}: {name} has {array.shape[1]} numbers a row, but {' or '.join(map(str, _WIDTHS[name]))} "
                           "are expected.")
        if array is not None and not np.isfinite(array).all():
            raise LarError(f"{where}: {name} is not a finite number (NaN or infinite) at step "
                           f"{int(np.argwhere(~np.isfinite(array))[0][0])}: leave this demonstration out.")
    if arrays.get("state") is None and any(arrays.get(name) is None for name in ("ee_pos", "ee_ori", "fingers")):
        raise LarError(f"{where}: the hand's position, orientation or fingers are missing; they may be called "
                       f"{', '.join(NAMES['ee_pos'] + NAMES['ee_ori'] + NAMES['fingers'] + NAMES['state'])}.")


def check_pictures(pictures: Mapping[str, np.ndarray], where: str) -> None:
    """Raise LarError unless all are uint8 (T, H, W, 3): numbers of another kind would become black pictures."""
    for name, frames in pictures.items():
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise LarError(f"{where}: {name} holds {frames.dtype} of shape {frames.shape}, but uint8 (T, height, width, 3), "
                           "red first, is expected: convert this copy first.")


def _raw(file: h5py.File, name: str, path: Path | str) -> Raw:
    group, where = demo_group(file, name, path), f"{path}, {name}"
    found = parts_of({what: _numbers(group, what, where) for what in _NUMBERS})
    check_numbers(found, where)
    length = group.attrs.get("num_samples")
    if length is not None and length != len(found["actions"]):
        raise LarError(f"{where}: num_samples is {length}, but there are {len(found['actions'])} actions.")
    convention = file["data"].attrs.get("macros_image_convention")
    told = {"pictures": convention} if convention else {}
    return Raw(where=where, source=str(path), pictures=lambda wanted: _pictures(path, name, wanted), told=told,
               instruction=group.attrs.get("instruction") or read_sentence(file, path),
               model_file=group.attrs.get("model_file", ""), init_state=group.attrs.get("init_state"), **found)


def _found(group: h5py.Group, what: str, where: str) -> np.ndarray | None:
    """What a demonstration holds of `what`, in its obs or beside it, under the most telling name."""
    key = next((key for name in NAMES[what] for key in (f"obs/{name}", name) if key in group), None)
    return None if key is None else read_array(group, key, where)


def _numbers(group: h5py.Group, what: str, where: str) -> np.ndarray | None:
    array = _found(group, what, where)
    if array is not None and not np.issubdtype(array.dtype, np.number) and array.dtype != bool:
        raise LarError(f"{where}, {what} holds {array.dtype}, but numbers are expected.")
    return None if array is None else np.asarray(array, dtype=np.float64)


def _pictures(path: Path | str, name: str, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    with open_demos(path) as file:
        group = demo_group(file, name, path)
        found = {what: _found(group, what, f"{path}, {name}") for what in wanted}
    pictures = {what: frames for what, frames in found.items() if frames is not None}
    check_pictures(pictures, f"{path}, {name}")
    return pictures


def _paired(episode: Episode) -> Episode:
    """Pair each frame of an episode that was observed after acting with the action that follows it; one step is lost."""
    arrays = {name: array for name in PER_STEP if (array := getattr(episode, name)) is not None}
    changes: dict[str, Any] = {name: array[1:] if name in ("actions", "states") else array[:-1]
                               for name, array in arrays.items()}
    return replace(episode, **changes)
