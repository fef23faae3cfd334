"""Geometry of the stand-in objects: what is seen (lathe and box meshes) and what is touched (rings of boxes).

All lengths are metres; z points up and the origin of an object is the middle of its underside.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np

Profile = Sequence[tuple[float, float]]  # (radius, height) from the axis outwards and back


def text(values: object) -> str:
    """Numbers as MJCF text, rounded so that the last bit of a cosine cannot change a file."""
    return " ".join(f"{value:.5f}".rstrip("0").rstrip(".") if value else "0" for value in np.ravel(values).tolist())


def lathe(asset: ET.Element, name: str, profile: Profile, segments: int = 32,
          flutes: tuple[int, float] = (0, 0.0)) -> None:
    """Add a mesh made by turning `profile` about z.

    flutes = (count, depth): points on the outermost wall are moved in and out `count` times round by up to `depth`.
    """
    angles = np.arange(segments) * 2 * math.pi / segments
    outer = max(radius for radius, _ in profile)
    rings = []
    for radius, height in profile:
        wave = flutes[1] * np.cos(flutes[0] * angles) if radius > 0.93 * outer else 0.0
        rings.append(np.stack([(radius + wave) * np.cos(angles), (radius + wave) * np.sin(angles),
                               np.full(segments, height)], axis=1))
    quads = [(i * segments + j, i * segments + (j + 1) % segments,
              (i + 1) * segments + (j + 1) % segments, (i + 1) * segments + j)
             for i in range(len(profile) - 1) for j in range(segments)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    _add_mesh(asset, name, np.concatenate(rings), np.array(faces))


def printed_box(asset: ET.Element, name: str, half: Sequence[float]) -> None:
    """Add a box mesh: the lower half of its texture is the lid, the top quarter is put on every side."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    vertices, texcoords, faces = [], [], []

    def face(points: list[tuple[float, float, float]], box: tuple[float, float, float, float]) -> None:
        start, (u0, v0, u1, v1) = len(vertices), box
        vertices.extend(np.array(points) * half)
        texcoords.extend([(u0, v0), (u1, v0), (u1, v1), (u0, v1)])
        faces.extend([(start, start + 1, start + 2), (start, start + 2, start + 3)])

    face([(x, y, 1) for x, y in corners], (0, 0.5, 1, 1))
    face([(x, y, -1) for x, y in corners[::-1]], (0, 0, 1, 0.25))
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
        face([(x0, y0, -1), (x1, y1, -1), (x1, y1, 1), (x0, y0, 1)], (0, 0, 1, 0.25))
    _add_mesh(asset, name, np.array(vertices), np.array(faces), np.array(texcoords))


def _add_mesh(asset: ET.Element, name: str, vertices: np.ndarray, faces: np.ndarray,
              texcoords: np.ndarray | None = None) -> None:
    # Faces that meet the axis have no area; MuJoCo would refuse them.
    corners = np.round(vertices, 5)[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    mesh = ET.SubElement(asset, "mesh", name=name, inertia="shell", vertex=text(vertices),
                         face=" ".join(map(str, faces[area > 1e-9].ravel())))
    if texcoords is not None:
        mesh.set("texcoord", text(texcoords))


def quaternion(azimuth: float, tilt: float) -> tuple[float, float, float, float]:
    """(w, x, y, z) of a turn by `tilt` about y followed by a turn by `azimuth` about z, in radians."""
    a, b = azimuth / 2, tilt / 2
    return (math.cos(a) * math.cos(b), -math.sin(a) * math.sin(b), math.cos(a) * math.sin(b), math.sin(a) * math.cos(b))


def wall_of_boxes(lower: tuple[float, float], upper: tuple[float, float], count: int,
                  thickness: float) -> list[dict[str, str]]:
    """A conical wall of `count` boxes with its outside between two (radius, height) points: hollow, yet each convex.

    Returns the pos, quat and size attributes of the boxes.
    """
    (r0, z0), (r1, z1) = lower, upper
    tilt = math.atan2(r1 - r0, z1 - z0)
    radius = (r0 + r1) / 2 - thickness / 2 * math.cos(tilt)
    height = (z0 + z1) / 2 + thickness / 2 * math.sin(tilt)
    half = (thickness / 2, max(r0, r1) * math.tan(math.pi / count), math.hypot(r1 - r0, z1 - z0) / 2)
    boxes = []
    for i in range(count):
        angle = 2 * math.pi * i / count
        boxes.append({"pos": text((radius * math.cos(angle), radius * math.sin(angle), height)),
                      "quat": text(quaternion(angle, tilt)), "size": text(half)})
    return boxes
