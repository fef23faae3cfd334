"""The feature cache: what the frozen lower layers make of every training frame, computed once and kept on disk.

    FOLDER/<key>/identity.json           what the key stands for: weights, precision, layer, image sizes
    FOLDER/<key>/<episode>.safetensors   states (T, P + L, D), wrist_tokens (T, W, D), vision (T, P + W, V): those that
                                         the policy's `look` gives
    FOLDER/<key>/index.jsonl             one line a finished file: name, sha256

An episode's name is a digest of its frames and its instruction, so every condition and every seed that trains the same
layers of the same weights shares one cache. A file that does not match its checksum is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..run.errors import reading, unwritable
from ..run.files import append_jsonl, atomic_path, file_sha256, locked, read_jsonl, require_space, write_json
from .dataset import DemoDataset

BATCH = 16  # frames computed at once
_AGAIN = "delete it, and it is computed again"
Look = Callable[[dict], dict[str, Tensor]]  # a batch -> its features by name, states (B, P + L, D) among them


class FeatureCache:
    """The features of a data set's frames.

    identity: everything that the features depend on beside the frames and instructions; dtype: how they are kept.
    """

    def __init__(self, folder: Path, identity: dict, dataset: DemoDataset, dtype: torch.dtype):
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.identity, self.dataset, self.dtype = Path(folder) / key, identity, dataset, dtype
        self.starts = np.flatnonzero(np.diff(dataset.episode, prepend=-1))  # (E,) first frame of every episode
        self.names = [self._digest(number) for number in range(len(self.starts))]
        self._files: dict[int, Any] = {}  # open safetensors files

    def fill(self, look: Look) -> None:
        """Compute what is missing. Raises LarError when the disk has no room for it, before anything is computed, and where
        the system does not let it be read or written, saying why.

        Of several processes that fill one cache one computes at a time, and the next one finds what it has left.
        """
        if missing := self._missing(range(len(self.names))):
            with locked(self.folder / ".lock", "computing features of the frozen layers"):
                if missing := self._missing(missing):  # less where another process has computed some meanwhile
                    self._compute(missing, look)

    def _compute(self, missing: list[int], look: Look) -> None:
        self._check_space(missing, look)
        total = sum(len(self._frames(number)) for number in missing)
        try:
            write_json(self.folder / "identity.json", self.identity)
            with tqdm(total=total, unit="frame", desc="feature cache") as bar:
                for number in missing:
                    frames = self._frames(number)
                    self._write(number, [self._features(look, frames[start : start + BATCH], bar)
                                         for start in range(0, len(frames), BATCH)])
        except OSError as error:
            raise unwritable(f"The feature cache {self.folder}", error,
                             "choose another --data-dir, or train without it (--set cache=false)") from error

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Features by name; states (B, P + L, D) are zero where shorter instructions are padded."""
        return _together([self._row(int(index)) for index in indices])

    def _row(self, index: int) -> dict[str, Tensor]:
        number = int(self.dataset.episode[index])
        if number not in self._files:
            with reading(self._path(number), _AGAIN, OSError, SafetensorError):
                self._files[number] = safe_open(self._path(number), "pt")
        file, row = self._files[number], index - int(self.starts[number])
        return {name: file.get_slice(name)[row] for name in file.keys()}  # noqa: SIM118 (not a dict)

    def _features(self, look: Look, frames: np.ndarray, bar: tqdm) -> dict[str, Tensor]:
        features = look(self.dataset.batch(frames))
        bar.update(len(frames))
        return {name: value.to("cpu", self.dtype) for name, value in features.items()}

    def _write(self, number: int, parts: list[dict[str, Tensor]]) -> None:
        with atomic_path(self._path(number)) as temporary:
            save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, temporary)
            checksum = _sha256(temporary)
        append_jsonl(self.folder / "index.jsonl", {"name": self.names[number], "sha256": checksum})

    def _missing(self, numbers: Sequence[int]) -> list[int]:
        """Those of the episodes whose files are not there, or do not match their checksums."""
        with reading(self.folder / "index.jsonl", _AGAIN):
            known = {row["name"]: row["sha256"] for row in read_jsonl(self.folder / "index.jsonl")}
        there = {number for number in numbers if self._path(number).exists()}
        bar = tqdm(numbers, desc="checking the feature cache", disable=len(there) < 100)
        return [number for number in bar
                if number not in there or known.get(self.names[number]) != _sha256(self._path(number))]

    def _check_space(self, missing: list[int], look: Look) -> None:
        """One frame of every missing episode's instruction tells the size of all."""
        sizes: dict[str, int] = {}
        needed = 0
        for number in missing:
            sentence = self.dataset.instructions[number]
            if sentence not in sizes:
                features = look(self.dataset.batch(self._frames(number)[:1]))
                sizes[sentence] = sum(value.numel() for value in features.values())
            needed += sizes[sentence] * len(self._frames(number)) * self.dtype.itemsize
        require_space(self.folder, needed, "the feature cache",
                      "free some, choose another --data-dir, or train without it (--set cache=false)")

    def _frames(self, number: int) -> np.ndarray:
        return np.flatnonzero(self.dataset.episode == number)

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.names[number]}.safetensors"

    def _digest(self, number: int) -> str:
        frames = self._frames(number)
        digest = hashlib.sha256(self.dataset.instructions[number].encode())
        digest.update(np.ascontiguousarray(self.dataset.images[frames]).data)
        if self.dataset.wrist is not None:
            digest.update(np.ascontiguousarray(self.dataset.wrist[frames]).data)
        return digest.hexdigest()[:32]


class BlindFeatures:
    """In the place of a FeatureCache for a policy that sees grey: the features depend on the instruction alone."""

    def __init__(self, dataset: DemoDataset, look: Look):
        self.dataset = dataset
        first = {sentence: int(np.argmax(dataset.episode == number)) for number, sentence in
                 reversed(list(enumerate(dataset.instructions)))}
        self.features = {sentence: look(dataset.batch([frame])) for sentence, frame in first.items()}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """As `FeatureCache.batch`."""
        known = [self.features[self.dataset.instructions[self.dataset.episode[index]]] for index in indices]
        return _together([{name: value[0] for name, value in features.items()} for features in known])


def _together(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Features of single frames as a batch; only states differ in length."""
    return {name: pad_sequence([row[name] for row in rows], batch_first=True) for name in rows[0]}


def _sha256(path: Path) -> str:
    with reading(path, _AGAIN):
        return file_sha256(path)
