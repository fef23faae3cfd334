"""Attention knockout against transformers' own eager attention with those entries masked by hand."""

import pytest
import torch
from test_saliency import SENTENCES, official_inputs
from transformers import PaliGemmaForConditionalGeneration

from lar_core.model.backbone import prefix_lm_mask
from lar_core.model.knockout import Knockout
from lar_core.model.paligemma import load_backbone
from lar_core.model.saliency import SaliencyTap
from lar_core.run.settings import PATHS


@pytest.fixture
def backbone(backbone_folder):
    return load_backbone(backbone_folder, saliency_layers=2)


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def by_hand(path, P, L, S):
    """Which (row, column) pairs of the sequence a path is, (S, S) bool."""
    groups = {"image": range(P), "bos": [P], "words": range(P + 1, P + L), "all": range(P, P + L), "action": range(P + L, S)}
    rows, columns = path.split("_")
    cut = torch.zeros(S, S, dtype=torch.bool)
    for row in groups["words" if rows == "text" else rows]:
        for column in groups["all" if columns == "text" else columns]:
            cut[row, column] = True
    return cut


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
def test_a_path_cut_everywhere_is_eager_attention_with_these_entries_masked(backbone_folder, backbone, images, path):
    suffix = torch.randn(2, 5, backbone.width, generator=torch.Generator().manual_seed(2))
    P, L = backbone.patches, backbone.tokenise(SENTENCES).instruction.shape[1]
    with Knockout.of(path, range(backbone.layers), P, L):
        found = backbone.encode(images, SENTENCES, suffix).suffix
    inputs = official_inputs(backbone, images, suffix)
    allowed = prefix_lm_mask(inputs["attention_mask"].bool(), P + L) & ~by_hand(path, P, L, P + L + 5)
    official = PaliGemmaForConditionalGeneration.from_pretrained(backbone_folder, dtype=torch.float32,
                                                                 attn_implementation="eager")
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    states = official.model.language_model(inputs_embeds=inputs["inputs_embeds"], attention_mask=additive,
                                           position_ids=inputs["position_ids"]).last_hidden_state
    assert torch.allclose(found, states[:, P + L:], atol=1e-5)
    assert not torch.allclose(found, backbone.encode(images, SENTENCES, suffix).suffix, atol=1e-5)


@torch.no_grad()
def test_only_the_layers_that_are_named_are_cut_and_the_tap_sees_it(backbone, images):
    P, L = backbone.patches, backbone.tokenise(SENTENCES).instruction.shape[1]
    last, rows = backbone.layers - 1, slice(P + 1, P + L)
    with Knockout.of("text_image", [last], P, L), SaliencyTap(layers=range(last + 1), image_tokens=P, rows=rows) as tap:
        backbone.encode(images, SENTENCES, saliency=False)
    shares = tap.attention.sum(dim=-1)[:, :, :, :3]  # (B, N, H, words), of words that both sentences have
    assert (shares[:, last] == 0).all() and (shares[:, :last] > 0).all()


@torch.no_grad()
def test_what_nothing_reads_carries_nothing_and_leaving_restores(policy_of, batch):
    """The last layer's words are read by nobody, so that what they see there cannot matter; one layer below it does."""
    policy = policy_of("action_only").eval()
    last = policy.backbone.layers - 1
    def answer(layer):
        with policy.without(batch, "text_image", [layer]):
            return policy.head(policy.encode(batch, saliency=False))
    own = policy.head(policy.encode(batch, saliency=False))
    assert torch.equal(answer(last), own) and not torch.equal(answer(last - 1), own)
    assert torch.equal(policy.head(policy.encode(batch, saliency=False)), own)


def test_two_at_once_are_refused():
    cut = Knockout.of("text_image", [0], 4, 3)
    with cut, pytest.raises(RuntimeError, match="already on"), cut:
        pass
