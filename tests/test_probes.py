"""Probes: baselines by hand, pictures in order, numbers that a perfect policy would get."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import reconstruct
from test_demos import make_episode
from test_results import interval, minimal

from lar_core.data.dataset import Stats, load_split, make_dataset
from lar_core.data.demos import merge_episodes, write_episode
from lar_core.measure.probes import (
    GREY,
    denoising,
    mean_patch,
    neighbours,
    probe_heldout,
    reconstruction_panels,
    shortcut,
)
from lar_core.measure.results import validate_results
from lar_core.model.losses import absolute_error
from lar_core.model.policy import load_policy
from lar_core.model.train import train
from lar_core.run.config import make_config
from lar_core.run.folder import Run
from lar_core.show import findings
from lar_core.show.findings import DETECTED, NOT_DETECTED


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    (folder / "task.bddl").write_text("(define)")
    parts = [folder / f"{seed}.hdf5" for seed in range(4)]
    for seed, part in enumerate(parts):
        write_episode(part, make_episode(steps=12, seed=seed, size=64, wrist=32), bddl_file=folder / "task.bddl")
    merge_episodes(parts, folder / "demo.hdf5")
    return [folder / "demo.hdf5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, demos):
    """A factory: trained("random_mask") is that condition's run, trained once for all tests, with a policy of its own."""
    @cache
    def run_of(condition):
        run = Run.open(make_config(condition, "micro", samples=16), tmp_path_factory.mktemp(condition))
        train(run, demos)
        return run

    return lambda condition="random_mask": (run_of(condition), *load_policy(run_of(condition)))


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


def test_every_number_is_there_and_finite(trained, demos):
    result = probe_heldout(*trained(), demos)
    assert result["train_episodes"] == 2 and result["heldout_episodes"] == 2
    assert 0 <= result["action"]["l1"]["mean"] <= 2
    assert all(math.isfinite(value) for value in numbers(result))
    assert set(result["grounding"]["aos"]) == {"model", "uniform", "centre", "mean_map", "best"}
    assert 0 <= result["grounding"]["auc"]["model"]["mean"] <= 1
    assert result["grounding"]["auc"]["uniform"]["mean"] == pytest.approx(0.5)
    assert result["grounding"]["nss"]["uniform"]["mean"] == 0
    assert {row["name"] for row in result["aggregations"]} >= {"mean", "relative", "multi_pass"}
    assert result["robustness"][0]["name"] == "original"
    assert {(row["layer"], row["rows"]) for row in result["layers"]} == {
        (layer, kind) for layer in range(3) for kind in ("text", "bos", "action")}
    validate_results(minimal() | {"layers": result["layers"]})
    own = result["robustness"][0]["metrics"]["energy"]["mean"]
    assert own == pytest.approx(result["aggregations"][0]["metrics"]["energy"]["mean"])


def test_conditions_without_a_decoder_reconstruct_nothing(trained, demos):
    run, policy, stats = trained("action_only")
    assert probe_heldout(run, policy, stats, demos)["reconstruction"] is None
    with np.load(run.path / "gallery.npz", allow_pickle=False) as gallery:
        assert "panels" not in gallery and gallery["saliency_maps"].shape[1] == 16


def test_a_policy_that_knows_the_action_has_no_error(trained, demos, monkeypatch):
    run, policy, stats = trained()
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


# The shortcut probe: by hand on a policy that copies what it sees, and on policies that cannot see.


@pytest.fixture(scope="module")
def dataset():
    """Two episodes of six frames."""
    episodes = [make_episode(steps=6, seed=seed, size=64, wrist=32) for seed in range(2)]
    return make_dataset(episodes, Stats.of(episodes), make_config("action_only", "micro"))


FRAMES = np.arange(12)


class Copycat:
    """Answers with the brightness of the first pixel, in every step and degree of freedom; remembers what it saw."""

    device = "cpu"

    def __init__(self, reads_layers):
        self.seen = []
        self.head = Eye(reads_layers)

    def encode(self, batch, *, saliency):
        self.seen.append((batch["images"], batch["wrist"]))
        return SimpleNamespace(brightness=batch["images"][:, 0, 0, 0] / 255, steps=batch["actions"].shape[1])


class Eye:
    l1 = True
    loss, decode = staticmethod(absolute_error), staticmethod(lambda answer: answer)

    def __init__(self, reads_layers):
        self.reads_layers = reads_layers

    def __call__(self, encoding, seen=None):
        return (seen or encoding).brightness[:, None, None].expand(-1, encoding.steps, 7)


def expected(dataset, brightness):
    """Mean absolute error of that answer, of episode means."""
    batch = dataset.batch(FRAMES)
    valid = ~batch["action_pad"].numpy()
    errors = [np.abs(value - actions[mask]).mean()
              for value, actions, mask in zip(brightness, batch["actions"].numpy(), valid)]
    return np.mean([np.mean(errors[:6]), np.mean(errors[6:])])


