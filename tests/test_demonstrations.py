"""Other people's demonstrations become files like our own: same batches for the same content, resized or rendered again."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from moving import moving_episode, write_hdf5
from PIL import Image
from test_demos import make_episode
from test_lerobot import write_lerobot

from lar_core import cli
from lar_core.data import hub as downloading
from lar_core.data.dataset import DemoDataset, Stats, load_split
from lar_core.data.demos import PER_STEP, merge_episodes, plain, read_episodes, read_origin, write_episode
from lar_core.data.hub import entry
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import files_below, write_text
from lar_core.scene import demonstrations as module
from lar_core.scene.demonstrations import KEYS, converted_paths, demonstrations, render_again
from lar_core.scene.env import SpatialEnv, instruction
from lar_core.scene.setup import BOWL, STANDIN, bddl_file, task_names

SIZES = {"size": 64, "wrist": 32}  # those of the micro profile


def write_official(path, episodes):
    """As LIBERO's scripts/create_dataset.py writes: each row holds an action and what was seen *after* it."""
    sentence = episodes[0].instruction.replace("pick up the", "Pick the akita")  # as LIBERO's task files have it
    return write_hdf5(path, episodes, alignment="after", pictures="rotated", sentence=sentence,
                      attributes={"macros_image_convention": "opengl", "num_demos": len(episodes)})


def file_name(task: int) -> str:
    return f"libero_spatial/{task_names()[task]}_demo.hdf5"


def episodes_of(task: int, count: int = 3, **sizes):
    return [moving_episode(60 + seed, 10 * task + seed, **(SIZES | sizes), sentence=instruction(task))
            for seed in range(count)]


@pytest.fixture
def threads(monkeypatch):
    """Threads instead of worker processes: for tests that do not render."""
    @contextmanager
    def pool(workers):
        with ThreadPoolExecutor(workers) as executor:
            yield executor
    monkeypatch.setattr(module, "pool", pool)


@pytest.fixture
def unchecked(monkeypatch):
    """The manifest without checksums, since these tests make up the contents."""
    monkeypatch.setattr(downloading, "entry", lambda key: entry(key).replace(sha256=None))


def make(tmp_path, **changes):
    config = make_config(profile="micro", **{"demos_per_task": 3, **changes})
    return demonstrations(config, tmp_path, workers=2, progress=False)


def batches(paths):
    train, heldout = load_split(paths, 0.3, seed=0)
    dataset = DemoDataset(train + heldout, Stats.of(train), image_size=64, wrist_size=32, chunk=4)
    return dataset.batch(range(len(dataset)))


@pytest.fixture
def our_batches(tmp_path):
    parts = [tmp_path / f"{number}.hdf5" for number in range(3)]
    for part, episode in zip(parts, episodes_of(5)):
        write_episode(part, episode, bddl_file=bddl_file(5))
    merge_episodes(parts, tmp_path / "ours.hdf5")
    return batches([tmp_path / "ours.hdf5"])


@pytest.mark.parametrize("demos", ["official", "lerobot"])
def test_batches_equal_those_of_our_own_files_for_the_same_content(tmp_path, threads, our_batches, demos):
    if demos == "official":
        write_official(tmp_path / "official" / file_name(5), episodes_of(5))
    else:
        write_lerobot(tmp_path / "lerobot", episodes_of(5), "v3.0")
    theirs = batches(make(tmp_path, demos=demos))
    assert set(theirs) == set(our_batches)
    assert theirs.pop("instructions") == our_batches.pop("instructions")
    assert all(torch.equal(theirs[name], our_batches[name]) for name in theirs)


