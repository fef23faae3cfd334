"""study.html: the one self-contained page on a study, made from study.json alone, in the style of report.html."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..evaluate.arms import FILE, SCORES, STUDY
from ..evaluate.contrast import LESS, MORE, NOT_DETECTED
from ..files import write_text
from ..registry import METRICS
from . import figures
from .page import PAGE, metrics_guide, picture, scroll_table, section, text
from .reading import BLIND, bounds, estimate

_CHIPS = {MORE: "detected", LESS: "opposite-detected", NOT_DETECTED: "not-detected"}
_LEAD = {MORE: "More successful than the reference", LESS: "Less successful", NOT_DETECTED: "No difference detected"}
_COSTS = {"parameters": ("million parameters that learn", 1e6, ".2f"), "flops": ("GFLOP a sample", 1e9, ".3g"),
          "train_step_ms": ("ms for one training step", 1, ".0f"), "peak_bytes": ("GB of GPU memory", 1e9, ".2f"),
          "train_seconds": ("minutes of training", 60, ".1f"), "act_ms": ("ms for one policy step", 1, ".1f")}
_GUIDE = (
    ("Detected, not detected",
     "\"More\" or \"less successful\" needs both: McNemar's exact test on paired rollouts below 5 % after Holm's "
     "correction, and an interval over seeds that excludes 0. Everything else is \"not detected\": the interval "
     "says what remains possible. It never means that there is no effect."),
    ("Pairs",
     "The same training seed, task and init state, once under each of the two conditions. The test looks only "
     "at pairs with different outcomes."),
    ("Holm's correction",
     "Of many tests at 5 %, some succeed by accident. The corrected p values of all comparisons on this page "
     "together are wrong with a chance of 5 % at most."),
    ("Interval of a difference",
     "A bootstrap that draws seeds and, of every drawn seed, rollouts. With two or three seeds it is too narrow "
     "rather than too wide. With one seed it covers rollouts only and says nothing about other trainings."),
    ("Cohen's h",
     "Effect size of two rates, comparable at any rate: 0.2 is called small, 0.5 medium, 0.8 large."),
    ("Could have missed",
     "The smallest difference that so many pairs detect four times out of five, at the strictest step of Holm's "
     "correction. It counts pairs as independent: where seeds disagree, the truth is larger."),
    ("Blind control",
     "The same recipe trained with grey images, once per seed and shared by all conditions. Whatever it solves "
     "can be solved without looking."),
    ("Costs",
     "Ratios are measured in every run beside action_only, one after the other. Times alone were taken while other "
     "runs may have shared the machine. Decoders cost training alone: nothing is reconstructed at inference."),
)


def write_study_page(folder: Path) -> Path:
    """Write `study.html` from the folder's study.json; returns its path. Raises LarError as `load`."""
    study = STUDY.load(folder / FILE)
    sections = (_header(study), _verdicts(study), _success(study), _differences(study), _scores(study), _costs(study),
                _caveats(study), _runs(study))
    title = html.escape(f"{study['study']['name']} · LA-ReconVLA")
    path = folder / "study.html"
    write_text(path, PAGE.replace("{title}", title).replace("{body}", "\n".join(sections)))
    return path


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


# Sections. Each returns HTML; every string that is not ours goes through `text`.

def _header(study: dict) -> str:
    asked, made = study["study"], study["provenance"]
    changes = ", ".join(f"{name} = {value}" for name, value in asked["changes"].items()) or "none"
    facts = {"Reference": asked["reference"], "Seeds": ", ".join(map(str, asked["seeds"])), "Profile": asked["profile"],
             "Placements": ", ".join(asked["placements"]), "Assets": (made["assets"] or {}).get("name", "not recorded"),
             "Machine": made.get("device") or made["machine"], "Commit": made["commit"], "Changed settings": changes}
    pairs = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    return (f"<header><p class=eyebrow>LA-ReconVLA · comparison of {len(study['arms'])} conditions</p>"
            f"<h1>{text(asked['name'])}</h1><p class=note>Demonstrations stand at {text(asked['placements'][0])} "
            f"placements.</p><dl>{pairs}</dl></header>")


def _verdicts(study: dict) -> str:
    rows = study["comparisons"]
    items = "".join(f"<li><span class='chip {_CHIPS[row['verdict']]}'>{text(row['verdict'])}</span><div>"
                    f"<h3>{text(row['condition'])}, {text(row['placement'])} placements</h3>"
                    f"<p>{text(row['sentence'])}</p></div></li>" for row in rows)
    lead = " ".join(f"{words}: {_names(rows, verdict)}." for verdict, words in _LEAD.items() if _names(rows, verdict))
    return section("What was and was not detected",
                   f"<div class=lead><p>{text(lead)}</p></div><ol class=findings>{items}</ol>")


