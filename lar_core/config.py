"""What is run: a *condition* (what is masked, reconstructed, predicted) at a *profile* (how big) with a *seed*.

Everything that changes a result is a field here, is validated (`validation.py`), and is written to `config.yaml` in
the run folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from .errors import LarError, unknown
from .files import write_text
from .names import REGULARISERS
from .validation import validate


@dataclass(frozen=True)
class Condition:
    """One point of the product space mask source × reconstructor × action head."""

    name: str = "attention_mask"
    mask_source: str = "attention"
    reconstructor: str = "mae"
    head: str = "parallel"
    lambda_recon: float = 0.5  # L = L_action + lambda_recon * L_recon
    action_loss: str = "cross_entropy"  # over 256 bins; "l1": the head answers with numbers, scored by absolute error
    focus_keep: float = 0.5  # head=focus: the share of patches that its policy attends to, in each layer the best ones
    focus_gate: bool = True  # head=focus: a sigmoid gate, element by element, on what the policy sees
    focus_cascade: bool = True  # head=focus: three separate attentions; false: one softmax over all, as in `bridge`
    mask_ratio: float = 0.25
    mask_ratio_start: float = 0.0  # easy to hard: the ratio moves from here to mask_ratio over training; 0: constant
    mask_grid: str = "native"  # "native": the backbone's patches; "essay": the literal 14x14 grid with k = 49
    mask_input: bool = False  # a second pass that cannot see the masked patches feeds the decoder
    recon_target: str = "normalised"  # per-patch normalised pixels (MAE, section 4.1), "raw" pixels, or "latent"s
    matched_capacity: bool = False  # a denoiser as large as the profile's MAE decoder, instead of its own size
    saliency_layers: int = 3  # the last so many layers of the language model
    aggregation: str = "mean"  # how layers, heads and words become one map; "mean" is the literal method
    sparsity: float = 0.0  # weight of the entropy of the saliency map, 0 to 1
    consistency: float = 0.0  # weight of the divergence of the maps of two masks of one frame, 0 to 1
    contrastive: float = 0.0  # weight of telling the map from that of the other bowl's sentence, in nats
    relational: float = 0.0  # weight of telling the map from that of the sentence without its relation words
    language: float = 0.0  # weight of guessing hidden words, in nats; with mask_input from what is left of the image
    blind: bool = False  # every image is replaced by grey: the control that cannot see

    @property
    def regularisers(self) -> dict[str, float]:
        """Those that are on, and their weights."""
        return {name: getattr(self, name) for name in REGULARISERS if getattr(self, name) != 0}

    @property
    def sees_again(self) -> list[str]:
        """What of it shows the frozen layers other words or pixels at every step, so that they cannot be cached."""
        return [*(["mask_input"] if self.mask_input else []), *(name for name in self.regularisers if name != "sparsity")]


@dataclass(frozen=True)
class Profile:
    """How big: model, data, training and evaluation. One profile is one column of the README's table."""

    name: str = "tiny"
    # Backbone. "tiny" builds a PaliGemma of these widths offline; anything else is a hub id or a folder.
    backbone: str = "tiny"
    image_size: int = 128  # pixels, agentview
    wrist_size: int = 64  # pixels, eye-in-hand camera; 0 switches it off
    patch_size: int = 16  # pixels
    vision_width: int = 128
    vision_layers: int = 3
    text_width: int = 128
    text_layers: int = 4
    attention_heads: int = 4
    precision: str = "fp32"  # of frozen weights: fp32, bf16, fp16, int8 or nf4; what is trained is kept in fp32
    tune: str = "all"  # what of the backbone learns: all of it, LoRA in every layer, LoRA or all weights in the top
    top_layers: int = 3  # how many of the last layers lora_top and full_top train; the head's tokens join below them
    lora_rank: int = 16
    act_precision: str = "auto"  # of rollouts and latency: auto takes 16-bit floats on a GPU where they fit
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, about a third more time
    cache: bool = False  # compute what the frozen lower layers give once, and train the top from disk
    # MAE decoder
    decoder_width: int = 64
    decoder_layers: int = 4
    decoder_heads: int = 4
    # Denoiser of the diffusion conditions
    denoiser_width: int = 128
    denoiser_heads: int = 4
    vae: str = "stabilityai/sd-vae-ft-mse"  # a hub id or a folder: the frozen autoencoder of recon_target=latent
    # Actions
    proprio: bool = True
    chunk: int = 8  # K actions predicted at once; K = 1 is the essay's literal setting
    execute: int = 8  # how many of them are executed before the next inference
    # Data
    tasks: tuple[int, ...] = (5,)
    placement: str = "official"
    demos: str = "expert"  # whose demonstrations: our scripted expert's, LIBERO's official files, or LeRobot's copy
    render_demos: bool = False  # official demonstrations of another size: render them again, instead of resizing them
    demos_per_task: int = 50
    heldout_fraction: float = 0.1  # of episodes
    recovery_noise: float = 0.1  # expert's action noise while recording; the clean action is the label
    # Optimisation
    samples: int = 36_000  # training samples seen; steps = samples / batch_size
    batch_size: int = 16
    shift: int = 0  # pixels by which training images are moved at random (padded with their border); 0: not at all
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.03
    clip_norm: float = 1.0
    checkpoint_every: int = 250  # steps
    # Evaluation
    episodes_per_task: int = 20
    max_steps: int = 220
    wait_steps: int = 10
    videos_per_task: int = 2
    grounding_frames: int = 200


