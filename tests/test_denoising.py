"""The denoiser on held-out frames: its loss beside another frame's states, its pictures, and the words about it."""

import numpy as np
import pytest
import torch
from conftest import reconstruct
from test_probes import demos, trained  # noqa: F401  (demos is a fixture)
from test_results import interval, minimal

from lar_core.data.dataset import load_split, make_dataset
from lar_core.measure.probes import denoising, probe_heldout, reconstruction_panels
from lar_core.measure.results import validate_results
from lar_core.show import findings
from lar_core.show.findings import DETECTED, NOT_DETECTED


def test_a_held_out_run_has_the_section_and_its_pictures(tmp_path, demos):  # noqa: F811
    run, policy, stats = trained(tmp_path, demos, "gaze_diffusion")
    result = probe_heldout(run, policy, stats, demos)
    assert result["reconstruction"] is None
    assert 0 < result["denoising"]["loss"]["mean"] < 1.5 and result["denoising"]["episodes"] == 2
    validate_results(minimal("gaze_diffusion") | {"denoising": result["denoising"]})
    with np.load(run.path / "gallery.npz", allow_pickle=False) as gallery:
        assert gallery["panels"].shape[1:] == (4, 64, 64, 3)


def test_a_denoiser_that_reads_nothing_loses_nothing_by_another_frames_states(tmp_path, demos):  # noqa: F811
    run, policy, stats = trained(tmp_path, demos, "gaze_diffusion")
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
