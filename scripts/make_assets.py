"""Make the stand-in assets that lie in lar_core/scene/assets: our own objects under LIBERO's asset names.

    python scripts/make_assets.py [FOLDER]       # a second; the same files wherever it runs

LIBERO asks for seven MJCF files and two textures by name, and for certain bodies, joints and sites inside them. Shapes,
weights and looks are ours: the benchmark's own init states settle, and a Panda can grasp a bowl by its rim.
"""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import asset_textures
from asset_meshes import lathe, printed_box, quaternion, text, wall_of_boxes
from PIL import Image

from lar_core.scene.setup import ARENA, BOWL, CABINET, COOKIES, PLATE, RAMEKIN, STANDIN, STOVE, TEXTURES

_TOUCH = {"group": "0", "friction": "0.95 0.2 0.02", "solref": "0.004 1", "solimp": "0.98 0.995 0.001"}
_SEE = {"group": "1", "contype": "0", "conaffinity": "0"}


def write_pack(folder: Path) -> None:
    """Write all files of the stand-in pack below `folder`."""
    pictures = {
        TEXTURES[0]: asset_textures.tiles(256, 3, seed=1),
        TEXTURES[1]: asset_textures.plaster(128, seed=2),
        "textures/table.png": asset_textures.wood(384, (205, 160, 112), (148, 98, 58), planks=6, seed=3),
        "textures/cabinet.png": asset_textures.wood(128, (128, 78, 46), (70, 38, 22), planks=1, seed=4),
        "textures/drawer.png": asset_textures.wood(128, (168, 106, 62), (108, 62, 36), planks=1, seed=6),
        "textures/cookies.png": asset_textures.cookie_box(128),
        "textures/steel.png": asset_textures.brushed_metal(128, seed=5),
    }
    for name, picture in pictures.items():
        _file(folder, name)
        Image.fromarray(picture).save(folder / name)
    for name, model in ((ARENA, _arena()), (STOVE, _stove()), (CABINET, _cabinet()), (BOWL, _bowl()), (PLATE, _plate()),
                        (RAMEKIN, _ramekin()), (COOKIES, _cookies())):
        ET.indent(model)
        ET.ElementTree(model).write(_file(folder, name))


