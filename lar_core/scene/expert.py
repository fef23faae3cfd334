"""A scripted expert for the ten LIBERO-Spatial tasks: it reads the simulator's state and answers with actions.

The Panda pinches the bowl's wall: one finger inside, one outside. A motion is a *funnel*: the hand flies at a safe
height while it is far from its goal in the plane, and sinks as it comes closer. One attempt is approach, close, lift,
carry, release; a bowl that slipped is tried again from another side. Lengths are metres in the world frame, angles
radians, actions OSC_POSE deltas (x, y, z, rx, ry, rz, gripper) in [-1, 1] with gripper -1 open, +1 closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.spatial.transform import Rotation

from .. import __version__
from ..data.demos import PER_STEP, Episode
from ..run.versions import versions
from .env import SpatialEnv
from .placements import CABINET, RADII, ROBOT_BASE, Scene, distance_to_rectangle, success

OPEN, CLOSED = -1.0, 1.0
POSITION_GAIN, ROTATION_GAIN = 0.05, 0.5  # error that asks for a full action: OSC_POSE's own scales. A higher gain
# would ask a policy that learns from pictures for more precision than they have
SPEED, TURN_SPEED = 0.6, 0.4  # largest action: slow enough for a policy that looks only every few steps
RIM_HEIGHT = 0.053  # of the bowl's rim above its origin
PINCH_RADIUS, PINCH_DEPTH = 0.042, 0.017  # where the hand aims: from the bowl's axis, below the rim
DRAWER_PINCH_RADIUS = 0.032  # there the outer finger has a wall behind it
FINGER_REACH = 0.045  # from the hand's axis to the outside of an open finger
HAND_WIDTH = 0.105  # from the hand's axis to the end of the palm, along the fingers' line
DRAWER_TOP = 1.125  # upper edge of the open drawer
EASY_REACH = 0.70  # of the hand from the robot's base; the elbow is straight, and stuck, from 0.75 to 0.78 on
HOVER, LIFT, DROP = 0.10, 0.07, 0.01  # safe height over a goal; how high to lift; how high above rest to let go
BOWL_ON_PLATE = 0.006  # the bowl's origin above the plate's, at rest
SLIP = 0.04  # a bowl that has moved so far in the hand is lost
DIRECTIONS = 16  # candidate sides of the bowl
ATTEMPTS = 3
CLOSING = 14  # steps until the fingers press: sooner, the bowl slips
STEP_LIMIT = 300  # of a recorded episode
NOISE_MEMORY = 0.9  # correlation of the recovery noise from one step to the next
NOISE_SHARES = np.array([1, 1, 1, 0.25, 0.25, 0.25, 0])  # of position, rotation and gripper
CAREFUL_NOISE = 0.3  # the part of the noise that remains while the fingers are at the bowl
IDLE = np.array([0, 0, 0, 0, 0, 0, OPEN])


class Expert:
    """Solves `scene` in `env`, which must have been reset to it: `while not expert.done: env.step(expert.act())`.

    Closed-loop: every action is computed from the state of that moment, so disturbances are corrected.
    """

    def __init__(self, env: SpatialEnv, scene: Scene) -> None:
        self.env, self.scene = env, scene
        self.done = False  # the plan has ended, in success or after the last attempt
        self.careful = False  # the fingers are at the bowl
        self._plan = self._attempts()

    def act(self) -> np.ndarray:
        """Return the next clean action (7,), float64 in [-1, 1]; at the end of the plan an idle one."""
        try:
            return next(self._plan)
        except StopIteration:
            self.done = True
            return IDLE.copy()

    # --- the plan -------------------------------------------------------------------------------------------------

    def _attempts(self) -> Iterator[np.ndarray]:
        for attempt in range(ATTEMPTS):
            yield from self._grasp(self._best_directions()[attempt])
            if self._held:
                yield from self._carry_and_release()
            else:
                yield from self._rise(OPEN)
            if success(self.env, self.scene):
                return

    def _grasp(self, direction: float) -> Iterator[np.ndarray]:
        turn = palm_down(direction)
        self.careful = False
        yield from self._funnel(lambda: self._pinch_point(direction), turn, OPEN, tolerance=0.006)
        self.careful = True
        yield from self._hold(turn, CLOSED, steps=CLOSING)
        self._resting_height = self._bowl[2]
        yield from self._rise(CLOSED)

    def _carry_and_release(self) -> Iterator[np.ndarray]:
        turn = self._hand()[1]
        yield from self._while_held(self._carry(turn))
        self.careful = True
        yield from self._hold(turn, OPEN, steps=6)
        yield from self._rise(OPEN)

    def _carry(self, turn: Rotation) -> Iterator[np.ndarray]:
        start, height = self._hand()[0], self._carry_height()
        rest = self._plate + [0, 0, BOWL_ON_PLATE + DROP]
        yield from self._go(lambda: np.array([*start[:2], height - self._grip[2]]), turn, CLOSED,
                            lambda: self._bowl[2] > height - 0.015)
        yield from self._funnel(lambda: rest - self._grip, turn, CLOSED, tolerance=0.01, hover=height - rest[2])

    # --- motions: each yields actions until it has arrived or run out of time -------------------------------------

    def _funnel(self, goal: Callable[[], np.ndarray], turn: Rotation, gripper: float, tolerance: float,
                hover: float = HOVER) -> Iterator[np.ndarray]:
        def waypoint() -> np.ndarray:
            hand, rotation = self._hand()
            away = np.linalg.norm((goal() - hand)[:2]) + 0.1 * (turn * rotation.inv()).magnitude()
            self.careful = away < 0.03
            return np.array([*_retracted(hand, goal()), goal()[2] + np.clip(3 * (away - 0.02), 0, hover)])
        yield from self._go(waypoint, turn, gripper, lambda: self._distance(goal()) < tolerance)

    def _rise(self, gripper: float) -> Iterator[np.ndarray]:
        hand, turn = self._hand()
        top = hand + [0, 0, LIFT]
        yield from self._go(lambda: top, turn, gripper, lambda: self._distance(top) < 0.015, limit=25)

    def _while_held(self, motion: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        grip = self._grip
        for action in motion:
            if np.linalg.norm(self._grip - grip) > SLIP:
                return
            yield action

    def _hold(self, turn: Rotation, gripper: float, steps: int) -> Iterator[np.ndarray]:
        hand = self._hand()[0]
        for _ in range(steps):
            yield self._towards(hand, turn, gripper)

    def _go(self, waypoint: Callable[[], np.ndarray], turn: Rotation, gripper: float, arrived: Callable[[], bool],
            limit: int = 120) -> Iterator[np.ndarray]:
        for _ in range(limit):
            if arrived():
                return
            yield self._towards(waypoint(), turn, gripper)

    def _towards(self, position: np.ndarray, turn: Rotation, gripper: float) -> np.ndarray:
        hand, rotation = self._hand()
        move = (position - hand) / POSITION_GAIN
        move[:2] /= max(1.0, np.linalg.norm(move[:2]) / SPEED)  # a straight line in the plane
        move[2] = np.clip(move[2], -SPEED, SPEED)
        twist = np.clip((turn * rotation.inv()).as_rotvec() / ROTATION_GAIN, -TURN_SPEED, TURN_SPEED)
        return np.concatenate([move, twist, [gripper]])

    # --- what the expert knows ------------------------------------------------------------------------------------

    def _hand(self) -> tuple[np.ndarray, Rotation]:
        robot, data = self.env.stock.robots[0], self.env.stock.sim.data
        site = robot.eef_site_id
        return data.site_xpos[site].copy(), Rotation.from_matrix(data.site_xmat[site].reshape(3, 3))

    def _distance(self, position: np.ndarray) -> float:
        return float(np.linalg.norm(position - self._hand()[0]))

    @property
    def _bowl(self) -> np.ndarray:
        return self.env.body_pose(self.scene.target)[0]

    @property
    def _plate(self) -> np.ndarray:
        return self.env.body_pose("plate_1")[0]

    @property
    def _grip(self) -> np.ndarray:
        """The bowl's origin as seen from the hand (3,): measured, because a pinched bowl shifts."""
        return self._bowl - self._hand()[0]

    @property
    def _held(self) -> bool:
        return self._bowl[2] > self._resting_height + LIFT / 2

    @property
    def _in_drawer(self) -> bool:
        return self.scene.relation == ("fixed", "drawer") and bool(self._bowl[2] > 1.0)  # the table top is at 0.9

    def _pinch_point(self, direction: float) -> np.ndarray:
        position, quaternion = self.env.body_pose(self.scene.target)
        spin_free = _upright_axis(quaternion)
        radius = DRAWER_PINCH_RADIUS if self._in_drawer else PINCH_RADIUS
        return position + spin_free.apply([radius * np.cos(direction), radius * np.sin(direction), RIM_HEIGHT - PINCH_DEPTH])

    def _best_directions(self) -> list[float]:
        """The best first; in the drawer along it, where alone there is room for the open fingers, from the robot's side."""
        if not self._in_drawer:
            return sorted(np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS, key=self._cost)
        _, quaternion = self.env.body_pose("wooden_cabinet_1")
        along = Rotation.from_quat(quaternion, scalar_first=True).apply([1, 0, 0])[:2]
        near = along * np.sign(np.dot(along, ROBOT_BASE - self._bowl[:2]))
        angle = float(np.arctan2(near[1], near[0]))
        return [angle, angle + np.pi, angle]

    def _cost(self, direction: float) -> float:
        outward = np.array([np.cos(direction), np.sin(direction)])
        outer_finger = self._bowl[:2] + (PINCH_RADIUS + FINGER_REACH) * outward
        crowded = max(0.0, 0.015 - self._clearance(outer_finger))
        wrist_turn = np.arccos(abs(outward[1]))
        places = np.array([self._bowl[:2], self._plate[:2]]) + PINCH_RADIUS * outward
        stretch = np.maximum(0, np.linalg.norm(places - ROBOT_BASE, axis=1) - EASY_REACH).sum()
        return 100 * (crowded + self._cabinet_blocks(outward)) + 8 * stretch + 0.3 * wrist_turn + 0.05 * outward[1]

    def _clearance(self, point: np.ndarray) -> float:
        """Distance (m) from a fingertip at `point` (2,) to the nearest thing standing as high as the bowl's wall."""
        places = {name: self.env.body_pose(name)[0] for name in RADII if name != self.scene.target}
        return min([1.0, *(np.linalg.norm(place[:2] - point) - RADII[name] for name, place in places.items()
                           if abs(place[2] - self._bowl[2]) < 0.03)])

    def _cabinet_blocks(self, outward: np.ndarray) -> float:
        """How far (m) the hand, wide along the fingers' line, would come too near to the cabinet's wall."""
        places = [self._plate[:2]] + [self._bowl[:2]] * bool(self._bowl[2] < 1.0)  # unless in the drawer or on top
        ends = [place + (PINCH_RADIUS + side * HAND_WIDTH) * outward for place in places for side in (-1, 1)]
        return max(max(0.0, 0.02 - distance_to_rectangle(end, *CABINET)) for end in ends)

    def _carry_height(self) -> float:
        """The height (m) of the bowl's origin that clears whatever stands between it and the plate."""
        start, end, other = self._bowl, self._plate, self.env.body_pose(self.scene.distractor)[0]
        tops = [DRAWER_TOP] * self._in_drawer
        if _distance_to_segment(other[:2], start[:2], end[:2]) < 0.13:
            tops.append(other[2] + RIM_HEIGHT)
        return max([start[2], end[2] + 0.08, *(top + 0.03 for top in tops)])


