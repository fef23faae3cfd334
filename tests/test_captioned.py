"""Random scenes: what is written down of them is what their pictures show."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import wait_until

from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.scene import captioned
from lar_core.scene.captioned import RGB, Scenes, Studio, render_scenes, settled_scenes, shard_paths
from lar_core.scene.sentences import COLOURS, FREE, RELATIONS, THINGS

SIZE, WRIST = 64, 32


@pytest.fixture(scope="module")
def studio():
    studio = Studio(SIZE, WRIST)
    yield studio
    studio.env.close()


@pytest.fixture(scope="module")
def shots(studio):
    return [studio.shoot(np.random.default_rng([0, number])) for number in range(60)]


def pixels(shot, thing):
    return np.argwhere(shot["labels"] == thing + 1) * 2.0  # labels have half the picture's size


def test_the_same_number_is_the_same_scene_whatever_was_drawn_before(studio, shots):
    again = studio.shoot(np.random.default_rng([0, 7]))
    assert all(np.array_equal(again[name], shots[7][name]) for name in again)
    other = studio.shoot(np.random.default_rng([1, 7]))
    assert not np.array_equal(other["images"], again["images"])


def test_what_is_seen_of_a_thing_lies_in_its_box(shots):
    seen = 0
    for shot in shots:
        for thing in range(len(THINGS)):
            drawn_out = THINGS[thing] == "cabinet" and RELATIONS.index(("fixed", "drawer")) in shot["relations"]
            if len(found := pixels(shot, thing)) and not drawn_out:
                top, left, bottom, right = shot["boxes"][thing]
                assert (found >= np.array([top, left]) - 2.5).all() and (found <= np.array([bottom, right]) + 1.5).all()
                seen += 1
    assert seen > 300


def test_boxes_hold_hidden_parts_too(shots):
    """A bowl's box is as large behind the arm as beside it, so that its middle is the bowl's."""
    heights = [shot["boxes"][0, 2] - shot["boxes"][0, 0] for shot in shots if shot["held"] != 0]
    assert min(heights) > SIZE / 16


def test_relations_are_true_of_the_bowl_and_not_of_the_other(shots):
    for shot in shots:
        for bowl in (0, 1):
            kind, reference = RELATIONS[shot["relations"][bowl]]
            if kind in ("next_to", "on") and shot["held"] < 0:
                thing = {"cookies_1": 2, "glazed_rim_porcelain_ramekin_1": 3, "plate_1": 4}[reference]
                middles = shot["boxes"].reshape(-1, 2, 2).mean(axis=1)
                away = [np.linalg.norm((middles[one] - middles[thing]) @ shot["metres"][thing]) for one in (0, 1)]
                assert away[bowl] < 0.2 and away[1 - bowl] > away[bowl]
        assert len(set(shot["relations"].tolist())) == 2


def test_colours_are_drawn_in_half_of_the_scenes_and_shown(shots):
    drawn = [shot for shot in shots if tuple(shot["colours"]) != (0, 0, -1, -1, -1)]
    assert 0.3 < len(drawn) / len(shots) < 0.7
    right = total = 0
    for shot in shots:
        for bowl in (0, 1):
            found = shot["labels"].repeat(2, 0).repeat(2, 1) == bowl + 1
            if found.sum() > 40:
                mean = shot["images"][found].mean(axis=0) / 255
                nearest = min(COLOURS, key=lambda name: np.linalg.norm(mean - np.array(RGB[name]) * 0.9))
                right, total = right + (nearest == COLOURS[shot["colours"][bowl]]), total + 1
    assert total > 60 and right / total > 0.8


def test_the_hand_is_anywhere_and_sometimes_holds_a_bowl(shots):
    held = [shot for shot in shots if shot["held"] >= 0]
    assert 2 <= len(held) <= 20
    assert sum((shot["wrist_labels"] == shot["held"] + 1).any() for shot in held) >= 0.7 * len(held)
    assert len({shot["wrist"].tobytes() for shot in shots}) == len(shots)


def test_metres_are_those_of_the_camera(studio):
    place = np.array([[0.05, 0.1, 0.9]])
    before = captioned.project(studio.model, studio.data, place, SIZE)
    moved = captioned.project(studio.model, studio.data, place + [0.01, -0.02, 0], SIZE)
    back = (moved - before)[0] @ studio._metres(place)[0]
    np.testing.assert_allclose(back, [0.01, -0.02], atol=1e-3)


def test_scenes_are_rendered_once_and_read_row_by_row(tmp_path, monkeypatch, studio, shots, capsys):
    monkeypatch.setattr(captioned, "SHARD", 3)
    monkeypatch.setattr(captioned, "SETTLED", 1)
    monkeypatch.setattr(captioned, "_studio", lambda *_: studio)

    class InProcess:
        def submit(self, work, *arguments):
            work(*arguments)
            return self

        def result(self):
            return None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(captioned, "pool", lambda _: InProcess())
    config = make_config("action_only", "micro")
    paths = render_scenes(config, tmp_path, 5)
    assert [path.name for path in paths] == ["shard_0000.safetensors", "shard_0001.safetensors", "settled.safetensors"]
    scenes = Scenes(paths[:-1])
    assert len(scenes) == 6
    assert np.array_equal(scenes.rows("images", [4, 0])[0], shots[4]["images"])
    assert scenes.facts(4).relations == tuple(shots[4]["relations"])
    settled = settled_scenes(paths[-1])
    assert settled["asked"].shape == (19, 3)  # ten wide scenes, nine tasks that have a pair
    assert f"3 shards of 3 scenes are missing: 0.0 GB in {paths[0].parent}" in capsys.readouterr().out
    before = [path.stat().st_mtime_ns for path in paths]
    render_scenes(config, tmp_path, 5)
    assert [path.stat().st_mtime_ns for path in paths] == before and "missing" not in capsys.readouterr().out

    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    with pytest.raises(LarError, match="cannot be read .*: delete this file, it will be rendered again"):
        Scenes(paths[:-1])


def test_a_kill_while_rendering_leaves_whole_shards_only(tmp_path):
    words = [sys.executable, "-m", "lar_core", "pretrain", "--profile", "micro", "--workers", "1", "--data-dir",
             str(tmp_path / "killed"), "--run-dir", str(tmp_path / "run"), "--set", "scenes=1000", "samples=8"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: list((tmp_path / "killed").rglob("*shard_0000*")))  # being written, or just done
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    whole = [path for path in (tmp_path / "killed").rglob("*.safetensors") if not path.name.startswith(".")]
    assert all(len(Scenes([path])) == captioned.SHARD for path in whole)
    assert len(whole) < 3  # of two shards and the settled ones


def test_the_path_says_sizes_and_seed(tmp_path):
    paths = {str(shard_paths(make_config("action_only", "micro", seed=seed, wrist_size=wrist), tmp_path, 1)[0])
             for seed in (0, 1) for wrist in (16, 32)}
    assert len(paths) == 4


def test_free_bowls_stand_nowhere_that_words_name(shots):
    free = [(shot, bowl) for shot in shots for bowl in (0, 1) if shot["relations"][bowl] == FREE and shot["held"] < 0]
    assert free
    for shot, bowl in free:
        middles = shot["boxes"].reshape(-1, 2, 2).mean(axis=1)
        away = [np.linalg.norm((middles[bowl] - middles[thing]) @ shot["metres"][thing]) for thing in (2, 3, 4)]
        assert min(away) > 0.09
