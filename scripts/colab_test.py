"""Notebook 00 in a stand-in for Colab: killed in the middle of training, run again, finished.

A fresh virtual environment in which `google.colab` can be imported (secrets, Drive) and another PyTorch than ours is
there already; the checkout comes by `git clone` from an address typed into the notebook's form, the rest through its own
install cell. Afterwards PyTorch,
numpy and ipywidgets must be the very same, and the report complete. Takes several minutes and needs a package index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import nbformat
import psutil
from make_notebooks import ROOT, SOURCES, generate

FOLDER = ROOT / "build" / "colab"
VENV, CONTENT = FOLDER / "venv", FOLDER / "content"
THEIRS = ("torch", "numpy", "ipywidgets")
# What Colab brings. Another torch than in constraints.txt is taken from the index unless COLAB_TORCH says otherwise.
PRESENT = (os.environ.get("COLAB_TORCH", "torch==2.11.0"), "numpy==2.2.6", "ipywidgets==7.7.1", "ipykernel", "nbclient",
           "nbformat", "matplotlib", "scipy", "scikit-learn", "pandas", "psutil", "pyyaml", "pillow", "huggingface_hub")
STAND_IN = {
    "__init__.py": "",
    "colab/__init__.py": "",
    "colab/userdata.py": "class SecretNotFoundError(Exception): pass\n"
                         "def get(name):\n    raise SecretNotFoundError(name)\n",
    "colab/drive.py": "import os\ndef mount(where):\n    os.makedirs(os.path.join(where, 'MyDrive'), exist_ok=True)\n",
}
RUNNER = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=3600, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def main() -> None:
    """Ends with exit code 1 and a traceback at the first expectation that fails."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    CONTENT.mkdir(parents=True)
    try:
        make_runtime()
        check()
    finally:
        shutil.rmtree(VENV, ignore_errors=True)  # it has several GB, because PyTorch's default build brings CUDA


def check() -> None:
    """Kill, run again, look."""
    before = versions()
    print("before:", before, flush=True)
    run = CONTENT / "runs" / "attention_mask-micro-s0"
    logged = run / "metrics.jsonl"
    interrupted(lambda: logged.exists() and len(logged.read_text().splitlines()) >= 3)
    assert any(run.glob("checkpoints/step_*")), "nothing was saved before the kill"
    steps = len(logged.read_text().splitlines())
    assert not (run / "results.json").exists(), "the kill came too late to show anything"
    print(f"killed while training, {steps} lines of metrics kept; running all again", flush=True)
    notebook = finished()
    results = json.loads((run / "results.json").read_text())
    empty = [part for part in ("training", "action", "shortcut", "reconstruction", "grounding", "aggregations",
                                 "robustness", "layers", "rollouts", "latency", "training_cost")
             if not results[part]]
    assert not empty, f"the report lacks {empty}"
    assert (run / "report.html").stat().st_size > 100_000
    kept = CONTENT / "drive/MyDrive/la-reconvla/runs" / run.name
    assert (kept / "results.json").exists(), "nothing was kept on Drive"
    assert versions() == before, f"the runtime's own packages were changed: {versions()}"
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert not errors, errors
    print("after: ", versions(), "\nThe report is complete, and what Colab brought is as it was.")


def make_runtime() -> None:
    """A virtual environment as Colab's: its packages, a stand-in for google.colab, a repository that can be cloned."""
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    subprocess.run([VENV / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PRESENT],
                   check=True)
    packages = next(VENV.glob("lib/python3*/site-packages"))
    for name, text in STAND_IN.items():
        (packages / "google" / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / "google" / name).write_text(text)
    (FOLDER / "gitconfig").write_text("[safe]\n  directory = *\n")
    # No time for a micro training to be killed in: this one has more steps.
    notebook = generate(SOURCES / "00_reproduce_condition.py")
    for cell in notebook.cells:
        cell.source = cell.source.replace("drive=DRIVE)", "drive=DRIVE, samples=1600)").replace(
            f'REPOSITORY = "{address()}"', f'REPOSITORY = "{ROOT}"')  # as one would type an address
    nbformat.write(notebook, CONTENT / "00.ipynb")


def interrupted(reached: Callable[[], bool]) -> None:
    """Run the notebook until `reached()`, then kill it and everything that it started."""
    process = start()
    while not reached():
        assert process.poll() is None, (FOLDER / "log").read_text()[-3000:]
        time.sleep(0.2)
    for victim in (*psutil.Process(process.pid).children(recursive=True), process):  # the kernel and its workers
        victim.kill()
    process.wait()


def finished() -> nbformat.NotebookNode:
    """Run the notebook to its end and return it with its outputs."""
    process = start()
    assert process.wait() == 0, (FOLDER / "log").read_text()[-3000:]
    return nbformat.read(CONTENT / "done.ipynb", as_version=4)


def start() -> subprocess.Popen:
    """Begin to execute the notebook in the folder that stands for /content."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    environment |= {"PATH": f"{VENV}/bin:{os.environ['PATH']}", "LAR_PROFILE": "micro", "LAR_CONTENT": str(CONTENT),
                    "GIT_CONFIG_GLOBAL": str(FOLDER / "gitconfig"), "OMP_NUM_THREADS": "1"}
    with open(FOLDER / "log", "a") as log:
        return subprocess.Popen([VENV / "bin/python", "-c", RUNNER, "00.ipynb", "done.ipynb"], cwd=CONTENT,
                                env=environment, stdout=log, stderr=log)


def versions() -> dict[str, str]:
    """Of the packages that must stay."""
    code = ("import json; from importlib.metadata import version; "
            f"print(json.dumps({{name: version(name) for name in {THEIRS}}}))")
    return json.loads(subprocess.run([VENV / "bin/python", "-c", code], capture_output=True, check=True).stdout)


def address() -> str:
    """The repository's address as in the install cells."""
    import tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


if __name__ == "__main__":
    main()
