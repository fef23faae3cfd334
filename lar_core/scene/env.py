"""LIBERO-Spatial as a gymnasium environment: ten tasks, two cameras, LIBERO's own predicates and init states."""

from __future__ import annotations

import multiprocessing
import pickle
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..run.errors import LarError, unknown
from ..run.processes import end_with_parent, ignore_stops
from ..run.versions import wrong_versions
from . import gl, setup
from .setup import prepare, task_names

WAIT_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float64)  # hand still, fingers open
_CAMERAS = ("agentview", "robot0_eye_in_hand")


def instruction(task: int) -> str:
    """LIBERO's sentence for a task, e.g. "pick up the black bowl on the stove and place it on the plate"."""
    return _task_name(task).replace("_", " ")


def tasks_by_instruction() -> dict[str, int]:
    """{LIBERO's sentence: its task} of all ten."""
    return {instruction(task): task for task in range(len(setup.task_names()))}


def official_init_states(task: int) -> np.ndarray:
    """The benchmark's 50 flattened simulation states of a task, float64 (50, 92): time, 48 positions, 43 velocities."""
    path = setup.libero_root() / "init_files" / "libero_spatial" / f"{_task_name(task)}.pruned_init"
    with zipfile.ZipFile(path) as archive, archive.open("archive/data.pkl") as file:
        return _ArrayUnpickler(file).load()


