"""LeRobot data sets, written here as LeRobot lays them out: the same batches as our own files for the same content."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_demos import SENTENCE, make_episode

from lar_core.data.dataset import DemoDataset, Stats
from lar_core.data.demos import read_episode, write_episode
from lar_core.data.lerobot import list_episodes, read_listed
from lar_core.run.errors import LarError

OTHER = "open the drawer"
LETTERS = {"observation.images.image": "image", "observation.images.wrist_image": "image",
           "observation.state": "float32", "action": "float32"}


def content(seed: int, sentence: str = SENTENCE, **sizes):
    """An episode whose numbers float32 can hold, and without what LeRobot does not keep."""
    episode = make_episode(steps=5 + seed, seed=seed, **sizes)
    arrays = {name: np.float32(getattr(episode, name)).astype(float)
              for name in ("actions", "ee_pos", "ee_ori", "gripper_states")}
    arrays["actions"][:, 6] = np.where(arrays["actions"][:, 6] > 0, 1, -1)
    arrays["actions"][0, 6] = -1
    return replace(episode, **arrays, instruction=sentence, states=None, joint_states=None, segmentation=None)


def write_lerobot(folder, episodes, version: str, per_file: int = 2):
    """What LeRobot's own writer leaves: metadata, and parquet files with embedded PNGs through the datasets library."""
    (folder / "meta").mkdir(parents=True)
    sentences = sorted({episode.instruction for episode in episodes})
    features = {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in LETTERS.items()}
    (folder / "meta/info.json").write_text(json.dumps({"codebase_version": version, "fps": 10, "features": features}))
    places = [(0, number // per_file) for number in range(len(episodes))]
    listed = [{"episode_index": number, "tasks": [episode.instruction], "length": len(episode)}
              for number, episode in enumerate(episodes)]
    if version.startswith("v2"):
        for name, rows in (("episodes", listed), ("tasks", [{"task_index": i, "task": text}
                                                            for i, text in enumerate(sentences)])):
            (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number, episode in enumerate(episodes):
            write_frames(folder / f"data/chunk-000/episode_{number:06d}.parquet", [(number, episode)], sentences)
        return
    table = pd.DataFrame({"task_index": range(len(sentences))}, index=sentences)
    table.to_parquet(folder / "meta/tasks.parquet")
    rows = [row | {"data/chunk_index": chunk, "data/file_index": file, "stats/action/min": [0.0]}
            for row, (chunk, file) in zip(listed, places)]
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "meta/episodes/chunk-000/file-000.parquet")
    for chunk, file in sorted(set(places)):
        held = [(number, episodes[number]) for number, place in enumerate(places) if place == (chunk, file)]
        write_frames(folder / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet", held, sentences)


def write_frames(path, held, sentences):
    def png(frame):
        Image.fromarray(frame).save(buffer := io.BytesIO(), "PNG")
        return {"bytes": buffer.getvalue(), "path": None}
    state = [np.concatenate([getattr(episode, name)[t] for name in ("ee_pos", "ee_ori", "gripper_states")])
             for _, episode in held for t in range(len(episode))]
    columns = {"observation.images.image": [png(frame) for _, episode in held for frame in episode.agentview_rgb],
               "observation.images.wrist_image": [png(f) for _, episode in held for f in episode.eye_in_hand_rgb],
               "observation.state": state, "action": [a for _, episode in held for a in episode.actions],
               "episode_index": [number for number, episode in held for _ in range(len(episode))],
               "frame_index": [t for _, episode in held for t in range(len(episode))],
               "task_index": [sentences.index(episode.instruction) for _, episode in held for _ in episode.actions]}
    kinds = datasets.Features({
        "observation.images.image": datasets.Image(), "observation.images.wrist_image": datasets.Image(),
        "observation.state": datasets.List(datasets.Value("float32"), length=8),
        "action": datasets.List(datasets.Value("float32"), length=7),
        **{name: datasets.Value("int64") for name in ("episode_index", "frame_index", "task_index")}})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=kinds).to_parquet(path)


@pytest.fixture
def episodes():
    return [content(0), content(1, OTHER), content(2), content(3)]


@pytest.fixture(params=["v2.0", "v2.1", "v3.0"])
def folder(request, tmp_path, episodes):
    write_lerobot(tmp_path / "lerobot", episodes, request.param)
    return tmp_path / "lerobot"


def read_all(folder, sentence=SENTENCE):
    return [read_listed(folder, listed, sentence) for listed in list_episodes(folder, sentence)]


def test_only_the_episodes_of_a_sentence_are_listed_with_the_files_that_hold_them(folder):
    listed = list_episodes(folder, SENTENCE)
    assert [(episode.number, episode.steps) for episode in listed] == [(0, 5), (2, 7), (3, 8)]
    assert all((folder / episode.file).is_file() for episode in listed)


def test_batches_equal_those_of_our_own_files_for_the_same_content(folder, episodes, tmp_path):
    bddl = tmp_path / "task.bddl"
    bddl.write_text("(define)")
    for number, episode in enumerate(episodes):
        write_episode(tmp_path / f"{number}.hdf5", episode, bddl_file=bddl)
    ours = [read_episode(tmp_path / f"{number}.hdf5", 0) for number in (0, 2, 3)]
    stats, sizes = Stats.of(ours), {"image_size": 16, "wrist_size": 8, "chunk": 4}
    one, other = (DemoDataset(part, stats, **sizes) for part in (ours, read_all(folder)))
    assert len(one) == len(other) == 20
    one, other = (dataset.batch(range(20)) for dataset in (one, other))
    assert set(one) == set(other) and one.pop("instructions") == other.pop("instructions")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_gripper_that_counts_from_closed_0_to_open_1_is_translated(tmp_path):
    episode = content(0)
    openvla = episode.actions.copy()
    openvla[:, 6] = (1 - openvla[:, 6]) / 2
    write_lerobot(tmp_path / "x", [replace(episode, actions=openvla)], "v3.0")
    np.testing.assert_array_equal(read_all(tmp_path / "x")[0].actions, episode.actions)


def test_an_unknown_sentence_and_a_foreign_folder_are_refused(folder, tmp_path):
    with pytest.raises(LarError, match="did you mean 'open the drawer'"):
        list_episodes(folder, "open a drawer")
    with pytest.raises(LarError, match="is not a LeRobot data set"):
        list_episodes(tmp_path, SENTENCE)


@pytest.mark.parametrize(("change", "message"), [
    ({"codebase_version": "v1.6"}, "format v1.6, but v2.0"),
    ({"features": {name: {"dtype": "video"} for name in LETTERS}}, "image should be of type image, but there is video"),
    ({"features": {}}, "nothing of that name"),
])
def test_another_format_is_named(folder, change, message):
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | change))
    with pytest.raises(LarError, match=message):
        list_episodes(folder, SENTENCE)


def test_missing_damaged_and_short_files_are_named(folder):
    listed = list_episodes(folder, SENTENCE)[0]
    with pytest.raises(LarError, match=f"{listed.file} has 5 frames of episode 0, but the metadata says 6"):
        read_listed(folder, replace(listed, steps=6), SENTENCE)
    (folder / listed.file).write_bytes((folder / listed.file).read_bytes()[:100])
    with pytest.raises(LarError, match=f"{listed.file} cannot be read"):
        read_listed(folder, listed, SENTENCE)
    (folder / listed.file).unlink()
    with pytest.raises(LarError, match=f"{listed.file} cannot be read"):
        read_listed(folder, listed, SENTENCE)
