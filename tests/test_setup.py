"""The stand-in pack is complete, reproducible and safe to generate; every way to choose assets does what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from lar_core.run import files
from lar_core.run.errors import LarError
from lar_core.run.processes import ChildError, in_child
from lar_core.scene import env, setup
from lar_core.scene.setup import BOWL, MODELS, STANDIN, TEXTURES

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from asset_meshes import wall_of_boxes  # noqa: E402
from make_assets import write_pack  # noqa: E402


def test_pack_has_every_file_that_the_ten_tasks_load():
    names = setup.needed_files(STANDIN)
    assert set(MODELS) | set(TEXTURES) <= set(names)


def test_shipped_pack_is_what_its_script_makes(tmp_path):
    write_pack(tmp_path)
    assert setup.assets_digest(tmp_path) == setup.assets_digest(STANDIN)


def test_incomplete_folder_is_refused_and_its_first_missing_file_named(tmp_path):
    shutil.copytree(STANDIN, tmp_path / "pack")
    (tmp_path / "pack" / "textures" / "cookies.png").unlink()
    with pytest.raises(LarError, match="textures/cookies.png is missing"):
        setup.use_assets(tmp_path / "pack")


def test_empty_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LAR_LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(LarError, match=r"scenes/libero_tabletop_base_style\.xml is missing"):
        setup.use_assets()


def test_choice_follows_argument_then_environment_then_local_copy_then_stand_in(tmp_path, monkeypatch):
    monkeypatch.delenv("LAR_LIBERO_ASSETS", raising=False)
    monkeypatch.setattr(setup, "_hub_copy", lambda: tmp_path / "hub")
    assert setup.resolve_assets() == STANDIN
    shutil.copytree(STANDIN, tmp_path / "hub")
    assert setup.resolve_assets() == tmp_path / "hub"
    monkeypatch.setenv("LAR_LIBERO_ASSETS", str(tmp_path / "named"))
    assert setup.resolve_assets() == tmp_path / "named"
    assert setup.resolve_assets("standin") == STANDIN


def test_provenance_names_the_assets_and_no_path():
    provenance = setup.use_assets("standin")
    assert provenance == {"name": "standin", "sha256": setup.assets_digest(STANDIN)}


def test_a_copy_of_other_files_is_not_called_stand_in(tmp_path):
    shutil.copytree(STANDIN, tmp_path / "pack")
    path = tmp_path / "pack" / BOWL
    path.write_text(path.read_text() + "\n")
    provenance = setup.use_assets(tmp_path / "pack")
    assert provenance["name"] == "official"
    assert provenance["sha256"] != setup.assets_digest(STANDIN)


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


def test_setup_says_nothing_and_asks_nothing_and_leaves_the_home_folder_alone(tmp_path):
    code = "from lar_core.scene import setup; setup.setup(); import libero.libero, logging, os; " \
           "assert libero.libero.libero_config_path.startswith(os.environ['TMPDIR']); " \
           "handlers = logging.getLogger('robosuite_logs').handlers; " \
           "assert not any(isinstance(handler, logging.FileHandler) for handler in handlers)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                            env=os.environ | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)})
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "robosuite" not in result.stderr
    assert not (tmp_path / "home" / ".libero").exists()


# --- what a built scene has loaded ------------------------------------------------------------------------------------

@pytest.fixture
def repository(tmp_path):
    """LIBERO as its repository has it: every loader joins the path of the assets beside its own code."""
    root = tmp_path / "repository" / "libero"
    shutil.copytree(setup.libero_root().parent, root, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    for path in (root / "libero" / "envs").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        depth = len(path.relative_to(root / "libero").parts) - 1
        path.write_text(text.replace("from libero.libero import get_assets_path", "import pathlib\n" + (
            f"get_assets_path = lambda: str(pathlib.Path(__file__).absolute().parents[{depth}] / 'assets')")))
    beside = root / "libero" / "assets"
    shutil.copytree(STANDIN, beside)
    bowl = beside / BOWL
    bowl.write_text(bowl.read_text().replace("0.10 0.10 0.115 1", "0.90 0.10 0.115 1"))
    return root


BUILD = """
import json, sys
from lar_core.scene import setup
{before}
from lar_core.scene.env import SpatialEnv
env = SpatialEnv(5, assets={choice!r}, image_size=16, wrist_size=0)
bowl = env.stock.sim.model._model.material("akita_black_bowl_1_glaze").rgba[0]
print(json.dumps([env.assets, str(setup.libero_root()), bool(bowl < 0.5)]))
"""
# As an installed LIBERO that no choice reaches would: whatever is asked for, its own files are read.
UNREACHABLE = "setup._read_from = lambda folder: None"


@pytest.mark.parametrize("choice, black", [("standin", True), (None, False)])
def test_a_libero_from_its_repository_is_built_from_the_assets_that_were_chosen(repository, choice, black):
    code = BUILD.format(before="", choice=choice)
    made, root, is_black = json.loads(in_child(code, environment={"PYTHONPATH": str(repository.parent),
                                                                  "LAR_LIBERO_ASSETS": ""}))
    chosen = STANDIN if black else repository / "libero" / "assets"
    assert (root, is_black) == (str(repository / "libero"), black)
    assert made["sha256"] == setup.assets_digest(chosen) and (made["name"] == "standin") == black


def test_a_scene_that_was_built_from_other_assets_than_chosen_is_refused_naming_the_file(repository):
    code = BUILD.format(before=UNREACHABLE, choice="standin")
    with pytest.raises(ChildError, match=r"it loaded .*/repository/libero/libero/assets/.*pip install"):
        in_child(code, environment={"PYTHONPATH": str(repository.parent)})


def test_a_single_foreign_texture_is_seen_too(tmp_path):
    other = tmp_path / "plaster.png"
    shutil.copy(STANDIN / TEXTURES[1], other)
    made = env.SpatialEnv(5, assets="standin", image_size=16, wrist_size=0)
    made.stock.model.asset.find("./texture[@name='tex-wall']").set("file", str(other))
    with pytest.raises(LarError, match="plaster.png"):
        setup.loaded_assets(made.stock, "standin")
    made.close()


def test_a_folder_of_links_is_the_same_assets(tmp_path):
    """The hub's cache keeps links to files of other names."""
    for number, name in enumerate(setup.needed_files(STANDIN)):
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        blob = tmp_path / f"blob{number}"
        shutil.copy(STANDIN / name, blob)
        (tmp_path / "pack" / name).symlink_to(blob)
    made = env.SpatialEnv(5, assets=tmp_path / "pack", image_size=16, wrist_size=0)
    assert made.assets["sha256"] == setup.assets_digest(STANDIN)
    made.close()


