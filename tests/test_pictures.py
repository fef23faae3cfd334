"""Pictures of one frame: its maps in many ways, and the conditions beside each other, each hiding what training would."""

from __future__ import annotations

import numpy as np
import pytest

from lar_core.measure.attention import AttentionReader
from lar_core.model.diffusion import count
from lar_core.run.config import CONDITIONS, PROFILES
from lar_core.run.registry import MASK_SOURCES
from lar_core.show import pictures
from lar_core.show.pictures import GAP, SMALL, TITLE, by_head, by_name, by_word, maps, sinks

SENTENCE = "pick up the black bowl on the ramekin and place it on the plate"
IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def policy(policy_of):
    return policy_of().eval()


@pytest.fixture
def reader(policy):
    return AttentionReader(policy)


def panels(picture: np.ndarray, columns: int) -> np.ndarray:
    """The pictures of a grid: (N, SMALL, SMALL, 3)."""
    step, rows = SMALL + GAP, picture.shape[0] // (SMALL + TITLE)
    return np.stack([picture[row * (SMALL + TITLE) + TITLE :, column * step :][: SMALL, : SMALL]
                     for row in range(rows) for column in range(columns)])


def test_every_source_but_the_teacher_hides_a_quarter_of_the_picture(policy, batch):
    drawn = panels(pictures.masks(policy, batch), columns=5)
    assert len(drawn) == 10 == len(MASK_SOURCES)  # the last place is white: a trained policy has no teacher
    grey = (drawn[:-1] == 128).all(axis=-1).mean(axis=(1, 2))
    np.testing.assert_allclose(grey, 0.25, atol=0.02)
    assert (drawn[-1] == 255).all()
    assert len({panel.tobytes() for panel in drawn[:-1]}) >= 7  # of 16 patches, two sources may well choose the same


def test_without_segmentation_gaze_is_left_out(policy, batch):
    del batch["regions"]
    assert (panels(pictures.masks(policy, batch), columns=5)[-2] == 255).all()


def test_region_and_reconstructor_make_four_pictures(policy, batch):
    batch["images"][:] = 0
    batch["images"][0, :, 16:32, 32:48] = 200  # the named object
    gaze, attention, box, square = panels(pictures.regions(policy, batch), columns=4)
    assert (gaze == 128).all(axis=-1).mean() == pytest.approx(0.25, abs=0.02) and not (gaze >= 190).any()
    assert (attention == 128).any() and not (box == 128).any()
    assert (box > 100).all(axis=-1).mean() == pytest.approx(1 / 1.5**2, abs=0.03)  # padded by a quarter on each side


def test_the_table_names_every_condition_and_what_it_changes():
    rows = {row[0]: row for row in pictures.conditions(PROFILES["micro"])}
    assert list(rows) == list(CONDITIONS)
    assert rows["attention_mask"][1:5] == ("attention", "mae", "parallel", "")
    assert rows["growing_mask"][4] == "mask_ratio 0.75, mask_ratio_start 0.15" and rows["blind"][4] == "blind"


def test_decoders_have_the_size_that_is_said(policy, policy_of):
    sizes = {row[0]: row[5] for row in pictures.conditions(PROFILES["micro"])}
    assert sizes["attention_mask"] == count(policy.decoder) / 1e6 and sizes["action_only"] == 0
    assert sizes["gaze_diffusion"] == count(policy_of("gaze_diffusion").decoder) / 1e6
    assert sizes["gaze_diffusion_matched"] == pytest.approx(sizes["attention_mask"], rel=0.15)


def test_maps_are_drawn_one_for_every_word_and_every_head(reader):
    attention = reader.read(IMAGE, SENTENCE)
    assert len(by_word(attention)) == len(SENTENCE.split()) + 2
    assert list(by_word(attention))[0] == "<bos>" and list(by_word(attention))[5] == "5 bowl"
    assert list(by_head(attention))[-1] == "layer 2, head 1" and len(by_head(attention)) == 6
    assert maps(IMAGE, attention, by_head(attention), columns=2, side=50).shape == (3 * 74, 110, 3)


def test_every_named_aggregation_is_drawn_those_of_many_passes_too(reader):
    names = reader.aggregations
    assert {"mean", "relative", "coarse_to_fine", "multi_pass"} <= set(names)
    assert by_name(reader, IMAGE, SENTENCE, columns=len(names), side=50).shape == (74, 60 * len(names) - 10, 3)


def test_sinks_are_drawn_before_between_and_after(reader):
    assert sinks(reader, IMAGE, SENTENCE).shape == (254, 4 * 230 + 30, 3)
