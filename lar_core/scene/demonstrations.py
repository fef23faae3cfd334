"""Whose demonstrations a profile asks for, as one file a task in our own format, whatever their origin.

`expert`: recorded here (`collect`). `official`: LIBERO's HDF5 files. `lerobot`: their copy in LeRobot's format. The last two
come from the folder DATA/official or DATA/lerobot where there is one, and from the hub otherwise; they are converted once,
to the profile's sizes: resized, or rendered again from their simulator states with `render_demos`. By which conventions they
were made is decided for the whole data set before the first is converted. Every episode's provenance says all of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from ..data import lerobot
from ..data.conventions import Conventions, Verdict
from ..data.demos import (
    Episode,
    conventions_of,
    episode_count,
    made_here,
    merge_episodes,
    plain,
    read_episode,
    write_episode,
)
from ..data.episode import hdf5_files, resize_episode
from ..data.hub import download, entry, offered
from ..data.lerobot import META, Listed, list_episodes, read_listed
from ..data.raw import Raw
from ..run.config import RunConfig
from ..run.conventions import stated_conventions
from ..run.errors import LarError
from ..run.files import files_below, produce, require_space
from ..run.processes import processes
from ..run.settings import Profile
from .check_demos import draw_verdict
from .collect import collect, parts_folder
from .env import environment, instruction, pool, tasks_by_instruction
from .placements import BOWLS, other_instruction
from .rerender import render_again
from .setup import assets_of, bddl_file, task_names, use_assets

KEYS = {"official": "libero-spatial-demonstrations", "lerobot": "libero-spatial-lerobot"}  # in data_manifest.yaml


def demonstrations(config: RunConfig, data_dir: Path | str, *, workers: int | None = None,
                   progress: bool = True) -> list[Path]:
    """One demonstration file for each task of the profile, with at most `demos_per_task` episodes; made where missing.

    workers: processes that record or convert at the same time; None: one per core. What an earlier call finished is
    kept, also after a kill.
    Raises LarError as `collect` and `download` do, for malformed files, for too little disk space, and for settings that
    the origin cannot serve.
    """
    profile = config.profile
    if profile.bench == "auto":
        raise LarError("bench is auto, which is decided where a run begins (scene/bench.py): start from a command or a "
                       "notebook, or set bench to libero or embedded.")
    if profile.demos == "expert":
        return collect(config, data_dir, workers=workers, progress=progress)
    _refuse(profile)
    paths = converted_paths(profile, Path(data_dir))
    missing = [task for task, path in paths.items() if not path.exists()]
    origins = _origins(profile, Path(data_dir), missing) if missing else []
    with tqdm(total=sum(map(len, origins)), unit="demo", disable=not progress, desc=f"{profile.demos} demos") as bar:
        for task, origin in zip(missing, origins):
            produce(paths[task], f"converting the demonstrations of task {task}",
                    partial(_convert, profile, task, origin, paths[task], processes(workers), bar))
    for path in paths.values():
        shutil.rmtree(parts_folder(path), ignore_errors=True)  # also what was left by a kill after the joining
    return list(paths.values())


def converted_paths(profile: Profile, data_dir: Path) -> dict[int, Path]:
    """Where the converted demonstrations of each task lie: everything that changes them is part of the path."""
    stated = stated_conventions(profile.demos_conventions)
    read = f"stated-{hashlib.sha256(repr(sorted(stated.items())).encode()).hexdigest()[:8]}" if stated else "by-evidence"
    assets = use_assets(assets_of(profile)) if profile.render_demos else None
    pictures = f"rendered-{assets['name']}-{assets['sha256'][:8]}" if assets else "resized"
    # of the version, "local" and eight digits, or thirteen digits of a commit
    folder = (data_dir / "demos" / f"{profile.demos}-{_version(profile, data_dir)[:13]}" / pictures
              / f"{profile.image_size}-{profile.wrist_size}px-n{profile.demos_per_task}-{read}")
    return {task: folder / f"{task_names()[task]}_demo.hdf5" for task in profile.tasks}


def other_sentence(episode: Episode) -> str | None:
    """The sentence that names the other bowl of an episode's scene; None where none does, or the scene is not known."""
    task = episode.provenance.get("task")
    return None if task is None else other_instruction(task, episode.target or BOWLS[0])


