"""A study of one preset of each kind through the command line, killed in the middle and run again.

Every preset is in test_presets.py.
"""

import contextlib
import io
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import wait_until

from lar_core import cli, studies
from lar_core.measure.results import load_results
from lar_core.measure.study import STUDY, Study
from lar_core.run.config import CONDITIONS
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl, read_jsonl
from lar_core.run.folder import Run

MICRO = Path(__file__).resolve().parents[1] / "studies" / "micro.yaml"
PRESETS = ("action_only", "gaze_diffusion", "autoregressive_head", "blind")  # test_end_to_end.py makes attention_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The finished study; its first attempt was killed when its second run was done."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "some.yaml").write_text(yaml.safe_dump(yaml.safe_load(MICRO.read_text()) | {"conditions": [*PRESETS]}))
    command = [sys.executable, "-m", "lar_core.cli", *words(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as killed:
        try:
            wait_until(lambda: len(list(folder.glob("runs/*/report.html"))) >= 2 or killed.poll() is not None, seconds=1200)
            assert killed.poll() is None, killed.stderr.read().decode()[-3000:]
        finally:
            killed.send_signal(signal.SIGKILL)
    (folder / "before.json").write_text(json.dumps(made(folder)))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(words(folder)) == 0
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


def words(folder):
    return ["study", str(folder / "some.yaml"), "--workers", "2", "--run-dir", str(folder / "runs"),
            "--data-dir", str(folder / "data")]


def made(folder):
    """When the files of finished runs were written, in nanoseconds."""
    finished = [page.parent for page in folder.glob("runs/*/report.html")]
    return {str(path): path.stat().st_mtime_ns for run in finished for name in ("*.jsonl", "*.safetensors", "latency.json")
            for path in run.rglob(name)}


def test_every_arm_is_in_the_comparison(folder):
    study = STUDY.load(folder / "runs" / "study.json")
    assert {arm["condition"] for arm in study["arms"]} == set(PRESETS)
    assert {row["condition"] for row in study["comparisons"]} == set(PRESETS) - {"action_only"}
    page, printed = (folder / "runs" / "study.html").read_text(), (folder / "printed.txt").read_text()
    assert all(name in page and name in printed for name in PRESETS)
    assert "not detected" in page  # one episode each


@pytest.mark.parametrize("condition", PRESETS)
def test_every_arm_was_trained_scored_rolled_out_and_timed(folder, condition):
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


def test_it_goes_on_elsewhere_from_what_is_kept_of_finished_runs(folder, tmp_path, monkeypatch):
    study, made, demos = Study.load(folder / "some.yaml"), [], []
    kept = studies.keep(study, folder / "runs", tmp_path)
    assert {path.name for path in kept} == {config.name for config in study.configs().values()}
    assert sum(path.stat().st_size for run in kept for path in run.iterdir()) < 250_000 * len(kept)
    monkeypatch.setattr(studies, "make_demos", lambda *_: demos.append(1) or [])
    monkeypatch.setattr(studies, "reproduce", lambda run, data, instructions=None: made.append(run.config.condition.name))
    there, _ = studies.run_study(study, tmp_path, tmp_path / "data", workers=1)
    here = STUDY.load(folder / "runs" / "study.json")
    assert there["comparisons"] == here["comparisons"] and there["arms"] == here["arms"] and not demos and not made
    (tmp_path / "gaze_diffusion-micro-s0" / "results.json").unlink()
    studies.run_study(study, tmp_path, tmp_path / "data", workers=1)
    assert made == ["gaze_diffusion"] and demos == [1]


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    made = []

    def reproduce(run, data, instructions=None):
        if run.config.condition.name == "contrastive_attention":
            raise LarError("No sentence names the other bowl.")
        made.append(run.config.condition.name)

    monkeypatch.setattr(studies, "make_demos", lambda *_: [])
    monkeypatch.setattr(studies, "reproduce", reproduce)
    study = Study(name="mine", conditions=("action_only", "contrastive_attention", "random_mask"), profile="micro")
    with pytest.raises(LarError, match="contrastive_attention-micro-s0 failed: No sentence.*finished runs are kept"):
        studies.run_study(study, tmp_path / "runs", tmp_path / "data", workers=1)
    assert made == ["blind", "action_only", "random_mask"]


def test_the_blind_control_of_the_next_seed_is_made_beside_the_others(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(studies, "make_demos", lambda *_: [])
    monkeypatch.setattr(studies, "reproduce", lambda run, data, instructions=None: made.append(run.path.name))
    monkeypatch.setattr(studies, "compare_arms", lambda *_: {})
    monkeypatch.setattr(studies, "write_study_page", lambda folder: folder)
    monkeypatch.setattr(studies, "_finished", lambda study, run: run.path.name in made)
    study = Study(name="mine", conditions=("action_only",), seeds=(0, 1, 2), profile="micro")
    studies.run_study(study, tmp_path / "runs", tmp_path / "data", workers=1)
    assert made == [f"{condition}-micro-s{seed}" for condition, seed in (
        ("blind", 0), ("blind", 1), ("action_only", 0), ("blind", 2), ("action_only", 1), ("action_only", 2))]


def test_a_study_needs_a_worker():
    with pytest.raises(LarError, match="--workers is 0"):
        studies.run_study(Study(name="mine", conditions=("action_only",)), workers=0)


def test_rollouts_at_several_placements_may_be_apart_and_their_rows_come_into_the_order_of_one_process(tmp_path):
    several = Study(name="mine", conditions=("action_only",), profile="micro", placement=("near", "official"))
    run = Run.open(next(iter(several.configs().values())), tmp_path / "run")
    assert list(studies.making(several).apart(run)) == ["near", "official"]
    assert studies.making(several.model_copy(update={"placement": ("near",)})).apart(run) == {}
    rows = [{"placement": placement, "episode": episode} for episode in (1, 0) for placement in ("official", "wide", "near")]
    for row in rows:
        append_jsonl(run.path / "rollouts.jsonl", row)
    studies.making(several).gather(run)
    assert [(row["placement"], row["episode"]) for row in read_jsonl(run.path / "rollouts.jsonl")] == [
        ("wide", 1), ("wide", 0), ("near", 1), ("near", 0), ("official", 1), ("official", 0)]


def test_the_jobs_of_a_run_in_parts_do_what_the_whole_does_and_return_the_sentence_of_a_failure(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(studies, "train_both", lambda run, data: done.append("train"))
    monkeypatch.setattr(studies, "scores", lambda run, data: done.append("scores"))
    monkeypatch.setattr(studies, "roll_out_policy", lambda run, kinds, placement: done.append((kinds, placement)))
    study = Study(name="mine", conditions=("action_only",), profile="micro", placement=("near", "official"),
                  instructions=("right",))
    run = Run.open(next(iter(study.configs().values())), tmp_path / "run")
    parts = pickle.loads(pickle.dumps((studies.making(study).first, *studies.making(study).apart(run).values())))
    assert [job(run, tmp_path) for job in parts] == [None] * 3
    assert done == ["train", "scores", (("right",), "near"), (("right",), "official")]
    monkeypatch.setattr(studies, "train_both", lambda run, data: (_ for _ in ()).throw(LarError("No bowl.")))
    assert parts[0](run, tmp_path) == "No bowl."
