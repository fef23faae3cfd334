"""`lar doctor` survives everything that it exists to diagnose, and says one line with the true cause and remedy of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lar_core import doctor
from lar_core.run.errors import LarError
from lar_core.run.processes import ChildError

CHECKS = ("_python", "_packages", "_torch", "_caches", "_rendering", "_scene", "_memory", "_disk")


@pytest.fixture
def healthy(monkeypatch):
    """Every check is passed; a test breaks the one that it is about."""
    real = {name: getattr(doctor, name) for name in CHECKS}
    for name in CHECKS:
        monkeypatch.setattr(doctor, name, lambda: "fine")
    return real


def scene(check: str = "expected") -> str:
    """What the child that builds a scene prints."""
    return json.dumps({"assets": {"name": "standin", "sha256": "ab" * 32}, "versions": {},
                       "gl": {"backend": "osmesa", "renderer": "a renderer", "version": "4.5"},
                       "picture": {"task": 0, "sha256": "cd" * 32, "colours": "", "check": check}})


@pytest.mark.parametrize("broken", CHECKS)
@pytest.mark.parametrize("fault", [LarError("This is missing: do that."), ImportError("numpy.core.multiarray"),
                                   SystemExit(1), OSError(30, "Read-only file system"),
                                   RuntimeError("a\nb"), AssertionError()])
def test_one_broken_check_is_one_line_and_the_others_follow(capsys, monkeypatch, healthy, broken, fault):
    def fail():
        raise fault
    monkeypatch.setattr(doctor, broken, fail)
    assert not doctor.examine()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS) and sum(line.startswith("  missing") for line in lines) == 1
    assert sum(line.startswith("  ok") for line in lines) == len(CHECKS) - 1


def test_a_healthy_machine_is_fine(capsys, healthy):
    assert doctor.examine() and "missing" not in capsys.readouterr().out


def test_ctrl_c_still_stops_it(monkeypatch, healthy):
    def interrupt():
        raise KeyboardInterrupt
    monkeypatch.setattr(doctor, "_torch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        doctor.examine()


def test_the_scene_names_what_it_was_made_of(monkeypatch):
    monkeypatch.setattr(doctor, "in_child", lambda _: scene())
    assert all(word in doctor._scene() for word in ("'standin'", "abababab", "a renderer", "expected"))


def test_a_scene_that_looks_wrong_is_not_fine(monkeypatch):
    monkeypatch.setattr(doctor, "in_child", lambda _: scene("other"))
    with pytest.raises(LarError, match="not the expected one.*MUJOCO_GL=osmesa"):
        doctor._scene()
    monkeypatch.setattr(doctor, "wrong_versions", lambda: ["mujoco 3.5.0 is installed: type this."])
    with pytest.raises(LarError, match="not the expected one.*mujoco 3.5.0"):
        doctor._scene()


@pytest.mark.parametrize("cause", ["the process was ended by SIGSEGV, inside a library", "ImportError: libEGL"])
def test_a_scene_that_cannot_be_built_passes_the_cause_on(monkeypatch, cause):
    def fail(_):
        raise ChildError(cause)
    monkeypatch.setattr(doctor, "in_child", fail)
    monkeypatch.setattr(doctor, "wrong_versions", lambda: ["robosuite 1.5.1 is installed: type this."])
    with pytest.raises(LarError) as error:
        doctor._scene()
    assert cause in str(error.value) and "robosuite 1.5.1" in str(error.value)


def test_other_versions_than_the_pinned_ones_are_not_fine(monkeypatch):
    monkeypatch.setattr(doctor, "wrong_versions", lambda: ["mujoco 3.10.0 is installed, but the scene needs 3.3.2."])
    with pytest.raises(LarError, match="mujoco 3.10.0"):
        doctor._packages()


@pytest.mark.parametrize("needs, words", [
    (["numpy>=2", "not-there-at-all>=1"], "not-there-at-all>=1"), (["numpy<1.20"], "numpy<1.20"),
    (['not-there-at-all; extra == "test"'], None), (["mujoco==1.0"], None)])  # extras: not needed
def test_the_projects_own_requirements_are_looked_at(monkeypatch, needs, words):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(doctor, "wrong_versions", list)
    if words is None:
        assert "as pinned" in doctor._packages()
    else:
        with pytest.raises(LarError, match="pip install") as error:
            doctor._packages()
        assert words in str(error.value)


def test_another_python_is_named(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 14, 0))
    with pytest.raises(LarError, match="3.11 to 3.13 is needed"):
        doctor._python()


def test_too_little_disk_or_a_folder_that_is_gone(monkeypatch, capsys, healthy):
    monkeypatch.setattr(doctor, "_disk", healthy["_disk"])
    for answer in (lambda _: (_ for _ in ()).throw(FileNotFoundError(2, "gone")), lambda _: type("U", (), {"free": 2**30})):
        monkeypatch.setattr(doctor.shutil, "disk_usage", answer)
        assert not doctor.examine()
    assert "gone" in (said := capsys.readouterr().out) and "1.0 GiB are free here" in said


def shadow(folder, **modules: str) -> dict[str, str]:
    """An environment in which these packages are what the text says."""
    for name, text in modules.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))}


def lar(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "lar_core", *words], capture_output=True, text=True, env=env)


def test_libraries_that_crash_when_they_are_imported_are_named_and_nothing_crashes_with_them(tmp_path):
    """PyTorch with a signal, MuJoCo with an exit, psutil and transformers with an error."""
    env = shadow(tmp_path, torch="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
                 mujoco="raise SystemExit('no licence')",
                 psutil="raise ImportError('no psutil')", transformers="1 / 0")
    done = lar("doctor", env=env)
    said = done.stdout
    assert done.returncode == 2 and "Traceback" not in said + done.stderr
    assert all(words in said for words in ("SIGSEGV", "no licence", "no psutil", "ok      disk")), said


def test_the_command_itself_lacks_a_package_and_doctor_runs_all_the_same(tmp_path):
    env = shadow(tmp_path, yaml="raise ImportError('no yaml here')", torch="raise ImportError('nor torch')",
                 mujoco="raise ImportError('x')")
    done = lar("doctor", env=env)
    assert done.returncode == 2 and "no yaml here" in done.stderr and "nor torch" in done.stdout
    assert lar("train", env=env).stderr.startswith("lar: no yaml here") and "Traceback" not in done.stderr


def test_a_missing_gl_library_is_named_with_the_line_to_type():
    done = lar("doctor", env={"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa", "PATH": "/usr/bin", "HOME": "/tmp",
                              "PYTHONPATH": "tests/no_gl"})
    assert done.returncode == 2
    assert done.stdout.count("sudo apt-get install -y libosmesa6") == 2  # of the library alone, and of the scene