# --- places that cannot be written, versions that do not fit ------------------------------------------------------------

def test_a_scene_can_be_made_without_a_home_that_can_be_written(tmp_path):
    """The numba cache is given, because filling it takes longer than all the rest."""
    numba = files.cache_base() / "numba"
    code = "import os; from lar_core.scene import setup; setup.setup(); " \
           "print(setup.cache_base(), os.environ['LIBERO_CONFIG_PATH'], os.environ['MPLCONFIGDIR'])"
    places = in_child(code, environment={"XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": "", "TMPDIR": str(tmp_path),
                                         "MPLCONFIGDIR": "", "HOME": "/dev/null/home", "NUMBA_CACHE_DIR": str(numba)})
    assert all(place.startswith(str(tmp_path)) for place in places.split())


def test_after_installing_the_wheel_alone_it_is_said_what_else_to_install(monkeypatch):
    """LIBERO and what it imports are no declared dependencies; without a checkout there is no `make setup`."""
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LarError, match="not installed: type `pip install --no-deps libero==.* robosuite==.* bddl==.*`"):
        setup.libero_root.__wrapped__()


@pytest.mark.parametrize("package, words", [("", "cannot be imported .ModuleNotFoundError"),
                                            ("raise SystemExit(3)", "SystemExit: 3")])
def test_a_libero_that_cannot_be_imported_is_a_sentence(repository, package, words):
    """As the repository's, which wants a package that PyPI's does not."""
    path = repository / "libero" / "envs" / "venv.py"
    path.write_text(package or "import not_installed_here")
    with pytest.raises(ChildError, match=words) as error:
        in_child("from lar_core.scene.setup import setup; setup()", environment={"PYTHONPATH": str(repository.parent)})
    assert "pip install" in str(error.value)


def _inside(geom: ET.Element, point: tuple[float, float, float]) -> bool:
    """Whether `point` lies in a box geom."""
    position, quat, size = (np.array(list(map(float, geom.get(name).split()))) for name in ("pos", "quat", "size"))
    w, x, y, z = quat / np.linalg.norm(quat)
    rotation = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                         [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                         [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])
    return bool((np.abs(rotation.T @ (np.array(point) - position)) <= size).all())
