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

Two conventions differ between file and memory, and are translated here and nowhere else:
* Images lie in the file as OpenGL draws them; an `Episode` holds them upright (rotated by 180 degrees).
* An `Episode` pairs an action with what was seen *before* it. The official script stores what was seen *after* it, so
  that there action t belongs to frame t - 1: those files are shifted by one on reading, and lose one step.

Recording many episodes safely: give each its own part file (`write_episode`), then join them (`merge_episodes`). Both
files appear whole or not at all, so a kill loses at most the episode being recorded, and the parts that exist say what
is left to do. A part is itself a valid demonstration file with one episode.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from ..run.errors import LarError
from ..run.files import atomic_path

# Episode field: (key in the file, shape after the time axis (None: any), dtype; np.floating stands for any float)
_ARRAYS = {
    "actions": ("actions", (7,), np.floating),
    "states": ("states", (None,), np.floating),
    "agentview_rgb": ("obs/agentview_rgb", (None, None, 3), np.uint8),
    "eye_in_hand_rgb": ("obs/eye_in_hand_rgb", (None, None, 3), np.uint8),
    "ee_pos": ("obs/ee_pos", (3,), np.floating),
    "ee_ori": ("obs/ee_ori", (3,), np.floating),
    "gripper_states": ("obs/gripper_states", (2,), np.floating),
    "joint_states": ("obs/joint_states", (7,), np.floating),
    "segmentation": ("obs/agentview_segmentation", (None, None), np.uint8),
}
PER_STEP = tuple(_ARRAYS)  # the fields of an Episode that have one entry a step
_OPTIONAL = {"eye_in_hand_rgb", "segmentation", "states", "joint_states"}
_IMAGES = {"agentview_rgb", "eye_in_hand_rgb", "segmentation"}
_OURS = "before_action"  # value of the attribute observation_time; official files do not have it


@dataclass(kw_only=True)
class Episode:
    """One demonstration of T steps: frame t is what was seen before action t. Images are upright."""

    instruction: str
    actions: np.ndarray  # (T, 7) float, in [-1, 1]: position, rotation, gripper (-1 opens, +1 closes)
    agentview_rgb: np.ndarray  # (T, H, W, 3) uint8
    ee_pos: np.ndarray  # (T, 3) metres
    ee_ori: np.ndarray  # (T, 3) axis-angle, radians
    gripper_states: np.ndarray  # (T, 2) metres
    joint_states: np.ndarray | None = None  # (T, 7) radians; None where the source does not tell them
    states: np.ndarray | None = None  # (T, S) flattened simulator states; None where the source does not tell them
    eye_in_hand_rgb: np.ndarray | None = None  # (T, h, w, 3) uint8; None without a wrist camera
    segmentation: np.ndarray | None = None  # (T, H, W) uint8: 0 = everything else, i + 1 = objects[i]
    objects: Sequence[str] = ()  # instance names in segmentation order
    target: str = ""  # the instance that the instruction names
    distractor: str = ""  # the other instance of its kind
    init_state: np.ndarray | None = None  # (S,) what the scene was reset to; None: states[0], if there are states
    model_file: str = ""  # MJCF of the scene
    provenance: dict = field(default_factory=dict)  # JSON: seed, assets, versions, ...

    def __len__(self) -> int:
        return len(self.actions)


def write_episode(path: Path | str, episode: Episode, *, bddl_file: Path | str, env_kwargs: dict | None = None) -> None:
    """Write one episode as a demonstration file of its own (a part), atomically.

    bddl_file: the task's BDDL file; env_kwargs: what the environment was made with, for other people's replays.
    Raises LarError for an episode with missing, misshapen, misaligned or non-finite contents, and for a full disk.
    """
    check_episode(episode, where=f"The episode for {path}")
    with _create(path) as file:
        data = file.create_group("data")
        data.attrs.update(_file_attributes(Path(bddl_file), episode.instruction, env_kwargs or {}))
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
            with _open(part) as source:
                attributes = data.attrs if count else source["data"].attrs
                if source["data"].attrs.get("bddl_file_name") != attributes.get("bddl_file_name"):
                    raise LarError(f"{part} records another task than {parts[0]}: merge the episodes of one task only.")
                data.attrs.update(attributes)
                for name in _names(source, part):
                    source.copy(f"data/{name}", data, name=f"demo_{count}")
                    total, count = total + len(source[f"data/{name}/actions"]), count + 1
        data.attrs.update(num_demos=count, total=total)


