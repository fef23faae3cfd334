"""One picture of a fixed scene, to tell what a machine really renders: the rendering self-check of every result.

The scene is the task's first official init state, its fixtures drawn with seed 0, before any step. The exact checksum
differs between renderers; the mean colours of an 8 x 8 grid hardly do, but other assets, lighting or a turned picture
change them. `reference.json` holds the expected ones of the stand-in pack (scripts/make_reference.py writes it).
"""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib.resources import files

import numpy as np

from ..run.versions import versions
from .env import SpatialEnv, official_init_states

SIZE, CELLS = 64, 8
TOLERANCE = 3.0  # mean difference of the cells, of 255: multi-sampling and reflections give 1, another task 5 and more
MEANING = {"expected": "renders what is expected", "other": "does not render what is expected",
           "unknown": "renders assets whose look is not on record"}


def scene_record(env: SpatialEnv) -> dict:
    """What a result of `env` was made with: assets in the scene, renderer, versions, reference picture. Ends its episode."""
    picture = reference_picture(env)
    seen = colours(picture)
    return {"assets": env.assets, "gl": env.renderer(), "versions": {"python": platform.python_version(), **versions()},
            "picture": {"task": env.task, "sha256": hashlib.sha256(picture.tobytes()).hexdigest(),
                        "colours": seen.tobytes().hex(), "check": check(env.assets["sha256"], env.task, seen)}}


def reference_picture(env: SpatialEnv) -> np.ndarray:
    """uint8 (64, 64, 3), upright."""
    env.reset(seed=0, options={"init_state": official_init_states(env.task)[0], "wait_steps": 0})
    return env.render_camera("agentview", SIZE)


def colours(picture: np.ndarray) -> np.ndarray:
    """Mean colours of the cells of an 8 x 8 grid: uint8 (64, 64, 3) to uint8 (8, 8, 3)."""
    cells = picture.reshape(CELLS, SIZE // CELLS, CELLS, SIZE // CELLS, 3)
    return cells.mean(axis=(1, 3)).round().astype(np.uint8)


def check(assets: str, task: int, seen: np.ndarray) -> str:
    """A key of MEANING: the colours (8, 8, 3) of a task's picture against those on record for assets of this sha256."""
    known = _on_record().get(assets)
    if known is None:
        return "unknown"
    wanted = np.frombuffer(bytes.fromhex(known[task]), np.uint8).reshape(seen.shape)
    return "expected" if np.abs(seen.astype(int) - wanted).mean() <= TOLERANCE else "other"


@cache
def _on_record() -> dict[str, list[str]]:
    """Colours as hexadecimal digits, task by task, by the assets' sha256."""
    return json.loads(files(__package__).joinpath("reference.json").read_text(encoding="utf-8"))
