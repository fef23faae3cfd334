"""The tap against transformers' own eager attention, which nobody here wrote."""

import pytest
import torch
from transformers import PaliGemmaForConditionalGeneration

from lar_core.model.backbone import load_backbone
from lar_core.model.saliency import SaliencyTap, mean_attention

SENTENCES = ["pick up the black bowl on the ramekin and place it on the plate", "move the bowl"]


@pytest.fixture
def backbone(backbone_folder):
    return load_backbone(backbone_folder, saliency_layers=2)


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def eager_attention(folder, backbone, images, suffix):
    """All layers' attention (N, B, H, S, S) of the same sequence by the eager implementation."""
    eager = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    inputs = backbone._embed(images, backbone.tokenise(SENTENCES), suffix)
    return torch.stack(eager.model(**inputs, output_attentions=True).attentions)


@pytest.mark.parametrize("with_suffix", [False, True])
def test_tap_equals_eager_attention_under_padding_and_batching(backbone_folder, backbone, images, with_suffix):
    suffix = torch.randn(2, 5, backbone.width) if with_suffix else None
    encoding = backbone.encode(images, SENTENCES, suffix)
    P, L = backbone.patches, encoding.instruction_mask.shape[1]
    expected = eager_attention(backbone_folder, backbone, images, suffix)[-2:, :, :, P : P + L, :P]  # (N, B, H, L, P)
    real = encoding.instruction_mask[:, None, None, :, None]
    difference = (encoding.attention - expected.transpose(0, 1)) * real
    assert difference.abs().max() < 1e-5


def test_saliency_is_the_mean_over_layers_heads_and_instruction_tokens(backbone, images):
    encoding = backbone.encode(images, SENTENCES)
    for i in range(2):
        rows = encoding.attention[i][:, :, encoding.instruction_mask[i]]  # (N, H, tokens, P)
        mean = rows.mean(dim=(0, 1, 2))
        assert torch.allclose(encoding.saliency[i], mean / mean.sum(), atol=1e-6)
    assert torch.allclose(encoding.saliency.sum(1), torch.ones(2))


def test_bos_newline_and_padding_are_left_out(backbone):
    prefix = backbone.tokenise(SENTENCES)
    tokens = [backbone.processor.tokenizer.convert_ids_to_tokens(row[backbone.patches:].tolist()) for row in prefix.ids]
    chosen = [[token for token, keep in zip(row, mask) if keep] for row, mask in zip(tokens, prefix.instruction)]
    assert [backbone.processor.tokenizer.convert_tokens_to_string(row).strip() for row in chosen] == SENTENCES


def test_padding_a_sample_does_not_change_it(backbone, images):
    alone = backbone.encode(images[1:], SENTENCES[1:])
    together = backbone.encode(images, SENTENCES)
    assert torch.allclose(alone.saliency[0], together.saliency[1], atol=1e-6)
    assert torch.allclose(alone.patches[0], together.patches[1], atol=1e-5)


def test_saliency_has_a_gradient_only_on_request(backbone, images):
    assert not backbone.encode(images, SENTENCES).saliency.requires_grad
    backbone.encode(images, SENTENCES, differentiable=True).saliency[:, 0].sum().backward()
    last = backbone.vlm.model.language_model.layers[-1].self_attn
    assert last.q_proj.weight.grad.abs().sum() > 0


def test_gradient_is_the_same_under_gradient_checkpointing(backbone, images):
    def gradient():
        backbone.zero_grad()
        P, L = backbone.patches, 16
        inputs = backbone._embed(images, backbone.tokenise(SENTENCES), None)
        with SaliencyTap(layers=backbone.tapped, image_tokens=P, text_tokens=L, differentiable=True) as tap:
            states = backbone.vlm.model(**inputs, use_cache=False).last_hidden_state
            loss = mean_attention(tap.attention, backbone.tokenise(SENTENCES).instruction)[:, :3].sum() + states.mean()
            loss.backward()
        return [p.grad.clone() for p in backbone.vlm.model.language_model.layers.parameters()]
    backbone.train()
    plain = gradient()
    backbone.vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for one, other in zip(plain, gradient()):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_second_tap_is_refused(backbone, images):
    tap = SaliencyTap(layers=(0,), image_tokens=1, text_tokens=1)
    with tap, pytest.raises(RuntimeError, match="already on"):
        backbone.encode(images, SENTENCES)
    backbone.encode(images, SENTENCES)  # and the first one was taken off


def test_a_tap_that_read_nothing_says_so():
    with pytest.raises(RuntimeError, match="did not run"):
        SaliencyTap(layers=(0,), image_tokens=1, text_tokens=1).attention
