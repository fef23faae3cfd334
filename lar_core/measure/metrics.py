"""How well a saliency map finds an object, by every measure that the literature uses: one number a frame.

`score` gives all that are registered, for saliency (B, P), non-negative, rows summing to 1, and the `Truth` of the same
frames; patches run row by row over a square grid. Every metric is NaN for a frame in which the object cannot be seen
(average with `numpy.nanmean`). A flat map says nothing and gets what chance gives.

NSS, AUC, CC and KL take the object for what fixations are in saliency research, after Bylinskii et al. 2019 ("What do
different evaluation metrics tell us about saliency models?").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, find_objects, label
from scipy.stats import entropy, hypergeom, rankdata, spearmanr

from ..model.masking import count_masked, mask_top, overlap
from ..run.registry import METRICS

MIN_COVERAGE = 0.2
LEVEL = 0.5  # of the peak: patches above it belong to its region
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels, right and bottom exclusive


# What is where

@dataclass(frozen=True)
class Truth:
    """What is where in B frames, on grid x grid patches.

    named: pixels of the named object (B, H, W), 0/1, or the share of each patch that it covers (B, grid, grid); other:
    the same of the other one of its kind, or None; objects: of all that could have been named (B, R, H, W), the named
    one first, or None.
    """

    named: np.ndarray
    grid: int
    other: np.ndarray | None = None
    objects: np.ndarray | None = None

    @classmethod
    def of_shares(cls, coverage: np.ndarray) -> Truth:
        """From the shares of patches that the named object and the other one cover, (B, 2, P)."""
        grid = round(coverage.shape[2]**0.5)
        named, other = np.moveaxis(coverage.reshape(*coverage.shape[:2], grid, grid), 1, 0)
        return cls(named, grid, other)

    @cached_property
    def coverage(self) -> np.ndarray:
        """Share of each patch that the named object covers, (B, P)."""
        return patch_coverage(self.named, self.grid)

    @cached_property
    def own(self) -> np.ndarray:
        """The named object's patches, (B, P) bool."""
        return object_patches(self.coverage)

    @cached_property
    def other_coverage(self) -> np.ndarray:
        """Of the other one of its kind, (B, P)."""
        return np.zeros_like(self.coverage) if self.other is None else patch_coverage(self.other, self.grid)

    @cached_property
    def object_coverage(self) -> np.ndarray:
        """(B, R, P); without `objects` the named one and the other."""
        if self.objects is None:
            return np.stack([self.coverage, self.other_coverage], axis=1)
        return np.stack([patch_coverage(one, self.grid) for one in np.moveaxis(self.objects, 1, 0)], axis=1)

    @cached_property
    def distance(self) -> np.ndarray:
        """Pixels from the middle of each patch to the named object, (B, P); 0 = on it."""
        size, rows = self.named.shape[1], np.arange(self.grid)
        middle = ((rows + 0.5) * size / self.grid).astype(int)
        return np.stack([distance_transform_edt(mask == 0)[np.ix_(middle, middle)].ravel() if mask.any()
                         else np.full(self.grid**2, np.nan) for mask in self.named])

    def where_seen(self, values: np.ndarray) -> np.ndarray:
        """values (B,), NaN for frames in which the named object cannot be seen."""
        return np.where(self.own.any(axis=1), values, np.nan)


def patch_coverage(masks: np.ndarray, grid: int) -> np.ndarray:
    """Pool object masks (B, H, W) of 0/1 by area to (B, P); a pixel on a patch border is shared out exactly."""
    if masks.shape[1:] == (grid, grid):
        return masks.astype(float).reshape(len(masks), -1)
    rows, columns = (overlap(pixels, grid, torch.float64).numpy() for pixels in masks.shape[1:])
    return (rows @ masks.astype(float) @ columns.T).reshape(len(masks), -1)


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


# Maps that never look at the image

