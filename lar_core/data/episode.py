"""One demonstration in memory, what it must be like, and the HDF5 files that demonstrations lie in, ours and other people's:
opened, listed and read with a sentence for each failure that names file and demonstration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from ..run.errors import LarError, unreadable
from ..run.files import files_below

with suppress(ImportError):  # once imported, it unpacks what h5py alone cannot
    import hdf5plugin  # noqa: F401

AGAIN = "delete it, and download or record it again"
# Episode field: (key in our files, shape after the time axis (None: any), dtype; np.floating stands for any float)
ARRAYS = {
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
PER_STEP = tuple(ARRAYS)  # the fields of an Episode that have one entry a step
OPTIONAL = {"eye_in_hand_rgb", "segmentation", "states", "joint_states"}
IMAGES = {"agentview_rgb", "eye_in_hand_rgb", "segmentation"}


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


def check_episode(episode: Episode, where: str) -> None:
    """Raise LarError, starting with `where`, if anything in the episode is missing, misshapen or not finite."""
    if not episode.instruction.strip():
        raise LarError(f"{where}: the instruction (language_instruction) is empty; a sentence is expected.")
    for name, (key, shape, dtype) in ARRAYS.items():
        array = getattr(episode, name)
        if array is not None:
            _check_array(np.asarray(array), f"{where}, {key}", shape, dtype, len(episode))
        elif name not in OPTIONAL:
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


# Pictures of another size: official demonstrations have 128 pixels and LeRobot's 256, whatever a profile asks for.

def resize_episode(episode: Episode, image_size: int, wrist_size: int) -> Episode:
    """The same episode with square pictures of these sizes (pixels); wrist_size 0 leaves the wrist camera out.

    Segmentation stays only where the size does: resampled labels would be wrong at the objects' borders.
    Raises LarError when wrist pictures are asked for and not there.
    """
    wrist = episode.eye_in_hand_rgb if wrist_size else None
    if wrist_size and wrist is None:
        raise LarError("These demonstrations have no wrist pictures: set wrist_size to 0.")
    same = episode.agentview_rgb.shape[1:3] == (image_size, image_size)
    return replace(episode, agentview_rgb=resize(episode.agentview_rgb, image_size),
                   eye_in_hand_rgb=None if wrist is None else resize(wrist, wrist_size),
                   segmentation=episode.segmentation if same else None)


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 -> (T, size, size, 3): bicubic and antialiased, as PaliGemma's own processor does it."""
    if frames.shape[1:3] == (size, size):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
                     for frame in frames])


# HDF5 files.

def hdf5_files(folder: Path) -> list[Path]:
    """The HDF5 files in and below a folder, also behind links. Raises LarError for a link that leads nowhere."""
    return [path for _, path in files_below(folder) if path.suffix in (".hdf5", ".h5")]


@contextmanager
def open_demos(path: Path | str) -> Iterator[h5py.File]:
    """A demonstration file, open for reading. Raises LarError where there is none, saying why."""
    try:
        Path(path).stat()
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise LarError(f"There is no demonstration file {path}: record it with `lar demos`, or check the path.") from error
    except OSError as error:
        raise unreadable(f"{path}, which should be an HDF5 file,", error, AGAIN, path=path) from error
    with file:
        if not isinstance(file.get("data"), h5py.Group):
            raise LarError(f"{path}: group data is missing; this HDF5 file is not a LIBERO demonstration file.")
        yield file


def demo_names(file: h5py.File, path: Path | str) -> list[str]:
    """demo_0, demo_1, ... in order of their numbers, which may have gaps."""
    names = sorted((name for name in file["data"] if name.startswith("demo_") and name[5:].isdigit()),
                   key=lambda name: int(name[5:]))
    if not names:
        raise LarError(f"{path}: group data has no episode; demo_0, demo_1, ... are expected.")
    if np.any(file["data"].attrs.get("num_demos", len(names)) != len(names)):
        raise LarError(f"{path}: num_demos is {file['data'].attrs['num_demos']}, but there are {len(names)} episodes.")
    return names


def demo_group(file: h5py.File, name: str, path: Path | str) -> h5py.Group:
    """The group of a demonstration."""
    try:
        return file["data"][name]
    except (KeyError, OSError, RuntimeError) as error:  # h5py raises any of them for a broken header
        raise unreadable(f"{path}, {name}", error, AGAIN) from error


def read_array(group: h5py.Group, key: str, where: str) -> np.ndarray | None:
    """The numbers of `key`; None where there are none."""
    try:
        found = group.get(key)
        return found[()] if isinstance(found, h5py.Dataset) else None
    except (OSError, RuntimeError, MemoryError) as error:
        raise unreadable(f"{where}: {key}", error, AGAIN, path=group.file.filename) from error


def read_json(attributes: h5py.AttributeManager, name: str, default: str, where: str) -> Any:
    """What an attribute holds as JSON."""
    try:
        return json.loads(attributes.get(name, default))
    except (TypeError, ValueError) as error:
        raise LarError(f"{where}: the attribute {name} is not JSON ({error}): record this episode again.") from error


def read_sentence(file: h5py.File, path: Path | str) -> str:
    """LIBERO's language_instruction, or, in a file without that attribute, the sentence that its name is made of."""
    name = Path(path).stem.removesuffix("_demo").replace("_", " ")
    if "problem_info" not in file["data"].attrs and " " in name:
        return name
    try:
        told = json.loads(file["data"].attrs["problem_info"])["language_instruction"]
        return (told if isinstance(told, str) else " ".join(told)).strip('" ')  # some have a list of words
    except (KeyError, TypeError, ValueError) as error:
        raise LarError(f"{path}: the attribute problem_info of group data is missing or not JSON with a "
                       "language_instruction, which says what the robot was told: correct it, or remove it from a file "
                       "whose name is the sentence.") from error
