"""Does saliency lie on the object that the instruction names? Metrics on plain arrays, one number a frame.

saliency (B, P): non-negative, sums to 1; patches run row by row over a grid (rows, columns), P = rows * columns.
coverage (B, P): the share of each patch, 0 to 1, that an object covers.
Every metric is NaN for a frame in which the object cannot be seen; average with `numpy.nanmean`.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from scipy.stats import hypergeom
from sklearn.metrics import roc_auc_score

from ..model.masking import count_masked, mask_top, overlap

MIN_COVERAGE = 0.2


def patch_coverage(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Pool object masks (B, H, W) of 0/1 by area to (B, P); a pixel on a patch border is shared out exactly."""
    rows, columns = (overlap(pixels, cells, torch.float64).numpy() for cells, pixels in zip(grid, mask.shape[1:]))
    return (rows @ mask.astype(float) @ columns.T).reshape(len(mask), -1)


def object_patches(coverage: np.ndarray) -> np.ndarray:
    """The patches that count as the object's, (B, P) bool: at least 20 % covered, or else the most covered one.

    So a small object still has a patch; only an invisible one has none.
    """
    most = coverage.max(axis=1, keepdims=True)
    fallback = (most < MIN_COVERAGE) & (np.arange(coverage.shape[1]) == coverage.argmax(axis=1)[:, None]) & (most > 0)
    return (coverage >= MIN_COVERAGE) | fallback


def top_patches(saliency: np.ndarray, ratio: float = 0.25) -> np.ndarray:
    """The most salient patches, (B, P) bool, as many as would be masked; among equal ones the first."""
    return mask_top(torch.tensor(saliency), count_masked(saliency.shape[1], ratio)).numpy()


def aos(saliency: np.ndarray, coverage: np.ndarray, ratio: float = 0.25) -> np.ndarray:
    """Attention overlap score (B,): IoU of the most salient patches with the object's patches.

    Its ceiling is below 1: an object of m <= k patches can reach m / k. Read it next to `aos_best` and `aos_uniform`.
    """
    top, own = top_patches(saliency, ratio), object_patches(coverage)
    return _where_seen((top & own).sum(1) / (top | own).sum(1), own)


def aos_best(coverage: np.ndarray, ratio: float = 0.25) -> np.ndarray:
    """The largest AOS that any saliency could have, (B,): min(k, m) / max(k, m)."""
    own = object_patches(coverage)
    k, m = count_masked(own.shape[1], ratio), own.sum(1)
    return _where_seen(np.minimum(k, m) / np.maximum(k, m), own)


def aos_uniform(coverage: np.ndarray, ratio: float = 0.25) -> np.ndarray:
    """Expected AOS, (B,), of saliency that is the same everywhere: k patches drawn at random, all draws weighed."""
    own = object_patches(coverage)
    P, m = own.shape[1], own.sum(1)
    k = count_masked(P, ratio)
    hits = np.arange(k + 1)
    chance = hypergeom.pmf(hits[None, :], P, m[:, None], k)  # probability of so many hits
    return _where_seen((chance * hits / np.maximum(1, k + m[:, None] - hits)).sum(1), own)


def centre_map(grid: tuple[int, int], sigma: float = 0.25) -> np.ndarray:
    """A Gaussian round the image's centre, (P,), summing to 1; sigma in units of the image's side."""
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in grid), indexing="ij")
    weights = np.exp(-(x**2 + y**2) / (2 * sigma**2)).ravel()
    return weights / weights.sum()


def mean_map(training_coverage: np.ndarray) -> np.ndarray:
    """Where the object was in the training frames on average, (P,), summing to 1: what can be known without looking."""
    mean = training_coverage.mean(axis=0)
    return mean / mean.sum() if mean.sum() > 0 else np.full(len(mean), 1 / len(mean))


def target_minus_distractor(saliency: np.ndarray, target: np.ndarray, distractor: np.ndarray) -> np.ndarray:
    """Saliency on the named object minus saliency on the other one of its kind, (B,), in [-1, 1].

    target, distractor: coverages (B, P). A patch's saliency is shared out by area, so 0 = no preference.
    """
    both = (target.sum(1) > 0) & (distractor.sum(1) > 0)
    return np.where(both, (saliency * (target - distractor)).sum(1), np.nan)


def mass(saliency: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Share of the saliency that lies on the object, (B,), in [0, 1]."""
    return _where_seen((saliency * coverage).sum(1), coverage > 0)


def pointing(saliency: np.ndarray, coverage: np.ndarray, grid: tuple[int, int], tolerance: int = 0) -> np.ndarray:
    """Pointing game (B,): 1 where the most salient patch is the object's, or at most `tolerance` patches beside it.

    Among equally salient patches the share that hits is taken, so a flat map gets what chance gives.
    """
    own = object_patches(coverage)
    near = maximum_filter(own.reshape(-1, *grid), size=(1, 2 * tolerance + 1, 2 * tolerance + 1), mode="constant")
    peak = saliency == saliency.max(axis=1, keepdims=True)
    return _where_seen((peak & near.reshape(own.shape)).sum(1) / peak.sum(1), own)


def auc(saliency: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (B,) of saliency as a detector of the object's patches; 0.5 = chance."""
    own = object_patches(coverage)
    return np.array([roc_auc_score(truth, score) if 0 < truth.sum() < len(truth) else np.nan
                     for truth, score in zip(own, saliency)])


def _where_seen(values: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.where(own.any(axis=1), values, np.nan)
