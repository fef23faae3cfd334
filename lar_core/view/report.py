"""report.html: one self-contained page on one run, and the table that ends a run on the terminal.

Pictures, clips and styles are inside the file and a content policy forbids every request, so it can be mailed or kept.
A section whose step has not run says which command fills it. Words come from `reading`, pictures from `figures`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..evaluate.results import load_results
from ..evaluate.statistics import wilson
from ..files import read_jsonl, write_text
from ..run import Run
from . import arms, figures, reading
from .page import GUIDE, PAGE, picture, scroll_table, section, text
from .saliency_table import photographs, saliency_rows

CLIPS, CLIP_BYTES = 6, 7_000_000  # at most so many clips, of so many bytes together
_SHORT = {"aos": "AOS", "target_minus_distractor": "named minus other bowl", "auc": "AUC", "pointing": "pointing game"}
_IMAGES = {"blank": "grey images", "shuffled": "another frame's images"}
_RUN_AS = {"right": "its own", "blank": "blank", "swapped": "another task's"}


def write_report(run: Run) -> Path:
    """Write `report.html` from what the folders of a run and of its blind control hold so far; returns its path.

    Raises LarError for a damaged results.json.
    """
    results = load_results(run.results) if run.results.exists() else _empty(run)
    rows = _rollouts(run.path) + _rollouts(run.control)
    found = reading.findings(results, rows)
    gallery = _gallery(run.path / "gallery.npz")
    sections = (_header(results), _verdicts(results, found), _success(results), _clips(rows),
                _saliency(results, gallery), _shortcut(results), _reconstruction(results, gallery),
                _training(results, read_jsonl(run.metrics)), arms.training_cost(results), _latency(results),
                _guide(results), _settings(results))
    title = html.escape(f"{results['run']['condition']} · {results['run']['profile']} · LA-ReconVLA")
    write_text(run.report, PAGE.replace("{title}", title).replace("{body}", "\n".join(sections)))
    return run.report


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
    for placements, label, _, successes, n, low, high in success_bars(results):
        rows.append((f"success, {label}", f"{successes}/{n}", f"{100 * low:.0f} to {100 * high:.0f} %", placements))
    grounding = results.get("grounding") or {}
    for metric in ("aos", "target_minus_distractor"):
        if grounding.get(metric) and grounding[metric]["model"]:
            others = (f"{name.replace('_', ' ')} {value['mean']:.3g}" for name, value in grounding[metric].items()
                      if name != "model" and value)
            model = grounding[metric]["model"]
            rows.append((_SHORT[metric], f"{model['mean']:.3g}", reading.bounds(model), ", ".join(others)))
    if action := results.get("action"):
        rows.append(("held-out action error", f"{action['l1']['mean']:.3g}", reading.bounds(action["l1"]),
                     f"mean action {action['l1_mean_action']['mean']:.3g}"))
    if probe := results.get("shortcut"):
        changed = probe["whole"]
        rows.append(("loss with another frame's images", f"{changed['shuffled']['loss']['mean']:.3g} {probe['unit']}",
                     reading.bounds(changed["shuffled"]["loss"]), f"the right images {probe['right']['loss']['mean']:.3g}, "
                     f"grey images {changed['blank']['loss']['mean']:.3g}"))
    if recon := results.get("reconstruction"):
        rows.append(("reconstruction loss", f"{recon['loss']:.3g}", "",
                     f"mean patch {recon['mean_patch']:.3g}, neighbours {recon['neighbours']:.3g}"))
    if probe := results.get("denoising"):
        rows.append(("denoising loss", f"{probe['loss']['mean']:.3g}", reading.bounds(probe["loss"]),
                     f"another frame's states {probe['other_frame']['mean']:.3g}, saying nothing 1"))
    if cost := results.get("training_cost"):
        own, base = cost["own"], cost["action_only"]
        rows.append(("training step", f"{own['step_ms']:.1f} ms", "",
                     f"action_only {base['step_ms']:.1f} ms: {arms.ratio(own['step_ms'], base['step_ms'])}"))
    if latency := results.get("latency"):
        rows.append(("policy step, p50", f"{latency['p50_ms']:.1f} ms", "",
                     f"p95 {latency['p95_ms']:.1f} ms, {latency['actions_per_s']:.0f} actions/s"))
    return rows


def _empty(run: Run) -> dict:
    config = run.config
    return {"schema_version": 1, "run": {"name": config.name, "condition": config.condition.name,
            "profile": config.profile.name, "seed": config.seed, "fingerprint": config.fingerprint,
            "config": asdict(config)}}


def _rollouts(folder: Path) -> list[dict]:
    """Rows of rollouts.jsonl, the names of their clips turned into paths (or None)."""
    return [row | {"video": folder / row["video"] if row.get("video") else None}
            for row in read_jsonl(folder / "rollouts.jsonl")]


def _gallery(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


# Sections. Each returns HTML; every string that is not ours goes through `text`.

def _header(results: dict) -> str:
    run, made = results["run"], results.get("provenance") or {}
    profile, assets, demos = run["config"]["profile"], made.get("assets") or {}, made.get("demonstrations") or {}
    tasks = ", ".join(str(task) for task in profile.get("tasks", ()))
    versions = ", ".join(f"{name} {version}" for name, version in made.items()
                         if name not in ("commit", "machine", "assets", "device") and isinstance(version, str))
    renderers = {scene["gl"]["renderer"] for scene in made.get("scenes") or ()}
    facts = {"Profile": run["profile"], "Seed": run["seed"], "Tasks": f"LIBERO-Spatial {tasks}",
             "Placements": ", ".join(reading.placements(results)), "Assets": assets.get("name", "not recorded"),
             "Demonstrations": f"{demos['source']}, images {demos['images']}" if demos else "not recorded",
             "Rendered by": ", ".join(sorted(renderers)) or "not recorded",
             "Commit": made.get("commit", "not recorded"),
             "Machine": made.get("device") or made.get("machine", "not recorded"),
             "Versions": versions or "not recorded"}
    pairs = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    return (f"<header><p class=eyebrow>LA-ReconVLA · report of one run</p><h1>{text(run['condition'])}</h1>"
            f"<p class=note>Made again by</p><pre>{text(reading.command(results))}</pre>"
            f"<dl>{pairs}</dl></header>")


def _verdicts(results: dict, found: Sequence[reading.Finding]) -> str:
    lead = "".join(f"<p>{text(sentence)}</p>" for sentence in reading.headline(results, found))
    items = "".join(f"<li><span class='chip {finding.verdict.replace(' ', '-')}'>{finding.verdict}</span><div>"
                    f"<h3>{text(finding.topic[:1].upper() + finding.topic[1:])}</h3><p>{text(finding.sentence)}</p>"
                    "</div></li>" for finding in found)
    return section("What was and was not detected", f"<div class=lead>{lead}</div><ol class=findings>{items}</ol>")


def _success(results: dict) -> str:
    rows = results.get("rollouts")
    if not rows:
        return section("Success", _todo(results, "rollouts"))
    single = len({row["task"] for row in rows} - {None}) == 1  # then the pooled rows would say everything twice
    table = scroll_table(("policy", "instruction", "placements", "task", "solved", "rate", "95 % interval"), [
        (row["policy"], _RUN_AS[row["instruction"]], row["placement"], "all" if row["task"] is None else row["task"],
         f"{row['successes']}/{row['episodes']}", f"{100 * row['rate']:.0f} %",
         f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %")
        for row in rows if row["task"] is not None or not single])
    profile = results["run"]["config"]["profile"]
    note = (f"{profile.get('execute')} of {profile.get('chunk')} predicted actions are executed between two "
            f"inferences; an episode ends after {profile.get('max_steps')} steps.")
    bars = picture("Success rates with Wilson intervals", figures.success_bars, success_bars(results))
    return section("Success", f"{bars}<p class=note>{text(note)}</p>{table}")


def success_bars(results: dict) -> list[tuple[str, str, str, int, int, float, float]]:
    """Pooled rows in a fixed order: the policy, its changed instructions, then every other policy."""
    policy = results["run"]["condition"]
    others = dict.fromkeys(row["policy"] for row in results.get("rollouts") or [] if row["policy"] != policy)
    kinds = [(policy, "right", policy, "model"), (policy, "blank", "blank instruction", "changed"),
             (policy, "swapped", "another task's instruction", "changed"),
             *((other, "right", "blind control" if other == reading.BLIND else other, "control") for other in others)]
    bars = []
    for placement in reading.placements(results):
        for name, instruction, label, kind in kinds:
            if counts := reading.pooled(results, name, instruction, placement):
                interval = wilson(*counts)
                bars.append((f"{placement} placements", label, kind, *counts, interval.low, interval.high))
    return bars


def _clips(rows: Sequence[dict]) -> str:
    shown, left = [], CLIP_BYTES
    filmed = [row for row in rows if row["video"] and row["video"].is_file()]
    for row in sorted(filmed, key=lambda row: _seen_before(row, filmed)):
        size = row["video"].stat().st_size
        if len(shown) < CLIPS and size <= left:
            left -= size
            shown.append(_clip(row))
    if not shown:
        return ""
    note = "Camera, the same with saliency over it, wrist camera. More clips are in the run's rollouts folder."
    return section("Clips", f"<p class=note>{note}</p><div class=clips>{''.join(shown)}</div>")


def _seen_before(row: dict, rows: Sequence[dict]) -> int:
    """How many earlier clips are of the same kind, so that every kind is shown once before any is shown twice."""
    def kind(other: dict) -> tuple:
        return other["policy"], other["instruction"], other["success"]
    return sum(kind(other) == kind(row) for other in rows[: rows.index(row)])


def _clip(row: dict) -> str:
    outcome = "solved" if row["success"] else "not solved"
    words = (f"{row['policy']}, {_RUN_AS[row['instruction']]} instruction, task {row['task']}: {outcome}, "
             f"{row['steps']} steps")
    return (f"<figure><video controls muted loop playsinline preload=metadata src='data:video/mp4;base64,"
            f"{base64.b64encode(row['video'].read_bytes()).decode()}'></video>"
            f"<figcaption>{text(words)}</figcaption></figure>")


def _saliency(results: dict, gallery: dict) -> str:
    parts = []
    if "saliency_maps" in gallery:
        parts.append(picture("Images, saliency and most salient patches", figures.saliency_gallery, *(
            gallery.get(f"saliency_{name}") for name in ("images", "maps", "regions", "instructions", "masks"))))
        parts.append("<p class=note>Held-out frames: the camera's image, where the instruction looks, the top 25 % of "
                     "patches.</p>")
    grounding = results.get("grounding")
    if grounding is None:
        parts += [photographs(results), _todo(results, "grounding")]
        return section("Where the instruction looks", "".join(parts))
    parts.append(picture("Grounding metrics beside baselines", figures.grounding_bars, grounding))
    parts.append(scroll_table(("metric", *figures.SERIES.values()), [
        (_SHORT[metric], *(reading.estimate(grounding[metric][name]) for name in figures.SERIES))
        for metric in figures.METRICS if grounding[metric]]))
    if best := (grounding["aos"] or {}).get("best"):
        parts.append(f"<p class=note>The object covers fewer patches than the top 25 %, so AOS can reach "
                     f"{reading.estimate(best)} at most.</p>")
    parts += [saliency_rows("Every way to aggregate, on the same frames", results.get("aggregations")),
              saliency_rows("The same policy on frames that were changed", results.get("robustness")),
              photographs(results)]
    return section("Where the instruction looks", "".join(parts))


def _shortcut(results: dict) -> str:
    title, probe = "What the actions lose without the image", results.get("shortcut")
    if probe is None:
        return section(title, _todo(results, "shortcut"))
    rows = [("the right images", reading.estimate(probe["right"]["loss"]), "", reading.estimate(probe["right"]["l1"]))]
    for place, words in (("whole", ""), ("head", ", for the head's own policy alone")):
        rows += [(f"{_IMAGES[kind]}{words}", reading.estimate(entry["loss"]), reading.estimate(entry["increase"]),
                  reading.estimate(entry["l1"])) for kind, entry in (probe[place] or {}).items()]
    return section(title, scroll_table(("shown", f"action loss ({probe['unit']})", "increase", "action error"), rows))


def _reconstruction(results: dict, gallery: dict) -> str:
    if reading.reconstructor(results) == "none":
        return ""
    if reading.reconstructor(results) == "diffusion":
        return arms.denoising(results, gallery)
    recon = results.get("reconstruction")
    body = _todo(results, "reconstruction") if recon is None else scroll_table(
        ("mean squared error on masked patches", "decoder", "mean visible patch", "interpolation"),
        [(f"{recon['frames']} held-out frames", f"{recon['loss']:.3g}", f"{recon['mean_patch']:.3g}",
          f"{recon['neighbours']:.3g}")])
    if "panels" in gallery:
        body = picture(", ".join(figures.PANELS), figures.reconstruction_panels, gallery["panels"]) + body
        if results["run"]["config"]["condition"].get("recon_target") == "normalised":
            body += ("<p class=note>The decoder predicts each patch up to brightness and contrast, which the pictures "
                     "take from the original.</p>")
    return section("Reconstruction", body)


def _training(results: dict, metrics: Sequence[dict]) -> str:
    training, action = results.get("training"), results.get("action")
    curves = picture("Losses and gradient norms over training", figures.training_curves, metrics) if metrics else ""
    if training is None:
        return section("Training", curves + _todo(results, "training"))
    sizes, final = training["parameters"], training["final"]
    parts = ", ".join(f"{name} {count:,}" for name, count in sizes.items() if name != "total" and count)
    rows = [("training", f"{training['samples']:,} samples in {training['steps']:,} steps, "
                         f"{training['seconds'] / 60:.1f} minutes"),
            ("episodes", f"{training['train_episodes']} to train on, {training['heldout_episodes']} held out"),
            ("parameters", f"{sizes['total']:,}: {parts}"),
            ("final losses", ", ".join(f"{name} {value:.3g}" for name, value in final.items() if value is not None))]
    if action:
        rows += [("held-out action error", f"{reading.estimate(action['l1'])}, mean action "
                  f"{reading.estimate(action['l1_mean_action'])}"),
                 *([("held-out cross-entropy", f"{action['cross_entropy']:.3g} nats")]
                   if action["cross_entropy"] is not None else [])]
    return section("Training", curves + scroll_table((), rows) + ("" if action else _todo(results, "action")))


def _latency(results: dict) -> str:
    latency = results.get("latency")
    if latency is None:
        return section("Latency", _todo(results, "latency"))
    rows = [("one policy step", f"{latency['p50_ms']:.1f} ms (p50), {latency['p95_ms']:.1f} ms (p95), "
                                f"{latency['n']} steps"),
            ("rate", f"{latency['replans_per_s']:.1f} replans/s, {latency['actions_per_s']:.0f} actions/s "
                     f"({latency['execute']} of {latency['chunk']} actions executed)"),
            ("on", f"{latency['device']}, {latency['dtype']}")]
    note = "No condition reconstructs anything at inference: the decoder costs training time only."
    return section("Latency", scroll_table((), rows) + f"<p class=note>{note}</p>")


def _guide(results: dict) -> str:
    caveats = "".join(f"<li>{text(sentence)}</li>" for sentence in reading.caveats(results))
    guide = "".join(f"<dt>{text(term)}</dt><dd>{text(words)}</dd>" for term, words in GUIDE)
    return (section("What these numbers cannot say", f"<ul>{caveats}</ul>")
            + section("How to read this", f"<dl class=guide>{guide}</dl>"))


def _settings(results: dict) -> str:
    config = results["run"]["config"]
    table = scroll_table((), [(name, value) for part in ("condition", "profile")
                              for name, value in config[part].items() if name != "name"])
    return f"<details><summary>All settings ({text(results['run']['fingerprint'])})</summary>{table}</details>"


def _todo(results: dict, step: str) -> str:
    return f"<p class=todo>{text(reading.missing(results, step))}</p>"
