"""Do all 500 init states of LIBERO-Spatial settle within the 10 wait steps? A table, and exit code 1 if one does not.

An init state drops its objects from a few centimetres. "Settled" means: after the wait steps no object has been thrown
sideways, every object is level, and nothing moves any more over another ten steps.

    python scripts/check_init_states.py [--states 50] [--assets standin]
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from lar_core.scene.env import WAIT_ACTION, SpatialEnv, official_init_states, task_names

MOVABLE = 5  # two bowls, cookie box, ramekin, plate
SIDEWAYS, TILT, CREEP = 0.02, 10.0, 0.003  # metres, degrees, metres


def settle(env: SpatialEnv, state: np.ndarray, seed: int) -> tuple[float, float, float]:
    """(largest sideways shift in metres, largest tilt in degrees, largest movement after the wait in metres)."""
    env.reset(seed=seed, options={"init_state": state})
    start, settled = state[10:45].reshape(MOVABLE, 7), env.state()[10:45].reshape(MOVABLE, 7)
    for _ in range(10):
        env.stock.step(WAIT_ACTION)
    later = env.state()[10:45].reshape(MOVABLE, 7)
    shift = np.linalg.norm(settled[:, :2] - start[:, :2], axis=1).max()
    up = 1 - 2 * (settled[:, 4] ** 2 + settled[:, 5] ** 2)  # z component of the object's own z axis
    return shift, np.degrees(np.arccos(np.clip(up, -1, 1))).max(), np.linalg.norm(later - settled, axis=1).max()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=50, help="init states of each task, 1 to 50")
    parser.add_argument("--tasks", type=int, nargs="*", default=range(len(task_names())))
    parser.add_argument("--assets", default=None, help="standin, hub or a folder; default as everywhere else")
    options = parser.parse_args()
    bad = 0
    print(f"{'task':>4} {'settled':>8} {'shift mm':>9} {'tilt deg':>9} {'creep mm':>9}   (largest)")
    for task in options.tasks:
        env = SpatialEnv(task, image_size=16, wrist_size=0, assets=options.assets)
        states = official_init_states(task)[:options.states]
        rows = np.array([settle(env, state, seed) for seed, state in enumerate(states)])
        env.close()
        good = (rows < (SIDEWAYS, TILT, CREEP)).all(axis=1)
        shift, tilt, creep = rows.max(axis=0)
        which = "" if good.all() else f"   not: {np.nonzero(~good)[0].tolist()}"
        print(f"{task:>4} {good.sum():>4}/{len(good):<3} {shift * 1e3:>9.1f} {tilt:>9.1f} {creep * 1e3:>9.2f}{which}",
              flush=True)
        bad += int((~good).sum())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
