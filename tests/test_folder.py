"""A run folder belongs to one configuration, and what a scene is built with is the versions that are pinned."""

from __future__ import annotations

from pathlib import Path

import pytest

from lar_core.data.hub import load_manifest
from lar_core.run import versions
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.folder import Run, blind_twin


def test_a_run_folder_refuses_another_configuration(tmp_path):
    Run.open(make_config(), tmp_path / "run")
    with pytest.raises(LarError, match="profile.samples is 36000 there and 100 now"):
        Run.open(make_config(samples=100), tmp_path / "run")


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LarError, match="not empty"):
        Run.open(make_config(), tmp_path)


def test_a_foreign_config_file_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(LarError, match="not a run configuration"):
        Run.open(make_config(), tmp_path)


@pytest.mark.parametrize("condition, control", [("attention_mask", "blind"), ("blind", "blind"), ("deaf", "blind_deaf"),
                                                ("blind_deaf", "blind_deaf")])
def test_the_blind_control_is_as_deaf_as_the_policy(tmp_path, condition, control):
    twin = blind_twin(make_config(condition, "micro"))
    assert twin == make_config(control, "micro") == blind_twin(twin)
    Run.open(twin, tmp_path / twin.name)
    run = Run.open(make_config(condition, "micro"), tmp_path / "run")
    assert run.control == (run.path / "control" if condition == control else tmp_path / twin.name)


@pytest.mark.parametrize("name, found, wrong", [
    ("mujoco", "3.10.0", True), ("robosuite", "1.5.1", True), ("bddl", "3.6.0", True), ("robosuite", None, True),
    ("libero", "0.1.0", False)])
def test_versions_are_compared_with_the_pinned_ones(monkeypatch, name, found, wrong):
    """LIBERO's repository calls the same code 0.1.0."""
    real = versions.installed
    monkeypatch.setattr(versions, "installed", lambda asked: found if asked == name else real(asked))
    said = versions.wrong_versions()
    assert len(said) == wrong and all(f"pip install --no-deps {name}=={versions.pins()[name]}" in line for line in said)


def test_pins_are_the_same_wherever_they_are_repeated():
    root = Path(__file__).parents[1]
    for name in ("pyproject.toml", "requirements-colab.txt", "constraints.txt"):
        assert f"mujoco=={versions.pins()['mujoco']}" in (root / name).read_text()
    manifest = load_manifest()
    assert {manifest[name].revision for name in ("libero",)} == {versions.pins()["libero"]}
