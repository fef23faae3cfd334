"""Where things stand when an episode begins, what is asked for, and when it is done.

Placements of the ten LIBERO-Spatial tasks:

* `official`: the benchmark's own. Evaluation uses its 50 stored init states; demonstrations use its sampler, and the
  arm begins as differently as in those init states.
* `wide`: the same relations ("next to the plate") with every movable object anywhere the arm reaches and the camera
  sees. Bowls in the drawer, on the stove and on the cabinet stay there; everything else moves.
* `near`: between the two: everything that `wide` moves stands about 5 cm from its official place, and nowhere nearer
  than 3.5 cm: a hand that goes where a bowl usually stands then rarely finds its rim, or the plate.
* `counterfactual`: a wide scene in which *both* black bowls stand in a relation that a sentence of the benchmark names;
  each scene comes twice, once for either bowl. A policy that ignores the instruction cannot do better than half.
* `near_counterfactual`: such pairs of near scenes.

A wide or near scene is made by writing sampled positions (x, y; heights and orientations stay) into an official init
state and letting it settle: BDDL regions are independent rectangles, so a bowl "next to the plate" could not follow it.
Positions are metres in the world frame: x away from the robot, y to its left; the table's centre is (0, 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import combinations

import numpy as np

from ..run.errors import LarError, unknown
from ..run.settings import PAIRED, PLACEMENTS, Profile
from .env import SpatialEnv, instruction, official_init_states

BOWLS = ("akita_black_bowl_1", "akita_black_bowl_2")
COOKIES, RAMEKIN, PLATE = "cookies_1", "glazed_rim_porcelain_ramekin_1", "plate_1"
RADII = {BOWLS[0]: 0.06, BOWLS[1]: 0.06, COOKIES: 0.06, RAMEKIN: 0.05, PLATE: 0.085}  # with a little air
_ARM = slice(1, 8)  # joint positions in a flattened state
X_ADDRESS = {BOWLS[0]: 10, BOWLS[1]: 17, COOKIES: 24, RAMEKIN: 31, PLATE: 38}  # of x in a flattened state; y follows

Layout = dict[str, np.ndarray]  # positions (2,) by name
Pair = tuple[tuple[str, str], tuple[str, str]]  # (relation, reference) of either bowl

# What each task's scene says about its two bowls: (relation, reference). The first is the bowl that the task names.
RELATIONS: tuple[Pair, ...] = (
    (("between", PLATE), ("next_to", RAMEKIN)),
    (("next_to", RAMEKIN), ("next_to", COOKIES)),
    (("center", "table"), ("next_to", PLATE)),
    (("on", COOKIES), ("fixed", "cabinet")),
    (("fixed", "drawer"), ("fixed", "cabinet")),
    (("on", RAMEKIN), ("on", COOKIES)),
    (("next_to", COOKIES), ("fixed", "stove")),
    (("fixed", "stove"), ("fixed", "cabinet")),
    (("next_to", PLATE), ("next_to", RAMEKIN)),
    (("fixed", "cabinet"), ("fixed", "stove")),
)
# The task whose sentence names the second bowl of a task's scene. Task 0 has none: there the bowl between plate and
# ramekin stands as near to the ramekin as the one "next to" it.
OTHER_SENTENCE = {task: next(t for t, (first, _) in enumerate(RELATIONS) if first == second)
                  for task, (_, second) in enumerate(RELATIONS) if task != 0}

TABLE_AREA = np.array([[-0.22, 0.17], [-0.08, 0.32]])  # (x, y) × (low, high): reachable
VIEW_EDGE, VIEW_SLOPE = 0.39, 0.32  # agentview shows the table for |y| < 0.39 - 0.32 x
CABINET, STOVE = ((-0.15, 0.20), (-0.45, -0.13)), ((-0.46, -0.16), (-0.24, -0.05))  # outlines: (x range, y range)
OPEN_CABINET = ((-0.15, 0.25), (-0.45, 0.03))  # the cabinet with its top drawer open, and what that hides
CENTER, CENTER_RADIUS = np.array([-0.075, 0.0]), 0.04
BOWL_REACH, PLATE_REACH = 0.78, 0.82  # from the robot's base: what the scripted expert does reliably
ROBOT_BASE = np.array([-0.66, 0.0])
NEARBY = (0.035, 0.06)  # how far `near` moves an object, at least and at most
LOOSE = (0.0, 0.015)  # how far a bowl moves beside what it stands next to
MARGIN = 0.03  # between the outlines of unrelated objects
UNIQUE = 0.08  # the other bowl is at least so much farther from the reference than the named one
MOVED, TILTED = 0.012, 0.025  # a scene in which something moves farther while settling is rejected; TILTED: for a
# bowl on a support, which may come to rest at a slant

ARM_NOISE = 0.02  # radians, standard deviation of each joint at the beginning: robosuite's default, and measured in the
# benchmark's init states; LIBERO's sampler alone always begins with the same arm

NEAR = ("near", "near_counterfactual")
# Stored scenes a task; of pairs: a side.
EVALUATION_SCENES = {"wide": 50, "counterfactual": 20, "near": 50, "near_counterfactual": 20}
TRIES = 100  # seeds that one scene may use up
DEMO_SEEDS = 1_000_000  # demonstrations use seeds from here on, evaluation seeds stay below


@dataclass(frozen=True, eq=False)
class Scene:
    """One episode's beginning and goal: reset the environment of `task` with `seed` and `init_state`."""

    task: int  # whose BDDL file makes the scene
    placement: str
    init_state: np.ndarray  # (92,) flattened MuJoCo state, before the wait steps
    seed: int  # for reset: cabinet and stove are drawn from it
    instruction: str
    target: str  # the bowl that the instruction names

    @property
    def distractor(self) -> str:
        """The other bowl."""
        return BOWLS[1 - BOWLS.index(self.target)]

    @property
    def goal(self) -> list[str]:
        """LIBERO's predicate for the named bowl."""
        return ["on", self.target, PLATE]

    def of_other_bowl(self) -> Scene:
        """The same scene with the sentence that names its other bowl, which must exist (`other_instruction`)."""
        return replace(self, target=self.distractor, instruction=other_instruction(self.task, self.target))

    @property
    def relation(self) -> tuple[str, str]:
        """What the instruction says of the target, e.g. ("next_to", "plate_1")."""
        return RELATIONS[self.task][BOWLS.index(self.target)]


