"""A planned study: the rule that decides, against hand-computed numbers and simulated studies, and what seals the plan."""

import json
import math

import numpy as np
import pytest
from scipy import stats
from test_study import made  # noqa: F401  (a fixture)

from lar_core.measure.plan import EQUIVALENT, HELPS, HURTS, UNDECIDED, Look, decide, draw, power
from lar_core.measure.statistics import ALPHA, evidence, mcnemar, over_seeds, student_test
from lar_core.measure.study import Study, compare_arms
from lar_core.run.errors import LarError
from lar_core.run.files import write_json
from lar_core.show.report import study_table, write_study_page
from lar_core.studies import _order, still_asked


def outcomes(gains, pairs=100, base=40):
    """(S, N) of two arms; in each seed the first solves so many more of the episodes that the other solves."""
    a, b = np.zeros((len(gains), pairs), bool), np.zeros((len(gains), pairs), bool)
    for seed, gain in enumerate(gains):
        a[seed, :base + max(gain, 0)], b[seed, :base + max(-gain, 0)] = True, True
    return a, b


@pytest.mark.parametrize("a, b, value", [(0, 0, 1), (1, 0, 1), (2, 0, 4 / 3), (1, 1, 2 / 3), (10, 2, 2**12 / 13 / 66)])
def test_evidence_is_the_likelihood_ratio_of_an_evenly_drawn_coin(a, b, value):
    assert evidence(a, b) == pytest.approx(value) == pytest.approx(
        2**(a + b) / ((a + b + 1) * math.comb(a + b, a)))


def test_evidence_is_one_on_average_when_nothing_differs():
    expected = sum(stats.binom.pmf(k, 30, 0.5) * evidence(k, 30 - k) for k in range(31))
    assert expected == pytest.approx(1)


