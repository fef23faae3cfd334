"""Pictures of scenes, and captions that are true of them: what pre-training learns from. No box, no segmentation.

    DATA/scenes/<assets>/<placement>/<size>px-n<pictures>/<task>.npz
        images (N, H, W, 3) uint8; heldout_images (M, H, W, 3) of stored scenes, which training never draws, with
        heldout_regions (M, 2, H, W) uint8, pixels of the named bowl and of the other one, to measure with, and
        heldout_instructions (M,)

A file is written once it is whole; those that are there are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..run.config import Profile, RunConfig
from ..run.files import atomic_path, produce
from ..run.processes import processes
from .env import SpatialEnv, instruction, pool
from .placements import RELATIONS, Scene, evaluation_scenes, sample_scene
from .setup import task_names, use_assets

HELDOUT = 10  # pictures a task
WRIST = 0  # pre-training has one camera


@dataclass(frozen=True)
class Pictures:
    """One task's arrays, as in the file above."""

    task: int
    images: np.ndarray
    heldout_images: np.ndarray
    heldout_regions: np.ndarray
    heldout_instructions: list[str]


def captions(task: int) -> list[str]:
    """What is true of every scene of a task: each bowl's relation, as a caption and as an instruction.

    For example "the black bowl next to the ramekin" and "pick up the black bowl next to the ramekin and place it on the
    plate". They come from where the scene put the bowls, which it knows without looking.
    """
    sentences = [instruction(next(t for t, (first, _) in enumerate(RELATIONS) if first == relation))
                 for relation in RELATIONS[task]]
    return [sentence.removeprefix("pick up ").split(" and place ")[0] for sentence in sentences] + sentences


def render_scenes(config: RunConfig, data_dir: Path | str, *, workers: int | None = None) -> list[Pictures]:
    """`demos_per_task` pictures of every task of the profile, and HELDOUT to measure on; rendered where missing.

    workers: processes that render at the same time, one task each; None: one per core.
    Raises LarError as `sample_scene` does.
    """
    paths = scene_paths(config, data_dir)
    missing = {task: path for task, path in paths.items() if not path.exists()}
    if missing:
        with pool(min(processes(workers), len(missing))) as executor:
            jobs = [executor.submit(produce, path, f"rendering scenes of task {task}",
                                    partial(_render, config.profile, task, path)) for task, path in missing.items()]
            for job in tqdm(jobs, unit="task", desc="rendering scenes"):
                job.result()
    return [_read(task, path) for task, path in paths.items()]


def scene_paths(config: RunConfig, data_dir: Path | str) -> dict[int, Path]:
    """Where each task's pictures lie: everything that changes them is part of the path."""
    profile, assets = config.profile, use_assets()
    folder = Path(data_dir) / "scenes" / f"{assets['name']}-{assets['sha256'][:8]}" / profile.placement
    folder /= f"{profile.image_size}px-n{profile.demos_per_task}"
    return {task: folder / f"{task_names()[task]}.npz" for task in profile.tasks}


def _render(profile: Profile, task: int, path: Path) -> None:
    """In a worker process: one environment after the other, each closed before the next."""
    env = SpatialEnv(task, image_size=profile.image_size, wrist_size=WRIST, segmentation=True)
    try:
        drawn = [_picture(env, sample_scene(env, profile.placement, index))[0]
                 for index in range(profile.demos_per_task)]
        stored = evaluation_scenes(task, profile.placement)[:HELDOUT]
        images, regions = zip(*[_picture(env, scene) for scene in stored])
    finally:
        env.close()
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, images=np.stack(drawn), heldout_images=np.stack(images),
                            heldout_regions=np.stack(regions),
                            heldout_instructions=np.array([scene.instruction for scene in stored]))


def _picture(env: SpatialEnv, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The settled scene (H, W, 3), and the pixels of its two bowls (2, H, W)."""
    seen, _ = env.reset(seed=scene.seed, options={"init_state": scene.init_state})
    numbers = [env.objects.index(bowl) + 1 for bowl in (scene.target, scene.distractor)]
    regions = np.stack([seen["agentview_segmentation"] == number for number in numbers])
    return seen["agentview_rgb"], regions.astype(np.uint8)


def _read(task: int, path: Path) -> Pictures:
    with np.load(path, allow_pickle=False) as file:
        return Pictures(task, file["images"], file["heldout_images"], file["heldout_regions"],
                        file["heldout_instructions"].tolist())
