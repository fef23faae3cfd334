"""Figures: what they show, that they survive missing parts, and that they leave matplotlib alone."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from lar_core.measure import film
from lar_core.show import figures

P, SIZE = 64, 64
rng = np.random.default_rng(0)


def peak(patch: int, share: float = 0.5) -> np.ndarray:
    """Saliency (P,) with one patch at `share`, the rest uniform."""
    saliency = np.full(P, (1 - share) / (P - 1), dtype=np.float32)
    saliency[patch] = share
    return saliency


def images(n: int = 3) -> np.ndarray:
    return rng.integers(0, 255, (n, SIZE, SIZE, 3), dtype=np.uint8)


def regions(n: int = 3) -> np.ndarray:
    masks = np.zeros((n, 2, SIZE, SIZE), np.uint8)
    masks[:, 0, 10:20, 10:20] = masks[:, 1, 30:40, 40:50] = 1
    masks[-1] = 0  # neither can be seen
    return masks


def draws(figure: Figure) -> bool:
    figure.canvas.draw()
    return any(axis.has_data() for axis in figure.axes)


def test_overlay_colours_the_salient_patch_only():
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    result = film.overlay(grey, peak(0))
    assert result.shape == grey.shape and result.dtype == np.uint8
    assert np.ptp(result[4, 4].astype(int)) > 50  # the middle of patch 0
    assert np.array_equal(result[32:, 32:], grey[32:, 32:])


def test_overlay_leaves_the_patches_beside_a_salient_one_as_they_are():
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    changed = (film.overlay(grey, peak(9, share=1.0)) != grey).any(axis=2)
    side = SIZE // 8
    assert changed[side : 2 * side, side : 2 * side].all() and changed.sum() == side**2


def test_overlay_of_a_uniform_map_has_no_colour():
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    assert np.array_equal(film.overlay(grey, np.full(P, 1 / P, np.float32)), grey)


def test_overlay_strength_zero_shows_no_heat():
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    assert np.array_equal(film.overlay(grey, peak(0), strength=0.0), grey)


@pytest.mark.parametrize("wrist, width", [(images(1)[0], 784), (None, 528)])
def test_video_frames_have_sides_that_encoders_accept(wrist, width):
    frame = film.frame_with_saliency(images(1)[0], peak(9), wrist, "pick up the bowl " * 30)
    assert frame.shape == (288, width, 3) and frame.dtype == np.uint8
    assert frame.shape[0] % 16 == frame.shape[1] % 16 == 0
    assert (frame[256:] > 100).any()  # the caption
    assert not (frame[256:, -10:] > 100).any()  # and its end is cut off inside the frame


def test_gallery_shows_three_pictures_a_sample():
    masks = np.zeros((3, P), bool)
    masks[:, :16] = True
    figure = figures.saliency_gallery(images(), np.stack([peak(i) for i in range(3)]), regions(),
                                      np.array(["pick up the black bowl <between> & the plate"] * 3), masks)
    assert draws(figure)
    assert sum(len(axis.images) for axis in figure.axes) == 9


def test_gallery_without_segmentation_and_with_a_limit():
    figure = figures.saliency_gallery(images(30), np.stack([peak(3)] * 30), None, ["a"] * 30, np.ones((30, P), bool),
                                      limit=4)
    assert draws(figure)
    assert sum(len(axis.images) for axis in figure.axes) == 12


def test_panels_carry_the_four_titles():
    figure = figures.reconstruction_panels(rng.integers(0, 255, (6, 4, 32, 32, 3), dtype=np.uint8), limit=2)
    assert [axis.get_title(loc="left") for axis in figure.axes[:4]] == list(figures.PANELS)
    assert len(figure.axes) == 8


def test_curves_leave_out_what_was_not_logged():
    rows = [{"step": i, "loss": 2.0, "action": 2.0 + 1 / (i + 1), "recon": 0.0} for i in range(30)]
    assert draws(alone := figures.training_curves(rows)) and len(alone.axes) == 1
    rows = [row | {"recon": 0.5, "grad_action": 1.0, "grad_recon": 0.1} for row in rows]
    assert len(figures.training_curves(rows).axes) == 3
    assert draws(figures.training_curves(rows[:1]))
    rows = [row | {"language": 3.0, "grad_language": 0.2} for row in rows]
    axes = figures.training_curves(rows).axes
    assert [text.get_text() for text in axes[2].get_legend().get_texts()] == ["language"]


@pytest.mark.parametrize("low, high", [(0.68, 0.73), (4.45, 4.7), (2.1, 4.9), (1.2, 4.9), (0.3, 40)])
def test_curves_have_numbers_at_their_axis_whatever_their_range(low, high):
    figure = figures.training_curves([{"step": i, "action": value} for i, value in enumerate((low, high))])
    assert draws(figure)
    axis, (low, high) = figure.axes[0].yaxis, figure.axes[0].get_ylim()
    ticks = [*zip(axis.get_majorticklocs(), axis.get_majorticklabels()),
             *zip(axis.get_minorticklocs(), axis.get_minorticklabels())]
    assert 1 <= sum(low <= place <= high and label.get_text() != "" for place, label in ticks) <= 12


def test_success_bars_show_counts_and_intervals():
    figure = figures.success_bars([("official placements", "attention_mask", "model", 14, 20, 0.48, 0.85),
                                   ("official placements", "blind control", "control", 0, 20, 0.0, 0.16)])
    axis = figure.axes[0]
    assert {"14/20", "0/20", "official placements"} <= {text.get_text() for text in axis.texts}
    assert [bar.get_width() for bar in axis.patches] == [0.7, 0.0]
    assert list(axis.lines[0].get_xdata()) == [0.48, 0.85]


def test_grounding_bars_leave_out_what_is_null():
    entry = {"mean": 0.1, "low": 0.05, "high": 0.2}
    series = {"model": entry, "uniform": entry | {"low": None, "high": None}, "centre": entry, "mean_map": None}
    unmeasured = dict.fromkeys(series)
    figure = figures.grounding_bars({"aos": series, "auc": None, "target_minus_distractor": unmeasured,
                                     "pointing": series})
    assert draws(figure)
    assert [len(axis.patches) for axis in figure.axes] == [3, 3]


def test_layer_lines_have_a_line_a_kind_of_rows_and_leave_out_what_is_not_there():
    entry = {"mean": 0.6, "low": 0.5, "high": 0.7}
    def row(layer, kind, auc):
        return {"layer": layer, "rows": kind, "metrics": {"auc": auc, "target_minus_distractor": None}}
    alone = entry | {"low": None, "high": None}
    figure = figures.layer_lines([row(0, "text", entry), row(1, "text", entry), row(1, "action", alone),
                                  row(0, "bos", None)])
    assert draws(figure)
    auc, difference = figure.axes
    assert [text.get_text() for text in auc.get_legend().get_texts()] == ["words", "action queries"]
    assert [list(line.get_xdata()) for line in auc.lines[1:]] == [[0, 1], [1]] and len(auc.collections) == 1
    assert difference.get_legend() is None and len(difference.lines) == 1


def test_progress_is_a_bar_of_shares_with_its_counts():
    stages = {"none": 1, "touched": 0, "grasped": 0, "lifted": 4, "placed": 15}
    figure = figures.progress_bars([("policy", stages), ("blind", stages | {"none": 16, "placed": 0})])
    axis = figure.axes[0]
    assert [round(patch.get_width(), 3) for patch in axis.patches[:5]] == [0.05, 0, 0, 0.2, 0.75]
    assert [text.get_text() for text in axis.texts] == ["1", "4", "15", "16", "4"]


def test_figures_leave_the_global_settings_alone():
    before = dict(matplotlib.rcParams)
    figures.reconstruction_panels(rng.integers(0, 255, (1, 4, 16, 16, 3), dtype=np.uint8))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, lar_core.show.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
