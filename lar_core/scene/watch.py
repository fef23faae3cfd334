"""What happened in an episode, not only whether it succeeded: what the hand met first, how far it came, what it brought.

The *named* bowl is the one that counts under what is told: of `Scene.target`. MuJoCo's contacts are read after every control
step (1/20 s; a touch that begins and ends in between is missed) and nothing is computed anew, so that states stay the same
bit for bit. Table, floor and the robot itself are nothing that can be touched.

* first_touched: the first object that hand or fingers met: the named bowl, the other one, or something else (plate,
  ramekin, cookie box, cabinet, stove). Of several met within one step the first of these three counts.
* progress: the furthest that came about with the named bowl. touched: hand or finger met it; grasped: both fingers at
  once; lifted: grasped while more than 2 cm above where it stood at the beginning; placed: success.
* on_plate: which bowl LIBERO's predicate finds on the plate at the end.
"""

from __future__ import annotations

import numpy as np

from .env import SpatialEnv
from .placements import PLATE, Scene

HAPPENED = {"first_touched": ("named", "other", "else", "none"),
            "progress": ("none", "touched", "grasped", "lifted", "placed"),
            "on_plate": ("named", "other", "both", "none")}
LIFTED = 0.02  # metres
_NAMED, _OTHER, _ELSE, _NOTHING = range(4)  # what a geom belongs to, in the order of first_touched
_HAND, _LEFT, _RIGHT, _NO_PART = range(4)  # of the gripper


class Watch:
    """Follows one episode of `env`, which stands at its beginning: `look` after each step, then read `happened`."""

    def __init__(self, env: SpatialEnv, scene: Scene) -> None:
        self.env, self.scene = env, scene
        self.first_touched, self.reached = "none", 0
        self._start = self._height
        owners = {scene.target: _NAMED, scene.distractor: _OTHER}
        self._owners = np.array([_NOTHING, *(owners.get(name, _ELSE) for name in env.objects)])[env.geom_labels()]
        self._parts = _gripper_parts(env)

    def look(self) -> None:
        """Take in what is touched at this moment."""
        met = self._met()
        touched = met.any(axis=0)
        if self.first_touched == "none" and touched.any():
            self.first_touched = HAPPENED["first_touched"][int(touched.argmax())]
        grasped = met[_LEFT, _NAMED] and met[_RIGHT, _NAMED]
        lifted = grasped and self._height > self._start + LIFTED
        self.reached = max(self.reached, int(touched[_NAMED]) + int(grasped) + int(lifted))

    @property
    def happened(self) -> dict[str, str]:
        """A word of `HAPPENED` for each of its questions, as things are at this moment."""
        named, other = (self.env.satisfied(["on", bowl, PLATE]) for bowl in (self.scene.target, self.scene.distractor))
        on_plate = {(True, True): "both", (True, False): "named", (False, True): "other"}.get((named, other), "none")
        placed = on_plate == "named"  # which is `placements.success`
        return {"first_touched": self.first_touched, "on_plate": on_plate,
                "progress": "placed" if placed else HAPPENED["progress"][self.reached]}

    def _met(self) -> np.ndarray:
        """bool (3, 3): whether hand, left and right finger (rows) touch named bowl, other bowl, something else."""
        geoms = np.asarray(self.env.stock.sim.data._data.contact.geom)  # (n, 2)
        met = np.zeros((4, 4), dtype=bool)
        met[self._parts[geoms], self._owners[geoms[:, ::-1]]] = True
        return met[:_NO_PART, :_NOTHING]

    @property
    def _height(self) -> float:
        return float(self.env.body_pose(self.scene.target)[0][2])


def _gripper_parts(env: SpatialEnv) -> np.ndarray:
    """int (geoms,): the part of the gripper that each geom is, most of them _NO_PART."""
    model, gripper = env.stock.sim.model, env.stock.robots[0].gripper
    fingers = gripper.important_geoms
    parts = np.full(model.ngeom, _NO_PART)
    for part, names in ((_HAND, gripper.contact_geoms), (_LEFT, fingers["left_finger"]), (_RIGHT, fingers["right_finger"])):
        parts[[model.geom_name2id(name) for name in names]] = part
    return parts
