"""Findings: the words follow from the numbers, and claim no more than these."""

from __future__ import annotations

import re
import shlex

import pytest
from scipy.stats import binomtest
from test_results import change, full, interval, minimal, other_bowl, rollout, scene, went

from lar_core.cli import config_of
from lar_core.options import build_parser
from lar_core.run.config import make_config
from lar_core.show import findings
from lar_core.show.findings import DESCRIBED, DETECTED, NOT_DETECTED, NOT_RUN, OPPOSITE
from lar_core.show.report import summary_table


def episodes(policy: str, instruction: str, successes: str, placement: str = "official") -> list[dict]:
    """Rows of rollouts.jsonl from a string such as "110" (1 = success)."""
    return [{"policy": policy, "instruction": instruction, "placement": placement, "task": 5, "episode": i,
             "init_seed": 100 + i, "success": outcome == "1", "steps": 90, "seconds": 2.0, "video": None,
             "sentence": "pick up the black bowl"} for i, outcome in enumerate(successes)]


def finding(results: dict, words: str, rollouts=()) -> findings.Finding:
    """The one finding whose topic contains `words`."""
    found = [finding for finding in findings.findings(results, rollouts) if words in finding.topic]
    assert len(found) == 1
    return found[0]


def test_rates_are_given_with_the_wilson_interval_of_scipy():
    low, high = binomtest(14, 20).proportion_ci(method="wilson")
    assert findings.rate(14, 20) == f"14 of 20 rollouts (70 %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def test_equal_success_of_the_blind_control_is_not_detected_and_says_what_it_could_miss():
    found = finding(full(), "seeing")
    assert found.verdict == NOT_DETECTED
    assert "14/20 against 13/20" in found.sentence and "95 % interval" in found.sentence
    assert "can miss" in found.sentence and "no effect" not in found.sentence.lower()


@pytest.mark.parametrize("own, blind, verdict", [(19, 2, DETECTED), (2, 19, OPPOSITE), (12, 9, NOT_DETECTED)])
def test_success_against_blind_without_shared_episodes(own, blind, verdict):
    results = minimal() | {"rollouts": [rollout("attention_mask", "right", own), rollout("blind", "right", blind)]}
    assert finding(results, "seeing").verdict == verdict
    assert "unpaired" in finding(results, "seeing").sentence


@pytest.mark.parametrize("named, other, verdict", [(15, 3, DETECTED), (3, 15, OPPOSITE), (9, 8, NOT_DETECTED)])
def test_where_either_bowl_is_named_touching_the_named_one_first_is_following_the_sentence(named, other, verdict):
    results = minimal() | {"rollouts": [went("attention_mask", named, other)]}
    found = finding(results, "touched first")
    assert found.verdict == verdict and "a deaf policy can follow the sentence in one half at most" in found.sentence
    assert f"names in {named} of 20 rollouts" in found.sentence and f"the other one in {other}," in found.sentence
    assert f"first touched the named bowl in {named}/20" in findings.headline(results, [])[0]


@pytest.mark.parametrize("condition, row", [
    ("attention_mask", went("attention_mask", 20, 0, "near")),  # always the bowl of the training: it need not listen
    ("attention_mask", rollout("attention_mask", "right", 14, placement="near_counterfactual")),  # an earlier version's
    ("deaf", went("deaf", 10, 10))])
def test_following_the_sentence_is_claimed_only_where_it_can_be_told(condition, row):
    found = findings.findings(minimal(condition) | {"rollouts": [row]})
    assert not [one for one in found if "touched first" in one.topic]


def test_a_deaf_policy_is_compared_with_a_deaf_blind_one_and_not_asked_whether_it_listens():
    rows = [rollout("deaf", "right", 19), rollout("blind_deaf", "right", 2), rollout("blind", "right", 19)]
    results = minimal("deaf") | {"rollouts": rows}
    assert finding(results, "seeing").verdict == DETECTED and "19/20 against 2/20" in finding(results, "seeing").sentence
    found = findings.findings(results)
    assert not [one for one in found if "instruction" in one.topic]
    assert "the control that cannot see solved 2 of 20" in findings.headline(results, found)[0]
    alone = findings.findings(minimal("blind_deaf") | {"rollouts": rows[1:2]})
    assert not [one for one in alone if "seeing" in one.topic or "images" in one.topic]


def test_paired_rollouts_detect_what_unpaired_ones_miss():
    own, blind = "1" * 14 + "0" * 6, "0" * 7 + "1" * 7 + "0" * 6  # seven init states lost, none won
    results = minimal() | {"rollouts": [rollout("attention_mask", "right", 14), rollout("blind", "right", 7)]}
    rows = episodes("attention_mask", "right", own) + episodes("blind", "right", blind)
    found = finding(results, "seeing", rows)
    assert found.verdict == DETECTED and "exact McNemar p = 0.016" in found.sentence
    rows[-1]["init_seed"] = 999  # no longer the same init states
    assert "unpaired" in finding(results, "seeing", rows).sentence


