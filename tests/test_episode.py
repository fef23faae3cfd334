"""Kinds of instruction: each is one thing in every scene that has it, and no scene has one that would be another thing."""

import numpy as np
import pytest

from lar_core.run.config import PROFILES
from lar_core.run.errors import LarError
from lar_core.scene.env import instruction
from lar_core.scene.episode import EpisodeEnv, check_kinds, kinds, kinds_of, other_task, told
from lar_core.scene.placements import BOWLS, OTHER_SENTENCE, RELATIONS, evaluation_scenes
from lar_core.scene.setup import prepare

TEN = tuple(range(10))


def test_what_is_told_in_the_scene_of_task_5():
    scene = evaluation_scenes(5, "official")[0]
    said = {kind: told(kind, scene, (2, 5, 8)) for kind in kinds(5, (2, 5, 8))}
    assert said == {"right": instruction(5), "blank": ".", "other_task": instruction(8), "other_bowl": instruction(3)}


@pytest.mark.parametrize("task, other", [(8, "next to the ramekin"), (2, "next to the plate"), (5, "on the cookie box"),
                                         (3, "on the wooden cabinet"), (6, "on the stove")])
def test_the_other_bowls_sentence_says_where_the_other_bowl_stands(task, other):
    scene = evaluation_scenes(task, "official")[0]
    assert other in told("other_bowl", scene, (task,)) and scene.of_other_bowl().goal == ["on", BOWLS[1], "plate_1"]


def test_where_the_scene_names_its_second_bowl_the_other_one_is_its_first():
    scene = evaluation_scenes(8, "counterfactual")[1]
    assert scene.instruction == instruction(1) and told("other_bowl", scene, (8,)) == instruction(8)
    assert scene.of_other_bowl().target == BOWLS[0]


@pytest.mark.parametrize("task", TEN)
def test_another_tasks_sentence_names_no_bowl_of_the_scene(task):
    for tasks in (TEN, (0, 1), (1, 8), (2, 8), (3, 9), (2, 5, 8)):
        if task in tasks and (other := other_task(task, tasks)) is not None:
            assert other in tasks and other != task and RELATIONS[other][0] not in RELATIONS[task]
            assert other != OTHER_SENTENCE.get(task)


@pytest.mark.parametrize("task, tasks, missing", [
    (5, (5,), {"other_task"}),  # nothing else was learned
    (2, (2, 8), {"other_task"}),  # task 8's sentence names the other bowl of this scene
    (0, (0, 1), {"other_task", "other_bowl"}),  # task 1's sentence is true of both bowls of this scene
    (0, (0, 5), {"other_bowl"}), (8, (2, 5, 8), set())])
def test_a_scene_has_only_the_kinds_that_mean_one_thing_there(task, tasks, missing):
    assert set(kinds(task, tasks)) == {"right", "blank", "other_task", "other_bowl"} - missing


def test_a_profile_of_one_task_is_rolled_out_under_three_kinds_and_one_of_three_tasks_under_four():
    assert kinds_of(PROFILES["tiny"].tasks) == ("right", "blank", "other_bowl")
    assert kinds_of(PROFILES["small"].tasks) == ("right", "blank", "other_task", "other_bowl")


def test_a_kind_that_no_task_has_is_refused_and_one_that_some_lack_is_said(capsys):
    with pytest.raises(LarError, match="no other_task instruction for task 5: .* right, blank, other_bowl"):
        check_kinds(("right", "other_task"), (5,))
    with pytest.raises(LarError, match="no other_bowl instruction for task 0: .* no sentence"):
        check_kinds(("other_bowl",), (0,))
    check_kinds(("right", "other_bowl"), (0, 5))
    assert capsys.readouterr().out.startswith("Task 0 is left out under other_bowl instructions: ")


def test_pictures_that_nobody_looks_at_are_not_drawn_and_change_nothing():
    prepare()
    env, actions = EpisodeEnv(5, "near", PROFILES["micro"]), np.random.default_rng(0).uniform(-0.5, 0.5, (6, 7))

    def end(drawn: list[bool]) -> tuple:
        before, _ = env.reset(seed=3)
        pictures = []
        for env.drawn, action in zip(drawn, actions):
            observation, *_ = env.step(action)
            pictures.append(observation["agentview_rgb"])
        return before["agentview_rgb"], pictures, observation, env.env.state()

    _, every, expected, state = end([True] * 6)
    before, few, observation, same = end([False] * 5 + [True])
    assert (state == same).all() and all((observation[name] == expected[name]).all() for name in expected)
    assert (few[4] == before).all() and (every[4] != before).any()
    env.close()
