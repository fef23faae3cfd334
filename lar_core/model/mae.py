"""The reconstruction decoder: a small transformer, one pass, after MAE (He et al. 2022, section 3 and appendix A).

Mask tokens stand where patches are masked, the backbone's features stand elsewhere; the decoder predicts the pixels of
every patch and is judged on the masked ones only. Everywhere: mask (B, P) bool, True = masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..run.registry import RECONSTRUCTORS
from ..run.settings import Condition, Profile


class MAEDecoder(nn.Module):
    """Features of grid * grid patches -> their pixels, through `layers` blocks of `width`."""

    def __init__(self, *, grid: int, patch_size: int, feature_width: int, width: int, layers: int, heads: int):
        super().__init__()
        self.embed = nn.Linear(feature_width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)  # (P, width)
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.pixels = nn.Linear(width, 3 * patch_size**2)

    def forward(self, patches: Tensor, mask: Tensor) -> Tensor:
        """patches (B, P, D), mask (B, P) -> predicted pixels (B, P, 3 * patch_size**2)."""
        tokens = self.embed(patches.to(self.mask_token.dtype))  # (B, P, width)
        tokens = torch.where(mask[..., None], self.mask_token, tokens)
        return self.pixels(self.blocks(tokens + self.positions))


@RECONSTRUCTORS.register("mae", "fills the masked patches in, as MAE (He et al. 2022)")
def make_mae(condition: Condition, profile: Profile, grid: int, patch_size: int, feature_width: int,
             vae: Path | None = None) -> MAEDecoder:
    """The untrained decoder of a condition; arguments as in `policy.make_decoder`."""
    return MAEDecoder(grid=grid, patch_size=patch_size, feature_width=feature_width, width=profile.decoder_width,
                      layers=profile.decoder_layers, heads=profile.decoder_heads)


@dataclass
class Reconstruction:
    """mask (B, P) bool, True = masked; prediction and target (B, P, 3pp); pixels (B, P, 3pp), the raw target."""

    mask: Tensor
    prediction: Tensor
    target: Tensor
    pixels: Tensor

    @property
    def loss(self) -> Tensor:
        """`reconstruction_loss` of the target."""
        return reconstruction_loss(self.prediction, self.target, self.mask)


def reconstruction_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the masked patches only (He et al. 2022, section 3: 'only on masked patches')."""
    error = (prediction - target).square().mean(dim=-1)  # (B, P)
    return (error * mask).sum() / mask.sum()


def patchify(images: Tensor, grid: int) -> Tensor:
    """images (B, 3, H, W), H = W a multiple of `grid` -> pixels of each patch (B, grid*grid, 3 * (H/grid)**2)."""
    batch, channels, height, _ = images.shape
    size = height // grid
    cells = images.reshape(batch, channels, grid, size, grid, size)  # (B, C, rows, p, columns, p)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid * grid, size * size * channels)


def unpatchify(pixels: Tensor, grid: int, channels: int = 3) -> Tensor:
    """The inverse of `patchify`: (B, grid*grid, channels*p*p) -> (B, channels, H, W)."""
    batch = pixels.shape[0]
    size = round((pixels.shape[2] // channels) ** 0.5)
    cells = pixels.reshape(batch, grid, grid, size, size, channels)  # (B, rows, columns, p, p, C)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, grid * size, grid * size)


def normalise_patches(pixels: Tensor) -> Tensor:
    """Each patch to zero mean and unit variance: the better representation target (He et al. 2022, table 1d)."""
    return (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()


def denormalise_patches(prediction: Tensor, pixels: Tensor) -> Tensor:
    """Give predicted patches the mean and spread of the true `pixels`, for pictures only."""
    return prediction * (pixels.var(-1, keepdim=True) + 1e-6).sqrt() + pixels.mean(-1, keepdim=True)


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D positions (grid*grid, width): half of the width for rows, half for columns (Vaswani et al. 2017)."""
    if width % 4:
        raise ValueError(f"The decoder's width must be a multiple of 4 for 2-D sin-cos positions, not {width}.")
    frequency = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * frequency  # (grid, width/4)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width/2)
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)
