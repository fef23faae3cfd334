"""A copy of the work folder in a place that outlives the machine, such as Google Drive.

Work is always done on the local disk: a mounted Drive can vanish in the middle of a write. `Mirror` brings back what
an earlier session left there, then copies what has changed, every minute and whenever it is asked to, each file (and
each checkpoint folder) under a temporary name first. If copying fails, that is said once and work goes on locally.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import LarError
from .files import atomic_path

EVERY = 60  # seconds


class Mirror:
    """Keeps `there` a copy of the files below `here`. warn: called once, with a sentence, when copying fails."""

    def __init__(self, here: Path, there: Path, warn: Callable[[str], None] = print):
        self.here, self.there, self.warn = here, there, warn
        self.works = True
        self._copied: dict[Path, tuple] = {}  # relative path of each unit: what it looked like when it was copied
        self._lock, self._stop = threading.Lock(), threading.Event()

    def restore(self) -> int:
        """Copy back what `here` lacks; returns the number of files and checkpoints."""
        return self._guarded(lambda: sum(self._copy(unit, self.there, self.here) for unit in units(self.there)
                                         if not (self.here / unit).exists()))

    def sync(self) -> int:
        """Copy what has changed since the last time; returns the number of files and checkpoints."""
        with self._lock:
            return self._guarded(self._sync)

    def start(self) -> None:
        """Sync every minute from now on, in the background, until `stop` or the end of the process."""
        def work() -> None:
            while not self._stop.wait(EVERY):
                self.sync()
        threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Sync a last time and end the background work."""
        self._stop.set()
        self.sync()

    def _sync(self) -> int:
        count = 0
        for unit in units(self.here):
            look = _look(self.here / unit)
            if self._copied.get(unit, _look(self.there / unit)) != look:
                count += self._copy(unit, self.here, self.there)
            self._copied[unit] = look
        for unit in [unit for unit in units(self.there) if _is_checkpoint(unit) and not (self.here / unit).exists()]:
            if (self.here / unit.parent).exists():  # a newer one has taken its place
                shutil.rmtree(self.there / unit)
        return count

    def _copy(self, unit: Path, source: Path, target: Path) -> int:
        shutil.rmtree(target / unit, ignore_errors=True)
        with atomic_path(target / unit) as temporary:
            (shutil.copytree if (source / unit).is_dir() else shutil.copy2)(source / unit, temporary)
        return 1

    def _guarded(self, work: Callable[[], int]) -> int:
        if not self.works:
            return 0
        try:
            return work()
        except (OSError, LarError) as error:
            self.works = False
            self.warn(f"{self.there} cannot be used any more ({error}). Work goes on in {self.here}, which this "
                      "machine forgets when it is given back: download what you want to keep.")
            return 0


def units(folder: Path) -> Iterator[Path]:
    """Relative paths of what is copied in one piece: checkpoint folders, and all files outside them.

    Temporary files (a leading dot) and half-recorded demonstrations (*.parts) are left out.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.suffix == ".parts":
            continue
        if path.is_dir() and not _is_checkpoint(path.relative_to(folder.parent)):
            yield from (Path(path.name) / unit for unit in units(path))
        else:
            yield Path(path.name)


def _is_checkpoint(path: Path) -> bool:
    return path.name.startswith("step_") and path.parent.name == "checkpoints"


def _look(path: Path) -> tuple | None:
    """What changes when a file or folder does: sizes and times; None where there is nothing."""
    if not path.exists():
        return None
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return tuple((file.name, file.stat().st_size, int(file.stat().st_mtime)) for file in files)
