"""What every action head shares: tokens behind the prefix, and how an answer is scored and becomes actions.

The prefix (image, instruction) never sees a head's tokens; they see all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import Condition, Profile
from .actions import BINS, DOF, clip, decode
from .backbone import Backbone, Encoding, Prefix
from .losses import absolute_error, action_loss

PROPRIO = 8  # end-effector position 3, orientation 3, fingers 2


@dataclass(frozen=True)
class Trunk:
    """What a head must know of its backbone: D, the layers that its tokens run through, the vision tower's width."""

    width: int
    layers: int
    vision_width: int


class Head(nn.Module):
    """The wrist camera's tokens and one proprioception token in front of the head's own.

    An answer is logits (B, K, 7, 256), or with action_loss=l1 the actions (B, K, 7) themselves.
    """

    reads_layers = False  # whether it asks for the states of every layer (Encoding.layers)
    reads_vision = False  # whether it asks for what the vision tower gives (Encoding.vision)

    def __init__(self, condition: Condition, profile: Profile, trunk: Trunk):
        super().__init__()
        self.chunk = profile.chunk
        self.l1 = condition.action_loss == "l1"
        self.scale = 0.02 * trunk.width**0.5  # Gemma multiplies embeddings by sqrt(width); ours start at that size
        self.proprio = nn.Linear(PROPRIO, trunk.width) if profile.proprio else None
        self.norm = nn.LayerNorm(trunk.width)

    @property
    def tokens(self) -> int:
        """How many tokens of its own the head adds."""
        raise NotImplementedError

    def senses(self, wrist: Tensor | None, proprio: Tensor) -> Tensor:
        """Wrist tokens (B, W, D) and proprioception (B, 8), where they are on -> (B, W + 1 or fewer, D)."""
        parts = [] if wrist is None else [wrist.to(self.norm.weight.dtype)]
        if self.proprio is not None:
            parts.append(self.proprio(proprio)[:, None])
        return torch.cat(parts, dim=1) if parts else proprio.new_zeros(len(proprio), 0, self.norm.weight.shape[0])

    def suffix(self, wrist: Tensor | None, proprio: Tensor, actions: Tensor | None = None) -> Tensor:
        """Tokens behind the prefix (B, S, D). actions (B, K, 7): what a sequential head is to continue, in training."""
        senses = self.senses(wrist, proprio)
        return torch.cat([senses, self.queries.expand(len(senses), -1, -1)], dim=1)

    def forward(self, encoding: Encoding) -> Tensor:
        """What the backbone made of `suffix` -> the answer."""
        raise NotImplementedError

    def loss(self, answer: Tensor, actions: Tensor, padded: Tensor, valid: float | None = None) -> Tensor:
        """L_action; arguments as in `action_loss`."""
        return (absolute_error if self.l1 else action_loss)(answer, actions, padded, valid)

    def decode(self, answer: Tensor) -> Tensor:
        """An answer -> actions (B, K, 7) in [-1, 1], the gripper -1 or +1."""
        return clip(answer) if self.l1 else decode(answer)

    def act(self, backbone: Backbone, prefix: Prefix, seen: dict[str, Tensor],
            proprio: Tensor) -> tuple[Tensor, Tensor]:
        """What `Policy.look` saw and proprioception (B, 8) -> actions (B, K, 7) in [-1, 1] and saliency (B, P)."""
        encoding = self.encode(backbone, prefix, seen, proprio)
        return self.decode(self(encoding)), encoding.saliency

    def encode(self, backbone: Backbone, prefix: Prefix, seen: dict[str, Tensor], proprio: Tensor,
               actions: Tensor | None = None, **options: bool) -> Encoding:
        """Run the backbone's upper part with this head's tokens; options as in `Backbone.upper`."""
        suffix = self.suffix(seen.get("wrist_tokens"), proprio, actions)
        encoding = backbone.upper(seen["states"], prefix, suffix, layers=self.reads_layers, **options)
        encoding.vision = seen.get("vision")
        return encoding

    def _reader(self, width: int) -> nn.Linear:
        """The last layer: from tokens of this width to one number or 256 logits a degree of freedom."""
        return nn.Linear(width, DOF if self.l1 else DOF * BINS)

    def _shaped(self, answer: Tensor) -> Tensor:
        """(B, K, 7) stays, (B, K, 7 * 256) -> (B, K, 7, 256)."""
        return answer if self.l1 else answer.unflatten(-1, (DOF, BINS))
