"""Random scenes with what is true of them: what pre-training learns from. Nothing settles, so a scene takes 20 ms.

Things are written where they would rest, the arm anywhere (by inverse kinematics), and colours anew in half of the
scenes, so that words cannot be guessed from words. Scene number n of a seed is always the same.

    DATA/scenes/<assets>/<size>-<wrist>px-s<seed>/shard_<number>.safetensors   SHARD scenes each; N of them:
        images (N, H, W, 3), wrist (N, h, w, 3) uint8; labels (N, H/2, W/2), wrist_labels (N, h/2, w/2) uint8: 0 elsewhere,
        i + 1 on thing i; boxes (N, 7, 4) float32, (top, left, bottom, right) in pixels, hidden parts included;
        metres (N, 7, 2, 2) float32, (x, y) of a pixel's step down and to the right; relations (N, 2), colours (N, 5), held
        (N,) int8 as in `sentences.Facts` (held: the bowl in the hand, -1 for none)
    .../settled.safetensors   the same of stored scenes that came to rest, to measure with, and what they ask for
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from scipy.spatial.transform import Rotation
from tqdm.auto import tqdm

from ..run.config import RunConfig
from ..run.errors import LarError
from ..run.files import atomic_path, produce, require_space
from ..run.processes import processes
from .env import SpatialEnv, official_init_states, pool
from .expert import PINCH_DEPTH, PINCH_RADIUS, RIM_HEIGHT, palm_down
from .placements import (
    ARM_NOISE,
    BOWLS,
    COOKIES,
    PLATE,
    RAMEKIN,
    TABLE_AREA,
    X_ADDRESS,
    Layout,
    Pair,
    Scene,
    apart,
    evaluation_scenes,
    in_area,
    related,
    unique,
)
from .placements import RELATIONS as OF_TASKS
from .sentences import COLOURS, RELATIONS, Facts
from .setup import use_assets

SHARD = 500
SETTLED = 10  # stored scenes a task and placement
SECONDS = 0.03  # of a core, for a scene: 0.02 drawing and the rest writing, on a 2-core Xeon
MOVABLE = (*BOWLS, COOKIES, RAMEKIN, PLATE)
PLACE = {name: slice(address - 1, address + 2) for name, address in X_ADDRESS.items()}  # (x, y, z) in qpos
ARM = {"home": 0.2, "anywhere": 0.35, "at": 0.32, "holding": 0.13}  # where the hand is, and how often
SPACE = np.array([[-0.25, 0.20], [-0.30, 0.33], [0.95, 1.25]])  # of the hand, metres: (x, y, z) × (low, high)
FIXTURE_NOISE, RECOLOURED = 0.006, 0.5  # metres; the share of scenes with colours drawn anew
OF_BENCHMARK = 0.4  # the share of scenes whose two bowls stand in the relations of one of the benchmark's tasks
RGB = {"black": (0.10, 0.10, 0.115), "white": (0.9, 0.9, 0.88), "red": (0.75, 0.1, 0.09), "green": (0.1, 0.5, 0.15),
       "blue": (0.1, 0.2, 0.7), "yellow": (0.85, 0.75, 0.1), "purple": (0.45, 0.12, 0.55), "orange": (0.9, 0.45, 0.08)}
OPEN, PINCHING, DRAWER, DRAWER_OPEN = 0.04, 0.004, 44, -0.151  # of a finger, metres; address in qpos, and metres


def render_scenes(config: RunConfig, data_dir: Path | str, scenes: int, *, workers: int | None = None) -> list[Path]:
    """Shards of the first `scenes` scenes of the seed, rendered where missing, and the settled ones behind them.

    workers: processes that render at the same time; None: one per core. What was finished is kept.
    Raises LarError for too little disk space.
    """
    paths = shard_paths(config, data_dir, scenes)
    missing = [path for path in paths if not path.exists()]
    size, wrist = config.profile.image_size, config.profile.wrist_size
    needed = len(missing) * SHARD * (size**2 + wrist**2) * 13 // 4
    require_space(paths[0].parent, needed, "rendering the scenes")
    if missing:
        minutes = len(missing) * SHARD * SECONDS / min(processes(workers), len(missing)) / 60
        tqdm.write(f"{len(missing)} shards of {SHARD} scenes are missing: {needed / 1e9:.1f} GB in {paths[0].parent}, about "
                   f"{minutes:.0f} minutes.")
        with pool(min(processes(workers), len(missing))) as executor:
            jobs = [executor.submit(produce, path, f"rendering {path.name}",
                                    partial(_render, path, size, wrist, config.seed)) for path in missing]
            for job in tqdm(jobs, unit="shard", desc=f"rendering {scenes} scenes"):
                job.result()
    return paths


def shard_paths(config: RunConfig, data_dir: Path | str, scenes: int) -> list[Path]:
    """Where the shards lie, the settled scenes last: everything that changes them is part of the path."""
    profile, assets = config.profile, use_assets()
    folder = Path(data_dir) / "scenes" / f"{assets['name']}-{assets['sha256'][:8]}"
    folder /= f"{profile.image_size}-{profile.wrist_size}px-s{config.seed}"
    return [*(folder / f"shard_{number:04d}.safetensors" for number in range(-(-scenes // SHARD))),
            folder / "settled.safetensors"]


class Scenes:
    """Shards in one row; single scenes are read from disk. Raises LarError for a shard that is damaged."""

    def __init__(self, paths: list[Path]):
        self.shards = [_open(path) for path in paths]
        self.small = {name: np.concatenate([shard.get_tensor(name) for shard in self.shards])
                      for name in ("boxes", "relations", "colours", "held")}

    def __len__(self) -> int:
        return len(self.small["held"])

    def facts(self, number: int) -> Facts:
        """What is true of a scene."""
        return Facts(tuple(self.small["relations"][number].tolist()), tuple(self.small["colours"][number].tolist()))

    def rows(self, name: str, numbers: list[int]) -> np.ndarray:
        """One array of some scenes."""
        if name in self.small:
            return self.small[name][numbers]
        slices = [(self.shards[number // SHARD].get_slice(name), number % SHARD) for number in numbers]
        return np.concatenate([part[row : row + 1] for part, row in slices])


def settled_scenes(path: Path) -> dict[str, np.ndarray]:
    """What `settled.safetensors` holds: as a shard, with `asked` (N, 3) int64: placement, task and side."""
    _open(path)
    return load_file(path)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise LarError(f"The scenes in {path} cannot be read ({error}): delete this file, it will be rendered again."
                       ) from error


def _render(path: Path, size: int, wrist: int, seed: int) -> None:
    """In a worker process: one file."""
    studio = _studio(size, wrist)
    if path.stem == "settled":
        stored = [(scene, placement) for placement in ("wide", "counterfactual") for task in range(10)
                  if placement == "wide" or task for scene in evaluation_scenes(task, placement)[:SETTLED]]
        shots = [studio.settle(*pair) for pair in stored]
    else:
        first = int(path.stem.split("_")[1]) * SHARD
        shots = [studio.shoot(np.random.default_rng([seed, number])) for number in range(first, first + SHARD)]
    with atomic_path(path) as temporary:
        save_file({name: np.stack([shot[name] for shot in shots]) for name in shots[0]}, temporary)


@cache
def _studio(size: int, wrist: int) -> Studio:
    return Studio(size, wrist)


class Studio:
    """One environment in which scenes are written and rendered without any step of the simulation."""

    def __init__(self, size: int, wrist: int):
        import mujoco
        self.mujoco = mujoco
        self.env = SpatialEnv(4, image_size=size, wrist_size=wrist, segmentation=True)
        self.sizes = (size, wrist)
        self.heights: dict[Any, float] = {}
        self.offsets: dict[str, np.ndarray] = {}  # (3,) from a fixture to the bowl on it
        self.poses: list[dict[str, np.ndarray]] = []  # of the fixtures, as LIBERO draws them
        for task, relations in enumerate(OF_TASKS):
            self.env.reset(seed=task, options={"init_state": official_init_states(task)[0]})
            self._learn(relations)
        self.start = self.env.state()[1:49]
        self.start[DRAWER] = 0.0
        sim = self.env.stock.sim
        self.model, self.data = sim.model._model, sim.data._data
        self.bodies = [self._body(name) for name in self.env.objects]
        self.outlines = [self._outline(body) for body in self.bodies]
        self.painted = {body: self._materials(body) for body in self.bodies[:5]}

    def shoot(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw a scene and render it."""
        fixtures = {name: pose + [*rng.normal(0, FIXTURE_NOISE, 2), 0] for name, pose in rng.choice(self.poses).items()}
        numbers, layout = self._arrange(fixtures, rng)
        colours = self._colours(rng)
        self._write((RELATIONS[numbers[0]], RELATIONS[numbers[1]]), layout, fixtures)
        held = self._move_arm(rng)
        return self._picture() | {"relations": np.array(numbers, np.int8), "colours": colours,
                                  "held": np.array(held, np.int8)}

    def settle(self, scene: Scene, placement: str) -> dict[str, np.ndarray]:
        """A stored scene at rest, in its own task's environment settings."""
        self._paint([0, 0, -1, -1, -1])
        self.env.reset(seed=scene.seed, options={"init_state": scene.init_state})
        side = BOWLS.index(scene.target)
        relations = [RELATIONS.index(relation) for relation in OF_TASKS[scene.task]]
        return self._picture() | {"relations": np.array(relations, np.int8), "held": np.array(-1, np.int8),
                                  "colours": np.array([0, 0, -1, -1, -1], np.int8),
                                  "asked": np.array([placement == "counterfactual", scene.task, side])}

    # --- drawing --------------------------------------------------------------------------------------------------

    def _arrange(self, fixtures: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[list[int], Layout]:
        """Two different relations for the two bowls, and positions (2,) of everything that make them true."""
        while True:
            numbers = rng.choice(len(RELATIONS), 2, replace=False).tolist()
            if rng.random() < OF_BENCHMARK:
                numbers = [RELATIONS.index(relation) for relation in OF_TASKS[rng.integers(len(OF_TASKS))]]
                rng.shuffle(numbers)
            relations = RELATIONS[numbers[0]], RELATIONS[numbers[1]]
            for _ in range(8):
                layout = self._layout(relations, fixtures, rng)
                if layout is not None and all(unique(relations, side, layout) for side in (0, 1)):
                    return numbers, layout

    def _layout(self, relations: Pair, fixtures: dict[str, np.ndarray], rng: np.random.Generator) -> Layout | None:
        """One thing after the other, each where it is clear of those before; None where no place was found."""
        layout: Layout = {bowl: self._on_fixture(reference, fixtures)[:2] + rng.normal(0, FIXTURE_NOISE, 2)
                          for bowl, (kind, reference) in zip(BOWLS, relations) if kind == "fixed"}
        for name in (PLATE, RAMEKIN, COOKIES, *(bowl for bowl in BOWLS if bowl not in layout)):
            for _ in range(25):
                kind, reference = relations[BOWLS.index(name)] if name in BOWLS else ("free", "")
                place = rng.uniform(*TABLE_AREA.T) if kind == "free" else related(kind, reference, layout, rng)
                if in_area(relations, {name: place}) and apart(relations, {**layout, name: place}):
                    layout[name] = place
                    break
            else:
                return None
        return layout

    def _colours(self, rng: np.random.Generator) -> np.ndarray:
        """Colours (5,) of bowls, cookie box, ramekin and plate; painted."""
        colours = [0, 0, -1, -1, -1]
        if rng.random() < RECOLOURED:
            others = np.where(rng.random(3) < 0.5, rng.integers(len(COLOURS), size=3), -1)
            colours = [*rng.integers(len(COLOURS), size=2), *others]
        self._paint(colours)
        return np.array(colours, np.int8)

    def _paint(self, colours: Sequence[int] | np.ndarray) -> None:
        for (body, materials), colour in zip(self.painted.items(), colours):
            for number, (material, own) in enumerate(materials):
                rgb = own[:3] if colour < 0 or (body in self.bodies[:2] and colour == 0) else (
                    np.array(RGB[COLOURS[colour]]) * (1 - 0.25 * number) + 0.1 * number)
                self.model.mat_rgba[material, :3] = rgb

    def _write(self, relations: Pair, layout: Layout, fixtures: dict[str, np.ndarray]) -> None:
        """Everything at its place and height, the drawer open where a bowl is in it."""
        self.data.qpos[:] = self.start
        self.data.qvel[:] = 0
        for number, name in enumerate(MOVABLE):
            kind = relations[number] if number < 2 else name
            height = self.heights.get(kind, self.heights["table" if number < 2 else name])
            self.data.qpos[PLACE[name]] = [*layout[name], height]
        if ("fixed", "drawer") in relations:
            self.data.qpos[DRAWER] = DRAWER_OPEN
        for name, pose in fixtures.items():
            self.model.body_pos[self._body(name)] = pose

    def _move_arm(self, rng: np.random.Generator) -> int:
        """Put the hand somewhere, perhaps with a bowl in it: 0 or 1, or -1."""
        where = rng.choice(list(ARM), p=list(ARM.values()))
        direction = rng.uniform(0, np.pi)
        self.data.qpos[:7] += rng.normal(0, ARM_NOISE, 7)
        if where == "home":
            return -1
        goal, closed = rng.uniform(*SPACE.T), rng.random() < 0.3
        bowl = int(rng.integers(2))
        pinch = np.array([PINCH_RADIUS * np.cos(direction), PINCH_RADIUS * np.sin(direction), RIM_HEIGHT - PINCH_DEPTH])
        if where == "at":
            place = self.data.qpos[PLACE[BOWLS[bowl] if rng.random() < 0.7 else PLATE]]
            goal = place + pinch + [*rng.normal(0, 0.025, 2), rng.choice([0.0, rng.uniform(0, 0.15)])]
        if where == "holding" and rng.random() < 0.5:  # over the plate, or on the way to it
            goal[:2] = self.data.qpos[PLACE[PLATE]][:2] + pinch[:2] + rng.normal(0, 0.03, 2)
        finger = PINCHING if where == "holding" or closed else OPEN
        self.data.qpos[7:9] = finger, -finger
        hand = self._reach(goal, palm_down(direction))
        if where != "holding":
            return -1
        self.data.qpos[PLACE[BOWLS[bowl]]] = hand - pinch
        return bowl

    def _reach(self, goal: np.ndarray, turn: Rotation) -> np.ndarray:
        """Move the arm so that the hand is at `goal`, or as near as 30 steps of damped least squares come; where it is."""
        site, jacobian = self.env.stock.robots[0].eef_site_id, np.zeros((6, self.model.nv))
        for _ in range(30):
            self.mujoco.mj_kinematics(self.model, self.data)
            self.mujoco.mj_comPos(self.model, self.data)
            here = Rotation.from_matrix(self.data.site_xmat[site].reshape(3, 3))
            error = np.concatenate([goal - self.data.site_xpos[site], (turn * here.inv()).as_rotvec()])
            if np.abs(error).max() < 2e-3:
                break
            self.mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], site)
            arm = jacobian[:, :7]
            step = arm.T @ np.linalg.solve(arm @ arm.T + 1e-3 * np.eye(6), error)
            low, high = self.model.jnt_range[:7].T
            self.data.qpos[:7] = np.clip(self.data.qpos[:7] + np.clip(step, -0.3, 0.3), low, high)
        return self.data.site_xpos[site].copy()

    # --- rendering ------------------------------------------------------------------------------------------------

    def _picture(self) -> dict[str, np.ndarray]:
        size, wrist = self.sizes
        for update in (self.mujoco.mj_kinematics, self.mujoco.mj_comPos, self.mujoco.mj_camlight):
            update(self.model, self.data)
        places = np.stack([self.data.xpos[body] for body in self.bodies])
        return {"images": self.env.render_camera("agentview", size),
                "wrist": self.env.render_camera("robot0_eye_in_hand", wrist),
                "labels": self.env.segment(size // 2), "wrist_labels": self.env.segment(wrist // 2, "robot0_eye_in_hand"),
                "boxes": np.stack([self._box(*pair) for pair in zip(self.bodies, self.outlines)]).astype(np.float32),
                "metres": self._metres(places).astype(np.float32)}

    def _metres(self, places: np.ndarray) -> np.ndarray:
        """(7, 2, 2): what a pixel's step down, and one to the right, are on a level plane at each thing, (x, y) metres."""
        steps = np.eye(3)[:2] * 0.01
        moved = np.stack([project(self.model, self.data, places + step, self.sizes[0]) for step in steps], axis=1)
        here = project(self.model, self.data, places, self.sizes[0])  # (7, 2)
        return np.linalg.inv((moved - here[:, None]) / 0.01)  # rows: per pixel down, per pixel right

    def _box(self, body: int, outline: np.ndarray) -> np.ndarray:
        """(top, left, bottom, right) of a thing in the agentview, in pixels; what hides it is not looked at."""
        corners = outline @ self.data.xmat[body].reshape(3, 3).T + self.data.xpos[body]
        pixels = project(self.model, self.data, corners, self.sizes[0])
        return np.concatenate([pixels.min(axis=0), pixels.max(axis=0)]).clip(0, self.sizes[0] - 1)

    # --- what the scene is made of --------------------------------------------------------------------------------

    def _learn(self, relations: Pair) -> None:
        """Rest heights, and where bowls lie on fixtures, from an official scene that came to rest."""
        poses = {name: self.env.stock.sim.model.body_pos[self._body(name)].copy() for name in self.env.objects[5:]}
        self.poses.append(poses)
        for name in MOVABLE[2:]:
            self.heights[name] = self.env.body_pose(name)[0][2]
        for bowl, (kind, reference) in zip(BOWLS, relations):
            place = self.env.body_pose(bowl)[0]
            self.heights[(kind, reference) if kind in ("on", "fixed") else "table"] = place[2]
            if kind == "fixed":
                self.offsets[reference] = place - poses[_fixture(reference)]

    def _on_fixture(self, reference: str, fixtures: dict[str, np.ndarray]) -> np.ndarray:
        return fixtures[_fixture(reference)] + self.offsets[reference]

    def _body(self, name: str) -> int:
        return self.env.stock.obj_body_id[name]

    def _visible(self, body: int) -> list[int]:
        """The visible geoms of a body and of all that hangs on it."""
        found = [body]
        for child in range(body + 1, self.model.nbody):
            if self.model.body_parentid[child] in found:
                found.append(child)
        return [geom for geom in np.flatnonzero(self.model.geom_group == 1) if self.model.geom_bodyid[geom] in found]

    def _outline(self, body: int) -> np.ndarray:
        """Corners (M, 3) of the visible geometry in the body's frame."""
        self.mujoco.mj_kinematics(self.model, self.data)
        corners, signs = [], np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
        for geom in self._visible(body):
            centre, half = np.split(self.model.geom_aabb[geom], 2)
            mesh = self.model.geom_dataid[geom]
            points = centre + signs * half
            if mesh >= 0:
                first = self.model.mesh_vertadr[mesh]
                points = self.model.mesh_vert[first : first + self.model.mesh_vertnum[mesh]]
            corners.append(points @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom])
        return (np.concatenate(corners) - self.data.xpos[body]) @ self.data.xmat[body].reshape(3, 3)

    def _materials(self, body: int) -> list[tuple[int, np.ndarray]]:
        """The visible materials of a thing, and their own colours."""
        numbers = dict.fromkeys(int(self.model.geom_matid[geom]) for geom in self._visible(body))
        return [(number, self.model.mat_rgba[number].copy()) for number in numbers if number >= 0]


def project(model: Any, data: Any, points: np.ndarray, size: int) -> np.ndarray:
    """World points (M, 3) -> (row, column) in an upright agentview of `size` pixels (M, 2), which is mirrored."""
    number = model.camera("agentview").id
    seen = (points - data.cam_xpos[number]) @ data.cam_xmat[number].reshape(3, 3)  # right, up, towards the viewer
    scaled = seen[:, :2] / -seen[:, 2:] * size / 2 / np.tan(np.radians(model.cam_fovy[number]) / 2)
    return size / 2 - scaled[:, ::-1]


def _fixture(reference: str) -> str:
    return "flat_stove_1" if reference == "stove" else "wooden_cabinet_1"
