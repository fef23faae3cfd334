"""The fields of a *condition* (what is masked, reconstructed, predicted) and of a *profile* (how big).

Everything that changes a result is a field here. Names of mask sources, heads and so on are those in `registry`; what
cannot be combined is in `config`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_serializer, model_validator

from .errors import LarError
from .registry import REGULARISERS, Checked, number

Placement = Literal["official", "wide", "counterfactual", "near", "near_counterfactual"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)
Instruction = Literal["right", "blank", "other_task", "other_bowl"]  # what a policy is told: scene/episode.py
INSTRUCTIONS: tuple[str, ...] = get_args(Instruction)
BLANK = "."  # the shortest sentence that is not empty: what says nothing
PAIRED = ("counterfactual", "near_counterfactual")  # where each scene comes twice, once for either bowl
MINIATURES = ("scratch", "tabletop")
SaliencyRows = Literal["text", "bos", "action"]
Path = Literal["text_image", "bos_image", "action_image", "action_text", "image_text"]  # of attention: model/knockout.py
PATHS: tuple[str, ...] = get_args(Path)
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Condition(Checked):
    """One point of the product space mask source × reconstructor × action head."""

    name: str = "attention_mask"
    mask_source: str = "attention"
    reconstructor: str = "mae"
    head: str = "parallel"
    lambda_recon: float = Field(0.5, ge=0)  # L = L_action + lambda_recon * L_recon
    action_loss: Literal["cross_entropy", "l1"] = "cross_entropy"  # over 256 bins; l1: of numbers, the absolute error
    focus_keep: float = Field(0.5, gt=0, le=1)  # head=focus: the share of patches attended to, in each layer the best ones
    focus_gate: bool = True  # head=focus: a sigmoid gate, element by element, on what the policy sees
    focus_cascade: bool = True  # head=focus: three separate attentions; false: one softmax over all, as in `bridge`
    guidance: float = Field(0.0, ge=0)  # acting: what the sentence changes in the answer counts 1 + guidance times
    mask_ratio: float = Field(0.25, gt=0, lt=1)
    mask_ratio_start: float = Field(0.0, ge=0, lt=1)  # easy to hard: moves from here to mask_ratio; 0: constant
    mask_grid: Literal["native", "essay"] = "native"  # the backbone's patches, or the literal 14x14 grid with k = 49
    mask_input: bool = False  # a second pass that cannot see the masked patches feeds the decoder
    recon_target: Literal["normalised", "raw", "latent"] = "normalised"  # MAE's (section 4.1), pixels, a VAE's latents
    matched_capacity: bool = False  # a denoiser as large as the profile's MAE decoder, instead of its own size
    saliency_layers: Count = 3  # the last so many layers of the language model
    saliency_rows: SaliencyRows = "text"  # who looks: the instruction's words (the literal method), BOS, the head's queries
    aggregation: str = "mean"  # how layers, heads and words become one map; "mean" is the literal method
    regularisers: dict[str, float] = {}  # weights of those that are on; written, read and --set as sparsity=0.1
    blind: bool = False  # every image is replaced by grey: the control that cannot see
    deaf: bool = False  # every sentence is replaced by BLANK: the control that is told nothing

    @model_validator(mode="before")
    @classmethod
    def _gather_weights(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Registered regularisers that stand beside the other fields go to `regularisers`; those of weight 0 go."""
        if not isinstance(values, dict):
            return values
        own = {name: value for name, value in values.items() if name in cls.model_fields}
        beside = {name: value for name, value in values.items() if name not in own and name in REGULARISERS}
        together = own.get("regularisers", {})
        if not isinstance(together, dict):
            raise LarError(f"regularisers is {together!r}, but must be weights by name, such as {{sparsity: 0.1}}.")
        weights = {name: number(weight) for name, weight in {**together, **beside}.items()}
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
                raise LarError(f"The weight of {name} is {weight!r}, but must be a number and must not be negative.")
        order = [*REGULARISERS, *weights] if len(weights) > 1 else weights  # always the same: they draw one after the other
        on = {name: float(weights[name]) for name in order if weights.get(name)}
        return {**{name: value for name, value in values.items() if name not in beside}, "regularisers": on}

    @model_serializer
    def _spread_weights(self) -> dict[str, Any]:
        """Flat, as files have always had it."""
        return {name: value for name, value in self if name != "regularisers"} | self.regularisers

    @classmethod
    def names(cls) -> list[str]:
        """Of all settings."""
        return [*(name for name in cls.model_fields if name != "regularisers"), *REGULARISERS]

    @property
    def sees_again(self) -> list[str]:
        """What of it shows the frozen layers other words or pixels at every step, so that they cannot be cached."""
        looking = [name for name in self.regularisers if REGULARISERS.about(name).passes]
        return [*(["mask_input"] if self.mask_input else []), *looking]


