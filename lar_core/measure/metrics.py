"""How well a heatmap finds an object, by every measure that the literature uses: one number a frame.

`score` gives all that are registered, for saliency (B, P) and the `Truth` of the same frames. AOS, its baselines and
what counts as an object's patches are in `grounding`. Every metric is NaN for a frame in which the object cannot be
seen. A flat map says nothing and gets what chance gives.

NSS, AUC, CC and KL take the object for what fixations are in saliency research, after Bylinskii et al. 2019 ("What do
different evaluation metrics tell us about saliency models?").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.stats import entropy, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from ..run.registry import METRICS
from . import grounding
from .regions import box_iou, box_of, pseudo_box


@dataclass(frozen=True)
class Truth:
    """What is where in B frames, on grid x grid patches.

    named: pixels of the named object (B, H, W), 0/1; other: of the other one of its kind, or None; objects: pixels of
    all that could have been named (B, R, H, W), the named one first, or None.
    """

    named: np.ndarray
    grid: int
    other: np.ndarray | None = None
    objects: np.ndarray | None = None

    @cached_property
    def coverage(self) -> np.ndarray:
        """Share of each patch that the named object covers, (B, P)."""
        return self._pool(self.named)

    @cached_property
    def own(self) -> np.ndarray:
        """The named object's patches, (B, P) bool."""
        return grounding.object_patches(self.coverage)

    @cached_property
    def other_coverage(self) -> np.ndarray:
        return np.zeros_like(self.coverage) if self.other is None else self._pool(self.other)

    @cached_property
    def object_coverage(self) -> np.ndarray:
        """(B, R, P); without `objects` the named one and the other."""
        if self.objects is None:
            return np.stack([self.coverage, self.other_coverage], axis=1)
        return np.stack([self._pool(one) for one in np.moveaxis(self.objects, 1, 0)], axis=1)

    @cached_property
    def distance(self) -> np.ndarray:
        """Pixels from the middle of each patch to the named object, (B, P); 0 = on it."""
        size, rows = self.named.shape[1], np.arange(self.grid)
        middle = ((rows + 0.5) * size / self.grid).astype(int)
        return np.stack([distance_transform_edt(mask == 0)[np.ix_(middle, middle)].ravel() if mask.any()
                         else np.full(self.grid**2, np.nan) for mask in self.named])

    def _pool(self, masks: np.ndarray) -> np.ndarray:
        return grounding.patch_coverage(masks, (self.grid, self.grid))


def score(saliency: np.ndarray, truth: Truth) -> dict[str, np.ndarray]:
    """Every registered metric, each (B,); saliency (B, P) non-negative, rows sum to 1."""
    return {name: metric(saliency, truth) for name, metric in METRICS.items()}


@METRICS.register("aos", "overlap of the top 25 % of patches with the object's", label="AOS",
                  title="Overlap with the named object\n(AOS, IoU of the top 25 %)", guide=(
                      "Overlap (intersection over union) of the 25 % most salient patches with the patches of the named "
                      "object. A small object cannot fill 25 %, so the highest possible value lies well below 1: read it "
                      "beside the baselines."))