def episode_count(path: Path | str) -> int:
    """Number of episodes in a demonstration file. Raises LarError for a file that is not one."""
    with _open(path) as file:
        return len(_names(file, path))


def read_episode(path: Path | str, index: int) -> Episode:
    """Episode `index` (0-based) of a demonstration file, ours or official.

    Raises LarError for a malformed file, naming file, key and what was expected, and for an index out of range.
    """
    with _open(path) as file:
        names = _names(file, path)
        if not 0 <= index < len(names):
            raise LarError(f"{path} has {len(names)} episodes, numbered from 0; there is no episode {index}.")
        return _read_group(file, names[index], path)


def read_episodes(path: Path | str) -> Iterator[Episode]:
    """All episodes of a demonstration file, in order. Raises LarError as `read_episode` does."""
    with _open(path) as file:
        for name in _names(file, path):
            yield _read_group(file, name, path)


def read_origin(path: Path | str) -> dict:
    """Whose demonstrations a file of ours holds and how their pictures came about, as results.json tells it.

    source: "expert", "official" or "lerobot"; images: "recorded", "resized" or "rendered"; and, where they are known,
    revision, recorded_sizes (pixels of both cameras before) and assets. Raises LarError as `read_episode` does.
    """
    with _open(path) as file:
        made = _json(file[f"data/{_names(file, path)[0]}"].attrs, "provenance", "{}", str(path))
    told = {name: made[name] for name in ("source", "images", "revision", "recorded_sizes", "assets") if name in made}
    return {"source": "expert", "images": "recorded"} | told


def check_file(path: Path | str) -> int:
    """Read and check every episode; return their number. Raises LarError for the first thing that is wrong."""
    return sum(1 for _ in read_episodes(path))


def check_episode(episode: Episode, where: str) -> None:
    """Raise LarError, starting with `where`, if anything in the episode is missing, misshapen or not finite."""
    if not episode.instruction.strip():
        raise LarError(f"{where}: the instruction (language_instruction) is empty; a sentence is expected.")
    for name, (key, shape, dtype) in _ARRAYS.items():
        array = getattr(episode, name)
        if array is not None:
            _check_array(np.asarray(array), f"{where}, {key}", shape, dtype, len(episode))
        elif name not in _OPTIONAL:
            raise LarError(f"{where}: {key} is missing; an array is expected.")
    seen, frames = episode.segmentation, episode.agentview_rgb.shape[:3]
    if seen is not None and seen.shape != frames:
        raise LarError(f"{where}: obs/agentview_segmentation has shape {seen.shape}, but {frames} is expected, "
                       "as in obs/agentview_rgb.")
    if seen is not None and seen.max() > len(episode.objects):
        raise LarError(f"{where}: obs/agentview_segmentation has the number {seen.max()}, but only "
                       f"{len(episode.objects)} objects are named.")


def _check_array(array: np.ndarray, where: str, shape: tuple, dtype: type, length: int) -> None:
    wanted = f"(T, {', '.join('*' if n is None else str(n) for n in shape)})"
    fits = array.ndim == 1 + len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape[1:]))
    if not fits or array.size == 0:
        raise LarError(f"{where} has shape {array.shape}, but {wanted} with T > 0 is expected.")
    if not np.issubdtype(array.dtype, dtype):
        raise LarError(f"{where} holds {array.dtype} numbers, but {dtype.__name__} is expected.")
    if len(array) != length:
        raise LarError(f"{where} has {len(array)} steps, but {length} are expected, as many as there are actions.")
    if dtype is np.floating and not np.isfinite(array).all():
        step = int(np.argwhere(~np.isfinite(array))[0][0])
        raise LarError(f"{where} is not a finite number (NaN or infinite) at step {step}: record this episode again.")


def _file_attributes(bddl_file: Path, instruction: str, env_kwargs: dict) -> dict:
    problem = "libero_tabletop_manipulation"
    name = f"bddl_files/{bddl_file.parent.name}/{bddl_file.name}"
    env_args = {"type": 1, "env_name": problem.title(), "problem_name": problem, "bddl_file": name,
                "env_kwargs": env_kwargs}
    problem_info = {"problem_name": problem, "domain_name": "robosuite", "language_instruction": instruction}
    return {"env_name": problem.title(), "env_args": json.dumps(env_args), "problem_info": json.dumps(problem_info),
            "bddl_file_name": name, "bddl_file_content": bddl_file.read_text(encoding="utf-8"), "tag": "libero-v1",
            "macros_image_convention": "opengl", "observation_time": _OURS}


