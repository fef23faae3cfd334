"""Random numbers of one training step, the same whatever the number of processes that share its batch."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Draws for the whole batch from one seed, on the CPU, and gives this process the rows of its own samples.

    seed: of the step; rank, ranks: this process and how many share the batch, in equal parts.
    """

    def __init__(self, seed: int, rank: int = 0, ranks: int = 1):
        self.generator = torch.Generator().manual_seed(seed)
        self.rank, self.ranks = rank, ranks

    def uniform(self, batch: int, *shape: int) -> Tensor:
        """Numbers in [0, 1), (batch, *shape), for the `batch` samples of this process."""
        return self._share(torch.rand((batch * self.ranks, *shape), generator=self.generator))

    def normal(self, batch: int, *shape: int) -> Tensor:
        """Numbers of mean 0 and variance 1, (batch, *shape), likewise."""
        return self._share(torch.randn((batch * self.ranks, *shape), generator=self.generator))

    def _share(self, whole: Tensor) -> Tensor:
        batch = len(whole) // self.ranks
        return whole[self.rank * batch : (self.rank + 1) * batch]
