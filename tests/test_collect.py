"""Demonstrations are the same whatever the number of processes and interruptions, and hold successes only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import wait_until

from lar_core.data.demos import read_episodes
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import write_text
from lar_core.run.processes import Stopped, on_stop, stop
from lar_core.scene import collect as collecting
from lar_core.scene.collect import collect, demo_paths

RECORD = """
import sys
from lar_core.run.config import make_config
from lar_core.scene.collect import collect
if __name__ == "__main__":
    collect(make_config(profile="micro"), sys.argv[1], workers=1, progress=False)
"""


@pytest.fixture
def config():
    return make_config(profile="micro")  # two demonstrations of task 5


def test_the_same_demonstrations_after_a_kill_and_with_more_processes(config, tmp_path):
    script = tmp_path / "record.py"
    script.write_text(RECORD)
    killed = subprocess.Popen([sys.executable, str(script), str(tmp_path / "killed")])
    wait_until(lambda: list((tmp_path / "killed").rglob("attempt_*.hdf5")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    (path,) = demo_paths(config, tmp_path / "killed")
    assert not path.exists()

    first = list(read_episodes(collect(config, tmp_path / "killed", workers=1, progress=False)[0]))
    second = list(read_episodes(collect(config, tmp_path / "whole", workers=2, progress=False)[0]))
    assert len(first) == len(second) == config.profile.demos_per_task
    for a, b in zip(first, second):
        assert np.array_equal(a.actions, b.actions) and np.array_equal(a.states, b.states)
        assert a.provenance == b.provenance and a.provenance["assets"]["name"] == "standin"
    assert first[0].provenance["seed"] != first[1].provenance["seed"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no parts are left


def test_failed_attempts_are_left_out_and_the_first_successes_kept(config, tmp_path, monkeypatch):
    made = fake_attempts(monkeypatch, failing={0, 2})
    parts = collecting._record_parts(config.profile, 5, tmp_path, workers=1, bar=NoBar())
    assert [part.name for part in parts] == ["attempt_00001.hdf5", "attempt_00003.hdf5"]
    assert made == [0, 1, 2, 3]


def test_what_was_attempted_before_is_not_attempted_again(config, tmp_path, monkeypatch):
    collecting._part(tmp_path, 1).touch()
    collecting._mark(tmp_path, 0).touch()
    made = fake_attempts(monkeypatch, failing=set())
    parts = collecting._record_parts(config.profile, 5, tmp_path, workers=1, bar=NoBar())
    assert [part.name for part in parts] == ["attempt_00001.hdf5", "attempt_00002.hdf5"]
    assert made == [2]


def test_an_expert_that_always_fails_is_reported(config, tmp_path, monkeypatch):
    fake_attempts(monkeypatch, failing=range(1000))
    with pytest.raises(LarError, match="solved only 0 of 16 attempts at task 5"):
        collecting._record_parts(config.profile, 5, tmp_path, workers=1, bar=NoBar())


def test_three_at_once_record_every_attempt_once(config, tmp_path, monkeypatch):
    """And none removes what another one writes: the last ones to come find the whole file."""
    made = fake_attempts(monkeypatch, failing={1})
    monkeypatch.setattr(collecting, "merge_episodes", lambda parts, path: (time.sleep(0.2), write_text(path, "whole")))
    monkeypatch.setattr(collecting, "episode_count", lambda path: config.profile.demos_per_task)
    with ThreadPoolExecutor(3) as threads:
        jobs = [threads.submit(collect, config, tmp_path, workers=1, progress=False) for _ in range(3)]
        (path,) = {job.result()[0] for job in jobs}
    assert made == [0, 1, 2] and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_signal_of_a_scheduler_lets_what_is_being_recorded_end(config, tmp_path, monkeypatch):
    made = fake_attempts(monkeypatch, failing=set())
    attempt = collecting._attempt

    def slow(*arguments):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        return attempt(*arguments)
    monkeypatch.setattr(collecting, "_attempt", slow)
    with pytest.raises(Stopped) as stopped, on_stop(stop):
        collect(config, tmp_path, workers=1, progress=False)
    assert made == [0] and len(list(tmp_path.rglob("attempt_00000.hdf5"))) == 1 and stopped.value.status == 143
    assert not list(tmp_path.rglob("*.lock-owner")), "the lock is let go"


def test_every_setting_that_changes_the_demonstrations_changes_their_path(config, tmp_path):
    changes = [{"image_size": 128}, {"wrist_size": 16}, {"recovery_noise": 0.0}, {"demos_per_task": 3},
               {"placement": "wide"}, {"tasks": (3,)}]
    paths = {demo_paths(make_config(profile="micro", **change), tmp_path)[0] for change in [{}, *changes]}
    assert len(paths) == 1 + len(changes)


class NoBar:
    def update(self, count):
        pass


def fake_attempts(monkeypatch, failing) -> list[int]:
    """Replace the worker processes by a thread and the attempts by marks; return the list of attempts made."""
    made = []

    def attempt(profile, task, folder, number):
        made.append(number)
        (collecting._mark if number in failing else collecting._part)(folder, number).touch()
        return number not in failing

    @contextmanager
    def pool(workers):
        with ThreadPoolExecutor(workers) as threads:
            yield threads

    monkeypatch.setattr(collecting, "_attempt", attempt)
    monkeypatch.setattr(collecting, "pool", pool)
    return made
