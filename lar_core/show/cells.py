"""Putting pictures, tables and clips into a notebook, small enough to be committed with it."""

from __future__ import annotations

import html
import textwrap
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from IPython.display import HTML, DisplayHandle, Video, display
from IPython.display import Image as Shown
from matplotlib.figure import Figure
from PIL import Image

from ..measure.film import FPS
from ..run.errors import LarError
from ..run.files import atomic_path, read_jsonl
from ..run.folder import Run
from .figures import encoded, rasterised, training_curves
from .findings import Finding

LIMIT = 190_000  # bytes of a picture
CLIP_LIMIT = 700_000  # bytes of a video, which base64 makes a third longer
WIDTH = 950  # pixels: what a notebook's column shows


def show(picture: Figure | np.ndarray, words: str = "") -> None:
    """Display a figure, or pixels (H, W, 3) uint8, with a caption below."""
    _display(shown(picture), words)


def shown(picture: Figure | np.ndarray) -> Shown:
    """As PNG where that stays below LIMIT, else as JPEG, of the highest quality that does."""
    pixels = rasterised(picture, WIDTH) if isinstance(picture, Figure) else picture
    image = Image.fromarray(pixels)
    data = encoded(image, format="png", optimize=True)
    qualities = iter((92, 85, 75, 60, 45, 30))
    while len(data) > LIMIT and (quality := next(qualities, None)):
        data = encoded(image, format="jpeg", quality=quality, subsampling=0 if quality > 80 else 2)
    return Shown(data, width=min(image.width, WIDTH), format="png" if data[1:4] == b"PNG" else "jpeg")


def table(head: Sequence[str], rows: Sequence[Sequence[object]], words: str = "") -> None:
    """Display a table; numbers are shortened to three digits."""
    def line(cells: Sequence[object], tag: str) -> str:
        shown = (html.escape(f"{cell:.3g}" if isinstance(cell, float) else str(cell)) for cell in cells)
        return f"<tr>{''.join(f'<{tag} style=text-align:left>{cell}</{tag}>' for cell in shown)}</tr>"
    _display(HTML(f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"), words)


def say(found: Iterable[Finding]) -> None:
    """Print findings, each with its verdict, in lines that a notebook does not break."""
    for finding in found:
        print(f"[{finding.verdict}] {finding.topic}")
        tell([finding.sentence], indent="    ")


def tell(sentences: Iterable[str], indent: str = "") -> None:
    """Print sentences, each a paragraph of lines that a notebook does not break."""
    for sentence in sentences:
        print(textwrap.fill(sentence, 100, initial_indent=indent, subsequent_indent=indent), end="\n\n")


def film(frames: np.ndarray, path: Path, words: str = "") -> None:
    """Save frames (T, H, W, 3) uint8 as a video of 20 frames a second, and display it."""
    with atomic_path(path) as temporary:
        imageio.mimsave(temporary, list(frames), fps=FPS, macro_block_size=2)
    clip(path, words)


def clip(path: Path, words: str = "") -> None:
    """Display a video, playing in a loop. Raises LarError when it is too long to be kept in a notebook."""
    if path.stat().st_size > CLIP_LIMIT:
        raise LarError(f"{path} has {path.stat().st_size / 1e6:.1f} MB, too many for a notebook: open the file itself.")
    _display(Video(str(path), embed=True, html_attributes="controls loop muted autoplay"), words)


def _display(thing: object, words: str) -> None:
    display(thing)
    if words:
        print(words)


@contextmanager
def live_curves(run: Run, every: float = 3.0) -> Iterator[None]:
    """While the block inside trains `run`, show its curves and redraw them every few seconds."""
    handle, done = DisplayHandle(), threading.Event()
    handle.display(HTML("<i>The curves appear with the first logged step.</i>"))

    def redraw() -> None:
        drawn = 0
        while not done.wait(every):
            rows = read_jsonl(run.metrics)
            if len(rows) > max(1, drawn):
                handle.update(shown(training_curves(rows)))
                drawn = len(rows)

    thread = threading.Thread(target=redraw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if rows := read_jsonl(run.metrics):
            handle.update(shown(training_curves(rows)))
