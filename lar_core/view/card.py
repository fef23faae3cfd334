"""The model card of a policy that is given to others: what it is, how to load it, its numbers and what they cannot say.

The header is the YAML that the Hugging Face hub reads; the words on the numbers are the report's own (`reading`).
"""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from ..config import RunConfig
from ..data.manifest import Entry, entry
from . import reading
from .report import summary_table

_LICENCES = {"Gemma Terms of Use": "gemma"}  # the manifest's word -> the hub's
_DEMOS = {"expert": "made by a scripted expert", "official": "of LIBERO's official files",
          "lerobot": "of LIBERO's official ones in LeRobot's copy"}
_DATASETS = {"official": "libero-spatial-demonstrations", "lerobot": "libero-spatial-lerobot"}  # keys of the manifest
_TEXT = """
# LA-ReconVLA: {name}

{what}

A robot policy for LIBERO-Spatial in simulation: {senses} go in, {chunk} actions (hand motion and gripper, 20 Hz) come
out, of which {execute} were executed between two inferences. Made with `lar_core`; its settings are in `config.json`,
the scales of actions and proprioception in `stats.json`.

## Load it

With the LA-ReconVLA repository installed:

```python
from lar_core.evaluate.rollout import observation_batch
from lar_core.share import from_pretrained
policy, stats = from_pretrained("{source}")
actions, saliency = policy.act(observation_batch(observation, [sentence], stats, policy))  # of lar_core's SpatialEnv
commands = stats.denormalise_actions(actions.cpu().numpy())
```

Weights are safetensors; nothing here is a pickle or holds code.

## What was measured

{measured}

## What this cannot say

{limits}

## Licence

{licence}
"""


def model_card(config: RunConfig, base: Entry | None, results: dict | None, rollouts: Sequence[dict],
               source: str) -> str:
    """README.md of an exported policy.

    base: the backbone's entry in the manifest, None where it was made here; results: of results.json, None where there
    is none; rollouts: rows of rollouts.jsonl, the blind control's too; source: what `from_pretrained` is given.
    """
    text = _TEXT.format(name=config.name, what=_what(config, base), senses=_senses(config),
                        chunk=config.profile.chunk, execute=config.profile.execute, source=source,
                        measured=_measured(results, rollouts), limits=_bullets(_limits(results)),
                        licence=_licence(config, base))
    return f"---\n{_header(config, base)}\n---\n{text}"


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


def _measured(results: dict | None, rollouts: Sequence[dict]) -> str:
    if results is None:
        return "Nothing yet: there was no `results.json` when this was written. `lar report` makes one."
    found = reading.findings(results, rollouts)
    assets = ((results.get("provenance") or {}).get("assets") or {}).get("name", "not recorded")
    machine = (results.get("latency") or {}).get("device")
    times = f" Times: {machine}." if machine else ""
    verdicts = _bullets(f"**{finding.topic}: {finding.verdict}.** {finding.sentence}" for finding in found)
    return (f"{' '.join(reading.headline(results, found))}\n\n```\n{summary_table(results)}\n```\n\n"
            f"Assets of the scene: {assets}.{times} Made again by `{reading.command(results)}`.\n\n{verdicts}")


def _limits(results: dict | None) -> list[str]:
    fixed = ["It has only ever acted in simulation: do not run it on a robot.",
             "It knows the sentences of its tasks and one table."]
    return fixed + (reading.caveats(results) if results else [])


def _licence(config: RunConfig, base: Entry | None) -> str:
    if base is None:
        return "MIT. The weights were trained from scratch."
    whole = config.profile.tune == "all"
    parts = "all weights, which derive from" if whole else "only the trained weights, which are loaded on top of"
    return (f"Here are {parts} [{base.id}](https://huggingface.co/{base.id}) at revision `{base.pinned_revision()}`. "
            f"The {base.licence} (https://ai.google.dev/gemma/terms) apply: accept them on that page; set HF_TOKEN.")


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
