"""L = L_action + lambda * L_recon: actions as tokens, how an answer is scored, and what each part sends into the backbone.

Actions are 256 equal bins per degree of freedom over the normalised range [-1, 1] (as in RT-2 and OpenVLA). Order of the
seven: dx, dy, dz, droll, dpitch, dyaw, gripper (-1 opens, +1 closes). Normalisation by quantiles happens in
`lar_core.data.dataset`; L_recon is `mae.reconstruction_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

DOF = 7
BINS = 256
GRIPPER = 6


def action_loss(logits: Tensor, actions: Tensor, padded: Tensor, valid: float | None = None) -> Tensor:
    """Cross-entropy over 256 bins, mean over valid steps and the 7 degrees of freedom, in nats.

    logits (B, K, 7, 256); actions (B, K, 7) in [-1, 1]; padded (B, K) bool, True = beyond the episode's end.
    valid: number of valid steps to divide by, where this batch is one process's part of a larger one.
    """
    entropy = F.cross_entropy(logits.flatten(0, 2).float(), to_bins(actions).flatten(), reduction="none")
    entropy = entropy.reshape(actions.shape).mean(dim=-1)  # (B, K)
    return (entropy * ~padded).sum() / (valid or (~padded).sum())


def absolute_error(predicted: Tensor, actions: Tensor, padded: Tensor, valid: float | None = None) -> Tensor:
    """Absolute error of predicted actions (B, K, 7); the mean, and the other arguments, as in `action_loss`."""
    error = (predicted.float() - actions).abs().mean(dim=-1)  # (B, K)
    return (error * ~padded).sum() / (valid or (~padded).sum())


def each(loss: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A loss of every sample alone, (B,)."""
    return torch.stack([loss(*one) for one in zip(*(values.split(1) for values in tensors))])


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


def gradient_norm(loss: Tensor, parameters: Iterable[Tensor], scale: float = 1.0) -> float:
    """L2 norm of d loss / d parameters; the graph is kept for the training step that follows.

    scale: the gradient scaler's, without which small fp16 gradients would vanish on the way.
    """
    parameters = [p for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
    squares = [(g.float() / scale).square().sum() for g in gradients if g is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
