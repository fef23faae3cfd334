"""Batches: right shapes and frames, padding at the end of an episode, the same batch for the same (seed, step)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_demos import SENTENCE, make_episode

from lar_core.data.dataset import DemoDataset, FrameSampler, Stats, drop_noops, load_split
from lar_core.data.demos import merge_episodes, write_episode
from lar_core.run.errors import LarError

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
