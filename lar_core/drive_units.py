"""What one machine has put in a copy of its work folder, and the files and folders that it is made of.

Which of two copies goes on from the other is told by what they hold, because clocks of machines differ. Only three things
are known to be safe: that both are equal; that one begins with the other (a log that grew, a copy that was cut short), so
that the longer one holds both; and that one is still what both sides once agreed on, so that only the other has changed.
Anything else is APART, and neither may take the other's place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .run.errors import LarError
from .run.files import file_sha256, remove, write_text

SAME, MINE, THEIRS, APART = "same", "mine is newer", "theirs is newer", "apart"
SETTLED = 2  # seconds after which a file that is changed again has another time, whatever its file system's clock
BLOCK = 2**20  # bytes


class Memory:
    """What this machine has put there: it outlives the process, but not the machine. A damaged one is none.

    agreed: of each unit, the digest of what both sides held when they were last alike, and of what is on its way.
    put: the digest of what this machine itself has put there.
    digests: of files and folders by path, behind what they looked like; computed again only when sizes or times change.
    """

    def __init__(self, path: Path):
        self.path, self.machine = path, uuid.uuid4().hex[:8]
        self.agreed: dict[str, list[str]] = {}
        self.put: dict[str, str] = {}
        self.digests: dict[str, list] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.machine, self.agreed, self.put, self.digests = (
                kept[name] for name in ("machine", "agreed", "put", "digests"))

    def save(self) -> None:
        """Atomically, where its folder is."""
        if self.path.parent.is_dir():
            write_text(self.path, json.dumps({"machine": self.machine, "agreed": self.agreed, "put": self.put,
                                              "digests": self.digests}))

    def checkpoints(self) -> list[Path]:
        """Those that this machine has put there."""
        return [Path(name) for name in self.put if is_checkpoint(Path(name))]

    def compare(self, mine: Path, theirs: Path, unit: Path) -> str:
        """SAME, MINE, THEIRS or APART: which of two copies of a unit goes on from the other."""
        my_digest, their_digest, agreed = self.digest(mine), self.digest(theirs), self.agreed.get(str(unit), ())
        if my_digest == their_digest:
            return SAME
        if their_digest not in agreed or mine.suffix == ".jsonl":  # a log never gives way to its own beginning
            if begins_with(theirs, mine):
                return THEIRS
            if begins_with(mine, theirs):
                return MINE
        if their_digest in agreed:
            return MINE
        return THEIRS if my_digest in agreed else APART

    def digest(self, path: Path) -> str:
        """The SHA-256 of names and contents. Raises OSError where something cannot be read."""
        now, (look, changed) = time.time(), _look(path)
        if str(path) in self.digests and self.digests[str(path)][0] == look:
            return self.digests[str(path)][1]
        total = hashlib.sha256(b"folder" if path.is_dir() else b"file")
        for name in files_of(path):
            total.update(f"{name}\0{file_sha256(path / name)}\0".encode())
        if now - changed > SETTLED:
            self.digests[str(path)] = [look, total.hexdigest()]
        return total.hexdigest()

    def note(self, path: Path, digest: str) -> None:
        """What `path` holds, when it has just been written from something that is known."""
        self.digests[str(path)] = [_look(path)[0], digest]

    def forget(self, *paths: Path) -> None:
        """To be read again: another machine's clock may have given new content an old time."""
        for path in paths:
            self.digests.pop(str(path), None)


def _look(path: Path) -> tuple[list, float]:
    """What changes when a file or folder does: names, sizes and times; and the time of the last change."""
    stats = {str(name): (path / name).stat() for name in files_of(path)}
    return ([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()],
            max((max(stat.st_mtime, stat.st_ctime) for stat in stats.values()), default=0))


# --- files and folders: what is one piece, what holds what, and copies that leave nothing half done -----------------------

def units(folder: Path) -> Iterator[Path]:
    """Relative paths of what is copied in one piece: checkpoint folders, and all files outside them.

    Temporary files (a leading dot) and half-recorded demonstrations (*.parts) are left out. A folder that cannot be
    listed is named itself, so that whoever copies meets the error there and goes on with the others.
    """
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else ()
    except OSError:
        yield Path()
        return
    for path in paths:
        if path.name.startswith(".") or path.suffix == ".parts":
            continue
        if path.is_dir() and not is_checkpoint(path):
            yield from (Path(path.name) / unit for unit in units(path))
        else:
            yield Path(path.name)


def require_unit(folder: Path, unit: Path) -> None:
    """Raise LarError for a folder that `units` named because it could not be listed."""
    if (folder / unit).is_dir() and not is_checkpoint(unit):
        raise LarError("the folder cannot be listed")


def is_checkpoint(path: Path) -> bool:
    """Whether this is the folder of a checkpoint, by its name."""
    return path.name.startswith("step_") and path.parent.name == "checkpoints"


def files_of(path: Path) -> list[Path]:
    """Names of all files of a folder, relative to it; of a file `.`. Raises OSError where a folder cannot be listed."""
    if not path.is_dir():
        return [Path()]
    return [Path(child.name, file) for child in sorted(path.iterdir()) for file in files_of(child)]


def begins_with(whole: Path, part: Path) -> bool:
    """Whether `whole` holds all of `part`: each of its files, at least as long.

    The last line of JSON lines does not count where a kill has cut it short.
    """
    return whole.is_dir() == part.is_dir() and all(_file_begins_with(whole / file, part / file) for file in files_of(part))


def _file_begins_with(whole: Path, part: Path) -> bool:
    length = part.read_bytes().rfind(b"\n") + 1 if part.suffix == ".jsonl" else part.stat().st_size
    if not whole.is_file() or whole.stat().st_size < length:
        return False
    sizes = [min(BLOCK, length - start) for start in range(0, length, BLOCK)]
    with whole.open("rb") as first, part.open("rb") as second:
        return all(first.read(size) == second.read(size) for size in sizes)


def lacks_files(checkpoint: Path) -> bool:
    """Whether another checkpoint in the same folder has all files of this one, and more: it was cut short."""
    names = set(files_of(checkpoint))
    return any(names < set(files_of(other)) for other in checkpoint.parent.glob("step_*") if other.is_dir())


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
    discard(old)
    target.rename(old)
    temporary.rename(target)
    discard(old)


def discard(old: Path) -> None:
    """Remove a replaced folder by way of a temporary name: half removed, it must not get its own name back."""
    if os.path.lexists(old):
        _, name, machine, _ = old.name.split(".")
        gone = old.with_name(f".{name}.gone.{machine}.tmp")
        remove(gone)
        old.rename(gone)
        remove(gone)


def make_parents(root: Path, name: Path) -> None:
    """The folders between `root` and `name`; never `root`, which is not there while Drive is not."""
    for parent in reversed(name.parents[:-1]):
        (root / parent).mkdir(exist_ok=True)
