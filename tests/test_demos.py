"""Demonstration files: LIBERO's own layout, exact round trip, crash-safe writing, and a sentence for every defect; and their
pictures in another size."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from lar_core.data.demos import (
    PER_STEP,
    Episode,
    episode_count,
    merge_episodes,
    read_episode,
    read_episodes,
    read_origin,
    write_episode,
)
from lar_core.data.episode import resize, resize_episode
from lar_core.run.errors import LarError

SENTENCE = "pick up the black bowl on the ramekin and place it on the plate"


def make_episode(steps=6, seed=0, size=16, wrist=8) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        instruction=SENTENCE, actions=rng.uniform(-1, 1, (steps, 7)),
        agentview_rgb=rng.integers(0, 256, (steps, size, size, 3), dtype=np.uint8),
        eye_in_hand_rgb=rng.integers(0, 256, (steps, wrist, wrist, 3), dtype=np.uint8),
        ee_pos=rng.normal(size=(steps, 3)), ee_ori=rng.normal(size=(steps, 3)),
        gripper_states=rng.normal(size=(steps, 2)), joint_states=rng.normal(size=(steps, 7)),
        states=rng.normal(size=(steps, 92)), segmentation=rng.integers(0, 4, (steps, size, size), dtype=np.uint8),
        objects=["akita_black_bowl_1", "akita_black_bowl_2", "plate_1"], target="akita_black_bowl_1",
        distractor="akita_black_bowl_2", init_state=rng.normal(size=92), model_file="<mujoco/>",
        provenance={"seed": seed, "assets": {"name": "stand-in"}})


@pytest.fixture
def bddl(tmp_path):
    path = tmp_path / "libero_spatial" / "task.bddl"
    path.parent.mkdir()
    path.write_text("(define (problem LIBERO_Tabletop_Manipulation))")
    return path


@pytest.fixture
def demo_file(tmp_path, bddl):
    path = tmp_path / "demo.hdf5"
    write_episode(path, make_episode(), bddl_file=bddl)
    return path


def test_an_episode_comes_back_exactly(demo_file):
    wanted, found = make_episode(), read_episode(demo_file, 0)
    for name in (*PER_STEP, "init_state"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    for name in ("instruction", "target", "distractor", "objects", "provenance", "model_file"):
        assert getattr(found, name) == getattr(wanted, name)


def test_the_file_has_the_official_keys_shapes_and_orientation(demo_file):
    episode = make_episode()
    with h5py.File(demo_file) as file:
        data, demo = file["data"], file["data/demo_0"]
        assert set(data.attrs) >= {"env_name", "env_args", "problem_info", "bddl_file_name", "bddl_file_content",
                                   "num_demos", "total", "tag", "macros_image_convention"}
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == SENTENCE
        assert data.attrs["bddl_file_name"] == "bddl_files/libero_spatial/task.bddl"  # no path of this machine
        assert set(demo) == {"actions", "states", "robot_states", "rewards", "dones", "obs"}
        assert set(demo["obs"]) == {"agentview_rgb", "eye_in_hand_rgb", "ee_pos", "ee_ori", "ee_states",
                                    "gripper_states", "joint_states", "agentview_segmentation"}
        assert demo["robot_states"].shape == (6, 9) and demo["obs/ee_states"].shape == (6, 6)
        assert demo["dones"][()].tolist() == [0, 0, 0, 0, 0, 1]
        np.testing.assert_array_equal(demo["obs/agentview_rgb"][2], episode.agentview_rgb[2, ::-1, ::-1])
        assert demo["obs/agentview_rgb"].chunks == (1, 16, 16, 3)


def test_parts_merge_in_order_even_beyond_ten(tmp_path, bddl):
    parts = [tmp_path / "parts" / f"{i}.hdf5" for i in range(11)]
    for seed, part in enumerate(parts):
        write_episode(part, make_episode(seed=seed, steps=3), bddl_file=bddl)
    merge_episodes(parts, tmp_path / "all.hdf5")
    episodes = list(read_episodes(tmp_path / "all.hdf5"))
    assert [episode.provenance["seed"] for episode in episodes] == list(range(11))
    assert episode_count(tmp_path / "all.hdf5") == 11
    with h5py.File(tmp_path / "all.hdf5") as file:
        assert (file["data"].attrs["num_demos"], file["data"].attrs["total"]) == (11, 33)
    assert all(part.exists() for part in parts)


def test_a_failed_write_leaves_the_old_file_whole_and_no_rest(tmp_path, bddl, demo_file, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_episode(demo_file, make_episode(seed=1), bddl_file=bddl)
    assert read_episode(demo_file, 0).provenance["seed"] == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [demo_file.name]


def test_parts_of_two_tasks_and_no_parts_are_refused(tmp_path, bddl, demo_file):
    other = tmp_path / "other.hdf5"
    write_episode(other, make_episode(), bddl_file=bddl.rename(bddl.with_name("other.bddl")))
    with pytest.raises(LarError, match="another task"):
        merge_episodes([demo_file, other], tmp_path / "all.hdf5")
    with pytest.raises(LarError, match="no recorded episodes"):
        merge_episodes([], tmp_path / "all.hdf5")
    assert not (tmp_path / "all.hdf5").exists()


def test_an_episode_without_wrist_camera_and_segmentation_is_whole(tmp_path, bddl):
    bare = replace(make_episode(), eye_in_hand_rgb=None, segmentation=None, init_state=None)
    write_episode(tmp_path / "bare.hdf5", bare, bddl_file=bddl)
    found = read_episode(tmp_path / "bare.hdf5", 0)
    assert found.eye_in_hand_rgb is None and found.segmentation is None
    np.testing.assert_array_equal(found.init_state, bare.states[0])


def test_an_episode_of_a_source_without_simulator_states_is_whole(tmp_path, bddl):
    bare = replace(make_episode(), states=None, joint_states=None, init_state=None)
    write_episode(tmp_path / "bare.hdf5", bare, bddl_file=bddl)
    found = read_episode(tmp_path / "bare.hdf5", 0)
    assert found.states is None and found.joint_states is None and found.init_state is None
    np.testing.assert_array_equal(found.actions, bare.actions)


def test_the_origin_of_a_file_can_be_read_on_its_own(tmp_path, bddl, demo_file):
    assert read_origin(demo_file) == {"source": "expert", "images": "recorded", "assets": {"name": "stand-in"}}
    resized = {"source": "official", "images": "resized", "recorded_sizes": [128, 128], "revision": "f13a"}
    write_episode(tmp_path / "x.hdf5", replace(make_episode(), provenance=resized | {"task": 5}), bddl_file=bddl)
    assert read_origin(tmp_path / "x.hdf5") == resized


@pytest.mark.parametrize(("change", "message"), [
    ({"actions": np.full((6, 7), np.nan)}, "actions is not a finite number .* at step 0"),
    ({"actions": np.zeros((5, 7))}, "has 6 steps, but 5 are expected"),
    ({"actions": np.zeros((6, 6))}, r"actions has shape \(6, 6\), but \(T, 7\)"),
    ({"agentview_rgb": np.zeros((6, 16, 16, 3))}, "agentview_rgb holds float64 numbers, but uint8"),
    ({"segmentation": np.zeros((6, 8, 8), np.uint8)}, "agentview_segmentation has shape"),
    ({"segmentation": np.full((6, 16, 16), 9, np.uint8)}, "only 3 objects are named"),
    ({"instruction": "  "}, "instruction .* is empty"),
    ({"ee_pos": None}, "obs/ee_pos is missing"),
])
def test_a_wrong_episode_is_not_written(tmp_path, bddl, change, message):
    with pytest.raises(LarError, match=message):
        write_episode(tmp_path / "x.hdf5", replace(make_episode(), **change), bddl_file=bddl)
    assert not (tmp_path / "x.hdf5").exists()


def _replace(file, key, value):
    del file[key]
    file[key] = value


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: f.__delitem__("data"), "group data is missing"),
    (lambda f: f.__delitem__("data/demo_0"), "has no episode"),
    (lambda f: f.__delitem__("data/demo_0/obs/agentview_rgb"), "demo_0: obs/agentview_rgb is missing"),
    (lambda f: f.__delitem__("data/demo_0/actions"), "demo_0: actions is missing"),
    (lambda f: _replace(f, "data/demo_0/actions", np.full((6, 7), np.inf)), "demo_0, actions is not a finite"),
    (lambda f: _replace(f, "data/demo_0/actions", np.zeros((6, 7), int)), "actions holds int64 numbers"),
    (lambda f: _replace(f, "data/demo_0/obs/ee_pos", np.zeros((4, 3))), "ee_pos has 4 steps, but 6"),
    (lambda f: _replace(f, "data/demo_0/obs/agentview_rgb", np.zeros((6, 3, 16), np.uint8)), "agentview_rgb has shape"),
    (lambda f: f["data"].attrs.update(num_demos=7), "num_demos is 7, but there are 1"),
    (lambda f: f["data/demo_0"].attrs.update(num_samples=7), "num_samples is 7"),
    (lambda f: f["data/demo_0"].attrs.update(objects="{"), "attribute objects is not JSON"),
    (lambda f: (f["data/demo_0"].attrs.__delitem__("instruction"), f["data"].attrs.__delitem__("problem_info")),
     "problem_info .* missing"),
])
def test_a_malformed_file_is_named_with_its_key(demo_file, damage, message):
    with h5py.File(demo_file, "a") as file:
        damage(file)
    with pytest.raises(LarError, match=message) as error:
        list(read_episodes(demo_file))
    assert str(demo_file) in str(error.value)


def test_a_truncated_a_foreign_and_a_missing_file_are_named(tmp_path, demo_file):
    whole = demo_file.read_bytes()
    demo_file.write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.hdf5").write_text("not HDF5")
    (tmp_path / "empty.hdf5").touch()
    (tmp_path / "pointer.hdf5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    for path, message in ((demo_file, "damaged or of another kind"), (tmp_path / "text.hdf5", "damaged or of another kind"),
                          (tmp_path / "empty.hdf5", "damaged or of another kind"),
                          (tmp_path / "pointer.hdf5", "pointer of Git LFS: fetch the content with `git lfs pull`"),
                          (tmp_path / "none.hdf5", "no demonstration file")):
        with pytest.raises(LarError, match=message):
            list(read_episodes(path))


def test_damaged_pixels_are_noticed(demo_file):
    with h5py.File(demo_file) as file:
        place = file["data/demo_0/obs/agentview_rgb"].id.get_chunk_info(3)
    content = bytearray(demo_file.read_bytes())
    content[place.byte_offset:place.byte_offset + 40] = bytes(40)
    demo_file.write_bytes(content)
    with pytest.raises(LarError, match="demo_0: obs/agentview_rgb cannot be read, the file is damaged"):
        list(read_episodes(demo_file))


def test_a_locked_file_is_healthy(demo_file):
    code = f"from lar_core.data.demos import read_episodes; list(read_episodes({str(demo_file)!r}))"
    with demo_file.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another program holds a lock on it" in done.stderr and "HDF5_USE_FILE_LOCKING=FALSE" in done.stderr
    assert "damaged" not in done.stderr and "delete" not in done.stderr.splitlines()[-1]
    assert len(list(read_episodes(demo_file))) == 1


def test_a_file_packed_by_a_filter_that_is_not_there_is_healthy(demo_file):
    """32008 is bitshuffle's number; the chunk is never unpacked, so what is in it does not matter."""
    with h5py.File(demo_file, "a") as file:
        group = file["data/demo_0/obs"]
        del group["ee_pos"]
        packed = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        packed.set_chunk((6, 3))
        packed.set_filter(32008, h5py.h5z.FLAG_OPTIONAL, (0, 0))
        made = h5py.h5d.create(group.id, b"ee_pos", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((6, 3)), packed)
        made.write_direct_chunk((0, 0), bytes(144), 0)
    with pytest.raises(LarError, match="demo_0: obs/ee_pos could not be read.*pip install hdf5plugin") as error:
        list(read_episodes(demo_file))
    assert "damaged" not in str(error.value) and "delete" not in str(error.value)


