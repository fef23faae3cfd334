"""Episodes a minute of our scene beside vla-eval's own LIBERO benchmark: same assets, stand-in policy and core, in one run.

    python scripts/bench_eval.py [--task 5] [--episodes 2] [--steps 50]          # needs pip install -e ".[doors]"

Both draw both cameras at 256 pixels and give the state; the policy is random actions by one seed and costs no time. Ours is
also timed as it is rolled out for a policy that executes eight actions of a chunk: only what it looks at is drawn. Every
peer has a process of its own. Prints milliseconds of processor time by phase, ratios, and how far the last states are
apart. LeRobot's environment has a script of its own, `integrations/bench_lerobot.py`, because it needs other pins.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

OURS, CHUNKS, THEIRS = "ours", "ours, every 8th drawn", "vla-eval's LIBERO"
PHASES = ("reset", "step", "message")  # a step of either draws both pictures; a message is what a server would be sent


def peer(name: str, task: int) -> tuple[Any, dict, Callable[[], np.ndarray]]:
    """A benchmark of vla-eval, its task, and what reads its simulator's state (92,)."""
    from lar_core.scene.setup import prepare, use_assets
    prepare()
    use_assets(None)
    if name == THEIRS:
        from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark
        from vla_eval.recording import NullEpisodeRecorder
        bench = LIBEROBenchmark("libero_spatial", send_wrist_image=True, send_state=True)
        bench._recorder = NullEpisodeRecorder()
        return bench, bench.get_tasks()[task], lambda: bench._env.sim.get_state().flatten()
    from lar_core.vla import LarSpatial
    bench = LarSpatial((task,), send_wrist_image=True, send_state=True)
    return bench, bench.get_tasks()[0], lambda: bench.env.env.state()


def measure(name: str, task: int, episodes: int, steps: int) -> dict:
    """Milliseconds of processor time a reset, a step and a message, without the first episode, which builds the scene."""
    bench, asked, state = peer(name, task)
    spent = dict.fromkeys(PHASES, 0.0)

    def timed(phase: str, work: Callable, *arguments: object) -> Any:
        began = time.process_time()
        result = work(*arguments)
        spent[phase] += time.process_time() - began
        return result

    for episode in range(episodes + 1):
        if episode == 1:
            spent |= dict.fromkeys(PHASES, 0.0)
        seen = timed("reset", bench.reset, {**asked, "episode_idx": 0})
        for step, action in enumerate(np.random.default_rng(0).uniform(-1, 1, (steps, 7))):
            if name == CHUNKS:
                bench.env.drawn = step % 8 == 7
            if name != CHUNKS or step % 8 == 0:
                timed("message", bench.make_obs, seen, asked)
            seen = timed("step", bench.step, {"actions": action}).obs
    per = {"reset": episodes, "step": episodes * steps, "message": episodes * steps}
    return {"ms": {phase: 1e3 * spent[phase] / per[phase] for phase in PHASES}, "state": state().tolist()}


def main() -> None:
    """Measure every peer in a process of its own, and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, value in (("task", 5), ("episodes", 2), ("steps", 50)):
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(measure(options.peer, options.task, options.episodes, options.steps)))
        return
    found = {}
    for name in (OURS, CHUNKS, THEIRS):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--peer", name], stdout=subprocess.PIPE, text=True,
                              check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found[name] = json.loads(done.stdout.splitlines()[-1])
        ms, base = found[name]["ms"], found[OURS]["ms"]
        total, ours = (times["reset"] + 220 * (times["step"] + times["message"]) for times in (ms, base))
        phases = ", ".join(f"{phase} {ms[phase]:.1f} ms ({ms[phase] / base[phase]:.1f} x ours)" for phase in PHASES)
        apart = np.abs(np.subtract(found[name]["state"], found[OURS]["state"])).max()
        print(f"{name}: {60e3 / total:.1f} episodes of 220 steps a minute of one core, {total / ours:.2f} x our time; "
              f"{phases}; last state apart by {apart:.3g}", flush=True)


if __name__ == "__main__":
    main()