def test_conventions_are_of_the_whole_folder_printed_in_one_line_and_written_into_every_episode(tmp_path, threads, capsys):
    """Task 5's own file shows neither gripper nor pictures; task 2's, from the same copy, does."""
    closed = [replace(moving_episode(60, seed, **SIZES, sentence=instruction(5), closed=True), agentview_rgb=still)
              for seed in range(2) for still in [moving_episode(60, **SIZES).agentview_rgb[[0] * 60]]]
    copy = {"gripper": "1/0", "pictures": "mirrored", "sentence": None}
    write_hdf5(tmp_path / "official" / file_name(5), closed, leave_out=("states", "joint_states"), **copy)
    with pytest.raises(LarError, match="gripper .all commands lie between 0 and 0.*--set demos_conventions=gripper="):
        make(tmp_path, demos="official")
    write_hdf5(tmp_path / "official" / file_name(2), episodes_of(2), **copy)
    episodes = list(read_episodes(make(tmp_path, demos="official")[0]))
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Conventions")]
    shown = ("alignment before", "gripper 1/0", "pictures mirrored", "actions units")
    assert len(line) == 1 and all(word in line[0] for word in shown)
    for episode, wanted in zip(episodes, closed, strict=True):
        assert episode.provenance["conventions"]["gripper"].startswith("1/0: opening 3 steps later")
        np.testing.assert_array_equal(episode.actions[:, 6], 1.0)
        np.testing.assert_array_equal(episode.agentview_rgb, wanted.agentview_rgb)
    assert read_origin(make(tmp_path, demos="official")[0])["conventions"]["pictures"].startswith("mirrored")


def test_what_is_stated_has_files_of_its_own(tmp_path, threads):
    write_hdf5(tmp_path / "official" / file_name(5), episodes_of(5))
    shown, stated = (make(tmp_path, demos="official", demos_conventions=text)[0] for text in ("", "alignment=after"))
    assert shown != stated and shown.exists()
    assert [len(episode) for episode in read_episodes(stated)] == [59, 60, 61]
    assert "against the evidence for before" in read_origin(stated)["conventions"]["alignment"]


def test_files_may_be_called_and_put_otherwise_than_at_the_hub(tmp_path, threads):
    name = task_names()[5].replace("pick", "Pick")
    write_hdf5(tmp_path / "official" / "libero_spatial_no_noops" / f"{name}.h5", episodes_of(5), sentence=None)
    assert len(list(read_episodes(make(tmp_path, demos="official")[0]))) == 3
    write_official(tmp_path / "official" / file_name(5), episodes_of(5))
    with pytest.raises(LarError, match="are both of task 5: leave one copy"):
        make(tmp_path, demos="official", demos_per_task=2)


@pytest.mark.parametrize("other", [2, 8])
def test_a_file_with_another_tasks_name_is_refused(tmp_path, threads, other):
    write_official(tmp_path / "official" / file_name(5), episodes_of(other))
    with pytest.raises(LarError, match="recorded for the sentence 'Pick the akita .* not 'pick up .*on the ramekin"):
        make(tmp_path, demos="official")


def test_a_task_without_a_file_is_named(tmp_path, threads):
    write_official(tmp_path / "official" / file_name(5), episodes_of(5))
    with pytest.raises(LarError, match="holds no file of task 2, pick_up_the_black_bowl_from_table_center"):
        make(tmp_path, demos="official", tasks=(5, 2))


def test_every_sentence_of_liberos_task_files_is_the_benchmarks(tmp_path):
    for task in range(10):
        written = re.search(r"\(:language (.*)\)", bddl_file(task).read_text()).group(1)
        assert plain(written) == plain(f"{written}.".upper()) == instruction(task)


def test_only_the_files_of_the_profiles_tasks_are_fetched_and_once(tmp_path, threads, unchecked, hub):
    for task in (2, 5, 8):
        write_official(tmp_path / "hub" / file_name(task), episodes_of(task))
    files = {file_name(task): (tmp_path / "hub" / file_name(task)).read_bytes() for task in (2, 5, 8)}
    source = entry(KEYS["official"])
    hub.add(source.id, files, repo_type="dataset", commit=source.revision)
    paths = make(tmp_path, demos="official", tasks=(5, 2))
    assert [path.name for path in paths] == [file_name(task).split("/")[1] for task in (5, 2)]
    assert [next(read_episodes(path)).instruction for path in paths] == [instruction(5), instruction(2)]
    assert sorted(line.rsplit("/", 1)[1] for line in hub.log if "GET" in line and "/resolve/" in line) == sorted(
        file_name(task).split("/")[1] for task in (2, 5))
    asked = len(hub.log)
    assert make(tmp_path, demos="official", tasks=(5, 2)) == paths and len(hub.log) == asked
    assert read_origin(paths[0])["revision"] == source.revision


