"""Expected time and memory, and what was really needed."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from lar_core import pace
from lar_core.run.config import make_config
from lar_core.run.files import append_jsonl
from lar_core.run.folder import Run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no demonstrations have been recorded
    return Run.open(make_config(profile="tiny"), tmp_path / "run")


def test_durations_read_as_one_says_them():
    assert [pace.duration(s) for s in (0.2, 89, 100, 3600, 5000)] == ["1 s", "89 s", "2 min", "1 h 0 min", "1 h 23 min"]


def test_every_step_has_a_cost_and_more_data_costs_more(run, tmp_path):
    small = pace.expected(run, cores=2)
    assert set(small) == set(pace.STEPS)
    large = pace.expected(Run.open(make_config(profile="small"), tmp_path / "small"), cores=2)
    for name in ("demonstrations", "training", "rollouts"):
        assert large[name].seconds > 1.5 * small[name].seconds
    assert pace.expected(run, cores=1)["demonstrations"].seconds > 1.8 * small["demonstrations"].seconds


def test_a_run_that_has_begun_is_judged_by_its_own_speed(run):
    append_jsonl(run.metrics, {"step": 250, "seconds": 1000.0})  # 4 s a step, 2000 steps to go
    assert pace.expected(run, cores=2)["training"].seconds == pytest.approx(8000, rel=0.01)


def test_what_is_done_already_costs_no_more(run, tmp_path, monkeypatch):
    before = pace.expected(run, cores=2)
    (tmp_path / "demo.hdf5").touch()
    monkeypatch.setattr(pace, "demo_paths", lambda *_: [tmp_path / "demo.hdf5"])
    for _ in range(60):
        append_jsonl(run.path / "rollouts.jsonl", {})
    after = pace.expected(run, cores=2)
    assert after["demonstrations"].seconds < before["demonstrations"].seconds / 5
    assert after["rollouts"].seconds < before["rollouts"].seconds / 2


@pytest.mark.parametrize("backbone", ["google/paligemma2-3b-pt-224", "somebody/model", "empty", "damaged", "other",
                                      "no/such/folder"])
def test_a_model_without_a_plan_is_an_unknown_cost_not_an_error(tmp_path, monkeypatch, capsys, backbone):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, content in (("empty", None), ("damaged", "{"), ("other", '{"model_type": "llama"}')):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "config.json").write_text(content)
    run = Run.open(make_config(profile="t4", backbone=backbone), tmp_path / "run")
    assert pace.expected(run) == dict.fromkeys(pace.STEPS, pace.UNKNOWN)
    assert f"no plan for backbone '{backbone}'" in capsys.readouterr().out
    assert str(pace.UNKNOWN) == "unknown time and unknown memory"


@pytest.mark.parametrize("damage", [
    lambda run: run.metrics.write_text("{\n{}\n"),  # not JSON
    lambda run: append_jsonl(run.metrics, {"loss": 1.0}),  # of another version
    lambda run: append_jsonl(run.metrics, {"step": 0, "seconds": 3.0})])  # nothing to divide by
def test_a_log_that_cannot_be_read_costs_the_estimate_only(run, damage):
    damage(run)
    assert pace.expected(run)["training"] == pace.UNKNOWN


def test_peak_memory_sees_this_process_and_its_children():
    with pace.PeakMemory() as nothing:
        pass
    with pace.PeakMemory() as peak:
        block = np.ones(2**27 // 8)  # 128 MiB
        child = subprocess.Popen([sys.executable, "-c", "x = bytearray(2**27); input()"], stdin=subprocess.PIPE)
        time.sleep(1.0)
        child.communicate(b"\n")
        del block
    assert 0.24 < peak.gib - nothing.gib < 0.5
