"""An environment whose episodes are the evaluation scenes of one task.

Every rollout process builds one, so nothing here may import torch: that takes longer than the episodes of a small test.
"""

from __future__ import annotations

import gymnasium
import numpy as np

from ..config import Profile
from .env import SpatialEnv
from .placements import evaluation_scenes, success
from .reference import scene_record


class EpisodeEnv(gymnasium.Wrapper):
    """A SpatialEnv whose `reset(seed=i)` sets up evaluation scene number i and whose success is that scene's own.

    After success it stands still, so that the environments beside it can finish their episodes.
    """

    def __init__(self, task: int, placement: str, profile: Profile):
        super().__init__(SpatialEnv(task, image_size=profile.image_size, wrist_size=profile.wrist_size))
        self.scenes = evaluation_scenes(task, placement)
        self.record = scene_record(self.env)  # kept with every episode: assets, renderer, versions, reference picture
        self.wait_steps = profile.wait_steps

    def reset(self, *, seed: int, options: dict | None = None):
        """Start evaluation scene number `seed`."""
        self.scene = self.scenes[seed]
        self.done = False
        self.last, info = self.env.reset(seed=self.scene.seed, options={"init_state": self.scene.init_state,
                                                                       "wait_steps": self.wait_steps})
        return self.last, info

    def step(self, action: np.ndarray):
        """Move until success, then stand still."""
        if not self.done:
            self.last, *_ = self.env.step(action)
            self.done = success(self.env, self.scene)
        return self.last, float(self.done), self.done, False, {}
