"""Copying that leaves nothing half done, and makes no folder where Drive was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def copied(source: Path, temporary: Path) -> Iterator[Path]:
    """A copy under a temporary name, which is gone afterwards unless it was given another."""
    remove(temporary)
    try:
        copy(source, temporary)
        yield temporary
    finally:
        with suppress(OSError):
            remove(temporary)


def copy(source: Path, target: Path) -> None:
    """shutil.copytree would make the folders above `target` as well, on the local disk where Drive was unmounted."""
    if source.is_dir():
        target.mkdir()
        for child in sorted(source.iterdir()):
            copy(child, target / child.name)
    else:
        shutil.copy2(source, target)


def swap(temporary: Path, target: Path, old: Path) -> None:
    """Put `temporary` in the place of `target`; a folder goes by way of `old`, which gets its name back after a kill."""
    if not target.is_dir():
        os.replace(temporary, target)
        return
    remove(old)
    target.rename(old)
    temporary.rename(target)
    remove(old)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def make_parents(root: Path, name: Path) -> None:
    """The folders between `root` and `name`; never `root`, which is not there while Drive is not."""
    for parent in reversed(name.parents[:-1]):
        (root / parent).mkdir(exist_ok=True)