def evaluation_scenes(task: int, placement: str) -> list[Scene]:
    """The stored scenes that policies are evaluated on: 50, or for counterfactual 20 for either bowl, alternating.

    Raises LarError for an unknown task or placement, and for a task without a counterfactual pair.
    """
    _check(task, placement)
    if placement == "official":
        return [_scene(task, placement, seed, state) for seed, state in enumerate(official_init_states(task))]
    with np.load(files(__package__) / "init_states" / f"{placement}.npz", allow_pickle=False) as stored:
        layouts = list(zip(stored[f"task_{task}_seeds"].tolist(), stored[f"task_{task}_states"]))
    return [_scene(task, placement, seed, state, side) for seed, state in layouts for side in sides(placement)]


def tasks_with(placement: str, tasks: Sequence[int]) -> list[int]:
    """Those of `tasks` that have scenes with a placement; a counterfactual pair is not in every one.

    Raises LarError where none has.
    """
    having = [task for task in tasks if placement not in PAIRED or task in OTHER_SENTENCE]
    if not having:
        _check(tasks[0], placement)
    return having


def episode_count(profile: Profile, task: int, placement: str) -> int:
    """Episodes of a task with each instruction: `episodes_per_task`, elsewhere than at the profile's own placements at most
    as many as there are scenes."""
    if placement == profile.placement:
        return profile.episodes_per_task
    return min(profile.episodes_per_task, len(evaluation_scenes(task, placement)))


def sample_scene(env: SpatialEnv, placement: str, index: int) -> Scene:
    """Draw demonstration scene number `index` (0, 1, 2, ...) of the environment's task, settled and checked.

    The same index gives the same scene, never one that is stored for evaluation. Counterfactual indices 2n and 2n + 1
    are one layout with either bowl named. The environment is left reset to some other moment: reset it to the scene.
    Raises LarError as `evaluation_scenes` does, and if no scene could be found.
    """
    _check(env.task, placement)
    layout, side = divmod(index, len(sides(placement)))
    return draw_layout(env, placement, DEMO_SEEDS + TRIES * layout, side)


def draw_layout(env: SpatialEnv, placement: str, first_seed: int, side: int = 0) -> Scene:
    """The scene of the first seed from `first_seed` on that settles with every named relation true."""
    for seed in range(first_seed, first_seed + TRIES):
        state = _official_state(env, seed) if placement == "official" else _moved_state(env.task, placement, seed)
        if _settles(env, seed, state):
            return _scene(env.task, placement, seed, state, side)
    raise LarError(f"No {placement} scene of task {env.task} settled with seeds {first_seed} to "
                   f"{first_seed + TRIES - 1}: the assets may have other sizes than LIBERO's.")


def success(env: SpatialEnv, scene: Scene) -> bool:
    """Whether the named bowl stands on the plate, by LIBERO's predicate, and the other one does not."""
    return env.satisfied(scene.goal) and not env.satisfied(["on", scene.distractor, PLATE])


def other_instruction(task: int, target: str) -> str | None:
    """The sentence that names the other bowl of a task's scene than `target`; None where no sentence does."""
    if target == BOWLS[1]:
        return instruction(task)
    return instruction(OTHER_SENTENCE[task]) if task in OTHER_SENTENCE else None


