"""Many saliency maps of one frame side by side: one for every word, every head, or every way to aggregate."""

from __future__ import annotations

import numpy as np

from ..evaluate.attention import Attention, Choice, aggregate
from .pictures import grid, heat


def maps(image: np.ndarray, attention: Attention, choices: dict[str, Choice], regions: np.ndarray | None = None, *,
         columns: int = 5, side: int = 180) -> np.ndarray:
    """One heatmap a choice over image (H, W, 3), each under its name; regions (2, H, W) are outlined."""
    return grid([heat(image, aggregate(attention, choice), regions, side) for choice in choices.values()],
                list(choices), columns)


def by_word(attention: Attention) -> dict[str, Choice]:
    """A choice for every token: the instruction's own words by place, the others as they are."""
    return {f"{place} {word}" if attention.own[place] else word: Choice(words=(place,))
            for place, word in enumerate(attention.words)}


def by_head(attention: Attention, layers: tuple[int, ...] | None = None) -> dict[str, Choice]:
    """A choice for every head of `layers` (None: of all)."""
    count, heads = attention.values.shape[:2]
    return {f"layer {layer}, head {head}": Choice(layers=(layer,), heads=(head,))
            for layer in (layers or range(count)) for head in range(heads)}
