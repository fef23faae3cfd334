"""Pre-training with places: what PaliGemma learned from boxes (Beyer et al. 2024, 3.2), on rendered scenes.

The simulator says where things are, as annotators said it for PaliGemma. Four losses teach the backbone to connect words
with places; the policies that are compared on top of it never see a box.

    answer   PaliGemma's own: the text behind the prompt, `<loc><loc><loc><loc> bowl`, word by word (prefix-LM)
    words    every word of a phrase tells where its thing is, as in localised narratives (Pont-Tuset et al. 2020)
    segment  final image states tell what of each patch the named things cover
    vision   image tokens before the language model tell what of each patch each class covers, the wrist camera's too

The last three are dense and start it: with answers alone nothing had been learned after 12,800 samples. What reads them
out (`readouts`) is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ..run.runtime import Draws
from ..scene.sentences import CLASSES, THINGS, Said
from .backbone import Backbone
from .policy import Policy
from .saliency import Prefix

SPREAD = 1.5  # pixels, of the soft targets: neighbouring bins are nearly right
LOCS = 1024  # PaliGemma's location tokens, over the whole edge of a picture
WEIGHTS = {"answer": 1.0, "words": 0.5, "segment": 0.5, "vision": 0.5}
CLASS_OF = [CLASSES.index(thing) for thing in THINGS]


class Places(Policy):
    """A policy that is asked where things are instead of for actions; its head stays as it is."""

    weights = WEIGHTS  # type: ignore[assignment]

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.head.requires_grad_(False)
        width, bins = self.backbone.width, 2 * self.backbone.image_size
        self.readouts = nn.ModuleDict({"words": nn.Linear(width, bins), "segment": nn.Linear(width, 2),
                                       "vision": nn.Linear(width, len(CLASSES))})
        self.answers = Answers(self.backbone)

    def forward(self, batch: dict, draws: Draws | None = None) -> dict[str, Tensor]:
        """`loss` and its parts, of a batch as `pretrain.Described` has it."""
        backbone, said, boxes = self.backbone, batch["said"], batch["boxes"]
        prefix = backbone.tokenise([one.text for one in said])
        seen = backbone.lower(self.see(batch["images"]), prefix, self.see(batch["wrist"]))
        answers, targets = self.answers(said, boxes)  # (B, S), (B, S, V)
        inputs = backbone.vlm.get_input_embeddings()(answers[:, :-1].clamp_min(0))
        encoding = backbone.upper(seen, prefix, inputs, saliency=False)
        before = torch.cat([at_newline(encoding.text, prefix)[:, None], encoding.suffix], dim=1)  # (B, S, D)
        losses = {"answer": soft_cross_entropy(backbone.vlm.lm_head(before), targets, answers >= 0),
                  "words": self._words(encoding.text, said, boxes),
                  "segment": self._segment(encoding.patches, said, batch["labels"]),
                  "vision": self._vision(seen.states[:, : backbone.patches], batch["labels"])
                  + self._vision(seen.wrist_tokens, batch["wrist_labels"])}
        return {"loss": sum(weight * losses[name] for name, weight in WEIGHTS.items()), **losses}

    def _words(self, text: Tensor, said: Sequence[Said], boxes: Tensor) -> Tensor:
        """Cross-entropy (nats) of row and column of the middle of the thing that each word names."""
        rows, places, things = self.answers.named(said)
        size = self.backbone.image_size
        logits = self.readouts["words"](text[rows, places]).unflatten(-1, (2, size))  # (M, 2, size)
        middle = boxes[rows, things].unflatten(-1, (2, 2)).mean(dim=1)  # (M, 2): row, column
        bins = torch.arange(size, device=text.device) + 0.5
        return soft_cross_entropy(logits, soft(middle, bins), torch.ones(logits.shape[:2], dtype=torch.bool))

    def _segment(self, patches: Tensor, said: Sequence[Said], labels: Tensor) -> Tensor:
        """Binary cross-entropy of what the first and the second named thing cover."""
        named = torch.tensor([[*(thing for *_, thing in one.spans), -2, -2][:2] for one in said], device=labels.device)
        targets = torch.stack([covered(labels == named[:, number, None, None] + 1, patches.shape[1])
                               for number in range(2)], dim=-1)  # (B, P, 2)
        return F.binary_cross_entropy_with_logits(self.readouts["segment"](patches), targets)

    def _vision(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy of what each class covers."""
        classes = torch.tensor([-1, *CLASS_OF], device=labels.device)[labels.long()]  # (B, h, w)
        targets = torch.stack([covered(classes == number, tokens.shape[1]) for number in range(len(CLASSES))], dim=-1)
        return F.binary_cross_entropy_with_logits(self.readouts["vision"](tokens), targets)


