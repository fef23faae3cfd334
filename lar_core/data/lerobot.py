"""Demonstrations in LeRobot's format (v2.0, v2.1, v3.0), with pictures in the tables or in videos beside them.

    meta/info.json                                codebase_version, features, fps, and templates of the paths below
    v2: meta/episodes.jsonl                       a line an episode: episode_index, tasks (its sentences), length
        data/chunk-000/episode_000000.parquet     one episode a file, chunks_size files a chunk
        videos/chunk-000/KEY/episode_000000.mp4
    v3: meta/episodes/chunk-000/file-000.parquet  a row an episode, with the numbers of its chunks, files and timestamps
        data/chunk-000/file-000.parquet           several episodes a file
        videos/KEY/chunk-000/file-000.mp4

One row a frame. Whatever a copy calls its columns, and by whatever conventions it was made: see demos.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..run.errors import LarError, reading, unknown, unreadable
from ..run.files import read_jsonl
from .conventions import Conventions, decide
from .demos import NAMES, PICTURES, check_numbers, check_pictures, name_in, parts_of, plain, to_episode
from .episode import Episode
from .raw import Raw

META = "meta/*"  # what must be there, as a pattern for a download, before `list_episodes` can be asked
AGAIN = "delete it, and download it again"
_PATHS = {  # where info.json does not say it
    "v2": ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
           "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
    "v3": ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
           "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")}


@dataclass(frozen=True)
class Listed:
    """An episode as the metadata has it. Paths are those in the data set; a file may hold other episodes too."""

    number: int  # episode_index
    steps: int
    file: str
    sentence: str = ""
    videos: tuple[tuple[str, str, int], ...] = ()  # (feature, path, number of its first frame there)

    @property
    def files(self) -> list[str]:
        """All files that hold a part of it."""
        return [self.file, *(path for _, path, _ in self.videos)]


def list_episodes(folder: Path | str, sentence: str | None = None) -> list[Listed]:
    """The episodes of `sentence` (None: all) in the LeRobot data set at `folder`; only its `meta` needs to be there.

    Sentences are compared without capitals, stops and the words of LIBERO's task files.
    Raises LarError for a folder that is no such data set, an unknown version, missing features, and an unknown sentence.
    """
    folder = Path(folder)
    info = read_info(folder)
    rows = list(read_jsonl(folder / "meta/episodes.jsonl") if info["version"] == "v2" else _v3_episodes(folder))
    if not rows:
        raise LarError(f"{folder} lists no episodes in meta (episodes.jsonl, or episodes/ for v3.0): download the data "
                       "set's meta folder, too.")
    listed = [_listed(folder, info, row) for row in rows]
    found = [episode for episode in listed if sentence is None or plain(episode.sentence) == plain(sentence)]
    if not found:
        raise unknown(f"instruction in {folder}", sentence, sorted({episode.sentence for episode in listed}))
    return found


def raw_listed(folder: Path | str, listed: Listed) -> Raw:
    """An episode's numbers as they are stored. Raises LarError for a file that is missing, damaged or too short."""
    folder, info = Path(folder), read_info(Path(folder))
    columns = {what: name for what in NAMES if what not in PICTURES and (name := name_in(info["features"], what))}
    where = f"{folder / listed.file}, episode {listed.number}"
    rows = _rows(folder, listed, list(columns.values()))
    arrays = {what: _array([row[name] for row in rows], f"{where}, {name}") for what, name in columns.items()}
    found = parts_of(arrays)
    check_numbers(found, where)
    return Raw(where=where, source=str(folder), pictures=lambda wanted: _pictures(folder, listed, wanted),
               instruction=listed.sentence, **found)


def conventions_of(folder: Path | str, listed: Sequence[Listed],
                   stated: dict[str, str] | None = None) -> Conventions:
    """What these episodes have in common. Raises LarError for a convention that is neither shown nor stated."""
    shown = tqdm(listed, unit="episode", desc="conventions", disable=len(listed) < 100)
    return decide([raw_listed(folder, episode) for episode in shown], stated).require(folder)


def read_listed(folder: Path | str, listed: Listed, conventions: Conventions) -> Episode:
    """Read one episode. Raises LarError for a file that is missing, damaged or too short."""
    return to_episode(raw_listed(folder, listed), conventions)


def read_info(folder: Path) -> dict:
    """version ("v2" or "v3"), features, fps, chunks_size, data_path and video_path of a data set that can be read."""
    path = folder / "meta/info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
    except OSError as error:
        raise unreadable(f"{folder} may be no LeRobot data set: {path}", error, AGAIN) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LarError(f"{folder} is not a LeRobot data set ({type(error).__name__} in meta/info.json): name the folder "
                       "that holds meta and data, or download meta/info.json again.") from error
    if version[:3] not in ("v2.", "v3."):
        raise LarError(f"{folder} has LeRobot's format {version}, but v2.0, v2.1 and v3.0 can be read: convert it.")
    for what in ("actions", "agentview_rgb"):
        if name_in(features, what) is None:
            raise LarError(f"{folder}: {what} is missing among {', '.join(sorted(features)) or 'no features'}; it may be "
                           f"called {', '.join(NAMES[what])}.")
    data, video = _PATHS[version[:2]]
    return {"version": version[:2], "features": features, "fps": info.get("fps") or 10,
            "chunks_size": info.get("chunks_size") or 1000, "data_path": info.get("data_path") or data,
            "video_path": info.get("video_path") or video}


