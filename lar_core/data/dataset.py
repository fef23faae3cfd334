"""From demonstration files to training batches.

All frames are kept in memory as uint8 (about 80 KB a frame with both cameras and segmentation), so that a batch is one
fancy index and no worker processes are needed. Which frames make batch number `step` is a function of (seed, step)
alone, so a resumed run needs no sampler state.

Here too: the scales of actions and proprioception (`Stats`), and the random shifts of a batch's pictures (`shift_images`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..run.config import RunConfig
from ..run.errors import LarError, unreadable
from ..run.files import write_json
from ..run.registry import MASK_SOURCES, REGULARISERS
from ..run.runtime import Draws
from ..run.settings import Condition
from .demos import PER_STEP, Episode, read_episodes

Indices = Sequence[int] | np.ndarray  # of frames
_NOT_IN_SCENE = 255  # a segmentation number that no object has


def load_split(paths: Sequence[Path | str], heldout_fraction: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Read demonstration files and split their episodes into (training, held-out), without no-op steps.

    Of every file the same fraction is held out, but at least one episode, chosen by (seed, position of the file).
    Raises LarError for a malformed file, and for one with fewer than two episodes.
    """
    train: list[Episode] = []
    heldout: list[Episode] = []
    for number, path in enumerate(paths):
        episodes = [drop_noops(episode) for episode in read_episodes(path)]
        if len(episodes) < 2:
            raise LarError(f"{path} has {len(episodes)} episode, but one to train on and one to hold out are needed: "
                           "record more with `lar demos`.")
        count = min(max(1, round(heldout_fraction * len(episodes))), len(episodes) - 1)
        chosen = set(np.random.default_rng([seed, number]).permutation(len(episodes))[:count].tolist())
        for index, episode in enumerate(episodes):
            (heldout if index in chosen else train).append(episode)
    return train, heldout


def drop_noops(episode: Episode) -> Episode:
    """Leave out steps that neither move the hand (|a[:6]| < 1e-4) nor change the gripper command, as OpenVLA does."""
    gripper = episode.actions[:, 6]
    changed = np.diff(gripper, prepend=gripper[:1]) != 0
    keep = (np.linalg.norm(episode.actions[:, :6], axis=1) >= 1e-4) | changed
    if not keep.any():
        raise LarError(f"A demonstration of {episode.instruction!r} never moves the robot: record it again.")
    arrays = {name: getattr(episode, name) for name in PER_STEP}
    return replace(episode, **{name: array[keep] for name, array in arrays.items() if array is not None})


