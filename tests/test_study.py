"""A study's YAML: what it asks for, and one sentence for every mistake."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lar_core.measure.results import save_results, success_row
from lar_core.measure.statistics import mcnemar, wilson
from lar_core.measure.study import (
    LESS,
    MORE,
    NOT_DETECTED,
    STUDY,
    Contrast,
    Study,
    compare_arms,
    comparison,
)
from lar_core.run.config import CONDITIONS
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl
from lar_core.run.folder import Run, blind_twin
from lar_core.show.findings import caveats
from lar_core.show.rates import modality_table
from lar_core.show.report import study_table, write_study_page

STUDIES = Path(__file__).parents[1] / "studies"


def load(tmp_path, text: str) -> Study:
    (tmp_path / "mine.yaml").write_text(text)
    return Study.load(tmp_path / "mine.yaml")


def test_every_condition_runs_with_every_seed_and_one_blind_control_each(tmp_path):
    study = load(tmp_path, "conditions: [action_only, gaze_mask]\nseeds: [3, 4]\nset: {samples: 80, execute: 4}\ntasks: [2]")
    assert study.name == "mine" and study.reference == "action_only" and study.arms == ("action_only", "gaze_mask", "blind")
    configs = study.configs()
    assert list(configs)[:2] == [("blind", 3), ("blind", 4)] and len(configs) == 6
    assert configs["blind", 3] == blind_twin(configs["gaze_mask", 3]) == blind_twin(configs["action_only", 3])
    profile = configs["gaze_mask", 4].profile
    assert (profile.samples, profile.execute, profile.tasks) == (80, 4, (2,)) and configs["gaze_mask", 4].seed == 4


@pytest.mark.parametrize("conditions", ["[action_only, attention_mask_closed]", "[attention_mask_closed, action_only]"])
def test_an_arm_that_cannot_use_a_cache_shares_the_blind_control_of_those_that_do(tmp_path, conditions):
    configs = load(tmp_path, f"conditions: {conditions}\nprofile: small").configs()
    assert not configs["attention_mask_closed", 0].profile.cache and configs["blind", 0].profile.cache
    blind = Run.open(configs["blind", 0], tmp_path / configs["blind", 0].name)
    for arm in ("action_only", "attention_mask_closed"):
        assert Run.open(configs[arm, 0], tmp_path / arm).control == blind.path
    other = Run.open(configs["action_only", 0].replace(samples=64), tmp_path / "other")
    assert other.control == other.path / "control"


def test_a_deaf_condition_brings_its_own_blind_control(tmp_path):
    study = load(tmp_path, "conditions: [action_only, deaf, blind]")
    assert study.arms == ("action_only", "deaf", "blind", "blind_deaf")
    configs = study.configs()
    assert configs["blind_deaf", 0] == blind_twin(configs["deaf", 0]) and configs["blind", 0].condition.deaf is False
    assert load(tmp_path, "conditions: [deaf, blind_deaf]").arms == ("deaf", "blind_deaf")


def test_demonstrations_stand_at_the_first_placement(tmp_path):
    study = load(tmp_path, "conditions: [action_only]\nplacement: [wide, official]")
    assert study.placement == ("wide", "official") and study.configs()["blind", 0].profile.placement == "wide"


@pytest.mark.parametrize("text, words", [
    ("seeds: [0]", "names no conditions"),
    ("conditions: [atention_mask]", "did you mean 'attention_mask'"),
    ("conditions: [blind]", "at least one condition besides it"),
    ("conditions: [blind_deaf]", "at least one condition besides it"),
    ("conditions: attention_mask", "must be a list"),
    ("conditions: 5", "conditions is 5, but must be a list"),
    ("conditions: []", "must name something"),
    ("conditions: [gaze_mask, gaze_mask]", "nothing twice"),
    ("condition: [gaze_mask]", "did you mean 'conditions'"),
    ("conditions: [gaze_mask]\nreference: action_only", "Unknown reference 'action_only'"),
    ("conditions: [gaze_mask]\ninstructions: [blank]", "add right"),
    ("conditions: [gaze_mask]\ninstructions: [rihgt]", "did you mean 'right'"),
    ("conditions: [gaze_mask]\nseeds: 3", "seeds is 3, but must be a list"),
    ("conditions: [gaze_mask]\nseeds: [0, true]", "seeds[1] is True, but must be a valid integer"),
    ("conditions: [gaze_mask]\nprofile: tiney", "did you mean 'tiny'"),
    ("conditions: [gaze_mask]\nprofile: [tiny]", "profile is ['tiny']"),
    ("conditions: [gaze_mask]\nplacement: [offical]", "did you mean 'official'"),
    ("conditions: [gaze_mask]\nplacement: wide", "placement is 'wide', but must be a list"),
    ("conditions: [gaze_mask]\ntasks: [12]", "Unknown task '12'"),
    ("conditions: [gaze_mask]\nset: {sample: 3}", "did you mean 'samples'"),
    ("conditions: [gaze_mask]\nset: {seed: 3}", "seed stands under set"),
    ("conditions: [gaze_mask]\nset: [samples]", "set is ['samples'], but must be a valid dictionary"),
    ("conditions: [gaze_mask]\nset: {samples: many}", "must be a valid integer"),
    ("conditions: [gaze_mask]\nset: {lambda_recon: -1}", "lambda_recon is -1"),
    ("conditions: [gaze_mask]\nname: a/b", "name is 'a/b', but must match"),
    ("conditions: [gaze_mask", "is not YAML"),
    ("gaze_mask", "is not a study"),
])
def test_a_mistake_is_one_sentence(tmp_path, text, words):
    with pytest.raises(LarError) as caught:
        load(tmp_path, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(LarError, match="There is no nowhere.yaml"):
        Study.load("nowhere.yaml")


def test_the_example_studies_are_studies():
    assert Study.load(STUDIES / "micro.yaml").conditions == tuple(CONDITIONS)
    small = Study.load(STUDIES / "small.yaml")
    assert len(small.seeds) >= 3 and small.profile == "small" and small.placement == ("wide",)


def test_runs_share_the_blind_control_that_lies_beside_them(tmp_path):
    configs = load(tmp_path, "conditions: [action_only, gaze_mask]\nprofile: micro").configs()
    blind, action, gaze = (Run.open(config, tmp_path / config.name) for config in configs.values())
    assert action.control == gaze.control == blind.path and blind.control == blind.path / "control"


def test_a_blind_control_of_other_settings_is_not_shared(tmp_path):
    one, other = (load(tmp_path, f"conditions: [gaze_mask]\nset: {{samples: {n}}}").configs() for n in (64, 128))
    Run.open(one["blind", 0], tmp_path / one["blind", 0].name)
    run = Run.open(other["gaze_mask", 0], tmp_path / other["gaze_mask", 0].name)
    assert run.control == run.path / "control"


# What a study says about two arms, against hand-computed numbers and against scipy used directly.


def pairs(both: int, only_a: int, only_b: int, neither: int, seeds: int = 1) -> Contrast:
    """The same table of outcomes in every seed."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return Contrast.of(np.array([a] * seeds), np.array([b] * seeds))


