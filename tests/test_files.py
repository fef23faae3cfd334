"""Files are whole or absent, whatever happens while they are written."""

import errno

import pytest

from lar_core.errors import LarError
from lar_core.files import append_jsonl, atomic_path, read_jsonl, require_space, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_folders_are_atomic_too(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "part").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_sentence(tmp_path):
    with pytest.raises(LarError, match="disk is full.*a.txt"), atomic_path(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_too_little_space_is_noticed_beforehand_even_for_a_folder_to_come(tmp_path):
    require_space(tmp_path / "to" / "come", 1, "this test")
    require_space(tmp_path, 0, "nothing")
    with pytest.raises(LarError, match="This test takes 1000000000.0 GB .* free there: buy a disk, and try again"):
        require_space(tmp_path / "to" / "come", 10**18, "this test", "buy a disk")


def test_nan_never_reaches_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_line_cut_by_a_kill_is_dropped_and_replaced(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "val')
    assert read_jsonl(path) == [{"n": 1}]
    append_jsonl(path, {"n": 3})
    assert read_jsonl(path) == [{"n": 1}, {"n": 3}]


def test_other_damage_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\nrubbish\n{"n": 2}\n')
    with pytest.raises(LarError, match="line 2"):
        read_jsonl(tmp_path / "rows.jsonl")
