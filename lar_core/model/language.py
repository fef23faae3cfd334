"""Language masking: words of the instruction are hidden and predicted from the other words and the image.

Masked language modelling as in BERT (Devlin et al. 2019), inside the backbone's bidirectional prefix and through its
own language-model head. A word that only the image can tell ("next to the ___") makes the text look at the image, as in
joint masked vision and language modelling (Kwon et al. 2023). 10 to 30 % of the words are hidden, names of objects,
colours and relations more often than others; the hidden ones are replaced by the tokenizer's unknown token, so that no
vocabulary has to grow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import Draws
from .aggregation import words
from .backbone import Backbone, Prefix

SHARE = (0.1, 0.3)  # of a sentence's words, drawn anew for every sample
PREFERENCE = 4.0  # times as likely to be hidden: a word of one of the three kinds below
MOST = 64  # words of a sentence that can be hidden; fixed, so that draws do not depend on the batch's padding

OBJECTS = {"bowl", "plate", "ramekin", "box", "cookie", "cookies", "drawer", "cabinet", "stove", "table"}
COLOURS = {"black", "white", "grey", "gray", "brown", "red", "orange", "yellow", "green", "blue", "purple", "pink",
           "wooden"}
RELATIONS = {"on", "in", "under", "above", "below", "over", "behind", "before", "between", "beside", "next", "to", "near",
             "left", "right", "front", "back", "from", "top", "bottom", "center", "middle", "inside"}
CONTENT = OBJECTS | COLOURS | RELATIONS

Words = list[tuple[str, list[int]]]  # a sentence's words, each with the places of its tokens in (L,)


def read_words(backbone: Backbone, prefix: Prefix) -> list[Words]:
    """The words of every sentence, in lower case."""
    text, tokenizer = prefix.ids[:, backbone.patches:].tolist(), backbone.processor.tokenizer
    own = [[place for place, mine in enumerate(row) if mine] for row in prefix.instruction.tolist()]
    return [[(word.lower(), group) for word, group in words(ids, places, tokenizer)] for ids, places in zip(text, own)]


def hide(backbone: Backbone, prefix: Prefix, places: Sequence[Sequence[int]]) -> tuple[Prefix, Tensor]:
    """Put the unknown token in some places of every sentence's text; returns the prefix and which, (B, L) bool.

    A saliency map made with this prefix leaves the hidden words out of its mean.
    """
    hidden = torch.zeros(prefix.instruction.shape, dtype=torch.bool)
    for row, chosen in enumerate(places):
        hidden[row, list(chosen)] = True
    hidden = hidden.to(prefix.ids.device)
    image, text = prefix.ids[:, : backbone.patches], prefix.ids[:, backbone.patches:]
    text = text.masked_fill(hidden, backbone.processor.tokenizer.unk_token_id)
    return replace(prefix, ids=torch.cat([image, text], dim=1), instruction=prefix.instruction & ~hidden), hidden


def hide_words(backbone: Backbone, prefix: Prefix, draws: Draws) -> tuple[Prefix, Tensor]:
    """Hide SHARE of every sentence's words, but at least one; returns as `hide`."""
    sentences = read_words(backbone, prefix)
    noise = draws.uniform(len(sentences), 1 + MOST)
    return hide(backbone, prefix, [draw(sentence, row) for sentence, row in zip(sentences, noise)])


def draw(sentence: Words, noise: Tensor) -> list[int]:
    """The places of the hidden tokens: words drawn without putting back (Gumbel-top-k), PREFERENCE for content.

    noise (1 + MOST,) in [0, 1): the first decides how many words, the others which.
    """
    sentence = sentence[:MOST]
    share = SHARE[0] + (SHARE[1] - SHARE[0]) * float(noise[0])
    weight = torch.tensor([PREFERENCE if word in CONTENT else 1.0 for word, _ in sentence])
    scores = weight.log() - (-noise[1 : 1 + len(sentence)].clamp(1e-7, 1 - 1e-7).log()).log()
    chosen = scores.topk(max(1, round(share * len(sentence)))).indices.tolist()
    return [place for number in chosen for place in sentence[number][1]]


def places_of(sentence: Words, wanted: Callable[[str], bool]) -> list[int]:
    """The places of all tokens of the words that are wanted."""
    return [place for word, group in sentence if wanted(word) for place in group]


def beside_objects(sentence: Words) -> list[int]:
    """The places of the relation words that stand right behind an object's name: "bowl *next to* the ramekin"."""
    found, beside = [], False
    for word, group in sentence:
        beside = word in OBJECTS or (beside and word in RELATIONS)
        found += group if beside and word in RELATIONS else []
    return found


def word_logits(backbone: Backbone, text: Tensor, hidden: Tensor) -> Tensor:
    """What the head makes of the hidden places alone: text (B, L, D), hidden (B, L), M of them True -> (M, V) fp32."""
    head = backbone.vlm.lm_head
    return head(text[hidden].to(head.weight.dtype)).float()


def word_loss(backbone: Backbone, text: Tensor, whole: Prefix, hidden: Tensor) -> Tensor:
    """Cross-entropy (nats) of the hidden tokens, mean over those of a sentence, then over sentences.

    text (B, L, D): final states of the text with words hidden; whole: the sentences as they are.
    """
    targets = whole.ids[:, backbone.patches:][hidden]
    entropy = F.cross_entropy(word_logits(backbone, text, hidden), targets, reduction="none")  # (M,)
    share = (1 / hidden.sum(dim=1, keepdim=True)).expand(hidden.shape)[hidden]
    return (entropy * share).sum() / len(hidden)
