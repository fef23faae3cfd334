"""From a saliency map on patches to pixels, to a region, to a box: what a detector would have answered.

Boxes are (left, top, right, bottom) in pixels, right and bottom exclusive.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import find_objects, label, uniform_filter

Box = tuple[int, int, int, int]
LEVEL = 0.5  # of the peak: patches above it belong to the region


def upsample(saliency: np.ndarray, size: int, rounds: int = 0) -> np.ndarray:
    """saliency (P,) -> pixels (size, size) with the same sum, in which every patch keeps its own share.

    Bilinear enlargement carries saliency over patch borders, onto objects that no patch looked at. Here each patch's
    pixels are equal (rounds = 0), or made smooth without exchanging anything with the patches beside it (Tobler's
    pycnophylactic interpolation, 1979): `rounds` times blur, then give every patch its share back.
    Raises ValueError where the patches do not divide the pixels.
    """
    grid = round(saliency.size**0.5)
    if size % grid:
        raise ValueError(f"{size} pixels cannot be divided into {grid} patches.")
    side = size // grid
    share = np.repeat(np.repeat(saliency.reshape(grid, grid), side, axis=0), side, axis=1) / side**2
    pixels = share
    for _ in range(rounds):
        pixels = uniform_filter(pixels, size=3, mode="nearest")
        mean = pixels.reshape(grid, side, grid, side).mean(axis=(1, 3), keepdims=True)
        scaled = pixels.reshape(grid, side, grid, side) / np.where(mean > 0, mean, 1)
        pixels = scaled.reshape(size, size) * share
    return pixels


def region(saliency: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The patches (P,) bool of one cluster: of the areas above `level` times the peak, the one with most saliency."""
    grid = round(saliency.size**0.5)
    areas, count = label((saliency >= level * saliency.max()).reshape(grid, grid))
    held = np.bincount(areas.ravel(), weights=saliency, minlength=count + 1)[1:]
    return areas.ravel() == held.argmax() + 1


def pseudo_box(saliency: np.ndarray, size: int, level: float = LEVEL) -> Box:
    """The box round the peak's cluster, in an image of size x size pixels."""
    grid = round(saliency.size**0.5)
    box = box_of(region(saliency, level).reshape(grid, grid))
    return tuple(round(edge * size / grid) for edge in box)


def box_of(mask: np.ndarray) -> Box | None:
    """The smallest box round a mask (H, W); None where it is empty."""
    found = find_objects(mask.astype(int))
    if not found:
        return None
    rows, columns = found[0]
    return columns.start, rows.start, columns.stop, rows.stop


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    return shared / (_area(one) + _area(other) - shared)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
