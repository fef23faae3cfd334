"""Our demonstrations as a LeRobot data set (v3.0), for LeRobot's own loader; `lerobot.py` reads it, too.

    observation.images.image, .image2  PNG: agentview and wrist, upright, named and turned as LeRobot's LIBERO environment
    observation.state  float32 (8,)    position of the hand (m), axis-angle (rad), fingers (m)
    action             float32 (7,)    in [-1, 1]: position, rotation, gripper (-1 opens, +1 closes)
    segmentation       uint8 (H, W)    0 elsewhere, i + 1 on the episode's objects[i]; by its name no policy's input
    other_task_index   int64           the sentence of meta/tasks.parquet that names the other bowl; -1 where none does

meta/episodes also has placement, target, distractor and objects. Columns that an episode does not have are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..run.errors import LarError
from ..run.files import write_json
from .demos import read_episodes
from .episode import Episode
from .lerobot import _PATHS

FPS = 20  # control steps a second
FILE_MB, CHUNK = 100, 1000  # LeRobot's own: megabytes a file, files a chunk
CAMERAS = {"observation.images.image": "agentview_rgb", "observation.images.image2": "eye_in_hand_rgb"}
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_COUNTERS = ("frame_index", "episode_index", "index", "task_index", "other_task_index")


def write_lerobot(demos: Sequence[Path], folder: Path | str, other: Callable[[Episode], str | None]) -> Path:
    """Write every episode of the demonstration files into the new data set `folder`, which appears whole or not at all.

    other: the sentence that names the other bowl of an episode's scene. Raises LarError for a folder that is there already,
    and for episodes whose pictures have different sizes.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        raise LarError(f"{folder} is there already: name a folder that is not, or delete it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = _Writer(Path(temporary) / folder.name, other)
        for path in demos:
            for episode in read_episodes(path):
                made.add(episode)
        made.finish().rename(folder)
    return folder


class _Writer:
    def __init__(self, folder: Path, other: Callable[[Episode], str | None]) -> None:
        self.folder, self.other = folder, other
        self.tasks: dict[str, int] = {}
        self.episodes: list[dict] = []
        self.features: dict[str, dict] = {}
        self.numbers: dict[str, list[np.ndarray]] = {"observation.state": [], "action": []}
        self.colours: dict[str, np.ndarray] = {}  # how often each value occurs, by channel: (3, 256)
        self.waiting: list[Any] = []  # data sets of the episodes of the file that is not written yet
        self.files = self.frames = 0

    def add(self, episode: Episode) -> None:
        columns = self._columns(episode)
        features = dict(_features(columns))
        if features != (self.features or features):
            raise LarError(f"Episode {len(self.episodes)} ({episode.instruction!r}) has other columns or sizes of pictures "
                           "than those before it: copy demonstrations of one profile only.")
        self.features = features
        for name, arrays in self.numbers.items():
            arrays.append(columns[name])
        for name in CAMERAS.keys() & columns.keys():
            self.colours[name] = self.colours.get(name, 0) + np.stack(
                [np.bincount(columns[name][..., channel].ravel(), minlength=256) for channel in range(3)])
        made = episode.provenance
        self.episodes.append({
            "episode_index": len(self.episodes), "tasks": [episode.instruction], "length": len(episode),
            "data/chunk_index": self.files // CHUNK, "data/file_index": self.files % CHUNK,
            "dataset_from_index": self.frames, "dataset_to_index": self.frames + len(episode),
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0, "placement": made.get("placement", ""),
            "target": episode.target, "distractor": episode.distractor, "objects": list(episode.objects)})
        self.frames += len(episode)
        self.waiting.append(_dataset(columns, features))
        if sum(part.data.nbytes for part in self.waiting) >= FILE_MB * 2**20:
            self._write_file()

    def _columns(self, episode: Episode) -> dict[str, np.ndarray]:
        steps, sentence = np.arange(len(episode)), self.other(episode)
        counters: tuple[np.ndarray | int, ...] = (
            steps, len(self.episodes), self.frames + steps, self._task(episode.instruction),
            -1 if sentence is None else self._task(sentence))
        state = np.hstack([episode.ee_pos, episode.ee_ori, episode.gripper_states])
        pictures = {key: getattr(episode, name) for key, name in CAMERAS.items()} | {"segmentation": episode.segmentation}
        return {**{name: array for name, array in pictures.items() if array is not None},
                "observation.state": state.astype(np.float32), "action": episode.actions.astype(np.float32),
                "timestamp": (steps / FPS).astype(np.float32),
                **{name: np.broadcast_to(value, steps.shape).astype(np.int64) for name, value in zip(_COUNTERS, counters)}}

    def _task(self, sentence: str) -> int:
        return self.tasks.setdefault(sentence, len(self.tasks))

    def _write_file(self) -> None:
        from datasets import concatenate_datasets

        _parquet(concatenate_datasets(self.waiting), self.folder / _PATHS["v3"][0].format(
            chunk_index=self.files // CHUNK, file_index=self.files % CHUNK))
        self.waiting, self.files = [], self.files + 1

    def finish(self) -> Path:
        """Write what is left and the metadata; returns the folder. Raises LarError where there was no episode."""
        from datasets import Dataset
        from pandas import DataFrame

        if not self.episodes:
            raise LarError("There are no demonstrations to copy: record some first, with `lar demos`.")
        if self.waiting:
            self._write_file()
        _parquet(Dataset.from_list(self.episodes), self.folder / "meta/episodes/chunk-000/file-000.parquet")
        DataFrame({"task_index": list(self.tasks.values())}, index=list(self.tasks)).to_parquet(
            self.folder / "meta/tasks.parquet")
        write_json(self.folder / "meta/stats.json", {
            **{name: _stats(np.concatenate(arrays)) for name, arrays in self.numbers.items()},
            **{name: _colour_stats(counts, self.frames) for name, counts in self.colours.items()}})
        write_json(self.folder / "meta/info.json", {
            "codebase_version": "v3.0", "robot_type": "panda", "total_episodes": len(self.episodes),
            "total_frames": self.frames, "total_tasks": len(self.tasks), "chunks_size": CHUNK,
            "data_files_size_in_mb": FILE_MB, "video_files_size_in_mb": 200, "fps": FPS,
            "splits": {"train": f"0:{len(self.episodes)}"}, "data_path": _PATHS["v3"][0], "video_path": None,
            "features": self.features})
        return self.folder


def _features(columns: dict[str, np.ndarray]) -> Iterator[tuple[str, dict]]:
    """Each column as info.json describes it."""
    for name, array in columns.items():
        picture = name in CAMERAS
        yield name, {"dtype": "image" if picture else str(array.dtype), "shape": list(array.shape[1:]) or [1],
                     "names": ["height", "width", "channels"] if picture else None}


def _dataset(columns: dict[str, np.ndarray], features: dict[str, dict]) -> Any:
    """The rows of an episode with the types that LeRobot's loader expects of these features."""
    from datasets import Array2D, Dataset, Features, Image, List, Value

    def kind(dtype: str, shape: list[int]) -> Any:
        if dtype == "image":
            return Image()
        if len(shape) == 2:
            return Array2D(tuple(shape), dtype)
        return Value(dtype) if shape == [1] else List(Value(dtype), length=shape[0])

    kinds = {name: kind(told["dtype"], told["shape"]) for name, told in features.items()}
    return Dataset.from_dict({name: list(array) for name, array in columns.items()}, features=Features(kinds))


def _parquet(dataset: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(path)


def _stats(rows: np.ndarray) -> dict[str, list]:
    """Numbers (T, n) as meta/stats.json has them."""
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0, dtype=np.float64),
             "std": rows.std(0, dtype=np.float64), **{name: np.quantile(rows, q, axis=0) for name, q in QUANTILES.items()}}
    return {name: np.asarray(value, dtype=np.float64).tolist() for name, value in found.items()} | {"count": [len(rows)]}


def _colour_stats(counts: np.ndarray, frames: int) -> dict[str, list]:
    """The same of pictures in [0, 1], each (3, 1, 1), from how often each of 256 values occurs in a channel (3, 256)."""
    values, total = np.arange(256) / 255, counts.sum(1)
    mean, below = counts @ values / total, counts.cumsum(1) / total[:, None]
    found = {"min": values[(counts > 0).argmax(1)], "max": values[255 - (counts[:, ::-1] > 0).argmax(1)], "mean": mean,
             "std": np.sqrt(np.maximum(0, counts @ values**2 / total - mean**2)),
             **{name: values[(below >= q).argmax(1)] for name, q in QUANTILES.items()}}
    return {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()} | {"count": [frames]}
