"""Conventions of other people's demonstrations: found in what they hold, the same for all of them, or asked for."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from moving import GRIPPERS, ROBOMIMIC, TURNS, moving_episode, stored, write_hdf5
from scipy.spatial.transform import Rotation

from lar_core.data.conventions import decide
from lar_core.data.demos import conventions_of, plain, raw_demos, read_episodes, to_episode
from lar_core.data.raw import Raw
from lar_core.run.config import make_config
from lar_core.run.conventions import CONVENTIONS, stated_conventions
from lar_core.run.errors import LarError


def raw(episode, source="a", told=None, **conventions) -> Raw:
    arrays = stored(episode, **conventions)
    pictures = {name: arrays[name] for name in ("agentview_rgb", "eye_in_hand_rgb")}
    return Raw(where=source, source=source, actions=arrays["actions"], pictures=lambda wanted: pictures,
               ee_pos=arrays["ee_pos"], ee_ori=arrays["ee_ori"], fingers=arrays["gripper_states"],
               joint_states=arrays.get("joint_states"), states=arrays.get("states"), told=told or {})


def verdict(raws, name, **stated):
    return next(found for found in decide(raws, stated).verdicts if found.name == name)


EPISODES = [moving_episode(seed=seed) for seed in range(4)]
BARE = [replace(episode, states=None, joint_states=None) for episode in EPISODES]


@pytest.mark.parametrize("alignment", ["before", "after"])
@pytest.mark.parametrize("episodes", [EPISODES, BARE], ids=["simulator states", "motion alone"])
def test_alignment_is_read_from_states_or_from_the_motion_that_commands_cause(episodes, alignment):
    assert verdict([raw(episode, alignment=alignment) for episode in episodes], "alignment").value == alignment


@pytest.mark.parametrize("pictures", TURNS)
def test_pictures_lie_as_the_hand_moves_in_them(pictures):
    assert verdict([raw(episode, pictures=pictures) for episode in BARE], "pictures").value == pictures


@pytest.mark.parametrize("convention", GRIPPERS)
def test_the_gripper_is_read_from_what_the_fingers_do_in_all_demonstrations_together(convention):
    """One that is closed throughout does not turn the others, nor is it turned."""
    raws = [raw(episode, gripper=convention) for episode in (moving_episode(seed=9, closed=True), *BARE)]
    assert verdict(raws, "gripper").value == convention
    assert verdict(raws[:1], "gripper").value == ""


@pytest.mark.parametrize("actions", ["units", "metres"])
def test_the_scale_of_actions_is_read_from_the_motion_achieved(actions):
    assert verdict([raw(episode, actions=actions) for episode in BARE], "actions").value == actions


@pytest.mark.parametrize(("change", "evidence"), [
    (lambda a: a * [50, 50, 50, 5, 5, 5, 1], "outside"),  # millimetres
    (lambda a: a * [1, 1, 1, 57, 57, 57, 1], "outside"),  # degrees
    (lambda a: a * [0.3, 0.3, 0.3, 1, 1, 1, 1], "m achieved a step per number"),  # neither units nor metres
])
def test_actions_of_no_known_scale_are_asked_for(change, evidence):
    raws = [replace(one, actions=change(one.actions)) for one in map(raw, BARE)]
    found = verdict(raws, "actions")
    assert found.value == "" and evidence in found.evidence


def with_state(episode, order):
    arrays = stored(episode)
    turn = Rotation.from_rotvec(arrays["ee_ori"])
    parts = {"pos": arrays["ee_pos"], "axisangle": arrays["ee_ori"], "euler": turn.as_euler("xyz"),
             "quaternion": turn.as_quat(), "fingers": arrays["gripper_states"], "finger": arrays["gripper_states"][:, :1]}
    state = np.hstack([parts[part] for part in order.split("_")])
    return replace(raw(episode), ee_pos=None, ee_ori=None, fingers=None, state=state)


@pytest.mark.parametrize("order", CONVENTIONS["state"])
def test_the_order_of_a_state_vector_is_read_from_what_its_numbers_do(order):
    assert verdict([with_state(episode, order) for episode in BARE], "state").value == order


def test_joint_angles_in_the_place_of_the_hand_are_not_taken_for_one():
    joints = [replace(with_state(episode, "pos_axisangle_fingers"),
                      state=np.hstack([episode.joint_states, episode.gripper_states[:, :1]])) for episode in EPISODES]
    assert verdict(joints, "state").value == ""


@pytest.mark.parametrize(("name", "one", "other"), [
    ("alignment", "before", "after"), ("gripper", "0/1", "-1/1"), ("gripper", "-1/1", "1/-1"),
    ("actions", "units", "metres")])
def test_two_files_that_differ_are_named_instead_of_one_being_read_wrongly(name, one, other):
    raws = [raw(episode, source=source, **{name: value}) for source, value in (("a", one), ("b", other))
            for episode in BARE[:3]]
    found = verdict(raws, name)
    assert found.value == "" and found.evidence.startswith("both")


@pytest.mark.parametrize("episodes", [EPISODES, BARE], ids=["simulator states", "motion alone"])
@pytest.mark.parametrize(("name", "one", "other"), [
    ("alignment", "before", "after"), ("gripper", "1/0", "-1/1"), ("gripper", "0/1", "1/0"), ("actions", "units", "metres"),
    ("actions", "metres", "units"), ("pictures", "upright", "flipped")])
def test_demonstrations_that_differ_inside_one_file_are_noticed(episodes, name, one, other):
    raws = [replace(raw(episode, **{name: value}), where=f"demo_{number}")
            for number, (episode, value) in enumerate(zip(episodes, (one, one, other, one)))]
    found = verdict(raws, name)
    assert found.value == "" and found.evidence.startswith("both")
    assert f"{other} in 1 demonstrations (demo_2)" in found.evidence


def test_pictures_of_every_file_are_looked_at_and_those_of_every_demonstration_when_it_is_read(tmp_path):
    many = [moving_episode(seed=seed) for seed in range(20)]
    files = [raw(episode, f"file_{number // 2}", pictures="rotated" if number > 17 else "upright")
             for number, episode in enumerate(many)]
    assert "rotated in 2 demonstrations" in verdict(files, "pictures").evidence
    one = [replace(raw(episode, pictures="flipped" if number == 7 else "upright"), where=f"demo_{number}",
                   instruction="lift it")
           for number, episode in enumerate(many)]
    found = decide(one)
    assert found["pictures"] == "upright" and to_episode(one[6], found)
    with pytest.raises(LarError, match="demo_7: its pictures are flipped .* those of the data set upright: leave this"):
        to_episode(one[7], found)
    assert to_episode(one[7], decide(one, {"pictures": "upright"}))  # what is stated goes before what they show


def turned_as_told(episode, radians=0.0323):
    """With commands of turning, and a hand that follows them as robosuite's controller does."""
    wanted, turn = np.zeros((60, 3)), [Rotation.from_rotvec(episode.ee_ori[0])]
    wanted[:] = np.repeat(np.random.default_rng(5).uniform(-0.4, 0.4, (12, 3)), 5, axis=0)
    step = np.zeros(3)
    for told in wanted[:-1]:
        step = 0.7 * step + radians * told
        turn.append(Rotation.from_rotvec(step) * turn[-1])
    actions = np.hstack([episode.actions[:, :3], wanted, episode.actions[:, 6:]])
    return replace(episode, actions=actions, ee_ori=np.stack([one.as_rotvec() for one in turn]))


