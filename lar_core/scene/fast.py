"""The same simulation, faster: fewer forward passes, lighter robot meshes, one small GL context.

Nothing here may change a state: `tests/test_env.py` compares it with LIBERO's own environment bit by bit.
Import after `setup.setup()`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import contextmanager
from pathlib import Path

import mujoco
import numpy as np
import robosuite
from libero.libero.envs import TASK_MAPPING
from robosuite.utils.errors import RandomizationError

from ..run.files import build_once, cache_folder

CELL = 0.011  # metres: vertices of a robot mesh that share a cube of this size become one
_ROBOT_MESHES = Path(robosuite.__file__).parent / "models" / "assets"


class FastDomain(TASK_MAPPING["libero_tabletop_manipulation"]):
    """LIBERO's table-top domain without renderer and observables, with one collision pass per substep, not three."""

    def _assert_problem_name(self) -> None:
        """LIBERO compares the class name with the task file's domain; ours has a name of its own."""

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        super()._initialize_sim(xml_string or lighten(self.model.get_xml()))
        model = self.sim.model
        self._compiled_poses = model.body_pos.copy(), model.body_quat.copy()

    def reset(self) -> dict:
        """Start again without rebuilding the model, with the same random draws and the same result as if rebuilt."""
        model, gripper = self.sim.model, self.robots[0].gripper
        # Two things that robosuite's soft reset forgets. LIBERO reads where a drawer is before it places the cabinet.
        model.body_pos[:], model.body_quat[:] = self._compiled_poses
        gripper.current_action = np.zeros(gripper.dof)
        try:
            return super().reset()
        except RandomizationError:  # no free place was found; LIBERO's answer, too, is to draw again
            return self.reset()

    def _update_observables(self, force: bool = False) -> None:
        """Skipped: `SpatialEnv` reads what it needs from the simulation once per control step."""

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, dict]:
        """Advance one control step; returns (empty observations, reward, success, empty info)."""
        self.timestep += 1
        model, data = self.sim.model._model, self.sim.data._data
        with _no_forward(self.sim):
            for substep in range(int(self.control_timestep / self.model_timestep)):
                # robosuite runs two full forward passes (its own, then the controller's) and a step. Kinematics and
                # collisions are the same in all three, so once will do; the contact solver must still run as often,
                # because each solution is the starting point of the next and decides its last bits.
                mujoco.mj_step1(model, data)
                for _ in range(2):
                    mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, True)
                self._pre_action(action, substep == 0)
                mujoco.mj_step2(model, data)
        self.cur_time += self.control_timestep
        success = bool(self._check_success())
        self._post_process()
        return {}, float(success), success, {}


@contextmanager
def _no_forward(sim):
    """The controller asks for a forward pass before it reads positions; after mj_step1 they are already there."""
    sim.forward = lambda: None
    try:
        yield
    finally:
        del sim.forward


# --- robot meshes ----------------------------------------------------------------------------------------------------

def lighten(xml: str) -> str:
    """Replace the robot's purely visual meshes by decimated ones, about 127,000 faces by a quarter of that."""
    root = ET.fromstring(xml)
    touched = {geom.get("mesh") for geom in root.iter("geom") if geom.get("group") != "1"}
    meshes = {mesh.get("name"): mesh for mesh in root.find("asset").findall("mesh")
              if mesh.get("name") not in touched and _ROBOT_MESHES in Path(mesh.get("file", "")).parents}
    files = {name: mesh.get("file") for name, mesh in meshes.items()}
    folder = build_once(cache_folder("robot", Path(__file__), *map(Path, sorted(files.values()))),
                        lambda temporary: _decimate_all(files, temporary))
    for name, mesh in meshes.items():
        mesh.set("file", str(folder / f"{name}.stl"))
        mesh.set("inertia", "shell")  # clustered surfaces need not be closed
        mesh.attrib.pop("scale", None)
    return ET.tostring(root, encoding="unicode")


def _decimate_all(files: dict[str, str], folder: Path) -> None:
    for name, file in files.items():
        spec = mujoco.MjSpec()
        spec.add_mesh(name=name, file=file, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, contype=0, conaffinity=0)
        model = spec.compile()
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])
        vertices = model.mesh_vert @ rotation.reshape(3, 3).T + model.mesh_pos[0]
        _write_stl(folder / f"{name}.stl", decimate(vertices, model.mesh_face))


def decimate(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Vertex clustering: (V, 3) vertices and (F, 3) faces to (T, 3, 3) triangles.

    Every cube of edge CELL keeps one point, the mean of its vertices; faces that collapse or repeat disappear.
    Small parts keep at least 8 cells along their longest side.
    """
    cell = min(CELL, float(np.ptp(vertices, axis=0).max()) / 8)
    cells = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    _, index, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    index = index.ravel()
    points = np.stack([np.bincount(index, weights=column) for column in vertices.T], axis=1) / count[:, None]
    corners = index[faces]
    corners = corners[(corners != np.roll(corners, 1, axis=1)).all(axis=1)]
    _, first = np.unique(np.sort(corners, axis=1), axis=0, return_index=True)
    return points[corners[np.sort(first)]]


def _write_stl(path: Path, triangles: np.ndarray) -> None:
    """Binary STL: (T, 3, 3) corners in metres; normals are left to MuJoCo."""
    records = np.zeros(len(triangles), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    records["corners"] = triangles
    path.write_bytes(b"\0" * 80 + np.uint32(len(triangles)).tobytes() + records.tobytes())


# --- pictures --------------------------------------------------------------------------------------------------------

class Painter:
    """Renders a model's cameras in one GL context of `size` pixels; smaller pictures use a corner of its buffer.

    What costs software renderers most and shows least is dropped: reflections, shadows, multi-sampling, fine spheres.
    """

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        self.model, self.size = model, size
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        model.vis.quality.offsamples = 0
        model.vis.quality.numslices = model.vis.quality.numstacks = 12
        model.mat_reflectance[:] = 0
        model.light_castshadow[:] = 0
        self._gl = mujoco.gl_context.GLContext(size, size)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._option, self._perturb, self._camera = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._option.geomgroup[:] = [0, 1, 0, 0, 0, 0]  # group 1 is what is seen, group 0 what is touched
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def image(self, data: mujoco.MjData, camera: str, size: int) -> np.ndarray:
        """uint8 (size, size, 3), first row at the bottom of the picture, as OpenGL gives it."""
        self._update(data, camera)
        return self._read(size)

    def geoms(self, data: mujoco.MjData, camera: str, size: int) -> np.ndarray:
        """int32 (size, size): the geom id seen in each pixel, -1 for none; rows as in `image`."""
        self._option.sitegroup[:] = 0  # sites hide what is behind them even where they are transparent
        self._update(data, camera)
        self._option.sitegroup[:] = 1
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        pixels = self._read(size).astype(np.int32)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        ids = np.full(self._scene.ngeom + 1, -1, dtype=np.int32)
        for geom in self._scene.geoms[:self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                ids[geom.segid + 1] = geom.objid
        return ids[pixels[..., 0] + pixels[..., 1] * 256 + pixels[..., 2] * 65536]

    def _update(self, data: mujoco.MjData, camera: str) -> None:
        self._gl.make_current()
        self._camera.fixedcamid = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        mujoco.mjv_updateScene(self.model, data, self._option, self._perturb, self._camera,
                               mujoco.mjtCatBit.mjCAT_ALL, self._scene)

    def _read(self, size: int) -> np.ndarray:
        viewport = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((size, size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels

    def close(self) -> None:
        """Free the GL context; safe to call twice."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None
