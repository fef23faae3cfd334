"""Regions cut out and put back: against Pillow's resampling, scipy's box filter, and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import zoom

from lar_core.model.crops import crop, densest_boxes, object_boxes, paste


def test_an_objects_box_is_padded_by_a_quarter_of_its_sides_and_cut_at_the_border():
    pixels = torch.zeros(2, 100, 100, dtype=torch.uint8)
    pixels[0, 40:60, 20:60] = 1
    pixels[1, 0:10, 90:] = 1
    expected = [[0.10, 0.35, 0.70, 0.65], [0.875, 0.0, 1.0, 0.125]]
    assert torch.allclose(object_boxes(pixels), torch.tensor(expected))


def test_an_object_out_of_view_gives_the_whole_image():
    assert object_boxes(torch.zeros(1, 8, 8, dtype=torch.uint8)).tolist() == [[0, 0, 1, 1]]


def test_the_box_of_a_mask_holds_the_most_masked_patches():
    mask = torch.rand(20, 64, generator=torch.Generator().manual_seed(0)).argsort(1) < 16
    windows = np.lib.stride_tricks.sliding_window_view(mask.reshape(20, 8, 8).numpy(), (4, 4), axis=(1, 2))
    for image, box in zip(mask.reshape(20, 8, 8), densest_boxes(mask) * 8):
        left, top, right, bottom = box.int().tolist()
        assert (right - left, bottom - top) == (4, 4)
    counts = [image[int(y):int(y2), int(x):int(x2)].sum() for image, (x, y, x2, y2) in
              zip(mask.reshape(20, 8, 8).numpy(), (densest_boxes(mask) * 8).tolist())]
    assert np.array_equal(counts, windows.sum(axis=(3, 4)).max(axis=(1, 2)))


def test_stretching_is_pillows_bilinear_resizing_of_the_box():
    image = zoom(np.random.default_rng(0).random((8, 8)), 4, order=1).astype(np.float32)  # smooth, 32 x 32
    box = (0.25, 0.125, 0.75, 0.5)
    theirs = np.asarray(Image.fromarray(image).resize((64, 64), Image.BILINEAR, box=tuple(32 * side for side in box)))
    ours = crop(torch.from_numpy(image).expand(1, 3, 32, 32), torch.tensor([box]), 64)[0, 0].numpy()
    assert np.abs(ours - theirs)[4:-4, 4:-4].max() < 1e-4  # at its border Pillow does not look beyond the box


def test_a_whole_image_is_itself_and_what_is_put_back_is_what_was_there():
    images = torch.rand(2, 3, 16, 16)
    whole = torch.tensor([[0.0, 0, 1, 1]] * 2)
    assert torch.allclose(crop(images, whole, 16), images, atol=1e-5)
    boxes = torch.tensor([[0.25, 0.0, 0.75, 0.5], [0.5, 0.5, 1.0, 1.0]])
    grey = paste(images, torch.zeros(2, 3, 8, 8), boxes)
    assert (grey[0, :, :8, 4:12] == 0).all() and torch.equal(grey[0, :, 8:], images[0, :, 8:])
    assert torch.allclose(paste(grey, crop(images, boxes, 8), boxes), images, atol=1e-5)


@pytest.mark.parametrize("size", [8, 31])
def test_a_slope_stays_a_slope(size):
    slope = ((torch.arange(32) + 0.5) / 32).expand(1, 3, 32, 32)
    cut = crop(slope, torch.tensor([[0.25, 0.25, 0.75, 0.75]]), size)[0, 0, 0]
    assert torch.allclose(cut, 0.25 + 0.5 * (torch.arange(size) + 0.5) / size, atol=1e-5)
