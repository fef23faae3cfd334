"""How sure one may be: intervals, paired tests, and what a comparison of this size could have detected at all.

Thin wrappers round scipy. A difference is called *detected* or *not detected*, never "none": an interval always says
what remains possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import special, stats

ALPHA = 0.05
RESAMPLES = 9999  # of a bootstrap


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval from n observations; without one (None) if n is too small."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def written(self) -> dict[str, float | None]:
        """As it stands in results.json and study.json."""
        return {"mean": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        """`0.11 (0.09 to 0.13)`."""
        return f"{self.value:.3g}" + ("" if self.low is None else f" ({self.low:.3g} to {self.high:.3g})")


def wilson(successes: int, n: int) -> Interval:
    """Success rate with Wilson's interval. Raises ValueError unless 0 <= successes <= n and n > 0."""
    low, high = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return Interval(successes / n, float(low), float(high), n)


def evenly(total: int, most: int) -> np.ndarray:
    """Up to `most` indices, evenly spread over `total`."""
    return np.linspace(0, total - 1, min(most, total)).round().astype(int)


def bootstrap_mean(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean with a percentile bootstrap interval over independent units (pass episode means, not frames).

    A single value says nothing about its spread: there is no interval then. Raises ValueError for no values or NaN.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or np.isnan(values).any():
        raise ValueError(f"A mean needs at least one value and no NaN, but got {values}.")
    if len(values) == 1:
        return Interval(float(values[0]), None, None, 1)
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return _percentiles(values, values[picks].mean(1))


def clustered_bootstrap(values: np.ndarray) -> Interval:
    """Mean of values (S, N) with a percentile bootstrap interval that draws seeds, then rollouts of each.

    Rollouts of one trained policy resemble each other, so that the seeds have to vary too (Davison and Hinkley, 1997,
    section 3.8). One seed says nothing about others: rollouts alone are drawn then. n counts the seeds.
    """
    values = np.asarray(values, dtype=float)
    seeds, rollouts = values.shape
    if seeds == 1:
        return replace(bootstrap_mean(values[0]), n=1)
    rng = np.random.default_rng(0)
    return _percentiles(values, [values[rng.integers(seeds, size=(seeds, 1)),
                                        rng.integers(rollouts, size=(seeds, rollouts))].mean() for _ in range(RESAMPLES)])


def _percentiles(values: np.ndarray, means: Sequence[float] | np.ndarray) -> Interval:
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def over_seeds(values: Sequence[float] | np.ndarray, level: float = ALPHA) -> Interval:
    """Mean of one difference of two rates a seed with Student's interval, which few seeds need; a single one has none.

    Of two seeds it can be wider than what two rates can differ by: it ends there. Raises ValueError for no values.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("A mean needs at least one value.")
    if len(values) == 1:
        return Interval(float(values[0]), None, None, 1)
    reach = _student(level, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    low, high = np.clip([values.mean() - reach, values.mean() + reach], -1, 1).tolist()
    return Interval(float(values.mean()), low, high, len(values))


def student_test(values: Sequence[float] | np.ndarray) -> float:
    """Two-sided p value of Student's test that the mean is 0, of one value a seed; 1 where they are too few or all 0."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not values.any():
        return 1.0
    spread = max(values.std(ddof=1) / np.sqrt(len(values)), np.finfo(float).tiny)
    return float(2 * special.stdtr(len(values) - 1, -abs(values.mean() / spread)))


@cache
def _student(level: float, freedom: int) -> float:
    return float(stats.t.ppf(1 - level / 2, freedom))


def evidence(a: int, b: int) -> float:
    """e-value of `a` cases one way and `b` the other, against both ways being equally likely; 1 where there are none.

    The likelihood ratio of a coin whose bias is drawn evenly from [0, 1]. If it is fair, the chance that this ever exceeds
    1 / alpha, however often one looks, is alpha at most (Ville's inequality; Robbins 1970).
    """
    return float(np.exp(special.betaln(1 + a, 1 + b) + (a + b) * np.log(2)))


def mean_over_episodes(values: np.ndarray, episode: np.ndarray) -> Interval | None:
    """Mean of episode means with its bootstrap interval; None where nothing was measured.

    values (N,) of single frames, NaN = not measurable; episode (N,), which episode each frame is from.
    """
    groups = [values[episode == number] for number in np.unique(episode)]
    means = [np.nanmean(group) for group in groups if not np.isnan(group).all()]
    return bootstrap_mean(means) if means else None


def over_episodes(values: np.ndarray, episode: np.ndarray) -> dict[str, float | None] | None:
    """`mean_over_episodes` as results.json writes it."""
    interval = mean_over_episodes(values, episode)
    return interval and interval.written


def difference_unpaired(successes_a: int, n_a: int, successes_b: int, n_b: int) -> Interval:
    """Rate a - rate b with Newcombe's interval (1998, method 10: built from the two Wilson intervals)."""
    a, b = wilson(successes_a, n_a), wilson(successes_b, n_b)
    value = a.value - b.value
    low = value - np.hypot(a.value - a.low, b.high - b.value)
    high = value + np.hypot(a.high - a.value, b.value - b.low)
    return Interval(value, float(low), float(high), min(n_a, n_b))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p value of McNemar's test on paired outcomes (same init states, same order).

    Raises ValueError for unequal lengths. Only pairs with different outcomes count; without any, p = 1.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"Paired outcomes must have equal lengths, not {len(a)} and {len(b)}.")
    return sign_test(int((a & ~b).sum()), int((b & ~a).sum()))


