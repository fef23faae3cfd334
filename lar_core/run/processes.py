"""Processes: how many may run, how they are told to stop, and that none outlives the command that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import NoReturn

from .errors import LarError

# What a scheduler grants a job on this machine (SLURM, Grid Engine, PBS, LSF); the last one is this package's own.
GRANTED = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NSLOTS", "NCPUS", "LSB_DJOB_NUMPROC", "LAR_CORES")
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAME_REQUEST = 10.0  # seconds in which a further signal is the first one again: terminals, schedulers and parents repeat
_asked = -SAME_REQUEST  # when the last request to stop came


def cores() -> int:
    """How many processes or threads can run at the same time: the one place where that is counted.

    The smallest of: the processor's cores that this process may use, the quota of its container, and what a scheduler,
    or the environment variable LAR_CORES, grants.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = [int(os.environ[name]) for name in GRANTED if os.environ.get(name, "").isdecimal()]
    return max(1, min([usable, *granted, *_quotas()]))


def processes(wanted: int | None) -> int:
    """How many processes to start: as many as were asked for (--workers), or one a core. Raises LarError below one."""
    if wanted is not None and wanted < 1:
        raise LarError(f"--workers is {wanted}, but must be at least 1.")
    return wanted or cores()


def _quotas(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Cores that the control groups of this process, versions 2 and 1, allow; part of a core counts as one."""
    for line in own.read_text().splitlines() if own.exists() else ():
        _, kinds, group = line.split(":", 2)  # version 2 names no kinds
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if kinds else ("cpu.max",)
        here = root / kinds / group.lstrip("/")
        for folder in (here, *here.parents):
            with suppress(OSError, ValueError):  # there is none, or it is "max"
                quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
                if quota > 0:
                    yield -(-quota // period)


class Stopped(KeyboardInterrupt):
    """A signal has told the process to stop: Ctrl-C, or what a scheduler sends before it kills. `status`: to exit with."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def on_stop(handle: Callable[[int], None]) -> Iterator[None]:
    """Inside, `handle` is called with a signal that asks the process to stop, and once if it is repeated soon.

    One that is ignored (`nohup`) stays so; outside the main thread, where Python allows no handlers, nothing changes.
    """
    global _asked

    def receive(number: int, _: FrameType | None) -> None:
        global _asked
        if time.monotonic() - _asked >= SAME_REQUEST:
            _asked = time.monotonic()
            handle(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in STOPS if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    _asked = -SAME_REQUEST
    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int = signal.SIGINT) -> NoReturn:
    """As a handler: whatever signal it was, do what Ctrl-C does."""
    raise Stopped(number)


def ignore_stops() -> None:
    """Call in a worker process: a signal that reaches the whole group is the parent's to handle."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def interrupt(process: BaseProcess) -> None:
    """Ask a process that was started here to save and stop, if it still runs."""
    with suppress(ProcessLookupError):
        if process.pid:
            os.kill(process.pid, signal.SIGTERM)  # SIGINT is ignored in what a shell has put into the background


def end_with_parent() -> None:
    """Call in a worker process: it ends when its parent is gone, even if that was killed and could say nothing."""
    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# Children that may crash in the parent's place: what GL or a foreign library does is only told.

_ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import os, sys
try:
    exec(sys.argv[1], {})
except BaseException as error:
    cause = str(error) if type(error).__name__ == "LarError" else f"{type(error).__name__}: {error}"
    sys.exit("\\n" + " ".join(cause.split()))
sys.stdout.flush()
os._exit(0)  # libraries that crash while they are taken down have done their work
"""


class ChildError(Exception):
    """What went wrong in a child process, in a few words: its last message, the signal that ended it, or its silence."""


def in_child(code: str, patience: float = 180, environment: dict[str, str] | None = None) -> str:
    """Run Python `code` in a process of its own and return the last line that it prints.

    environment: variables beside those of this process. Raises ChildError for whatever happens there: exceptions, an
    exit, a crash inside a library, or no end after `patience` seconds.
    """
    variables = os.environ | (environment or {})
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (variables.get("PYTHONPATH"), str(_ROOT))))
    try:
        done = subprocess.run([sys.executable, "-c", _RUN, code], env=variables, capture_output=True, text=True,
                              errors="replace", stdin=subprocess.DEVNULL, timeout=patience)
    except subprocess.TimeoutExpired:
        raise ChildError(f"it did not answer within {patience:.0f} seconds") from None
    except OSError as error:
        raise ChildError(f"no process could be started: {error}") from error
    if done.returncode < 0:
        raise ChildError(f"the process was ended by {signal.Signals(-done.returncode).name}, inside a library")
    said, failed = done.stdout.strip(), done.stderr.strip()
    if done.returncode or not said:
        cause = failed or said or f"it ended with code {done.returncode}, without a word"
        raise ChildError(cause.splitlines()[-1][:600])
    return said.splitlines()[-1]
