"""The gate for notebooks: what it refuses, and that the committed ones pass it."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import make_notebooks  # noqa: E402

SOURCES = sorted((ROOT / "notebooks").glob("*.py"))


def picture(size: int = 10):
    return new_output("display_data", {"image/png": base64.b64encode(bytes(size)).decode()})


def notebook(source: str, *outputs):
    return new_notebook(cells=[new_code_cell(source, outputs=list(outputs))])


@pytest.mark.parametrize("made, complaint", [
    (notebook("show(figure)"), "shows no picture"),
    (notebook("with step(run), notebook.live_curves(run):\n    pass"), "shows no picture"),
    (notebook("show(figure)", picture(250_000)), "picture of more than"),
    (notebook("clip(path)", new_output("display_data", {"text/html": "<video>" + "x" * 1_100_000})), "video of more"),
    (notebook("print(1)", new_output("stream", name="stdout", text=f"{ROOT}/runs")), "names a folder of this machine"),
    (notebook("1 / 0", new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])), "holds an error")])
def test_what_is_missing_wrong_or_too_large_is_named(made, complaint):
    fault, = make_notebooks.faults(made)
    assert complaint in fault


def test_widget_state_is_refused_and_tidying_removes_it_with_its_views():
    made = notebook("explorer.show()", new_output("display_data", {
        "application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "VBox()"}))
    made.metadata["widgets"] = {}
    assert make_notebooks.faults(made) == ["metadata.widgets is left in"]
    make_notebooks.tidy(made)
    assert make_notebooks.faults(made) == [] and made.cells[0].outputs == []


def test_tidying_removes_progress_bars_and_nothing_else():
    bar = "\rtraining: 50%|##   | 1/2 [00:01<00:01]\rtraining: 100%|####| 2/2 [00:02<00:00]\n"
    made = notebook("train()", new_output("stream", name="stderr", text=bar),
                    new_output("stream", name="stdout", text="100 % of 3\n"))
    make_notebooks.tidy(made)
    assert [output.text for output in made.cells[0].outputs] == ["100 % of 3\n"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_notebook_opens_with_badge_what_to_see_and_what_it_takes(source):
    made = make_notebooks.generate(source)
    opening = made.cells[0].source
    assert f"/blob/main/notebooks/{source.stem}.ipynb" in opening and "**You will see**" in opening
    assert "| time" in opening or "| alone" in opening
    assert made.cells[1].source.startswith("# @title Settings") and "@param" in made.cells[1].source
    assert all(len(cell.source.splitlines()) <= 12 for cell in made.cells if cell.cell_type == "code")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_committed_pair_is_in_step_and_shows_its_pictures(source):
    assert make_notebooks.in_step(make_notebooks.generate(source), source.with_suffix(".ipynb")) == []


def test_a_pair_out_of_step_is_refused(tmp_path):
    made = make_notebooks.generate(SOURCES[0])
    nbformat.write(made, tmp_path / "a.ipynb")
    made.cells[-1].source += "!"
    assert "out of step" in make_notebooks.in_step(made, tmp_path / "a.ipynb")[0]
