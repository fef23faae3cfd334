"""The conditions beside each other on one frame: what each mask source hides, which region each denoiser is given.

`batch` is one or more frames as `DemoDataset.batch` gives them, with `previous`; only the first one is drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..model.diffusion import crop, densest_boxes, object_boxes
from ..model.policy import Policy, count, make_decoder
from ..run.config import CONDITIONS, Condition, Profile
from ..run.draws import Draws
from ..run.registry import MASK_SOURCES
from .pictures import enlarge, grid, hidden

SIDE = 180  # pixels of a picture
_SHOWN = ("name", "mask_source", "reconstructor", "head")  # fields of a condition with a column of their own


def conditions(profile: Profile) -> list[tuple[str, str, str, str, str, float]]:
    """(name, mask source, reconstructor, action head, what else it changes, million parameters of the decoder)."""
    return [(name, condition.mask_source, condition.reconstructor, condition.head, _changes(condition),
             _decoder_size(condition, profile)) for name, condition in CONDITIONS.items()]


def masks(policy: Policy, batch: dict) -> np.ndarray:
    """What every mask source hides in the first frame, by the policy's own attention where it asks for that.

    The teacher's mask is left out: a trained policy has no teacher any more.
    """
    absent = {"teacher"} if "regions" in batch else {"teacher", "segmentation"}
    names = [name for name in MASK_SOURCES if MASK_SOURCES.about(name).needs not in absent]
    image = enlarge(_image(batch), SIDE)
    return grid([hidden(image, _mask(policy, batch, name)[0].cpu().numpy()) for name in names], names, columns=5)


def regions(policy: Policy, batch: dict) -> np.ndarray:
    """Region x reconstructor: the patches that an MAE fills in, and the crops that a denoiser makes out of noise.

    The frames need segmentation.
    """
    image, size = enlarge(_image(batch), SIDE), batch["images"].shape[-1]
    gaze, attention = (_mask(policy, batch, name) for name in ("gaze", "attention"))
    pixels = batch["images"].to(policy.device).float()
    crops = [crop(pixels, boxes, size)[0].permute(1, 2, 0).round().byte().cpu().numpy()
             for boxes in (object_boxes(batch["regions"][:, 0].to(policy.device)), densest_boxes(attention))]
    panels = [hidden(image, gaze[0].cpu().numpy()), hidden(image, attention[0].cpu().numpy()),
              *(enlarge(one, SIDE) for one in crops)]
    return grid(panels, ["gaze_mask", "attention_mask", "gaze_diffusion", "attention_diffusion"], columns=4)


@torch.no_grad()
def _mask(policy: Policy, batch: dict, source: str) -> Tensor:
    """(B, P) bool, True = masked, on the policy's mask grid."""
    return policy.mask(batch, policy.encode(batch).saliency, Draws(0), source)


def _image(batch: dict) -> np.ndarray:
    return batch["images"][0].permute(1, 2, 0).cpu().numpy()


def _changes(condition: Condition) -> str:
    """Fields that differ from the default, but for those with a column of their own."""
    plain = Condition().model_dump()
    changed = {name: value for name, value in condition.model_dump().items()
               if name not in _SHOWN and value != plain.get(name)}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in changed.items())


def _decoder_size(condition: Condition, profile: Profile) -> float:
    with torch.device("meta"):  # only shapes
        decoder = make_decoder(condition, profile, grid=profile.image_size // profile.patch_size,
                               patch_size=profile.patch_size, feature_width=profile.text_width)
    return 0.0 if decoder is None else count(decoder) / 1e6
