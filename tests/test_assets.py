"""The stand-in pack is complete, reproducible and safe to generate; every way to choose assets does what it says."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lar_core.errors import LarError
from lar_core.sim import cache, env, libero_setup
from lar_core.sim.libero_setup import BOWL, MODELS, STANDIN, TEXTURES

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from asset_meshes import wall_of_boxes  # noqa: E402
from make_assets import write_pack  # noqa: E402


def test_pack_has_every_file_that_the_ten_tasks_load():
    names = libero_setup.needed_files(STANDIN)
    assert set(MODELS) | set(TEXTURES) <= set(names)


def test_shipped_pack_is_what_its_script_makes(tmp_path):
    write_pack(tmp_path)
    assert libero_setup.assets_digest(tmp_path) == libero_setup.assets_digest(STANDIN)


def test_build_once_keeps_the_folder_of_a_faster_process(tmp_path):
    folder = tmp_path / "pack"

    def build(temporary):
        (temporary / "file").write_text("ours")
        folder.mkdir()
        (folder / "file").write_text("theirs")

    assert (cache.build_once(folder, build) / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_of_three_processes_one_builds(tmp_path):
    built = []

    def build(temporary):
        built.append(temporary)
        time.sleep(0.2)
        (temporary / "file").write_text("whole")

    with ThreadPoolExecutor(3) as threads:
        folders = set(threads.map(lambda _: cache.build_once(tmp_path / "pack", build), range(3)))
    assert folders == {tmp_path / "pack"} and len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_interrupted_build_leaves_nothing_behind(tmp_path):
    def build(temporary):
        (temporary / "file").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build_once(tmp_path / "pack", build)
    assert [path.name for path in tmp_path.iterdir()] == [".pack.lock"]


def test_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LarError, match="XDG_CACHE_HOME"):
        cache.build_once(tmp_path / "file" / "pack", lambda _: None)


def test_incomplete_folder_is_refused_and_its_first_missing_file_named(tmp_path):
    shutil.copytree(STANDIN, tmp_path / "pack")
    (tmp_path / "pack" / "textures" / "cookies.png").unlink()
    with pytest.raises(LarError, match="textures/cookies.png is missing"):
        libero_setup.use_assets(tmp_path / "pack")


def test_empty_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LAR_LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(LarError, match=r"scenes/libero_tabletop_base_style\.xml is missing"):
        libero_setup.use_assets()


def test_choice_follows_argument_then_environment_then_local_copy_then_stand_in(tmp_path, monkeypatch):
    monkeypatch.delenv("LAR_LIBERO_ASSETS", raising=False)
    monkeypatch.setattr(libero_setup, "_hub_copy", lambda: tmp_path / "hub")
    assert libero_setup.resolve_assets() == STANDIN
    shutil.copytree(STANDIN, tmp_path / "hub")
    assert libero_setup.resolve_assets() == tmp_path / "hub"
    monkeypatch.setenv("LAR_LIBERO_ASSETS", str(tmp_path / "named"))
    assert libero_setup.resolve_assets() == tmp_path / "named"
    assert libero_setup.resolve_assets("standin") == STANDIN


def test_provenance_names_the_assets_and_no_path():
    provenance = libero_setup.use_assets("standin")
    assert provenance == {"name": "standin", "sha256": libero_setup.assets_digest(STANDIN)}


def test_a_copy_of_other_files_is_not_called_stand_in(tmp_path):
    shutil.copytree(STANDIN, tmp_path / "pack")
    path = tmp_path / "pack" / BOWL
    path.write_text(path.read_text() + "\n")
    provenance = libero_setup.use_assets(tmp_path / "pack")
    assert provenance["name"] == "official"
    assert provenance["sha256"] != libero_setup.assets_digest(STANDIN)


def test_bowl_is_hollow_so_that_a_finger_fits_inside():
    bowl = ET.parse(STANDIN / BOWL)
    boxes = [geom for geom in bowl.iter("geom") if geom.get("group") == "0"]
    assert all(geom.get("type") == "box" for geom in boxes)  # convex pieces only

    def solid(radius: float, height: float) -> bool:
        return any(_inside(geom, (radius, 0.0, height)) for geom in boxes)

    assert not any(solid(radius, height) for radius in (0.0, 0.02, 0.035) for height in (0.03, 0.04, 0.05))
    assert solid(0.0505, 0.05)  # the rim that is grasped
    assert solid(0.0, 0.003) and not solid(0.06, 0.05)


def test_wall_of_boxes_stands_on_its_cone():
    for box in wall_of_boxes((0.04, 0.0), (0.05, 0.05), 8, 0.002):
        x, y, z = map(float, box["pos"].split())
        assert 0.043 < np.hypot(x, y) < 0.045 and 0.024 < z < 0.027


def test_missing_gl_library_is_answered_by_the_line_that_installs_it(monkeypatch):
    def no_library(_):
        raise ImportError("libOSMesa.so.8: cannot open shared object file")

    monkeypatch.setattr(libero_setup.importlib, "reload", no_library)
    with pytest.raises(LarError, match="sudo apt-get install -y libosmesa6"):
        libero_setup._check_gl("osmesa")


def test_setup_says_nothing_and_asks_nothing_and_leaves_the_home_folder_alone(tmp_path):
    code = "from lar_core.sim import libero_setup; libero_setup.setup(); import libero.libero, logging, os; " \
           "assert libero.libero.libero_config_path.startswith(os.environ['TMPDIR']); " \
           "handlers = logging.getLogger('robosuite_logs').handlers; " \
           "assert not any(isinstance(handler, logging.FileHandler) for handler in handlers)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                            env=os.environ | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)})
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "robosuite" not in result.stderr
    assert not (tmp_path / "home" / ".libero").exists()


def test_setup_keeps_the_users_choice_of_gl(tmp_path):
    code = "from lar_core.sim import libero_setup; libero_setup._check_gl = print; " \
           "libero_setup._configure_libero = exit; libero_setup.setup()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                            env=os.environ | {"MUJOCO_GL": "egl"})
    assert result.stdout.strip() == "egl"


def test_init_state_files_can_hold_arrays_and_nothing_else(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(env._ArrayUnpickler(io.BytesIO(pickle.dumps(array, protocol=2))).load(), array)
    with pytest.raises(LarError, match="no part of a numpy array"):
        env._ArrayUnpickler(io.BytesIO(pickle.dumps(os.getcwd))).load()


def _inside(geom: ET.Element, point: tuple[float, float, float]) -> bool:
    """Whether `point` lies in a box geom."""
    position, quat, size = (np.array(list(map(float, geom.get(name).split()))) for name in ("pos", "quat", "size"))
    w, x, y, z = quat / np.linalg.norm(quat)
    rotation = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                         [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                         [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])
    return bool((np.abs(rotation.T @ (np.array(point) - position)) <= size).all())
