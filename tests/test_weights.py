"""Weights as other tools save them: what is only named otherwise is read, what is not whole or not sound is refused.

So is a folder whose parts do not belong together, in one sentence, before anything is trained on it.
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PaliGemmaForConditionalGeneration, PreTrainedTokenizerFast

from lar_core.model import weights
from lar_core.model.paligemma import load_backbone
from lar_core.model.weights import check_numbers, plain_names, read_weights, weights_identity
from lar_core.run.errors import Damaged, LarError

LAYER = "language_model.model.layers.1.mlp.down_proj.weight"  # in the names of PaliGemma's published weights
TOWER = "vision_tower.encoder.layers.0.mlp.fc1.bias"


@pytest.fixture
def folder(backbone_folder, tmp_path):
    return shutil.copytree(backbone_folder, tmp_path / "copy")


@pytest.fixture
def saved(backbone_folder):
    return load_file(backbone_folder / "model.safetensors")


@pytest.fixture
def official(backbone_folder):
    """The weights as transformers itself loads them, by its present names."""
    return PaliGemmaForConditionalGeneration.from_pretrained(backbone_folder).state_dict()


def write(folder, weights):
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def same(folder, official):
    found = load_backbone(folder).vlm.state_dict()
    return found.keys() == official.keys() and all(torch.equal(found[name], official[name]) for name in official)


def compiled_inside(name):
    """As torch.compile, FSDP and DDP of single parts leave it."""
    name = name.replace("layers.1.", "layers.1._orig_mod.").replace("vision_tower.", "vision_tower._fsdp_wrapped_module.")
    return name.replace("language_model.model.", "language_model._orig_mod.model.")


@pytest.mark.parametrize("generation, prefix", [
    ("published", "_orig_mod."), ("published", "vlm."), ("present", "module.base_model.model."),
    ("present", "policy.language.paligemma.")])
def test_a_wrappers_prefix_is_taken_away_and_that_is_said(folder, saved, official, generation, prefix):
    names = saved if generation == "published" else official
    write(folder, {prefix + name: tensor for name, tensor in names.items()})
    with pytest.warns(UserWarning, match=rf"{re.escape(prefix)}\S+ is read as (model\.)?(language_model|lm_head)"):
        assert same(folder, official)


def test_wrappers_inside_the_model_are_taken_away_too(folder, saved, official):
    write(folder, {compiled_inside("_orig_mod." + name): tensor for name, tensor in saved.items()})
    with pytest.warns(UserWarning, match="carry the names of a wrapper"):
        assert same(folder, official)


@pytest.mark.filterwarnings("error")
def test_every_generation_of_paligemmas_own_names_loads_without_a_word(folder, saved, official):
    older = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in saved.items()}
    buffers = {"vision_tower.vision_model.embeddings.position_ids": torch.arange(16)[None],
               "language_model.model.rotary_emb.inv_freq": torch.ones(8)}
    without_head = {name: tensor for name, tensor in official.items() if name != "lm_head.weight"}
    for written in (saved, older, older | buffers, official, without_head):
        assert same(write(folder, written), official)


@pytest.mark.filterwarnings("ignore:.*names of a wrapper")
def test_a_stripped_backbone_is_saved_without_its_prefix(folder, saved, official, tmp_path):
    write(folder, {"module." + name: tensor for name, tensor in saved.items()})
    load_backbone(folder).vlm.save_pretrained(tmp_path / "again")
    assert not any("module." in name for name in load_file(tmp_path / "again" / "model.safetensors"))
    again = PaliGemmaForConditionalGeneration.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], official[name]) for name in official)


@pytest.mark.parametrize("names, sentence", [
    (["ema.language_model.x", "student.language_model.x"], "begin with 'ema.' and with 'student.'"),
    (["language_model.x", "teacher.vision_tower.x"], "begin with '' and with 'teacher.'"),
    (["language_model.x", "_orig_mod.language_model.x"], "holds language_model.x twice"),
    (["language_model.model.norm.weight", "model.language_model.norm.weight"], "twice, under two names"),
    (["base_model.model.language_model.q_proj.lora_A.default.weight"], "adapters that are not merged.*merge_and_unload"),
    (["language_model.model.layers.0.self_attn.q_proj.base_layer.weight"], "adapters that are not merged")])
def test_names_of_more_than_one_model_are_refused(tmp_path, names, sentence):
    with pytest.raises(LarError, match=sentence):
        plain_names(names, tmp_path)


def test_shards_are_read_as_one_and_have_the_same_identity(folder, saved, official, backbone_folder):
    PaliGemmaForConditionalGeneration.from_pretrained(backbone_folder).save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(weights.weight_files(folder)) == 3 and same(folder, official)
    assert weights_identity(read_weights(folder)) == weights_identity(saved)


@pytest.fixture
def sharded(folder, saved):
    """Two files and the index that names them."""
    (folder / "model.safetensors").unlink()
    half = len(saved) // 2
    parts = {"one.safetensors": sorted(saved)[:half], "two.safetensors": sorted(saved)[half:]}
    for file, names in parts.items():
        save_file({name: saved[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("change, sentence", [
    (lambda folder: (folder / "two.safetensors").unlink(), "lacks two.safetensors, one of the 2 files that its .*index"),
    (lambda folder: (folder / "model.safetensors.index.json").unlink(), "no .*index.json that says what one.safe"),
    (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "index.json is damaged"),
    (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": []}'), "does not say which file"),
    (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'),
     "does not say which file"),
    (lambda folder: (folder / "two.safetensors").write_bytes((folder / "two.safetensors").read_bytes()[:-100]),
     "two.safetensors is damaged"),
    (lambda folder: shutil.copy(folder / "one.safetensors", folder / "two.safetensors"), "twice, under two names or in")])
def test_a_sharded_folder_that_is_not_whole_is_refused(sharded, change, sentence):
    load_backbone(sharded)
    change(sharded)
    with pytest.raises(LarError, match=sentence):
        load_backbone(sharded)


@pytest.mark.parametrize("name", ["pytorch_model-00001-of-00002.bin", "model.ckpt"])
def test_pickles_are_never_opened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/opened'\ntR.")
    with pytest.raises(LarError, match=f"pickle .{re.escape(name)}.*save_pretrained as safetensors"):
        load_backbone(folder)


@pytest.mark.parametrize("size", [0, 200, -1])
def test_weights_cut_off_anywhere_are_named_damaged(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Damaged, match="model.safetensors is damaged.*delete it, and copy, save or download it again"):
        load_backbone(folder)


def test_a_note_of_git_lfs_is_told_from_damage(folder):
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(Damaged, match="git lfs pull"):
        load_backbone(folder)


@pytest.mark.parametrize("name, value, precision, dtype", [
    (LAYER, float("nan"), "int8", torch.bfloat16), (LAYER, float("nan"), "nf4", torch.float16),
    (TOWER, float("inf"), "fp32", torch.float32), ("language_model.model.embed_tokens.weight", -float("inf"), "fp32",
                                                   torch.bfloat16)])
def test_one_number_that_is_none_is_found_in_any_precision(folder, saved, name, value, precision, dtype):
    saved = {key: tensor.to(dtype) for key, tensor in saved.items()}
    saved[name].view(-1)[7] = value
    with pytest.raises(LarError, match=f"holds NaN, infinity, or numbers .* in {re.escape(name)}"):
        load_backbone(write(folder, saved), precision=precision, tune="all" if precision == "fp32" else "lora_all")


def test_numbers_that_only_the_chosen_precision_cannot_hold_are_refused(folder, saved):
    saved[LAYER][0, 0] = 1e5
    write(folder, saved)
    load_backbone(folder, precision="bf16")
    with pytest.raises(LarError, match=f"beyond 6.55e[+]04 in {re.escape(LAYER)}.*wider range"):
        load_backbone(folder, precision="fp16")


@pytest.mark.parametrize("tensor, sentence", [
    (torch.zeros(32, 64), "the same number, 0, throughout"), (torch.full((32, 64), 0.5), "the same number, 0.5"),
    (torch.zeros(0), "without a single number"), (torch.ones(32, 64, dtype=torch.int8), "as int8: it was quantised by"),
    (torch.ones(64, 1, dtype=torch.uint8), "as uint8"), (torch.ones(32, 64).to(torch.float8_e4m3fn), "as float8_e4m3fn")])
def test_a_tensor_that_holds_no_weights_is_refused(tmp_path, tensor, sentence):
    with pytest.raises(LarError, match=sentence):
        check_numbers({LAYER: tensor}, tmp_path, torch.float32)


def test_norms_and_biases_may_be_zero(tmp_path):
    check_numbers({"language_model.model.norm.weight": torch.zeros(32), TOWER: torch.zeros(8)}, tmp_path, torch.float32)


def test_the_identity_is_of_the_numbers_and_not_of_names_or_files(saved, official):
    one = weights_identity(saved)
    assert weights_identity({name: t for name, t in official.items() if name != "lm_head.weight"}) == one
    assert weights_identity(saved | {TOWER: saved[TOWER] + 1e-6}) != one
    assert weights_identity({name: tensor.half() for name, tensor in saved.items()}) != one
    assert weights_identity({name: tensor for name, tensor in saved.items() if name != TOWER}) != one


def test_the_identity_samples_large_tensors_to_their_ends():
    large = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    one = weights_identity({"x": large})
    for row in (0, 1023):
        other = large.clone()
        other[row] += 1
        assert weights_identity({"x": other}) != one
    assert weights_identity({"x": large * 1.001}) != one


# Parts that do not belong together.

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
    ("fp32", "embed_tokens", "model.language_model.embed_tokens.weight")])
def test_what_is_missing_is_named_instead_of_being_drawn_at_random(folder, precision, part, first):
    keep(folder, lambda name: part not in name)
    with pytest.raises(LarError, match=rf"lacks \d+ of the \d+ weights.*, {first} first, which would stay random"):
        load_backbone(folder, precision=precision, tune="all" if precision == "fp32" else "lora_all")


@pytest.mark.parametrize("precision, values, sentence", [
    ("fp32", {"text_config": {"num_hidden_layers": 4}}, "lacks 9 of .*, model.language_model.layers.3.input_lay"),
    ("nf4", {"text_config": {"num_hidden_layers": 2}}, "holds 9 that .* not ask for, .*layers.2.input_layernorm"),
    ("int8", {"vision_config": {"num_hidden_layers": 1}}, "does not ask for, .*vision_tower.encoder.layers.1"),
    ("fp32", {"text_config": {"vocab_size": 2048}}, r"embed_tokens.weight in the shape \(1574, 32\), where .* \(2048, 32\)"),
    *((precision, {"text_config": {"intermediate_size": 256}}, r"mlp.down_proj.weight in the shape \(32, 64\), where .* "
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


@pytest.mark.parametrize("kind", ["paligemma2_of_somebody", None])
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


@pytest.mark.parametrize("where, method", [(None, "bitsandbytes"), ("text_config", "gptq")])
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
        {"id": 1574, "content": "<one more>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}])
    with pytest.raises(LarError, match="goes to number 1574, but the embedding has 1574 rows"):
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


@pytest.mark.parametrize("name, content", [
    ("config.json", None), ("tokenizer.json", None), ("tokenizer_config.json", b""), ("processor_config.json", b"[]"),
    ("config.json", b"\xff\xfe")])
def test_a_damaged_file_is_named(folder, name, content):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(Damaged, match=f"{name} is damaged .*delete it, and copy or download it again"):
        load_backbone(folder)


@pytest.mark.parametrize("name, sentence", [
    ("config.json", "has no config.json"), ("tokenizer.json", "damaged, incomplete, or of another model"),
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