def run_expert(env: SpatialEnv, scene: Scene, noise: float = 0.0, seed: int = 0) -> Episode | None:
    """Let the expert solve `scene` and record it; None if it did not succeed within 300 steps.

    noise: standard deviation, in action units, of a slowly changing disturbance that is added to what is executed (the
    gripper excepted) but not to what is recorded: the demonstration then shows how to recover from errors. Its draws
    depend on `seed` alone.
    """
    observation, _ = env.reset(seed=scene.seed, options={"init_state": scene.init_state})
    expert, disturbances, steps = Expert(env, scene), _disturbances(noise, seed), []
    while not expert.done and len(steps) < STEP_LIMIT:
        action = expert.act()
        steps.append(observation | {"actions": action, "states": env.state()})
        disturbance = next(disturbances) * (CAREFUL_NOISE if expert.careful else 1.0)
        observation, *_ = env.step(np.clip(action + disturbance, -1, 1))
    # LIBERO's predicate holds as soon as the bowl touches the plate, still in the hand: a demonstration that
    # ended there would never show how to let go.
    if not success(env, scene):
        return None
    keys = {name: "agentview_segmentation" if name == "segmentation" else name for name in PER_STEP}
    arrays = {name: np.stack([step[key] for step in steps]) for name, key in keys.items() if key in steps[0]}
    provenance = {"expert_noise": noise, "expert_seed": seed, "task": scene.task, "placement": scene.placement,
                  "seed": scene.seed, "assets": env.assets, "versions": versions() | {"lar_core": __version__}}
    return Episode(**arrays, instruction=scene.instruction, objects=env.objects, target=scene.target,
                   distractor=scene.distractor, init_state=scene.init_state, provenance=provenance)


