"""Execute the notebooks and check them. The .py files in notebooks/ are the source; the .ipynb are made from them.

    python scripts/make_notebooks.py                at profile micro, into build/notebooks: what `make notebooks` does
    python scripts/make_notebooks.py --write --profile tiny         replace the committed .ipynb, with their outputs
    python scripts/make_notebooks.py 03 --keep          only that one, on the run folder of an earlier call

Fails if a committed pair is out of step, a cell raises, a cell that shows something shows nothing, an output is too
large or names a folder of this machine, or widget state is left in. All notebooks share one run folder, so that training is
done once; after the first one, two are executed at a time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "notebooks"
BUILD = ROOT / "build" / "notebooks"
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}, "accelerator": "GPU", "colab": {"provenance": []}}
ADDRESS = re.compile(r"github(?:\.com)?/[\w.-]+/la-reconvla")
NOWHERE = """# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
"""
SHOWS = re.compile(r"^\s*(?:notebook\.)?(?:show|clip)\(|live_curves\(", re.MULTILINE)
PROGRESS = re.compile(r"[^\n\r]*\d+%\|[^\n\r]*[\n\r]*(?:\x1b\[A)?")  # a state of tqdm's bar
MACHINE = (str(ROOT), str(Path.home()), tempfile.gettempdir())  # no business of a reader's
PICTURES = ("image/png", "image/jpeg")
PICTURE_LIMIT, CLIP_LIMIT = 200_000, 1_000_000  # bytes
SECONDS = 3600  # a cell may take, at the larger profiles


def main() -> None:
    """Check or write the notebooks that are named, all of them by default."""
    options = _options()
    work = BUILD / f"work-{options.profile}"
    if not options.keep:
        shutil.rmtree(work, ignore_errors=True)
    os.environ |= {"LAR_PROFILE": options.profile, "LAR_WORK": str(work)}
    sources = [source for source in sorted(SOURCES.glob("*.py"))
               if source.name.startswith(tuple(options.names or [""]))]
    if not sources:
        sys.exit(f"No notebook's name begins with {' or '.join(options.names)}.")
    problems = timed(sources[0], options.write)  # trains what the others read
    with ThreadPoolExecutor(1 if options.write else 2) as executor:  # what is written shows times: one after the other
        for found in executor.map(partial(timed, write=options.write), sources[1:]):
            problems += found
    print(*problems, sep="\n")
    sys.exit(bool(problems))


def timed(source: Path, write: bool) -> list[str]:
    """`make`, and a line that says how long it took."""
    began = time.perf_counter()
    problems = make(source, write)
    print(f"{source.stem}: {len(problems)} problems, {time.perf_counter() - began:.0f} s", flush=True)
    return problems


def make(source: Path, write: bool) -> list[str]:
    """Execute one notebook and save it; returns what is wrong with it, one sentence each."""
    notebook, committed = generate(source), source.with_suffix(".ipynb")
    problems = [] if write else in_step(notebook, committed)
    try:
        NotebookClient(notebook, timeout=SECONDS, coalesce_streams=True,
                       resources={"metadata": {"path": str(SOURCES)}}).execute()
    except CellExecutionError as error:
        problems.append(f"{source.name}: a cell raised {str(error).strip().splitlines()[-1]}")
    tidy(notebook)
    problems += [f"{source.name}: {fault}" for fault in faults(notebook)]
    target = committed if write and not problems else BUILD / committed.name
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return problems


def generate(source: Path) -> NotebookNode:
    """The notebook that a source stands for, without outputs.

    The repository's address comes from pyproject.toml; until it is known there, a sentence says that badges lead nowhere.
    """
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    owner = address.removeprefix("https://github.com/").split("/")[0]
    text = source.read_text(encoding="utf-8")
    right = ADDRESS.sub(lambda found: f"{found[0].split('/')[0]}/{owner}/la-reconvla", text)
    if owner != "OWNER":
        right = right.replace(NOWHERE, "")
    if right != text:
        source.write_text(right, encoding="utf-8")
    notebook = jupytext.reads(right, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{source.stem[:2]}-{number:02d}"  # the same every time, so that differences are real ones
    return notebook


def in_step(notebook: NotebookNode, committed: Path) -> list[str]:
    """Whether the committed notebook has the same cells, and what is wrong with its outputs."""
    if not committed.exists():
        return [f"{committed.name} is missing: run scripts/make_notebooks.py --write."]
    there = nbformat.read(committed, as_version=4)
    if [(cell.cell_type, cell.source) for cell in there.cells] != [(c.cell_type, c.source) for c in notebook.cells]:
        return [f"{committed.name} is out of step with its .py: run scripts/make_notebooks.py --write."]
    return [f"{committed.name}: {fault}" for fault in faults(there)]


def tidy(notebook: NotebookNode) -> None:
    """Drop progress bars, and widget state and views, which need a running kernel."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = PROGRESS.sub("", output.text)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if "application/vnd.jupyter.widget-view+json"
                            not in output.get("data", {}) and output.get("text", "x").strip()]


def faults(notebook: NotebookNode) -> list[str]:
    """What is wrong with an executed notebook, one sentence each."""
    found = ["metadata.widgets is left in"] if "widgets" in notebook.metadata else []
    for number, cell in enumerate(notebook.cells):
        outputs = cell.get("outputs", [])
        pictures = [data[kind] for output in outputs if (data := output.get("data", {}))
                    for kind in PICTURES if kind in data]
        clips = [page for output in outputs if "<video" in (page := output.get("data", {}).get("text/html", ""))]
        if any(output.output_type == "error" for output in outputs):
            found.append(f"cell {number} holds an error")
        if SHOWS.search(cell.source) and cell.cell_type == "code" and not pictures + clips:
            found.append(f"cell {number} shows no picture")
        if any(place in words for place in MACHINE for words in _texts(outputs)):
            found.append(f"cell {number} names a folder of this machine")
        if any(len(picture) * 3 / 4 > PICTURE_LIMIT for picture in pictures):
            found.append(f"cell {number} has a picture of more than {PICTURE_LIMIT} bytes")
        if any(len(clip) > CLIP_LIMIT for clip in clips):
            found.append(f"cell {number} has a video of more than {CLIP_LIMIT} bytes")
    return found


def _texts(outputs: list[NotebookNode]) -> list[str]:
    """What outputs say in words; videos are left out, whose letters are chance."""
    pages = [page for output in outputs if "<video" not in (page := output.get("data", {}).get("text/html", ""))]
    return [output.get("text", "") for output in outputs] + pages


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 03")
    parser.add_argument("--write", action="store_true", help="replace the committed notebooks")
    parser.add_argument("--profile", default="micro")
    parser.add_argument("--keep", action="store_true", help="go on with the run folder of an earlier call")
    return parser.parse_args()


if __name__ == "__main__":
    main()