@dataclass(frozen=True)
class RunConfig:
    """A condition at a profile with a seed: everything that determines a run folder."""

    condition: Condition = field(default_factory=Condition)
    profile: Profile = field(default_factory=Profile)
    seed: int = 0

    def __post_init__(self) -> None:
        validate(self)

    @property
    def name(self) -> str:
        return f"{self.condition.name}-{self.profile.name}-s{self.seed}"

    @property
    def steps(self) -> int:
        return max(1, self.profile.samples // self.profile.batch_size)

    def mask_ratio(self, step: int) -> float:
        """The share of patches that is masked at training step `step`."""
        start, end = self.condition.mask_ratio_start or self.condition.mask_ratio, self.condition.mask_ratio
        return start + (end - start) * step / max(1, self.steps - 1)

    @property
    def fingerprint(self) -> str:
        """A short hash of every field: two runs with the same fingerprint were asked for the same thing."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def save(self, path: Path | str) -> None:
        """Write as YAML, atomically."""
        write_text(path, yaml.safe_dump(json.loads(json.dumps(asdict(self))), sort_keys=False))

    @classmethod
    def load(cls, path: Path | str) -> RunConfig:
        """Read what `save` wrote. Raises LarError for a file that is not a run configuration."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            return cls(condition=_build(Condition, data["condition"]), profile=_build(Profile, data["profile"]),
                       seed=data["seed"])
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise LarError(f"{path} is not a run configuration ({error}): "
                           "choose another --run-dir, or delete this file.") from error


