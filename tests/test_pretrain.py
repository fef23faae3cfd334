"""Pre-training from pictures with captions: one small run, then what it left and what it refuses."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_train import demos  # noqa: F401  (a fixture)
from transformers import PaliGemmaForConditionalGeneration

from lar_core import pretrain as module
from lar_core.model.policy import make_policy
from lar_core.model.train import train
from lar_core.pretrain import Captioned, Heldout, JointMasking, centre, grounding, pretrain, pretrained, table
from lar_core.run.config import make_config
from lar_core.run.draws import Draws
from lar_core.run.errors import LarError
from lar_core.run.files import read_jsonl
from lar_core.run.folder import Run
from lar_core.scene.captioned import HELDOUT, Pictures, captions, render_scenes, scene_paths
from lar_core.show.pictures import MIDDLE, write_picture

SETTINGS = {"tasks": (3, 5), "placement": "wide", "samples": 320, "batch_size": 8, "checkpoint_every": 10,
            "demos_per_task": 2}


def painted(task, colour, images=6):
    """Pictures of one colour, with the named bowl in the upper left corner and the other one in the lower right."""
    pixels = np.full((images, 64, 64, 3), colour, dtype=np.uint8)
    regions = np.zeros((images, 2, 64, 64), dtype=np.uint8)
    regions[:, 0, :16, :16], regions[:, 1, 48:, 48:] = 1, 1
    return Pictures(task, pixels, pixels, regions, [captions(task)[2]] * images)


@pytest.fixture(scope="module")
def scenes():
    return [painted(3, 30), painted(5, 220)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, scenes):
    """Pre-trained on painted pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "render_scenes", lambda *_, **__: scenes)
        run = Run.open(make_config("joint_mask", "micro", **SETTINGS), tmp_path_factory.mktemp("work") / "run")
        pretrain(run)
    return run


def test_captions_are_the_benchmarks_relations_of_either_bowl():
    assert captions(8) == ["the black bowl next to the plate", "the black bowl next to the ramekin",
                           "pick up the black bowl next to the plate and place it on the plate",
                           "pick up the black bowl next to the ramekin and place it on the plate"]
    assert captions(0)[1] == "the black bowl next to the ramekin"


def test_every_picture_comes_with_every_caption_of_its_own_scene(scenes):
    dataset = Captioned(scenes)
    assert len(dataset) == 2 * 6 * 4
    batch = dataset.batch(range(len(dataset)))
    dark = batch["images"][:, 0, 0, 0] == 30
    said = {(bool(d), sentence) for d, sentence in zip(dark, batch["instructions"])}
    assert said == {(True, sentence) for sentence in captions(3)} | {(False, sentence) for sentence in captions(5)}


def test_it_learns_words_and_patches_and_logs_both_apart(run):
    rows = read_jsonl(run.metrics)
    assert rows[-1]["language"] < rows[0]["language"] - 0.4 and rows[-1]["recon"] < rows[0]["recon"]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["language"] + 0.5 * rows[-1]["recon"], rel=1e-5)
    assert "action" not in rows[-1]


def test_before_and_after_stand_beside_a_map_that_never_looks(run):
    found = pretrain(run)
    assert found["after"]["words"]["mean"] > found["before"]["words"]["mean"]
    assert found["pictures"] == found["heldout"] == 12
    assert 0 <= found["after"]["aos"]["mean"] <= 1
    text = table({name: found[name] for name in ("before", "after", "centre")})
    assert "target_minus_distractor" in text and "words_without_picture" in text


def test_the_picture_shows_maps_before_and_after_in_the_same_scenes(run):
    picture = Image.open(write_picture(run))
    assert picture.width > 5 * MIDDLE and picture.height > 4 * MIDDLE  # ten scenes, five a row, two maps each
    with np.load(run.path / "pretraining.npz") as kept:
        assert not np.allclose(kept["before"], kept["after"])
        np.testing.assert_allclose(kept["after"].sum(axis=1), 1, rtol=1e-5)


