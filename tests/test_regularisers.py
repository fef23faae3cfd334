"""Each regulariser moves saliency the way it should within a few steps; off, it costs and changes nothing.

Words are hidden where they should be, with the right shares, and guessed through the backbone's own head.
"""

import math
import shutil
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SENTENCES
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from test_train import demos, new_run, without_times  # noqa: F401  (fixtures among them)

from lar_core.estimate import Size
from lar_core.model import regularisers
from lar_core.model.backbone import Backbone
from lar_core.model.dynamics import inverse_dynamics
from lar_core.model.masking import make_mask, mask_top, pixel_mask
from lar_core.model.paligemma import load_backbone
from lar_core.model.policy import load_policy
from lar_core.model.regularisers import (
    CONTENT,
    HALF,
    MOST,
    Given,
    beside_objects,
    divergence,
    draw,
    hide,
    hide_words,
    likeness,
    read_words,
    word_logits,
    word_loss,
)
from lar_core.model.train import train
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import read_jsonl
from lar_core.run.folder import Run
from lar_core.run.registry import REGULARISERS
from lar_core.run.runtime import Draws
from lar_core.scene.env import instruction

UNCHANGED = {"sparsity": 0.0, "consistency": 0.0, "contrastive": 0.0, "relational": 0.0, "language": 0.0}


@pytest.fixture
def trained_on(policy_of, batch):
    """A factory: the policy after some steps on one regulariser alone, and the policy before."""
    def make(name, steps=12, spread=3.0, **changes):
        policies = [policy_of("action_only", **{name: 1.0, **changes}) for _ in range(2)]
        for policy in policies:
            _sharpen(policy, spread)
        policy = policies[1].train()
        optimiser = torch.optim.Adam(policy.backbone.parameters(), lr=3e-3)
        for step in range(steps):
            optimiser.zero_grad()
            policy(batch, Draws(step))[name].backward()
            optimiser.step()
        return [policy.eval() for policy in policies]
    return make


@torch.no_grad()
def _sharpen(policy, spread):
    """Untrained maps are nearly flat, and all the same: larger keys make them differ from sentence to sentence."""
    for layer in policy.backbone.vlm.model.language_model.layers:
        layer.self_attn.k_proj.weight *= spread
        layer.self_attn.q_proj.weight *= spread


def given(**facts):
    """Of what a regulariser may look at, only these."""
    return Given(**{field.name: None for field in fields(Given)} | facts)


@torch.no_grad()
def saliency(policy, batch, sentences=None, hidden=None):
    images = policy.see(batch["images"])
    if hidden is not None:
        images = images.masked_fill(hidden, 0.0)
    return policy.backbone.encode(images, sentences or batch["instructions"]).saliency


def test_sparsity_lowers_the_maps_entropy(trained_on, batch):
    before, after = [entropy(saliency(policy, batch), axis=1) for policy in trained_on("sparsity", spread=1.0)]
    assert (after < before - 0.1).all()


def test_consistency_brings_the_maps_of_two_masks_together(trained_on, batch):
    noise = [torch.rand(2, 16, generator=torch.Generator().manual_seed(100 + number)) for number in range(8)]
    masks = [mask_top(scores, 4) for scores in noise]

    def apart(policy):
        maps = [saliency(policy, batch, hidden=pixel_mask(mask, 64)) for mask in masks]
        return sum(jensenshannon(one, other, axis=1).mean() for one, other in zip(maps[::2], maps[1::2]))
    before, after = map(apart, trained_on("consistency"))
    assert after < 0.9 * before


def test_contrastive_takes_the_map_away_from_the_other_bowls_sentence(trained_on, batch):
    def alike(policy):
        own, other = saliency(policy, batch), saliency(policy, batch, [batch["others"][0], batch["instructions"][1]])
        return float(likeness(own, other)[0])
    before, after = map(alike, trained_on("contrastive", steps=25))
    assert after < before - 0.02


def test_relational_takes_the_map_away_from_the_sentence_without_relation(trained_on, batch):
    @torch.no_grad()
    def alike(policy):
        backbone = policy.backbone
        whole = backbone.tokenise(batch["instructions"])
        cut, _ = hide(backbone, whole, [beside_objects(words) for words in read_words(backbone, whole)])
        states = backbone.lower(policy.see(batch["images"]), cut)
        return float(likeness(saliency(policy, batch), backbone.upper(states, cut).saliency)[0])
    before, after = map(alike, trained_on("relational", steps=25))
    assert after < before - 0.02


