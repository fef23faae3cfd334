"""A copy of the work folder in a place that outlives the machine, such as Google Drive, shared by several machines.

Work is always done on the local disk: a mounted Drive can vanish in the middle of a write. `Mirror` brings back what
an earlier session left there, then copies what has changed, every minute and whenever it is asked to, each file (and
each checkpoint folder) under a temporary name first.

Two notebooks are two machines with one Drive. Each remembers what it has put there, in `.mirror.json` of its work
folder. It takes away only that, once it has a newer checkpoint there itself; and it takes the place of a file there
only with what goes on from it (see `mirror_units`). Where two machines have gone different ways, both are kept: the first
one's where it is, the other's below `.kept`. What fails is said once, and tried again every time.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .drive_units import (
    APART,
    MINE,
    SAME,
    THEIRS,
    Digests,
    begins_with,
    compare,
    copied,
    is_checkpoint,
    lacks_files,
    make_parents,
    remove,
    require_unit,
    swap,
    units,
)
from .run.errors import LarError
from .run.files import write_text

EVERY = 60  # seconds
PAUSE = 1  # seconds before what could not be brought back is tried again
MARK = ".la-reconvla"  # a file in the copy: where it is missing, Drive is not mounted
NOT_MOUNTED = f"it is not mounted any more (there is no {MARK} in it), run the cell that opened the run again"
KEPT, SUMS = ".kept", ".sums"  # folders in the copy: versions that went another way; what each checkpoint should hold


class Memory:
    """What this machine has put there: it outlives the process, but not the machine.

    agreed: of each unit, the digest of what both sides held when they were last alike, and of what is on its way.
    put: the digest of what this machine itself has put there.
    """

    def __init__(self, path: Path):
        self.path, self.machine = path, uuid.uuid4().hex[:8]
        self.agreed: dict[str, list[str]] = {}
        self.put: dict[str, str] = {}
        self.digests = Digests({})
        with suppress(OSError, ValueError, KeyError, TypeError):  # none, or damaged: then nothing is known to be ours
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.machine, self.agreed, self.put = kept["machine"], kept["agreed"], kept["put"]
            self.digests = Digests(kept["digests"])

    def save(self) -> None:
        if self.path.parent.is_dir():
            write_text(self.path, json.dumps({"machine": self.machine, "agreed": self.agreed, "put": self.put,
                                              "digests": self.digests.known}))


class Mirror:
    """Keeps `there` a copy of the files below `here`. Make it while Drive is mounted: `there` is created then and only then.

    warn: called with a sentence when something cannot be saved, once for each cause, and when all is saved again.
    unsaved: what the last sync could not save, and why.
    """

    def __init__(self, here: Path, there: Path, warn: Callable[[str], None] = print):
        self.here, self.there, self.warn = here, there, warn
        self.memory = Memory(here / ".mirror.json")
        self.unsaved: dict[Path, str] = {}
        self._said: set[str] = set()  # causes of what is not saved
        self._told: set[str] = set()
        self._marked = False
        self._lock, self._stop = threading.Lock(), threading.Event()
        with suppress(OSError):  # a Drive that cannot be written to may still be read; the first sync says why
            there.mkdir(parents=True, exist_ok=True)
            self._require_mounted()

    @property
    def mounted(self) -> bool:
        return os.path.exists(self.there / MARK)

    def restore(self) -> int:
        """Bring back what `here` lacks or is behind in; returns the number of files and checkpoints."""
        with self._lock:
            brought, failed = self._bring_all()
            if failed:
                time.sleep(PAUSE)
                more, failed = self._bring_all()
                brought += more
            for cause, names in _by_cause(self._remember(failed)).items():
                self.warn(f"{names} cannot be brought back from {self.there}: {cause}. {brought} others were.")
            return brought

    def sync(self) -> int:
        """Copy what has changed since the last time; returns the number of files and checkpoints."""
        with self._lock:
            copied, self.unsaved = self._each(self.here, units(self.here), self._save)
            mine = [Path(name) for name in self.memory.put if is_checkpoint(Path(name))]
            _, unremoved = self._each(self.there, mine, self._remove_replaced)
            self._report(self._remember(self.unsaved | unremoved))
            return copied

    def start(self) -> None:
        """Sync every minute from now on, in the background, until `stop` or the end of the process."""
        def work() -> None:
            while not self._stop.wait(EVERY):
                self.sync()
        threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Sync a last time and end the background work."""
        self.end()
        self.sync()

    def end(self) -> None:
        """End the background work."""
        self._stop.set()

    # --- one file or checkpoint ---------------------------------------------------------------------------------------

    def _save(self, unit: Path) -> int:
        """Copy a unit there, unless what is there holds it already."""
        self._require_mounted()
        require_unit(self.here, unit)
        verdict = self._compare(self.here / unit, unit)
        if verdict == SAME:
            self.memory.agreed[str(unit)] = [self.memory.digests.of(self.here / unit)]
        if verdict in (SAME, THEIRS):
            return 0
        if verdict == MINE:
            return self._put(unit, unit)
        aside = self._aside(unit)
        self._say_once(f"{unit} in {self.there} went another way on another machine: it stays as it is, and this "
                       f"machine's is kept beside it as {aside}.")
        kept = self.there / aside
        if kept.exists() and compare(self.here / unit, kept, self.memory.digests) == SAME:
            return 0
        return self._put(unit, aside)

    def _put(self, unit: Path, name: Path) -> int:
        """Copy a unit there as `name`. Another machine may do so meanwhile: what is there is looked at again at the end."""
        target = self.there / name
        make_parents(self.there, name)
        with copied(self.here / unit, self._beside(target, "tmp")) as temporary, self._alone():
            overtaken = name == unit and self._compare(temporary, unit, afresh=True) != MINE
            if not overtaken:
                self._keep_other_lines(temporary, name)
                digest = self._announce(temporary, name)
                swap(temporary, target, self._beside(target, "old"))
                self.memory.agreed[str(name)] = [digest]
                self.memory.digests.remember(target, digest)
        return self._save(unit) if overtaken else 1

    def _announce(self, temporary: Path, name: Path) -> str:
        """Remember what is about to be put there, so that a kill on the way leaves no doubt whose it is."""
        digest, name = self.memory.digests.of(temporary), str(name)
        self.memory.agreed[name] = [*self.memory.agreed.get(name, [])[-1:], digest]
        self.memory.put[name] = digest
        self.memory.save()
        if is_checkpoint(Path(name)):
            sums = {name: self.memory.agreed[name] for name in self.memory.put if is_checkpoint(Path(name))}
            file = Path(SUMS, f"{self.memory.machine}.json")
            make_parents(self.there, file)
            self._beside(self.there / file, "tmp").write_text(json.dumps(sums), encoding="utf-8")
            os.replace(self._beside(self.there / file, "tmp"), self.there / file)
        return digest

    def _keep_other_lines(self, temporary: Path, name: Path) -> None:
        """Lines that are there and that the new log has not: a run that goes on from a checkpoint drops the rest."""
        target = self.there / name
        if target.suffix != ".jsonl" or not target.exists() or begins_with(temporary, target):
            return
        kept = self._aside(name).with_name(f"{self.memory.digests.of(target)[:8]}-{name.name}")
        make_parents(self.there, kept)
        shutil.copy2(target, self.there / kept)
        self._say_once(f"{name} in {self.there} has lines that this machine's has not: they are kept beside it as {kept}.")

    def _bring_all(self) -> tuple[int, dict[Path, str]]:
        if not os.path.isdir(self.there):
            return 0, {Path(): NOT_MOUNTED}
        _, failed = self._each(self.there, self.there.rglob("checkpoints/.step_*.old"), self._recover)
        brought, more = self._each(self.there, units(self.there), self._bring)
        return brought, failed | more

    def _bring(self, unit: Path) -> int:
        """Copy a unit here, where it is missing or where the one there goes on from it."""
        require_unit(self.there, unit)
        source, target = self.there / unit, self.here / unit
        verdict = THEIRS
        if target.exists():
            verdict = compare(target, source, self.memory.digests, self.memory.agreed.get(str(unit), ()))
        if verdict == THEIRS:
            target.parent.mkdir(parents=True, exist_ok=True)
            with copied(source, self._beside(target, "tmp")) as temporary:
                digest = self.memory.digests.of(temporary)
                if not self._whole(unit, digest):
                    raise LarError("it was cut short when it was copied there, and an earlier one is used")
                swap(temporary, target, self._beside(target, "old"))
            self.memory.digests.remember(target, digest)
            self.memory.digests.remember(source, digest)
        if verdict in (THEIRS, SAME):
            self.memory.agreed[str(unit)] = [self.memory.digests.of(target)]
        return int(verdict == THEIRS)

    def _recover(self, old: Path) -> int:
        """A kill between the two renames of `copies.swap` has left a checkpoint without its name."""
        with self._alone():
            target = old.with_name(old.name[1:].rsplit(".", 2)[0])
            if not target.exists():
                old.rename(target)
        return 0

    def _remove_replaced(self, name: Path) -> int:
        """Remove a checkpoint there that this machine put there, and of which it has put a newer one beside it."""
        unit = name.relative_to(self._aside(Path())) if name.is_relative_to(self._aside(Path())) else name
        newer = [path for path in units(self.here) if path.parent == unit.parent and path.name > unit.name]
        if os.path.lexists(self.here / unit) or not any(self._is_mine(name.with_name(path.name)) for path in newer):
            return 0
        with self._alone():
            target = self.there / name
            if target.exists() and self._is_mine(name):
                remove(self._beside(target, "tmp"))
                target.rename(self._beside(target, "tmp"))
        remove(self._beside(target, "tmp"))
        self.memory.digests.forget(self.here / unit)
        self.memory.digests.forget(self.there / name)
        del self.memory.put[str(name)]
        return 1

    # --- what is there ------------------------------------------------------------------------------------------------

    def _compare(self, mine: Path, unit: Path, afresh: bool = False) -> str:
        """Which one is newer (see `mirror_units`): `mine`, or the unit there."""
        theirs, digests = self.there / unit, self.memory.digests
        if not theirs.exists():
            return APART if any((self.there / parent).is_file() for parent in unit.parents) else MINE
        if afresh:
            digests.forget(theirs)
        verdict = compare(mine, theirs, digests, self.memory.agreed.get(str(unit), ()))
        return MINE if verdict != SAME and not self._whole(unit, digests.of(theirs)) else verdict

    def _whole(self, unit: Path, digest: str) -> bool:
        """Whether a checkpoint there is all that was put there: uploading goes on after copying, and may be cut short."""
        if not is_checkpoint(unit):
            return True
        promised: list[str] = []
        for file in (self.there / SUMS).glob("*.json"):
            with suppress(OSError, ValueError):
                promised += json.loads(file.read_text(encoding="utf-8")).get(str(unit), [])
        return digest in promised if promised else not lacks_files(self.there / unit)

    def _is_mine(self, name: Path) -> bool:
        """Whether this machine put a unit there, and it still is what it was."""
        self.memory.digests.forget(self.there / name)
        put = self.memory.put.get(str(name))
        return put is not None and (self.there / name).exists() and self.memory.digests.of(self.there / name) == put

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

    # --- what is said -------------------------------------------------------------------------------------------------

    def _each(self, root: Path, names: Iterable[Path], work: Callable[[Path], int]) -> tuple[int, dict[Path, str]]:
        """Do it to all of them, whatever becomes of one; returns the sum, and why it failed where it did."""
        total, failed = 0, {}
        try:
            names = list(names)
        except OSError as error:
            return 0, {Path(): _cause(error)}
        for name in names:
            try:
                total += work(name)
            except Exception as error:  # Drive has many ways to fail, and this thread must outlive them all
                if os.path.lexists(root / name) or not os.path.isdir(root):  # else it was removed meanwhile
                    failed[name] = _cause(error)
        return total, failed

    def _remember(self, failed: dict[Path, str]) -> dict[Path, str]:
        try:
            self.memory.save()
        except (OSError, LarError) as error:
            failed = failed | {Path(self.memory.path.name): _cause(error)}
        return failed

    def _report(self, failed: dict[Path, str]) -> None:
        causes = _by_cause(failed)
        for cause in causes.keys() - self._said:
            self.warn(f"{causes[cause]} cannot be saved in {self.there}: {cause}. Work goes on in {self.here}, which this "
                      "machine forgets when it is given back; saving is tried again every minute.")
        if self._said and not causes:
            self.warn(f"{self.there} works again: everything is saved there.")
        self._said = set(causes)

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
    names: dict[str, list[Path]] = {}
    for name, cause in failed.items():
        names.setdefault(cause, []).append(name)
    return {cause: (str(some[0]) if some[0].name else "What is there") + (f" and {len(some) - 1} more" if some[1:] else "")
            for cause, some in names.items()}
