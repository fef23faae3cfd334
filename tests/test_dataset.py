"""Batches: right shapes and frames, padding at the end of an episode, the same batch for the same (seed, step).

Scales of actions and proprioception, and shifts of pictures, which lie in the same module."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_demos import SENTENCE, make_episode

from lar_core.data.dataset import DemoDataset, FrameSampler, Stats, drop_noops, load_split, proprio, shift_images
from lar_core.data.demos import merge_episodes, write_episode
from lar_core.run.errors import LarError
from lar_core.run.runtime import Draws

SIZES = {"image_size": 16, "wrist_size": 8, "chunk": 4}


@pytest.fixture
def episodes():
    return [make_episode(steps=6, seed=0), make_episode(steps=9, seed=1)]


@pytest.fixture
def dataset(episodes):
    return DemoDataset(episodes, Stats.of(episodes), **SIZES)


@pytest.fixture
def demo_file(tmp_path):
    bddl = tmp_path / "task.bddl"
    bddl.write_text("(define)")
    parts = [tmp_path / f"{seed}.part" for seed in range(10)]
    for seed, part in enumerate(parts):
        write_episode(part, make_episode(steps=3, seed=seed), bddl_file=bddl)
    merge_episodes(parts, tmp_path / "demo.hdf5")
    return tmp_path / "demo.hdf5"


def seeds(episodes):
    return [episode.provenance["seed"] for episode in episodes]


def test_a_batch_has_the_documented_shapes_and_types(dataset):
    batch = dataset.batch([0, 7, 14])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items() if name != "instructions"} == {
        "images": ((3, 3, 16, 16), torch.uint8), "wrist": ((3, 3, 8, 8), torch.uint8),
        "proprio": ((3, 8), torch.float32), "actions": ((3, 4, 7), torch.float32),
        "action_pad": ((3, 4), torch.bool), "regions": ((3, 2, 16, 16), torch.uint8)}
    assert batch["instructions"] == [SENTENCE] * 3 and len(dataset) == 15


def test_the_frame_before_comes_where_it_is_asked_for_and_is_of_the_same_episode(episodes):
    dataset = DemoDataset(episodes, Stats.of(episodes), **SIZES, previous=True)
    before = dataset.batch([0, 3, 6, 14])["previous"].permute(0, 2, 3, 1)
    wanted = [episodes[0].agentview_rgb[1], episodes[0].agentview_rgb[2], episodes[1].agentview_rgb[1],
              episodes[1].agentview_rgb[7]]
    np.testing.assert_array_equal(before, np.stack(wanted))


def test_the_frame_after_is_asked_for_by_a_regulariser_and_the_last_one_is_its_own(episodes):
    after = DemoDataset(episodes, Stats.of(episodes), **SIZES, following=True).batch([0, 5, 6, 14])["following"]
    wanted = [episodes[0].agentview_rgb[1], episodes[0].agentview_rgb[5], episodes[1].agentview_rgb[1],
              episodes[1].agentview_rgb[8]]
    np.testing.assert_array_equal(after.permute(0, 2, 3, 1), np.stack(wanted))


def test_a_frame_comes_with_its_own_picture_and_the_actions_that_follow(dataset, episodes):
    batch = dataset.batch([8])  # step 2 of the second episode
    np.testing.assert_array_equal(batch["images"][0].permute(1, 2, 0), episodes[1].agentview_rgb[2])
    wanted = Stats.of(episodes).normalise_actions(episodes[1].actions[2:6])
    np.testing.assert_array_equal(batch["actions"][0], wanted)
    assert not batch["action_pad"].any()


def test_beyond_the_end_the_last_action_is_repeated_and_marked(dataset):
    batch = dataset.batch([4])  # step 4 of 6
    assert batch["action_pad"][0].tolist() == [False, False, True, True]
    assert torch.equal(batch["actions"][0, 2], batch["actions"][0, 1])
    assert torch.equal(batch["actions"][0, 1], dataset.batch([5])["actions"][0, 0])  # never the next episode's


def test_regions_are_the_named_object_and_the_other_one(episodes):
    swapped = replace(episodes[0], target="akita_black_bowl_2", distractor="akita_black_bowl_1")
    regions = DemoDataset([swapped], Stats.of(episodes), **SIZES).batch([3])["regions"][0].numpy()
    np.testing.assert_array_equal(regions[0], episodes[0].segmentation[3] == 2)
    np.testing.assert_array_equal(regions[1], episodes[0].segmentation[3] == 1)


def test_an_object_that_is_not_named_has_an_empty_region(episodes):
    alone = replace(episodes[0], distractor="")
    assert DemoDataset([alone], Stats.of(episodes), **SIZES).batch([0])["regions"][0, 1].sum() == 0


def test_without_segmentation_or_wrist_the_keys_are_absent(episodes):
    bare = [replace(episode, segmentation=None) for episode in episodes]
    batch = DemoDataset(bare, Stats.of(bare), image_size=16, wrist_size=0, chunk=1).batch([0])
    assert "regions" not in batch and "wrist" not in batch


@pytest.mark.parametrize(("change", "sizes", "message"), [
    ({}, {"image_size": 32}, "agentview_rgb images have 16x16 pixels, but image_size is 32"),
    ({}, {"wrist_size": 64}, "eye_in_hand_rgb images have 8x8 pixels, but wrist_size is 64"),
    ({"eye_in_hand_rgb": None}, {}, "set wrist_size to 0"),
])
def test_another_image_size_is_refused_not_resized(episodes, change, sizes, message):
    with pytest.raises(LarError, match=message):
        DemoDataset([replace(episodes[0], **change)], Stats.of(episodes), **{**SIZES, **sizes})


def test_no_episodes_are_refused(episodes):
    with pytest.raises(LarError, match="no demonstrations"):
        DemoDataset([], Stats.of(episodes), **SIZES)


def test_a_step_that_moves_nothing_is_dropped_unless_the_gripper_changes():
    actions = np.zeros((6, 7))
    actions[:, 6] = [-1, -1, 1, 1, 1, 1]
    actions[4, 0] = 0.5
    episode = drop_noops(replace(make_episode(), actions=actions))
    assert len(episode) == 2  # step 2 closes the gripper, step 4 moves
    np.testing.assert_array_equal(episode.agentview_rgb, make_episode().agentview_rgb[[2, 4]])
    with pytest.raises(LarError, match="never moves"):
        drop_noops(replace(make_episode(), actions=np.zeros((6, 7))))


def test_the_split_is_by_episode_and_repeatable(demo_file):
    train, heldout = load_split([demo_file], 0.2, seed=3)
    assert (len(train), len(heldout)) == (8, 2)
    assert sorted(seeds(train) + seeds(heldout)) == list(range(10))
    assert seeds(load_split([demo_file], 0.2, seed=3)[1]) == seeds(heldout)
    assert len({tuple(seeds(load_split([demo_file], 0.2, seed=seed)[1])) for seed in range(5)}) > 1


def test_both_parts_of_the_split_have_an_episode_of_every_file(demo_file):
    assert [len(part) for part in load_split([demo_file, demo_file], 0.0, seed=0)] == [18, 2]
    assert [len(part) for part in load_split([demo_file], 1.0, seed=0)] == [1, 9]


def test_a_file_with_one_episode_cannot_be_split(tmp_path, demo_file):
    with pytest.raises(LarError, match="one to train on and one to hold out"):
        load_split([tmp_path / "0.part"], 0.1, seed=0)


def test_an_epoch_shows_every_frame_once_and_the_next_in_another_order():
    sampler = FrameSampler(12, 4, seed=0)
    first, second = ([i for step in steps for i in sampler.batch_indices(step)] for steps in (range(3), range(3, 6)))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second


def test_a_batch_depends_on_seed_and_step_only():
    one, other = FrameSampler(10, 4, seed=5), FrameSampler(10, 4, seed=5)
    wanted = [one.batch_indices(step) for step in range(20)]
    assert [other.batch_indices(step) for step in reversed(range(20))] == wanted[::-1]
    assert FrameSampler(10, 4, seed=6).batch_indices(0) != wanted[0]
    assert len(FrameSampler(3, 8, seed=0).batch_indices(0)) == 8  # a batch larger than the data set


# Normalisation: quantiles of the training actions, gripper apart, and a way back.

@pytest.fixture
def long_episodes():
    return [make_episode(steps=200, seed=seed, size=2) for seed in range(3)]


def test_the_quantiles_become_the_ends_of_the_range(long_episodes):
    actions, stats = np.concatenate([episode.actions for episode in long_episodes]), Stats.of(long_episodes)
    np.testing.assert_allclose(stats.action_low[:6], np.quantile(actions, 0.01, axis=0)[:6])
    np.testing.assert_allclose(stats.normalise_actions(np.array(stats.action_high)), np.ones(7), atol=1e-6)
    normalised = stats.normalise_actions(actions)
    assert normalised.dtype == np.float32 and normalised.min() == -1 and normalised.max() == 1


def test_the_gripper_keeps_its_own_scale(long_episodes):
    actions = np.zeros((2, 7))
    actions[:, 6] = [-1, 1]
    assert Stats.of(long_episodes).normalise_actions(actions)[:, 6].tolist() == [-1, 1]


def test_actions_inside_the_quantiles_come_back(long_episodes):
    stats = Stats.of(long_episodes)
    actions = np.clip(long_episodes[0].actions, stats.action_low, stats.action_high)
    np.testing.assert_allclose(stats.denormalise_actions(stats.normalise_actions(actions)), actions, atol=1e-6)


def test_a_direction_that_never_moves_stays_harmless(long_episodes):
    still = [replace(episode, actions=episode.actions * [1, 1, 0, 1, 1, 1, 1]) for episode in long_episodes]
    stats = Stats.of(still)
    assert np.isfinite(stats.normalise_actions(still[0].actions)).all()
    assert abs(stats.denormalise_actions(np.ones(7))[2]) <= 0.01


def test_proprioception_gets_mean_0_and_deviation_1(long_episodes):
    own = np.concatenate([proprio(episode.ee_pos, episode.ee_ori, episode.gripper_states) for episode in long_episodes])
    values = Stats.of(long_episodes).normalise_proprio(own)
    assert values.shape == (600, 8)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-4)


def test_saved_and_loaded_they_are_the_same(tmp_path, long_episodes):
    stats = Stats.of(long_episodes)
    stats.save(tmp_path / "stats.json")
    assert Stats.load(tmp_path / "stats.json") == stats


SCALES = {"action_low": [-0.5] * 7, "action_high": [0.5] * 7, "proprio_mean": [0.0] * 8, "proprio_std": [1.0] * 8}


@pytest.mark.parametrize("field, place, value, words", [
    ("action_low", 2, math.nan, "action_low holds nan"), ("action_high", 0, math.inf, "action_high holds inf"),
    ("proprio_mean", 7, -math.inf, "proprio_mean holds -inf"), ("proprio_std", 1, math.nan, "proprio_std holds nan"),
    ("action_high", 3, -0.5, r"direction 3 \(-0.5 to -0.5\)"),  # no width
    ("action_high", 3, -0.7, r"direction 3"),  # upside down
    ("action_low", 6, 0.5, r"direction 6"), ("proprio_std", 4, 0.0, "proprio_std is 0.0"),
    ("proprio_std", 0, -1.0, "proprio_std is -1.0")])
def test_scales_that_would_spoil_every_action_are_refused_where_they_are_read(tmp_path, field, place, value, words):
    values = {name: list(numbers) for name, numbers in SCALES.items()}
    values[field][place] = value
    (tmp_path / "stats.json").write_text(json.dumps(values))
    with pytest.raises(LarError, match=words) as refusal:
        Stats.load(tmp_path / "stats.json")
    assert str(tmp_path / "stats.json") in str(refusal.value) and "delete" not in str(refusal.value)
    assert "from a copy of the run" in str(refusal.value)


def test_good_scales_and_scales_of_another_size(tmp_path):
    (tmp_path / "stats.json").write_text(json.dumps(SCALES))
    assert Stats.load(tmp_path / "stats.json").action_high == (0.5,) * 7
    (tmp_path / "stats.json").write_text(json.dumps(SCALES | {"proprio_std": [1.0] * 7}))
    with pytest.raises(LarError, match="proprio_std has 7 numbers, but 8"):
        Stats.load(tmp_path / "stats.json")


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    with pytest.raises(LarError, match="stats.json could not be read, because it is not there"):
        Stats.load(tmp_path / "stats.json")
    (tmp_path / "stats.json").mkdir()
    with pytest.raises(LarError, match="could not be read, because it is a folder"):
        Stats.load(tmp_path / "stats.json")


@pytest.mark.parametrize("field", ["actions", "ee_pos", "gripper_states"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_demonstrations_with_numbers_that_are_none_are_named_before_training(long_episodes, field, value):
    getattr(long_episodes[1], field)[3:20, 0] = value
    with pytest.raises(LarError, match="demonstrations give no scales: .* not a finite number"):
        Stats.of(long_episodes)


@pytest.mark.parametrize("text", ["{", "{}", '{"action_low": 3}', "[1]"])
def test_a_foreign_file_and_no_episodes_are_refused(tmp_path, text):
    path = tmp_path / "stats.json"
    path.write_text(text)
    with pytest.raises(LarError, match="does not hold action statistics"):
        Stats.load(path)
    with pytest.raises(LarError, match="no training episodes"):
        Stats.of([])


# Shifts: pixels move together with their segmentation, borders repeat, everything follows the seed.

def picture(batch):
    """A coloured square, and its segmentation where it is."""
    regions = torch.zeros(batch, 2, 32, 32, dtype=torch.uint8)
    regions[:, 0, 10:20, 12:22] = 1
    return {"images": (regions[:, :1] * 200).expand(-1, 3, -1, -1).contiguous(), "regions": regions, "proprio": None}


def test_segmentation_moves_with_the_image_and_no_further_than_asked():
    moved = shift_images(picture(64), 4, Draws(0))
    assert torch.equal(moved["images"][:, 0], moved["regions"][:, 0] * 200)
    rows, columns = moved["regions"][:, 0].amax(2).int().argmax(1), moved["regions"][:, 0].amax(1).int().argmax(1)
    assert set((rows - 10).tolist()) == set(range(-4, 5)) == set((columns - 12).tolist())


def test_the_frame_before_moves_with_the_image():
    moved = shift_images(picture(16) | {"previous": picture(16)["images"]}, 4, Draws(0))
    assert torch.equal(moved["images"], moved["previous"])


def test_borders_are_repeated_and_sizes_kept():
    images = torch.arange(8, dtype=torch.uint8).reshape(1, 1, 1, 8).expand(1, 3, 8, 8).contiguous()
    moved = shift_images({"images": images}, 3, Draws(1))["images"]
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= set(range(8))


def test_the_same_seed_moves_alike_and_the_wrist_camera_moves_on_its_own():
    batch = {"images": torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)}
    batch["wrist"] = batch["images"].clone()
    one, again, other = (shift_images(batch, 3, Draws(seed)) for seed in (5, 5, 6))
    assert torch.equal(one["images"], again["images"]) and not torch.equal(one["images"], other["images"])
    assert not torch.equal(one["images"], one["wrist"])
