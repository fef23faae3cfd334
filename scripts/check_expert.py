"""How often the scripted expert succeeds: tasks × placements, on freshly drawn demonstration scenes.

    python scripts/check_expert.py --tasks 0 5 --placements official wide --seeds 20

Counterfactual scenes come in pairs, so that half of them name the other bowl.
"""

from __future__ import annotations

import argparse

import numpy as np

from lar_core.run.errors import LarError
from lar_core.run.settings import PLACEMENTS
from lar_core.scene.env import SpatialEnv
from lar_core.scene.expert import run_expert
from lar_core.scene.placements import OTHER_SENTENCE, sample_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=range(10), metavar="TASK", help="0 to 9 (default: all)")
    parser.add_argument("--placements", nargs="+", default=PLACEMENTS, choices=PLACEMENTS)
    parser.add_argument("--seeds", type=int, default=20, help="scenes for each task and placement (default: 20)")
    parser.add_argument("--noise", type=float, default=0.0, help="recovery noise while acting (default: 0)")
    options = parser.parse_args()
    print(f"{'task':>4} {'placement':<15} {'n':>3} {'solved':>6} {'median steps':>12} {'most':>5}  failed scenes")
    for task in options.tasks:
        check_task(task, options)


def check_task(task: int, options: argparse.Namespace) -> None:
    """Print one row for each placement of a task, in one environment."""
    env = SpatialEnv(task, image_size=16, wrist_size=0)
    for placement in options.placements:
        if placement == "counterfactual" and task not in OTHER_SENTENCE:
            continue
        episodes = [run_expert(env, sample_scene(env, placement, index), options.noise, seed=index)
                    for index in range(options.seeds)]
        steps = [len(episode) for episode in episodes if episode]
        failed = [index for index, episode in enumerate(episodes) if not episode]
        print(f"{task:>4} {placement:<15} {len(episodes):>3} {len(steps):>6} {np.median(steps or [np.nan]):>12.0f} "
              f"{max(steps, default=0):>5}  {' '.join(map(str, failed))}", flush=True)
    env.close()


if __name__ == "__main__":
    try:
        main()
    except LarError as error:
        raise SystemExit(f"{error}") from error
