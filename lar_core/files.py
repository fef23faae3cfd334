"""Files that are either whole or absent: every write goes to a temporary name first and is then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import Damaged, LarError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path (of a file or folder) beside `path`; on success it replaces `path`, otherwise it goes.

    Raises LarError when the disk is full, so that the cause is named instead of half a file being left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because writers such as imageio choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LarError(f"The disk is full while writing {path}: free some space and run the same command again; "
                           "what was finished before is kept.") from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


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
