"""Pictures of a run: what the policy looks at, what it reconstructs, how it learned, how often it succeeds.

Every figure function returns a matplotlib Figure (pyplot is never touched, so any thread or notebook may call them) in
dark ink on a transparent ground. Saliency is always drawn on one scale, so that pictures can be compared: no colour = what
a uniform map would give a patch, full colour = four times as much or more.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from ..measure.film import FULL_COLOUR, HEAT, overlay
from ..measure.statistics import evenly
from ..measure.study import NOT_DETECTED
from ..run.folder import Run
from ..run.registry import METRICS, REGULARISERS

# Okabe & Ito's palette: told apart with every kind of colour vision.
MODEL, CHANGED, CONTROL, GREY = "#0a84c6", "#e69f00", "#9aa1a9", "#737b84"
TARGET, OTHER = "#00e0ff", "#ffffff"  # outlines: the named object (solid), the other bowl (dashed)

SERIES = {"model": "this policy", "uniform": "uniform map", "centre": "image centre",
          "mean_map": "where it was in training"}
LOOKERS = {"text": "words", "bos": "BOS", "action": "action queries"}  # whose attention, by `saliency_rows`
PANELS = ("original", "masked", "reconstructed", "pasted")

INK, LINE = "#1c2127", "#c9ced4"
styled = matplotlib.rc_context({  # decorates what draws; matplotlib's global settings stay as they are
    "font.size": 9, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.edgecolor": LINE, "grid.color": LINE, "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9,
    "axes.titlelocation": "left", "grid.linewidth": 0.6})


def encoded(picture: Figure | Image.Image, **options: object) -> bytes:
    """A picture as the content of a file; options: of `savefig` or `save`."""
    buffer = io.BytesIO()
    (picture.savefig if isinstance(picture, Figure) else picture.save)(buffer, **options)
    return buffer.getvalue()


def rasterised(figure: Figure, width: int) -> np.ndarray:
    """A figure's pixels on white (the ink is dark), (H, width, 3) uint8."""
    content = encoded(figure, format="png", dpi=width / figure.get_figwidth(), facecolor="white")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def covered(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The pixels (H, W, 1) of image (H, W, 3) that the patches of mask (P,) bool cover, P a square number."""
    grid = round(mask.size**0.5)
    cover = Image.fromarray(mask.reshape(grid, grid)).resize(image.shape[1::-1], Image.Resampling.NEAREST)
    return np.asarray(cover)[..., None]


# What scoring and training leave in a run folder

def gallery(run: Run) -> dict[str, np.ndarray]:
    """The arrays of gallery.npz (docs/results.md); none where nothing was scored yet."""
    path = run.path / "gallery.npz"
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def saliency_of(arrays: dict[str, np.ndarray], limit: int = 8) -> Figure:
    """The `saliency_gallery` of what `gallery` gives."""
    return saliency_gallery(*(arrays.get(f"saliency_{name}") for name in
                              ("images", "maps", "regions", "instructions", "masks")), limit)


@styled
def saliency_gallery(images: np.ndarray, maps: np.ndarray, regions: np.ndarray | None, instructions: Sequence[str],
                     masks: np.ndarray, limit: int = 8) -> Figure:
    """Image | saliency with outlines | its top 25 % of patches, two samples a row.

    images (N, H, W, 3) uint8; maps (N, P) summing to 1; regions (N, 2, H, W) uint8: named object, other bowl, or None
    without segmentation; masks (N, P) bool, True = top. At most `limit` samples, taken at equal distances.
    """
    chosen = evenly(len(images), limit)
    rows = -(-len(chosen) // 2)
    height = 1.84 * rows + 0.5  # inches: a row of pictures with two lines of text above, the key below
    figure = Figure(figsize=(9, height), dpi=150)
    axes = figure.subplots(rows, 7, squeeze=False, width_ratios=(1, 1, 1, 0.12, 1, 1, 1))
    figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.36 / height, bottom=0.5 / height, wspace=0.04,
                           hspace=0.29)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, i in enumerate(chosen):
        row, first = place // 2, 4 * (place % 2)
        _gallery_sample(axes[row, first:first + 3], images[i], maps[i], () if regions is None else regions[i],
                        str(instructions[i]), masks[i])
    _gallery_key(figure)
    return figure


def _gallery_sample(axes: Sequence[Axes], image: np.ndarray, saliency: np.ndarray, regions: Sequence[np.ndarray],
                    instruction: str, mask: np.ndarray) -> None:
    top = np.where(covered(mask, image), image, image // 5)  # all other patches dimmed
    for axis, picture in zip(axes, (image, overlay(image, saliency), top)):
        axis.imshow(picture, interpolation="nearest")
    for axis in axes[:2]:
        for region, colour, style in zip(regions, (TARGET, OTHER), ("solid", "dashed")):
            outline(axis, region, colour, style)
    axes[0].set_title(textwrap.fill(textwrap.shorten(instruction, 120), 62), fontsize=8, pad=4)
    axes[2].text(0.97, 0.04, f"peak {saliency.max() * saliency.size:.1f}× uniform", transform=axes[2].transAxes,
                 ha="right", fontsize=7, color="white", bbox={"facecolor": "#14171b", "lw": 0, "alpha": 0.75, "pad": 2})


def outline(axis: Axes, region: np.ndarray, colour: str, style: str) -> None:
    """Draw round a region (H, W) of a picture."""
    if region.any() and not region.all():
        axis.contour(region, levels=[0.5], colors="black", linewidths=2.6, linestyles="solid", alpha=0.6)
        axis.contour(region, levels=[0.5], colors=colour, linewidths=1.5, linestyles=style)


def _gallery_key(figure: Figure) -> None:
    """Name the outlines and the colour scale below the gallery."""
    height = figure.get_figheight()
    bar = figure.add_axes((0.68, 0.28 / height, 0.3, 0.10 / height))
    scale = ScalarMappable(Normalize(1, FULL_COLOUR), matplotlib.colors.ListedColormap(HEAT / 255))
    figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=[1, 2, 3, 4])
    bar.set_xticklabels(["≤ 1×", "2×", "3×", "≥ 4×"], fontsize=8)
    bar.tick_params(length=0, pad=2)
    figure.text(0.67, 0.32 / height, "saliency against a uniform map", fontsize=8, ha="right", va="center")
    for x, colour, style, name in ((0.01, TARGET, "-", "the named object"), (0.20, OTHER, "--", "the other bowl")):
        line = figure.add_axes((x, 0.20 / height, 0.045, 0.24 / height), facecolor="#14171b", xticks=[], yticks=[])
        line.plot([0.15, 0.85], [0.5, 0.5], color=colour, linestyle=style, linewidth=1.8)
        line.set(xlim=(0, 1), ylim=(0, 1))
        figure.text(x + 0.053, 0.32 / height, name, fontsize=8, va="center")


@styled
def reconstruction_panels(panels: np.ndarray, limit: int = 4) -> Figure:
    """panels (M, 4, H, W, 3) uint8 in the order of PANELS; at most `limit` rows."""
    panels = panels[:limit]
    figure = Figure(figsize=(7.2, 1.8 * len(panels) + 0.25), dpi=150)
    axes = figure.subplots(len(panels), 4, squeeze=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.25 / figure.get_figheight(), wspace=0.03, hspace=0.03)
    for axis, picture in zip(axes.flat, panels.reshape(-1, *panels.shape[2:])):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
    for axis, title in zip(axes[0], PANELS):
        axis.set_title(title)
    return figure


@styled
def training_curves(rows: Sequence[dict]) -> Figure:
    """Losses and the gradient norms they send into the backbone, from rows of metrics.jsonl; log scales."""
    regularisers = [(name, REGULARISERS.about(name).colour, name) for name in REGULARISERS]
    plots = [("Action loss", [("action", MODEL, "")]),
             ("Reconstruction loss", [("recon", CHANGED, "")]),
             ("Regularisers", regularisers),
             ("Gradient norm in the backbone", [("grad_action", MODEL, "action"),
                                                ("grad_recon", CHANGED, "reconstruction"),
                                                *((f"grad_{name}", colour, name) for name, colour, _ in regularisers)])]
    plots = [plot for plot in plots if any(row.get(name, 0) > 0 for row in rows for name, _, _ in plot[1])] or plots[:1]
    figure = Figure(figsize=(9, 2.7), dpi=180, layout="constrained")
    for axis, (title, lines) in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots):
        axis.set(title=title, xlabel="step", yscale="log")
        for name, colour, label in lines:
            _curve(axis, rows, name, colour, label)
        axis.grid(axis="y", which="both", alpha=0.6)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(_sparse_log_ticks(axis))
        if any(label for *_, label in lines):
            axis.legend(frameon=False, fontsize=8)
    return figure


def _curve(axis: Axes, rows: Sequence[dict], name: str, colour: str, label: str) -> None:
    """Logged values in pale, their running mean (over a twentieth of the run) in full colour."""
    points = np.array([(row["step"], row[name]) for row in rows if row.get(name, 0) > 0]).reshape(-1, 2)
    if not len(points):
        return
    step, value = points.T
    width = max(1, len(points) // 20)
    weights = np.convolve(np.ones(len(value)), np.ones(width), "same")
    mean = np.convolve(value, np.ones(width), "same") / weights
    axis.plot(step, value, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(step, mean, color=colour, linewidth=1.8, label=label or None)


def _sparse_log_ticks(axis: Axes) -> Callable[[float, int], str]:
    """Label 2 and 5 between the decades too, where the axis spans less than two of them; on an axis that may hold
    neither, every tick."""
    def text(value: float, _: int) -> str:
        low, high = axis.get_ylim()
        leading = round(value / 10 ** np.floor(np.log10(value)), 6)
        return f"{value:g}" if high / low < 2.5 or (high / low < 100 and leading in (2, 5)) else ""
    return text


# Bars

@styled
def success_bars(bars: Sequence[tuple[str, str, str, int, int, float, float]],
                 dots: Sequence[Sequence[float]] = ()) -> Figure:
    """Success rates with Wilson intervals.

    bars: (group, label, kind, successes, episodes, low, high), kind one of "model", "changed", "ignored", "control"; a
    group is one placement, named once above its bars. dots: for each bar, the rates of the runs that it pools.
    """
    colours = {"model": MODEL, "changed": CHANGED, "ignored": GREY, "control": CONTROL}
    groups = list(dict.fromkeys(bar[0] for bar in bars))
    places = [i + 1.1 * groups.index(bar[0]) for i, bar in enumerate(bars)]
    figure = Figure(figsize=(9, 0.34 * (len(bars) + 1.1 * len(groups)) + 0.5), dpi=180, layout="constrained")
    axis = figure.subplots()
    for place, (group, label, kind, successes, n, low, high) in zip(places, bars):
        _bar(axis, place, successes / n, low, high, colours[kind])
        axis.text(1.02, place, f"{successes}/{n}", va="center", transform=axis.get_yaxis_transform())
    for place, rates in zip(places, dots):
        axis.plot(rates, [place + 0.12 * (i - (len(rates) - 1) / 2) for i in range(len(rates))], "o", markersize=4,
                  color="white", markeredgecolor=INK, markeredgewidth=0.9, zorder=3)
    for group in groups:
        first = min(place for place, bar in zip(places, bars) if bar[0] == group)
        axis.text(0, first - 0.85, group, va="center", weight="bold")
    axis.set(yticks=places, yticklabels=[bar[1] for bar in bars], xlim=(0, 1), ylim=(max(places) + 0.6, -1.3))
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axis.set_xlabel("success rate; line: 95 % Wilson interval")
    return _finish_bars(axis, figure)


@styled
def progress_bars(rows: Sequence[tuple[str, dict[str, int]]]) -> Figure:
    """How far episodes came: for each (label, how many came how far, nearest first) one bar of its shares."""
    figure, axis = lines([label for label, _ in rows], 0.9, "share of episodes, by the furthest with the named bowl")
    stages = list(rows[0][1])
    shades = [GREY, *matplotlib.colormaps["Blues"](np.linspace(0.25, 0.85, len(stages) - 1))]
    for place, (_, counts) in enumerate(rows):
        ends = np.cumsum([0, *counts.values()]) / sum(counts.values())
        for stage, left, right, colour in zip(stages, ends, ends[1:], shades):
            axis.barh(place, right - left, left=left, height=0.62, color=colour, label=stage if place == 0 else None)
            if counts[stage]:
                axis.text((left + right) / 2, place, str(counts[stage]), ha="center", va="center", fontsize=8,
                          color="white" if stage in (stages[0], *stages[-2:]) else INK)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside upper left", ncols=len(stages), frameon=False, fontsize=8)
    return _finish_bars(axis, figure)


def plotted(grounding: dict) -> list[str]:
    """The metrics that `grounding_bars` can show: none, where no held-out frame shows what they need."""
    return [name for name in METRICS if METRICS.about(name).plot and grounding.get(name) and grounding[name]["model"]]


@styled
def grounding_bars(grounding: dict) -> Figure:
    """One small plot a metric: this policy against maps that have not looked, with 95 % intervals over episodes.

    grounding: the section of results.json; what is null is left out.
    """
    metrics = plotted(grounding)
    columns = 2 if len(metrics) > 1 else 1
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(9, 1.95 * rows), dpi=180, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, metric in zip(axes, metrics):
        series = {name: grounding[metric][name] for name in SERIES if grounding[metric][name]}
        for place, (name, entry) in enumerate(series.items()):
            _bar(axis, place, entry["mean"], entry["low"], entry["high"], MODEL if name == "model" else CONTROL)
        about = METRICS.about(metric)
        axis.set(title=about.title, yticks=range(len(series)), yticklabels=[SERIES[name] for name in series],
                 ylim=(len(series) - 0.4, -0.6))
        axis.axvline(about.chance or 0, color=GREY, linewidth=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        if about.chance == 0.5:
            axis.set_xlim(0, 1)
        _finish_bars(axis, figure)
    for axis in list(figure.axes)[len(metrics):]:
        axis.set_axis_off()
    return figure


@styled
def layer_lines(rows: Sequence[dict]) -> Figure:
    """What whose attention knows, layer by layer: AUC and named minus other bowl, and agreement with what the action
    depends on; pale: intervals.

    rows: the section `layers` of results.json.
    """
    figure = Figure(figsize=(9, 2.7), dpi=180, layout="constrained")
    titles = {name: METRICS.about(name).title for name in ("auc", "target_minus_distractor")} | {
        "agreement": "Agreement with what mattered\n(rank correlation)"}
    known = [name for name in titles if any(name in row["metrics"] for row in rows)]
    for axis, metric in zip(figure.subplots(1, len(known), squeeze=False)[0], known):
        axis.set(title=titles[metric], xlabel="layer of the language model")
        axis.axhline(METRICS.about(metric).chance or 0 if metric in METRICS else 0, color=GREY, linewidth=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for kind, colour in zip(LOOKERS, (MODEL, GREY, CHANGED)):
            if points := {row["layer"]: row["metrics"][metric] for row in rows
                          if row["rows"] == kind and row["metrics"].get(metric)}:
                _layer_line(axis, points, colour, LOOKERS[kind])
        axis.grid(axis="y", alpha=0.6)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize=8)
    return figure


def _layer_line(axis: Axes, points: dict[int, dict], colour: str, label: str) -> None:
    """points: intervals by layer; those of a single episode have no ends."""
    axis.plot(points.keys(), [entry["mean"] for entry in points.values()], color=colour, marker="o", markersize=3,
              label=label)
    if ends := [(layer, entry["low"], entry["high"]) for layer, entry in points.items() if entry["low"] is not None]:
        axis.fill_between(*zip(*ends), color=colour, alpha=0.15, linewidth=0)


@styled
def cost_bars(rows: Sequence[tuple[str, float]], label: str) -> Figure:
    """One bar a (name, value), the value written at its end."""
    figure, axis = lines([name for name, _ in rows], 0.7, label)
    for place, (_, value) in enumerate(rows):
        _bar(axis, place, value, None, None, MODEL)
        axis.text(value, place, f" {value:.3g}", va="center")
    axis.margins(x=0.12)
    return _finish_bars(axis, figure)


@styled
def differences(rows: Sequence[dict], reference: str, interval: str = "95 % interval") -> Figure:
    """Difference from the reference with its interval, one line a comparison; full colour where it was detected.

    A row may have `per_seed`, the difference of each: small rings.
    """
    figure, axis = lines([f"{row['condition']}, {row['placement']}" for row in rows], 0.8,
                                 f"success minus that of {reference}, points; line: {interval}")
    for place, row in enumerate(rows):
        difference = row["difference"]
        colour = GREY if row["verdict"] == NOT_DETECTED else MODEL
        if difference["low"] is not None:
            axis.plot([100 * difference["low"], 100 * difference["high"]], [place, place], color=colour, linewidth=1.8)
        axis.plot(100 * difference["mean"], place, marker="o", color=colour)
        each = [100 * seed for seed in row.get("per_seed", ())]
        axis.plot(each, [place] * len(each), linestyle="", marker="o", markersize=9, fillstyle="none", color=colour,
                  alpha=0.7)
    axis.axvline(0, color=GREY, linewidth=0.8)
    low, high = axis.get_xlim()
    # Where nothing differs, that should not look large; and no two rates are further apart than 100 points.
    axis.set_xlim(max(min(low, -10), -105), min(max(high, 10), 105))
    axis.grid(axis="x", alpha=0.6)
    return figure


def lines(names: Sequence[str], more: float, label: str) -> tuple[Figure, Axes]:
    """An axis with a named line for each bar to come, from above; more: inches of height beside the lines."""
    figure = Figure(figsize=(9, 0.34 * len(names) + more), dpi=180, layout="constrained")
    axis = figure.subplots()
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6), xlabel=label)
    return figure, axis


def _bar(axis: Axes, place: float, value: float, low: float | None, high: float | None, colour: str) -> None:
    axis.barh(place, value, height=0.62, color=colour)
    if low is not None and high is not None:
        axis.plot([low, high], [place, place], color=matplotlib.rcParams["text.color"], linewidth=1.6,
                  marker="|", markersize=7)


def _finish_bars(axis: Axes, figure: Figure) -> Figure:
    axis.spines["left"].set_visible(False)
    axis.tick_params(length=0)
    axis.grid(axis="x", alpha=0.6)
    axis.set_axisbelow(True)
    return figure
