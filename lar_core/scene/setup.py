"""Everything that must happen before LIBERO, robosuite and MuJoCo are imported, and the choice of LIBERO's assets."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import runpy
import warnings
import xml.etree.ElementTree as ET
from functools import cache, wraps
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from ..run.errors import LarError, say_once
from ..run.files import cache_base, home, library_caches, temporary_folder, write_text
from ..run.settings import Profile
from ..run.versions import pins, wrong_versions
from . import gl

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


def prepare() -> None:
    """What processes that simulate inherit from the one that starts them: caches that can be written, and GL.

    Raises LarError where no image can be rendered, with the remedy.
    """
    library_caches()
    gl.prepare()


@cache
def setup() -> None:
    """Prepare this process for LIBERO; later calls do nothing.

    Chooses off-screen GL (see `gl`), writes LIBERO's configuration into a temporary folder (without it, importing LIBERO
    asks a question on stdin), and keeps the imports from printing and from writing robosuite's log file.
    Raises LarError when no image can be rendered, and when LIBERO cannot be imported.
    """
    prepare()
    gl.check_here()
    _configure_libero()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), mock.patch.dict(os.environ), \
                mock.patch.object(logging, "FileHandler", lambda *_, **__: logging.NullHandler()):
            # robosuite refuses an EGL device that this does not contain as text; GL numbers devices by itself.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            import libero.libero.envs  # noqa: F401
    except (Exception, SystemExit) as error:
        raise LarError(broken(f"LIBERO in {libero_root()} cannot be imported", error)) from error
    for sentence in wrong_versions():
        say_once(f"Results may not be comparable: {sentence}")


def broken(what: str, error: BaseException) -> str:
    """A sentence on an error of LIBERO, robosuite or MuJoCo: wrong versions, where there are any, are its likely cause."""
    cause = " ".join(f"{what} ({type(error).__name__}: {error}): ".split()) + " "
    if wrong := wrong_versions():
        return cause + " ".join(wrong)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{cause}type `pip install {error.name.split('.')[0]}`."
    return f"{cause}reinstall it with `pip install --no-deps --force-reinstall {_pinned()}`."


def _pinned() -> str:
    """What a scene is built with, as pip is told."""
    return " ".join(f"{name}=={version}" for name, version in pins().items())


def _configure_libero() -> None:
    root = libero_root()
    paths = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files",
             "datasets": root.parent / "datasets", "assets": root / "assets"}
    folder = temporary_folder(f"libero-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}")
    write_text(folder / "config.yaml", yaml.safe_dump({key: str(path) for key, path in paths.items()}))
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)


@cache
def libero_root() -> Path:
    """Folder of LIBERO's benchmark files, found without importing the package."""
    spec = importlib.util.find_spec("libero")
    if spec is None:
        raise LarError(f"The package libero is not installed: type `pip install --no-deps {_pinned()}`.")
    places = [Path(place) / "libero" for place in spec.submodule_search_locations or ()]  # several from a repository
    root = next((place for place in places if (place / "benchmark").is_dir()), None)
    if root is None:
        raise LarError(f"What Python finds as libero ({spec.origin or ', '.join(map(str, places))}) is not the benchmark: "
                       "rename it, or start elsewhere.")
    return root


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

    choice: "standin", "hub" (download what the ten tasks load, only ever when asked for), "official" (what None finds, but
    "hub" in place of the stand-in pack), or a folder in LIBERO's layout. None follows the environment variable
    LAR_LIBERO_ASSETS, then LIBERO's own local copies, then the stand-in pack.
    Raises LarError for a folder that lacks a file, naming the first one.
    """
    setup()
    import libero.libero

    folder = resolve_assets(choice)
    digest = assets_digest(folder)
    libero.libero._assets_path_cache = str(folder)  # LIBERO of PyPI would go on a download otherwise
    _read_from(folder)
    return _provenance(folder, digest)


def _read_from(folder: Path) -> None:
    """Whatever path a LIBERO joins for one of the seven models (its repository's looks only beside its own code), read
    the file in `folder`. Textures and meshes follow, because they are relative to their model."""
    from robosuite.models.base import MujocoXML

    original = getattr(MujocoXML.__init__, "__wrapped__", MujocoXML.__init__)

    @wraps(original)
    def read(self: MujocoXML, fname: str) -> None:
        original(self, next((str(folder / name) for name in MODELS if str(fname).endswith(f"/{name}")), fname))

    MujocoXML.__init__ = read


def loaded_assets(stock: Any, choice: str | Path | None = None) -> dict[str, str]:
    """Which assets the built environment `stock` was made of, read off its models and its XML, as `use_assets` says it.

    Raises LarError where that is not what `choice` stands for.
    """
    import robosuite

    wanted, robot = resolve_assets(choice), Path(robosuite.__file__).parent
    parts = (stock.model.mujoco_arena, *stock.objects_dict.values(), *stock.fixtures_dict.values())
    files = {part.file for part in parts}
    files |= {asset.get("file") for asset in ET.fromstring(stock.model.get_xml()).findall("./asset/*[@file]")}
    known, loaded = needed_files(wanted), set()
    for file in sorted(file for file in map(os.path.normpath, files) if robot not in Path(file).parents):
        name = next((name for name in known if file.endswith(f"/{name}")), "")
        if not os.path.samefile(file, wanted / name):
            raise LarError(f"The scene was to be built from the assets in {wanted}, but it loaded {file}: this LIBERO does "
                           "not let its assets be chosen. Install the one that does: "
                           f"`pip install --no-deps libero=={pins()['libero']}`.")
        loaded.add(name)
    return _provenance(wanted, assets_digest(wanted, tuple(sorted(loaded))))


def _provenance(folder: Path, digest: str) -> dict[str, str]:
    return {"name": "standin" if folder.resolve() == STANDIN.resolve() else "official", "sha256": digest}


def resolve_assets(choice: str | Path | None = None) -> Path:
    """The folder that `choice` (see `use_assets`) stands for. Raises LarError for assets that are not to be had."""
    if choice == "official":
        if os.environ.get("LAR_LIBERO_ASSETS") == "standin":
            raise LarError("LIBERO's own assets are asked for (bench=libero), but LAR_LIBERO_ASSETS is standin: unset it, "
                           "or set bench to embedded.")
        choice = found if (found := resolve_assets()) != STANDIN else "hub"
    choice = choice or os.environ.get("LAR_LIBERO_ASSETS")
    if choice == "standin":
        return STANDIN
    if choice == "hub":
        return _pinned_copy()
    if choice:
        return Path(choice).resolve()
    copies = (libero_root() / "assets", _hub_copy())
    return next((copy for copy in copies if (copy / ARENA).exists()), None) or STANDIN


def assets_of(profile: Profile) -> str | None:
    """The choice of assets (`use_assets`) that a profile's bench stands for."""
    return "official" if profile.bench == "libero" else None


def _hub_copy() -> Path:
    return (home() or cache_base()) / ".cache" / "libero" / "assets"  # where LIBERO's own download lands, all of it


def _pinned_copy() -> Path:
    """Ours: only the files that the ten tasks load, checked; not where LIBERO would take them for all of it."""
    folder = cache_base() / "libero-assets"
    try:
        needed_files(folder)
    except LarError:
        from ..data.hub import download  # the hub's library is slow to import, and every worker would

        download("libero-assets", folder=folder)
    return folder


@cache
def assets_digest(folder: Path, names: tuple[str, ...] = ()) -> str:
    """SHA-256 over path and content of files in `folder`: of these, or else of all that the ten tasks load.

    Raises LarError naming the first file that is missing.
    """
    digest = hashlib.sha256()
    for name in names or needed_files(folder):
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()


def needed_files(folder: Path) -> list[str]:
    """Relative paths of what the ten tasks load: seven models, two textures, and the files that the models name."""
    names = list(MODELS + TEXTURES)
    for name in names:  # to which each model adds
        if not (folder / name).is_file():
            raise LarError(f"{folder} is not a complete set of LIBERO's assets, {name} is missing: correct "
                           "LAR_LIBERO_ASSETS, or set it to standin to use the project's own stand-in pack.")
        seen = {"texplane", "tex-wall"}  # LIBERO replaces these two by TEXTURES
        for asset in ET.parse(folder / name).findall("./asset/*[@file]") if name in MODELS else ():
            if asset.get("name") not in seen:  # of two assets with one name, robosuite takes the first
                names.append(os.path.normpath(os.path.join(os.path.dirname(name), asset.get("file", ""))))
            seen.add(asset.get("name"))
    return sorted(set(names))

