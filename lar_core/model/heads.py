"""Action heads. A head adds tokens behind the prefix and turns their final states into action logits.

The prefix (image, instruction) never sees these tokens; they see all of it. `parallel` predicts the whole chunk in one
pass, in the manner of OpenVLA-OFT (Kim et al. 2025) but with 256 bins and cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .actions import BINS, DOF

PROPRIO = 8  # end-effector position 3, orientation 3, fingers 2


class ParallelHead(nn.Module):
    """K learned queries, each answering with 7 distributions over 256 bins."""

    def __init__(self, *, width: int, chunk: int, proprio: bool):
        super().__init__()
        self.chunk = chunk
        # Gemma multiplies its token embeddings by sqrt(width); tokens of our own start at the same size.
        self.queries = nn.Parameter(torch.randn(chunk, width) * 0.02 * width**0.5)
        self.proprio = nn.Linear(PROPRIO, width) if proprio else None
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, DOF * BINS)

    def suffix(self, wrist: Tensor | None, proprio: Tensor | None, batch: int) -> Tensor:
        """Tokens behind the prefix: wrist tokens (B, W, D), one proprioception token, K queries -> (B, S, D)."""
        parts = [] if wrist is None else [wrist.to(self.queries.dtype)]
        if self.proprio is not None:
            parts.append(self.proprio(proprio)[:, None])
        parts.append(self.queries.expand(batch, -1, -1))
        return torch.cat(parts, dim=1)

    def forward(self, states: Tensor) -> Tensor:
        """states (B, S, D), the backbone's final states of `suffix` -> logits (B, K, 7, 256)."""
        queries = states[:, -self.chunk:].to(self.queries.dtype)
        return self.logits(self.norm(queries)).unflatten(-1, (DOF, BINS))


HEADS: dict[str, type[nn.Module]] = {"parallel": ParallelHead}
