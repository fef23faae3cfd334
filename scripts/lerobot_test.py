"""Through LeRobot itself: its loader reads our demonstrations, ACT learns from them, `lerobot-eval` rolls ACT out on
counterfactual scenes and a policy of ours as `lar rollout` does. `make lerobot-test` builds the environment first.

One sentence and its numbers a step; ends with exit code 1 and a traceback at the first expectation that fails.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lar_core.data.demos import read_episode
from lar_core.measure.rollout import _plan
from lar_core.model.policy import load_policy
from lar_core.run.files import read_jsonl
from lar_core.run.folder import Run
from lar_core.scene.episode import EpisodeEnv, told

ROOT = Path(__file__).resolve().parents[1]
THEIRS, FOLDER = ROOT / "build" / "lerobot-env" / "bin", ROOT / "build" / "lerobot-test"
RUN, COPY, ACT = FOLDER / "run", FOLDER / "demos", FOLDER / "act"
MICRO = ("--profile", "micro", "--data-dir", FOLDER / "data")
PLUGIN, OURS = "--env.discover_packages_path=lerobot_env_lar", ("--env.type=lar_spatial", "--env.task_ids=[5]")
LOADER = """
import json, sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
data = LeRobotDataset("lar/micro", root=sys.argv[1], delta_timestamps={"action": [0, 0.05]})
first = data[0]
print(json.dumps({"frames": len(data), "task": first["task"], "image": first["observation.images.image"].numpy().tolist(),
                  "state": first["observation.state"].tolist(), "action": first["action"].tolist()}))
"""
RECORDER = """
import json, sys
from lerobot.scripts import lerobot_eval
from lerobot_env_lar.env import LarSpatial
step, path = LarSpatial.step, sys.argv.pop(1)
def recorded(self, action):
    if not self.over:
        with open(path, "a") as file:
            print(json.dumps([self.episode, action.tolist()]), file=file)
    return step(self, action)
LarSpatial.step = recorded
lerobot_eval.main()
"""


def main() -> None:
    """All of it, from nothing."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    check_demonstrations()
    check_act()
    check_policy()


