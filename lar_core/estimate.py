"""What a configuration will need, in memory and time, told before anything is loaded.

Memory is counted: parameters from the architecture on the meta device, optimiser states from what learns, activations
from what autograd keeps of each layer. Time is arithmetic over a speed: the floating-point operations of each step,
divided by what one linear layer of the model's own width reaches on this machine in this precision, measured for a
second. `Machine` holds everything that is the machine's, so that a plan can also be made for one that is not at hand.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from .data.hub import load_manifest
from .measure.costs import own_bytes
from .model.diffusion import count
from .model.heads import Trunk
from .model.policy import make_decoder, make_head
from .model.tiny import full_config, make_processor, tiny_config
from .run.config import RunConfig
from .run.errors import LarError
from .run.registry import REGULARISERS
from .run.runtime import act_precision, device, device_name, float_dtype
from .scene.episode import kinds

TEXT = 20  # tokens of an instruction, BOS and newline included
FRAMES = 110  # of a demonstration of LIBERO-Spatial, without no-op steps
CUDA_CONTEXT = 500_000_000  # bytes
ENV_STEP = 0.018  # seconds of one environment step with both images at 224 px: a 2-core Xeon, software rendering
EPISODE_STEPS = 130  # environment steps of an average rollout, the 10 wait steps included


@dataclass(frozen=True)
class Machine:
    """What the plan needs to know of a machine. speed: useful operations a second of a linear layer, forward."""

    name: str
    cuda: bool
    memory: int  # bytes that are free
    base: int  # bytes that the process, or CUDA's context, takes before anything is loaded
    speed: dict[str, float]  # by precision
    acting: str = ""  # the precision in which policies act here; "": that of training

    @property
    def floats(self) -> int:
        """Bytes of an activation."""
        return 2 if self.cuda else 4


# Free Colab. Speeds are assumptions, not measurements: fp16 at 35 % of the 65 TFLOP/s that NVIDIA states, int8 three times
# slower than that (public measurements of LLM.int8 on a T4: 2.5 to 3.9 times), nf4 as int8.
T4 = Machine("Tesla T4 (assumed speeds)", True, int(15.0e9), CUDA_CONTEXT,
             {"fp32": 5e12, "fp16": 23e12, "int8": 7.6e12, "nf4": 7.6e12}, acting="fp16")


@dataclass
class Plan:
    """memory: bytes by part while training; seconds: by step of `lar reproduce`; disk: bytes of the feature cache."""

    machine: Machine
    memory: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    disk: float = 0.0
    step_seconds: float = 0.0

    @property
    def peak(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.machine.memory


def plan(config: RunConfig, machine: Machine, frames: float | None = None) -> Plan:
    """Estimate memory and time of one condition on a machine.

    frames: training frames; None: as many as the profile's demonstrations usually have.
    """
    size, profile = Size(config), config.profile
    if frames is None:
        frames = FRAMES * profile.demos_per_task * len(profile.tasks) * (1 - profile.heldout_fraction)
    made = Plan(machine, memory=_memory(config, size, machine, frames))
    frozen, floats = machine.speed[profile.precision], machine.speed[float_kind(profile.precision, machine.cuda)]
    look = size.vision_flops / floats + size.lower_flops / frozen
    if profile.cache:
        made.disk = frames * size.features * 2
        made.seconds["feature cache"] = frames * look
    made.step_seconds = profile.batch_size * _step_seconds(size, look, floats if size.top_floats else frozen, floats)
    made.seconds["training"] = made.step_seconds * config.steps
    acting = machine.speed[machine.acting or profile.precision]
    act = (size.vision_flops + size.lower_flops + size.upper_flops) / acting
    episodes = profile.episodes_per_task * sum(len(kinds(task, profile.tasks)) for task in profile.tasks)
    made.seconds["rollouts"] = episodes * EPISODE_STEPS * (ENV_STEP + act / profile.execute)
    return made


def _step_seconds(size: Size, look: float, top_speed: float, floats: float) -> float:
    """Of one sample. Backward: as much again for gradients of activations, and again for those of weights that learn."""
    tune, again = size.profile.tune, size.profile.checkpointing
    backward = (2 if tune in ("all", "full_top") else 1) + again
    seen = 0.0 if size.profile.cache else look * (3 if tune == "all" else 1)
    return size.looks * (seen + size.upper_flops * (1 + backward) / top_speed) + size.own_flops / floats


class Size:
    """Parameters and operations of a configuration's model, from its architecture alone."""

    def __init__(self, config: RunConfig):
        self.profile, self.condition = config.profile, config.condition
        self.architecture = architecture(config)
        with torch.device("meta"):
            vlm = PaliGemmaForConditionalGeneration(self.architecture).model
        text, vision = self.architecture.text_config, self.architecture.vision_config
        self.width, self.hidden = text.hidden_size, text.intermediate_size
        self.layers, top = text.num_hidden_layers, self.profile.top_layers
        self.join = self.layers - top if self.profile.tune.endswith("_top") else 0
        trunk = Trunk(self.width, self.layers - self.join, vision.hidden_size)
        with torch.device("meta"):
            head = make_head(self.condition, self.profile, trunk)
        self.layer = count(vlm.language_model.layers[0])
        self.layer_linears = [module for module in vlm.language_model.layers[0].modules() if isinstance(module, nn.Linear)]
        self.embedding, self.vision = count(vlm.language_model.embed_tokens), count(vlm.vision_tower)
        self.vision_width, self.vision_layers = vision.hidden_size, vision.num_hidden_layers
        self.projector, self.head = count(vlm.multi_modal_projector), count(head)
        self.decoder, self.decoder_kept = self._decoder()
        self.image = (self.profile.image_size // self.profile.patch_size) ** 2
        self.wrist = (self.profile.wrist_size // self.profile.patch_size) ** 2
        self.suffix, self.reads_vision = self.wrist + self.profile.proprio + head.tokens, head.reads_vision
        self.prefix = self.image + TEXT

    @property
    def features(self) -> int:
        """Numbers that the feature cache keeps of a frame."""
        vision = (self.image + self.wrist) * self.vision_width if self.reads_vision else 0
        return (self.prefix + self.wrist) * self.width + vision

    @property
    def top_floats(self) -> bool:
        """Whether the layers from `join` on are kept in floats."""
        return self.profile.tune != "lora_all"

    @property
    def vision_flops(self) -> float:
        """Operations of both images of one frame, up to their tokens."""
        return 2 * (self.vision + self.projector) * (self.image + self.wrist)

    @property
    def lower_flops(self) -> float:
        """Operations of one frame in the language model below the layer where the head's tokens join."""
        return self.join * self._layer_flops(self.prefix)

    @property
    def upper_flops(self) -> float:
        """Operations of one sample from there on, forward."""
        return (self.layers - self.join) * self._layer_flops(self.prefix + self.suffix)

    @property
    def own_flops(self) -> float:
        """Operations of one sample's training step in the decoder and the head."""
        return 6 * (self.head * self.profile.chunk + self.decoder * self.image * self._passes)

    @property
    def trainable(self) -> float:
        """Parameters that learn."""
        top = self.layers - self.join
        lora = self.profile.lora_rank * sum(linear.in_features + linear.out_features for linear in self.layer_linears)
        everything = self.vision + self.projector + self.embedding + self.layers * self.layer
        backbone = {"all": everything, "full_top": top * self.layer, "lora_top": top * lora, "lora_all": top * lora}
        return backbone[self.profile.tune] + self.head + self.decoder

    def kept_activations(self) -> float:
        """Numbers that autograd keeps of one sample: what each linear layer, norm and product was given."""
        tokens = self.prefix + self.suffix
        of_layer = tokens * (4 * self.hidden + 12 * self.width)
        top = (self.layers - self.join)
        kept = top * tokens * self.width + of_layer if self.profile.checkpointing else top * of_layer
        if self.profile.tune == "all":
            kept += self.vision_layers * (self.image + self.wrist) * 24 * self.vision_width
        kept += self.image * self._passes * self.decoder_kept
        return kept * self.looks

    def _layer_flops(self, tokens: int) -> float:
        return 2 * self.layer * tokens + 4 * tokens**2 * self.width

    @property
    def looks(self) -> int:
        """Passes of each sample through the backbone in one step."""
        return 1 + self.condition.mask_input + sum(REGULARISERS.about(name).passes for name in self.condition.regularisers)

    @property
    def _passes(self) -> int:
        """Versions of each sample that the decoder sees in one step."""
        return 4 if self.condition.reconstructor == "diffusion" else 1

    def _decoder(self) -> tuple[int, int]:
        """Parameters of the decoder, and the numbers that autograd keeps of each of its tokens; latents count as pixels."""
        pixels = {"recon_target": "raw"} if self.condition.recon_target == "latent" else {}
        decoder = make_decoder(self.condition.replace(**pixels), self.profile, grid=2, patch_size=self.profile.patch_size,
                               feature_width=self.width)
        if decoder is None:
            return 0, 0
        width, layers = self.profile.decoder_width, self.profile.decoder_layers
        if self.condition.reconstructor == "diffusion":
            width, layers = decoder.denoiser.embed.out_features, len(decoder.denoiser.blocks)
        return count(decoder), 24 * width * layers


def _memory(config: RunConfig, size: Size, machine: Machine, frames: float) -> dict[str, float]:
    """Bytes by part, while training."""
    profile = config.profile
    per_weight = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}[profile.precision]
    floats = 4 if float_kind(profile.precision, machine.cuda) == "fp32" else 2
    lower = 0 if profile.cache else size.join if size.join else size.layers
    top = size.layers - size.join if profile.tune == "lora_top" else 0  # under full_top they count as what learns
    parts = {"process" if not machine.cuda else "CUDA context": machine.base}
    if profile.tune != "all":
        parts["frozen layers"] = size.layer * (lower * per_weight + top * floats)
        parts["vision tower, embedding"] = 0 if profile.cache else (size.vision + size.projector + size.embedding) * floats
    parts["what learns, with gradients and Adam"] = size.trainable * 16
    parts["activations"] = size.kept_activations() * profile.batch_size * machine.floats
    parts["work space"] = _work_space(size, profile.batch_size, machine)
    if not machine.cuda:
        parts["demonstrations"] = frames * (4 * profile.image_size**2 + 3 * profile.wrist_size**2)
    return parts


def _work_space(size: Size, batch: int, machine: Machine) -> float:
    """The largest temporary numbers: an MLP's inside for all tokens, twice, and one weight made float."""
    tokens = (size.prefix + size.suffix) * batch
    return 2 * tokens * size.hidden * machine.floats + size.width * size.hidden * machine.floats


def float_kind(precision: str, cuda: bool) -> str:
    """The floats of what is not quantised, by name; on a GPU fp16 stands for bf16 too, which is as large and as fast."""
    if precision in ("int8", "nf4"):
        return "fp16" if cuda else "fp32"
    return precision


def architecture(config: RunConfig) -> PaliGemmaConfig:
    """The configuration of the backbone, without its weights. Raises LarError for one that is not known here."""
    profile = config.profile
    if profile.backbone == "tiny":
        return tiny_config(profile, make_processor(profile.image_size, profile.patch_size))
    if profile.backbone.startswith("google/paligemma-3b"):
        return full_config()
    path = _config_of(profile.backbone)
    try:
        if path and json.loads(path.read_text(encoding="utf-8"))["model_type"] == "paligemma":
            return PaliGemmaConfig.from_pretrained(path.parent)
    except (OSError, ValueError, LookupError, TypeError):
        pass  # loading the model itself will say what is wrong with it
    raise LarError(f"There is no plan for backbone {profile.backbone!r}: plans are made for tiny ones, PaliGemma-3B, and "
                   "PaliGemmas whose config.json is in a folder or has been downloaded.")


def _config_of(backbone: str) -> Path | None:
    """config.json in a folder, or in the hub's cache at the manifest's revision; nothing is downloaded."""
    if (Path(backbone) / "config.json").exists():
        return Path(backbone) / "config.json"
    pinned = next((entry.revision for entry in load_manifest().values() if entry.id == backbone), None)
    try:
        cached = try_to_load_from_cache(backbone, "config.json", revision=pinned)
    except HFValidationError:  # no name of a model
        return None
    return Path(cached) if isinstance(cached, str) else None


def this_machine(config: RunConfig) -> Machine:
    """Measure this machine: for a second, one linear layer of the model's width in every precision that is needed."""
    on, asked = device(), config.profile
    acting = act_precision(asked.act_precision, asked.precision, on)
    kinds = {asked.precision, acting, float_kind(asked.precision, on.type == "cuda")}
    size = Size(config)
    if on.type == "cuda":
        return Machine(device_name(), True, torch.cuda.mem_get_info()[0], CUDA_CONTEXT,
                       {kind: _speed(size, kind, on) for kind in kinds}, acting)
    base = own_bytes()
    return Machine(device_name(), False, psutil.virtual_memory().available + base, base,
                   {kind: _speed(size, kind, on) for kind in kinds}, acting)


def _speed(size: Size, precision: str, on: torch.device) -> float:
    """Operations a second of the layer that holds most of the weights, at the tokens of one batch."""
    layer = _linear(size.width, size.hidden, precision, on)
    count = (size.prefix + size.suffix) * size.profile.batch_size
    tokens = torch.randn(count, size.width, device=on, dtype=float_dtype(precision, on))
    operations, began, runs = 2 * tokens.shape[0] * size.width * size.hidden, 0.0, 0
    with torch.no_grad():
        while runs < 3 or time.perf_counter() - began < 1.0:
            if runs == 2:  # the first two warm up
                began = time.perf_counter()
            layer(tokens)
            if on.type == "cuda":
                torch.cuda.synchronize()
            runs += 1
    return operations * (runs - 2) / (time.perf_counter() - began)


def _linear(inputs: int, outputs: int, precision: str, on: torch.device) -> nn.Module:
    import bitsandbytes
    if precision == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
        return layer.to(on).eval()
    if precision == "nf4":
        return bitsandbytes.nn.LinearNF4(inputs, outputs, bias=False, compute_dtype=float_dtype(precision, on)).to(on)
    return nn.Linear(inputs, outputs, bias=False, dtype=float_dtype(precision, on), device=on)
