"""A folder whose parts do not belong together is refused in one sentence, before anything is trained on it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lar_core.model.paligemma import load_backbone
from lar_core.run.errors import Damaged, LarError


@pytest.fixture
def folder(backbone_folder, tmp_path):
    return shutil.copytree(backbone_folder, tmp_path / "copy")


def change(path, **values):
    """Change fields of a JSON file; text_config and such are merged into what is there."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        content[name] = content[name] | value if isinstance(content.get(name), dict) else value
    path.write_text(json.dumps(content))


def keep(folder, wanted):
    path = folder / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if wanted(name)}
    save_file(weights, path)


@pytest.mark.parametrize("precision, part, first", [
    ("fp32", "language_model.model.layers.1.", "model.language_model.layers.1.input_layernorm.weight"),
    ("int8", "language_model.model.layers.2.mlp.up_proj.weight", "model.language_model.layers.2.mlp.up_proj.weight"),
    ("int8", "vision_tower.", "model.vision_tower.embeddings.patch_embedding.bias"),
    ("fp32", "multi_modal_projector.", "model.multi_modal_projector.linear.bias"),
    ("fp32", "embed_tokens", "model.language_model.embed_tokens.weight"),
    ("fp32", "language_model.model.norm.weight", "model.language_model.norm.weight")])
def test_what_is_missing_is_named_instead_of_being_drawn_at_random(folder, precision, part, first):
    keep(folder, lambda name: part not in name)
    with pytest.raises(LarError, match=rf"lacks \d+ of the \d+ weights.*, {first} first, which would stay random"):
        load_backbone(folder, precision=precision, tune="all" if precision == "fp32" else "lora_all")


@pytest.mark.parametrize("precision, values, sentence", [
    ("fp32", {"text_config": {"num_hidden_layers": 4}}, "lacks 9 of .*, model.language_model.layers.3.input_lay"),
    ("nf4", {"text_config": {"num_hidden_layers": 2}}, "holds 9 that .* not ask for, .*layers.2.input_layernorm"),
    ("fp32", {"vision_config": {"num_hidden_layers": 5}}, "lacks .* model.vision_tower.encoder.layers"),
    ("int8", {"vision_config": {"num_hidden_layers": 1}}, "does not ask for, .*vision_tower.encoder.layers.1"),
    ("fp32", {"text_config": {"vocab_size": 2048}}, r"embed_tokens.weight in the shape \(1499, 32\), where .* \(2048, 32\)"),
    *((precision, {"text_config": {"intermediate_size": 256}}, r"mlp.down_proj.weight in the shape \(32, 128\), where .* "
       r"\(32, 256\)") for precision in ("fp32", "int8", "nf4")),
    ("int8", {"text_config": {"num_key_value_heads": 2}}, r"k_proj.weight in the shape \(16, 32\)")])
def test_a_configuration_of_another_size_is_refused(folder, precision, values, sentence):
    change(folder / "config.json", **values)
    with pytest.raises(LarError, match=sentence):
        load_backbone(folder, precision=precision, tune="all" if precision == "fp32" else "lora_all")


def test_what_a_wrapper_has_beside_the_backbone_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({f"backbone.vlm.{name}": tensor for name, tensor in weights.items()} | {"head.queries": torch.ones(2)},
              folder / "model.safetensors")
    with pytest.warns(UserWarning, match="wrapper"), pytest.raises(LarError, match="holds 1 that .*, head.queries first"):
        load_backbone(folder)


def test_siglips_pooling_head_which_paligemma_never_asks_may_be_missing_or_there(folder):
    change(folder / "config.json", vision_config={"vision_use_head": True})
    load_backbone(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"vision_tower.head.probe.weight": torch.ones(2)}, folder / "model.safetensors")
    change(folder / "config.json", vision_config={"vision_use_head": False})
    load_backbone(folder)


@pytest.mark.parametrize("kind", ["gemma", "llava", "paligemma2_of_somebody", None])
def test_another_kind_of_model_is_refused(folder, kind):
    change(folder / "config.json", model_type=kind)
    with pytest.raises(LarError, match=f"a model of type {kind!r}, not 'paligemma'"):
        load_backbone(folder)


