"""Pictures of what the actions depend on (`measure/cause.py`, `measure/pixels.py`), as `figures` draws the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..measure.cause import STEPS
from ..measure.film import overlay
from .figures import CHANGED, CONTROL, GREY, MODEL, OTHER, TARGET, outline, styled
from .rates import PATHS

MAPS = {"model": "where the policy looks", "occlusion": "what mattered, block by block", "gaze": "the named object",
        "mean_map": "where it was in training", "centre": "image centre", "random": "chance"}
SCENES = ("as it was", "without the named bowl", "without the other bowl", "exchanged")
_COLOURS = dict(zip(MAPS, (MODEL, CHANGED, "#009e73", "#cc79a7", CONTROL, GREY)))
_CUT = dict(zip(PATHS, (MODEL, GREY, "#009e73", "#cc79a7", CHANGED)))


@styled
def looks_and_acts(arrays: dict[str, np.ndarray]) -> Figure:
    """The same frames twice: where the policy looks, and below what its action depends on, both against a uniform map.

    arrays: of gallery.npz.
    """
    images, regions = arrays["saliency_images"], arrays.get("saliency_regions")
    figure = Figure(figsize=(9, 3.3), dpi=150)
    axes = figure.subplots(2, len(images), squeeze=False)
    figure.subplots_adjust(left=0.03, right=1, bottom=0, top=0.95, wspace=0.03, hspace=0.1)
    for row, (name, words) in enumerate((("saliency_maps", "looks at"), ("occlusion_maps", "acts on"))):
        for axis, image, values, number in zip(axes[row], images, arrays[name], range(len(images))):
            axis.imshow(overlay(image, values / max(values.sum(), 1e-12)), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for region, colour, style in zip(() if regions is None else regions[number], (TARGET, OTHER),
                                             ("solid", "dashed")):
                outline(axis, region, colour, style)
        axes[row, 0].set_ylabel(words)
    return figure


@styled
def curve_lines(cause: dict) -> Figure:
    """Deletion and insertion in the order of every map: how much the action has changed, by how much is hidden or shown."""
    figure = Figure(figsize=(9, 2.9), dpi=180, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, way, words in zip(axes, ("deletion", "insertion"), ("hidden, the highest first", "shown, the highest first")):
        axis.set(title=f"{way.capitalize()}", xlabel=f"share of blocks {words}")
        for name in MAPS:
            if name in cause["curves"]:
                axis.plot(np.arange(STEPS + 1) / STEPS, cause["curves"][name][way]["points"], color=_COLOURS[name],
                          linestyle="--" if name in ("centre", "random") else "-", label=MAPS[name])
        axis.grid(axis="y", alpha=0.6)
    axes[0].set_ylabel(f"change of the action ({cause['unit']})")
    axes[1].legend(frameon=False, fontsize=8)
    return figure


@styled
def knockout_lines(cause: dict) -> Figure:
    """What the action loses without each path of attention, in one layer alone and from that layer on."""
    figure = Figure(figsize=(9, 2.9), dpi=180, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, onwards, title in zip(axes, (False, True), ("Cut in this layer alone", "Cut from this layer on")):
        axis.set(title=title, xlabel="layer of the language model")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for path in PATHS:
            _path_line(axis, [row for row in cause["knockout"] if (row["path"], row["onwards"]) == (path, onwards)], path)
        axis.grid(axis="y", alpha=0.6)
    axes[0].set_ylabel("change of the chunk (mm)")
    axes[0].legend(frameon=False, fontsize=8)  # single layers lose less, so that there is room above them
    return figure


def _path_line(axis: Axes, rows: Sequence[dict], path: str) -> None:
    layers = [row["layer"] for row in rows]
    axis.plot(layers, [row["mm"]["mean"] for row in rows], color=_CUT[path], marker="o", markersize=3, label=PATHS[path])
    if rows and rows[0]["mm"]["low"] is not None:
        axis.fill_between(layers, [row["mm"]["low"] for row in rows], [row["mm"]["high"] for row in rows],
                          color=_CUT[path], alpha=0.15, linewidth=0)


@styled
def scene_panels(scenes: np.ndarray) -> Figure:
    """scenes (n, 3 or 4, H, W, 3) uint8: moments down, changes across."""
    rows, columns = scenes.shape[:2]
    figure = Figure(figsize=(2.25 * columns, 2.25 * rows + 0.25), dpi=90)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.25 / figure.get_figheight(), wspace=0.03, hspace=0.03)
    for axis, picture in zip(axes.flat, scenes.reshape(-1, *scenes.shape[2:])):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
    for axis, words in zip(axes[0], SCENES):
        axis.set_title(words, fontsize=8)
    return figure