def test_the_interval_over_seeds_is_students():
    values = [0.1, 0.25, 0.05, 0.2]
    found, scipys = over_seeds(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((scipys.low, scipys.high))
    assert over_seeds([0.3]).low is None
    assert (over_seeds([0.3, -0.2], 0.01).low, over_seeds([0.3, -0.2], 0.01).high) == (-1, 1)  # rates differ by no more


@pytest.mark.parametrize("gains, verdict", [
    ((15, 20, 18, 22, 16), HELPS), ((-15, -20, -18, -22, -16), HURTS), ((1, -2, 2, 0, -1), EQUIVALENT),
    ((60, 0, 0, 0, 0), UNDECIDED),  # one seed alone, which the pairs call certain
    ((9, 14, 6, 11, 8), HELPS), ((3, 8, -4, 12, 9), UNDECIDED)])
def test_a_question_is_decided_where_pairs_and_seeds_agree(gains, verdict):
    a, b = outcomes(gains)
    assert decide({("x", "y"): (a, b)}, 5, 0.1)["x", "y"][2] == verdict
    if gains[0] == 60:
        assert mcnemar(a.ravel(), b.ravel()) < 1e-10


def test_early_looks_ask_for_more_and_their_verdict_stands():
    same = outcomes((15, 20, 18, 15, 20))
    early, late = (Look.at(seeds, 5, *same) for seeds in (3, 5))
    assert early.difference.high - early.difference.value == pytest.approx(
        stats.t.ppf(0.995, 2) * np.std([0.15, 0.2, 0.18], ddof=1) / math.sqrt(3))
    assert not early.last and late.last and late.narrow.high < late.difference.high
    certain = outcomes((30, 31, 30, -40, -40))
    look, _, verdict = decide({("x", "y"): certain}, 5, 0.1)["x", "y"]
    assert (look.seeds, verdict) == (3, HELPS)


def test_more_questions_ask_for_more():
    one = {("x", "y"): outcomes((2, 3, 2, 3, 2))}
    several = one | {("x", str(number)): outcomes((0, 1, 0, -1, 0)) for number in range(20)}
    assert decide(one, 5, 0.01)["x", "y"][2] == HELPS
    assert decide(several, 5, 0.01)["x", "y"][1:] == (pytest.approx(21 * 13 / 2**12), UNDECIDED)


def test_the_larger_p_value_counts():
    agreeing = [0.02, 0.03, 0.02, 0.03, 0.02]
    assert student_test(agreeing) == pytest.approx(stats.ttest_1samp(agreeing, 0).pvalue)
    assert student_test([0.0, 0.0]) == student_test([0.4]) == 1 and student_test([0.3, 0.3, 0.3]) == 0
    assert Look.at(5, 5, *outcomes((2, 3, 2, 3, 2))).p == pytest.approx(13 / 2**12)  # 12 of 12 pairs
    gains = np.array((30, 10, 45, 2, 20))
    assert Look.at(5, 5, *outcomes(gains)).p == pytest.approx(stats.ttest_1samp(gains / 100, 0).pvalue)
    assert Look.at(4, 5, *outcomes(gains)).p == pytest.approx(5 * stats.ttest_1samp(gains[:4] / 100, 0).pvalue)


def test_studies_in_which_nothing_differs_are_called_different_in_five_of_a_hundred_at_most():
    nothing = power(studies=5000, seeds=5, pairs=60, rate=0.6, difference=0, seed_sd=0.1)
    assert nothing[HELPS] + nothing[HURTS] <= ALPHA
    rng = np.random.default_rng(0)  # beside it, counting pairs as independent
    naive = np.mean([mcnemar(*(arm.ravel() for arm in draw(rng, 5, 60, 0.6, 0, 0.1, 0.3))) < ALPHA for _ in range(300)])
    assert naive > 3 * ALPHA


def test_studies_that_differ_by_the_margin_are_called_equivalent_in_five_of_a_hundred_at_most():
    assert power(studies=1000, seeds=5, pairs=120, rate=0.6, difference=0.1, seed_sd=0.05)[EQUIVALENT] <= ALPHA
    assert power(studies=200, seeds=5, pairs=120, rate=0.6, difference=0.3, seed_sd=0.05)[HELPS] > 0.95


# The plan and its study

FILE = """conditions: [action_only, attention_mask]
seeds: [0, 1, 2]
profile: micro
placement: [wide]
plan: {document: plan.md, questions: [[attention_mask, action_only]]}
"""


def planned(folder, file=FILE, document="# Plan\nWe ask.\n"):
    (folder / "answer.yaml").write_text(file)
    (folder / "plan.md").write_text(document)
    return Study.load(folder / "answer.yaml")


def test_the_hash_covers_the_plan_and_the_file_and_no_deviations(tmp_path):
    before = planned(tmp_path).plan.sha256
    assert len(before) == 64 and planned(tmp_path, document="# Plan\nWe ask.\n\n## Deviations\nA seed failed.\n"
                                         ).plan.sha256 != planned(tmp_path, document="# Plan\nWe ask less.\n").plan.sha256
    assert planned(tmp_path, document="# Plan\nWe ask.\n\n## Deviations\nNone.\n").plan.sha256 == planned(
        tmp_path, document="# Plan\nWe ask.\n\n## Deviations\nA seed failed.\n").plan.sha256
    assert planned(tmp_path, FILE.replace("[0, 1, 2]", "[0, 1]")).plan.sha256 != before


@pytest.mark.parametrize("file, words", [
    (FILE.replace("plan.md", "none.md"), "there is no .*none.md: write the plan before"),
    (FILE.replace("[[attention_mask", "[[gaze_mask"), "condition of a planned question 'gaze_mask'"),
    (FILE.replace("questions", "question"), "question"), (FILE.replace("document: plan.md, ", ""), "document")])
def test_a_mistake_in_a_plan_is_one_sentence(tmp_path, file, words):
    with pytest.raises(LarError, match=words) as caught:
        planned(tmp_path, file)
    assert "\n" not in str(caught.value)


def test_answers_stand_beside_the_comparisons_and_runs_of_another_plan_are_refused(made, tmp_path):  # noqa: F811
    study, runs, folder = made
    own = planned(tmp_path / "..", FILE.replace("[0, 1, 2]", "[0, 1]"))
    own = own.replace(name="mine")
    with pytest.raises(LarError, match="was not made under the plan that plan.md.*Deviations"):
        compare_arms(own, runs, folder)
    for run in runs.values():
        results = json.loads(run.results.read_text())
        results["provenance"]["plan"] = own.plan.sha256
        write_json(run.results, results)
    document = compare_arms(own, runs, folder)
    answer, = document["answers"]
    assert (answer["verdict"], answer["pairs"], answer["only_condition"], answer["only_beside"]) == (UNDECIDED, 40, 26, 0)
    assert answer["per_seed"] == pytest.approx([0.65, 0.65]) and document["plan"]["sha256"] == own.plan.sha256
    assert answer["sentence"] in study_table(document) and own.plan.sha256[:12] in write_study_page(folder).read_text()


def test_what_is_decided_is_left_alone():
    study = Study(name="s", conditions=("action_only", "attention_mask", "random_mask", "blind"), plan={
        "document": "plan.md", "questions": [["attention_mask", "action_only"], ["random_mask", "action_only"]]})
    assert still_asked(study, None) == {*study.arms}
    def so_far(*verdicts):
        return {"answers": [{"condition": a, "beside": b, "verdict": verdict}
                            for (a, b), verdict in zip(study.questions, verdicts)]}
    assert still_asked(study, so_far(HELPS, UNDECIDED)) == {"action_only", "random_mask", "blind"}
    assert still_asked(study, so_far(EQUIVALENT, HURTS)) == set()


def test_what_the_deciding_questions_need_is_made_first(tmp_path):
    more = FILE.replace("[action_only, attention_mask]\n", "[action_only, gaze_mask, attention_mask, deaf]\n")
    study = planned(tmp_path, more)
    order = [*_order(study)]
    assert [seed for seed, _ in order] == [0, 1, 2, 0, 1, 2]
    assert order[0][1] == {"action_only", "attention_mask", "blind"}
    assert order[3][1] == {"gaze_mask", "deaf", "blind_deaf"}
    assert [*_order(Study(name="s", conditions=("action_only",), seeds=(4,)))] == [(4, {"action_only", "blind"})]
