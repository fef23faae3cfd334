"""What is run: a *condition* (what is masked, reconstructed, predicted) at a *profile* (how big) with a *seed*.

Everything that changes a result is a field here, is checked (at the end of this file: what cannot be combined), and is
written to `config.yaml` in the run folder. Names of mask sources, heads and so on are those in `registry`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from .conventions import stated_conventions
from .errors import LarError, unknown
from .files import write_text
from .registry import AGGREGATIONS, HEADS, MASK_SOURCES, PASSES, RECONSTRUCTORS, REGULARISERS, Checked
from .settings import Condition, Profile

Verdict = tuple[object, str]  # whether it is wrong, and what to say then


class RunConfig(Checked):
    """A condition at a profile with a seed: everything that determines a run folder."""

    condition: Condition = Condition()
    profile: Profile = Profile()
    seed: int = 0

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> RunConfig:
        """Raises LarError for a name that stands for nothing, and for a combination that cannot mean anything."""
        _check_names(self.condition)
        stated_conventions(self.profile.demos_conventions)
        for rules in _RULES:
            for wrong, sentence in rules(self.condition, self.profile):
                if wrong:
                    raise LarError(sentence)
        return self

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.condition.name}-{self.profile.name}-s{self.seed}"

    @property
    def steps(self) -> int:
        """Of training."""
        return max(1, self.profile.samples // self.profile.batch_size)

    def mask_ratio(self, step: int) -> float:
        """The share of patches that is masked at training step `step`."""
        start, end = self.condition.mask_ratio_start or self.condition.mask_ratio, self.condition.mask_ratio
        return start + (end - start) * step / max(1, self.steps - 1)

    @property
    def fingerprint(self) -> str:
        """A short hash of every field: two runs with the same fingerprint were asked for the same thing."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with parts, or single fields of condition or profile, changed, and checked again. Raises LarError."""
        parts = {name: changes.pop(name, value) for name, value in self}
        of_condition, of_profile = _owners(changes)
        return RunConfig(condition=parts["condition"].replace(**of_condition),
                         profile=parts["profile"].replace(**of_profile), seed=parts["seed"])

    def save(self, path: Path | str) -> None:
        """Write as YAML, atomically."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    @classmethod
    def load(cls, path: Path | str) -> RunConfig:
        """Read what `save` wrote, now or in an earlier version. Raises LarError for anything else."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            return cls(**{name: data[name] for name in cls.model_fields})
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise LarError(f"{path} is not a run configuration ({error}): "
                           "choose another --run-dir, or delete this file.") from error
        except LarError as error:
            raise LarError(f"{path} is no configuration of this version: {error}") from error


_DENOISED = Condition(reconstructor="diffusion", recon_target="raw", lambda_recon=1.0)
_UNMASKED = Condition(mask_source="none", reconstructor="none")
CONDITIONS: dict[str, Condition] = {condition.name: condition for condition in (
    _UNMASKED.replace(name="action_only"),
    Condition(name="random_mask", mask_source="random"),
    Condition(name="attention_mask"),
    Condition(name="attention_mask_l01", lambda_recon=0.1),
    Condition(name="attention_mask_l10", lambda_recon=1.0),
    *(Condition(name=f"attention_mask_closed{part}", lambda_recon=weight, mask_input=True)
      for part, weight in (("", 0.5), ("_l01", 0.1), ("_l10", 1.0))),
    Condition(name="inverse_mask", mask_source="inverse_attention"),
    Condition(name="gaze_mask", mask_source="gaze"),
    _DENOISED.replace(name="gaze_diffusion", mask_source="gaze"),
    _DENOISED.replace(name="attention_diffusion"),
    _DENOISED.replace(name="gaze_diffusion_matched", mask_source="gaze", matched_capacity=True),
    _DENOISED.replace(name="attention_diffusion_matched", matched_capacity=True),
    Condition(name="blue_noise_mask", mask_source="blue_noise"),
    Condition(name="centre_mask", mask_source="centre"),
    Condition(name="hint_mask", mask_source="hint_attention"),
    Condition(name="sampled_mask", mask_source="sampled_attention"),
    Condition(name="motion_mask", mask_source="frame_difference"),
    Condition(name="teacher_mask", mask_source="teacher_attention"),
    Condition(name="action_attention_mask", saliency_rows="action"),
    Condition(name="bos_attention_mask", saliency_rows="bos"),
    Condition(name="growing_mask", mask_ratio_start=0.15, mask_ratio=0.75),
    Condition(name="sparse_attention", regularisers={"sparsity": 0.1}),
    Condition(name="consistent_attention", regularisers={"consistency": 1.0}),
    Condition(name="contrastive_attention", regularisers={"contrastive": 0.1}),
    Condition(name="relational_attention", regularisers={"relational": 1.0}),
    Condition(name="language_mask", regularisers={"language": 0.1}),
    Condition(name="joint_mask", mask_source="random", mask_input=True, regularisers={"language": 1.0}),
    _UNMASKED.replace(name="guided_attention", regularisers={"guided_attention": 0.1}),
    _UNMASKED.replace(name="contrastive_action", regularisers={"contrastive_action": 0.1}),
    _UNMASKED.replace(name="guided_actions", guidance=1.0),
    _UNMASKED.replace(name="language_posterior", regularisers={"language_posterior": 0.3}),
    _UNMASKED.replace(name="inverse_dynamics", regularisers={"inverse_dynamics": 0.5}),
    _UNMASKED.replace(name="autoregressive_head", head="autoregressive"),
    _UNMASKED.replace(name="bridge_head", head="bridge", action_loss="l1"),
    _UNMASKED.replace(name="focus_head", head="focus", action_loss="l1"),
    _UNMASKED.replace(name="blind", blind=True),
    _UNMASKED.replace(name="deaf", deaf=True),
    _UNMASKED.replace(name="blind_deaf", blind=True, deaf=True),
)}

