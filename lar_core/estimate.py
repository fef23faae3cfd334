"""What a configuration (`plan`) or what is left of a run (`expected`) will need, in memory and time, told before it begins.

Memory is counted: parameters from the architecture on the meta device, optimiser states from what learns, activations from
what autograd keeps of each layer. Time is arithmetic over a speed: the floating-point operations of each step, divided by
what one linear layer of the model's own width reaches on this machine in this precision, measured for a second.

The tiny model is too small for that: its steps are scaled from what one core of a 2-core Xeon took (most CPUs are within
a factor of two of it; a GPU is faster, so there these are upper bounds). A run that has begun is judged by its own speed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import psutil
import torch
from torch import nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from .data.hub import here, load_manifest
from .measure.costs import own_bytes
from .model.diffusion import count
from .model.heads import Trunk
from .model.policy import make_decoder, make_head, make_readers
from .model.tiny import architecture
from .run import processes
from .run.config import RunConfig
from .run.files import read_jsonl
from .run.folder import DATA, Run
from .run.registry import REGULARISERS
from .run.runtime import act_precision, device, device_name, float_dtype
from .run.settings import Profile
from .scene.bench import elsewhere
from .scene.collect import demo_paths
from .scene.demonstrations import converted_paths
from .scene.episode import kinds
from .scene.placements import episode_count, tasks_with

STEPS = ("demonstrations", "training", "saliency", "rollouts", "latency")
TEXT = 20  # tokens of an instruction, BOS and newline included
FRAMES = 110  # of a demonstration of LIBERO-Spatial, without no-op steps
CUDA_CONTEXT = 500_000_000  # bytes
DEMO = 4.4  # seconds of one demonstration on one core
RENDERED = 5.2  # the same of an official one that is rendered again, 120 frames with LIBERO's assets
FETCHED = 0.62e9 / 40e6  # seconds in which the official demonstrations of a task are downloaded: 40 MB/s are assumed,
WEIGHTS = 12e9 / 40e6  # and of PaliGemma's weights
INSTALL, REPORT = 180, 60  # seconds, assumed
SESSION = 4 * 3600  # seconds that a free Colab session usually lasts
ENV_STEP = 0.018  # seconds of one environment step with both images at 224 px: a 2-core Xeon, software rendering
OFFICIAL = 2.0  # times that with LIBERO's own assets
STEPS_NEEDED = 0.6  # share of max_steps that an episode takes on average
SAMPLE = {"micro": 0.004, "tiny": 0.016, "cached": 0.0066}  # seconds of one training sample of our small models on one core
LOOK = 0.005  # seconds in which the frozen part of the small model sees a frame
SCORED = 0.1  # seconds of one frame in the tiny model's saliency scores
CAUSE = 9000  # forward passes that `measure/cause.py` takes of 40 frames, more or less
SCORES = ("heldout.json", "gallery.npz")  # what the saliency step leaves
TIMED = 22  # training steps that are timed, half of them the condition's, half those of action_only
LIBRARIES, START = 1.0, 8.0  # GiB and seconds of a process before it has done anything


@dataclass(frozen=True)
class Machine:
    """What the plan needs to know of a machine. speed: useful operations a second of a linear layer, forward."""

    name: str
    cuda: bool
    memory: int  # bytes that are free
    base: int  # bytes that the process, or CUDA's context, takes before anything is loaded
    speed: dict[str, float]  # by precision
    acting: str = ""  # the precision in which policies act here; "": that of training
    cores: int = 1  # that simulate
    fresh: bool = False  # nothing is installed or downloaded


# Free Colab. Speeds are assumptions, not measurements: fp16 at 35 % of the 65 TFLOP/s that NVIDIA states, int8 three times
# slower than that (public measurements of LLM.int8 on a T4: 2.5 to 3.9 times), nf4 as int8.
T4 = Machine("Tesla T4 (assumed speeds)", True, int(15.0e9), CUDA_CONTEXT,
             {"fp32": 5e12, "fp16": 23e12, "int8": 7.6e12, "nf4": 7.6e12}, acting="fp16", cores=2, fresh=True)


@dataclass
class Plan:
    """memory: bytes by part while training; seconds: by step, from nothing to the report; disk: bytes of the cache."""

    machine: Machine
    memory: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    disk: float = 0.0
    step_seconds: float = 0.0

    @property
    def peak(self) -> float:
        """Bytes while training."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the machine has them."""
        return self.peak <= self.machine.memory


