"""The pictures that scoring leaves in a run folder (gallery.npz, see docs/results.md), as figures."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..run.errors import LarError
from ..run.folder import Run
from . import figures, pictures


def arrays(run: Run) -> dict[str, np.ndarray]:
    """The arrays of gallery.npz. Raises LarError when there is none."""
    path = run.path / "gallery.npz"
    if not path.exists():
        raise LarError(f"{path} is missing: run `lar saliency --run-dir {run.path}` first.")
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def saliency(run: Run, limit: int = 4) -> Figure:
    """Image, saliency and its top quarter on held-out frames."""
    of = {name.removeprefix("saliency_"): value for name, value in arrays(run).items()}
    return figures.saliency_gallery(of["images"], of["maps"], of.get("regions"), of["instructions"], of["masks"], limit)


def panels(run: Run, limit: int = 3) -> Figure | None:
    """Original, masked, reconstructed, pasted; None for a condition that reconstructs nothing."""
    pictures = arrays(run).get("panels")
    return None if pictures is None else figures.reconstruction_panels(pictures, limit)


def over_time(moments: dict[int, np.ndarray], limit: int = 5, side: int = 180) -> np.ndarray:
    """Panels (M, 4, H, W, 3) by training step -> masked, reconstructed, pasted (rows) of the first frame over time."""
    steps = sorted(moments)
    chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(limit, len(steps))).round().astype(int))]
    rows = [[pictures.enlarge(moments[step][0, panel], side) for step in chosen] for panel in (1, 2, 3)]
    titles = [f"after {step} steps" if step else "before training" for step in chosen]
    return pictures.grid(sum(rows, []), [*titles, *[""] * 2 * len(chosen)], len(chosen))
