"""Success rates are counted per task, then pooled, and never across two questions."""

import pytest

from lar_core.measure.results import contradictions, success_row, summarise


def episode(instruction: str, task: int, success: bool | None, **more) -> dict:
    return {"policy": "p", "instruction": instruction, "placement": "official", "task": task, "success": success, **more}


def test_summary_counts_per_task_and_pooled():
    rows = [episode("right", task, success) for task, success in ((2, True), (5, True), (2, False))]
    assert [row["task"] for row in summarise(rows)] == [2, 5, None]
    table = {row["task"]: row for row in summarise(rows)}
    assert (table[2]["successes"], table[5]["episodes"], table[None]["rate"]) == (1, 1, 2 / 3)
    assert table[None]["low"] == pytest.approx(0.2077, abs=1e-3)  # Wilson for 2 of 3, from the closed formula


def test_under_the_other_bowls_sentence_the_scenes_own_bowl_is_counted_too():
    rows = [episode("other_bowl", 8, True, did_not_listen=False), episode("other_bowl", 8, False, did_not_listen=True),
            episode("other_bowl", 5, False, did_not_listen=False), episode("other_task", 5, True)]
    pooled = {row["instruction"]: row for row in summarise(rows) if row["task"] is None}
    assert (pooled["other_bowl"]["successes"], pooled["other_bowl"]["did_not_listen"], pooled["other_bowl"]["episodes"]) \
        == (1, 1, 3)
    assert "did_not_listen" not in pooled["other_task"]


def test_one_episode_whose_success_was_not_watched_leaves_the_rate_unknown_not_lower():
    rows = [episode("other_bowl", 8, None, did_not_listen=True), episode("other_bowl", 5, True, did_not_listen=False)]
    table = {row["task"]: row for row in summarise(rows)}
    assert table[8]["rate"] is None and table[None]["successes"] is None and table[None]["did_not_listen"] == 1
    assert table[5]["rate"] == 1


@pytest.mark.parametrize("row, words", [
    (success_row("p", "other_bowl", "official", 8, 20, 12, 9), "12 successes and 9 that did not listen in 20"),
    (success_row("p", "right", "official", 8, 20, None), "all null"),
    (success_row("p", "other_bowl", "official", 8, 20, 3, 9) | {"rate": None}, "all null"),
    (success_row("p", "right", "official", 8, 20, 3) | {"rate": 0.2}, "0.2 is not 3/20")])
def test_counts_that_cannot_be_are_named(row, words):
    assert any(words in sentence for _, sentence in contradictions("here", row))


@pytest.mark.parametrize("row", [success_row("p", "other_bowl", "official", 8, 20, None, 19),
                                 success_row("p", "other_bowl", "official", 8, 20, 3, 17)])
def test_counts_that_can_be_are_accepted(row):
    assert not list(contradictions("here", row))
