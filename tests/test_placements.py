"""Where things stand: stored and sampled scenes, and what counts as success."""

from __future__ import annotations

import numpy as np
import pytest

from lar_core.run.errors import LarError
from lar_core.scene import placements
from lar_core.scene.env import SpatialEnv, instruction, official_init_states
from lar_core.scene.placements import (
    BOWLS,
    DEMO_SEEDS,
    EVALUATION_SCENES,
    OTHER_SENTENCE,
    PAIRED,
    PLATE,
    RELATIONS,
    TRIES,
    draw_layout,
    evaluation_scenes,
    other_instruction,
    sample_scene,
    success,
    tasks_with,
)

STORED = [(placement, task) for placement in EVALUATION_SCENES for task in range(10)
          if placement not in PAIRED or task in OTHER_SENTENCE]


@pytest.fixture(scope="module")
def env():
    env = SpatialEnv(8, image_size=64, wrist_size=0)  # next to the plate; the other bowl is next to the ramekin
    yield env
    env.close()


def test_official_scenes_are_the_fifty_of_the_benchmark():
    scenes = evaluation_scenes(5, "official")
    assert np.array_equal([scene.init_state for scene in scenes], official_init_states(5))
    assert {scene.instruction for scene in scenes} == {instruction(5)}
    assert {scene.target for scene in scenes} == {BOWLS[0]}


@pytest.mark.parametrize(("placement", "task"), STORED)
def test_stored_scenes_are_acceptable_and_all_different(placement, task):
    states = [scene.init_state for scene in evaluation_scenes(task, placement)][::len(placements.sides(placement))]
    assert len(states) == EVALUATION_SCENES[placement]
    assert len({state.tobytes() for state in states}) == len(states)
    begun = [placements._positions(state) for state in official_init_states(task)]  # from one of these each was made
    for state in states:
        layout = placements._positions(state)
        assert any(placements._acceptable(RELATIONS[task], placement, layout, before) for before in begun)


@pytest.mark.parametrize("task", range(10))
def test_near_is_about_five_centimetres_from_the_official_place(task):
    usual = placements._positions(official_init_states(task).mean(axis=0))
    scenes, resting = evaluation_scenes(task, "near"), placements._on_fixtures(RELATIONS[task])
    moves = np.array([[np.linalg.norm(xy - usual[name]) for name, xy in placements._positions(scene.init_state).items()
                       if name not in resting] for scene in scenes])
    nearest, farthest = placements.NEARBY
    assert moves.max() < farthest + placements.LOOSE[1] + 0.03  # official places differ by some 2 cm themselves
    assert (moves.mean(axis=0) > 0.02).all() and moves.mean() > nearest


@pytest.mark.parametrize("placement", EVALUATION_SCENES)
def test_a_stored_scene_is_drawn_again_from_its_seed(env, placement):
    stored = evaluation_scenes(env.task, placement)[0]
    again = draw_layout(env, placement, first_seed=0)
    assert again.seed == stored.seed
    assert np.array_equal(again.init_state, stored.init_state)


def test_every_task_but_the_first_has_a_sentence_for_its_other_bowl():
    assert OTHER_SENTENCE == {1: 6, 2: 8, 3: 9, 4: 9, 5: 3, 6: 7, 7: 9, 8: 1, 9: 7}
    with pytest.raises(LarError, match="Task 0 has no counterfactual pair.*1, 2, 3, 4, 5, 6, 7, 8, 9"):
        evaluation_scenes(0, "counterfactual")
    assert tasks_with("near_counterfactual", [0, 4, 5]) == [4, 5] and tasks_with("wide", [0, 4]) == [0, 4]
    with pytest.raises(LarError, match="Task 0 has no counterfactual pair"):
        tasks_with("counterfactual", [0])


