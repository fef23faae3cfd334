"""A copy of the run folder elsewhere: whole files, whole checkpoints, and work that goes on when it breaks."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from lar_core.drive import Mirror


@pytest.fixture
def here(tmp_path):
    here = tmp_path / "here"
    for name in ("config.yaml", "control/config.yaml", "checkpoints/step_000008/model", "checkpoints/step_000008/opt",
                 ".metrics.tmp", "demos.parts/attempt_0"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    return here


@pytest.fixture
def mirror(here, tmp_path):
    return Mirror(here, tmp_path / "there", warn=lambda words: pytest.fail(words))


def test_only_what_changed_is_copied_again(here, mirror):
    assert mirror.sync() == 3 and mirror.sync() == 0
    (here / "config.yaml").write_text("longer than before")
    assert mirror.sync() == 1
    assert (mirror.there / "config.yaml").read_text() == "longer than before"
    assert Mirror(here, mirror.there).sync() == 0  # the next session does not copy everything again


def test_a_new_machine_gets_back_what_was_left(here, mirror, tmp_path):
    mirror.sync()
    shutil.rmtree(here)
    (here / "control").mkdir(parents=True)
    (here / "control/config.yaml").write_text("of this machine")
    assert mirror.restore() == 2
    assert (here / "checkpoints/step_000008/opt").exists()
    assert (here / "control/config.yaml").read_text() == "of this machine"


def test_checkpoints_that_were_replaced_are_removed_there_too(here, mirror):
    mirror.sync()
    (here / "checkpoints/step_000008").rename(here / "checkpoints/step_000016")
    (here / "control/config.yaml").unlink()
    mirror.sync()
    assert [path.name for path in (mirror.there / "checkpoints").iterdir()] == ["step_000016"]
    assert (mirror.there / "control/config.yaml").exists()  # nothing else is ever deleted


def test_a_full_drive_is_said_once_and_work_goes_on(here, tmp_path, monkeypatch):
    said = []
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("lar_core.drive.shutil.copy2", full)
    mirror = Mirror(here, tmp_path / "there", warn=said.append)
    assert mirror.sync() == 0 and mirror.sync() == 0
    assert len(said) == 1 and "full" in said[0] and str(here) in said[0]
    assert not list((tmp_path / "there").glob(".config*"))  # nothing half-copied


def _checkpoint(folder, step, text=None):
    for name in ("model", "trainer"):
        path = folder / f"checkpoints/step_{step:06d}/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or f"{name} at {step}")


def _steps(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*"))


class Tab:
    """A notebook on a machine of its own, with a run; what it is warned of is in `said`."""

    def __init__(self, tmp_path, name, drive="drive"):
        self.run, self.drive, self.said = tmp_path / name, tmp_path / drive, []
        self.run.mkdir(exist_ok=True)
        self.restart()

    def restart(self):
        self.mirror = Mirror(self.run, self.drive, self.said.append)

    def train(self, *steps, keep=2):
        for step in steps:
            _checkpoint(self.run, step)
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step}) + "\n")
        for old in sorted((self.run / "checkpoints").iterdir())[:-keep]:
            shutil.rmtree(old)
        return self


@pytest.fixture
def tabs(tmp_path):
    """Tab 1 has trained to 100 and has saved that; tab 2 has begun with it, trained to 300 and saved that."""
    one, two = Tab(tmp_path, "one"), Tab(tmp_path, "two")
    one.train(100).mirror.sync()
    two.mirror.restore()
    two.train(200, 300).mirror.sync()
    return one, two


@pytest.mark.parametrize("restarted", ["alive", "restarted", "without memory"])
def test_a_tab_that_stopped_removes_and_overwrites_nothing_of_one_that_went_on(tabs, restarted):
    one, _ = tabs
    if restarted == "without memory":
        (one.run / ".mirror.json").unlink()
    if restarted != "alive":
        one.restart()
    os.utime(one.run / "metrics.jsonl", (4e9, 4e9))  # its clock is decades ahead
    one.mirror.sync()
    assert _steps(one.drive) == [100, 200, 300]
    assert len((one.drive / "metrics.jsonl").read_text().splitlines()) == 3
    assert not one.said and not one.mirror.unsaved


def test_only_checkpoints_that_this_machine_put_there_and_replaced_there_are_removed(tabs):
    one, two = tabs
    two.train(400, 500).mirror.sync()
    assert _steps(two.drive) == [100, 400, 500]  # 100 is the other's
    shutil.rmtree(two.run / "checkpoints/step_000500")  # as for a damaged one: nothing newer has taken its place
    two.mirror.sync()
    assert _steps(two.drive) == [100, 400, 500]


def test_a_checkpoint_that_was_put_there_but_is_another_one_now_stays(tmp_path):
    one = Tab(tmp_path, "one").train(100)
    one.mirror.sync()
    look = (one.drive / "checkpoints/step_000100/model").stat()
    _checkpoint(one.drive, 100, "model of 2")  # as long, and by its clock as old
    os.utime(one.drive / "checkpoints/step_000100/model", ns=(look.st_atime_ns, look.st_mtime_ns))
    one.train(200, 300).mirror.sync()
    assert _steps(one.drive) == [100, 200, 300]


def test_nothing_is_removed_before_the_newer_one_is_there(tmp_path, monkeypatch):
    one = Tab(tmp_path, "one").train(100)
    one.mirror.sync()
    _fail_at(monkeypatch, lambda source: "step_000" in str(source))
    one.train(200, 300).mirror.sync()
    assert _steps(one.drive) == [100]
    monkeypatch.undo()
    one.mirror.sync()
    assert _steps(one.drive) == [200, 300] and "works again" in one.said[-1]


def test_a_checkpoint_of_the_same_step_from_another_machine_is_kept_beside(tabs):
    one, _ = tabs
    _checkpoint(one.run, 200, "trained apart")
    one.mirror.sync()
    assert (one.drive / "checkpoints/step_000200/model").read_text() == "model at 200"
    assert [path.read_text() for path in one.drive.glob(".kept/*/checkpoints/step_000200/model")] == ["trained apart"]
    assert len(one.said) == 1 and "another way" in one.said[0]
    assert one.mirror.sync() == 0 and len(one.said) == 1


@pytest.mark.parametrize(("there", "here", "kept"), [
    ("1\n2\n3\n", "1\n2\n", "1\n2\n3\n"),
    ("1\n2\n", "1\n2\n3\n", "1\n2\n3\n"),
    ("1\n2\n3", "1\n2\n4\n5\n", "1\n2\n4\n5\n"),  # a last line that a kill cut short is no line
    ("", "1\n", "1\n"),
])
@pytest.mark.parametrize("newer", ["here", "there"])
def test_of_json_lines_the_longer_one_that_begins_with_the_shorter_one_wins(tmp_path, there, here, kept, newer):
    one = Tab(tmp_path, "one")
    (one.drive / "rollouts.jsonl").write_text(there)
    (one.run / "rollouts.jsonl").write_text(here)
    os.utime((one.run if newer == "here" else one.drive) / "rollouts.jsonl", (4e9, 4e9))
    one.mirror.sync()
    assert (one.drive / "rollouts.jsonl").read_text() == kept and not one.said


@pytest.mark.parametrize("name", ["rollouts.jsonl", "results.json", "clip.mp4"])
def test_files_that_went_different_ways_are_both_kept_and_it_is_said(tabs, name):
    one, two = tabs
    for tab, text in ((one, "1\n2\n"), (two, "1\n3\n"), (one, "1\n2\n4\n")):
        (tab.run / name).write_text(text)
        tab.mirror.sync()
    assert (one.drive / name).read_text() == "1\n2\n4\n"  # the first one's; it may go on
    assert next(one.drive.glob(f".kept/*/{name}")).read_text() == "1\n3\n"
    assert not one.said and len(two.said) == 1 and name in two.said[0] and ".kept" in two.said[0]


def test_a_run_that_goes_on_from_its_checkpoint_drops_lines_here_but_they_are_kept_there(tabs):
    _, two = tabs
    (two.run / "metrics.jsonl").write_text('{"step": 100}\n{"step": 200}\n{"step": 300, "again": 1}\n')
    two.mirror.sync()
    assert "again" in (two.drive / "metrics.jsonl").read_text()
    assert '{"step": 300}' in next(two.drive.glob(".kept/*/*-metrics.jsonl")).read_text()
    assert len(two.said) == 1 and "lines" in two.said[0]


@pytest.mark.parametrize("size", [0, 7])
def test_what_is_newer_by_its_clock_but_cut_short_is_made_whole(tabs, size):
    _, two = tabs
    for name in ("metrics.jsonl", "checkpoints/step_000300/model"):
        whole = (two.drive / name).read_bytes()
        (two.drive / name).write_bytes(whole[:size])
        os.utime(two.drive / name, (4e9, 4e9))
        two.restart()
        two.mirror.sync()
        assert (two.drive / name).read_bytes() == whole


def test_a_tab_that_starts_again_catches_up_with_what_the_other_has_done(tabs):
    one, _ = tabs
    one.restart()
    assert one.mirror.restore() == 3
    assert _steps(one.run) == [100, 200, 300] and len((one.run / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("loss", ["a file", "the end of a file", "a file of one that nobody vouches for"])
def test_a_checkpoint_whose_upload_was_cut_short_is_not_brought_back(tabs, tmp_path, monkeypatch, loss):
    monkeypatch.setattr("lar_core.drive.PAUSE", 0)
    one, two = tabs
    if loss.endswith("for"):
        shutil.rmtree(one.drive / ".sums")
    file = one.drive / "checkpoints/step_000300/trainer"
    file.write_text(file.read_text()[:3])
    if loss.startswith("a file"):
        file.unlink()
    three = Tab(tmp_path, "three")
    assert three.mirror.restore() == 3 and _steps(three.run) == [100, 200]
    assert len(three.said) == 1 and "step_000300" in three.said[0] and "cut short" in three.said[0]
    _checkpoint(three.run, 300, "trained again")
    three.mirror.sync()
    assert (one.drive / "checkpoints/step_000300/trainer").read_text() == "trained again"


@pytest.mark.parametrize("folder_at", ["here", "there"])
def test_a_folder_here_that_is_a_file_there_and_the_reverse(tmp_path, folder_at, monkeypatch):
    monkeypatch.setattr("lar_core.drive.PAUSE", 0)
    one = Tab(tmp_path, "one").train(100)
    folder, file = (one.run, one.drive) if folder_at == "here" else (one.drive, one.run)
    (folder / "videos").mkdir()
    (folder / "videos/a.mp4").write_text("clip")
    (file / "videos").write_text("a file")
    one.mirror.sync()
    assert _steps(one.drive) == [100] and len(one.said) == 1 and not one.mirror.unsaved
    assert (folder / "videos/a.mp4").exists() and (file / "videos").read_text() == "a file"
    assert len([path for path in one.drive.glob(".kept/*/videos/**/*") if path.is_file()]) == (folder_at == "here")
    fresh = Tab(tmp_path, "fresh")
    (fresh.run / "videos").write_text("mine") if folder_at == "there" else (fresh.run / "videos").mkdir()
    fresh.mirror.restore()
    assert _steps(fresh.run) == [100]  # whatever becomes of the rest


# --- passing errors ---------------------------------------------------------------------------------------------------

def _fail_at(monkeypatch, where, error=errno.EIO, times=10**6):
    """Copying fails where `where(source)` says so, half-way, the first `times` times."""
    copy2, left = shutil.copy2, [times]
    def failing(source, target):
        if where(source) and left[0]:
            left[0] -= 1
            Path(target).write_bytes(Path(source).read_bytes()[:3])
            raise OSError(error, os.strerror(error), str(source))
        return copy2(source, target)
    monkeypatch.setattr(shutil, "copy2", failing)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOTCONN, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT])
def test_a_passing_error_is_said_once_and_saving_goes_on(tmp_path, monkeypatch, error):
    one = Tab(tmp_path, "one").train(100)
    _fail_at(monkeypatch, lambda _: True, error, times=4)
    assert one.mirror.sync() == 0 and len(one.mirror.unsaved) == 2
    assert one.mirror.sync() == 0 and len(one.said) == 1 and str(one.run) in one.said[0]
    assert one.mirror.sync() == 2 and not one.mirror.unsaved
    assert len(one.said) == 2 and "works again" in one.said[1]
    assert not [path for path in one.drive.rglob("*tmp*")]


def test_another_cause_is_said_as_well(tmp_path, monkeypatch):
    one = Tab(tmp_path, "one").train(100)
    for error in (errno.EIO, errno.ENOSPC, errno.ENOSPC):
        with monkeypatch.context() as patch:
            _fail_at(patch, lambda _: True, error)
            one.mirror.sync()
    assert len(one.said) == 2 and "full" in one.said[1]


def test_one_file_that_cannot_be_read_does_not_keep_the_others_from_being_saved(tmp_path, monkeypatch):
    one = Tab(tmp_path, "one").train(100)
    _fail_at(monkeypatch, lambda source: "metrics" in str(source))
    assert one.mirror.sync() == 1 and _steps(one.drive) == [100]
    assert list(one.mirror.unsaved) == [Path("metrics.jsonl")] and "metrics.jsonl" in one.said[0]


@pytest.mark.parametrize("what", ["metrics.jsonl", "checkpoints/step_000200", "videos"])
def test_what_cannot_be_read_does_not_keep_the_others_from_being_brought_back(tabs, tmp_path, monkeypatch, what):
    monkeypatch.setattr("lar_core.drive.PAUSE", 0)
    drive, three = tabs[0].drive, Tab(tmp_path, "three")
    (drive / "videos").mkdir()
    (drive / "videos/a.mp4").write_text("clip")
    (drive / "zebra.json").write_text("{}")
    _fail_at(monkeypatch, lambda source: what in str(source))
    iterdir = Path.iterdir
    def listing(path):
        if what == path.name == "videos":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)
    monkeypatch.setattr(Path, "iterdir", listing)
    assert three.mirror.restore() == 5
    assert not (three.run / what).exists() and (three.run / "zebra.json").exists()
    assert len(three.said) == 1 and what in three.said[0] and "brought back" in three.said[0]


def test_a_passing_error_while_bringing_back_is_tried_again(tabs, tmp_path, monkeypatch):
    monkeypatch.setattr("lar_core.drive.PAUSE", 0)
    three = Tab(tmp_path, "three")
    _fail_at(monkeypatch, lambda source: "step_000300" in str(source), times=1)
    assert three.mirror.restore() == 4 and _steps(three.run) == [100, 200, 300] and not three.said


def _unmount(tab):
    tab.drive.rename(tab.drive.with_name("cloud"))


def _mount(tab):
    tab.drive.with_name("cloud").rename(tab.drive)


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_an_unmounted_drive_is_noticed_and_not_written_into(tmp_path, left):
    one = Tab(tmp_path, "one").train(100)
    one.mirror.sync()
    _unmount(one)
    if left != "nothing":
        one.drive.mkdir()
    one.train(200)
    assert one.mirror.sync() == one.mirror.sync() == 0
    assert not one.drive.exists() or not any(one.drive.iterdir())
    assert len(one.said) == 1 and "not mounted" in one.said[0] and one.mirror.unsaved
    if left != "nothing":
        one.drive.rmdir()
    _mount(one)
    assert one.mirror.sync() == 2 and _steps(one.drive) == [100, 200] and "works again" in one.said[1]


@pytest.mark.parametrize("at", range(3))
def test_a_drive_that_is_unmounted_while_it_is_copied_to_and_comes_back(tmp_path, monkeypatch, at):
    one = Tab(tmp_path, "one").train(100)
    copy2, calls = shutil.copy2, []
    def unmounting(source, target):
        calls.append(source)
        if len(calls) == at + 1:
            _unmount(one)
        return copy2(source, target)
    monkeypatch.setattr(shutil, "copy2", unmounting)
    one.mirror.sync()
    assert not one.drive.exists() and one.mirror.unsaved
    _mount(one)
    one.mirror.sync()
    assert not one.mirror.unsaved
    fresh = Tab(tmp_path, "fresh")
    assert fresh.mirror.restore() == 2


def test_bringing_back_from_an_unmounted_drive_says_so(tabs, tmp_path, monkeypatch):
    monkeypatch.setattr("lar_core.drive.PAUSE", 0)
    three = Tab(tmp_path, "three")
    _unmount(three)
    assert three.mirror.restore() == 0 and len(three.said) == 1 and "not mounted" in three.said[0]
    assert not three.drive.exists()


def test_a_drive_that_may_only_be_read_is_read(tabs, tmp_path, monkeypatch):
    three = Tab(tmp_path, "three")
    (three.drive / ".la-reconvla").unlink()
    path_open = Path.open
    def refusing(path, mode="r", *more, **others):
        if path.is_relative_to(three.drive) and mode != "r" and mode != "rb":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return path_open(path, mode, *more, **others)
    monkeypatch.setattr(Path, "open", refusing)
    three.restart()
    assert three.mirror.restore() == 4 and not three.said
    assert three.train(400).mirror.sync() == 0 and "Read-only" in three.said[0] and three.mirror.unsaved


def test_a_memory_that_was_damaged_is_none(tabs):
    one, _ = tabs
    for damage in ("{", "[1]", '{"put": 3}'):
        (one.run / ".mirror.json").write_text(damage)
        one.restart()
        one.mirror.sync()
        assert _steps(one.drive) == [100, 200, 300] and not one.said


def test_the_background_work_outlives_whatever_goes_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("lar_core.drive.EVERY", 0.01)
    one = Tab(tmp_path, "one").train(100)
    copy2, errors = shutil.copy2, [OSError(errno.EIO, "Input/output error"), ValueError("of another kind"), EOFError()]
    def failing(*words):
        if errors:
            raise errors.pop()
        return copy2(*words)
    monkeypatch.setattr(shutil, "copy2", failing)
    one.mirror.start()
    for _ in range(1000):
        if len(one.said) > 1 and "works again" in one.said[-1]:
            break
        time.sleep(0.01)
    one.mirror.end()
    assert not errors and _steps(one.drive) == [100] and "works again" in one.said[-1]


# --- kills ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cut", range(8))
def test_a_kill_at_any_point_of_a_replacement_loses_no_checkpoint(tmp_path, monkeypatch, cut):
    one = Tab(tmp_path, "one").train(100, 200)
    one.mirror.sync()
    _checkpoint(one.run, 200, "trained again, because the first one was damaged")
    moves = []
    for owner, name in ((os, "replace"), (Path, "rename"), (shutil, "rmtree"), (shutil, "copy2")):
        plain = getattr(owner, name)
        def dying(*words, plain=plain):
            moves.append(words)
            if len(moves) > cut:
                raise SystemExit
            return plain(*words)
        monkeypatch.setattr(owner, name, dying)
    with contextlib.suppress(SystemExit):
        one.mirror.sync()
    monkeypatch.undo()
    fresh = Tab(tmp_path, "fresh")
    fresh.mirror.restore()
    texts = [path.read_text() for path in sorted((fresh.run / "checkpoints/step_000200").iterdir())]
    assert texts in (["model at 200", "trainer at 200"], ["trained again, because the first one was damaged"] * 2)
    one.restart()
    one.mirror.sync()
    assert (one.drive / "checkpoints/step_000200/model").read_text().startswith("trained again") and not one.said


def test_what_kills_have_left_half_done_goes_but_nothing_that_another_machine_is_copying(tabs):
    one, two = tabs
    folder, mine, other = one.drive / "checkpoints", two.mirror.memory.machine, one.mirror.memory.machine
    gone = [folder / f".step_000200.{other}.old", folder / f".step_000100.{other}.tmp", folder / f".step_000300.{mine}.tmp",
            one.drive / f".metrics.jsonl.{mine}.tmp", two.run / f"checkpoints/.step_000300.{mine}.old"]
    stays = [folder / f".step_000400.{other}.tmp", two.run / "checkpoints/.step_000400.77-12ab34cd.tmp"]
    for path in (*gone, *stays):
        path.mkdir(parents=True) if "step" in path.name else path.touch()
    for path in (gone[1], stays[1]):
        os.utime(path, (1, 1))  # since 1970
    two.restart()
    two.mirror.restore()
    assert [path.exists() for path in gone] == [False] * 5 and all(path.exists() for path in stays)
    assert _steps(one.drive) == [100, 200, 300] and not two.said


def _work(run, drive, log, seed):
    """Train in a run folder, saving at random moments, until killed; what was reported saved is written down."""
    draws = random.Random(seed)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # as sudden as a SIGKILL, and timed by what this process has done
    signal.setitimer(signal.ITIMER_PROF, draws.uniform(0.005, 0.04))
    mirror = Mirror(run, drive, warn=lambda _: None)
    mirror.restore()
    metrics = run / "metrics.jsonl"
    step = max(_steps(run), default=0)
    rows = [row for row in _rows(metrics) if row["step"] <= step]  # as the trainer does
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    while True:
        step += 1
        rows.append({"step": step, "by": f"{seed}-{step}"})
        with metrics.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        if step % 2 == 0:
            _checkpoint(run / ".new", step, f"{seed} {step} " * draws.randrange(1, 2000))
            (run / "checkpoints").mkdir(exist_ok=True)
            (run / f".new/checkpoints/step_{step:06d}").rename(run / f"checkpoints/step_{step:06d}")
            for old in _steps(run)[:-2]:
                shutil.rmtree(run / f"checkpoints/step_{old:06d}")
        if draws.random() < 0.5:
            mirror.sync()
            if not mirror.unsaved:
                saved = {"rows": [row["by"] for row in rows], "step": max(_steps(run), default=0)}
                log.with_name("new").write_text(json.dumps(saved))
                log.with_name("new").rename(log)


def _rows(path):
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the last one, cut short
            rows.append(json.loads(line))
    return rows


def test_of_two_writers_killed_fifty_times_nothing_that_was_reported_saved_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("lar_core.drive.PAUSE", 0)
    draws, spawn = random.Random(0), multiprocessing.get_context("fork")
    drive, reported, latest = tmp_path / "drive", set(), 0
    drive.mkdir()
    for life in range(25):
        writers = []
        for name in ("one", "two"):
            run, log = tmp_path / name / "run", tmp_path / name / "log"
            if draws.random() < 0.3:
                shutil.rmtree(tmp_path / name, ignore_errors=True)  # another machine
            run.mkdir(parents=True, exist_ok=True)
            writers.append((spawn.Process(target=_work, args=(run, drive, log, 2 * life + len(writers))), log))
        for writer, _ in writers:
            writer.start()
        for writer, log in writers:
            writer.join()
            if log.exists():
                saved = json.loads(log.read_text())
                reported |= set(saved["rows"])
                latest = max(latest, saved["step"])
        there = {row["by"] for path in drive.rglob("*metrics.jsonl") for row in _rows(path)}
        assert reported <= there, life
        fresh = tmp_path / f"fresh_{life}"
        Mirror(fresh, drive, warn=lambda words: pytest.fail(words)).restore()
        assert max(_steps(fresh), default=0) >= latest, life
        for path in (fresh / "checkpoints").glob("step_*"):
            assert (path / "model").read_text() == (path / "trainer").read_text() != "", life
    assert latest > 10 and len(reported) > 10  # they did save something
