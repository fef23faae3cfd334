"""Folders of generated files, shared by all processes: whole or absent, and named after the code that made them.

Where the user's cache cannot be written (a read-only container, no home folder), a temporary folder takes its place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .errors import LarError, say_once
from .files import produce


def cache_folder(kind: str, *sources: Path) -> Path:
    """A folder under the user's cache whose name changes with the bytes of `sources`."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    name = f"{kind}-{digest}"
    usual = _usual()
    return usual / name if usual and (usual / name).is_dir() else cache_base() / name


def cache_base() -> Path:
    """Where caches are written: the user's cache, or a temporary folder where that cannot be had."""
    usual = _usual()
    if usual and writable(usual):
        return usual
    folder = temporary_folder("cache")
    say_once(f"The cache folder {usual or '(there is no home folder)'} cannot be written: {folder} is used instead, and "
             "may have to be filled again next time. Set XDG_CACHE_HOME to a folder that can be written.")
    return folder


def home() -> Path | None:
    """The user's home folder; None for a user without one, as in many containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _usual() -> Path | None:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "lar_core"
    return home() and home() / ".cache" / "lar_core"


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or it itself can be made. Tried, because modes do not tell all."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError:
        return False
    return True


def temporary_folder(name: str) -> Path:
    """A folder of this user's for temporary files, the same one for all of their processes.

    Raises LarError where nothing can be written at all.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"lar_core-{os.getuid()}"
        if not os.path.lexists(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not writable(folder / name):
            folder = Path(tempfile.mkdtemp(prefix="lar_core-"))  # somebody else's: not to be trusted, nor to be written
        (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise LarError(f"No temporary file can be made ({error.strerror or error}): set TMPDIR to a folder that can be "
                       "written.") from error
    return folder / name


def library_caches() -> None:
    """Give the libraries that insist on writing a cache a place that can be written; call before they are imported.

    numba raises where it finds none beside robosuite, and matplotlib would draw up its fonts anew in each process.
    """
    if not _names_writable("NUMBA_CACHE_DIR"):
        os.environ["NUMBA_CACHE_DIR"] = str(cache_base() / "numba")
        if "numba" in sys.modules:
            sys.modules["numba"].config.reload_config()
    config = os.environ.get("XDG_CONFIG_HOME") or (home() and home() / ".config")
    if not _names_writable("MPLCONFIGDIR") and not (config and writable(Path(config) / "matplotlib")):
        os.environ["MPLCONFIGDIR"] = str(temporary_folder("matplotlib"))


def _names_writable(variable: str) -> bool:
    return bool(os.environ.get(variable)) and writable(Path(os.environ[variable]))


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Call `build(temporary_folder)` and rename the result to `folder`, unless `folder` is already there.

    Raises LarError when the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise LarError(f"The cache folder {folder.parent} cannot be written ({error.strerror}): "
                       "set XDG_CACHE_HOME to a folder that can.") from error

    def make() -> None:
        build(temporary)
        if not folder.is_dir():  # otherwise another machine was faster, and its folder is as good as ours
            temporary.rename(folder)
    try:
        produce(folder, f"generating {folder.name}", make)
    except OSError as error:
        raise LarError(f"Writing {folder} failed ({error.strerror}): free some space and try again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
