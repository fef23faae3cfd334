"""The `bridge` head: VLA-Adapter's Bridge Attention (Wang et al. 2025).

In every block the action tokens attend, under *one* softmax, to themselves, to the layer's action queries with
proprioception, and to the layer's image tokens. The scores of the image tokens are multiplied by tanh(g), g = 0 at the
start: the policy then sees the mean of the image, and learns how much to choose in it. Projections are separate for
each kind of token, as in the authors' "Pro" code, without its rotary positions (see `layerwise`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import registry
from ..config import Condition
from .head import Trunk
from .layerwise import HEADS, KeysValues, LayerwiseHead, attend, split_heads


@registry.HEADS.register("bridge", "a policy with a block a layer", losses=("l1", "cross_entropy"), multiple=HEADS)
class BridgeHead(LayerwiseHead):
    """A LayerwiseHead of BridgeBlocks."""

    def block(self, condition: Condition, width: int, trunk: Trunk) -> nn.Module:
        return BridgeBlock(width, trunk.width)


class BridgeBlock(nn.Module):
    """Bridge Attention and a feed-forward layer, which has no residual path around it in the source either."""

    def __init__(self, width: int, layer_width: int):
        super().__init__()
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.own, self.of_queries = KeysValues(width, width), KeysValues(width, layer_width)
        self.of_vision = KeysValues(width, layer_width)
        self.gate = nn.Parameter(torch.zeros(1))  # g
        self.forth = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, actions: Tensor, queries: Tensor, vision: Tensor, raw: Tensor | None = None) -> Tensor:
        keys, values = zip(self.own(actions), self.of_queries(queries), self.of_vision(vision))
        keys = (*keys[:2], keys[2] * self.gate.tanh())  # scales the scores, which are products with the keys
        seen = attend(split_heads(self.query(actions)), torch.cat(keys, dim=2), torch.cat(values, dim=2))
        return self.forth(self.out(seen) + actions)