def call(*command: object, **environment: str) -> str:
    """Standard output of a command; where it fails, all that it said, and the end of this script."""
    done = subprocess.run([str(part) for part in command], cwd=FOLDER, capture_output=True, text=True,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", **environment})
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def lar(*arguments: object) -> str:
    """One step of ours."""
    return call(sys.executable, "-m", "lar_core", *arguments)


def check_demonstrations() -> None:
    """LeRobot's own loader gives the numbers of our file."""
    lar("demos", *MICRO, "--run-dir", RUN, "--to", "lerobot", COPY)
    seen = json.loads(call(THEIRS / "python", "-c", LOADER, COPY))
    (path,) = sorted((FOLDER / "data").glob("demos/**/*.hdf5"))
    episodes = [read_episode(path, index) for index in range(2)]
    first = episodes[0]
    assert seen["frames"] == sum(map(len, episodes)) and seen["task"] == first.instruction
    np.testing.assert_allclose(np.array(seen["image"]).transpose(1, 2, 0), first.agentview_rgb[0] / 255, atol=1e-6)
    np.testing.assert_allclose(seen["action"], first.actions[:2], atol=1e-6)
    print(f"LeRobot's loader reads our demonstrations: {seen['frames']} frames, pictures and numbers the same.", flush=True)


def check_act() -> None:
    """ACT learns from the copy and is rolled out under two kinds of instruction; the table has a row of each."""
    began = time.perf_counter()
    call(THEIRS / "lerobot-train", "--policy.type=act", "--policy.device=cpu", "--policy.push_to_hub=false",
         "--policy.pretrained_backbone_weights=null", "--policy.chunk_size=8", "--policy.n_action_steps=8",
         "--dataset.repo_id=lar/micro", f"--dataset.root={COPY}", "--dataset.use_imagenet_stats=false", "--steps=4",
         "--batch_size=2", "--num_workers=0", "--save_freq=4", "--wandb.enable=false", f"--output_dir={ACT}")
    for kind in ("right", "other_bowl"):
        call(THEIRS / "lerobot-eval", PLUGIN, *OURS, f"--policy.path={ACT}/checkpoints/last/pretrained_model",
             "--policy.device=cpu", "--env.placement=counterfactual", f"--env.instruction={kind}", "--env.episode_length=16",
             "--env.observation_height=64", "--env.observation_width=64", "--env.wrist_size=32", "--eval.n_episodes=2",
             "--eval.batch_size=1", f"--env.outcomes={FOLDER}/act.jsonl", f"--output_dir={FOLDER}/eval-{kind}")
    table = call(THEIRS / "python", "-m", "lerobot_env_lar.table", FOLDER / "act.jsonl")
    assert "right" in table and "other_bowl" in table
    seconds = time.perf_counter() - began
    print(f"{table}ACT learned for 4 steps and was rolled out twice in {seconds:.0f} s.", flush=True)


def check_policy() -> None:
    """A policy of ours does the same through lerobot-eval as through `lar rollout`."""
    lar("train", *MICRO, "--run-dir", RUN)
    lar("rollout", "--run-dir", RUN)
    run = Run.load(RUN)
    profile, (task,) = run.config.profile, run.config.profile.tasks
    with served(RUN) as server:
        call(THEIRS / "python", "-c", RECORDER, FOLDER / "actions.jsonl", "--policy.type=lar", f"--policy.server={server}",
             "--env.type=lar_spatial", f"--env.task_ids=[{task}]", f"--env.placement={profile.placement}",
             f"--env.observation_height={profile.image_size}", f"--env.observation_width={profile.image_size}",
             f"--env.wrist_size={profile.wrist_size}", f"--env.episode_length={profile.max_steps}",
             f"--env.outcomes={FOLDER}/lar.jsonl", f"--eval.n_episodes={profile.episodes_per_task}", "--eval.batch_size=1",
             f"--output_dir={FOLDER}/eval-lar")
    names = ("task", "episode", "begun", "success", "steps", "first_touched", "progress", "on_plate", "sentence")
    ours, theirs = ([{name: row[name] for name in names} for row in read_jsonl(path)]
                    for path in (RUN / "rollouts.jsonl", FOLDER / "lar.jsonl"))
    assert ours == theirs, (ours, theirs)
    apart = max(float(np.abs(actions - told_here).max()) for actions, told_here in zip(recorded(), acted(run)))
    assert apart <= 1e-5, apart
    print(f"{len(ours)} episodes of a policy of ours are the same through lerobot-eval: same hash of the beginning, same "
          f"outcome; actions differ by {apart:.1e} at most.")


def recorded() -> list[np.ndarray]:
    """The actions (T, 7) of each episode, as LeRobot commanded them."""
    episodes: dict[int, list] = {}
    for number, action in map(json.loads, (FOLDER / "actions.jsonl").read_text().splitlines()):
        episodes.setdefault(number, []).append(action)
    return [np.array(episodes[number]) for number in sorted(episodes)]


def acted(run: Run) -> Iterator[np.ndarray]:
    """The same, as `lar rollout` commands them."""
    policy, stats = load_policy(run)
    profile, (task,) = run.config.profile, run.config.profile.tasks
    env = EpisodeEnv(task, profile.placement, profile)
    for episode in range(profile.episodes_per_task):
        seen, _ = env.reset(seed=episode)
        actions: list[np.ndarray] = []
        while len(actions) < profile.max_steps and not env.done:
            if len(actions) % profile.execute == 0:
                batch = {name: array[None] for name, array in seen.items()}
                chunk, _ = _plan(policy, stats, "", batch, [told("right", env.scene, profile.tasks)])
            actions.append(chunk[0, len(actions) % profile.execute])
            seen, *_ = env.step(actions[-1])
        yield np.array(actions)


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address at which `lar serve` answers for the policy of a run folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "lar_core", "serve", "--run-dir", str(run), "--port", str(port)])
    try:
        while True:
            assert process.poll() is None, "lar serve ended"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
