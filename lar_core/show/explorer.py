"""The heatmap explorer: change frame, words, layers or mask, and see image, heatmap, mask and metrics change together.

Core ipywidgets only, in the part of its interface that versions 7 and 8 share. What is shown is computed by
`measure.attention`; this file only turns controls into a `Choice` and a `View` into a picture.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ipywidgets as widgets
import numpy as np
from IPython.display import display

from ..data.demos import Episode
from ..measure.attention import AttentionReader, Choice, View, coverage_of, regions_of
from ..model.policy import Policy
from ..run.errors import LarError
from ..scene.env import instruction
from ..scene.episode import BLANK
from ..scene.placements import BOWLS, OTHER_SENTENCE
from .figures import evenly
from .pictures import enlarge, grid, heat, hidden, outlined, png, side_by_side

WORDS = {"the whole instruction": None}
BY_HAND = "as chosen above"  # any named aggregation makes its own choice of words, layers and heads
METRICS = (  # (metric, name, what to compare it with)
    ("aos", "AOS", "uniform map {aos_uniform}, highest possible {aos_best}"),
    ("on_target", "saliency on the named object", "on the other bowl {on_other}"),
    ("target_minus_distractor", "named minus other bowl", "no preference 0"),
    ("auc", "AUC", "chance 0.5"),
    ("pointing", "peak on the named object", "1 = yes"),
)


def presets(episode: Episode) -> dict[str, str]:
    """Sentences to try on an episode: the right one, a blank one, and (where the scene has one) the other bowl's."""
    task = episode.provenance.get("task")
    sentences = {"right": episode.instruction, "blank": BLANK}
    if task in OTHER_SENTENCE:
        swapped = OTHER_SENTENCE[task] if episode.target == BOWLS[0] else task
        sentences["the other bowl"] = instruction(swapped)
    return sentences


def compose(image: np.ndarray, view: View, regions: np.ndarray | None) -> np.ndarray:
    """Image, heatmap and mask in a row."""
    picture, peak = enlarge(image), view.saliency.max() * view.saliency.size
    panels = [outlined(picture, regions), heat(image, view.saliency, regions),
              outlined(hidden(picture, view.mask), regions)]
    return side_by_side(panels, ["what the camera sees", f"saliency, peak {peak:.1f} times uniform",
                                 f"masked: {view.mask.sum()} of {view.mask.size} patches"])


