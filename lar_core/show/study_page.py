"""study.html: the one self-contained page on a study, made from study.json alone, in the style of report.html."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..measure.study import FILE, LESS, MORE, NOT_DETECTED, SCORES, STUDY
from ..run.registry import METRICS
from . import figures
from .findings import BLIND, bounds, estimate
from .rates import percent, solved
from .report import write_page

_CHIPS = {MORE: "detected", LESS: "opposite-detected", NOT_DETECTED: "not-detected"}
_LEAD = {MORE: "More successful than the reference", LESS: "Less successful", NOT_DETECTED: "No difference detected"}
_COSTS = {"parameters": ("million parameters that learn", 1e6, ".2f"), "flops": ("GFLOP a sample", 1e9, ".3g"),
          "train_step_ms": ("ms for one training step", 1, ".0f"), "peak_bytes": ("GB of GPU memory", 1e9, ".2f"),
          "train_seconds": ("minutes of training", 60, ".1f"), "act_ms": ("ms for one policy step", 1, ".1f")}

def write_study_page(folder: Path) -> Path:
    """Write `study.html` from the folder's study.json; returns its path. Raises LarError as `load`."""
    study = STUDY.load(folder / FILE)
    rows, reference = study["comparisons"], study["study"]["reference"]
    labels = [METRICS.about(name).label if name in METRICS else "held-out action error" for name in SCORES]
    return write_page(
        folder / "study.html", "study.html", study=study, header=_header(study), lead=[_lead(rows)],
        findings=[(_CHIPS[row["verdict"]], row["verdict"], f"{row['condition']}, {row['placement']} placements",
                   row["sentence"]) for row in rows],
        success_figure=figures.success_bars(success_bars(study)), success=_success(study),
        differences_figure=differences_figure(rows, reference), differences=_differences(rows),
        score_head=("condition", *(part for label in labels for part in (label, "minus the reference's"))),
        scores=[(arm["condition"], *(cell for name in SCORES for cell in _score(arm[name]))) for arm in study["arms"]],
        cost_head=("condition", *(words for words, _, _ in _COSTS.values())), costs=_costs(study),
        caveats=list(caveats(study)))


def study_table(study: dict) -> str:
    """The plain text that the command line prints at the end: success of every arm, then every comparison."""
    lines = [f"{name:<10} {label:<28} {successes}/{n}, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"
             for name, label, _, successes, n, low, high in success_bars(study)]
    return "\n".join([*lines, "", *(row["sentence"] for row in study["comparisons"])])


def success_bars(study: dict) -> list[tuple]:
    """Success of every arm under the right instruction, all seeds and tasks, as `figures.success_bars` takes it."""
    return [(f"{placement} placements", arm["condition"], "control" if arm["condition"] == BLIND else "model",
             row["successes"], row["episodes"], row["low"], row["high"])
            for placement in study["study"]["placements"] for arm in study["arms"]
            for row in _rows(arm, placement, "right") if row["task"] is None]


@figures.styled
def differences_figure(rows: Sequence[dict], reference: str) -> Figure:
    """Difference from the reference with its interval, one line a comparison; full colour where it was detected."""
    figure = Figure(figsize=(9, 0.34 * len(rows) + 0.8), dpi=180, layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows):
        difference = row["difference"]
        colour = figures.GREY if row["verdict"] == NOT_DETECTED else figures.MODEL
        if difference["low"] is not None:
            axis.plot([100 * difference["low"], 100 * difference["high"]], [place, place], color=colour, linewidth=1.8)
        axis.plot(100 * difference["mean"], place, marker="o", color=colour)
    axis.axvline(0, color=figures.GREY, linewidth=0.8)
    axis.set(yticks=range(len(rows)), yticklabels=[f"{row['condition']}, {row['placement']}" for row in rows],
             ylim=(len(rows) - 0.4, -0.6), xlabel=f"success minus that of {reference}, points; line: 95 % interval")
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -10), max(high, 10))  # where nothing differs, that should not look large
    axis.grid(axis="x", alpha=0.6)
    return figure


