"""Every preset in one study through the command line, killed in the middle and run again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lar_core import studies
from lar_core.measure.results import load_results
from lar_core.measure.study import STUDY, Study
from lar_core.run.config import CONDITIONS
from lar_core.run.errors import LarError

STUDIES = Path(__file__).resolve().parents[1] / "studies"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The finished study; its first attempt was killed when its second run was done."""
    folder = tmp_path_factory.mktemp("study")
    killed = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while len(list(folder.glob("runs/*/report.html"))) < 2:
        assert killed.poll() is None, killed.stderr.read().decode()[-3000:]
        time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (folder / "before.json").write_text(json.dumps(made(folder)))
    done = subprocess.run(command(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def command(folder):
    return [sys.executable, "-m", "lar_core.cli", "study", str(STUDIES / "micro.yaml"), "--workers", "2",
            "--run-dir", str(folder / "runs"), "--data-dir", str(folder / "data")]


def made(folder):
    """When the files of finished runs were written, in nanoseconds."""
    finished = [page.parent for page in folder.glob("runs/*/report.html")]
    return {str(path): path.stat().st_mtime_ns for run in finished for name in ("*.jsonl", "*.safetensors", "latency.json")
            for path in run.rglob(name)}


def test_every_preset_is_in_the_comparison(folder):
    study = STUDY.load(folder / "runs" / "study.json")
    assert {arm["condition"] for arm in study["arms"]} == set(CONDITIONS)
    assert {row["condition"] for row in study["comparisons"]} == set(CONDITIONS) - {"action_only"}
    page, printed = (folder / "runs" / "study.html").read_text(), (folder / "printed.txt").read_text()
    assert all(name in page and name in printed for name in CONDITIONS)
    assert "not detected" in page  # one episode each


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_preset_was_trained_scored_rolled_out_and_timed(folder, condition):
    run = folder / "runs" / f"{condition}-micro-s0"
    results = load_results(run / "results.json")
    reconstructor = CONDITIONS[condition].reconstructor
    for part in ("training", "action", "rollouts", "latency", "training_cost",
                 *{"mae": ["reconstruction"], "diffusion": ["denoising"], "none": []}[reconstructor]):
        assert results[part], part
    assert {row["policy"] for row in results["rollouts"]} == {condition, "blind"}
    assert (run / "report.html").stat().st_size > 100_000


def test_what_was_finished_before_the_kill_was_not_made_anew(folder):
    before = json.loads((folder / "before.json").read_text())
    assert len(before) >= 8 and before.items() <= made(folder).items()


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    made = []

    def reproduce(run, data):
        if run.config.condition.name == "contrastive_attention":
            raise LarError("No sentence names the other bowl.")
        made.append(run.config.condition.name)

    monkeypatch.setattr(studies, "make_demos", lambda *_: [])
    monkeypatch.setattr(studies, "reproduce", reproduce)
    study = Study(name="mine", conditions=("action_only", "contrastive_attention", "random_mask"), profile="micro")
    with pytest.raises(LarError, match="contrastive_attention-micro-s0 failed: No sentence.*finished runs are kept"):
        studies.run_study(study, tmp_path / "runs", tmp_path / "data", workers=1)
    assert made == ["blind", "action_only", "random_mask"]


def test_a_study_needs_a_worker():
    with pytest.raises(LarError, match="--workers is 0"):
        studies.run_study(Study(name="mine", conditions=("action_only",)), workers=0)
