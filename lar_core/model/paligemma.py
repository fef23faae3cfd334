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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration

from ..run.errors import LarError, first_line
from ..run.runtime import float_dtype
from ..run.settings import Profile
from .backbone import Backbone
from .saliency import ATTENTION
from .weights import (
    UNREADABLE,
    check_loaded,
    check_numbers,
    read_config,
    read_processor,
    read_weights,
    weights_identity,
)

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of one Gemma layer
_LAYER = "model.language_model.layers"
BLOCK = 64  # weights that bitsandbytes quantises together


def load_backbone(source: str | Path, saliency_layers: int = 3, *, precision: str = "fp32", tune: str = "all",
                  top_layers: int = 3, lora_rank: int = 16, checkpointing: bool = False,
                  device: torch.device | str = "cpu") -> Backbone:
    """Load a backbone from a folder with transformers' own `from_pretrained`, and check all of it.

    Arguments are the fields of `Profile`. Raises LarError when the weights cannot be had, are not whole and sound, or do
    not fit, and when other modules were quantised than should be.
    """
    folder, on = Path(source), torch.device(device)
    with _true_causes(folder, precision):
        config = read_config(folder)
        processor, weights = read_processor(folder, config), read_weights(folder)
        check_numbers(weights, folder, float_dtype(precision, on))
        layers = config.text_config.num_hidden_layers
        top = range(layers - top_layers, layers)
        floats = top if tune.endswith("_top") else range(0)  # layers that are not quantised
        vlm = _build(folder, config, weights, precision, floats, on)
        identity = weights_identity(weights)
    _check_quantised(vlm, precision, floats)
    _avoid_narrow_packing(vlm)
    set_trainable(vlm, tune, top, lora_rank)
    if checkpointing:
        vlm.gradient_checkpointing_enable({"use_reentrant": False})
    return Backbone(vlm, processor, saliency_layers, join=floats.start, identity=identity)


def load_for(profile: Profile, source: str | Path, saliency_layers: int, device: torch.device | str) -> Backbone:
    """`load_backbone` with the settings of a profile."""
    return load_backbone(source, saliency_layers, precision=profile.precision, tune=profile.tune,
                         top_layers=profile.top_layers, lora_rank=profile.lora_rank,
                         checkpointing=profile.checkpointing, device=device)


def quantisation(precision: str, floats: range, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What bitsandbytes is told; full names, because it takes `vision_tower` alone to mean nothing."""
    kinds = {"int8": {"load_in_8bit": True},
             "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}}
    left = ["model.vision_tower", "model.multi_modal_projector", "lm_head", *(f"{_LAYER}.{index}" for index in floats)]
    return BitsAndBytesConfig(**kinds[precision], llm_int8_skip_modules=left) if precision in kinds else None


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
    def count(parameter: nn.Parameter) -> int:  # 4-bit weights are packed two to a byte
        return parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
    return [{"part": name, "parameters": sum(map(count, module.parameters())),
             "trainable": sum(count(p) for p in module.parameters() if p.requires_grad),
             "bytes": sum(p.numel() * p.element_size() for p in module.parameters()),
             "kinds": sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()})}
            for name, module in parts.items()]


def _build(folder: Path, config: PaliGemmaConfig, weights: dict[str, Tensor], precision: str, floats: range,
           device: torch.device) -> PaliGemmaForConditionalGeneration:
    """The weights are handed over instead of their folder, so that nothing but what was checked is loaded."""
    dtype = float_dtype(precision, device)
    quantised = quantisation(precision, floats, dtype)
    placed = {} if quantised is None and device.type == "cpu" else {"device_map": {"": device}}
    vlm, found = PaliGemmaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, quantization_config=quantised, **placed,
        attn_implementation={"text_config": ATTENTION, "vision_config": "sdpa"}, ignore_mismatched_sizes=True,
        output_loading_info=True)
    if quantised is not None:  # bitsandbytes takes more than a second to import
        found["mismatched_keys"] |= _other_shapes(vlm)
    check_loaded(found, folder, len(list(vlm.parameters())))
    return vlm


def _other_shapes(vlm: nn.Module) -> set[tuple]:
    """Name, shape there and shape wanted of quantised weights that do not fit, which transformers does not tell."""
    kept = {name: vlm.get_submodule(name) for name in quantised_modules(vlm)}
    shapes = {name: (tuple(getattr(getattr(module.weight, "quant_state", None), "shape", module.weight.shape)),
                     (module.out_features, module.in_features)) for name, module in kept.items()}
    return {(f"{name}.weight", there, wanted) for name, (there, wanted) in shapes.items() if there != wanted}


@contextmanager
def _true_causes(folder: Path, precision: str) -> Iterator[None]:
    """Turn what may go wrong in loading into sentences, each with its own cause: nothing here says that data are damaged."""
    try:
        yield
    except (OSError, ImportError, RuntimeError, ValueError, MemoryError) as error:
        full = "this GPU's" if isinstance(error, torch.OutOfMemoryError) else "this machine's"
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            raise LarError(f"{folder} does not fit {full} memory at precision {precision!r} ({first_line(error)}): close "
                           "other programs or kernels, choose int8, nf4 or bf16, or a machine with more of it; `lar doctor "
                           "--profile t4` tells what fits.") from error
        raise LarError(f"The backbone {folder} could not be loaded ({type(error).__name__}: {first_line(error)}): "
                       f"{UNREADABLE}.") from error


def _avoid_narrow_packing(vlm: PaliGemmaForConditionalGeneration) -> None:
    """On CPUs with bf16 instructions bitsandbytes packs 4-bit weights, but fails at rows shorter than one of its blocks,
    as the smallest profile has them."""
    for module in vlm.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and module.in_features % BLOCK:
            module.support_avx512bf16_for_cpu = False


def _check_quantised(vlm: PaliGemmaForConditionalGeneration, precision: str, floats: range) -> None:
    layers = vlm.config.text_config.num_hidden_layers
    expected = len(LINEARS) * (layers - len(floats)) if precision in ("int8", "nf4") else 0
    found = quantised_modules(vlm) if expected else []
    foreign = [name for name in found if not name.startswith(_LAYER)]
    if len(found) != expected or foreign:
        raise LarError(f"{len(found)} modules were quantised instead of {expected}"
                       + (f", {foreign[0]} among them, which must stay in floats" if foreign else "")
                       + ": this version of transformers or bitsandbytes reads the list of exceptions otherwise; "
                       "install the versions in requirements-colab.txt.")


# How large activations get: fp16 ends at 65,504, and a language model's residual stream can come near it.

FP16_MAX = 65_504.0


@contextmanager
def activation_ranges(backbone: Backbone) -> Iterator[dict[str, float]]:
    """Yield a dictionary that fills with the largest absolute output of every layer that runs inside the block."""
    ranges: dict[str, float] = {}
    layers = {"vision tower": backbone.vlm.model.vision_tower, "projector": backbone.vlm.model.multi_modal_projector}
    layers |= {f"layer {index}": layer for index, layer in enumerate(backbone.vlm.model.language_model.layers)}

    def watch(name: str):
        def look(_module, _inputs, output) -> None:
            states = output if isinstance(output, torch.Tensor) else output[0]
            ranges[name] = max(ranges.get(name, 0.0), float(states.detach().abs().max()))
        return look

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items() if layer is not None]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def too_large(ranges: dict[str, float]) -> list[str]:
    """Names of the layers whose outputs pass half of what fp16 can hold."""
    return [name for name, largest in ranges.items() if not largest < FP16_MAX / 2]
