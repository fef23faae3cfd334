"""Files that are either whole or absent: every write goes to a temporary name first and is then renamed.

What several processes may want to make at the same time is made by one of them (`produce`); the others wait for it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from tqdm import tqdm

from .errors import Damaged, LarError, say_once, unwritable

NOTICE = 2.0  # seconds before a process that waits for another one says so
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # some network drives have none
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path (of a file or folder) beside `path`; on success it replaces `path`, otherwise it goes.

    Raises LarError when the disk is full, so that the cause is named instead of half a file being left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because writers such as imageio choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LarError(f"The disk is full while writing {path}: free some space and run the same command again; "
                           "what was finished before is kept.") from error
        raise
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """A file or a folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def produce(path: Path, doing: str, make: Callable[[], object]) -> Path:
    """`path`, made by `make` where it is missing: of several processes that want it one makes it, the others wait.

    doing: what `make` does, in the words in which those that wait are told: "recording the demonstrations of task 5".
    """
    if not path.exists():
        lock = path.with_name(f".{path.name}.lock")
        with locked(lock, doing):
            if not path.exists():  # the process that was waited for may have made it
                make()
            lock.unlink(missing_ok=True)  # what it guarded is there: whoever comes now finds that
    return path


@contextmanager
def locked(lock: Path, doing: str, patience: float = math.inf) -> Iterator[None]:
    """Inside is only one process at a time, of all that name the same file `lock`. Nothing is left locked by a kill.

    doing: what is done inside, in the words in which those that wait are told; patience: seconds to wait.
    Raises LarError, saying whose it is, when another process holds it for longer, and for a folder that is read-only.
    """
    owner = lock.with_name(f"{lock.name}-owner")  # for people to read: who holds the lock, and what for
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        taken = _take(lock, owner, patience)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise LarError(f"{lock.parent} cannot be written ({error.strerror}), and {doing} needs to: make it writable, or "
                       "choose another folder.") from error
    try:
        if before := _read_owner(owner):
            _say(f"Process {before['process']} on {before['host']} was killed while {before['doing']}: going on from what "
                 "it finished.")
        write_json(owner, {"process": os.getpid(), "host": socket.gethostname(), "doing": doing})
        yield
    finally:
        owner.unlink(missing_ok=True)
        taken.release()


def _take(lock: Path, owner: Path, patience: float) -> BaseFileLock:
    """The operating system's lock, which ends with its process; on a drive that has none, a file that names its owner.

    Such a file is overruled when its owner is of this machine and gone: the process's number and start time tell.
    """
    try:
        return _wait_for(FileLock(lock, fallback_to_soft=False), owner, patience)
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return _wait_for(SoftFileLock(lock.with_name(f"{lock.name}-held")), owner, patience)


def _wait_for(lock: BaseFileLock, owner: Path, patience: float) -> BaseFileLock:
    try:
        return lock.acquire(timeout=min(NOTICE, patience)).lock
    except Timeout:
        holder = _holder(_read_owner(owner), lock)
    try:
        if patience > NOTICE:
            _say(f"Waiting for {holder}")
            return lock.acquire(timeout=-1 if patience == math.inf else patience - NOTICE).lock
    except Timeout:
        pass
    raise LarError(f"Another process is at work in {owner.parent}: wait until it is done, or choose another folder "
                   f"(--run-dir). It is {holder}") from None


def _holder(owner: dict | None, lock: BaseFileLock) -> str:
    """Whose a lock is, and how to be rid of one that only its owner can take away."""
    named = f"process {owner['process']} on {owner['host']}, which is {owner['doing']}." if owner else "an unknown one."
    stays = isinstance(lock, SoftFileLock)
    return named + (f" If that process is gone, delete {lock.lock_file} to go on." if stays else "")


def _read_owner(path: Path) -> dict | None:
    """Who holds, or held, a lock; None where that was not written, or not wholly."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: found[key] for key in ("process", "host", "doing")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _say(sentence: str) -> None:
    tqdm.write(f"lar: {sentence}", file=sys.stderr)


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file in and below `folder` with its name there, in order, also behind links to files and to folders.

    Where links were followed, the name says where they led, so that a link to another file of the same size and time is
    another name. A link that leads in a circle is followed once.
    """
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(folders)
        for name in sorted(files) if real not in seen else ():
            path = Path(here, name)
            inside = os.path.relpath(path, folder)
            led, straight = os.path.realpath(path), os.path.join(os.path.realpath(folder.parent), folder.name, inside)
            yield inside if led == straight else f"{inside} -> {led}", _linked(path)
        seen.add(real)


def _linked(path: Path) -> Path:
    if not path.exists():
        raise LarError(f"{path} is a link to {os.readlink(path)}, which is not there (any more): connect the drive that it "
                       "lies on, or remove the link.")
    return path


def require_space(folder: Path | str, size: int, purpose: str, remedy: str = "free some space") -> None:
    """Raise LarError unless `size` bytes, and a tenth of a GB to spare, are free where `folder` is or will be."""
    place = Path(folder).absolute()
    free = shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free
    if size and free < size + 10**8:
        raise LarError(f"{purpose[0].upper()}{purpose[1:]} takes {size / 1e9:.1f} GB in {place}, but only "
                       f"{free / 1e9:.1f} GB are free there: {remedy}, and try again.")


def write_text(path: Path | str, text: str) -> None:
    """Write `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused because other readers would choke on it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path | str, rows: Iterable[dict]) -> None:
    """Write JSON lines atomically, in the place of what was there."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_json(path: Path | str) -> dict:
    """Read a JSON object. Raises Damaged where the content is something else; an unreadable file is its own OSError."""
    content = Path(path).read_bytes()
    try:
        value = json.loads(content)
    except ValueError as error:
        raise Damaged(f"{path} is damaged ({error}): delete it, and copy or download it again.") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path} is damaged (it holds no JSON object): delete it, and copy or download it again.")
    return value


def append_jsonl(path: Path | str, row: dict) -> None:
    """Append one JSON line and flush it to disk, so that a kill loses at most the line being written.

    What such a kill left of a line is removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path | str) -> list[dict]:
    """Read JSON lines; a last line cut short by a kill is dropped, any other damage is an error."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise LarError(f"{path}, line {number}, is not JSON ({error.msg}): remove that line.") from error
    return rows


# Folders of generated files, shared by all processes: whole or absent, and named after the code that made them.

def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    own = home()
    return own and own / ".cache" / "lar_core"


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
    config = Path(os.environ.get("XDG_CONFIG_HOME") or (home() or Path("/")) / ".config")
    if not _names_writable("MPLCONFIGDIR") and not writable(config / "matplotlib"):
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
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as parent:
            def make() -> None:
                build(made := Path(tempfile.mkdtemp(dir=parent)))
                if not folder.is_dir():  # otherwise another machine was faster, and its folder is as good as ours
                    made.rename(folder)
            return produce(folder, f"generating {folder.name}", make)
    except OSError as error:
        raise unwritable(f"The cache folder {folder.parent}", error, "set XDG_CACHE_HOME to a folder that can") from error
