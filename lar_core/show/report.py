"""What is written for readers: report.html on one run, study.html on a study, the card of a policy that is given to
others, and the tables that end a command on the terminal.

All are made from `templates/`: whatever is put into a page is escaped; pictures, clips and styles are inside the file and a
content policy forbids every request, so it can be mailed or kept. A section whose step has not run says which command fills
it. What is only formatting stands in the templates; words come from `findings` and `rates`, pictures from `figures`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import jinja2
from huggingface_hub import ModelCardData
from markupsafe import Markup
from matplotlib.figure import Figure

from ..data.hub import Entry, entry
from ..measure.kept import Spread, beside_kept
from ..measure.results import CONTROLS, audited, gather_results, load_results, read_episodes
from ..measure.schema import SWEPT
from ..measure.study import FILE, LESS, MORE, NOT_DETECTED, SCORES, STUDY
from ..run.config import RunConfig
from ..run.files import read_jsonl, write_text
from ..run.folder import Run
from ..run.registry import METRICS, AboutMetric
from ..run.settings import PAIRED
from . import causes, figures, findings, rates
from .rates import bounds, estimate, success_bars

AGREEMENT = "agreement"  # of a map with the occlusion map, beside the metrics of maps
_NO_METRICS = {"action_l1": "held-out action error", AGREEMENT: "saliency's agreement with what mattered",  # of a study
               "deletion": "area under deletion in its order", "position": "named bowl read from the patches, error in cm",
               "pull": "gradient of reconstruction, times that of the actions"}
CLIPS, CLIP_BYTES = 6, 7_000_000  # at most so many clips, of so many bytes together
_LICENCES = {"Gemma Terms of Use": "gemma"}  # the manifest's word -> the hub's
_DATASETS = {"official": "libero-spatial-demonstrations", "lerobot": "libero-spatial-lerobot"}  # keys of the manifest


def write_report(run: Run) -> Path:
    """Write `report.html` from what the folders of a run and of its blind control hold so far; returns its path.

    Raises LarError for a damaged results.json.
    """
    results = load_results(run.results) if run.results.exists() else gather_results(run)
    rows = filmed(run)
    found = findings.findings(results, rows)
    return write_page(
        run.report, "report.html", results=results, audited=audited(results), found=found,
        headline=findings.headline(results, found),
        caveats=findings.caveats(results), command=findings.command(results), missing=findings.missing,
        reconstructor=findings.reconstructor(results), placements=rates.placements(results), bars=success_bars(results),
        success=rates.success_table(results.get("rollouts") or []),
        happened=rates.happened_table(results.get("rollouts") or []),
        progress=rates.progress_rows(results.get("rollouts") or []), clips=list(_clips(rows)), figures=figures,
        causes=causes, spreads=beside_kept(results), gallery=figures.gallery(run), metrics=read_jsonl(run.metrics),
        columns=columns(), metrics_about=[METRICS.about(name) for name in METRICS], saliency_cells=saliency_cells,
        layer_head=layer_head, layer_cells=layer_cells, changed_scenes=changed_scenes, layers_note=layers_note(results))


def filmed(run: Run) -> list[dict]:
    """Rows of rollouts.jsonl, of the policy and of its blind control, with `film`, the path of their video or None."""
    return [row | {"film": folder / row["video"] if row.get("video") else None} for folder in (run.path, run.control)
            for row in read_episodes(folder / "rollouts.jsonl", run.config.profile.tasks)]


def _clips(rows: Sequence[dict]) -> Iterator[tuple[str, Markup]]:
    """(caption, source) of at most CLIPS clips: every kind is shown once before any is shown twice."""
    def kind(row: dict) -> tuple:
        return row["policy"], row["instruction"], row["success"]

    there = [row for row in rows if row["film"] and row["film"].is_file()]
    order = sorted(range(len(there)), key=lambda i: sum(kind(row) == kind(there[i]) for row in there[:i]))
    shown, left = 0, CLIP_BYTES
    for row in (there[i] for i in order):
        size = row["film"].stat().st_size
        if shown < CLIPS and size <= left:
            shown, left = shown + 1, left - size
            yield rates.name_of(row), data_url("video/mp4", row["film"].read_bytes())


# A study

def write_study_page(folder: Path) -> Path:
    """Write `study.html` from the folder's study.json; returns its path. Raises LarError as `load`."""
    study = STUDY.load(folder / FILE)
    rows = study["comparisons"]
    success = [row | {"policy": arm["condition"]} for arm in study["arms"] for row in arm["success"]]
    return write_page(
        folder / "study.html", "study.html", study=study, lead=[_lead(rows)],
        found=[findings.Finding(f"{row['placement']} placements, {row['condition']}", row["verdict"], row["sentence"])
               for row in rows],
        success_figure=figures.success_bars(study_bars(study)),
        modality=rates.modality_table(study["arms"], study["study"]["reference"], study["study"]["placements"]),
        success=rates.success_table(success), happened=rates.happened_table(success),
        differences_figure=figures.differences(rows, study["study"]["reference"]), caveats=findings.caveats(study),
        scores={name: _NO_METRICS.get(name) or METRICS.about(name).label for name in SCORES})


