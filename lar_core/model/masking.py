"""Masking: which patches the decoder must reconstruct. Everywhere: mask (B, P) bool, True = masked.

A source turns `Clues` into scores (B, P); the k highest-scoring patches are masked, as in MAE's sorting of a noise vector
(He et al. 2022, appendix A.1), with saliency or segmentation in the place of noise. Adding a source means adding a
function and registering it. What a source `needs`, only its own conditions pay: the frame before is read for
`frame_difference` alone, a teacher runs for `teacher_attention` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..run.errors import LarError
from ..run.registry import MASK_SOURCES
from ..run.runtime import Draws

ESSAY_GRID = 14  # the source text's literal setting: 14 x 14 patches, k = 49
ESSAY_PATCH = 16  # pixels
HINTS = 0.1  # share of the most attended patches that hint_attention leaves visible


def make_mask(source: str, *, saliency: Tensor, coverage: Tensor | None, ratio: float,
              draws: Draws | None = None, motion: Tensor | None = None) -> Tensor:
    """Choose the masked patches.

    Args:
        source: a name in MASK_SOURCES.
        saliency, coverage, draws, motion: as in `Clues`; saliency also gives shape and device.
        ratio: share of patches to mask.
    Returns:
        mask (B, P) bool, True = masked, exactly `count_masked(P, ratio)` a sample.
    Raises:
        LarError: unknown source, `gaze` without segmentation, or `frame_difference` without motion.
    """
    k = count_masked(saliency.shape[1], ratio)
    return mask_top(MASK_SOURCES[source](Clues(saliency.detach(), k, draws or Draws(0), coverage, motion)), k)


def count_masked(patches: int, ratio: float) -> int:
    """k: how many of `patches` are masked; at least one is masked and one is left visible."""
    return min(max(round(ratio * patches), 1), patches - 1)


def mask_top(scores: Tensor, k: int) -> Tensor:
    """Mask exactly k patches a sample, the highest scores (B, P); equal scores go by patch index, lowest first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter(1, order[:, :k], True)


def pixel_mask(mask: Tensor, size: int) -> Tensor:
    """Spread mask (B, P) over pixels: (B, 1, size, size) bool, True = masked."""
    grid = round(mask.shape[1] ** 0.5)
    cell = torch.arange(size, device=mask.device) * grid // size  # pixel -> patch row or column
    return mask.reshape(-1, 1, grid, grid)[:, :, cell][:, :, :, cell]  # every row of patches, then every column


def area_resample(values: Tensor, grid: int) -> Tensor:
    """Average maps (B, P) or features (B, P, D) over the cells of another square grid, weighted by area of overlap.

    Returns (B, grid*grid) or (B, grid*grid, D).
    """
    side = round(values.shape[1] ** 0.5)
    if side == grid:
        return values
    share = overlap(side, grid).to(values)
    square = values.reshape(values.shape[0], side, side, -1)  # (B, h, w, D or 1)
    resampled = torch.einsum("ih,jw,bhwd->bijd", share, share, square)
    return resampled.reshape(values.shape[0], grid * grid, *values.shape[2:])


