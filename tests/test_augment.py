"""Shifts: pixels move together with their segmentation, borders repeat, everything follows the seed."""

import torch

from lar_core.data.dataset import shift_images
from lar_core.run.draws import Draws


def picture(batch):
    """A coloured square, and its segmentation where it is."""
    regions = torch.zeros(batch, 2, 32, 32, dtype=torch.uint8)
    regions[:, 0, 10:20, 12:22] = 1
    return {"images": (regions[:, :1] * 200).expand(-1, 3, -1, -1).contiguous(), "regions": regions, "proprio": None}


def test_segmentation_moves_with_the_image_and_no_further_than_asked():
    moved = shift_images(picture(64), 4, Draws(0))
    assert torch.equal(moved["images"][:, 0], moved["regions"][:, 0] * 200)
    rows, columns = moved["regions"][:, 0].amax(2).int().argmax(1), moved["regions"][:, 0].amax(1).int().argmax(1)
    assert set((rows - 10).tolist()) == set(range(-4, 5)) == set((columns - 12).tolist())


def test_the_frame_before_moves_with_the_image():
    moved = shift_images(picture(16) | {"previous": picture(16)["images"]}, 4, Draws(0))
    assert torch.equal(moved["images"], moved["previous"])


def test_borders_are_repeated_and_sizes_kept():
    images = torch.arange(8, dtype=torch.uint8).reshape(1, 1, 1, 8).expand(1, 3, 8, 8).contiguous()
    moved = shift_images({"images": images}, 3, Draws(1))["images"]
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= set(range(8))


def test_the_same_seed_moves_alike_and_the_wrist_camera_moves_on_its_own():
    batch = {"images": torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)}
    batch["wrist"] = batch["images"].clone()
    one, again, other = (shift_images(batch, 3, Draws(seed)) for seed in (5, 5, 6))
    assert torch.equal(one["images"], again["images"]) and not torch.equal(one["images"], other["images"])
    assert not torch.equal(one["images"], one["wrist"])
