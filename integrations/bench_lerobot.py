"""Our environment beside LeRobot's LIBERO environment, in one process: same assets, same init state, same actions.

    build/lerobot-env/bin/python integrations/bench_lerobot.py [--task 5] [--size 256] [--steps 50] [--repeats 5]

Both stand at one stored init state and are driven by the same actions, drawn beforehand; a policy's time
(--policy-ms) counts in every step of an episode. LeRobot's also with robosuite's soft reset, which is no option of
0.4.4. Rows are milliseconds of processor time, so that others at work on the machine do not count: reset with its ten
wait steps, a step, both pictures, and the difference; then episodes a minute on one core. Last, whether the
simulator's states agree after 50 actions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from lerobot_env_lar.env import LarSpatial

from lar_core.scene.setup import use_assets

DRIVEN = 50  # random actions before states are compared
CAMERAS = ("agentview", "robot0_eye_in_hand")


def theirs(task: int, size: int):
    """LeRobot's LiberoEnv on the assets that ours uses; `use_assets` has told LIBERO where, so that it downloads nothing."""
    from lerobot.envs.libero import LiberoEnv, _get_suite

    return LiberoEnv(_get_suite("libero_spatial"), task, "libero_spatial", obs_type="pixels_agent_pos",
                     observation_width=size, observation_height=size)


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of processor time, after one call that does not count."""
    taken = []
    for _ in range(repeats + 1):
        began = time.process_time()
        call()
        taken.append((time.process_time() - began) * 1e3)
    return statistics.median(taken[1:])


def measure(reset: Callable[[], object], env, pictures: Callable[[], object], options) -> dict[str, float]:
    """Milliseconds by name, and episodes a minute."""
    actions = iter(np.random.default_rng(0).uniform(-1, 1, (10_000, 7)).astype(np.float32))
    times = {"reset": timed(reset, options.repeats)}
    times["step with pictures"] = timed(lambda: env.step(next(actions)), options.steps)
    times["both pictures"] = timed(pictures, options.steps)
    times["step without pictures"] = times["step with pictures"] - times["both pictures"]
    episode = times["reset"] + options.length * (times["step with pictures"] + options.policy_ms)
    return times | {"episodes a minute": 60e3 / episode}


def driven(env, reset: Callable[[], object]) -> dict:
    """The last observation after the same random actions."""
    reset()
    for action in np.random.default_rng(1).uniform(-1, 1, (DRIVEN, 7)).astype(np.float32):
        seen, *_ = env.step(action)
    return seen


def main() -> None:
    """Print the table, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("task", 5), ("size", 256), ("steps", 50), ("repeats", 5), ("length", 220)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--policy-ms", type=float, default=20.0, help="of a policy's answer, in episodes a minute")
    options = parser.parse_args()
    assets = use_assets()
    ours = LarSpatial(tasks=[options.task], image_size=options.size, wrist_size=options.size)
    seen = driven(ours, lambda: ours.reset(seed=1000))
    state = ours.scene.env.state()
    rows = {"ours": measure(lambda: ours.reset(seed=1000), ours, lambda: [
        ours.scene.env.render_camera(camera, options.size) for camera in CAMERAS], options)}
    ours.close()  # software GL mixes up pictures of several renderers in one process
    other = theirs(options.task, options.size)
    stock = other._env.env

    def first() -> None:  # the stored state of episode 0, fixtures drawn with its seed, as ours has it
        other.init_state_id = 0
        other.reset(seed=0)

    def drawn() -> None:
        for camera in CAMERAS:
            stock.sim.render(camera_name=camera, width=options.size, height=options.size)

    one = driven(other, first)
    there = stock.sim.get_state().flatten()
    agree = {"states": bool(np.array_equal(state, there)), "largest difference": float(np.abs(state - there).max()),
             "robot_state": {f"{part}/{name}": float(np.abs(value - one["robot_state"][part][name]).max())
                             for part, values in seen["robot_state"].items() for name, value in values.items()},
             "pictures, mean difference of 255": {name: float(np.abs(picture.astype(int) - one["pixels"][name]).mean())
                                                  for name, picture in seen["pixels"].items()}}
    rows["LeRobot"] = measure(first, other, drawn, options)
    stock.hard_reset = False
    rows["LeRobot, soft reset"] = measure(first, other, drawn, options)
    print(f"{'':<24}" + "".join(f"{name:>22}" for name in rows) + f"{'ratio (soft)':>22}")
    for name in rows["ours"]:
        ratio, soft = (rows[kind][name] / rows["ours"][name] for kind in ("LeRobot", "LeRobot, soft reset"))
        print(f"{name:<24}" + "".join(f"{row[name]:>22.2f}" for row in rows.values()) + f"{f'{ratio:.2f} ({soft:.2f})':>22}")
    print(json.dumps({"settings": vars(options), "assets": assets, "rows": rows, "agreement": agree}))


if __name__ == "__main__":
    main()
