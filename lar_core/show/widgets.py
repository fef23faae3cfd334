"""The widgets of the notebooks: the heatmap explorer, the blind rating of two heatmaps, and the rollout player.

Core ipywidgets only, in the part of its interface that versions 7 and 8 share. What is shown is computed in `measure`; this
file turns controls into a `Choice` or a vote, and a `View` or an episode into a picture. Each widget has a `still`, the same
story without a click.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from ..data.demos import Episode
from ..measure.attention import AttentionReader, Choice, View, aggregate, coverage_of, regions_of
from ..measure.film import FPS, Film
from ..measure.statistics import ALPHA, evenly, sign_test
from ..model.policy import Policy
from ..run.errors import LarError
from ..run.files import append_jsonl, read_jsonl
from ..run.folder import Run
from ..run.settings import BLANK
from ..scene.env import instruction
from ..scene.placements import BOWLS, OTHER_SENTENCE
from .figures import CHANGED, GREY, MODEL, rasterised, styled
from .pictures import enlarge, grid, heat, hidden, outlined, png, side_by_side
from .rates import ended, name_of, rate
from .report import filmed

WORDS = {"the whole instruction": None}
BY_HAND = "as chosen above"  # any named aggregation makes its own choice of words, layers and heads
METRICS = (  # (metric, name, what to compare it with)
    ("aos", "AOS", "uniform map {aos_uniform}, highest possible {aos_best}"),
    ("on_target", "saliency on the named object", "on the other bowl {on_other}"),
    ("target_minus_distractor", "named minus other bowl", "no preference 0"),
    ("auc", "AUC", "chance 0.5"),
    ("pointing", "peak on the named object", "1 = yes"),
)
TIE = "no difference"
HEIGHT = 190  # pixels of a player's traces
LEFT, RIGHT = 0.075, 0.985  # of their axes, in shares of the width
_CURSOR = np.array([214, 40, 40], np.uint8)


# The explorer: change frame, words, layers or mask, and see image, heatmap, mask and metrics change together

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
        self._react(self._new_task)

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
            control.observe(lambda _, react=react: self._react(react), "value")

    def _react(self, react: Callable[[], None]) -> None:
        """What a control's change asks for, unless it is the code that changes it; a refusal stands below the picture."""
        if self._changing:
            return
        try:
            react()
        except LarError as error:
            self.table.value = html.escape(str(error))

    def show(self) -> None:
        """Display controls and picture."""
        columns = widgets.HBox([self.words, self.layers, self.heads])
        numbers = widgets.HBox([self.aggregation, self.reduce, self.smoothing, self.ratio])
        display(widgets.VBox([widgets.HBox([self.task, self.demonstration]), self.frame,
                              self.preset, self.sentence, columns, numbers, self.picture, self.table]))

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
        if self.preset.value:
            self.sentence.value = presets(self.episode)[self.preset.value]

    def _new_sentence(self) -> None:
        attention = self.reader.read(self.episode.agentview_rgb[self.frame.value], self.sentence.value)
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
        for control in (self.words, self.layers, self.heads, self.reduce):
            control.disabled = self.aggregation.value != BY_HAND
        image, regions = self.episode.agentview_rgb[self.frame.value], regions_of(self.episode, self.frame.value)
        view = self.look(self.frame.value, self.sentence.value, self.choice)
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


# The human check of grounding: two heatmaps of the same frame, blind, side by side, in random order. Which is better? Votes
# are JSON lines in the run folder, so that one can stop and go on later.

@dataclass(frozen=True)
class Pair:
    """One frame with two maps to compare: image (H, W, 3) uint8; maps by name, two of them, (P,) each."""

    name: str  # unique among those rated, e.g. "episode 3, frame 40"
    image: np.ndarray
    instruction: str
    maps: dict[str, np.ndarray]


