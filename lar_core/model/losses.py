"""L = L_action + lambda * L_recon, and what each part sends into the backbone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .actions import to_bins


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


def gradient_norm(loss: Tensor, parameters: Iterable[Tensor], scale: float = 1.0) -> float:
    """L2 norm of d loss / d parameters; the graph is kept for the training step that follows.

    scale: the gradient scaler's, without which small fp16 gradients would vanish on the way.
    """
    parameters = [p for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
    squares = [(g.float() / scale).square().sum() for g in gradients if g is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