def test_language_learns_to_guess_hidden_words(trained_on, batch):
    before, after = trained_on("language", steps=25)
    nats = [sum(float(policy(batch, Draws(seed))["language"].detach()) for seed in range(5)) / 5
            for policy in (before, after)]
    assert nats[1] < nats[0] - 1


def test_guided_attention_moves_the_map_onto_the_object(trained_on, batch):
    on_it = [saliency(policy, batch)[:, 6] for policy in trained_on("guided_attention", spread=1.0)]  # patch (1, 2)
    assert (on_it[1] > 2 * on_it[0]).all()


def test_guided_attention_is_cross_entropy_to_the_objects_share_of_each_patch():
    regions = torch.zeros(2, 2, 8, 8, dtype=torch.uint8)
    regions[0, 0, 3:5, :4] = 1  # four pixels each of the two left patches, of 2 x 2; out of view in the second frame
    maps = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2)
    loss = regularisers.guided_attention(given(batch={"regions": regions}, saliency=maps))
    assert float(loss) == pytest.approx(-(0.5 * math.log(0.1) + 0.5 * math.log(0.3)) / 2)


def test_guided_attention_without_segmentation_is_refused(policy_of, batch):
    del batch["regions"]
    with pytest.raises(LarError, match="segmentation of the named object.*guided_attention=0"):
        policy_of("guided_attention")(batch, Draws(0))


def test_contrastive_action_is_info_nce_of_the_chunks_mean_log_probability(policy_of, batch):
    """By hand, from the logits of two passes; the last three steps of the second frame, which has a pair, are padding."""
    policy, other = policy_of("contrastive_action"), batch["others"][0]
    batch["others"] = [None, other]
    logits = [policy.head(policy.encode(batch | {"instructions": [SENTENCES[0], sentence]}))[1, :5].detach()
              for sentence in (SENTENCES[1], other)]
    bins = (np.digitize(batch["actions"][1, :5], np.linspace(-1, 1, 257)) - 1)[..., None]
    scores = [np.take_along_axis(part.log_softmax(-1).numpy(), bins, -1).mean() / 0.1 for part in logits]
    by_hand = np.log(np.exp(scores).sum()) - scores[0]
    assert float(policy(batch)["contrastive_action"].detach()) == pytest.approx(by_hand / 2, rel=1e-4)  # of two frames


def test_language_posterior_cannot_be_won_by_acting_worse_without_words(batch):
    own, blank = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1.5, 1.9], requires_grad=True)
    told = []
    loss = regularisers.language_posterior(given(
        batch=batch, surprise=lambda sentences=None: own if sentences is None else told.append(sentences) or blank))
    loss.backward()
    odds = [math.exp((1.5 - 1.0) / 0.1), math.exp((1.9 - 2.0) / 0.1)]  # of the sentence against none
    by_hand = [0.1 * -math.log(odd / (1 + odd)) + surprise for odd, surprise in zip(odds, (1.5, 1.9))]
    assert told == [[".", "."]] and float(loss.detach()) == pytest.approx(sum(by_hand) / 2)
    assert own.grad.tolist() == pytest.approx([1 / (1 + odd) / 2 for odd in odds])  # least where the words tell already
    assert blank.grad.tolist() == [0.5, 0.5]  # only to act better


def test_inverse_dynamics_is_the_error_of_the_action_between_frames_that_differ(batch):
    batch["following"] = torch.stack([batch["previous"][0], batch["images"][1]])  # the second is an episode's last
    said, seen = torch.full((2, 7), 0.25), []
    loss = inverse_dynamics(given(batch=batch, backbone=SimpleNamespace(tokenise=seen.append),
                                  see_again=lambda prefixes, frame, saliency: [SimpleNamespace(patches=frame)],
                                  readers={"inverse_dynamics": lambda *frames: seen.append(frames) or said}))
    assert float(loss) == pytest.approx(float((0.25 - batch["actions"][0, 0]).abs().mean() / 2))
    assert seen == [[".", "."], ("images", "following")]


def test_inverse_dynamics_teaches_the_vision_tower_and_hears_and_feels_nothing(policy_of, batch):
    policy = policy_of("inverse_dynamics").train()
    loss = policy(batch)["inverse_dynamics"]
    changed = {"instructions": ["stop", "go on"], "proprio": batch["proprio"] + 1, "wrist": 255 - batch["wrist"]}
    assert torch.equal(loss, policy(batch | changed)["inverse_dynamics"])
    loss.backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in policy.backbone.vlm.model.vision_tower.parameters())
    del batch["following"]
    with pytest.raises(LarError, match="the frame after each image.*inverse_dynamics=0"):
        policy(batch)


