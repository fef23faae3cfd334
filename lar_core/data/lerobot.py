"""Demonstrations in LeRobot's format (v2.0, v2.1, v3.0, with pictures, not videos), read with the `datasets` library.

    meta/info.json                                codebase_version, features
    v2: meta/episodes.jsonl                       a line an episode: episode_index, tasks (its sentences), length
        data/chunk-000/episode_000000.parquet     one episode a file, 1000 files a chunk
    v3: meta/episodes/chunk-000/file-000.parquet  a row an episode, with data/chunk_index and data/file_index
        data/chunk-000/file-000.parquet           several episodes a file

One row a frame, which is what was seen *before* its action. Names as in `lerobot/libero_spatial_image`:

    observation.images.image, observation.images.wrist_image    PNG, upright
    observation.state (8)    hand position (m), axis-angle (rad), finger positions (m)
    action (7)               as commanded; gripper -1 opens, +1 closes. Some copies have OpenVLA's 1 opens, 0 closes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..run.errors import LarError, unknown
from ..run.files import read_jsonl
from .demos import Episode, check_episode

META = "meta/*"  # what must be there, as a pattern for a download, before `list_episodes` can be asked
IMAGE, WRIST = "observation.images.image", "observation.images.wrist_image"
STATE, ACTION = "observation.state", "action"
_CHUNK = 1000  # files in a folder of v2


@dataclass(frozen=True)
class Listed:
    """An episode as the metadata has it."""

    number: int  # episode_index
    steps: int
    file: str  # path in the data set; it may hold other episodes too


def list_episodes(folder: Path | str, sentence: str) -> list[Listed]:
    """The episodes of `sentence` in the LeRobot data set at `folder`; only its `meta` needs to be there.

    Raises LarError for a folder that is no such data set, an unknown version, missing features, and an unknown sentence.
    """
    folder = Path(folder)
    version = _check_info(folder)
    rows = list(read_jsonl(folder / "meta/episodes.jsonl") if version == "v2" else _v3_episodes(folder))
    if not rows:
        raise LarError(f"{folder} lists no episodes in meta: download it again.")
    sentences = {sentence for row in rows for sentence in row["tasks"]}
    if sentence not in sentences:
        raise unknown(f"instruction in {folder}", sentence, sorted(sentences))
    return [Listed(row["episode_index"], row["length"], _data_file(version, row))
            for row in rows if sentence in row["tasks"]]


def read_listed(folder: Path | str, listed: Listed, sentence: str) -> Episode:
    """Read one episode. Raises LarError for a file that is missing, damaged or too short."""
    from datasets import Features, Image, List, Value, load_dataset  # takes seconds: only where it is needed

    path = Path(folder) / listed.file
    kinds = {IMAGE: Image(), WRIST: Image(), STATE: List(Value("float64")), ACTION: List(Value("float64")),
             "frame_index": Value("int64")}
    try:
        rows = list(load_dataset("parquet", data_files=str(path), split="train", streaming=True, features=Features(kinds),
                                 columns=list(kinds), filters=[("episode_index", "==", listed.number)]))
    except Exception as error:  # datasets and pyarrow raise many kinds for a missing or damaged file
        raise LarError(f"{path} cannot be read ({type(error).__name__}): delete it, and download it again.") from error
    if len(rows) != listed.steps:
        raise LarError(f"{path} has {len(rows)} frames of episode {listed.number}, but the metadata says {listed.steps}: "
                       "delete it, and download it again.")
    return _episode(sorted(rows, key=lambda row: row["frame_index"]), sentence, f"{path}, episode {listed.number}")


def _episode(rows: Sequence[dict], sentence: str, where: str) -> Episode:
    state, actions = (np.array([row[name] for row in rows]) for name in (STATE, ACTION))
    if state.shape[1:] != (8,) or actions.shape[1:] != (7,):
        raise LarError(f"{where}: {STATE} has shape {state.shape} and {ACTION} {actions.shape}, but 8 and 7 numbers a "
                       "frame are expected: choose a data set with hand position, axis-angle and both fingers.")
    if actions[:, 6].min() >= 0:  # a demonstration opens the gripper, so that -1 would occur
        actions[:, 6] = 1 - 2 * actions[:, 6]
    pictures = {name: np.stack([np.asarray(row[key].convert("RGB")) for row in rows])
                for name, key in (("agentview_rgb", IMAGE), ("eye_in_hand_rgb", WRIST))}
    episode = Episode(instruction=sentence, actions=actions, ee_pos=state[:, :3], ee_ori=state[:, 3:6],
                      gripper_states=state[:, 6:], **pictures)
    check_episode(episode, where)
    return episode


def _check_info(folder: Path) -> str:
    """Return "v2" or "v3" for a data set that has what is needed."""
    try:
        info = json.loads((folder / "meta/info.json").read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LarError(f"{folder} is not a LeRobot data set ({type(error).__name__} in meta/info.json): "
                       "download it again, or name the folder that holds meta and data.") from error
    if version[:3] not in ("v2.", "v3."):
        raise LarError(f"{folder} has LeRobot's format {version}, but v2.0, v2.1 and v3.0 can be read: convert it.")
    for name, kind in ((IMAGE, "image"), (WRIST, "image"), (STATE, "float32"), (ACTION, "float32")):
        found = features.get(name, {}).get("dtype", "nothing of that name")
        if found != kind:
            raise LarError(f"{folder}: {name} should be of type {kind}, but there is {found}: choose a data set like "
                           "lerobot/libero_spatial_image, with pictures instead of videos.")
    return version[:2]


def _v3_episodes(folder: Path) -> Iterator[dict]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    wanted = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    for path in sorted(folder.glob("meta/episodes/*/*.parquet")):
        try:
            yield from read_table(path, columns=wanted).to_pylist()
        except (ArrowException, OSError) as error:
            raise LarError(f"{path} cannot be read ({type(error).__name__}): download the data set again.") from error


def _data_file(version: str, row: dict) -> str:
    if version == "v2":
        number = row["episode_index"]
        return f"data/chunk-{number // _CHUNK:03d}/episode_{number:06d}.parquet"
    return f"data/chunk-{row['data/chunk_index']:03d}/file-{row['data/file_index']:03d}.parquet"
