"""Rows of saliency: one an aggregation, one a split, all on the same frames."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_demos import make_episode

from lar_core.data.dataset import Stats, make_dataset
from lar_core.measure.maps import aggregation_rows, localisation_heads, maps_in_batches, robustness_rows, row, truth_of
from lar_core.measure.robustness import SPLITS
from lar_core.run.config import make_config
from lar_core.run.folder import Run
from lar_core.run.registry import METRICS


@pytest.fixture
def dataset():
    episodes = [make_episode(steps=12, seed=seed, size=64, wrist=32) for seed in range(2)]
    return make_dataset(episodes, Stats.of(episodes), make_config(profile="micro"))


@pytest.fixture
def run(tmp_path):
    return Run.open(make_config(profile="micro"), tmp_path / "run")


FRAMES = np.arange(0, 24, 4)


def test_every_aggregation_has_a_row_with_every_metric(run, policy_of, dataset):
    rows = aggregation_rows(run, policy_of().eval(), dataset, dataset, FRAMES)
    assert [entry["name"] for entry in rows] == ["mean", "content_words", "sink_removal", "relative",
                                                 "localisation_heads", "smooth", "coarse_to_fine", "multi_pass"]
    for entry in rows:
        assert set(entry["metrics"]) == set(METRICS) and entry["frames"] == len(FRAMES)
        assert entry["metrics"]["auc"]["mean"] is not None


def test_the_literal_row_is_what_the_policy_itself_sees(run, policy_of, dataset):
    policy = policy_of().eval()
    first = aggregation_rows(run, policy, dataset, dataset, FRAMES)[0]
    batch = dataset.batch(FRAMES)
    saliency = policy.encode(batch).saliency.detach().numpy()
    wanted = row("mean", saliency, truth_of(dataset, FRAMES, policy), dataset.episode[FRAMES])
    assert first["metrics"]["energy"]["mean"] == pytest.approx(wanted["metrics"]["energy"]["mean"], abs=1e-5)


def test_every_split_has_a_row_and_the_original_is_the_first(policy_of, dataset):
    rows = robustness_rows(policy_of().eval(), dataset, FRAMES)
    assert [entry["name"] for entry in rows] == list(SPLITS)


def test_heads_are_chosen_once_and_kept_in_the_run_folder(run, policy_of, dataset):
    policy = policy_of().eval()
    heads = localisation_heads(run, policy, dataset)
    path = run.path / "localisation_heads.json"
    assert 1 <= len(heads) <= 3 and len(json.loads(path.read_text())) == len(heads)
    path.write_text('[{"layer": 2, "head": 1}]')
    assert localisation_heads(run, policy, dataset) == [(2, 1)]


def test_maps_do_not_depend_on_how_frames_are_batched(policy_of, dataset, monkeypatch):
    policy = policy_of().eval()
    images, sentences = dataset.images[:5], [dataset.instructions[0]] * 5
    whole = maps_in_batches(policy, images, sentences, ["mean", "smooth"])
    monkeypatch.setattr("lar_core.measure.maps.BATCH", 2)
    parts = maps_in_batches(policy, images, sentences, ["mean", "smooth"])
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], atol=1e-6)


def test_the_named_object_stands_first_among_all_segmented_ones(policy_of, dataset):
    truth = truth_of(dataset, FRAMES, policy_of())
    np.testing.assert_array_equal(truth.objects[:, 0], truth.named.astype(bool))
    numbers = dataset.segmentation[FRAMES]
    np.testing.assert_array_equal(truth.objects.any(axis=1), numbers > 0)
    assert truth.objects.sum(axis=1).max() == 1  # a pixel is one object's