def test_the_pairs_of_all_seeds_go_into_one_exact_test():
    found = pairs(10, 9, 2, 9, seeds=2)
    assert found.p == pytest.approx(2 * stats.binom.cdf(4, 22, 0.5))  # of 22 pairs that differ, 4 go the other way
    assert found.difference.value == pytest.approx(14 / 60)
    with pytest.raises(ValueError, match="equal shapes"):
        Contrast.of(np.ones((1, 2)), np.ones((2, 1)))


def test_more_tests_and_fewer_pairs_miss_more():
    found = pairs(10, 5, 5, 10)
    assert found.detectable(10) > found.detectable(1)
    assert found.detectable(1) > pairs(100, 50, 50, 100).detectable(1)


@pytest.mark.parametrize("table, verdict", [((5, 30, 2, 5), MORE), ((5, 2, 30, 5), LESS), ((5, 10, 9, 5), NOT_DETECTED)])
def test_a_verdict_needs_the_corrected_test(table, verdict):
    found = pairs(*table, seeds=3)
    assert found.verdict(found.p) == verdict
    assert found.verdict(0.05) == NOT_DETECTED


def test_a_verdict_needs_the_seeds_to_agree():
    a, b = np.ones((2, 40), dtype=bool), np.zeros((2, 40), dtype=bool)
    b[1] = True  # everything in one seed, nothing in the other, which could as well have been drawn twice
    found = Contrast.of(a, b)
    assert found.p < 1e-6 and found.difference.low == 0 and found.verdict(found.p) == NOT_DETECTED
    row = comparison(("a", "b"), "wide", found, found.p, 1)
    assert "not alike in every seed" in row["sentence"]


def test_a_null_result_names_n_interval_and_what_could_be_missed():
    row = comparison(("attention_mask", "random_mask"), "wide", pairs(5, 2, 1, 2, seeds=2), 0.9, 3)
    assert row["pairs"] == 20 and (row["only_condition"], row["only_reference"]) == (4, 2)
    for words in ("was not detected on wide placements: 14/20 against 12/20, +10 points, 95 % interval over 2 seeds",
                  "after Holm's correction for 3 tests", "can miss differences of up to about"):
        assert words in row["sentence"]
    single = comparison(("a", "b"), "wide", pairs(0, 1, 0, 0), 1.0, 1)
    assert single["difference"]["low"] is None and "no interval" in single["sentence"]


# study.json and study.html from run folders that were made up, so that every number is known beforehand.


