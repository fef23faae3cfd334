"""L = L_action + lambda * L_recon; binning loses at most half a bin."""

import math

import numpy as np
import pytest
import torch

from lar_core.model.losses import BINS, action_loss, bin_centres, decode, gradient_norm, to_bins
from lar_core.run.runtime import Draws


def test_uniform_logits_cost_log_256(batch):
    loss = action_loss(torch.zeros(2, 8, 7, 256), batch["actions"], batch["action_pad"])
    assert loss == pytest.approx(math.log(256), abs=1e-5)


def test_padded_steps_do_not_count(batch):
    logits = torch.nn.functional.one_hot(to_bins(batch["actions"]), 256) * 50.0
    wrong = torch.where(batch["action_pad"][..., None, None], -logits, logits)
    assert action_loss(wrong, batch["actions"], batch["action_pad"]) == pytest.approx(0, abs=1e-5)


def test_total_is_the_weighted_sum(policy_of, batch):
    losses = policy_of("random_mask", lambda_recon=0.3)(batch, Draws(0))
    assert losses["loss"].item() == pytest.approx(losses["action"].item() + 0.3 * losses["recon"].item(), rel=1e-6)


def test_reconstruction_sends_a_gradient_into_the_backbone(policy_of, batch):
    policy = policy_of("random_mask")
    losses = policy(batch, Draws(0))
    assert gradient_norm(losses["recon"], policy.backbone.parameters()) > 0


def test_gradient_norm_is_that_of_a_backward_pass(policy_of, batch):
    policy = policy_of("action_only")
    losses = policy(batch)
    weights = list(policy.backbone.parameters())
    norm = gradient_norm(losses["action"], weights)
    losses["loss"].backward()
    expected = torch.stack([w.grad.square().sum() for w in weights if w.grad is not None]).sum().sqrt()
    assert norm == pytest.approx(expected.item(), rel=1e-5)


def test_round_trip_error_is_at_most_half_a_bin():
    actions = torch.linspace(-1, 1, 10_001)[:, None].repeat(1, 7)
    error = (bin_centres(to_bins(actions)) - actions)[:, :6].abs()
    assert error.max() <= 1 / BINS + 1e-6


def test_bins_are_those_of_numpy_digitize():
    actions = torch.rand(1000, 7) * 2 - 1
    edges = np.linspace(-1, 1, BINS + 1)
    assert np.array_equal(to_bins(actions).numpy(), np.digitize(actions.numpy(), edges) - 1)


def test_ends_and_outliers_stay_in_range():
    assert to_bins(torch.tensor([-9.0, -1, 1, 9])).tolist() == [0, 0, 255, 255]


def test_gripper_is_open_or_closed():
    actions = torch.tensor([[0.0] * 6 + [-1], [0.0] * 6 + [1]])
    assert bin_centres(to_bins(actions))[:, 6].tolist() == [-1, 1]


def test_decoding_a_sharp_distribution_gives_the_bin_centre():
    bins = torch.randint(0, BINS, (2, 3, 7))
    logits = torch.nn.functional.one_hot(bins, BINS) * 100.0
    assert torch.allclose(decode(logits), bin_centres(bins), atol=1e-5)


def test_decoding_takes_the_median():
    """Three modes of weight .3, .45 and .25: half of the mass is reached in the second."""
    logits = torch.full((1, 1, 7, BINS), -100.0)
    logits[..., 10], logits[..., 60], logits[..., 200] = (torch.tensor([0.3, 0.45, 0.25]).log())
    assert torch.allclose(decode(logits), bin_centres(torch.full((1, 1, 7), 60)))


def test_decoding_is_not_thrown_by_a_spike_beside_a_broad_mode():
    probabilities = torch.full((BINS,), 1e-9)
    probabilities[255] = 0.1  # where clipped commands pile up
    probabilities[40:90] = 0.9 / 50
    decoded = decode(probabilities.log().expand(1, 1, 7, BINS))
    assert (decoded[..., :6] < 0).all() and (decoded[..., 6] == -1).all()
