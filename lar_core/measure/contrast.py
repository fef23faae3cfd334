"""Two arms of a study: how different they are, how sure one may be, and what so many rollouts could have missed.

Outcomes are arrays (S, N) of bool: S training seeds, N rollouts of each, column by column from the same init states.
Tests are scipy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import Interval, bootstrap_mean, detectable_paired, mcnemar, wilson

ALPHA = 0.05
MORE, LESS, NOT_DETECTED = "more successful", "less successful", "not detected"


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for how many were computed, by Holm's step-down method (1979); none for none."""
    values, order = np.asarray(p_values, dtype=float), np.argsort(p_values)
    scaled = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(scaled).clip(max=1)
    return corrected.tolist()


def cohens_h(rate_a: float, rate_b: float) -> float:
    """Difference of the rates' arcsine transforms, an effect size: 0.2 is called small, 0.5 medium, 0.8 large."""
    return float(2 * np.arcsin(np.sqrt(rate_a)) - 2 * np.arcsin(np.sqrt(rate_b)))


def clustered_bootstrap(values: np.ndarray, seed: int = 0, resamples: int = 9999) -> Interval:
    """Mean of values (S, N) with a percentile bootstrap interval that draws seeds, then rollouts of each.

    Rollouts of one trained policy resemble each other, so that the seeds have to vary too (Davison and Hinkley, 1997,
    section 3.8). One seed says nothing about others: rollouts alone are drawn then. n counts the seeds.
    """
    values = np.asarray(values, dtype=float)
    seeds, rollouts = values.shape
    if seeds == 1:
        within = bootstrap_mean(values[0], seed, resamples)
        return Interval(within.value, within.low, within.high, 1)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(seeds, size=(seeds, 1))
        means[i] = values[drawn, rng.integers(rollouts, size=(seeds, rollouts))].mean()
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(float(values.mean()), float(low), float(high), seeds)


@dataclass(frozen=True)
class Contrast:
    """Arm `a` against arm `b` before anything is known of other tests; `difference` is rate a - rate b."""

    a: np.ndarray  # (S, N) bool
    b: np.ndarray
    difference: Interval
    p: float  # McNemar's, exact, over the pairs of all seeds

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> Contrast:
        """Compare outcomes (S, N) pair by pair. Raises ValueError for unequal shapes."""
        a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
        if a.shape != b.shape:
            raise ValueError(f"Paired outcomes must have equal shapes, not {a.shape} and {b.shape}.")
        return cls(a, b, clustered_bootstrap(a.astype(float) - b), mcnemar(a.ravel(), b.ravel()))

    def detectable(self, tests: int) -> float:
        """Smallest difference that so many pairs find four times out of five, at the strictest of `tests` tests.

        The share of pairs that differ is taken at the upper end of its interval; the pairs count as independent, so
        with seeds that disagree the truth is larger.
        """
        differing = wilson(int((self.a != self.b).sum()), self.a.size).high
        return detectable_paired(self.a.size, differing, ALPHA / tests)

    def verdict(self, p_holm: float) -> str:
        """Detected only if the corrected test and the interval over seeds both say so."""
        low, high = self.difference.low, self.difference.high
        if p_holm >= ALPHA or low is None or low <= 0 <= high:
            return NOT_DETECTED
        return MORE if self.difference.value > 0 else LESS


def comparison(names: tuple[str, str], placement: str, contrast: Contrast, p_holm: float, tests: int) -> dict:
    """One entry of `comparisons` in study.json."""
    a, b, difference = contrast.a, contrast.b, contrast.difference
    numbers = {"condition": names[0], "reference": names[1], "placement": placement, "seeds": len(a), "pairs": a.size,
               "only_condition": int((a & ~b).sum()), "only_reference": int((b & ~a).sum()),
               "difference": {"mean": difference.value, "low": difference.low, "high": difference.high},
               "cohens_h": cohens_h(a.mean(), b.mean()), "p": contrast.p, "p_holm": p_holm,
               "detectable": contrast.detectable(tests), "verdict": contrast.verdict(p_holm)}
    return numbers | {"sentence": _sentence(numbers, int(a.sum()), int(b.sum()), tests)}


def _sentence(row: dict, successes: int, reference_successes: int, tests: int) -> str:
    name, reference, difference, seeds = row["condition"], row["reference"], row["difference"], row["seeds"]
    interval = "no interval" if difference["low"] is None else (
        f"95 % interval over {f'{seeds} seeds' if seeds > 1 else 'rollouts of one seed'} "
        f"{100 * difference['low']:+.0f} to {100 * difference['high']:+.0f} points")
    numbers = (f"{successes}/{row['pairs']} against {reference_successes}/{row['pairs']}, "
               f"{100 * difference['mean']:+.0f} points, {interval}, Cohen's h {row['cohens_h']:+.2f}, exact McNemar "
               f"p = {row['p']:.2g}, {row['p_holm']:.2g} after Holm's correction for {tests} "
               f"{'test' if tests == 1 else 'tests'}")
    where = f"on {row['placement']} placements"
    if row["verdict"] != NOT_DETECTED:
        return f"{name} is {row['verdict']} than {reference} {where}: {numbers}."
    why = " The rollouts differ, but not alike in every seed." if row["p_holm"] < ALPHA and seeds > 1 else ""
    return (f"A difference between {name} and {reference} was not detected {where}: {numbers}.{why} A study of this "
            f"size can miss differences of up to about {100 * row['detectable']:.0f} points.")
