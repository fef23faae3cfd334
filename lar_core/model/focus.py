"""The `focus` head: FocusVLA-style (Zhang et al. 2026), after its description; its code was not public.

Where one softmax covers all tokens, a policy can live on the action queries and overlook the image. So the same action
tokens attend three times, to themselves, to the layer's action queries and to the image, and an MLP fuses the three
results. In the image, keys come from the layer, values from the vision tower itself; only the best patches are kept,
and a gate σ(W a) of the action tokens weighs what was seen, element by element. Each is a switch of the condition:

    focus_cascade=false focus_keep=1 focus_gate=false     one softmax
    focus_keep=1 focus_gate=false                         three attentions
    focus_gate=false                                      three attentions, the best patches
                                                          and the gate: the default
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import registry
from ..config import Condition
from .head import Trunk
from .layerwise import HEADS, KeysValues, LayerwiseHead, attend, split_heads


@registry.HEADS.register("focus", "the same, with three attentions", losses=("l1", "cross_entropy"), multiple=HEADS)
class FocusHead(LayerwiseHead):
    """A LayerwiseHead of FocusBlocks."""

    reads_vision = True

    def block(self, condition: Condition, width: int, trunk: Trunk) -> nn.Module:
        return FocusBlock(width, trunk, condition)


class FocusBlock(nn.Module):
    """Three attentions (or one, without focus_cascade), fused by an MLP, and a feed-forward layer, both residual."""

    def __init__(self, width: int, trunk: Trunk, condition: Condition):
        super().__init__()
        self.looks, self.keep = 3 if condition.focus_cascade else 1, condition.focus_keep
        self.query = nn.Linear(width, self.looks * width)
        self.own, self.of_queries = KeysValues(width, width), KeysValues(width, trunk.width)
        self.of_vision = KeysValues(width, trunk.width, trunk.vision_width)
        self.gate = nn.Linear(width, width) if condition.focus_gate else None
        self.fuse = _mlp(self.looks * width, width)
        self.forth = nn.Sequential(nn.LayerNorm(width), _mlp(width, width))

    def forward(self, actions: Tensor, queries: Tensor, vision: Tensor, raw: Tensor) -> Tensor:
        kinds = self.own(actions), self.of_queries(queries), self.of_vision(vision, raw)
        actions = actions + self.fuse(self.look(actions, *kinds))
        return actions + self.forth(actions)

    def look(self, actions: Tensor, *kinds: tuple[Tensor, Tensor]) -> Tensor:
        """Attend to three kinds of (keys, values) -> (B, K, 3 d), or (B, K, d) under one softmax."""
        asked = [split_heads(query) for query in self.query(actions).chunk(self.looks, dim=-1)]
        if self.looks == 1:
            keys, values = zip(*kinds)
            return attend(asked[0], torch.cat(keys, dim=2), torch.cat(values, dim=2))
        kinds = (*kinds[:2], best(asked[2], *kinds[2], self.keep))
        own, of_queries, seen = (attend(query, *kind) for query, kind in zip(asked, kinds))
        if self.gate is not None:
            seen = seen * self.gate(actions).sigmoid()
        return torch.cat([own, of_queries, seen], dim=-1)


def best(query: Tensor, keys: Tensor, values: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """The keys and values (B, H, k, d / H) of the share `keep` of patches that get most attention.

    One choice for all heads and action tokens: the mean of their attention. query (B, H, K, d / H); keys and values
    (B, H, N, d / H).
    """
    if keep == 1:
        return keys, values
    scores = (query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=(1, 2))  # (B, N)
    chosen = scores.topk(max(1, round(keep * scores.shape[1])), dim=1).indices[:, None, :, None]  # (B, 1, k, 1)
    return tuple(tokens.take_along_dim(chosen, dim=2) for tokens in (keys, values))


def _mlp(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * out), nn.GELU(), nn.Linear(4 * out, out))
