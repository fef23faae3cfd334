"""What is kept of a rollout to be looked at: a video, and beside it (same name, .npz) the traces of the same steps.

Saliency is always drawn on one scale, so that pictures can be compared: no colour = what a uniform map would give a patch,
full colour = four times as much or more.
"""

from __future__ import annotations

import functools
from pathlib import Path
from zipfile import BadZipFile

import imageio.v2 as imageio
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import uniform_filter

from ..run.errors import LarError, reading
from ..run.files import atomic_path

FPS = 20  # LIBERO's control frequency
ROUNDS = 6  # of smoothing within patches of 16 pixels
HEAT = (matplotlib.colormaps["inferno"](np.linspace(0.25, 1.0, 256))[:, :3] * 255).astype(np.float32)
FULL_COLOUR = 4.0  # times a uniform map's share


class Film:
    """Frames (T, h, w, 3) uint8: image | saliency | wrist; actions (T, 7) as commanded; gripper (T,), the distance of
    the fingers in metres; saliency (T, P). Entry t is what was seen after action t.
    """

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.traces: dict[str, list[np.ndarray]] = {"actions": [], "gripper": [], "saliency": []}

    def __len__(self) -> int:
        return len(self.frames)

    def add(self, observation: dict, i: int, action: np.ndarray, saliency: np.ndarray | None, sentence: str) -> None:
        """Append one step of environment `i` of a batch of observations; saliency None: of a policy that shows none."""
        wrist = observation["eye_in_hand_rgb"][i] if "eye_in_hand_rgb" in observation else None
        self.frames.append(frame_with_saliency(observation["agentview_rgb"][i], saliency, wrist, sentence))
        fingers = observation["gripper_states"][i]
        for name, value in (("actions", action), ("gripper", fingers[0] - fingers[1]), ("saliency", saliency)):
            self.traces[name].append(np.asarray(value, dtype=np.float32))

    def save(self, path: Path) -> None:
        """Write the video to `path` (.mp4), and the traces beside it first, so that no video is without them."""
        with atomic_path(path.with_suffix(".npz")) as temporary:
            np.savez_compressed(temporary, **{name: np.stack(values) for name, values in self.traces.items()})
        with atomic_path(path) as temporary:
            imageio.mimsave(temporary, self.frames, fps=FPS, macro_block_size=2)

    @classmethod
    def load(cls, path: Path | str) -> Film:
        """Read what `save` wrote. Raises LarError where video or traces are missing or damaged."""
        path, film = Path(path), cls()
        again = "delete rollouts.jsonl beside its folder and roll out again"
        if missing := [file for file in (path, path.with_suffix(".npz")) if not file.exists()]:
            raise LarError(f"{missing[0]} is missing: {again}.")
        with reading(f"{path} or its traces beside it", again, OSError, ValueError, KeyError, EOFError, BadZipFile):
            film.frames = list(imageio.mimread(path, memtest=False))
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                film.traces = {name: list(arrays[name]) for name in film.traces}
        return film


def overlay(image: np.ndarray, saliency: np.ndarray, strength: float = 0.85, rounds: int = ROUNDS) -> np.ndarray:
    """Colour image (H, H, 3) uint8 by saliency (P,), P a square number, summing to 1; returns (H, H, 3) uint8.

    Smoothly, but no patch's saliency leaks onto its neighbours: see `upsample`.
    """
    density = upsample(saliency, len(image), rounds) * len(image) ** 2  # 1 = what a uniform map would give
    heat = np.clip((density - 1) / (FULL_COLOUR - 1), 0, 1)
    grey = image.mean(axis=2, keepdims=True, dtype=np.float32)
    ground = 0.35 * image + 0.65 * grey  # half without colour, so that the heat is not mistaken for an object's own
    alpha = strength * heat[..., None] ** 0.7
    return (ground * (1 - alpha) + HEAT[(heat * 255).astype(np.uint8)] * alpha).astype(np.uint8)


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


def frame_with_saliency(image: np.ndarray, saliency: np.ndarray | None, wrist: np.ndarray | None = None,
                        caption: str = "") -> np.ndarray:
    """One video frame: image | overlay | wrist camera (absent if None, both), each 256 x 256, above a line of caption.

    Returns uint8 (288, 784, 528 or 256, 3): multiples of 16, as video encoders want them.
    """
    panels = [image, *([] if saliency is None else [overlay(image, saliency)]), *([] if wrist is None else [wrist])]
    side, gap, bar = 256, 8, 32
    width = len(panels) * (side + gap) - gap
    canvas = Image.new("RGB", (-(-width // 16) * 16, side + bar), "#14171b")
    for i, panel in enumerate(panels):
        canvas.paste(Image.fromarray(panel).resize((side, side), Image.Resampling.BILINEAR), (i * (side + gap), 0))
    ImageDraw.Draw(canvas).text((10, side + bar // 2), _shortened(caption, canvas.width - 20), font=_font(),
                                fill="#e8eaed", anchor="lm")
    return np.asarray(canvas)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=15)


@functools.lru_cache(maxsize=64)
def _shortened(text: str, width: int) -> str:
    """Cut `text` so that it is at most `width` pixels long."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + " ...") > width:
        text = text[:-1]
    return text.rstrip() + " ..."