def _disturbances(noise: float, seed: int) -> Iterator[np.ndarray]:
    """Endless (7,) disturbances: stationary, each correlated with the one before, none for the gripper."""
    rng, current = np.random.default_rng(seed), np.zeros(7)
    while True:
        fresh = rng.normal(0, noise, 7) * NOISE_SHARES
        current = NOISE_MEMORY * current + np.sqrt(1 - NOISE_MEMORY ** 2) * fresh
        yield current


def palm_down(direction: float) -> Rotation:
    """Palm down, fingers along `direction` (radians); of the two ways to do that, the one nearer to the resting wrist."""
    fingers = np.array([np.cos(direction), np.sin(direction), 0.0])
    fingers = fingers if fingers[1] >= 0 else -fingers
    down = np.array([0.0, 0.0, -1.0])
    return Rotation.from_matrix(np.stack([fingers, np.cross(down, fingers), down], axis=1))


def _retracted(hand: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Where in the plane (2,) to head for: turn towards `goal` at an easy reach first, then stretch out to it."""
    start, end = hand[:2] - ROBOT_BASE, goal[:2] - ROBOT_BASE
    reach = np.linalg.norm(end)
    sideways = abs(start[0] * end[1] - start[1] * end[0]) / np.linalg.norm(start)
    return ROBOT_BASE + end / reach * max(min(reach, EASY_REACH), reach - sideways)


def _upright_axis(quaternion: np.ndarray) -> Rotation:
    """The part of an orientation (w, x, y, z) that tilts the vertical, without its spin about it."""
    axis = Rotation.from_quat(quaternion, scalar_first=True).apply([0, 0, 1])
    tilt = np.cross([0, 0, 1], axis)
    sine = np.linalg.norm(tilt)
    return Rotation.from_rotvec(tilt / max(sine, 1e-9) * np.arctan2(sine, axis[2]))


def _distance_to_segment(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    along = end - start
    share = np.clip(np.dot(point - start, along) / max(np.dot(along, along), 1e-9), 0, 1)
    return float(np.linalg.norm(start + share * along - point))
