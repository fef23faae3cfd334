"""The list of every outside file, `data_manifest.yaml`: code that downloads asks here, so the list cannot go stale."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, StringConstraints, model_validator

from ..run.checked import Checked
from ..run.errors import LarError, unknown

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "data_manifest.yaml"  # put there where a wheel is built (setup.py); a checkout has none
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Entry(Checked):
    """One outside file, or one set of files of the same repository."""

    key: Text  # the name by which code asks for it
    kind: Literal["weights", "autoencoder", "demonstrations", "phrases", "assets", "package data"]
    id: Text  # hub repository, package name, or the page to fetch it from by hand
    repo_type: Literal["model", "dataset", "package", "page"]  # where `id` is to be looked up
    purpose: Text
    licence: Text
    revision: str | None  # full commit of the hub repository, or version of the package; None: not pinned yet
    size_bytes: int | None = Field(gt=0)  # of all the files together; None: not known
    files: tuple[str, ...] = Field((), strict=False)  # paths in the repository; empty: all of it
    sha256: dict[str, Sha256] | None = None  # path: checksum, where known
    gated: bool = False  # a licence must be accepted first, and a token is needed
    note: str = ""

    @model_validator(mode="after")
    def _check_revision(self) -> Entry:
        if self.revision is None and not self.note:
            raise LarError("an entry without a revision must say why, in note.")
        if self.revision and self.repo_type != "package" and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise LarError(f"revision is {self.revision!r}, but must be a full commit of 40 hexadecimal digits "
                           "(branches and tags can move).")
        return self

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
    try:
        return Entry(**row)
    except LarError as error:
        raise LarError(f"{path}, entry {row.get('key')}: {error}") from error