def test_losses_are_those_of_what_was_shown(dataset):
    brightness = dataset.batch(FRAMES)["images"][:, 0, 0, 0].numpy() / 255
    right, blank = expected(dataset, brightness), expected(dataset, np.full(12, GREY / 255))
    shuffled = expected(dataset, np.roll(brightness, 6))
    result = shortcut(Copycat(True), dataset, FRAMES)
    assert result["right"]["loss"]["mean"] == pytest.approx(right, rel=1e-5)
    assert result["right"]["l1"]["mean"] == pytest.approx(right, rel=1e-5)
    for place in ("whole", "head"):
        assert result[place]["blank"]["loss"]["mean"] == pytest.approx(blank, rel=1e-5)
        assert result[place]["shuffled"]["increase"]["mean"] == pytest.approx(shuffled - right, abs=1e-5)
    assert result["unit"] == "normalised" and result["frames"] == 12 and result["episodes"] == 2


def test_both_cameras_show_grey_or_another_episode(dataset):
    policy = Copycat(False)
    assert shortcut(policy, dataset, FRAMES)["head"] is None
    (images, wrist), grey, others = policy.seen
    assert all((camera == GREY).all() for camera in grey)
    for right, other in ((images, others[0]), (wrist, others[1])):
        assert torch.equal(other[:6], right[6:]) and torch.equal(other[6:], right[:6])


@pytest.mark.parametrize("head", ["parallel", "autoregressive", "bridge", "focus"])
def test_a_blind_policy_loses_nothing_and_every_other_something(policy_of, dataset, head):
    blind, seeing = (shortcut(policy_of(condition, head=head).eval(), dataset, FRAMES)
                     for condition in ("blind", "action_only"))
    for kind in ("blank", "shuffled"):
        assert blind["whole"][kind]["increase"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
        assert seeing["whole"][kind]["increase"]["mean"] != 0
    assert (seeing["head"] is None) == (head in ("parallel", "autoregressive"))


def test_a_policy_that_lives_on_its_queries_is_found_out(policy_of, dataset):
    """Nothing of the patches passes, so its own view can be changed at no cost, although the whole needs the image."""
    policy = policy_of("bridge_head").eval()
    for block in policy.head.blocks:
        torch.nn.init.zeros_(block.of_vision.value.weight)
    result = shortcut(policy, dataset, FRAMES)
    assert result["head"]["shuffled"]["increase"]["mean"] == 0 != result["whole"]["shuffled"]["increase"]["mean"]


# The denoiser on held-out frames: its loss beside another frame's states, its pictures, and the words about it.


def test_a_held_out_run_has_the_section_and_its_pictures(trained, demos):
    run, policy, stats = trained("gaze_diffusion")
    result = probe_heldout(run, policy, stats, demos)
    assert result["reconstruction"] is None
    assert 0 < result["denoising"]["loss"]["mean"] < 1.5 and result["denoising"]["episodes"] == 2
    validate_results(minimal("gaze_diffusion") | {"denoising": result["denoising"]})
    with np.load(run.path / "gallery.npz", allow_pickle=False) as gallery:
        assert gallery["panels"].shape[1:] == (4, 64, 64, 3)


def test_a_denoiser_that_reads_nothing_loses_nothing_by_another_frames_states(trained, demos):
    run, policy, stats = trained("gaze_diffusion")
    with torch.no_grad():
        policy.decoder.denoiser.states.weight.zero_()
    _, heldout = load_split(demos, 0.5, 0)
    dataset = make_dataset(heldout, stats, run.config)
    probe = denoising(policy, dataset, np.arange(len(dataset)))
    assert probe["increase"] == {"mean": 0, "low": 0, "high": 0} and probe["loss"] == probe["other_frame"]


def test_panels_hide_the_region_and_put_the_sampled_one_back(policy_of, batch, monkeypatch):
    policy = policy_of("gaze_diffusion")
    recon = reconstruct(policy, batch)
    monkeypatch.setattr(policy.decoder, "sample", lambda states, draws: torch.ones(2, 3, 16, 16))
    original, masked, sampled, pasted = reconstruction_panels(policy, recon)[0].astype(int)
    assert np.abs(original - batch["images"][0].permute(1, 2, 0).numpy()).max() <= 1
    inside = np.zeros((64, 64), dtype=bool)
    inside[12:36, 28:52] = True  # the padded box of this batch's object
    assert (masked[inside] == 128).all() and (pasted[inside] == 255).all() and (sampled == 255).all()
    assert (masked[~inside] == original[~inside]).all() and (pasted[~inside] == original[~inside]).all()


@pytest.mark.parametrize("increase, verdict", [((0.1, 0.05, 0.15), DETECTED), ((0.01, -0.02, 0.04), NOT_DETECTED)])
def test_the_words_follow_the_interval(increase, verdict):
    probe = {"frames": 90, "episodes": 5, "loss": interval(0.4), "other_frame": interval(0.5),
             "increase": dict(zip(("mean", "low", "high"), increase))}
    results = minimal("gaze_diffusion") | {"denoising": probe}
    found = [found for found in findings.findings(results) if "denoiser" in found.topic]
    assert [one.verdict for one in found] == [verdict] and "loss 1" in found[0].sentence
    assert not [found for found in findings.findings(minimal()) if "denoiser" in found.topic]
