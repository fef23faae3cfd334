"""Draw the stored evaluation scenes of the placements `wide`, `near` and their pairs again, and with --gallery show them.

    python scripts/make_init_states.py                         # lar_core/scene/init_states/*.npz, 5 minutes on one core
    python scripts/make_init_states.py --gallery gallery.png   # pictures of the stored scenes only

Each file holds, for every task, `task_<i>_seeds` (n,) and `task_<i>_states` (n, 92). Scene number i uses the first seed
from 100 i on that settles with every named relation true; those seeds stay far below the ones of demonstrations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lar_core.run.files import atomic_path
from lar_core.scene import placements
from lar_core.scene.env import SpatialEnv
from lar_core.scene.placements import EVALUATION_SCENES, OTHER_SENTENCE, PAIRED, TRIES, draw_layout, evaluation_scenes

FOLDER = Path(placements.__file__).parent / "init_states"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=Path, metavar="PNG", help="draw the first scenes instead of making new ones")
    parser.add_argument("--placements", nargs="+", default=list(EVALUATION_SCENES), choices=EVALUATION_SCENES)
    options = parser.parse_args()
    if options.gallery:
        draw_gallery(options.gallery)
    else:
        for placement in options.placements:
            write_scenes(placement, EVALUATION_SCENES[placement])


def write_scenes(placement: str, count: int) -> None:
    """Draw `count` scenes of every task and store them as one npz file."""
    arrays = {}
    for task in tqdm(range(10) if placement not in PAIRED else OTHER_SENTENCE, desc=placement, unit="task"):
        env = SpatialEnv(task, image_size=16, wrist_size=0, assets="standin")
        scenes = [draw_layout(env, placement, TRIES * index) for index in range(count)]
        arrays[f"task_{task}_seeds"] = np.array([scene.seed for scene in scenes])
        arrays[f"task_{task}_states"] = np.stack([scene.init_state for scene in scenes])
        env.close()
    with atomic_path(FOLDER / f"{placement}.npz") as path:
        np.savez_compressed(path, **arrays)


def draw_gallery(path: Path, columns: int = 8, size: int = 192) -> None:
    """One row of settled scenes for every task: one placement after the other."""
    rows = []
    for placement in EVALUATION_SCENES:
        for task in range(10) if placement not in PAIRED else OTHER_SENTENCE:
            env = SpatialEnv(task, image_size=size, wrist_size=0)
            scenes = evaluation_scenes(task, placement)[::len(placements.sides(placement))][:columns]
            pictures = [env.reset(seed=scene.seed, options={"init_state": scene.init_state})[0]["agentview_rgb"]
                        for scene in scenes]
            rows.append(np.concatenate(pictures, axis=1))
            env.close()
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


if __name__ == "__main__":
    main()