def overlap(side: int, grid: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(grid, side): the share of each of `grid` new cells that each of `side` old ones covers; every row sums to 1."""
    new, old = torch.arange(grid + 1, dtype=dtype) / grid, torch.arange(side + 1, dtype=dtype) / side  # edges, 0 to 1
    left = torch.maximum(new[:-1, None], old[None, :-1])
    right = torch.minimum(new[1:, None], old[None, 1:])
    return (right - left).clamp_min(0) * grid


@dataclass(frozen=True)
class Clues:
    """What a source may look at.

    saliency (B, P): where the instruction looks, rows summing to 1, without gradient; k: how many patches will be
    masked; draws: randomness; coverage (B, P): share of each patch that the named object covers, None without
    segmentation; motion (B, P): mean change of each patch's pixels between two frames, None where it was not asked for.
    """

    saliency: Tensor
    k: int
    draws: Draws
    coverage: Tensor | None = None
    motion: Tensor | None = None

    def noise(self) -> Tensor:
        """Uniform, (B, P)."""
        return self.draws.uniform(*self.saliency.shape).to(self.saliency.device)


@MASK_SOURCES.register("random")
def random(clues: Clues) -> Tensor:
    """Uniform noise, as MAE (He et al. 2022)."""
    return clues.noise()


@MASK_SOURCES.register("blue_noise")
def blue_noise(clues: Clues) -> Tensor:
    """Noise without its low frequencies, so that masked patches lie apart; it never looks at the image.

    As ColorMAE (Hinojosa et al. 2024): noise minus its Gaussian blur (sigma of one patch, wrapped around the borders).
    """
    grid = round(clues.saliency.shape[1] ** 0.5)
    noise = clues.noise().reshape(-1, 1, grid, grid)  # (B, 1, rows, columns)
    line = torch.exp(-0.5 * torch.arange(-1, 2, device=noise.device) ** 2.0)
    kernel = torch.outer(line, line)[None, None] / line.sum() ** 2
    blurred = F.conv2d(F.pad(noise, [1] * 4, mode="circular"), kernel)
    return (noise - blurred).flatten(1)


@MASK_SOURCES.register("centre")
def centre(clues: Clues) -> Tensor:
    """The patches nearest to the image's centre, in every image the same: the prior of a photographer."""
    grid = round(clues.saliency.shape[1] ** 0.5)
    line = torch.arange(grid, device=clues.saliency.device) - (grid - 1) / 2
    return -torch.cartesian_prod(line, line).norm(dim=1).expand(len(clues.saliency), -1)


@MASK_SOURCES.register("teacher_attention", "The same by a copy of the backbone that follows it slowly.", needs="teacher")
@MASK_SOURCES.register("attention")
def attention(clues: Clues) -> Tensor:
    """The most attended patches: the method itself. With a teacher, `saliency` is the teacher's."""
    return clues.saliency


@MASK_SOURCES.register("inverse_attention")
def inverse_attention(clues: Clues) -> Tensor:
    """The least attended patches."""
    return -clues.saliency


@MASK_SOURCES.register("hint_attention")
def hint_attention(clues: Clues) -> Tensor:
    """The most attended patches but for the very highest, which stay visible as hints, as AttMask (Kakogeorgiou et al.
    2022): HINTS of k patches are left out at the top, and the k next ones are masked."""
    hints = min(round(HINTS * clues.k), clues.saliency.shape[1] - clues.k)
    top = clues.saliency.argsort(dim=1, descending=True, stable=True)[:, :hints]
    return clues.saliency.scatter(1, top, -1.0)


@MASK_SOURCES.register("sampled_attention")
def sampled_attention(clues: Clues) -> Tensor:
    """k patches drawn one after the other, without putting back, each with the probability that saliency gives it.

    By the Gumbel-top-k trick (Kool et al. 2019): the k largest of log p + Gumbel noise are such a sample.
    """
    noise = clues.noise().clamp(1e-7, 1 - 1e-7)
    return clues.saliency.clamp_min(1e-12).log() - (-noise.log()).log()


@MASK_SOURCES.register("gaze", needs="segmentation")
def gaze(clues: Clues) -> Tensor:
    """The named object first, then the patches nearest to it, so that exactly k are masked whatever its size."""
    coverage = clues.coverage
    if coverage is None:
        raise LarError("Mask source 'gaze' needs the segmentation of the named object, which these demonstrations do "
                       "not have: collect them with `lar demos`, or choose another condition.")
    grid = round(coverage.shape[1] ** 0.5)
    places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).to(coverage)  # (P, 2), rows and columns
    weight = coverage / coverage.sum(dim=1, keepdim=True).clamp_min(1e-6)
    middle = weight @ places  # (B, 2); an object out of view has its middle at the corner
    distance = (places[None] - middle[:, None]).norm(dim=-1)  # (B, P)
    return coverage - 1e-3 * distance


@MASK_SOURCES.register("frame_difference", needs="previous")
def frame_difference(clues: Clues) -> Tensor:
    """What moved most since the frame before."""
    if clues.motion is None:
        raise LarError("Mask source 'frame_difference' needs the frame before each image, which this batch does not "
                       "have: make the data set with previous=True.")
    return clues.motion
