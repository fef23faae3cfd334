"""`lar demos --to lerobot`: what LeRobot's loader asks of a data set is there, and says what our own files say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import load_dataset
from moving import moving_episode
from pandas import read_parquet
from test_demos import SENTENCE

from lar_core.data import lerobot_writer
from lar_core.data.demos import write_episode
from lar_core.data.lerobot import conventions_of, list_episodes, read_listed
from lar_core.run.errors import LarError
from lar_core.scene.demonstrations import other_sentence
from lar_core.scene.env import instruction
from lar_core.scene.placements import BOWLS
from lar_core.steps import copy_demos


def recorded(seed: int, target: int = 0, **more):
    """An episode of task 5's scene, with its segmentation."""
    labels = np.random.default_rng(seed).integers(0, 3, (60 + seed, 32, 32)).astype(np.uint8)
    return replace(moving_episode(60 + seed, seed, 32, 16, instruction(5)), segmentation=labels, objects=BOWLS,
                   target=BOWLS[target], distractor=BOWLS[1 - target], provenance={"task": 5, "placement": "near"}, **more)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Episodes of two files, and the folder that they were copied to, two or three episodes a file."""
    monkeypatch.setattr(lerobot_writer, "FILE_MB", 0.3)
    episodes, bddl = [recorded(seed) for seed in range(5)], tmp_path / "x.bddl"
    bddl.write_text("(define)")
    paths = [tmp_path / f"{seed}.hdf5" for seed in range(5)]
    for episode, path in zip(episodes, paths):
        write_episode(path, episode, bddl_file=bddl)
    return episodes, copy_demos(paths, "lerobot", str(tmp_path / "copy"))


def test_our_own_reader_reads_the_same_episodes_back(copied):
    episodes, folder = copied
    listed = list_episodes(folder)
    conventions = conventions_of(folder, listed)
    assert len({one.file for one in listed}) > 1 and len(listed) == 5
    for ours, one in zip(episodes, listed):
        theirs = read_listed(folder, one, conventions)
        assert theirs.instruction == ours.instruction
        for name in ("agentview_rgb", "eye_in_hand_rgb"):
            np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name))
        for name in ("actions", "ee_pos", "ee_ori", "gripper_states"):
            np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), atol=1e-6)


def test_rows_are_numbered_as_the_metadata_says_and_hold_segmentation_and_the_other_sentence(copied):
    episodes, folder = copied
    rows = load_dataset("parquet", data_files=sorted(map(str, folder.glob("data/*/*.parquet"))), split="train",
                        cache_dir=folder / "cache").with_format("numpy")
    assert rows["index"][:].tolist() == list(range(sum(map(len, episodes))))
    sentences = list(read_parquet(folder / "meta/tasks.parquet").sort_values("task_index").index)
    meta = read_parquet(folder / "meta/episodes/chunk-000/file-000.parquet")
    for row, ours in zip(meta.itertuples(), episodes):
        part = rows[row.dataset_from_index:row.dataset_to_index]
        np.testing.assert_array_equal(part["segmentation"], ours.segmentation)
        assert set(part["episode_index"]) == {row.episode_index} and part["frame_index"].tolist() == list(range(row.length))
        assert {sentences[task] for task in part["task_index"]} == {ours.instruction} == set(row.tasks)
        assert {sentences[task] for task in part["other_task_index"]} == {other_sentence(ours)} != {None}
        assert (row.placement, row.target, tuple(row.objects)) == ("near", BOWLS[0], BOWLS)
        np.testing.assert_allclose(part["timestamp"], np.arange(row.length) / 20, atol=1e-4)


def test_statistics_are_those_of_all_frames(copied):
    episodes, folder = copied
    stats = json.loads((folder / "meta/stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in episodes])
    pixels = np.concatenate([episode.agentview_rgb for episode in episodes]) / 255
    for name, rows, axes in (("action", actions, 0), ("observation.images.image", pixels, (0, 1, 2))):
        for word in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(np.ravel(stats[name][word]), getattr(rows, word)(axes), atol=1e-5)
        np.testing.assert_allclose(np.ravel(stats[name]["q50"]), np.median(rows, axis=axes), atol=0.003)
        assert stats[name]["count"] == [len(rows)]
    assert np.shape(stats["observation.images.image2"]["mean"]) == (3, 1, 1)


def test_what_cannot_be_copied_is_said_and_leaves_nothing_behind(tmp_path):
    bddl = tmp_path / "x.bddl"
    bddl.write_text("(define)")
    for name, episode in (("a", recorded(0)), ("b", moving_episode(60, 1, 32, 16, SENTENCE))):
        write_episode(tmp_path / f"{name}.hdf5", episode, bddl_file=bddl)
    with pytest.raises(LarError, match="other columns or sizes"):
        copy_demos([tmp_path / "a.hdf5", tmp_path / "b.hdf5"], "lerobot", str(tmp_path / "copy"))
    assert not list(tmp_path.glob("*copy*")) + list(tmp_path.glob(".copy*"))
    with pytest.raises(LarError, match="is there already"):
        copy_demos([tmp_path / "a.hdf5"], "lerobot", str(tmp_path))
    with pytest.raises(LarError, match="Unknown format 'rlds'"):
        copy_demos([tmp_path / "a.hdf5"], "rlds", str(tmp_path / "copy"))
