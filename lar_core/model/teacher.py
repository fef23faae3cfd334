"""A teacher: a copy of the backbone that follows it slowly, and whose attention chooses the mask.

The mask then does not change with every step of what it trains (as in AttMask, Kakogeorgiou et al. 2022, and DINO,
Caron et al. 2021). The teacher belongs to training: its weights lie beside the optimiser's in the checkpoint, and a
trained policy does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from .policy import Policy

DECAY = 0.996  # teacher = DECAY * teacher + (1 - DECAY) * student after every step


class Teacher:
    """weights: the exponential moving average of every tensor of the backbone that training changes, by name."""

    def __init__(self, policy: Policy, decay: float = DECAY):
        self._average = get_ema_multi_avg_fn(decay)
        self.weights = {name: tensor.detach().clone() for name, tensor in _student(policy).items()}

    def follow(self, policy: Policy) -> None:
        """Come nearer to the policy's weights, after an optimiser step."""
        student = _student(policy)
        self._average(list(self.weights.values()), [student[name].detach() for name in self.weights], None)

    @torch.no_grad()
    def saliency(self, policy: Policy, batch: dict) -> Tensor:
        """Where the instructions of a batch look with the teacher's weights in the policy's place: (B, P)."""
        weights = {f"policy.{name}": tensor for name, tensor in self.weights.items()}
        return functional_call(_Looking(policy), weights, (batch,))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on with the weights of a checkpoint."""
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)


class _Looking(nn.Module):
    """What `functional_call` wants: a module whose forward pass is the saliency of a policy."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    def forward(self, batch: dict) -> Tensor:
        return self.policy.encode(batch).saliency


def _student(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in policy.trained().items() if name.startswith("backbone.")}
