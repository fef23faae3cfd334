"""The heatmap explorer: moving a control changes what is shown. No browser: widgets are plain objects in Python."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lar_core.data.demos import Episode
from lar_core.measure.attention import Attention, AttentionReader, Choice, compare, regions_of, shared
from lar_core.show.widgets import BY_HAND, HeatmapExplorer, metrics_table, presets

SENTENCE = "pick up the black bowl on the ramekin and place it on the plate"
T = 4


def episode(seed: int = 0, **changes) -> Episode:
    """Noise in which the named object is the upper left corner."""
    rng = np.random.default_rng(seed)
    segmentation = np.zeros((T, 64, 64), np.uint8)
    segmentation[:, :20, :20], segmentation[:, 40:, 40:] = 2, 1
    segmentation[-1] = 0  # out of view at the end
    fields = dict(instruction=SENTENCE, actions=np.ones((T, 7)), ee_pos=np.zeros((T, 3)), ee_ori=np.zeros((T, 3)),
                  agentview_rgb=rng.integers(0, 255, (T, 64, 64, 3), dtype=np.uint8), states=np.zeros((T, 92)),
                  gripper_states=np.zeros((T, 2)), joint_states=np.zeros((T, 7)), segmentation=segmentation,
                  objects=("akita_black_bowl_2", "akita_black_bowl_1"), target="akita_black_bowl_1",
                  distractor="akita_black_bowl_2", provenance={"task": 5})
    return Episode(**(fields | changes))


@pytest.fixture
def explorer(policy_of):
    return HeatmapExplorer(policy_of().eval(), [episode(0), episode(1)])


def shown(explorer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)))


@pytest.mark.parametrize("control, value", [
    ("frame", 2), ("demonstration", 1), ("preset", "blank"), ("preset", "the other bowl"),
    ("sentence", "move the bowl"), ("layers", (0,)), ("heads", (1,)), ("words", (3,)), ("reduce", "max"),
    ("aggregation", "relative"),
    ("smoothing", 1.0), ("ratio", 0.5)])
def test_every_control_changes_the_picture(explorer, control, value):
    before = shown(explorer)
    getattr(explorer, control).value = value
    after = shown(explorer)
    assert before.shape == after.shape and (before != after).any()


def test_metrics_follow_the_picture(explorer):
    before = explorer.table.value
    explorer.ratio.value = 0.5
    assert explorer.table.value != before and "AOS" in before
    explorer.frame.value = T - 1
    assert "not seen" in explorer.table.value


def test_a_preset_writes_its_sentence_and_the_words_to_choose_from(explorer):
    explorer.preset.value = "the other bowl"
    assert explorer.sentence.value == "pick up the black bowl on the cookie box and place it on the plate"
    assert [name for name, _ in explorer.words.options[-2:]] == ["the (14)", "plate (15)"]
    explorer.sentence.value = "a sentence of one's own"
    assert explorer.preset.value is None
    explorer.demonstration.value = 1
    assert explorer.preset.value == "right" and explorer.sentence.value == SENTENCE


def test_an_empty_sentence_is_answered_by_one_sentence(explorer):
    before = explorer.picture.value
    explorer.sentence.value = "  "
    assert "instruction is empty" in explorer.table.value and explorer.picture.value == before


def test_nothing_selected_means_the_policys_own_choice(explorer):
    before = shown(explorer)
    explorer.layers.value = (0,)
    explorer.layers.value = ()
    assert (shown(explorer) == before).all()


def test_a_named_aggregation_takes_over_the_controls_that_it_replaces(explorer):
    explorer.aggregation.value = "relative"
    assert all(control.disabled for control in (explorer.words, explorer.layers, explorer.heads, explorer.reduce))
    assert not explorer.smoothing.disabled and not explorer.ratio.disabled
    explorer.aggregation.value = BY_HAND
    assert not explorer.words.disabled


def test_chosen_heads_make_one_more_aggregation(policy_of):
    policy, episodes = policy_of().eval(), [episode()]
    assert "localisation_heads" not in HeatmapExplorer(policy, episodes).aggregation.options
    explorer = HeatmapExplorer(policy, episodes, [(0, 1)])
    before = shown(explorer)
    explorer.aggregation.value = "localisation_heads"
    assert (shown(explorer) != before).any()


def test_the_still_picture_shows_every_preset_at_every_moment(explorer):
    one, two = explorer.still(moments=1), explorer.still(moments=2)
    assert two.shape[0] == 2 * one.shape[0] and two.shape[1] == one.shape[1] > 3 * 288


def test_presets_name_the_other_bowl_from_either_side():
    other = "akita_black_bowl_2"
    assert presets(episode())["the other bowl"].startswith("pick up the black bowl on the cookie box")
    assert presets(episode(target=other))["the other bowl"] == SENTENCE
    assert "the other bowl" not in presets(episode(provenance={"task": 0}))


def test_regions_are_the_named_object_first():
    regions = regions_of(episode(), 0)
    assert regions[0, 0, 0] and not regions[1, 0, 0] and regions[1, -1, -1]
    assert regions_of(episode(segmentation=None), 0) is None


def test_without_segmentation_nothing_is_scored(policy_of):
    explorer = HeatmapExplorer(policy_of().eval(), [episode(segmentation=None)])
    assert "no segmentation" in explorer.table.value and explorer.picture.value
    assert metrics_table({}) == explorer.table.value


def test_choices_are_compared_on_the_same_frames_with_intervals_over_episodes(policy_of):
    reader = AttentionReader(policy_of().eval())
    choices = {"all": Choice(), "first layer": Choice(layers=(0,))}
    scores = compare(reader, [episode(0), episode(1)], choices, frames=3)
    assert set(scores) == set(choices) and scores["all"]["aos"].n == 2
    assert scores["all"]["aos_uniform"] == scores["first layer"]["aos_uniform"]
    assert scores["all"]["aos"] != scores["first layer"]["aos"] or scores["all"]["auc"] != scores["first layer"]["auc"]


def test_a_patch_is_shared_only_as_far_as_every_token_looks_at_it():
    values = np.full((2, 1, 3, 4), 0.1)  # layers, heads, tokens, patches
    values[1, :, :, 0] = 0.7  # of the tapped layer: 2.8 times the mean of every token, ...
    values[1, :, 2, 0] = 0.1  # ... but not of the last one
    made = Attention(values, ("<bos>", "bowl", "\n"), np.array([False, True, False]), tapped=(1,))
    np.testing.assert_allclose(shared(made), [1.0, 0.4, 0.4, 0.4])
