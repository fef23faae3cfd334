"""The house of docs/design.md: rooms import only rooms below, no circles, small files, a scene without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lar_core"
ROOMS = ("run", "data", "scene", "model", "measure", "show", "doors")  # from the ground up; doors: lar_core/*.py
HEAVY = {"torch", "transformers"}


def module_name(path: Path) -> str:
    return ".".join(("lar_core", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


@cache
def modules() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "doors"


def imported(name: str, everywhere: bool = True) -> set[str]:
    """Names that a module imports, in full: of modules here and elsewhere; everywhere: also inside functions."""
    found = set()
    is_package = (PACKAGE.parent / name.replace(".", "/")).is_dir()
    for node in ast.walk(modules()[name]) if everywhere else modules()[name].body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level + is_package or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names}
    return found


def own(name: str, everywhere: bool = True) -> set[str]:
    return {other for other in imported(name, everywhere) if other in modules()} - {name}


def test_every_room_imports_only_rooms_below_it():
    upward = [f"{name} -> {other}" for name in modules() for other in own(name)
              if other != "lar_core" and ROOMS.index(room(other)) > ROOMS.index(room(name))]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter({name: own(name) for name in modules()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_the_scene_and_all_below_it_import_neither_torch_nor_transformers():
    seen, waiting = {}, [(name, name) for name in modules() if room(name) == "scene"]
    while waiting:
        name, path = waiting.pop()
        if name not in seen:
            seen[name] = path
            waiting += [(other, f"{path} -> {other}") for other in own(name, everywhere=False)]
    assert not [path for name, path in seen.items() if {other.split(".")[0] for other in imported(name, False)} & HEAVY]


def test_an_environment_resets_where_torch_and_transformers_cannot_be_imported():
    code = ("import sys; sys.modules |= dict.fromkeys(('torch', 'transformers'));"
            "from lar_core.scene.env import SpatialEnv; env = SpatialEnv(5, image_size=32, wrist_size=16);"
            "seen, _ = env.reset(seed=0); print(seen['agentview_rgb'].shape); env.close()")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "(32, 32, 3)", result.stderr


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: module_name(path))
def test_files_have_at_most_400_lines_and_functions_60(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    long = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno - node.lineno >= 60]
    assert not long
