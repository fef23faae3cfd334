"""`lar doctor`: what this machine has, what a configuration will need on it, and whether the full size runs.

It must survive what it looks for, so whatever may be broken is imported where it is needed, or in a child process.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .run.errors import LarError
from .run.processes import ChildError, in_child
from .run.versions import installed, pins, wrong_versions

if TYPE_CHECKING:
    from .estimate import Machine, Plan
    from .run.config import RunConfig

PACKAGE = "la-reconvla"
PYTHONS = ((3, 11), (3, 13))  # first and last
NEEDED_MEMORY = 6  # GiB, profile tiny
NEEDED_DISK = 5  # GiB
MIX = "google/paligemma-3b-mix-224"
_TORCH = """
import torch
on = torch.cuda.get_device_name() if torch.cuda.is_available() else f"the CPU, {torch.get_num_threads()} threads"
print(f"{torch.__version__} on {on}")
"""
_SCENE = """
import json
from lar_core.scene.env import SpatialEnv
from lar_core.scene.reference import scene_record
print(json.dumps(scene_record(SpatialEnv(0, wrist_size=0))))
"""


def examine() -> bool:
    """Print one line a check; True when everything that the tiny profile needs is there. Never raises."""
    checks: dict[str, Callable[[], str]] = {
        "Python": _python,
        "packages": _packages,
        "PyTorch": _torch,
        "caches": _caches,
        "off-screen rendering": _rendering,
        "a scene of LIBERO": _scene,
        "memory": _memory,
        "disk": _disk,
    }
    fine = True
    for name, check in checks.items():
        try:
            print(f"  ok      {name}: {check()}", flush=True)
        except LarError as error:
            fine = False
            print(f"  missing {name}: {error}", flush=True)
        except (Exception, SystemExit) as error:  # what broke is told all the same, and the other checks follow
            fine = False
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"  missing {name}: this could not be looked into ({cause}): mend that first, or install all again.",
                  flush=True)
    return fine


def show_plan(config: RunConfig, machine: Machine | None = None) -> Plan:
    """Print what a configuration will need, part by part, on this machine or another; nothing of it is loaded."""
    from .estimate import SESSION, plan, this_machine

    made = plan(config, machine or this_machine(config))
    profile = config.profile
    print(f"Plan for {config.condition.name} at profile {profile.name} ({profile.precision}, {profile.tune}, batch "
          f"{profile.batch_size}{', feature cache' if profile.cache else ''}) on {made.machine.name}; estimates, "
          "nothing was loaded.")
    _rows("memory while training, GB", {name: value / 1e9 for name, value in made.memory.items()}, "6.2f")
    verdict = "fits" if made.fits else "DOES NOT FIT: lower batch_size, set checkpointing=true, or choose tune=lora_top"
    print(f"    {'in all':38s} {made.peak / 1e9:6.2f}  of {made.machine.memory / 1e9:.1f} free: {verdict}")
    _rows("minutes, from nothing to the report", {name: value / 60 for name, value in made.seconds.items()}, "6.1f")
    minutes, limit = sum(made.seconds.values()) / 60, SESSION / 60
    verdict = "fits" if minutes <= limit else "DOES NOT FIT: lower samples or episodes_per_task; it goes on where it was"
    print(f"    {'in all':38s} {minutes:6.1f}" + (f"  of {limit:.0f} that a free session usually lasts: {verdict}"
                                                if "T4" in made.machine.name else ""))
    if made.disk:
        print(f"  disk for the feature cache: {made.disk / 1e9:.1f} GB")
    return made


def ask(config: RunConfig) -> None:
    """Ask the weights, in the profile's precision, to find a bowl, and print what that says of how they are loaded.

    Nothing is downloaded. In place of PaliGemma's base weights its mix is asked where that is on this machine.
    """
    backbone = _to_ask(config.profile.backbone)
    if backbone is None:
        if not config.profile.miniature:
            print(f"  {config.profile.backbone} was not asked to find a bowl: neither it nor {MIX} is here.")
        return
    from .measure import abilities
    from .model.paligemma import load_backbone
    from .model.tiny import find_weights
    from .run.runtime import device
    eyes = load_backbone(find_weights(backbone), precision=config.profile.precision, device=device()).eval()
    answers, seen = abilities.ask(eyes)
    print(f"  what {backbone} says of one embedded picture, in {config.profile.precision}")
    for one in answers:
        found = "no box" if one.iou is None else f"IoU {one.iou:.2f}"
        print(f"    {one.question}: {one.words or 'nothing'} ({found}, {one.strokes} <seg> tokens)")
    print(f"    saliency on the bowls: AUC {seen:.2f} (0.5: chance)")
    print(f"  {abilities.verdict(answers, seen, '-pt-' in backbone)}")


def _to_ask(backbone: str) -> str | None:
    """The weights that can be asked without a download, or None: of PaliGemma-3B the mix, which answers, before the base."""
    from .data.hub import here, load_manifest
    if backbone == "tabletop" or Path(backbone).is_dir():
        return backbone
    keys = {entry.id: entry.key for entry in load_manifest().values() if entry.kind == "weights"}
    wanted = (MIX, backbone) if backbone.startswith("google/paligemma-3b") else (backbone,)
    return next((name for name in wanted if name in keys and here(keys[name])), None)


def full_size(config: RunConfig, data: Path) -> None:
    """Run the full-size smoke test and print time and peak memory of each stage, and the plan's memory beside it."""
    from .estimate import plan, this_machine
    from .full_size import smoke
    from .measure.costs import NOISE_FRAMES

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


