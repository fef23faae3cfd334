"""What `bridge` and `focus` share: a policy of its own, with one block for each layer of the backbone.

64 action queries stand in the suffix. K action tokens pass through the blocks; block t sees what layer t makes of the
image (both cameras) and of the queries and the proprioception token. The layout is VLA-Adapter's (Wang et al. 2025),
with these differences: only layers that the queries run through have a block; the policy is at most 512 wide, because
Gemma's 2048 would give 18 blocks 0.6 B parameters; conditions are normalised, because Gemma's residual stream is
hundreds large; the action tokens start from learned vectors, not from zeros with noise, which also tells them apart;
proprioception is a token of the suffix, as for every head here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Condition, Profile
from .backbone import Encoding
from .head import Head, Trunk

QUERIES = 64
WIDTH = 512  # of the policy, at most
HEADS = 8  # of its attention


class LayerwiseHead(Head):
    """Subclasses make the `block` of one layer.

    A block maps actions (B, K, d), queries (B, Q, D), vision (B, N, D) and raw to the next block's actions. raw
    (B, N, V): what the vision tower made of the same patches, or None where the head does not ask for it.
    """

    reads_layers = True

    def __init__(self, condition: Condition, profile: Profile, trunk: Trunk):
        super().__init__(condition, profile, trunk)
        width = min(trunk.width, WIDTH)
        self.queries = nn.Parameter(torch.randn(QUERIES, trunk.width) * self.scale)
        self.start = nn.Parameter(torch.randn(self.chunk, width))
        self.blocks = nn.ModuleList(self.block(condition, width, trunk) for _ in range(trunk.layers))
        self.last_norm = nn.LayerNorm(width)
        self.answer = self._reader(width)

    def block(self, condition: Condition, width: int, trunk: Trunk) -> nn.Module:
        """The block of one layer, `width` wide."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        return QUERIES

    def forward(self, encoding: Encoding, seen: Encoding | None = None) -> Tensor:
        """seen: another encoding, whose image the policy is shown in the place of its own; the queries stay."""
        seen = seen or encoding
        actions = self.start.expand(len(encoding.suffix), -1, -1)
        for block, own, other in zip(self.blocks, encoding.layers, seen.layers):
            queries, vision = self._split(own, encoding)[0], self._split(other, seen)[1]
            raw = None if seen.vision is None else seen.vision.to(actions.dtype)
            actions = block(actions, queries, vision, raw)
        return self._shaped(self.answer(self.last_norm(actions)))

    def _split(self, states: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """A layer's states (B, P + L + S, D) -> those of queries and proprioception (B, Q, D), of patches (B, N, D)."""
        states = self.norm(states.to(self.queries.dtype))
        own = QUERIES + (self.proprio is not None)
        patches, behind = encoding.patches.shape[1], states.shape[1] - encoding.suffix.shape[1]
        return states[:, -own:], torch.cat([states[:, :patches], states[:, behind:-own]], dim=1)


class KeysValues(nn.Module):
    """Keys and values of one kind of token, in attention heads: (B, N, D), (B, N, V) -> 2 x (B, H, N, d / H)."""

    def __init__(self, width: int, key_width: int, value_width: int | None = None):
        super().__init__()
        self.key, self.value = nn.Linear(key_width, width), nn.Linear(value_width or key_width, width)

    def forward(self, tokens: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return split_heads(self.key(tokens)), split_heads(self.value(tokens if values is None else values))


def split_heads(tokens: Tensor) -> Tensor:
    """(B, N, d) -> (B, H, N, d / H)."""
    return tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One softmax over all keys: (B, H, K, d / H), 2 x (B, H, N, d / H) -> (B, K, d)."""
    return F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
