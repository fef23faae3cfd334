"""Two processes under `torchrun` (gloo, CPU) against one: the same losses at the same global batch."""

import subprocess
import sys

import pytest
import torch
from test_train import IN_A_PROCESS, demos, without_times  # noqa: F401 (demos is a fixture)

from lar_core.model.policy import load_policy
from lar_core.model.train import train
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.folder import Run

SETTINGS = {"samples": 96, "batch_size": 8, "checkpoint_every": 5, "shift": 2, "consistency": 0.1, "language": 0.1}

WHO = r"""
import sys
from lar_core.run.runtime import group
sys.stdout.write(f"one of {group().num_processes}\n")  # one write: two processes share the pipe
"""


@pytest.fixture
def new_run(tmp_path):
    return lambda name, **changes: Run.open(make_config("random_mask", "micro", **{**SETTINGS, **changes}), tmp_path / name)


def launch(run, demos, tmp_path):  # noqa: F811
    script = tmp_path / "train_here.py"
    script.write_text(IN_A_PROCESS + WHO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run([*command, str(run.path), str(demos)], capture_output=True, text=True, timeout=240)


def test_two_processes_train_as_one_does(new_run, demos, tmp_path):  # noqa: F811
    """Random masks, shifts, hidden words and chunks that run over an episode's end would all differ if shares were drawn
    apart."""
    one, two = new_run("one"), new_run("two")
    train(one, [demos])
    done = launch(two, demos, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("one of 2") == 2
    for single, shared in zip(without_times(one), without_times(two), strict=True):
        assert shared == pytest.approx(single, rel=1e-4, abs=1e-7)
    for ours, theirs in zip(load_policy(one)[0].parameters(), load_policy(two)[0].parameters()):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_one_process_writes(new_run, demos, tmp_path):  # noqa: F811
    run = new_run("run")
    assert launch(run, demos, tmp_path).returncode == 0
    steps = [row["step"] for row in without_times(run)]
    assert steps == sorted(set(steps)), "every line stands once"
    assert run.trained and not list((run.path / "checkpoints").glob(".*"))


def test_a_batch_that_cannot_be_shared_equally_is_refused(new_run, demos, monkeypatch):  # noqa: F811
    monkeypatch.setattr("lar_core.model.train.Accelerator.num_processes", 3)
    with pytest.raises(LarError, match="batch_size is 8, which 3 processes cannot share equally"):
        train(new_run("run"), [demos])
