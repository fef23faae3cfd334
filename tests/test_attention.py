"""The explorer's arithmetic: attention -> saliency -> mask -> metrics, without any widget."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lar_core.measure import attention as att
from lar_core.measure.attention import Attention, AttentionReader, Choice, aggregate, smooth, view_of
from lar_core.run.errors import LarError

SENTENCE = "pick up the black bowl on the ramekin and place it on the plate"


@pytest.fixture
def policy(policy_of):
    return policy_of().eval()


@pytest.fixture
def images(batch):
    return batch["images"].permute(0, 2, 3, 1).numpy()


def made(values: np.ndarray, own=(False, True, True, False)) -> Attention:
    return Attention(values, tuple("abcd"), np.array(own), tapped=tuple(range(values.shape[0])))


def test_the_default_choice_is_the_policys_own_saliency(policy, batch, images):
    with torch.no_grad():
        expected = policy.encode(batch | {"instructions": [SENTENCE] * 2}).saliency.numpy()
    reader = AttentionReader(policy)
    for image, row in zip(images, expected):
        np.testing.assert_allclose(aggregate(reader.read(image, SENTENCE), Choice()), row, atol=1e-6)


def test_every_layer_is_read_whatever_the_policy_itself_taps(policy, images):
    policy.backbone.tapped = (2,)
    attention = AttentionReader(policy).read(images[0], SENTENCE)
    assert attention.values.shape == (3, 2, len(attention.words), 16)
    assert attention.tapped == (2,)
    assert (att.image_share(attention) <= 1 + 1e-6).all() and (att.image_share(attention) > 0).all()


def test_whatever_is_said_a_deaf_policy_looks_as_at_a_full_stop(policy_of, images):
    reader = AttentionReader(policy_of("deaf").eval())
    one, other = (reader.read(images[0], sentence) for sentence in (SENTENCE, "move it"))
    assert np.array_equal(one.values, other.values) and [one.words[i] for i in one.own_words] == ["."]
    assert np.array_equal(*(reader.aggregated(images[0], sentence, "mean") for sentence in (SENTENCE, "move it")))


def test_words_are_the_sentence_between_bos_and_newline(policy, images):
    attention = AttentionReader(policy).read(images[0], SENTENCE)
    assert [attention.words[i] for i in attention.own_words] == SENTENCE.split()
    assert len(attention.words) == len(SENTENCE.split()) + 2


def test_what_was_read_once_is_not_run_again(policy, images, monkeypatch):
    reader = AttentionReader(policy, remember=2)
    reader.prepare(images, SENTENCE)
    monkeypatch.setattr(reader, "_run", None)  # any further run would fail
    reader.read(images[1], SENTENCE)
    with pytest.raises(TypeError):
        reader.read(images[1], "another sentence")


def test_the_least_used_frame_is_forgotten_first(policy, images):
    reader = AttentionReader(policy, remember=2)
    for image, words in ((images[0], "a"), (images[1], "b"), (images[0], "a"), (images[1], "c")):
        reader.read(image, words)
    assert [words for _, words in reader._known] == ["a", "c"]


def test_a_single_layer_head_and_word_is_taken_as_it_is():
    values = np.random.default_rng(0).random((3, 2, 4, 9))
    saliency = aggregate(made(values), Choice(layers=(1,), heads=(0,), words=(3,)))
    np.testing.assert_allclose(saliency, values[1, 0, 3] / values[1, 0, 3].sum())


def test_max_keeps_a_single_bright_head_that_the_mean_washes_out():
    values = np.full((1, 4, 4, 9), 0.1)
    values[0, 2, 1, 5] = 1.0
    mean, most = (aggregate(made(values), Choice(reduce=name)) for name in ("mean", "max"))
    assert mean[5] < most[5] and most[5] == pytest.approx(1.0 / 1.8)


@pytest.mark.parametrize("choice", [Choice(layers=(3,)), Choice(heads=(-1,)), Choice(words=()),
                                    Choice(reduce="median")])
def test_what_is_not_there_is_refused(choice):
    with pytest.raises(LarError):
        aggregate(made(np.ones((3, 2, 4, 9))), choice)


def test_smoothing_keeps_the_sum_and_spreads_the_peak():
    saliency = np.zeros(64)
    saliency[0] = 1.0  # in the corner, where a blur could lose it
    blurred = smooth(saliency, 1.0)
    assert blurred.sum() == pytest.approx(1.0) and 0.1 < blurred.max() < 0.9
    assert smooth(saliency, 0.0) is saliency


def test_a_map_that_is_the_object_reaches_the_best_scores():
    coverage = np.zeros((2, 64))
    coverage[0, :16], coverage[1, 48:] = 1, 1
    values = np.full((1, 1, 4, 64), 1e-6)
    values[..., :16] = 1.0
    view = view_of(aggregate(made(values), Choice()), 0.25, coverage)
    assert view.metrics["aos"] == view.metrics["aos_best"] == 1 and view.metrics["auc"] == 1
    assert view.metrics["target_minus_distractor"] == pytest.approx(1, abs=1e-4)
    assert view.mask[:16].all() and view.mask.sum() == 16


def test_the_mask_ratio_decides_how_many_patches_are_masked():
    values = np.random.default_rng(0).random((1, 1, 4, 64))
    assert [view_of(aggregate(made(values), Choice()), ratio).mask.sum() for ratio in (0.1, 0.5)] == [6, 32]


def test_a_named_aggregation_is_the_policys_own_map_of_that_name(policy_of, batch, images):
    policy = policy_of(aggregation="relative").eval()
    with torch.no_grad():
        expected = policy.encode(batch | {"instructions": [SENTENCE] * 2}).saliency.numpy()
    reader = AttentionReader(policy)
    view = reader.look(images[0], SENTENCE, Choice(aggregation="relative"))
    np.testing.assert_allclose(view.saliency, expected[0], atol=1e-6)
    smoothed = reader.look(images[0], SENTENCE, Choice(aggregation="relative", smoothing=1.0))
    np.testing.assert_allclose(smoothed.saliency, smooth(view.saliency, 1.0))


def test_heads_that_localise_are_offered_once_they_are_chosen(policy, images):
    assert "localisation_heads" not in AttentionReader(policy).aggregations
    chosen = AttentionReader(policy, localisation=[(2, 1)])
    attention = chosen.read(images[0], SENTENCE)
    np.testing.assert_allclose(chosen.aggregated(images[0], SENTENCE, "localisation_heads"),
                               aggregate(attention, Choice(layers=(2,), heads=(1,))), atol=1e-6)


def test_an_aggregation_that_there_is_not_is_refused(policy, images):
    with pytest.raises(LarError, match="did you mean 'relative'"):
        AttentionReader(policy).look(images[0], SENTENCE, Choice(aggregation="relativ"))
    with pytest.raises(ValueError, match="AttentionReader.look"):
        aggregate(made(np.ones((3, 2, 4, 9))), Choice(aggregation="relative"))
