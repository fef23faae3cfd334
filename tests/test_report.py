"""The report: it is whole with any part missing, and it asks the network nothing; and the tables that end a run."""

from __future__ import annotations

import re

import numpy as np
import pytest
from test_findings import episodes, finding
from test_results import change, full, interval, minimal, rollout, went

from lar_core.measure.results import save_results, validate_results
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl
from lar_core.run.folder import Run
from lar_core.run.registry import METRICS
from lar_core.show.report import (
    beside_baselines,
    columns,
    layer_cells,
    layer_head,
    saliency_cells,
    summary_table,
    write_report,
)

ROW = {"name": "content_words", "frames": 100, "metrics": dict.fromkeys(METRICS) | {"aos": interval(0.123)}}


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.open(make_config(), tmp_path / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """A run with everything and its report, which no test may change."""
    run = Run.open(make_config(), tmp_path_factory.mktemp("finished") / "run")
    fill(run)
    assert write_report(run) == run.report
    return run


def fill(run: Run, instruction: str = "pick up the black bowl") -> None:
    """Everything a finished run has."""
    rng = np.random.default_rng(0)
    save_results(run.results, full())
    for step in range(20):
        append_jsonl(run.metrics, {"step": step, "loss": 2.0, "action": 2.0, "recon": 0.5, "lr": 1e-3, "seconds": 0.1,
                                   "grad_action": 1.0, "grad_recon": 0.1})
    for folder, policy in ((run.path, "attention_mask"), (run.control, "blind")):
        (folder / "rollouts").mkdir(parents=True)
        for row in episodes(policy, "right", "10"):
            row["video"] = f"rollouts/{row['episode']}.mp4"
            (folder / row["video"]).write_bytes(b"a clip")
            append_jsonl(folder / "rollouts.jsonl", row)
    saliency = rng.random((2, 64)).astype(np.float32)
    np.savez(run.path / "gallery.npz", saliency_images=rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8),
             saliency_maps=saliency / saliency.sum(1, keepdims=True), saliency_masks=saliency > 0.75,
             saliency_regions=np.zeros((2, 2, 32, 32), np.uint8), saliency_instructions=np.array([instruction] * 2),
             occlusion_maps=rng.random((2, 16)), scenes=rng.integers(0, 255, (2, 4, 32, 32, 3), dtype=np.uint8),
             panels=rng.integers(0, 255, (2, 4, 32, 32, 3), dtype=np.uint8))


def test_full_report_holds_everything_in_one_file(finished):
    page = finished.report.read_text()
    assert page.count("<video") == 4 and page.count("<img ") == 9
    assert "fills this in" not in page
    for words in ("14/20", "2 paired rollouts", "What these numbers cannot say", "How to read this"):
        assert words in page
    assert len(page) < 15e6


def test_report_asks_the_network_nothing(finished):
    page = re.sub(r"base64,[A-Za-z0-9+/=]+", "", finished.report.read_text())
    assert not re.search(r"https?:|//|<script|@import|url\(", page)
    assert all(source.startswith("data:") for source in re.findall(r"(?:src|srcset|href)='([^']*)'", page))


def test_report_of_an_empty_run_says_which_commands_fill_it(run):
    page = write_report(run).read_text()
    for step, options in (("reproduce", ""), ("saliency", ""), ("latency", ""),
                          ("rollout", " --instructions right blank other_bowl")):
        assert f"lar {step} --condition attention_mask --profile tiny --seed 0{options} fills this in" in page


@pytest.mark.parametrize("section", ["provenance", "training", "action", "reconstruction", "grounding", "cause", "rollouts",
                                     "latency"])
def test_report_with_one_section_missing(run, section):
    save_results(run.results, full() | {section: None})
    assert ("fills this in" in write_report(run).read_text()) == (section != "provenance")


def test_report_escapes_what_it_did_not_write(run):
    save_results(run.results, change(full(), "provenance/machine", "<script>alert('x')</script>"))
    save_results(run.results, change(full(), "provenance/device", "<b>&'\""))
    page = write_report(run).read_text()
    assert "<b>&'" not in page and "&lt;b&gt;&amp;&#39;&#34;" in page


def test_clips_stop_at_the_size_limit(run, monkeypatch):
    fill(run)
    monkeypatch.setattr("lar_core.show.report.CLIP_BYTES", 2 * len(b"a clip"))
    assert write_report(run).read_text().count("<video") == 2


def test_report_refuses_damaged_results(run):
    run.results.write_text("{")
    with pytest.raises(LarError, match="is not JSON"):
        write_report(run)


def test_summary_table_aligns_numbers_intervals_and_comparisons():
    lines = summary_table(full()).splitlines()
    column = lines[2].index("95 % interval")
    row = next(line for line in lines if line.startswith("success, attention_mask"))
    assert "14/20" in row and row[column:].startswith("48 to 85 %")
    assert any(line.startswith("success, blind control") and "13/20" in line for line in lines)
    assert summary_table(minimal()).startswith("attention_mask · tiny · seed 0")


