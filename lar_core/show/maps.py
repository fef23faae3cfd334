"""Many saliency maps of one frame side by side: one for every word, every head, or every way to aggregate."""

from __future__ import annotations

import numpy as np

from ..measure.attention import Attention, AttentionReader, Choice, aggregate, shared
from ..model.aggregation import SINK
from ..scene.instructions import BLANK
from .pictures import grid, heat, side_by_side


def maps(image: np.ndarray, attention: Attention, choices: dict[str, Choice], regions: np.ndarray | None = None, *,
         columns: int = 5, side: int = 180) -> np.ndarray:
    """One heatmap a choice over image (H, W, 3), each under its name; regions (2, H, W) are outlined."""
    return grid([heat(image, aggregate(attention, choice), regions, side) for choice in choices.values()],
                list(choices), columns)


def by_name(reader: AttentionReader, image: np.ndarray, instruction: str, regions: np.ndarray | None = None, *,
            columns: int = 5, side: int = 180) -> np.ndarray:
    """One heatmap for every aggregation that has a name, those of many passes too."""
    names = reader.aggregations
    return grid([heat(image, reader.aggregated(image, instruction, name), regions, side) for name in names],
                [name.replace("_", " ") for name in names], columns)


def sinks(reader: AttentionReader, image: np.ndarray, instruction: str,
          regions: np.ndarray | None = None) -> np.ndarray:
    """The mean map; that of a blank instruction; what every token gives at least; and the map without its sinks."""
    common = shared(reader.read(image, instruction))
    panels = {"mean over the words": reader.aggregated(image, instruction, "mean"),
              "nothing was said": reader.aggregated(image, BLANK, "mean"),
              f"what every token gives: up to {common.max():.1f}": common / common.size,
              f"without sinks, of which there are {(common > SINK).sum()}":
                  reader.aggregated(image, instruction, "sink_removal")}
    return side_by_side([heat(image, panel, regions, 230) for panel in panels.values()], list(panels))


def by_word(attention: Attention) -> dict[str, Choice]:
    """A choice for every token: the instruction's own words by place, the others as they are."""
    return {f"{place} {word}" if attention.own[place] else word: Choice(words=(place,))
            for place, word in enumerate(attention.words)}


def by_head(attention: Attention, layers: tuple[int, ...] | None = None) -> dict[str, Choice]:
    """A choice for every head of `layers` (None: of all)."""
    count, heads = attention.values.shape[:2]
    return {f"layer {layer}, head {head}": Choice(layers=(layer,), heads=(head,))
            for layer in (layers or range(count)) for head in range(heads)}
