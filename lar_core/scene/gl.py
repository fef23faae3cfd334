"""Off-screen OpenGL: which library draws, tried in a child process first, and the true remedy where none does.

MUJOCO_GL, where somebody set it, is obeyed or refused. Otherwise EGL is tried first beside an NVIDIA GPU and OSMesa first
elsewhere, and the other one where that does not work. What was found is left in the environment, so that processes
started later neither choose nor try again.
"""

from __future__ import annotations

import ctypes.util
import glob
import importlib
import json
import os
import sys
from contextlib import suppress

from ..run.errors import LarError, say_once
from ..run.processes import ChildError, in_child

INSTALL = {"osmesa": "libosmesa6", "egl": "libegl1"}  # Debian's names of the GL libraries
DEVICE, WORKS = "MUJOCO_EGL_DEVICE_ID", "LAR_GL_WORKS"
PATIENCE = 60  # seconds: a driver that hangs is one that does not work
_OFF = ("disable", "disabled", "off", "false", "0")
# With these MuJoCo opens a window's context, as with glx; robosuite would replace them by EGL, and leaves glx alone.
_WINDOW = ("glfw", "enable", "enabled", "on", "true", "1")
_TRY = "import json; from lar_core.scene import gl; gl.pick_device(); print(json.dumps(gl.open_context()))"


def prepare() -> str:
    """Choose how to draw and leave that in the environment; returns the name, e.g. "egl".

    Raises LarError where nothing draws here, or what MUJOCO_GL names does not.
    """
    asked = _asked()
    if asked and os.environ.get(WORKS) == asked:
        return asked
    causes: dict[str, str] = {}
    for backend in (asked,) if asked else _candidates():
        try:
            _settle(backend, works(backend), causes)
            return backend
        except ChildError as error:
            causes[backend] = str(error)
    raise _refusal(*next(iter(causes.items())), asked)


def works(backend: str, **environment: str) -> dict:
    """Draw in a child process; returns {"renderer", "version", "device"} there. Raises ChildError where that fails."""
    ours = {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend if backend in INSTALL else ""}
    return json.loads(in_child(_TRY, PATIENCE, ours | environment))


def open_context() -> dict:
    """Open and close a small context in this process; returns {"renderer", "version", "device"}."""
    import mujoco

    importlib.reload(mujoco.gl_context)  # somebody may have imported mujoco before MUJOCO_GL was chosen
    window = mujoco.gl_context.GLContext(8, 8)
    window.make_current()
    mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100).free()
    found = {**renderer(), "device": os.environ.get(DEVICE)}
    window.free()
    return found


def renderer() -> dict[str, str]:
    """Who draws in the context that is current: {"backend", "renderer", "version"}, in OpenGL's own words."""
    from OpenGL import GL

    words = {"renderer": GL.glGetString(GL.GL_RENDERER), "version": GL.glGetString(GL.GL_VERSION)}
    return {"backend": os.environ.get("MUJOCO_GL", ""),
            **{name: (word or b"not told").decode(errors="replace") for name, word in words.items()}}


def pick_device() -> None:
    """Where EGL's device was left open, set the first one that works, those of CUDA_VISIBLE_DEVICES first.

    MuJoCo would take the first of all, and robosuite stops at a CUDA_VISIBLE_DEVICES that is empty or names a UUID.
    """
    if os.environ["MUJOCO_GL"] != "egl" or os.environ.get(DEVICE):
        return
    from mujoco import egl

    visible = [int(word) for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip().isdecimal()]
    every = range(len(egl.EGL.eglQueryDevicesEXT()))
    for device in dict.fromkeys([*(number for number in visible if number in every), *every]):
        os.environ[DEVICE] = str(device)
        if egl.create_initialized_egl_device_display() != egl.EGL.EGL_NO_DISPLAY:
            return
    os.environ.pop(DEVICE, None)


def _asked() -> str:
    """What MUJOCO_GL names, in the spelling that MuJoCo and robosuite both understand; "" for no wish."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked in _OFF:
        raise LarError(f"MUJOCO_GL={asked} switches rendering off, but this step needs pictures: unset MUJOCO_GL.")
    return "glx" if asked in _WINDOW and sys.platform == "linux" else asked


def _candidates() -> tuple[str, ...]:
    if sys.platform == "darwin":
        return ("cgl",)
    wished = os.environ.get("PYOPENGL_PLATFORM", "").strip().lower()
    first = wished if wished in INSTALL else "egl" if glob.glob("/dev/nvidia[0-9]*") else "osmesa"
    return first, "osmesa" if first == "egl" else "egl"


def _settle(backend: str, found: dict, causes: dict[str, str]) -> None:
    """Leave in the environment what works, and say where that is not what was expected."""
    for name, cause in causes.items():
        say_once(f"{name.upper()} cannot draw here ({cause}): {backend.upper()} draws instead ({found['renderer']}).")
    platform = os.environ.get("PYOPENGL_PLATFORM", "").strip().lower()
    if platform not in ("", backend) and not causes:
        say_once(f"PYOPENGL_PLATFORM={platform} contradicts MUJOCO_GL={backend}, which is what is used.")
    os.environ |= {"MUJOCO_GL": backend, WORKS: backend, "PYOPENGL_PLATFORM": backend}
    if backend not in INSTALL:
        del os.environ["PYOPENGL_PLATFORM"]
    if found.get("device") is not None:
        os.environ[DEVICE] = found["device"]


def check_here() -> None:
    """Open a context in this very process. Raises LarError where another program part has bound it to another library."""
    try:
        open_context()
    except Exception as error:
        backend, loaded = os.environ.get("MUJOCO_GL", ""), sys.modules.get("OpenGL.platform")
        other = type(loaded.PLATFORM).__name__.removesuffix("Platform").lower() if loaded else backend
        if other != backend:
            raise LarError(f"PyOpenGL was imported for {other} in this process before {backend} was chosen: restart the "
                           "runtime (in a notebook) and let this project's step come first.") from error
        raise _refusal(backend, " ".join(f"{type(error).__name__}: {error}".split()), backend) from error


def _refusal(backend: str, cause: str, asked: str) -> LarError:
    return LarError(f"No image can be rendered, because the GL library for MUJOCO_GL={backend} does not work ({cause}): "
                    f"{_remedy(backend, cause, asked)} and try again.")


def _remedy(backend: str, cause: str, asked: str) -> str:
    """What helps: each way that is named was tried just now, or installs what is missing."""
    if "No module named" in cause:
        name = cause.split("'")[1].split(".")[0]
        return f"type `pip install {'PyOpenGL' if name == 'OpenGL' else name}`"
    if asked == "egl" and os.environ.get(DEVICE) and _draws("egl", **{DEVICE: ""}):
        return f"{DEVICE}={os.environ[DEVICE]} is not the number of a device that EGL can draw on here: unset {DEVICE}"
    for other in ("osmesa", "egl"):
        if asked and other != backend and _draws(other):
            return f"unset MUJOCO_GL, or set MUJOCO_GL={other}, which draws here,"
    if backend == "egl" and ctypes.util.find_library("EGL"):  # the library is there, its driver is not
        return f"type `sudo apt-get install -y {INSTALL['osmesa']}`, unset MUJOCO_GL"
    wish = "" if backend in INSTALL else ", set MUJOCO_GL=osmesa"
    return f"type `sudo apt-get install -y {INSTALL.get(backend, INSTALL['osmesa'])}`{wish}"


def _draws(backend: str, **environment: str) -> bool:
    with suppress(ChildError):
        return bool(works(backend, **environment))
    return False
