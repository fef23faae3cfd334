"""The environment is LIBERO's, only faster: same states, same pictures up to their finish, same predicates."""

from __future__ import annotations

import io
import os
import pickle
import runpy
from functools import partial
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from lar_core.run.errors import LarError
from lar_core.scene import env as module
from lar_core.scene import setup
from lar_core.scene.env import SpatialEnv, instruction, official_init_states, task_names
from lar_core.scene.reference import check, colours, reference_picture, scene_record

SETTLE = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "check_init_states.py"))
DRAWER, STOVE, CABINET = 4, 7, 9  # tasks whose bowl starts in the drawer, on the stove, on the cabinet


@pytest.fixture(scope="module")
def drawer_env():
    """Task 4, the one with an open drawer; segmentation on. Tests reset it before use."""
    env = SpatialEnv(DRAWER, assets="standin", segmentation=True)
    yield env
    env.close()


def episode(env: SpatialEnv, init_state: np.ndarray | None, seed: int, steps: int = 12) -> list[np.ndarray]:
    """All numbers of an episode of random actions: poses of the fixtures, states, low-level observations."""
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed, options={"init_state": init_state})
    seen = [env.stock.sim.model.body_pos.copy(), env.stock.sim.model.body_quat.copy(), env.state()]
    for _ in range(steps):
        action = rng.uniform(-1, 1, 7) - (0, 0, 0.6, 0, 0, 0, 0)  # downwards, into the objects
        observation, reward, *_ = env.step(np.clip(action, -1, 1))
        low_level = [observation[key] for key in ("ee_pos", "ee_ori", "gripper_states", "joint_states")]
        seen += [env.state(), np.concatenate([*low_level, [reward]])]
    return seen


def test_fast_path_gives_bit_identical_states_over_several_resets():
    states = official_init_states(DRAWER)
    plan = [(states[0], 0), (states[1], 1), (None, 2)]  # None: LIBERO's own sampler
    runs = []
    for fast, again in ((True, plan[:1]), (False, [])):
        env = SpatialEnv(DRAWER, fast=fast, assets="standin", image_size=16, wrist_size=0)
        runs.append([episode(env, state, seed) for state, seed in plan + again])
        env.close()
    for fast_episode, stock_episode in zip(*runs):
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(fast_episode, stock_episode, strict=True))
    assert all(np.array_equal(first, again) for first, again in zip(runs[0][0], runs[0][3], strict=True))


def test_lighter_robot_meshes_leave_every_mass_and_inertia_as_it_was(drawer_env):
    ours = drawer_env.stock.sim.model
    theirs = mujoco.MjModel.from_xml_string(drawer_env.stock.model.get_xml())
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat", "dof_armature", "geom_contype", "geom_size"):
        touched = slice(None) if not name.startswith("geom") else theirs.geom_group == 0
        assert np.array_equal(getattr(ours, name)[touched], getattr(theirs, name)[touched]), name
    assert ours.nmeshface < 0.4 * theirs.nmeshface


def test_pictures_are_stock_pictures_turned_by_180_degrees():
    env = SpatialEnv(5, fast=False, assets="standin", image_size=64, wrist_size=32)
    observation, _ = env.reset(options={"init_state": official_init_states(5)[0], "wait_steps": 0})
    stock = env._wrapper.regenerate_obs_from_state(env.state())
    assert np.array_equal(observation["agentview_rgb"], stock["agentview_image"][::-1, ::-1])
    assert np.array_equal(observation["eye_in_hand_rgb"], stock["robot0_eye_in_hand_image"][::-1, ::-1])
    assert np.array_equal(observation["ee_pos"], stock["robot0_eef_pos"])
    labels = env.segment(64)
    assert np.array_equal(env.render_camera("agentview", 64), observation["agentview_rgb"])  # both renderers coexist
    env.close()

    fast = SpatialEnv(5, assets="standin", image_size=64, wrist_size=32)
    quick, _ = fast.reset(options={"init_state": official_init_states(5)[0], "wait_steps": 0})
    difference = np.abs(quick["agentview_rgb"].astype(int) - observation["agentview_rgb"])
    assert difference.mean() < 6  # no multi-sampling, no reflections, coarser robot
    assert (fast.segment(64) == labels).mean() > 0.995
    fast.close()