def pairs_of(reader: AttentionReader, episodes: Sequence[Episode], choices: dict[str, Choice],
             count: int = 12) -> list[Pair]:
    """Pairs for two choices, on `count` frames spread over the episodes, each under its own instruction."""
    places = [(i, frame) for i, episode in enumerate(episodes) for frame in range(len(episode))]
    pairs = []
    for i, frame in (places[place] for place in evenly(len(places), count)):
        image, sentence = episodes[i].agentview_rgb[frame], episodes[i].instruction
        attention = reader.read(image, sentence)
        pairs.append(Pair(f"episode {i}, frame {frame}", image, sentence,
                          {name: aggregate(attention, choice) for name, choice in choices.items()}))
    return pairs


class HeatmapRating:
    """`HeatmapRating(pairs, run.path / "ratings.jsonl").show()`; pairs that were voted on already are left out."""

    def __init__(self, pairs: Sequence[Pair], votes: Path, seed: int = 0):
        self.votes, self.names = votes, tuple(pairs[0].maps)
        seen = {row["pair"] for row in read_jsonl(votes)}
        rng = np.random.default_rng(seed)
        swapped = rng.permutation(len(pairs)) % 2 == 1  # each of the two maps is on the left equally often
        order = rng.permutation(len(pairs))
        asked = [(pairs[i], self.names[:: -1 if swapped[i] else 1]) for i in order]
        self.first, self.total = asked[0], len(pairs)
        self.todo = [(pair, sides) for pair, sides in asked if pair.name not in seen]
        self.picture, self.question, self.buttons = widgets.Image(format="png"), widgets.HTML(), []
        for label, side in (("left", 0), (TIE, None), ("right", 1)):
            button = widgets.Button(description=label)
            button.on_click(lambda _, side=side: self.vote(side))
            self.buttons.append(button)
        self._next()

    def show(self) -> None:
        """Display the question."""
        display(widgets.VBox([self.question, self.picture, widgets.HBox(self.buttons)]))

    def still(self) -> np.ndarray:
        """The first question without a click, for readers on a page that runs no code; it is not counted."""
        return self._side_by_side(*self.first)

    def vote(self, side: int | None) -> None:
        """Store a vote for the map on the left (0), on the right (1) or neither (None), and ask the next question."""
        if not self.todo:
            return
        pair, order = self.todo.pop(0)
        preferred = TIE if side is None else order[side]
        append_jsonl(self.votes, {"pair": pair.name, "left": order[0], "right": order[1], "preferred": preferred})
        self._next()

    def _next(self) -> None:
        for button in self.buttons:
            button.disabled = not self.todo
        if not self.todo:
            self.question.value = html.escape(preference(self.votes, self.names))
            return
        pair, order = self.todo[0]
        self.picture.value = png(self._side_by_side(pair, order))
        self.question.value = (f"{self.total - len(self.todo) + 1} of {self.total}. “{html.escape(pair.instruction)}”: "
                               "which map lies better on what is meant?")

    @staticmethod
    def _side_by_side(pair: Pair, order: Sequence[str]) -> np.ndarray:
        return side_by_side([heat(pair.image, pair.maps[name]) for name in order], ["left", "right"])


def preference(votes: Path, names: Sequence[str]) -> str:
    """One sentence: how often the first of two maps was preferred, with Wilson's interval and an exact sign test.

    Ties are counted, named and left out of the test.
    """
    chosen = [row["preferred"] for row in read_jsonl(votes)]
    first, second = (chosen.count(name) for name in names)
    if not first + second:
        return "There is no vote for either map yet."
    p = sign_test(first, second)
    return (f"A preference was {'detected' if p < ALPHA else 'not detected'}: {names[0]} was preferred in "
            f"{rate(first, first + second, 'votes')}, p = {p:.2g}, {chosen.count(TIE)} without preference. The votes of one "
            "person say nothing about other people's.")


# The player: an episode frame by frame, above the actions and the gripper that belong to it. Everything is drawn once when
# an episode is chosen; moving the slider only pastes a frame over the traces and draws a line.