def study_table(study: dict) -> str:
    """The plain text that the command line prints at the end: success of every arm, then every comparison."""
    lines = [f"{name:<10} {label:<28} {successes}/{n}, 95 % interval {rates.percent(low, high)}"
             for name, label, _, successes, n, low, high in study_bars(study)]
    modality = rates.modality_table(study["arms"], study["study"]["reference"], study["study"]["placements"])
    lines += ["", *(f"{placement:<16} saw {saw:<13} told the sentence {told:<22} told nothing {nothing}"
                    for placement, saw, told, nothing in modality)] if modality else []
    planned = [f"{number}. {row['sentence']}" for number, row in enumerate(study.get("answers") or [], 1)]
    return "\n".join([*lines, "", *(row["sentence"] for row in study["comparisons"]), *([""] if planned else []), *planned])


def study_bars(study: dict) -> list[tuple]:
    """Success of every arm under the right instruction, all seeds and tasks, as `figures.success_bars` takes it."""
    return [rates.bar(placement, arm["condition"], "control" if arm["condition"] in CONTROLS else "model",
                      row["successes"], row["episodes"])
            for placement in study["study"]["placements"] for arm in study["arms"] for row in arm["success"]
            if (row["placement"], row["instruction"], row["task"]) == (placement, "right", None)]


def _lead(rows: Sequence[dict]) -> str:
    leads = {MORE: "More successful than the reference", LESS: "Less successful", NOT_DETECTED: "No difference detected"}
    names = {verdict: ", ".join(f"{row['condition']} ({row['placement']})" for row in rows if row["verdict"] == verdict)
             for verdict in leads}
    return " ".join(f"{words}: {names[verdict]}." for verdict, words in leads.items() if names[verdict])


# A policy that is given to others

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


# Templates

def write_page(path: Path, template: str, **values: object) -> Path:
    """Fill a template of `templates/` and write it, atomically; returns `path`."""
    write_text(path, fill_template(template, **values))
    return path


def fill_template(template: str, **values: object) -> str:
    """The text of a template of `templates/`; in HTML, what is put in is escaped."""
    return _templates().get_template(template).render(values)


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(loader=jinja2.PackageLoader(__package__), keep_trailing_newline=True,
                              autoescape=jinja2.select_autoescape(["html"]), finalize=_unbroken)
    made.filters |= {"png": _png, "estimate": estimate, "bounds": bounds, "g3": "{:.3g}".format, "amount": amount,
                     "whole_points": lambda rate: f"{100 * rate:+.0f}"}
    made.globals |= {"metrics_guide": metrics_guide, "spread": rates.spread, "ratio": ratio, "percent": rates.percent}
    return made


@jinja2.pass_eval_context
def _unbroken(context: jinja2.nodes.EvalContext, value: object) -> object:
    """On a page, a percent sign stays on the line of its number."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if context.autoescape and isinstance(value, str) else value


def _png(figure: Figure) -> Markup:
    return data_url("image/png", figures.encoded(figure, format="png"))


def data_url(kind: str, content: bytes) -> Markup:
    """Content of a media type, such as "video/mp4", as it stands in the page itself."""
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


# Tables

def summary_table(results: dict) -> str:
    """The plain text that the command line prints at the end of a run: numbers, intervals, what to compare with."""
    run, grounding = results["run"], results.get("grounding") or {}
    scored = [METRICS.about(name) for name in ("aos", "target_minus_distractor") if (grounding.get(name) or {}).get("model")]
    text = fill_template("summary.txt", results=results, bars=rates.bars_and_tasks(results), scored=scored,
                         followed=rates.followed_bars(results), paired=[f"{placement} placements" for placement in PAIRED])
    rows = [("", "value", "95 % interval", "compare with"), *(line.split(" | ") for line in text.splitlines() if line)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip() for row in rows]
    return "\n".join([f"{run['condition']} · {run['profile']} · seed {run['seed']}", "", *lines])


def kept_table(spreads: Sequence[Spread]) -> str:
    """The plain text behind it: into which of the kept runs' ranges the numbers fall."""
    if not spreads:
        return ""
    outside = [spread.name for spread in spreads if not spread.within]
    lines = [f"{spread.name:<48}{spread.value:<8.3g}{rates.spread(spread)}" for spread in spreads]
    verdict = f"Outside their range: {', '.join(outside)}." if outside else "All within their range."
    title = f"Beside {len(spreads[0].kept)} kept runs of these settings with seeds of their own:"
    return "\n".join([title, *lines, verdict])


