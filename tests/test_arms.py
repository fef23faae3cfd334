"""study.json and study.html from run folders that were made up, so that every number is known beforehand."""

from __future__ import annotations

import copy
import json
import re

import pytest

from lar_core.measure.results import save_results
from lar_core.measure.statistics import mcnemar, wilson
from lar_core.measure.study import STUDY, Study, compare_arms
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl
from lar_core.run.folder import Run
from lar_core.show.study_page import caveats, study_table, write_study_page

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


def test_rollouts_from_other_init_states_are_not_compared(made):
    append_jsonl(made[1]["attention_mask", 1].path / "rollouts.jsonl", row("attention_mask", 20, 0))
    with pytest.raises(LarError, match="not rolled out on the same wide init states"):
        compare_arms(*made)


def test_runs_on_other_assets_are_not_compared(made):
    run = made[1]["blind", 0]
    other = results(run, 0)
    other["provenance"]["assets"] = {"name": "official"}
    save_results(run.results, other)
    with pytest.raises(LarError, match="different assets"):
        compare_arms(*made)


@pytest.mark.parametrize("damage, words", [
    (lambda document: document.pop("arms"), "'arms' is a required property"),
    (lambda document: document["comparisons"][0].update(p=1.5), "comparisons[0].p is wrong"),
    (lambda document: document["comparisons"][0]["difference"].update(mean=float("nan")), "not a finite number"),
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
