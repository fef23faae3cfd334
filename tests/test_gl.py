"""Which GL library draws: what is tried, what is fallen back to, and that every remedy that is named was tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest

from lar_core.run import errors
from lar_core.run.errors import LarError
from lar_core.run.processes import ChildError, in_child
from lar_core.scene import gl

DRAWS = {"renderer": "a card", "version": "4.6", "device": None}
VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES", "LAR_GL_WORKS", "LAR_SAID")


@pytest.fixture
def machine(monkeypatch):
    """A machine to describe: machine.draws says which libraries work, machine.gpu whether there is a card."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)
    made = types.SimpleNamespace(draws={"osmesa": DRAWS}, gpu=False, tried=[])

    def works(backend, **environment):
        made.tried.append(backend)
        answer = made.draws.get(backend, "no such library")
        answer = answer(environment) if callable(answer) else answer
        if isinstance(answer, str):
            raise ChildError(answer)
        return answer

    monkeypatch.setattr(gl, "works", works)
    monkeypatch.setattr(gl.glob, "glob", lambda _: ["/dev/nvidia0"] if made.gpu else [])
    monkeypatch.setattr(gl.ctypes.util, "find_library", lambda _: "libEGL.so.1")
    return made


def ask(**variables: str) -> str:
    """What is chosen where a user has set these variables."""
    os.environ.update(variables)
    return gl.prepare()


@pytest.mark.parametrize("gpu, draws, chosen", [
    (False, ("osmesa",), "osmesa"), (False, ("egl",), "egl"), (True, ("egl", "osmesa"), "egl"),
    (True, ("osmesa",), "osmesa")])
def test_egl_comes_first_beside_a_gpu_and_the_other_library_takes_over_where_one_does_not_draw(machine, capsys, gpu, draws,
                                                                                               chosen):
    machine.gpu, machine.draws = gpu, dict.fromkeys(draws, DRAWS)
    assert ask() == os.environ["MUJOCO_GL"] == os.environ["PYOPENGL_PLATFORM"] == chosen
    said = capsys.readouterr().err
    assert ("draws instead" in said) == (len(machine.tried) == 2)
    assert gl.prepare() == chosen and capsys.readouterr().err == ""  # nor do processes that inherit this environment


def test_nothing_is_tried_again_in_processes_that_were_started_later(machine):
    ask()
    machine.tried.clear()
    gl.prepare()
    assert machine.tried == []
    machine.draws["egl"] = DRAWS
    assert ask(MUJOCO_GL="egl") == "egl" and machine.tried == ["egl"]  # but a new wish is


def test_where_nothing_draws_the_line_that_installs_it_is_named(machine):
    machine.draws = {}
    with pytest.raises(LarError, match="MUJOCO_GL=osmesa does not work .*sudo apt-get install -y libosmesa6"):
        ask()


@pytest.mark.parametrize("cause, draws, remedy", [
    ("it did not answer within 60 seconds", ("osmesa",), "unset MUJOCO_GL, or set MUJOCO_GL=osmesa, which draws here"),
    ("the process was ended by SIGSEGV, inside a library", (), "sudo apt-get install -y libosmesa6"),
    ("ModuleNotFoundError: No module named 'OpenGL'", (), "pip install PyOpenGL"),
    ("ModuleNotFoundError: No module named 'mujoco'", (), "pip install mujoco"),
])
def test_what_the_user_set_is_refused_with_a_remedy_that_was_tried(machine, cause, draws, remedy):
    machine.gpu, machine.draws = True, dict.fromkeys(draws, DRAWS) | {"egl": cause}
    with pytest.raises(LarError) as error:
        ask(MUJOCO_GL="egl")
    assert remedy in str(error.value) and cause in str(error.value)


@pytest.mark.parametrize("device", ["7", "GPU-6f2d", "cuda:0", "-1"])
def test_a_device_that_egl_does_not_have_is_named(machine, device):
    machine.draws["egl"] = lambda changed: DRAWS if changed.get("MUJOCO_EGL_DEVICE_ID") == "" else "no such device"
    with pytest.raises(LarError, match=f"MUJOCO_EGL_DEVICE_ID={device} is not the number .*unset MUJOCO_EGL_DEVICE_ID and"):
        ask(MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID=device)


@pytest.mark.parametrize("variables, chosen, platform", [
    ({"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"}, "osmesa", "osmesa"),  # MUJOCO_GL decides
    ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}, "egl", "egl"),
    ({"PYOPENGL_PLATFORM": "egl"}, "egl", "egl"),  # a wish, where MUJOCO_GL is silent
    ({"MUJOCO_GL": "", "PYOPENGL_PLATFORM": ""}, "osmesa", "osmesa"),
    ({"MUJOCO_GL": " OSMesa "}, "osmesa", "osmesa"),  # robosuite would replace this spelling by egl
    ({"MUJOCO_GL": "glfw", "PYOPENGL_PLATFORM": "egl"}, "glx", None),  # as it would glfw
])
def test_variables_that_contradict_each_other_are_made_to_agree(machine, variables, chosen, platform):
    machine.draws = {"osmesa": DRAWS, "egl": DRAWS, "glx": DRAWS}
    assert ask(**variables) == os.environ["MUJOCO_GL"] == chosen
    assert os.environ.get("PYOPENGL_PLATFORM") == platform