def test_of_lerobots_copy_the_metadata_and_the_files_of_the_tasks_are_fetched(tmp_path, threads, unchecked, hub):
    write_lerobot(tmp_path / "hub", [*episodes_of(3, 2), *episodes_of(5, 2), *episodes_of(8, 2)], "v3.0")
    files = {str(path.relative_to(tmp_path / "hub")): path.read_bytes() for path in (tmp_path / "hub").rglob("*.*")}
    source = entry(KEYS["lerobot"])
    hub.add(source.id, files, repo_type="dataset", commit=source.revision)
    (path,) = make(tmp_path, demos="lerobot")
    assert [episode.instruction for episode in read_episodes(path)] == [instruction(5)] * 2
    assert {line.rsplit("/", 1)[1] for line in hub.log if "GET" in line and "/data/" in line} == {"file-001.parquet"}


def linked(tmp_path, kind):
    """DATA/official as people lay it out where disks are small: a link to a folder, in it, or to every file."""
    far, near = tmp_path / "far", tmp_path / "official"
    write_text(far / "libero_spatial" / "demo.hdf5", "content")
    if kind == "the folder":
        near.symlink_to(far)
    elif kind == "a folder in it":
        near.mkdir()
        (near / "libero_spatial").symlink_to(far / "libero_spatial")
    else:
        (near / "libero_spatial").mkdir(parents=True)
        (near / "libero_spatial" / "demo.hdf5").symlink_to(far / "libero_spatial" / "demo.hdf5")
    return far / "libero_spatial" / "demo.hdf5"


LINKS = ["the folder", "a folder in it", "a file"]


def version(tmp_path):
    return module._version(make_config(profile="micro", demos="official").profile, tmp_path)


@pytest.mark.parametrize("kind", LINKS)
def test_data_behind_a_link_are_part_of_the_version(tmp_path, kind):
    target = linked(tmp_path, kind)
    before = version(tmp_path)
    assert version(tmp_path) == before
    target.write_text("other content")
    assert version(tmp_path) != before


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_that_leads_elsewhere_is_another_version_even_to_the_same_size_and_time(tmp_path, kind):
    target = linked(tmp_path, kind)
    before = version(tmp_path)
    (tmp_path / "far").rename(tmp_path / "farther")
    shutil.copytree(tmp_path / "farther", tmp_path / "elsewhere")
    (tmp_path / "far").symlink_to(tmp_path / "elsewhere")
    assert target.stat().st_mtime_ns == (tmp_path / "farther/libero_spatial/demo.hdf5").stat().st_mtime_ns
    assert version(tmp_path) != before


@pytest.mark.parametrize("kind", LINKS)
def test_data_behind_a_link_are_converted(tmp_path, threads, kind):
    written = write_official(tmp_path / "recorded.hdf5", episodes_of(5))
    shutil.move(written, linked(tmp_path, kind).parent / Path(file_name(5)).name)
    if kind == "a file":
        (tmp_path / "official" / file_name(5)).symlink_to(tmp_path / "far" / file_name(5))
    assert len(list(read_episodes(make(tmp_path, demos="official")[0]))) == 3


def test_the_folder_of_what_is_converted_tells_versions_apart_by_eight_digits(tmp_path, threads):
    write_official(tmp_path / "official" / file_name(5), episodes_of(5))
    version = make(tmp_path, demos="official")[0].relative_to(tmp_path / "demos").parts[0]
    assert re.fullmatch("official-local[0-9a-f]{8}", version)


