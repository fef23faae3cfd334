"""Conventions of other people's demonstrations: found in what they hold, the same for all of them, or asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from moving import GRIPPERS, ROBOMIMIC, TURNS, moving_episode, stored, write_hdf5
from scipy.spatial.transform import Rotation

from lar_core.data.conventions import Raw, decide
from lar_core.data.demos import conventions_of, plain, raw_demos, read_episodes
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


@pytest.mark.parametrize(("name", "one", "other"), [("alignment", "before", "after"), ("gripper", "1/0", "-1/1"),
                                                    ("gripper", "0/1", "1/0")])
def test_demonstrations_that_differ_inside_one_file_are_noticed(name, one, other):
    raws = [raw(episode, **{name: value}) for episode, value in zip(EPISODES, (one, one, one, other))]
    found = verdict(raws, name)
    assert found.value == "" and found.evidence.startswith("both")


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


def test_demonstrations_may_have_gaps_in_their_numbers(tmp_path):
    import h5py
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
