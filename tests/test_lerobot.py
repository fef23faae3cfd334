"""LeRobot data sets, written here as LeRobot lays them out: the same batches as our own files for the same content."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import datasets
import imageio.v2 as imageio
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from moving import moving_episode, stored
from PIL import Image
from test_demos import SENTENCE

from lar_core.data.dataset import DemoDataset, Stats
from lar_core.data.demos import PICTURES, read_episode, write_episode
from lar_core.data.lerobot import _PATHS, _pictures, conventions_of, list_episodes, raw_listed, read_listed
from lar_core.run.errors import LarError

OTHER = "open the drawer"
KEYS = {"agentview_rgb": "observation.images.image", "eye_in_hand_rgb": "observation.images.wrist_image",
        "state": "observation.state", "actions": "action"}
LAYOUTS = {  # what public copies of LIBERO call things, and how they keep pictures
    "lerobot": {},
    "physical-intelligence": {"keys": {"agentview_rgb": "image", "eye_in_hand_rgb": "wrist_image", "state": "state",
                                       "actions": "actions"}, "number": "float64"},
    "HuggingFaceVLA": {"keys": KEYS | {"eye_in_hand_rgb": "observation.images.image2"}, "video": True},
    "small chunks": {"info": {"chunks_size": 2}, "video": True},
    "other paths": {"info": {"data_path": {"v2": "rows/c{episode_chunk}/e{episode_index}.parquet",
                                           "v3": "rows/c{chunk_index}/f{file_index}.parquet"},
                             "video_path": {"v2": "films/{video_key}/{episode_index}.mp4",
                                            "v3": "films/{video_key}/{chunk_index}-{file_index}.mp4"}}, "video": True},
}


def content(seed: int, sentence: str = SENTENCE, size=32, wrist=16, **more):
    """An episode whose numbers float32 can hold, and without what LeRobot does not keep."""
    return replace(moving_episode(60 + seed, seed, size, wrist, sentence, **more), states=None, joint_states=None)


def write_lerobot(folder, episodes, version: str, per_file: int = 2, *, keys=KEYS, number="float32", video=False, info=None,
                  rows=None, **conventions):
    """What LeRobot's own writer leaves: metadata, and parquet files with PNGs in them, or with videos beside them.

    rows: changes an episode's row of the metadata. conventions: as in `stored`.
    """
    (folder / "meta").mkdir(parents=True)
    sentences = sorted({episode.instruction for episode in episodes})
    kind = {"agentview_rgb": "video" if video else "image", "eye_in_hand_rgb": "video" if video else "image"}
    features = {key: {"dtype": kind.get(name, number), "shape": [1], "names": None} for name, key in keys.items()}
    short = version[:2]
    told = {name: value[short] if isinstance(value, dict) else value for name, value in (info or {}).items()}
    told = {"codebase_version": version, "fps": 10, "features": features} | told
    (folder / "meta/info.json").write_text(json.dumps(told))
    size = told.get("chunks_size", 1000)
    data_path, video_path = (told.get(name) or default for name, default in zip(("data_path", "video_path"), _PATHS[short]))
    held: dict[str, list] = {}
    listed = []
    for n, episode in enumerate(episodes):
        arrays = stored(episode, **conventions)
        row = {"episode_index": n, "tasks": [episode.instruction], "length": len(arrays["actions"])}
        place = {"episode_index": n, "episode_chunk": n // size, "chunk_index": 0, "file_index": n // per_file}
        row |= {"data/chunk_index": 0, "data/file_index": n // per_file, "stats/action/min": [0.0]} if short == "v3" else {}
        held.setdefault(data_path.format(**place), []).append((n, sentences.index(episode.instruction), arrays))
        for name, key in keys.items():
            if kind.get(name) == "video":
                film = held.setdefault(video_path.format(video_key=key, **place), [])
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": n // per_file,
                        f"videos/{key}/from_timestamp": len(film) / 10} if short == "v3" else {}
                film.extend(arrays[name])
        listed.append(row | (rows(row) if rows else {}))
    for path, things in held.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".mp4"):
            imageio.mimsave(folder / path, things, fps=10, macro_block_size=2, output_params=["-g", "2", "-crf", "5"])
        else:
            write_frames(folder / path, things, keys, number, video)
    if short == "v2":
        for name, lines in (("episodes", listed), ("tasks", [{"task_index": i, "task": text}
                                                             for i, text in enumerate(sentences)])):
            (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        return
    pd.DataFrame({"task_index": range(len(sentences))}, index=sentences).to_parquet(folder / "meta/tasks.parquet")
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    datasets.Dataset.from_list(listed).to_parquet(folder / "meta/episodes/chunk-000/file-000.parquet")


def write_frames(path, held, keys, number, video):
    def png(frame):
        Image.fromarray(frame).save(buffer := io.BytesIO(), "PNG")
        return {"bytes": buffer.getvalue(), "path": None}
    columns = {keys["state"]: [np.concatenate([arrays[name][t] for name in ("ee_pos", "ee_ori", "gripper_states")])
                               for _, _, arrays in held for t in range(len(arrays["ee_pos"]))],
               keys["actions"]: [action for _, _, arrays in held for action in arrays["actions"]],
               "episode_index": [n for n, _, arrays in held for _ in arrays["actions"]],
               "frame_index": [t for _, _, arrays in held for t in range(len(arrays["actions"]))],
               "task_index": [task for _, task, arrays in held for _ in arrays["actions"]]}
    kinds = {keys["state"]: datasets.List(datasets.Value(number), length=8),
             keys["actions"]: datasets.List(datasets.Value(number), length=7),
             **{name: datasets.Value("int64") for name in ("episode_index", "frame_index", "task_index")}}
    for name in () if video else ("agentview_rgb", "eye_in_hand_rgb"):
        columns[keys[name]] = [png(frame) for _, _, arrays in held for frame in arrays[name]]
        kinds[keys[name]] = datasets.Image()
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(path)


@pytest.fixture
def episodes():
    return [content(0), content(1, OTHER), content(2)]


@pytest.fixture(params=["v2.0", "v2.1", "v3.0"])
def folder(request, tmp_path, episodes):
    write_lerobot(tmp_path / "lerobot", episodes, request.param)
    return tmp_path / "lerobot"


def read_all(folder, sentence=SENTENCE):
    listed = list_episodes(folder, sentence)
    conventions = conventions_of(folder, list_episodes(folder))
    return [read_listed(folder, episode, conventions) for episode in listed]


def test_only_the_episodes_of_a_sentence_are_listed_with_the_files_that_hold_them(folder):
    listed = list_episodes(folder, SENTENCE)
    assert [(episode.number, episode.steps) for episode in listed] == [(0, 60), (2, 62)]
    assert all((folder / file).is_file() for episode in listed for file in episode.files)


def test_batches_equal_those_of_our_own_files_for_the_same_content(folder, episodes, tmp_path):
    bddl = tmp_path / "task.bddl"
    bddl.write_text("(define)")
    for number, episode in enumerate(episodes):
        write_episode(tmp_path / f"{number}.hdf5", episode, bddl_file=bddl)
    ours = [read_episode(tmp_path / f"{number}.hdf5", 0) for number in (0, 2)]
    stats, sizes = Stats.of(ours), {"image_size": 32, "wrist_size": 16, "chunk": 4}
    one, other = (DemoDataset(part, stats, **sizes) for part in (ours, read_all(folder)))
    assert len(one) == len(other) == 122
    one, other = (dataset.batch(range(122)) for dataset in (one, other))
    assert set(one) == set(other) and one.pop("instructions") == other.pop("instructions")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_of_every_layout_become_the_same_episodes(tmp_path, episodes, version, layout):
    write_lerobot(tmp_path / "x", episodes, version, **LAYOUTS[layout])
    found = read_all(tmp_path / "x")
    for episode, wanted in zip(found, (episodes[0], episodes[2]), strict=True):
        for name in ("actions", "ee_pos", "ee_ori", "gripper_states"):
            np.testing.assert_array_equal(getattr(episode, name), getattr(wanted, name), err_msg=name)
        for name in ("agentview_rgb", "eye_in_hand_rgb"):
            seen, drawn = (getattr(one, name).mean(axis=-1) for one in (episode, wanted))
            assert seen.shape == drawn.shape and np.abs(seen - drawn).mean() < 3, name  # a video is not exact, ...
            errors = [np.abs(seen[1:-1] - drawn[1 + lag : len(drawn) - 1 + lag]).mean() for lag in (-1, 0, 1)]
            assert np.argmin(errors) == 1, name  # ... but no frame is another one


@pytest.mark.parametrize("conventions", [
    {"gripper": "1/0"}, {"gripper": "0/1"}, {"gripper": "1/-1"}, {"pictures": "rotated"}, {"alignment": "after"},
    {"actions": "metres"}, {"gripper": "1/0", "pictures": "mirrored", "alignment": "after", "actions": "metres"}])
def test_other_conventions_are_translated(tmp_path, episodes, conventions):
    write_lerobot(tmp_path / "x", episodes, "v3.0", **conventions)
    for episode, wanted in zip(read_all(tmp_path / "x"), (episodes[0], episodes[2]), strict=True):
        for name in ("actions", "ee_pos", "agentview_rgb"):
            np.testing.assert_allclose(getattr(episode, name), getattr(wanted, name), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("gripper", ["-1/1", "1/0"])
def test_an_episode_that_is_closed_throughout_is_read_like_the_others(tmp_path, episodes, gripper):
    closed = content(4, closed=True)
    write_lerobot(tmp_path / "x", [closed, *episodes], "v2.1", gripper=gripper)
    np.testing.assert_array_equal(read_all(tmp_path / "x")[0].actions[:, 6], np.ones(64))


def test_sentences_with_capitals_a_stop_or_alone_are_found(tmp_path, episodes):
    theirs = [replace(episode, instruction=f"{episode.instruction.capitalize()}.") for episode in episodes]
    write_lerobot(tmp_path / "x", theirs, "v3.0", rows=lambda row: {"tasks": row["tasks"][0]})
    assert [episode.number for episode in list_episodes(tmp_path / "x", SENTENCE)] == [0, 2]


def test_an_unknown_sentence_and_a_foreign_folder_are_refused(folder, tmp_path):
    with pytest.raises(LarError, match="did you mean 'open the drawer'"):
        list_episodes(folder, "open a drawer")
    with pytest.raises(LarError, match="may be no LeRobot data set.*is not there"):
        list_episodes(tmp_path, SENTENCE)


@pytest.mark.parametrize(("change", "message"), [
    ({"codebase_version": "v1.6"}, "format v1.6, but v2.0"),
    ({"features": {}}, "actions is missing among no features; it may be called"),
    ({"features": {"action": {}, "cam_high": {}}}, "agentview_rgb is missing among action, cam_high"),
])
def test_another_format_is_named(folder, change, message):
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | change))
    with pytest.raises(LarError, match=message):
        list_episodes(folder, SENTENCE)


def test_missing_damaged_and_short_files_are_named_with_their_episode(folder):
    listed = list_episodes(folder, SENTENCE)[0]
    with pytest.raises(LarError, match=f"{listed.file} has 60 frames of episode 0, but the metadata says 6"):
        raw_listed(folder, replace(listed, steps=6))
    (folder / listed.file).write_bytes((folder / listed.file).read_bytes()[:100])
    with pytest.raises(LarError, match=f"{listed.file}, episode 0, cannot be read, the file is damaged"):
        raw_listed(folder, listed)
    (folder / listed.file).unlink()
    with pytest.raises(LarError, match=f"{listed.file}, episode 0, could not be read, because it is not there"):
        raw_listed(folder, listed)


@pytest.mark.parametrize(("change", "message"), [
    (lambda frame, _: frame.tolist(), None),
    (lambda frame, _: (frame / 255).tolist(), r"episode 0: agentview_rgb holds float64 of shape \(60, 32, 32, 3\)"),
    (lambda frame, _: frame.transpose(2, 0, 1).tolist(), r"uint8 of shape \(60, 3, 32, 32\)"),
    (lambda frame, t: frame[: 30 + t % 2].tolist(), "observation.images.image holds pictures of different sizes"),
    (lambda *_: {"bytes": None, "path": None}, "observation.images.image holds a row without a picture")])
def test_pictures_may_be_numbers_but_not_of_another_kind(tmp_path, episodes, change, message):
    write_lerobot(tmp_path / "x", episodes[:1], "v2.1")
    listed = list_episodes(tmp_path / "x")[0]
    table = pd.read_parquet(tmp_path / "x" / listed.file)
    whole = _pictures(tmp_path / "x", listed, PICTURES)
    table["observation.images.image"] = [change(frame, t) for t, frame in enumerate(whole["agentview_rgb"])]
    table.to_parquet(tmp_path / "x" / listed.file)
    if message is None:
        assert (_pictures(tmp_path / "x", listed, PICTURES)["agentview_rgb"] == whole["agentview_rgb"]).all()
        return
    with pytest.raises(LarError, match=message):
        _pictures(tmp_path / "x", listed, PICTURES)


@pytest.mark.parametrize("refused", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error"),
                                     pyarrow.lib.ArrowNotImplementedError("Support for codec 'lz4' not built")])
def test_a_table_that_could_not_be_read_is_not_called_damaged(folder, monkeypatch, refused):
    def read(*_, **__):
        raise refused
    monkeypatch.setattr("pyarrow.parquet.read_table", read)
    with pytest.raises(LarError, match="episode 0, could not be read, because") as error:
        raw_listed(folder, list_episodes(folder, SENTENCE)[0])
    assert "damaged" not in str(error.value) and "delete" not in str(error.value)


def test_a_video_that_is_cut_short_or_none_is_named_with_its_episode(tmp_path, episodes):
    write_lerobot(tmp_path / "x", episodes, "v2.1", video=True)
    listed = list_episodes(tmp_path / "x", SENTENCE)[0]
    path = tmp_path / "x" / listed.files[1]
    longer = replace(listed, steps=70)
    with pytest.raises(LarError, match="episode 0, ends before the 70 frames"):
        _pictures(tmp_path / "x", longer, PICTURES)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(LarError, match="episode 0, cannot be read, the file is damaged"):
        _pictures(tmp_path / "x", listed, PICTURES)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(LarError, match="pointer of Git LFS: fetch the content"):
        _pictures(tmp_path / "x", listed, PICTURES)