@pytest.mark.parametrize(("refused", "words"), [
    (PermissionError(errno.EACCES, "Permission denied"), "this user has no permission"),
    (OSError(errno.EIO, "Input/output error"), "the disk or network drive failed"),
    (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "not mounted"),
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (OSError(errno.ENOLCK, "No locks available"), "HDF5_USE_FILE_LOCKING"),
    (OSError(errno.EXDEV, "Invalid cross-device link"), "nothing is known to be wrong with the content"),
    (MemoryError(), "not enough memory"),
    (OSError("Unable to open file (something new)"), "does not say that its content is wrong"),
])
@pytest.mark.parametrize("place", ["file", "array"])
def test_what_the_system_refuses_is_passed_on_with_its_own_remedy(demo_file, monkeypatch, refused, words, place):
    def refuse(*_, **__):
        raise refused
    if place == "file" and not isinstance(refused, MemoryError):
        monkeypatch.setattr(h5py, "File", refuse)
    else:
        monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    with pytest.raises(LarError, match=words) as error:
        list(read_episodes(demo_file))
    assert "damaged" not in str(error.value) and str(demo_file) in str(error.value)
    assert place == "file" or "demo_0" in str(error.value)


def test_an_episode_out_of_range_is_refused(demo_file):
    with pytest.raises(LarError, match="there is no episode 1"):
        read_episode(demo_file, 1)


