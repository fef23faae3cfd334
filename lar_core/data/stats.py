"""Normalisation: what the policy sees and says is scaled by numbers taken from the training episodes only.

Actions are scaled by their 1 % and 99 % quantiles (as OpenVLA does) and clipped to [-1, 1]; the gripper command is
already -1 or +1 and stays as it is. Proprioception is scaled to mean 0 and standard deviation 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import LarError
from ..files import write_json
from .demos import Episode

_SIZES = {"action_low": 7, "action_high": 7, "proprio_mean": 8, "proprio_std": 8}
_MIN_RANGE = 0.02  # a DoF that the demonstrations never move must not blow up the noise in it
_MIN_STD = 1e-4


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
        """Compute from the training episodes. Raises LarError when there are none."""
        if not episodes:
            raise LarError("There are no training episodes to take action scales from: record demonstrations first.")
        low, high = np.quantile(np.concatenate([episode.actions for episode in episodes]), [0.01, 0.99], axis=0)
        missing = np.maximum(0, _MIN_RANGE - (high - low)) / 2
        low, high = low - missing, high + missing
        low[6], high[6] = -1, 1
        own = np.concatenate([proprio(episode.ee_pos, episode.ee_ori, episode.gripper_states) for episode in episodes])
        return cls(*(tuple(values.tolist()) for values in (low, high, own.mean(0), own.std(0).clip(_MIN_STD))))

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
        """Read what `save` wrote. Raises LarError for a missing or foreign file."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            stats = cls(**{name: tuple(map(float, values[name])) for name in _SIZES})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LarError(f"{path} does not hold action statistics ({error}): delete it and train again.") from error
        for name, size in _SIZES.items():
            if len(getattr(stats, name)) != size:
                raise LarError(f"{path}: {name} has {len(getattr(stats, name))} numbers, but {size} are expected: "
                               "delete the file and train again.")
        return stats