class Profile(Checked):
    """How big: model, data, training and evaluation. One profile is one column of the README's table."""

    name: str = "tiny"
    # Backbone. "tabletop" is shipped, a PaliGemma of these widths that was pre-trained on rendered scenes (`lar pretrain`);
    # "scratch" builds an untrained one; anything else is a hub id or a folder.
    backbone: str = "scratch"
    image_size: Count = 128  # pixels, agentview
    wrist_size: int = Field(64, ge=0)  # pixels, eye-in-hand camera; 0 switches it off
    patch_size: Count = 16  # pixels
    vision_width: Count = 128
    vision_layers: Count = 3
    text_width: Count = 128
    text_layers: Count = 4
    attention_heads: Count = 4
    precision: Literal["fp32", "bf16", "fp16", "int8", "nf4"] = "fp32"  # of frozen weights; what is trained is in fp32
    tune: Literal["all", "lora_all", "lora_top", "full_top"] = "all"  # what of the backbone learns (model/paligemma.py)
    top_layers: Count = 3  # how many of the last layers lora_top and full_top train; the head's tokens join below them
    lora_rank: Count = 16
    act_precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "nf4"] = "auto"  # of rollouts and latency
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, about a third more time
    cache: bool = False  # compute what the frozen lower layers give once, and train the top from disk
    # MAE decoder
    decoder_width: Count = 64
    decoder_layers: Count = 4
    decoder_heads: Count = 4
    # Denoiser of the diffusion conditions
    denoiser_width: Count = 128
    denoiser_heads: Count = 4
    vae: str = "stabilityai/sd-vae-ft-mse"  # a hub id or a folder: the frozen autoencoder of recon_target=latent
    # Actions
    proprio: bool = True
    chunk: Count = 8  # K actions predicted at once; K = 1 is the essay's literal setting
    execute: Count = 8  # how many of them are executed before the next inference
    # Data
    tasks: tuple[Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], ...] = Field((5,), strict=False, title="task")
    bench: Literal["auto", "libero", "embedded"] = "embedded"  # LIBERO's own scene and demos, or ours: scene/bench.py
    placement: Placement = "official"
    demos: Literal["expert", "official", "lerobot"] = "expert"  # the scripted expert's, LIBERO's files, LeRobot's copy
    render_demos: bool = False  # official demonstrations: segmentation, and pictures of another size, are drawn again
    demos_conventions: str = ""  # of official or lerobot files, where they do not show them: alignment=before,gripper=1/0
    demos_per_task: int = Field(50, ge=2)  # one to train on and one to hold out, at least
    heldout_fraction: Share = 0.1  # of episodes
    recovery_noise: float = Field(0.1, ge=0)  # expert's action noise while recording; the clean action is the label
    # Optimisation
    samples: Count = 36_000  # training samples seen; steps = samples / batch_size
    batch_size: Count = 16
    optimiser: Literal["adamw", "muon"] = "adamw"  # muon: for the layers' matrices (Jordan et al. 2024), adamw for the rest
    scenes: Count = 20_000  # of pre-training
    shift: int = Field(0, ge=0)  # pixels by which training images are moved at random (padded with their border)
    learning_rate: float = Field(1e-3, gt=0)
    language_rate: float = Field(1.0, ge=0)  # times learning_rate, of the language model; 0: frozen
    vision_rate: float = Field(1.0, ge=0)  # times learning_rate, of the vision tower and the projector; 0: frozen
    weight_decay: float = Field(0.01, ge=0)
    warmup_fraction: Share = 0.03
    clip_norm: float = Field(1.0, gt=0)
    checkpoint_every: Count = 250  # steps
    # Evaluation
    episodes_per_task: Count = 20
    max_steps: Count = 220
    wait_steps: int = Field(10, ge=0)
    videos_per_task: int = Field(2, ge=0)
    grounding_frames: Count = 200
    scene_frames: int = Field(32, ge=0)  # rendered again with the scene changed (measure/pixels.py); 0: none


    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Files of earlier versions call the untrained backbone "tiny"."""
        old = isinstance(values, dict) and values.get("backbone") == "tiny"
        return {**values, "backbone": "scratch"} if old else values

    @property
    def miniature(self) -> bool:
        """Whether the backbone is one of ours, which comes with the package or is built here."""
        return self.backbone in MINIATURES