def test_success_without_a_blind_control_claims_nothing_about_seeing():
    found = finding(minimal() | {"rollouts": [rollout("attention_mask", "right", 20)]}, "seeing")
    assert found.verdict == NOT_RUN and "says nothing about seeing" in found.sentence


def test_a_blank_instruction_that_lowers_success_is_not_called_understanding():
    found = finding(full(), "a blank instruction")
    assert found.verdict == DETECTED and "understands it is not shown" in found.sentence
    assert finding(full(), "a task that is not its own").verdict == NOT_DETECTED


@pytest.mark.parametrize("other, ignored, verdict", [(15, 2, DETECTED), (2, 15, OPPOSITE), (6, 5, NOT_DETECTED)])
def test_the_other_bowls_sentence_is_judged_by_which_bowl_is_brought(other, ignored, verdict):
    results = minimal(tasks=(5, 3), placement="near") | {"rollouts": [other_bowl("attention_mask", other, ignored)]}
    found = finding(results, "the other bowl's instruction")
    assert found.verdict == verdict
    assert f"in {other} and the scene's own in {ignored} of 20 rollouts" in found.sentence
    assert f"p = {binomtest(other, other + ignored).pvalue:.2g}" in found.sentence and "not trained on" not in found.sentence
    new = finding(results | minimal(tasks=(5,), placement="near"), "the other bowl's instruction").sentence
    assert "not trained on the sentence told in task 5" in new


def test_an_older_result_that_did_not_watch_the_other_bowl_claims_no_more_than_it_saw():
    old = minimal(tasks=(8,)) | {"rollouts": [other_bowl("attention_mask", None, 19, task=8)]}
    assert finding(old, "the other bowl's instruction").verdict == OPPOSITE
    assert "at most 1" in finding(old, "the other bowl's instruction").sentence
    unknown = minimal(tasks=(8,)) | {"rollouts": [other_bowl("attention_mask", None, 1, task=8)]}
    assert finding(unknown, "the other bowl's instruction").verdict == NOT_DETECTED  # 19 need not have brought the other


def test_a_changed_sentence_is_compared_on_the_tasks_that_it_was_told_in():
    rows = [rollout("attention_mask", "right", 20, task=2), rollout("attention_mask", "right", 0, task=8),
            rollout("attention_mask", "right", 20, 40, task=None), rollout("attention_mask", "other_task", 0, task=2)]
    found = finding(minimal(tasks=(2, 8)) | {"rollouts": rows}, "another of its tasks")
    assert found.verdict == DETECTED and "20/20 against 0/20" in found.sentence


def test_every_placement_gets_its_own_answer():
    results = full()
    results["rollouts"] += [rollout("attention_mask", "right", 15, placement="wide"),
                            rollout("blind", "right", 1, placement="wide")]
    assert finding(results, "seeing raises success (official placements)").verdict == NOT_DETECTED
    assert finding(results, "seeing raises success (wide placements)").verdict == DETECTED


def test_what_was_not_run_on_other_placements_is_asked_for_there():
    results = full()
    results["rollouts"] += [rollout("attention_mask", "right", 15, placement="wide")]
    gaps = [found.sentence for found in findings.findings(results) if "(wide placements)" in found.topic
            and found.verdict == NOT_RUN]
    assert len(gaps) > 1 and all(" --on wide" in gap for gap in gaps)
    arguments = build_parser().parse_args(shlex.split(findings.command(results, "rollout", "wide"))[1:])
    assert arguments.on == "wide" and "--on" not in findings.command(results, "rollout", "near_counterfactual")


def test_tasks_are_pooled_once():
    rows = [rollout("blind", "right", 3, task=2), rollout("blind", "right", 5, task=5)]
    assert findings.pooled({"rollouts": rows}, "blind", "right", "official") == (8, 40)
    rows.append(rollout("blind", "right", 8, 40, task=None))
    assert findings.pooled({"rollouts": rows}, "blind", "right", "official") == (8, 40)
    assert findings.pooled({"rollouts": rows}, "blind", "blank", "official") is None


@pytest.mark.parametrize("model, verdict", [(0.30, DETECTED), (0.12, NOT_DETECTED), (0.205, NOT_DETECTED),
                                            (0.02, OPPOSITE)])
def test_overlap_is_detected_only_above_every_map_that_does_not_look(model, verdict):
    found = finding(change(full(), "grounding/aos/model", interval(model)), "overlaps")
    assert found.verdict == verdict and "200 held-out frames of 5 episodes" in found.sentence


