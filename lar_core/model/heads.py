"""Action heads: tokens behind the prefix (image, instruction), which see all of it and are never seen by it.

`parallel` predicts the whole chunk in one pass, in the manner of OpenVLA-OFT (Kim et al. 2025) but with 256 bins and
cross-entropy, unless action_loss says otherwise. `autoregressive` writes one token a degree of freedom, each after the
one before, in the manner of OpenVLA (Kim et al. 2024). `bridge` and `focus` are in `layerwise`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..run.registry import HEADS
from .backbone import Encoding
from .losses import BINS, DOF, GRIPPER, absolute_error, action_loss, bin_centres, clip, decode, median_bins, to_bins

PROPRIO = 8  # end-effector position 3, orientation 3, fingers 2

Extend = Callable[[Tensor], Tensor]  # tokens (B, S, D) that go on behind all before them -> their final states (B, S, D)


@dataclass(frozen=True)
class Trunk:
    """What a head must know of its backbone: D, the layers that its tokens run through, the vision tower's width."""

    width: int
    layers: int
    vision_width: int


class Head(nn.Module):
    """The wrist camera's tokens and one proprioception token in front of `tokens` of the head's own.

    What the backbone made of them (an `Encoding`) becomes, in `forward`, an answer: logits (B, K, 7, 256), or with `l1`
    the actions (B, K, 7) themselves.
    """

    reads_layers = False  # whether it asks for the states of every layer (Encoding.layers)
    reads_vision = False  # whether it asks for what the vision tower gives (Encoding.vision)
    writes = False  # whether it acts by putting tokens behind those of `suffix`, one after the other
    tokens: int  # how many of its own it adds

    def __init__(self, trunk: Trunk, *, chunk: int, l1: bool = False, proprio: bool = True):
        """chunk: K; l1: answer with numbers, scored by absolute error; proprio: whether the state is a token."""
        super().__init__()
        self.chunk, self.l1 = chunk, l1
        self.scale = 0.02 * trunk.width**0.5  # Gemma multiplies embeddings by sqrt(width); ours start at that size
        self.proprio = nn.Linear(PROPRIO, trunk.width) if proprio else None
        self.norm = nn.LayerNorm(trunk.width)

    def suffix(self, wrist: Tensor | None, proprio: Tensor, actions: Tensor | None = None) -> Tensor:
        """Tokens behind the prefix (B, S, D): wrist (B, W, D) and proprio (B, 8), where they are on, then `own`."""
        own = self.own(len(proprio), actions)
        senses = [] if wrist is None else [wrist.to(own.dtype)]
        if self.proprio is not None:
            senses.append(self.proprio(proprio)[:, None])
        return torch.cat([*senses, own], dim=1)

    def own(self, samples: int, actions: Tensor | None) -> Tensor:
        """Its own tokens (B, N, D). actions (B, K, 7): what a head that writes is to continue, in training."""
        return self.queries.expand(samples, -1, -1)

    def loss(self, answer: Tensor, actions: Tensor, padded: Tensor, valid: float | None = None) -> Tensor:
        """L_action; arguments as in `action_loss`."""
        return (absolute_error if self.l1 else action_loss)(answer, actions, padded, valid)

    def decode(self, answer: Tensor) -> Tensor:
        """An answer -> actions (B, K, 7) in [-1, 1], the gripper -1 or +1."""
        return clip(answer) if self.l1 else decode(answer)

    def act(self, encoding: Encoding, extend: Extend) -> Tensor:
        """What the backbone made of `suffix` -> actions (B, K, 7) in [-1, 1]."""
        return self.decode(self(encoding))

    def _reader(self, width: int) -> nn.Linear:
        """The last layer: from tokens of this width to one number or 256 logits a degree of freedom."""
        return nn.Linear(width, DOF if self.l1 else DOF * BINS)

    def _read(self, states: Tensor) -> Tensor:
        """Final states of its tokens (..., D) -> what the last layer makes of them."""
        return self.logits(self.norm(states.to(self.norm.weight.dtype)))

    def _shaped(self, answer: Tensor) -> Tensor:
        """(B, K, 7) stays, (B, K, 7 * 256) -> (B, K, 7, 256)."""
        return answer if self.l1 else answer.unflatten(-1, (DOF, BINS))


@HEADS.register("parallel", "all actions in one pass")
class ParallelHead(Head):
    """K learned queries, each answering for one step with all 7 degrees of freedom."""

    def __init__(self, trunk: Trunk, **options):
        super().__init__(trunk, **options)
        self.tokens = self.chunk
        self.queries = nn.Parameter(torch.randn(self.chunk, trunk.width) * self.scale)
        self.logits = self._reader(trunk.width)

    def forward(self, encoding: Encoding) -> Tensor:
        """The final states of the queries -> the answer."""
        return self._shaped(self._read(encoding.suffix[:, -self.tokens:]))


@HEADS.register("autoregressive", "one token after another", losses=("cross_entropy",), queries=False)
class AutoregressiveHead(Head):
    """K x 7 tokens in order, each one of 256 bins given all before it; in training all at once (teacher forcing)."""

    writes = True

    def __init__(self, trunk: Trunk, **options):
        super().__init__(trunk, **options)
        self.tokens = self.chunk * DOF
        self.start = nn.Parameter(torch.randn(1, trunk.width) * self.scale)
        self.bins = nn.Embedding(BINS, trunk.width)
        self.places = nn.Parameter(torch.randn(self.tokens, trunk.width) * self.scale)  # which step, which of the seven
        nn.init.normal_(self.bins.weight, std=self.scale)
        self.logits = nn.Linear(trunk.width, BINS)

    def own(self, samples: int, actions: Tensor | None) -> Tensor:
        """With `actions` a token for each of their numbers, which sees those before it; without, the first token alone."""
        tokens = self.start.expand(samples, 1, -1)
        if actions is not None:
            before = self.bins(to_bins(actions).flatten(1)[:, :-1])  # (B, K * 7 - 1, D)
            tokens = torch.cat([tokens, before], dim=1)
        return tokens + self.places[: tokens.shape[1]]

    def forward(self, encoding: Encoding) -> Tensor:
        """The final states of the tokens -> logits (B, K, 7, 256)."""
        return self._read(encoding.suffix[:, -self.tokens:]).unflatten(1, (-1, DOF))

    def act(self, encoding: Encoding, extend: Extend) -> Tensor:
        """Token by token, each written behind those before -> actions (B, K, 7)."""
        words = [self._write(encoding.suffix[:, -1], 0)]  # each (B,)
        for number in range(1, self.tokens):
            token = self.bins(words[-1]) + self.places[number]  # (B, D)
            words.append(self._write(extend(token[:, None])[:, 0], number))
        return bin_centres(torch.stack(words, dim=1).unflatten(1, (-1, DOF)))

    def _write(self, state: Tensor, number: int) -> Tensor:
        """The bin (B,) of token `number`; the gripper's is one of the two that demonstrations have."""
        word = median_bins(self._read(state))
        return (word >= BINS // 2) * (BINS - 1) if number % DOF == GRIPPER else word