def centre_map(grid: int, sigma: float = 0.25) -> np.ndarray:
    """A Gaussian round the image's centre, (P,), summing to 1; sigma in units of the image's side."""
    line = (np.arange(grid) + 0.5) / grid - 0.5
    weights = np.exp(-(line[None, :]**2 + line[:, None]**2) / (2 * sigma**2)).ravel()
    return weights / weights.sum()


def mean_map(training_coverage: np.ndarray) -> np.ndarray:
    """Where the object was in the training frames on average, (P,), summing to 1: what can be known without looking."""
    mean = training_coverage.mean(axis=0)
    return mean / mean.sum() if mean.sum() > 0 else np.full(len(mean), 1 / len(mean))


# The metrics

def score(saliency: np.ndarray, truth: Truth) -> dict[str, np.ndarray]:
    """Every registered metric, each (B,); saliency (B, P) non-negative, rows sum to 1."""
    return {name: metric(saliency, truth) for name, metric in METRICS.items()}


@METRICS.register("aos", "overlap of the top 25 % of patches with the object's", label="AOS",
                  title="Overlap with the named object\n(AOS, IoU of the top 25 %)", guide=(
                      "Overlap (intersection over union) of the 25 % most salient patches with the patches of the named "
                      "object. A small object cannot fill 25 %, so the highest possible value lies well below 1: read it "
                      "beside the baselines."))
def aos(saliency: np.ndarray, truth: Truth, ratio: float = 0.25) -> np.ndarray:
    """Attention overlap score: IoU of the most salient patches with the object's patches.

    Its ceiling is below 1: an object of m <= k patches can reach m / k. Read it next to `aos_best` and `aos_uniform`.
    """
    top = top_patches(saliency, ratio)
    return truth.where_seen((top & truth.own).sum(1) / (top | truth.own).sum(1))


def aos_best(truth: Truth, ratio: float = 0.25) -> np.ndarray:
    """The largest AOS that any saliency could have, (B,): min(k, m) / max(k, m)."""
    k, m = count_masked(truth.grid**2, ratio), truth.own.sum(1)
    return truth.where_seen(np.minimum(k, m) / np.maximum(k, m))


def aos_uniform(truth: Truth, ratio: float = 0.25) -> np.ndarray:
    """Expected AOS, (B,), of saliency that is the same everywhere: k patches drawn at random, all draws weighed."""
    P, m = truth.grid**2, truth.own.sum(1)[:, None]
    k = count_masked(P, ratio)
    hits = np.arange(k + 1)
    chance = hypergeom.pmf(hits[None, :], P, m, k)  # probability of so many hits
    return truth.where_seen((chance * hits / np.maximum(1, k + m - hits)).sum(1))


@METRICS.register("target_minus_distractor", "share of saliency on the named object minus that on the other bowl",
                  label="named minus other bowl", title="Named object minus other bowl\n(share of saliency)", guide=(
                      "Share of saliency on the named object minus that on the other bowl. Looking at a bowl is not "
                      "grounding; telling them apart is. 0 = no preference."))
