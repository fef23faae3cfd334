"""What the instruction looks at in one frame: attention of every layer, head and word -> saliency -> mask -> metrics.

The three steps are plain functions, so that a widget, a notebook and a test can all call them:

    attention = reader.read(image, "pick up the black bowl")       # (N layers, H heads, L words, P patches)
    saliency = aggregate(attention, Choice(layers=(3,), reduce="max"))     # (P,), sums to 1
    view = view_of(saliency, 0.25, coverage)                       # saliency, mask and metrics together
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.demos import Episode
from ..model import aggregation
from ..model.policy import Policy
from ..model.saliency import TEXT, SaliencyTap
from ..run.errors import LarError, unknown
from .maps import available, saliency_maps
from .metrics import Truth, in_context, patch_coverage, top_patches
from .statistics import Interval, evenly, mean_over_episodes

REDUCE = {"mean": np.mean, "max": np.max}
BATCH = 16


@dataclass(frozen=True)
class Attention:
    """One frame under one instruction: values (N, H, L, P), softmax over all keys, so that a row's sum is the share of
    a word's attention that goes to the image; `words`, the L tokens as text; `own` (L,) bool, True = a word of the
    instruction itself (not BOS or newline); `tapped`, the layers that the policy itself reads.
    """

    values: np.ndarray
    words: tuple[str, ...]
    own: np.ndarray
    tapped: tuple[int, ...]

    @property
    def own_words(self) -> list[int]:
        """Places of the instruction's own words."""
        return np.flatnonzero(self.own).tolist()


@dataclass(frozen=True)
class Choice:
    """How attention becomes saliency and mask; None stands for the policy's own choice."""

    layers: tuple[int, ...] | None = None  # None: the layers that the policy taps
    heads: tuple[int, ...] | None = None  # None: all
    words: tuple[int, ...] | None = None  # places of tokens; None: the instruction's own
    reduce: str = "mean"  # over layers, heads and words: one of REDUCE
    smoothing: float = 0.0  # standard deviation of a Gaussian, in patches; 0: none
    mask_ratio: float = 0.25
    aggregation: str | None = None  # a named one in the place of layers, heads, words and reduce


@dataclass(frozen=True)
class View:
    """saliency (P,) summing to 1; mask (P,) bool, True = masked; metrics by name, NaN where nothing can be seen."""

    saliency: np.ndarray
    mask: np.ndarray
    metrics: dict[str, float]


class AttentionReader:
    """Runs the backbone with every layer tapped and remembers the last `remember` frames, least used goes first."""

    def __init__(self, policy: Policy, remember: int = 512, localisation: list[tuple[int, int]] | None = None):
        """localisation: the heads that `saliency_rows.localisation_heads` chose, to offer that aggregation too."""
        self.policy, self.remember, self.localisation = policy, remember, localisation
        self._known: OrderedDict[tuple[str, ...], Attention | np.ndarray] = OrderedDict()

    @property
    def layers(self) -> int:
        """Of the language model."""
        return self.policy.backbone.layers

    @property
    def heads(self) -> int:
        """Of each layer."""
        return self.policy.backbone.vlm.config.text_config.num_attention_heads

    def read(self, image: np.ndarray, instruction: str) -> Attention:
        """Attention for image (H, W, 3) uint8. Raises LarError for an empty instruction or an image of another size."""
        self.prepare(image[None], instruction)
        key = _key(image, instruction)
        self._known.move_to_end(key)
        return self._known[key]

    @property
    def aggregations(self) -> list[str]:
        """Names of `model/aggregation.py` and `measure/maps.py` that `aggregated` takes."""
        return available(self.policy, self.localisation is not None)

    def aggregated(self, image: np.ndarray, instruction: str, name: str) -> np.ndarray:
        """Saliency (P,) of image (H, W, 3) by a named aggregation. Raises LarError for one that there is not."""
        if name not in self.aggregations:
            raise unknown("aggregation", name, self.aggregations)
        key = (*_key(image, instruction), name)
        if key not in self._known:
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
            found = saliency_maps(self.policy, pixels, [instruction], [name], self.localisation)[name]
            self._keep(key, found[0].float().cpu().numpy())
        self._known.move_to_end(key)
        return self._known[key]

    def look(self, image: np.ndarray, instruction: str, choice: Choice, coverage: np.ndarray | None = None) -> View:
        """What a choice makes of image (H, W, 3). coverage (2, P): named object and other bowl; None: without metrics."""
        if choice.aggregation is None:
            saliency = aggregate(self.read(image, instruction), choice)
        else:
            saliency = smooth(self.aggregated(image, instruction, choice.aggregation), choice.smoothing)
        return view_of(saliency, choice.mask_ratio, coverage)

    def prepare(self, images: np.ndarray, instruction: str) -> None:
        """Read images (T, H, W, 3) uint8 in batches, so that looking at any of them later costs nothing."""
        keys = [_key(image, instruction) for image in images]
        todo = [i for i, key in enumerate(keys) if key not in self._known][: self.remember]
        for start in range(0, len(todo), BATCH):
            chosen = todo[start : start + BATCH]
            for i, attention in zip(chosen, self._run(images[chosen], instruction)):
                self._keep(keys[i], attention)

    def _keep(self, key: tuple[str, ...], value: Attention | np.ndarray) -> None:
        self._known[key] = value
        while len(self._known) > self.remember:
            self._known.popitem(last=False)

    @torch.no_grad()
    def _run(self, images: np.ndarray, instruction: str) -> list[Attention]:
        backbone = self.policy.backbone
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.policy.device)
        prefix = backbone.tokenise(self.policy.hear([instruction] * len(images)))
        with SaliencyTap(layers=range(backbone.layers), image_tokens=backbone.patches,
                         rows=TEXT.of(prefix, backbone.patches)[0]) as tap:
            backbone.upper(backbone.lower(self.policy.see(pixels), prefix), prefix, saliency=False)
        decoded = (backbone.processor.tokenizer.decode([token]) for token in prefix.ids[0, backbone.patches :].tolist())
        words = tuple(text.replace("\n", "\\n").strip() or "␣" for text in decoded)  # as a reader would write them
        own = prefix.instruction[0].cpu().numpy()
        return [Attention(values.cpu().numpy(), words, own, backbone.tapped) for values in tap.attention]


