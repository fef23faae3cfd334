"""A copy of the work folder in a place that outlives the machine, such as Google Drive, shared by several machines.

Work is always done on the local disk: a mounted Drive can vanish in the middle of a write. `Mirror` brings back what
an earlier session left there, then copies what has changed, every minute and whenever it is asked to, each file (and
each checkpoint folder) under a temporary name first. What fails is said once, and tried again every time.

Two notebooks are two machines with one Drive. Each remembers what it has put there (`Memory`). It takes away only that,
once it has a newer checkpoint there itself; and it takes the place of a file there only with what goes on from it (see
`drive_units`). Where two machines have gone different ways, both are kept: the first one's where it is, the other's below
`.kept`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .drive_units import (
    APART,
    MINE,
    SAME,
    THEIRS,
    Memory,
    begins_with,
    copied,
    discard,
    is_checkpoint,
    lacks_files,
    make_parents,
    require_unit,
    swap,
    units,
)
from .run.errors import LarError
from .run.files import remove

EVERY = 60  # seconds
ABANDONED = 24 * 3600  # seconds after which nobody still copies a checkpoint
PAUSE = 1  # seconds before what could not be brought back is tried again
MARK = ".la-reconvla"  # a file in the copy: where it is missing, Drive is not mounted
NOT_MOUNTED = f"it is not mounted any more (there is no {MARK} in it), run the cell that opened the run again"
KEPT, SUMS = ".kept", ".sums"  # folders in the copy: versions that went another way; what each checkpoint should hold


class Mirror:
    """Keeps `there` a copy of the files below `here`. Make it while Drive is mounted: `there` is created then and only then.

    warn: called with a sentence when something cannot be saved, once for each cause, and when all is saved again.
    unsaved: what the last sync could not save, and why.
    """

    def __init__(self, here: Path, there: Path, warn: Callable[[str], None] = print):
        self.here, self.there, self.warn = here, there, warn
        self.memory = Memory(here / ".mirror.json")
        self.unsaved: dict[Path, str] = {}
        self._causes: set[str] = set()  # of what is not saved now
        self._told: set[str] = set()
        self._marked = False
        self._lock, self._stop = threading.Lock(), threading.Event()
        with suppress(OSError):  # a Drive that cannot be written to may still be read; the first sync says why
            there.mkdir(parents=True, exist_ok=True)
            self._require_mounted()

    @property
    def mounted(self) -> bool:
        """Whether Drive is there."""
        return os.path.exists(self.there / MARK)

    def restore(self) -> int:
        """Bring back what `here` lacks or is behind in; returns the number of files and checkpoints."""
        with self._lock:
            brought = self._bring_all(failed := {})
            if failed:
                time.sleep(PAUSE)
                brought += self._bring_all(failed := {})
            self._remember(failed)
            for cause, names in _by_cause(failed).items():
                self.warn(f"{names} cannot be brought back from {self.there}: {cause}. {brought} others were.")
            return brought

    def sync(self) -> int:
        """Copy what has changed since the last time; returns the number of files and checkpoints."""
        with self._lock:
            copied = self._each(self.here, units(self.here), self._save, failed := {})
            self.unsaved = dict(failed)
            self._each(self.there, self.memory.checkpoints(), self._remove_replaced, failed)
            self._remember(failed)
            self._report(_by_cause(failed))
            return copied

    def start(self) -> None:
        """Sync every minute from now on, in the background, until `end` or the end of the process."""
        def work() -> None:
            while not self._stop.wait(EVERY):
                self.sync()
        threading.Thread(target=work, daemon=True).start()

    def end(self) -> None:
        """End the background work."""
        self._stop.set()

    # --- one file or checkpoint ---------------------------------------------------------------------------------------

    def _save(self, unit: Path) -> int:
        """Copy a unit there, unless what is there holds it already; returns whether it was copied."""
        self._require_mounted()
        require_unit(self.here, unit)
        mine, name, verdict = self.here / unit, unit, self._compare(self.here / unit, unit)
        if verdict == SAME:
            self.memory.agreed[str(unit)] = [self.memory.digest(mine)]
        if verdict in (SAME, THEIRS):
            return 0
        if verdict == APART:
            name = self._aside(unit)
            self._say_once(f"{unit} in {self.there} went another way on another machine: it stays as it is, and this "
                           f"machine's is kept beside it as {name}.")
            if (self.there / name).exists() and self.memory.digest(self.there / name) == self.memory.digest(mine):
                return 0
        make_parents(self.there, name)
        with copied(mine, self._beside(self.there / name, "tmp")) as temporary, self._alone():
            if name != unit or self._compare(temporary, unit, afresh=True) == MINE:
                self._put(temporary, name)
                return 1
        return self._save(unit)  # another machine has put one there meanwhile

    def _put(self, temporary: Path, name: Path) -> None:
        """Give a finished copy its name, remembered before, so that a kill on the way leaves no doubt whose it is."""
        memory, target = self.memory, self.there / name
        self._keep_other_lines(temporary, name)
        digest = memory.digest(temporary)
        memory.agreed[str(name)] = [*memory.agreed.get(str(name), [])[-1:], digest]
        memory.put[str(name)] = digest
        memory.save()
        if is_checkpoint(name):
            make_parents(self.there, file := Path(SUMS, f"{memory.machine}.json"))
            sums = self._beside(self.there / file, "tmp")
            sums.write_text(json.dumps({str(unit): memory.agreed[str(unit)] for unit in memory.checkpoints()}))
            os.replace(sums, self.there / file)
        swap(temporary, target, self._beside(target, "old"))
        memory.agreed[str(name)] = [digest]
        memory.note(target, digest)

    def _keep_other_lines(self, temporary: Path, name: Path) -> None:
        """Lines that are there and that the new log has not: a run that goes on from a checkpoint drops the rest."""
        target = self.there / name
        if target.suffix != ".jsonl" or not target.exists() or begins_with(temporary, target):
            return
        kept = self._aside(name).with_name(f"{self.memory.digest(target)[:8]}-{name.name}")
        make_parents(self.there, kept)
        shutil.copy2(target, self.there / kept)
        self._say_once(f"{name} in {self.there} has lines that this machine's has not: they are kept beside it as {kept}.")

    def _bring_all(self, failed: dict[Path, str]) -> int:
        if not os.path.isdir(self.there):
            failed[Path()] = NOT_MOUNTED
            return 0
        for root in (self.here, self.there):
            self._each(root, self._left_behind(root), self._clear, left := {})
            failed |= {name: why for name, why in left.items() if name.suffix == ".old"}  # the others harm nobody
        return self._each(self.there, units(self.there), self._bring, failed)

    def _bring(self, unit: Path) -> int:
        """Copy a unit here, where it is missing or where the one there goes on from it; returns whether it was copied."""
        require_unit(self.there, unit)
        source, target, memory = self.there / unit, self.here / unit, self.memory
        verdict = memory.compare(target, source, unit) if target.exists() else THEIRS
        if verdict == THEIRS:
            target.parent.mkdir(parents=True, exist_ok=True)
            with copied(source, self._beside(target, "tmp")) as temporary:
                digest = memory.digest(temporary)
                if not self._whole(unit, digest):
                    raise LarError("it was cut short when it was copied there, and an earlier one is used")
                swap(temporary, target, self._beside(target, "old"))
            memory.note(target, digest)
            memory.note(source, digest)
        if verdict in (THEIRS, SAME):
            memory.agreed[str(unit)] = [memory.digest(target)]
        return int(verdict == THEIRS)

    def _left_behind(self, root: Path) -> Iterator[Path]:
        """What kills have left below `root` and nobody is at work on: replaced checkpoints, copies of this machine, and
        checkpoints of other ones, which may be at it for hours."""
        for path in root.rglob(".*"):
            if (path.match("checkpoints/.step_*.old") or path.match(f".*.{self.memory.machine}.tmp")
                    or path.match("checkpoints/.step_*.????????.tmp") and time.time() - path.stat().st_mtime > ABANDONED):
                yield path

    def _clear(self, left: Path) -> int:
        """A checkpoint that a kill between the two renames of `swap` has left gets its name back; all else goes."""
        with self._alone():
            target = left.with_name(left.name[1:].rsplit(".", 2)[0])
            if left.suffix == ".old" and not target.exists():
                left.rename(target)
            else:
                (discard if left.suffix == ".old" else remove)(left)
        return 0

    def _remove_replaced(self, name: Path) -> int:
        """Remove a checkpoint there that this machine put there, and of which it has put a newer one beside it."""
        unit = name.relative_to(self._aside(Path())) if name.parts[0] == KEPT else name
        newer = [path.name for path in (self.here / unit.parent).glob("step_*") if path.name > unit.name]
        if os.path.lexists(self.here / unit) or not any(self._is_mine(name.with_name(step)) for step in newer):
            return 0
        removed = self._beside(self.there / name, "tmp")
        with self._alone():
            if self._is_mine(name):
                remove(removed)
                (self.there / name).rename(removed)
        remove(removed)
        self.memory.forget(self.here / unit, self.there / name)
        del self.memory.put[str(name)]
        return 1

    # --- what is there ------------------------------------------------------------------------------------------------

    def _compare(self, mine: Path, unit: Path, afresh: bool = False) -> str:
        """Which one is newer: `mine`, or the unit there."""
        theirs = self.there / unit
        if not theirs.exists():
            return APART if any((self.there / parent).is_file() for parent in unit.parents) else MINE
        if afresh:
            self.memory.forget(theirs)
        verdict = self.memory.compare(mine, theirs, unit)
        return MINE if verdict != SAME and not self._whole(unit, self.memory.digest(theirs)) else verdict

    def _whole(self, unit: Path, digest: str) -> bool:
        """Whether a checkpoint there is all that was put there: uploading goes on after copying, and may be cut short."""
        promised: list[str] = []
        for file in (self.there / SUMS).glob("*.json") if is_checkpoint(unit) else ():
            with suppress(OSError, ValueError):
                promised += json.loads(file.read_text(encoding="utf-8")).get(str(unit), [])
        return digest in promised if promised else not (is_checkpoint(unit) and lacks_files(self.there / unit))

    def _is_mine(self, name: Path) -> bool:
        """Whether this machine put a unit there, and it still is what it was."""
        self.memory.forget(self.there / name)
        put = self.memory.put.get(str(name))
        return put is not None and (self.there / name).exists() and self.memory.digest(self.there / name) == put

    def _require_mounted(self) -> None:
        """Raise where Drive is not: a folder of its name on the local disk is no copy."""
        if not self._marked:
            (self.there / MARK).open("a").close()
        self._marked = True
        if not self.mounted:
            raise LarError(NOT_MOUNTED)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from putting anything there, where the file system has locks."""
        with (self.there / MARK).open("r+b") as mark:
            with suppress(OSError, ImportError):
                import fcntl  # not on Windows
                fcntl.flock(mark, fcntl.LOCK_EX)
            yield

    def _aside(self, unit: Path) -> Path:
        return Path(KEPT, self.memory.machine, unit)

    def _beside(self, path: Path, kind: str) -> Path:
        """A name beside `path` that only this machine uses."""
        return path.with_name(f".{path.name}.{self.memory.machine}.{kind}")

    # --- what fails, and what is said ---------------------------------------------------------------------------------

    def _each(self, root: Path, names: Iterable[Path], work: Callable[[Path], int], failed: dict[Path, str]) -> int:
        """Do it to all of them, whatever becomes of one; returns the sum, and notes why it failed where it did."""
        total = 0
        try:
            names = list(names)
        except OSError as error:
            names, failed[Path()] = [], _cause(error)
        for name in names:
            try:
                total += work(name)
            except Exception as error:  # Drive has many ways to fail, and this thread must outlive them all
                if os.path.lexists(root / name) or not os.path.isdir(root):  # else it was removed meanwhile
                    failed[name] = _cause(error)
        return total

    def _remember(self, failed: dict[Path, str]) -> None:
        try:
            self.memory.save()
        except (OSError, LarError) as error:
            failed[Path(self.memory.path.name)] = _cause(error)

    def _report(self, causes: dict[str, str]) -> None:
        for cause in causes.keys() - self._causes:
            self.warn(f"{causes[cause]} cannot be saved in {self.there}: {cause}. Work goes on in {self.here}, which this "
                      "machine forgets when it is given back; saving is tried again every minute.")
        if self._causes and not causes:
            self.warn(f"{self.there} works again: everything is saved there.")
        self._causes = set(causes)

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self.warn(sentence)


def _cause(error: Exception) -> str:
    """Why something failed, without the file's name, so that one cause is said once."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk it goes to is full, free some space there"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


def _by_cause(failed: dict[Path, str]) -> dict[str, str]:
    """cause: one name, and how many more."""
    names: dict[str, list[str]] = {}
    for name, cause in failed.items():
        names.setdefault(cause, []).append(str(name) if name.name else "What is there")
    return {cause: some[0] + (f" and {len(some) - 1} more" if some[1:] else "") for cause, some in names.items()}
