"""Where a backbone looks in stored scenes, before pre-training and after."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from ..run.files import atomic_path
from ..run.folder import Run
from .pictures import grid, heat, png

SCENES, COLUMNS, SIDE = 10, 5, 230  # scenes shown, how many in a row, pixels of one


def write_picture(run: Run) -> Path:
    """RUN_DIR/pretraining.png, of the maps that pre-training left in `pretraining.npz`."""
    path = run.path / "pretraining.png"
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(before_and_after(run.path / "pretraining.npz")))
    return path


def before_and_after(path: Path) -> np.ndarray:
    """Two heatmaps a scene, before above after, on SCENES evenly spread: (h, w, 3) uint8; both bowls are outlined."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    chosen = np.linspace(0, len(arrays["images"]) - 1, SCENES).round().astype(int)
    panels, titles = [], []
    for row in np.array_split(chosen, SCENES // COLUMNS):
        for maps in ("before", "after"):
            panels += [heat(arrays["images"][i], arrays[maps][i], arrays["regions"][i], SIDE) for i in row]
            titles += [f"{maps}: {_relation(arrays['instructions'][i])}" for i in row]
    return grid(panels, titles, COLUMNS)


def _relation(instruction: str) -> str:
    """What the sentence says of the bowl, short enough for a title."""
    relation = str(instruction).removeprefix("pick up the black bowl ").split(" and place ")[0]
    return textwrap.shorten(relation.replace("the ", ""), 29, placeholder=" ...")