def sides(placement: str) -> tuple[int, ...]:
    """Which of a scene's two bowls are named in turn: 0 is the one that the task's own sentence names."""
    return (0, 1) if placement in PAIRED else (0,)


def _scene(task: int, placement: str, seed: int, state: np.ndarray, side: int = 0) -> Scene:
    sentence = OTHER_SENTENCE[task] if side else task
    return Scene(task, placement, state, seed, instruction(sentence), BOWLS[side])


def _check(task: int, placement: str) -> None:
    if placement not in PLACEMENTS:
        raise unknown("placement", placement, PLACEMENTS)
    if task not in range(len(RELATIONS)):
        raise unknown("task", task, range(len(RELATIONS)))
    if placement in PAIRED and task not in OTHER_SENTENCE:
        raise LarError(f"Task {task} has no counterfactual pair: in its scene no sentence names the other bowl alone. "
                       f"Tasks that have one: {', '.join(map(str, OTHER_SENTENCE))}. For this one say --placement near.")


def _official_state(env: SpatialEnv, seed: int) -> np.ndarray:
    """What LIBERO's sampler draws, as a flattened state (92,), with the arm's own small differences (radians)."""
    env.reset(seed=seed, options={"init_state": None, "wait_steps": 0})
    state = env.state()
    state[_ARM] += np.random.default_rng([env.task, seed]).normal(0, ARM_NOISE, 7)
    return state


def _moved_state(task: int, placement: str, seed: int) -> np.ndarray:
    """An official init state (92,) with new positions for everything that is not on a fixture."""
    rng = np.random.default_rng([PLACEMENTS.index(placement), task, seed])
    official, relations = official_init_states(task), RELATIONS[task]
    state = official[rng.integers(len(official))].copy()
    before = _positions(state)
    proposals = _near_layouts(relations, before, rng) if placement in NEAR else _wide_layouts(relations, before, rng)
    layout = next(layout for layout in proposals if _acceptable(relations, placement, layout, before))
    for name, xy in layout.items():
        state[X_ADDRESS[name]:X_ADDRESS[name] + 2] = xy
    return state


def _positions(state: np.ndarray) -> dict[str, np.ndarray]:
    return {name: state[address:address + 2] for name, address in X_ADDRESS.items()}


def _on_fixtures(relations: Pair) -> set[str]:
    return {bowl for bowl, (kind, _) in zip(BOWLS, relations) if kind == "fixed"}


def _wide_layouts(relations: Pair, before: Layout, rng: np.random.Generator) -> Iterator[Layout]:
    """Endless proposals: plate, ramekin and cookies anywhere, the bowls where their relations put them."""
    while True:
        layout = {name: before[name] for name in _on_fixtures(relations)}
        for name in (PLATE, RAMEKIN, COOKIES):
            layout[name] = rng.uniform(*TABLE_AREA.T)
        for bowl, (kind, reference) in zip(BOWLS, relations):
            if kind != "fixed":
                layout[bowl] = related(kind, reference, layout, rng)
        yield layout


def _near_layouts(relations: Pair, before: Layout, rng: np.random.Generator) -> Iterator[Layout]:
    """Endless proposals: plate, ramekin and cookies NEARBY where they were; bowls go with their references."""
    while True:
        moves = {name: _away(NEARBY, rng) for name in (PLATE, RAMEKIN, COOKIES)}
        for bowl, (kind, reference) in zip(BOWLS, relations):
            if kind == "between":
                moves[bowl] = (moves[PLATE] + moves[RAMEKIN]) / 2 + _away(LOOSE, rng)
            elif kind == "on":
                moves[bowl] = moves[reference]
            elif kind != "fixed":
                moves[bowl] = moves.get(reference, _away((0, CENTER_RADIUS), rng)) + _away(LOOSE, rng)
        yield {name: xy + moves.get(name, 0) for name, xy in before.items()}


def _away(limits: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """A move (2,) of a length within limits (m), evenly over that ring."""
    least, most = limits
    angle, distance = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(least**2, most**2))
    return distance * np.array([np.cos(angle), np.sin(angle)])


