"""The model card of a policy that is given to others: what it is, how to load it, its numbers and what they cannot say.

The header is the YAML that the Hugging Face hub reads; the words on the numbers are the report's own (`reading`).
"""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from ..data.hub import Entry, entry
from ..run.config import RunConfig
from . import findings
from .report import fill_template, summary_table

_LICENCES = {"Gemma Terms of Use": "gemma"}  # the manifest's word -> the hub's
_DEMOS = {"expert": "made by a scripted expert", "official": "of LIBERO's official files",
          "lerobot": "of LIBERO's official ones in LeRobot's copy"}
_DATASETS = {"official": "libero-spatial-demonstrations", "lerobot": "libero-spatial-lerobot"}  # keys of the manifest

def model_card(config: RunConfig, base: Entry | None, results: dict | None, rollouts: Sequence[dict],
               source: str) -> str:
    """README.md of an exported policy.

    base: the backbone's entry in the manifest, None where it was made here; results: of results.json, None where there
    is none; rollouts: rows of rollouts.jsonl, the blind control's too; source: what `from_pretrained` is given.
    """
    return fill_template("card.md", config=config, source=source, results=results, header=_header(config, base),
                         what=_what(config, base), senses=_senses(config), limits=_limits(results),
                         licence=_licence(config, base), **(_measured(results, rollouts) if results else {}))


def _header(config: RunConfig, base: Entry | None) -> str:
    demos = _DATASETS.get(config.profile.demos)
    return ModelCardData(
        license=_LICENCES[base.licence] if base else "mit", base_model=base.id if base else None,
        datasets=[entry(demos).id] if demos else None, library_name="lar_core", pipeline_tag="robotics",
        tags=["robotics", "vision-language-action", "libero", "la-reconvla", config.condition.name]).to_yaml()


def _what(config: RunConfig, base: Entry | None) -> str:
    condition, profile = config.condition, config.profile
    method = "Nothing is masked or reconstructed in training"
    if condition.reconstructor != "none":
        method = (f"In training, {100 * condition.mask_ratio:.0f} % of the image's patches are masked (mask source: "
                  f"{condition.mask_source}) and reconstructed, with weight {condition.lambda_recon} beside the action "
                  "loss")
    seen = ", and every image is replaced by grey: this is the control that cannot see" if condition.blind else ""
    backbone = f"{base.id} ({profile.tune}, {profile.precision})" if base else "a small PaliGemma made from scratch"
    return (f"{method}{seen}. Backbone: {backbone}. Demonstrations: {profile.demos_per_task} a task, "
            f"{_DEMOS[profile.demos]}, {100 * profile.heldout_fraction:.0f} % held out; LIBERO-Spatial tasks "
            f"{', '.join(map(str, profile.tasks))}; {profile.placement} placements. Training seed {config.seed}.")


def _senses(config: RunConfig) -> str:
    profile = config.profile
    wrist = f", the wrist camera's at {profile.wrist_size}" if profile.wrist_size else ""
    own = ", hand pose and finger positions" if profile.proprio else ""
    return f"the agent view's image at {profile.image_size} pixels{wrist}{own} and a sentence"


def _measured(results: dict, rollouts: Sequence[dict]) -> dict:
    found = findings.findings(results, rollouts)
    machine = (results.get("latency") or {}).get("device")
    return {"findings": found, "headline": findings.headline(results, found), "table": summary_table(results),
            "assets": ((results.get("provenance") or {}).get("assets") or {}).get("name", "not recorded"),
            "times": f" Times: {machine}." if machine else "", "command": findings.command(results)}


def _limits(results: dict | None) -> list[str]:
    fixed = ["It has only ever acted in simulation: do not run it on a robot.",
             "It knows the sentences of its tasks and one table."]
    return fixed + (findings.caveats(results) if results else [])


def _licence(config: RunConfig, base: Entry | None) -> str:
    if base is None:
        return "MIT. The weights were trained from scratch."
    whole = config.profile.tune == "all"
    parts = "all weights, which derive from" if whole else "only the trained weights, which are loaded on top of"
    return (f"Here are {parts} [{base.id}](https://huggingface.co/{base.id}) at revision `{base.pinned_revision()}`. "
            f"The {base.licence} (https://ai.google.dev/gemma/terms) apply: accept them on that page; set HF_TOKEN.")
