"""Worker processes that simulate: one environment each, because software GL mixes up pictures of several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache

from ..run.errors import LarError
from ..run.processes import end_with_parent, ignore_stops
from .env import SpatialEnv
from .setup import prepare


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes for one task. On any exception, what runs is finished and saved, what waits is dropped.

    Raises LarError when one of them was killed, and where no image can be rendered.
    """
    prepare()
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise LarError("A worker process was killed, perhaps for lack of memory: run the same command again, with "
                       "fewer workers; what was finished is kept.") from error
    finally:
        executor.shutdown(cancel_futures=True)


@cache
def environment(task: int, image_size: int, wrist_size: int) -> SpatialEnv:
    """The one environment of this worker process, with segmentation."""
    return SpatialEnv(task, image_size=image_size, wrist_size=wrist_size, segmentation=True)


def _start_worker() -> None:
    ignore_stops()
    end_with_parent()
