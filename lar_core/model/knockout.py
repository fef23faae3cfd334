"""Attention knockout: for one pass, some tokens may not attend to some others in some layers (Geva et al. 2023).

What the action loses without a path of attention, that path carried. The paths (rows -> columns) of a sequence
`<image> x P, <bos>, instruction, "\\n", the head's tokens`:

    text_image     the instruction's words -> image         the rows that the literal method takes its saliency from
    bos_image      <bos> -> image
    action_image   the head's tokens -> image
    action_text    the head's tokens -> <bos>, words, newline
    image_text     image -> <bos>, words, newline           a prefix-LM's picture hears the sentence

The head's tokens are all that stand behind the prefix, the wrist camera's among them.
"""

from __future__ import annotations

from collections.abc import Collection
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

CUT: ContextVar[Knockout | None] = ContextVar("cut", default=None)  # what is cut at present, in each thread


@dataclass(frozen=True)
class Knockout:
    """Put on around a pass: in `layers`, the tokens at places `rows` of the sequence do not attend to those at `columns`."""

    layers: Collection[int]
    rows: slice
    columns: slice

    @classmethod
    def of(cls, path: str, layers: Collection[int], patches: int, text: int) -> Knockout:
        """A path of `settings.PATHS`. patches: P; text: L, tokens of the text with BOS, newline and padding."""
        places = {"image": slice(0, patches), "bos": slice(patches, patches + 1), "action": slice(patches + text, None)}
        rows, columns = path.split("_")
        words = slice(patches + 1, patches + text)
        return cls(layers, words if rows == "text" else places[rows],
                   slice(patches, patches + text) if columns == "text" else places[columns])

    def __enter__(self) -> Knockout:
        if CUT.get() is not None:
            raise RuntimeError("A Knockout is already on: leave it before entering another.")
        CUT.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        CUT.set(None)

    def __call__(self, layer: int, allowed: Tensor) -> Tensor:
        """The mask of one layer, (B, 1, R, N) bool, True = may attend, of the last R of N tokens."""
        if layer not in self.layers:
            return allowed
        rows, columns = torch.zeros(2, allowed.shape[-1], dtype=torch.bool, device=allowed.device)
        rows[self.rows], columns[self.columns] = True, True
        return allowed & ~(rows[-allowed.shape[-2]:, None] & columns)
