"""`lar doctor`: what this machine has, what a configuration will need on it, and whether the full size runs."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from .config import RunConfig
from .errors import LarError
from .full_size import NOISE_FRAMES, smoke
from .planner import Machine, Plan, plan, this_machine

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


def show_plan(config: RunConfig, machine: Machine | None = None) -> Plan:
    """Print what a configuration will need, part by part, on this machine or another; nothing of it is loaded."""
    made = plan(config, machine or this_machine(config))
    profile = config.profile
    print(f"Plan for {config.condition.name} at profile {profile.name} ({profile.precision}, {profile.tune}, batch "
          f"{profile.batch_size}{', feature cache' if profile.cache else ''}) on {made.machine.name}; estimates, "
          "nothing was loaded.")
    _rows("memory while training, GB", {name: value / 1e9 for name, value in made.memory.items()}, "6.2f")
    verdict = "fits" if made.fits else "DOES NOT FIT: lower batch_size, set checkpointing=true, or choose tune=lora_top"
    print(f"    {'in all':38s} {made.peak / 1e9:6.2f}  of {made.machine.memory / 1e9:.1f} free: {verdict}")
    _rows("minutes, without demonstrations", {name: value / 60 for name, value in made.seconds.items()}, "6.1f")
    if made.disk:
        print(f"  disk for the feature cache: {made.disk / 1e9:.1f} GB")
    return made


def full_size(config: RunConfig, data: Path) -> None:
    """Run the full-size smoke test and print time and peak memory of each stage, and the plan's memory beside it."""
    machine = this_machine(config)
    print(f"{machine.name}: {config.profile.precision}, {config.profile.tune}, batch {config.profile.batch_size}")
    print(f"  {'stage':10s} {'seconds':>8s} {'peak GB':>8s}")
    for stage, reading in smoke(config, data):
        print(f"  {stage:10s} {reading.seconds:8.1f} {reading.peak_bytes / 1e9:8.2f}", flush=True)
        if stage == "train":
            made = plan(config, machine, frames=NOISE_FRAMES)
            print(f"  {'(planned':10s} {made.step_seconds:8.1f} {made.peak / 1e9:8.2f})")


def _rows(title: str, values: dict[str, float], form: str) -> None:
    print(f"  {title}")
    for name, value in values.items():
        print(f"    {name:38s} {value:{form}}")


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
