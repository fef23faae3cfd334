"""Pictures of another size: official demonstrations have 128 pixels and LeRobot's 256, whatever a profile asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from ..run.errors import LarError
from .demos import Episode


def resize_episode(episode: Episode, image_size: int, wrist_size: int) -> Episode:
    """The same episode with square pictures of these sizes (pixels); wrist_size 0 leaves the wrist camera out.

    Segmentation stays only where the size does: resampled labels would be wrong at the objects' borders.
    Raises LarError when wrist pictures are asked for and not there.
    """
    if wrist_size and episode.eye_in_hand_rgb is None:
        raise LarError("These demonstrations have no wrist pictures: set wrist_size to 0.")
    wrist = resize(episode.eye_in_hand_rgb, wrist_size) if wrist_size else None
    same = episode.agentview_rgb.shape[1:3] == (image_size, image_size)
    return replace(episode, agentview_rgb=resize(episode.agentview_rgb, image_size), eye_in_hand_rgb=wrist,
                   segmentation=episode.segmentation if same else None)


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 -> (T, size, size, 3): bicubic and antialiased, as PaliGemma's own processor does it."""
    if frames.shape[1:3] == (size, size):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
                     for frame in frames])