CONDITIONS: dict[str, Condition] = {condition.name: condition for condition in (
    Condition(name="action_only", mask_source="none", reconstructor="none"),
    Condition(name="random_mask", mask_source="random"),
    Condition(name="attention_mask", mask_source="attention"),
    Condition(name="attention_mask_l01", mask_source="attention", lambda_recon=0.1),
    Condition(name="attention_mask_l10", mask_source="attention", lambda_recon=1.0),
    Condition(name="inverse_mask", mask_source="inverse_attention"),
    Condition(name="gaze_mask", mask_source="gaze"),
    Condition(name="gaze_diffusion", mask_source="gaze", reconstructor="diffusion", recon_target="raw",
              lambda_recon=1.0),
    Condition(name="attention_diffusion", mask_source="attention", reconstructor="diffusion", recon_target="raw",
              lambda_recon=1.0),
    Condition(name="gaze_diffusion_matched", mask_source="gaze", reconstructor="diffusion", recon_target="raw",
              lambda_recon=1.0, matched_capacity=True),
    Condition(name="attention_diffusion_matched", mask_source="attention", reconstructor="diffusion",
              recon_target="raw", lambda_recon=1.0, matched_capacity=True),
    Condition(name="blue_noise_mask", mask_source="blue_noise"),
    Condition(name="centre_mask", mask_source="centre"),
    Condition(name="hint_mask", mask_source="hint_attention"),
    Condition(name="sampled_mask", mask_source="sampled_attention"),
    Condition(name="motion_mask", mask_source="frame_difference"),
    Condition(name="teacher_mask", mask_source="teacher_attention"),
    Condition(name="growing_mask", mask_source="attention", mask_ratio_start=0.15, mask_ratio=0.75),
    Condition(name="sparse_attention", sparsity=0.1),
    Condition(name="consistent_attention", consistency=1.0),
    Condition(name="contrastive_attention", contrastive=0.1),
    Condition(name="relational_attention", relational=1.0),
    Condition(name="language_mask", language=0.1),
    Condition(name="joint_mask", mask_source="random", mask_input=True, language=1.0),
    Condition(name="autoregressive_head", mask_source="none", reconstructor="none", head="autoregressive"),
    Condition(name="bridge_head", mask_source="none", reconstructor="none", head="bridge", action_loss="l1"),
    Condition(name="focus_head", mask_source="none", reconstructor="none", head="focus", action_loss="l1"),
    Condition(name="blind", mask_source="none", reconstructor="none", blind=True),
)}

_TINY = Profile()
_T4 = replace(_TINY, backbone="google/paligemma-3b-pt-224", image_size=224, wrist_size=112, patch_size=14,
              vision_width=1152, vision_layers=27, text_width=2048, text_layers=18, attention_heads=8, precision="int8",
              tune="lora_top", cache=True, decoder_width=256, decoder_heads=8, denoiser_width=1024,
              denoiser_heads=16, tasks=(2, 5, 8), samples=36_000,
              batch_size=8, learning_rate=2e-4, grounding_frames=600)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in (
    replace(_TINY, name="micro", vision_width=32, vision_layers=2, text_width=32, text_layers=3, attention_heads=2,
            decoder_width=32, decoder_layers=2, decoder_heads=2, denoiser_width=48,
            denoiser_heads=2, image_size=64, wrist_size=32, demos_per_task=2,
            heldout_fraction=0.5, samples=128, batch_size=8, checkpoint_every=8, episodes_per_task=2, max_steps=24,
            videos_per_task=1, grounding_frames=16),
    _TINY,
    replace(_TINY, name="small", tasks=(2, 5, 8), samples=96_000, batch_size=32, checkpoint_every=200,
            grounding_frames=600),
    replace(_T4, name="t4"),
    replace(_T4, name="full", precision="bf16", tune="lora_all", cache=False, checkpointing=True, batch_size=16),
)}


def make_config(condition: str = "attention_mask", profile: str = "tiny", seed: int = 0, **changes: Any) -> RunConfig:
    """Combine two presets and change single fields of either, e.g. `make_config("gaze_mask", samples=1000)`.

    A profile's feature cache is switched off for conditions that cannot use it, unless it is asked for.
    Raises LarError for an unknown preset or field, naming the nearest valid one.
    """
    if condition not in CONDITIONS:
        raise unknown("condition", condition, CONDITIONS)
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    parts = {Condition: CONDITIONS[condition], Profile: PROFILES[profile]}
    for name, value in changes.items():
        owner = next((part for part in parts if name in _field_names(part) - {"name"}), None)
        if owner is None:
            raise unknown("setting", name, (_field_names(Condition) | _field_names(Profile)) - {"name"})
        parts[owner] = replace(parts[owner], **{name: value})
    if "cache" not in changes and parts[Condition].sees_again:
        parts[Profile] = replace(parts[Profile], cache=False)
    return RunConfig(condition=parts[Condition], profile=parts[Profile], seed=seed)


def _field_names(part: type) -> set[str]:
    return {spec.name for spec in fields(part)}


def _build(part: type, values: dict) -> Any:
    foreign = set(values) - _field_names(part)
    if foreign:
        raise unknown("setting", sorted(foreign)[0], _field_names(part))
    return part(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
