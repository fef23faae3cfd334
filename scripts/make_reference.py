"""Write lar_core/scene/reference.json: the reference picture's colours of all ten tasks with the stand-in pack.

Run it when the pack or the way it is rendered was changed on purpose.
"""

from __future__ import annotations

from pathlib import Path

from lar_core.run.files import write_json
from lar_core.scene.env import SpatialEnv
from lar_core.scene.reference import colours, reference_picture

rows = []
for task in range(10):
    env = SpatialEnv(task, assets="standin", wrist_size=0)
    rows.append(colours(reference_picture(env)).tobytes().hex())
    assets = env.assets["sha256"]
    env.close()
write_json(Path(__file__).parents[1] / "lar_core/scene/reference.json", {assets: rows})
