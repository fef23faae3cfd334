"""The shortcut probe: what the actions lose when the image is taken away, or another frame's is put in its place.

A policy can do without looking: proprioception says where the hand is, and demonstrations are much alike. So every
held-out frame is answered again with grey images and with those of another frame, instruction and proprioception as
they were. Where a head has a policy of its own (`bridge`, `focus`), the same is done to this policy alone: its action
queries then still come from a backbone that saw the right image. If that costs nothing although the whole policy needs
the image, the actions hang on the queries, past all patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import DemoDataset
from ..model.policy import Policy
from ..model.train import to_device
from .statistics import over_episodes

BATCH = 32
GREY = 128
CAMERAS = ("images", "wrist")
KINDS = ("blank", "shuffled")


@torch.no_grad()
def shortcut(policy: Policy, dataset: DemoDataset, frames: np.ndarray) -> dict:
    """The section `shortcut` of results.json, measured on `frames` of `dataset`."""
    loss, error = _measure(policy, dataset, frames)
    episode = dataset.episode[frames]

    def entry(name: str) -> dict:
        return {"loss": over_episodes(loss[name], episode), "l1": over_episodes(error[name], episode),
                "increase": over_episodes(loss[name] - loss["right"], episode)}

    right = entry("right")
    return {"frames": len(frames), "episodes": len(np.unique(episode)),
            "unit": "normalised" if policy.head.l1 else "nats", "right": {name: right[name] for name in ("loss", "l1")},
            "whole": {kind: entry(kind) for kind in KINDS},
            "head": {kind: entry(f"head {kind}") for kind in KINDS} if policy.head.reads_layers else None}


def _measure(policy: Policy, dataset: DemoDataset, frames: np.ndarray) -> tuple[dict, dict]:
    """Loss and mean absolute error of each frame (N,), by what was changed."""
    loss, error = {}, {}
    others = np.roll(frames, len(frames) // 2)  # far away: another episode, and of several tasks often another task
    for start in range(0, len(frames), BATCH):
        part = slice(start, start + BATCH)
        batch, other = (to_device(dataset.batch(rows[part]), policy.device) for rows in (frames, others))
        for name, answer in _answers(policy, batch, other):
            actions, padded = policy.head.decode(answer), batch["action_pad"]
            loss.setdefault(name, []).append(sample_losses(policy, answer, batch))
            error.setdefault(name, []).append(_errors(actions, batch["actions"], padded))
    return tuple({name: torch.cat(parts).cpu().numpy() for name, parts in values.items()} for values in (loss, error))


def _answers(policy: Policy, batch: dict, other: dict) -> Iterator[tuple[str, Tensor]]:
    """The head's answers to the right images and to changed ones."""
    cameras = [name for name in CAMERAS if name in batch]
    changed = {"right": {}, "blank": {name: torch.full_like(batch[name], GREY) for name in cameras},
               "shuffled": {name: other[name] for name in cameras}}
    encodings = {kind: policy.encode(batch | images, saliency=False) for kind, images in changed.items()}
    for kind, encoding in encodings.items():
        yield kind, policy.head(encoding)
        if kind != "right" and policy.head.reads_layers:
            yield f"head {kind}", policy.head(encodings["right"], encoding)


def sample_losses(policy: Policy, answer: Tensor, batch: dict) -> Tensor:
    """L_action of each sample, (B,)."""
    one = [slice(i, i + 1) for i in range(len(answer))]
    return torch.stack([policy.head.loss(answer[i], batch["actions"][i], batch["action_pad"][i]) for i in one])


def _errors(predicted: Tensor, actions: Tensor, padded: Tensor) -> Tensor:
    """Mean absolute error of each sample's actions over its valid steps, (B,)."""
    absolute = (predicted - actions).abs().mean(dim=-1) * ~padded  # (B, K)
    return absolute.sum(dim=1) / (~padded).sum(dim=1)
