"""What a denoiser knows of held-out frames: its loss told by the frame's own states, and told by another frame's.

A denoiser that says nothing has loss 1, and much of the noise can be named from the noisy region alone. Only what is
lost with another frame's states was in the backbone's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import DemoDataset
from ..model.diffusion import Denoising, paste
from ..model.policy import Policy
from ..model.train import to_device
from ..run.draws import Draws
from .statistics import over_episodes

BATCH = 32


@torch.no_grad()
def denoising(policy: Policy, dataset: DemoDataset, frames: np.ndarray) -> dict:
    """The section `denoising` of results.json, measured on `frames` of `dataset`."""
    own, swapped = [], []
    others = np.roll(frames, len(frames) // 2)  # far away, as in the shortcut probe
    for start in range(0, len(frames), BATCH):
        part = slice(start, start + BATCH)
        batch, other = (to_device(dataset.batch(rows[part]), policy.device) for rows in (frames, others))
        recon, foreign = (_reconstruct(policy, rows, Draws(start)) for rows in (batch, other))
        own.append(recon.errors)
        swapped.append(policy.decoder.errors(foreign.states, recon.noised))
    loss, other_frame = (torch.cat(parts).cpu().numpy() for parts in (own, swapped))
    episode = dataset.episode[frames]
    return {"frames": len(frames), "episodes": len(np.unique(episode)), "loss": over_episodes(loss, episode),
            "other_frame": over_episodes(other_frame, episode), "increase": over_episodes(other_frame - loss, episode)}


def _reconstruct(policy: Policy, batch: dict, draws: Draws) -> Denoising:
    encoding = policy.encode(batch)
    return policy.reconstruct(batch, encoding, policy.mask(batch, encoding.saliency, draws), draws)


def denoising_panels(policy: Policy, recon: Denoising) -> Tensor:
    """Original, region hidden, region sampled from noise (stretched to the image), put back: (B, 4, 3, H, W)."""
    original, sampled = recon.images, policy.decoder.sample(recon.states, Draws(0))
    whole = torch.tensor([[0.0, 0, 1, 1]], device=original.device).expand(len(original), -1)
    hidden = paste(original, torch.zeros_like(sampled), recon.boxes)
    return torch.stack([original, hidden, paste(original, sampled, whole), paste(original, sampled, recon.boxes)], dim=1)
