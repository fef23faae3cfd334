"""LeRobot's door to the scene: `--env.discover_packages_path=lerobot_env_lar --env.type=lar_spatial`.

LeRobot 0.4.4 finds policies, robots and cameras of other packages by their names, but no environments: hence the first
option. Whoever has `lerobot_policy_lar` installed may leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
from lerobot.envs.configs import EnvConfig, LiberoEnv

try:
    from lar_core.run.errors import unknown
    from lar_core.run.settings import INSTRUCTIONS, PLACEMENTS
except ModuleNotFoundError as error:
    raise ImportError(f"lerobot_env_lar needs lar_core, which is not installed here ({error}): type `pip install --no-deps "
                      "-e FOLDER`, where FOLDER is the one that holds lar_core and integrations.") from error

SUITE, TASKS = "libero_spatial", 10


@EnvConfig.register_subclass("lar_spatial")
@dataclass
class LarSpatialConfig(LiberoEnv):
    """Stored scenes of LIBERO-Spatial's tasks. As a LiberoEnv it is given LeRobot's own processor of LIBERO's observations.

    The episode of seed s is number s modulo 1000 (LeRobot's seeds begin at 1000): `episodes_per_task` scenes of the first
    task in their stored order, then those of the next one.
    """

    task: str = SUITE
    observation_height: int = 256  # pixels of both cameras, as LeRobot's LIBERO has them
    observation_width: int = 256
    wrist_size: int | None = None  # pixels of the wrist camera where they are others
    placement: str = "official"  # official, near, near_counterfactual, wide, counterfactual
    instruction: str = "right"  # right, blank, other_task, other_bowl (which is then the one that counts)
    blank_image: bool = False  # every picture is grey
    episodes_per_task: int | None = None  # None: all that are stored
    outcomes: str | None = None  # a file that one line an episode is added to; `python -m lerobot_env_lar.table` reads it

    def __post_init__(self) -> None:
        """Raise LarError for a name that is none of ours, and for what the scene cannot do."""
        super().__post_init__()
        for what, value, known in (("task suite", self.task, (SUITE,)), ("placement", self.placement, PLACEMENTS),
                                   ("instruction", self.instruction, INSTRUCTIONS),
                                   ("control_mode", self.control_mode, ("relative",))):
            if value not in known:
                raise unknown(what, value, known)
        for task in self.task_ids or ():
            if task not in range(TASKS):
                raise unknown("task", task, range(TASKS))

    @property
    def package_name(self) -> str:
        """Where LeRobot looks for the environment."""
        return __name__

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What `LarSpatial` is made with."""
        return {"tasks": self.task_ids, "placement": self.placement, "instruction": self.instruction,
                "blank_image": self.blank_image, "episodes_per_task": self.episodes_per_task, "outcomes": self.outcomes,
                "episode_length": self.episode_length, "obs_type": self.obs_type, "render_mode": self.render_mode,
                "image_size": self.observation_height, "wrist_size": self.wrist_size or self.observation_height}


# Without gymnasium's wrappers, through which LeRobot does not see task_description.
gymnasium.register(f"{__name__}/{SUITE}", f"{__name__}.env:LarSpatial", order_enforce=False, disable_env_checker=True)