def test_divergence_and_overlap_are_those_of_scipy_and_of_a_hand():
    one, other = torch.tensor([[0.5, 0.5, 0.0, 0.0]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    assert float(divergence(one, other)) == pytest.approx(jensenshannon(one[0], other[0], base=2) ** 2, abs=1e-6)
    assert float(divergence(one, one)) == pytest.approx(0, abs=1e-6)
    assert float(likeness(one, one.flip(1))) == pytest.approx(0, abs=1e-5)
    assert float(likeness(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]))) == pytest.approx(HALF, abs=1e-5)


def test_sparsity_is_entropy_as_a_share_of_the_largest():
    flat, peak = torch.full((1, 16), 1 / 16), torch.eye(16)[:1]
    values = [float(regularisers.sparsity(given(saliency=saliency)))
              for saliency in (flat, peak)]
    assert values == pytest.approx([1, 0], abs=1e-5)


def test_a_frame_without_relation_or_other_sentence_counts_nothing(policy_of, batch):
    batch["instructions"], batch["others"] = ["move the bowl"] * 2, [None, None]
    losses = policy_of("action_only", contrastive=1.0, relational=1.0, contrastive_action=1.0)(batch, Draws(0))
    assert losses["contrastive"] == losses["relational"] == losses["contrastive_action"] == 0


@pytest.mark.parametrize("name", ["contrastive", "contrastive_action"])
def test_contrasts_without_the_other_sentences_are_refused(policy_of, batch, name):
    del batch["others"]
    with pytest.raises(LarError, match=f"names the other bowl.*{name}=0"):
        policy_of("action_only", **{name: 1.0})(batch, Draws(0))


@pytest.mark.parametrize("condition, name", [("contrastive_attention", "contrastive"),
                                             ("contrastive_action", "contrastive_action")])
def test_training_is_refused_where_no_sentence_names_any_other_bowl(new_run, demos, condition, name):  # noqa: F811
    with pytest.raises(LarError, match=f"No sentence names the other bowl.*{name}=0"):
        train(new_run("run", condition), [demos])


@pytest.mark.parametrize("name", REGULARISERS)
def test_planned_passes_are_those_that_are_made(policy_of, batch, name, monkeypatch):
    upper, calls = Backbone.upper, []
    monkeypatch.setattr(Backbone, "upper", lambda *words, **options: calls.append(1) or upper(*words, **options))
    policy = policy_of("action_only", **{name: 1.0})
    policy(batch, Draws(0))
    assert len(calls) == Size(make_config("action_only", "micro", **{name: 1.0})).looks


@pytest.mark.parametrize("condition", ["action_only", "random_mask", "attention_mask"])
def test_weights_of_zero_leave_the_losses_and_draws_as_they_are(policy_of, batch, condition):
    draws = Draws(5), Draws(5)
    with_zeros, plain = policy_of(condition, **UNCHANGED)(batch, draws[0]), policy_of(condition)(batch, draws[1])
    assert list(plain) == ["loss", "action", "recon"] == list(with_zeros)
    assert all(torch.equal(with_zeros[name], plain[name]) for name in plain)
    assert torch.equal(draws[0].uniform(3), draws[1].uniform(3))


def test_off_no_saliency_is_differentiable_and_action_only_reads_none(policy_of, batch):
    plain = policy_of("attention_mask").encode(batch)
    on = policy_of("attention_mask").encode(batch, differentiable=True)
    assert not plain.saliency.requires_grad and on.saliency.requires_grad
    assert torch.equal(plain.saliency, on.saliency)
    def refuse(*_):
        raise AssertionError("action_only read the attention")
    policy = policy_of("action_only")
    policy.backbone.aggregation.forward = refuse
    policy(batch, Draws(0))


@pytest.mark.parametrize("name", REGULARISERS)
def test_the_masked_patches_are_the_same_with_and_without(policy_of, batch, name, monkeypatch):
    """A comparison of two conditions must not hang on their draws."""
    seen = []
    def make(*words, **options):
        seen.append(make_mask(*words, **options))
        return seen[-1]
    monkeypatch.setattr("lar_core.model.policy.make_mask", make)
    policy_of("random_mask")(batch, Draws(2)), policy_of("random_mask", **{name: 1.0})(batch, Draws(2))
    assert torch.equal(*seen)