class HeatmapExplorer:
    """`HeatmapExplorer(policy, episodes).show()`; every control is an attribute, so that code can move it too.

    localisation: the chosen heads, (layer, head), to offer that aggregation too (`AttentionReader`).
    """

    def __init__(self, policy: Policy, episodes: Sequence[Episode], localisation: list[tuple[int, int]] | None = None):
        self.reader = AttentionReader(policy, localisation=localisation)
        self.tasks: dict[str, list[Episode]] = {}
        for episode in episodes:
            self.tasks.setdefault(episode.instruction, []).append(episode)
        self._make_controls()
        self._changing = False
        self._new_task()

    # --- what is chosen ----------------------------------------------------------------------------------------------

    @property
    def episode(self) -> Episode:
        """The present one."""
        return self.tasks[self.task.value][self.demonstration.value]

    @property
    def choice(self) -> Choice:
        """The controls' values; "the whole instruction", or no selection at all, stands for the policy's own choice."""
        chosen = [value for value in self.words.value if value is not None]
        return Choice(layers=self.layers.value or None, heads=self.heads.value or None, words=tuple(chosen) or None,
                      reduce=self.reduce.value, smoothing=self.smoothing.value, mask_ratio=self.ratio.value,
                      aggregation=None if self.aggregation.value == BY_HAND else self.aggregation.value)

    # --- controls ----------------------------------------------------------------------------------------------------

    def _make_controls(self) -> None:
        wide, policy = {"width": "98%"}, self.reader.policy
        layers, heads = range(self.reader.layers), range(self.reader.heads)
        self.task = widgets.Dropdown(options=list(self.tasks), description="task", layout=wide)
        self.demonstration = widgets.Dropdown(options=[0], description="episode")
        self.frame = widgets.IntSlider(max=1, description="frame", layout=wide, continuous_update=True)
        self.preset = widgets.ToggleButtons(options=["right"], description="instruction")
        self.sentence = widgets.Text(description="or your own", layout=wide, continuous_update=False)
        self.words, self.layers, self.heads = (
            widgets.SelectMultiple(options=options, value=chosen, description=name, rows=6, layout={"width": "32%"})
            for name, options, chosen in (("words", list(WORDS.items()), (None,)),
                                          ("layers", [(str(i), i) for i in layers], tuple(policy.backbone.tapped)),
                                          ("heads", [(str(i), i) for i in heads], tuple(heads))))
        own = policy.condition.aggregation
        self.aggregation = widgets.Dropdown(options=[BY_HAND, *self.reader.aggregations], description="aggregation",
                                            value=BY_HAND if own == "mean" else own)
        self.reduce = widgets.Dropdown(options=["mean", "max"], description="take their")
        self.smoothing = widgets.FloatSlider(max=2.0, step=0.25, description="smoothing")
        self.ratio = widgets.FloatSlider(value=policy.condition.mask_ratio, min=0.05, max=0.75, step=0.05,
                                         description="mask ratio")
        self.picture, self.table = widgets.Image(format="png"), widgets.HTML()
        reactions = {self.task: self._new_task, self.demonstration: self._new_episode, self.preset: self._preset_chosen,
                     self.sentence: self._new_sentence} | dict.fromkeys((
                         self.frame, self.words, self.layers, self.heads, self.aggregation, self.reduce, self.smoothing,
                         self.ratio), self.draw)
        for control, react in reactions.items():
            control.observe(lambda _, react=react: react(), "value")

    def show(self) -> None:
        """Display controls and picture."""
        columns = widgets.HBox([self.words, self.layers, self.heads])
        numbers = widgets.HBox([self.aggregation, self.reduce, self.smoothing, self.ratio])
        display(widgets.VBox([widgets.HBox([self.task, self.demonstration]), self.frame,
                              self.preset, self.sentence, columns, numbers, self.picture, self.table]))

    # --- reactions ---------------------------------------------------------------------------------------------------

    def _new_task(self) -> None:
        with self._quietly():
            self.demonstration.options = list(range(len(self.tasks[self.task.value])))
        self._new_episode()

    def _new_episode(self) -> None:
        with self._quietly():
            self.frame.max = len(self.episode) - 1
            self.frame.value = 0
            self.preset.options = list(presets(self.episode))
            self.preset.value = "right"
            self.sentence.value = self.episode.instruction
        self._new_sentence()

    def _preset_chosen(self) -> None:
        if not self._changing and self.preset.value:
            self.sentence.value = presets(self.episode)[self.preset.value]

    def _new_sentence(self) -> None:
        if self._changing:
            return
        try:
            attention = self.reader.read(self.episode.agentview_rgb[self.frame.value], self.sentence.value)
        except LarError as error:
            self.table.value = html.escape(str(error))
            return
        with self._quietly():
            numbered = {f"{attention.words[i]} ({i})": i for i in attention.own_words}
            self.words.options = list((WORDS | numbered).items())
            self.words.value = (None,)
            named = {sentence: kind for kind, sentence in presets(self.episode).items()}
            self.preset.value = named.get(self.sentence.value)
        self.draw()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Inside, controls are changed without drawing after each of them."""
        self._changing = True
        try:
            yield
        finally:
            self._changing = False

    def draw(self) -> None:
        """Show what is chosen; what a named aggregation chooses by itself cannot be moved meanwhile."""
        if self._changing:
            return
        for control in (self.words, self.layers, self.heads, self.reduce):
            control.disabled = self.aggregation.value != BY_HAND
        image, regions = self.episode.agentview_rgb[self.frame.value], regions_of(self.episode, self.frame.value)
        try:
            view = self.look(self.frame.value, self.sentence.value, self.choice)
        except LarError as error:
            self.table.value = html.escape(str(error))
            return
        self.picture.value = png(compose(image, view, regions))
        self.table.value = metrics_table(view.metrics)

    def still(self, moments: int = 3) -> np.ndarray:
        """The same story without a click: some moments of the present episode under each preset sentence."""
        panels, titles = [], []
        for frame in evenly(len(self.episode), moments + 2)[1:-1]:
            for kind, sentence in presets(self.episode).items():
                view = self.look(frame, sentence, self.choice)
                panels.append(heat(self.episode.agentview_rgb[frame], view.saliency, regions_of(self.episode, frame)))
                titles.append(f"frame {frame}, {kind}")
        return grid(panels, titles, columns=len(panels) // moments)

    def look(self, frame: int, sentence: str, choice: Choice) -> View:
        """What a choice makes of one frame of the present episode."""
        coverage = coverage_of(self.episode, frame, self.reader.policy.backbone.patches)
        return self.reader.look(self.episode.agentview_rgb[frame], sentence, choice, coverage)


def metrics_table(metrics: dict[str, float]) -> str:
    """HTML: each metric beside what it must be compared with; "not seen" where an object is out of view."""
    if not metrics:
        return "These demonstrations have no segmentation, so nothing can be scored."
    shown = {name: "not seen" if np.isnan(value) else f"{value:.3f}" for name, value in metrics.items()}
    rows = "".join(f"<tr><td style='padding-right:1.5em'>{name}</td><td style='padding-right:1.5em'><b>"
                   f"{shown[key]}</b></td><td>{against.format(**shown)}</td></tr>" for key, name, against in METRICS)
    return f"<table style='line-height:1.5'>{rows}</table>"
