"""What pre-training gave a backbone: where it looks in stored scenes, and how many hidden words it guesses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import channels_first
from ..model.backbone import Backbone, normalise_pixels
from ..model.regularisers import hide_words, word_logits
from ..run.draws import Draws
from ..scene.captioned import Pictures
from .attention import score
from .grounding import centre_map, patch_coverage
from .statistics import over_episodes

MEASURES = ("aos", "auc", "pointing", "on_target", "on_other", "target_minus_distractor")
BATCH = 32


@dataclass(frozen=True)
class Heldout:
    """Stored scenes: images (M, H, W, 3) uint8, M instructions, pixels of the named bowl and of the other one, regions
    (M, 2, H, W), and the shares of the patches that they cover, coverage (M, 2, P).
    """

    images: np.ndarray
    instructions: list[str]
    regions: np.ndarray
    coverage: np.ndarray

    @classmethod
    def of(cls, scenes: Sequence[Pictures], patches: int) -> Heldout:
        """The stored scenes of some tasks, for a backbone with so many patches."""
        grid = (round(patches**0.5),) * 2
        regions = np.concatenate([pictures.heldout_regions for pictures in scenes])  # (M, 2, H, W)
        return cls(np.concatenate([pictures.heldout_images for pictures in scenes]),
                   [sentence for pictures in scenes for sentence in pictures.heldout_instructions], regions,
                   np.stack([patch_coverage(regions[:, side], grid) for side in range(2)], axis=1))


@torch.no_grad()
def look(backbone: Backbone, heldout: Heldout) -> np.ndarray:
    """The backbone's saliency (M, P)."""
    return torch.cat([backbone.encode(images, sentences).saliency
                      for images, sentences in _parts(backbone, heldout)]).cpu().numpy()


@torch.no_grad()
def word_scores(backbone: Backbone, heldout: Heldout) -> dict:
    """The share of hidden words' tokens that the backbone guesses: `words`, and `words_without_picture`, with grey in its
    place. Means over scenes with their bootstrap intervals.
    """
    return {"words": _guessed(backbone, heldout), "words_without_picture": _guessed(backbone, heldout, blank=True)}


def grounding(saliency: np.ndarray, heldout: Heldout) -> dict:
    """Each of MEASURES of maps (M, P): means over scenes with their bootstrap intervals."""
    rows = [score(one, cover) for one, cover in zip(saliency, heldout.coverage, strict=True)]
    return {name: _mean([row[name] for row in rows]) for name in MEASURES}


def centre(heldout: Heldout) -> np.ndarray:
    """Maps (M, P) that never look."""
    patches = heldout.coverage.shape[2]
    return np.broadcast_to(centre_map((round(patches**0.5),) * 2), (len(heldout.images), patches))


def table(found: dict) -> str:
    """Columns of measures, by name, for the terminal."""
    def cell(column: dict, name: str) -> str:
        value = column.get(name)
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else "-"
    lines = [f"{'':24}" + "".join(f"{name:24}" for name in found)]
    names = dict.fromkeys(name for column in found.values() for name in column)
    lines += [f"{name:24}" + "".join(f"{cell(column, name):24}" for column in found.values()) for name in names]
    return "\n".join(line.rstrip() for line in lines)


def _guessed(backbone: Backbone, heldout: Heldout, blank: bool = False) -> dict | None:
    """The same words are hidden in every call."""
    draws, shares = Draws(0), []
    for images, sentences in _parts(backbone, heldout):
        whole = backbone.tokenise(sentences)
        cut, hidden = hide_words(backbone, whole, draws)
        seen = backbone.lower(torch.zeros_like(images) if blank else images, cut)
        guesses = word_logits(backbone, backbone.upper(seen, cut, saliency=False).text, hidden).argmax(-1)
        right = torch.zeros(hidden.shape, device=hidden.device)
        right[hidden] = (guesses == whole.ids[:, backbone.patches:][hidden]).float()
        shares += (right.sum(1) / hidden.sum(1)).tolist()
    return _mean(shares)


def _parts(backbone: Backbone, heldout: Heldout) -> Iterator[tuple[Tensor, list[str]]]:
    """Images (B, 3, H, W) in [-1, 1] and their instructions, BATCH at a time."""
    for start in range(0, len(heldout.images), BATCH):
        images = channels_first(heldout.images[start : start + BATCH]).to(backbone.vlm.device)
        yield normalise_pixels(images), heldout.instructions[start : start + BATCH]


def _mean(values: Sequence[float]) -> dict | None:
    return over_episodes(np.array(values), np.arange(len(values)))