def test_counterfactual_scenes_come_twice_and_name_either_bowl():
    scenes = evaluation_scenes(8, "counterfactual")
    assert len(scenes) == 2 * EVALUATION_SCENES["counterfactual"]
    for first, second in zip(scenes[::2], scenes[1::2]):
        assert np.array_equal(first.init_state, second.init_state) and first.seed == second.seed
        assert (first.instruction, second.instruction) == (instruction(8), instruction(1))
        assert (first.target, second.target) == BOWLS == (second.distractor, first.distractor)


def test_demonstrations_never_start_from_a_seed_of_the_evaluation():
    seeds = [scene.seed for placement, task in STORED for scene in evaluation_scenes(task, placement)]
    assert max(seeds) < TRIES * max(EVALUATION_SCENES.values()) < DEMO_SEEDS


@pytest.mark.parametrize("placement", ("official", "wide", "counterfactual", "near"))
def test_a_demonstration_scene_depends_on_its_number_alone(env, placement):
    scene, other = sample_scene(env, placement, 4), sample_scene(env, placement, 6)
    again = sample_scene(env, placement, 4)
    assert np.array_equal(scene.init_state, again.init_state) and scene.seed == again.seed >= DEMO_SEEDS
    assert not np.array_equal(scene.init_state, other.init_state)


def test_official_demonstrations_begin_as_differently_as_the_benchmarks_init_states(env):
    drawn = np.stack([sample_scene(env, "official", index).init_state for index in range(20)])
    stored, parts = official_init_states(env.task), (slice(1, 8), slice(10, 12))  # the arm; the first bowl's x and y
    for part in parts:
        ratio = drawn[:, part].std(axis=0).mean() / stored[:, part].std(axis=0).mean()
        assert 0.6 < ratio < 1.6
        assert np.allclose(drawn[:, part].mean(axis=0), stored[:, part].mean(axis=0), atol=0.02)


def test_a_scene_at_rest_is_where_it_was_put(env):
    for scene in evaluation_scenes(env.task, "wide")[:5]:
        env.reset(seed=scene.seed, options={"init_state": scene.init_state})
        for name, xy in placements._positions(scene.init_state).items():
            assert np.linalg.norm(env.body_pose(name)[0][:2] - xy) <= placements.MOVED


def test_every_movable_object_is_in_view(env):
    for scene in evaluation_scenes(env.task, "wide")[:10]:
        env.reset(seed=scene.seed, options={"init_state": scene.init_state})
        pixels = np.bincount(env.segment(128).ravel(), minlength=len(env.objects) + 1)[1:]
        seen = dict(zip(env.objects, pixels))
        assert all(seen[name] > 40 for name in placements.RADII), seen


def test_success_is_the_named_bowl_on_the_plate_and_no_other(env):
    first, second = evaluation_scenes(env.task, "counterfactual")[:2]
    state = first.init_state.copy()
    x = placements.X_ADDRESS
    state[x[BOWLS[1]]:x[BOWLS[1]] + 2] = state[x[PLATE]:x[PLATE] + 2]  # the bowl that only `second` names
    env.reset(seed=first.seed, options={"init_state": state, "wait_steps": 20})
    assert success(env, second) and not success(env, first)
    env.reset(seed=first.seed, options={"init_state": first.init_state})
    assert not success(env, second) and not success(env, first)


@pytest.mark.parametrize(("task", "placement", "message"), [
    (5, "wild", "Unknown placement 'wild': did you mean 'wide'"),
    (10, "wide", "Unknown task '10'"),
])
def test_what_does_not_exist_is_refused(task, placement, message):
    with pytest.raises(LarError, match=message):
        evaluation_scenes(task, placement)


def test_the_other_bowls_sentence_is_the_one_that_a_counterfactual_scene_says():
    for task in OTHER_SENTENCE:
        first, second = evaluation_scenes(task, "counterfactual")[:2]
        assert other_instruction(task, first.target) == second.instruction
        assert other_instruction(task, second.target) == first.instruction
    assert other_instruction(0, BOWLS[0]) is None
