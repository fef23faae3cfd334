"""Saliency in rows: every aggregation on the same held-out frames, and the policy's own one on changed frames.

A row is {"name", "frames", "metrics"}, with every metric of `heatmaps` as an interval over episodes.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from ..data.dataset import DemoDataset
from ..model.policy import Policy
from ..model.train import HEAD_FRAMES, to_device
from ..run.files import write_json
from ..run.folder import Run
from .metrics import Truth, score
from .passes import available, saliency_maps
from .robustness import SPLITS, Frames
from .statistics import over_episodes

FRAMES = 100  # at most: the aggregations together take some twenty passes
BATCH = 16
KEPT_HEADS = "localisation_heads.json"


def aggregation_rows(run: Run, policy: Policy, train: DemoDataset, heldout: DemoDataset,
                     frames: np.ndarray) -> list[dict]:
    """One row an aggregation, on up to FRAMES of `frames` of the held-out episodes."""
    frames = _some(frames)
    images, instructions = _shown(heldout, frames)
    maps = maps_in_batches(policy, images, instructions, available(policy), localisation_heads(run, policy, train))
    truth = truth_of(heldout, frames, policy)
    return [row(name, saliency, truth, heldout.episode[frames]) for name, saliency in maps.items()]


def robustness_rows(policy: Policy, heldout: DemoDataset, frames: np.ndarray) -> list[dict]:
    """One row a split of `robustness`, on up to FRAMES of `frames`, by the policy's own aggregation."""
    frames = _some(frames)
    images, instructions = _shown(heldout, frames)
    regions, truth = heldout.batch(frames)["regions"].numpy().astype(bool), truth_of(heldout, frames, policy)
    shown, rows = Frames(images, instructions, regions[:, 0], regions[:, 1]), []
    for name, split in SPLITS.items():
        changed = split(shown)
        own = policy.condition.aggregation
        saliency = maps_in_batches(policy, changed.images, changed.instructions, [own])[own]
        moved = Truth(changed.named, truth.grid, changed.other, truth.objects)
        rows.append(row(name, saliency, moved, heldout.episode[frames]))
    return rows


def row(name: str, saliency: np.ndarray, truth: Truth, group: np.ndarray) -> dict:
    """Score saliency (B, P); group (B,): frames of one group, such as an episode, are not independent."""
    metrics = {metric: over_episodes(values, group) for metric, values in score(saliency, truth).items()}
    return {"name": name, "frames": len(saliency), "metrics": metrics}


def maps_in_batches(policy: Policy, images: np.ndarray, instructions: list[str], names: list[str],
                    heads: list[tuple[int, int]] | None = None) -> dict[str, np.ndarray]:
    """`saliency_maps` for images (B, H, W, 3), a few at a time: (B, P) by name."""
    parts: list[dict] = []
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2)
        parts.append(saliency_maps(policy, pixels, instructions[start : start + BATCH], names, heads))
    return {name: np.concatenate([part[name].float().cpu().numpy() for part in parts]) for name in names}


def truth_of(dataset: DemoDataset, frames: np.ndarray, policy: Policy) -> Truth:
    """What is where in frames of demonstrations with segmentation."""
    regions = dataset.batch(frames)["regions"].numpy()
    return Truth(regions[:, 0], round(policy.backbone.patches**0.5), regions[:, 1], _objects(dataset, frames))


def localisation_heads(run: Run, policy: Policy, train: DemoDataset) -> list[tuple[int, int]]:
    """The heads that localise, (layer, head) counted from the first tapped layer.

    Chosen once, on training frames and without their segmentation, and kept in the run folder.
    """
    if kept := kept_heads(run, policy):
        return kept
    frames = np.linspace(0, len(train) - 1, HEAD_FRAMES).round().astype(int)
    places = policy.choose_heads(to_device(train.batch(part), policy.device) for part in np.array_split(frames, 4))
    first = policy.backbone.tapped[0]
    write_json(run.path / KEPT_HEADS, [{"layer": layer + first, "head": head} for layer, head in places])
    return places


def kept_heads(run: Run, policy: Policy) -> list[tuple[int, int]] | None:
    """What `localisation_heads` has chosen before; None where it has not."""
    path, first = run.path / KEPT_HEADS, policy.backbone.tapped[0]
    if not path.exists():
        return None
    return [(place["layer"] - first, place["head"]) for place in json.loads(path.read_text(encoding="utf-8"))]


def _objects(dataset: DemoDataset, frames: np.ndarray) -> np.ndarray:
    """Pixels of every segmented object (B, R, H, W) bool, the named one first."""
    seen = dataset.segmentation[frames]
    named = dataset.region_numbers[dataset.episode[frames]][:, 0].astype(int)
    numbers = np.arange(1, max(2, seen.max() + 1))
    order = np.stack([np.concatenate([[first], numbers[numbers != first]])[: len(numbers)] for first in named])
    return seen[:, None] == order[:, :, None, None]


def _shown(dataset: DemoDataset, frames: np.ndarray) -> tuple[np.ndarray, list[str]]:
    return dataset.images[frames], [dataset.instructions[episode] for episode in dataset.episode[frames]]


def _some(frames: np.ndarray) -> np.ndarray:
    return frames[np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)]
