"""The tap against transformers' own eager attention, which nobody here wrote."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from lar_core.model.paligemma import load_backbone
from lar_core.model.saliency import Rows, SaliencyTap
from lar_core.model.tiny import make_processor, tiny_config
from lar_core.run.config import PROFILES

SENTENCES = ["pick up the black bowl on the ramekin and place it on the plate", "move the bowl"]


@pytest.fixture
def backbone(backbone_folder):
    return load_backbone(backbone_folder, saliency_layers=2)


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def official_inputs(backbone, images, suffix):
    """The same sequence as arguments of transformers' own forward pass, which makes its own prefix-LM mask."""
    prefix = backbone.tokenise(SENTENCES)
    parts = [backbone.vlm.model.multi_modal_projector(backbone.image_features(images)),
             backbone.vlm.get_input_embeddings()(prefix.ids[:, backbone.patches:])]
    mask, kinds = prefix.mask, torch.zeros_like(prefix.mask)
    if suffix is not None:
        ones = mask.new_ones(suffix.shape[:2])
        parts, mask, kinds = [*parts, suffix], torch.cat([mask, ones], dim=1), torch.cat([kinds, ones], dim=1)
    return {"inputs_embeds": torch.cat(parts, dim=1), "attention_mask": mask, "token_type_ids": kinds,
            "position_ids": mask.cumsum(dim=1), "use_cache": False}


def eager(folder, backbone, images, suffix):
    """Final states and all layers' attention (N, B, H, S, S) of the same sequence by the eager implementation."""
    official = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    out = official.model(**official_inputs(backbone, images, suffix), output_attentions=True)
    return out.last_hidden_state, torch.stack(out.attentions)


@pytest.mark.parametrize("rows, queries", [("bos", 0), ("action", 3)])
def test_other_rows_equal_eager_attention(backbone_folder, backbone, images, rows, queries):
    """BOS is the first token behind the image; the queries are the last of the head's five tokens."""
    suffix = torch.randn(2, 5, backbone.width)
    encoding = backbone.encode(images, SENTENCES, suffix, rows=Rows(rows, queries))
    _, attention = eager(backbone_folder, backbone, images, suffix)
    P = backbone.patches
    places = [P] if rows == "bos" else [-3, -2, -1]
    expected = attention[-2:, :, :, places, :P].transpose(0, 1)  # (B, N, H, R, P)
    assert encoding.attention.shape == expected.shape and (encoding.attention - expected).abs().max() < 1e-5
    mean = expected.mean(dim=(1, 2, 3))
    assert torch.allclose(encoding.saliency, mean / mean.sum(dim=1, keepdim=True), atol=1e-5)
    assert (backbone.tokenise(SENTENCES).ids[:, P] == backbone.processor.tokenizer.bos_token_id).all()


@pytest.mark.parametrize("with_suffix", [False, True])
def test_tap_equals_eager_attention_under_padding_and_batching(backbone_folder, backbone, images, with_suffix):
    suffix = torch.randn(2, 5, backbone.width) if with_suffix else None
    encoding = backbone.encode(images, SENTENCES, suffix)
    P, L = backbone.patches, encoding.asked.shape[1]
    states, attention = eager(backbone_folder, backbone, images, suffix)
    expected = attention[-2:, :, :, P : P + L, :P]  # (N, B, H, L, P)
    real = encoding.asked[:, None, None, :, None]
    difference = (encoding.attention - expected.transpose(0, 1)) * real
    assert difference.abs().max() < 1e-5
    assert torch.allclose(encoding.patches, states[:, :P], atol=1e-5)
    if with_suffix:
        assert torch.allclose(encoding.suffix, states[:, P + L :], atol=1e-5)


def test_tap_equals_eager_attention_in_paligemma_2(tmp_path):
    """Its language model, Gemma 2, squashes attention scores, which SDPA cannot do."""
    processor = make_processor(64, 16)
    config = tiny_config(PROFILES["micro"], processor)
    text = {**config.text_config.to_dict(), "model_type": "gemma2", "attn_logit_softcapping": 0.1, "sliding_window": 4096,
            "query_pre_attn_scalar": 16, "layer_types": None}
    vlm = PaliGemmaForConditionalGeneration(PaliGemmaConfig(vision_config=config.vision_config.to_dict(), text_config=text,
                                                            image_token_id=processor.image_token_id, projection_dim=32))
    vlm.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, saliency_layers=2)
    images, suffix = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 5, 32)
    encoding = backbone.encode(images, SENTENCES, suffix)
    states, attention = eager(tmp_path, backbone, images, suffix)
    P, L = backbone.patches, encoding.asked.shape[1]
    real = encoding.asked[:, None, None, :, None]
    assert ((encoding.attention - attention[-2:, :, :, P : P + L, :P].transpose(0, 1)) * real).abs().max() < 1e-5
    assert torch.allclose(encoding.suffix, states[:, P + L :], atol=1e-5)


def test_saliency_is_the_mean_over_layers_heads_and_instruction_tokens(backbone, images):
    encoding = backbone.encode(images, SENTENCES)
    for i in range(2):
        rows = encoding.attention[i][:, :, encoding.asked[i]]  # (N, H, tokens, P)
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
    """The backward pass runs after the tap was taken off, and layers run again in it."""
    def gradient():
        backbone.zero_grad()
        encoding = backbone.encode(images, SENTENCES, differentiable=True)
        (encoding.saliency[:, :3].sum() + encoding.patches.mean()).backward()
        return [p.grad.clone() for p in backbone.vlm.model.language_model.layers.parameters()]

    backbone.train()
    plain = gradient()
    backbone.vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for one, other in zip(plain, gradient()):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_second_tap_is_refused(backbone, images):
    tap = SaliencyTap(layers=(0,), image_tokens=1, rows=slice(1, 2))
    with tap, pytest.raises(RuntimeError, match="already on"):
        backbone.encode(images, SENTENCES)
    backbone.encode(images, SENTENCES)  # and the first one was taken off


def test_threads_do_not_read_each_others_attention(backbone, images):
    """Training goes on while another thread draws snapshots."""
    with SaliencyTap(layers=(0,), image_tokens=1, rows=slice(1, 2)) as tap, ThreadPoolExecutor(1) as other, \
            pytest.raises(RuntimeError, match="did not run"):
        other.submit(backbone.encode, images, SENTENCES).result()
        assert tap.attention is not None


def test_a_tap_that_read_nothing_says_so():
    with pytest.raises(RuntimeError, match="did not run"):
        SaliencyTap(layers=(0,), image_tokens=1, rows=slice(1, 2)).attention