# Pictures of another size: square, antialiased, and never touched where the size is right.

def test_an_episode_of_the_right_size_stays_as_it_is():
    episode = make_episode(size=16, wrist=8)
    same = resize_episode(episode, 16, 8)
    assert same.agentview_rgb is episode.agentview_rgb and same.eye_in_hand_rgb is episode.eye_in_hand_rgb
    assert same.segmentation is episode.segmentation


def test_both_cameras_get_their_size_and_resampled_labels_are_dropped():
    episode = make_episode(size=16, wrist=16)
    other = resize_episode(episode, 32, 8)
    assert other.agentview_rgb.shape == (6, 32, 32, 3) and other.eye_in_hand_rgb.shape == (6, 8, 8, 3)
    assert other.agentview_rgb.dtype == np.uint8 and other.segmentation is None
    assert other.actions is episode.actions


def test_a_camera_that_is_off_is_left_out_and_one_that_is_missing_is_named():
    assert resize_episode(make_episode(), 16, 0).eye_in_hand_rgb is None
    with pytest.raises(LarError, match="no wrist pictures: set wrist_size to 0"):
        resize_episode(replace(make_episode(), eye_in_hand_rgb=None), 16, 8)


def test_fine_stripes_become_grey_instead_of_a_moire():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    inside = resize(stripes, 16)[:, :, 2:-2].astype(int)
    assert abs(inside - 127).max() <= 2


def test_up_and_down_again_is_nearly_the_same_and_nothing_is_turned():
    y, x = np.mgrid[:32, :32]
    smooth = np.stack([4 * x + 2 * y, 7 * x, 7 * y], axis=-1).astype(np.uint8)[None]
    assert abs(resize(resize(smooth, 64), 32).astype(int) - smooth).max() <= 3
