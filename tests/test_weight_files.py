"""Weights as other tools save them: what is only named otherwise is read, what is not whole or not sound is refused."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PaliGemmaForConditionalGeneration

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
    *(("published", prefix) for prefix in ("_orig_mod.", "base_model.model.", "module.", "vlm.", "module._orig_mod.")),
    *(("present", prefix) for prefix in ("base_model.model.", "backbone.vlm.", "module.base_model.model.",
                                         "policy.language.paligemma."))])
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


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.ckpt"])
def test_pickles_are_never_opened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/opened'\ntR.")
    with pytest.raises(LarError, match=f"pickle .{re.escape(name)}.*save_pretrained as safetensors"):
        load_backbone(folder)


@pytest.mark.parametrize("size", [0, 4, 200, 20_000, -1])
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
    (torch.zeros(32, 128), "the same number, 0, throughout"), (torch.full((32, 128), 0.5), "the same number, 0.5"),
    (torch.zeros(0), "without a single number"), (torch.ones(32, 128, dtype=torch.int8), "as int8: it was quantised by"),
    (torch.ones(64, 1, dtype=torch.uint8), "as uint8"), (torch.ones(32, 128).to(torch.float8_e4m3fn), "as float8_e4m3fn")])
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