def test_parts_that_a_kill_left_beside_a_finished_file_are_removed(tmp_path, threads):
    write_official(tmp_path / "official" / file_name(5), episodes_of(5))
    path = make(tmp_path, demos="official")[0]
    write_text(path.with_name(f"{path.stem}.parts") / "demo_00000.hdf5", "left")
    assert make(tmp_path, demos="official") == [path] and list(path.parent.glob("*.parts")) == []


def test_links_in_a_circle_are_followed_once(tmp_path):
    linked(tmp_path, "a folder in it")
    (tmp_path / "far" / "libero_spatial" / "round").symlink_to(tmp_path / "official")
    (name, path), = files_below(tmp_path / "official")
    assert name.startswith("libero_spatial/demo.hdf5 -> ") and path.read_text() == "content"


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_to_what_is_gone_is_named_and_nothing_else_is_taken_instead(tmp_path, kind):
    linked(tmp_path, kind)
    shutil.rmtree(tmp_path / "far")
    with pytest.raises(LarError, match="official.* is a link to .*far.* connect the drive"):
        make(tmp_path, demos="official")


def test_two_at_once_convert_every_episode_once(tmp_path, threads, monkeypatch):
    write_official(tmp_path / "official" / file_name(5), episodes_of(5))
    convert, made = module._make_part, []
    monkeypatch.setattr(module, "_make_part", lambda *job: (made.append(job[3]), convert(*job)))
    with ThreadPoolExecutor(2) as executor:
        one, other = executor.map(lambda _: make(tmp_path, demos="official"), range(2))
    assert one == other and sorted(made) == [0, 1, 2]
    assert [file.name for file in one[0].parent.iterdir()] == [one[0].name]


def test_another_size_is_resized_and_the_choice_is_recorded(tmp_path, threads):
    write_official(tmp_path / "official" / file_name(5), episodes_of(5, size=128, wrist=128))
    episodes = list(read_episodes(make(tmp_path, demos="official")[0]))
    assert {episode.agentview_rgb.shape[1:3] for episode in episodes} == {(64, 64)}
    assert {episode.eye_in_hand_rgb.shape[1:3] for episode in episodes} == {(32, 32)}
    made = episodes[1].provenance
    assert (made["source"], made["images"], made["recorded_sizes"], made["episode"]) == (
        "official", "resized", [128, 128], 1)
    assert made["revision"].startswith("local")


def test_at_most_the_demonstrations_asked_for_are_taken_in_order(tmp_path, threads):
    write_official(tmp_path / "official" / file_name(5), episodes_of(5, 4))
    assert [len(episode) for episode in read_episodes(make(tmp_path, demos="official", demos_per_task=2)[0])] == [60, 61]
    assert len(list(read_episodes(make(tmp_path, demos="official", demos_per_task=9)[0]))) == 4


def test_what_was_converted_before_a_kill_is_not_converted_again(tmp_path, threads, monkeypatch):
    write_official(tmp_path / "official" / file_name(5), episodes_of(5))
    convert = module._make_part

    def killed_at_the_second(profile, task, origin, number, part):
        if number == 1:
            raise KeyboardInterrupt
        convert(profile, task, origin, number, part)
    monkeypatch.setattr(module, "_make_part", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, demos="official")
    made = []
    monkeypatch.setattr(module, "_make_part", lambda *job: (made.append(job[3]), convert(*job)))
    (path,) = make(tmp_path, demos="official")
    assert 0 not in made and 1 in made
    assert [episode.provenance["episode"] for episode in read_episodes(path)] == [0, 1, 2]
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no parts are left