def _header(study: dict) -> dict[str, object]:
    asked, made = study["study"], study["provenance"]
    changes = ", ".join(f"{name} = {value}" for name, value in asked["changes"].items()) or "none"
    return {"Reference": asked["reference"], "Seeds": ", ".join(map(str, asked["seeds"])), "Profile": asked["profile"],
            "Placements": ", ".join(asked["placements"]), "Assets": (made["assets"] or {}).get("name", "not recorded"),
            "Machine": made.get("device") or made["machine"], "Commit": made["commit"], "Changed settings": changes}


def _lead(rows: Sequence[dict]) -> str:
    names = {verdict: ", ".join(f"{row['condition']} ({row['placement']})" for row in rows if row["verdict"] == verdict)
             for verdict in _LEAD}
    return " ".join(f"{words}: {names[verdict]}." for verdict, words in _LEAD.items() if names[verdict])


def _success(study: dict) -> list[tuple]:
    single = len({row["task"] for arm in study["arms"] for row in arm["success"]} - {None}) == 1
    return [(arm["condition"], row["placement"], row["instruction"], "all" if row["task"] is None else row["task"],
             solved(row), percent(row)[1])
            for arm in study["arms"] for row in arm["success"] if row["task"] is not None or not single]


def _differences(rows: Sequence[dict]) -> list[tuple]:
    return [(row["condition"], row["placement"], row["pairs"], f"{row['only_condition']} / {row['only_reference']}",
             f"{100 * row['difference']['mean']:+.1f} ({_points(row['difference'])})", f"{row['cohens_h']:+.2f}",
             f"{row['p']:.2g}", f"{row['p_holm']:.2g}", f"{100 * row['detectable']:.0f}") for row in rows]


def _score(score: dict | None) -> tuple[str, str]:
    if score is None:
        return "not measurable", ""
    gain = score["over_reference"]
    return estimate(score), "" if gain is None else f"{gain['mean']:+.2g} ({bounds(gain)})"


def _costs(study: dict) -> list[tuple]:
    def cell(cost: dict | None, unit: float, form: str) -> str:
        if cost is None:
            return "not measured"
        return f"{cost['mean'] / unit:{form}}" + ("" if cost["ratio"] is None else f" (× {cost['ratio']:.2f})")
    return [(arm["condition"], *(cell(arm["costs"][name], unit, form) for name, (_, unit, form) in _COSTS.items()))
            for arm in study["arms"]]


def caveats(study: dict) -> Iterator[str]:
    """What the numbers of this study cannot say."""
    asked, made = study["study"], study["provenance"]
    if len(asked["seeds"]) < 3:
        yield (f"{len(asked['seeds'])} training seed{'s' if len(asked['seeds']) > 1 else ''}: a difference between two "
               "conditions needs at least three of each before it is believed.")
    if "official" in asked["placements"]:
        yield ("Official placements can be passed blind: objects move by about a centimetre, so success there shows "
               "nothing about seeing. Wide and counterfactual placements can.")
    if (made["assets"] or {}).get("name") == "standin":
        yield ("Stand-in assets: the objects have LIBERO's names, sizes and tasks but not its look. Numbers are "
               "comparable between runs on the same assets, not with the literature.")
    if "," in made["commit"] or "+" in made["commit"]:
        yield f"The runs were not all made by one committed state of the code ({made['commit']})."
    yield "Every condition is compared with the reference only: two others may differ from each other undetected."


def _rows(arm: dict, placement: str, instruction: str) -> list[dict]:
    return [row for row in arm["success"] if (row["placement"], row["instruction"]) == (placement, instruction)]


def _points(interval: dict) -> str:
    if interval["low"] is None:
        return "no interval"
    return f"{100 * interval['low']:+.1f} to {100 * interval['high']:+.1f}"
