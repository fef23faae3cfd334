"""Reconstructors: the decoder of a condition at a profile, or none.

`diffusers` takes seconds to import, so `diffusion` is imported only for the conditions that denoise.
"""

from __future__ import annotations

from bisect import bisect_left
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..config import Condition, Profile
from ..registry import RECONSTRUCTORS
from .mae import MAEDecoder

if TYPE_CHECKING:
    from .diffusion import DiffusionDecoder, Latents, Pixels


def make_decoder(condition: Condition, profile: Profile, *, grid: int, patch_size: int, feature_width: int,
                 vae: Path | None = None) -> MAEDecoder | DiffusionDecoder | None:
    """The untrained decoder of grid * grid patches, from states of width `feature_width`; None to reconstruct nothing.

    vae: folder of the autoencoder, where the target is latents.
    """
    if condition.reconstructor == "none":
        return None
    return RECONSTRUCTORS[condition.reconstructor](condition, profile, grid, patch_size, feature_width, vae)


@RECONSTRUCTORS.register("mae", "fills the masked patches in, as MAE (He et al. 2022)")
def _mae(condition: Condition, profile: Profile, grid: int, patch_size: int, feature_width: int,
         vae: Path | None = None) -> MAEDecoder:
    return MAEDecoder(grid=grid, patch_size=patch_size, feature_width=feature_width, width=profile.decoder_width,
                      layers=profile.decoder_layers, heads=profile.decoder_heads)


@RECONSTRUCTORS.register("diffusion", "makes the region round the mask out of noise, as ReconVLA (Song et al. 2025)")
def _diffusion(condition: Condition, profile: Profile, grid: int, patch_size: int, feature_width: int,
               vae: Path | None = None) -> DiffusionDecoder:
    from .diffusion import DiffusionDecoder
    target, width, heads = _target(condition, grid, vae), profile.denoiser_width, profile.denoiser_heads
    if condition.matched_capacity:
        with torch.device("meta"):
            parameters = count(_mae(condition, profile, grid, patch_size, feature_width))
        width, heads = matched_width(parameters, target, feature_width, profile.decoder_heads), profile.decoder_heads
    return DiffusionDecoder(target, feature_width=feature_width, width=width, heads=heads)


def matched_width(parameters: int, target: Pixels | Latents, feature_width: int, heads: int) -> int:
    """The width at which a denoiser has as nearly as possible so many parameters."""
    from .diffusion import Denoiser

    def size(width: int) -> int:
        with torch.device("meta"):
            return count(Denoiser(grid=target.grid, channels=target.channels, feature_width=feature_width, width=width,
                                  heads=heads))
    widths = range(lcm(4, heads), 4096, lcm(4, heads))  # positions need a multiple of 4
    above = bisect_left(widths, parameters, key=size)
    return min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(size(width) - parameters))


def count(module: nn.Module) -> int:
    """Parameters that learn."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _target(condition: Condition, grid: int, vae: Path | None) -> Pixels | Latents:
    from .diffusion import Latents, Pixels, load_vae
    return Latents(grid, load_vae(vae)) if condition.recon_target == "latent" else Pixels(grid)
