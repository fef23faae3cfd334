"""What a backbone sees before any policy: where it says that things are, where it looks, which hidden words it knows.

Measured on stored scenes of the benchmark that came to rest (`captioned.settled_scenes`), which no training draws: in
LIBERO's own words, and in forms of words that training never saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.dataset import channels_first
from ..model.backbone import Backbone, normalise_pixels
from ..model.places import boxes_of
from ..model.regularisers import hide_words, word_logits
from ..run.runtime import Draws
from ..scene.env import instruction
from ..scene.placements import OTHER_SENTENCE
from ..scene.sentences import Facts, instruct
from .metrics import Truth, centre_map, in_context, patch_coverage
from .statistics import over_episodes

MAPS = ("aos", "auc", "pointing", "on_target", "on_other", "target_minus_distractor")
BATCH = 32


@dataclass(frozen=True)
class Stored:
    """M scenes: images (M, H, W, 3) uint8; sentences in LIBERO's words and unheard ones; the middle (M, 2, 2), in pixels
    (row, column), of the named bowl and of the other one; metres (M, 2, 2) of the table in a pixel's step down and to the
    right; regions (M, 2, h, w), their pixels, and coverage (M, 2, P), the shares of the patches.
    """

    images: np.ndarray
    sentences: list[str]
    unheard: list[str]
    middles: np.ndarray
    metres: np.ndarray
    regions: np.ndarray
    coverage: np.ndarray

    @classmethod
    def of(cls, settled: dict[str, np.ndarray], patches: int) -> Stored:
        """What `settled_scenes` gave, for a backbone with so many patches."""
        sides, rows = settled["asked"][:, 2], np.arange(len(settled["asked"]))
        both = np.stack([sides, 1 - sides], axis=1)  # (M, 2): the named bowl, the other one
        regions = settled["labels"][:, None] == both[:, :, None, None] + 1
        boxes = settled["boxes"][rows[:, None], both]  # (M, 2, 4)
        facts = [Facts(tuple(pair), (0, 0, -1, -1, -1)) for pair in settled["relations"].tolist()]
        unheard = [instruct(fact, side, np.random.default_rng(row), unheard=True).text
                   for row, (fact, side) in enumerate(zip(facts, sides))]
        sentences = [instruction(OTHER_SENTENCE[task] if side else task) for _, task, side in settled["asked"].tolist()]
        return cls(settled["images"], sentences, unheard, boxes.reshape(-1, 2, 2, 2).mean(axis=2),
                   settled["metres"][rows, sides], regions,
                   np.stack([patch_coverage(regions[:, side], round(patches**0.5)) for side in range(2)], axis=1))


@torch.no_grad()
def look(backbone: Backbone, stored: Stored) -> np.ndarray:
    """The backbone's saliency (M, P) under LIBERO's sentences."""
    return torch.cat([backbone.encode(images, sentences).saliency
                      for images, sentences in _parts(backbone, stored, stored.sentences)]).cpu().numpy()


def located(backbone: Backbone, stored: Stored, sentences: Sequence[str]) -> dict:
    """Where the answers' first boxes are: median and 90th percentile of the distance to the named bowl (cm, on the table),
    and how often they are nearer to it than to the other one."""
    boxes = torch.cat([boxes_of(backbone, images, words) for images, words in _parts(backbone, stored, sentences)])
    found = boxes.cpu().numpy().reshape(-1, 2, 2).mean(axis=1)  # (M, 2): row, column
    away = np.linalg.norm(found[:, None] - stored.middles, axis=-1)  # (M, 2) pixels
    error = 100 * np.linalg.norm(np.einsum("mp,mpx->mx", found - stored.middles[:, 0], stored.metres), axis=1)
    return {"median_cm": float(np.median(error)), "p90_cm": float(np.percentile(error, 90)),
            "right_bowl": _mean((away[:, 0] < away[:, 1]).astype(float))}


def grounding(saliency: np.ndarray, stored: Stored) -> dict:
    """Each of MAPS of maps (M, P): means over scenes with their bootstrap intervals."""
    scores = in_context(saliency, Truth.of_shares(stored.coverage))
    return {name: _mean(scores[name]) for name in MAPS}


def centre(stored: Stored) -> np.ndarray:
    """Maps (M, P) that never look."""
    patches = stored.coverage.shape[2]
    return np.broadcast_to(centre_map(round(patches**0.5)), (len(stored.images), patches))


@torch.no_grad()
def word_scores(backbone: Backbone, stored: Stored) -> dict:
    """Nats a hidden word's token costs: `word_nats`, and `word_nats_blank`, with grey in the picture's place; the same
    words are hidden in both. Means over scenes with their bootstrap intervals.
    """
    return {name: _mean(_word_nats(backbone, stored, blank)) for name, blank in
            (("word_nats", False), ("word_nats_blank", True))}


def table(found: dict) -> str:
    """Columns of measures, by name, for the terminal."""
    def cell(value: dict | float | None) -> str:
        if isinstance(value, dict):
            return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        return "-" if value is None else f"{value:.3f}"
    lines = [f"{'':24}" + "".join(f"{name:24}" for name in found)]
    names = dict.fromkeys(name for column in found.values() for name in column)
    lines += [f"{name:24}" + "".join(f"{cell(column.get(name)):24}" for column in found.values()) for name in names]
    return "\n".join(line.rstrip() for line in lines)


def _word_nats(backbone: Backbone, stored: Stored, blank: bool) -> list[float]:
    draws, costs = Draws(0), []
    for images, sentences in _parts(backbone, stored, stored.sentences):
        whole = backbone.tokenise(sentences)
        cut, hidden = hide_words(backbone, whole, draws)
        seen = backbone.lower(torch.zeros_like(images) if blank else images, cut)
        logits = word_logits(backbone, backbone.upper(seen, cut, saliency=False).text, hidden)
        nats = torch.zeros(hidden.shape, device=hidden.device)
        nats[hidden] = F.cross_entropy(logits, whole.ids[:, backbone.patches:][hidden], reduction="none")
        costs += (nats.sum(1) / hidden.sum(1)).tolist()
    return costs


def _parts(backbone: Backbone, stored: Stored, sentences: Sequence[str]) -> Iterator[tuple[Tensor, list[str]]]:
    """Images (B, 3, H, W) in [-1, 1] and their sentences, BATCH at a time."""
    for start in range(0, len(stored.images), BATCH):
        images = channels_first(stored.images[start : start + BATCH]).to(backbone.vlm.device)
        yield normalise_pixels(images), list(sentences[start : start + BATCH])


def _mean(values: Sequence[float] | np.ndarray) -> dict | None:
    return over_episodes(np.asarray(values, dtype=float), np.arange(len(values)))
