"""Heatmap metrics on examples worked out by hand, and against formulas that NumPy and scikit-learn have."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lar_core.measure.metrics import Truth, score
from lar_core.run.registry import METRICS


def truth(*patches, other=(), size=8):
    """One frame of 8 x 8 pixels on a 2 x 2 grid, in which objects cover whole patches."""
    def pixels(chosen):
        mask = np.zeros((1, 2, 2), np.uint8)
        mask.reshape(-1)[list(chosen)] = 1
        return mask.repeat(size // 2, axis=1).repeat(size // 2, axis=2)
    return Truth(pixels(patches), 2, pixels(other) if other else None)


def of(name, saliency, *patches, **other):
    return METRICS[name](np.array([saliency], float), truth(*patches, **other))[0]


SALIENCY = [0.4, 0.3, 0.2, 0.1]


def test_energy_is_the_share_on_the_object():
    assert of("energy", SALIENCY, 0, 2) == pytest.approx(0.6)


def test_target_minus_distractor_by_hand():
    assert of("target_minus_distractor", SALIENCY, 0, other=(1,)) == pytest.approx(0.1)


def test_soft_iou_by_hand():
    # scaled: 1, .75, .5, .25; the object covers patch 0 wholly: minima 1, maxima 1 + .75 + .5 + .25
    assert of("soft_iou", SALIENCY, 0) == pytest.approx(1 / 2.5)
    # objects 0 and 3: minima 1 + .25, maxima 1 + .75 + .5 + 1
    assert of("soft_iou", SALIENCY, 0, 3) == pytest.approx(1.25 / 3.25)


def test_best_iou_takes_the_threshold_that_suits_best():
    # thresholds give {0}, {0,1}, {0,1,2}, all: IoU with {1, 2} is 0, 1/3, 2/3, 2/4
    assert of("best_iou", SALIENCY, 1, 2) == pytest.approx(2 / 3)
    assert of("best_iou", [0.25] * 4, 1) == 0.25  # equal values are never told apart


def test_box_iou_by_hand():
    # above half of the peak: patches 0, 1, 2, one cluster: its box is the whole image; the object's box is patch 0
    assert of("box_iou", SALIENCY, 0) == pytest.approx(1 / 4)
    assert of("box_iou", [0.7, 0.1, 0.1, 0.1], 0, 1) == pytest.approx(1 / 2)


def test_nss_by_hand_and_zero_for_a_flat_map():
    # mean .25, standard deviation sqrt(.0125)
    assert of("nss", SALIENCY, 0) == pytest.approx(0.15 / 0.0125**0.5)
    assert of("nss", SALIENCY, 0, 3) == pytest.approx(0)
    assert of("nss", [0.25] * 4, 0) == 0


def test_auc_counts_pairs_in_the_right_order():
    # object {1, 2} against {0, 3}: .3 > .1, .2 > .1, but not > .4: two of four pairs
    assert of("auc", SALIENCY, 1, 2) == 0.5


def test_correlation_is_numpys():
    assert of("cc", SALIENCY, 0, 1) == pytest.approx(np.corrcoef(SALIENCY, [1, 1, 0, 0])[0, 1])
    assert of("cc", [0.25] * 4, 0) == 0


def test_kl_by_hand():
    # density 1/2, 1/2 on patches 0 and 1: .5 ln(.5/.4) + .5 ln(.5/.3)
    assert of("kl", SALIENCY, 0, 1) == pytest.approx(0.5 * np.log(0.5 / 0.4) + 0.5 * np.log(0.5 / 0.3))
    assert of("kl", [0.5, 0.5, 0, 0], 0, 1) == pytest.approx(0, abs=1e-9)


def test_spearman_by_hand():
    # ranks 4 3 2 1 against 3.5 3.5 1.5 1.5: Pearson of the ranks is 4 / sqrt(5 * 4)
    assert of("spearman", SALIENCY, 0, 1) == pytest.approx(4 / 20**0.5)


def test_pointing_game_measures_from_the_middle_of_the_peak():
    one = np.zeros((1, 32, 32), np.uint8)
    one[0, 0:16, 26:30] = 1  # patch 1 of a 2 x 2 grid; the middle of patch 0 is pixel (8, 8), 18 pixels away
    frame = Truth(one, 2)
    left, right = np.array([[1.0, 0, 0, 0]]), np.array([[0, 1.0, 0, 0]])
    assert METRICS["pointing_15px"](left, frame) == 0
    assert METRICS["pointing_15px"](right, frame) == 1 and METRICS["pointing_0px"](right, frame) == 0  # middle (8, 24)
    assert METRICS["pointing_0px"](np.array([[1.0, 0, 0, 0]]), truth(0))[0] == 1
    assert METRICS["pointing_0px"](np.full((1, 4), 0.25), truth(0))[0] == 0.25  # a flat map gets what chance gives


def test_region_rank_is_by_saliency_per_area():
    # the named object: patch 2 (.2); others: patches 0 and 3 (.25 a patch), patch 1 (.3): third
    objects = np.zeros((1, 3, 2, 2), np.uint8)
    objects[0, 0].flat[2] = objects[0, 1].flat[[0, 3]] = objects[0, 2].flat[1] = 1
    frame = Truth(objects[:, 0], 2, objects=objects)
    assert METRICS["region_rank"](np.array([SALIENCY]), frame) == 3
    assert METRICS["region_rank"](np.full((1, 4), 0.25), frame) == 2  # all tied
    objects[0, 2] = 0  # out of view: no rival any more
    assert METRICS["region_rank"](np.array([SALIENCY]), Truth(objects[:, 0], 2, objects=objects)) == 2


def test_shuffled_auc_takes_its_negatives_from_the_other_frames():
    named = np.zeros((3, 2, 2), np.uint8)
    named[0].flat[0] = named[1].flat[1] = named[2].flat[1] = 1
    frames = Truth(named, 2)
    maps = np.array([SALIENCY] * 3)
    found = METRICS["shuffled_auc"](maps, frames)
    assert found[0] == 1  # .4 against .3 twice
    assert found[1] == pytest.approx(0.25)  # .3 against .4 (lost) and against .3 (a tie)
    assert np.isnan(METRICS["shuffled_auc"](maps[:1], Truth(named[:1], 2))).all()


def test_knowing_where_objects_usually_are_earns_auc_but_no_shuffled_auc(rng):
    usual = np.array([8, 4, 2, 2]) / 16
    named = np.zeros((400, 2, 2), np.uint8)
    named.reshape(400, 4)[np.arange(400), rng.choice(4, 400, p=usual)] = 1
    found = score(np.tile(usual, (400, 1)), Truth(named, 2))
    assert found["auc"].mean() > 0.65 and found["shuffled_auc"].mean() == pytest.approx(0.5, abs=0.01)
    wanted = roc_auc_score(named[0].ravel(), usual)
    assert found["auc"][0] == pytest.approx(wanted)


def test_a_map_that_is_the_object_gets_the_best_of_everything():
    best = score(np.array([[1.0, 0, 0, 0]]), truth(0, other=(3,)))
    for name in set(METRICS) - {"kl", "nss", "shuffled_auc"}:
        assert best[name] == pytest.approx(1), name
    assert best["kl"] == pytest.approx(0, abs=1e-9) and best["nss"] == pytest.approx(3**0.5)


def test_an_object_out_of_sight_counts_nowhere():
    assert all(np.isnan(value).all() for value in score(np.array([SALIENCY]), truth()).values())