def test_a_disk_too_small_for_all_is_noticed_after_the_first(tmp_path, threads, monkeypatch):
    write_official(tmp_path / "official" / file_name(5), episodes_of(5))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    with pytest.raises(LarError, match="Converting the demonstrations of task 5 takes .* GB in .*demos"):
        make(tmp_path, demos="official")
    assert [part.name for part in tmp_path.rglob("demo_*.hdf5")] == ["demo_00000.hdf5"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"demos": "official", "placement": "wide"}, "recorded at official placements, but placement is 'wide'"),
    ({"demos": "lerobot", "render_demos": True}, "no simulator states to render again from"),
])
def test_what_the_origin_cannot_serve_is_refused(tmp_path, changes, message):
    with pytest.raises(LarError, match=message):
        make(tmp_path, **changes)


def test_a_task_that_the_manifest_does_not_list_is_refused(tmp_path, monkeypatch, hub):
    monkeypatch.setattr(downloading, "entry", lambda key: entry(key).replace(files=(file_name(2),)))
    with pytest.raises(LarError, match="on_the_ramekin.* is not listed in data_manifest.yaml"):
        make(tmp_path, demos="official")


def test_every_setting_that_changes_the_files_changes_their_path(tmp_path):
    official = {"demos": "official"}
    changes = [{"image_size": 128}, {"wrist_size": 16}, {"demos_per_task": 3}, {"demos": "lerobot"}, {"tasks": (3,)},
               {"render_demos": True}]
    profiles = [make_config(profile="micro", **(official | change)).profile for change in [{}, *changes]]
    paths = {path for profile in profiles for path in converted_paths(profile, tmp_path).values()}
    assert len(paths) == 1 + len(changes)


@pytest.fixture(scope="module")
def recorded():
    """A real demonstration at two sizes: 12 steps of the simulator, with the cabinet where seed 7 puts it."""
    env, rng = SpatialEnv(5, image_size=128, wrist_size=128, segmentation=True), np.random.default_rng(0)
    observation, _ = env.reset(seed=7)
    rows = []
    for _ in range(12):
        action = np.append(rng.uniform(-1, 1, 6), -1.0)
        env.set_state(env.state())  # a step ends with poses that lag one substep behind the state
        small = {"small": env.render_camera("agentview", 64), "seen": env.segment(64),
                 "hand": env.render_camera("robot0_eye_in_hand", 32)}
        rows.append(observation | small | {"actions": action, "states": env.state()})
        observation, *_ = env.step(action)
    model_file = env.stock.sim.model.get_xml()
    env.close()
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, model_file


def test_rendered_again_the_pictures_are_those_that_the_simulator_drew(tmp_path, recorded):
    arrays, model_file = recorded
    names = ("actions", "states", "agentview_rgb", "eye_in_hand_rgb", "ee_pos", "ee_ori", "gripper_states",
             "joint_states")
    episode = replace(make_episode(), **{name: arrays[name] for name in names}, segmentation=None, objects=(),
                      target="", distractor="", model_file=model_file)
    write_official(tmp_path / "official" / file_name(5), [episode])
    (path,) = make(tmp_path, demos="official", render_demos=True, demos_conventions="gripper=-1/1,actions=units")
    (made,) = read_episodes(path)
    np.testing.assert_array_equal(made.states, arrays["states"])
    np.testing.assert_array_equal(made.agentview_rgb, arrays["small"])
    np.testing.assert_array_equal(made.eye_in_hand_rgb, arrays["hand"])
    np.testing.assert_array_equal(made.segmentation, arrays["seen"])
    dataset = DemoDataset([made], Stats.of([made]), image_size=64, wrist_size=32, chunk=4)
    assert dataset.batch([0])["regions"].sum(dim=(2, 3)).min() > 0  # both bowls are seen
    assert made.objects[0] == made.target == "akita_black_bowl_1" and made.distractor == "akita_black_bowl_2"
    assert (made.provenance["images"], made.provenance["assets"]["name"]) == ("rendered", "standin")