def _write_group(group: h5py.Group, episode: Episode) -> None:
    for name, (key, _, dtype) in _ARRAYS.items():
        array = getattr(episode, name)
        if array is None:
            continue
        if name in _IMAGES:  # one chunk a frame, so that single frames can be read without the rest
            group.create_dataset(key, data=_rotate(array), chunks=(1, *array.shape[1:]), compression="gzip",
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
    if episode.init_state is not None or episode.states is not None:
        group.attrs["init_state"] = episode.states[0] if episode.init_state is None else episode.init_state


def _read_group(file: h5py.File, name: str, path: Path | str) -> Episode:
    group, where = file[f"data/{name}"], f"{path}, {name}"
    attributes = group.attrs
    arrays = {field_name: _read_array(group, key, where, field_name in _OPTIONAL)
              for field_name, (key, _, _) in _ARRAYS.items()}
    arrays |= {image: _rotate(arrays[image]) for image in _IMAGES if arrays[image] is not None}
    episode = Episode(
        **arrays, instruction=attributes.get("instruction") or _instruction(file, path),
        objects=_json(attributes, "objects", "[]", where), target=attributes.get("target", ""),
        distractor=attributes.get("distractor", ""), init_state=attributes.get("init_state"),
        model_file=attributes.get("model_file", ""), provenance=_json(attributes, "provenance", "{}", where))
    check_episode(episode, where)
    if attributes.get("num_samples", len(episode)) != len(episode):
        raise LarError(f"{where}: num_samples is {attributes['num_samples']}, but there are {len(episode)} actions.")
    return episode if file["data"].attrs.get("observation_time") == _OURS else _align(episode)


def _read_array(group: h5py.Group, key: str, where: str, optional: bool) -> np.ndarray | None:
    if not isinstance(group.get(key), h5py.Dataset):
        if optional:
            return None
        raise LarError(f"{where}: {key} is missing; LIBERO's format has it in every demonstration.")
    try:
        return group[key][()]
    except OSError as error:
        raise LarError(f"{where}: {key} cannot be read, the file is damaged ({error}): "
                       "delete it, and download or record it again.") from error


def _align(episode: Episode) -> Episode:
    """Pair each frame of an official episode with the action that follows it (see the top of this file)."""
    for name in PER_STEP:
        array = getattr(episode, name)
        if array is not None:
            setattr(episode, name, array[1:] if name in ("actions", "states") else array[:-1])
    if len(episode) == 0:
        raise LarError("An official demonstration has one step only: at least two are expected.")
    return episode


def _json(attributes: h5py.AttributeManager, name: str, default: str, where: str) -> list | dict:
    try:
        return json.loads(attributes.get(name, default))
    except (TypeError, ValueError) as error:
        raise LarError(f"{where}: the attribute {name} is not JSON ({error}): record this episode again.") from error


def _instruction(file: h5py.File, path: Path | str) -> str:
    try:
        return str(json.loads(file["data"].attrs["problem_info"])["language_instruction"]).strip('" ')
    except (KeyError, TypeError, ValueError) as error:
        raise LarError(f"{path}: the attribute problem_info of group data is missing or not JSON with a "
                       "language_instruction, which says what the robot was told.") from error


def _names(file: h5py.File, path: Path | str) -> list[str]:
    names = sorted((name for name in file["data"] if name.startswith("demo_") and name[5:].isdigit()),
                   key=lambda name: int(name[5:]))
    if not names:
        raise LarError(f"{path}: group data has no episode; demo_0, demo_1, ... are expected.")
    if file["data"].attrs.get("num_demos", len(names)) != len(names):
        raise LarError(f"{path}: num_demos is {file['data'].attrs['num_demos']}, but there are {len(names)} episodes.")
    return names


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


@contextmanager
def _open(path: Path | str) -> Iterator[h5py.File]:
    if not Path(path).is_file():
        raise LarError(f"There is no demonstration file {path}: record it with `lar demos`, or check the path.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise LarError(f"{path} is not a readable HDF5 file (cut short, damaged or of another kind): "
                       "delete it, and download or record it again.") from error
    with file:
        if not isinstance(file.get("data"), h5py.Group):
            raise LarError(f"{path}: group data is missing; this HDF5 file is not a LIBERO demonstration file.")
        yield file


def _rotate(images: np.ndarray) -> np.ndarray:
    """Turn frames (T, H, W, ...) by 180 degrees."""
    return np.ascontiguousarray(images[:, ::-1, ::-1])
