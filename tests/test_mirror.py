"""A copy of the run folder elsewhere: whole files, whole checkpoints, and work that goes on when it breaks."""

from __future__ import annotations

import errno
import shutil

import pytest

from lar_core.mirror import Mirror, units


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


def test_a_checkpoint_is_one_unit_and_unfinished_things_are_none(here):
    assert [str(unit) for unit in units(here)] == ["checkpoints/step_000008", "config.yaml", "control/config.yaml"]


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
    monkeypatch.setattr("lar_core.mirror.shutil.copy2", full)
    mirror = Mirror(here, tmp_path / "there", warn=said.append)
    assert mirror.sync() == 0 and mirror.sync() == 0
    assert len(said) == 1 and "full" in said[0] and str(here) in said[0]
    assert not list((tmp_path / "there").glob(".config*"))  # nothing half-copied


def test_stopping_copies_the_last_change(here, mirror):
    mirror.start()
    mirror.stop()
    assert (mirror.there / "config.yaml").exists()