def _names(rows: Sequence[dict], verdict: str) -> str:
    return ", ".join(f"{row['condition']} ({row['placement']})" for row in rows if row["verdict"] == verdict)


def _success(study: dict) -> str:
    single = len({row["task"] for arm in study["arms"] for row in arm["success"]} - {None}) == 1
    table = [(arm["condition"], row["placement"], row["instruction"], "all" if row["task"] is None else row["task"],
              f"{row['successes']}/{row['episodes']}", f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %")
             for arm in study["arms"] for row in arm["success"] if row["task"] is not None or not single]
    note = "All seeds together; Wilson's intervals count rollouts as independent."
    return section("Success", picture("Success rates with Wilson intervals", figures.success_bars, success_bars(study))
                   + f"<p class=note>{note}</p><details><summary>By instruction and task</summary>"
                   + scroll_table(("condition", "placements", "instruction", "task", "solved", "95 % interval"), table)
                   + "</details>")


def _differences(study: dict) -> str:
    rows, reference = study["comparisons"], study["study"]["reference"]
    table = [(row["condition"], row["placement"], row["pairs"], f"{row['only_condition']} / {row['only_reference']}",
              f"{100 * row['difference']['mean']:+.1f} ({_points(row['difference'])})", f"{row['cohens_h']:+.2f}",
              f"{row['p']:.2g}", f"{row['p_holm']:.2g}", f"{100 * row['detectable']:.0f}") for row in rows]
    head = ("condition", "placements", "pairs", f"only it / only {reference}", "difference, points", "Cohen's h", "p",
            "p, Holm", "could have missed, points")
    drawn = picture("Differences with intervals", differences_figure, rows, reference)
    return section(f"Differences from {reference}", drawn + scroll_table(head, table))


def _scores(study: dict) -> str:
    labels = [METRICS.about(name).label if name in METRICS else "held-out action error" for name in SCORES]
    head = ("condition", *(part for label in labels for part in (label, "minus the reference's")))
    table = [(arm["condition"], *(cell for name in SCORES for cell in _score(arm[name]))) for arm in study["arms"]]
    seeds = len(study["study"]["seeds"])
    means = f"Means over {seeds} seeds with intervals over seeds" if seeds > 1 else "One seed, so no interval"
    note = f"{means}; on held-out demonstrations."
    return section("Where it looks, and how it acts on held-out demonstrations",
                   scroll_table(head, table) + f"<p class=note>{note}</p>")


def _score(score: dict | None) -> tuple[str, str]:
    if score is None:
        return "not measurable", ""
    gain = score["over_reference"]
    return estimate(score), "" if gain is None else f"{gain['mean']:+.2g} ({bounds(gain)})"


def _costs(study: dict) -> str:
    def cell(cost: dict | None, unit: float, form: str) -> str:
        if cost is None:
            return "not measured"
        return f"{cost['mean'] / unit:{form}}" + ("" if cost["ratio"] is None else f" (× {cost['ratio']:.2f})")
    table = [(arm["condition"], *(cell(arm["costs"][name], unit, form) for name, (_, unit, form) in _COSTS.items()))
             for arm in study["arms"]]
    head = ("condition", *(words for words, _, _ in _COSTS.values()))
    return section("Costs, and how many times those of action_only", scroll_table(head, table))


def _caveats(study: dict) -> str:
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in caveats(study))
    guide = "".join(f"<dt>{text(term)}</dt><dd>{text(words)}</dd>" for term, words in (*_GUIDE, *metrics_guide()))
    return (section("What these numbers cannot say", f"<ul>{items}</ul>")
            + section("How to read this", f"<dl class=guide>{guide}</dl>"))


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


def _runs(study: dict) -> str:
    links = "".join(f"<li><a href='{text(run)}/report.html'>{text(run)}</a></li>" for arm in study["arms"]
                    for run in arm["runs"])
    return f"<details><summary>The report of every run (in this page's folder)</summary><ul>{links}</ul></details>"


def _rows(arm: dict, placement: str, instruction: str) -> list[dict]:
    return [row for row in arm["success"] if (row["placement"], row["instruction"]) == (placement, instruction)]


def _points(interval: dict) -> str:
    if interval["low"] is None:
        return "no interval"
    return f"{100 * interval['low']:+.1f} to {100 * interval['high']:+.1f}"
