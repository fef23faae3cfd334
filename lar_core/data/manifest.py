"""The list of every outside file, `data_manifest.yaml`: code that downloads asks here, so the list cannot go stale."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from ..errors import LarError, unknown

KINDS = ("weights", "autoencoder", "demonstrations", "phrases", "assets", "package data")
REPO_TYPES = ("model", "dataset", "package", "page")
_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "data_manifest.yaml"  # put there where a wheel is built (setup.py); a checkout has none


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One outside file, or one set of files of the same repository."""

    key: str  # the name by which code asks for it
    kind: str  # one of KINDS
    id: str  # hub repository, package name, or the page to fetch it from by hand
    repo_type: str  # one of REPO_TYPES: where `id` is to be looked up
    purpose: str
    licence: str
    revision: str | None  # full commit of the hub repository, or version of the package; None: not pinned yet
    size_bytes: int | None  # of all the files together; None: not known
    files: tuple[str, ...] = ()  # paths in the repository; empty: all of it
    sha256: dict[str, str] | None = None  # path: checksum, where known
    gated: bool = False  # a licence must be accepted first, and a token is needed
    note: str = ""

    def pinned_revision(self) -> str:
        """The revision to download. Raises LarError if none is pinned: what is fetched could change any day."""
        if self.revision is None:
            raise LarError(f"{self.id} has no pinned revision in data_manifest.yaml ({self.note}): "
                           "look up its commit, write it there, and try again.")
        return self.revision


def load_manifest(path: Path | str | None = None) -> dict[str, Entry]:
    """All entries by key. Raises LarError for a missing or malformed manifest, naming the entry and the field."""
    path = Path(path) if path else _default_path()
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["files"]
        entries = [_entry(row, path) for row in rows]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise LarError(f"{path} is not a manifest ({error}): it needs a list named files.") from error
    keys = [entry.key for entry in entries]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise LarError(f"{path}: two entries have the same key {twice!r}; give one of them another.")
    return dict(zip(keys, entries))


def entry(key: str) -> Entry:
    """The entry named `key` of the project's manifest. Raises LarError for an unknown key, with the nearest one."""
    entries = load_manifest()
    if key not in entries:
        raise unknown("manifest entry", key, entries)
    return entries[key]


def _default_path() -> Path:
    """Inside the package where it was installed, beside it in a checkout: never both."""
    return _INSTALLED if _INSTALLED.exists() else _PACKAGE.parent / "data_manifest.yaml"


def _entry(row: dict, path: Path) -> Entry:
    foreign = set(row) - {spec.name for spec in fields(Entry)}
    if foreign:
        raise unknown("manifest field", sorted(foreign)[0], [spec.name for spec in fields(Entry)])
    found = Entry(**{**row, "files": tuple(row.get("files", ()))})
    where = f"{path}, entry {found.key}"
    for name, choices in (("kind", KINDS), ("repo_type", REPO_TYPES)):
        if getattr(found, name) not in choices:
            raise LarError(f"{where}: {name} is {getattr(found, name)!r}, but must be one of: {', '.join(choices)}.")
    for name in ("id", "purpose", "licence"):
        if not isinstance(getattr(found, name), str) or not getattr(found, name).strip():
            raise LarError(f"{where}: {name} is empty, but must be a text.")
    _check_revision(found, where)
    if found.size_bytes is not None and (type(found.size_bytes) is not int or found.size_bytes <= 0):
        raise LarError(f"{where}: size_bytes is {found.size_bytes!r}, but must be a number of bytes, or null.")
    for name, value in (found.sha256 or {}).items():
        if not re.fullmatch("[0-9a-f]{64}", str(value)):
            raise LarError(f"{where}: the sha256 of {name} must be 64 hexadecimal digits.")
    return found


def _check_revision(found: Entry, where: str) -> None:
    if found.revision is None and not found.note:
        raise LarError(f"{where}: an entry without a revision must say why, in note.")
    is_hub = found.repo_type != "package"
    if is_hub and found.revision is not None and not re.fullmatch("[0-9a-f]{40}", str(found.revision)):
        raise LarError(f"{where}: revision is {found.revision!r}, but must be a full commit of 40 hexadecimal digits "
                       "(branches and tags can move).")
