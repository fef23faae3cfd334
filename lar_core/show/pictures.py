"""Pictures for widgets and notebooks, composed pixel by pixel: a few milliseconds, where matplotlib takes hundreds."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from .figures import OTHER, TARGET, overlay

SIDE, GAP, TITLE = 288, 10, 24  # pixels: of a panel, between panels, above them
INK, PAPER, HIDDEN = "#1c2127", "#ffffff", np.array([128, 128, 128], np.uint8)
_DASH = 5  # pixels


def enlarge(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """image (H, W, 3) uint8 -> (side, side, 3), smoothly."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def outlined(picture: np.ndarray, regions: np.ndarray | None) -> np.ndarray:
    """Draw round the named object (solid) and the other bowl (dashed); regions (2, h, w) of 0/1, or None."""
    if regions is None:
        return picture
    result = picture.copy()
    rows, columns = np.indices(picture.shape[:2])
    dashes = (rows + columns) // _DASH % 2 == 0
    for region, colour, where in zip(regions, (TARGET, OTHER), (True, dashes)):
        size = picture.shape[1::-1]
        region = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)) > 127
        result[region & ~binary_erosion(region, iterations=2) & where] = ImageColor.getrgb(colour)
    return result


def hidden(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cover the masked patches with grey, as the decoder meets them; mask (P,) bool, True = masked."""
    grid = round(mask.size**0.5)
    cover = Image.fromarray(mask.reshape(grid, grid)).resize(picture.shape[1::-1], Image.Resampling.NEAREST)
    return np.where(np.asarray(cover)[..., None], HIDDEN, picture)


def side_by_side(panels: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Panels (h, w, 3) of one height in a row, each under its title, on white."""
    height, width = panels[0].shape[0], sum(panel.shape[1] for panel in panels) + GAP * (len(panels) - 1)
    canvas, left = Image.new("RGB", (width, height + TITLE), PAPER), 0
    draw = ImageDraw.Draw(canvas)
    for panel, title in zip(panels, titles):
        canvas.paste(Image.fromarray(panel), (left, TITLE))
        draw.text((left + 2, TITLE // 2 - 1), title, font=ImageFont.load_default(size=13), fill=INK, anchor="lm")
        left += panel.shape[1] + GAP
    return np.asarray(canvas)


def grid(panels: Sequence[np.ndarray], titles: Sequence[str], columns: int) -> np.ndarray:
    """Panels of one size, row by row, each under its title; an incomplete last row is filled with white."""
    missing = -len(panels) % columns
    panels = [*panels, *[np.full_like(panels[0], 255)] * missing]
    titles = [*titles, *[""] * missing]
    return np.concatenate([side_by_side(panels[start : start + columns], titles[start : start + columns])
                           for start in range(0, len(panels), columns)])


def heat(image: np.ndarray, saliency: np.ndarray, regions: np.ndarray | None = None, side: int = SIDE) -> np.ndarray:
    """image (H, W, 3) uint8 coloured by saliency (P,), with outlines: (side, side, 3)."""
    return outlined(enlarge(overlay(image, saliency), side), regions)


def png(picture: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8, fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


def colours(segmentation: np.ndarray) -> np.ndarray:
    """A colour for each number of segmentation (H, W), grey for 0: (H, W, 3) uint8."""
    palette = (matplotlib.colormaps["tab20"](np.arange(20))[:, :3] * 255).astype(np.uint8)
    return np.where(segmentation[..., None] > 0, palette[segmentation % 20], np.uint8(225))


def filmstrip(frames: np.ndarray, count: int = 6, side: int = 150) -> np.ndarray:
    """`count` of the frames (T, H, W, 3), evenly spread, in a row."""
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return side_by_side([enlarge(frames[i], side) for i in chosen], [f"step {i}" for i in chosen])
