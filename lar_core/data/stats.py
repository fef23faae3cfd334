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

from ..run.errors import LarError
from ..run.files import write_json
from .demos import Episode

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
            raise LarError(f"{path} cannot be read ({error.strerror or error}). {_REMEDY}") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise LarError(f"{path} does not hold action statistics ({error}). {_REMEDY}") from error
        if fault := stats.fault():
            raise LarError(f"{path} does not hold usable action statistics: {fault}. {_REMEDY}")
        return stats
