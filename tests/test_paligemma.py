"""8 bit, 4 bit and floats: what is quantised, what learns, and how far outputs move from fp32."""


import pytest
import torch

from lar_core.model import paligemma
from lar_core.model.paligemma import (
    LINEARS,
    activation_ranges,
    load_backbone,
    parameter_table,
    quantised_modules,
    settle,
    too_large,
)
from lar_core.model.policy import make_policy
from lar_core.model.tiny import build_tiny
from lar_core.run.config import PROFILES, make_config
from lar_core.run.errors import Damaged, LarError

SENTENCES = ["pick up the black bowl on the ramekin and place it on the plate", "move the bowl"]
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
LAYERS = 3  # of the micro profile


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """4 bit works on blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("wide")
    build_tiny(PROFILES["micro"].replace(text_width=128), folder)
    return folder


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_only_the_language_models_linear_layers_are_quantised(backbone_folder, precision):
    backbone = load_backbone(backbone_folder, precision=precision, tune="lora_all")
    names = quantised_modules(backbone.vlm)
    assert len(names) == LAYERS * len(LINEARS)
    assert all(name.startswith("model.language_model.layers") for name in names)
    assert backbone.vlm.model.vision_tower.dtype == torch.float32


@pytest.mark.parametrize("tune", ["full_top", "lora_top"])
def test_top_layers_that_learn_are_not_quantised(backbone_folder, tune):
    backbone = load_backbone(backbone_folder, precision="int8", tune=tune, top_layers=1, saliency_layers=1)
    assert len(quantised_modules(backbone.vlm)) == (LAYERS - 1) * len(LINEARS)


@pytest.mark.parametrize("precision, tolerance", [("int8", 0.02), ("bf16", 0.02), ("fp16", 0.005), ("nf4", 0.15)])
def test_states_stay_close_to_fp32(wide_folder, precision, tolerance):
    exact = load_backbone(wide_folder).encode(IMAGES, SENTENCES)
    rough = load_backbone(wide_folder, precision=precision, tune="lora_all").encode(IMAGES, SENTENCES)
    difference = (rough.patches.float() - exact.patches).norm() / exact.patches.norm()
    assert 0 < difference < tolerance
    assert torch.allclose(rough.saliency.sum(1), torch.ones(2), atol=1e-3)


@pytest.mark.parametrize("tune, precision, names", [
    ("lora_all", "int8", ("layers.0.", "layers.1.", "layers.2.")), ("lora_top", "fp32", ("layers.2.",)),
    ("full_top", "int8", ("layers.2.", "language_model.norm")), ("full_top", "fp32", ("layers.2.", "language_model.norm"))])
def test_what_learns_is_what_was_named_and_it_is_fp32(backbone_folder, tune, precision, names):
    vlm = load_backbone(backbone_folder, precision=precision, tune=tune, top_layers=1, saliency_layers=1).vlm
    learning = {name: parameter for name, parameter in vlm.named_parameters() if parameter.requires_grad}
    assert all(any(part in name for part in names) for name in learning)
    assert all(any(part in name for name in learning) for part in names)
    assert all(parameter.dtype == torch.float32 for parameter in learning.values())
    if tune.startswith("lora"):
        assert all("lora_" in name for name in learning)


@pytest.mark.parametrize("tune", ["lora_top", "full_top", "lora_all"])
def test_a_step_moves_what_learns_and_nothing_else(backbone_folder, batch, tune):
    config = make_config(precision="int8", profile="micro", tune=tune, top_layers=1, saliency_layers=1)
    policy = make_policy(config, backbone_folder).train()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items() if torch.is_tensor(tensor)}
    optimiser = torch.optim.AdamW(policy.trained().values(), lr=1e-2)
    for _ in range(2):  # a LoRA's first factor only gets a gradient once the second is not zero
        policy(batch)["loss"].backward()
        optimiser.step(), optimiser.zero_grad()
    moved = {name for name, tensor in policy.state_dict().items()
             if torch.is_tensor(tensor) and not torch.equal(tensor, before[name])}
    assert moved and moved <= set(policy.trained())
    assert any(name.startswith("backbone.") for name in moved)


@pytest.mark.parametrize("tune", ["full_top", "lora_all"])
def test_checkpointing_gives_the_same_gradients(backbone_folder, batch, tune):
    def gradients(checkpointing):
        config = make_config(profile="micro", tune=tune, top_layers=2, saliency_layers=2, checkpointing=checkpointing)
        policy = make_policy(config, backbone_folder).train()
        policy(batch)["loss"].backward()
        return {name: parameter.grad for name, parameter in policy.trained().items()}
    plain, recomputed = gradients(False), gradients(True)
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)


def test_saved_adapters_come_back_on_a_backbone_of_another_precision(backbone_folder, batch, tmp_path):
    """Trained on 8 bit, acting in floats: the trained tensors are the same, and few."""
    settings = {"profile": "micro", "tune": "lora_top", "top_layers": 1, "saliency_layers": 1}
    trained = make_policy(make_config(precision="int8", **settings), backbone_folder)
    with torch.no_grad():
        for parameter in trained.trained().values():
            parameter += 0.02
    trained.save(tmp_path / "model.safetensors")
    acting = make_policy(make_config(precision="fp32", **settings), backbone_folder)
    acting.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        before = acting.encode(batch).suffix
        assert (trained.encode(batch).suffix - before).norm() / before.norm() < 0.02
        settle(acting.backbone)  # folding adapters in changes nothing
        assert torch.allclose(acting.encode(batch).suffix, before, atol=1e-4)


def test_the_parameter_table_adds_up(backbone_folder):
    vlm = load_backbone(backbone_folder).vlm
    table = parameter_table(vlm)
    norm = vlm.model.language_model.norm.weight.numel()
    assert sum(row["parameters"] for row in table) + norm == vlm.num_parameters()
    nf4 = parameter_table(load_backbone(backbone_folder, precision="nf4", tune="lora_all", lora_rank=1).vlm)
    assert nf4[-1]["bytes"] < table[-1]["bytes"] / 3


def test_a_wrong_number_of_quantised_modules_is_refused(backbone_folder, monkeypatch):
    monkeypatch.setattr("lar_core.model.paligemma.LINEARS", LINEARS + ("another_proj",))
    with pytest.raises(LarError, match="21 modules were quantised instead of 24"):
        load_backbone(backbone_folder, precision="int8", tune="lora_all")


def test_activation_ranges_find_the_layer_that_would_overflow_fp16(backbone_folder):
    backbone = load_backbone(backbone_folder)
    with activation_ranges(backbone) as calm:
        backbone.encode(IMAGES, SENTENCES)
    with torch.no_grad():
        backbone.vlm.model.language_model.layers[1].mlp.down_proj.weight *= 1e7
    with activation_ranges(backbone) as wild:
        backbone.encode(IMAGES, SENTENCES)
    assert set(calm) == {"vision tower", "projector", "layer 0", "layer 1", "layer 2"} and not too_large(calm)
    assert too_large(wild) == ["layer 1", "layer 2"]


def test_the_smallest_model_acts_in_4_bit_on_any_cpu(policy_of, batch):
    policy = policy_of("action_only", precision="nf4", tune="lora_all").eval()  # rows shorter than a block of 64
    assert policy.act(batch)[0].isfinite().all()


@pytest.mark.parametrize("error, sentence", [
    (PermissionError(13, "Permission denied", "model.safetensors"), "PermissionError: .*Permission denied.*mend that cause"),
    (OSError(5, "Input/output error"), "Input/output error.*mend that cause"),
    (ImportError("bitsandbytes is not installed"), "bitsandbytes is not installed"),
    (RuntimeError("CUDA error: an illegal memory access"), "CUDA error: an illegal memory access"),
    (torch.OutOfMemoryError("CUDA out of memory"), "does not fit this GPU's memory at precision 'fp32'"),
    (MemoryError(), "does not fit this machine's memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "does not fit this machine's memory")])
def test_the_true_cause_is_passed_on_and_nothing_is_to_be_deleted(backbone_folder, monkeypatch, error, sentence):
    def fail(*_):
        raise error
    monkeypatch.setattr(paligemma, "_build", fail)
    with pytest.raises(LarError, match=sentence) as caught:
        load_backbone(backbone_folder)
    assert "delete it" not in str(caught.value) and not isinstance(caught.value, Damaged)
