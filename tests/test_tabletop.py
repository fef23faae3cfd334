"""The shipped backbone, measured anew on stored scenes that came to rest: the gate that it was shipped by."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from lar_core.measure.sight import Stored, centre, grounding, located, look
from lar_core.model.paligemma import load_backbone
from lar_core.model.tiny import TABLETOP
from lar_core.model.train import _say_other_look
from lar_core.run.config import PROFILES, make_config
from lar_core.run.errors import LarError
from lar_core.run.files import file_sha256
from lar_core.scene.captioned import Studio
from lar_core.scene.placements import evaluation_scenes


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(TABLETOP).eval()


@pytest.fixture(scope="module")
def stored(backbone):
    """100 wide scenes, others than those that its card is about."""
    studio = Studio(128, 64)
    shots = [studio.settle(scene, "wide") for task in range(10) for scene in evaluation_scenes(task, "wide")[-10:]]
    studio.env.close()
    return Stored.of({name: np.stack([shot[name] for shot in shots]) for name in shots[0]}, backbone.patches)


@pytest.mark.parametrize("words", ["sentences", "unheard"])
def test_it_finds_the_named_bowl(backbone, stored, words):
    found = located(backbone, stored, getattr(stored, words))
    assert found["median_cm"] <= 1.0
    assert found["right_bowl"]["mean"] >= 0.97


def test_it_looks_at_the_named_bowl_more_than_any_map_that_does_not_look(backbone, stored):
    maps = look(backbone, stored)
    found = grounding(maps, stored)
    where_bowls_are = np.broadcast_to(stored.coverage[:, 0].mean(axis=0), maps.shape)
    for blind in (centre(stored), np.full_like(maps, 1 / maps.shape[1]), where_bowls_are):
        assert found["auc"]["mean"] > grounding(blind, stored)["auc"]["mean"] + 0.05
    assert found["auc"]["mean"] >= 0.95
    assert found["target_minus_distractor"]["low"] > 0, "more of the map on the named bowl than on the other one"


def test_it_answers_detect_through_transformers_own_interface(stored):
    model, processor = (kind.from_pretrained(TABLETOP) for kind in (PaliGemmaForConditionalGeneration, AutoProcessor))
    sentence = stored.sentences[0].removeprefix("pick up ").split(" and place ")[0]
    inputs = processor(images=Image.fromarray(stored.images[0]), text=f"<image>detect {sentence}", return_tensors="pt")
    with torch.no_grad():
        written = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.decode(written[0, inputs["input_ids"].shape[1]:], skip_special_tokens=False)
    edges = [int(part[:4]) / 8 for part in answer.split("<loc")[1:]]
    assert len(edges) == 4 and "bowl" in answer
    middle = np.array([edges[0] + edges[2], edges[1] + edges[3]]) / 2
    assert np.linalg.norm(middle - stored.middles[0, 0]) < 5  # pixels


def test_its_card_is_about_these_weights():
    assert file_sha256(TABLETOP / "model.safetensors") in (TABLETOP / "README.md").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in TABLETOP.iterdir()) < 10e6
    assert json.loads((TABLETOP / "pretraining.json").read_text())["config"]["condition"]["name"] == "places"


@pytest.mark.parametrize("changes", [{"image_size": 64, "wrist_size": 32}, {"patch_size": 8}, {"text_width": 64}])
def test_other_sizes_than_its_own_are_refused_in_a_sentence(changes):
    with pytest.raises(LarError, match="tabletop .* is of another size.*backbone=scratch"):
        make_config("action_only", "tiny", backbone="tabletop", **changes)


@pytest.mark.parametrize("backbone, name, said", [("tabletop", "official", True), ("tabletop", "standin", False),
                                                   ("scratch", "official", False)])
def test_demonstrations_that_show_other_objects_than_it_has_seen_are_spoken_of(monkeypatch, capsys, backbone, name, said):
    monkeypatch.delenv("LAR_SAID", raising=False)
    episode = SimpleNamespace(provenance={"assets": {"name": name}})
    _say_other_look(PROFILES["tiny"].replace(backbone=backbone), [episode])
    assert (f"these demonstrations show others ({name})" in capsys.readouterr().err) == said
