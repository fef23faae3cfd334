"""Probes: baselines by hand, pictures in order, numbers that a perfect policy would get."""

import math

import numpy as np
import pytest
import torch
from conftest import reconstruct
from test_demos import make_episode

from lar_core.data.demos import merge_episodes, write_episode
from lar_core.measure.probes import mean_patch, neighbours, probe_heldout, reconstruction_panels
from lar_core.model.policy import load_policy
from lar_core.model.train import train
from lar_core.run.config import make_config
from lar_core.run.folder import Run


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    (folder / "task.bddl").write_text("(define)")
    parts = [folder / f"{seed}.hdf5" for seed in range(4)]
    for seed, part in enumerate(parts):
        write_episode(part, make_episode(steps=12, seed=seed, size=64, wrist=32), bddl_file=folder / "task.bddl")
    merge_episodes(parts, folder / "demo.hdf5")
    return [folder / "demo.hdf5"]


def trained(tmp_path, demos, condition="random_mask"):
    run = Run.open(make_config(condition, "micro", samples=16), tmp_path / "run")
    train(run, demos)
    return run, *load_policy(run)


def test_mean_patch_is_the_mean_of_the_visible_ones():
    target = torch.tensor([[[1.0], [3.0], [100.0], [5.0]]])
    guess = mean_patch(target, torch.tensor([[False, False, True, False]]))
    assert guess.flatten().tolist() == [3.0] * 4


def test_neighbours_weigh_visible_patches_by_inverse_distance_to_the_fourth():
    target = torch.tensor([[[10.0], [2.0], [4.0], [8.0]]])  # a 2x2 grid; the first is masked
    guess = neighbours(target, torch.tensor([[True, False, False, False]]))
    expected = (2 * 1 + 4 * 1 + 8 / 4) / (1 + 1 + 1 / 4)  # distances 1, 1 and the square root of 2
    assert guess[0, 0, 0].item() == pytest.approx(expected)


def numbers(value: object) -> list[float]:
    """All numbers in nested lists and dictionaries."""
    if isinstance(value, dict | list):
        return [number for part in (value.values() if isinstance(value, dict) else value) for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def test_every_number_is_there_and_finite(tmp_path, demos):
    result = probe_heldout(*trained(tmp_path, demos), demos)
    assert result["train_episodes"] == 2 and result["heldout_episodes"] == 2
    assert 0 <= result["action"]["l1"]["mean"] <= 2
    assert all(math.isfinite(value) for value in numbers(result))
    assert set(result["grounding"]["aos"]) == {"model", "uniform", "centre", "mean_map", "best"}
    assert 0 <= result["grounding"]["auc"]["model"]["mean"] <= 1
    assert result["grounding"]["auc"]["uniform"]["mean"] == pytest.approx(0.5)
    assert result["grounding"]["nss"]["uniform"]["mean"] == 0
    assert {row["name"] for row in result["aggregations"]} >= {"mean", "relative", "multi_pass"}
    assert result["robustness"][0]["name"] == "original"
    own = result["robustness"][0]["metrics"]["energy"]["mean"]
    assert own == pytest.approx(result["aggregations"][0]["metrics"]["energy"]["mean"])


def test_conditions_without_a_decoder_reconstruct_nothing(tmp_path, demos):
    run, policy, stats = trained(tmp_path, demos, "action_only")
    assert probe_heldout(run, policy, stats, demos)["reconstruction"] is None
    with np.load(run.path / "gallery.npz", allow_pickle=False) as gallery:
        assert "panels" not in gallery and gallery["saliency_maps"].shape[1] == 16


def test_a_policy_that_knows_the_action_has_no_error(tmp_path, demos, monkeypatch):
    run, policy, stats = trained(tmp_path, demos)
    monkeypatch.setattr(type(policy), "act", lambda self, batch: (batch["actions"], None))
    result = probe_heldout(run, policy, stats, demos)
    assert result["action"]["l1"]["mean"] == 0 < result["action"]["l1_mean_action"]["mean"]


def test_panels_are_original_masked_reconstructed_and_pasted(policy_of, batch):
    policy = policy_of("random_mask", recon_target="raw")
    recon = reconstruct(policy, batch)
    recon.prediction = recon.pixels + 0.0
    original, masked, reconstructed, pasted = reconstruction_panels(policy, recon)[0]
    assert np.abs(original.astype(int) - batch["images"][0].permute(1, 2, 0).numpy()).max() <= 1
    assert (reconstructed == original).all() and (pasted == original).all()
    hidden = recon.mask[0].reshape(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1).numpy()
    assert (masked[hidden] == masked[hidden][0]).all() and (masked[~hidden] == original[~hidden]).all()