def test_tasks_are_reported_one_by_one_and_then_together(run):
    rows = [rollout("attention_mask", "blank", n, task=task) for task, n in ((2, 4), (5, 0), (8, 0))]
    rows += [rollout("attention_mask", "right", 19, task=task) for task in (2, 5, 8)]
    results = minimal(tasks=(2, 5, 8)) | {"rollouts": rows}
    assert "Task 2 4/20, task 5 0/20, task 8 0/20." in finding(results, "a blank").sentence
    assert "4/60" in summary_table(results) and "task 2 4/20, task 5 0/20, task 8 0/20" in summary_table(results)
    save_results(run.results, results)
    cells = re.sub(r"<[^>]+>", " ", write_report(run).read_text())
    assert re.search(r"blank +official +2 +4/20", cells) and re.search(r"blank +official +8 +0/20", cells)


def test_what_happened_stands_beside_success_with_what_a_deaf_policy_could_reach(run):
    rows = [went("attention_mask", 15, 3), went("attention_mask", 20, 0, "near"),
            went("attention_mask", 9, 1, "near", "blank"), rollout("blind", "right", 5, placement="near")]
    save_results(run.results, results := minimal() | {"rollouts": rows})
    cells = re.sub(r"(<[^>]+>)+", " | ", write_report(run).read_text()).replace("\N{NO-BREAK SPACE}", " ")
    assert "its own | near_counterfactual | 5 | 15/20 (53 to 89 %) | one half | 15 named, 3 other, 2 else | " \
        "5 none, 15 placed | 15 named, 3 other, 2 none |" in cells
    assert "its own | near | 5 | 20/20 (84 to 100 %) | no limit | 20 named |" in cells
    assert "blank | near | 5 | names no bowl here |" in cells and "blind | its own | near | 5 | not recorded |" in cells
    lines = {" ".join(line.split()) for line in summary_table(results).splitlines()}
    assert "followed the sentence, attention_mask 15/20 53 to 89 % near_counterfactual placements: a deaf policy one half " \
        "at most" in lines and "followed the sentence, attention_mask 20/20 84 to 100 % near placements" in lines
    assert not [line for line in lines if line.startswith("followed the sentence, blind")]


def test_rollouts_of_earlier_versions_say_that_what_happened_is_not_recorded(finished):
    page = " ".join(finished.report.read_text().split())
    assert "which bowl ended on the plate is not recorded" in page and "followed the sentence" not in page


def test_a_row_shows_its_name_its_numbers_and_what_could_not_be_measured():
    cells = saliency_cells([ROW])[0]
    assert cells[:3] == ("content words", "0.123\n0.113 to 0.133", "–")


def layer(number: int, kind: str, auc: float) -> dict:
    return {"layer": number, "rows": kind, "frames": 8,
            "metrics": {"aos": None, "auc": interval(auc), "target_minus_distractor": interval(0.1),
                        "agreement": interval(0.3)}}


def test_layers_are_a_table_and_what_is_left_out_is_said(run):
    rows = [layer(0, "text", 0.5), layer(1, "text", 0.6), layer(1, "action", 0.7)]
    assert layer_cells(rows)[0] == ("0", "–", "–", "–", "0.5", "–", "–", "0.1", "–", "–", "0.3", "–", "–")
    assert layer_cells(rows)[1][4:7] == ("0.6", "–", "0.7") and len(layer_head()) == 13
    save_results(run.results, full() | {"layers": rows})
    assert "join at layer 1; below it" in (page := write_report(run).read_text()) and page.count("<img ") == 5
    without = full() | {"layers": rows[:2]}
    without["run"]["config"]["condition"]["head"] = "autoregressive"
    save_results(run.results, without)
    assert "The autoregressive head has no queries" in write_report(run).read_text()
    with pytest.raises(LarError, match="layers"):
        validate_results(full() | {"layers": [layer(0, "words", 0.5)]})


def test_the_page_says_whose_attention_it_shows_unless_it_is_the_words(run):
    pages = []
    for rows in ("text", "action"):
        save_results(run.results, change(full(), "run/config/condition/saliency_rows", rows))
        pages.append("(saliency_rows=action)" in write_report(run).read_text())
    assert pages == [False, True]


def test_results_take_rows_and_name_a_wrong_one():
    validate_results(full() | {"aggregations": [ROW], "robustness": [ROW | {"name": "occlusion"}]})
    with pytest.raises(LarError, match="metrics"):
        validate_results(full() | {"aggregations": [ROW | {"metrics": {}}]})


def test_every_metric_is_explained_beside_maps_that_never_look():
    grounding = {metric: {"model": interval(0.3), "uniform": interval(0.2), "centre": None, "mean_map": interval(0.4)}
                 for metric in METRICS}
    rows = beside_baselines(grounding)
    assert [row[0] for row in rows] == [about.label for about in columns()] and all(row[1] for row in rows)
    assert rows[0][2:] == ("0.3 (0.29 to 0.31)", "0.2 (0.19 to 0.21)", "not measurable", "0.4 (0.39 to 0.41)")
    assert beside_baselines({"aos": grounding["aos"]}) == rows[:1]
