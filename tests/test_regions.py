"""From patches to pixels, region and box."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from lar_core.measure.regions import box_iou, box_of, pseudo_box, region, upsample


@pytest.fixture
def saliency(rng):
    values = rng.random(16)
    return values / values.sum()


@pytest.mark.parametrize("rounds", [0, 5])
def test_every_patch_keeps_its_saliency_however_smooth_the_pixels(saliency, rounds):
    pixels = upsample(saliency, 32, rounds)
    assert pixels.sum() == pytest.approx(1)
    patches = pixels.reshape(4, 8, 4, 8).sum(axis=(1, 3))
    np.testing.assert_allclose(patches.ravel(), saliency)


def test_smoothing_takes_the_steps_out_of_the_borders(saliency):
    def step(pixels):
        return np.abs(pixels[:, 8] - pixels[:, 7]).mean()
    assert step(upsample(saliency, 32, 20)) < 0.5 * step(upsample(saliency, 32))


def test_a_patch_without_saliency_stays_dark():
    saliency = np.zeros(16)
    saliency[5] = 1.0
    assert (upsample(saliency, 32, 10) > 0).sum() <= 64


def test_patches_must_divide_the_pixels(saliency):
    with pytest.raises(ValueError, match="30 pixels"):
        upsample(saliency, 30)


def test_the_region_is_the_heaviest_cluster_above_half_of_the_peak():
    saliency = np.array([[9, 0, 0, 0], [0, 0, 0, 6], [0, 0, 5, 6], [4, 0, 0, 5]], float).ravel()
    assert np.flatnonzero(region(saliency)).tolist() == [7, 10, 11, 15]  # 22 together; the lone peak has 9
    assert pseudo_box(saliency, 40) == (20, 10, 40, 40)


def test_boxes_are_right_and_bottom_exclusive():
    mask = np.zeros((10, 10))
    mask[2:5, 3:9] = 1
    assert box_of(mask) == (3, 2, 9, 5) and box_of(np.zeros((4, 4))) is None


def test_box_iou_is_the_jaccard_score_of_the_pixels():
    one, other = (2, 1, 8, 6), (4, 3, 9, 9)
    masks = []
    for left, top, right, bottom in (one, other):
        mask = np.zeros((10, 10), int)
        mask[top:bottom, left:right] = 1
        masks.append(mask.ravel())
    assert box_iou(one, other) == pytest.approx(jaccard_score(*masks))
    assert box_iou(one, one) == 1 and box_iou((0, 0, 2, 2), (5, 5, 6, 6)) == 0
