"""What choices cost: every variant is really the one that was asked for, and is measured."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import numpy as np
import pytest

from lar_core.measure import costs
from lar_core.model.saliency import SaliencyTap
from lar_core.run.config import make_config
from lar_core.run.folder import Run


@pytest.fixture
def run(tmp_path):
    return Run.open(make_config(profile="micro"), tmp_path / "run")


def test_fields_of_condition_and_profile_are_changed_alike():
    config = make_config(profile="micro").replace(mask_input=True, batch_size=4)
    assert config.condition.mask_input and config.profile.batch_size == 4


def test_one_token_after_another_is_slower_than_all_at_once(run):
    (_, fast, fast95, rate), (_, slow, *_), *_ = costs.policy_steps(run, costs.heads(), repeats=5)
    assert slow > 2 * fast and fast95 >= fast and rate == pytest.approx(8000 / fast)


def test_heads_are_timed_whatever_head_the_run_has(tmp_path):
    run = Run.open(make_config("bridge_head", "micro"), tmp_path / "bridge")  # its L1 loss does not suit every head
    assert [run.config.replace(**changes).condition.head for changes in costs.heads().values()] == [
        "parallel", "autoregressive", "bridge", "focus"]


def test_saliency_can_be_left_out(run, monkeypatch):
    read = []
    class Counted(SaliencyTap):
        def __enter__(self):
            read.append(self)
            return super().__enter__()
    def maps_read(work, repeats):
        before = len(read)
        work()
        return len(read) - before
    monkeypatch.setattr("lar_core.model.backbone.SaliencyTap", Counted)
    monkeypatch.setattr(costs, "milliseconds", maps_read)
    assert costs.saliency_cost(run) == (1, 0)


def test_a_time_is_the_median_behind_two_runs_that_warm_up(monkeypatch):
    clock = iter([0, 90, 100, 180, 200, 203, 300, 301, 400, 402])  # seconds: began and ended, five times
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    runs = []
    assert costs.milliseconds(lambda: runs.append(1), repeats=3) == 2000 and len(runs) == 5


def test_the_meter_sees_this_process_and_on_demand_its_children():
    with costs.meter(children=True) as nothing:
        pass
    with contextlib.suppress(KeyError), costs.meter(children=True) as both, costs.meter() as alone:
        block = np.ones(2**27 // 8)  # 128 MiB
        child = subprocess.Popen([sys.executable, "-c", "x = bytearray(2**27); input()"], stdin=subprocess.PIPE)
        time.sleep(1.0)
        child.communicate(b"\n")
        del block
        raise KeyError  # what breaks off is measured as well
    mib = [(reading.peak_bytes - nothing.peak_bytes) / 2**20 for reading in (alone, both)]
    assert 120 < mib[0] < 200 < 245 < mib[1] < 500 and both.seconds > 1