def target_minus_distractor(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """In [-1, 1]; a patch's saliency is shared out by area, so 0 = no preference. NaN unless both can be seen."""
    both = (truth.coverage.sum(1) > 0) & (truth.other_coverage.sum(1) > 0)
    return np.where(both, (saliency * (truth.coverage - truth.other_coverage)).sum(1), np.nan)


@METRICS.register("auc", "does it rank the object's patches first? 0.5 = chance", label="AUC", chance=0.5,
                  title="Ranking of patches\n(AUC, 0.5 = chance)")
def auc(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Area under the ROC curve of saliency as a detector of the object's patches."""
    from sklearn.metrics import roc_auc_score  # here, because whoever only looks need not wait for this import
    return np.array([roc_auc_score(own, one) if 0 < own.sum() < len(own) else np.nan
                     for own, one in zip(truth.own, saliency)])


@METRICS.register("pointing", "is the peak in one of the object's patches?", label="pointing game", column=False,
                  title="Peak on the named object\n(pointing game)")
def pointing(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """1 where the most salient patch is the object's; among equally salient patches the share that is."""
    return truth.where_seen(_peak(saliency, truth.own))


def _peak(saliency: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Share (B,) of the most salient patches, usually one, that are among hits (B, P) bool."""
    peak = saliency == saliency.max(axis=1, keepdims=True)
    return (peak & hits).sum(1) / peak.sum(1)


@METRICS.register("pointing_0px", "is the peak on the object, to the pixel?",
                  label="pointing, 0 px", column=False, plot=False)
def pointing_0px(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """1 where the middle of the most salient patch is on the object."""
    return truth.where_seen(_peak(saliency, truth.distance <= 0))


@METRICS.register("pointing_15px", "is the peak on the object, or at most 15 pixels off?",
                  label="pointing, 15 px", plot=False)
def pointing_15px(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """The same with the tolerance of Zhang et al. 2016."""
    return truth.where_seen(_peak(saliency, truth.distance <= 15))


@METRICS.register("energy", "share of saliency on the object", label="energy", plot=False)
def energy(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Saliency on the object, in [0, 1]; a patch's is shared out by area."""
    return truth.where_seen((saliency * truth.coverage).sum(1))


@METRICS.register("soft_iou", "overlap of the map itself with the object", label="soft IoU", plot=False)
def soft_iou(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Sum of minima over sum of maxima of the map, scaled to a peak of 1, and the covered shares."""
    scaled = saliency / saliency.max(axis=1, keepdims=True)
    return truth.where_seen(np.minimum(scaled, truth.coverage).sum(1) / np.maximum(scaled, truth.coverage).sum(1))


@METRICS.register("best_iou", "overlap at the threshold that suits each frame best", label="best IoU", plot=False)
def best_iou(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """IoU with the object's patches at the threshold that suits the frame best: what thresholding could reach."""
    above = saliency[:, None, :] >= saliency[:, :, None]  # (B, threshold, P)
    own = truth.own[:, None, :]
    return truth.where_seen(((above & own).sum(2) / (above | own).sum(2)).max(1))


@METRICS.register("box_iou", "box round the peak's region against the object's box", label="box mIoU", plot=False)
def pseudo_box_iou(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """IoU of the box round the peak's cluster with the box round the object; its mean is the mIoU."""
    size = truth.named.shape[1]
    return np.array([box_iou(pseudo_box(one, size), box_of(mask)) if mask.any() else np.nan
                     for one, mask in zip(saliency, truth.named)])


@METRICS.register("nss", "standard deviations above the map's mean on the object; 0 = chance",
                  label="NSS", chance=0.0, plot=False)
def nss(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Normalised scanpath saliency: mean over the object's patches of the map in standard deviations from its mean."""
    spread = saliency.std(axis=1, keepdims=True)
    z = (saliency - saliency.mean(axis=1, keepdims=True)) / np.where(_flat(saliency)[:, None], 1, spread)
    return truth.where_seen((z * truth.own).sum(1) / truth.own.sum(1).clip(1))


@METRICS.register("shuffled_auc", "AUC against places of the object in other frames; 0.5 = chance",
                  label="shuffled AUC", chance=0.5, plot=False)
def shuffled_auc(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """AUC against the places that the objects of the *other* frames have (Zhang et al. 2008): 0.5 for any map that only
    knows where objects usually are. NaN with one frame.
    """
    elsewhere = truth.own.sum(axis=0) - truth.own  # (B, P), how often among the other frames
    return np.array([_shuffled(one, own, other) for one, own, other in zip(saliency, truth.own, elsewhere)])


def _shuffled(saliency: np.ndarray, own: np.ndarray, elsewhere: np.ndarray) -> float:
    if not own.any() or not elsewhere.any():
        return np.nan
    from sklearn.metrics import roc_auc_score
    hits, others = saliency[own], saliency[elsewhere > 0]
    truth = np.repeat([1, 0], [len(hits), len(others)])
    weight = np.concatenate([np.ones(len(hits)), elsewhere[elsewhere > 0]])
    return roc_auc_score(truth, np.concatenate([hits, others]), sample_weight=weight)


@METRICS.register("cc", "correlation with the object's place", label="CC", chance=0.0, plot=False)
def correlation(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Pearson's correlation of map and covered shares."""
    one, two = (values - values.mean(axis=1, keepdims=True) for values in (saliency, truth.coverage))
    scale = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    return truth.where_seen(np.where(_flat(saliency), 0, (one * two).sum(1) / np.where(scale > 0, scale, 1)))


@METRICS.register("kl", "nats from the object's place; smaller is better", label="KL", smaller=True, plot=False)
def kl(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Kullback-Leibler divergence of the map from the object's own density, in nats: 0 = the same."""
    density = truth.coverage / truth.coverage.sum(axis=1, keepdims=True).clip(1e-12)
    return truth.where_seen(entropy(density, saliency + np.finfo(float).eps, axis=1))


@METRICS.register("spearman", "rank correlation with the object's place", label="Spearman", chance=0.0, plot=False)
def spearman(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Rank correlation of map and covered shares."""
    pairs = zip(saliency, truth.coverage, _flat(saliency), truth.own)
    return np.array([np.nan if not own.any() else 0.0 if flat else spearmanr(one, two).statistic
                     for one, two, flat, own in pairs])


@METRICS.register("region_rank", "place among all objects by saliency per area; 1 = first",
                  label="rank of the object", smaller=True, plot=False)
def region_rank(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Place of the named object among all objects in view by saliency per area: 1 = first; ties share their places."""
    area = truth.object_coverage.sum(-1)  # (B, R)
    density = np.einsum("bp,brp->br", saliency, truth.object_coverage) / np.where(area > 0, area, 1)
    rank = rankdata(np.where(area > 0, -density.round(12), np.inf), axis=1)[:, 0]
    return truth.where_seen(rank)


def _flat(saliency: np.ndarray) -> np.ndarray:
    return np.ptp(saliency, axis=1) <= 1e-12


def in_context(saliency: np.ndarray, truth: Truth, ratio: float = 0.25) -> dict[str, np.ndarray]:
    """The metrics that a map is explained by, each (B,), and what chance and a perfect map would reach."""
    return {"aos": aos(saliency, truth, ratio), "aos_uniform": aos_uniform(truth, ratio),
            "aos_best": aos_best(truth, ratio), "auc": auc(saliency, truth), "pointing": pointing(saliency, truth),
            "on_target": energy(saliency, truth), "on_other": energy(saliency, Truth(truth.other, truth.grid)),
            "target_minus_distractor": target_minus_distractor(saliency, truth)}


# From a map to a box: what a detector would have answered

def region(saliency: np.ndarray) -> np.ndarray:
    """The patches (g, g) bool of one cluster: of the areas above LEVEL times the peak, the one with most saliency."""
    grid = round(saliency.size**0.5)
    areas, count = label((saliency >= LEVEL * saliency.max()).reshape(grid, grid))
    held = np.bincount(areas.ravel(), weights=saliency, minlength=count + 1)[1:]
    return areas == held.argmax() + 1


def pseudo_box(saliency: np.ndarray, size: int) -> Box:
    """The box round the peak's cluster, in an image of size x size pixels."""
    found = region(saliency)
    return tuple(round(edge * size / len(found)) for edge in box_of(found))


def box_of(mask: np.ndarray) -> Box | None:
    """The smallest box round a mask (H, W); None where it is empty."""
    found = find_objects(mask.astype(int))
    if not found:
        return None
    rows, columns = found[0]
    return columns.start, rows.start, columns.stop, rows.stop


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = (max(0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)
