"""Copies are whole or absent, and never make the folder that they were to go into."""

from __future__ import annotations

import shutil

import pytest

from lar_core.drive_units import copied, copy, make_parents, remove, swap


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "source/deep").mkdir(parents=True)
    (tmp_path / "source/deep/file").write_text("content")
    return tmp_path


@pytest.mark.parametrize("source", ["source", "source/deep/file"])
def test_a_copy_makes_no_folder_above_it(folder, source):
    with pytest.raises(FileNotFoundError):
        copy(folder / source, folder / "gone/target")
    with pytest.raises(FileNotFoundError):
        make_parents(folder / "gone", source_path := (folder / "a/b/c").relative_to(folder))
    assert not (folder / "gone").exists()
    make_parents(folder, source_path)
    assert (folder / "a/b").is_dir() and not (folder / "a/b/c").exists()


def test_a_copy_that_fails_or_is_not_used_leaves_nothing(folder, monkeypatch):
    with copied(folder / "source", folder / ".tmp") as temporary:
        assert (temporary / "deep/file").read_text() == "content"
    def failing(source, target):
        target.write_text("half")
        raise OSError
    monkeypatch.setattr(shutil, "copy2", failing)
    with pytest.raises(OSError), copied(folder / "source", folder / ".tmp"):
        pytest.fail("it is not there")
    assert [path.name for path in folder.iterdir()] == ["source"]


@pytest.mark.parametrize("before", ["nothing", "a file", "a folder"])
def test_a_copy_takes_the_place_of_what_was_there(folder, before):
    target = folder / "target"
    if before == "a folder":
        target.mkdir()
        (target / "other").touch()
    if before == "a file":
        copy(folder / "source/deep/file", target)
        swap(folder / "source/deep/file", target, folder / ".old")
    else:
        swap(folder / "source", target, folder / ".old")
    assert not (folder / ".old").exists() and not (folder / "target/other").exists()
    assert (target if before == "a file" else target / "deep/file").read_text() == "content"
    remove(target)
    remove(target)
    assert not target.exists()