def _file(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return folder / name


# --- objects that move -----------------------------------------------------------------------------------------------

def _bowl() -> ET.Element:
    model, asset, body = _object("bowl")
    _material(asset, "glaze", rgba="0.10 0.10 0.115 1", specular="0.7", shininess="0.7")
    _material(asset, "inside", rgba="0.155 0.155 0.175 1", specular="0.5", shininess="0.5")
    lathe(asset, "outside", [(0, 0), (0.026, 0), (0.0265, 0.004), (0.033, 0.011), (0.041, 0.0225), (0.0475, 0.037),
                             (0.0525, 0.052), (0.0525, 0.054), (0.0505, 0.054)])
    lathe(asset, "inside", [(0.0505, 0.054), (0.0455, 0.038), (0.039, 0.024), (0.031, 0.0125), (0.020, 0.0075),
                            (0, 0.007)])
    _visual_meshes(body, outside="glaze", inside="inside")
    _foot(body, "0.02 0.02 0.003", density="300")
    for wall in (wall_of_boxes((0.027, 0.003), (0.041, 0.0225), 10, 0.004),
                 wall_of_boxes((0.041, 0.0215), (0.0525, 0.054), 16, 0.0036)):
        for box in wall:
            _touch(body, **box, density="300")
    return model


def _plate() -> ET.Element:
    model, asset, body = _object("plate")
    _material(asset, "china", rgba="0.84 0.84 0.82 1", specular="0.5", shininess="0.6")
    _material(asset, "band", rgba="0.75 0.10 0.09 1", specular="0.5", shininess="0.6")
    lathe(asset, "underside", [(0, 0), (0.036, 0), (0.040, 0.003), (0.065, 0.0135), (0.0665, 0.0145)], 40)
    lathe(asset, "rim", [(0.0665, 0.0145), (0.0655, 0.0158), (0.0545, 0.0121)], 40)
    lathe(asset, "top", [(0.0545, 0.0121), (0.041, 0.0068), (0.037, 0.0055), (0, 0.0052)], 40)
    _visual_meshes(body, underside="china", rim="band", top="china")
    _foot(body, "0.028 0.028 0.0026", density="400")
    # The touched rim ends 4 mm inside the seen one: some init states drop a bowl that close.
    for box in wall_of_boxes((0.037, 0.001), (0.062, 0.012), 16, 0.004):
        _touch(body, **box, density="400")
    return model


def _ramekin() -> ET.Element:
    model, asset, body = _object("ramekin")
    _material(asset, "porcelain", rgba="0.92 0.88 0.78 1", specular="0.5", shininess="0.6", emission="0.25")
    _material(asset, "rim", rgba="0.50 0.33 0.20 1", specular="0.5", shininess="0.6")
    lathe(asset, "wall", [(0, 0), (0.038, 0), (0.0395, 0.003), (0.0395, 0.020), (0.0395, 0.036), (0.041, 0.040)], 64,
          flutes=(16, 0.0009))
    lathe(asset, "rim", [(0.041, 0.040), (0.041, 0.0435), (0.0385, 0.044), (0.0365, 0.042)], 32)
    lathe(asset, "inside", [(0.0365, 0.042), (0.0355, 0.008), (0.033, 0.006), (0, 0.006)], 32)
    _visual_meshes(body, wall="porcelain", rim="rim", inside="porcelain")
    _foot(body, "0.027 0.027 0.003", density="500")
    for box in wall_of_boxes((0.040, 0.001), (0.040, 0.043), 16, 0.004):
        _touch(body, **box, density="500")
    return model


def _cookies() -> ET.Element:
    model, asset, body = _object("cookies")
    half = (0.031, 0.042, 0.0105)
    ET.SubElement(asset, "texture", name="tex-cookies", type="2d", file="../../textures/cookies.png")
    _material(asset, "print", texture="tex-cookies", specular="0.2", shininess="0.2")
    printed_box(asset, "box", half)
    _visual_meshes(body, box="print")
    _touch(body, pos="0 0 0", size=text(half), density="300")
    return model


def _object(name: str) -> tuple[ET.Element, ET.Element, ET.Element]:
    """An empty model with the frame that LIBERO expects: (model, its assets, the body to fill)."""
    model = ET.Element("mujoco", model=name)
    asset = ET.SubElement(model, "asset")
    outer = ET.SubElement(ET.SubElement(model, "worldbody"), "body")
    body = ET.SubElement(outer, "body", name="object")
    # Placement reads these three sites: the drop height above a surface and the radius kept clear of neighbours.
    fixture = name in ("stove", "cabinet")
    bottom, top, radius = (-0.045, 0.045, 0.045) if fixture else (-0.06, 0.04, 0.025)
    for site, pos in (("bottom_site", (0, 0, bottom)), ("top_site", (0, 0, top)),
                      ("horizontal_radius_site", (radius, radius, 0))):
        ET.SubElement(outer, "site", name=site, pos=text(pos), size="0.005", rgba="0 0 0 0")
    return model, asset, body


# --- fixtures --------------------------------------------------------------------------------------------------------

def _stove() -> ET.Element:
    model, asset, body = _object("stove")
    ET.SubElement(asset, "texture", name="tex-steel", type="2d", file="../textures/steel.png")
    _material(asset, "steel", texture="tex-steel", specular="0.6", shininess="0.6")
    _material(asset, "iron", rgba="0.13 0.13 0.14 1", specular="0.4", shininess="0.4")
    _material(asset, "grate", rgba="0.34 0.34 0.36 1", specular="0.4", shininess="0.4")
    base = ET.SubElement(body, "body", name="base")
    burner = ET.SubElement(base, "body", name="burner", pos="0.15 0 0")
    _solid(burner, "steel", pos="0 0 0.0065", size="0.096 0.096 0.0135")
    _touch(burner, pos="0 0 0.0215", size="0.07 0.07 0.0015")
    lathe(asset, "disc", [(0.074, 0.0195), (0.074, 0.0212), (0, 0.0212)], 40)
    lathe(asset, "ring", [(0.058, 0.021), (0.058, 0.023), (0.042, 0.023), (0.042, 0.021)], 40)
    _visual_meshes(burner, disc="iron", ring="grate")
    _site(burner, "cook_region", pos="0 0 0.02", size="0.075 0.075 0.0025")
    ET.SubElement(burner, "site", name="burner", type="cylinder", pos="0 0 0.0235", size="0.066 0.0006",
                  quat="1 0 0 0", rgba="0.95 0.15 0.05 1", group="0")
    button = ET.SubElement(base, "body", name="button")
    ET.SubElement(button, "inertial", pos="0 0 0", mass="0.5", diaginertia="0.01 0.01 0.01")
    ET.SubElement(button, "joint", name="button", type="hinge", axis="0 0 1", limited="true", range="-0.005 2.1",
                  damping="0.5")
    _solid(button, "steel", type="cylinder", pos="0 0 0.002", size="0.036 0.007")
    _solid(button, "iron", type="cylinder", pos="0 0 0.016", size="0.022 0.007")
    _solid(button, "iron", pos="0 0 0.026", size="0.022 0.005 0.006")
    return model


_DRAWERS = (("cabinet_top", "top", 0.152), ("cabinet_middle", "middle", 0.081), ("cabinet_bottom", "bottom", 0.010))


def _cabinet() -> ET.Element:
    model, asset, body = _object("cabinet")
    for name, picture, glow in (("wood", "cabinet", "0.1"), ("front", "drawer", "0.3")):
        ET.SubElement(asset, "texture", name=f"tex-{name}", type="cube", file=f"../textures/{picture}.png")
        _material(asset, name, texture=f"tex-{name}", specular="0.3", shininess="0.3", emission=glow)
    _material(asset, "inside", rgba="0.62 0.47 0.33 1", specular="0.1", shininess="0.1")
    _material(asset, "brass", rgba="0.78 0.66 0.38 1", specular="0.8", shininess="0.7")
    base = ET.SubElement(body, "body", name="base")
    # The lid stands back from the drawers: a bowl that an init state drops into the open drawer must pass its edge.
    for pos, size in (((0.118, 0.017, 0.108), (0.006, 0.092, 0.113)), ((-0.118, 0.017, 0.108), (0.006, 0.092, 0.113)),
                      ((0, 0.105, 0.108), (0.112, 0.004, 0.113)), ((0, 0.0225, 0.220), (0.126, 0.0875, 0.003)),
                      ((0, 0.011, 0.001), (0.112, 0.090, 0.006)), ((0, 0.011, 0.0765), (0.112, 0.090, 0.0015)),
                      ((0, 0.011, 0.1475), (0.112, 0.090, 0.0015))):
        _solid(base, "wood", pos=text(pos), size=text(size))
    _site(base, "top_side", pos="0 0.0225 0.2205", size="0.125 0.086 0.002")
    for name, level, floor in _DRAWERS:
        _drawer(ET.SubElement(base, "body", name=name), level, floor)
    return model


def _drawer(body: ET.Element, level: str, floor: float) -> None:
    """A drawer that slides along -y; `floor` is the height of its underside. Clearance to the frame is 3 mm."""
    ET.SubElement(body, "inertial", pos=text((0, 0, floor)), mass="2", diaginertia="0.5 0.5 0.5")
    ET.SubElement(body, "joint", name=f"{level}_level", type="slide", axis="0 1 0", limited="true", range="-0.16 0.01",
                  damping="50")
    _site(body, f"{level}_region", pos=text((0, 0.008, floor + 0.031)), size="0.102 0.076 0.030")
    for material, pos, size in (
            ("front", (0, -0.074, 0.031), (0.108, 0.005, 0.031)), ("inside", (0, 0.010, 0.003), (0.106, 0.079, 0.003)),
            ("inside", (0.103, 0.010, 0.025), (0.003, 0.079, 0.022)),
            ("inside", (-0.103, 0.010, 0.025), (0.003, 0.079, 0.022)),
            ("inside", (0, 0.086, 0.025), (0.100, 0.003, 0.022)),
            ("brass", (0, -0.101, 0.031), (0.045, 0.005, 0.005)),
            ("brass", (0.036, -0.088, 0.031), (0.004, 0.009, 0.004)),
            ("brass", (-0.036, -0.088, 0.031), (0.004, 0.009, 0.004))):
        _solid(body, material, pos=text((pos[0], pos[1], floor + pos[2])), size=text(size))


# --- room ------------------------------------------------------------------------------------------------------------

def _arena() -> ET.Element:
    model = ET.Element("mujoco", model="table_arena")
    asset, world = ET.SubElement(model, "asset"), ET.SubElement(model, "worldbody")
    ET.SubElement(asset, "texture", type="skybox", builtin="gradient", rgb1="0.9 0.92 0.95", rgb2="0.6 0.65 0.7",
                  width="64", height="64")
    # LIBERO replaces the file names of the next two by its floor and wall style.
    for name, kind, file in (("texplane", "2d", TEXTURES[0]), ("tex-wall", "2d", TEXTURES[1]),
                             ("tex-table", "cube", "textures/table.png")):
        ET.SubElement(asset, "texture", name=name, type=kind, file=f"../{file}")
    _material(asset, "floor", texture="texplane", texrepeat="2 2", texuniform="true", specular="0", shininess="0")
    _material(asset, "wall", texture="tex-wall", texrepeat="1 1", texuniform="true", specular="0.05", shininess="0",
              emission="0.25")
    _material(asset, "table", texture="tex-table", specular="0.15", shininess="0.2")
    _material(asset, "legs", rgba="0.45 0.30 0.19 1", specular="0.2", shininess="0.2")
    ET.SubElement(world, "geom", name="floor", type="plane", size="3 3 0.125", pos="0 0 0", material="floor",
                  condim="3", group="1")
    # A picture lies in the plane of a box's own x and y, so the walls are boxes lying down that are stood up by a turn.
    across, along = (0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0)
    for name, pos, width, quat in (("rear", (-1.9, 0, 1.5), 3, across), ("front", (2.9, 0, 1.5), 3, across),
                                   ("left", (0.5, 2.6, 1.5), 2.4, along), ("right", (0.5, -2.6, 1.5), 2.4, along)):
        ET.SubElement(world, "geom", name=f"wall_{name}", type="box", pos=text(pos), size=text((width, 1.5, 0.01)),
                      quat=text(quat), material="wall", **_SEE)
    table = ET.SubElement(world, "body", name="table", pos="0 0 0.4")
    ET.SubElement(table, "geom", name="table_collision", type="box", size="0.5 0.6 0.025", group="0")
    ET.SubElement(table, "geom", name="table_visual", type="box", size="0.5 0.6 0.025", material="table", **_SEE)
    for leg in range(1, 5):
        ET.SubElement(table, "geom", name=f"table_leg{leg}_visual", type="cylinder", size="0.025 0.4",
                      material="legs", **_SEE)
    ET.SubElement(table, "site", name="table_top", pos="0 0 0.025", size="0.001", rgba="0 0 0 0")
    for pos, direction, strength in (("0.8 0.9 3.5", "-0.25 -0.25 -1", 0.55), ("-1.2 -1.2 3.5", "0.3 0.3 -1", 0.35)):
        ET.SubElement(world, "light", pos=pos, dir=direction, castshadow="false", diffuse=text([strength] * 3),
                      specular="0.3 0.3 0.3")
    return model


# --- small parts -----------------------------------------------------------------------------------------------------

def _material(asset: ET.Element, name: str, **attributes: str) -> None:
    ET.SubElement(asset, "material", name=name, **attributes)


def _visual_meshes(body: ET.Element, **materials: str) -> None:
    for mesh, material in materials.items():
        ET.SubElement(body, "geom", type="mesh", mesh=mesh, material=material, **_SEE)


def _touch(body: ET.Element, **attributes: str) -> None:
    ET.SubElement(body, "geom", **({"type": "box"} | _TOUCH | attributes))


def _foot(body: ET.Element, size: str, density: str) -> None:
    """A level octagon to stand on, made of two crossed boxes."""
    for yaw in (0, math.pi / 4):
        _touch(body, pos=f"0 0 {size.split()[-1]}", size=size, quat=text(quaternion(yaw, 0)), density=density)


def _solid(body: ET.Element, material: str, **attributes: str) -> None:
    """A shape that is both seen and touched."""
    _touch(body, **attributes)
    ET.SubElement(body, "geom", **({"type": "box"} | attributes), material=material, **_SEE)


def _site(body: ET.Element, name: str, pos: str, size: str) -> None:
    # LIBERO parses all of these attributes and has no defaults for them.
    ET.SubElement(body, "site", name=name, type="box", pos=pos, size=size, quat="1 0 0 0", rgba="0 0 0 0", group="0")


if __name__ == "__main__":
    write_pack(Path(sys.argv[1]) if len(sys.argv) > 1 else STANDIN)
