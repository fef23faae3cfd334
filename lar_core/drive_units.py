"""Which of two copies of a file or checkpoint goes on from the other, told by what they hold: clocks of machines differ.

Only three things are known to be safe: that two copies are equal; that one begins with the other (a log that grew, a
copy that was cut short), so that the longer one holds both; and that one is still what both sides once agreed on, so
that only the other has changed. Anything else is APART, and neither may take the other's place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .run.errors import LarError

SAME, MINE, THEIRS, APART = "same", "mine is newer", "theirs is newer", "apart"
SETTLED = 2  # seconds after which a file that is changed again has another time, whatever its file system's clock
BLOCK = 2**20  # bytes


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
        if path.is_dir() and not is_checkpoint(path.relative_to(folder.parent)):
            yield from (Path(path.name) / unit for unit in units(path))
        else:
            yield Path(path.name)


def require_unit(folder: Path, unit: Path) -> None:
    """Raise LarError for a folder that `units` named because it could not be listed."""
    if (folder / unit).is_dir() and not is_checkpoint(unit):
        raise LarError("the folder cannot be listed")


def is_checkpoint(path: Path) -> bool:
    return path.name.startswith("step_") and path.parent.name == "checkpoints"


def compare(mine: Path, theirs: Path, digests: Digests, agreed: Collection[str] = ()) -> str:
    """SAME, MINE, THEIRS or APART. agreed: digests of what both sides have held before."""
    my_digest, their_digest = digests.of(mine), digests.of(theirs)
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


def begins_with(whole: Path, part: Path) -> bool:
    """Whether `whole` holds all of `part`: each of its files, at least as long.

    The last line of JSON lines does not count where a kill has cut it short.
    """
    if whole.is_dir() != part.is_dir():
        return False
    return all(_file_begins_with(whole / file, part / file) for file in _relative_files(part))


def lacks_files(checkpoint: Path) -> bool:
    """Whether another checkpoint in the same folder has all files of this one, and more: it was cut short."""
    names = set(_relative_files(checkpoint))
    others = [path for path in checkpoint.parent.glob("step_*") if path.is_dir()]
    return any(names < set(_relative_files(other)) for other in others)


class Digests:
    """Digests of files and folders, each computed again only when sizes or times have changed; kept in a file."""

    def __init__(self, known: dict[str, list]):
        self.known = known  # path: [what it looked like, its digest]

    def of(self, path: Path) -> str:
        """The SHA-256 of names and contents. Raises OSError where something cannot be read."""
        look, known = _look(path), self.known.get(str(path))
        if known and known[0] == look:
            return known[1]
        digest = _digest(path)
        if _age(path) > SETTLED:
            self.known[str(path)] = [look, digest]
        return digest

    def forget(self, path: Path) -> None:
        """To be read again: another machine's clock may have given new content an old time."""
        self.known.pop(str(path), None)

    def remember(self, path: Path, digest: str) -> None:
        """Note what `path` holds when it has just been written from something that is known."""
        self.known[str(path)] = [_look(path), digest]


def files_of(path: Path) -> Iterator[Path]:
    """All files of a folder, or the file itself. Raises OSError where a folder cannot be listed."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
            yield from files_of(child)
    else:
        yield path


def _relative_files(path: Path) -> list[Path]:
    return [file.relative_to(path) for file in files_of(path)]


def _look(path: Path) -> list:
    """What changes when a file or folder does: names, sizes and times."""
    stats = {str(file.relative_to(path)): file.stat() for file in files_of(path)}
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]


def _age(path: Path) -> float:
    """Seconds since the last change of a file or of anything in a folder."""
    stats = [file.stat() for file in files_of(path)]
    return time.time() - max((max(stat.st_mtime, stat.st_ctime) for stat in stats), default=0)


def _digest(path: Path) -> str:
    total = hashlib.sha256(b"folder" if path.is_dir() else b"file")
    for file in files_of(path):
        with file.open("rb") as content:
            total.update(f"{file.relative_to(path)}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
    return total.hexdigest()


def _file_begins_with(whole: Path, part: Path) -> bool:
    if not whole.is_file():
        return False
    left = _length(part)
    if whole.stat().st_size < left:
        return False
    with whole.open("rb") as first, part.open("rb") as second:
        while left > 0:
            size = min(BLOCK, left)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _length(file: Path) -> int:
    """Bytes of a file, of JSON lines only those of whole lines."""
    if file.suffix == ".jsonl":
        return file.read_bytes().rfind(b"\n") + 1
    return file.stat().st_size


# Copying that leaves nothing half done, and makes no folder where Drive was.

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
