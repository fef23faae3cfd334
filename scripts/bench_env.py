"""What the fast path gains: control step, picture, segmentation and reset, next to LIBERO's own path in the same run.

    python scripts/bench_env.py [--task 5] [--repeats 60] [--assets standin]

Medians on one core. A control step is 1/20 s of simulation (25 substeps) without pictures; the stock environment's
camera sensors are switched off for that row, so that the ratio is about physics alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from lar_core.scene.env import SpatialEnv, official_init_states

TARGETS = {"control step": 30.0, "picture 128 px": 15.0, "reset": 100.0}  # milliseconds


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median duration of `call` in milliseconds, after one call that does not count."""
    call()
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations) * 1e3


def measure(fast: bool, task: int, assets: str | None, repeats: int) -> dict[str, float]:
    """Milliseconds by name, for one path."""
    env = SpatialEnv(task, fast=fast, assets=assets)
    state, rng = official_init_states(task)[0], np.random.default_rng(0)
    at_once = {"init_state": state, "wait_steps": 0}
    times = {"reset": median_ms(lambda: env.reset(options=at_once), max(3, repeats // 10))}
    env.reset(options={"init_state": state})
    times |= {f"picture {size} px": median_ms(lambda size=size: env.render_camera("agentview", size), repeats)
              for size in (128, 224)}
    times["wrist picture 64 px"] = median_ms(lambda: env.render_camera("robot0_eye_in_hand", 64), repeats)
    if fast:
        times["segmentation 128 px"] = median_ms(lambda: env.segment(128), repeats)
    else:
        for name in ("agentview_image", "robot0_eye_in_hand_image"):
            env.stock.modify_observable(name, "enabled", False)
    times["control step"] = median_ms(lambda: env.stock.step(rng.uniform(-1, 1, 7)), repeats)
    env.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--assets", default=None, help="standin, hub or a folder; default as everywhere else")
    options = parser.parse_args()
    fast, stock = (measure(kind, options.task, options.assets, options.repeats) for kind in (True, False))
    print(f"{'milliseconds':<22} {'fast':>8} {'stock':>8} {'ratio':>7} {'target':>8}")
    for name, value in fast.items():
        other = f"{stock[name]:>8.1f} {stock[name] / value:>6.1f}x" if name in stock else f"{'-':>8} {'-':>7}"
        target = f"<= {TARGETS[name]:g} {'ok' if value <= TARGETS[name] else 'MISSED'}" if name in TARGETS else ""
        print(f"{name:<22} {value:>8.1f} {other} {target:>11}")


if __name__ == "__main__":
    main()
