"""A worker does not outlive a killed parent."""

import os
import signal
import subprocess
import sys
import time

import psutil

PARENT = """
import multiprocessing, time
from lar_core.processes import end_with_parent

def work():
    end_with_parent()
    time.sleep(60)

if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    print(worker.pid, flush=True)
    worker.join()
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    time.sleep(1)  # let it get as far as its thread
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    worker.wait(timeout=20)
