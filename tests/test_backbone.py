"""The prefix is what PaliGemma's own processor and forward pass make of it, and it never sees the actions."""

import warnings

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration, PreTrainedTokenizerFast

from lar_core.model.backbone import past_name
from lar_core.model.paligemma import load_backbone
from lar_core.model.places import spoken
from lar_core.run.errors import LarError

SENTENCES = ["pick up the black bowl on the ramekin and place it on the plate", "move the bowl"]


@pytest.fixture
def backbone(backbone_folder):
    return load_backbone(backbone_folder)


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_prefix_equals_the_official_processor_and_forward_pass(backbone_folder, backbone, images):
    processor = AutoProcessor.from_pretrained(backbone_folder)
    official = PaliGemmaForConditionalGeneration.from_pretrained(backbone_folder, dtype=torch.float32)
    inputs = processor(images=list(images), text=["<image>" + s for s in SENTENCES], return_tensors="pt", padding=True)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])  # all of it is prefix
    expected = official.model(**inputs)
    encoding = backbone.encode(images / 127.5 - 1, SENTENCES)
    assert torch.allclose(encoding.patches, expected.last_hidden_state[:, : backbone.patches], atol=1e-4)


def test_layers_are_called_by_the_names_that_this_version_of_transformers_has(backbone, images):
    class Before(nn.Module):
        def forward(self, states, past_key_values=None):
            return states

    class After(nn.Module):
        def forward(self, states, cache=None):
            return states

    assert (past_name(Before().forward), past_name(After().forward)) == ("past_key_values", "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert isinstance(spoken(backbone, images[:1] / 127.5 - 1, "detect the bowl"), str)


def test_shapes(backbone, images):
    encoding = backbone.encode(images / 127.5 - 1, SENTENCES, torch.randn(2, 5, 32))
    B, P, D, L, S = 2, 16, 32, 16, 5
    assert encoding.patches.shape == (B, P, D)
    assert encoding.text.shape == (B, L, D)
    assert encoding.asked.shape == (B, L)
    assert encoding.suffix.shape == (B, S, D)
    assert encoding.attention.shape == (B, 3, 2, L, P)
    assert encoding.saliency.shape == (B, P)


def test_prefix_never_sees_actions(backbone, images):
    one = backbone.encode(images / 127.5 - 1, SENTENCES, torch.randn(2, 5, 32))
    other = backbone.encode(images / 127.5 - 1, SENTENCES, torch.randn(2, 5, 32))
    assert torch.equal(one.patches, other.patches)
    assert torch.equal(one.saliency, other.saliency)
    real = one.asked
    assert torch.equal(one.text[real], other.text[real])
    assert not torch.allclose(one.suffix, other.suffix)


def test_prefix_is_bidirectional(backbone, images):
    """The first image token depends on the last word: impossible under a causal mask."""
    here = backbone.encode(images[:1] / 127.5 - 1, ["place it on the plate"])
    there = backbone.encode(images[:1] / 127.5 - 1, ["place it on the stove"])
    assert not torch.allclose(here.patches[:, 0], there.patches[:, 0])


def test_suffix_sees_image_and_instruction(backbone, images):
    suffix = torch.randn(1, 5, 32)
    base = backbone.encode(images[:1] / 127.5 - 1, SENTENCES[:1], suffix).suffix
    assert not torch.allclose(base, backbone.encode(images[1:] / 127.5 - 1, SENTENCES[:1], suffix).suffix)
    assert not torch.allclose(base, backbone.encode(images[:1] / 127.5 - 1, SENTENCES[1:], suffix).suffix)


def test_a_smaller_second_camera_goes_through_the_same_tower(backbone):
    assert backbone.vlm.model.multi_modal_projector(backbone.image_features(torch.zeros(2, 3, 32, 32))).shape == (2, 4, 32)


def test_empty_instruction_is_refused(backbone, images):
    with pytest.raises(LarError, match="instruction is empty"):
        backbone.encode(images / 127.5 - 1, ["  ", "move"])


@pytest.mark.parametrize("token", ["<image>", "<bos>", "<eos>", "<pad>", "<unk>", "<loc0001>", "<seg127>"])
def test_a_special_token_is_not_a_word(backbone, token):
    for sentence in (f"pick up the {token} bowl", f"{token}move", f"move{token}"):
        with pytest.raises(LarError, match=f"contains {token}, which is a special token"):
            backbone.tokenise(["move the bowl", sentence])


def test_signs_that_are_no_special_tokens_are_text(backbone):
    assert backbone.tokenise(["the <left> bowl, 3 < 4, loc0001 [image]"]).instruction.sum() > 10


@pytest.mark.parametrize("sentence", ["move\nthe bowl", "move the bowl\n", "\r\nmove the bowl"])
def test_a_line_break_ends_the_prompt_and_is_refused(backbone, sentence):
    with pytest.raises(LarError, match="has a line break"):
        backbone.tokenise([sentence])


@pytest.mark.parametrize("sentence", ["", "\t \n", None])
def test_nothing_is_no_instruction(backbone, sentence):
    with pytest.raises(LarError, match="instruction is empty"):
        backbone.tokenise([sentence])


def test_a_tokenizer_with_fewer_words_does_not_read_all_others_as_one(backbone, monkeypatch):
    words = {word: number for number, word in enumerate(("<pad>", "<unk>", "<bos>", "pick", "up", "the", "bowl"))}
    reader = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    reader.pre_tokenizer = pre_tokenizers.Whitespace()
    fewer = PreTrainedTokenizerFast(tokenizer_object=reader, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>")
    monkeypatch.setattr(backbone.processor, "tokenizer", fewer)
    monkeypatch.setattr(backbone, "_prefixes", {})
    backbone.tokenise(["pick up the bowl"])
    with pytest.raises(LarError, match="does not know 'ramekin'"):
        backbone.tokenise(["pick up the ramekin"])


def test_a_page_of_text_is_refused_and_a_long_sentence_is_not(backbone):
    assert backbone.tokenise(["the bowl " * 100]).instruction.sum() > 200
    with pytest.raises(LarError, match="tokens, but at most 256 are taken: say it in one sentence"):
        backbone.tokenise(["the bowl " * 200])


def test_wrong_image_size_is_refused(backbone):
    with pytest.raises(LarError, match=r"\(3, 32, 32\).*\(3, 64, 64\)"):
        backbone.encode(torch.zeros(1, 3, 32, 32), ["move"])


def test_a_missing_backbone_is_named(tmp_path):
    with pytest.raises(LarError, match="nothing-here"):
        load_backbone(tmp_path / "nothing-here")
