"""Each split changes what its name says, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from lar_core.measure.robustness import SPLITS, Frames

SENTENCES = ["pick up the black bowl next to the ramekin and place it on the plate",
             "pick up the black bowl on the cookie box and place it on the plate",
             "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate"]


@pytest.fixture
def frames(rng):
    named, other = np.zeros((3, 32, 32), bool), np.zeros((3, 32, 32), bool)
    named[:, 4:10, 4:12] = True
    other[:2, 20:24, 6:10] = True  # in the third frame the other bowl cannot be seen
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return Frames(images, SENTENCES, named, other, np.stack([named, other], axis=1))


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "original"])
def test_a_split_changes_either_the_words_or_the_picture_and_leaves_what_it_was_given(frames, name):
    before = frames.images.copy()
    changed = SPLITS[name](frames)
    words = changed.instructions != SENTENCES
    picture = not np.array_equal(changed.images, before)
    assert words != picture
    assert np.array_equal(frames.images, before) and frames.instructions == SENTENCES
    assert np.array_equal(changed.named, frames.named)


def test_the_original_is_untouched(frames):
    assert SPLITS["original"](frames) is frames


def test_a_paraphrase_still_names_the_object_in_the_same_words(frames):
    assert SPLITS["paraphrase"](frames).instructions[0] == (
        "grab the black bowl next to the ramekin and set it down on the dinner plate")


def test_new_pairs_keep_the_relation_and_never_say_black_bowl(frames):
    sentences = SPLITS["new_pairs"](frames).instructions
    assert sentences[0] == "pick up the dark dish next to the ramekin and place it on the plate"
    assert not any("black" in sentence or "bowl" in sentence for sentence in sentences) and len(set(sentences)) == 3


def test_relation_phrases_name_the_object_alone_in_other_words(frames):
    assert SPLITS["relation"](frames).instructions == [
        "the black bowl beside the ramekin", "the black bowl sitting on top of the cookie box",
        "the black bowl inside the top drawer of the wooden cabinet"]


def test_a_second_distractor_is_a_copy_of_the_first_and_spares_the_named_object(frames):
    changed = SPLITS["distractors"](frames)
    added = changed.other[0] & ~frames.other[0]
    assert added.sum() == frames.other[0].sum() and not (added & frames.named[0]).any()
    np.testing.assert_array_equal(changed.images[0][added], frames.images[0][frames.other[0]])
    assert np.array_equal(changed.images[0][~added], frames.images[0][~added])
    assert np.array_equal(changed.images[2], frames.images[2])  # nothing to copy
    np.testing.assert_array_equal(changed.objects[:, 2], changed.other & ~frames.other)  # one object more, to rank among
    assert not (changed.objects.sum(axis=1) > 1).any()


def test_occlusion_hides_the_left_half_of_the_named_object(frames):
    image = SPLITS["occlusion"](frames).images[0]
    assert (image[4:10, 4:8] == 128).all() and np.array_equal(image[4:10, 8:12], frames.images[0][4:10, 8:12])


def test_blanks_leave_nothing_to_see_or_nothing_to_read(frames):
    assert (SPLITS["blank_image"](frames).images == 128).all()
    assert set(SPLITS["blank_instruction"](frames).instructions) == {"."}
