"""Where the runs of a study are made: in processes of this machine, here, or on those of a cluster (`ray_engine.py`).

An engine is a context manager. It yields a function that makes runs, several at the same time, and yields each with its
outcome when it is done. On Ctrl-C every run stops as `lar reproduce` does, and none is begun any more.

    here:     whole
    cluster:  first ─► every placement's rollouts, at the same time ─► whole, which finds them done
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .run.errors import LarError
from .run.folder import Run
from .run.processes import STOPS, cores, end_with_parent, interrupt, on_stop, stop
from .run.runtime import forget_launch, quiet

Job = Callable[[Run, Path], "str | None"]  # makes a run from the data in a folder; returns the sentence of its failure
Outcome = tuple[Run, "str | None"]  # a run, and that sentence
STOPPED, LOG = "It was stopped.", "log.txt"


@dataclass(frozen=True)
class Making:
    """How a run is made: by `whole`, which does what is not done yet, or in parts that may be on several machines.

    first: what comes before its rollouts; apart: jobs by name, of the rollouts that it lacks: they read nothing but the run
    and add to nothing but its rollouts, so that they may go side by side; gather: puts the rows into the order of `whole`.
    """

    whole: Job
    first: Job
    apart: Callable[[Run], dict[str, Job]]
    gather: Callable[[Run], None]


Each = Callable[[Making, Iterable[Run], Sequence[Path]], Iterator[Outcome]]  # the last: files of the data that jobs read


@contextmanager
def local(count: int, data: Path) -> Iterator[Each]:
    """Make runs in processes of this machine, `count` at a time. Raises LarError when one was killed."""
    if count == 1:
        yield lambda making, runs, _: ((run, making.whole(run, data)) for run in runs)
        return
    executor = pool(_shares(count))
    try:
        yield lambda making, runs, _: side_by_side(
            lambda run: executor.submit(interruptible, making.whole, run, data), count, runs)
    except BrokenProcessPool as error:
        raise LarError("A run of the study was killed, perhaps for lack of memory: run it again, with fewer --workers; "
                       "what was finished is kept.") from error
    except KeyboardInterrupt:
        interrupt_children()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def usual_workers(runs: int, available: int | None = None) -> int:
    """How many of `runs` go side by side on so many cores: small models gain little from more than two cores each.

    available: cores; None: this machine's. A GPU is given to one run after the other: its memory may not hold two.
    """
    if available is None:
        available = cores()
        runs = 1 if torch.cuda.is_available() else runs
    return min(runs, max(min(2, available), available // 2))


def side_by_side(submit: Callable[[Run], Future], count: int, runs: Iterable[Run]) -> Iterator[Outcome]:
    """No more runs are handed over than there are processes, so that after Ctrl-C none begins."""
    waiting, running = list(runs), {}
    while waiting or running:
        while waiting and len(running) < count:
            run = waiting.pop(0)
            running[submit(run)] = run
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def pool(shares: Sequence[tuple[set[int], int]]) -> ProcessPoolExecutor:
    """A process for each share: the processor cores that it may use, and how many of them it may load."""
    context = multiprocessing.get_context("spawn")
    waiting = context.SimpleQueue()
    for share in shares:
        waiting.put(share)
    return ProcessPoolExecutor(len(shares), mp_context=context, initializer=_start_worker, initargs=(waiting,))


def interrupt_children() -> None:
    """Ask the processes of a pool to save and stop."""
    for process in multiprocessing.active_children():
        interrupt(process)


def interruptible(job: Job, run: Run, data: Path, log: str = LOG) -> str | None:
    """In a worker process: what the run says goes to its file `log`, where it does not mix with that of others.

    Between two runs the process ignores Ctrl-C, which is the parent's to handle.
    """
    with (run.path / log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        with on_stop(stop):
            return job(run, data)
    except KeyboardInterrupt:
        return STOPPED


def _start_worker(shares: multiprocessing.SimpleQueue) -> None:
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # Ray's processes are started deaf to Ctrl-C, and so are theirs
    end_with_parent()
    quiet()
    forget_launch()
    share, threads = shares.get()
    os.environ["LAR_CORES"] = str(threads)  # the scenes' processes of its rollouts are then as many
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)


def available_cores() -> list[int]:
    """The numbers of the processor's cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores()))


def _shares(count: int) -> list[tuple[set[int], int]]:
    """The processor cores of each of `count` processes, and how many of them it may load.

    Where there are fewer cores than processes, some share one; where a quota allows fewer than there are, not all of
    them are loaded.
    """
    available = available_cores()
    if count > len(available):
        return [({available[i % len(available)]}, 1) for i in range(count)]
    return [(set(part.tolist()), max(1, cores() * len(part) // len(available)))
            for part in np.array_split(available, count)]
