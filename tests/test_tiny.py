"""Where an untrained backbone comes from: built, a folder, or a hub id of the manifest."""

import pytest

from lar_core.model.tiny import find_weights
from lar_core.run.errors import LarError


def test_a_folder_is_used_as_it_is_also_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "backbone").mkdir()
    assert find_weights(str(tmp_path / "backbone")) == find_weights("~/backbone") == tmp_path / "backbone"


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing"])
def test_a_path_that_is_not_there_is_not_taken_for_a_misspelt_hub_id(name):
    with pytest.raises(LarError, match=f"There is no folder {name}"):
        find_weights(name)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(LarError, match="not one of its files"):
        find_weights(str(tmp_path / "model.safetensors"))


def test_a_misspelt_hub_id_is_told_with_the_nearest():
    with pytest.raises(LarError, match="did you mean 'google/paligemma-3b-pt-224'"):
        find_weights("google/paligema-3b-pt-224")
