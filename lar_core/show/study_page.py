"""study.html: the one self-contained page on a study, made from study.json alone, in the style of report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..measure.study import FILE, LESS, MORE, NOT_DETECTED, SCORES, STUDY
from ..run.registry import METRICS
from . import figures, rates
from .findings import Finding, caveats
from .report import write_page


def write_study_page(folder: Path) -> Path:
    """Write `study.html` from the folder's study.json; returns its path. Raises LarError as `load`."""
    study = STUDY.load(folder / FILE)
    rows = study["comparisons"]
    return write_page(
        folder / "study.html", "study.html", study=study, lead=[_lead(rows)],
        found=[Finding(f"{row['placement']} placements, {row['condition']}", row["verdict"], row["sentence"])
               for row in rows],
        success_figure=figures.success_bars(success_bars(study)),
        success=rates.success_table(row | {"policy": arm["condition"]} for arm in study["arms"] for row in arm["success"]),
        differences_figure=differences_figure(rows, study["study"]["reference"]), caveats=caveats(study),
        scores={name: METRICS.about(name).label if name in METRICS else "held-out action error" for name in SCORES})


def study_table(study: dict) -> str:
    """The plain text that the command line prints at the end: success of every arm, then every comparison."""
    lines = [f"{name:<10} {label:<28} {successes}/{n}, 95 % interval {rates.percent(low, high)}"
             for name, label, _, successes, n, low, high in success_bars(study)]
    return "\n".join([*lines, "", *(row["sentence"] for row in study["comparisons"])])


def success_bars(study: dict) -> list[tuple]:
    """Success of every arm under the right instruction, all seeds and tasks, as `figures.success_bars` takes it."""
    return [rates.bar(placement, arm["condition"], "control" if arm["condition"] == rates.BLIND else "model",
                      row["successes"], row["episodes"])
            for placement in study["study"]["placements"] for arm in study["arms"] for row in arm["success"]
            if (row["placement"], row["instruction"], row["task"]) == (placement, "right", None)]


@figures.styled
def differences_figure(rows: Sequence[dict], reference: str) -> Figure:
    """Difference from the reference with its interval, one line a comparison; full colour where it was detected."""
    figure, axis = figures.lines([f"{row['condition']}, {row['placement']}" for row in rows], 0.8,
                                 f"success minus that of {reference}, points; line: 95 % interval")
    for place, row in enumerate(rows):
        difference = row["difference"]
        colour = figures.GREY if row["verdict"] == NOT_DETECTED else figures.MODEL
        if difference["low"] is not None:
            axis.plot([100 * difference["low"], 100 * difference["high"]], [place, place], color=colour, linewidth=1.8)
        axis.plot(100 * difference["mean"], place, marker="o", color=colour)
    axis.axvline(0, color=figures.GREY, linewidth=0.8)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -10), max(high, 10))  # where nothing differs, that should not look large
    axis.grid(axis="x", alpha=0.6)
    return figure


def _lead(rows: Sequence[dict]) -> str:
    leads = {MORE: "More successful than the reference", LESS: "Less successful", NOT_DETECTED: "No difference detected"}
    names = {verdict: ", ".join(f"{row['condition']} ({row['placement']})" for row in rows if row["verdict"] == verdict)
             for verdict in leads}
    return " ".join(f"{words}: {names[verdict]}." for verdict, words in leads.items() if names[verdict])
