"""docs/tour.md names files and functions: they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = sorted(set(re.findall(r"`(\w+/\w+\.py):([\w.]+)`", (ROOT / "docs/tour.md").read_text(encoding="utf-8"))))


@pytest.mark.parametrize("file, name", PLACES, ids=":".join)
def test_what_the_tour_names_exists(file, name):
    body = ast.parse((ROOT / "lar_core" / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        assert found, f"{part} is not in {file}"
        body = found[0].body


def test_the_tour_enters_every_room():
    assert {file.split("/")[0] for file, _ in PLACES} == {"scene", "data", "model", "measure", "show"}
    assert len(PLACES) > 20