def _python() -> str:
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        first, last = (".".join(map(str, version)) for version in PYTHONS)
        raise LarError(f"this is {platform.python_version()}, but {first} to {last} is needed: say make "
                       f"PYTHON=python{last}.")
    return platform.python_version()


def _packages() -> str:
    wrong = wrong_versions() + _unmet()
    if wrong:
        raise LarError(" ".join(wrong))
    return f"{', '.join(f'{name} {version}' for name, version in pins().items())}, as pinned"


def _unmet() -> list[str]:
    """A sentence on the project's own requirements that are not met; nothing where it runs without being installed."""
    from packaging.requirements import Requirement
    lines = importlib.metadata.requires(PACKAGE) or [] if installed(PACKAGE) else []
    needed = [need for need in map(Requirement, lines)
              if need.name not in pins() and (need.marker is None or need.marker.evaluate({"extra": ""}))]
    bad = [str(need) for need in needed
           if not (found := installed(need.name)) or not need.specifier.contains(found, prereleases=True)]
    quoted = " ".join(f'"{need}"' for need in bad)
    return [f"Missing, or of another version: {', '.join(bad)}. Type `pip install {quoted}`."] if bad else []


def _torch() -> str:
    try:
        return in_child(_TORCH)
    except ChildError as error:
        raise LarError(f"it cannot be used ({error}): install it again, `pip install --force-reinstall torch`.") from error


def _caches() -> str:
    from .run.files import cache_base, library_caches
    library_caches()
    return "written to " + str(cache_base()).replace(str(Path.home()), "~", 1)  # the page may be given to others


def _rendering() -> str:
    from .scene import gl
    return f"works with MUJOCO_GL={gl.prepare()}"


def _scene() -> str:
    """Build one scene and render it, in a child: a crash inside a library is one of the answers."""
    try:
        made = json.loads(in_child(_SCENE))
    except ChildError as error:
        raise LarError(f"none can be built ({error}) {' '.join(wrong_versions())}".rstrip()) from error
    what = f"assets {made['assets']['name']!r}, sha256 {made['assets']['sha256'][:12]}, drawn by {made['gl']['renderer']}"
    if made["picture"]["check"] == "other":
        raise LarError(f"it is built ({what}), but its picture is not the expected one: other renderers differ by little, "
                       f"so this is another light, scene or orientation. {' '.join(wrong_versions()) or _OTHER_GL}")
    return f"{what}, reference picture {made['picture']['sha256'][:12]} ({made['picture']['check']})"


_OTHER_GL = "Set MUJOCO_GL=osmesa and look again: if that helps, the graphics driver is at fault."


def _memory() -> str:
    import psutil
    free = psutil.virtual_memory().available / 2**30
    if free < NEEDED_MEMORY:
        raise LarError(f"{free:.1f} GiB are free, but profile tiny needs {NEEDED_MEMORY}: close other programs.")
    return f"{free:.1f} GiB free"


def _disk() -> str:
    free = shutil.disk_usage(".").free / 2**30
    if free < NEEDED_DISK:
        raise LarError(f"{free:.1f} GiB are free here, but {NEEDED_DISK} are needed: free some, or work elsewhere.")
    return f"{free:.1f} GiB free"
