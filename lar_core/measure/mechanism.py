"""What reconstruction may do to the backbone: how well positions can be read from its patches, how hard it pulls on it.

Read from frames in which the hand is still far from both bowls (`pixels.approaching`), so that only the picture tells where
things stand. A linear probe shows what *can* be read (Alain and Bengio 2016), not what the policy reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.preprocessing import StandardScaler

from ..data.dataset import DemoDataset, to_device
from ..data.episode import Episode
from ..model.policy import Policy
from ..run.files import read_jsonl
from ..scene.placements import PLATE
from .pixels import approaching, places
from .statistics import Interval, evenly, over_episodes

FRAMES = 1000  # that the probe learns from; as many at most are held out
PENALTIES = tuple(10.0**power for power in range(1, 7))  # relative to features of standard deviation 1
LOGGED = 20  # rows of metrics.jsonl from the end, over which gradients are averaged
BATCH = 32


def positions(policy: Policy, parts: Sequence[tuple[DemoDataset, Sequence[Episode]]]) -> dict | None:
    """Errors (cm) of the named bowl's and the plate's place, read linearly from the image's final states (P x D numbers).

    parts: the training frames and episodes, then the held-out ones. Beside it the same probe on the arm's own state, and the
    mean place. None where demonstrations hold no simulator states, or too few.
    """
    found = [_frames(dataset, episodes) for dataset, episodes in parts]
    if any(len(set(episode)) < 3 for _, episode, _ in found):
        return None
    (train, train_episode, known), (held, episode, truth) = found
    datasets = [dataset for dataset, _ in parts]
    seen = [_states(policy, dataset, frames) for dataset, frames in zip(datasets, (train, held))]
    own = [dataset.proprio[frames] for dataset, frames in zip(datasets, (train, held))]
    guesses = {"model": _probe(*seen, known, train_episode), "proprio": _probe(*own, known, train_episode),
               "mean": np.broadcast_to(known.mean(0), truth.shape)}
    errors = {name: 100 * np.linalg.norm((guess - truth).reshape(-1, 2, 2), axis=-1) for name, guess in guesses.items()}
    return {"frames": len(held), "episodes": len(set(episode)),
            **{what: {name: over_episodes(error[:, i], episode) for name, error in errors.items()}
               for i, what in enumerate(("named", "plate"))}}


def pull(metrics: Path) -> dict[str, float | None] | None:
    """How long the gradient of lambda * L_recon on the backbone is, beside that of L_action: mean ratio at training's end.

    An estimate without an interval (steps of one training are not independent); None where nothing is reconstructed.
    """
    rows = [row for row in read_jsonl(metrics) if row.get("grad_recon") and row.get("grad_action")][-LOGGED:]
    if not rows:
        return None
    return Interval(float(np.mean([row["grad_recon"] / row["grad_action"] for row in rows])), None, None, len(rows)).written


def _frames(dataset: DemoDataset, episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to FRAMES frames (n,), the episode of each (n,), and x, y of named bowl and plate (n, 4), in metres."""
    starts = np.searchsorted(dataset.episode, np.arange(len(episodes)))
    steps = [(number, step) for number, episode in enumerate(episodes) for step in approaching(episode)]
    chosen = [steps[i] for i in evenly(len(steps), FRAMES)] if steps else []
    truth = [places(episodes[number].states[[step]], (episodes[number].target, PLATE))[0, :, :2].ravel()
             for number, step in chosen]
    return (np.array([starts[number] + step for number, step in chosen], dtype=int),
            np.array([number for number, _ in chosen], dtype=int), np.array(truth).reshape(-1, 4))


@torch.no_grad()
def _states(policy: Policy, dataset: DemoDataset, frames: np.ndarray) -> np.ndarray:
    """(n, P * D)."""
    parts = [frames[start:start + BATCH] for start in range(0, len(frames), BATCH)]
    seen = (policy.encode(to_device(dataset.batch(part), policy.device)).patches for part in parts)
    return np.concatenate([patches.float().flatten(1).cpu().numpy() for patches in seen])


def _probe(train: np.ndarray, held: np.ndarray, known: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Ridge regression, its penalty chosen over folds of whole episodes; what it says of the held-out frames (n, 4)."""
    scale = StandardScaler().fit(train)
    folds = GroupKFold(min(5, len(set(episode))))
    found = GridSearchCV(Ridge(), {"alpha": PENALTIES}, cv=folds, scoring="neg_mean_squared_error")
    return found.fit(scale.transform(train), known, groups=episode).predict(scale.transform(held))
