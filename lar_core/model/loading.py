"""Loading PaliGemma in 8 bit, 4 bit or floats, and choosing what of it learns.

What is quantised are the linear layers of the language model, nothing else: the vision tower, the projector, the
embedding and the language-model head stay in floats, and so do the top layers where only they learn: that costs little
memory (0.1 GB a layer), and backward passes through 8 bit are slow.

| tune | what learns | kept in fp32 for it |
|---|---|---|
| `all` | everything (tiny models, from scratch) | everything |
| `lora_all` | low-rank adapters (Hu et al. 2021) in every layer of the language model | the adapters |
| `lora_top` | adapters in the last `top_layers` | the adapters |
| `full_top` | all weights of the last `top_layers` | those layers |
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from ..config import Profile
from ..errors import LarError
from ..runtime import float_dtype
from .backbone import Backbone
from .saliency import ATTENTION

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of one Gemma layer
_LAYER = "model.language_model.layers"
BLOCK = 64  # weights that bitsandbytes quantises together


def load_backbone(source: str | Path, saliency_layers: int = 3, *, precision: str = "fp32", tune: str = "all",
                  top_layers: int = 3, lora_rank: int = 16, checkpointing: bool = False,
                  device: torch.device | str = "cpu") -> Backbone:
    """Load a backbone from a folder with transformers' own `from_pretrained`.

    Arguments are the fields of `Profile`. Raises LarError when the weights cannot be had or do not fit, and when other
    modules were quantised than should be.
    """
    try:
        processor = PaliGemmaProcessor.from_pretrained(source)
        vlm = _from_pretrained(source, precision, tune, top_layers, torch.device(device))
    except (OSError, ValueError) as error:
        raise LarError(f"The backbone {str(source)!r} could not be loaded ({str(error).splitlines()[0]}): check the "
                       "folder, or delete it and have it made or downloaded again.") from error
    except torch.cuda.OutOfMemoryError as error:
        raise LarError(f"{source} does not fit this GPU's memory at precision {precision!r}: choose int8 or nf4, and "
                       "see `lar doctor --profile t4` for what fits.") from error
    _check_quantised(vlm, precision, tune, top_layers)
    _avoid_narrow_packing(vlm)
    layers = vlm.config.text_config.num_hidden_layers
    set_trainable(vlm, tune, range(layers - top_layers, layers), lora_rank)
    if checkpointing:
        vlm.gradient_checkpointing_enable({"use_reentrant": False})
    return Backbone(vlm, processor, saliency_layers, join=layers - top_layers if tune.endswith("_top") else 0)


def load_for(profile: Profile, source: str | Path, saliency_layers: int, device: torch.device | str) -> Backbone:
    """`load_backbone` with the settings of a profile."""
    return load_backbone(source, saliency_layers, precision=profile.precision, tune=profile.tune,
                         top_layers=profile.top_layers, lora_rank=profile.lora_rank,
                         checkpointing=profile.checkpointing, device=device)


def quantisation(precision: str, tune: str, top: range, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What bitsandbytes is told; full names, because it takes `vision_tower` alone to mean nothing."""
    floats = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    if tune.endswith("_top"):
        floats += [f"{_LAYER}.{index}" for index in top]
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=floats)
    if precision == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
                                  llm_int8_skip_modules=floats)
    return None


def set_trainable(vlm: PaliGemmaForConditionalGeneration, tune: str, top: range, lora_rank: int) -> None:
    """Freeze everything but what `tune` names, and give that fp32 weights."""
    if tune == "all":
        return
    vlm.requires_grad_(False)
    if tune == "full_top":
        for index in top:
            vlm.model.language_model.layers[index].float().requires_grad_(True)
        vlm.model.language_model.norm.float().requires_grad_(True)
        return
    numbers = top if tune == "lora_top" else range(top.stop)
    from peft import LoraConfig, inject_adapter_in_model  # here, because this import takes seconds
    names = rf"{re.escape(_LAYER)}\.({'|'.join(map(str, numbers))})\..*({'|'.join(LINEARS)})"
    inject_adapter_in_model(LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=names), vlm)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def settle(backbone: Backbone) -> None:
    """For acting only: fold adapters into float weights, and give layers that were trained in fp32 their model's type."""
    for module in backbone.vlm.modules():
        if hasattr(module, "lora_A") and module.get_base_layer().weight.is_floating_point():
            module.merge()
    floats = backbone.vlm.model.vision_tower.dtype
    for parameter in backbone.vlm.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(floats)


def quantised_modules(vlm: nn.Module) -> list[str]:
    """Names of the modules that bitsandbytes has taken over."""
    import bitsandbytes
    kinds = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
    return [name for name, module in vlm.named_modules() if isinstance(module, kinds)]


def parameter_table(vlm: PaliGemmaForConditionalGeneration) -> list[dict]:
    """One row a part: part, parameters, trainable, bytes (as they lie in memory), kinds of numbers."""
    parts = {"vision tower": vlm.model.vision_tower, "projector": vlm.model.multi_modal_projector,
             "embedding (and head, tied)": vlm.get_input_embeddings(),
             "language model": vlm.model.language_model.layers}
    return [{"part": name, "parameters": sum(map(_count, module.parameters())),
             "trainable": sum(_count(p) for p in module.parameters() if p.requires_grad),
             "bytes": sum(p.numel() * p.element_size() for p in module.parameters()),
             "kinds": sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()})}
            for name, module in parts.items()]


def _count(parameter: nn.Parameter) -> int:
    """4-bit weights are packed two to a byte."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * 2 if packed else parameter.numel()


def _from_pretrained(source: str | Path, precision: str, tune: str, top_layers: int,
                     device: torch.device) -> PaliGemmaForConditionalGeneration:
    dtype = float_dtype(precision, device)
    layers = _text_layers(source)
    config = quantisation(precision, tune, range(layers - top_layers, layers), dtype)
    placed = {} if config is None and device.type == "cpu" else {"device_map": {"": device}}
    return PaliGemmaForConditionalGeneration.from_pretrained(
        source, dtype=dtype, quantization_config=config, **placed,
        attn_implementation={"text_config": ATTENTION, "vision_config": "sdpa"})


def _text_layers(source: str | Path) -> int:
    return PaliGemmaForConditionalGeneration.config_class.from_pretrained(source).text_config.num_hidden_layers


def _avoid_narrow_packing(vlm: PaliGemmaForConditionalGeneration) -> None:
    """On CPUs with bf16 instructions bitsandbytes packs 4-bit weights, but fails at rows shorter than one of its blocks,
    as the smallest profile has them."""
    for module in vlm.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and module.in_features % BLOCK:
            module.support_avx512bf16_for_cpu = False


def _check_quantised(vlm: PaliGemmaForConditionalGeneration, precision: str, tune: str, top_layers: int) -> None:
    layers = vlm.config.text_config.num_hidden_layers
    in_float = top_layers if tune.endswith("_top") else 0
    expected = len(LINEARS) * (layers - in_float) if precision in ("int8", "nf4") else 0
    found = quantised_modules(vlm) if expected else []
    foreign = [name for name in found if not name.startswith(_LAYER)]
    if len(found) != expected or foreign:
        raise LarError(f"{len(found)} modules were quantised instead of {expected}"
                       + (f", {foreign[0]} among them, which must stay in floats" if foreign else "")
                       + ": this version of transformers or bitsandbytes reads the list of exceptions otherwise; "
                       "install the versions in requirements-colab.txt.")
