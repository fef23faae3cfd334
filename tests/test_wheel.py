"""The package as others install it: a wheel, without a checkout beside it."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lar_core.data.dataset import Stats
from lar_core.model.policy import make_policy
from lar_core.model.tiny import prepare_backbone
from lar_core.run.config import make_config
from lar_core.run.folder import Run
from lar_core.share import export

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "data_manifest.yaml")
LOAD = """
import sys
import lar_core
from lar_core.data.hub import load_manifest
from lar_core.share import from_pretrained
policy, stats = from_pretrained(sys.argv[1])
total = sum(parameter.double().sum().item() for parameter in policy.parameters())
print(lar_core.__file__, len(load_manifest()), total, stats.action_low[0])
"""


def build(folder: Path, kind: str) -> Path:
    """A "wheel" or an "sdist" of a copy of the sources, by setuptools' own hook, without the network."""
    sources = folder / f"sources-{kind}"
    sources.mkdir()
    for name in SOURCES:
        shutil.copyfile(ROOT / name, sources / name)
    shutil.copytree(ROOT / "lar_core", sources / "lar_core", ignore=shutil.ignore_patterns("__pycache__"))
    call = f"import setuptools.build_meta as b; print(b.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", call], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The environment of a process that finds the installed package, and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder,
                    wheel], check=True, capture_output=True)
    return {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder.parent), "HF_HUB_OFFLINE": "1"}


def test_the_wheel_holds_every_file_of_the_package_and_the_manifest_as_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("lar_core/data_manifest.yaml") == (ROOT / "data_manifest.yaml").read_bytes()
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lar_core").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    assert package <= names, sorted(package - names)
    assert "lar_core/data_manifest.yaml" not in package  # a checkout has one manifest, not two that could differ


def test_a_source_archive_has_what_the_wheel_is_made_of(tmp_path):
    with tarfile.open(build(tmp_path, "sdist")) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"data_manifest.yaml", "setup.py", "lar_core/scene/reference.json"} <= names


def test_installed_without_a_checkout_it_loads_a_policy(installed, tmp_path):
    run = Run.open(make_config("attention_mask", "micro", samples=4, batch_size=4), tmp_path / "run")
    policy = make_policy(run.config, prepare_backbone(run))
    run.final_checkpoint.mkdir(parents=True)
    policy.save(run.final_checkpoint / "model.safetensors")
    Stats((-0.5,) * 7, (0.5,) * 7, (0.0,) * 8, (1.0,) * 8).save(run.stats)
    shared = export(run, tmp_path / "shared")
    done = subprocess.run([sys.executable, "-P", "-c", LOAD, str(shared)], cwd=tmp_path, env=installed,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    place, entries, total, low = done.stdout.split()
    assert Path(place).is_relative_to(installed["PYTHONPATH"]) and int(entries) > 5 and float(low) == -0.5
    assert float(total) == pytest.approx(sum(p.double().sum().item() for p in policy.parameters()))


def test_installed_without_a_checkout_it_looks_and_compiles_nothing_first(installed, tmp_path, tmp_path_factory):
    compiled = tmp_path_factory.mktemp("numba")
    done = subprocess.run([sys.executable, "-P", "-m", "lar_core", "look", "pick up the black bowl next to the plate"],
                          cwd=tmp_path, env=installed | {"NUMBA_CACHE_DIR": str(compiled)}, capture_output=True, text=True)
    assert done.returncode == 0 and not list(compiled.iterdir()), done.stderr[-2000:]
    assert list(tmp_path.iterdir()) == [Path(done.stdout.splitlines()[-1])] == [tmp_path / "look.png"]
