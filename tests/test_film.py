"""What is kept of a rollout: saliency on pixels without leaking from patch to patch."""

from __future__ import annotations

import numpy as np
import pytest

from lar_core.measure.film import upsample


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
