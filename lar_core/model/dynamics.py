"""Inverse dynamics: an auxiliary loss that reads the action between two frames off what the backbone makes of them.

What moves the arm must then be in the patches' states, however small it is in the picture. Nothing else tells the action:
both frames are seen under a blank sentence, and neither proprioception nor the wrist camera is there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..run.errors import LarError
from ..run.registry import REGULARISERS
from ..run.settings import BLANK
from .losses import DOF
from .regularisers import Given

HIDDEN = 128


class Between(nn.Module):
    """Reads the action between two frames off their patches, each compared with itself. width: D, of their states."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.compare = nn.Sequential(nn.Linear(2 * width, HIDDEN), nn.GELU())
        self.read = nn.Linear(HIDDEN, DOF)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Patch states of two frames, (B, P, D) each -> actions (B, 7)."""
        before, after = (self.norm(states.to(self.norm.weight.dtype)) for states in (before, after))
        return self.read(self.compare(torch.cat([before, after - before], dim=-1)).mean(dim=1))


@REGULARISERS.register("inverse_dynamics", "The action between two frames, read off their patches", passes=2, on_map=False,
                       needs="following", reader=Between, colour="#17becf")
def inverse_dynamics(given: Given) -> Tensor:
    """Absolute error (normalised) of the action between each frame and the one after, from their patch states alone.

    After Lee et al. 2026, who read it off the vision tower's features. A frame after which nothing changes, such as the
    last of an episode, counts 0.
    """
    if "following" not in given.batch:
        raise LarError("The inverse_dynamics regulariser needs the frame after each image, which this batch does not have: "
                       "make the data set with following=True, or set inverse_dynamics=0.")
    blank = given.backbone.tokenise([BLANK] * len(given.batch["actions"]))
    before, after = (given.see_again([blank], frame=frame, saliency=False)[0].patches for frame in ("images", "following"))
    error = given.readers["inverse_dynamics"](before, after) - given.batch["actions"][:, 0]  # (B, 7)
    changed = (given.batch["images"] != given.batch["following"]).flatten(1).any(dim=1)
    return (error.abs().mean(dim=1) * changed).mean()
