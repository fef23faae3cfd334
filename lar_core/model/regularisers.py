"""Regularisers: losses on where the instruction looks, through the tap to the weights. All do without boxes.

Each is off (weight 0 in the condition) unless asked for, and then costs nothing. Adding one means adding a function of
`Given` and registering it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import Draws
from ..errors import LarError
from ..registry import REGULARISERS
from .backbone import Encoding, Prefix
from .language import CONTENT, beside_objects, hide, hide_words, places_of, read_words, word_loss
from .masking import count_masked, mask_top, pixel_mask

if TYPE_CHECKING:
    from .policy import Policy

TEMPERATURE = 0.1  # of `contrastive`, for overlaps between 0 and 1
HALF = 0.5**0.5  # overlap of a map of one bowl with a map of two: how like `relational` lets its two maps be


@dataclass(frozen=True)
class Given:
    """What a regulariser may look at.

    batch: see `policy`; saliency (B, P): where the instructions look, with its graph; mask: the patches (B, P') that
    are reconstructed, on the mask's grid, None where nothing is; draws: randomness.
    """

    policy: Policy
    batch: dict
    saliency: Tensor
    mask: Tensor | None
    draws: Draws


@REGULARISERS.register("sparsity", "A map of low entropy", colour="#009e73")
def sparsity(given: Given) -> Tensor:
    """Entropy of the map, as a share of the largest possible: 0 = one patch, 1 = all alike."""
    entropy = -(given.saliency * given.saliency.clamp_min(1e-12).log()).sum(dim=1)
    return entropy.mean() / torch.tensor(given.saliency.shape[1]).log()


@REGULARISERS.register("consistency", "The same map with different patches hidden", passes=2, colour="#cc79a7")
def consistency(given: Given) -> Tensor:
    """Jensen-Shannon divergence, 0 to 1, of the maps of two masks of the frame, over the patches that both leave."""
    patches = given.saliency.shape[1]
    k = count_masked(patches, given.policy.condition.mask_ratio)
    masks = [mask_top(given.draws.uniform(*given.saliency.shape).to(given.saliency.device), k) for _ in range(2)]
    one, other = (look(given, hidden=mask).saliency for mask in masks)
    left = ~(masks[0] | masks[1])
    return divergence(_normalised(one * left), _normalised(other * left)).mean()


@REGULARISERS.register("contrastive", "The same map in other words, another one for the other bowl's sentence",
                       passes=2, needs_others=True, colour="#d55e00")
def contrastive(given: Given) -> Tensor:
    """InfoNCE with one hard negative: the map is nearer to that of the same sentence without its filling words than to
    that of the sentence that names the other bowl, in the same picture.

    Only hard negatives: maps of other pictures may well be alike, as the same bowl can stand in the same place. A frame
    whose other bowl no sentence names counts 0.
    """
    if "others" not in given.batch:
        raise LarError("The contrastive regulariser needs the sentence that names the other bowl, which this batch "
                       "does not have: make the data set with others, or set contrastive=0.")
    backbone, others = given.policy.backbone, given.batch["others"]
    whole = backbone.tokenise(given.batch["instructions"])
    fewer, _ = hide(backbone, whole, [_filling(sentence) for sentence in read_words(backbone, whole)])
    negative = backbone.tokenise([other or own for other, own in zip(others, given.batch["instructions"])])
    features = backbone.image_features(given.policy.see(given.batch["images"]))
    nearer = [overlap(given.saliency, look(given, prefix, features=features).saliency) for prefix in (fewer, negative)]
    exists = torch.tensor([other is not None for other in others], device=given.saliency.device)
    return (F.softplus((nearer[1] - nearer[0]) / TEMPERATURE) * exists).mean()


@REGULARISERS.register("relational", "Another map than without the words of relation", passes=1, colour="#56b4e9")
def relational(given: Given) -> Tensor:
    """How much more than HALF the map overlaps with that of the sentence whose relation words are hidden.

    Without them the sentence says only what is looked for, not which: both bowls fit. A frame whose sentence has no
    relation counts 0.
    """
    backbone = given.policy.backbone
    whole = backbone.tokenise(given.batch["instructions"])
    cut, hidden = hide(backbone, whole, [beside_objects(sentence) for sentence in read_words(backbone, whole)])
    excess = F.relu(overlap(given.saliency, look(given, cut).saliency) - HALF)
    return (excess * hidden.any(dim=1)).mean()


@REGULARISERS.register("language", "Hidden words told from the rest and the image", passes=1, on_map=False, colour="#b8a800")
def language(given: Given) -> Tensor:
    """`language.word_loss`, in nats. With mask_input, the patches that are reconstructed are hidden too."""
    backbone = given.policy.backbone
    whole = backbone.tokenise(given.batch["instructions"])
    cut, hidden = hide_words(backbone, whole, given.draws)
    mask = given.mask if given.policy.condition.mask_input else None
    return word_loss(backbone, look(given, cut, hidden=mask, saliency=False).text, whole, hidden)


def look(given: Given, prefix: Prefix | None = None, *, hidden: Tensor | None = None, features: Tensor | None = None,
         saliency: bool = True) -> Encoding:
    """One more pass over the batch's images, without the head's tokens; its saliency keeps its graph.

    prefix: other words than the batch's; hidden (B, P): patches to grey out; features: the images', where known.
    """
    backbone, images = given.policy.backbone, given.policy.see(given.batch["images"])
    if hidden is not None:
        images = images.masked_fill(pixel_mask(hidden, backbone.image_size), 0.0)
    prefix = prefix or backbone.tokenise(given.batch["instructions"])
    return backbone.upper(backbone.lower(images, prefix, features), prefix, saliency=saliency, differentiable=True)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Bhattacharyya coefficient (B,) of two maps (B, P): 1 = the same, 0 = nowhere both."""
    return (one.clamp_min(1e-12) * other.clamp_min(1e-12)).sqrt().sum(dim=1)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence (B,) of two maps (B, P), in bits: 0 = the same, 1 = nowhere both."""
    middle = ((one + other) / 2).clamp_min(1e-12).log2()
    parts = [(part * (part.clamp_min(1e-12).log2() - middle)).sum(dim=1) for part in (one, other)]
    return (parts[0] + parts[1]) / 2


def _filling(sentence: list[tuple[str, list[int]]]) -> list[int]:
    """Places of the words that name no object, colour or relation; none where that would hide everything."""
    filling = places_of(sentence, lambda word: word not in CONTENT)
    return filling if places_of(sentence, CONTENT.__contains__) else []


def _normalised(saliency: Tensor) -> Tensor:
    return saliency / saliency.sum(dim=1, keepdim=True).clamp_min(1e-12)
