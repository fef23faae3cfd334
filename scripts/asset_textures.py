"""Pictures painted on the stand-in objects, drawn with numpy from fixed seeds: uint8 arrays (height, width, 3)."""

from __future__ import annotations

import numpy as np


def wood(size: int, light: tuple[int, int, int], dark: tuple[int, int, int], planks: int, seed: int) -> np.ndarray:
    """Planks side by side with wavy grain along the first axis; `planks` = 1 gives one board."""
    rng = np.random.default_rng(seed)
    across, along = np.meshgrid(np.linspace(0, 1, size, endpoint=False), np.linspace(0, 1, size, endpoint=False))
    plank = np.floor(across * planks).astype(int)
    shade, phase = rng.uniform(0.0, 0.3, planks)[plank], rng.uniform(0, 6.28, planks)[plank]
    warp = 0.02 * np.sin(2 * np.pi * along + phase) + 0.008 * np.sin(6 * np.pi * along + 2 * phase)
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * (across + warp) * 23 + 3 * phase)
    fine = _smooth(rng.uniform(0, 1, (size, size)), (size // 16, 1))
    mix = np.clip(0.25 * grain + 0.45 * fine + shade, 0, 1)
    image = np.array(light) + (np.array(dark) - np.array(light)) * mix[..., None]
    if planks > 1:
        edge = np.abs(across * planks - np.round(across * planks)) < 1.2 * planks / size
        image = image * np.where(edge, 0.72, 1.0)[..., None]
    return _to_bytes(image)


def tiles(size: int, count: int, seed: int) -> np.ndarray:
    """Grey stone floor tiles, each of its own shade, with lighter grout."""
    rng = np.random.default_rng(seed)
    position = np.arange(size) * count / size
    index = position.astype(int)
    shade = rng.uniform(150, 172, (count, count))[np.ix_(index, index)]
    stone = shade + 16 * (_smooth(rng.uniform(-1, 1, (size, size)), (7, 7)))
    grout = np.minimum(position % 1, 1 - position % 1) < 0.02
    stone[grout[:, None] | grout[None, :]] = 195
    return _to_bytes(stone[..., None] * np.array([1.0, 0.985, 0.955]))


def plaster(size: int, seed: int) -> np.ndarray:
    """A light wall with faint clouds and grain."""
    rng = np.random.default_rng(seed)
    clouds = _smooth(rng.uniform(-1, 1, (size, size)), (size // 6, size // 6)) * 60
    grain = _smooth(rng.uniform(-1, 1, (size, size)), (3, 3)) * 8
    return _to_bytes((214 + clouds + grain)[..., None] * np.array([1.0, 0.99, 0.96]))


def cookie_box(size: int) -> np.ndarray:
    """Top quarter: side print; lower half: the lid, a blue box with a cream panel and three chocolate-chip cookies."""
    y, x = np.mgrid[0:size, 0:size] / size
    blue, cream, red = (34, 74, 150), (246, 232, 200), (200, 52, 44)
    image = np.empty((size, size, 3))
    image[:] = blue
    image[(y > 0.10) & (y < 0.15)] = cream  # a stripe round the sides
    lid = y >= 0.5
    image[lid & (np.hypot((x - 0.5) / 0.46, (y - 0.75) / 0.215) < 1)] = cream
    image[lid & (y > 0.53) & (y < 0.575) & (np.abs(x - 0.5) < 0.4)] = red
    for cx, cy in ((0.33, 0.70), (0.66, 0.73), (0.47, 0.845)):
        image[np.hypot(x - cx, (y - cy) * 1.9) < 0.150] = (176, 112, 52)
        for dx, dy in ((-0.05, -0.03), (0.05, -0.01), (-0.02, 0.035), (0.03, 0.03)):
            image[np.hypot(x - cx - dx, (y - cy - dy) * 1.9) < 0.028] = (74, 40, 22)
    return _to_bytes(image)


def brushed_metal(size: int, seed: int) -> np.ndarray:
    """Steel with fine horizontal scratches."""
    rng = np.random.default_rng(seed)
    scratches = _smooth(rng.uniform(-1, 1, (size, size)), (1, size // 4)) * 40
    return _to_bytes((150 + scratches)[..., None] * np.array([0.98, 1.0, 1.02]))


def _smooth(noise: np.ndarray, width: tuple[int, int]) -> np.ndarray:
    """Moving average with wrap-around along both axes, so that a texture repeats without a seam."""
    for axis, count in enumerate(width):
        noise = sum(np.roll(noise, shift, axis) for shift in range(count)) / count
    return noise


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
