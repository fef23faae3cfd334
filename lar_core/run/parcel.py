"""Files on their way between machines: packed under their names below a common folder; unpacked, each is whole or absent.

Of `rollouts.jsonl`, to which several machines may add at the same time, all rows are kept; any other file replaces its older
version.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROLLOUTS = "rollouts.jsonl"


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Time and size of every file of a run folder, but for locks and what is not finished: a dot begins their names."""
    found = {path: path.stat() for path in folder.rglob("*")
             if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


def pack(files: Iterable[Path], base: Path) -> bytes:
    """The files as one zip file, not compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in files:
            archive.write(path, path.relative_to(base))
    return buffer.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Bring packed files into `folder`; a folder that is new there, such as a checkpoint, appears as a whole.

    Whoever calls is the only one who writes there.
    """
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as new:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            archive.extractall(new)
        _move(Path(new), folder)


def _move(source: Path, target: Path) -> None:
    for entry in list(source.iterdir()):
        if entry.is_dir() and (target / entry.name).is_dir():
            _move(entry, target / entry.name)
        else:
            if entry.name == ROLLOUTS and (target / entry.name).exists():
                _join(target / entry.name, entry)
            os.replace(entry, target / entry.name)


def _join(old: Path, new: Path) -> None:
    """Make of `new` the lines of both, each once, those of `old` first; what a kill has left of a line is dropped."""
    lines = [line for path in (old, new) for line in path.read_bytes().splitlines(keepends=True)]
    new.write_bytes(b"".join(dict.fromkeys(line for line in lines if line.endswith(b"\n"))))