@dataclass(frozen=True)
class Hdf5Origin:
    """The first episodes of an official file."""

    version: str
    path: Path
    most: int
    conventions: Conventions | None  # None: a file of our own kind, which needs none

    def __len__(self) -> int:
        return min(self.most, episode_count(self.path))

    def episode(self, number: int) -> Episode:
        """Read one of them."""
        return read_episode(self.path, number, self.conventions)


@dataclass(frozen=True)
class LeRobotOrigin:
    """Some episodes of a LeRobot data set."""

    version: str
    folder: Path
    listed: tuple[Listed, ...]
    conventions: Conventions

    def __len__(self) -> int:
        return len(self.listed)

    def episode(self, number: int) -> Episode:
        """Read one of them."""
        return read_listed(self.folder, self.listed[number], self.conventions)


def _refuse(profile: Profile) -> None:
    if profile.placement != "official":
        raise LarError(f"The {profile.demos} demonstrations were recorded at official placements, but placement is "
                       f"{profile.placement!r}: set demos to expert, or placement to official.")
    if profile.demos == "lerobot" and profile.render_demos:
        raise LarError("LeRobot's copy holds no simulator states to render again from: set render_demos to false, or "
                       "demos to official.")


def _version(profile: Profile, data_dir: Path) -> str:
    """The pinned revision, or, for a folder of the user's own, a digest that changes when its files do."""
    folder = _own_folder(profile, data_dir)
    if folder is None:
        return entry(KEYS[profile.demos]).pinned_revision()
    files = [(name, file.stat().st_size, file.stat().st_mtime_ns) for name, file in files_below(folder)]
    return "local" + hashlib.sha256(repr(files).encode()).hexdigest()


def _own_folder(profile: Profile, data_dir: Path) -> Path | None:
    """DATA/official or DATA/lerobot, where there is one. Raises LarError for a link to a folder that is gone."""
    folder = data_dir / profile.demos
    if folder.is_symlink() and not folder.is_dir():
        raise LarError(f"{folder} is a link to {os.readlink(folder)}, which is not a folder (any more): connect the drive "
                       "that it lies on, or remove the link to use the hub's copy.")
    return folder if folder.is_dir() else None


def _origins(profile: Profile, data_dir: Path, tasks: list[int]) -> list[Hdf5Origin | LeRobotOrigin]:
    """What the demonstrations of `tasks` are converted from; downloads only what the profile's tasks need.

    The conventions are those of the whole folder, or of the profile's tasks if they come from the hub.
    """
    version, stated = _version(profile, data_dir), stated_conventions(profile.demos_conventions)
    read = _official if profile.demos == "official" else _lerobot
    origins, line = read(profile, _own_folder(profile, data_dir), version, stated)
    print(line)
    return [origins[task] for task in tasks]


def _official(profile: Profile, own: Path | None, version: str, stated: dict[str, str]) -> tuple[dict[int, Hdf5Origin], str]:
    if own:
        files = own_files(own)
        for task in profile.tasks:
            if task not in files:
                raise LarError(f"{own} holds no file of task {task}, {task_names()[task]}_demo.hdf5: put it there, or leave "
                               "the task out.")
    else:
        names = _official_names(profile)
        folder = download(KEYS["official"], list(names.values()))
        files = {task: folder / name for task, name in names.items()}
    theirs = [path for path in files.values() if not made_here(path)]
    found = conventions_of(theirs, stated, _drawn, progress=len(theirs) > 1) if theirs else None
    return ({task: Hdf5Origin(version, files[task], profile.demos_per_task, None if made_here(files[task]) else found)
             for task in profile.tasks}, f"Conventions of the official demonstrations: {found or 'as recorded here'}")


def _official_names(profile: Profile) -> dict[int, str]:
    """The file of each of the profile's tasks at the hub."""
    return {task: f"libero_spatial/{task_names()[task]}_demo.hdf5" for task in profile.tasks}


def check_offered(profile: Profile, data_dir: Path) -> None:
    """Raise LarError where the demonstrations of `profile` are neither here nor to be had from the hub."""
    if _own_folder(profile, data_dir) or all(path.exists() for path in converted_paths(profile, data_dir).values()):
        return
    offered(KEYS[profile.demos], list(_official_names(profile).values()) if profile.demos == "official" else [META])


