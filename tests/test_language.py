"""Words are hidden where they should be, with the right shares, and guessed through the backbone's own head."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SENTENCES

from lar_core.draws import Draws
from lar_core.model.language import CONTENT, MOST, beside_objects, draw, hide, hide_words, read_words, word_logits, word_loss
from lar_core.model.loading import load_backbone
from lar_core.sim.env import instruction


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
