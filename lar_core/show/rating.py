"""The human check of grounding: two heatmaps of the same frame, blind, side by side, in random order. Which is better?

Votes are JSON lines in the run folder, so that one can stop and go on later; the answer is a preference
with its interval, "detected" or "not detected" like every other one here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from IPython.display import display

from ..data.demos import Episode
from ..measure.attention import AttentionReader, Choice, aggregate
from ..measure.statistics import sign_test
from ..run.files import append_jsonl, read_jsonl
from .figures import evenly
from .pictures import heat, png, side_by_side
from .rates import rate

TIE = "no difference"


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
    return (f"A preference was {'detected' if p < 0.05 else 'not detected'}: {names[0]} was preferred in "
            f"{rate(first, first + second, 'votes')}, p = {p:.2g}, {chosen.count(TIE)} without preference. The votes of one "
            "person say nothing about other people's.")
