"""Action heads. A head adds tokens behind the prefix and turns their final states into action logits.

The prefix (image, instruction) never sees these tokens; they see all of it. `parallel` predicts the whole chunk in one
pass, in the manner of OpenVLA-OFT (Kim et al. 2025) but with 256 bins and cross-entropy. `autoregressive` writes one
token a degree of freedom, each after the one before, in the manner of OpenVLA (Kim et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .actions import BINS, DOF, GRIPPER, bin_centres, decode, median_bins, to_bins
from .backbone import Backbone, Prefix

PROPRIO = 8  # end-effector position 3, orientation 3, fingers 2


class Head(nn.Module):
    """What every head shares: the wrist camera's tokens and one proprioception token in front of its own."""

    def __init__(self, *, width: int, chunk: int, proprio: bool):
        super().__init__()
        self.chunk = chunk
        self.scale = 0.02 * width**0.5  # Gemma multiplies its embeddings by sqrt(width); our tokens start at that size
        self.proprio = nn.Linear(PROPRIO, width) if proprio else None
        self.norm = nn.LayerNorm(width)

    def senses(self, wrist: Tensor | None, proprio: Tensor) -> Tensor:
        """Wrist tokens (B, W, D) and proprioception (B, 8), where they are on -> (B, W + 1 or fewer, D)."""
        parts = [] if wrist is None else [wrist.to(self.norm.weight.dtype)]
        if self.proprio is not None:
            parts.append(self.proprio(proprio)[:, None])
        return torch.cat(parts, dim=1) if parts else proprio.new_zeros(len(proprio), 0, self.norm.weight.shape[0])

    def suffix(self, wrist: Tensor | None, proprio: Tensor, actions: Tensor | None = None) -> Tensor:
        """Tokens behind the prefix (B, S, D). actions (B, K, 7): what a sequential head is to continue, in training."""
        raise NotImplementedError

    def forward(self, states: Tensor) -> Tensor:
        """states (B, S, D), the backbone's final states of `suffix` -> logits (B, K, 7, 256)."""
        raise NotImplementedError

    def act(self, backbone: Backbone, prefix: Prefix, states: Tensor, senses: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix's states at `join` and `senses` -> actions (B, K, 7) in [-1, 1] and saliency (B, P)."""
        raise NotImplementedError


class ParallelHead(Head):
    """K learned queries, each answering with 7 distributions over 256 bins."""

    def __init__(self, *, width: int, chunk: int, proprio: bool):
        super().__init__(width=width, chunk=chunk, proprio=proprio)
        self.queries = nn.Parameter(torch.randn(chunk, width) * self.scale)
        self.logits = nn.Linear(width, DOF * BINS)

    def suffix(self, wrist: Tensor | None, proprio: Tensor, actions: Tensor | None = None) -> Tensor:
        return self._with_queries(self.senses(wrist, proprio))

    def forward(self, states: Tensor) -> Tensor:
        queries = states[:, -self.chunk:].to(self.queries.dtype)
        return self.logits(self.norm(queries)).unflatten(-1, (DOF, BINS))

    def act(self, backbone: Backbone, prefix: Prefix, states: Tensor, senses: Tensor) -> tuple[Tensor, Tensor]:
        encoding = backbone.upper(states, prefix, self._with_queries(senses))
        return decode(self(encoding.suffix)), encoding.saliency

    def _with_queries(self, senses: Tensor) -> Tensor:
        return torch.cat([senses, self.queries.expand(len(senses), -1, -1)], dim=1)


class AutoregressiveHead(Head):
    """K x 7 tokens in order, each one of 256 bins given all before it; in training all at once (teacher forcing)."""

    def __init__(self, *, width: int, chunk: int, proprio: bool):
        super().__init__(width=width, chunk=chunk, proprio=proprio)
        self.start = nn.Parameter(torch.randn(1, width) * self.scale)
        self.bins = nn.Embedding(BINS, width)
        self.places = nn.Parameter(torch.randn(chunk * DOF, width) * self.scale)  # which step, which degree of freedom
        nn.init.normal_(self.bins.weight, std=self.scale)
        self.logits = nn.Linear(width, BINS)

    def suffix(self, wrist: Tensor | None, proprio: Tensor, actions: Tensor | None = None) -> Tensor:
        senses = self.senses(wrist, proprio)
        words = to_bins(actions if actions is not None else proprio.new_zeros(len(proprio), self.chunk, DOF))
        before = self.bins(words.flatten(1)[:, :-1])  # (B, K * 7 - 1, D)
        start = self.start.expand(len(senses), 1, -1)
        return torch.cat([senses, torch.cat([start, before], dim=1) + self.places], dim=1)

    def forward(self, states: Tensor) -> Tensor:
        return self._read(states[:, -self.chunk * DOF:]).unflatten(1, (self.chunk, DOF))

    def act(self, backbone: Backbone, prefix: Prefix, states: Tensor, senses: Tensor) -> tuple[Tensor, Tensor]:
        past = DynamicCache()
        first = (self.start + self.places[:1]).expand(len(senses), 1, -1)
        encoding = backbone.upper(states, prefix, torch.cat([senses, first], dim=1), past=past)
        words = [self._write(encoding.suffix[:, -1], 0)]  # each (B,)
        for number in range(1, len(self.places)):
            token = self.bins(words[-1]) + self.places[number]
            words.append(self._write(backbone.extend(token[:, None], prefix, past)[:, 0], number))
        return bin_centres(torch.stack(words, dim=1).unflatten(1, (self.chunk, DOF))), encoding.saliency

    def _write(self, state: Tensor, number: int) -> Tensor:
        """The bin (B,) of token `number`; the gripper's is one of the two that demonstrations have."""
        word = median_bins(self._read(state))
        return (word >= BINS // 2) * (BINS - 1) if number % DOF == GRIPPER else word

    def _read(self, states: Tensor) -> Tensor:
        return self.logits(self.norm(states.to(self.places.dtype)))


HEADS: dict[str, type[Head]] = {"parallel": ParallelHead, "autoregressive": AutoregressiveHead}
