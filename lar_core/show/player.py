"""The rollout player: an episode frame by frame, above the actions and the gripper that belong to it.

Core ipywidgets only, as in `explorer`. Everything is drawn once when an episode is chosen; moving the slider only
pastes a frame over the traces and draws a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from ..measure.film import FPS, Film
from ..run.errors import LarError
from ..run.folder import Run
from .figures import CHANGED, GREY, MODEL, rasterised, styled
from .pictures import png
from .rates import ended, name_of
from .report import filmed

HEIGHT = 190  # pixels of the traces
LEFT, RIGHT = 0.075, 0.985  # of their axes, in shares of the width
_CURSOR = np.array([214, 40, 40], np.uint8)


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