def sign_test(a: int, b: int) -> float:
    """Exact two-sided p value of `a` cases one way and `b` the other way, if both ways were equally likely."""
    return float(stats.binomtest(a, a + b).pvalue) if a + b else 1.0


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


def detectable_unpaired(n: int) -> float:
    """Smallest difference of two rates near 1/2 that n rollouts an arm detect (80 % power, alpha .05, normal approx.)."""
    return detectable_paired(n, 0.5)  # of two rollouts that have nothing to do with each other, half differ


def detectable_paired(n: int, discordant: float = 0.2, alpha: float = ALPHA) -> float:
    """The same for n pairs, if a share `discordant` of the pairs has different outcomes (normal approximation)."""
    return float(min(1.0, (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(0.8)) * np.sqrt(discordant / n)))


def describe_difference(name_a: str, a: Sequence[bool], name_b: str, b: Sequence[bool]) -> str:
    """One plain sentence on paired outcomes a and b (same init states, same order): detected or not, n, interval, p.

    Raises ValueError for unequal lengths and for no outcomes.
    """
    p, n = mcnemar(a, b), len(a)
    difference = bootstrap_mean(np.subtract(a, b, dtype=float))
    numbers = (f"{sum(a)}/{n} against {sum(b)}/{n}, {points(difference)}, exact McNemar p = {p:.2g}, {n} paired rollouts")
    if p < ALPHA:
        return f"{name_a} is {'more' if difference.value > 0 else 'less'} successful than {name_b}: {numbers}."
    return not_detected(name_a, name_b, numbers, detectable_paired(n, wilson(int(np.not_equal(a, b).sum()), n).high))


def not_detected(name_a: str, name_b: str, numbers: str, least: float) -> str:
    """The sentences on two policies that were not told apart; least: the smallest difference that would have been."""
    return (f"A difference between {name_a} and {name_b} was not detected: {numbers}. "
            f"So few rollouts can miss differences of up to about {100 * least:.0f} points.")


def points(difference: Interval, over: str = "", percent: float = 95) -> str:
    """`+15 points, 95 % interval -5 to +35 points`; over: what the interval covers, where that must be said."""
    low, high = difference.low, difference.high
    return f"{100 * difference.value:+.0f} points, " + (
        "no interval" if low is None else f"{percent:.0f} % interval {over}{100 * low:+.0f} to {100 * high:+.0f} points")