@styled
def traces(film: Film, width: int) -> Figure:
    """Actions and the distance of the fingers over the steps of an episode; `width` pixels wide, HEIGHT high."""
    figure = Figure(figsize=(width / 100, HEIGHT / 100), dpi=100)
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.86, bottom=0.12, hspace=0.75)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    actions, steps = np.stack(film.traces["actions"]), np.arange(1, len(film) + 1)
    for column, colour in enumerate((MODEL, CHANGED, GREY)):
        above.plot(steps, actions[:, column], color=colour, linewidth=1.3, label=f"hand, {'xyz'[column]}")
    above.set_title("commanded motion of the hand (-1 to 1)", fontsize=8, pad=3)
    above.legend(frameon=False, fontsize=7, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.93), borderpad=0)
    below.plot(steps, 100 * np.array(film.traces["gripper"]), color=MODEL, linewidth=1.3)
    below.fill_between(steps, 0, 9, where=actions[:, 6] > 0, color=CHANGED, alpha=0.25, linewidth=0, step="mid")
    below.set_title("distance of the fingers (cm); shaded: told to close", fontsize=8, pad=3)
    for axis, low, high in ((above, -1.1, 1.1), (below, 0, 9)):
        axis.set(xlim=(1, max(2, len(film))), ylim=(low, high))
        axis.tick_params(labelsize=7, length=2)
    return figure


def picture_of(film: Film, ground: np.ndarray, frame: int) -> np.ndarray:
    """Frame `frame` above the traces `ground` (HEIGHT, w, 3), a line at its step."""
    place = LEFT + (RIGHT - LEFT) * frame / max(1, len(film) - 1)
    traced, column = ground.copy(), round(place * ground.shape[1])
    traced[12:-20, column - 1 : column + 1] = _CURSOR
    return np.concatenate([film.frames[frame], traced])


class RolloutPlayer:
    """`RolloutPlayer(run).show()`. Raises LarError when the run has no filmed episode."""

    def __init__(self, run: Run):
        self.rows = [row for row in filmed(run) if row["film"]]
        if not self.rows:
            raise LarError(f"{run.path} has no filmed rollout: run `lar rollout --run-dir {run.path}` first.")
        self._films: dict[Path, tuple[Film, np.ndarray]] = {}
        options = [(name_of(row), i) for i, row in enumerate(self.rows)]
        self.episode = widgets.Dropdown(options=options, description="episode", layout={"width": "98%"})
        self.frame = widgets.IntSlider(max=1, description="frame", layout={"width": "60%"})
        self.play = widgets.Play(max=1, interval=1000 // FPS * 2)  # half speed, so that one can follow
        self.picture, self.said = widgets.Image(format="png"), widgets.HTML()
        widgets.jslink((self.play, "value"), (self.frame, "value"))
        self.episode.observe(lambda _: self._new_episode(), "value")
        self.frame.observe(lambda _: self.draw(), "value")
        self._new_episode()

    def show(self) -> None:
        """Display controls and picture."""
        display(widgets.VBox([self.episode, widgets.HBox([self.play, self.frame]), self.picture, self.said]))

    def draw(self) -> None:
        """Show the chosen frame."""
        film, ground = self._loaded()
        self.picture.value = png(picture_of(film, ground, min(self.frame.value, len(film) - 1)))

    def still(self, moments: Sequence[float] = (0.1, 0.5, 0.9)) -> np.ndarray:
        """The chosen episode without a click: some moments (shares of its length) above its traces."""
        film, ground = self._loaded()
        frames = [film.frames[round(share * (len(film) - 1))] for share in moments]
        return np.concatenate([*frames, ground])

    def _new_episode(self) -> None:
        row, (film, _) = self.rows[self.episode.value], self._loaded()
        self.frame.max = self.play.max = len(film) - 1
        self.said.value = f"Told: “{row['sentence']}”. {ended(row).capitalize()}."
        self.frame.value = self.play.value = 0
        self.draw()

    def _loaded(self) -> tuple[Film, np.ndarray]:
        """The chosen episode, and its traces (HEIGHT, w, 3) to be pasted over."""
        path = self.rows[self.episode.value]["film"]
        if path not in self._films:
            film = Film.load(path)
            width = film.frames[0].shape[1]
            self._films[path] = film, rasterised(traces(film, width), width)
        return self._films[path]
