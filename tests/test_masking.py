"""Masks: True = masked, exactly k a sample, deterministic."""

import pytest
import torch
import torch.nn.functional as F

from lar_core.draws import Draws
from lar_core.errors import LarError
from lar_core.model.masking import area_resample, count_masked, make_mask, mask_top, pixel_mask
from lar_core.registry import MASK_SOURCES


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
    recon = policy.reconstruct(batch, policy.encode(batch), Draws(0))
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
