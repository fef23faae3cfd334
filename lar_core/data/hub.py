"""Outside files: the list of all of them, `data_manifest.yaml`, and how they come from the hub, at the revision it pins.

Code that downloads asks the list, so it cannot go stale. What is there is not downloaded again, a connection that breaks is
taken up, and without a network what an earlier call brought is used. After a kill, the file that was in progress begins
anew: the hub's library keeps whole files only. Every failure has a sentence of its own.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from huggingface_hub import HfApi, constants, get_token, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as TransportError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import filter_repo_objects
from pydantic import Field, StringConstraints, model_validator

from ..run.errors import LarError, first_line, unknown, unreadable, unwritable
from ..run.files import file_sha256, locked, require_space
from ..run.registry import Checked

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "data_manifest.yaml"  # put there where a wheel is built (setup.py); a checkout has it beside
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
    path = Path(path or (_INSTALLED if _INSTALLED.exists() else _PACKAGE.parent / _INSTALLED.name))  # never both
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["files"]
        entries = [_entry(row, path) for row in rows]
    except OSError as error:
        raise unreadable(path, error, "install the package again") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
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


def _entry(row: dict, path: Path) -> Entry:
    try:
        return Entry(**row)
    except LarError as error:
        raise LarError(f"{path}, entry {row.get('key')}: {error}") from error


# Downloads.

# What a disk refuses, and no connection:
_LOCAL = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.EMFILE,
          errno.EAGAIN, errno.ENOLCK, errno.ENOTDIR, errno.ENAMETOOLONG}


def download(key: str, files: Sequence[str] | None = None, folder: Path | str | None = None) -> Path:
    """Bring what the manifest lists as `key` onto this machine; returns the folder that holds its files.

    files: paths in the repository, or patterns such as "meta/*"; None: those of the entry, or all if it names none.
    folder: where to put them; None: the hub's own cache (HF_HOME), which other programs share.
    Raises LarError for an unknown or unpinned entry, an unlisted file, a missing licence, token, network, file or disk
    space, and for a checksum other than the manifest's or the hub's (the file is then deleted).
    """
    source = _source(key, files or ())
    where = _where(source, files, folder)
    with _sentences(source, folder):
        try:
            listing = _listing(source, where["allow_patterns"])
        except (TransportError, OfflineModeIsEnabled):
            if (path := _from_before(source, where)) is None:
                raise
            return path
        if all(_place(source, file, folder) for file in listing):
            return Path(snapshot_download(source.id, **where))
        lock = (Path(folder, ".cache") if folder else Path(constants.HF_HUB_CACHE, ".locks")) / f"lar-{key}.lock"
        with locked(lock, f"downloading {source.id}"):
            return _fetch(source, listing, where)


def _fetch(source: Entry, listing: list[RepoSibling], where: dict) -> Path:
    """Download what of `listing` is not there yet, and verify it. Only one process at a time does."""
    folder = where["local_dir"]
    new = _require_room(source, listing, folder)
    try:
        return Path(snapshot_download(source.id, **where))
    finally:
        _verify(source, {path: _sha256(source, file) for file in new if (path := _place(source, file, folder))})


def _require_room(source: Entry, listing: list[RepoSibling], folder: Path | str | None) -> list[RepoSibling]:
    """Those of `listing` that are not there yet, if the disk has room for them."""
    new = [file for file in listing if _place(source, file, folder) is None]
    require_space(folder or constants.HF_HUB_CACHE, sum(file.size or 0 for file in new),
                  f"downloading {source.id}", _elsewhere(folder))
    return new


def offered(key: str, files: Sequence[str] | None = None) -> None:
    """Raise LarError where `download` could not even begin, as it does: no network, no such file, no room on the disk."""
    source = _source(key, files or ())
    where = _where(source, files)
    with _sentences(source, None):
        if _from_before(source, where) is None:
            _require_room(source, _listing(source, where["allow_patterns"]), None)


def here(key: str) -> bool:
    """Whether the hub's cache on this machine holds the weights `key` at their pinned revision, all of them."""
    source = _source(key, ())
    found = _from_before(source, _where(source))
    if found is None:
        return False
    shards = [set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
              for index in found.glob("*.safetensors.index.json")]
    return all((found / name).exists() for name in set().union(*shards)) and any(found.glob("*.safetensors"))


def _source(key: str, files: Sequence[str]) -> Entry:
    """The manifest's entry, if `files` may be downloaded by it."""
    source = entry(key)
    if source.repo_type == "package":
        raise LarError(f"{key} is the Python package {source.id}: install it with pip, or run `make setup`.")
    if source.files and (unlisted := sorted(set(files) - set(source.files))):
        raise LarError(f"{unlisted[0]} of {source.id} is not listed in data_manifest.yaml, under {key}: add it there, or "
                       "ask for what is listed.")
    return source


