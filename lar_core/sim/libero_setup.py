"""Everything that must happen before LIBERO, robosuite and MuJoCo are imported, and the choice of LIBERO's assets."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib
import importlib.util
import io
import logging
import os
import runpy
import sys
import tempfile
import warnings
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from unittest import mock

import yaml

from ..errors import LarError
from ..files import write_text

STANDIN = Path(__file__).parent / "assets"  # our own objects under LIBERO's names, made by scripts/make_assets.py
ARENA = "scenes/libero_tabletop_base_style.xml"
STOVE = "articulated_objects/flat_stove.xml"
CABINET = "articulated_objects/wooden_cabinet.xml"
BOWL = "stable_scanned_objects/akita_black_bowl/akita_black_bowl.xml"
PLATE = "stable_scanned_objects/plate/plate.xml"
RAMEKIN = "stable_scanned_objects/glazed_rim_porcelain_ramekin/glazed_rim_porcelain_ramekin.xml"
COOKIES = "stable_hope_objects/cookies/cookies.xml"
MODELS = (ARENA, STOVE, CABINET, BOWL, PLATE, RAMEKIN, COOKIES)  # what the ten tasks load
TEXTURES = ("textures/light-gray-floor-tile.png", "textures/light-gray-plaster.png")  # LIBERO's code names these two

_INSTALL = {"osmesa": "libosmesa6", "egl": "libegl1"}  # Debian's names of the GL libraries


@cache
def setup() -> None:
    """Prepare this process for LIBERO; later calls do nothing.

    Chooses off-screen GL (what the user set in MUJOCO_GL stays; else EGL with an NVIDIA GPU, OSMesa without), writes
    LIBERO's configuration into a temporary folder (without it, importing LIBERO asks a question on stdin), and keeps
    the imports from printing and from writing robosuite's log file.
    Raises LarError when there is no GL library, naming the line that installs it.
    """
    backend = os.environ.setdefault("MUJOCO_GL", _default_gl())
    if backend in _INSTALL:
        os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    _check_gl(backend)
    _configure_libero()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), \
            mock.patch.object(logging, "FileHandler", lambda *_, **__: logging.NullHandler()):
        import libero.libero.envs  # noqa: F401


def _default_gl() -> str:
    if sys.platform == "darwin":
        return "cgl"
    return "egl" if glob.glob("/dev/nvidia[0-9]*") else "osmesa"


def _check_gl(backend: str) -> None:
    try:
        import mujoco

        importlib.reload(mujoco.gl_context)  # somebody may have imported mujoco before MUJOCO_GL was chosen
        window = mujoco.gl_context.GLContext(8, 8)
        window.make_current()
        mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100).free()
        window.free()
    except Exception as error:
        package = _INSTALL.get(backend)
        remedy = f"type `sudo apt-get install -y {package}`" if package else "set MUJOCO_GL=osmesa or MUJOCO_GL=egl"
        raise LarError(f"No image can be rendered, because the GL library for MUJOCO_GL={backend} does not work "
                       f"({error}): {remedy} and try again.") from error


def _configure_libero() -> None:
    root = libero_root()
    paths = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files",
             "datasets": root.parent / "datasets", "assets": root / "assets"}
    folder = Path(tempfile.gettempdir()) / f"lar_core-libero-{os.getuid()}-{_digest(str(root).encode())[:8]}"
    write_text(folder / "config.yaml", yaml.safe_dump({key: str(path) for key, path in paths.items()}))
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)


@cache
def libero_root() -> Path:
    """Folder of LIBERO's benchmark files, found without importing the package."""
    spec = importlib.util.find_spec("libero")
    if spec is None:
        raise LarError("The package libero is not installed: run `make setup`.")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


@cache
def task_names() -> tuple[str, ...]:
    """The ten names of LIBERO-Spatial in benchmark order."""
    # Run the file on its own: importing LIBERO's benchmark package would import torch into every simulation process.
    suites = runpy.run_path(str(libero_root() / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]
    return tuple(suites["libero_spatial"])


def bddl_file(task: int) -> Path:
    """LIBERO's description of a task."""
    return libero_root() / "bddl_files" / "libero_spatial" / f"{task_names()[task]}.bddl"


def use_assets(choice: str | Path | None = None) -> dict[str, str]:
    """Point LIBERO at a set of assets and say which: {"name": "standin" | "official", "sha256": ...}.

    choice: "standin", "hub" (download, only ever when asked for), or a folder in LIBERO's layout. None follows the
    environment variable LAR_LIBERO_ASSETS, then LIBERO's own local copies, then the stand-in pack.
    Raises LarError for a folder that lacks a file, naming the first one.
    """
    setup()
    import libero.libero

    folder = resolve_assets(choice)
    provenance = {"name": "standin" if folder == STANDIN else "official", "sha256": assets_digest(folder)}
    libero.libero._assets_path_cache = str(folder)
    return provenance


def resolve_assets(choice: str | Path | None = None) -> Path:
    """The folder that `choice` (see `use_assets`) stands for."""
    choice = choice or os.environ.get("LAR_LIBERO_ASSETS")
    if choice == "standin":
        return STANDIN
    if choice == "hub":
        from ..data.download import download  # the hub's library is slow to import, and every worker would

        return download("libero-assets", folder=_hub_copy())
    if choice:
        return Path(choice).resolve()
    copies = (libero_root() / "assets", _hub_copy())
    return next((copy for copy in copies if (copy / ARENA).exists()), None) or STANDIN


def _hub_copy() -> Path:
    return Path.home() / ".cache" / "libero" / "assets"  # LIBERO's own download lands here too


@cache
def assets_digest(folder: Path) -> str:
    """SHA-256 over path and content of the files in `folder` that the ten tasks load.

    Raises LarError naming the first file that is missing.
    """
    digest = hashlib.sha256()
    for name in needed_files(folder):
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()


def needed_files(folder: Path) -> list[str]:
    """Relative paths of what the ten tasks load: seven models, two textures, and the files that the models name."""
    names = list(MODELS + TEXTURES)
    for model in MODELS:
        seen = {"texplane", "tex-wall"}  # LIBERO replaces these two by TEXTURES
        for asset in ET.parse(_existing(folder, model)).findall("./asset/*[@file]"):
            if asset.get("name") not in seen:  # of two assets with one name, robosuite takes the first
                names.append(os.path.normpath(os.path.join(os.path.dirname(model), asset.get("file"))))
            seen.add(asset.get("name"))
    for name in names:
        _existing(folder, name)
    return sorted(set(names))


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise LarError(f"{folder} is not a complete set of LIBERO's assets, {name} is missing: correct "
                       "LAR_LIBERO_ASSETS, or unset it to use the project's own stand-in pack.")
    return folder / name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
