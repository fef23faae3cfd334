"""The diffusion arm, after ReconVLA (Song et al. 2025): a small DiT that denoises the region, told by the backbone.

The region is cut out and stretched, turned into as many tokens as the image has patches, noised at random steps of a
cosine schedule, and the denoiser must name the noise. What it knows of the scene are the backbone's image-token states,
one a token, through adaLN-Zero (Peebles and Xie 2023): no attention to the states, so what it needs they must carry.
Tokens are pixels, or latents of a frozen autoencoder. `diffusers` supplies schedules, step embeddings and autoencoder; it
takes seconds to import, so only what needs it does.

Regions are boxes (B, 4): left, top, right, bottom, as shares of the image's sides, 0 to 1.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..run.errors import Damaged, LarError, first_line
from ..run.registry import RECONSTRUCTORS
from ..run.runtime import Draws
from ..run.settings import Condition, Profile
from .mae import make_mae, patchify, sincos_positions, unpatchify
from .weights import check_loaded, first_not_finite

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DEPTH = 3  # blocks
STEPS = 1000  # of the schedule
DRAWS = 4  # noisy versions of each sample
SHOWN_STEPS = 25  # of the respaced schedule by which pictures are sampled
LATENT_PATCH = 2  # latents a token, along each side
PIXEL_PATCH = 4  # pixels a token, along each side: 48 numbers, so that noise passes through any width; ReconVLA has 64
PADDING = 0.25  # of the named object's own sides, added on each of them


class Block(nn.Module):
    """A transformer block whose norms are shifted, scaled and gated token by token; at the start it does nothing."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.modulation = _zeroed(nn.Linear(width, 6 * width))
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, told: Tensor) -> Tensor:
        """tokens and told: (N, P, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(told).chunk(6, dim=-1)
        normed = self.norm1(tokens) * (1 + scale1) + shift1
        tokens = tokens + gate1 * self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)


class Denoiser(nn.Module):
    """Noisy tokens, their steps and the backbone's states -> the noise."""

    def __init__(self, *, grid: int, channels: int, feature_width: int, width: int, heads: int):
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.states = nn.Linear(feature_width, width)
        self.waves = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.step = TimestepEmbedding(256, width)
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)  # (P, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.noise = _zeroed(nn.Linear(width, 2 * width)), _zeroed(nn.Linear(width, channels))

    def forward(self, noisy: Tensor, steps: Tensor, states: Tensor) -> Tensor:
        """noisy (B, R, P, C), steps (B, R), states (B, P, D) -> (B, R, P, C)."""
        when = self.step(self.waves(steps.flatten())).unflatten(0, steps.shape)  # (B, R, width)
        told = self.states(states.to(self.embed.weight.dtype))[:, None] + when[:, :, None]  # (B, R, P, width)
        told = F.silu(told).flatten(0, 1)  # (B * R, P, width)
        tokens = self.embed(noisy.flatten(0, 1)) + self.positions  # (B * R, P, width)
        for block in self.blocks:
            tokens = block(tokens, told)
        shift, scale = self.modulation(told).chunk(2, dim=-1)
        return self.noise(self.norm(tokens) * (1 + scale) + shift).unflatten(0, steps.shape)


# What is denoised: a region as tokens (B, P, C), and back.

class Pixels:
    """Tokens are the pixels of small patches: the target that needs no weights."""

    limit = 1.0  # no value of a token lies beyond +-

    def __init__(self, grid: int):
        self.grid, self.size, self.channels = grid, grid * PIXEL_PATCH, 3 * PIXEL_PATCH**2

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, size, size) in [-1, 1] -> (B, P, C)."""
        return patchify(images, self.grid)

    def images(self, tokens: Tensor) -> Tensor:
        """The inverse of `tokens`."""
        return unpatchify(tokens, self.grid)


class Latents(nn.Module):
    """Tokens are 2 x 2 latents of a frozen autoencoder, as in ReconVLA. Frozen: no gradient, not in checkpoints."""

    limit = 5.0  # latents have about unit variance

    def __init__(self, grid: int, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae.requires_grad_(False)
        self.grid = grid
        self.size = grid * LATENT_PATCH * 2 ** (len(vae.config.block_out_channels) - 1)  # pixels
        self.channels = vae.config.latent_channels * LATENT_PATCH**2

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, size, size) in [-1, 1] -> (B, P, C)."""
        with torch.autocast(images.device.type, enabled=False):
            latents = self.vae.encode(images.float()).latent_dist.mode() * self.vae.config.scaling_factor
        return patchify(latents, self.grid)

    @torch.no_grad()
    def images(self, tokens: Tensor) -> Tensor:
        """Roughly the inverse of `tokens`."""
        latents = unpatchify(tokens, self.grid, self.vae.config.latent_channels) / self.vae.config.scaling_factor
        with torch.autocast(tokens.device.type, enabled=False):
            return self.vae.decode(latents.float()).sample