SOLVED = {"action_only": 4, "attention_mask": 17, "blind": 3}  # of 20 rollouts, the first ones
AOS = {"action_only": [0.1, 0.2], "attention_mask": [0.3, 0.5]}
STEP_MS = {"action_only": 10.0, "attention_mask": 15.0, "blind": 9.0}


def row(condition: str, episode: int, solved: int) -> dict:
    return {"policy": condition, "instruction": "right", "placement": "wide", "task": 5, "episode": episode,
            "init_seed": 100 + episode, "success": episode < solved}


def results(run: Run, place: int) -> dict:
    config, interval = run.config, {"mean": 0.1, "low": None, "high": None}
    aos = AOS.get(config.condition.name)
    scores = {name: interval for name in ("model", "uniform", "centre", "mean_map")}
    grounding = {"frames": 4, "episodes": 1, "target_minus_distractor": scores, "auc": scores, "pointing": scores,
                 "aos": scores | {"model": interval | {"mean": aos[place]}}} if aos else None
    def cost(condition: str) -> dict:
        return {"parameters": 1000, "flops": 1e6, "step_ms": STEP_MS[condition], "peak_bytes": None}
    return {"schema_version": 1,
            "run": {"name": config.name, "condition": config.condition.name, "profile": "micro", "seed": config.seed,
                    "fingerprint": config.fingerprint, "config": {"condition": {}, "profile": {}, "seed": config.seed}},
            "provenance": {"commit": "abc", "python": "3", "machine": "m", "device": "d", "assets": {"name": "standin"}},
            "training_cost": {"device": "d", "batch_size": 8, "n": 8, "own": cost(config.condition.name),
                              "action_only": cost("action_only")}, "grounding": grounding}


@pytest.fixture
def made(tmp_path):
    """(study, runs, folder): three conditions with two seeds each; both seeds solve the same rollouts."""
    study = Study(name="mine", conditions=("action_only", "attention_mask"), seeds=(0, 1), profile="micro",
                  placement=("wide",))
    runs = {arm: Run.open(config, tmp_path / config.name) for arm, config in study.configs().items()}
    for (condition, seed), run in runs.items():
        save_results(run.results, results(run, seed))
        for episode in range(20):
            append_jsonl(run.path / "rollouts.jsonl", row(condition, episode, SOLVED[condition]))
    return study, runs, tmp_path


def test_success_is_counted_over_seeds(made):
    document = compare_arms(*made)
    arm = next(arm for arm in document["arms"] if arm["condition"] == "attention_mask")
    pooled = next(row for row in arm["success"] if row["task"] is None)
    assert (pooled["successes"], pooled["episodes"]) == (34, 40) and pooled["low"] == wilson(34, 40).low
    assert arm["runs"] == ["attention_mask-micro-s0", "attention_mask-micro-s1"]


def test_every_arm_is_compared_with_the_reference_pair_by_pair(made):
    attention, blind = compare_arms(*made)["comparisons"]
    assert (attention["condition"], blind["condition"]) == ("attention_mask", "blind")
    assert (attention["pairs"], attention["only_condition"], attention["only_reference"]) == (40, 26, 0)
    assert attention["p"] == mcnemar([True] * 26 + [False] * 14, [False] * 40)
    assert attention["p_holm"] == pytest.approx(2 * attention["p"])  # the smaller one of two
    assert attention["verdict"] == "more successful" and blind["verdict"] == "not detected"


def test_scores_are_means_over_seeds_beside_the_same_seeds_of_the_reference(made):
    arms = {arm["condition"]: arm for arm in compare_arms(*made)["arms"]}
    assert arms["attention_mask"]["aos"]["mean"] == pytest.approx(0.4)
    gain = arms["attention_mask"]["aos"]["over_reference"]
    assert gain["mean"] == pytest.approx(0.25) and (gain["low"], gain["high"]) == pytest.approx((0.2, 0.3))
    assert arms["blind"]["aos"] is None and arms["action_only"]["action_l1"] is None
    assert arms["attention_mask"]["costs"]["train_step_ms"] == {"mean": 15.0, "ratio": 1.5}
    assert arms["attention_mask"]["costs"]["peak_bytes"] is None


def test_following_the_sentence_is_compared_in_the_same_pairs(made):
    assert compare_arms(*made)["comparisons"][0]["followed"] is None, "rollouts of earlier versions did not record it"
    for (condition, _), run in made[1].items():
        for episode in range(20):  # a later row on an episode is the one that counts
            happened = {"first_touched": "named" if episode < SOLVED[condition] + 2 else "else", "on_plate": "none",
                        "progress": "placed" if episode < SOLVED[condition] else "touched"}
            append_jsonl(run.path / "rollouts.jsonl", row(condition, episode, SOLVED[condition]) | happened)
    document = compare_arms(*made)
    followed = document["comparisons"][0]["followed"]  # the first 19 of 20 against the first 6, in both seeds
    assert (followed["condition"], followed["reference"]) == (38, 12)
    assert followed["difference"]["mean"] == pytest.approx(13 / 20) and followed["difference"]["low"] > 0
    assert document["arms"][0]["success"][0]["happened"]["first_touched"]["named"] == 12
    page = " ".join(write_study_page(made[2]).read_text().split())
    assert "described, not tested" in page and "<td>38/40</td>" in page and "one half at most" in page


