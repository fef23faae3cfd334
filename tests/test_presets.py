"""Every preset outside the study of test_studies.py: it trains, is scored, acts, is timed, and leaves valid results."""

from __future__ import annotations

import pytest
from test_demos import make_episode
from test_studies import PRESETS

from lar_core.data.demos import merge_episodes, write_episode
from lar_core.measure import cause, costs, probes
from lar_core.measure.probes import probe_heldout
from lar_core.measure.results import gather_results, load_results
from lar_core.model.policy import load_policy
from lar_core.model.train import train
from lar_core.run.config import CONDITIONS, make_config
from lar_core.run.folder import Run


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Two demonstrations that say their task, so that there is a sentence for the other bowl."""
    folder = tmp_path_factory.mktemp("demos")
    (folder / "task.bddl").write_text("(define)")
    parts = [folder / f"{seed}.hdf5" for seed in range(2)]
    for seed, part in enumerate(parts):
        episode = make_episode(steps=12, seed=seed, size=64, wrist=32)
        episode.provenance["task"] = 5
        write_episode(part, episode, bddl_file=folder / "task.bddl")
    merge_episodes(parts, folder / "demo.hdf5")
    return [folder / "demo.hdf5"]


@pytest.fixture(scope="module")
def quick():
    """Without what is the same for every preset: other maps than its own, changed frames, the cost of `action_only`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "aggregation_rows", lambda *_: [])
        patch.setattr(probes, "robustness_rows", lambda *_: [])
        patch.setattr(cause, "STEPS", 2)  # of a curve
        patch.setattr(cause, "PATHS", ("action_image",))
        measured, known = costs._cost, {}

        def cost(config, steps):
            if config.fingerprint not in known:
                known[config.fingerprint] = measured(config, steps)
            return known[config.fingerprint]
        patch.setattr(costs, "_cost", cost)
        yield


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name not in PRESETS])
def test_every_other_preset_is_trained_scored_and_timed(backbone_folder, demos, quick, tmp_path, condition):
    run = Run.open(make_config(condition, "micro", samples=8, grounding_frames=4, backbone=str(backbone_folder)),
                   tmp_path / "run")
    train(run, demos)
    policy, stats = load_policy(run)
    probe_heldout(run, policy, stats, demos)
    costs.measure_latency(run, policy, repeats=2)
    costs.measure_training(run, steps=1)
    gather_results(run)
    results = load_results(run.results)
    reconstructor = CONDITIONS[condition].reconstructor
    for part in ("training", "action", "grounding", "latency", "training_cost",
                 *{"mae": ["reconstruction"], "diffusion": ["denoising"], "none": []}[reconstructor]):
        assert results[part], part
    assert results["run"]["condition"] == condition and results["training_cost"]["own"]["flops"] > 0
