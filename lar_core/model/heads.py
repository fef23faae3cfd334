"""The action heads that read tokens of the last layer.

`parallel` predicts the whole chunk in one pass, in the manner of OpenVLA-OFT (Kim et al. 2025) but with 256 bins and
cross-entropy, unless action_loss says otherwise. `autoregressive` writes one token a degree of freedom, each after the
one before, in the manner of OpenVLA (Kim et al. 2024). `bridge` and `focus` have files of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..config import Condition, Profile
from ..registry import HEADS
from .actions import BINS, DOF, GRIPPER, bin_centres, median_bins, to_bins
from .backbone import Backbone, Encoding, Prefix
from .head import Head, Trunk


@HEADS.register("parallel", "all actions in one pass")
class ParallelHead(Head):
    """K learned queries, each answering for one step with all 7 degrees of freedom."""

    def __init__(self, condition: Condition, profile: Profile, trunk: Trunk):
        super().__init__(condition, profile, trunk)
        self.queries = nn.Parameter(torch.randn(self.chunk, trunk.width) * self.scale)
        self.logits = self._reader(trunk.width)

    @property
    def tokens(self) -> int:
        return self.chunk

    def forward(self, encoding: Encoding) -> Tensor:
        queries = encoding.suffix[:, -self.chunk:].to(self.queries.dtype)
        return self._shaped(self.logits(self.norm(queries)))


@HEADS.register("autoregressive", "one token after another", losses=("cross_entropy",))
class AutoregressiveHead(Head):
    """K x 7 tokens in order, each one of 256 bins given all before it; in training all at once (teacher forcing)."""

    def __init__(self, condition: Condition, profile: Profile, trunk: Trunk):
        super().__init__(condition, profile, trunk)
        self.start = nn.Parameter(torch.randn(1, trunk.width) * self.scale)
        self.bins = nn.Embedding(BINS, trunk.width)
        self.places = nn.Parameter(torch.randn(self.tokens, trunk.width) * self.scale)  # which step, which of the seven
        nn.init.normal_(self.bins.weight, std=self.scale)
        self.logits = nn.Linear(trunk.width, BINS)

    @property
    def tokens(self) -> int:
        return self.chunk * DOF

    def suffix(self, wrist: Tensor | None, proprio: Tensor, actions: Tensor | None = None) -> Tensor:
        senses = self.senses(wrist, proprio)
        words = to_bins(actions if actions is not None else proprio.new_zeros(len(proprio), self.chunk, DOF))
        before = self.bins(words.flatten(1)[:, :-1])  # (B, K * 7 - 1, D)
        start = self.start.expand(len(senses), 1, -1)
        return torch.cat([senses, torch.cat([start, before], dim=1) + self.places], dim=1)

    def forward(self, encoding: Encoding) -> Tensor:
        return self._read(encoding.suffix[:, -self.tokens:]).unflatten(1, (self.chunk, DOF))

    def act(self, backbone: Backbone, prefix: Prefix, seen: dict[str, Tensor],
            proprio: Tensor) -> tuple[Tensor, Tensor]:
        past, senses = DynamicCache(), self.senses(seen.get("wrist_tokens"), proprio)
        first = (self.start + self.places[:1]).expand(len(senses), 1, -1)
        encoding = backbone.upper(seen["states"], prefix, torch.cat([senses, first], dim=1), past=past)
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
