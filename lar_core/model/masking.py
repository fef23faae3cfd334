"""Masking: which patches the decoder must reconstruct.

Every source (`mask_sources`) is a score (B, P); the k highest-scoring patches are masked, as in MAE's sorting of a
noise vector (He et al. 2022, appendix A.1), with saliency or segmentation in the place of noise. Everywhere: mask
(B, P) bool, True = masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..registry import MASK_SOURCES
from .mask_sources import Clues

ESSAY_GRID = 14  # the source text's literal setting: 14 x 14 patches, k = 49
ESSAY_PATCH = 16  # pixels


def count_masked(patches: int, ratio: float) -> int:
    """k: how many of `patches` are masked; at least one is masked and one is left visible."""
    return min(max(round(ratio * patches), 1), patches - 1)


def mask_top(scores: Tensor, k: int) -> Tensor:
    """Mask exactly k patches a sample, the highest scores (B, P); equal scores go by patch index, lowest first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter(1, order[:, :k], True)


def make_mask(source: str, *, saliency: Tensor, coverage: Tensor | None, ratio: float,
              draws: Draws | None = None, motion: Tensor | None = None) -> Tensor:
    """Choose the masked patches.

    Args:
        source: a name in MASK_SOURCES.
        saliency: (B, P), where the instruction looks; also gives shape and device.
        coverage: (B, P) in [0, 1], share of each patch that the named object covers; only `gaze` needs it.
        ratio: share of patches to mask.
        draws: randomness of the sources that draw.
        motion: (B, P), how much each patch changed since the frame before; only `frame_difference` needs it.
    Returns:
        mask (B, P) bool, True = masked, exactly `count_masked(P, ratio)` a sample.
    Raises:
        LarError: unknown source, `gaze` without segmentation, or `frame_difference` without motion.
    """
    k = count_masked(saliency.shape[1], ratio)
    return mask_top(MASK_SOURCES[source](Clues(saliency.detach(), k, draws or Draws(0), coverage, motion)), k)


def area_resample(values: Tensor, grid: int) -> Tensor:
    """Average maps (B, P) or features (B, P, D) over the cells of another square grid, weighted by area of overlap.

    Returns (B, grid*grid) or (B, grid*grid, D).
    """
    side = round(values.shape[1] ** 0.5)
    if side == grid:
        return values
    overlap = _overlap(side, grid).to(values)
    square = values.reshape(values.shape[0], side, side, -1)  # (B, h, w, D or 1)
    resampled = torch.einsum("ih,jw,bhwd->bijd", overlap, overlap, square)
    return resampled.reshape(values.shape[0], grid * grid, *values.shape[2:])


def _overlap(side: int, grid: int) -> Tensor:
    """Row i, column h: the share of new cell i that old cell h covers (each row sums to 1)."""
    new, old = torch.arange(grid + 1) / grid, torch.arange(side + 1) / side
    left = torch.maximum(new[:-1, None], old[None, :-1])
    right = torch.minimum(new[1:, None], old[None, 1:])
    return (right - left).clamp_min(0) * grid


def pixel_mask(mask: Tensor, size: int) -> Tensor:
    """Spread mask (B, P) over pixels: (B, 1, size, size) bool, True = masked."""
    grid = round(mask.shape[1] ** 0.5)
    cell = torch.arange(size, device=mask.device) * grid // size  # pixel -> patch row or column
    return mask.reshape(-1, 1, grid, grid)[:, :, cell][:, :, :, cell]