def test_transformers_itself_reads_what_was_saved(run):
    saved = PaliGemmaForConditionalGeneration.from_pretrained(pretrained(run)).state_dict()
    trained = load_file(run.final_checkpoint / "model.safetensors")
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(saved[name], trained[f"backbone.vlm.{name}"])
    before = load_file(run.backbone / "model.safetensors")
    assert any(name.endswith("layers.0.self_attn.q_proj.weight") and "vision" not in name
               and not torch.equal(saved["model.language_model.layers.0.self_attn.q_proj.weight"], tensor)
               for name, tensor in before.items())


@pytest.mark.parametrize("condition", ["action_only", "attention_mask"])
def test_any_condition_begins_with_it(run, demos, tmp_path, condition):  # noqa: F811
    config = make_config(condition, "micro", samples=8, batch_size=4, backbone=str(pretrained(run)))
    begun = make_policy(config, pretrained(run))
    trained = load_file(run.final_checkpoint / "model.safetensors")
    own = dict(begun.backbone.named_parameters())
    shared = [name for name in trained if name.startswith("backbone.")]
    assert shared and all(torch.equal(own[name.removeprefix("backbone.")], trained[name]) for name in shared)
    policy_run = Run.open(config, tmp_path / "run")
    train(policy_run, [demos])
    assert policy_run.trained


def test_a_stopped_pre_training_goes_on_and_ends_at_the_same_bits(run, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "render_scenes", lambda *_, **__: scenes)
    shutil.copytree(run.path, tmp_path / "stopped")
    stopped = Run.load(tmp_path / "stopped")
    shutil.rmtree(stopped.final_checkpoint), shutil.rmtree(pretrained(stopped))
    (stopped.path / "pretraining.json").unlink()
    assert pretrain(stopped) == pretrain(run)
    name = "model.safetensors"
    assert (stopped.final_checkpoint / name).read_bytes() == (run.final_checkpoint / name).read_bytes()


def test_no_box_no_segmentation_and_no_action_reaches_training(scenes, run):
    batch = Captioned(scenes).batch([0, 30])
    assert set(batch) == {"images", "instructions"}
    policy = make_policy(run.config, run.backbone, kind=JointMasking)
    assert not any(name.startswith("head.") for name in policy.trained())
    assert torch.isfinite(policy(batch, Draws(0))["loss"])


def test_a_map_on_the_object_is_perfect_and_the_centre_is_not(scenes):
    heldout = Heldout.of(scenes, 16)
    on_it = np.tile(np.eye(16)[0], (12, 1))
    found, never = grounding(on_it, heldout), grounding(centre(heldout), heldout)
    assert found["pointing"]["mean"] == found["on_target"]["mean"] == found["target_minus_distractor"]["mean"] == 1
    assert never["pointing"]["mean"] == 0 and never["target_minus_distractor"]["mean"] == pytest.approx(0)


@pytest.mark.parametrize("condition, changes", [
    ("attention_mask", {}), ("joint_mask", {"mask_input": False}), ("joint_mask", {"language": 0.0}),
    ("joint_mask", {"tune": "lora_all"})])
def test_what_is_not_pre_training_is_refused_in_one_sentence(tmp_path, condition, changes):
    run = Run.open(make_config(condition, "micro", **changes), tmp_path / "run")
    with pytest.raises(LarError, match="^Pre-training .*: (leave --condition out|choose a profile)"):
        pretrain(run)


def test_scenes_are_rendered_once_with_stored_scenes_to_measure_on(tmp_path):
    config = make_config("joint_mask", "micro", **SETTINGS | {"tasks": (5,)})
    [pictures] = render_scenes(config, tmp_path, workers=1)
    assert pictures.images.shape == (2, 64, 64, 3) and len({image.tobytes() for image in pictures.images}) == 2
    assert len(pictures.heldout_images) == len(pictures.heldout_instructions) == HELDOUT
    seen = pictures.heldout_regions.sum((2, 3))
    assert (seen > 0).all() and not (pictures.heldout_regions[:, 0] & pictures.heldout_regions[:, 1]).any()
    path = scene_paths(config, tmp_path)[5]
    before = path.stat().st_mtime_ns
    render_scenes(config, tmp_path, workers=1)
    assert path.stat().st_mtime_ns == before
