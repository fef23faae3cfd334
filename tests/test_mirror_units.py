"""Which of two copies goes on from the other is told by what they hold, whatever their clocks say."""

from __future__ import annotations

import os
import time

import pytest

from lar_core.drive_units import (
    APART,
    MINE,
    SAME,
    THEIRS,
    Digests,
    begins_with,
    compare,
    lacks_files,
    require_unit,
    units,
)
from lar_core.run.errors import LarError


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
    agreed = [Digests({}).of(files / "agreed")] if agreed else []
    assert compare(files / "mine", files / "theirs", Digests({}), agreed) == verdict


def test_a_log_does_not_give_way_to_its_own_beginning(tmp_path):
    files = _write(tmp_path, {"mine.jsonl": "1\n", "theirs.jsonl": "1\n2\n"})
    agreed = [Digests({}).of(files / "theirs.jsonl")]
    assert compare(files / "mine.jsonl", files / "theirs.jsonl", Digests({}), agreed) == THEIRS


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
    digests, file = Digests({}), _write(tmp_path, {"a": "12"}) / "a"
    first = digests.of(file)
    file.write_text("34")  # at once, and as long: some clocks would not tell
    assert digests.of(file) != first
    digests.remember(file, "known")
    assert digests.of(file) == "known"
    file.write_text("345")
    assert digests.of(file) != "known"
    assert digests.of(tmp_path) != digests.of(file)


def test_an_old_time_on_new_content_is_seen_through_when_asked_to(tmp_path):
    digests, file = Digests({}), _write(tmp_path, {"a": "12"}) / "a"
    digests.remember(file, first := digests.of(file))
    stat = file.stat()
    file.write_text("34")
    os.utime(file, ns=(time.time_ns(), stat.st_mtime_ns))
    assert digests.of(file) == first
    digests.forget(file)
    assert digests.of(file) != first
