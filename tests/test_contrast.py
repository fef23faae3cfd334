"""What a study says about two arms, against hand-computed numbers and against scipy used directly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lar_core.measure.statistics import bootstrap_mean, detectable_paired
from lar_core.measure.study import LESS, MORE, NOT_DETECTED, Contrast, clustered_bootstrap, cohens_h, comparison, holm


def pairs(both: int, only_a: int, only_b: int, neither: int, seeds: int = 1) -> Contrast:
    """The same table of outcomes in every seed."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return Contrast.of(np.array([a] * seeds), np.array([b] * seeds))


def test_holm_by_hand():
    # smallest first: 0.01 x 3; then 0.03 x 2; then 0.04 x 1, but never less than the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.9]) == [1.0, 1.0]
    # 0.01 x 5; 0.02 x 4; 0.03 x 3; then 0.04 x 2 and 0.05 x 1 are less than the one before
    assert holm([0.05, 0.01, 0.02, 0.04, 0.03]) == pytest.approx([0.09, 0.05, 0.08, 0.09, 0.09])


def test_cohens_h_by_hand():
    assert cohens_h(0.5, 0.25) == pytest.approx(np.pi / 2 - np.pi / 3)  # 2 asin sqrt(1/2) - 2 asin sqrt(1/4)
    assert cohens_h(0.25, 0.5) == -cohens_h(0.5, 0.25) and cohens_h(1.0, 0.0) == pytest.approx(np.pi)


def test_the_pairs_of_all_seeds_go_into_one_exact_test():
    found = pairs(10, 9, 2, 9, seeds=2)
    assert found.p == pytest.approx(2 * stats.binom.cdf(4, 22, 0.5))  # of 22 pairs that differ, 4 go the other way
    assert found.difference.value == pytest.approx(14 / 60)
    with pytest.raises(ValueError, match="equal shapes"):
        Contrast.of(np.ones((1, 2)), np.ones((2, 1)))


def test_seeds_without_spread_inside_are_bootstrapped_as_scipy_does():
    means = np.array([0.1, 0.4, 0.2, 0.9, 0.5])
    found = clustered_bootstrap(np.repeat(means[:, None], 7, axis=1))
    theirs = stats.bootstrap((means,), np.mean, method="percentile", rng=0).confidence_interval
    assert (found.value, found.n) == (pytest.approx(means.mean()), 5)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_seeds_that_agree_leave_the_spread_of_rollouts():
    values = np.array([[0.0, 1.0] * 25] * 4)  # 4 seeds of 50 rollouts: the mean's deviation is 0.5 / sqrt(200)
    found = clustered_bootstrap(values)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.5 / np.sqrt(200), abs=0.006)


def test_seeds_that_disagree_widen_the_interval():
    agree, disagree = np.array([[1.0, 0.0] * 10] * 2), np.array([[1.0] * 20, [0.0] * 20])
    assert agree.mean() == disagree.mean()
    narrow, wide = clustered_bootstrap(agree), clustered_bootstrap(disagree)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_one_seed_has_an_interval_over_rollouts_only():
    found, within = clustered_bootstrap(np.array([[1.0, 0.0, 1.0, 1.0]])), bootstrap_mean([1.0, 0.0, 1.0, 1.0])
    assert (found.low, found.high, found.n) == (within.low, within.high, 1)


def test_the_detectable_difference_is_found_four_times_out_of_five():
    n, differing, alpha, rng = 300, 0.3, 0.05 / 4, np.random.default_rng(0)
    least = detectable_paired(n, differing, alpha)
    count = rng.binomial(n, differing, size=1500)
    only_a = rng.binomial(count, (1 + least / differing) / 2)
    found = np.mean([stats.binomtest(int(a), int(k)).pvalue < alpha for a, k in zip(only_a, count)])
    assert 0.72 < found < 0.86  # an exact test detects a little less than the normal approximation says


def test_more_tests_and_fewer_pairs_miss_more():
    found = pairs(10, 5, 5, 10)
    assert found.detectable(10) > found.detectable(1)
    assert found.detectable(1) > pairs(100, 50, 50, 100).detectable(1)


@pytest.mark.parametrize("table, verdict", [((5, 30, 2, 5), MORE), ((5, 2, 30, 5), LESS), ((5, 10, 9, 5), NOT_DETECTED)])
def test_a_verdict_needs_the_corrected_test(table, verdict):
    found = pairs(*table, seeds=3)
    assert found.verdict(found.p) == verdict
    assert found.verdict(0.05) == NOT_DETECTED


def test_a_verdict_needs_the_seeds_to_agree():
    a, b = np.ones((2, 40), dtype=bool), np.zeros((2, 40), dtype=bool)
    b[1] = True  # everything in one seed, nothing in the other, which could as well have been drawn twice
    found = Contrast.of(a, b)
    assert found.p < 1e-6 and found.difference.low == 0 and found.verdict(found.p) == NOT_DETECTED
    row = comparison(("a", "b"), "wide", found, found.p, 1)
    assert "not alike in every seed" in row["sentence"]


def test_a_null_result_names_n_interval_and_what_could_be_missed():
    row = comparison(("attention_mask", "random_mask"), "wide", pairs(5, 2, 1, 2, seeds=2), 0.9, 3)
    assert row["pairs"] == 20 and (row["only_condition"], row["only_reference"]) == (4, 2)
    for words in ("was not detected on wide placements: 14/20 against 12/20, +10 points, 95 % interval over 2 seeds",
                  "after Holm's correction for 3 tests", "can miss differences of up to about"):
        assert words in row["sentence"]
    single = comparison(("a", "b"), "wide", pairs(0, 1, 0, 0), 1.0, 1)
    assert single["difference"]["low"] is None and "no interval" in single["sentence"]