def related(kind: str, reference: str, layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """A position (2,) in relation `kind` to `reference`."""
    angle = rng.uniform(0, 2 * np.pi)
    outward = np.array([np.cos(angle), np.sin(angle)])
    if kind == "on":
        return layout[reference].copy()
    if kind == "center":
        return CENTER + rng.uniform(0, CENTER_RADIUS) * outward
    if kind == "next_to":
        return layout[reference] + (RADII[BOWLS[0]] + RADII[reference] + rng.uniform(0, 0.02)) * outward
    middle = (layout[PLATE] + layout[RAMEKIN]) / 2  # between, nearer to the smaller of the two
    towards_ramekin = (layout[RAMEKIN] - layout[PLATE]) / np.linalg.norm(layout[RAMEKIN] - layout[PLATE])
    return middle + (RADII[PLATE] - RADII[RAMEKIN]) / 2 * towards_ramekin + rng.uniform(0, 0.015) * outward


def _acceptable(relations: Pair, placement: str, layout: Layout, before: Layout) -> bool:
    """before: the official layout, whose own exceptions from the rules a near scene may share."""
    allowed = before if placement in NEAR else {}
    outside = {name for name, xy in allowed.items() if not in_area(relations, {name: xy})}
    return (in_area(relations, {name: xy for name, xy in layout.items() if name not in outside})
            and apart(relations, layout, allowed) and _in_reach(placement, layout, allowed)
            and all(unique(relations, side, layout) for side in sides(placement)))


def in_area(relations: Pair, layout: Layout) -> bool:
    """Whether everything that stands on the table is in reach and in view, and clear of the fixtures."""
    keep_out = (OPEN_CABINET if ("fixed", "drawer") in relations else CABINET, STOVE)
    return all((TABLE_AREA[:, 0] <= xy).all() and (xy <= TABLE_AREA[:, 1]).all()
               and xy[1] + RADII[name] <= VIEW_EDGE - VIEW_SLOPE * xy[0]
               and all(distance_to_rectangle(xy, *area) >= RADII[name] for area in keep_out)
               for name, xy in layout.items() if name not in _on_fixtures(relations))


def distance_to_rectangle(xy: np.ndarray, x_range: tuple[float, float], y_range: tuple[float, float]) -> float:
    """Distance (m) from a point (2,) to an upright rectangle; 0 inside it."""
    low, high = np.array([x_range, y_range]).T
    return float(np.linalg.norm(np.maximum(0, np.maximum(low - xy, xy - high))))


def apart(relations: Pair, layout: Layout, allowed: Layout | None = None) -> bool:
    """Whether no two outlines meet that should not. allowed: a layout in which as little distance was enough."""
    def least(a: str, b: str) -> float:
        asked = _least_distance(relations, a, b)
        return min(asked, np.linalg.norm(allowed[a] - allowed[b])) if allowed else asked
    return all(np.linalg.norm(layout[a] - layout[b]) >= least(a, b) for a, b in combinations(layout, 2)
               if not {a, b} <= _on_fixtures(relations))


def _least_distance(relations: Pair, a: str, b: str) -> float:
    for bowl, (kind, reference) in zip(BOWLS, relations):
        related = {reference, RAMEKIN} if kind == "between" else {reference}
        if bowl in (a, b) and related & {a, b}:
            return 0.0 if kind == "on" else RADII[a] + RADII[b] - 0.001
    return RADII[a] + RADII[b] + MARGIN


def _in_reach(placement: str, layout: Layout, allowed: Layout) -> bool:
    limits = {PLATE: PLATE_REACH} | {BOWLS[side]: BOWL_REACH for side in sides(placement)}
    return all(np.linalg.norm(layout[name] - ROBOT_BASE) <=
               max(reach, np.linalg.norm(allowed.get(name, ROBOT_BASE) - ROBOT_BASE)) for name, reach in limits.items())


def unique(relations: Pair, side: int, layout: Layout) -> bool:
    """Whether the relation of bowl `side` is true of it and plainly not of the other bowl."""
    kind, reference = relations[side]
    this, other = layout[BOWLS[side]], layout[BOWLS[1 - side]]
    if kind in ("next_to", "center"):
        place = layout[reference] if kind == "next_to" else CENTER
        return bool(np.linalg.norm(other - place) >= np.linalg.norm(this - place) + UNIQUE)
    if kind == "between":
        return _detour(this, layout) <= 0.01 and _detour(other, layout) >= UNIQUE and _gap(layout) <= 0.35
    return True  # on something: the other bowl stands elsewhere by construction


def _detour(xy: np.ndarray, layout: Layout) -> float:
    """How much longer the way from plate to ramekin is by way of `xy`."""
    return np.linalg.norm(xy - layout[PLATE]) + np.linalg.norm(xy - layout[RAMEKIN]) - _gap(layout)


def _gap(layout: Layout) -> float:
    return float(np.linalg.norm(layout[PLATE] - layout[RAMEKIN]))


def _settles(env: SpatialEnv, seed: int, state: np.ndarray) -> bool:
    """Whether nothing slides or falls while the scene comes to rest."""
    env.reset(seed=seed, options={"init_state": state})
    slanting = {bowl for bowl, (kind, _) in zip(BOWLS, RELATIONS[env.task]) if kind == "on"}
    return all(np.linalg.norm(env.body_pose(name)[0][:2] - xy) <= (TILTED if name in slanting else MOVED)
               for name, xy in _positions(state).items())
