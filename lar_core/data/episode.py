"""One demonstration in memory, what it must be like, and the same in another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from ..run.errors import LarError

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
