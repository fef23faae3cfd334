"""Pages made from `templates/`: whatever is put into one is escaped, pictures go into the file, nothing asks the network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ..measure.results import load_results, read_episodes
from ..measure.statistics import wilson
from ..run.files import read_jsonl, write_text
from ..run.folder import Run
from ..run.registry import METRICS, AboutMetric
from . import figures, findings, rates


def write_page(path: Path, template: str, **values: object) -> Path:
    """Fill a template of `templates/` and write it, atomically; returns `path`."""
    write_text(path, fill_template(template, **values))
    return path


def fill_template(template: str, **values: object) -> str:
    """The text of a template of `templates/`; in HTML, what is put in is escaped."""
    return _templates().get_template(template).render(values)


def metrics_guide() -> list[tuple[str, str]]:
    """How to read the metrics of maps: (its name, the explanation) of each that has one."""
    return [(about.label[:1].upper() + about.label[1:], about.guide) for about in map(METRICS.about, METRICS) if about.guide]


def data_url(kind: str, content: bytes) -> Markup:
    """Content of a media type, such as "video/mp4", as it stands in the page itself."""
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(loader=jinja2.PackageLoader(__package__), keep_trailing_newline=True,
                              autoescape=jinja2.select_autoescape(["html"]), finalize=_unbroken)
    made.filters |= {"png": _png, "estimate": findings.estimate, "g3": "{:.3g}".format}
    made.globals["metrics_guide"] = metrics_guide
    return made


@jinja2.pass_eval_context
def _unbroken(context: jinja2.nodes.EvalContext, value: object) -> object:
    """On a page, a percent sign stays on the line of its number."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if context.autoescape and isinstance(value, str) else value


def _png(figure: Figure) -> Markup:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return data_url("image/png", buffer.getvalue())


# report.html: one self-contained page on one run, and the table that ends a run on the terminal.

CLIPS, CLIP_BYTES = 6, 7_000_000  # at most so many clips, of so many bytes together
_IMAGES = {"blank": "grey images", "shuffled": "another frame's images"}
_RUN_AS = {"right": "its own", "blank": "blank", "other_task": "another of its tasks'", "other_bowl": "the other bowl's",
           "foreign_task": "a task's that is not its own", "mixed": "right every second time"}


def write_report(run: Run) -> Path:
    """Write `report.html` from what the folders of a run and of its blind control hold so far; returns its path.

    Raises LarError for a damaged results.json.
    """
    results = load_results(run.results) if run.results.exists() else _empty(run)
    rows = [row for folder in (run.path, run.control) for row in _rollouts(folder, run.config.profile.tasks)]
    found, gallery = findings.findings(results, rows), _gallery(run.path / "gallery.npz")
    return write_page(
        run.report, "report.html", results=results, gallery=gallery, figures=figures, metrics=read_jsonl(run.metrics),
        command=findings.command(results), missing=findings.missing, header=_header(results),
        headline=findings.headline(results, found), findings=[_chip(finding) for finding in found],
        caveats=findings.caveats(results), reconstructor=findings.reconstructor(results), bars=success_bars(results),
        success=_success(results), clips=list(_clips(rows)), saliency_gallery=partial(_saliency_gallery, gallery),
        columns=columns(), series=tuple(figures.SERIES.values()), grounding=_grounding(results),
        saliency_cells=saliency_cells, shortcut=_shortcut(results), training=_training(results),
        training_cost=_training_cost(results), settings=_settings(results))