def columns() -> list[AboutMetric]:
    """The metrics that tables of many rows have."""
    return [about for about in map(METRICS.about, METRICS) if about.column]


def metrics_guide() -> list[tuple[str, str]]:
    """How to read the metrics of maps: (its name, the explanation) of each that has one."""
    return [(about.label[:1].upper() + about.label[1:], about.guide) for about in map(METRICS.about, METRICS) if about.guide]


def saliency_cells(rows: Iterable[dict]) -> list[tuple[str, ...]]:
    """Rows of saliency as a table: every aggregation's or split's metrics, the mean above its interval."""
    def cell(interval: dict | None) -> str:
        return "–" if interval is None else f"{interval['mean']:.3g}\n{bounds(interval)}"
    return [(row["name"].replace("_", " "), *(cell(row["metrics"].get(name)) for name in [about.name for about in columns()]
                                              + [AGREEMENT])) for row in rows]


def layer_head() -> list[str]:
    """The columns of `layer_cells`."""
    labels = [*(METRICS.about(name).label for name in SWEPT), "with occlusion"]
    return ["layer", *(f"{label}, {looker}" for label in labels for looker in figures.LOOKERS.values())]


def layer_cells(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    """The section `layers` of results.json with a line a layer: the mean of every metric, for everyone who looks."""
    found = {(row["layer"], row["rows"], name): f"{entry['mean']:.3g}" for row in rows
             for name, entry in row["metrics"].items() if entry}
    return [(str(layer), *(found.get((layer, kind, name), "–") for name in (*SWEPT, AGREEMENT) for kind in figures.LOOKERS))
            for layer in sorted({row["layer"] for row in rows})]


def layers_note(results: dict) -> str:
    """Which rows are left out of `layers`, and why."""
    first = min((row["layer"] for row in results.get("layers") or [] if row["rows"] == "action"), default=None)
    head = results["run"]["config"]["condition"].get("head", "parallel")
    if first is None:
        return f"The {head} head has no queries that could be asked."
    return f"The action queries join at layer {first}; below it there are none." if first else ""


def changed_scenes(pixels: dict | None) -> list[tuple[str, ...]]:
    """(scene, frames, change in mm, in degrees, points to the named bowl, before) of `pixels`, if there is such."""
    named = {"named_gone": "without the named bowl", "other_gone": "without the other bowl", "swapped": "exchanged"}
    return [(words, str(lost["frames"]), estimate(lost["mm"]), estimate(lost["degrees"]),
             *(estimate(lost[name]) if name in lost else "–" for name in ("followed", "followed_before")))
            for change, words in named.items() if (lost := (pixels or {}).get(change))]


def beside_baselines(grounding: dict) -> list[tuple[str, ...]]:
    """(metric, what it asks, this policy, a uniform map, the image's centre, where the object was in training)."""
    return [(about.label, about.words, *(estimate(grounding[about.name][series]) for series in figures.SERIES))
            for about in columns() if grounding.get(about.name)]


def cost_rows(costs: dict[str, dict | None], base: str) -> list[tuple[str, ...]]:
    """(condition, ms a step, times that of `base`, million parameters that learn, GFLOP a sample, GB of the GPU)."""
    return [(name, "does not fit in memory", *["–"] * 4) if cost is None else
            (name, f"{cost['step_ms']:.0f}", ratio(cost["step_ms"], costs[base] and costs[base]["step_ms"]),
             f"{cost['parameters'] / 1e6:.2f}", amount(cost["flops"], 1e9), amount(cost["peak_bytes"], 1e9))
            for name, cost in costs.items()]


def ratio(own: float | None, base: float | None) -> str:
    """"1.23 x", or a dash where one was not measured."""
    return "–" if not own or not base else f"{own / base:.2f} ×"


def amount(value: float | None, unit: float, name: str = "") -> str:
    """`12.3 GFLOP`, or a dash where it was not measured."""
    return "–" if value is None else f"{value / unit:.3g} {name}".strip()
