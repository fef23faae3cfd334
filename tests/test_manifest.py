"""The manifest says for every outside file which version is meant, and is refused when it does not."""

from __future__ import annotations

from typing import get_args

import pytest
import yaml

from lar_core.data.hub import Entry, entry, load_manifest
from lar_core.run.errors import LarError
from lar_core.scene.setup import task_names

GOOD = {"key": "x", "kind": "weights", "id": "a/b", "repo_type": "model", "purpose": "p", "licence": "MIT",
        "revision": "0" * 40, "size_bytes": 3}


def write(tmp_path, *rows):
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump({"files": list(rows)}))
    return path


def test_the_projects_manifest_is_valid_and_names_the_backbone():
    backbone = entry("paligemma-3b-pt-224")
    assert backbone.id == "google/paligemma-3b-pt-224" and backbone.gated
    assert {found.kind for found in load_manifest().values()} == set(get_args(Entry.model_fields["kind"].annotation))


def test_the_demonstrations_of_liberos_ten_spatial_tasks_are_listed_with_checksums():
    listed = entry("libero-spatial-demonstrations")
    assert listed.files == tuple(f"libero_spatial/{name}_demo.hdf5" for name in task_names())
    assert set(listed.sha256) == set(listed.files)


def test_an_unpinned_entry_cannot_be_downloaded(tmp_path):
    unpinned = load_manifest(write(tmp_path, {**GOOD, "revision": None, "note": "not released"}))["x"]
    with pytest.raises(LarError, match=r"a/b has no pinned revision .*\(not released\)"):
        unpinned.pinned_revision()
    assert len(entry("libero-assets").pinned_revision()) == 40


def test_a_misspelt_key_suggests_the_nearest():
    with pytest.raises(LarError, match="did you mean 'libero-assets'"):
        entry("libero-asset")


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "wights"}, "entry x: Unknown kind 'wights': did you mean 'weights'"),
    ({"revision": "main"}, "full commit"),
    ({"revision": None}, "must say why"),
    ({"size_bytes": "big"}, "size_bytes is 'big'"),
    ({"licence": " "}, "licence is ' ', but must have at least 1 character"),
    ({"sha256": {"a.bin": "12"}}, "sha256.a.bin is '12'"),
    ({"licens": "MIT"}, "did you mean 'licence'"),
])
def test_a_wrong_field_is_named(tmp_path, change, message):
    with pytest.raises(LarError, match=message):
        load_manifest(write(tmp_path, {**GOOD, **change}))


def test_a_file_of_another_kind_or_a_double_key_is_refused(tmp_path):
    assert load_manifest(write(tmp_path, GOOD))["x"].size_bytes == 3
    with pytest.raises(LarError, match="same key 'x'"):
        load_manifest(write(tmp_path, GOOD, GOOD))
    other = tmp_path / "other.yaml"
    other.write_text("- 1")
    with pytest.raises(LarError, match="not a manifest"):
        load_manifest(other)