def test_pictures_that_have_the_size_already_stay_and_only_segmentation_is_drawn(tmp_path, recorded, monkeypatch):
    shutil.copytree(STANDIN, tmp_path / "pack")  # to be taken for LIBERO's own
    bowl = tmp_path / "pack" / BOWL
    bowl.write_text(bowl.read_text() + "\n")
    monkeypatch.setenv("LAR_LIBERO_ASSETS", str(tmp_path / "pack"))
    arrays, model_file = recorded
    seen = arrays["small"].copy()
    seen[:, 0, 0] = 7  # as no simulator draws it
    own = {name: arrays[name] for name in PER_STEP if name in arrays} | {
        "agentview_rgb": seen, "eye_in_hand_rgb": arrays["hand"], "segmentation": None}
    episode = replace(make_episode(), **own, objects=(), target="", distractor="", model_file=model_file)
    write_official(tmp_path / "official" / file_name(5), [episode])
    (path,) = make(tmp_path, demos="official", render_demos=True, demos_conventions="gripper=-1/1,actions=units")
    (made,) = read_episodes(path)
    np.testing.assert_array_equal(made.agentview_rgb, seen)
    np.testing.assert_array_equal(made.eye_in_hand_rgb, arrays["hand"])
    np.testing.assert_array_equal(made.segmentation, arrays["seen"])
    assert (made.provenance["images"], made.provenance["assets"]["name"]) == ("recorded", "official")
    assert made.target == "akita_black_bowl_1"


def test_without_states_or_scene_description_nothing_is_rendered(recorded):
    env = SpatialEnv(5, image_size=64, wrist_size=32)
    for missing, message in (({"states": None}, "no simulator states"), ({"model_file": ""}, "where wooden_cabinet_1")):
        with pytest.raises(LarError, match=message):
            render_again(env, replace(make_episode(), **({"model_file": recorded[1]} | missing)))
    env.close()


@pytest.mark.parametrize(("alignment", "pictures"), [("before", "rotated"), ("after", "mirrored")])
def test_a_state_is_drawn_beside_its_stored_picture_and_says_how_that_lies(tmp_path, recorded, capsys, alignment, pictures):
    """Twelve random steps: too few changes to follow, but a drawn state tells."""
    arrays, model_file = recorded
    episode = replace(make_episode(), **{name: arrays[name] for name in PER_STEP if name in arrays}, segmentation=None,
                      model_file=model_file)
    path = write_hdf5(tmp_path / file_name(5), [episode], alignment=alignment, pictures=pictures)
    words = ["check-demos", str(path), "--picture-dir", str(tmp_path), "--set",
             "demos_conventions=gripper=-1/1,actions=units"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, value in (("alignment", alignment), ("pictures", pictures), ("gripper", "-1/1"), ("actions", "units")):
        assert any(line.split()[:2] == [name, value] for line in lines), name
    (picture,) = (line.rsplit(": ", 1)[1] for line in lines if "as drawn here: " in line)
    stored_picture, turned_picture, drawn = np.hsplit(np.asarray(Image.open(picture)), 3)
    np.testing.assert_array_equal(turned_picture, episode.agentview_rgb[6])
    assert np.abs(turned_picture.astype(int) - drawn).mean() < 1 < np.abs(stored_picture.astype(int) - drawn).mean()


def test_what_is_not_shown_is_an_error_after_all_that_is(tmp_path, capsys):
    write_lerobot(tmp_path / "x", episodes_of(5), "v3.0")
    assert cli.main(["check-demos", str(tmp_path / "x")]) == 0
    still = [replace(episode, agentview_rgb=episode.agentview_rgb[[0] * len(episode)]) for episode in episodes_of(5)]
    write_lerobot(tmp_path / "y", still, "v3.0")
    assert cli.main(["check-demos", str(tmp_path / "y")]) == 2
    out, error = capsys.readouterr()
    assert "pictures  UNKNOWN" in out and "gripper   -1/1" in out and "no simulator states" in out
    assert "pictures (nothing moves in the pictures) is one of upright, rotated, flipped, mirrored" in error
    assert cli.main(["check-demos", str(tmp_path / "y"), "--set", "demos_conventions=pictures=upright"]) == 0
