"""Actions as tokens: 256 equal bins per degree of freedom over the normalised range [-1, 1] (as in RT-2 and OpenVLA).

Order of the seven: dx, dy, dz, droll, dpitch, dyaw, gripper (-1 opens, +1 closes). Normalisation by quantiles happens
in `lar_core.data.stats`; this file only bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

DOF = 7
BINS = 256
GRIPPER = 6


def to_bins(actions: Tensor) -> Tensor:
    """actions (..., 7) in [-1, 1] -> bins (..., 7), int64 in [0, 256)."""
    return ((actions + 1) * (BINS / 2)).floor().long().clamp(0, BINS - 1)


def bin_centres(bins: Tensor) -> Tensor:
    """bins (..., 7) -> actions (..., 7), at most half a bin (1/256) from what was binned; the gripper is -1 or +1."""
    actions = (bins.float() + 0.5) * (2 / BINS) - 1
    return _with_binary_gripper(actions)


def decode(logits: Tensor) -> Tensor:
    """logits (B, K, 7, 256) -> actions (B, K, 7): the median of each distribution, which minimises the absolute error.

    The likeliest bin is a poor choice: clipped commands pile up in a few bins, which then win over broad distributions
    elsewhere. The mean would lie between two modes.
    """
    return bin_centres(median_bins(logits))


def clip(predicted: Tensor) -> Tensor:
    """Predicted actions (B, K, 7), any real numbers -> actions (B, K, 7) in [-1, 1]; the gripper is -1 or +1."""
    return _with_binary_gripper(predicted.float().clamp(-1, 1))


def median_bins(logits: Tensor) -> Tensor:
    """logits (..., 256) -> the bin (...) in which each distribution's cumulative sum passes one half."""
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    return (cumulative < 0.5).sum(dim=-1).clamp(max=BINS - 1)


def _with_binary_gripper(actions: Tensor) -> Tensor:
    gripper = torch.where(actions[..., GRIPPER:] < 0, -1.0, 1.0)
    return torch.cat([actions[..., :GRIPPER], gripper.to(actions.dtype)], dim=-1)
