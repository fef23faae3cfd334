"""Metrics of maps on examples small enough to work out by hand, and against formulas that NumPy and scikit-learn have."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score, roc_auc_score

from lar_core.measure.metrics import (
    Truth,
    aos,
    aos_best,
    aos_uniform,
    auc,
    box_iou,
    box_of,
    centre_map,
    energy,
    in_context,
    mean_map,
    object_patches,
    patch_coverage,
    pointing,
    pseudo_box,
    region,
    score,
    target_minus_distractor,
    top_patches,
)
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
    for value in (aos_best(truth()), aos_uniform(truth()), target_minus_distractor(np.array([SALIENCY]), truth(0))):
        assert np.isnan(value).all()


def test_shares_of_patches_stand_for_pixels_that_cover_as_much():
    pixels, shares = truth(0, other=(3,)), Truth.of_shares(np.array([[[1.0, 0, 0, 0], [0, 0, 0, 1]]]))
    for name, value in in_context(np.array([SALIENCY]), pixels).items():
        np.testing.assert_array_equal(value, in_context(np.array([SALIENCY]), shares)[name])


# On patches: AOS, its baselines, and maps that never look


def at(*patches, value=1.0):
    """A (1, 16) map with `value` at the given patches."""
    found = np.zeros((1, 16))
    found[0, list(patches)] = value
    return found


def seen(coverage, other=None):
    """The truth of frames in which objects cover these shares of the 4 x 4 patches."""
    return Truth.of_shares(np.stack([coverage, np.zeros_like(coverage) if other is None else other], axis=1))


@pytest.fixture
def random_maps():
    rng = np.random.default_rng(0)
    saliency = rng.random((8, 16))
    return saliency / saliency.sum(1, keepdims=True), rng.random((8, 16)) * (rng.random((8, 16)) > 0.6)


def test_coverage_is_the_covered_share_of_each_patch_row_by_row():
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, 0:2, 2:4] = 1  # all of patch 1
    mask[0, 7, 0] = 1  # a quarter of patch 12
    coverage = patch_coverage(mask, 4)
    assert coverage[0, 1] == 1 and coverage[0, 12] == 0.25 and coverage.sum() == 1.25


def test_a_grid_that_does_not_divide_the_image_shares_the_border_pixels():
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0, :, 1] = 1  # the second of four columns; cells of a 3x3 grid are 4/3 pixels wide
    np.testing.assert_allclose(patch_coverage(mask, 3)[0], np.tile([0.25, 0.5, 0], 3))
    np.testing.assert_allclose(patch_coverage(np.ones((1, 128, 128)), 14), 1)


def test_an_objects_patches_are_those_a_fifth_covered_or_else_the_most_covered_one():
    coverage = at(2, value=0.5) + at(3, value=0.2) + at(4, value=0.1)
    assert np.flatnonzero(object_patches(coverage)).tolist() == [2, 3]
    small = at(5, value=0.05) + at(9, value=0.1)
    assert np.flatnonzero(object_patches(small)).tolist() == [9]
    assert not object_patches(at()).any()


def test_top_patches_are_exactly_a_quarter_with_ties_broken_by_order():
    assert np.flatnonzero(top_patches(np.full((1, 16), 1 / 16))).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(top_patches(at(7, 9, 11, 15) / 4)).tolist() == [7, 9, 11, 15]
    assert top_patches(np.ones((3, 64)), 0.1).sum(1).tolist() == [6, 6, 6]


def test_aos_by_hand():
    saliency = at(0, 1, 2, 3) / 4
    assert aos(saliency, seen(at(0, 1, 2, 3))) == 1
    assert aos(saliency, seen(at(2, 3, 4, 5))) == pytest.approx(2 / 6)
    assert aos(saliency, seen(at(3))) == aos_best(seen(at(3))) == 0.25
    assert aos(saliency, seen(at(9))) == 0


def test_aos_is_the_jaccard_score_of_scikit_learn(random_maps):
    saliency, coverage = random_maps
    wanted = [jaccard_score(own, top) for own, top in zip(object_patches(coverage), top_patches(saliency))]
    np.testing.assert_allclose(aos(saliency, seen(coverage)), wanted)


def test_uniform_baseline_is_the_mean_over_random_rankings():
    coverage = at(0, 1, 5)
    assert aos_uniform(seen(at(3))) == pytest.approx(0.25 * 0.25)  # hit with chance 4 of 16, then 1 of 4
    random = np.random.default_rng(0).random((20_000, 16))
    found = aos(random, seen(np.repeat(coverage, len(random), axis=0))).mean()
    assert aos_uniform(seen(coverage))[0] == pytest.approx(found, abs=3e-3)


def test_priors_sum_to_one_and_peak_where_they_should():
    centre = centre_map(4).reshape(4, 4)
    assert centre.sum() == pytest.approx(1)
    assert centre[1, 1] == pytest.approx(centre[2, 2]) and centre[1, 1] > centre[0, 0]
    prior = mean_map(np.concatenate([at(3), at(3), at(7)]))
    assert prior[3] == pytest.approx(2 / 3) and prior.sum() == pytest.approx(1)
    np.testing.assert_allclose(mean_map(at()), 1 / 16)  # never seen: no prior


def test_target_minus_distractor_has_the_sign_of_the_preference():
    saliency = at(1, value=0.6) + at(2, value=0.1) + at(9, value=0.3)
    assert target_minus_distractor(saliency, seen(at(1), at(2))) == pytest.approx(0.5)
    assert target_minus_distractor(saliency, seen(at(2), at(1))) == pytest.approx(-0.5)
    assert target_minus_distractor(saliency, seen(at(1, value=0.5), at(2))) == pytest.approx(0.2)
    assert energy(saliency, seen(at(1, 9))) == pytest.approx(0.9)


def test_the_pointing_game_asks_for_the_peaks_patch():
    assert pointing(at(5), seen(at(5))) == 1 and pointing(at(5), seen(at(6))) == 0
    assert pointing(np.full((1, 16), 1 / 16), seen(at(0, 1))) == pytest.approx(2 / 16)


def test_auc_is_scikit_learns_and_half_for_a_flat_map(random_maps):
    saliency, coverage = random_maps
    wanted = [roc_auc_score(own, score) for own, score in zip(object_patches(coverage), saliency)]
    np.testing.assert_allclose(auc(saliency, seen(coverage)), wanted)
    assert auc(np.full((1, 16), 1 / 16), seen(at(3, 4))) == 0.5 and auc(at(3), seen(at(3))) == 1


# From a map to a box


def test_the_region_is_the_heaviest_cluster_above_half_of_the_peak():
    saliency = np.array([[9, 0, 0, 0], [0, 0, 0, 6], [0, 0, 5, 6], [4, 0, 0, 5]], float).ravel()
    assert np.flatnonzero(region(saliency).ravel()).tolist() == [7, 10, 11, 15]  # 22 together; the lone peak has 9
    assert pseudo_box(saliency, 40) == (20, 10, 40, 40)


def test_boxes_are_right_and_bottom_exclusive():
    mask = np.zeros((10, 10))
    mask[2:5, 3:9] = 1
    assert box_of(mask) == (3, 2, 9, 5) and box_of(np.zeros((4, 4))) is None


def test_box_iou_is_the_jaccard_score_of_the_pixels():
    one, other = (2, 1, 8, 6), (4, 3, 9, 9)
    masks = []
    for left, top, right, bottom in (one, other):
        mask = np.zeros((10, 10), int)
        mask[top:bottom, left:right] = 1
        masks.append(mask.ravel())
    assert box_iou(one, other) == pytest.approx(jaccard_score(*masks))
    assert box_iou(one, one) == 1 and box_iou((0, 0, 2, 2), (5, 5, 6, 6)) == 0
