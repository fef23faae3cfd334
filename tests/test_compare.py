"""Several runs beside each other: what is found, what is counted, what is said about differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lar_core.measure.results import Result, bars, differences, find_results, summary
from lar_core.measure.statistics import mcnemar
from lar_core.run.files import append_jsonl

KEPT = Path(__file__).parents[1] / "results"


def row(policy: str, episode: int, success: bool) -> dict:
    return {"policy": policy, "instruction": "right", "placement": "official", "task": 5, "episode": episode,
            "init_seed": episode, "success": success}


def result(name: str, successes: list[bool]) -> Result:
    return Result(name, {"run": {"condition": name, "profile": "tiny"}},
                  tuple(row(name, i, success) for i, success in enumerate(successes)))


def test_kept_files_that_are_of_no_run_are_passed_over_and_damaged_ones_are_named(tmp_path, capsys):
    (tmp_path / "pretraining.json").write_text('{"before": 0, "after": 1}')
    assert find_results(tmp_path / "none", tmp_path) == [] and capsys.readouterr().out == ""
    (tmp_path / "broken.json").write_text("{")
    assert find_results(tmp_path / "none", tmp_path) == [] and "broken (kept) is left out" in capsys.readouterr().out


def test_kept_results_are_found_and_a_run_folder_stands_before_its_kept_copy(tmp_path):
    kept = find_results(tmp_path, KEPT)
    of_runs = [path.stem for path in sorted(KEPT.glob("*.json")) if "run" in json.loads(path.read_text())]
    assert [r.name for r in kept] == [f"{name} (kept)" for name in of_runs]
    folder = tmp_path / "attention_mask-tiny-s0"
    folder.mkdir()
    (folder / "results.json").write_bytes((KEPT / "attention_mask-tiny-s0.json").read_bytes())
    append_jsonl(folder / "rollouts.jsonl", row("attention_mask", 0, True))
    found = find_results(tmp_path, KEPT)
    assert len(found) == len(kept) and found[0].name == "attention_mask-tiny-s0" and len(found[0].rows) == 1


def test_damaged_results_are_left_out_with_a_sentence(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results.json").write_text("{")
    assert find_results(tmp_path) == [] and "run is left out" in capsys.readouterr().out


def test_bars_and_table_show_what_the_file_says():
    one = next(r for r in find_results(Path("none"), KEPT) if r.name.startswith("attention_mask-tiny"))
    told = json.loads((KEPT / "attention_mask-tiny-s0.json").read_text())
    policy = next(r for r in told["rollouts"] if r["task"] is None and r["instruction"] == "right"
                  and r["policy"] == "attention_mask")
    made = bars([one])
    assert [bar[2] for bar in made] == ["model", "control"] and made[0][3] == policy["successes"]
    name, success, *_ = summary([one])[0]
    assert success == f"{policy['successes']}/{policy['episodes']} {policy['placement']}" and name == one.name


def test_every_placement_is_shown_and_what_was_not_measured_is_said():
    def pooled(policy, placement, successes):
        return {"task": None, "policy": policy, "instruction": "right", "placement": placement, "successes": successes,
                "episodes": 20, "low": 0.0, "high": 1.0}
    rows = [pooled("a", "official", 18), pooled("a", "wide", 3), pooled("blind", "wide", 2)]
    one = Result("a", {"run": {"condition": "a", "profile": "tiny"}, "rollouts": rows, "training": None}, ())
    assert [(bar[0], bar[3]) for bar in bars([one])] == [
        ("official placements, tiny", 18), ("wide placements, tiny", 3), ("wide placements, tiny", 2)]
    assert summary([one]) == [("a", "18/20 official, 3/20 wide", "2/20 wide", *["not run"] * 4)]


def test_differences_are_tested_on_shared_episodes_only():
    a, b = [True] * 9 + [False], [False] * 9 + [False] + [True] * 30
    sentence, = differences([result("a", a), result("b", b)])
    assert "9/10 against 0/10" in sentence and f"p = {mcnemar(a, b[:10]):.2g}" in sentence


@pytest.mark.parametrize("found", [[], [result("a", [True])]])
def test_one_run_alone_has_nothing_to_be_compared_with(found):
    assert differences(found) == []
