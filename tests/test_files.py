"""Files are whole or absent, whatever happens while they are written."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lar_core.run import files
from lar_core.run.errors import LarError
from lar_core.run.files import (
    append_jsonl,
    atomic_path,
    locked,
    produce,
    read_jsonl,
    require_space,
    write_json,
    write_text,
)
from lar_core.scene import setup

HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
from lar_core.run.files import locked

def refuse(*_):
    raise OSError(int(sys.argv[2]), "no locks here")

if int(sys.argv[2]):
    fcntl.flock = refuse
with locked(Path(sys.argv[1]), "recording task 5"):
    print("held", flush=True)
    time.sleep(60)
"""
NO_FLOCK = [0, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]  # a file system with the system's locks, and some without


@pytest.fixture(params=NO_FLOCK, ids=lambda number: errno.errorcode.get(number, "flock"))
def drive(request, monkeypatch):
    """What `flock` says on this drive; 0 where it works."""
    if request.param:
        def refuse(*_):
            raise OSError(request.param, "no locks here")
        monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "NOTICE", 0.1)
    return request.param


@pytest.fixture
def elsewhere(drive, tmp_path):
    """Another process that holds the lock, on the same drive."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock"), str(drive)], stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


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


# --- several processes ------------------------------------------------------------------------------------------------

def test_of_several_that_want_a_file_one_makes_it_and_the_others_find_it(drive, tmp_path):
    made = []

    def make():
        made.append(1)
        time.sleep(0.3)
        write_text(tmp_path / "made.txt", "whole")

    def want():
        return produce(tmp_path / "made.txt", "making it", make).read_text()

    with ThreadPoolExecutor(3) as threads:
        assert [job.result() for job in [threads.submit(want) for _ in range(3)]] == ["whole"] * 3
    assert len(made) == 1 and [path.name for path in tmp_path.iterdir() if "lock" not in path.name] == ["made.txt"]


def test_when_the_first_one_fails_the_next_one_makes_it(tmp_path):
    with pytest.raises(ZeroDivisionError):
        produce(tmp_path / "made.txt", "making it", lambda: 1 / 0)
    produce(tmp_path / "made.txt", "making it", lambda: write_text(tmp_path / "made.txt", "whole"))
    assert [path.name for path in tmp_path.iterdir()] == ["made.txt"]


def test_who_waits_is_told_once_for_whom_and_what(elsewhere, tmp_path, capsys):
    def end():
        time.sleep(1)
        elsewhere.kill()
        elsewhere.wait()  # only then is its number free

    threading.Thread(target=end).start()
    with locked(tmp_path / ".lock", "waiting"):
        pass
    said = capsys.readouterr().err
    owner = f"process {elsewhere.pid} on {socket.gethostname()}"
    assert said.count("Waiting for") == 1 and f"Waiting for {owner}, which is recording task 5." in said
    assert f"P{owner[1:]} was killed while recording task 5: going on" in said


def test_a_lock_that_a_killed_process_left_is_taken_over_with_a_sentence(elsewhere, tmp_path, capsys):
    os.kill(elsewhere.pid, signal.SIGKILL)
    elsewhere.wait()
    for _ in range(2):
        with locked(tmp_path / ".lock", "going on", patience=5):
            pass
    assert capsys.readouterr().err.count(f"Process {elsewhere.pid} on {socket.gethostname()} was killed") == 1


def test_who_does_not_want_to_wait_is_told_whose_it_is(elsewhere, tmp_path):
    said = f"at work in .*: wait.*process {elsewhere.pid} on .*, which is recording task 5"
    with pytest.raises(LarError, match=said), locked(tmp_path / ".lock", "going on", patience=0.2):
        raise AssertionError("inside twice")


@pytest.mark.parametrize("drive", [errno.ENOLCK], indirect=True)
def test_a_process_that_got_the_number_of_the_dead_one_does_not_hold_its_lock(elsewhere, tmp_path):
    marker = tmp_path / ".lock-held"
    elsewhere.kill()
    elsewhere.wait()
    _, host, start = marker.read_text().splitlines()
    marker.write_text(f"{os.getpid()}\n{host}\n{start}\n")  # alive, but it began at another time
    with locked(tmp_path / ".lock", "going on", patience=5):
        pass


@pytest.mark.parametrize("drive", [errno.ENOLCK], indirect=True)
def test_a_lock_of_another_machine_is_kept_and_how_to_be_rid_of_it_is_said(elsewhere, tmp_path):
    marker = tmp_path / ".lock-held"
    elsewhere.kill()
    elsewhere.wait()
    marker.write_text(f"{elsewhere.pid}\nnode7\n1\n")
    write_json(tmp_path / ".lock-owner", {"process": elsewhere.pid, "host": "node7", "doing": "recording task 5"})
    said = f"process {elsewhere.pid} on node7, .* If that process is gone, delete {marker} to go"
    with pytest.raises(LarError, match=said), locked(tmp_path / ".lock", "going on", patience=0.2):
        pass
    marker.unlink()
    with locked(tmp_path / ".lock", "going on", patience=0.2):
        pass


def test_a_read_only_folder_is_named_and_what_is_there_is_used(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(files, "_take", read_only)
    with pytest.raises(LarError, match=f"{tmp_path} cannot be written .Read-only file system., and recording needs to"):
        produce(tmp_path / "missing", "recording", lambda: None)
    (tmp_path / "there").touch()
    assert produce(tmp_path / "there", "recording", lambda: 1 / 0).exists()


def test_an_error_of_the_drive_is_not_mistaken_for_a_missing_lock(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / ".lock", "recording"):
        pass


# --- folders of generated files, and places that cannot be written ------------------------------------------------------

def test_build_once_keeps_the_folder_of_a_faster_process(tmp_path):
    folder = tmp_path / "pack"

    def build(temporary):
        (temporary / "file").write_text("ours")
        folder.mkdir()
        (folder / "file").write_text("theirs")

    assert (files.build_once(folder, build) / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_of_three_processes_one_builds(tmp_path):
    built = []

    def build(temporary):
        built.append(temporary)
        time.sleep(0.2)
        (temporary / "file").write_text("whole")

    with ThreadPoolExecutor(3) as threads:
        folders = set(threads.map(lambda _: files.build_once(tmp_path / "pack", build), range(3)))
    assert folders == {tmp_path / "pack"} and len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_interrupted_build_leaves_nothing_behind(tmp_path):
    def build(temporary):
        (temporary / "file").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.build_once(tmp_path / "pack", build)
    assert [path.name for path in tmp_path.iterdir()] == [".pack.lock"]


def test_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LarError, match="XDG_CACHE_HOME"):
        files.build_once(tmp_path / "file" / "pack", lambda _: None)


@pytest.mark.parametrize("variables, moved", [
    ({}, {"NUMBA_CACHE_DIR": "cache", "MPLCONFIGDIR": None}),
    ({"MPLCONFIGDIR": "/dev/null/mpl", "XDG_CONFIG_HOME": "/dev/null/config"},
     {"NUMBA_CACHE_DIR": "cache", "MPLCONFIGDIR": "temporary"}),
    ({"NUMBA_CACHE_DIR": "/dev/null/numba", "XDG_CACHE_HOME": "/dev/null/cache"},
     {"NUMBA_CACHE_DIR": "temporary", "MPLCONFIGDIR": None}),
    ({"NUMBA_CACHE_DIR": "."}, {"NUMBA_CACHE_DIR": ".", "MPLCONFIGDIR": None}),  # the user's own choice stays
])
def test_libraries_that_insist_on_a_cache_get_one_that_can_be_written(tmp_path, monkeypatch, variables, moved):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("cache", "config", "temporary"):
        (tmp_path / name).mkdir()
    for name, value in {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "config"),
                        "NUMBA_CACHE_DIR": "", "MPLCONFIGDIR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    files.library_caches()
    for name, place in moved.items():
        assert os.environ[name].startswith(str(tmp_path / place) if place != "." else ".") if place else not os.environ[name]


def test_the_place_that_is_used_instead_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAR_SAID", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    folder = files.cache_folder("pack")
    assert tmp_path in folder.parents and files.build_once(folder, lambda path: (path / "file").touch()).is_dir()
    said = capsys.readouterr().err
    assert "/dev/null/cache" in said and str(tmp_path) in said and "XDG_CACHE_HOME" in said


def test_a_full_cache_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    baked = files.build_once(files.cache_folder("pack"), lambda path: (path / "file").touch())
    monkeypatch.setattr(files, "writable", lambda _: False)
    assert files.cache_folder("pack") == baked


def test_a_user_without_a_home_has_a_cache(tmp_path, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(files.Path, "home", nobody)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    assert tmp_path in files.cache_base().parents and not setup._hub_copy().exists()


@pytest.mark.parametrize("theirs", ["link", "file", "owner"])
def test_a_temporary_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch, theirs):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    taken = tmp_path / f"lar_core-{os.getuid()}"
    if theirs == "link":
        (tmp_path / "elsewhere").mkdir()
        taken.symlink_to(tmp_path / "elsewhere")
    elif theirs == "file":
        taken.write_text("")
    else:
        taken.mkdir()
        other = os.getuid() + 1
        monkeypatch.setattr(files.os, "getuid", lambda: other)
        taken.rename(tmp_path / f"lar_core-{os.getuid()}")
    ours = files.temporary_folder("cache")
    assert ours.is_dir() and taken not in ours.parents and (tmp_path / "elsewhere") not in ours.parents


def test_no_temporary_folder_at_all_is_a_sentence(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")
    monkeypatch.setattr(files.tempfile, "gettempdir", none)
    with pytest.raises(LarError, match="set TMPDIR"):
        files.temporary_folder("cache")
