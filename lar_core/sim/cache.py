"""Folders of generated files, shared by all processes: whole or absent, and named after the code that made them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import LarError
from ..files import produce


def cache_folder(kind: str, *sources: Path) -> Path:
    """A folder under the user's cache whose name changes with the bytes of `sources`."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "lar_core" / f"{kind}-{digest}"


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
