"""Rows of saliency as a table: what was aggregated or changed down, metrics across."""

from __future__ import annotations

from collections.abc import Sequence

from . import reading
from .page import scroll_table, text

COLUMNS = {"aos": "AOS", "target_minus_distractor": "named minus other", "auc": "AUC", "shuffled_auc": "shuffled AUC",
           "pointing_15px": "pointing, 15 px", "energy": "energy", "soft_iou": "soft IoU", "best_iou": "best IoU",
           "box_iou": "box mIoU", "nss": "NSS", "cc": "CC", "kl": "KL", "spearman": "Spearman",
           "region_rank": "rank of the object"}

MEANING = {"aos": "overlap of the top 25 % of patches with the object's", "target_minus_distractor":
           "share of saliency on the named object minus that on the other bowl",
           "auc": "does it rank the object's patches first? 0.5 = chance",
           "shuffled_auc": "the same against places of the object in other frames; 0.5 = chance",
           "pointing_15px": "is the peak on the object, or at most 15 pixels off?",
           "energy": "share of saliency on the object", "soft_iou": "overlap of the map itself with the object",
           "best_iou": "overlap at the threshold that suits each frame best",
           "box_iou": "box round the peak's region against the object's box",
           "nss": "standard deviations above the map's mean on the object; 0 = chance",
           "cc": "correlation with the object's place", "kl": "nats from the object's place; smaller is better",
           "spearman": "rank correlation with the object's place",
           "region_rank": "place among all objects by saliency per area; 1 = first"}


def beside_baselines(grounding: dict) -> list[tuple[str, str, str, str, str, str]]:
    """(metric, what it asks, this policy, a uniform map, the image's centre, where the object was in training)."""
    return [(COLUMNS[metric], asks, *(reading.estimate(grounding[metric][series])
                                      for series in ("model", "uniform", "centre", "mean_map")))
            for metric, asks in MEANING.items() if grounding.get(metric)]


def saliency_rows(title: str, rows: Sequence[dict] | None, shown: str = "held-out frames") -> str:
    """HTML: a heading and the table; nothing where nothing was measured. shown: what a row's `frames` counts."""
    if not rows:
        return ""
    cells = [(row["name"].replace("_", " "), *(_cell(row["metrics"].get(name)) for name in COLUMNS)) for row in rows]
    left_out = f" ({skipped} more could not be used)" if (skipped := rows[0].get("skipped")) else ""
    note = f"{rows[0]['frames']} {shown}{left_out}; KL and rank: smaller is better; all others: larger. –: not measurable."
    return f"<h3>{text(title)}</h3><p class=note>{text(note)}</p>" + scroll_table(("", *COLUMNS.values()), cells)


def _cell(interval: dict | None) -> str:
    """The mean above its interval, so that many columns fit."""
    return "–" if interval is None else f"{interval['mean']:.3g}\n{reading.bounds(interval)}"


def photographs(results: dict) -> str:
    """HTML: a table for every data set of photographs that was scored."""
    return "".join(saliency_rows(f"On photographs, {name}", rows, "phrases")
                   for name, rows in (results.get("photographs") or {}).items())