class DemoDataset:
    """The frames of some episodes, in memory, each with the K actions that follow it.

    stats: scales of the *training* episodes, for held-out episodes too. wrist_size 0 leaves the wrist camera out;
    previous, following: give the frame before, or after, each one too; others: for every episode, the sentence that names
    the other bowl.
    Raises LarError when there are no episodes, or when their images have another size than asked for: nothing is
    resized silently.
    """

    def __init__(self, episodes: Sequence[Episode], stats: Stats, *, image_size: int, wrist_size: int, chunk: int,
                 previous: bool = False, following: bool = False, others: Sequence[str | None] | None = None):
        if not episodes:
            raise LarError("There are no demonstrations to make a data set of: record some with `lar demos`.")
        self.chunk, self.previous, self.following, self.others = chunk, previous, following, others
        self.images = _frames(episodes, "agentview_rgb", image_size, "image_size")  # (N, H, W, 3)
        self.wrist = _frames(episodes, "eye_in_hand_rgb", wrist_size, "wrist_size") if wrist_size else None
        self.actions = stats.normalise_actions(np.concatenate([episode.actions for episode in episodes]))  # (N, 7)
        self.proprio = stats.normalise_proprio(np.concatenate(
            [proprio(episode.ee_pos, episode.ee_ori, episode.gripper_states) for episode in episodes]))  # (N, 8)
        self.instructions = [episode.instruction for episode in episodes]  # one an episode
        lengths = [len(episode) for episode in episodes]
        self.episode = np.repeat(np.arange(len(episodes)), lengths)  # (N,) which episode a frame belongs to
        self.end = np.cumsum(lengths)[self.episode]  # (N,) the frame after the last one of the same episode
        self.segmentation = None  # (N, H, W), only if every episode has it
        if all(episode.segmentation is not None for episode in episodes):
            self.segmentation = np.concatenate([episode.segmentation for episode in episodes])
            self.region_numbers = np.array([_region_numbers(episode) for episode in episodes], dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.actions)

    def valid_steps(self, indices: Indices) -> int:
        """How many steps of the chunks of these frames lie inside their episodes."""
        indices = np.asarray(indices)
        return int(np.minimum(self.end[indices] - indices, self.chunk).sum())

    def batch(self, indices: Indices) -> dict[str, Tensor | list[str]]:
        """The frames `indices` as tensors, B of them:

        images (B,3,H,W) uint8; wrist (B,3,h,w) uint8 (absent if off); proprio (B,8) float32, normalised;
        instructions: list of B sentences; actions (B,K,7) float32 in [-1,1]; action_pad (B,K) bool, True = beyond the
        end of the episode, where the last action is repeated; regions (B,2,H,W) uint8, 0/1: the named object, the
        other one of its kind (absent if an episode has no segmentation); previous (B,3,H,W) uint8, the frame before, or
        for the first of an episode the one after; following (B,3,H,W) uint8, the frame after, or the last one itself;
        others: list of B sentences or Nones (these three absent unless asked for).
        """
        indices = np.asarray(indices)
        steps, end = indices[:, None] + np.arange(self.chunk), self.end[indices][:, None]
        batch: dict[str, Tensor | list[str]] = {
            "images": channels_first(self.images[indices]),
            "proprio": torch.from_numpy(self.proprio[indices]),
            "instructions": [self.instructions[episode] for episode in self.episode[indices]],
            "actions": torch.from_numpy(self.actions[np.minimum(steps, end - 1)]),
            "action_pad": torch.from_numpy(steps >= end),
        }
        if self.wrist is not None:
            batch["wrist"] = channels_first(self.wrist[indices])
        if self.previous:
            batch["previous"] = channels_first(self.images[self._neighbours(indices)])
        if self.following:
            batch["following"] = channels_first(self.images[np.minimum(indices + 1, self.end[indices] - 1)])
        if self.others is not None:
            batch["others"] = [self.others[episode] for episode in self.episode[indices]]
        if self.segmentation is not None:
            numbers = self.region_numbers[self.episode[indices]][:, :, None, None]
            batch["regions"] = torch.from_numpy((self.segmentation[indices][:, None] == numbers).astype(np.uint8))
        return batch

    def _neighbours(self, indices: np.ndarray) -> np.ndarray:
        """The frame before each of `indices`, or after it where it is the first of its episode."""
        first = (indices == 0) | (self.episode[indices] != self.episode[indices - 1])
        return np.where(first, np.minimum(indices + 1, self.end[indices] - 1), indices - 1)


def make_dataset(episodes: Sequence[Episode], stats: Stats, config: RunConfig,
                 other: Callable[[Episode], str | None] = lambda episode: None) -> DemoDataset:
    """The frames of `episodes` in the sizes that the profile asks for, with what else the condition asks for.

    other: gives the sentence that names the other bowl of an episode's scene, for conditions that compare with it.
    """
    profile, condition = config.profile, config.condition
    needs = {source_needs(condition), *(REGULARISERS.about(name).needs for name in condition.regularisers)}
    return DemoDataset(episodes, stats, image_size=profile.image_size, wrist_size=profile.wrist_size,
                       chunk=profile.chunk, previous="previous" in needs, following="following" in needs,
                       others=[other(episode) for episode in episodes] if "others" in needs else None)