@pytest.mark.parametrize("alone", [True, False])
def test_a_folder_with_an_adapter_is_refused(folder, alone):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somewhere"}')
    if alone:
        for path in folder.iterdir():
            if not path.name.startswith("adapter"):
                path.unlink()
    with pytest.raises(LarError, match="PEFT adapter.*merge_and_unload"):
        load_backbone(folder)


@pytest.mark.parametrize("where", [None, "text_config"])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_weights_quantised_by_others_are_refused(folder, where, method):
    quantised = {"quantization_config": {"quant_method": method, "load_in_4bit": True}}
    change(folder / "config.json", **({where: quantised} if where else quantised))
    with pytest.raises(LarError, match="quantised by others.*precision would be ignored"):
        load_backbone(folder, precision="int8", tune="lora_all")


def foreign_tokenizer():
    """A tokenizer in GPT-2's manner, of another vocabulary, and without <image>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(["the quick brown fox"], trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>",
                                   bos_token="<|endoftext|>")


def test_a_foreign_tokenizer_is_refused(folder):
    foreign_tokenizer().save_pretrained(folder)
    with pytest.raises(LarError, match="belongs to another model.*<image> is token .* of the tokenizer, but"):
        load_backbone(folder)


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder):
    change(folder / "tokenizer.json", added_tokens=[
        *json.loads((folder / "tokenizer.json").read_text())["added_tokens"],
        {"id": 1499, "content": "<one more>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}])
    with pytest.raises(LarError, match="goes to number 1499, but the embedding has 1499 rows"):
        load_backbone(folder)


def test_a_tokenizer_with_another_first_token_is_refused(folder):
    change(folder / "tokenizer_config.json", bos_token="<eos>")
    with pytest.raises(LarError, match="sentences begin with token 1, but with 2 in the model"):
        load_backbone(folder)


def test_a_tokenizer_that_reads_other_words_is_refused(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "bowl"}, "content": "dish"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LarError, match="it reads 'pick up the black bowl and .*' as 'pick up the black dish"):
        load_backbone(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe"])
def test_a_damaged_file_is_named(folder, name, content):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(Damaged, match=f"{name} is damaged .*delete it, and copy or download it again"):
        load_backbone(folder)


@pytest.mark.parametrize("name, sentence", [
    ("config.json", "has no config.json"), ("tokenizer.json", "damaged, missing, or of another model"),
    ("processor_config.json", "could not be read.*if a file is missing, copy"), ("model.safetensors", "has no model")])
def test_a_missing_file_is_not_called_damage_to_be_deleted(folder, name, sentence):
    (folder / name).unlink()
    with pytest.raises(LarError, match=sentence) as caught:
        load_backbone(folder)
    assert "delete it" not in str(caught.value)


@pytest.mark.parametrize("values, sentence", [
    ({"image_seq_length": 49}, "makes 49 image tokens, but the model 16"),
    ({"size": {"height": 224, "width": 224}}, "pictures of 224 x 224 pixels, but the model sees 64 x 64"),
    ({"image_mean": [0.48, 0.46, 0.41]}, r"its mean of pixels is \[0.48, 0.46, 0.41\]"),
    ({"image_std": [0.27, 0.26, 0.28]}, "its deviation of pixels")])
def test_an_image_processor_of_another_model_is_refused(folder, values, sentence):
    change(folder / "processor_config.json", image_processor=values)
    with pytest.raises(LarError, match=sentence):
        load_backbone(folder)


@pytest.mark.parametrize("values", [{"text_config": {"hidden_size": "wide"}}, {"text_config": 3}, {"vision_config": []}])
def test_a_configuration_that_describes_no_model_is_refused(folder, values):
    content = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(LarError, match="config.json"):
        load_backbone(folder)


@pytest.mark.parametrize("source", ["google/paligemma-3b-pt-224", "/no/such/folder"])
def test_what_is_no_folder_is_said(source):
    with pytest.raises(LarError, match=f"There is no folder {source}"):
        load_backbone(source)
