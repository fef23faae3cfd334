"""Regularisers: losses on where the instruction looks, through the tap to the weights, or on what it changes in the
actions. All but `guided_attention`, the supervised bound, do without boxes.

Each is off (weight 0 in the condition) unless asked for, and then costs nothing. Adding one means adding a function of
`Given` and registering it.

Words are hidden by the tokenizer's unknown token, so that no vocabulary has to grow. `language` is masked language
modelling as in BERT (Devlin et al. 2019), inside the backbone's bidirectional prefix and through its own language-model
head. A word that only the image can tell ("next to the ___") makes the text look at the image, as in joint masked vision
and language modelling (Kwon et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..run.errors import LarError
from ..run.registry import REGULARISERS
from ..run.runtime import Draws
from ..run.settings import BLANK
from .aggregation import words
from .backbone import Backbone, Encoding, Prefix
from .masking import area_resample, count_masked, mask_top

TEMPERATURE = 0.1  # of likenesses between 0 and 1, and of L_action's nats (or, with l1, normalised error)
HALF = 0.5**0.5  # likeness of a map of one bowl with a map of two: how like `relational` lets its two maps be
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


@dataclass(frozen=True)
class Given:
    """What a regulariser may look at.

    backbone: for its words; batch: see `policy`; saliency (B, P): where the instructions look, with its graph; ratio:
    share of patches to mask; hidden (B, P') bool: the patches that the reconstruction hides from the backbone, None where
    none are; draws: randomness; see_again: one more pass over the batch's images for each of some `Prefix`es, which may
    have other words, without the head's tokens. Its options are hidden (B, P) bool, patches to grey out, frame, which of
    the batch's pictures, and saliency, whether to read it; it keeps its graph. surprise: L_action of every frame by
    itself, (B,), or, given B sentences, after one more pass that is told these. readers: what regularisers learn of their
    own, by name.
    """

    backbone: Backbone
    batch: dict
    saliency: Tensor
    ratio: float
    hidden: Tensor | None
    draws: Draws
    see_again: Callable[..., list[Encoding]]
    surprise: Callable[..., Tensor]
    readers: Mapping[str, nn.Module]

    @property
    def whole(self) -> Prefix:
        """The batch's instructions as they are."""
        return self.backbone.tokenise(self.batch["instructions"])

    def others(self, asking: str) -> tuple[list[str], Tensor]:
        """The sentences that name the other bowl, or the own ones where none does; and where one does, (B,) bool.

        asking: the regulariser that needs them. Raises LarError for a batch without.
        """
        if "others" not in self.batch:
            raise LarError(f"The {asking} regulariser needs the sentence that names the other bowl, which this batch "
                           f"does not have: make the data set with others, or set {asking}=0.")
        others, own = self.batch["others"], self.batch["instructions"]
        exists = torch.tensor([other is not None for other in others], device=self.saliency.device)
        return [other or mine for other, mine in zip(others, own)], exists


@REGULARISERS.register("sparsity", "A map of low entropy", colour="#009e73")
def sparsity(given: Given) -> Tensor:
    """Entropy of the map, as a share of the largest possible: 0 = one patch, 1 = all alike."""
    entropy = -(given.saliency * given.saliency.clamp_min(1e-12).log()).sum(dim=1)
    return entropy.mean() / torch.tensor(given.saliency.shape[1]).log()


@REGULARISERS.register("consistency", "The same map with different patches hidden", passes=2, colour="#cc79a7")
def consistency(given: Given) -> Tensor:
    """Jensen-Shannon divergence, 0 to 1, of the maps of two masks of the frame, over the patches that both leave."""
    k = count_masked(given.saliency.shape[1], given.ratio)
    masks = [mask_top(given.draws.uniform(*given.saliency.shape).to(given.saliency.device), k) for _ in range(2)]
    one, other = (given.see_again([given.whole], hidden=mask)[0].saliency for mask in masks)
    left = ~(masks[0] | masks[1])
    maps = [part / part.sum(dim=1, keepdim=True).clamp_min(1e-12) for part in (one * left, other * left)]
    return divergence(*maps).mean()


@REGULARISERS.register("contrastive", "The same map in other words, another one for the other bowl's sentence",
                       passes=2, needs="others", of_words=True, colour="#d55e00")
def contrastive(given: Given) -> Tensor:
    """InfoNCE with one hard negative: the map is nearer to that of the same sentence without its filling words than to
    that of the sentence that names the other bowl, in the same picture.

    Only hard negatives: maps of other pictures may well be alike, as the same bowl can stand in the same place. A frame
    whose other bowl no sentence names counts 0.
    """
    others, exists = given.others("contrastive")
    backbone, whole = given.backbone, given.whole
    fewer, _ = hide(backbone, whole, [_filling(sentence) for sentence in read_words(backbone, whole)])
    encodings = given.see_again([fewer, backbone.tokenise(others)])
    nearer = [likeness(given.saliency, encoding.saliency) for encoding in encodings]
    return (F.softplus((nearer[1] - nearer[0]) / TEMPERATURE) * exists).mean()


@REGULARISERS.register("relational", "Another map than without the words of relation", passes=1, of_words=True,
                       colour="#56b4e9")
def relational(given: Given) -> Tensor:
    """How much more than HALF the map is like that of the sentence whose relation words are hidden.

    Without them the sentence says only what is looked for, not which: both bowls fit. A frame whose sentence has no
    relation counts 0.
    """
    backbone, whole = given.backbone, given.whole
    cut, hidden = hide(backbone, whole, [beside_objects(sentence) for sentence in read_words(backbone, whole)])
    excess = F.relu(likeness(given.saliency, given.see_again([cut])[0].saliency) - HALF)
    return (excess * hidden.any(dim=1)).mean()


@REGULARISERS.register("language", "Hidden words told from the rest and the image", passes=1, on_map=False, of_words=True,
                       colour="#b8a800")
def language(given: Given) -> Tensor:
    """`word_loss`, in nats, of words told without the patches that the reconstruction hides."""
    cut, hidden = hide_words(given.backbone, given.whole, given.draws)
    encoding, = given.see_again([cut], hidden=given.hidden, saliency=False)
    return word_loss(given.backbone, encoding.text, given.whole, hidden)


@REGULARISERS.register("guided_attention", "The map pulled onto the named object's segmentation: the supervised bound",
                       colour="#882255")
def guided_attention(given: Given) -> Tensor:
    """Cross-entropy (nats) from the named object's share of each patch, as a distribution, to the map.

    Supervised, as GuidedVLA's object head (Jia et al. 2026) and gaze-regularised policies (Pani and Yang 2026) are. Its
    least is the target's own entropy, not 0. A frame whose object is out of view counts 0.
    """
    if "regions" not in given.batch:
        raise LarError("The guided_attention regulariser needs the segmentation of the named object, which these "
                       "demonstrations do not have: collect them with `lar demos`, or set guided_attention=0.")
    grid = round(given.saliency.shape[1] ** 0.5)
    covered = area_resample(given.batch["regions"][:, 0].flatten(1).float(), grid)  # (B, P)
    target = covered / covered.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return -(target * given.saliency.clamp_min(1e-12).log()).sum(dim=1).mean()


@REGULARISERS.register("contrastive_action", "Actions likelier under the right sentence than under the other bowl's",
                       passes=1, on_map=False, needs="others", of_words=True, colour="#332288")
def contrastive_action(given: Given) -> Tensor:
    """InfoNCE (nats) over the two sentences of a scene: which of them do the demonstrated actions tell?

    As counterfactual instruction grounding (Liu et al. 2026). A sentence's score is the mean log-probability of the chunk
    under it, over valid steps and the 7 degrees of freedom, or minus an l1 head's error (a Laplace density). A frame whose
    other bowl no sentence names counts 0.
    """
    others, exists = given.others("contrastive_action")
    gain = given.surprise(others) - given.surprise()  # of the right sentence, (B,)
    return (F.softplus(-gain / TEMPERATURE) * exists).mean()


@REGULARISERS.register("language_posterior", "Actions likelier with the sentence than by sight alone", passes=1,
                       on_map=False, of_words=True, colour="#a0522d")
def language_posterior(given: Given) -> Tensor:
    """How little the sentence adds to sight, and how badly sight alone acts: both in nats a degree of freedom.

    After LangForce (Lian et al. 2026), which maximises log p(a | image, sentence) - log p(a | image); here the latter is the
    pass under BLANK. By Bayes' rule this difference is the log-odds of the sentence against none, given the actions, and
    the first term is minus TEMPERATURE times the log of its posterior. No gradient flows into the blank pass there: it could
    be won by forgetting how to act by sight. With the plain difference nothing but the action loss would then be left;
    the posterior weighs frames, least where the words tell already. The second term is what trains the blank pass.
    """
    own, blank = given.surprise(), given.surprise([BLANK] * len(given.batch["instructions"]))  # (B,)
    return (TEMPERATURE * F.softplus((own - blank.detach()) / TEMPERATURE) + blank).mean()


def likeness(one: Tensor, other: Tensor) -> Tensor:
    """Bhattacharyya coefficient (B,) of two maps (B, P): 1 = the same, 0 = nowhere both."""
    return (one.clamp_min(1e-12) * other.clamp_min(1e-12)).sqrt().sum(dim=1)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence (...) of distributions (..., P), as maps are, in bits: 0 = the same, 1 = nowhere both."""
    middle = ((one + other) / 2).clamp_min(1e-12).log2()
    parts = [(part * (part.clamp_min(1e-12).log2() - middle)).sum(dim=-1) for part in (one, other)]
    return (parts[0] + parts[1]) / 2


def _filling(sentence: Words) -> list[int]:
    """Places of the words that name no object, colour or relation; none where that would hide everything."""
    if not any(word in CONTENT for word, _ in sentence):
        return []
    return [place for word, group in sentence if word not in CONTENT for place in group]


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
    ids = prefix.ids.masked_fill(F.pad(hidden, (backbone.patches, 0)), backbone.processor.tokenizer.unk_token_id)
    return replace(prefix, ids=ids, instruction=prefix.instruction & ~hidden), hidden


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