def _lerobot(profile: Profile, own: Path | None, version: str,
             stated: dict[str, str]) -> tuple[dict[int, LeRobotOrigin], str]:
    folder = own or download(KEYS["lerobot"], [META])
    listed = {task: list_episodes(folder, instruction(task)) for task in profile.tasks}
    if own:
        decided_by = list_episodes(folder)
    else:
        decided_by = [episode for part in listed.values() for episode in part[: profile.demos_per_task]]
        download(KEYS["lerobot"], sorted({file for episode in decided_by for file in episode.files}))
    found = lerobot.conventions_of(folder, decided_by, stated)
    return ({task: LeRobotOrigin(version, folder, tuple(part[: profile.demos_per_task]), found)
             for task, part in listed.items()}, f"Conventions of the lerobot demonstrations: {found}")


def own_files(folder: Path) -> dict[int, Path]:
    """The HDF5 files in a folder that are named after a task of LIBERO-Spatial. Raises LarError for two of one task."""
    tasks = tasks_by_instruction()
    found: dict[int, Path] = {}
    for path in hdf5_files(folder):
        task = tasks.get(plain(path.stem.removesuffix("_demo")))
        if task in found:
            raise LarError(f"{found[task]} and {path} are both of task {task}: leave one copy in {folder}.")
        if task is not None:
            found[task] = path
    return found


def _drawn(raw: Raw, alignment: str) -> Verdict:
    """In a process of its own: where the pictures of a demonstration do not tell how they lie, draw one of its states."""
    with pool(1) as executor:
        return executor.submit(draw_verdict, raw.source, raw.where, alignment).result()


def _convert(profile: Profile, task: int, origin: Hdf5Origin | LeRobotOrigin, path: Path, workers: int,
             bar: tqdm) -> None:
    """Make one part file an episode, in parallel, and join them; the first one tells how much space all will take."""
    parts = [parts_folder(path) / f"demo_{number:05d}.hdf5" for number in range(len(origin))]
    missing = [number for number, part in enumerate(parts) if not part.exists()]
    bar.update(len(parts) - len(missing))
    with pool(max(1, min(workers, len(missing)))) as executor:
        for numbers in (missing[:1], missing[1:]):
            for future in [executor.submit(_make_part, profile, task, origin, number, parts[number])
                           for number in numbers]:
                future.result()
                bar.update()
            to_come = len(parts) + sum(not part.exists() for part in parts)  # the joined file, and what it is made of
            require_space(path.parent, to_come * parts[0].stat().st_size, f"converting the demonstrations of task {task}")
    merge_episodes(parts, path)


def _make_part(profile: Profile, task: int, origin: Hdf5Origin | LeRobotOrigin, number: int, part: Path) -> None:
    """In a worker process: convert one episode."""
    recorded = origin.episode(number)
    if plain(recorded.instruction) != instruction(task):
        raise LarError(f"{origin}: demonstration {number} of task {task} was recorded for the sentence "
                       f"{recorded.instruction!r}, not {instruction(task)!r}: the file has another task's name.")
    recorded = replace(recorded, instruction=instruction(task))
    if profile.render_demos:
        env = environment(task, profile.image_size, profile.wrist_size, assets_of(profile))
        fits = _sizes(recorded) == [profile.image_size, profile.wrist_size] and env.assets["name"] == "official"
        made = render_again(env, recorded, pictures=not fits)  # their own pictures fit their own assets: labels are enough
        pictures = {"images": "recorded" if fits else "rendered", "assets": env.assets}
    else:
        made = resize_episode(recorded, profile.image_size, profile.wrist_size)
        pictures = {"images": "recorded" if _sizes(made) == _sizes(recorded) else "resized"}
    provenance = {"source": profile.demos, "revision": origin.version, "task": task, "placement": "official",
                  "episode": number, "recorded_sizes": _sizes(recorded), **pictures}
    if origin.conventions:
        provenance["conventions"] = origin.conventions.as_dict()
    write_episode(part, replace(made, provenance=provenance), bddl_file=bddl_file(task))


def _sizes(episode: Episode) -> list[int]:
    """Pixels of both cameras' pictures; 0 for a camera that is not there."""
    return [0 if frames is None else frames.shape[1] for frames in (episode.agentview_rgb, episode.eye_in_hand_rgb)]
