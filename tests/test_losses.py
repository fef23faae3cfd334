"""L = L_action + lambda * L_recon."""

import math

import pytest
import torch

from lar_core.draws import Draws
from lar_core.model.actions import to_bins
from lar_core.model.losses import action_loss, gradient_norm


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