@pytest.mark.parametrize(("scale", "value"), [
    ([1, 1, 1, 1, 1, 1, 1], "units"), ([0.05] * 3 + [0.5] * 3 + [1], "metres"),
    ([1, 1, 1, 0.5, 0.5, 0.5, 1], ""),  # radians beside units
    ([0.05] * 3 + [1] * 4, ""),  # units beside metres
    ([1, 1, 1, -1, -1, -1, 1], "")])  # turned the other way
def test_turns_must_have_the_scale_of_the_positions(scale, value):
    raws = [replace(one, actions=one.actions * scale) for one in map(raw, map(turned_as_told, BARE))]
    found = verdict(raws, "actions")
    assert found.value == value and " rad achieved a step" in found.evidence


def test_a_file_that_names_its_pictures_otherwise_than_they_lie_is_asked_about():
    told = {"pictures": "opengl"}
    assert verdict([raw(episode, pictures="rotated", told=told) for episode in BARE], "pictures").value == "rotated"
    found = verdict([raw(episode, pictures="upright", told=told) for episode in BARE], "pictures")
    assert found.value == "" and "the file names rotated" in found.evidence


def test_what_nothing_shows_is_asked_for_by_the_setting_its_values_and_the_evidence():
    still = [replace(raw(episode), ee_pos=np.zeros((60, 3)), states=None, pictures=lambda wanted: {})
             for episode in EPISODES]
    with pytest.raises(LarError) as error:
        decide(still).require("some/folder")
    for words in ("some/folder", "demos_conventions=alignment=before", "one of before, after", "upright, rotated, flipped",
                  "no simulator states", "hardly depends on it"):
        assert words in str(error.value)


def test_what_is_stated_is_taken_and_evidence_against_it_is_said():
    found = verdict([raw(episode) for episode in EPISODES], "alignment", alignment="after")
    assert found.value == "after" and "stated, against the evidence for before" in found.evidence


@pytest.mark.parametrize(("stated", "message"), [
    ("alignment=befor", "did you mean 'before'"), ("alignmnt=before", "did you mean 'alignment'"), ("before", "NAME=VALUE"),
    ("gripper=0/2", "Choose one of: -1/1")])
