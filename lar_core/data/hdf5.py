"""The HDF5 files that demonstrations lie in, ours and other people's: opened, listed and read with a sentence for each
failure that names file and demonstration."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..run.errors import LarError, unreadable
from ..run.files import files_below

AGAIN = "delete it, and download or record it again"

with contextlib.suppress(ImportError):  # once imported, it unpacks what h5py alone cannot
    import hdf5plugin  # noqa: F401


def hdf5_files(folder: Path) -> list[Path]:
    """The HDF5 files in and below a folder, also behind links. Raises LarError for a link that leads nowhere."""
    return [path for _, path in files_below(folder) if path.suffix in (".hdf5", ".h5")]


@contextlib.contextmanager
def open_demos(path: Path | str) -> Iterator[h5py.File]:
    """A demonstration file, open for reading. Raises LarError where there is none, saying why."""
    try:
        Path(path).stat()
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise LarError(f"There is no demonstration file {path}: record it with `lar demos`, or check the path.") from error
    except OSError as error:
        raise unreadable(f"{path}, which should be an HDF5 file,", error, AGAIN, path=path) from error
    with file:
        if not isinstance(file.get("data"), h5py.Group):
            raise LarError(f"{path}: group data is missing; this HDF5 file is not a LIBERO demonstration file.")
        yield file


def demo_names(file: h5py.File, path: Path | str) -> list[str]:
    """demo_0, demo_1, ... in order of their numbers, which may have gaps."""
    names = sorted((name for name in file["data"] if name.startswith("demo_") and name[5:].isdigit()),
                   key=lambda name: int(name[5:]))
    if not names:
        raise LarError(f"{path}: group data has no episode; demo_0, demo_1, ... are expected.")
    if file["data"].attrs.get("num_demos", len(names)) != len(names):
        raise LarError(f"{path}: num_demos is {file['data'].attrs['num_demos']}, but there are {len(names)} episodes.")
    return names


def demo_group(file: h5py.File, name: str, path: Path | str) -> h5py.Group:
    """The group of a demonstration."""
    try:
        return file["data"][name]
    except (KeyError, OSError, RuntimeError) as error:  # h5py raises any of them for a broken header
        raise unreadable(f"{path}, {name}", error, AGAIN) from error


def read_array(group: h5py.Group, key: str, where: str) -> np.ndarray | None:
    """The numbers of `key`; None where there are none."""
    try:
        found = group.get(key)
        return found[()] if isinstance(found, h5py.Dataset) else None
    except (OSError, RuntimeError, MemoryError) as error:
        raise unreadable(f"{where}: {key}", error, AGAIN, path=group.file.filename) from error


def read_json(attributes: h5py.AttributeManager, name: str, default: str, where: str) -> Any:
    """What an attribute holds as JSON."""
    try:
        return json.loads(attributes.get(name, default))
    except (TypeError, ValueError) as error:
        raise LarError(f"{where}: the attribute {name} is not JSON ({error}): record this episode again.") from error


def read_sentence(file: h5py.File, path: Path | str) -> str:
    """LIBERO's language_instruction, or, in a file without that attribute, the sentence that its name is made of."""
    name = Path(path).stem.removesuffix("_demo").replace("_", " ")
    if "problem_info" not in file["data"].attrs and " " in name:
        return name
    try:
        return str(json.loads(file["data"].attrs["problem_info"])["language_instruction"]).strip('" ')
    except (KeyError, TypeError, ValueError) as error:
        raise LarError(f"{path}: the attribute problem_info of group data is missing or not JSON with a "
                       "language_instruction, which says what the robot was told, and the file's name is no sentence "
                       "either.") from error
