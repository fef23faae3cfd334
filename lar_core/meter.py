"""Time and peak memory of a piece of work: of the process on a CPU, of torch's allocator on a GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

SAMPLE_EVERY = 0.02  # seconds


@dataclass
class Reading:
    """seconds, and bytes at the peak: of memory that belongs to this process alone, or of the GPU."""

    seconds: float = 0.0
    peak_bytes: int = 0


def own_bytes() -> int:
    """Memory of this process without files that it has only mapped, such as the checkpoint that it reads."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


@contextmanager
def meter() -> Iterator[Reading]:
    """Yield a Reading that is complete when the block ends."""
    reading, began = Reading(), time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        yield reading
        torch.cuda.synchronize()
        reading.peak_bytes = torch.cuda.max_memory_allocated()
    else:
        with _sampled(reading):
            yield reading
    reading.seconds = time.perf_counter() - began


@contextmanager
def _sampled(reading: Reading) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            reading.peak_bytes = max(reading.peak_bytes, own_bytes())
            done.wait(SAMPLE_EVERY)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        reading.peak_bytes = max(reading.peak_bytes, own_bytes())
