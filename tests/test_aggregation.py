"""Each aggregation does the one thing that its name says, and `mean` stays the literal method to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from test_demos import make_episode

from lar_core.data.demos import merge_episodes, write_episode
from lar_core.measure.maps import available, saliency_maps
from lar_core.model.aggregation import (
    GENERIC,
    content_words,
    divide,
    elbow,
    localising_heads,
    sinks,
    smooth,
    spatial_entropy,
    weigh,
    words,
)
from lar_core.model.policy import load_policy
from lar_core.model.saliency import mean_attention
from lar_core.model.train import train
from lar_core.run import config
from lar_core.run.errors import LarError
from lar_core.run.folder import Run
from lar_core.run.registry import AGGREGATIONS, PASSES

P = 16


class Tokens:
    """What an aggregation needs to know of a `Prefix`: BOS, two words, newline, behind P image tokens."""

    instruction = torch.tensor([[False, True, True, False]])
    mask = torch.ones(1, P + 4, dtype=torch.long)
    ids = torch.arange(P + 4)[None]
    reference = None


@pytest.fixture
def attention():
    return torch.rand(1, 3, 2, 4, P, generator=torch.Generator().manual_seed(0))


def made(name, tokenizer=None):
    return AGGREGATIONS[name](layers=3, heads=2, tokenizer=tokenizer)


def test_mean_is_the_literal_method_and_has_no_weights(attention):
    assert torch.equal(made("mean")(attention, Tokens), mean_attention(attention, Tokens.instruction))
    assert not made("mean").state_dict()


@pytest.mark.parametrize("name", sorted(set(AGGREGATIONS) - {"content_words"}))
def test_every_map_sums_to_one_and_is_never_negative(attention, name):
    saliency = made(name)(attention, Tokens)
    assert saliency.shape == (1, P) and (saliency >= 0).all()
    assert saliency.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(set(AGGREGATIONS) - {"content_words"}))
def test_a_loss_on_any_map_reaches_the_attention(attention, name):
    attention.requires_grad_()
    made(name)(attention, Tokens)[0, 3].backward()
    assert attention.grad.abs().sum() > 0


def test_words_are_put_together_from_their_pieces(policy_of):
    backbone = policy_of().backbone
    sentence = "the zebra-striped bowl"  # not among the words that the tiny tokeniser knows whole
    prefix = backbone.tokenise([sentence])
    own = prefix.instruction[0].nonzero().flatten().tolist()
    found = words(prefix.ids[0, backbone.patches:].tolist(), own, backbone.processor.tokenizer)
    assert [word for word, _ in found] == sentence.split()
    assert [place for _, group in found for place in group] == own and len(found[1][1]) > 1


def test_content_words_leave_stop_words_out_and_keep_a_sentence_of_nothing_else(policy_of):
    backbone = policy_of().backbone
    prefix = backbone.tokenise(["pick up the black bowl on the ramekin", "it is."])
    text = prefix.ids[:, backbone.patches:]
    kept = content_words(text, prefix.instruction, backbone.processor.tokenizer)
    tokens = [backbone.processor.tokenizer.decode([token]).strip() for token in text[0][kept[0]]]
    assert " ".join(tokens) == "pick black bowl ramekin"
    assert torch.equal(kept[1], prefix.instruction[1])


def test_content_words_ask_only_the_words_with_content(attention, policy_of):
    class Tokeniser:
        def convert_ids_to_tokens(self, number):
            return {17: "Ġthe", 18: "Ġbowl"}[number]

        def decode(self, ids):
            return self.convert_ids_to_tokens(ids[0])[1:]
    saliency = made("content_words", Tokeniser())(attention, Tokens)
    wanted = attention[:, :, :, 2].mean(dim=(1, 2))
    torch.testing.assert_close(saliency, wanted / wanted.sum())


def test_a_patch_that_every_token_looks_at_is_a_sink_and_one_that_a_word_looks_at_is_not():
    attention = torch.full((1, 1, 1, 4, P), 0.01)
    attention[..., 3] = 1.0  # every token, BOS and newline too
    attention[0, 0, 0, 1, 7] = 1.0  # the first word only
    assert sinks(attention, torch.ones(1, 4, dtype=torch.bool)).nonzero().tolist() == [[0, 3]]
    saliency = made("sink_removal")(attention, Tokens)[0]
    assert saliency[3] == 0 and saliency.argmax() == 7


def test_padding_does_not_save_a_sink():
    attention = torch.full((1, 1, 1, 3, P), 0.01)
    attention[..., :2, 3] = 1.0
    assert sinks(attention, torch.tensor([[True, True, False]]))[0, 3]


def test_relative_attention_takes_out_what_any_sentence_looks_at(attention):
    class Asked(Tokens):
        reference = mean_attention(attention, Tokens.instruction)
    saliency = made("relative")(attention, Asked)
    torch.testing.assert_close(saliency, torch.full((1, P), 1 / P))  # the same map for both: nothing of its own
    assert divide(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.8, 0.2]]))[0].tolist() == pytest.approx([0.2, 0.8])


def test_localisation_heads_are_all_heads_until_they_are_chosen(attention):
    heads = made("localisation_heads")
    torch.testing.assert_close(heads(attention, Tokens), mean_attention(attention, Tokens.instruction))
    heads.choose([(2, 1)])
    torch.testing.assert_close(heads(attention, Tokens), mean_attention(attention[:, 2:, 1:], Tokens.instruction))


def test_a_gate_begins_as_the_mean_and_learns_which_head_to_trust(attention):
    gate = made("learned_gate")
    torch.testing.assert_close(gate(attention, Tokens), mean_attention(attention, Tokens.instruction))
    attention[0, 1, 0, 1:3, 5] = 50.0  # one head looks at patch 5
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.1)
    for _ in range(50):
        optimiser.zero_grad()
        (-gate(attention, Tokens)[0, 5].log()).backward()
        optimiser.step()
    assert gate.gate.flatten().argmax() == 2  # layer 1, head 0


def test_equal_weights_are_the_mean(attention):
    torch.testing.assert_close(weigh(attention, Tokens.instruction, torch.full((3, 2), 7.0)),
                               mean_attention(attention, Tokens.instruction))


def test_smoothing_is_scipys(attention):
    saliency = mean_attention(attention, Tokens.instruction)
    wanted = gaussian_filter(saliency.numpy().reshape(4, 4), 1.0, mode="reflect").reshape(1, P)
    np.testing.assert_allclose(smooth(saliency, 1.0), wanted, rtol=1e-5)
    assert torch.equal(smooth(saliency, 0.0), saliency / saliency.sum())


def test_the_elbow_parts_the_heads_that_see_from_those_that_do_not():
    assert elbow(np.array([0.9, 0.85, 0.8, 0.05, 0.04, 0.03, 0.02])) == 0.8
    assert elbow(np.array([0.9, 0.88, 0.86, 0.84, 0.02])) == 0.84
    assert elbow(np.ones(5)) == 1


def test_spatial_entropy_is_zero_for_one_area_and_ln_2_for_two_of_a_size():
    one, two = np.zeros((4, 4)), np.zeros((4, 4))
    one[:2, :2] = 1
    two[0, 0] = two[3, 3] = 1
    assert spatial_entropy(one.ravel()) == 0
    assert spatial_entropy(two.ravel()) == pytest.approx(np.log(2))
    assert spatial_entropy(np.ones(16)) == pytest.approx(np.log(16))


def test_the_heads_that_look_at_one_place_of_the_image_are_chosen(rng):
    attention = rng.random((10, 3, 2, 64)) * 1e-4  # most heads hardly look at the image
    attention[:, 0] = rng.random((10, 2, 64)) / 64  # the first layer's look everywhere
    attention[:, 2, 1] = 1e-4
    attention[:, 2, 1, 9:11] = 0.4  # one looks at one place
    assert localising_heads(attention, 1) == [(2, 1)]


# --- in the policy ---------------------------------------------------------------------------------------------------

TRAINABLE = [name for name in AGGREGATIONS if name != "learned_gate"]


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_same_map_feeds_the_mask_and_comes_with_the_action(policy_of, batch, name):
    policy = policy_of(aggregation=name).eval()
    with torch.no_grad():
        saliency = policy.encode(batch).saliency
    torch.testing.assert_close(policy.act(batch)[1], saliency, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(saliency.sum(dim=1), torch.ones(2))
    assert policy(batch)["loss"].isfinite()


def test_relative_attention_divides_by_the_generic_prompts_own_map(policy_of, batch):
    policy, mean = policy_of(aggregation="relative").eval(), policy_of().eval()
    with torch.no_grad():
        own = mean.encode(batch).saliency
        generic = mean.encode(batch | {"instructions": [GENERIC] * 2}).saliency
        torch.testing.assert_close(policy.encode(batch).saliency, divide(own, generic), atol=1e-6, rtol=1e-4)


def test_a_condition_without_a_mask_pays_for_no_generic_prompt(policy_of, batch, monkeypatch):
    policy = policy_of("action_only", aggregation="relative")
    monkeypatch.setattr(policy.backbone, "encode", None)  # the pass that asks the generic prompt
    assert policy(batch)["loss"].isfinite()


def test_chosen_heads_are_kept_with_the_weights(policy_of, batch, tmp_path):
    policy, other = (policy_of(aggregation="localisation_heads").eval() for _ in range(2))
    policy.backbone.aggregation.choose(policy.choose_heads([batch]))
    assert 1 <= policy.backbone.aggregation.chosen.sum() <= 3
    policy.save(tmp_path / "model.safetensors")
    other.load(tmp_path / "model.safetensors")
    assert torch.equal(other.backbone.aggregation.chosen, policy.backbone.aggregation.chosen)
    assert torch.equal(other.act(batch)[1], policy.act(batch)[1])


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"aggregation": "multi_pass"}, "evaluation only"),
    ({"aggregation": "coarse_to_fine"}, "evaluation only"),
    ({"aggregation": "relativ"}, "did you mean 'relative'"),
    ({"aggregation": "learned_gate"}, "learns from a loss on the saliency"),
    ({"aggregation": "learned_gate", "language": 0.1}, "learns from a loss on the saliency"),
    ({"aggregation": "relative", "consistency": 0.1}, "generic prompt's map each"),
])
def test_aggregations_that_cannot_train_are_refused_in_one_sentence(changes, sentence):
    with pytest.raises(LarError, match=sentence):
        config.make_config("attention_mask", "micro", **changes)


def test_a_gate_learns_in_training_from_a_loss_on_the_saliency_and_is_reported(policy_of, batch):
    policy = policy_of(aggregation="learned_gate", sparsity=0.1)
    policy(batch)["loss"].backward()
    assert policy.backbone.aggregation.gate.grad.abs().sum() > 0
    assert "backbone.aggregation.gate" in policy.kept() and "learned_gate" in available(policy)


def test_relative_attention_and_the_feature_cache_exclude_each_other():
    with pytest.raises(LarError, match="cache=false"):
        config.make_config("attention_mask", "t4", aggregation="relative")


@pytest.mark.parametrize("changes", [{"aggregation": "localisation_heads"},
                                     {"aggregation": "learned_gate", "sparsity": 0.1}])
def test_what_was_chosen_or_learned_is_in_the_checkpoint_and_acts(tmp_path, changes):
    (tmp_path / "task.bddl").write_text("(define)")
    parts = [tmp_path / f"{seed}.hdf5" for seed in range(2)]
    for seed, part in enumerate(parts):
        write_episode(part, make_episode(steps=12, seed=seed, size=64, wrist=32), bddl_file=tmp_path / "task.bddl")
    merge_episodes(parts, tmp_path / "demo.hdf5")
    run = Run.open(config.make_config("attention_mask", "micro", samples=16, **changes), tmp_path / "run")
    train(run, [tmp_path / "demo.hdf5"])
    kept = load_file(run.final_checkpoint / "model.safetensors")
    aggregation = load_policy(run)[0].backbone.aggregation
    for name, tensor in aggregation.state_dict().items():
        assert torch.equal(kept[f"backbone.aggregation.{name}"], tensor)
    if changes["aggregation"] == "localisation_heads":
        assert 1 <= aggregation.chosen.sum() <= 3
    else:
        assert aggregation.gate.abs().sum() > 0


# --- several passes --------------------------------------------------------------------------------------------------

def test_every_available_aggregation_gives_maps_of_the_same_frames(policy_of, batch):
    policy = policy_of().eval()
    maps = saliency_maps(policy, batch["images"], batch["instructions"], available(policy), heads=[(0, 1)])
    assert set(maps) == {*AGGREGATIONS, *PASSES} - {"learned_gate"}
    for saliency in maps.values():
        assert saliency.shape == (2, P) and (saliency >= 0).all()
        torch.testing.assert_close(saliency.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_map_without_the_action_heads_tokens_is_the_policys_own(policy_of, batch, name):
    policy = policy_of(aggregation=name).eval()
    with torch.no_grad():
        wanted = policy.encode(batch).saliency
    found = saliency_maps(policy, batch["images"], batch["instructions"], [name])[name]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_multi_pass_is_the_same_every_time_and_leaves_no_patch_out(policy_of, batch):
    policy = policy_of().eval()
    one, again = (saliency_maps(policy, batch["images"], batch["instructions"], ["multi_pass"]) for _ in range(2))
    assert torch.equal(one["multi_pass"], again["multi_pass"]) and (one["multi_pass"] > 0).all()


def test_coarse_to_fine_spreads_the_densest_windows_share_anew_and_changes_nothing_else(policy_of, batch):
    policy = policy_of().eval()
    maps = saliency_maps(policy, batch["images"], batch["instructions"], ["mean", "coarse_to_fine"])
    coarse, fine = (maps[name].unflatten(1, (4, 4)) for name in ("mean", "coarse_to_fine"))
    for before, after in zip(coarse, fine):
        sums = {(top, left): before[top : top + 2, left : left + 2].sum() for top in range(3) for left in range(3)}
        top, left = max(sums, key=sums.get)
        outside = torch.ones(4, 4, dtype=torch.bool)
        outside[top : top + 2, left : left + 2] = False
        assert torch.equal(before[outside], after[outside]) and not torch.equal(before, after)
        torch.testing.assert_close(after[~outside].sum(), before[~outside].sum())
