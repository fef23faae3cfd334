"""Rows of saliency as a table: what was aggregated or changed down, metrics across."""

from __future__ import annotations

from collections.abc import Sequence

from . import reading
from .page import scroll_table, text

COLUMNS = {"aos": "AOS", "target_minus_distractor": "named minus other", "auc": "AUC", "shuffled_auc": "shuffled AUC",
           "pointing_15px": "pointing, 15 px", "energy": "energy", "soft_iou": "soft IoU", "best_iou": "best IoU",
           "box_iou": "box mIoU", "nss": "NSS", "cc": "CC", "kl": "KL", "spearman": "Spearman",
           "region_rank": "rank of the object"}


def saliency_rows(title: str, rows: Sequence[dict] | None) -> str:
    """HTML: a heading and the table; nothing where nothing was measured. KL and rank: smaller is better."""
    if not rows:
        return ""
    cells = [(row["name"].replace("_", " "), *(reading.estimate(row["metrics"].get(metric)) for metric in COLUMNS))
             for row in rows]
    note = f"{rows[0]['frames']} held-out frames; KL and rank: smaller is better; every other number: larger."
    return f"<h3>{text(title)}</h3><p class=note>{text(note)}</p>" + scroll_table(("", *COLUMNS.values()), cells)