class _ArrayUnpickler(pickle.Unpickler):
    """Loads numpy arrays and nothing else: a pickle that names any other function is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
                   ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        if (module, name) not in allowed:
            raise LarError(f"An init-state file asks for {module}.{name}, which is no part of a numpy array: "
                           "reinstall the package libero.")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _task_name(task: int) -> str:
    if task not in range(len(task_names())):
        raise unknown("task", task, range(len(task_names())))
    return task_names()[task]


class SpatialEnv(gymnasium.Env):
    """One LIBERO-Spatial task. Use one process per environment: software GL mixes up pictures of several.

    task: 0 to 9.  image_size, wrist_size: pixels of the two square cameras, wrist_size 0 switches the second off.
    assets: see `setup.use_assets`.  segmentation: adds "agentview_segmentation" to the observations.
    fast=False runs LIBERO's OffScreenRenderEnv unchanged, for comparison: same states, several times slower.

    Observations, after each step (pictures are upright, that is raw OpenGL rotated by 180 degrees):
        agentview_rgb           uint8 (image_size, image_size, 3)
        eye_in_hand_rgb         uint8 (wrist_size, wrist_size, 3)
        agentview_segmentation  uint8 (image_size, image_size): 0 elsewhere, i + 1 on `objects[i]`
        ee_pos, ee_ori          float64 (3,) hand position in metres, (3,) axis-angle in radians, world frame
        gripper_states          float64 (2,) finger positions in metres;  joint_states float64 (7,) radians
    Actions: (7,) in [-1, 1]: change of position (x, y, z) and rotation of the hand, gripper (-1 opens, +1 closes).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    render_mode = "rgb_array"

    def __init__(self, task: int, *, image_size: int = 128, wrist_size: int = 64, fast: bool = True,
                 assets: str | Path | None = None, segmentation: bool = False) -> None:
        self.task, self.instruction = task, instruction(task)
        self.image_size, self.wrist_size, self.segmentation, self.fast = image_size, wrist_size, segmentation, fast
        setup.use_assets(assets)
        self._wrapper = self._painter = None
        try:
            self.stock = self._make_fast() if fast else self._make_stock()
        except Exception as error:
            if isinstance(error, LarError) or not wrong_versions():
                raise
            raise LarError(setup.broken(f"The scene of task {task} cannot be built", error)) from error
        self.assets = setup.loaded_assets(self.stock, assets)  # what is in the scene, not what was asked for
        self.objects = [*self.stock.objects_dict, *self.stock.fixtures_dict]
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float64)
        self.observation_space = spaces.Dict(self._spaces())

    # --- gymnasium ---------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = 0, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode; options may hold "init_state" (92,) and "wait_steps" (10 by default).

        `seed` decides the poses of cabinet and stove, which are not part of the state, and, without an init state, of
        everything. Raises LarError for an init state of another shape.
        """
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        options = options or {}
        with _numpy_seed(seed):
            self._reset_stock()
        if options.get("init_state") is not None:
            self.set_state(options["init_state"])
        for _ in range(options.get("wait_steps", 10)):
            self.stock.step(WAIT_ACTION)
        return self._observation(), {"seed": seed, "instruction": self.instruction}

    def step(self, action: np.ndarray, draw: bool = True) -> tuple[dict, float, bool, bool, dict]:
        """Advance 1/20 s. `terminated` is LIBERO's success predicate; the number of steps is the caller's business.

        draw=False leaves the pictures those of an earlier moment, which saves most of the time; states are the same.
        Raises LarError for an action that is not seven finite numbers.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise LarError(f"An action must be 7 finite numbers, but the policy gave {action.tolist()}: "
                           "check its training for a non-finite loss.")
        _, reward, success, _ = self.stock.step(action)
        return self._observation(draw), float(reward), bool(success), False, {"success": bool(success)}

    def render(self) -> np.ndarray:
        """The agentview picture, upright."""
        return self.render_camera("agentview", self.image_size)

    def close(self) -> None:
        """Free the renderer and the simulation; safe to call twice."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None
        if self.stock is not None:
            self.stock.close()
            self.stock = self._wrapper = None

    # --- beyond gymnasium --------------------------------------------------------------------------------------------

    def state(self) -> np.ndarray:
        """The flattened simulation state, float64 (92,): time, positions, velocities."""
        return self.stock.sim.get_state().flatten()

    def set_state(self, state: np.ndarray) -> None:
        """Put the simulation into `state` (92,) without any step. Raises LarError for another shape."""
        state = np.asarray(state, dtype=np.float64)
        if state.shape != self.state().shape:
            raise LarError(f"An init state has shape {state.shape}, but this scene needs {self.state().shape}.")
        self.stock.sim.set_state_from_flattened(state)
        self.stock.sim.forward()
        self.stock._post_process()

    def satisfied(self, predicate: list[str]) -> bool:
        """LIBERO's own test of a relation, e.g. `["on", "akita_black_bowl_2", "plate_1"]`."""
        return bool(self.stock._eval_predicate(predicate))

    def body_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """World position (3,) and quaternion (4,) (w, x, y, z) of an object in `objects` or of a body."""
        body = self.stock.obj_body_id.get(name)
        body = self.stock.sim.model.body_name2id(name) if body is None else body
        return self.stock.sim.data.body_xpos[body].copy(), self.stock.sim.data.body_xquat[body].copy()

    def render_camera(self, camera: str, size: int) -> np.ndarray:
        """An upright picture, uint8 (size, size, 3), from "agentview", "robot0_eye_in_hand" or "frontview"."""
        if self.fast:
            pixels = self._paint(size).image(self.stock.sim.data._data, camera, size)
        else:
            pixels = self.stock.sim.render(camera_name=camera, width=size, height=size)
        return np.ascontiguousarray(pixels[::-1, ::-1])

    def renderer(self) -> dict[str, str]:
        """Who draws this environment's pictures: {"backend", "renderer", "version"}."""
        self.render_camera("agentview", 8)  # makes its context the current one
        return gl.renderer()

    def segment(self, size: int, camera: str = "agentview") -> np.ndarray:
        """A camera's view, upright uint8 (size, size): i + 1 where `objects[i]` is seen, 0 elsewhere."""
        geoms = self._paint(size).geoms(self.stock.sim.data._data, camera, size)
        if not self.fast:
            self.stock.sim._render_context_offscreen.gl_ctx.make_current()
        return np.ascontiguousarray(self.geom_labels()[geoms][::-1, ::-1])

    def geom_labels(self) -> np.ndarray:
        """uint8 (geoms + 1,): geom id to label; the last entry, reached by id -1, is 0."""
        model = self.stock.sim.model
        labels = np.zeros(model.ngeom + 1, dtype=np.uint8)
        for geom, body in enumerate(model.geom_bodyid):
            name = model.body_id2name(body) or ""
            labels[geom] = next((i + 1 for i, owner in enumerate(self.objects) if name.startswith(f"{owner}_")), 0)
        return labels

    # --- the two ways to run -----------------------------------------------------------------------------------------

    def _make_fast(self):
        import robosuite

        from .fast import FastDomain

        return FastDomain(bddl_file_name=str(setup.bddl_file(self.task)), robots=["Panda"],
                          initialization_noise=None, ignore_done=True,
                          controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                          use_camera_obs=False, has_offscreen_renderer=False, hard_reset=False)

    def _make_stock(self):
        from libero.libero.envs import OffScreenRenderEnv

        sizes = [self.image_size, self.wrist_size or self.image_size]
        self._wrapper = OffScreenRenderEnv(bddl_file_name=str(setup.bddl_file(self.task)), ignore_done=True,
                                           camera_names=list(_CAMERAS), camera_heights=sizes, camera_widths=sizes)
        return self._wrapper.env

    def _reset_stock(self) -> None:
        if self.fast:
            self.stock.reset()
        else:
            # Each hard reset adds the open drawer's sampler once more; the extra draws would shift the fixtures' poses.
            self.stock.object_property_initializers.clear()
            self._wrapper.reset()

    # --- observations ------------------------------------------------------------------------------------------------

    def _spaces(self) -> dict[str, spaces.Space]:
        size, wrist = self.image_size, self.wrist_size
        numbers = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}
        pictures = {"agentview_rgb": (size, size, 3)} | ({"eye_in_hand_rgb": (wrist, wrist, 3)} if wrist else {}) | (
            {"agentview_segmentation": (size, size)} if self.segmentation else {})
        return {**{name: spaces.Box(0, 255, shape, np.uint8) for name, shape in pictures.items()},
                **{name: spaces.Box(-np.inf, np.inf, (count,), np.float64) for name, count in numbers.items()}}

    def _observation(self, draw: bool = True) -> dict[str, np.ndarray]:
        from robosuite.utils.transform_utils import convert_quat, quat2axisangle

        robot, data = self.stock.robots[0], self.stock.sim.data
        quaternion = convert_quat(np.array(data.get_body_xquat(robot.robot_model.eef_name)), to="xyzw")
        if draw:
            self._pictures = self._draw()
        return self._pictures | {"ee_pos": np.array(data.site_xpos[robot.eef_site_id]),
                                 "ee_ori": np.array(quat2axisangle(quaternion)),
                                 "gripper_states": data.qpos[robot._ref_gripper_joint_pos_indexes],
                                 "joint_states": data.qpos[robot._ref_joint_pos_indexes]}

    def _draw(self) -> dict[str, np.ndarray]:
        pictures = {"agentview_rgb": self.render()}
        if self.wrist_size:
            pictures["eye_in_hand_rgb"] = self.render_camera("robot0_eye_in_hand", self.wrist_size)
        if self.segmentation:
            pictures["agentview_segmentation"] = self.segment(self.image_size)
        return pictures

    def _paint(self, size: int):
        """A painter of the present model (a stock reset makes a new one) for pictures of at least `size` pixels."""
        from .fast import Painter

        model = self.stock.sim.model._model
        if self._painter is None or self._painter.model is not model or self._painter.size < size:
            if self._painter is not None:
                self._painter.close()
            self._painter = Painter(model, max(size, self.image_size))
        return self._painter


@contextmanager
def _numpy_seed(seed: int):
    """LIBERO draws from numpy's global generator: seed it, and give it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


# Worker processes that simulate: one environment each, because software GL mixes up pictures of several.

@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes for one task. On any exception, what runs is finished and saved, what waits is dropped.

    Raises LarError when one of them was killed, and where no image can be rendered.
    """
    prepare()
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise LarError("A worker process was killed, perhaps for lack of memory: run the same command again, with "
                       "fewer workers; what was finished is kept.") from error
    finally:
        executor.shutdown(cancel_futures=True)


@cache
def environment(task: int, image_size: int, wrist_size: int, assets: str | None = None) -> SpatialEnv:
    """The one environment of this worker process, with segmentation."""
    return SpatialEnv(task, image_size=image_size, wrist_size=wrist_size, assets=assets, segmentation=True)


def _start_worker() -> None:
    ignore_stops()
    end_with_parent()
