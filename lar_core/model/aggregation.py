"""Aggregations: the attention of every layer, head and word -> one saliency map.

`mean` is the literal method. The others change one thing each, so that each has its own row in the results.

Kang et al. 2025a, "See what you are told: visual attention sink in large multimodal models"; 2025b, "Your large
vision-language model only needs a few attention heads for visual grounding"; Zhang et al. 2025, "MLLMs know where to
look".

All take one pass (`relative` two) and can feed training masks. Those that need many passes are in `measure/maps.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d, label
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..run.registry import AGGREGATIONS
from .saliency import Prefix, mean_attention

GENERIC = "write a general description of the image"  # the prompt of Zhang et al.
SINK = 4.0  # times a token's mean attention: a patch that gets more from every token is a sink
SMOOTHING = 1.0  # patches, standard deviation
LOCALISING = 3  # how many heads localise


@AGGREGATIONS.register("mean", "the mean over layers, heads and words: the literal method")
class Aggregation(nn.Module):
    """The literal mean, and what every other aggregation starts from.

    layers, heads: how many are read (N and H); tokenizer: the backbone's.
    """

    relative = False  # whether `forward` wants `prefix.reference`
    learns = False  # whether it has weights, which only a loss on the saliency can teach
    words = False  # whether it must have all text tokens' rows: it asks some words, or compares tokens

    def __init__(self, *, layers: int, heads: int, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.read, self.tokenizer = (layers, heads), tokenizer

    def forward(self, attention: Tensor, prefix: Prefix) -> Tensor:
        """attention (B, N, H, R, P) and its tokens (of `Rows`) -> saliency (B, P), rows summing to 1."""
        return mean_attention(attention, prefix.instruction)


@AGGREGATIONS.register("content_words", "only words that are not stop words (scikit-learn's list) are asked")
class ContentWords(Aggregation):
    """Only the words that carry content are asked."""

    words = True

    def forward(self, attention: Tensor, prefix: Prefix) -> Tensor:
        """Arguments and result as in `Aggregation`: of the words that carry content."""
        text = prefix.ids[:, -prefix.instruction.shape[1]:]  # (B, L)
        return mean_attention(attention, content_words(text, prefix.instruction, self.tokenizer))


@AGGREGATIONS.register("sink_removal", "patches that every token looks at count nothing (Kang et al. 2025a)")
class SinkRemoval(Aggregation):
    """Patches that every token looks at count nothing."""

    words = True

    def forward(self, attention: Tensor, prefix: Prefix) -> Tensor:
        """Arguments and result as in `Aggregation`: without the patches that are sinks."""
        tokens = prefix.mask[:, -prefix.instruction.shape[1]:].bool()  # (B, L), True = not padding
        kept = attention.masked_fill(sinks(attention, tokens)[:, None, None, None], 0.0)
        return mean_attention(kept, prefix.instruction)


@AGGREGATIONS.register("relative", "divided by the map of a generic prompt: one more pass (Zhang et al. 2025)")
class Relative(Aggregation):
    """Divided by the map of a generic prompt, which comes with the prefix; without one the plain mean."""

    relative = True

    def forward(self, attention: Tensor, prefix: Prefix) -> Tensor:
        """Arguments and result as in `Aggregation`: divided by the reference."""
        saliency = mean_attention(attention, prefix.instruction)
        return saliency if prefix.reference is None else divide(saliency, prefix.reference)


@AGGREGATIONS.register("localisation_heads", "only the few heads that localise best (Kang et al. 2025b)")
class LocalisationHeads(Aggregation):
    """`chosen` (N, H) is 1 for the heads that count; all are 1 until `choose` is called."""

    def __init__(self, **read):
        super().__init__(**read)
        self.register_buffer("chosen", torch.ones(self.read))

    def choose(self, places: list[tuple[int, int]]) -> None:
        """places: (layer, head), counted from the first layer that is read."""
        self.chosen.zero_()
        for layer, head in places:
            self.chosen[layer, head] = 1.0

    def forward(self, attention: Tensor, prefix: Prefix) -> Tensor:
        """Arguments and result as in `Aggregation`: of the chosen heads."""
        return weigh(attention, prefix.instruction, self.chosen)


@AGGREGATIONS.register("learned_gate", "heads are weighted, and the weights learn")
class LearnedGate(Aggregation):
    """Weights softmax(gate) of all heads, equal at first. They learn from whatever loss is put on the saliency."""

    learns = True

    def __init__(self, **read):
        super().__init__(**read)
        self.gate = nn.Parameter(torch.zeros(self.read))

    def forward(self, attention: Tensor, prefix: Prefix) -> Tensor:
        """Arguments and result as in `Aggregation`: of all heads, weighted."""
        return weigh(attention, prefix.instruction, self.gate.flatten().softmax(dim=0).view_as(self.gate))


@AGGREGATIONS.register("smooth", "blurred by a Gaussian of one patch")
class Smooth(Aggregation):
    """Blurred by a Gaussian of one patch."""

    def forward(self, attention: Tensor, prefix: Prefix) -> Tensor:
        """Arguments and result as in `Aggregation`: blurred."""
        return smooth(mean_attention(attention, prefix.instruction), SMOOTHING)


def content_words(text: Tensor, instruction: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Which of the tokens text (B, L) belong to words that carry content: (B, L) bool.

    instruction (B, L) bool: the instruction's own tokens; a sentence of stop words alone keeps all of them.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    content = torch.zeros_like(instruction)
    for row, (ids, own) in enumerate(zip(text.tolist(), instruction.tolist())):
        places = [place for place, mine in enumerate(own) if mine]
        for word, group in words(ids, places, tokenizer):
            content[row, group] = word.lower().strip(".,!?") not in ENGLISH_STOP_WORDS | {""}
    return torch.where(content.any(dim=1, keepdim=True), content, instruction)


def words(ids: list[int], places: list[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[int]]]:
    """Group the tokens at `places` into words: (word, its places). A word begins where a token begins with a space."""
    groups: list[list[int]] = []
    for place in places:
        begins = tokenizer.convert_ids_to_tokens(ids[place]).startswith(("Ġ", "▁"))  # byte-level BPE, SentencePiece
        if begins or not groups:
            groups.append([])
        groups[-1].append(place)
    return [(tokenizer.decode([ids[place] for place in group]).strip(), group) for group in groups]


def sinks(attention: Tensor, tokens: Tensor) -> Tensor:
    """Patches (B, P) bool to which every token (B, L; True = not padding) gives more than SINK times its mean.

    Kang et al. find sinks by massive activations in dimensions that must be known for each model; what makes a sink,
    attention whatever the word, can be read off the attention itself.
    """
    given = attention.mean(dim=(1, 2))  # (B, L, P)
    ratio = given / given.mean(dim=-1, keepdim=True)
    return ratio.masked_fill(~tokens[:, :, None], float("inf")).amin(dim=1) > SINK


def weigh(attention: Tensor, instruction: Tensor, weights: Tensor) -> Tensor:
    """`mean_attention` with weights (N, H) for the heads."""
    mean = (attention * weights[None, :, :, None, None]).sum(dim=(1, 2)) / weights.sum()  # (B, L, P)
    return mean_attention(mean[:, None, None], instruction)


def divide(saliency: Tensor, reference: Tensor) -> Tensor:
    """saliency (B, P) over the generic prompt's map (B, P), summing to 1 again."""
    ratio = saliency / reference.clamp_min(1e-3 / saliency.shape[1])  # a patch that nothing looks at is no evidence
    return ratio / ratio.sum(dim=1, keepdim=True)


