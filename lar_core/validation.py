"""What a configuration may not be: every impossible value or combination is refused here, in one sentence."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from .errors import LarError, unknown
from .names import (
    ACTION_LOSSES,
    AGGREGATIONS,
    DEMOS,
    EVALUATION_ONLY,
    HEADS,
    MASK_SOURCES,
    PLACEMENTS,
    PRECISIONS,
    RECONSTRUCTORS,
    REGULARISERS,
    TUNES,
)

if TYPE_CHECKING:
    from .config import Condition, Profile, RunConfig


def validate(config: RunConfig) -> None:
    """Refuse, in one sentence, every value or combination that cannot mean anything."""
    condition, profile = config.condition, config.profile
    _check_types(condition), _check_types(profile)
    for kind, name, choices in (
        ("mask source", condition.mask_source, MASK_SOURCES),
        ("reconstructor", condition.reconstructor, RECONSTRUCTORS),
        ("action head", condition.head, HEADS),
        ("action loss", condition.action_loss, ACTION_LOSSES),
        ("aggregation", condition.aggregation, (*AGGREGATIONS, *EVALUATION_ONLY)),
        ("mask grid", condition.mask_grid, ("native", "essay")),
        ("reconstruction target", condition.recon_target, ("normalised", "raw", "latent")),
        ("placement", profile.placement, PLACEMENTS),
        ("demonstrations", profile.demos, DEMOS),
        ("precision", profile.precision, PRECISIONS),
        ("precision", profile.act_precision, ("auto", *PRECISIONS)),
        ("way to tune", profile.tune, TUNES),
        *(("task", task, range(10)) for task in profile.tasks),
    ):
        if name not in choices:
            raise unknown(kind, name, choices)
    for wrong, sentence in _impossible(condition, profile):
        if wrong:
            raise LarError(sentence)


def _impossible(condition: Condition, profile: Profile) -> list[tuple[bool, str]]:
    return [
        *_impossible_tuning(condition, profile),
        *_impossible_head(condition, profile),
        *_impossible_regularisers(condition, profile),
        *_impossible_aggregation(condition, profile),
        ((condition.mask_source == "none") != (condition.reconstructor == "none"),
         f"Condition {condition.name!r} has mask source {condition.mask_source!r} with reconstructor "
         f"{condition.reconstructor!r}: a reconstructor needs a mask, and a mask needs a reconstructor."),
        (condition.blind and condition.reconstructor != "none",
         "A blind policy has no image to reconstruct: set reconstructor and mask_source to 'none'."),
        (not 0 < condition.mask_ratio < 1, f"mask_ratio is {condition.mask_ratio}, but must lie between 0 and 1."),
        (not 0 <= condition.mask_ratio_start < 1,
         f"mask_ratio_start is {condition.mask_ratio_start}, but must lie between 0 (off) and 1."),
        (condition.mask_ratio_start > 0 and condition.mask_source == "none",
         f"mask_ratio_start is {condition.mask_ratio_start}, but condition {condition.name!r} masks nothing: choose a mask "
         "source, or leave it 0."),
        (condition.mask_ratio_start > 0 and condition.mask_source == "gaze" and condition.reconstructor == "diffusion",
         "A denoiser of the named object's box has no mask that could grow: leave mask_ratio_start 0, or choose another "
         "mask source."),
        (condition.reconstructor == "diffusion" and condition.recon_target == "normalised",
         "A denoiser needs pixels or latents as they are: set recon_target to raw or latent."),
        (condition.reconstructor != "diffusion" and (condition.recon_target == "latent" or condition.matched_capacity),
         "recon_target=latent and matched_capacity are settings of the denoiser: choose a diffusion condition, or leave "
         "them."),
        (profile.denoiser_width % 4 != 0 or profile.denoiser_width % profile.denoiser_heads != 0,
         f"denoiser_width is {profile.denoiser_width}, but must be a multiple of 4 and of denoiser_heads "
         f"({profile.denoiser_heads})."),
        (condition.lambda_recon < 0, f"lambda_recon is {condition.lambda_recon}, but must not be negative."),
        (profile.image_size % profile.patch_size != 0 or profile.wrist_size % profile.patch_size != 0,
         f"image_size {profile.image_size} and wrist_size {profile.wrist_size} must be multiples of the patch size "
         f"{profile.patch_size}."),
        (not 1 <= profile.execute <= profile.chunk,
         f"execute is {profile.execute}, but must be between 1 and the chunk length {profile.chunk}."),
        (not profile.tasks, "No task was named: give at least one of the ten LIBERO-Spatial tasks, 0 to 9."),
        (profile.demos_per_task < 2, "demos_per_task must be at least 2: one to train on and one to hold out."),
        (not 1 <= condition.saliency_layers <= profile.text_layers,
         f"saliency_layers is {condition.saliency_layers}, but the language model has {profile.text_layers} layers."),
    ]


def _impossible_head(condition: Condition, profile: Profile) -> list[tuple[bool, str]]:
    focus = (condition.focus_keep, condition.focus_gate, condition.focus_cascade)
    return [
        (condition.head == "autoregressive" and condition.action_loss != "cross_entropy",
         "The autoregressive head writes bins as tokens: set action_loss=cross_entropy, or choose another head."),
        (condition.head in ("bridge", "focus") and profile.text_width % 8 != 0,
         f"text_width is {profile.text_width}, but head={condition.head} attends in 8 heads: choose a multiple of 8."),
        (condition.head != "focus" and focus != (0.5, True, True),
         f"focus_keep, focus_gate and focus_cascade are settings of the focus head, but head is {condition.head}."),
        (not 0 < condition.focus_keep <= 1, f"focus_keep is {condition.focus_keep}, but must be above 0 and at most 1."),
        (not condition.focus_cascade and (condition.focus_keep < 1 or condition.focus_gate),
         "Under one softmax there is no vision attention of its own to choose patches in or to gate: with "
         "focus_cascade=false set focus_keep=1 and focus_gate=false."),
    ]


def _impossible_aggregation(condition: Condition, profile: Profile) -> list[tuple[bool, str]]:
    return [
        (condition.aggregation in EVALUATION_ONLY,
         f"aggregation {condition.aggregation!r} takes many passes and is for evaluation only, where `lar saliency` "
         f"reports it for every run: train with one of {', '.join(AGGREGATIONS)}."),
        (condition.aggregation == "relative" and profile.cache,
         "Relative attention runs every image a second time under a generic prompt, which the feature cache does not hold: "
         "set cache=false, or choose another aggregation."),
        (condition.aggregation == "learned_gate" and not set(condition.regularisers) & set(REGULARISERS[:4]),
         "A gate of heads learns from a loss on the saliency, and there is none: give sparsity, consistency, contrastive or "
         "relational a weight, or choose another aggregation than learned_gate."),
    ]


def _impossible_regularisers(condition: Condition, profile: Profile) -> list[tuple[bool, str]]:
    on = condition.regularisers
    compared = [name for name in ("consistency", "contrastive", "relational") if name in on]
    return [
        (any(weight < 0 for weight in on.values()),
         f"The weight of {next((name for name, weight in on.items() if weight < 0), None)} must not be negative."),
        (bool(on) and condition.blind,
         f"A blind policy looks at nothing that {', '.join(on)} could change: set it to 0."),
        (bool(compared) and condition.aggregation == "relative",
         f"{', '.join(compared)} compares maps of other words or pixels, for which relative attention would need a generic "
         "prompt's map each: choose another aggregation."),
    ]


def _impossible_tuning(condition: Condition, profile: Profile) -> list[tuple[bool, str]]:
    only_top = profile.tune in ("lora_top", "full_top")
    return [
        (profile.tune == "all" and profile.precision != "fp32",
         f"tune=all trains every weight, which needs precision=fp32, not {profile.precision}: choose lora_all, lora_top "
         "or full_top."),
        (not 1 <= profile.top_layers <= profile.text_layers,
         f"top_layers is {profile.top_layers}, but the language model has {profile.text_layers} layers."),
        (only_top and condition.saliency_layers > profile.top_layers,
         f"saliency_layers is {condition.saliency_layers}, but only the last {profile.top_layers} layers are trained and "
         "see the head's tokens: raise top_layers, or read fewer layers."),
        (profile.cache and not only_top,
         f"The feature cache keeps what frozen layers give, but tune={profile.tune} trains all of them: set cache=false, "
         "or tune=lora_top or full_top."),
        (profile.cache and bool(condition.sees_again),
         f"{', '.join(condition.sees_again)} shows the frozen layers other words or pixels at every step, so their output "
         "is never the same twice: set cache=false."),
        (profile.cache and profile.shift > 0,
         "shift moves the pixels at every step, so the frozen layers' output is never the same twice: set cache=false, or "
         "shift=0."),
        (profile.lora_rank < 1, f"lora_rank is {profile.lora_rank}, but must be at least 1."),
        (profile.shift < 0, f"shift is {profile.shift} pixels, but must not be negative."),
    ]


def _check_types(part: Condition | Profile) -> None:
    kinds = {"str": str, "int": int, "float": (int, float), "bool": bool, "tuple[int, ...]": tuple}
    for spec in fields(part):
        value = getattr(part, spec.name)
        is_bool = isinstance(value, bool)
        if not isinstance(value, kinds[spec.type]) or is_bool != (spec.type == "bool"):
            raise LarError(f"{spec.name} is {value!r}, but must be of type {spec.type}.")