@pytest.mark.parametrize("name", REGULARISERS)
def test_gradients_are_the_same_under_gradient_checkpointing(policy_of, batch, name):
    gradients = []
    for checkpointing in (False, True):
        policy = policy_of("action_only", checkpointing=checkpointing, **{name: 1.0}).train()
        _sharpen(policy, 3.0)
        policy(batch, Draws(0))[name].backward()
        gradients.append({key: p.grad for key, p in policy.backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    assert all(torch.allclose(grad, gradients[1][key], atol=1e-6) for key, grad in gradients[0].items())
    assert any(grad.abs().sum() > 0 for grad in gradients[0].values())


def test_sparsity_trains_from_the_feature_cache(new_run, demos, tmp_path):  # noqa: F811
    settings = {"tune": "lora_top", "top_layers": 1, "saliency_layers": 1, "samples": 40}
    values = []
    for cache in (True, False):
        run = new_run(f"cache-{cache}", "sparse_attention", cache=cache, **settings)
        train(run, [demos], tmp_path / "data")
        values.append([row["sparsity"] for row in read_jsonl(run.metrics)])
    assert values[0] == values[1] and values[0]


def test_all_at_once_each_part_is_logged_apart_and_a_stopped_training_goes_on(new_run, demos):  # noqa: F811
    parts = [name for name in REGULARISERS if REGULARISERS.about(name).needs != "others"]  # of no task that has a pair
    settings = {name: 0.1 for name in parts} | {"condition": "random_mask", "samples": 100, "batch_size": 2}
    whole = new_run("whole", **settings)
    train(whole, [demos])
    shutil.copytree(whole.path, whole.path.with_name("stopped"))
    stopped = Run.load(whole.path.with_name("stopped"))
    shutil.rmtree(stopped.final_checkpoint)
    train(stopped, [demos])
    assert without_times(stopped) == without_times(whole)
    rows = read_jsonl(whole.metrics)
    added = sum(0.1 * rows[-1][name] for name in parts)
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["action"] + 0.5 * rows[-1]["recon"] + added, rel=1e-4)
    last = [row for row in rows if "grad_action" in row][-1]
    assert all(f"grad_{name}" in last for name in (*parts, "recon"))
    load_policy(whole)


@pytest.mark.parametrize("arguments, message", [
    ({"sparsity": -1.0}, "sparsity is -1.0, but must be a number and must not be negative"),
    ({"condition": "blind", "sparsity": 1.0}, "blind policy looks at nothing that sparsity"),
    ({"consistency": 1.0, "language": 1.0, "tune": "lora_top", "cache": True},
     "consistency, language shows.*cache=false"),
    ({"language_posterior": 1.0, "inverse_dynamics": 1.0, "tune": "lora_top", "cache": True},
     "language_posterior, inverse_dynamics shows.*cache=false"),
    ({"contrastive": 1.0, "aggregation": "relative"}, "contrastive compares maps.*choose another aggregation"),
])
def test_what_makes_no_sense_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(LarError, match=message):
        make_config(**arguments)


def test_a_profiles_cache_is_off_for_conditions_that_cannot_use_it():
    assert not make_config("language_mask", "t4").profile.cache
    assert make_config("sparse_attention", "t4").profile.cache and make_config("attention_mask", "t4").profile.cache


# --- words -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def backbone(backbone_folder):
    return load_backbone(backbone_folder)


def words_at(sentence, places):
    return [word for word, group in sentence if set(group) & set(places)]


def hidden_words(backbone, sentence, seed):
    prefix = backbone.tokenise([sentence])
    _, hidden = hide_words(backbone, prefix, Draws(seed))
    return words_at(read_words(backbone, prefix)[0], hidden[0].nonzero().flatten().tolist())


def test_between_a_tenth_and_three_tenths_of_the_words_are_hidden(backbone):
    counts = {len(hidden_words(backbone, SENTENCES[0], seed)) for seed in range(60)}
    assert counts == {1, 2, 3, 4}  # of 14 words; every share between 0.1 and 0.3 comes up
    assert all(len(hidden_words(backbone, "bowl", seed)) == 1 for seed in range(3))


def test_objects_colours_and_relations_are_hidden_more_often(backbone):
    chosen = [word for seed in range(200) for word in hidden_words(backbone, SENTENCES[0], seed)]
    share = sum(word in CONTENT for word in chosen) / len(chosen)
    words = [word for word, _ in read_words(backbone, backbone.tokenise(SENTENCES[:1]))[0]]
    assert share > sum(word in CONTENT for word in words) / len(words) + 0.15  # what no preference would give


def test_whole_words_are_hidden_and_nothing_but_words(backbone):
    prefix = backbone.tokenise(["lift the turquoise amphora", "move the bowl"])  # words of many tokens; padding
    cut, hidden = hide_words(backbone, prefix, Draws(1))
    for row, sentence in enumerate(read_words(backbone, prefix)):
        groups = [set(group) for _, group in sentence]
        places = set(hidden[row].nonzero().flatten().tolist())
        assert places and all(group <= places or not group & places for group in groups)
    text, changed = prefix.ids[:, backbone.patches:], cut.ids[:, backbone.patches:]
    assert torch.equal(changed != text, hidden) and not (hidden & ~prefix.instruction).any()
    assert (changed[hidden] == backbone.processor.tokenizer.unk_token_id).all()
    assert torch.equal(cut.ids[:, : backbone.patches], prefix.ids[:, : backbone.patches])
    assert torch.equal(cut.instruction, prefix.instruction & ~hidden)


def test_a_sample_hides_the_same_words_whatever_else_is_in_its_batch(backbone):
    """Padding and the number of processes must not change what is drawn."""
    both = hide_words(backbone, backbone.tokenise(SENTENCES), Draws(3))[1]
    shares = [hide_words(backbone, backbone.tokenise([sentence]), Draws(3, rank, 2))[1]
              for rank, sentence in enumerate(SENTENCES)]
    for row, share in enumerate(shares):
        assert torch.equal(both[row, : share.shape[1]], share[0])


def test_a_long_sentence_is_no_error():
    sentence = [(f"w{number}", [number]) for number in range(100)]
    places = draw(sentence, torch.full((1 + MOST,), 0.99))
    assert len(places) == round(0.298 * MOST) and max(places) < MOST


@pytest.mark.parametrize("task, relation", [(0, ["between"]), (1, ["next", "to"]), (2, ["from", "center"]), (3, ["on"]),
                                            (4, ["in"]), (7, ["on"])])
def test_relation_words_behind_an_object_are_found_in_the_benchmarks_sentences(backbone, task, relation):
    sentence = read_words(backbone, backbone.tokenise([instruction(task)]))[0]
    assert words_at(sentence, beside_objects(sentence)) == relation


def test_the_loss_is_cross_entropy_through_the_whole_head_at_the_hidden_places(backbone):
    whole = backbone.tokenise(SENTENCES)
    cut, hidden = hide_words(backbone, whole, Draws(0))
    text = backbone.upper(backbone.lower(torch.zeros(2, 3, 64, 64), cut), cut).text
    logits = backbone.vlm.lm_head(text)  # of all places, which the loss never computes
    targets = whole.ids[:, backbone.patches:]
    rows = [F.cross_entropy(logits[row][hidden[row]], targets[row][hidden[row]]) for row in range(2)]
    assert torch.allclose(word_loss(backbone, text, whole, hidden), torch.stack(rows).mean(), atol=1e-5)
    assert word_logits(backbone, text, hidden).shape == (int(hidden.sum()), logits.shape[-1])


def test_a_hidden_word_cannot_be_read_off_its_own_token(backbone):
    one, other = (backbone.tokenise([f"pick up the black {noun} now"]) for noun in ("bowl", "plate"))
    place = [group for word, group in read_words(backbone, one)[0] if word == "bowl"]
    assert torch.equal(hide(backbone, one, place)[0].ids, hide(backbone, other, place)[0].ids)


def test_two_pictures_and_a_word_that_only_they_tell_can_be_learned(backbone_folder):
    """The text must look at the image: the sentences are the same but for the hidden word."""
    torch.manual_seed(0)
    backbone = load_backbone(backbone_folder).train()
    images = torch.stack([torch.full((3, 64, 64), -1.0), torch.full((3, 64, 64), 1.0)])
    whole = backbone.tokenise(["on the plate", "on the stove"])
    place = next(group for word, group in read_words(backbone, whole)[0] if word == "plate")
    cut, hidden = hide(backbone, whole, [place, place])
    optimiser = torch.optim.Adam(backbone.parameters(), lr=3e-3)
    for _ in range(120):
        loss = word_loss(backbone, backbone.upper(backbone.lower(images, cut), cut, saliency=False).text, whole, hidden)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
