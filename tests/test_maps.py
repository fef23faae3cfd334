"""Rows of saliency: one an aggregation, one a split, all on the same frames."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from test_demos import make_episode
from test_phrases import flickr30k, refcoco

from lar_core.data.dataset import Stats, make_dataset
from lar_core.data.phrases import Phrase, Place, phrases
from lar_core.measure.maps import (
    aggregation_rows,
    layer_maps,
    layer_rows,
    localisation_heads,
    maps_in_batches,
    photograph_rows,
    robustness_rows,
    row,
    score_photographs,
    truth_of,
)
from lar_core.measure.results import gather_results
from lar_core.measure.robustness import SPLITS
from lar_core.measure.schema import SWEPT
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.folder import Run
from lar_core.run.registry import METRICS
from lar_core.show.figures import LOOKERS
from lar_core.show.report import write_report


@pytest.fixture
def dataset():
    episodes = [make_episode(steps=12, seed=seed, size=64, wrist=32) for seed in range(2)]
    return make_dataset(episodes, Stats.of(episodes), make_config(profile="micro"))


@pytest.fixture
def run(tmp_path):
    return Run.open(make_config(profile="micro"), tmp_path / "run")


FRAMES = np.arange(0, 24, 4)
MATTERED = np.random.default_rng(0).random((6, 16))  # occlusion maps


def test_every_aggregation_has_a_row_with_every_metric(run, policy_of, dataset):
    rows = aggregation_rows(run, policy_of().eval(), dataset, dataset, FRAMES, MATTERED)
    assert [entry["name"] for entry in rows] == ["mean", "content_words", "sink_removal", "relative",
                                                 "localisation_heads", "smooth", "coarse_to_fine", "multi_pass"]
    for entry in rows:
        assert set(entry["metrics"]) == {*METRICS, "agreement"} and entry["frames"] == len(FRAMES)
        assert entry["metrics"]["auc"]["mean"] is not None


def test_the_literal_row_is_what_the_policy_itself_sees(run, policy_of, dataset):
    policy = policy_of().eval()
    first = aggregation_rows(run, policy, dataset, dataset, FRAMES, MATTERED)[0]
    batch = dataset.batch(FRAMES)
    saliency = policy.encode(batch).saliency.detach().numpy()
    wanted = row("mean", saliency, truth_of(dataset, FRAMES, policy), dataset.episode[FRAMES])
    assert first["metrics"]["energy"]["mean"] == pytest.approx(wanted["metrics"]["energy"]["mean"], abs=1e-5)


def test_every_split_has_a_row_and_the_original_is_the_first(policy_of, dataset):
    rows = robustness_rows(policy_of().eval(), dataset, FRAMES)
    assert [entry["name"] for entry in rows] == list(SPLITS)


def test_every_layer_is_read_for_everyone_who_looks_in_one_pass(policy_of, dataset, monkeypatch):
    policy, passes = policy_of().eval(), []
    upper = type(policy.backbone).upper
    monkeypatch.setattr(type(policy.backbone), "upper", lambda self, *a, **k: passes.append(k) or upper(self, *a, **k))
    maps = layer_maps(policy, dataset.batch(FRAMES))
    assert len(passes) == 1 and list(maps) == [(layer, kind) for kind in LOOKERS for layer in range(3)]
    for kind in LOOKERS:  # the mean over layers before it is normalised is what a policy of that kind sees
        own = policy_of(saliency_rows=kind, saliency_layers=1).eval()
        np.testing.assert_allclose(maps[2, kind], own.encode(dataset.batch(FRAMES)).saliency.detach(), atol=1e-6)


def test_layers_have_no_action_rows_below_where_the_heads_tokens_join_or_without_queries(policy_of, dataset):
    policy = policy_of(tune="full_top", top_layers=1, saliency_layers=1).eval()
    rows = layer_rows(policy, dataset, FRAMES, MATTERED)
    assert [(entry["rows"], entry["layer"]) for entry in rows] == [
        ("text", 0), ("text", 1), ("text", 2), ("bos", 0), ("bos", 1), ("bos", 2), ("action", 2)]
    assert all(set(entry["metrics"]) == {*SWEPT, "agreement"} for entry in rows)
    assert all(0 <= entry["metrics"]["auc"]["mean"] <= 1 for entry in rows)
    writer = layer_rows(policy_of("autoregressive_head").eval(), dataset, FRAMES, MATTERED)
    assert {entry["rows"] for entry in writer} == {"text", "bos"} and len(writer) == 6


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


# Photographs with phrases through the same scores as the scene.


@pytest.fixture
def policy(policy_of):
    return policy_of().eval()


@pytest.mark.parametrize(("name", "make", "split"), [("refcoco", refcoco, "testA"), ("flickr30k", flickr30k, "val")])
def test_published_formats_end_in_rows_with_every_metric(policy, tmp_path, name, make, split):
    rows = photograph_rows(policy, phrases(name, make(tmp_path), split), names=["mean", "relative"])
    assert [entry["name"] for entry in rows] == ["mean", "relative"]
    assert set(rows[0]["metrics"]) == set(METRICS) and rows[0]["metrics"]["auc"]["mean"] >= 0


def test_a_photograph_is_stretched_with_its_masks(policy, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / "wide.png")
    phrase = Phrase(tmp_path / "wide.png", "the left half", Place(((0, 0, 40, 40),)))
    given = np.zeros((1, 16), np.float32)
    given.reshape(4, 4)[:, :2] = 1 / 8  # all of it on the left half
    monkeypatch.setattr("lar_core.measure.maps.maps_in_batches", lambda *_: {"mean": given})
    metrics = photograph_rows(policy, [phrase])[0]["metrics"]
    for name in ("energy", "best_iou", "box_iou", "auc", "pointing_0px"):
        assert metrics[name]["mean"] == pytest.approx(1), name


def test_phrases_of_one_picture_are_one_observation(policy, tmp_path):
    for number in range(2):
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    place = Place(((0, 0, 8, 8),))
    many = [Phrase(tmp_path / "0.png", text, place) for text in ("a bowl", "a plate", "a stove")]
    alone = photograph_rows(policy, many, names=["mean"])[0]
    assert alone["frames"] == 3 and alone["metrics"]["energy"]["low"] is None  # one picture: no interval
    both = photograph_rows(policy, [*many, Phrase(tmp_path / "1.png", "a bowl", place)], names=["mean"])[0]
    assert both["metrics"]["energy"]["low"] is not None


def test_scores_are_kept_in_the_run_folder_in_the_results_and_in_the_report(policy, tmp_path):
    run = Run.open(make_config(profile="micro"), tmp_path / "run")
    rows = score_photographs(run, policy, "refcoco", refcoco(tmp_path), "testA")
    names = [entry["name"] for entry in rows]
    assert "localisation_heads" not in names and "multi_pass" in names  # no heads were chosen for this run
    assert gather_results(run)["photographs"] == {"refcoco-testA": rows}
    page = write_report(run).read_text(encoding="utf-8")
    assert "On photographs, refcoco-testA" in page and "2 phrases" in page
    (run.path / "localisation_heads.json").write_text('[{"layer": 2, "head": 1}]')
    assert "localisation_heads" in [entry["name"] for entry in score_photographs(run, policy, "refcoco", tmp_path, "testA")]


def test_no_phrases_and_a_limit(policy, tmp_path):
    with pytest.raises(LarError, match="no phrases"):
        photograph_rows(policy, [])
    found = phrases("refcoco", refcoco(tmp_path), "testA")
    assert photograph_rows(policy, found, limit=1, names=["mean"])[0]["frames"] == 1


SMALL = Place(((0, 0, 8, 8),))


@pytest.mark.parametrize("text, image, place, reason", [
    ("a bowl", "0.png", Place(((0, 0, 8, 8),), []), "mask is empty"),
    ("a bowl", "0.png", Place(((0, 0, 8, 8),), [[0, 0, 8, 8]]), "mask is empty"),
    ("a bowl", "0.png", Place(((20, 20, 30, 30),)), "no pixel of the picture"),
    ("a bowl", "gone.png", SMALL, "picture is missing"), ("", "0.png", SMALL, "no instruction"),
    ("the <image> bowl", "0.png", SMALL, "no instruction"), ("bowl " * 400, "0.png", SMALL, "no instruction"),
    ("a bowl", "large.png", Place(((0, 0, 1, 1),)), "smaller than a pixel")])
def test_a_phrase_that_cannot_be_used_is_skipped_and_counted(policy, tmp_path, capsys, text, image, place, reason):
    for name, size in (("0.png", 16), ("large.png", 1600)):
        Image.new("RGB", (size, size)).save(tmp_path / name)
    good = [Phrase(tmp_path / "0.png", text, SMALL) for text in ("a bowl", "a plate")]
    made, = photograph_rows(policy, [good[0], Phrase(tmp_path / image, text, place), good[1]], names=["mean"])
    assert (made["frames"], made["skipped"]) == (2, 1)
    said = capsys.readouterr().out
    assert said.startswith("1 of 3 phrases were skipped: 1 × ") and reason in said
    clean, = photograph_rows(policy, good, names=["mean"])
    assert clean["skipped"] == 0 and clean["metrics"] == made["metrics"]  # what is left is scored as if alone
    with pytest.raises(LarError, match=f"None of 1 phrases can be scored .*{reason}"):
        photograph_rows(policy, [Phrase(tmp_path / image, text, place)], names=["mean"])


def test_another_place_that_cannot_be_used_is_no_rival(policy, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    def ranked(*others):
        return photograph_rows(policy, [Phrase(tmp_path / "0.png", "a bowl", SMALL, others)], names=["mean"])[0]["metrics"]
    rival = Place(((8, 8, 16, 16),))
    assert ranked(Place(((30, 0, 40, 8),)), rival, Place(mask=[])) == ranked(rival)


def test_how_many_were_skipped_stands_in_the_report(policy, tmp_path):
    run = Run.open(make_config(profile="micro"), tmp_path / "run")
    folder = refcoco(tmp_path)
    found = json.loads((folder / "instances.json").read_text())
    found["annotations"].append({"id": 13, "image_id": 5, "bbox": [1, 1, 2, 2], "segmentation": []})
    (folder / "instances.json").write_text(json.dumps(found))
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    (folder / "refs(unc).p").write_bytes(pickle.dumps([*refs, {**refs[0], "ann_id": 13}], protocol=2))
    score_photographs(run, policy, "refcoco", folder, "testA")
    gather_results(run)
    assert "2 phrases (2 more could not be used)" in write_report(run).read_text(encoding="utf-8")
