"""docs/findings.md says what results/answer/ says."""

import copy
import json
from pathlib import Path

import pytest
from test_plan import outcomes, planned
from test_study import made  # noqa: F401  (a fixture)

from lar_core.measure.plan import PlanSection, answers
from lar_core.measure.study import STUDY, compare_arms
from lar_core.run.errors import LarError
from lar_core.show.answer import BEGIN, END, answer_figure, chosen, findings_page, kept_studies, with_answer
from lar_core.show.rates import modality_table

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_what_the_kept_studies_say():
    studies, readme = kept_studies(ROOT / "results" / "answer"), (ROOT / "README.md").read_text()
    assert (ROOT / "docs" / "findings.md").read_text() == findings_page(studies)
    assert readme == with_answer(readme, studies)


def test_every_number_on_the_page_is_the_studys(made, tmp_path):  # noqa: F811
    study = planned(tmp_path)
    document = json.loads(json.dumps(compare_arms(*made)))
    document["answers"] = answers(study.plan, {("attention_mask", "action_only"): outcomes((15, 20, 18, 22, 16))}, 5, "wide")
    document["plan"] = PlanSection(document="plan.md", sha256=study.plan.sha256, margin=0.1, planned=5).model_dump()
    STUDY.save(tmp_path / "kept" / "answer.json", document)
    page, readme = findings_page(kept_studies(tmp_path / "kept")), with_answer(f"a{BEGIN}old{END}z", [document])
    for words in ("attention_mask beside action_only: helps** (mine, 3 of 5 planned seeds, +18 points",
                  "| `attention_mask` | 2 | 34/40 (71 to 93 %) |", document["answers"][0]["sentence"],
                  "Each seed: +15, +20, +18 points", study.plan.sha256[:12]):
        assert words in page, words
    assert "attention_mask beside action_only: helps** (mine, 3 of 5" in readme and "| 2 | 34/40 (71 to 93 %) |" in readme
    assert readme.startswith(f"a{BEGIN}\n- ") and readme.endswith(f"{END}z") and "old" not in readme
    assert "|\n|---|" in readme and "|\n\n|" not in readme
    assert page.count("|\n|---|") == 2 and "|\n\n|" not in page  # a table's head stands on its rule
    assert answer_figure(document).axes[0].get_yticklabels()[0].get_text() == "attention_mask − action_only, 3 seeds"
    changed = copy.deepcopy(document)
    changed["answers"][0]["verdict"] = "undecided"
    assert findings_page([changed]) != page


def test_the_table_of_image_and_sentence_is_what_the_kept_study_says():
    study, page = STUDY.load(ROOT / "results" / "modality.json"), (ROOT / "results" / "README.md").read_text()
    rows = modality_table(study["arms"], "action_only", study["study"]["placements"])
    assert len(rows) == 6 and all(f"| {' | '.join(row)} |" in page for row in rows)
    assert study["provenance"]["commit"] in page


def test_a_reader_chooses_arms_and_a_placement(made):  # noqa: F811
    study = json.loads(json.dumps(compare_arms(*made)))
    some = chosen(study, ["attention_mask", "action_only"], "wide")
    assert [arm["condition"] for arm in some["arms"]] == ["action_only", "attention_mask"]
    assert {row["placement"] for arm in some["arms"] for row in arm["success"]} == {"wide"}
    assert some["comparisons"] == [row for row in study["comparisons"] if row["condition"] == "attention_mask"
                                   and row["placement"] == "wide"]
    assert len(study["arms"]) > 2 and study["comparisons"] != some["comparisons"]
    for conditions, placement, words in ((["attention_masks"], "wide", "attention_mask"), (["action_only"], "near", "near")):
        with pytest.raises(LarError, match=words):
            chosen(study, conditions, placement)
