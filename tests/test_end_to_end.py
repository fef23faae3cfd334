"""One condition from nothing to a report through the command line, at the smallest size."""

import json
import re
import shutil
import subprocess
import sys

import imageio.v2 as imageio
import pytest

from lar_core import cli
from lar_core.measure.results import load_results
from lar_core.run.files import read_jsonl
from lar_core.scene.watch import HAPPENED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


REPRODUCE = ("reproduce", "--profile", "micro", "--set", "samples=16", "max_steps=8", "grounding_frames=4", "scene_frames=2")


@pytest.fixture(scope="module")
def first(folder):
    """The output of `lar reproduce`, run once for all tests here."""
    done = subprocess.run([sys.executable, "-m", "lar_core.cli", *REPRODUCE], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def run(folder, first):
    return folder / "runs" / "attention_mask-micro-s0"


def test_it_ends_with_a_table_and_the_report(first, run):
    assert "success" in first and str(run / "report.html") in first
    page = (run / "report.html").read_text()
    assert "data:image/png;base64" in page and "data:video/mp4;base64" in page
    assert not re.search(r'(src|href)="https?:', page)  # self-contained


def test_results_hold_every_part_and_follow_the_schema(run):
    results = load_results(run / "results.json")
    for part in ("training", "action", "shortcut", "reconstruction", "grounding", "rollouts", "latency", "cause"):
        assert results[part], part
    assert results["cause"]["pixels"]["swapped"]["frames"] == 2
    assert results["provenance"]["assets"]["name"] == "standin" and results["provenance"]["commit"]
    made = results["provenance"]["scenes"]
    pooled = [row["episodes"] for row in results["rollouts"] if row["task"] is None]
    assert sum(entry["episodes"] for entry in made) == sum(pooled)
    assert all(entry["picture"]["check"] == "expected" and entry["gl"]["renderer"] for entry in made)
    trials = {(row["policy"], row["instruction"]) for row in results["rollouts"]}
    assert all(sum(row["happened"]["first_touched"].values()) == row["episodes"] for row in results["rollouts"])
    assert trials == {("attention_mask", kind) for kind in ("right", "blank", "other_bowl")} | {("blind", "right")}


def test_every_episode_has_one_line_and_the_first_a_video(run):
    rows = read_jsonl(run / "rollouts.jsonl")
    assert len(rows) == 6 and {row["steps"] for row in rows} <= set(range(1, 9))
    assert all(row[name] in words for row in rows for name, words in HAPPENED.items())
    videos = [row["video"] for row in rows if row["video"]]
    assert len(videos) == 3
    frames = imageio.mimread(run / videos[0], memtest=False)
    assert len(frames) == rows[0]["steps"]


def test_run_again_it_skips_what_is_done_and_finishes_what_was_interrupted(folder, run, first, monkeypatch):
    before = {path: path.read_bytes() for name in ("metrics.jsonl", "latency.json") for path in run.rglob(name)}
    lines = (run / "rollouts.jsonl").read_text().splitlines(keepends=True)
    (run / "rollouts.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while writing the last line
    monkeypatch.chdir(folder)
    assert cli.main([*REPRODUCE]) == 0
    def key(text):
        return {(row["instruction"], row["episode"], row["success"], row["steps"]) for row in map(json.loads, text)}
    assert key((run / "rollouts.jsonl").read_text().splitlines()) == key(lines)
    assert {path: path.read_bytes() for path in before} == before and len(before) >= 3


def test_single_steps_work_on_the_run_folder(folder, run, first, monkeypatch):
    monkeypatch.chdir(folder)
    copy = folder / "copy"
    shutil.copytree(run, copy)
    for part in ("latency.json", "heldout.json", "results.json", "report.html"):
        (copy / part).unlink()
    for words in (["latency"], ["saliency"], ["rollout", "--on", "wide"]):
        assert cli.main([*words, "--run-dir", "copy"]) == 0
    assert (copy / "report.html").exists()
    one, other = (load_results(path / "results.json") for path in (copy, run))
    assert one["grounding"] == other["grounding"] and all(row in one["rollouts"] for row in other["rollouts"])
    assert {row["policy"] for row in one["rollouts"] if row["placement"] == "wide"} == {"attention_mask", "blind"}