def test_a_preference_that_the_training_prior_also_has_is_not_detected():
    results = change(full(), "grounding/target_minus_distractor/model", interval(0.05))
    assert finding(results, "prefers").verdict == NOT_DETECTED
    results = change(full(), "grounding/target_minus_distractor/model", interval(0.2))
    assert finding(results, "prefers").verdict == DETECTED


def test_without_an_interval_nothing_is_detected():
    results = change(full(), "grounding/aos/model", {"mean": 0.9, "low": None, "high": None})
    assert finding(results, "overlaps").verdict == NOT_DETECTED
    assert "no interval" in finding(results, "overlaps").sentence
    assert finding(full() | {"grounding": full()["grounding"] | {"aos": None}}, "overlaps").verdict == NOT_RUN


@pytest.mark.parametrize("increase, verdict", [(0.4, DETECTED), (0.005, NOT_DETECTED), (-0.3, OPPOSITE)])
def test_actions_need_the_images_where_another_frames_cost_something(increase, verdict):
    results = change(full(), "shortcut/whole/shuffled/increase", interval(increase))
    found = finding(results, "another frame's images")
    assert found.verdict == verdict and "200 held-out frames of 5 episodes" in found.sentence
    assert "own policy" not in found.sentence
    with_policy = change(results, "shortcut/head", results["shortcut"]["whole"])
    assert "only the head's own policy" in finding(with_policy, "another frame's images").sentence
    assert not [found for found in findings.findings(minimal("blind")) if "images make" in found.topic]


@pytest.mark.parametrize("l1, verdict", [(0.06, DETECTED), (0.2, NOT_DETECTED), (0.4, OPPOSITE)])
def test_action_error_against_the_mean_action(l1, verdict):
    assert finding(change(full(), "action/l1", interval(l1)), "mean action").verdict == verdict


def test_reconstruction_is_described_not_tested():
    found = finding(full(), "reconstruction")
    assert found.verdict == DESCRIBED and "without an interval" in found.sentence and "leakage" in found.sentence
    hidden = change(full(), "run/config/condition/mask_input", True)
    assert "leakage" not in finding(hidden, "reconstruction").sentence
    assert not [f for f in findings.findings(minimal("action_only")) if "reconstruction" in f.topic]


def test_headline_counts_what_was_detected_and_what_was_not():
    sentences = findings.headline(full(), findings.findings(full()))
    assert sentences[0].startswith("attention_mask solved 14 of 20 rollouts (70 %")
    assert "the control that cannot see solved 13 of 20" in sentences[0]
    assert any(sentence.startswith("Detected: a blank instruction lowers success") for sentence in sentences)
    assert any(sentence.startswith("Not detected: seeing raises success") for sentence in sentences)


def test_caveats_follow_the_run():
    assert any("Stand-in assets" in sentence for sentence in findings.caveats(full()))
    assert any("passed blind" in sentence for sentence in findings.caveats(full()))
    assert not any("drawn alike" in sentence or "reference picture" in sentence for sentence in findings.caveats(full()))
    mixed = change(full(), "provenance/scenes", [scene(), scene(check="other") | {"versions": {"mujoco": "3.5.0"}}])
    assert any("MuJoCo 3.5.0" in sentence for sentence in findings.caveats(mixed))
    assert any("reference picture did not come out" in sentence for sentence in findings.caveats(mixed))
    other = change(minimal(placement="counterfactual", tasks=(5, 3)) | {"provenance": full()["provenance"]},
                   "provenance/assets/name", "official")
    text = " ".join(findings.caveats(other))
    assert "Stand-in" not in text and "passed blind" not in text and "One task" not in text and "seed" in text


def test_nothing_run_is_answered_by_commands():
    found = findings.findings(minimal("random_mask"))
    assert {f.verdict for f in found} == {NOT_RUN}
    assert "lar rollout --condition random_mask --profile tiny --seed 0" in found[0].sentence


def test_no_sentence_claims_a_speed_up():
    text = " ".join(f.sentence for f in findings.findings(full())) + summary_table(full())
    assert not re.search(r"faster|speed", text)


def test_command_line_makes_the_same_configuration_again():
    changes = dict(samples=1000, tasks=(5, 3), learning_rate=1e-5, mask_input=True, placement="wide")
    command = shlex.split(findings.command(minimal(**changes)))
    assert command[0] == "lar"
    assert config_of(build_parser().parse_args(command[1:])) == make_config(**changes)


def test_on_pairs_the_other_bowls_sentence_is_no_further_evidence():
    results = minimal() | {"rollouts": [other_bowl("attention_mask", 15, 0) | {"placement": "near_counterfactual"}]}
    assert any("twin scenes once more" in sentence for sentence in findings.caveats(results))
    assert not any("twin scenes" in sentence for sentence in findings.caveats(full()))