def test_a_misspelt_convention_is_refused_when_it_is_set(stated, message):
    with pytest.raises(LarError, match=message):
        make_config(demos="official", demos_conventions=stated)
    with pytest.raises(LarError, match="demos is expert"):
        make_config(demos_conventions="alignment=before")
    assert stated_conventions("alignment=before, gripper=1/0") == {"alignment": "before", "gripper": "1/0"}


@pytest.mark.parametrize("layout", [
    {"alignment": "after", "pictures": "rotated", "attributes": {"macros_image_convention": "opengl", "num_demos": 4}},
    {"alignment": "before", "pictures": "rotated", "sentence": None},  # OpenVLA's regenerated files
    {"alignment": "before", "pictures": "upright", "sentence": None},  # the same script in other people's versions
    {"alignment": "before", "pictures": "mirrored", "names": ROBOMIMIC},
    {"alignment": "before", "pictures": "flipped", "names": ROBOMIMIC, "leave_out": ("states", "joint_states")},
    {"alignment": "after", "pictures": "rotated", "gripper": "1/0", "actions": "metres", "leave_out": ("states",)},
], ids=["original", "regenerated", "turned", "robomimic", "robomimic without states", "all different"])
def test_hdf5_copies_of_every_layout_become_the_same_episodes(tmp_path, layout):
    path = write_hdf5(tmp_path / f"{EPISODES[0].instruction.replace(' ', '_')}_demo.hdf5", EPISODES, **layout)
    found = list(read_episodes(path))
    for episode, wanted in zip(found, EPISODES, strict=True):
        assert episode.instruction == wanted.instruction
        for name in ("actions", "ee_pos", "ee_ori", "gripper_states", "agentview_rgb", "eye_in_hand_rgb"):
            np.testing.assert_allclose(getattr(episode, name), getattr(wanted, name), atol=1e-6, err_msg=name)


def put(key, content):
    def change(data):
        demo = data["demo_1"]
        array = content(demo[key][()])
        del demo[key]
        demo[key] = array
    return change


@pytest.mark.parametrize(("change", "message"), [
    (put("obs/agentview_rgb", lambda frames: (frames / 255).astype("f4")), "demo_1: agentview_rgb holds float32 of shape"),
    (put("obs/eye_in_hand_rgb", lambda frames: frames.transpose(0, 3, 1, 2)), r"uint8 of shape \(60, 3, 16, 16\), but"),
    (put("obs/ee_pos", lambda rows: rows[:, :2]), "demo_1: ee_pos has 2 numbers a row, but 3 are expected"),
    (put("obs/joint_states", lambda rows: rows[:, :6]), "demo_1: joint_states has 6 numbers a row, but 7 are expected"),
    (lambda data: data.attrs.update(num_demos=[1, 2]), r"num_demos is \[1 2\], but there are 4 episodes"),
    (lambda data: data.attrs.update(problem_info='{"language_instruction": null}'), "problem_info .* correct it, or"),
])
def test_what_is_malformed_is_named_instead_of_becoming_something_else(tmp_path, change, message):
    path = write_hdf5(tmp_path / "a_b_demo.hdf5", EPISODES)
    with h5py.File(path, "a") as file:
        change(file["data"])
    with pytest.raises(LarError, match=message):
        list(read_episodes(path))


def test_a_sentence_may_be_a_list_of_words(tmp_path):
    told = {"problem_info": '{"language_instruction": ["lift", "it"]}'}
    path = write_hdf5(tmp_path / "copy.hdf5", EPISODES, attributes=told)
    assert raw_demos(path)[0].instruction == "lift it"


def test_demonstrations_may_have_gaps_in_their_numbers(tmp_path):
    path = write_hdf5(tmp_path / "a b_demo.hdf5", EPISODES, pictures="rotated")
    with h5py.File(path, "a") as file:
        del file["data/demo_1"]
    assert [one.where.rsplit(" ", 1)[1] for one in raw_demos(path)] == ["demo_0", "demo_2", "demo_3"]
    assert conventions_of(path)["pictures"] == "rotated"


@pytest.mark.parametrize("sentence", [
    "Pick up the black bowl on the cookie box and place it on the plate.", '"PICK UP THE BLACK BOWL ON THE COOKIE BOX and '
    'place it on the plate"', "Pick the akita black bowl on the cookies box and place it on the plate",
    "pick_up_the_black_bowl_on_the_cookie_box_and_place_it_on_the_plate", "  pick up  the black bowl on the cookie box, and "
    "place it on the plate!"])
def test_sentences_are_compared_without_capitals_stops_and_the_words_of_task_files(sentence):
    assert plain(sentence) == "pick up the black bowl on the cookie box and place it on the plate"