def test_rollouts_from_other_init_states_are_not_compared(made):
    append_jsonl(made[1]["attention_mask", 1].path / "rollouts.jsonl", row("attention_mask", 20, 0))
    with pytest.raises(LarError, match="not rolled out on the same wide init states"):
        compare_arms(*made)


def test_pairs_are_proved_by_what_the_episodes_began_with(made):
    assert not any(row["proved"] for row in compare_arms(*made)["comparisons"])
    for (condition, seed), run in made[1].items():
        (run.path / "rollouts.jsonl").unlink()
        for episode in range(20):
            made_row = row(condition, episode, SOLVED[condition]) | {"begun": f"{episode:012x}"}
            append_jsonl(run.path / "rollouts.jsonl", made_row)
    document = compare_arms(*made)
    assert all(row["proved"] for row in document["comparisons"])
    assert not any("known by number only" in sentence for sentence in caveats(document))
    append_jsonl(made[1]["blind", 0].path / "rollouts.jsonl", row("blind", 7, 0) | {"begun": "f" * 12})
    with pytest.raises(LarError, match="began episode 7 of task 5 .wide placements. in different states"):
        compare_arms(*made)


def test_runs_on_other_assets_are_not_compared(made):
    run = made[1]["blind", 0]
    other = results(run, 0)
    other["provenance"]["assets"] = {"name": "official"}
    save_results(run.results, other)
    with pytest.raises(LarError, match="different assets"):
        compare_arms(*made)


@pytest.mark.parametrize("damage, words", [
    (lambda document: document.pop("arms"), "the top level is wrong: 'arms' is missing"),
    (lambda document: document["comparisons"][0].update(p=1.5), "comparisons[0].p is wrong"),
    (lambda document: document["comparisons"][0]["difference"].update(mean=float("nan")), "must be a finite number"),
    (lambda document: document["arms"][0]["success"][0].update(successes=99), "99 successes in 40 episodes"),
    (lambda document: document["arms"][0]["success"][0].update(task=11), "success[0].task is wrong"),  # results' schema
])
def test_the_schema_refuses_what_is_wrong(made, damage, words):
    document = copy.deepcopy(compare_arms(*made))
    damage(document)
    with pytest.raises(LarError, match=re.escape(words)):
        STUDY.validate(document)


def test_the_page_says_in_words_what_was_and_was_not_detected(made):
    document = compare_arms(*made)
    page = write_study_page(made[2]).read_text()
    for words in ("attention_mask is more successful than action_only on wide placements: 34/40 against 8/40",
                  "A difference between blind and action_only was not detected on wide placements",
                  "2 training seeds: a difference", "15 (× 1.50)", "attention_mask-micro-s1/report.html"):
        assert words in page.replace("\xa0", " "), words
    assert "data:image/png;base64" in page and not re.search(r'(src|href)=["\']?https?:', page)
    assert "34/40" in study_table(document) and document["comparisons"][1]["sentence"] in study_table(document)


def test_image_times_sentence_is_a_table_where_all_four_policies_are_there():
    def arm(name, successes):
        return {"condition": name, "success": [success_row(name, "right", "wide", None, 20, successes)]}
    arms = [arm("action_only", 15), arm("deaf", 8), arm("blind", 2), arm("blind_deaf", 1)]
    assert modality_table(arms, "action_only", ["wide", "official"]) == [
        ("wide", "the pictures", "15/20 (53 to 89 %)", "8/20 (22 to 61 %)"),
        ("wide", "grey", "2/20 (3 to 30 %)", "1/20 (1 to 24 %)"),
        ("official", "the pictures", "not rolled out", "not rolled out"),
        ("official", "grey", "not rolled out", "not rolled out")]
    assert modality_table(arms[:3], "action_only", ["wide"]) == []


def test_three_seeds_of_one_commit_need_fewer_warnings(made):
    document = compare_arms(*made)
    several = json.loads(json.dumps(document))
    several["study"]["seeds"] = [0, 1, 2]
    assert len(list(caveats(several))) == len(list(caveats(document))) - 1
    several["provenance"]["commit"] = "abc, def+"
    assert any("one committed state" in sentence for sentence in caveats(several))


def test_a_missing_study_is_named(tmp_path):
    with pytest.raises(LarError, match="`lar study` makes it"):
        write_study_page(tmp_path)
