"""Saliency: where the instruction looks.

PaliGemma is a prefix language model: image and instruction tokens attend to each other freely. The slice
[instruction rows x image columns] of that self-attention plays the part of cross-attention, and it exists before any
action is decoded. `SaliencyTap` reads this slice, and only this slice, beside the fused SDPA kernel:

    with SaliencyTap(layers=(15, 16, 17), image_tokens=256, rows=slice(256, 268)) as tap:
        model(...)
    saliency = mean_attention(tap.attention, asked)        # (B, P), every row sums to 1

Other rows can be asked instead (`Rows`): those of BOS, which sees the whole prefix, or of the action head's queries.

With gradient checkpointing a layer runs again in the backward pass, when the tap has been taken off, and must run the
same operations then. `Backbone` therefore also hands the tap to each layer, as the argument `saliency_tap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from ..run.settings import SaliencyRows
from .knockout import CUT

ATTENTION = "saliency_tap"  # without "sdpa" in it, which transformers would refuse for Gemma 2
ACTIVE: ContextVar[SaliencyTap | None] = ContextVar("active", default=None)  # the tap that is on, in each thread


@dataclass
class Prefix:
    """A batch of images and instructions as tokens, right-padded.

    ids (B, P + L); mask (B, P + L), 1 = a token, 0 = padding; instruction (B, L) bool, True = a token of the instruction
    itself, not BOS, newline or padding; reference: a generic prompt's saliency (B, P), where the aggregation divides by it.
    """

    ids: Tensor
    mask: Tensor
    instruction: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Whose attention is read: the L text tokens', of which the instruction's own are asked; that of BOS alone, which is
    the first of them; or that of the last `queries` tokens of the sequence, the action head's.
    """

    kind: SaliencyRows = "text"
    queries: int = 0

    def of(self, prefix: Prefix, image_tokens: int) -> tuple[slice, Prefix]:
        """Their places in the sequence, and the prefix with `instruction` (B, R), which of them are asked."""
        if self.kind == "text":
            return slice(image_tokens, image_tokens + prefix.instruction.shape[1]), prefix
        bos = self.kind == "bos"
        places, count = (slice(image_tokens, image_tokens + 1), 1) if bos else (slice(-self.queries, None), self.queries)
        return places, replace(prefix, instruction=prefix.instruction.new_ones(len(prefix.ids), count))


TEXT = Rows()


@dataclass(kw_only=True, eq=False)
class SaliencyTap:
    """Put on around a forward pass; captures softmax(QK^T) of some rows and the image columns of the chosen layers.

    Args:
        layers: indices of the language model's layers to read.
        image_tokens: P; image tokens are the first P positions of the sequence.
        rows: places in the sequence of the R tokens that are asked where they look, as `Rows` gives them.
        differentiable: keep the graph, so that a loss on the saliency reaches the weights.
    """

    layers: Sequence[int]
    image_tokens: int
    rows: slice
    differentiable: bool = False
    captured: dict[int, Tensor] = field(default_factory=dict, init=False)  # (B, H, R, P) by layer

    def __enter__(self) -> SaliencyTap:
        if ACTIVE.get() is not None:
            raise RuntimeError("A SaliencyTap is already on: leave it before entering another.")
        ACTIVE.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        ACTIVE.set(None)

    @property
    def attention(self) -> Tensor:
        """Captured attention (B, N layers, H heads, R rows, P image columns), fp32."""
        missing = set(self.layers) - set(self.captured)
        if missing:
            raise RuntimeError(f"Layers {sorted(missing)} did not run while the tap was on (or are not tapped: load "
                               f"the model with attn_implementation={ATTENTION!r}).")
        return torch.stack([self.captured[layer] for layer in self.layers], dim=1)

    def read(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float,
             softcap: float | None = None) -> None:
        """Capture one layer. A layer recomputed by gradient checkpointing runs again but is not stored again."""
        if layer not in self.layers:
            return
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            attention = read_rows(query, key, mask, scaling, self.image_tokens, self.rows, softcap)
        self.captured.setdefault(layer, attention)


def read_rows(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, image_tokens: int, rows: slice,
              softcap: float | None = None) -> Tensor:
    """softmax over *all* keys for some rows only, image columns kept: (B, H, R, P) in fp32, under autocast too.

    query (B, H, S, d), key (B, H_kv, S, d) with H a multiple of H_kv (grouped-query attention), mask (B, 1, S, S):
    bool with True = may attend, or additive float. softcap: Gemma 2 squashes its scores to +- softcap.
    """
    if mask is None:
        raise RuntimeError("The tap needs the prefix mask: pass token_type_ids and attention_mask to the model.")
    q = query[:, :, rows].float().unflatten(1, (key.shape[1], -1))  # (B, G, H / G, R, d)
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.einsum("bgrld,bgsd->bgrls", q, key.float()) * scaling  # (B, G, H / G, R, S)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    allowed = mask[:, :, rows, : key.shape[2]].unsqueeze(2)  # (B, 1, 1, R, S)
    if allowed.dtype == torch.bool:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    else:
        scores = scores + allowed.float()
    return scores.softmax(dim=-1)[..., :image_tokens].flatten(1, 2)  # (B, H, R, P)


def mean_attention(attention: Tensor, asked: Tensor) -> Tensor:
    """The literal aggregation: mean over layers, heads and the rows that are asked, then normalised.

    attention (B, N, H, R, P); asked (B, R), of text rows True for the instruction's own tokens (BOS, newline and padding
    are attention sinks and left out). Returns saliency (B, P), every row sums to 1.
    """
    weight = asked.to(attention.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True)
    saliency = torch.einsum("bnhlp,bl->bp", attention, weight)
    return saliency / saliency.sum(dim=1, keepdim=True)


def _sdpa_with_tap(module, query, key, value, attention_mask, scaling=None, softcap=None, saliency_tap=None, **kwargs):
    if (knockout := CUT.get()) is not None:
        attention_mask = knockout(module.layer_idx, attention_mask)
    tap = saliency_tap or ACTIVE.get()
    if tap is not None:
        tap.read(module.layer_idx, query, key, attention_mask, scaling, softcap)
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if attention_mask.dtype == torch.bool:  # SDPA cannot cap scores, and the plain way adds its mask
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
    return eager_attention_forward(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap)


AttentionInterface.register(ATTENTION, _sdpa_with_tap)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
