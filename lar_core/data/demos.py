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
attribute are other people's: `copies.py` reads them, by the conventions that `conventions.py` finds in them.

Recording many episodes safely: give each its own part file (`write_episode`), then join them (`merge_episodes`). Both
files appear whole or not at all, so a kill loses at most the episode being recorded, and the parts that exist say what
is left to do. A part is itself a valid demonstration file with one episode.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from ..run.errors import LarError, reading
from ..run.files import atomic_path
from . import copies
from .conventions import Conventions, turned
from .episode import ARRAYS, IMAGES, OPTIONAL, PER_STEP, Episode, check_episode
from .hdf5 import AGAIN, demo_group, demo_names, open_demos, read_array, read_json, read_sentence

__all__ = ["PER_STEP", "Episode", "check_episode", "episode_count", "made_here", "merge_episodes",
           "read_episode", "read_episodes", "read_origin", "write_episode"]

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
        if _is_ours(file):
            return _read_group(file, names[index], path)
    return copies.read_hdf5(path, index, conventions)


def read_episodes(path: Path | str, conventions: Conventions | None = None) -> Iterator[Episode]:
    """All episodes of a demonstration file, in order, each checked. Raises LarError as `read_episode` does."""
    with open_demos(path) as file:
        names = demo_names(file, path)
        if _is_ours(file):
            for name in names:
                yield _read_group(file, name, path)
            return
    conventions = conventions or copies.conventions_of(path)
    for index in range(len(names)):
        yield copies.read_hdf5(path, index, conventions)


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
