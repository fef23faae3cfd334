"""Demonstrations by the scripted expert: recorded in parallel, one process per environment, resumable.

Attempt number i of a task always starts from scene number i with noise seed i, so the same configuration gives the same
demonstrations whatever the number of processes: the first `demos_per_task` attempts that succeed, in order. Every
attempt leaves a file as soon as it ends (a part with the episode, or an empty mark for a failure), and a later call
goes on from those files.
"""

from __future__ import annotations

import shutil
from concurrent.futures import FIRST_COMPLETED, wait
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from ..data.demos import episode_count, merge_episodes, write_episode
from ..run.config import RunConfig
from ..run.errors import LarError
from ..run.files import produce, write_text
from ..run.processes import processes
from ..run.settings import Profile
from .env import environment, pool
from .expert import run_expert
from .placements import sample_scene
from .setup import task_names, use_assets

MOST_ATTEMPTS = 3  # times the number of demonstrations: an expert that fails more often is broken


def collect(config: RunConfig, data_dir: Path | str, *, workers: int | None = None,
            progress: bool = True) -> list[Path]:
    """Record `demos_per_task` successful episodes of every task of the profile; return one file per task.

    workers: processes that record at the same time; None: one per core. What an earlier call recorded is kept, also
    after a kill. Ctrl-C lets the episodes that are being recorded end and saves them. A failed attempt is never saved.
    Raises LarError for a task without the placement, a full disk, and an expert that fails too often.
    """
    paths, count = demo_paths(config, data_dir), processes(workers)
    with tqdm(total=config.profile.demos_per_task * len(paths), unit="demo", disable=not progress) as bar:
        for index, (task, path) in enumerate(zip(config.profile.tasks, paths)):
            bar.set_description(f"demonstrations, task {task}")
            produce(path, f"recording the demonstrations of task {task}",
                    partial(_record, config.profile, task, path, count, bar))
            shutil.rmtree(parts_folder(path), ignore_errors=True)  # nobody records any more what is there
            _check_count(path, config.profile.demos_per_task)
            bar.update((index + 1) * config.profile.demos_per_task - bar.n)  # also what another process has recorded
    return paths


def demo_paths(config: RunConfig, data_dir: Path | str) -> list[Path]:
    """Where `collect` puts the demonstrations of each task: everything that changes them is part of the path."""
    profile, assets = config.profile, use_assets()
    key = f"{profile.image_size}-{profile.wrist_size}px-noise{profile.recovery_noise:g}-n{profile.demos_per_task}"
    folder = Path(data_dir) / "demos" / f"{assets['name']}-{assets['sha256'][:8]}" / profile.placement / key
    return [folder / f"{task_names()[task]}_demo.hdf5" for task in profile.tasks]


def _record(profile: Profile, task: int, path: Path, workers: int, bar: tqdm) -> None:
    merge_episodes(_record_parts(profile, task, parts_folder(path), workers, bar), path)


def _record_parts(profile: Profile, task: int, folder: Path, workers: int, bar: tqdm) -> list[Path]:
    """Make attempts until enough have succeeded; return the parts in the order of the attempts.

    Never more attempts are under way than successes are missing, so that none is made in vain, and never more than
    there are processes, so that Ctrl-C waits for one episode at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted, attempt, running = profile.demos_per_task, 0, set()
    bar.update(min(wanted, len(_succeeded(folder))))
    with pool(min(workers, wanted)) as executor:
        while len(_succeeded(folder)) < wanted:
            while len(running) < min(workers, wanted - len(_succeeded(folder))):
                if attempt >= MOST_ATTEMPTS * wanted + 10:
                    raise LarError(f"The scripted expert solved only {len(_succeeded(folder))} of {attempt} attempts "
                                   f"at task {task}, placement {profile.placement}: see scripts/check_expert.py.")
                if not _part(folder, attempt).exists() and not _mark(folder, attempt).exists():
                    running.add(executor.submit(_attempt, profile, task, folder, attempt))
                attempt += 1
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            bar.update(sum(future.result() for future in finished))
    return _succeeded(folder)[:wanted]


def _attempt(profile: Profile, task: int, folder: Path, attempt: int) -> bool:
    """In a worker process: make one attempt and leave its file; return whether it succeeded."""
    env = environment(task, profile.image_size, profile.wrist_size)
    scene = sample_scene(env, profile.placement, attempt)
    episode = run_expert(env, scene, profile.recovery_noise, seed=attempt)
    if episode is None:
        write_text(_mark(folder, attempt), "")
        return False
    write_episode(_part(folder, attempt), episode, bddl_file=env.stock.bddl_file_name)
    return True


def parts_folder(path: Path) -> Path:
    """Where the episodes lie that `path` is made from, until it is."""
    return path.with_name(f"{path.stem}.parts")


def _part(folder: Path, attempt: int) -> Path:
    return folder / f"attempt_{attempt:05d}.hdf5"


def _mark(folder: Path, attempt: int) -> Path:
    return folder / f"attempt_{attempt:05d}.failed"


def _succeeded(folder: Path) -> list[Path]:
    return sorted(folder.glob("attempt_*.hdf5"))


def _check_count(path: Path, wanted: int) -> None:
    if episode_count(path) != wanted:
        raise LarError(f"{path} has {episode_count(path)} episodes instead of {wanted}: delete it, "
                       "and it is recorded again.")
