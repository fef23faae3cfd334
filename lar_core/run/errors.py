"""The one exception that is meant for people: a sentence that says what was wrong and what to do.

Here too: why a file could not be read or written. A library raises the same kind of exception for a broken file and for a
locked one. Told that a healthy file is damaged, people delete it; so the cause is looked at first, and only content that
was read and is wrong is called damaged.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class LarError(Exception):
    """Raised for every foreseeable failure; the command line prints it as one sentence and exits with code 2."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook in the place of a traceback."""
        return [f"LarError: {self}"]


class Damaged(LarError):
    """What was read is wrong: only then a sentence may say that something is to be deleted."""


def unknown(kind: str, name: object, choices: Iterable[object]) -> LarError:
    """Return (not raise) the error for a misspelt `name`, with the nearest valid choice."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return LarError(f"Unknown {kind} {str(name)!r}: {hint}Choose one of: {', '.join(names)}.")


def first_line(error: BaseException) -> str:
    """What an exception says first; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def say_once(sentence: str) -> None:
    """Tell what was done instead of what was asked for; processes that this one starts do not repeat it."""
    mark = f"{zlib.crc32(sentence.encode()):08x}"
    said = os.environ.get("LAR_SAID", "")  # inherited by every process started from here
    if mark not in said.split():
        os.environ["LAR_SAID"] = f"{said} {mark}".strip()
        print(f"lar: {sentence}", file=sys.stderr, flush=True)


# Why a file could not be read or written, and what helps.

_REMEDIES = {
    errno.EAGAIN: "another program holds a lock on it: wait until that is done or close it; on a network drive that has no "
                  "locks, set HDF5_USE_FILE_LOCKING=FALSE",
    errno.EACCES: "this user has no permission: give it that (chmod, chown), or choose a place where it has it",
    errno.EROFS: "its file system is read-only: choose another place",
    errno.ENOENT: "it is not there: correct the path, or get it first",
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "this user's quota is used up: free some space",
    errno.EIO: "the disk or network drive failed: mount it again, or copy the file to a local disk",
    errno.ENOTCONN: "the network drive is not mounted: mount it again",
    errno.ESTALE: "the network drive was mounted anew: open it again",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or use fewer workers",
    errno.ENOMEM: "there is not enough memory: close other programs, or use fewer workers",
    errno.EISDIR: "it is a folder: name the file",
}
_REMEDIES |= {errno.EPERM: _REMEDIES[errno.EACCES], errno.EDEADLK: _REMEDIES[errno.EAGAIN],
              errno.ENOLCK: _REMEDIES[errno.EAGAIN], errno.ENFILE: _REMEDIES[errno.EMFILE]}
# What libraries say when they have read the content and found it wrong.
_DAMAGE = ("signature", "truncated", "inflate", "checksum", "corrupt", "magic", "decompress", "unexpected end",
           "premature", "cut short", "zero bytes", "invalid data", "cannot identify", "broken", "header", "deserializ",
           "parquet file size", "not a zip file", "filter returned failure", "pickle", "unexpected eof", "end of file",
           "eoferror", "ran out of input")
_PLUGIN = ("/plugin", "required filter", "filter plugin", "codec", "not built", "not registered", "no decoder",
           "decoder not found")
_LFS = b"version https://git-lfs"


def cause(error: BaseException, *, path: Path | str | None = None) -> str | None:
    """Why `error` was raised and what helps, as "cause: remedy"; None where it is none of the system's refusals.

    path: the file that was read, where it may be a Git LFS pointer instead of its content.
    """
    words = _words(error).lower()
    number = error.errno if isinstance(error, OSError) else None
    if number is not None:
        return _REMEDIES.get(number) or (f"the system refused it ({os.strerror(number)}): mend that; nothing is known to be "
                                         "wrong with the content")
    if isinstance(error, MemoryError):
        return _REMEDIES[errno.ENOMEM]
    if any(sign in words for sign in _PLUGIN):
        return (f"its content is packed by a method that is not installed here ({_words(error)}): install what unpacks "
                "it (for HDF5 filters `pip install hdf5plugin`)")
    if path is not None and _is_pointer(Path(path)):
        return "it is only a pointer of Git LFS: fetch the content with `git lfs pull`"
    return None


def unreadable(what: object, error: BaseException, remedy: str, *, path: Path | str | None = None) -> LarError:
    """Return (not raise) the error for `what`, which could not be read.

    remedy: what to do if its content is wrong, after a colon. The system's refusals, missing plugins and memory get their
    own remedy; where the library's words do not say that the content is wrong, that is not claimed.
    """
    if isinstance(error, LarError):
        return error
    found = cause(error, path=path)
    if found is not None:
        return LarError(f"{what} could not be read, because {found}, and try again.")
    kind = f"{type(error).__name__}: {_words(error)}"
    if any(sign in kind.lower() for sign in _DAMAGE):
        return LarError(f"{what} cannot be read, the file is damaged or of another kind ({_words(error)}): {remedy}.")
    return LarError(f"{what} cannot be read ({kind}). This does not say that its content is wrong: see whether another "
                    f"program can read it; if none can, {remedy}.")


@contextmanager
def reading(what: object, remedy: str, *errors: type[Exception], path: Path | str | None = None) -> Iterator[None]:
    """Turn `errors` (default: OSError) that are raised inside into what `unreadable` says."""
    try:
        yield
    except (errors or (OSError,)) as error:  # noqa: B030
        raise unreadable(what, error, remedy, path=path) from error


def unwritable(what: object, error: OSError, remedy: str) -> LarError:
    """Return (not raise) the error for `what`, which could not be written. remedy: the other place that may be chosen."""
    found = cause(error) or f"{_words(error)}: mend that"
    return LarError(f"{what} cannot be written, because {found}; or {remedy}, and try again.")


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def _words(error: BaseException) -> str:
    """The message without what lies between its first line and its last, where ffmpeg lists how it was built."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
