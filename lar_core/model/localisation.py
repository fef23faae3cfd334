"""Which heads localise: those that look at the image at all, and at one place of it.

After Kang et al. 2025 ("Your large vision-language model only needs a few attention heads for visual grounding"): keep
the heads whose attention to the image lies above the elbow of the sorted values, and of these the three whose maps have
the lowest spatial entropy. They rank the entropies in every picture and count; here they are averaged over pictures.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

HEADS = 3


def choose_heads(attention: np.ndarray, count: int = HEADS) -> list[tuple[int, int]]:
    """attention (F, N, H, P) of F frames, mean over instruction words -> up to `count` (layer, head), best first."""
    mass = attention.sum(axis=-1).mean(axis=0)  # (N, H), share of the attention that goes to the image
    entropy = np.array([[np.mean([spatial_entropy(frame) for frame in attention[:, layer, head]])
                         for head in range(mass.shape[1])] for layer in range(mass.shape[0])])
    candidates = np.argwhere(mass >= elbow(mass.ravel()))
    order = sorted((entropy[layer, head], layer, head) for layer, head in candidates.tolist())
    return [(layer, head) for _, layer, head in order[:count]]


def elbow(values: np.ndarray) -> float:
    """The smallest value above the bend, where the sorted values are farthest from the line between their ends."""
    falling = np.sort(values)[::-1]
    line = np.linspace(falling[0], falling[-1], len(falling))
    bend = int(np.abs(falling - line).argmax())
    below = falling[bend] < line[bend]  # the foot of the slope, which is not above it
    return float(falling[bend - 1] if below else falling[bend])


def spatial_entropy(saliency: np.ndarray) -> float:
    """Entropy in nats of how a map (P,) spreads over connected areas above its mean: 0 = all in one area."""
    grid = round(saliency.size**0.5)
    areas, count = label((saliency > saliency.mean()).reshape(grid, grid), structure=np.ones((3, 3)))
    if count == 0:
        return float(np.log(saliency.size))  # a flat map is in no place at all
    share = np.bincount(areas.ravel())[1:] / (areas > 0).sum()
    return float(-(share * np.log(share)).sum())
