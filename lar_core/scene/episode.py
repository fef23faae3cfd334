"""An environment whose episodes are the evaluation scenes of one task.

Every rollout process builds one, so nothing here may import torch: that takes longer than the episodes of a small test.
"""

from __future__ import annotations

import multiprocessing

import gymnasium
import numpy as np

from ..run.config import Profile
from ..run.processes import ignore_stops
from .env import SpatialEnv
from .placements import evaluation_scenes, success
from .reference import scene_record


def episode_env(task: int, placement: str, profile: Profile) -> EpisodeEnv:
    """An EpisodeEnv for gymnasium's vector of them, which builds one more in its own process, to look at."""
    if multiprocessing.current_process().daemon:  # one of its workers
        ignore_stops()
    return EpisodeEnv(task, placement, profile)


class EpisodeEnv(gymnasium.Wrapper):
    """A SpatialEnv whose `reset(seed=i)` sets up evaluation scene number i and whose success (reward 1) is that scene's own.

    With the option "other_bowl" success is the scene's other bowl on the plate, and its own bowl there ends the episode
    without success. At its end the scene stands still, so that the environments beside it can finish their episodes.
    """

    def __init__(self, task: int, placement: str, profile: Profile):
        super().__init__(SpatialEnv(task, image_size=profile.image_size, wrist_size=profile.wrist_size))
        self.scenes = evaluation_scenes(task, placement)
        self.record = scene_record(self.env)  # kept with every episode: assets, renderer, versions, reference picture
        self.wait_steps = profile.wait_steps

    def reset(self, *, seed: int, options: dict | None = None):
        """Start evaluation scene number `seed`. options: {"other_bowl": True} to ask for its other bowl."""
        self.scene = self.scenes[seed]
        self.asked = self.scene.of_other_bowl() if (options or {}).get("other_bowl") else self.scene
        self.reward, self.done = 0.0, False
        self.last, info = self.env.reset(seed=self.scene.seed, options={"init_state": self.scene.init_state,
                                                                       "wait_steps": self.wait_steps})
        return self.last, info

    def step(self, action: np.ndarray):
        """Move until a bowl that counts is on the plate, then stand still."""
        if not self.done:
            self.last, *_ = self.env.step(action)
            self.reward = float(success(self.env, self.asked))
            self.done = bool(self.reward) or (self.asked is not self.scene and self.env.satisfied(self.scene.goal))
        return self.last, self.reward, self.done, False, {}
