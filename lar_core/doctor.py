"""`lar doctor`: what this machine has, and the line that mends what is missing."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable

import psutil
import torch

from .errors import LarError

NEEDED_MEMORY = 6  # GiB, profile tiny
NEEDED_DISK = 5  # GiB


def examine() -> bool:
    """Print one line a check; True when everything that the tiny profile needs is there."""
    checks: dict[str, Callable[[], str]] = {
        "Python": lambda: platform.python_version(),
        "PyTorch": _torch,
        "off-screen rendering": _rendering,
        "LIBERO and its assets": _libero,
        "memory": _memory,
        "disk": _disk,
    }
    fine = True
    for name, check in checks.items():
        try:
            print(f"  ok      {name}: {check()}")
        except LarError as error:
            fine = False
            print(f"  missing {name}: {error}")
    return fine


def _torch() -> str:
    if torch.cuda.is_available():
        return f"{torch.__version__} on {torch.cuda.get_device_name()}"
    return f"{torch.__version__} on the CPU, {torch.get_num_threads()} threads"


def _rendering() -> str:
    import os

    from .sim.libero_setup import setup
    setup()
    return f"works with MUJOCO_GL={os.environ['MUJOCO_GL']}"


def _libero() -> str:
    from .sim.libero_setup import use_assets
    assets = use_assets()
    return f"assets {assets['name']!r}, sha256 {assets['sha256'][:12]}"


def _memory() -> str:
    free = psutil.virtual_memory().available / 2**30
    if free < NEEDED_MEMORY:
        raise LarError(f"{free:.1f} GiB are free, but profile tiny needs {NEEDED_MEMORY}: close other programs.")
    return f"{free:.1f} GiB free"


def _disk() -> str:
    free = shutil.disk_usage(".").free / 2**30
    if free < NEEDED_DISK:
        raise LarError(f"{free:.1f} GiB are free here, but {NEEDED_DISK} are needed: free some, or work elsewhere.")
    return f"{free:.1f} GiB free"
