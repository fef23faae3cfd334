"""Intervals and tests against published numbers and against scipy used directly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lar_core.measure.statistics import (
    bootstrap_mean,
    clustered_bootstrap,
    cohens_h,
    describe_difference,
    detectable_paired,
    detectable_unpaired,
    difference_unpaired,
    holm,
    mcnemar,
    wilson,
)


def test_wilson_by_hand():
    z, n, p = stats.norm.ppf(0.975), 20, 0.6
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    found = wilson(12, 20)
    assert (found.value, found.n) == (0.6, 20)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))


def test_wilson_stays_sensible_at_the_ends():
    assert wilson(0, 10).low == 0 and 0.2 < wilson(0, 10).high < 0.35
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_difference_of_rates_is_newcombes():
    found = difference_unpaired(56, 70, 48, 80)  # Newcombe 1998, table II, example (a)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_bootstrap_covers_the_mean_and_is_repeatable():
    values = np.random.default_rng(1).normal(2.0, 1.0, 50)
    found = bootstrap_mean(values)
    assert found == bootstrap_mean(values) and found.low < values.mean() < found.high
    half = 1.96 * values.std() / np.sqrt(50)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_a_single_value_has_no_interval_and_none_is_refused():
    assert bootstrap_mean([3.0]).low is None
    for wrong in ([], [1.0, np.nan]):
        with pytest.raises(ValueError, match="at least one value"):
            bootstrap_mean(wrong)


def test_mcnemar_counts_only_the_pairs_that_differ():
    a = [True] * 9 + [False] * 1 + [True] * 20
    b = [False] * 9 + [True] * 1 + [True] * 20
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)  # two-sided binomial tail, 9 of 10
    assert mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(ValueError, match="equal lengths"):
        mcnemar([True], [True, False])


def test_detectable_differences_are_those_of_the_design():
    assert detectable_unpaired(150) == pytest.approx(0.16, abs=0.005)  # 150 rollouts an arm resolve 16 points
    assert 0.07 < detectable_paired(150, 0.1) < detectable_paired(150, 0.25) < 0.12
    assert detectable_unpaired(1) == 1.0


def test_a_null_result_is_worded_as_not_detected():
    a, b = [True, False] * 10, [False, True] * 10
    text = describe_difference("attention_mask", a, "random_mask", b)
    assert "was not detected: 10/20 against 10/20" in text and "can miss differences" in text
    assert "no interval" in describe_difference("a", [True], "b", [False])


def test_a_clear_result_is_worded_as_a_direction():
    text = describe_difference("attention_mask", [True] * 20, "blind", [False] * 20)
    assert text.startswith("attention_mask is more successful than blind: 20/20 against 0/20, +100 points")
    assert describe_difference("blind", [False] * 20, "x", [True] * 20).startswith("blind is less successful")


def test_holm_by_hand():
    # smallest first: 0.01 x 3; then 0.03 x 2; then 0.04 x 1, but never less than the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.9]) == [1.0, 1.0]
    # 0.01 x 5; 0.02 x 4; 0.03 x 3; then 0.04 x 2 and 0.05 x 1 are less than the one before
    assert holm([0.05, 0.01, 0.02, 0.04, 0.03]) == pytest.approx([0.09, 0.05, 0.08, 0.09, 0.09])


def test_cohens_h_by_hand():
    assert cohens_h(0.5, 0.25) == pytest.approx(np.pi / 2 - np.pi / 3)  # 2 asin sqrt(1/2) - 2 asin sqrt(1/4)
    assert cohens_h(0.25, 0.5) == -cohens_h(0.5, 0.25) and cohens_h(1.0, 0.0) == pytest.approx(np.pi)


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
