"""Rating heatmaps: blind, in balanced random order, resumable, with an honest summary."""

from __future__ import annotations

import numpy as np
import pytest

from lar_core.run.files import append_jsonl, read_jsonl
from lar_core.show.widgets import TIE, HeatmapRating, Pair, preference

NAMES = ("A recipe", "B recipe")


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    return [Pair(f"frame {i}", rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), "move <the> bowl",
                 {name: rng.dirichlet(np.ones(16)) for name in NAMES}) for i in range(8)]


@pytest.fixture
def votes(tmp_path):
    return tmp_path / "ratings.jsonl"


def test_the_question_never_names_the_recipes(pairs, votes):
    rating = HeatmapRating(pairs, votes)
    assert not any(name in rating.question.value for name in NAMES) and "&lt;the&gt;" in rating.question.value
    assert [button.description for button in rating.buttons] == ["left", TIE, "right"]


def test_either_map_is_on_the_left_equally_often_in_another_order(pairs, votes):
    ratings = [HeatmapRating(pairs, votes, seed=seed) for seed in range(3)]
    lefts = [[order[0] for _, order in rating.todo] for rating in ratings]
    assert all(left.count(NAMES[0]) == 4 for left in lefts) and lefts[0] != lefts[1]
    assert [pair.name for pair, _ in ratings[0].todo] != [pair.name for pair in pairs]


def test_a_vote_is_stored_for_the_recipe_that_was_on_that_side(pairs, votes):
    rating = HeatmapRating(pairs, votes)
    (pair, order), before = rating.todo[0], rating.picture.value
    rating.buttons[2].click()
    row, = read_jsonl(votes)
    assert row == {"pair": pair.name, "left": order[0], "right": order[1], "preferred": order[1]}
    assert rating.picture.value != before


def test_a_session_that_was_left_goes_on_where_it_was(pairs, votes):
    HeatmapRating(pairs, votes).vote(0)
    again = HeatmapRating(pairs, votes)
    assert len(again.todo) == 7 and read_jsonl(votes)[0]["pair"] not in [pair.name for pair, _ in again.todo]
    assert again.question.value.startswith("2 of 8")


def test_the_still_picture_is_the_first_question_whatever_was_voted(pairs, votes):
    rating = HeatmapRating(pairs, votes)
    still = rating.still()
    rating.vote(0)
    assert still.shape == (312, 2 * 288 + 10, 3) and (HeatmapRating(pairs, votes).still() == still).all()


def test_after_the_last_vote_the_buttons_rest_and_the_answer_stands_there(pairs, votes):
    rating = HeatmapRating(pairs, votes)
    for _ in range(9):
        rating.vote(None)
    assert len(read_jsonl(votes)) == 8 and all(button.disabled for button in rating.buttons)
    assert rating.question.value == "There is no vote for either map yet."


def test_a_preference_is_detected_only_where_the_sign_test_says_so(votes):
    def cast(name, times):
        for _ in range(times):
            append_jsonl(votes, {"pair": "x", "left": "", "right": "", "preferred": name})
    cast(NAMES[0], 5), cast(NAMES[1], 1), cast(TIE, 2)
    sentence = preference(votes, NAMES)
    assert sentence.startswith("A preference was not detected") and "5 of 6" in sentence and "2 without" in sentence
    cast(NAMES[0], 9)  # 14 of 15: two-sided sign test p = 32 / 2**15
    sentence = preference(votes, NAMES)
    assert sentence.startswith("A preference was detected") and "p = 0.00098" in sentence
