"""Square-stretched crops: the region that a denoiser reconstructs, cut out of an image and put back into it.

boxes (B, 4): left, top, right, bottom, as shares of the image's sides, 0 to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 0.25  # of the object's own sides, added on each of them


def object_boxes(pixels: Tensor) -> Tensor:
    """The named object's pixels (B, H, W), 0/1 -> its padded boxes, cut at the border; the whole image where it is not
    in view."""
    rows, columns = _span(pixels.bool().any(dim=2)), _span(pixels.bool().any(dim=1))  # each (B, 2), shares
    low, high = torch.stack([columns[:, 0], rows[:, 0]], dim=1), torch.stack([columns[:, 1], rows[:, 1]], dim=1)
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
