"""Evaluation scenes as LeRobot's LIBERO environment shows them: same keys and orders, pictures as OpenGL draws them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl
from lar_core.run.settings import PAIRED, Profile
from lar_core.scene.episode import EpisodeEnv, check_kinds, kinds, told
from lar_core.scene.placements import OTHER_SENTENCE, evaluation_scenes

STEPS = 280  # LeRobot's limit for LIBERO-Spatial; `lar rollout` takes 220
SEEDS = 1000  # LeRobot's first seed, by default: the episode of seed 1000 is number 0
GREY = 128  # what blind policies of this project see


class LarSpatial(gymnasium.Env):
    """One stored scene after another, over one or more tasks; `reset(seed=1000 + i)` begins episode number i.

    Once an episode is over the scene stands still until a reset with a seed begins the next one. LeRobot's vector resets
    without a seed what has ended while others go on.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    render_mode = "rgb_array"
    task = "libero_spatial"

    def __init__(self, *, tasks: list[int] | None = None, placement: str = "official", instruction: str = "right",
                 blank_image: bool = False, episodes_per_task: int | None = None, outcomes: str | None = None,
                 episode_length: int | None = None, image_size: int = 256, wrist_size: int = 256,
                 obs_type: str = "pixels_agent_pos", render_mode: str = "rgb_array") -> None:
        self.placement, self.instruction, self.blank_image, self.outcomes = placement, instruction, blank_image, outcomes
        self.obs_type, self._max_episode_steps = obs_type, episode_length or STEPS
        self.profile = Profile(image_size=image_size, wrist_size=wrist_size)
        self.tasks = tuple(tasks or (OTHER_SENTENCE if placement in PAIRED else range(10)))
        check_kinds((instruction,), self.tasks)
        self.plan = [(task, scene) for task in self.tasks if instruction in kinds(task, self.tasks)
                     for scene in range(_count(task, placement, episodes_per_task))]
        self.scene: EpisodeEnv | None = None
        self.task_id, self.task_description = self.plan[0][0], ""
        self.observation_space = spaces.Dict(_spaces(image_size, wrist_size, obs_type))
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begin episode number `seed` modulo 1000. Raises LarError for one that there is none of, and for a first reset
        without a seed."""
        super().reset(seed=seed)
        if seed is not None:
            self._begin(seed % SEEDS)
        elif self.scene is None:
            raise LarError("lar_spatial takes the number of the episode from the seed: do not set --seed to null.")
        return self._seen(), {"is_success": False}

    def _begin(self, number: int) -> None:
        if number >= len(self.plan):
            raise LarError(f"Episode {number} was asked for, but {self.placement} placements of tasks {self.tasks} have "
                           f"{len(self.plan)}: let --eval.n_episodes be at most that many and a multiple of "
                           f"--eval.batch_size, and --seed a multiple of {SEEDS}.")
        self.task_id, self.episode = self.plan[number]
        if self.scene is None or self.scene.env.task != self.task_id:
            self.close()
            self.scene = EpisodeEnv(self.task_id, self.placement, self.profile)
        self.task_description = told(self.instruction, self.scene.scenes[self.episode], self.tasks)
        self.scene.reset(seed=self.episode, options={"other_bowl": self.instruction == "other_bowl"})
        self.steps, self.over = 0, False

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Advance 1/20 s. The end comes with success, with the bowl that was not asked for on the plate, or in time."""
        if self.over:
            return self._seen(), 0.0, False, False, {"is_success": False}
        _, reward, done, _, _ = self.scene.step(action)
        self.steps += 1
        late = not done and self.steps >= self._max_episode_steps
        self.over = done or late
        row = self._row(bool(reward), done)
        if self.over and self.outcomes:
            append_jsonl(self.outcomes, row | self.scene.record)
        return self._seen(), reward, done, late, {"is_success": bool(reward), **row}

    def _row(self, success: bool, done: bool) -> dict[str, Any]:
        """The episode as a line of `lar rollout`'s rollouts.jsonl tells it."""
        scene = self.scene.scene
        return {"instruction": self.instruction, "placement": self.placement, "blank_image": self.blank_image,
                "task": self.task_id, "episode": self.episode, "init_seed": scene.seed, "begun": self.scene.begun,
                "success": success,
                **({"did_not_listen": done and not success} if self.instruction == "other_bowl" else {}),
                "steps": self.steps, **self.scene.happened, "sentence": self.task_description}

    def _seen(self) -> dict:
        seen = self.scene.last
        pictures = {"image": seen["agentview_rgb"][::-1, ::-1], "image2": seen["eye_in_hand_rgb"][::-1, ::-1]}
        if self.blank_image:
            pictures = {name: np.full_like(picture, GREY) for name, picture in pictures.items()}
        return {"pixels": pictures} | ({} if self.obs_type == "pixels" else {"robot_state": _robot_state(self.scene.env)})

    def render(self) -> np.ndarray:
        """The agentview picture, upright, also where the policy sees grey."""
        return self.scene.last["agentview_rgb"]

    def close(self) -> None:
        """Free the scene; safe to call twice."""
        if self.scene is not None:
            self.scene.close()
            self.scene = None


def _count(task: int, placement: str, wanted: int | None) -> int:
    stored = len(evaluation_scenes(task, placement))
    if wanted is not None and not 1 <= wanted <= stored:
        raise LarError(f"episodes_per_task is {wanted}, but task {task} has {stored} stored scenes with {placement} "
                       f"placements: ask for 1 to {stored}.")
    return wanted or stored


def _robot_state(env: Any) -> dict[str, dict[str, np.ndarray]]:
    """LIBERO's readings of the arm (float64), at the end of the step; its own observables are older: docs/lerobot.md."""
    from robosuite.utils.transform_utils import convert_quat

    robot, data = env.stock.robots[0], env.stock.sim.data
    quaternion = np.array(data.get_body_xquat(robot.robot_model.eef_name))
    return {"eef": {"pos": np.array(data.site_xpos[robot.eef_site_id]), "quat": convert_quat(quaternion, to="xyzw"),
                    "mat": np.array(robot.controller.ee_ori_mat)},
            "gripper": {"qpos": data.qpos[robot._ref_gripper_joint_pos_indexes],
                        "qvel": data.qvel[robot._ref_gripper_joint_vel_indexes]},
            "joints": {"pos": data.qpos[robot._ref_joint_pos_indexes], "vel": data.qvel[robot._ref_joint_vel_indexes]}}


def _spaces(image_size: int, wrist_size: int, obs_type: str) -> dict[str, spaces.Space]:
    def numbers(*shape: int) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, shape, np.float64)

    pixels = {name: spaces.Box(0, 255, (size, size, 3), np.uint8)
              for name, size in (("image", image_size), ("image2", wrist_size))}
    state = {"eef": spaces.Dict({"pos": numbers(3), "quat": numbers(4), "mat": numbers(3, 3)}),
             "gripper": spaces.Dict({"qpos": numbers(2), "qvel": numbers(2)}),
             "joints": spaces.Dict({"pos": numbers(7), "vel": numbers(7)})}
    return {"pixels": spaces.Dict(pixels)} | ({} if obs_type == "pixels" else {"robot_state": spaces.Dict(state)})
