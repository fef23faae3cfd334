"""Random shifts of the training images (as DrQ-v2 does, Yarats et al. 2021): each is moved by a few pixels, its border
repeated. Segmentation and the frame before move with the image; the wrist camera moves on its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..run.draws import Draws


def shift_images(batch: dict, pixels: int, draws: Draws) -> dict:
    """A batch (see `lar_core.data.dataset`) with its images moved by up to `pixels` along both axes."""
    count = len(batch["images"])
    main, wrist = ((draws.uniform(count, 2) * (2 * pixels + 1)).long() for _ in range(2))  # (B, 2) in [0, 2 * pixels]
    moved = {name: _shift(batch[name], pixels, main) for name in ("images", "regions", "previous") if name in batch}
    if "wrist" in batch:
        moved["wrist"] = _shift(batch["wrist"], pixels, wrist)
    return batch | moved


def _shift(images: Tensor, pixels: int, corners: Tensor) -> Tensor:
    """Cut images (B, C, H, W) of the same size out of padded ones, at (B, 2) corners."""
    height, width = images.shape[2:]
    padded = F.pad(images.float(), [pixels] * 4, mode="replicate").to(images.dtype)
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners.tolist())])