def smooth(saliency: Tensor, sigma: float) -> Tensor:
    """Blur saliency (B, P) by a Gaussian of `sigma` patches, reflected at the picture's border."""
    grid = round(saliency.shape[1] ** 0.5)
    blur = gaussian_filter1d(np.eye(grid), sigma, axis=0, mode="reflect") if sigma else np.eye(grid)
    matrix = torch.from_numpy(blur).to(saliency)
    square = matrix @ saliency.unflatten(1, (grid, grid)) @ matrix.T  # (B, rows, columns)
    return square.flatten(1) / square.sum(dim=(1, 2))[:, None]


def localising_heads(attention: np.ndarray, count: int = LOCALISING) -> list[tuple[int, int]]:
    """Which heads localise: those that look at the image at all, and at one place of it. Up to `count`, best first.

    attention (F, N, H, P) of F frames, mean over instruction words -> (layer, head). After Kang et al. 2025b: keep the
    heads whose attention to the image lies above the elbow of the sorted values, and of these the three whose maps have
    the lowest spatial entropy. They rank the entropies in every picture and count; here they are averaged over pictures.
    """
    mass = attention.sum(axis=-1).mean(axis=0)  # (N, H), share of the attention that goes to the image
    entropy = np.apply_along_axis(spatial_entropy, -1, attention).mean(axis=0)  # (N, H)
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
