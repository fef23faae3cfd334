"""An environment whose episodes are the evaluation scenes of one task.

Every rollout process builds one, so nothing here may import torch: that takes longer than the episodes of a small test.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Sequence

import gymnasium
import numpy as np

from ..run.errors import LarError
from ..run.processes import ignore_stops
from ..run.settings import BLANK, INSTRUCTIONS, Profile
from .env import SpatialEnv, instruction
from .placements import OTHER_SENTENCE, RELATIONS, Scene, evaluation_scenes, success
from .reference import scene_record
from .setup import assets_of
from .watch import Watch

POSITIONS = 49  # of a flattened state: the time, then 48 positions, then 43 velocities


def episode_env(task: int, placement: str, profile: Profile) -> EpisodeEnv:
    """An EpisodeEnv for gymnasium's vector of them, which builds one more in its own process, to look at."""
    if multiprocessing.current_process().daemon:  # one of its workers
        ignore_stops()
    return EpisodeEnv(task, placement, profile)


class EpisodeEnv(gymnasium.Wrapper):
    """A SpatialEnv whose `reset(seed=i)` sets up evaluation scene number i and whose success (reward 1) is that scene's own.

    With the option "other_bowl" success is the scene's other bowl on the plate, and its own bowl there ends the episode
    without success. At its end the scene stands still, so that the environments beside it can finish their episodes.
    `happened` is what it came to beside success (`watch.HAPPENED`). Set `drawn` to False before steps whose pictures nobody
    looks at.
    """

    def __init__(self, task: int, placement: str, profile: Profile):
        super().__init__(SpatialEnv(task, image_size=profile.image_size, wrist_size=profile.wrist_size,
                                    assets=assets_of(profile)))
        self.scenes = evaluation_scenes(task, placement)
        self.record = scene_record(self.env)  # kept with every episode: assets, renderer, versions, reference picture
        self.wait_steps = profile.wait_steps

    def reset(self, *, seed: int, options: dict | None = None):
        """Start evaluation scene number `seed`. options: {"other_bowl": True} to ask for its other bowl."""
        self.scene = self.scenes[seed]
        self.asked = self.scene.of_other_bowl() if (options or {}).get("other_bowl") else self.scene
        self.reward, self.done, self.drawn = 0.0, False, True
        self.last, info = self.env.reset(seed=self.scene.seed, options={"init_state": self.scene.init_state,
                                                                       "wait_steps": self.wait_steps})
        self.watch = Watch(self.env, self.asked)
        self.begun = fingerprint(self.env.state())
        return self.last, info

    def step(self, action: np.ndarray):
        """Move until a bowl that counts is on the plate, then stand still."""
        if not self.done:
            self.last, *_ = self.env.step(action, draw=self.drawn)
            self.watch.look()
            self.reward = float(success(self.env, self.asked))
            self.done = bool(self.reward) or (self.asked is not self.scene and self.env.satisfied(self.scene.goal))
        return self.last, self.reward, self.done, False, {}

    @property
    def happened(self) -> dict[str, str]:
        """What happened in the episode up to now."""
        return self.watch.happened


def fingerprint(state: np.ndarray) -> str:
    """A short hash of where everything is in a flattened state (92,): two episodes with the same one began alike.

    Positions to 0.1 mm and 0.1 mrad, without velocities: between processors the last bits differ, which after the wait can
    be a micrometre. Cabinet and stove are no part of it; they follow from the scene's number.
    """
    return hashlib.sha256((state[1:POSITIONS] * 1e4).round().astype(np.int64).tobytes()).hexdigest()[:12]


# What a policy is told in a rollout, and which bowl then counts: one kind of instruction at a time.


def told(kind: str, scene: Scene, tasks: Sequence[int]) -> str:
    """The sentence of a kind that `scene` has (`kinds`); tasks: those of the profile."""
    if kind == "blank":
        return BLANK
    if kind == "other_task":
        return instruction(other_task(scene.task, tasks))
    return scene.of_other_bowl().instruction if kind == "other_bowl" else scene.instruction


def other_task(task: int, tasks: Sequence[int]) -> int | None:
    """The task of `tasks` whose sentence is told in the scene of `task`, or None: the first one from three further on.

    A sentence that is true of either bowl of this scene would be another question, so those are passed over.
    """
    others = [other for other in tasks if other != task and RELATIONS[other][0] not in RELATIONS[task]]
    return min(others, key=lambda other: (other - task - 3) % len(RELATIONS), default=None)


def kinds(task: int, tasks: Sequence[int]) -> tuple[str, ...]:
    """Those of `INSTRUCTIONS` that the scene of `task` has in a profile of `tasks`."""
    missing = {"other_task": other_task(task, tasks) is None, "other_bowl": task not in OTHER_SENTENCE}
    return tuple(kind for kind in INSTRUCTIONS if not missing.get(kind))


def kinds_of(tasks: Sequence[int]) -> tuple[str, ...]:
    """The kinds that at least one task of a profile has: what is rolled out unless others are asked for."""
    return tuple(kind for kind in INSTRUCTIONS if any(kind in kinds(task, tasks) for task in tasks))


def check_kinds(asked: Sequence[str], tasks: Sequence[int]) -> None:
    """Raise LarError for a kind that no task of the profile has; say which tasks lack one that others have."""
    for kind in asked:
        without = [task for task in tasks if kind not in kinds(task, tasks)]
        names = ", ".join(map(str, without))
        if len(without) == len(tasks):
            raise LarError(f"There is no {kind} instruction for task {names}: {_WHY[kind]} "
                           f"Kinds to ask for here: {', '.join(kinds_of(tasks))}.")
        if without:
            print(f"Task {names} is left out under {kind} instructions: {_WHY[kind]}")


_WHY = {"other_task": "it takes the sentence of another task of the profile that names neither bowl of the scene.",
        "other_bowl": "in its scene no sentence of LIBERO-Spatial names the other bowl alone."}
