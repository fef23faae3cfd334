"""Grounding metrics on examples small enough to work out by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score, roc_auc_score

from lar_core.measure.grounding import (
    aos,
    aos_best,
    aos_uniform,
    auc,
    centre_map,
    mass,
    mean_map,
    object_patches,
    patch_coverage,
    pointing,
    target_minus_distractor,
    top_patches,
)

GRID = (4, 4)


def at(*patches, value=1.0):
    """A (1, 16) map with `value` at the given patches."""
    found = np.zeros((1, 16))
    found[0, list(patches)] = value
    return found


@pytest.fixture
def random_maps():
    rng = np.random.default_rng(0)
    saliency = rng.random((8, 16))
    return saliency / saliency.sum(1, keepdims=True), rng.random((8, 16)) * (rng.random((8, 16)) > 0.6)


def test_coverage_is_the_covered_share_of_each_patch_row_by_row():
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, 0:2, 2:4] = 1  # all of patch 1
    mask[0, 7, 0] = 1  # a quarter of patch 12
    coverage = patch_coverage(mask, GRID)
    assert coverage[0, 1] == 1 and coverage[0, 12] == 0.25 and coverage.sum() == 1.25


def test_a_grid_that_does_not_divide_the_image_shares_the_border_pixels():
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0, :, 1] = 1  # the second of four columns; cells of a 3x3 grid are 4/3 pixels wide
    np.testing.assert_allclose(patch_coverage(mask, (3, 3))[0], np.tile([0.25, 0.5, 0], 3))
    np.testing.assert_allclose(patch_coverage(np.ones((1, 128, 128)), (14, 14)), 1)


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
    assert aos(saliency, at(0, 1, 2, 3)) == 1
    assert aos(saliency, at(2, 3, 4, 5)) == pytest.approx(2 / 6)
    assert aos(saliency, at(3)) == aos_best(at(3)) == 0.25
    assert aos(saliency, at(9)) == 0


def test_aos_is_the_jaccard_score_of_scikit_learn(random_maps):
    saliency, coverage = random_maps
    wanted = [jaccard_score(own, top) for own, top in zip(object_patches(coverage), top_patches(saliency))]
    np.testing.assert_allclose(aos(saliency, coverage), wanted)


def test_uniform_baseline_is_the_mean_over_random_rankings():
    coverage = at(0, 1, 5)
    assert aos_uniform(at(3)) == pytest.approx(0.25 * 0.25)  # hit with chance 4 of 16, then 1 of 4
    random = np.random.default_rng(0).random((20_000, 16))
    found = aos(random, np.repeat(coverage, len(random), axis=0)).mean()
    assert aos_uniform(coverage)[0] == pytest.approx(found, abs=3e-3)


def test_priors_sum_to_one_and_peak_where_they_should():
    centre = centre_map(GRID).reshape(GRID)
    assert centre.sum() == pytest.approx(1)
    assert centre[1, 1] == pytest.approx(centre[2, 2]) and centre[1, 1] > centre[0, 0]
    prior = mean_map(np.concatenate([at(3), at(3), at(7)]))
    assert prior[3] == pytest.approx(2 / 3) and prior.sum() == pytest.approx(1)
    np.testing.assert_allclose(mean_map(at()), 1 / 16)  # never seen: no prior


def test_target_minus_distractor_has_the_sign_of_the_preference():
    saliency = at(1, value=0.6) + at(2, value=0.1) + at(9, value=0.3)
    assert target_minus_distractor(saliency, at(1), at(2)) == pytest.approx(0.5)
    assert target_minus_distractor(saliency, at(2), at(1)) == pytest.approx(-0.5)
    assert target_minus_distractor(saliency, at(1, value=0.5), at(2)) == pytest.approx(0.2)
    assert mass(saliency, at(1, 9)) == pytest.approx(0.9)


def test_pointing_game_with_and_without_tolerance():
    saliency = at(5)
    assert pointing(saliency, at(5), GRID) == 1
    assert pointing(saliency, at(6), GRID) == 0 and pointing(saliency, at(6), GRID, tolerance=1) == 1
    assert pointing(at(3), at(4), GRID, tolerance=1) == 0  # end of one row, start of the next
    assert pointing(np.full((1, 16), 1 / 16), at(0, 1), GRID) == pytest.approx(2 / 16)


def test_auc_is_scikit_learns_and_half_for_a_flat_map(random_maps):
    saliency, coverage = random_maps
    wanted = [roc_auc_score(own, score) for own, score in zip(object_patches(coverage), saliency)]
    np.testing.assert_allclose(auc(saliency, coverage), wanted)
    assert auc(np.full((1, 16), 1 / 16), at(3, 4)) == 0.5 and auc(at(3) / 1, at(3)) == 1


def test_an_object_out_of_sight_counts_nowhere():
    saliency, unseen = at(1), at()
    for value in (aos(saliency, unseen), aos_best(unseen), aos_uniform(unseen), mass(saliency, unseen),
                  pointing(saliency, unseen, GRID), auc(saliency, unseen),
                  target_minus_distractor(saliency, at(1), unseen)):
        assert np.isnan(value).all()
