"""The model card of a policy that is given to others: what it is, how to load it, its numbers and what they cannot say.

The header is the YAML that the Hugging Face hub reads; the words on the numbers are the report's own (`findings`), all
others stand in `templates/card.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from ..data.hub import Entry, entry
from ..run.config import RunConfig
from . import findings
from .report import fill_template, summary_table

_LICENCES = {"Gemma Terms of Use": "gemma"}  # the manifest's word -> the hub's
_DATASETS = {"official": "libero-spatial-demonstrations", "lerobot": "libero-spatial-lerobot"}  # keys of the manifest


def model_card(config: RunConfig, base: Entry | None, results: dict | None, rollouts: Sequence[dict],
               source: str) -> str:
    """README.md of an exported policy.

    base: the backbone's entry in the manifest, None where it was made here; results: of results.json, None where there
    is none; rollouts: rows of rollouts.jsonl, the blind control's too; source: what `from_pretrained` is given.
    """
    demos = _DATASETS.get(config.profile.demos)
    header = ModelCardData(
        license=_LICENCES[base.licence] if base else "mit", base_model=base.id if base else None,
        datasets=[entry(demos).id] if demos else None, library_name="lar_core", pipeline_tag="robotics",
        tags=["robotics", "vision-language-action", "libero", "la-reconvla", config.condition.name])
    measured = {}
    if results:
        found = findings.findings(results, rollouts)
        measured = {"findings": found, "headline": findings.headline(results, found), "table": summary_table(results),
                    "command": findings.command(results), "caveats": findings.caveats(results)}
    return fill_template("card.md", config=config, base=base, condition=config.condition, profile=config.profile,
                         source=source, results=results, header=header.to_yaml(), **measured)
