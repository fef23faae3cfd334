"""Saliency of images by any aggregation, whatever the policy was trained with.

The prefix never sees the action head's tokens, so saliency needs neither proprioception nor a wrist camera:
`saliency_maps` takes any image with any sentence. Besides the one-pass aggregations of `model/aggregation.py` there are
two that need several passes and are for evaluation only, PASSES: training would become several times slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.aggregation import GENERIC
from ..model.backbone import Encoding
from ..model.masking import area_resample, count_masked, mask_top
from ..model.policy import Policy
from ..model.saliency import mean_attention
from ..run.draws import Draws
from ..run.registry import AGGREGATIONS, PASSES

MASKS, HIDDEN = 8, 0.25  # how many random masks are averaged over; share of the patches that each hides


@torch.no_grad()
def saliency_maps(policy: Policy, images: Tensor, instructions: Sequence[str], names: Iterable[str],
                  heads: list[tuple[int, int]] | None = None) -> dict[str, Tensor]:
    """images (B, 3, H, W) uint8 -> saliency (B, P) by every aggregation in `names`.

    heads: what `localisation_heads` is to take, (layer, head) counted from the first tapped layer. An aggregation that
    the policy has itself is used as the policy has learned or chosen it.
    """
    names = list(names)
    encoding, prefix = read(policy, images, instructions)
    if any(name in AGGREGATIONS and AGGREGATIONS[name].relative for name in names):
        generic, _ = read(policy, images, [GENERIC] * len(images))
        prefix.reference = mean_attention(generic.attention, generic.instruction_mask)
    maps = {}
    for name in names:
        if name in PASSES:
            maps[name] = PASSES[name](policy, images, instructions)
        else:
            maps[name] = _aggregation(policy, name, heads)(encoding.attention, prefix)
    return maps


def read(policy: Policy, images: Tensor, instructions: Sequence[str], hidden: Tensor | None = None):
    """The prefix alone through the backbone -> (Encoding with attention, Prefix); hidden (B, P) becomes grey."""
    backbone = policy.backbone
    prefix = backbone.tokenise(list(instructions))
    pixels = policy.see(images.to(policy.device), hidden)
    return backbone.upper(backbone.lower(pixels, prefix), prefix), prefix


@PASSES.register("multi_pass")
def multi_pass(policy: Policy, images: Tensor, instructions: Sequence[str]) -> Tensor:
    """The mean over MASKS passes, each with other patches hidden; a hidden patch does not count in its pass."""
    draws, total, seen = Draws(0), 0.0, 0.0
    for _ in range(MASKS):
        scores = draws.uniform(len(images), policy.backbone.patches).to(policy.device)
        hidden = mask_top(scores, count_masked(scores.shape[1], HIDDEN))
        saliency = _mean(read(policy, images, instructions, hidden)[0])
        total, seen = total + saliency.masked_fill(hidden, 0.0), seen + (~hidden).float()
    mean = total / seen.clamp_min(1)
    return mean / mean.sum(dim=1, keepdim=True)


@PASSES.register("coarse_to_fine")
def coarse_to_fine(policy: Policy, images: Tensor, instructions: Sequence[str]) -> Tensor:
    """Look again, at twice the resolution, at the quarter of the image that held most saliency.

    Inside that window the second look says how the first one's share of saliency is spread; outside nothing changes.
    """
    coarse = _mean(read(policy, images, instructions)[0])
    grid = round(coarse.shape[1] ** 0.5)
    half, square = grid // 2, coarse.unflatten(1, (grid, grid))
    tops, lefts = _densest(square, half)
    crops = _crops(images.to(policy.device), tops, lefts, grid, half)
    fine = area_resample(_mean(read(policy, crops, instructions)[0]), half)
    result = square.clone()
    for row, (top, left) in enumerate(zip(tops, lefts)):
        window = result[row, top : top + half, left : left + half]  # a view
        window.copy_(window.sum() * (fine[row] / fine[row].sum()).view(half, half))
    return result.flatten(1)


def available(policy: Policy, chosen: bool = True) -> list[str]:
    """The aggregations that mean something for a policy: a gate must have been learned, and the heads that localise
    chosen (`chosen`), unless they are the policy's own.
    """
    missing = {name for name in AGGREGATIONS if AGGREGATIONS[name].learns} | (set() if chosen else {"localisation_heads"})
    return [name for name in (*AGGREGATIONS, *PASSES) if name not in missing - {policy.condition.aggregation}]


def _aggregation(policy: Policy, name: str, heads: list[tuple[int, int]] | None):
    own = policy.backbone.aggregation
    if type(own) is AGGREGATIONS[name]:
        return own
    made = policy.backbone.make_aggregation(name).to(policy.device)
    if name == "localisation_heads" and heads is not None:
        made.choose(heads)
    return made


def _mean(encoding: Encoding) -> Tensor:
    return mean_attention(encoding.attention, encoding.instruction_mask)


def _densest(square: Tensor, side: int) -> tuple[list[int], list[int]]:
    """Top left corners of the side x side windows of maps (B, g, g) that hold most."""
    mass = F.avg_pool2d(square[:, None], side, stride=1)[:, 0]
    best, width = mass.flatten(1).argmax(dim=1), mass.shape[-1]
    return (best // width).tolist(), (best % width).tolist()


def _crops(images: Tensor, tops: list[int], lefts: list[int], grid: int, side: int) -> Tensor:
    """Windows of side x side patches, enlarged to the whole image; uint8."""
    size = images.shape[-1]
    patch = size // grid
    crops = torch.stack([image[:, top * patch : (top + side) * patch, left * patch : (left + side) * patch]
                         for image, top, left in zip(images, tops, lefts)])
    return F.interpolate(crops.float(), (size, size), mode="bilinear").round().to(torch.uint8)