def _where(source: Entry, files: Sequence[str] | None = None, folder: Path | str | None = None) -> dict[str, Any]:
    """What the hub's library is told of a download."""
    return {"repo_type": source.repo_type, "revision": source.pinned_revision(), "local_dir": folder,
            "allow_patterns": list(files or source.files) or None}


def _listing(source: Entry, patterns: list[str] | None) -> list[RepoSibling]:
    """The files at the hub that `patterns` ask for. Raises LarError for one that it does not have."""
    found = HfApi().repo_info(source.id, repo_type=source.repo_type, revision=source.revision, files_metadata=True)
    names = [file.rfilename for file in found.siblings]
    for pattern in patterns or ["*"]:
        if not any(filter_repo_objects(names, allow_patterns=pattern)):
            raise LarError(f"{source.id} has no file {pattern} at revision {source.revision}: correct "
                           "data_manifest.yaml.")
    return list(filter_repo_objects(found.siblings, allow_patterns=patterns, key=lambda file: file.rfilename))


def _from_before(source: Entry, where: dict) -> Path | None:
    """The folder that an earlier call filled, or None if that lacks something."""
    try:
        path = Path(snapshot_download(source.id, local_files_only=True, **where))
    except LocalEntryNotFoundError:
        return None
    return path if all(any(path.glob(pattern)) for pattern in where["allow_patterns"] or ["*"]) else None


def _place(source: Entry, file: RepoSibling, folder: Path | str | None) -> Path | None:
    """Where `file` is on this machine, or None."""
    if folder is not None:
        path = Path(folder) / file.rfilename
        return path if path.is_file() else None
    path = try_to_load_from_cache(source.id, file.rfilename, revision=source.revision, repo_type=source.repo_type)
    return Path(path) if isinstance(path, str) else None


def _sha256(source: Entry, file: RepoSibling) -> str | None:
    return (source.sha256 or {}).get(file.rfilename) or (file.lfs.sha256 if file.lfs else None)


def _verify(source: Entry, checksums: dict[Path, str | None]) -> None:
    """Compare new files with their checksums; delete those that differ, and raise LarError for the first of them."""
    wrong = [path for path, wanted in checksums.items() if wanted and file_sha256(path) != wanted]
    for path in wrong:
        path.resolve().unlink()  # in the hub's cache, the name is a link to the content
        path.unlink(missing_ok=True)
    if wrong:
        raise LarError(f"{wrong[0].name} of {source.id} arrived with another sha256 than expected and was deleted: try "
                       "again; if that happens twice, the file, or data_manifest.yaml, was changed.")


@contextmanager
def _sentences(source: Entry, folder: Path | str | None) -> Iterator[None]:
    """Turn what the hub's library raises into a LarError that says what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        raise LarError(_refusal(source, error)) from error
    except (TransportError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise LarError(f"The disk became full while downloading {source.id}: free some space, or "
                           f"{_elsewhere(folder)}, and try again; finished files are kept.") from error
        if isinstance(error, OSError) and error.errno in _LOCAL:
            place = error.filename or folder or constants.HF_HUB_CACHE
            raise unwritable(f"{place}, where {source.id} is kept,", error, _elsewhere(folder)) from error
        raise LarError(f"{source.id} is not on this machine and could not be downloaded ({type(error).__name__}: "
                       f"{first_line(error)}): check the connection and try again; "
                       "finished files are kept.") from error


def _elsewhere(folder: Path | str | None) -> str:
    return f"choose another folder than {folder}" if folder else "set HF_HOME to a folder on a larger disk"


def _refusal(source: Entry, error: HfHubHTTPError) -> str:
    """What to tell when the hub answered, but not with the file."""
    status, hub = error.response.status_code, constants.ENDPOINT
    if isinstance(error, RevisionNotFoundError | EntryNotFoundError):
        return (f"{source.id} has no revision {source.revision}, or not the files that data_manifest.yaml names: look up "
                "its present commit and files, write them there, and try again.")
    if status in (401, 403) and source.gated:
        page = f"{hub}/{'datasets/' if source.repo_type == 'dataset' else ''}{source.id}"
        token = "without a token" if get_token() is None else "with the token that is set"
        return (f"{source.id} is gated and cannot be read {token}: (1) accept its licence on {page}, (2) make a token "
                f"that may read on {hub}/settings/tokens, (3) set it as HF_TOKEN; then try again.")
    if status in (401, 403, 404):
        return (f"The hub does not show {source.id} (HTTP {status}): correct its id in data_manifest.yaml, or, if "
                "HF_TOKEN is set, correct or unset that.")
    return f"The hub could not deliver {source.id} (HTTP {status}): try again later; finished files are kept."