def plan(config: RunConfig, machine: Machine, frames: float | None = None) -> Plan:
    """Estimate memory and time of one condition on a machine.

    frames: training frames; None: as many as the profile's demonstrations usually have.
    """
    size, profile = Size(config), config.profile
    if frames is None:
        frames = FRAMES * profile.demos_per_task * len(profile.tasks) * (1 - profile.heldout_fraction)
    made = Plan(machine, memory=_memory(size, machine, frames))
    if machine.fresh:
        made.seconds["install"] = INSTALL
    made.seconds |= {"download of the weights": _missing_weights(profile, machine.fresh),
                     "demonstrations": demo_seconds(profile, machine.cores)}
    frozen, floats = machine.speed[profile.precision], machine.speed[_float_kind(profile.precision, machine.cuda)]
    look = size.vision_flops / floats + size.lower_flops / frozen
    if profile.cache:
        made.disk = frames * size.features * 2
        made.seconds["feature cache"] = frames * look
    top = frozen if profile.tune == "lora_all" else floats  # in which the layers from `join` on are kept
    made.step_seconds = profile.batch_size * _step_seconds(size, look, top, floats)
    training = made.step_seconds * config.steps
    acting = machine.speed[machine.acting or profile.precision]
    seen = (size.vision_flops + size.lower_flops + size.upper_flops) / acting
    act = seen * (2 if config.condition.guidance else 1)
    episode = STEPS_NEEDED * profile.max_steps * (_env_step(profile) + act / profile.execute)
    made.seconds |= {"training": training, "training of the blind control": training,
                     "saliency": START + CAUSE * seen
                                 + (look + made.step_seconds / profile.batch_size) * profile.grounding_frames,
                     **{name: count * episode for name, count in _episodes(profile).items()},
                     "latency": 5.0 + TIMED * made.step_seconds, "report": REPORT}
    return made


def demo_seconds(profile: Profile, cores: int) -> float:
    """In which the demonstrations of a profile are recorded, or fetched and rendered again; auto is planned as libero."""
    demos = profile.demos_per_task * len(profile.tasks)
    if profile.bench == "embedded" and profile.demos == "expert":
        return START + DEMO * demos / cores
    return START + FETCHED * len(profile.tasks) + RENDERED * demos / cores


def _env_step(profile: Profile) -> float:
    return ENV_STEP * (1 if profile.bench == "embedded" else OFFICIAL)


