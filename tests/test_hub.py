"""Outside files: which version of each is meant, and how it comes onto this machine."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import yaml
from hub_stand_in import TOKEN

from lar_core.data import hub as downloading
from lar_core.data.hub import Entry, download, entry, load_manifest
from lar_core.run.errors import LarError
from lar_core.scene.setup import task_names

# The manifest says for every outside file which version is meant, and is refused when it does not.

GOOD = {"key": "x", "kind": "weights", "id": "a/b", "repo_type": "model", "purpose": "p", "licence": "MIT",
        "revision": "0" * 40, "size_bytes": 3}


def write(tmp_path, *rows):
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump({"files": list(rows)}))
    return path


def test_the_projects_manifest_is_valid_and_names_the_backbone():
    backbone = entry("paligemma-3b-pt-224")
    assert backbone.id == "google/paligemma-3b-pt-224" and backbone.gated
    assert {found.kind for found in load_manifest().values()} == set(get_args(Entry.model_fields["kind"].annotation))


def test_the_demonstrations_of_liberos_ten_spatial_tasks_are_listed_with_checksums():
    listed = entry("libero-spatial-demonstrations")
    assert listed.files == tuple(f"libero_spatial/{name}_demo.hdf5" for name in task_names())
    assert set(listed.sha256) == set(listed.files)


def test_an_unpinned_entry_cannot_be_downloaded(tmp_path):
    unpinned = load_manifest(write(tmp_path, {**GOOD, "revision": None, "note": "not released"}))["x"]
    with pytest.raises(LarError, match=r"a/b has no pinned revision .*\(not released\)"):
        unpinned.pinned_revision()
    assert len(entry("libero-assets").pinned_revision()) == 40


def test_a_misspelt_key_suggests_the_nearest():
    with pytest.raises(LarError, match="did you mean 'libero-assets'"):
        entry("libero-asset")


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "wights"}, "entry x: Unknown kind 'wights': did you mean 'weights'"),
    ({"revision": "main"}, "full commit"),
    ({"revision": None}, "must say why"),
    ({"size_bytes": "big"}, "size_bytes is 'big'"),
    ({"licence": " "}, "licence is ' ', but must have at least 1 character"),
    ({"sha256": {"a.bin": "12"}}, "sha256.a.bin is '12'"),
    ({"licens": "MIT"}, "did you mean 'licence'"),
])
def test_a_wrong_field_is_named(tmp_path, change, message):
    with pytest.raises(LarError, match=message):
        load_manifest(write(tmp_path, {**GOOD, **change}))


def test_a_file_of_another_kind_or_a_double_key_is_refused(tmp_path):
    assert load_manifest(write(tmp_path, GOOD))["x"].size_bytes == 3
    with pytest.raises(LarError, match="same key 'x'"):
        load_manifest(write(tmp_path, GOOD, GOOD))
    other = tmp_path / "other.yaml"
    other.write_text("- 1")
    with pytest.raises(LarError, match="not a manifest"):
        load_manifest(other)


# Downloads: only what is listed, at the pinned revision, checked; every failure says in a sentence what to do.

KEY, COMMIT = "a-key", "0123456789" * 4
FILES = {"a/first.bin": b"first" * 9, "a/second.bin": b"second" * 9, "README.md": b"read me"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def lists(monkeypatch):
    """lists(files=...) puts an entry for the repository someone/data into the manifest."""
    def change(**fields):
        source = Entry(**{"key": KEY, "kind": "demonstrations", "id": "someone/data", "repo_type": "dataset",
                          "purpose": "a test", "licence": "MIT", "revision": COMMIT, "size_bytes": None} | fields)
        monkeypatch.setattr(downloading, "entry", lambda key: source if key == KEY else entry(key))
    change()
    return change


@pytest.fixture
def repo(hub, lists):
    """The hub, with two commits of the repository; the entry pins the first."""
    hub.add("someone/data", FILES, repo_type="dataset", commit=COMMIT)
    hub.add("someone/data", {"a/first.bin": b"newer"}, repo_type="dataset")
    return hub


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def asked_for(hub, name: str) -> int:
    return sum(line.startswith("GET") and line.endswith(name) for line in hub.log)


def contents(folder) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_the_pinned_revision_arrives_in_the_hubs_cache_once(repo):
    assert contents(download(KEY)) == FILES
    assert contents(download(KEY)) == FILES
    assert asked_for(repo, "a/first.bin") == asked_for(repo, "README.md") == 1


@pytest.mark.parametrize("own", [True, False])
def test_two_at_once_download_every_file_once(repo, tmp_path, own):
    folder = tmp_path / "here" if own else None
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: download(KEY, folder=folder), range(2))
    assert one == other and contents(one) == FILES
    assert asked_for(repo, "a/first.bin") == asked_for(repo, "README.md") == 1


def test_only_named_files_or_patterns_are_fetched(repo):
    assert set(contents(download(KEY, ["a/first.bin"]))) == {"a/first.bin"}
    assert set(contents(download(KEY, ["a/*"]))) == {"a/first.bin", "a/second.bin"}
    assert not asked_for(repo, "README.md")


def test_an_entry_that_lists_files_means_only_those(repo, lists):
    lists(files=("a/first.bin",))
    assert set(contents(download(KEY))) == {"a/first.bin"}
    with pytest.raises(LarError, match="a/second.bin of someone/data is not listed in data_manifest.yaml, under a-key"):
        download(KEY, ["a/first.bin", "a/second.bin"])


def test_a_folder_of_ones_own_can_be_named(repo, tmp_path):
    assert download(KEY, folder=tmp_path / "here") == tmp_path / "here"
    assert contents(tmp_path / "here") == FILES


def test_what_is_there_is_used_without_the_hub(repo, monkeypatch):
    first = download(KEY, ["a/first.bin"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert download(KEY, ["a/first.bin"]) == first
    for files in (["a/second.bin"], None):
        with pytest.raises(LarError, match="someone/data is not on this machine and could not be downloaded.*connection"):
            download(KEY, files)


def test_a_broken_connection_is_taken_up_again(repo, no_waiting):
    repo.cut_after = 7
    assert contents(download(KEY, ["a/first.bin"])) == {"a/first.bin": FILES["a/first.bin"]}
    assert asked_for(repo, "a/first.bin") == 2


def test_a_connection_that_stays_broken_keeps_what_is_finished(repo, monkeypatch, no_waiting):
    download(KEY, ["a/first.bin"])
    monkeypatch.setattr(type(repo), "cut_after", property(lambda hub: 3, lambda hub, value: None), raising=False)
    with pytest.raises(LarError, match="finished files are kept"):
        download(KEY)
    assert asked_for(repo, "a/first.bin") == 1


@pytest.mark.parametrize("told_by", ["manifest", "hub"])
def test_a_file_with_a_wrong_checksum_is_deleted_and_the_others_stay(repo, lists, told_by):
    checksums = {"a/first.bin": digest(b"another"), "a/second.bin": digest(FILES["a/second.bin"])}
    repo.sha256 = checksums if told_by == "hub" else {}
    lists(sha256=checksums if told_by == "manifest" else None)
    for _ in range(2):  # the second time, too: it does not count as being there
        with pytest.raises(LarError, match="first.bin of someone/data arrived with another sha256"):
            download(KEY)
    assert (asked_for(repo, "a/first.bin"), asked_for(repo, "a/second.bin")) == (2, 1)
    repo.sha256 = {}
    lists(sha256={"a/first.bin": digest(FILES["a/first.bin"])})
    assert contents(download(KEY)) == FILES


def test_a_gated_repository_names_its_page_and_the_three_steps(hub, lists, monkeypatch):
    hub.add("someone/data", FILES, repo_type="dataset", commit=COMMIT, gated=True)
    lists(gated=True)
    steps = "without a token: .*accept its licence on http.*/datasets/someone/data, .*make a token .*HF_TOKEN"
    with pytest.raises(LarError, match=steps):
        download(KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_OfSomebodyWithoutTheLicence")
    with pytest.raises(LarError, match="with the token that is set") as error:
        download(KEY)
    assert "hf_Of" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert contents(download(KEY)) == FILES


def test_a_full_disk_is_noticed_before_anything_is_fetched(repo, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 50))
    with pytest.raises(LarError, match=r"Downloading someone/data takes 0.0 GB in .*, but only 0.0 GB are free"):
        download(KEY)
    assert not asked_for(repo, ".bin")


def test_a_disk_that_becomes_full_is_named(repo, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(downloading, "snapshot_download", full)
    with pytest.raises(LarError, match="The disk became full while downloading someone/data"):
        download(KEY)


@pytest.mark.parametrize(("number", "words"), [(errno.EACCES, "no permission"), (errno.EROFS, "read-only"),
                                               (errno.EDQUOT, "quota"), (errno.EIO, "disk or network drive failed")])
def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_connection(repo, monkeypatch, number, words):
    def refuse(*_, **__):
        raise OSError(number, "refused", "/read/only/hub")
    monkeypatch.setattr(downloading, "snapshot_download", refuse)
    said = f"/read/only/hub, where someone/data is kept, cannot be written.*{words}.*HF_HOME"
    with pytest.raises(LarError, match=said) as error:
        download(KEY)
    assert "connection" not in str(error.value)


@pytest.mark.parametrize("refused", [PermissionError(errno.EACCES, "refused"), OSError(errno.EIO, "refused")])
def test_a_new_file_that_cannot_be_hashed_is_kept(repo, lists, monkeypatch, refused):
    lists(sha256={"a/first.bin": digest(b"another")})
    new = []
    def refuse(path):
        new.append(path)
        raise refused
    monkeypatch.setattr(downloading, "file_sha256", refuse)
    with pytest.raises(LarError, match="where someone/data is kept"):
        download(KEY, ["a/first.bin"])
    assert new and all(path.exists() for path in new)


def test_what_the_hub_does_not_have_is_named(repo, lists):
    with pytest.raises(LarError, match="has no file a/third.bin at revision 0123"):
        download(KEY, ["a/third.bin"])
    lists(revision="f" * 40)
    with pytest.raises(LarError, match="has no revision ffff"):
        download(KEY)
    lists(id="someone/else")
    with pytest.raises(LarError, match="does not show someone/else"):
        download(KEY)


def test_an_unknown_an_unpinned_and_a_packages_entry_are_refused(lists):
    with pytest.raises(LarError, match="did you mean 'libero-assets'"):
        download("libero-asset")
    with pytest.raises(LarError, match="is the Python package robosuite"):
        download("robosuite")
    lists(revision=None, note="not yet")
    with pytest.raises(LarError, match="has no pinned revision"):
        download(KEY)