@pytest.mark.parametrize("task", range(10))
def test_official_init_states_settle(task):
    """A sample; scripts/check_init_states.py looks at all 500."""
    env = SpatialEnv(task, assets="standin", image_size=16, wrist_size=0)
    limits = SETTLE["SIDEWAYS"], SETTLE["TILT"], SETTLE["CREEP"]
    for index in (0, 25):
        assert np.less(SETTLE["settle"](env, official_init_states(task)[index], seed=index), limits).all()
    relation = {DRAWER: ["in", "akita_black_bowl_1", "wooden_cabinet_1_top_region"],
                STOVE: ["on", "akita_black_bowl_1", "flat_stove_1_cook_region"],
                CABINET: ["on", "akita_black_bowl_1", "wooden_cabinet_1_top_side"]}.get(task)
    assert relation is None or env.satisfied(relation)
    assert not env.satisfied(["on", "akita_black_bowl_1", "plate_1"])
    env.close()


def test_success_is_the_first_bowl_on_the_plate_and_the_other_bowl_has_its_own_predicate(drawer_env):
    drawer_env.reset(options={"init_state": official_init_states(DRAWER)[0]})
    for bowl, address in (("akita_black_bowl_1", 9), ("akita_black_bowl_2", 16)):
        drawer_env.reset(options={"init_state": official_init_states(DRAWER)[0]})
        state = drawer_env.state()
        plate = state[1 + 37:1 + 40]
        state[1 + address:1 + address + 3] = plate + (0, 0, 0.01)
        drawer_env.set_state(state)
        for _ in range(5):
            *_, terminated, truncated, info = drawer_env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        assert drawer_env.satisfied(["on", bowl, "plate_1"])
        assert terminated == info["success"] == (bowl == "akita_black_bowl_1") and not truncated


def test_seed_decides_the_fixtures_that_the_state_does_not_hold(drawer_env):
    poses = []
    for seed in (1, 2, 1):
        drawer_env.reset(seed=seed, options={"init_state": official_init_states(DRAWER)[0]})
        poses.append(drawer_env.body_pose("wooden_cabinet_1")[0])
    assert np.array_equal(poses[0], poses[2]) and not np.array_equal(poses[0], poses[1])


def test_reset_leaves_numpys_global_generator_alone(drawer_env):
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    drawer_env.reset(seed=3)
    assert np.random.random() == expected


def test_segmentation_labels_are_where_the_objects_are(drawer_env):
    observation, _ = drawer_env.reset(options={"init_state": official_init_states(2)[0]})
    labels, picture = observation["agentview_segmentation"], observation["agentview_rgb"]
    assert drawer_env.objects == ["akita_black_bowl_1", "akita_black_bowl_2", "cookies_1",
                                  "glazed_rim_porcelain_ramekin_1", "plate_1", "wooden_cabinet_1", "flat_stove_1"]
    assert set(np.unique(labels)) == set(range(8))
    for bowl in (1, 2):
        assert picture[labels == bowl].mean() < 60  # black
    assert picture[labels == 5].mean() > 150  # white plate
    columns = {label: np.nonzero(labels == label)[1].mean() for label in (4, 5, 6)}
    # Upright in the policy's sense: plate and ramekin (y > 0) on the left, the cabinet (y < 0) on the right.
    assert columns[4] < 64 and columns[5] < 64 < columns[6]


def test_observations_fit_their_spaces_and_the_instruction_is_liberos(drawer_env):
    observation, _ = drawer_env.reset()
    assert drawer_env.observation_space.contains(observation)
    assert drawer_env.instruction == instruction(DRAWER) == \
        "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate"
    assert len(task_names()) == 10 and all(official_init_states(task).shape == (50, 92) for task in range(10))


def test_state_can_be_put_back_exactly(drawer_env):
    drawer_env.reset(options={"init_state": official_init_states(DRAWER)[0]})
    state, picture = drawer_env.state(), drawer_env.render()
    drawer_env.step(np.ones(7))
    drawer_env.set_state(state)
    assert np.array_equal(drawer_env.state(), state)
    assert np.abs(drawer_env.render().astype(int) - picture).mean() < 0.5