def _missing_weights(profile: Profile, fresh: bool) -> float:
    """Seconds in which PaliGemma's weights are downloaded; 0 where they are here."""
    key = next((key for key, entry in load_manifest().items() if entry.id == profile.backbone), None)
    return WEIGHTS if key and (fresh or not here(key)) else 0.0


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
        self._count(architecture(config))
        top = self.layers - self.join
        # Passes of each sample through the backbone in one step, and versions of it that the decoder sees.
        self.looks = 1 + self.condition.mask_input + sum(REGULARISERS.about(name).passes
                                                         for name in self.condition.regularisers)
        self.versions = 4 if self.condition.reconstructor == "diffusion" else 1
        # Operations: of both images of one frame, up to their tokens; of one frame in the language model below the layer
        # where the head's tokens join; of one sample from there on, forward; of its training step in decoder and head.
        self.vision_flops = 2 * (self.vision + self.projector) * (self.image + self.wrist)
        self.lower_flops = self.join * self._layer_flops(self.prefix)
        self.upper_flops = top * self._layer_flops(self.prefix + self.suffix)
        self.own_flops = 6 * (self.head * self.profile.chunk + self.decoder * self.image * self.versions)
        # Numbers that the feature cache keeps of a frame, and parameters that learn.
        self.features = (self.prefix + self.wrist) * self.width
        self.features += (self.image + self.wrist) * self.vision_width if self.reads_vision else 0
        everything = self.vision + self.projector + self.embedding + self.layers * self.layer
        lora = top * self.profile.lora_rank * self.layer_ends
        learns = {"all": everything, "full_top": top * self.layer, "lora_top": lora, "lora_all": lora}
        self.trainable = learns[self.profile.tune] + self.head + self.decoder + self.readers

    def _count(self, built: PaliGemmaConfig) -> None:
        """Parameters of each part, and tokens of each kind."""
        profile, text, vision = self.profile, built.text_config, built.vision_config
        self.width, self.hidden, self.layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
        self.vision_width, self.vision_layers = vision.hidden_size, vision.num_hidden_layers
        self.join = self.layers - profile.top_layers if profile.tune.endswith("_top") else 0
        with torch.device("meta"):
            vlm = PaliGemmaForConditionalGeneration(built).model
            head = make_head(self.condition, profile, Trunk(self.width, self.layers - self.join, self.vision_width))
            self.readers = count(make_readers(self.condition, self.width))
        first = vlm.language_model.layers[0]
        self.layer, self.embedding = count(first), count(vlm.language_model.embed_tokens)
        self.layer_ends = sum(module.in_features + module.out_features for module in first.modules()
                              if isinstance(module, nn.Linear))
        self.vision, self.projector, self.head = map(count, (vlm.vision_tower, vlm.multi_modal_projector, head))
        self.decoder, self.decoder_kept = self._decoder()
        self.image, self.wrist = ((pixels // profile.patch_size) ** 2 for pixels in (profile.image_size, profile.wrist_size))
        self.prefix, self.suffix = self.image + TEXT, self.wrist + profile.proprio + head.tokens
        self.reads_vision = head.reads_vision

    def kept_activations(self) -> float:
        """Numbers that autograd keeps of one sample: what each linear layer, norm and product was given."""
        tokens = self.prefix + self.suffix
        of_layer = tokens * (4 * self.hidden + 12 * self.width)
        top = self.layers - self.join
        kept = top * tokens * self.width + of_layer if self.profile.checkpointing else top * of_layer
        if self.profile.tune == "all":
            kept += self.vision_layers * (self.image + self.wrist) * 24 * self.vision_width
        kept += self.image * self.versions * self.decoder_kept
        return kept * self.looks

    def _layer_flops(self, tokens: int) -> float:
        return 2 * self.layer * tokens + 4 * tokens**2 * self.width

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


def _memory(size: Size, machine: Machine, frames: float) -> dict[str, float]:
    """Bytes by part, while training."""
    profile = size.profile
    per_weight = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}[profile.precision]
    floats = 4 if _float_kind(profile.precision, machine.cuda) == "fp32" else 2
    activation = 2 if machine.cuda else 4
    lower = 0 if profile.cache else size.join if size.join else size.layers
    top = size.layers - size.join if profile.tune == "lora_top" else 0  # under full_top they count as what learns
    parts = {"process" if not machine.cuda else "CUDA context": machine.base}
    if profile.tune != "all":
        parts["frozen layers"] = size.layer * (lower * per_weight + top * floats)
        parts["vision tower, embedding"] = 0 if profile.cache else (size.vision + size.projector + size.embedding) * floats
    parts["what learns, with gradients and Adam"] = size.trainable * 16
    parts["activations"] = size.kept_activations() * profile.batch_size * activation
    tokens = (size.prefix + size.suffix) * profile.batch_size
    parts["work space"] = (2 * tokens + size.width) * size.hidden * activation  # an MLP's inside twice, one weight
    if not machine.cuda:
        parts["demonstrations"] = frames * (4 * profile.image_size**2 + 3 * profile.wrist_size**2)
    return parts


def _float_kind(precision: str, cuda: bool) -> str:
    """The floats of what is not quantised, by name; on a GPU fp16 stands for bf16 too, which is as large and as fast."""
    if precision in ("int8", "nf4"):
        return "fp16" if cuda else "fp32"
    return precision


def this_machine(config: RunConfig) -> Machine:
    """Measure this machine: for a second, one linear layer of the model's width in every precision that is needed."""
    on, asked, size = device(), config.profile, Size(config)
    cuda, acting = on.type == "cuda", act_precision(asked.act_precision, asked.precision, on)
    kinds = {asked.precision, acting, _float_kind(asked.precision, cuda)}
    base = CUDA_CONTEXT if cuda else own_bytes()
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available + base
    return Machine(device_name(), cuda, free, base, {kind: _speed(size, kind, on) for kind in kinds}, acting,
                   processes.cores())


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
        return bitsandbytes.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False).to(on).eval()
    if precision == "nf4":
        return bitsandbytes.nn.LinearNF4(inputs, outputs, bias=False, compute_dtype=float_dtype(precision, on)).to(on)
    return nn.Linear(inputs, outputs, bias=False, dtype=float_dtype(precision, on), device=on)


# --- what is left of a run, step by step ------------------------------------------------------------------------------

@dataclass(frozen=True)
class Cost:
    """Seconds, and peak memory in GiB: of the GPU where there is one, else of this process and its workers.

    None: unknown.
    """

    seconds: float | None
    gib: float | None

    def __str__(self) -> str:
        return f"{duration(self.seconds)} and {'unknown memory' if self.gib is None else f'{self.gib:.1f} GiB'}"


UNKNOWN = Cost(None, None)


