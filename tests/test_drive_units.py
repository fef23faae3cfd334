"""Which of two copies goes on from the other is told by what they hold; copies are whole or absent."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from lar_core.drive_units import (
    APART,
    MINE,
    SAME,
    THEIRS,
    Memory,
    begins_with,
    copied,
    copy,
    lacks_files,
    make_parents,
    require_unit,
    swap,
    units,
)
from lar_core.run.errors import LarError
from lar_core.run.files import remove


def _write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_checkpoint_is_one_unit_and_unfinished_things_are_none(tmp_path):
    names = ("config.yaml", "control/config.yaml", "checkpoints/step_000008/model", "checkpoints/step_000008/opt",
             ".metrics.tmp", "demos.parts/attempt_0", "checkpoints/.step_000016.tmp/model")
    _write(tmp_path, dict.fromkeys(names, ""))
    assert [str(unit) for unit in units(tmp_path)] == ["checkpoints/step_000008", "config.yaml", "control/config.yaml"]
    assert list(units(tmp_path / "missing")) == []


def test_a_folder_that_cannot_be_listed_is_named_and_refused(tmp_path, monkeypatch):
    _write(tmp_path, {"a": "", "videos/clip": "", "z": ""})
    iterdir = type(tmp_path).iterdir
    def refusing(path):
        if path.name == "videos":
            raise PermissionError
        return iterdir(path)
    monkeypatch.setattr(type(tmp_path), "iterdir", refusing)
    assert [str(unit) for unit in units(tmp_path)] == ["a", "videos", "z"]
    require_unit(tmp_path, tmp_path / "a")
    with pytest.raises(LarError, match="cannot be listed"):
        require_unit(tmp_path, tmp_path / "videos")


@pytest.mark.parametrize(("mine", "theirs", "agreed", "verdict"), [
    ("a", "a", "", SAME),
    ("ab", "a", "", MINE),
    ("a", "ab", "", THEIRS),
    ("ab", "ac", "", APART),
    ("ab", "ac", "ac", MINE),
    ("ab", "ac", "ab", THEIRS),
    ("a", "ac", "ac", MINE),  # rewritten, and shorter now
    ("", "a", "", THEIRS),
])
def test_what_was_agreed_on_has_not_changed_and_what_begins_with_the_other_holds_it(tmp_path, mine, theirs, agreed, verdict):
    files = _write(tmp_path, {"mine": mine, "theirs": theirs, "agreed": agreed})
    memory = Memory(tmp_path / "memory")
    memory.agreed = {"unit": [memory.digest(files / "agreed")]} if agreed else {}
    assert memory.compare(files / "mine", files / "theirs", "unit") == verdict


def test_a_log_does_not_give_way_to_its_own_beginning(tmp_path):
    files = _write(tmp_path, {"mine.jsonl": "1\n", "theirs.jsonl": "1\n2\n"})
    memory = Memory(tmp_path / "memory")
    memory.agreed = {"unit": [memory.digest(files / "theirs.jsonl")]}
    assert memory.compare(files / "mine.jsonl", files / "theirs.jsonl", "unit") == THEIRS


@pytest.mark.parametrize(("whole", "part", "so"), [
    ({"a": "12", "b": "1"}, {"a": "1"}, True),
    ({"a": "12", "b": "1"}, {"a": "12", "b": "1"}, True),
    ({"a": "12"}, {"a": "1", "b": "1"}, False),
    ({"a": "12"}, {"a": "2"}, False),
    ({"a": "1" * 3_000_000 + "2"}, {"a": "1" * 3_000_000}, True),
    ({"a": "1" * 3_000_000 + "2"}, {"a": "1" * 2_999_999 + "3"}, False),
    ({"a.jsonl": "1\n23\n"}, {"a.jsonl": "1\n24"}, True),  # its last line was cut short
    ({"a.jsonl": "1\n23\n"}, {"a.jsonl": "1\n24\n"}, False),
])
def test_a_folder_begins_with_one_of_which_all_files_are_in_it_or_longer(tmp_path, whole, part, so):
    assert begins_with(_write(tmp_path / "whole", whole), _write(tmp_path / "part", part)) == so
    assert not begins_with(tmp_path / "whole", tmp_path / "part" / next(iter(part)))


def test_a_checkpoint_with_fewer_files_than_another_was_cut_short(tmp_path):
    _write(tmp_path, {"step_1/model": "", "step_1/trainer": "", "step_2/model": "", "step_3/other": ""})
    assert [lacks_files(tmp_path / f"step_{number}") for number in (1, 2, 3)] == [False, True, False]


def test_a_digest_tells_names_and_contents_and_is_read_again_only_after_a_change(tmp_path):
    memory, file = Memory(tmp_path / "memory"), _write(tmp_path, {"a": "12"}) / "a"
    first = memory.digest(file)
    file.write_text("34")  # at once, and as long: some clocks would not tell
    assert memory.digest(file) != first
    memory.note(file, "known")
    assert memory.digest(file) == "known"
    file.write_text("345")
    assert memory.digest(file) != "known"
    assert memory.digest(tmp_path) != memory.digest(file)


def test_an_old_time_on_new_content_is_seen_through_when_asked_to(tmp_path):
    memory, file = Memory(tmp_path / "memory"), _write(tmp_path, {"a": "12"}) / "a"
    memory.note(file, first := memory.digest(file))
    stat = file.stat()
    file.write_text("34")
    os.utime(file, ns=(time.time_ns(), stat.st_mtime_ns))
    assert memory.digest(file) == first
    memory.forget(file)
    assert memory.digest(file) != first


# --- copies, which never make the folder that they were to go into ------------------------------------------------------

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
    target, old = folder / "target", folder / ".target.0000aaaa.old"
    if before == "a folder":
        target.mkdir()
        (target / "other").touch()
    if before == "a file":
        copy(folder / "source/deep/file", target)
        swap(folder / "source/deep/file", target, old)
    else:
        swap(folder / "source", target, old)
    assert not list(folder.glob(".*")) and not (folder / "target/other").exists()
    assert (target if before == "a file" else target / "deep/file").read_text() == "content"
    remove(target)
    remove(target)
    assert not target.exists()


def test_a_kill_while_a_replaced_folder_is_removed_leaves_nothing_that_could_get_its_name_back(folder, monkeypatch):
    (folder / "target").mkdir()
    old = folder / ".target.0000aaaa.old"
    def killed(path):
        next(path.iterdir()).unlink() if any(path.iterdir()) else path.rmdir()
        raise KeyboardInterrupt
    (folder / "target/other").touch()
    monkeypatch.setattr("lar_core.drive_units.remove", lambda path: killed(path) if path.exists() else None)
    with pytest.raises(KeyboardInterrupt):
        swap(folder / "source", folder / "target", old)
    assert not old.exists() and (folder / "target/deep/file").read_text() == "content"
    assert [path.name for path in folder.glob(".*")] == [".target.gone.0000aaaa.tmp"]  # which every start clears away