# The decoder, and how it is made.

@dataclass
class Noised:
    """Clean tokens (B, P, C), and for each sample R steps (B, R) and noises (B, R, P, C)."""

    clean: Tensor
    steps: Tensor
    noise: Tensor


@dataclass
class Denoising:
    """images (B, 3, H, W) in [-1, 1]; mask (B, P) bool, True = masked; boxes (B, 4) of the regions; states (B, P, D)
    that told the denoiser; errors (B,), mean squared error of the noise, whose own variance is 1."""

    images: Tensor
    mask: Tensor
    boxes: Tensor
    states: Tensor
    noised: Noised
    errors: Tensor

    @property
    def loss(self) -> Tensor:
        """Of the batch: the mean of `errors`."""
        return self.errors.mean()


class DiffusionDecoder(nn.Module):
    """A denoiser, its schedule, and what it denoises."""

    def __init__(self, target: Pixels | Latents, *, feature_width: int, width: int, heads: int):
        from diffusers import DDPMScheduler
        super().__init__()
        self.target = target
        self.denoiser = Denoiser(grid=target.grid, channels=target.channels, feature_width=feature_width, width=width,
                                 heads=heads)
        self.schedule = DDPMScheduler(STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")

    def forward(self, images: Tensor, mask: Tensor, boxes: Tensor, states: Tensor, draws: Draws) -> Denoising:
        """Noise the regions in `boxes` of images (B, 3, H, W) in [-1, 1], and name the noise; states as in `errors`."""
        noised = self.noised(crop(images, boxes, self.target.size), draws)
        return Denoising(images, mask, boxes, states, noised, self.errors(states, noised))

    def noised(self, regions: Tensor, draws: Draws) -> Noised:
        """Tokens of the regions (B, 3, size, size) in [-1, 1] and random noise for them, DRAWS times."""
        clean = self.target.tokens(regions)
        steps = (draws.uniform(len(clean), DRAWS) * STEPS).long()
        noise = draws.normal(len(clean), DRAWS, *clean.shape[1:])
        return Noised(clean, steps.to(clean.device), noise.to(clean.device))

    def errors(self, states: Tensor, noised: Noised) -> Tensor:
        """Mean squared error of the predicted noise (B,), with states (B, P, D) to go by."""
        clean = noised.clean[:, None].expand_as(noised.noise)
        noisy = self.schedule.add_noise(clean.flatten(0, 1), noised.noise.flatten(0, 1), noised.steps.flatten())
        predicted = self.denoiser(noisy.view_as(noised.noise), noised.steps, states)
        return (predicted - noised.noise).square().mean(dim=(1, 2, 3))

    @torch.no_grad()
    def sample(self, states: Tensor, draws: Draws, steps: int = SHOWN_STEPS) -> Tensor:
        """What the denoiser makes of pure noise, in `steps` steps of DDIM: regions (B, 3, size, size) in [-1, 1]."""
        from diffusers import DDIMScheduler
        schedule = DDIMScheduler.from_config(self.schedule.config, clip_sample_range=self.target.limit)
        schedule.set_timesteps(steps)
        tokens = draws.normal(*states.shape[:2], self.target.channels).to(states.device)
        for step in schedule.timesteps.tolist():
            when = torch.full((len(tokens), 1), step, device=tokens.device)
            noise = self.denoiser(tokens[:, None], when, states)[:, 0]
            tokens = schedule.step(noise, step, tokens).prev_sample
        return self.target.images(tokens).clamp(-1, 1)


@RECONSTRUCTORS.register("diffusion", "makes the region round the mask out of noise, as ReconVLA (Song et al. 2025)")
def make_diffusion(condition: Condition, profile: Profile, grid: int, patch_size: int, feature_width: int,
                   vae: Path | None = None) -> DiffusionDecoder:
    """The untrained decoder of a condition; arguments as in `policy.make_decoder`."""
    target: Pixels | Latents = Pixels(grid)
    if condition.recon_target == "latent":
        target = Latents(grid, load_vae(vae))  # type: ignore[arg-type]  # then there is one
    width, heads = profile.denoiser_width, profile.denoiser_heads
    if condition.matched_capacity:
        with torch.device("meta"):
            parameters = count(make_mae(condition, profile, grid, patch_size, feature_width))
        width, heads = matched_width(parameters, target, feature_width, profile.decoder_heads), profile.decoder_heads
    return DiffusionDecoder(target, feature_width=feature_width, width=width, heads=heads)


def matched_width(parameters: int, target: Pixels | Latents, feature_width: int, heads: int) -> int:
    """The width at which a denoiser has as nearly as possible so many parameters."""
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


def load_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder in `folder`, in diffusers' format. Raises LarError where there is none, whole and sound."""
    from diffusers import AutoencoderKL
    try:
        vae, found = AutoencoderKL.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise LarError(f"{folder} holds no autoencoder in diffusers' format ({first_line(error)}): correct "
                       "vae, or set recon_target=raw.") from error
    check_loaded(found, folder, len(list(vae.parameters())))
    if wild := first_not_finite(vae.state_dict()):
        raise Damaged(f"{folder} holds NaN or infinity in {wild}: copy or download the autoencoder again.")
    return vae


# Regions: which box, and cutting it out of the image.

def object_boxes(pixels: Tensor) -> Tensor:
    """The named object's pixels (B, H, W), 0/1 -> its padded boxes, cut at the border; the whole image where it is not
    in view."""
    spans = [_span(pixels.bool().any(dim=axis)) for axis in (1, 2)]  # of columns and of rows, each (B, 2), shares
    low, high = torch.stack(spans, dim=2).unbind(dim=1)  # the corners (B, 2): column, row
    padding = PADDING * (high - low)
    return torch.cat([low - padding, high + padding], dim=1).clamp(0, 1)


def densest_boxes(mask: Tensor) -> Tensor:
    """Mask (B, P) bool, True = masked -> the boxes of about as many patches, square, that hold most masked ones."""
    grid = round(mask.shape[1] ** 0.5)
    side = max(1, round(float(mask[0].sum()) ** 0.5))
    counts = F.avg_pool2d(mask.float().reshape(-1, 1, grid, grid), side, stride=1)
    best = counts.flatten(1).argmax(dim=1)
    corner = torch.stack([best % counts.shape[3], best // counts.shape[3]], dim=1)  # column, row
    return torch.cat([corner, corner + side], dim=1) / grid


def crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut boxes out of images (B, 3, H, W) and stretch them to (B, 3, size, size), bilinear."""
    line = (torch.arange(size, device=images.device) + 0.5) / size
    low, high = boxes[:, :2], boxes[:, 2:]
    x, y = ((low[:, i, None] + line * (high - low)[:, i, None]) for i in range(2))  # (B, size), shares of the image
    return _sample(images, x, y)


def paste(images: Tensor, crops: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of `crop`: images (B, 3, H, W) with crops (B, 3, size, size) squeezed back into their boxes."""
    inside = []
    for low, high, length in ((boxes[:, 0], boxes[:, 2], images.shape[3]), (boxes[:, 1], boxes[:, 3], images.shape[2])):
        line = (torch.arange(length, device=images.device) + 0.5) / length
        inside.append((line - low[:, None]) / (high - low)[:, None])  # (B, W) or (B, H), shares of the box
    x, y = inside
    here = ((y > 0) & (y < 1))[:, None, :, None] & ((x > 0) & (x < 1))[:, None, None, :]
    return torch.where(here, _sample(crops, x, y), images)


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values of images (B, 3, H, W) at columns x (B, w) and rows y (B, h), shares of their sides: (B, 3, h, w)."""
    places = torch.stack([x[:, None].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1)
    return F.grid_sample(images, 2 * places - 1, mode="bilinear", padding_mode="border", align_corners=False)


def _span(seen: Tensor) -> Tensor:
    """seen (B, n) bool -> first and last + 1 True, (B, 2), as shares of n; 0 and 1 where there is none."""
    n, where = seen.shape[1], seen.int()
    span = torch.stack([where.argmax(dim=1), n - where.flip(1).argmax(dim=1)], dim=1) / n
    return torch.where(seen.any(dim=1, keepdim=True), span, torch.tensor([0.0, 1.0], device=seen.device))


def _zeroed(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    return linear