def duration(seconds: float | None) -> str:
    """`40 s`, `12 min`, `1 h 20 min`, `unknown time`."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def expected(run: Run, cores: int | None = None) -> dict[str, Cost]:
    """What is still to be done of each of STEPS of `run`; training and rollouts include the blind control's.

    An estimate is advice: where there is none, for whatever reason, the cost is UNKNOWN, the reason is said, and the
    experiment goes on.
    """
    try:
        return _expected(run, cores or processes.cores())
    except Exception as error:  # a model without a plan, a GPU that is full, a log of another version, ...
        print(f"There is no estimate of time and memory: {str(error).strip() or type(error).__name__}")
        return dict.fromkeys(STEPS, UNKNOWN)


def _expected(run: Run, cores: int) -> dict[str, Cost]:
    config, profile, log = run.config, run.config.profile, read_jsonl(run.metrics)
    paths = demo_paths(config, DATA) if profile.demos == "expert" else converted_paths(profile, DATA).values()
    demos = 1.0 if all(path.exists() for path in paths) else demo_seconds(profile, cores)
    lacking = {name for name in (*SCORES, "latency.json", "training_cost.json") if not (run.path / name).exists()}
    samples = 0 if run.trained else (config.steps - (log[-1]["step"] if log else 0)) * profile.batch_size
    places, planned = {profile.placement, *elsewhere(profile)}, _episodes(profile)
    episodes = sum(planned.values()) - sum(row["placement"] in places for folder in (run.path, run.control)
                                           for row in read_jsonl(folder / "rollouts.jsonl"))
    if profile.miniature:
        kind = "micro" if profile.text_width < 64 else "cached" if profile.cache else "tiny"
        sample, saliency = SAMPLE[kind], START + SCORED * profile.grounding_frames + CAUSE * LOOK
        cached = LOOK * FRAMES * profile.demos_per_task * len(profile.tasks) if profile.cache and samples else 0.0
        episode, together = _env_step(profile) * STEPS_NEEDED * profile.max_steps / cores, min(2, cores)
        gib = _tiny_memory(profile, cores)
    else:
        made = plan(config, this_machine(config))
        sample, saliency = made.step_seconds / profile.batch_size, made.seconds["saliency"]
        cached = made.seconds.get("feature cache", 0.0) + made.seconds["download of the weights"] if samples else 0.0
        episode, together = made.seconds["rollouts"] / planned["rollouts"], 1
        gib = dict.fromkeys(STEPS, made.peak / 2**30) | {"demonstrations": LIBRARIES * cores}
    sample = log[-1]["seconds"] / log[-1]["step"] / profile.batch_size if log else sample
    seconds = {"demonstrations": demos,
               "training": START + cached + sample * samples * 2 / together,
               "saliency": 1.0 if lacking.isdisjoint(SCORES) else saliency,
               "rollouts": 4 * START + episode * episodes if episodes > 0 else 1.0,
               "latency": max(1.0, 5.0 * ("latency.json" in lacking)
                              + TIMED * profile.batch_size * sample * ("training_cost.json" in lacking))}
    return {name: Cost(seconds[name], gib[name]) for name in STEPS}


def together(costs: dict[str, Cost]) -> Cost:
    """One after the other: the sum of the times, the most of the memory; unknown where one of them is."""
    seconds, gib = [cost.seconds for cost in costs.values()], [cost.gib for cost in costs.values()]
    return UNKNOWN if None in seconds or None in gib else Cost(sum(seconds), max(gib))


def _tiny_memory(profile: Profile, cores: int) -> dict[str, float]:
    """GiB of each of STEPS; in training the episodes and the data set are in memory at the same time, twice."""
    frames = profile.demos_per_task * len(profile.tasks) * FRAMES
    data = LIBRARIES + 2 * frames * (4 * profile.image_size**2 + 3 * profile.wrist_size**2) / 2**30  # with segmentation
    return {"demonstrations": LIBRARIES * cores, "training": 2 * data, "saliency": data,
            "rollouts": LIBRARIES * (1 + cores), "latency": 1.5 * LIBRARIES}


def _episodes(profile: Profile) -> dict[str, int]:
    """Of the policy at the run's own placements, with every kind of instruction; of its blind control there, with the right
    one; and of both elsewhere, with the right one."""
    told = sum(len(kinds(task, profile.tasks)) for task in profile.tasks)
    there = sum(episode_count(profile, task, placement) for placement in elsewhere(profile)
                for task in tasks_with(placement, profile.tasks))
    return {"rollouts": profile.episodes_per_task * told,
            "rollouts of the blind control": profile.episodes_per_task * len(profile.tasks),
            **({"rollouts of both elsewhere": 2 * there} if there else {})}
