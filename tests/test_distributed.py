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


def new_run(folder, name):
    return Run.open(make_config("random_mask", "micro", **SETTINGS), folder / name)


@pytest.fixture(scope="module")
def two(demos, tmp_path_factory):  # noqa: F811
    """A run that two processes have trained, each of which has said who it is."""
    folder = tmp_path_factory.mktemp("two")
    run, script = new_run(folder, "run"), folder / "train_here.py"
    script.write_text(IN_A_PROCESS + WHO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, str(run.path), str(demos)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("one of 2") == 2
    return run


def test_two_processes_train_as_one_does(two, demos, tmp_path):  # noqa: F811
    """Random masks, shifts, hidden words and chunks that run over an episode's end would all differ if shares were drawn
    apart."""
    one = new_run(tmp_path, "one")
    train(one, [demos])
    for single, shared in zip(without_times(one), without_times(two), strict=True):
        assert shared == pytest.approx(single, rel=1e-4, abs=1e-7)
    for ours, theirs in zip(load_policy(one)[0].parameters(), load_policy(two)[0].parameters()):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_one_process_writes(two):
    steps = [row["step"] for row in without_times(two)]
    assert steps == sorted(set(steps)), "every line stands once"
    assert two.trained and not list((two.path / "checkpoints").glob(".*"))


def test_a_batch_that_cannot_be_shared_equally_is_refused(demos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("lar_core.model.train.Accelerator.num_processes", 3)
    with pytest.raises(LarError, match="batch_size is 8, which 3 processes cannot share equally"):
        train(new_run(tmp_path, "run"), [demos])