def summary_table(results: dict) -> str:
    """The plain text that the command line prints at the end of a run: numbers, intervals, what to compare with."""
    run = results["run"]
    lines = [f"{run['condition']} · {run['profile']} · seed {run['seed']}", ""]
    rows = [("", "value", "95 % interval", "compare with"), *_summary_rows(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines += ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip() for row in rows]
    return "\n".join(lines)


def _summary_rows(results: dict) -> list[tuple[str, str, str, str]]:
    rows = []
    for bar, count, single in _success_rows(results):
        placements, label, kind, successes, n, low, high = bar
        tasks = rates.by_task(results, single, lambda row: f"{row[count]}/{row['episodes']}")
        rows.append((label if kind == "ignored" else f"success, {label}", f"{successes}/{n}",
                     f"{100 * low:.0f} to {100 * high:.0f} %", f"{placements}{tasks and f': {tasks}'}"))
    grounding = results.get("grounding") or {}
    for metric in ("aos", "target_minus_distractor"):
        if grounding.get(metric) and grounding[metric]["model"]:
            others = (f"{name.replace('_', ' ')} {value['mean']:.3g}" for name, value in grounding[metric].items()
                      if name != "model" and value)
            model = grounding[metric]["model"]
            rows.append((METRICS.about(metric).label, f"{model['mean']:.3g}", findings.bounds(model), ", ".join(others)))
    if action := results.get("action"):
        rows.append(("held-out action error", f"{action['l1']['mean']:.3g}", findings.bounds(action["l1"]),
                     f"mean action {action['l1_mean_action']['mean']:.3g}"))
    if probe := results.get("shortcut"):
        changed = probe["whole"]
        rows.append(("loss with another frame's images", f"{changed['shuffled']['loss']['mean']:.3g} {probe['unit']}",
                     findings.bounds(changed["shuffled"]["loss"]), f"the right images {probe['right']['loss']['mean']:.3g}, "
                     f"grey images {changed['blank']['loss']['mean']:.3g}"))
    if recon := results.get("reconstruction"):
        rows.append(("reconstruction loss", f"{recon['loss']:.3g}", "",
                     f"mean patch {recon['mean_patch']:.3g}, neighbours {recon['neighbours']:.3g}"))
    if probe := results.get("denoising"):
        rows.append(("denoising loss", f"{probe['loss']['mean']:.3g}", findings.bounds(probe["loss"]),
                     f"another frame's states {probe['other_frame']['mean']:.3g}, saying nothing 1"))
    if cost := results.get("training_cost"):
        own, base = cost["own"], cost["action_only"]
        rows.append(("training step", f"{own['step_ms']:.1f} ms", "",
                     f"action_only {base['step_ms']:.1f} ms: {ratio(own['step_ms'], base['step_ms'])}"))
    if latency := results.get("latency"):
        rows.append(("policy step, p50", f"{latency['p50_ms']:.1f} ms", "",
                     f"p95 {latency['p95_ms']:.1f} ms, {latency['actions_per_s']:.0f} actions/s"))
    return rows


def success_bars(results: dict) -> list[tuple[str, str, str, int, int, float, float]]:
    """Pooled rows in a fixed order: the policy, its changed instructions, then every other policy."""
    return [bar for bar, _, _ in _success_rows(results)]


def _success_rows(results: dict) -> list[tuple[tuple, str, list[dict]]]:
    """Each bar, what it counts, and the rows of single tasks that it counts it in."""
    policy = results["run"]["condition"]
    others = dict.fromkeys(row["policy"] for row in results.get("rollouts") or [] if row["policy"] != policy)
    kinds = [(policy, "right", policy, "model", "successes"),
             *((policy, change, words, "changed", "successes") for change, words in rates.CHANGES.items()),
             (policy, "other_bowl", "did not listen: its own bowl instead", "ignored", "did_not_listen"),
             *((other, "right", "blind control" if other == findings.BLIND else other, "control", "successes")
               for other in others)]
    bars = []
    for placement in findings.placements(results):
        for name, instruction, label, kind, count in kinds:
            if counts := rates.pooled(results, name, instruction, placement, count):
                interval, single = wilson(*counts), rates.rows_of(results, name, instruction, placement)
                bars.append(((f"{placement} placements", label, kind, *counts, interval.low, interval.high), count, single))
    return bars


def columns() -> list[AboutMetric]:
    """The metrics that tables of many rows have."""
    return [about for about in map(METRICS.about, METRICS) if about.column]


def saliency_cells(rows: Iterable[dict]) -> list[tuple[str, ...]]:
    """Rows of saliency as a table: every aggregation's or split's metrics, the mean above its interval."""
    def cell(interval: dict | None) -> str:
        return "–" if interval is None else f"{interval['mean']:.3g}\n{findings.bounds(interval)}"
    return [(row["name"].replace("_", " "), *(cell(row["metrics"].get(about.name)) for about in columns()))
            for row in rows]


def beside_baselines(grounding: dict) -> list[tuple[str, ...]]:
    """(metric, what it asks, this policy, a uniform map, the image's centre, where the object was in training)."""
    return [(about.label, about.words, *(findings.estimate(grounding[about.name][series]) for series in figures.SERIES))
            for about in columns() if grounding.get(about.name)]


def cost_rows(costs: dict[str, dict | None], base: str) -> list[tuple[str, ...]]:
    """(condition, ms a step, times that of `base`, million parameters that learn, GFLOP a sample, GB of the GPU)."""
    return [(name, "does not fit in memory", *["–"] * 4) if cost is None else
            (name, f"{cost['step_ms']:.0f}", ratio(cost["step_ms"], costs[base] and costs[base]["step_ms"]),
             f"{cost['parameters'] / 1e6:.2f}", _amount(cost["flops"], 1e9), _amount(cost["peak_bytes"], 1e9))
            for name, cost in costs.items()]


def ratio(own: float | None, base: float | None) -> str:
    """"1.23 x", or a dash where one was not measured."""
    return "–" if not own or not base else f"{own / base:.2f} ×"


def _amount(value: float | None, unit: float, name: str = "") -> str:
    return "–" if value is None else f"{value / unit:.3g} {name}".strip()


# What the folders hold

def _empty(run: Run) -> dict:
    config = run.config
    return {"schema_version": 1, "run": {"name": config.name, "condition": config.condition.name,
            "profile": config.profile.name, "seed": config.seed, "fingerprint": config.fingerprint,
            "config": config.model_dump(mode="json")}}


def _rollouts(folder: Path, tasks: Sequence[int]) -> list[dict]:
    """Rows of rollouts.jsonl, the names of their clips turned into paths (or None)."""
    return [row | {"video": folder / row["video"] if row.get("video") else None}
            for row in read_episodes(folder / "rollouts.jsonl", tasks)]


def _gallery(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


# What the template shows, as rows of tables

def _header(results: dict) -> dict[str, object]:
    run, made = results["run"], results.get("provenance") or {}
    assets, demos = made.get("assets") or {}, made.get("demonstrations") or {}
    versions = ", ".join(f"{name} {version}" for name, version in made.items()
                         if name not in ("commit", "machine", "assets", "device") and isinstance(version, str))
    renderers = {scene["gl"]["renderer"] for scene in made.get("scenes") or ()}
    return {"Profile": run["profile"], "Seed": run["seed"],
            "Tasks": f"LIBERO-Spatial {', '.join(map(str, run['config']['profile'].get('tasks', ())))}",
            "Placements": ", ".join(findings.placements(results)), "Assets": assets.get("name", "not recorded"),
            "Demonstrations": f"{demos['source']}, images {demos['images']}" if demos else "not recorded",
            "Rendered by": ", ".join(sorted(renderers)) or "not recorded",
            "Commit": made.get("commit", "not recorded"),
            "Machine": made.get("device") or made.get("machine", "not recorded"),
            "Versions": versions or "not recorded"}


def _chip(finding: findings.Finding) -> tuple[str, str, str, str]:
    topic = finding.topic[:1].upper() + finding.topic[1:]
    return finding.verdict.replace(" ", "-"), finding.verdict, topic, finding.sentence


def _success(results: dict) -> list[tuple]:
    rows = results.get("rollouts") or []
    single = len({row["task"] for row in rows} - {None}) == 1  # then the pooled rows would say everything twice
    return [(row["policy"], _RUN_AS[row["instruction"]], row["placement"], "all" if row["task"] is None else row["task"],
             rates.solved(row), *rates.percent(row))
            for row in rows if row["task"] is not None or not single]


def _clips(rows: Sequence[dict]) -> Iterator[tuple[str, str]]:
    """(caption, source) of at most CLIPS clips: every kind is shown once before any is shown twice."""
    def kind(row: dict) -> tuple:
        return row["policy"], row["instruction"], row["success"]

    filmed = [row for row in rows if row["video"] and row["video"].is_file()]
    order = sorted(range(len(filmed)), key=lambda i: sum(kind(row) == kind(filmed[i]) for row in filmed[:i]))
    shown, left = 0, CLIP_BYTES
    for row in (filmed[i] for i in order):
        size = row["video"].stat().st_size
        if shown < CLIPS and size <= left:
            shown, left = shown + 1, left - size
            yield (f"{row['policy']}, {_RUN_AS[row['instruction']]} instruction, task {row['task']}: "
                   f"{rates.outcome(row)}, {row['steps']} steps",
                   data_url("video/mp4", row["video"].read_bytes()))


def _saliency_gallery(gallery: dict):
    return figures.saliency_gallery(*(gallery.get(f"saliency_{name}") for name in
                                      ("images", "maps", "regions", "instructions", "masks")))


def _grounding(results: dict) -> list[tuple]:
    grounding = results.get("grounding") or {}
    return [(METRICS.about(metric).label, *(findings.estimate(grounding[metric][name]) for name in figures.SERIES))
            for metric in METRICS if METRICS.about(metric).plot and grounding.get(metric)]


def _shortcut(results: dict) -> list[tuple]:
    probe = results.get("shortcut")
    if probe is None:
        return []
    rows = [("the right images", findings.estimate(probe["right"]["loss"]), "", findings.estimate(probe["right"]["l1"]))]
    for place, words in (("whole", ""), ("head", ", for the head's own policy alone")):
        rows += [(f"{_IMAGES[kind]}{words}", *(findings.estimate(entry[name]) for name in ("loss", "increase", "l1")))
                 for kind, entry in (probe[place] or {}).items()]
    return rows


def _training(results: dict) -> list[tuple]:
    training, action = results.get("training"), results.get("action")
    if training is None:
        return []
    sizes, final = training["parameters"], training["final"]
    parts = ", ".join(f"{name} {count:,}" for name, count in sizes.items() if name != "total" and count)
    rows = [("training", f"{training['samples']:,} samples in {training['steps']:,} steps, "
                         f"{training['seconds'] / 60:.1f} minutes"),
            ("episodes", f"{training['train_episodes']} to train on, {training['heldout_episodes']} held out"),
            ("parameters", f"{sizes['total']:,}: {parts}"),
            ("final losses", ", ".join(f"{name} {value:.3g}" for name, value in final.items() if value is not None))]
    if action:
        rows.append(("held-out action error", f"{findings.estimate(action['l1'])}, mean action "
                     f"{findings.estimate(action['l1_mean_action'])}"))
    if action and action["cross_entropy"] is not None:
        rows.append(("held-out cross-entropy", f"{action['cross_entropy']:.3g} nats"))
    return rows


def _training_cost(results: dict) -> list[tuple]:
    """One training step of the condition beside one of action_only."""
    cost = results.get("training_cost")
    if cost is None:
        return []
    own, base = cost["own"], cost["action_only"]
    rows = [(name, f"{arm['parameters']:,}", _amount(arm["flops"], 1e9, "GFLOP"), f"{arm['step_ms']:.1f} ms",
             _amount(arm["peak_bytes"], 1e9, "GB"))
            for name, arm in ((results["run"]["condition"], own), ("action_only", base))]
    return [*rows, ("ratio", *(ratio(own[name], base[name]) for name in ("parameters", "flops", "step_ms", "peak_bytes")))]


def _settings(results: dict) -> list[tuple]:
    config = results["run"]["config"]
    return [(name, value) for part in ("condition", "profile") for name, value in config[part].items() if name != "name"]