class Answers:
    """What PaliGemma answers, as tokens: (top, left, bottom, right) of each thing and its name, or words."""

    def __init__(self, backbone: Backbone):
        self.backbone, self.tokenizer = backbone, backbone.processor.tokenizer
        self.first = self.tokenizer.convert_tokens_to_ids("<loc0000>")
        self._named: dict[Said, list[tuple[int, int]]] = {}

    @cached_property
    def bins(self) -> Tensor:
        """The location token in the middle of each pixel (size,)."""
        size = self.backbone.image_size
        return ((torch.arange(size) + 0.5) * LOCS / size).long()

    def __call__(self, said: Sequence[Said], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, S), -1 behind the end, and what should be said at each place (B, S, V), summing to 1."""
        rows = [torch.tensor(self._tokens(one, own)) for one, own in zip(said, boxes.tolist())]
        tokens = pad_sequence(rows, batch_first=True, padding_value=-1).to(boxes.device)
        targets = F.one_hot(tokens.clamp_min(0), self.backbone.vlm.lm_head.out_features).float()
        located = (tokens >= self.first) & (tokens < self.first + LOCS)
        values = torch.cat([boxes[row, [thing for *_, thing in one.spans]].flatten()
                            for row, one in enumerate(said) if one.answer is None] or [boxes.new_zeros(0)])
        pixels = torch.arange(self.backbone.image_size, device=boxes.device) + 0.5
        targets[located] = targets.new_zeros(len(values), targets.shape[-1]).index_copy(
            1, self.first + self.bins.to(boxes.device), soft(values, pixels))
        return tokens, targets

    def _tokens(self, said: Said, boxes: list[list[float]]) -> list[int]:
        words = said.answer
        if words is None:
            words = " ; ".join("".join(f"<loc{self.bins[int(edge)]:04d}>" for edge in boxes[thing]) + f" {THINGS[thing]}"
                               for *_, thing in said.spans)
        return [*self.tokenizer(words, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def named(self, said: Sequence[Said]) -> tuple[Tensor, Tensor, Tensor]:
        """Row in the batch, place in the text and thing (M,) of every token of a phrase that names one."""
        found = [(row, place, thing) for row, one in enumerate(said) for place, thing in self._places(one)]
        return tuple(torch.tensor(found).reshape(-1, 3).T)

    def _places(self, said: Said) -> list[tuple[int, int]]:
        if said not in self._named:
            offsets = self.tokenizer(said.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            self._named[said] = [(1 + place, thing) for place, (_, end) in enumerate(offsets)
                                 for first, last, thing in said.spans if first < end <= last]
        return self._named[said]


@torch.no_grad()
def boxes_of(backbone: Backbone, images: Tensor, sentences: list[str]) -> Tensor:
    """What the backbone answers, greedily: the first box (B, 4), (top, left, bottom, right) in pixels; images in [-1, 1]."""
    answers, past, prefix = Answers(backbone), DynamicCache(), backbone.tokenise(sentences)
    encoding = backbone.upper(backbone.lower(images, prefix), prefix, saliency=False, past=past)
    state, edges = at_newline(encoding.text, prefix), []
    for _ in range(4):
        bins = answers.first + answers.bins.to(state.device)
        edges.append(backbone.vlm.lm_head(state)[:, bins].argmax(dim=-1))
        token = backbone.vlm.get_input_embeddings()(bins[edges[-1]])[:, None]
        state = backbone.extend(token, prefix, past)[:, 0]
    return torch.stack(edges, dim=1) + 0.5


@torch.no_grad()
def answers_places(backbone: Backbone, images: Tensor, sentences: list[str]) -> Tensor:
    """Whether the backbone, free to say any token, begins its answer with a location (B,): an untrained one does not."""
    prefix, first = backbone.tokenise(sentences), Answers(backbone).first
    encoding = backbone.upper(backbone.lower(images, prefix), prefix, saliency=False)
    said = backbone.vlm.lm_head(at_newline(encoding.text, prefix)).argmax(dim=-1)
    return (first <= said) & (said < first + LOCS)


@torch.no_grad()
def spoken(backbone: Backbone, images: Tensor, sentence: str, most: int = 24) -> str:
    """What the backbone answers, greedily and free to say any token, at most so many; images (1, 3, H, W) in [-1, 1]."""
    tokenizer, past, prefix = backbone.processor.tokenizer, DynamicCache(), backbone.tokenise([sentence])
    said: list[int] = []
    encoding = backbone.upper(backbone.lower(images, prefix), prefix, saliency=False, past=past)
    state = at_newline(encoding.text, prefix)
    while len(said) < most:
        token = backbone.vlm.lm_head(state).argmax(dim=-1)
        if token.item() == tokenizer.eos_token_id:
            break
        said.append(token.item())
        state = backbone.extend(backbone.vlm.get_input_embeddings()(token)[:, None], prefix, past)[:, 0]
    return tokenizer.decode(said)


def at_newline(text: Tensor, prefix: Prefix) -> Tensor:
    """States of the text (B, L, D) -> those of its last token (B, D), behind which the answer begins."""
    padding = (prefix.mask[:, -text.shape[1]:] == 0).sum(dim=1)
    return text[torch.arange(len(text)), text.shape[1] - 1 - padding]


def soft(values: Tensor, bins: Tensor) -> Tensor:
    """Values (...) as distributions over bins (N,) -> (..., N): normal with SPREAD, summing to 1."""
    return (-0.5 * ((values[..., None] - bins) / SPREAD) ** 2).softmax(dim=-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy (nats) of distributions (..., N), mean over the places that are valid (...)."""
    return F.cross_entropy(logits[valid].float(), targets[valid])


def covered(region: Tensor, patches: int) -> Tensor:
    """Region (B, h, w) bool -> the share of each of P patches that it covers (B, P)."""
    return F.adaptive_avg_pool2d(region.float()[:, None], round(patches**0.5)).flatten(1)
