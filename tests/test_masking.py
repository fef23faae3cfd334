"""Masks: True = masked, exactly k a sample, deterministic; each source against what defines it, by numpy and scipy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import reconstruct
from scipy.ndimage import gaussian_filter

from lar_core.model.masking import Clues, area_resample, count_masked, make_mask, mask_top, pixel_mask
from lar_core.run.errors import LarError
from lar_core.run.registry import MASK_SOURCES
from lar_core.run.runtime import Draws

GRID = 16


def draw(source, seed=0, patches=64, **arguments):
    saliency = torch.rand(5, patches, generator=torch.Generator().manual_seed(1)).softmax(1)
    coverage = torch.zeros(5, patches)
    coverage[:, 9] = 0.5
    return saliency, make_mask(source, saliency=saliency, coverage=coverage, ratio=0.25,
                               draws=Draws(seed), motion=torch.rand(5, patches), **arguments)


@pytest.mark.parametrize("source", MASK_SOURCES)
@pytest.mark.parametrize("patches", [64, 196, 256])
def test_exactly_a_quarter_is_masked_in_every_sample(source, patches):
    _, mask = draw(source, patches=patches)
    assert mask.dtype == torch.bool and (mask.sum(1) == patches // 4).all()


def test_mask_takes_the_most_salient_quarter():
    saliency, mask = draw("attention")
    assert (saliency[mask].reshape(5, -1).min(1).values >= saliency[~mask].reshape(5, -1).max(1).values).all()


def test_inverse_takes_the_least_salient_quarter():
    saliency, mask = draw("inverse_attention")
    assert (saliency[mask].reshape(5, -1).max(1).values <= saliency[~mask].reshape(5, -1).min(1).values).all()


def test_random_is_a_function_of_its_seed():
    assert torch.equal(draw("random", 3)[1], draw("random", 3)[1])
    assert not torch.equal(draw("random", 3)[1], draw("random", 4)[1])


def test_ties_go_to_the_first_patches():
    assert mask_top(torch.zeros(1, 8), 3).tolist() == [[True] * 3 + [False] * 5]


def test_gaze_masks_the_object_and_then_what_is_near():
    _, mask = draw("gaze", patches=16)  # a 4x4 grid; the object is patch 9 = row 2, column 1
    assert mask[0].nonzero().flatten().tolist() == [5, 8, 9, 10]  # itself and three of its four neighbours


def test_gaze_without_segmentation_says_what_to_do():
    with pytest.raises(LarError, match="segmentation"):
        make_mask("gaze", saliency=torch.rand(1, 16), coverage=None, ratio=0.25)


def test_unknown_source_suggests_the_nearest():
    with pytest.raises(LarError, match="did you mean 'attention'"):
        make_mask("atention", saliency=torch.rand(1, 16), coverage=None, ratio=0.25)


def test_at_least_one_patch_is_masked_and_one_visible():
    assert count_masked(4, 0.01) == 1 and count_masked(4, 0.99) == 3


def test_essay_grid_is_14_by_14_with_49_masked(policy_of, batch):
    policy = policy_of("random_mask", mask_grid="essay")
    recon = reconstruct(policy, batch)
    assert recon.mask.shape == (2, 196) and (recon.mask.sum(1) == 49).all()
    assert recon.prediction.shape == (2, 196, 3 * 16 * 16)


def test_area_resampling_is_area_pooling_where_that_is_defined():
    values = torch.rand(2, 64)
    pooled = F.adaptive_avg_pool2d(values.reshape(2, 1, 8, 8), 4).reshape(2, 16)
    assert torch.allclose(area_resample(values, 4), pooled, atol=1e-6)


def test_area_resampling_keeps_the_mean_and_shapes():
    features = torch.rand(2, 256, 3)
    resampled = area_resample(features, 14)
    assert resampled.shape == (2, 196, 3)
    assert torch.allclose(resampled.mean(1), features.mean(1), atol=1e-6)


def test_pixel_mask_repeats_each_patch():
    mask = torch.tensor([[True, False, False, True]])
    assert pixel_mask(mask, 4)[0, 0].tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2


# --- the sources -----------------------------------------------------------------------------------------------------

def mask_of(source, samples=64, seed=0, saliency=None, ratio=0.25, **clues):
    if saliency is None:
        saliency = torch.rand(samples, GRID**2, generator=torch.Generator().manual_seed(1)).softmax(1)
    return make_mask(source, saliency=saliency, coverage=None, ratio=ratio, draws=Draws(seed), **clues)


def spectrum(mask):
    """Mean power (GRID, GRID) of masks without their mean, by frequency in cycles an image."""
    squares = mask.float().reshape(-1, GRID, GRID).numpy()
    return (np.abs(np.fft.fft2(squares - squares.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)


def test_blue_noise_is_noise_minus_its_gaussian_blur():
    clues = Clues(torch.full((3, GRID**2), 1 / GRID**2), 64, Draws(5))
    noise = Draws(5).uniform(3, GRID**2).reshape(3, GRID, GRID).numpy()
    blurred = np.stack([gaussian_filter(image, 1.0, mode="wrap", radius=1) for image in noise])
    assert np.allclose(MASK_SOURCES["blue_noise"](clues).reshape(3, GRID, GRID), noise - blurred, atol=1e-6)


def test_blue_noise_masks_have_little_power_at_low_frequencies_and_random_ones_as_much_everywhere():
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(GRID) * GRID] * 2))
    low, high = (frequency > 0) & (frequency < 3), frequency > 6
    blue, white = spectrum(mask_of("blue_noise")), spectrum(mask_of("random"))
    assert blue[low].mean() < 0.5 * blue[high].mean()
    assert white[low].mean() == pytest.approx(white[high].mean(), rel=0.1)


@pytest.mark.parametrize("source", ["blue_noise", "centre"])
def test_masks_that_do_not_look_are_the_same_for_any_saliency(source):
    other = torch.rand(64, GRID**2, generator=torch.Generator().manual_seed(2)).softmax(1)
    assert torch.equal(mask_of(source), mask_of(source, saliency=other))


def test_centre_masks_a_disc_in_the_middle():
    mask = mask_of("centre", samples=1).reshape(GRID, GRID).numpy()
    rows, columns = np.indices((GRID, GRID)) - (GRID - 1) / 2
    radius = np.hypot(rows, columns)
    assert radius[mask].max() <= radius[~mask].min()
    assert mask.sum() == 64


def test_hints_leave_the_very_top_visible_and_mask_the_next():
    saliency = torch.rand(5, GRID**2, generator=torch.Generator().manual_seed(3)).softmax(1)
    ranks = np.argsort(np.argsort(-saliency.numpy(), axis=1), axis=1)
    mask = mask_of("hint_attention", saliency=saliency).numpy()
    assert np.array_equal(mask, (ranks >= 6) & (ranks < 70))  # of 64: 10 % are 6


def test_hints_give_way_where_nearly_everything_is_masked():
    assert (mask_of("hint_attention", ratio=0.99).sum(1) == round(0.99 * GRID**2)).all()


def test_sampled_attention_masks_as_often_as_drawing_without_replacement_does():
    weights = np.array([8.0, 4, 2, 1, 1]) / 16
    saliency = torch.tensor(weights, dtype=torch.float32).expand(20_000, -1)
    mask = make_mask("sampled_attention", saliency=saliency, coverage=None, ratio=0.4, draws=Draws(0))
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.choice(5, 2, replace=False, p=weights) for _ in range(20_000)])
    expected = np.bincount(drawn.flatten(), minlength=5) / 20_000
    assert np.allclose(mask.float().mean(0).numpy(), expected, atol=0.015)


def test_frame_difference_masks_the_patches_that_changed_most(policy_of, batch):
    batch["previous"] = batch["images"].clone()
    batch["previous"][:, :, 16:32, :16] ^= 255  # patch 4 of 16 changes everywhere,
    batch["previous"][:, :, 40:48, 48:] ^= 255  # patch 11 in its lower half, patch 0 in one pixel
    batch["previous"][:, :, 0, 0] ^= 255
    policy = policy_of("motion_mask", mask_ratio=3 / 16)
    mask = policy.mask(batch, policy.encode(batch).saliency, Draws(0))
    assert [row.nonzero().flatten().tolist() for row in mask] == [[0, 4, 11]] * 2


def test_frame_difference_without_the_frame_before_says_what_to_do():
    with pytest.raises(LarError, match="previous=True"):
        mask_of("frame_difference")
