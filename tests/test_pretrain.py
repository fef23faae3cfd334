"""Pre-training on painted scenes: one small run of each recipe, then what it left and what it refuses."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file
from test_train import demos  # noqa: F401  (a fixture)
from transformers import PaliGemmaForConditionalGeneration

from lar_core import pretrain as module
from lar_core.measure.sight import Stored, centre, grounding, located, table
from lar_core.model.paligemma import load_backbone
from lar_core.model.policy import make_policy
from lar_core.model.train import train
from lar_core.pretrain import Described, JointMasking, pretrain, pretrained, pretraining_config
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import read_jsonl
from lar_core.run.folder import Run
from lar_core.run.runtime import Draws
from lar_core.scene import captioned
from lar_core.scene.captioned import Scenes, settled_scenes
from lar_core.show.pictures import MIDDLE, write_picture

SETTINGS = {"samples": 240, "batch_size": 8, "checkpoint_every": 5, "scenes": 12}
SHARD = 6


def painted(path, scenes, stored=False):
    """Grey pictures with a black bowl in one of four corners and a red one in the corner across."""
    rng = np.random.default_rng(0)
    arrays = {"images": np.full((scenes, 64, 64, 3), 128, np.uint8), "labels": np.zeros((scenes, 32, 32), np.uint8),
              "wrist": rng.integers(0, 255, (scenes, 32, 32, 3), dtype=np.uint8),
              "wrist_labels": np.zeros((scenes, 16, 16), np.uint8),
              "boxes": np.zeros((scenes, 7, 4), np.float32),
              "metres": np.tile(np.eye(2, dtype=np.float32), (scenes, 7, 1, 1)),
              "relations": np.tile(np.array([3, 7], np.int8), (scenes, 1)), "held": np.full(scenes, -1, np.int8),
              "colours": np.tile(np.array([0, 2, -1, -1, -1], np.int8), (scenes, 1))}
    for number in range(scenes):
        for bowl, colour in ((0, (10, 10, 10)), (1, (200, 20, 20))):
            top, left = np.array([(0, 0), (0, 40), (40, 0), (40, 40)][number % 4 if bowl == 0 else 3 - number % 4])
            arrays["images"][number, top : top + 16, left : left + 16] = colour
            arrays["labels"][number, top // 2 : top // 2 + 8, left // 2 : left // 2 + 8] = bowl + 1
            arrays["boxes"][number, bowl] = top, left, top + 15, left + 15
    if stored:
        arrays["asked"] = np.array([[0, 8, 0]] * scenes)
    save_file(arrays, path)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return [painted(folder / "shard_0000.safetensors", SHARD), painted(folder / "shard_0001.safetensors", SHARD),
            painted(folder / "settled.safetensors", 5, stored=True)]


@pytest.fixture(scope="module", autouse=True)
def scenes(paths):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioned, "SHARD", SHARD)
        patch.setattr(module, "render_scenes", lambda *_, **__: paths)
        yield Scenes(paths[:-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, scenes):
    """Pre-trained by either recipe."""
    made = {}
    for recipe in ("places", "words"):
        config = pretraining_config(recipe, "micro", learning_rate=3e-3, **SETTINGS)
        made[recipe] = Run.open(config, tmp_path_factory.mktemp("work") / recipe)
        pretrain(made[recipe])
    return made


@pytest.fixture(params=["places", "words"])
def run(request, runs):
    return runs[request.param]


def test_samples_are_always_the_same_and_say_what_is_in_their_scene(scenes):
    dataset = Described(scenes, pretraining_config("places", "micro", **SETTINGS))
    assert len(dataset) == 240
    batch, again = dataset.batch([0, 13, 200]), dataset.batch([200])
    assert batch["said"][2] == again["said"][0] and torch.equal(batch["images"][2], again["images"][0])
    assert torch.equal(batch["images"][1], dataset.batch([1])["images"][0]), "sample 13 is of scene 1"
    assert batch["images"].shape == (3, 3, 64, 64) and batch["boxes"].shape == (3, 7, 4)
    kinds = {sentence.split()[0] for sentence in dataset.batch(list(range(60)))["instructions"]}
    assert {"detect", "answer", "pick"} <= kinds


def test_what_is_learned_is_logged_apart(runs):
    for recipe, parts in (("places", ("answer", "words", "segment", "vision")), ("words", ("language", "recon"))):
        rows = read_jsonl(runs[recipe].metrics)
        assert set(parts) <= set(rows[0]) and "action" not in rows[0]
        assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_before_early_and_after_stand_beside_a_map_that_never_looks(run):
    found = pretrain(run)
    assert found["stored"] == 5
    text = table({name: found[name] for name in ("before", "early", "after", "centre")})
    own = {"places": ("median_cm", "right_bowl", "unheard_right_bowl"), "words": ("word_nats", "word_nats_blank")}
    for recipe, names in own.items():
        assert all((name in text) == (recipe == run.config.condition.name) for name in names)
    assert "auc" in text and "target_minus_distractor" in text
    early, after = (load_file(pretrained(run, name) / "model.safetensors") for name in ("-early", ""))
    assert any(not torch.equal(early[name], after[name]) for name in after)


def test_a_gate_that_can_fail(paths, runs):
    """Boxes on the named bowl are right, boxes on the other one are wrong, and so much in centimetres."""
    stored = Stored.of(settled_scenes(paths[-1]), 16)
    backbone = load_backbone(pretrained(runs["places"]))
    with pytest.MonkeyPatch.context() as patch:
        for side, right in ((0, 1.0), (1, 0.0)):
            boxes = torch.from_numpy(np.tile(stored.middles[:, side], (1, 2)))
            patch.setattr("lar_core.measure.sight.boxes_of", lambda *_, boxes=boxes: boxes)
            found = located(backbone, stored, stored.sentences)
            assert found["right_bowl"]["mean"] == right
            across = 100 * np.linalg.norm(stored.middles[0, 0] - stored.middles[0, 1])  # a pixel is a metre here
            assert found["median_cm"] == pytest.approx(0 if side == 0 else across)


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
    assert not any("readouts" in name for name in saved)


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


def test_a_stopped_pre_training_goes_on_and_ends_at_the_same_bits(run, tmp_path):
    """With either optimiser."""
    stopped = Run.load(shutil.copytree(run.path, tmp_path / "stopped"))
    shutil.rmtree(stopped.final_checkpoint), shutil.rmtree(pretrained(stopped))
    (stopped.path / "pretraining.json").unlink()
    assert pretrain(stopped) == pretrain(run)
    name = "model.safetensors"
    assert (stopped.final_checkpoint / name).read_bytes() == (run.final_checkpoint / name).read_bytes()


def test_muon_resumes_at_the_same_bits(tmp_path, scenes):
    config = pretraining_config("places", "micro", optimiser="muon", **SETTINGS | {"samples": 80})
    run = Run.open(config, tmp_path / "whole")
    pretrain(run)
    stopped = Run.load(shutil.copytree(run.path, tmp_path / "stopped"))
    shutil.rmtree(stopped.final_checkpoint), (stopped.path / "pretraining.json").unlink()
    pretrain(stopped)
    name = "model.safetensors"
    assert (stopped.final_checkpoint / name).read_bytes() == (run.final_checkpoint / name).read_bytes()


def test_no_box_no_segmentation_and_no_action_is_looked_at_by_the_words_recipe(scenes, runs):
    batch = Described(scenes, runs["words"].config).batch([0, 3])
    only = {"images": batch["images"], "instructions": batch["instructions"]}
    policy = make_policy(runs["words"].config, runs["words"].backbone, kind=JointMasking)
    assert not any(name.startswith("head.") for name in policy.trained())
    assert torch.equal(policy(only, Draws(0))["loss"], policy(batch, Draws(0))["loss"])


def test_a_map_on_the_object_is_perfect_and_the_centre_is_not(paths):
    stored = Stored.of(settled_scenes(paths[-1]), 16)
    on_it = stored.coverage[:, 0] / stored.coverage[:, 0].sum(axis=1, keepdims=True)
    found, never = grounding(on_it, stored), grounding(centre(stored), stored)
    assert found["pointing"]["mean"] == 1 and found["target_minus_distractor"]["mean"] > 0.5
    assert abs(never["target_minus_distractor"]["mean"]) < 0.02


def test_what_is_not_pre_training_is_refused_in_one_sentence(tmp_path):
    foreign = make_config("attention_mask", "micro")
    for config in (foreign, pretraining_config("words", "micro", mask_input=False),
                   pretraining_config("words", "micro", language=0.0), pretraining_config("places", "micro", language=0.1),
                   pretraining_config("places", "micro", tune="lora_all")):
        with pytest.raises(LarError, match="^Pre-training .*: (leave --condition out|change nothing|choose a profile)"):
            pretrain(Run.open(config, tmp_path / config.fingerprint))
    with pytest.raises(LarError, match="Unknown recipe|recipe"):
        pretraining_config("boxes")