def aos(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """`grounding.aos`."""
    return grounding.aos(saliency, truth.coverage)


@METRICS.register("target_minus_distractor", "share of saliency on the named object minus that on the other bowl",
                  label="named minus other bowl", title="Named object minus other bowl\n(share of saliency)", guide=(
                      "Share of saliency on the named object minus that on the other bowl. Looking at a bowl is not "
                      "grounding; telling them apart is. 0 = no preference."))
def target_minus_distractor(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """`grounding.target_minus_distractor`."""
    return grounding.target_minus_distractor(saliency, truth.coverage, truth.other_coverage)


@METRICS.register("auc", "does it rank the object's patches first? 0.5 = chance", label="AUC", chance=0.5,
                  title="Ranking of patches\n(AUC, 0.5 = chance)")
def auc(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """`grounding.auc`."""
    return grounding.auc(saliency, truth.coverage)


@METRICS.register("pointing", "is the peak in one of the object's patches?", label="pointing game", column=False,
                  title="Peak on the named object\n(pointing game)")
def pointing(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """`grounding.pointing`."""
    return grounding.pointing(saliency, truth.coverage, (truth.grid, truth.grid))


def pointing_game(saliency: np.ndarray, truth: Truth, tolerance: int) -> np.ndarray:
    """1 where the middle of the most salient patch is on the object, or at most `tolerance` pixels from it (Zhang et
    al. 2016: 15 pixels); among equally salient patches the share that hits.
    """
    peak = saliency == saliency.max(axis=1, keepdims=True)
    return _seen((peak & (truth.distance <= tolerance)).sum(1) / peak.sum(1), truth)


@METRICS.register("pointing_0px", "is the peak on the object, to the pixel?",
                  label="pointing, 0 px", column=False, plot=False)
def pointing_0px(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """The pointing game without tolerance."""
    return pointing_game(saliency, truth, 0)


@METRICS.register("pointing_15px", "is the peak on the object, or at most 15 pixels off?",
                  label="pointing, 15 px", plot=False)
def pointing_15px(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """The pointing game of Zhang et al. 2016."""
    return pointing_game(saliency, truth, 15)


@METRICS.register("energy", "share of saliency on the object", label="energy", plot=False)
def energy(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """`grounding.mass`."""
    return grounding.mass(saliency, truth.coverage)


@METRICS.register("soft_iou", "overlap of the map itself with the object", label="soft IoU", plot=False)
def soft_iou(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Sum of minima over sum of maxima of the map, scaled to a peak of 1, and the covered shares."""
    scaled = saliency / saliency.max(axis=1, keepdims=True)
    return _seen(np.minimum(scaled, truth.coverage).sum(1) / np.maximum(scaled, truth.coverage).sum(1), truth)


@METRICS.register("best_iou", "overlap at the threshold that suits each frame best", label="best IoU", plot=False)
def best_iou(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """IoU with the object's patches at the threshold that suits the frame best: what thresholding could reach."""
    above = saliency[:, None, :] >= saliency[:, :, None]  # (B, threshold, P)
    own = truth.own[:, None, :]
    return _seen(((above & own).sum(2) / (above | own).sum(2)).max(1), truth)


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
    return _seen((z * truth.own).sum(1) / truth.own.sum(1).clip(1), truth)


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
    hits, others = saliency[own], saliency[elsewhere > 0]
    truth = np.repeat([1, 0], [len(hits), len(others)])
    weight = np.concatenate([np.ones(len(hits)), elsewhere[elsewhere > 0]])
    return roc_auc_score(truth, np.concatenate([hits, others]), sample_weight=weight)


@METRICS.register("cc", "correlation with the object's place", label="CC", chance=0.0, plot=False)
def correlation(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Pearson's correlation of map and covered shares."""
    one, two = (values - values.mean(axis=1, keepdims=True) for values in (saliency, truth.coverage))
    scale = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    return _seen(np.where(_flat(saliency), 0, (one * two).sum(1) / np.where(scale > 0, scale, 1)), truth)


@METRICS.register("kl", "nats from the object's place; smaller is better", label="KL", smaller=True, plot=False)
def kl(saliency: np.ndarray, truth: Truth) -> np.ndarray:
    """Kullback-Leibler divergence of the map from the object's own density, in nats: 0 = the same."""
    density = truth.coverage / truth.coverage.sum(axis=1, keepdims=True).clip(1e-12)
    return _seen(entropy(density, saliency + np.finfo(float).eps, axis=1), truth)


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
    return _seen(rank, truth)


def _flat(saliency: np.ndarray) -> np.ndarray:
    return np.ptp(saliency, axis=1) <= 1e-12


def _seen(values: np.ndarray, truth: Truth) -> np.ndarray:
    return np.where(truth.own.any(axis=1), values, np.nan)