def _listed(folder: Path, info: dict, row: dict) -> Listed:
    keys = [name for what in PICTURES if (name := name_in(info["features"], what))]
    videos = tuple((key, *_video(folder, info, row, key)) for key in keys if info["features"][key].get("dtype") == "video")
    tasks = row["tasks"]
    sentence = str(tasks if isinstance(tasks, str) else tasks[0] if len(tasks) else "")
    return Listed(int(row["episode_index"]), int(row["length"]), _path(info, row, "data_path", "data"), sentence, videos)


def _path(info: dict, row: dict, template: str, kind: str, **more: str) -> str:
    """A path as info.json's template has it."""
    number = int(row["episode_index"])
    places = {"episode_index": number, "episode_chunk": number // info["chunks_size"], **more}
    if info["version"] == "v3":
        places |= {"chunk_index": row[f"{kind}/chunk_index"], "file_index": row[f"{kind}/file_index"]}
    try:
        return info[template].format(**places)
    except (KeyError, ValueError, IndexError) as error:
        raise LarError(f"The {template} {info[template]!r} of meta/info.json asks for {error}, which {info['version']} does "
                       "not have: correct it there.") from error


def _video(folder: Path, info: dict, row: dict, key: str) -> tuple[str, int]:
    """(path, number of the episode's first frame in it)."""
    try:
        start = float(row.get(f"videos/{key}/from_timestamp") or 0.0)
        return _path(info, row, "video_path", f"videos/{key}", video_key=key), round(start * info["fps"])
    except KeyError as error:
        raise LarError(f"{folder}: meta/episodes does not say where the video {key} is ({error} is missing): download the "
                       "data set's meta folder again.") from error


def _v3_episodes(folder: Path) -> Iterator[dict]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in sorted(folder.glob("meta/episodes/*/*.parquet")):
        with reading(path, AGAIN, ArrowException, OSError, path=path):
            file = ParquetFile(path)
            wanted = [name for name in file.schema_arrow.names
                      if name in ("episode_index", "tasks", "length") or name.startswith(("data/", "videos/"))]
            yield from file.read(columns=wanted).to_pylist()


def _rows(folder: Path, listed: Listed, columns: list[str]) -> list[dict]:
    """The rows of an episode, in order, with these columns."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile, read_table

    path = folder / listed.file
    with reading(f"{path}, episode {listed.number},", AGAIN, ArrowException, OSError, path=path):
        missing = set(columns) - set(ParquetFile(path).schema_arrow.names)
        if not missing:
            rows = read_table(path, columns=[*columns, "frame_index"], partitioning=None,
                              filters=[("episode_index", "==", listed.number)]).to_pylist()
    if missing:
        raise LarError(f"{path} has no column {min(missing)}, which meta/info.json names: the two are not of one data set.")
    if len(rows) != listed.steps:
        raise LarError(f"{path} has {len(rows)} frames of episode {listed.number}, but the metadata says {listed.steps}: "
                       "they are of different versions or one is cut short; download both again.")
    return sorted(rows, key=lambda row: int(np.ravel(row["frame_index"])[0]))


def _array(values: list, where: str) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64).reshape(len(values), -1)
    except (TypeError, ValueError) as error:
        raise LarError(f"{where} is not the same number of numbers in every row ({error}).") from error


def _pictures(folder: Path, listed: Listed, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    features = read_info(folder)["features"]
    keys = {what: name for what in wanted if (name := name_in(features, what))}
    videos = {key: (path, first) for key, path, first in listed.videos}
    in_table = [key for key in keys.values() if key not in videos]
    rows, where = _rows(folder, listed, in_table) if in_table else [], f"{folder / listed.file}, episode {listed.number}"
    found = {what: _frames(folder / videos[key][0], videos[key][1], listed) if key in videos else
             _stacked([_picture(folder, row[key], f"{where}, {key}") for row in rows], f"{where}, {key}")
             for what, key in keys.items()}
    check_pictures(found, where)
    return found


def _picture(folder: Path, value: dict | bytes | list, where: str) -> np.ndarray:
    """One picture (H, W, 3): bytes, a path in the data set, or its numbers."""
    from PIL import Image

    with reading(where, AGAIN, OSError, SyntaxError):
        if isinstance(value, dict):
            if not (value.get("bytes") or value.get("path")):
                raise LarError(f"{where} holds a row without a picture: leave this episode out, or download the file again.")
            value = value.get("bytes") or (folder / value["path"]).read_bytes()
        if isinstance(value, bytes):
            return np.asarray(Image.open(io.BytesIO(value)).convert("RGB"))
    numbers = np.asarray(value)
    whole = np.issubdtype(numbers.dtype, np.integer) and numbers.size and numbers.min() >= 0 and numbers.max() <= 255
    return numbers.astype(np.uint8) if whole else numbers


def _stacked(frames: list[np.ndarray], where: str) -> np.ndarray:
    if len(sizes := {frame.shape for frame in frames}) > 1:
        raise LarError(f"{where} holds pictures of different sizes ({', '.join(map(str, sorted(sizes)))}): leave this "
                       "episode out.")
    return np.stack(frames)


def _frames(path: Path, first: int, listed: Listed) -> np.ndarray:
    """An episode's frames (T, H, W, 3) of a video that begins with other episodes."""
    import imageio.v2 as imageio

    what = f"{path}, episode {listed.number},"
    try:
        with reading(what, AGAIN, OSError, RuntimeError, path=path):
            path.stat()
            with imageio.get_reader(path, "ffmpeg") as video:
                return np.stack([np.asarray(video.get_data(number))  # type: ignore[attr-defined]  # of the plugin
                                 for number in range(first, first + listed.steps)])
    except IndexError as error:
        raise LarError(f"{what} ends before the {listed.steps} frames that the metadata lists: it is cut short, or not of "
                       f"this version of the data set: {AGAIN}.") from error
