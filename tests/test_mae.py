"""The decoder sees nothing of what is masked, and is judged on nothing else."""

import math

import pytest
import torch
from conftest import reconstruct

from lar_core.model.mae import (
    MAEDecoder,
    denormalise_patches,
    normalise_patches,
    patchify,
    reconstruction_loss,
    sincos_positions,
    unpatchify,
)


def decoder():
    return MAEDecoder(grid=4, patch_size=16, feature_width=32, width=16, layers=2, heads=2).eval()


def first_masked():
    return torch.arange(16)[None] < 4


def test_prediction_does_not_depend_on_masked_features():
    model, features = decoder(), torch.randn(1, 16, 32)
    other = torch.where(first_masked()[..., None], torch.randn(1, 16, 32), features)
    assert torch.equal(model(features, first_masked()), model(other, first_masked()))


def test_prediction_depends_on_visible_features():
    model, features = decoder(), torch.randn(1, 16, 32)
    other = torch.where(first_masked()[..., None], features, torch.randn(1, 16, 32))
    assert not torch.allclose(model(features, first_masked())[:, :4], model(other, first_masked())[:, :4])


def test_loss_counts_masked_patches_only():
    target, prediction = torch.zeros(1, 4, 2), torch.tensor([[[1.0, 3.0], [9, 9], [9, 9], [0, 2]]])
    mask = torch.tensor([[True, False, False, True]])
    assert reconstruction_loss(prediction, target, mask) == pytest.approx((5 + 2) / 2)  # by hand: means of squares


def test_patchify_puts_the_upper_left_square_first_and_is_inverted():
    images = torch.rand(2, 3, 8, 8)
    patches = patchify(images, 4)
    assert torch.equal(patches[0, 0].reshape(2, 2, 3), images[0, :, :2, :2].permute(1, 2, 0))
    assert torch.equal(patches[0, 1].reshape(2, 2, 3), images[0, :, :2, 2:4].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 4), images)


def test_normalised_patches_have_mean_0_and_variance_1_and_can_be_put_back():
    pixels = torch.rand(2, 4, 48)
    normalised = normalise_patches(pixels)
    assert torch.allclose(normalised.mean(-1), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(normalised.var(-1), torch.ones(2, 4), atol=1e-3)
    assert torch.allclose(denormalise_patches(normalised, pixels), pixels, atol=1e-5)


def test_positions_by_hand():
    positions = sincos_positions(2, 8)  # two frequencies a direction: 1 and 1/100
    expected = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01), 0, 0, 1, 1]  # row 1, column 0
    assert torch.allclose(positions[2], torch.tensor(expected))


def test_hiding_the_input_keeps_the_masked_pixels_from_the_backbone(policy_of, batch):
    """With mask_input, changing what is under the mask changes nothing that the decoder gets."""
    policy = policy_of("random_mask", mask_input=True)
    def prediction(pixels):
        changed = {**batch, "images": pixels}
        return reconstruct(policy, changed, policy.encode(batch))
    first = prediction(batch["images"])
    hidden = first.mask.reshape(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    second = prediction(torch.where(hidden, 255 - batch["images"], batch["images"]))
    assert torch.equal(first.prediction, second.prediction)
    assert not torch.equal(first.pixels, second.pixels)


def test_without_it_the_backbone_leaks_the_masked_pixels(policy_of, batch):
    policy = policy_of("random_mask")
    def prediction(pixels):
        changed = {**batch, "images": pixels}
        return reconstruct(policy, changed)
    first = prediction(batch["images"])
    hidden = first.mask.reshape(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert not torch.allclose(first.prediction,
                              prediction(torch.where(hidden, 255 - batch["images"], batch["images"])).prediction)