def source_needs(condition: Condition) -> str:
    """What the mask source asks for beyond the policy's own saliency; "" for nothing."""
    return "" if condition.mask_source == "none" else MASK_SOURCES.about(condition.mask_source).needs


def to_device(batch: dict, device: torch.device) -> dict:
    """Move the tensors of a batch."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


class FrameSampler:
    """Endless epochs over n frames, each in a new order; batches may run across the border of two epochs."""

    def __init__(self, n: int, batch_size: int, seed: int):
        self.n, self.batch_size, self.seed = n, batch_size, seed

    def batch_indices(self, step: int) -> list[int]:
        """Frames of batch number `step` (0-based): a pure function of (seed, step)."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(self.n)
                  for epoch in {place // self.n for place in places}}
        return [int(orders[place // self.n][place % self.n]) for place in places]


def _frames(episodes: Sequence[Episode], name: str, size: int, setting: str) -> np.ndarray:
    for episode in episodes:
        frames = getattr(episode, name)
        if frames is None:
            raise LarError(f"The demonstrations have no {name} images: record them again, or set {setting} to 0.")
        if frames.shape[1:3] != (size, size):
            height, width = frames.shape[1:3]
            raise LarError(f"The demonstrations' {name} images have {height}x{width} pixels, but {setting} is {size}: "
                           f"record demonstrations of that size, or choose a profile with {setting} {height}.")
    return np.concatenate([getattr(episode, name) for episode in episodes])


def _region_numbers(episode: Episode) -> list[int]:
    """Segmentation numbers of (named object, other one of its kind); _NOT_IN_SCENE where there is none."""
    objects = list(episode.objects)
    return [objects.index(name) + 1 if name in objects else _NOT_IN_SCENE
            for name in (episode.target, episode.distractor)]


def channels_first(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) -> (N, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


# Normalisation: what the policy sees and says is scaled by numbers taken from the training episodes only. Actions are scaled
# by their 1 % and 99 % quantiles (as OpenVLA does) and clipped to [-1, 1]; the gripper command is already -1 or +1 and stays
# as it is. Proprioception is scaled to mean 0 and standard deviation 1.

_SIZES = {"action_low": 7, "action_high": 7, "proprio_mean": 8, "proprio_std": 8}
_MIN_RANGE = 0.02  # a DoF that the demonstrations never move must not blow up the noise in it
_MIN_STD = 1e-4
_LEAST = 1e-6  # a range or deviation below this is none: `Stats.of` never writes one
_REMEDY = ("Statistics belong to the weights that were trained with them: take the file from a copy of the run or policy, "
           "or download it again; where there is none, train again in another run folder.")


def proprio(ee_pos: np.ndarray, ee_ori: np.ndarray, gripper_states: np.ndarray) -> np.ndarray:
    """The robot's own state (..., 8), unnormalised: hand position 3 (m), axis-angle 3 (rad), finger positions 2 (m)."""
    return np.concatenate([ee_pos, ee_ori, gripper_states], axis=-1)


@dataclass(frozen=True)
class Stats:
    """Scales of one training set; every field is a tuple of floats, in the units of the demonstrations."""

    action_low: tuple[float, ...]  # (7,)
    action_high: tuple[float, ...]  # (7,)
    proprio_mean: tuple[float, ...]  # (8,)
    proprio_std: tuple[float, ...]  # (8,)

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Stats:
        """Compute from the training episodes. Raises LarError when there are none, or they hold NaN or infinity."""
        if not episodes:
            raise LarError("There are no training episodes to take action scales from: record demonstrations first.")
        low, high = np.quantile(np.concatenate([episode.actions for episode in episodes]), [0.01, 0.99], axis=0)
        missing = np.maximum(0, _MIN_RANGE - (high - low)) / 2
        low, high = low - missing, high + missing
        low[6], high[6] = -1, 1
        own = np.concatenate([proprio(episode.ee_pos, episode.ee_ori, episode.gripper_states) for episode in episodes])
        stats = cls(*(tuple(values.tolist()) for values in (low, high, own.mean(0), own.std(0).clip(_MIN_STD))))
        if fault := stats.fault():
            raise LarError(f"The demonstrations give no scales: {fault}. Some of their actions, hand poses or finger "
                           "positions are not numbers: leave those demonstrations out, or record others with `lar demos`.")
        return stats

    def fault(self) -> str | None:
        """What makes these scales unusable, in words; None where nothing does."""
        for name, size in _SIZES.items():
            values = np.array(getattr(self, name))
            if len(values) != size:
                return f"{name} has {len(values)} numbers, but {size} are expected"
            if not np.isfinite(values).all():
                return f"{name} holds {values[~np.isfinite(values)][0]}, which is not a finite number"
        width, std = np.subtract(self.action_high, self.action_low), np.array(self.proprio_std)
        if (width < _LEAST).any():
            place = int(np.argmax(width < _LEAST))
            return (f"action_high is not above action_low in direction {place} ({self.action_low[place]} to "
                    f"{self.action_high[place]})")
        if (std < _LEAST).any():
            return f"proprio_std is {std[std < _LEAST][0]}, but must be above 0"
        return None

    def normalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., 7) as commanded -> float32 in [-1, 1]; what lies outside the quantiles is clipped."""
        low, high = np.array(self.action_low), np.array(self.action_high)
        return (2 * (np.asarray(actions) - low) / (high - low) - 1).clip(-1, 1).astype(np.float32)

    def denormalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """Inverse of `normalise_actions` inside the quantiles: (..., 7) in [-1, 1] -> float32 as commanded."""
        low, high = np.array(self.action_low), np.array(self.action_high)
        return ((np.asarray(actions) + 1) / 2 * (high - low) + low).astype(np.float32)

    def normalise_proprio(self, values: np.ndarray) -> np.ndarray:
        """What `proprio` returns, (..., 8) -> float32 with mean 0 and standard deviation 1 over the training set."""
        return ((values - np.array(self.proprio_mean)) / np.array(self.proprio_std)).astype(np.float32)

    def save(self, path: Path | str) -> None:
        """Write as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> Stats:
        """Read what `save` wrote. Raises LarError for a file that cannot be read, and for one that holds no such scales."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            stats = cls(**{name: tuple(map(float, values[name])) for name in _SIZES})
        except OSError as error:
            raise unreadable(path, error, "train again") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise LarError(f"{path} does not hold action statistics ({error}). {_REMEDY}") from error
        if fault := stats.fault():
            raise LarError(f"{path} does not hold usable action statistics: {fault}. {_REMEDY}")
        return stats


# Random shifts of the training images (as DrQ-v2 does, Yarats et al. 2021): each is moved by a few pixels, its border
# repeated. Segmentation and the frames before and after move with the image; the wrist camera moves on its own.

def shift_images(batch: dict, pixels: int, draws: Draws) -> dict:
    """A batch (see `DemoDataset.batch`) with its images moved by up to `pixels` along both axes."""
    count = len(batch["images"])
    main, wrist = ((draws.uniform(count, 2) * (2 * pixels + 1)).long() for _ in range(2))  # (B, 2) in [0, 2 * pixels]
    together = ("images", "regions", "previous", "following")
    moved = {name: _shift(batch[name], pixels, main) for name in together if name in batch}
    if "wrist" in batch:
        moved["wrist"] = _shift(batch["wrist"], pixels, wrist)
    return batch | moved


def _shift(images: Tensor, pixels: int, corners: Tensor) -> Tensor:
    """Cut images (B, C, H, W) of the same size out of padded ones, at (B, 2) corners."""
    height, width = images.shape[2:]
    padded = F.pad(images.float(), [pixels] * 4, mode="replicate").to(images.dtype)
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners.tolist())])