def test_what_cannot_be_simulated_is_refused_in_a_sentence(drawer_env):
    drawer_env.reset()
    for action in (np.full(7, np.nan), np.zeros(6)):
        with pytest.raises(LarError, match="7 finite numbers"):
            drawer_env.step(action)
    with pytest.raises(LarError, match=r"shape \(91,\)"):
        drawer_env.reset(options={"init_state": np.zeros(91)})
    with pytest.raises(LarError, match="Unknown task '10'"):
        SpatialEnv(10)


def test_the_reference_picture_is_on_record_and_the_same_at_every_size(drawer_env):
    drawer_env.reset(seed=7)
    made, again = scene_record(drawer_env), scene_record(drawer_env)
    assert made == again and made["picture"]["check"] == "expected"
    assert made["gl"] == {"backend": os.environ["MUJOCO_GL"]} | {name: made["gl"][name] for name in ("renderer", "version")}
    assert made["assets"] == drawer_env.assets and made["versions"]["mujoco"] == mujoco.__version__
    small = SpatialEnv(DRAWER, assets="standin", image_size=16, wrist_size=0)
    assert scene_record(small)["picture"] == made["picture"]
    small.close()


@pytest.mark.parametrize("fault, told", [
    (lambda picture: picture, "expected"),
    (lambda picture: np.clip(picture + np.random.default_rng(0).normal(0, 12, picture.shape), 0, 255), "expected"),
    (lambda picture: picture[::-1], "other"), (lambda picture: picture[:, ::-1], "other"),
    (lambda picture: picture * 0, "other"),  # a driver that draws nothing
    (lambda picture: picture * 0.9, "other"),  # MuJoCo from 3.3.3 on darkens
    (lambda picture: picture[..., ::-1], "other"),
])
def test_another_rasteriser_is_told_from_another_picture(drawer_env, fault, told):
    seen = colours(fault(reference_picture(drawer_env).astype(float)))
    assert check(drawer_env.assets["sha256"], DRAWER, seen) == told


def test_another_task_is_another_picture_and_other_assets_are_not_on_record(drawer_env):
    seen = colours(reference_picture(drawer_env))
    assert check(drawer_env.assets["sha256"], STOVE, seen) == "other" and check("ab" * 32, DRAWER, seen) == "unknown"


def test_vector_environments_with_shared_memory():
    make = partial(SpatialEnv, 5, image_size=32, wrist_size=16, assets="standin")
    vector = gymnasium.vector.AsyncVectorEnv([make, make], context="spawn", shared_memory=True)
    try:
        first, _ = vector.reset(seed=[0, 0], options={"init_state": official_init_states(5)[0]})
        observations, rewards, terminated, truncated, _ = vector.step(np.zeros((2, 7)))
        assert observations["agentview_rgb"].shape == (2, 32, 32, 3)
        assert observations["eye_in_hand_rgb"].shape == (2, 16, 16, 3)
        assert np.array_equal(observations["joint_states"][0], observations["joint_states"][1])
        assert first["agentview_rgb"].std() > 20 and not terminated.any() and not truncated.any()
    finally:
        vector.close()


def test_init_state_files_can_hold_arrays_and_nothing_else():
    array = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(module._ArrayUnpickler(io.BytesIO(pickle.dumps(array, protocol=2))).load(), array)
    with pytest.raises(LarError, match="no part of a numpy array"):
        module._ArrayUnpickler(io.BytesIO(pickle.dumps(os.getcwd))).load()


def test_a_scene_that_cannot_be_built_names_the_version_at_fault(monkeypatch):
    monkeypatch.setattr(module, "wrong_versions", lambda: ["…"])
    monkeypatch.setattr(setup, "wrong_versions", lambda: ["mujoco 3.10.0 is installed, but the scene needs 3.3.2."])
    monkeypatch.setattr(SpatialEnv, "_make_fast", lambda _: 1 / 0)
    with pytest.raises(LarError, match="task 5 cannot be built .ZeroDivisionError.*mujoco 3.10.0 is installed"):
        SpatialEnv(5)
