"""Pictures of another size: square, antialiased, and never touched where the size is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_demos import make_episode

from lar_core.data.episode import resize, resize_episode
from lar_core.run.errors import LarError


def test_an_episode_of_the_right_size_stays_as_it_is():
    episode = make_episode(size=16, wrist=8)
    same = resize_episode(episode, 16, 8)
    assert same.agentview_rgb is episode.agentview_rgb and same.eye_in_hand_rgb is episode.eye_in_hand_rgb
    assert same.segmentation is episode.segmentation


def test_both_cameras_get_their_size_and_resampled_labels_are_dropped():
    episode = make_episode(size=16, wrist=16)
    other = resize_episode(episode, 32, 8)
    assert other.agentview_rgb.shape == (6, 32, 32, 3) and other.eye_in_hand_rgb.shape == (6, 8, 8, 3)
    assert other.agentview_rgb.dtype == np.uint8 and other.segmentation is None
    assert other.actions is episode.actions


def test_a_camera_that_is_off_is_left_out_and_one_that_is_missing_is_named():
    assert resize_episode(make_episode(), 16, 0).eye_in_hand_rgb is None
    with pytest.raises(LarError, match="no wrist pictures: set wrist_size to 0"):
        resize_episode(replace(make_episode(), eye_in_hand_rgb=None), 16, 8)


def test_fine_stripes_become_grey_instead_of_a_moire():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    inside = resize(stripes, 16)[:, :, 2:-2].astype(int)
    assert abs(inside - 127).max() <= 2


def test_up_and_down_again_is_nearly_the_same_and_nothing_is_turned():
    y, x = np.mgrid[:32, :32]
    smooth = np.stack([4 * x + 2 * y, 7 * x, 7 * y], axis=-1).astype(np.uint8)[None]
    assert abs(resize(resize(smooth, 64), 32).astype(int) - smooth).max() <= 3
