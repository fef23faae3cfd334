"""Rows of saliency as a table: what was aggregated or changed down, metrics across."""

from __future__ import annotations

from collections.abc import Sequence

from ..registry import METRICS, AboutMetric
from . import reading
from .page import scroll_table, text


def columns() -> list[AboutMetric]:
    """The metrics that tables of many rows have."""
    return [about for about in map(METRICS.about, METRICS) if about.column]


def beside_baselines(grounding: dict) -> list[tuple[str, str, str, str, str, str]]:
    """(metric, what it asks, this policy, a uniform map, the image's centre, where the object was in training)."""
    return [(about.label, about.words, *(reading.estimate(grounding[about.name][series])
                                         for series in ("model", "uniform", "centre", "mean_map")))
            for about in columns() if grounding.get(about.name)]


def saliency_rows(title: str, rows: Sequence[dict] | None, shown: str = "held-out frames") -> str:
    """HTML: a heading and the table; nothing where nothing was measured. shown: what a row's `frames` counts."""
    if not rows:
        return ""
    cells = [(row["name"].replace("_", " "), *(_cell(row["metrics"].get(about.name)) for about in columns()))
             for row in rows]
    smaller = " and ".join(about.label for about in columns() if about.smaller)
    note = f"{rows[0]['frames']} {shown}; {smaller}: smaller is better; all others: larger. –: not measurable."
    head = ("", *(about.label for about in columns()))
    return f"<h3>{text(title)}</h3><p class=note>{text(note)}</p>" + scroll_table(head, cells)


def _cell(interval: dict | None) -> str:
    """The mean above its interval, so that many columns fit."""
    return "–" if interval is None else f"{interval['mean']:.3g}\n{reading.bounds(interval)}"


def photographs(results: dict) -> str:
    """HTML: a table for every data set of photographs that was scored."""
    return "".join(saliency_rows(f"On photographs, {name}", rows, "phrases")
                   for name, rows in (results.get("photographs") or {}).items())
