"""Cores are counted in one place, every signal to stop is what Ctrl-C is, and a worker does not outlive its parent."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from lar_core.run import processes
from lar_core.run.errors import LarError
from lar_core.run.processes import GRANTED, Stopped, cores, on_stop, stop

PARENT = """
import multiprocessing, os, time
from lar_core.run.processes import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    worker.join()
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))  # which says so when it listens for its parent's end
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    worker.wait(timeout=20)


# --- cores ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def machine(monkeypatch):
    """A machine of 64 cores with no limits but those that a test sets."""
    for name in GRANTED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(processes, "_quotas", lambda: iter(()))
    return monkeypatch


def test_cores_are_those_that_the_process_may_use(machine):
    assert cores() == 64
    machine.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8, 13})
    assert cores() == 4
    machine.delattr(os, "sched_getaffinity")  # as on a Mac
    assert cores() == 64


@pytest.mark.parametrize("name", GRANTED)
def test_a_schedulers_grant_is_a_limit(machine, name):
    machine.setenv(name, "4")
    assert cores() == 4
    machine.setenv(name, "4(x2)")
    assert cores() == 64, "what is not a number says nothing"
    machine.setenv(name, "1000")
    assert cores() == 64


@pytest.mark.parametrize("own, folder, content, expected", [
    ("0::/job/step\n", "job/step", {"cpu.max": "400000 100000"}, [4]),
    ("0::/job/step\n", "job", {"cpu.max": "150000 100000"}, [2]),  # of a folder above, and part of a core
    ("0::/host/path\n", "", {"cpu.max": "50000 100000"}, [1]),  # inside a container, which sees its own at the top
    ("0::/\n", "", {"cpu.max": "max 100000"}, []),
    ("4:memory:/a\n3:cpu,cpuacct:/a\n", "cpu,cpuacct", {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, [3]),
    ("3:cpu:/a\n", "cpu/a", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, []),
])
def test_a_containers_quota_is_a_limit(tmp_path, own, folder, content, expected):
    (tmp_path / "root" / folder).mkdir(parents=True)
    for name, text in content.items():
        (tmp_path / "root" / folder / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert list(processes._quotas(tmp_path / "root", tmp_path / "own")) == expected
    assert list(processes._quotas(tmp_path / "root", tmp_path / "none")) == []


def test_no_other_file_counts_cores():
    package = Path(processes.__file__).parents[1]
    counting = [path.name for path in package.rglob("*.py") if re.search(r"cpu_count\(", path.read_text())]
    assert counting == ["processes.py"]


def test_workers_are_those_asked_for_or_one_a_core(machine):
    assert processes.processes(None) == 64 and processes.processes(3) == 3
    with pytest.raises(LarError, match="--workers is 0, but must be at least 1"):
        processes.processes(0)


# --- signals ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_stop_is_what_ctrl_c_is(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as stopped, on_stop(stop):
        signal.raise_signal(number)
    assert stopped.value.status == 128 + number and signal.getsignal(number) is before


def test_a_signal_that_is_repeated_does_not_disturb_the_saving():
    saved = []
    with pytest.raises(Stopped) as stopped, on_stop(stop):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM), signal.raise_signal(signal.SIGINT)
            saved.append(1)
    assert saved and stopped.value.status == 143


def test_a_signal_is_heard_again_later(monkeypatch):
    monkeypatch.setattr(processes, "SAME_REQUEST", 0.05)
    heard = []
    with on_stop(heard.append):
        signal.raise_signal(signal.SIGTERM), time.sleep(0.1), signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_stop(stop):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


DEAF_TO_CTRL_C = """
import multiprocessing, signal, time
from lar_core.run.processes import interrupt, on_stop, stop

def work(begun):
    with on_stop(stop):
        begun.set()
        time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what it puts into the background
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=work, args=(begun,))
    process.start()
    begun.wait()
    interrupt(process)
    process.join(60)
    print("alive" if process.is_alive() else "stopped")
    process.kill()
"""


def test_a_worker_of_a_background_command_stops_when_it_is_asked_to(tmp_path):
    (tmp_path / "parent.py").write_text(DEAF_TO_CTRL_C)
    done = subprocess.run([sys.executable, tmp_path / "parent.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "stopped"


def test_outside_the_main_thread_nothing_is_handled_and_nothing_raised():
    passed = []

    def work():
        with on_stop(stop):
            passed.append(1)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert passed
