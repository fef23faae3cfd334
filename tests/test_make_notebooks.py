"""The gate for notebooks: what it refuses, and that the committed ones pass it."""

from __future__ import annotations

import base64
import subprocess
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


def test_while_the_address_is_unknown_every_notebook_says_that_its_badge_leads_nowhere(tmp_path, monkeypatch):
    assert all(make_notebooks.NOWHERE in source.read_text() for source in SOURCES)
    known = (ROOT / "pyproject.toml").read_text().replace("OWNER", "somebody")
    (tmp_path / "pyproject.toml").write_text(known)
    (tmp_path / SOURCES[0].name).write_bytes(SOURCES[0].read_bytes())
    monkeypatch.setattr(make_notebooks, "ROOT", tmp_path)
    made = make_notebooks.generate(tmp_path / SOURCES[0].name)
    assert "github/somebody/la-reconvla" in made.cells[0].source and "leads nowhere" not in made.cells[0].source
    assert 'REPOSITORY = "https://github.com/somebody/la-reconvla"' in made.cells[1].source


@pytest.fixture
def install(tmp_path, monkeypatch):
    """The install cell, the same in every notebook, as in a runtime without the package; takes what the form says."""
    cells = {next(cell.source for cell in make_notebooks.generate(source).cells if "install_colab.sh" in cell.source)
             for source in SOURCES}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda address: exec(*cells, {"REPOSITORY": address})


def test_without_an_address_the_install_cell_asks_for_one(install):
    with pytest.raises(SystemExit, match="type its address into REPOSITORY"):
        install("https://github.com/OWNER/la-reconvla")


def test_a_notebook_uploaded_alone_clones_the_address_that_was_typed_in(install, tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path / "typed", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)
    (tmp_path / "typed/scripts").mkdir(parents=True)
    (tmp_path / "typed/scripts/install_colab.sh").write_text('touch installed-by-$(basename "$1")\n')
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    with pytest.raises(SystemExit, match="git could not bring .*/mistyped"):
        install(str(tmp_path / "mistyped"))
    install(str(tmp_path / "typed"))
    assert str(tmp_path / "la-reconvla") in sys.path and list(tmp_path.glob("installed-by-python*"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_committed_pair_is_in_step_and_shows_its_pictures(source):
    assert make_notebooks.in_step(make_notebooks.generate(source), source.with_suffix(".ipynb")) == []


def test_a_pair_out_of_step_is_refused(tmp_path):
    made = make_notebooks.generate(SOURCES[0])
    nbformat.write(made, tmp_path / "a.ipynb")
    made.cells[-1].source += "!"
    assert "out of step" in make_notebooks.in_step(made, tmp_path / "a.ipynb")[0]
