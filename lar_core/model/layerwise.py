"""The `bridge` and `focus` heads: a policy of its own, with one block for each layer of the backbone.

64 action queries stand in the suffix. K action tokens pass through the blocks; block t sees what layer t makes of the
image (both cameras) and of the queries and the proprioception token. The layout is VLA-Adapter's (Wang et al. 2025),
with these differences: only layers that the queries run through have a block; the policy is at most 512 wide, because
Gemma's 2048 would give 18 blocks 0.6 B parameters; conditions are normalised, because Gemma's residual stream is
hundreds large; the action tokens start from learned vectors, not from zeros with noise, which also tells them apart;
proprioception is a token of the suffix, as for every head here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..run.registry import HEADS
from .backbone import Encoding
from .heads import Head, Trunk

QUERIES = 64
WIDTH = 512  # of the policy, at most
ATTENTION_HEADS = 8


class LayerwiseHead(Head):
    """What both share. make_block: the policy's width -> the block of one layer.

    A block maps actions (B, K, d), queries (B, Q, D), vision (B, N, D) and raw to the next block's actions. raw
    (B, N, V): what the vision tower made of the same patches, or None where the head does not ask for it.
    """

    reads_layers = True
    tokens = QUERIES

    def __init__(self, trunk: Trunk, make_block: Callable[[int], nn.Module], **options):
        super().__init__(trunk, **options)
        width = min(trunk.width, WIDTH)
        self.queries = nn.Parameter(torch.randn(QUERIES, trunk.width) * self.scale)
        self.start = nn.Parameter(torch.randn(self.chunk, width))
        self.blocks = nn.ModuleList(make_block(width) for _ in range(trunk.layers))
        self.last_norm = nn.LayerNorm(width)
        self.answer = self._reader(width)

    def forward(self, encoding: Encoding, shown: Encoding | None = None) -> Tensor:
        """shown: another encoding, whose image the policy is given in the place of its own; the queries stay."""
        shown = shown or encoding
        actions = self.start.expand(len(encoding.suffix), -1, -1)  # (B, K, d)
        for block, own, other in zip(self.blocks, encoding.layers, shown.layers):
            queries, vision = self._split(own, encoding)[0], self._split(other, shown)[1]
            raw = None if shown.vision is None else shown.vision.to(actions.dtype)
            actions = block(actions, queries, vision, raw)
        return self._shaped(self.answer(self.last_norm(actions)))

    def _split(self, states: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """A layer's states (B, P + L + S, D) -> those of queries and proprioception (B, Q, D), of patches (B, N, D)."""
        states = self.norm(states.to(self.queries.dtype))
        own = QUERIES + (self.proprio is not None)
        patches, behind = encoding.patches.shape[1], states.shape[1] - encoding.suffix.shape[1]
        return states[:, -own:], torch.cat([states[:, :patches], states[:, behind:-own]], dim=1)


@HEADS.register("bridge", "a policy with a block a layer", losses=("l1", "cross_entropy"), multiple=ATTENTION_HEADS)
class BridgeHead(LayerwiseHead):
    """VLA-Adapter's Bridge Attention (Wang et al. 2025) in every block."""

    def __init__(self, trunk: Trunk, **options):
        super().__init__(trunk, lambda width: BridgeBlock(width, trunk.width), **options)


class BridgeBlock(nn.Module):
    """Bridge Attention and a feed-forward layer, which has no residual path around it in the source either.

    The action tokens attend, under *one* softmax, to themselves, to the layer's action queries with proprioception, and
    to the layer's image tokens. The scores of the image tokens are multiplied by tanh(g), g = 0 at the start: the policy
    then sees the mean of the image, and learns how much to choose in it. Projections are separate for each kind of
    token, as in the authors' "Pro" code, without its rotary positions.
    """

    def __init__(self, width: int, layer_width: int):
        super().__init__()
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.own, self.of_queries = KeysValues(width, width), KeysValues(width, layer_width)
        self.of_vision = KeysValues(width, layer_width)
        self.gate = nn.Parameter(torch.zeros(1))  # g
        self.forth = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, actions: Tensor, queries: Tensor, vision: Tensor, raw: Tensor | None = None) -> Tensor:
        """As `LayerwiseHead` says."""
        keys, values = zip(self.own(actions), self.of_queries(queries), self.of_vision(vision))
        keys = (*keys[:2], keys[2] * self.gate.tanh())  # scales the scores, which are products with the keys
        seen = attend(split_heads(self.query(actions)), torch.cat(keys, dim=2), torch.cat(values, dim=2))
        return self.forth(self.out(seen) + actions)


@HEADS.register("focus", "the same, with three attentions", losses=("l1", "cross_entropy"), multiple=ATTENTION_HEADS)
class FocusHead(LayerwiseHead):
    """FocusVLA-style (Zhang et al. 2026), after its description; its code was not public.

    Where one softmax covers all tokens, a policy can live on the action queries and overlook the image. So the same
    action tokens attend three times, to themselves, to the layer's action queries and to the image, and an MLP fuses the
    three results. In the image, keys come from the layer, values from the vision tower itself; only the best patches are
    kept, and a gate σ(W a) of the action tokens weighs what was seen, element by element. Each is a switch of the
    condition, `focus_` before its name here:

        cascade=false keep=1 gate=false     one softmax
        keep=1 gate=false                   three attentions
        gate=false                          three attentions, the best patches
                                            and the gate: the default
    """

    reads_vision = True

    def __init__(self, trunk: Trunk, *, keep: float = 0.5, gate: bool = True, cascade: bool = True, **options):
        super().__init__(trunk, lambda width: FocusBlock(width, trunk.width, trunk.vision_width, keep=keep, gate=gate,
                                                         cascade=cascade), **options)


class FocusBlock(nn.Module):
    """Three attentions (or one, without `cascade`), fused by an MLP, and a feed-forward layer, both residual.

    keep: the share of patches that are attended to; gate: whether the action tokens weigh what they saw.
    """

    def __init__(self, width: int, layer_width: int, vision_width: int, *, keep: float = 0.5, gate: bool = True,
                 cascade: bool = True):
        super().__init__()
        self.looks, self.keep = 3 if cascade else 1, keep
        self.query = nn.Linear(width, self.looks * width)
        self.own, self.of_queries = KeysValues(width, width), KeysValues(width, layer_width)
        self.of_vision = KeysValues(width, layer_width, vision_width)
        self.gate = nn.Linear(width, width) if gate else None
        self.fuse = _mlp(self.looks * width, width)
        self.forth = nn.Sequential(nn.LayerNorm(width), _mlp(width, width))

    def forward(self, actions: Tensor, queries: Tensor, vision: Tensor, raw: Tensor) -> Tensor:
        """As `LayerwiseHead` says."""
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


class KeysValues(nn.Module):
    """The projections of one kind of token to keys and values."""

    def __init__(self, width: int, key_width: int, value_width: int | None = None):
        super().__init__()
        self.key, self.value = nn.Linear(key_width, width), nn.Linear(value_width or key_width, width)

    def forward(self, tokens: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """In attention heads: (B, N, D), and (B, N, V) if values are of other tokens -> 2 x (B, H, N, d / H)."""
        return split_heads(self.key(tokens)), split_heads(self.value(tokens if values is None else values))


def split_heads(tokens: Tensor) -> Tensor:
    """(B, N, d) -> (B, H, N, d / H)."""
    return tokens.unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2)


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One softmax over all keys: (B, H, K, d / H), 2 x (B, H, N, d / H) -> (B, K, d)."""
    return F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)


def _mlp(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * out), nn.GELU(), nn.Linear(4 * out, out))