def aggregate(attention: Attention, choice: Choice) -> np.ndarray:
    """Saliency (P,), summing to 1. Raises LarError for a layer, head or word that is not there.

    A named aggregation needs the image again: `AttentionReader.look`.
    """
    if choice.aggregation is not None:
        raise ValueError(f"{choice.aggregation} cannot be had from attention alone: use AttentionReader.look.")
    if choice.reduce not in REDUCE:
        raise unknown("way to aggregate", choice.reduce, REDUCE)
    chosen = (("layer", choice.layers, attention.tapped), ("head", choice.heads, range(attention.values.shape[1])),
              ("word", choice.words, attention.own_words))
    values = attention.values
    for axis, (kind, places, default) in enumerate(chosen):
        values = values.take(_places(kind, places, default, values.shape[axis]), axis=axis)
    saliency = REDUCE[choice.reduce](values, axis=(0, 1, 2))
    return smooth(saliency / saliency.sum(), choice.smoothing)


def _places(kind: str, places: Sequence[int] | None, default: Sequence[int], count: int) -> list[int]:
    places = list(default if places is None else places)
    if not places or not all(0 <= place < count for place in places):
        raise LarError(f"There is no {kind} {places}: choose at least one from 0 to {count - 1}.")
    return places


def smooth(saliency: np.ndarray, sigma: float) -> np.ndarray:
    """`aggregation.smooth` of one map (P,)."""
    return saliency if sigma == 0 else aggregation.smooth(torch.tensor(saliency)[None], sigma)[0].numpy()


def view_of(saliency: np.ndarray, mask_ratio: float, coverage: np.ndarray | None = None) -> View:
    """Mask and score a map (P,), however it was made; coverage as in `AttentionReader.look`."""
    metrics = {} if coverage is None else in_context(saliency[None], Truth.of_shares(coverage[None]), mask_ratio)
    mask = top_patches(saliency[None], mask_ratio)[0]
    return View(saliency, mask, {name: float(value[0]) for name, value in metrics.items()})


def regions_of(episode: Episode, frame: int) -> np.ndarray | None:
    """Pixels (2, H, W) bool of the named object and of the other bowl; None without segmentation."""
    if episode.segmentation is None:
        return None
    numbers = [list(episode.objects).index(name) + 1 for name in (episode.target, episode.distractor)]
    return np.stack([episode.segmentation[frame] == number for number in numbers])


def coverage_of(episode: Episode, frame: int, patches: int) -> np.ndarray | None:
    """Shares (2, P) of the patches that the two bowls cover; None without segmentation."""
    regions = regions_of(episode, frame)
    return None if regions is None else patch_coverage(regions, round(patches**0.5))


def compare(reader: AttentionReader, episodes: Sequence[Episode], choices: dict[str, Choice],
            frames: int = 10) -> dict[str, dict[str, Interval]]:
    """Score several choices on the same `frames` frames of every episode, each under its own instruction.

    Returns, by choice and metric, the mean with its bootstrap interval over episodes; frames in which the object is
    out of view do not count. Raises LarError for episodes without segmentation.
    """
    if any(episode.segmentation is None for episode in episodes):
        raise LarError("These demonstrations have no segmentation, so nothing can be scored: record some with "
                       "`lar demos`.")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in choices}
    numbers: list[int] = []  # of the episode that each row is from
    for number, episode in enumerate(episodes):
        moments = evenly(len(episode), frames)
        reader.prepare(episode.agentview_rgb[moments], episode.instruction)
        numbers += [number] * len(moments)
        for frame in moments:
            coverage = coverage_of(episode, frame, reader.policy.backbone.patches)
            for name, choice in choices.items():
                view = reader.look(episode.agentview_rgb[frame], episode.instruction, choice, coverage)
                rows[name].append(view.metrics)
    def mean(scores: list[dict[str, float]], metric: str) -> Interval | None:
        return mean_over_episodes(np.array([row[metric] for row in scores]), np.array(numbers))
    return {name: {metric: found for metric in scores[0] if (found := mean(scores, metric))}
            for name, scores in rows.items()}


def image_share(attention: Attention) -> np.ndarray:
    """(N, H, L): the share of each word's attention that goes to the image at all; the rest goes to other words."""
    return attention.values.sum(axis=-1)


def shared(attention: Attention) -> np.ndarray:
    """(P,): how many times its mean over the patches every token gives a patch at least, BOS and newline too.

    Over the tapped layers; a patch above `aggregation.SINK` is a sink: it is looked at whatever the word.
    """
    given = attention.values[list(attention.tapped)].mean(axis=(0, 1))  # (L, P)
    return (given / given.mean(axis=-1, keepdims=True)).min(axis=0)


def _key(image: np.ndarray, instruction: str) -> tuple[str, str]:
    return hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).hexdigest(), instruction