_BASE = Profile()
_TINY = _BASE.replace(backbone="tabletop", tune="full_top", cache=True, placement="near_counterfactual", demos_per_task=100)
_T4 = _BASE.replace(
    backbone="google/paligemma-3b-pt-224", image_size=224, wrist_size=112, patch_size=14, vision_width=1152,
    vision_layers=27, text_width=2048, text_layers=18, attention_heads=8, precision="int8", tune="lora_top", cache=True,
    decoder_width=256, decoder_heads=8, denoiser_width=1024, denoiser_heads=16, tasks=(2, 5, 8), samples=36_000,
    batch_size=8, learning_rate=2e-4, grounding_frames=600, bench="auto", episodes_per_task=50)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in (
    _BASE.replace(
        name="micro", vision_width=32, vision_layers=2, text_width=32, text_layers=3, attention_heads=2, decoder_width=32,
        decoder_layers=2, decoder_heads=2, denoiser_width=48, denoiser_heads=2, image_size=64, wrist_size=32,
        demos_per_task=2, heldout_fraction=0.5, samples=128, batch_size=8, checkpoint_every=8, episodes_per_task=2,
        max_steps=24, videos_per_task=1, grounding_frames=16, scene_frames=0),
    _TINY,
    _TINY.replace(name="colab", demos_per_task=80, samples=30_000, episodes_per_task=10),
    _BASE.replace(name="pretrain", samples=153_600, learning_rate=1.5e-3, optimiser="muon", checkpoint_every=200),
    _TINY.replace(name="small", tasks=(2, 5, 8), samples=96_000, batch_size=32, checkpoint_every=200,
                  grounding_frames=600),
    _T4.replace(name="t4"),
    _T4.replace(name="full", precision="bf16", tune="lora_all", cache=False, checkpointing=True, batch_size=16),
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
    of_condition, of_profile = _owners(changes)
    made = CONDITIONS[condition].replace(**of_condition)
    if made.sees_again:
        of_profile = {"cache": False} | of_profile
    return RunConfig(condition=made, profile=PROFILES[profile].replace(**of_profile), seed=seed)


def _owners(changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which settings are the condition's, which the profile's. Raises LarError for one that is neither's."""
    of_profile = {name: value for name, value in changes.items() if name in Profile.model_fields}
    of_condition = {name: value for name, value in changes.items() if name not in of_profile}
    for name in changes:
        if name == "name" or not (name in of_profile or name in Condition.model_fields or name in REGULARISERS):
            raise unknown("setting", name, [known for known in (*Condition.names(), *Profile.names()) if known != "name"])
    return of_condition, of_profile


# What cannot be, as pairs of whether something is wrong, and what is said then. Rules on one field are its annotation; rules
# on one entry of a registry are what is said of it there.

def _check_names(condition: Condition) -> None:
    for registry, name, others in ((MASK_SOURCES, condition.mask_source, ["none"]),
                                   (RECONSTRUCTORS, condition.reconstructor, ["none"]), (HEADS, condition.head, []),
                                   *((REGULARISERS, name, []) for name in condition.regularisers)):
        if name not in others and name not in registry:
            raise unknown(registry.kind, name, [*others, *registry])
    if condition.aggregation not in AGGREGATIONS:
        if condition.aggregation not in PASSES:
            raise unknown("aggregation", condition.aggregation, [*AGGREGATIONS, *PASSES])
        raise LarError(f"aggregation {condition.aggregation!r} takes many passes and is for evaluation only, where "
                       f"`lar saliency` reports it for every run: train with one of {', '.join(AGGREGATIONS)}.")


def _impossible_masks(condition: Condition, _: Profile) -> Iterator[Verdict]:
    yield ((condition.mask_source == "none") != (condition.reconstructor == "none"),
           f"Condition {condition.name!r} has mask source {condition.mask_source!r} with reconstructor "
           f"{condition.reconstructor!r}: a reconstructor needs a mask, and a mask needs a reconstructor.")
    yield (condition.blind and condition.reconstructor != "none",
           "A blind policy has no image to reconstruct: set reconstructor and mask_source to 'none'.")
    yield (condition.mask_ratio_start > 0 and condition.mask_source == "none",
           f"mask_ratio_start is {condition.mask_ratio_start}, but condition {condition.name!r} masks nothing: choose a "
           "mask source, or leave it 0.")
    yield (condition.mask_ratio_start > 0 and condition.mask_source == "gaze" and condition.reconstructor == "diffusion",
           "A denoiser of the named object's box has no mask that could grow: leave mask_ratio_start 0, or choose another "
           "mask source.")
    yield (condition.reconstructor == "diffusion" and condition.recon_target == "normalised",
           "A denoiser needs pixels or latents as they are: set recon_target to raw or latent.")
    yield (condition.reconstructor != "diffusion" and (condition.recon_target == "latent" or condition.matched_capacity),
           "recon_target=latent and matched_capacity are settings of the denoiser: choose a diffusion condition, or leave "
           "them.")


def _impossible_sizes(condition: Condition, profile: Profile) -> Iterator[Verdict]:
    yield (profile.denoiser_width % 4 != 0, f"denoiser_width is {profile.denoiser_width}, but must be a multiple of 4.")
    own = [("vision_width", "attention_heads"), ("text_width", "attention_heads")] if profile.backbone == "scratch" else []
    for width, heads in (("decoder_width", "decoder_heads"), ("denoiser_width", "denoiser_heads"), *own):
        size, count = getattr(profile, width), getattr(profile, heads)
        yield size % count != 0, f"{width} is {size}, but must be a multiple of {heads} ({count})."
    yield (profile.image_size % profile.patch_size != 0 or profile.wrist_size % profile.patch_size != 0,
           f"image_size {profile.image_size} and wrist_size {profile.wrist_size} must be multiples of the patch size "
           f"{profile.patch_size}.")
    yield (profile.execute > profile.chunk,
           f"execute is {profile.execute}, but must be between 1 and the chunk length {profile.chunk}.")
    yield (profile.demos_conventions and profile.demos == "expert" and profile.bench == "embedded",
           "demos_conventions says how other people's files are to be read, but demos is expert: set demos to official or "
           "lerobot, or leave it out.")
    yield (profile.bench == "libero" and profile.placement != "official",
           f"bench=libero means LIBERO's own placements, but placement is {profile.placement!r}: leave it official and roll "
           "out on others with `lar rollout --on`, or set bench to embedded.")
    yield not profile.tasks, "No task was named: give at least one of the ten LIBERO-Spatial tasks, 0 to 9."
    for name, layers in (("saliency_layers", condition.saliency_layers), ("top_layers", profile.top_layers)):
        yield (layers > profile.text_layers,
               f"{name} is {layers}, but the language model has {profile.text_layers} layers.")


def _impossible_tuning(condition: Condition, profile: Profile) -> Iterator[Verdict]:
    only_top = profile.tune in ("lora_top", "full_top")
    yield (profile.tune == "all" and profile.precision != "fp32",
           f"tune=all trains every weight, which needs precision=fp32, not {profile.precision}: choose lora_all, lora_top "
           "or full_top.")
    yield (only_top and condition.saliency_layers > profile.top_layers,
           f"saliency_layers is {condition.saliency_layers}, but only the last {profile.top_layers} layers are trained and "
           "see the head's tokens: raise top_layers, or read fewer layers.")
    yield (profile.cache and not only_top,
           f"The feature cache keeps what frozen layers give, but tune={profile.tune} trains all of them: set cache=false, "
           "or tune=lora_top or full_top.")
    yield (profile.cache and condition.sees_again,
           f"{', '.join(condition.sees_again)} shows the frozen layers other words or pixels at every step, so their output "
           "is never the same twice: set cache=false.")
    yield (profile.cache and profile.shift > 0,
           "shift moves the pixels at every step, so the frozen layers' output is never the same twice: set cache=false, or "
           "shift=0.")


def _impossible_head(condition: Condition, profile: Profile) -> Iterator[Verdict]:
    head, changed = HEADS.about(condition.head), [
        name for name, field in Condition.model_fields.items()
        if name.startswith("focus_") and getattr(condition, name) != field.default]
    yield (condition.action_loss not in head.losses,
           f"The {condition.head} head cannot learn from action_loss={condition.action_loss}: set "
           f"action_loss={head.losses[0]}, or choose another head.")
    yield (profile.text_width % head.multiple,
           f"text_width is {profile.text_width}, but head={condition.head} attends in {head.multiple} heads: choose a "
           f"multiple of {head.multiple}.")
    yield (condition.head != "focus" and changed,
           f"{', '.join(changed)} is for the focus head, but head is {condition.head}: leave it, or choose head=focus.")
    yield (not condition.focus_cascade and (condition.focus_keep < 1 or condition.focus_gate),
           "Under one softmax there is no vision attention of its own to choose patches in or to gate: with "
           "focus_cascade=false set focus_keep=1 and focus_gate=false.")
    yield (condition.guidance and not head.queries,
           f"guidance compares two whole answers, and the {condition.head} head writes its tokens one after another, each "
           "given those before it: choose another head, or guidance=0.")
    yield (condition.guidance and condition.deaf,
           "A deaf policy is told nothing, so its answer under a blank sentence is its own and guidance changes nothing: "
           "set guidance=0.")


def _impossible_saliency(condition: Condition, profile: Profile) -> Iterator[Verdict]:
    aggregation, on = AGGREGATIONS[condition.aggregation], [REGULARISERS.about(name) for name in condition.regularisers]
    compared = [about.name for about in on if about.on_map and about.passes]
    yield (condition.blind and on,
           f"A blind policy looks at nothing that {', '.join(condition.regularisers)} could change: set it to 0.")
    wordy = [about.name for about in on if about.of_words]
    yield (condition.deaf and wordy,
           f"A deaf policy is told nothing, and {', '.join(wordy)} works on the words of the instruction: set it to 0.")
    yield (aggregation.relative and compared,
           f"{', '.join(compared)} compares maps of other words or pixels, for which relative attention would need a "
           "generic prompt's map each: choose another aggregation.")
    yield (aggregation.relative and profile.cache,
           "Relative attention runs every image a second time under a generic prompt, which the feature cache does not "
           "hold: set cache=false, or choose another aggregation.")
    yield (aggregation.learns and not any(about.on_map for about in on),
           "A gate of heads learns from a loss on the saliency, and there is none: give "
           f"{' or '.join(name for name in REGULARISERS if REGULARISERS.about(name).on_map)} a weight, or choose another "
           f"aggregation than {condition.aggregation}.")


def _impossible_rows(condition: Condition, _: Profile) -> Iterator[Verdict]:
    rows, action = condition.saliency_rows, condition.saliency_rows == "action"
    aggregation, about = AGGREGATIONS[condition.aggregation], [REGULARISERS.about(name) for name in condition.regularisers]
    again = [one.name for one in about if one.on_map and one.passes]
    yield (action and not HEADS.about(condition.head).queries,
           f"saliency_rows=action asks the head's queries, and the {condition.head} head has none, it writes its tokens one "
           "after another: choose another head, or saliency_rows=text or bos.")
    yield (rows != "text" and aggregation.words,
           f"aggregation {condition.aggregation!r} compares words, but saliency_rows={rows} reads none: choose another "
           "aggregation, or saliency_rows=text.")
    yield (action and aggregation.relative,
           "Relative attention divides by the map of a generic prompt, which is run without the head's queries that "
           "saliency_rows=action asks: choose another aggregation, or saliency_rows=text or bos.")
    yield (action and again,
           f"{', '.join(again)} compares maps of passes without the head's queries, which saliency_rows=action asks: set it "
           "to 0, or saliency_rows to text or bos.")


def _impossible_backbone(_: Condition, profile: Profile) -> Iterator[Verdict]:
    for name in ("image_size", "patch_size", "vision_width", "vision_layers", "text_width", "text_layers",
                 "attention_heads"):
        its, asked = Profile.model_fields[name].default, getattr(profile, name)
        yield (profile.backbone == "tabletop" and asked != its,
               f"The backbone tabletop has {name} {its}, so {name}={asked} is of another size: leave it, or set "
               "backbone=scratch.")


_RULES = (_impossible_masks, _impossible_sizes, _impossible_tuning, _impossible_head, _impossible_saliency,
          _impossible_rows, _impossible_backbone)  # the last one would hide what else is wrong with a size
