"""The grammar: what a sentence names is what its spans say, and forms kept for measuring are never in training."""

import numpy as np
import pytest

from lar_core.scene.env import instruction
from lar_core.scene.placements import RELATIONS as OF_TASKS
from lar_core.scene.sentences import RELATIONS, THINGS, Facts, detect, instruct, nameable, question, vocabulary, wording

FREE = len(RELATIONS) - 1
STANDARD = (0, 0, -1, -1, -1)


def test_the_first_wording_is_the_benchmarks():
    for task, (first, _) in enumerate(OF_TASKS):
        said = f"pick up the black bowl {wording(RELATIONS.index(first))} and place it on the plate"
        assert said == instruction(task)


@pytest.mark.parametrize("ask", [instruct, detect, question])
def test_spans_cut_out_the_phrases_that_name_things(ask):
    rng = np.random.default_rng(0)
    facts = Facts((1, 7), (2, 4, -1, 3, 1))
    for _ in range(50):
        said = ask(facts, 0, rng)
        for first, last, thing in said.spans:
            phrase = said.text[first:last]
            assert phrase.startswith("the ") and THINGS[thing].split()[-1] in phrase
            assert thing != 0 or "blue" not in phrase and "stove" not in phrase


def test_without_colours_only_the_relation_tells_them_apart():
    rng = np.random.default_rng(0)
    facts = Facts((3, 5), STANDARD)
    for _ in range(50):
        said = instruct(facts, 1, rng)
        assert "cookie box" in said.text[: said.spans[0][1]]
    assert nameable(facts) == [0, 1]
    assert nameable(Facts((3, FREE), STANDARD)) == [0]
    assert nameable(Facts((3, FREE), (0, 2, -1, -1, -1))) == [0, 1]


def test_questions_have_the_answer_that_is_true():
    rng = np.random.default_rng(1)
    facts = Facts((1, 7), (2, 4, -1, -1, -1))
    answers = {(said.text.split(" is ")[0], said.answer) for said in (question(facts, 1, rng) for _ in range(40))}
    assert answers == {("answer en what color", "blue"), ("answer en where", "on the stove")}
    assert question(Facts((3, FREE), STANDARD), 1, rng).answer == "the black bowl next to the plate and the black bowl"


def test_unheard_forms_are_new_but_their_words_are_not():
    rng = np.random.default_rng(2)
    facts = Facts((1, 7), STANDARD)
    heard = {_frame(instruct(facts, 0, rng)) for _ in range(300)}
    unheard = {_frame(instruct(facts, 0, rng, unheard=True)) for _ in range(50)}
    assert not heard & unheard and len(unheard) == 2
    words = {word for sentence in vocabulary() for word in sentence.split()}
    assert {word for frame in unheard for word in frame.split()} <= words | {"X"}


def _frame(said):
    text = said.text
    for first, last, _ in reversed(said.spans):
        text = text[:first] + "X" + text[last:]
    return text