def test_the_contradiction_is_said(machine, capsys):
    ask(MUJOCO_GL="osmesa", PYOPENGL_PLATFORM="egl")
    assert "PYOPENGL_PLATFORM=egl contradicts MUJOCO_GL=osmesa" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["off", "disabled", "0"])
def test_rendering_that_is_switched_off_is_named(machine, value):
    with pytest.raises(LarError, match=f"MUJOCO_GL={value} switches rendering off.*unset"):
        ask(MUJOCO_GL=value)


@pytest.mark.parametrize("visible, chosen", [("", "0"), ("GPU-6f2d-11", "0"), ("2", "2"), ("9,1", "1"), ("-1", "0")])
def test_the_first_visible_device_is_chosen_by_number(monkeypatch, machine, visible, chosen):
    egl = types.SimpleNamespace(EGL=types.SimpleNamespace(eglQueryDevicesEXT=lambda: [0] * 4, EGL_NO_DISPLAY=None),
                                create_initialized_egl_device_display=lambda: "a display")
    monkeypatch.setitem(sys.modules, "mujoco.egl", egl)
    monkeypatch.setattr("mujoco.egl", egl, raising=False)
    os.environ |= {"MUJOCO_GL": "egl", "CUDA_VISIBLE_DEVICES": visible}
    gl.pick_device()
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == chosen


def test_a_library_that_was_bound_before_is_told_apart_from_one_that_is_missing():
    code = "import os; os.environ['PYOPENGL_PLATFORM'] = 'glx'; import OpenGL.GL; os.environ['PYOPENGL_PLATFORM'] = ''; " \
           "from lar_core.scene.setup import setup; setup()"
    with pytest.raises(ChildError, match="restart the runtime"):
        in_child(code, environment={"MUJOCO_GL": "osmesa", "LAR_GL_WORKS": "osmesa"})


# --- real child processes ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("code, cause", [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"), ("import os; os.abort()", "SIGABRT"),
    ("raise SystemExit('no licence')", "SystemExit: no licence"), ("raise SystemExit(0)", "SystemExit: 0"),
    ("import not_there", "No module named 'not_there'"), ("import os; os._exit(3)", "code 3"),
    ("raise ValueError('two\\nlines')", "ValueError: two lines"), ("import time; time.sleep(9)", "did not answer"),
    ("from lar_core.run.errors import LarError; raise LarError('Do this.')", "^Do this.$")])
def test_whatever_happens_in_a_child_becomes_words(code, cause):
    with pytest.raises(ChildError, match=cause):
        in_child(code, patience=9 if "sleep" not in code else 0.5)


def test_osmesa_draws_in_a_real_child_and_says_who_it_is():
    assert {"renderer", "version", "device"} <= gl.works("osmesa").keys()


def test_glfw_without_a_display_is_answered_by_what_draws_here():
    done = subprocess.run([sys.executable, "-c", "from lar_core.scene.gl import prepare; prepare()"], capture_output=True,
                          text=True, env={"MUJOCO_GL": "glfw", "PATH": "/usr/bin", "HOME": "/tmp"})
    assert "LarError" in done.stderr.splitlines()[-1] and "which draws here" in done.stderr


@pytest.mark.parametrize("variables", [
    {"CUDA_VISIBLE_DEVICES": "GPU-6f2d", "MUJOCO_EGL_DEVICE_ID": "0"},
    {"CUDA_VISIBLE_DEVICES": "0,1", "MUJOCO_EGL_DEVICE_ID": "x"}])
def test_robosuite_does_not_stop_at_the_devices_that_cuda_may_see(variables):
    code = "import os; from lar_core.scene.setup import setup; setup(); import json; " \
           "print(json.dumps([os.environ['MUJOCO_GL'], os.environ['CUDA_VISIBLE_DEVICES']]))"
    said = in_child(code, environment={"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl", gl.WORKS: "", **variables})
    assert json.loads(said) == ["osmesa", variables["CUDA_VISIBLE_DEVICES"]]


def test_a_sentence_is_said_once_in_a_process_and_those_that_it_starts(capsys, monkeypatch):
    monkeypatch.setenv("LAR_SAID", "")
    for _ in range(2):
        errors.say_once("This is so.")
    assert capsys.readouterr().err == "lar: This is so.\n"
    in_child("from lar_core.run.errors import say_once; say_once('This is so.'); print(1)")
