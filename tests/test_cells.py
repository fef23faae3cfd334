"""What a notebook shows: pictures and clips small enough to be committed, tables that escape, curves that live."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import wait_until
from PIL import Image

from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl, read_jsonl
from lar_core.run.folder import Run
from lar_core.show import cells, figures
from lar_core.show.findings import Finding

rng = np.random.default_rng(0)


def test_a_plain_picture_is_png_and_a_rich_one_a_jpeg_below_the_limit():
    plain = cells.shown(np.full((300, 900, 3), 255, np.uint8))
    rich = cells.shown(rng.integers(0, 255, (600, 600, 3), dtype=np.uint8))
    assert plain.data[1:4] == b"PNG" and plain.format == "png"
    assert rich.data[:2] == b"\xff\xd8" and rich.format == "jpeg" and len(rich.data) <= cells.LIMIT


def test_a_figure_is_drawn_on_white_in_the_width_of_a_notebook():
    figure = figures.reconstruction_panels(rng.integers(0, 255, (1, 4, 16, 16, 3), dtype=np.uint8))
    pixels = np.asarray(Image.open(io.BytesIO(cells.shown(figure).data)).convert("RGB"))
    assert abs(pixels.shape[1] - cells.WIDTH) <= 1 and (pixels[0, -1] == 255).all()


def test_tables_escape_and_shorten(capsys, monkeypatch):
    said = []
    monkeypatch.setattr(cells, "display", said.append)
    cells.table(["a"], [[1 / 3], ["<b>"]])
    assert ">0.333<" in said[0].data and "&lt;b&gt;" in said[0].data


def test_findings_are_said_in_short_lines(capsys):
    cells.say([Finding("it looks", "not detected", "word " * 60)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "[not detected] it looks" and max(map(len, said)) <= 100 and said[1].startswith("    word")


def test_a_clip_that_is_too_long_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(cells.CLIP_LIMIT + 1))
    with pytest.raises(LarError, match="too many for a notebook"):
        cells.clip(tmp_path / "a.mp4")


def test_live_curves_are_redrawn_while_rows_arrive_and_at_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(cells.DisplayHandle, "display", lambda *_: None)
    monkeypatch.setattr(cells.DisplayHandle, "update", lambda _, picture: drawn.append(picture))
    run = Run.open(make_config(profile="micro"), tmp_path / "run")
    looks = []
    monkeypatch.setattr(cells, "read_jsonl", lambda path: looks.append(path) or read_jsonl(path))
    with cells.live_curves(run, every=0.05):
        for step, drawings in ((1, 0), (2, 1), (3, 2)):  # one row is no curve, and what was drawn is not drawn again
            append_jsonl(run.metrics, {"step": step, "action": 5.0 / step, "recon": 1.0})
            looks.clear()
            wait_until(lambda: len(looks) >= 4)
            assert len(drawn) == drawings
    assert len(drawn) == 3 and all(picture.data[1:4] == b"PNG" for picture in drawn)
